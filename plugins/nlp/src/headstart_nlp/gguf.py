"""Weights from GGUF files, de-quantised once into a folder as transformers writes it.

transformers reads the file, weights, configuration, tokenizer and chat template; what
it does with each is documented under "GGUF and interaction with Transformers".
"""

from __future__ import annotations

import io
import os
import shutil
from contextlib import redirect_stderr
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headstart import assets
from headstart.errors import UserError, nearest
from headstart.weights.sources import Weights
from headstart.weights.tensors import broken, file_sha256, tensor_files

if TYPE_CHECKING:
    from headstart.fetch.http import Progress
    from headstart.weights.sources import SourceContext

SUFFIX = ".gguf"
MAGIC = b"GGUF"
TENSORS = "model.safetensors"


def resolve_gguf(reference: str, context: SourceContext) -> Weights:
    """A GGUF file, or an asset that has one, as weights in float32.

    The parameters are those of the file: 4-bit ones have lost what 4 bits lose. They
    are converted on first use; the folder's name holds the file's hash.

    Args:
        reference: A file that ends in ``.gguf``, or ``asset:NAME``.
        context: Its registry knows the assets.

    Raises:
        UserError: There is no such file, it is damaged, transformers cannot read it, or
            the cache cannot be written.
    """
    path, licence = _file(reference, context)
    _check(path)
    folder = converted(path, context.progress)
    name = f"gguf:{reference}"
    return Weights(name, folder, tensor_files(folder), licence=licence)


def converted(path: Path, progress: Progress | None = None) -> Path:
    """The folder in the cache with the content of a GGUF file, made on first use.

    It has what ``save_pretrained`` writes of a model in float32 and its tokenizer, and
    appears only once it is whole. Another content, or another release of transformers,
    is another folder.

    Args:
        path: The file.
        progress: Told that it is converted, which takes seconds to minutes.

    Raises:
        UserError: transformers cannot read the file, or the cache cannot be written.
    """
    root = assets.cache_folder() / "converted"
    release = version("transformers")
    target = root / f"{file_sha256(path)}-transformers-{release}"
    if _is_whole(target):
        return target
    from safetensors import SafetensorError

    if progress:
        progress(0, 0, f"converting {path.name}")
    draft = root / f".{target.name}.{os.getpid()}.part"
    try:
        draft.mkdir(parents=True, exist_ok=True)
        _convert(path, draft)
        # Another process may have been faster, and others read that one already.
        if not _is_whole(target):
            shutil.rmtree(target, ignore_errors=True)
            draft.rename(target)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"the cache folder cannot be written: {error}",
            where=str(root),
            why=f"{path.name} is converted to safetensors once",
            fix="make room, or set HEADSTART_CACHE to a folder that can be written",
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return target


def _is_whole(folder: Path) -> bool:
    tensors = folder / TENSORS
    return tensors.is_file() and broken(tensors) is None


def _file(reference: str, context: SourceContext) -> tuple[Path, str]:
    """The GGUF file on this machine, and its licence as far as it is known."""
    scheme, _, name = reference.partition(":")
    if scheme == "asset":
        packages = [p.package for p in context.registry.plugins if p.status == "loaded"]
        asset = assets.find_asset(name, packages)
        folder = assets.fetch(asset, progress=context.progress)
        files = [folder / f.path for f in asset.files if f.path.endswith(SUFFIX)]
        if len(files) != 1:
            raise UserError(
                f"the asset {name!r} has {len(files)} GGUF files, one is needed",
                where=f"gguf:{reference}",
                fix=f'backbone.weights = "asset:{name}"' if not files else "",
            )
        return files[0], asset.licence
    path = Path(reference).expanduser()
    if not path.is_file():
        around = [p.name for p in path.parent.glob(f"*{SUFFIX}")]
        inside = [p.name for p in path.glob(f"*{SUFFIX}")]
        raise UserError(
            "this is a folder" if path.is_dir() else "there is no such file",
            where=f"gguf:{reference}",
            why=f"looked for {path.absolute()}",
            fix=f"name the file: gguf:{path / min(inside)}"
            if inside
            else nearest(path.name, around),
        )
    return path, ""


def _check(path: Path) -> None:
    """Read the header, which says where each tensor is.

    Raises:
        UserError: This is no GGUF file, it is truncated, or gguf is not installed.
    """
    with path.open("rb") as file:
        start = file.read(len(MAGIC))
    if start != MAGIC:
        raise UserError(
            "this is no GGUF file",
            where=str(path),
            why=f"it starts with {start!r}, not {MAGIC!r}",
            fix="fetch the file again; safetensors are read by file: and hf:",
        )
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise UserError(
            "GGUF files need the package gguf",
            where=f"gguf:{path}",
            why=f"{type(error).__name__}: {error}",
            fix="pip install gguf",
        ) from None
    try:
        GGUFReader(path)
    except Exception as error:
        # It maps the file and slices; what fails depends on where the file ends.
        raise UserError(
            "this GGUF file is truncated or damaged",
            where=str(path),
            why=f"it has {path.stat().st_size:,} bytes and they end too soon or "
            f"contradict its header ({type(error).__name__}: {error})",
            fix="delete it and fetch it again",
        ) from None


def _convert(path: Path, folder: Path) -> None:
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        # Its bars are shown where there is no terminal too.
        with redirect_stderr(io.StringIO()):
            model: Any = AutoModelForCausalLM.from_pretrained(
                path.parent, gguf_file=path.name, dtype=torch.float32
            )
            tokenizer: Any = AutoTokenizer.from_pretrained(
                path.parent, gguf_file=path.name
            )
    except Exception as error:
        # Which exception depends on what of the file transformers does not know.
        reason = " ".join(str(error).split())
        raise UserError(
            "transformers cannot read this GGUF file",
            where=str(path),
            why=f"{type(error).__name__}: {reason[:300]}",
            fix="use the original weights: hf:ORG/NAME",
        ) from error
    config = model.config
    # What is written is no longer quantised.
    del config.quantization_config
    config.architectures = [type(model).__name__]
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict().items():
        # A tied tensor is written once, under its first name.
        if all(tensor.data_ptr() != other.data_ptr() for other in tensors.values()):
            tensors[name] = tensor.contiguous()
    config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    save_file(tensors, folder / TENSORS, metadata={"format": "pt"})
