"""Files of tensors: which files of a folder they are, whether they are whole, what
they hold.

Imports torch only where tensors are read, so that `check` and `plan` stay quick.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headstart.assets import cache_folder
from headstart.errors import Fault, UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import Tensor

PICKLES = (".bin", ".pt", ".pth")
SUFFIXES = (".safetensors", *PICKLES)
SAFE_TORCH = "2.10"
"""``weights_only`` of older releases could be made to run code (CVE-2026-24747)."""
REPEATED = 2**30
"""Bytes that tensors of a pickle may have beyond four times what the file has: tied and
expanded ones are stored once."""
HEADER_LIMIT = 100_000_000
"""Longest header that the safetensors format allows, in bytes."""


def tensor_files(
    folder: Path, fetch: Callable[[list[str]], None] | None = None
) -> tuple[Path, ...]:
    """The tensor files of a folder in the layout that transformers writes.

    safetensors come before pickles; ``model.safetensors`` or the shards that
    ``model.safetensors.index.json`` lists come before any other name.

    Args:
        folder: Where they are.
        fetch: Brings files by glob pattern into the folder where they exist elsewhere;
            called only for what is not there.

    Raises:
        UserError: There are none, some are missing, or it is not clear which.
    """
    bring = fetch or (lambda patterns: None)
    for stem, suffix in (("model", ".safetensors"), ("pytorch_model", ".bin")):
        single, index = (folder / f"{stem}{suffix}{x}" for x in ("", ".index.json"))
        if single.is_file():
            return (single,)
        if index.is_file():
            return _shards(index, bring)
        bring([single.name])
        if single.is_file():
            return (single,)
        if suffix == ".safetensors":
            bring(["*.safetensors"])
        others = [
            path
            for path in sorted(folder.glob("*"))
            if path.suffix in (PICKLES if suffix == ".bin" else (suffix,))
            # What transformers' trainer leaves beside a model.
            and path.stem not in ("training_args", "optimizer", "scheduler")
        ]
        if len(others) == 1:
            return (others[0],)
        if others:
            raise UserError(
                f"there are {len(others)} files of tensors and no index",
                where=str(folder),
                why=", ".join(path.name for path in others[:8]),
                fix=f"name one: file:{others[0]}",
            )
    raise UserError(
        "no file of tensors is there",
        where=str(folder),
        why=f"looked for model.safetensors, its index, {', '.join(SUFFIXES)}",
        fix="name the folder or the file that has them",
    )


def _shards(index: Path, bring: Callable[[list[str]], None]) -> tuple[Path, ...]:
    try:
        shards = sorted(
            set(json.loads(index.read_text("utf-8"))["weight_map"].values())
        )
        outside = [s for s in shards if Path(s).name != s or s in ("", ".", "..")]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            "is not an index of shards",
            where=str(index),
            why=f"{type(error).__name__}: {error}",
            fix="delete it and fetch it again",
        ) from None
    if outside:
        raise UserError(
            f"the index names a file outside its folder: {outside[0]!r}",
            where=str(index),
        )
    paths = tuple(index.parent / shard for shard in shards)
    if lacking := [path.name for path in paths if not path.is_file()]:
        bring(lacking)
    if gone := [path for path in paths if not path.is_file()]:
        raise UserError(
            *(
                Fault(
                    "is missing",
                    where=str(path),
                    why=f"{index.name} lists it",
                    fix="fetch the folder again",
                )
                for path in gone
            )
        )
    return paths


def broken(path: Path) -> Fault | None:
    """What is wrong with a safetensors file, from its header and its size.

    The header says where the last tensor ends, so a file that was cut is found without
    reading it.
    """
    fix = "delete it and fetch it again"
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if start == b"version ":
            return Fault(
                "is a Git LFS pointer, not the tensors",
                where=str(path),
                fix="run `git lfs pull` in its folder",
            )
        length = int.from_bytes(start, "little")
        if len(start) == 8 and length <= min(size - 8, HEADER_LIMIT):
            text = file.read(length)
        elif len(start) < 8 or length <= HEADER_LIMIT:
            return Fault(
                f"is truncated: it has {size} bytes and ends in its header",
                where=str(path),
                fix=fix,
            )
        else:
            return Fault("is not a safetensors file", where=str(path), fix=fix)
    try:
        header: dict[str, Any] = json.loads(text)
        ends = [e["data_offsets"][1] for k, e in header.items() if k != "__metadata__"]
        end = 8 + length + max(ends, default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        return Fault("has a damaged header", where=str(path), fix=fix)
    if size < end:
        return Fault(
            f"is truncated: it has {size} of {end} bytes", where=str(path), fix=fix
        )
    if size > end:
        return Fault(
            f"has {size - end} bytes after its last tensor", where=str(path), fix=fix
        )
    return None


def check_files(files: Iterable[Path]) -> None:
    """Check every safetensors file by its header.

    Raises:
        UserError: Some are broken; all are named.
    """
    faults = [broken(path) for path in files if path.suffix == ".safetensors"]
    if found := [fault for fault in faults if fault]:
        raise UserError(*found)


def files_sha256(files: Iterable[Path]) -> str:
    """Hash of some files' content in order, hexadecimal; empty for no files.

    One file has the hash that any tool would print for it; several have the hash of
    their own hashes, so that each is read once.
    """
    digests = [file_sha256(path) for path in files]
    if len(digests) > 1:
        return hashlib.sha256("".join(digests).encode()).hexdigest()
    return "".join(digests)


def file_sha256(path: Path) -> str:
    """Hash of a file's content; read once a process unless the file changes."""
    state = path.stat()
    return _sha256(path, state.st_size, state.st_mtime_ns)


