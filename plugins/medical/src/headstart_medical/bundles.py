"""MONAI bundles as weights: network, parameters and class names, nothing run.

A bundle is a folder, or a zip of it, with ``configs/metadata.json``, a configuration
that has ``network_def``, and ``models/model.pt``. Its scripts, its logging
configuration and its TorchScript model are not opened.

Source of the layout: "MONAI Bundle Specification" in MONAI's documentation.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headstart import assets
from headstart.errors import UserError, nearest
from headstart.weights.conversion import TENSORS, converted_once
from headstart.weights.hub import fetch_files
from headstart.weights.sources import Weights
from headstart.weights.tensors import read_tensors
from headstart_medical.bundle_files import (
    METADATA,
    BundleFiles,
    BundleFolder,
    BundleZip,
)
from headstart_medical.definitions import (
    KEY,
    Definition,
    RefusedError,
    read_definition,
)

if TYPE_CHECKING:
    from headstart.weights.sources import SourceContext

HUB = "MONAI"
"""The organisation on the Hugging Face hub that publishes the model zoo."""
HUB_FILES = ["configs/*", "models/model.pt", "models/*.safetensors", "LICENSE"]
NAME = re.compile(r"[\w.-]+(@[\w.-]+)?", re.ASCII)
PARALLEL = "module."
CONFIGS = ("inference", "train", "evaluate")
SUFFIXES = (".json", ".yaml", ".yml")
LAYOUT = "2"
"""Of what is written into the cache; another one is another folder."""


def resolve_bundle(reference: str, context: SourceContext) -> Weights:
    """A MONAI bundle as weights of one of this plugin's backbones.

    The folder has ``config.json``: ``network`` (the class in MONAI), its arguments and,
    where metadata have them, ``channel_names`` of its input.
    The tensors of the network's last layer are called ``output.…``; the others keep
    MONAI's names.

    Args:
        reference: A folder, a ``.zip``, ``asset:NAME``, or a NAME (``NAME@REVISION``)
            of MONAI's model zoo on the Hugging Face hub.
        context: Its registry knows the assets.

    Raises:
        UserError: There is no such bundle, it is damaged, its parameters are no plain
            pickle, or the cache cannot be written.
        RefusedError: Its network is not one of MONAI's that has a backbone here, or
            is defined by more than data.
    """
    files, licence, revision = _open(reference, context)
    with files:
        metadata = _parse(files, METADATA)
        definition = _definition(files)
        model = _model(files)
        config = dict(definition.config)
        if names := channel_names(metadata, "inputs", definition.inputs):
            config["channel_names"] = names

        def write(folder: Path) -> None:
            from safetensors.torch import save_file

            tensors = read_tensors([files.local(model, folder)])
            (folder / Path(model).name).unlink(missing_ok=True)
            _check_size(definition, tensors, model)
            save_file(rename(tensors, definition), folder / TENSORS)
            text = json.dumps(config, indent=1)
            (folder / "config.json").write_text(text, encoding="utf-8")

        told = json.dumps([LAYOUT, config], sort_keys=True)
        digest = hashlib.sha256(told.encode()).hexdigest()[:16]
        name = f"{files.sha256(model)}-bundle-{digest}"
        folder = converted_once(name, write, model)
        licence = licence or _licence(files, metadata)
    return Weights(
        f"monai:{reference}",
        folder,
        (folder / TENSORS,),
        revision=revision,
        licence=licence,
        classes=channel_names(metadata, "outputs", definition.outputs),
    )


def channel_names(
    metadata: dict[str, Any], side: str, count: int | None
) -> tuple[str, ...]:
    """Names of what a bundle reads or predicts, from the ``channel_def`` of the first.

    Args:
        metadata: The bundle's ``metadata.json``.
        side: ``inputs`` or ``outputs``.
        count: Channels that the network has; ``None`` when its definition does not
            say.

    Returns:
        A name for each channel, in order; empty unless every channel has its own.
    """
    found: Any = metadata
    for key in ("network_data_format", side):
        found = found.get(key) if isinstance(found, dict) else None
    first = next(iter(found.values()), None) if isinstance(found, dict) else None
    channels = first.get("channel_def") if isinstance(first, dict) else None
    if not isinstance(channels, dict) or len(channels) != count:
        return ()
    names = [channels.get(str(i), channels.get(i)) for i in range(len(channels))]
    whole = [n for n in names if isinstance(n, str) and 0 < len(n) <= 200]
    printable = all(name.isprintable() for name in whole)
    return tuple(whole) if printable and len({*whole}) == len(names) else ()


def _check_size(definition: Definition, tensors: dict[str, Any], model: str) -> None:
    """A few lines can define a network that no memory holds, with other parameters.

    Raises:
        RefusedError: The network has far more numbers than the file of its parameters.
    """
    found = sum(tensor.numel() for tensor in tensors.values())
    # MONAI's later releases have a few more than the one that wrote the file.
    if definition.count > 2 * found:
        raise RefusedError(
            f"{KEY} has {definition.count:,} numbers in its parameters and buffers",
            where=definition.where,
            why=f"{model} has {found:,}: it is of another network",
            fix="get the bundle whose definition and parameters belong together",
        )


def rename(tensors: dict[str, Any], definition: Definition) -> dict[str, Any]:
    """A network's tensors with its last layer called ``output``.

    MONAI's DynUNet lists every tensor twice; the second names are left out. So is what
    ``DataParallel`` puts before every name.
    """
    last = definition.network.output
    if all(name.startswith(PARALLEL) for name in tensors):
        tensors = {n.removeprefix(PARALLEL): tensor for n, tensor in tensors.items()}
    kept = {
        name: tensor
        for name, tensor in tensors.items()
        if not (definition.network.name == "DynUNet" and "skip_layers." in name)
    }
    if not last:
        # MONAI's UNet writes its classes with its top level, which is a stage of ours.
        # The head's layer behind it then passes them on.
        return {**kept, **_passing_on(definition)}
    return {
        f"output.{name.removeprefix(last)}" if name.startswith(last) else name: tensor
        for name, tensor in kept.items()
    }


def _passing_on(definition: Definition) -> dict[str, Any]:
    """A last layer that gives what it is given, for a network that has none."""
    import torch

    classes = definition.arguments.get("out_channels")
    if definition.network.name != "UNet" or not isinstance(classes, int):
        return {}
    return {
        "output.weight": torch.eye(classes)[:, :, None, None, None],
        "output.bias": torch.zeros(classes),
    }


def _open(reference: str, context: SourceContext) -> tuple[BundleFiles, str, str]:
    """The bundle's files on this machine, its licence and its commit where known."""
    where = f"monai:{reference}"
    scheme, _, name = reference.partition(":")
    if scheme == "asset":
        packages = [p.package for p in context.registry.plugins if p.status == "loaded"]
        asset = assets.find_asset(name, packages)
        folder = assets.fetch(asset, progress=context.progress)
        zips = [folder / f.path for f in asset.files if f.path.endswith(".zip")]
        if len(zips) == 1:
            return BundleZip(zips[0]), asset.licence, ""
        return BundleFolder(folder), asset.licence, ""
    path = Path(reference).expanduser()
    if path.is_dir():
        return BundleFolder(path), "", ""
    if path.is_file():
        return BundleZip(path), "", ""
    if not NAME.fullmatch(reference) or reference.endswith(".zip"):
        around = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError(
            "there is no such bundle",
            where=where,
            why=f"looked for {path.absolute()}",
            fix=nearest(path.name, around)
            or "name a folder, a .zip, asset:NAME, or a model of MONAI's zoo",
        )
    found = fetch_files(f"{HUB}/{reference}", HUB_FILES)
    return BundleFolder(found.folder), found.licence, found.commit


