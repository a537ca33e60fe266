"""Weights from GGUF files, de-quantised once into a folder as transformers writes it.

transformers reads the file, weights, configuration, tokenizer and chat template; what
it does with each is documented under "GGUF and interaction with Transformers".
"""

from __future__ import annotations

import io
from contextlib import redirect_stderr
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from headstart.errors import UserError
from headstart.weights.conversion import TENSORS, converted_once, one_file
from headstart.weights.sources import Weights
from headstart.weights.tensors import file_sha256, tensor_files

if TYPE_CHECKING:
    from pathlib import Path

    from headstart.fetch.http import Progress
    from headstart.weights.sources import SourceContext

SUFFIX = ".gguf"
MAGIC = b"GGUF"


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
    path, licence = one_file("gguf", reference, SUFFIX, context)
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

    def write(folder: Path) -> None:
        if progress:
            progress(0, 0, f"converting {path.name}")
        _convert(path, folder)

    name = f"{file_sha256(path)}-transformers-{version('transformers')}"
    return converted_once(name, write, path.name)


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
