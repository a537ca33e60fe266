"""Weights references (``asset:``, ``hf:``, ``file:``, ``none`` …), resolved."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from headstart import assets
from headstart.errors import PluginError, UserError, nearest
from headstart.specs import resolve
from headstart.weights.hub import fetch_model
from headstart.weights.tensors import (
    SUFFIXES,
    check_files,
    files_sha256,
    read_tensors,
    tensor_files,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from headstart.data import DataModule
    from headstart.fetch.http import Progress
    from headstart.plugins import Registry


@dataclass(frozen=True)
class SourceContext:
    """What a weights source may need beside the reference.

    Attributes:
        registry: The loaded plugins.
        progress: Told about transfers, if anybody wants to know.
        data: Loaded, not prepared: for sources that learn from an earlier part of it.
    """

    registry: Registry
    progress: Progress | None = None
    data: DataModule | None = None


@dataclass(frozen=True)
class Weights:
    """Where pretrained parameters come from, all of it on this machine.

    Attributes:
        reference: As the recipe has it, e.g. ``hf:google-bert/bert-base-uncased``.
        folder: Configuration, vocabulary and the like; ``None`` when there is none.
        files: Files of tensors, safetensors or pickles.
        revision: The commit that a hub resolved the reference to.
        licence: As the source declares it; empty when it does not.
        classes: Names of the classes of a pretrained head, in the order of its rows.
        rows: Of tensors that are tables: what their rows belong to, by the source's
            names of the tensors.
        native: Whether the tensors have our own names, as in a run.
    """

    reference: str
    folder: Path | None
    files: tuple[Path, ...]
    revision: str = ""
    licence: str = ""
    classes: tuple[str, ...] = ()
    rows: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    native: bool = False

    @cached_property
    def sha256(self) -> str:
        """Hash of the tensor files, as ``tensors.files_sha256`` makes it."""
        return files_sha256(self.files)

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by the source's names, memory-mapped.

        Raises:
            UserError: A file is broken, or a pickle is refused.
        """
        return read_tensors(self.files)


def resolve_weights(reference: str, context: SourceContext) -> Weights:
    """Bring what a reference names to this machine.

    Args:
        reference: ``scheme:rest``, or ``none``.
        context: Its registry knows the schemes.

    Raises:
        UserError: No such scheme, or what is named cannot be had.
        PluginError: A plugin's source brought nothing and did not say so.
    """
    scheme, colon, rest = reference.partition(":")
    if reference == "none":
        colon = ":"
    if not colon or len(scheme) == 1 or set(scheme) & set("/\\."):
        raise _without_scheme(reference, context.registry)
    spec = context.registry.weight_source(scheme)
    if not rest and not spec.bare:
        raise UserError(f"nothing follows {reference!r}", where="backbone.weights")
    weights: Weights = resolve(spec.resolver)(rest, context)
    if not weights.files and scheme != "none":
        raise PluginError(
            f"the weight source '{scheme}:' gave no files",
            where=reference,
            fix="report this to the authors of the plugin that offers it",
        )
    check_files(weights.files)
    return replace(weights, reference=reference)


def _without_scheme(reference: str, registry: Registry) -> UserError:
    known = [f"{scheme}:" for scheme in sorted(registry.weight_sources)]
    if Path(reference).expanduser().exists():
        fix = f"did you mean 'file:{reference}'?"
    elif re.fullmatch(r"[\w.-]+/[\w.-]+(@\S+)?", reference):
        fix = f"did you mean 'hf:{reference}' or 'file:{reference}'?"
    else:
        fix = nearest(f"{reference}:", known)
    return UserError(
        f"{reference!r} does not say where to look",
        where="backbone.weights",
        why=f"a weights reference starts with one of {' '.join(known)}",
        fix=fix,
    )


def resolve_none(reference: str, context: SourceContext) -> Weights:
    """No weights: the backbone keeps its random parameters, as a control."""
    return Weights("none", None, ())


def resolve_asset(reference: str, context: SourceContext) -> Weights:
    """An asset of any loaded plugin, by name.

    Raises:
        AssetError: There is no such asset, or it cannot be had.
    """
    packages = [p.package for p in context.registry.plugins if p.status == "loaded"]
    asset = assets.find_asset(reference, packages)
    folder = assets.fetch(asset, progress=context.progress)
    return Weights(
        f"asset:{reference}", folder, tensor_files(folder), licence=asset.licence
    )


def resolve_file(reference: str, context: SourceContext) -> Weights:
    """A file of tensors, or a folder as transformers' ``save_pretrained`` writes it.

    Raises:
        UserError: It is not there, or holds no tensors.
    """
    path = Path(reference).expanduser()
    name = f"file:{reference}"
    if path.is_dir():
        return Weights(name, path, tensor_files(path))
    if not path.exists():
        around = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError(
            "there is no such file or folder",
            where=name,
            why=f"looked for {path.absolute()}",
            fix=nearest(path.name, around),
        )
    if path.suffix not in SUFFIXES:
        raise UserError(
            f"is no file of tensors: {path.suffix or 'no suffix'}",
            where=name,
            fix=f"name a folder or a file that ends in {', '.join(SUFFIXES)}",
        )
    configured = (path.parent / "config.json").is_file()
    return Weights(name, path.parent if configured else None, (path,))


def resolve_hub(reference: str, context: SourceContext) -> Weights:
    """A model on the Hugging Face hub: ``ORG/NAME`` or ``ORG/NAME@REVISION``.

    Raises:
        UserError: See :func:`~headstart.weights.hub.fetch_model`.
    """
    found = fetch_model(reference)
    return Weights(
        f"hf:{reference}", found.folder, found.files, found.commit, found.licence
    )