@functools.lru_cache(maxsize=256)
def _sha256(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_tensors(files: Iterable[Path]) -> dict[str, Tensor]:
    """All tensors of some files, safetensors memory-mapped.

    Pickles are converted first, see :func:`converted`.

    Raises:
        UserError: A file is broken or refused, or two files have the same tensor.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    files = tuple(files)
    check_files(files)
    tensors: dict[str, Tensor] = {}
    for path in files:
        safe = path if path.suffix == ".safetensors" else converted(path)
        try:
            found = load_file(safe)
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"cannot be read: {error}",
                where=str(path),
                fix="delete it and fetch it again",
            ) from error
        if twice := sorted(tensors.keys() & found.keys()):
            raise UserError(
                f"{len(twice)} tensors are in two files, the first is {twice[0]!r}",
                where=str(path),
            )
        tensors.update(found)
    return tensors


def converted(pickle: Path) -> Path:
    """A pickle's tensors as a safetensors file in the cache, made on first use.

    The pickle is read by ``torch.load(weights_only=True)``, which builds tensors and
    runs no code; the file's name is the pickle's hash, so another content is another
    file.

    Raises:
        UserError: The pickle holds more than tensors, torch is too old to read it
            safely, or the cache cannot be written.
    """
    folder = cache_folder() / "converted"
    target = folder / f"{file_sha256(pickle)}.safetensors"
    if target.is_file() and broken(target) is None:
        return target
    tensors = _unpickle(pickle)
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    draft: Path | None = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(suffix=".part", dir=folder)
        draft = Path(name)
        os.close(handle)
        save_file(tensors, draft)
        os.replace(draft, target)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"the cache folder cannot be written: {error}",
            where=str(folder),
            why=f"{pickle.name} is a pickle and is converted to safetensors once",
            fix="make room, or set HEADSTART_CACHE to a folder that can be written",
        ) from error
    finally:
        if draft is not None:
            draft.unlink(missing_ok=True)
    return target


def _unpickle(path: Path) -> dict[str, Tensor]:
    import torch
    from packaging.version import Version

    if Version(torch.__version__).release < Version(SAFE_TORCH).release:
        raise UserError(
            f"a pickle is read by torch >= {SAFE_TORCH} only",
            where=str(path),
            why=f"this is torch {torch.__version__}, where weights_only is not safe",
            fix="upgrade torch, or use a safetensors file",
        )
    _refuse_compressed(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # Which exception depends on what the pickle asked for and on where it ends.
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = next((li for li in lines if "Unsupported" in li), "".join(lines[:1]))
        # What follows is advice to trust the file all the same.
        reason = reason.partition(" Please use")[0]
        raise UserError(
            "is refused: it is not a plain pickle of tensors, or it is damaged",
            where=str(path),
            why=f"torch.load(weights_only=True): {reason or type(error).__name__}",
            fix="use a safetensors file; never load this one in another way unless "
            "you trust who made it",
        ) from None
    tensors = _state_dict(content)
    if not tensors:
        raise UserError(
            "holds no named tensors",
            where=str(path),
            why=f"it holds a {type(content).__name__}",
            fix="a file that `torch.save(model.state_dict(), …)` wrote is needed",
        )
    # One stored number may stand for any number of them (torch.Tensor.expand).
    size, stored = sum(t.nbytes for t in tensors.values()), path.stat().st_size
    if size > 4 * stored + REPEATED:
        raise UserError(
            f"is refused: its tensors would take {size / 2**30:,.1f} GiB",
            where=str(path),
            why=f"the file has {stored / 2**20:,.3f} MiB: they repeat few numbers",
            fix="use a safetensors file, or save contiguous copies of the tensors",
        )
    # safetensors knows neither shared storage nor strides.
    return {
        name: tensor.detach().clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }


def _refuse_compressed(path: Path) -> None:
    """``torch.save`` never compresses; a small file that does may fill the memory."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except zipfile.BadZipFile:
        return  # torch says what is wrong with it
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise UserError(
            "is refused: its records are compressed",
            where=str(path),
            why="torch.save stores them as they are; unpacked, a small file could fill "
            "the memory",
            fix="use the original file, or a safetensors file",
        )


def _state_dict(content: Any) -> dict[str, Tensor]:
    """The named tensors that a training script saved, perhaps one level down."""
    from torch import Tensor

    if not isinstance(content, dict):
        return {}
    found = {str(k): v for k, v in content.items() if isinstance(v, Tensor)}
    for key in ("state_dict", "model_state_dict", "model"):
        if not found:
            inner = content.get(key)
            found = _state_dict(inner) if isinstance(inner, dict) else {}
    return found