def _definition(files: BundleFiles) -> Definition:
    """The network of the first configuration that has one."""
    names = [n for n in files.names("configs") if n.endswith(SUFFIXES)]
    order = {f"configs/{stem}": rank for rank, stem in enumerate(CONFIGS)}
    names.sort(key=lambda n: (order.get(n.rpartition(".")[0], len(order)), n))
    tried = [name for name in names if name != METADATA]
    for name in tried:
        config = _parse(files, name)
        if KEY in config:
            return read_definition(config, files.where(name))
    raise UserError(
        f"no configuration of the bundle has {KEY!r}",
        where=files.where("configs"),
        why=f"looked in {', '.join(tried) or 'no file: there is none'}",
        fix="name the bundle's own folder; others cannot be read as data",
    )


def _parse(files: BundleFiles, name: str) -> dict[str, Any]:
    """A JSON or YAML file; YAML's tags that build objects are refused."""
    text = files.read(name)
    try:
        if name.endswith(".json"):
            content = json.loads(text)
        else:
            import yaml  # type: ignore[import-untyped]

            content = yaml.safe_load(text)
    except Exception as error:
        # YAML's errors and its constructors' share no base with JSON's; deep nesting
        # ends in RecursionError.
        reason = " ".join(str(error).split())
        raise UserError(
            "is refused: it is no plain JSON or YAML",
            where=files.where(name),
            why=f"{type(error).__name__}: {reason:.200}",
        ) from None
    if not isinstance(content, dict):
        raise UserError(
            f"holds a {type(content).__name__}, a table is expected",
            where=files.where(name),
        )
    return content


def _model(files: BundleFiles) -> str:
    """The file with the parameters."""
    names = files.names("models")
    tensors = [n for n in names if n.endswith((".safetensors", ".pt", ".pth"))]
    for name in ("models/model.safetensors", "models/model.pt"):
        if name in tensors:
            return name
    if len(tensors) == 1:
        return tensors[0]
    script = any(name.endswith(".ts") for name in names)
    raise UserError(
        f"the bundle has {len(tensors)} files of parameters, models/model.pt is needed",
        where=files.where("models"),
        why="it has a TorchScript model, which is a program and is not run"
        if script and not tensors
        else f"it has {', '.join(names[:8]) or 'no such folder'}",
        fix="get the bundle with models/model.pt, a state dict",
    )


def _licence(files: BundleFiles, metadata: dict[str, Any]) -> str:
    """As metadata or the first line of the licence say it."""
    stated = metadata.get("license")
    if not isinstance(stated, str):
        there = "LICENSE" in files.names("")
        text = files.read("LICENSE").decode("utf-8", "replace") if there else ""
        stated = next((line.strip() for line in text.split("\n") if line.strip()), "")
    return str(stated)[:80] if stated.isprintable() else ""
