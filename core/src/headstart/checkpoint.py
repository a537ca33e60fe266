"""Checkpoints that are whole or not there: safetensors, JSON, and a manifest.

What never trains is in a file of its own, ``frozen.safetensors``, which the
checkpoints of a run share as hard links: it takes its place on the disk once, and each
folder is whole by itself all the same.

A checkpoint is written to a hidden folder, its checksums taken on the way into its
manifest, flushed, and renamed; it is hidden again before it is deleted. So whatever
bears a checkpoint's name was whole once, and a process that is killed leaves hidden
folders at most. The reader takes the newest one whose manifest holds, and says so when
it had to go back.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file

from headstart.errors import Fault, HeadstartError, UserError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

MANIFEST = "MANIFEST.json"
CHUNK = 2**22
"""Bytes that are read at once to check a file."""
BEST = "best"
FROZEN = "frozen"
"""Name of the tensors that are the same in every checkpoint of a run."""
HIDDEN = (".partial-*", ".old-*", f".{BEST}-*")
"""What a process that was killed may leave in the folder of checkpoints."""
DTYPES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.complex64: "C64",
}
"""What safetensors calls them."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder whose manifest holds.

    Attributes:
        folder: Where it is.
        step: Optimizer steps done when it was written.
    """

    folder: Path
    step: int

    def tensors(self, name: str) -> dict[str, torch.Tensor]:
        """The tensors of ``NAME.safetensors``; empty when there is no such file.

        Those of ``model`` and ``average`` are all of them, the frozen ones too.
        """
        found = self._read(name)
        there = (self.folder / f"{name}.safetensors").exists()
        if not there or name not in ("model", "average"):
            return found
        prefix = "module." if name == "average" else ""
        frozen = self._read(FROZEN)
        return {**{f"{prefix}{key}": value for key, value in frozen.items()}, **found}

    def _read(self, name: str) -> dict[str, torch.Tensor]:
        path = self.folder / f"{name}.safetensors"
        return load_file(path) if path.exists() else {}

    @property
    def kept_files(self) -> tuple[Path, ...]:
        """The files of :meth:`kept_model`, where names may start with ``module.``."""
        average = self.folder / "average.safetensors"
        kept = average if average.exists() else self.folder / "model.safetensors"
        frozen = self.folder / f"{FROZEN}.safetensors"
        return (frozen, kept) if frozen.exists() else (kept,)

    def kept_model(self) -> dict[str, torch.Tensor]:
        """The model it stands for: the moving average where there is one."""
        average = self.tensors("average")
        if not average:
            return self.tensors("model")
        return {
            name.removeprefix("module."): value
            for name, value in average.items()
            if name.startswith("module.")
        }

    def state(self) -> dict[str, Any]:
        """What ``state.json`` holds."""
        state: dict[str, Any] = json.loads((self.folder / "state.json").read_text())
        return state


def write_checkpoint(
    checkpoints: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, torch.Tensor]],
    state: Mapping[str, Any],
) -> Checkpoint:
    """Write ``step-NNNNNN`` under ``checkpoints``, whole or not at all.

    Args:
        checkpoints: The run's folder of checkpoints.
        step: Optimizer steps done.
        tensors: Tensors by file name without ending (``model``, ``optimizer``); those
            of ``frozen`` are taken from the last checkpoint that has them.
        state: JSON-ready state of the loop.

    Raises:
        HeadstartError: The disk is full or cannot be written; what was there before
            is untouched.
    """
    final = checkpoints / f"step-{step:06d}"
    partial = checkpoints / f".partial-{final.name}"
    try:
        _sweep(checkpoints)
        partial.mkdir(parents=True)
        changing = {name: group for name, group in tensors.items() if name != FROZEN}
        shared = _link_frozen(checkpoints, partial, tensors.get(FROZEN, {}))
        if not shared and tensors.get(FROZEN):
            changing[FROZEN] = tensors[FROZEN]
        about = json.dumps(state, indent=1).encode()
        manifest = _write_files(partial, changing, about) | shared
        _write(partial / MANIFEST, [_canonical(manifest)])
        _flush(partial / MANIFEST)
        _flush(partial)
        _replace(partial, final)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise HeadstartError(
            "the disk is full" if full else "the checkpoint cannot be written",
            where=str(final),
            why=str(error),
            fix="make room, then go on from the last checkpoint, which is whole",
        ) from error
    except Exception:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    # What is newer was damaged and passed over, or training would not be here again.
    for newer in _newest_first(checkpoints):
        if int(_step(newer)) > step:
            _delete(newer)
    return Checkpoint(final, step)


def mark_best(checkpoint: Checkpoint) -> None:
    """Point ``best`` at a checkpoint, atomically."""
    link = checkpoint.folder.parent / BEST
    fresh = link.with_name(f".{BEST}-{os.getpid()}")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(checkpoint.folder.name)
    fresh.replace(link)
    _flush(link.parent)


def put_best_back(checkpoint: Checkpoint, best_step: int) -> None:
    """Point ``best`` to where it led when a checkpoint was written, if that holds.

    It may not have been pointed there before the process was killed, or lead to a later
    one that was damaged and is passed over.
    """
    best = checkpoint.folder.with_name(f"step-{best_step:06d}")
    if best.is_dir() and not faults_of(best):
        mark_best(Checkpoint(best, best_step))


def prune(checkpoints: Path, keep: int) -> None:
    """Delete all but the last ``keep`` checkpoints and the best one."""
    best = (checkpoints / BEST).resolve()
    for folder in _newest_first(checkpoints)[keep:]:
        if folder.resolve() != best:
            _delete(folder)


def faults_of(folder: Path) -> list[Fault]:
    """Everything by which a checkpoint differs from its manifest; empty if it holds."""
    where = str(folder)
    fix = "use another checkpoint; this one is not read"
    try:
        written = (folder / MANIFEST).read_bytes()
        manifest = json.loads(written.decode())
        expected = {name: (row["size"], row["crc32"]) for name, row in manifest.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        return [Fault("the manifest cannot be read", where, str(error), fix)]
    if written != _canonical(manifest):
        # Without a hash of its own it is held to the one way of writing it.
        why = "it is not written as it was"
        return [Fault("the manifest was changed", where, why, fix)]
    faults = []
    present = {path.name for path in folder.iterdir()} - {MANIFEST}
    for name in sorted(present - expected.keys()):
        faults.append(Fault(f"{name} is not in the manifest", where, "", fix))
    for name, (size, crc32) in expected.items():
        path = folder / name
        if name not in present:
            faults.append(Fault(f"{name} is missing", where, "", fix))
        elif path.stat().st_size != size:
            why = f"{path.stat().st_size} bytes, {size} were written"
            faults.append(Fault(f"{name} has another size", where, why, fix))
        elif why := _changed(path, crc32):
            faults.append(Fault(f"{name} was changed", where, why, fix))
    return faults


def read_checkpoint(folder: Path) -> Checkpoint:
    """Open one checkpoint.

    Raises:
        UserError: It is not there, or a byte of it was changed.
    """
    folder = folder.resolve()
    if not folder.is_dir():
        raise UserError("there is no checkpoint", where=str(folder))
    faults = faults_of(folder)
    if faults:
        raise UserError(*faults)
    return Checkpoint(folder, int(_step(folder)))


def newest_checkpoint(checkpoints: Path) -> tuple[Checkpoint, list[Fault]]:
    """The newest checkpoint whose manifest holds, and what was wrong with newer ones.

    Raises:
        UserError: There is none.
    """
    passed_over: list[Fault] = []
    for folder in _newest_first(checkpoints):
        faults = faults_of(folder)
        if not faults:
            return read_checkpoint(folder), passed_over
        passed_over += faults
    raise UserError(
        *(passed_over or [Fault("there is no checkpoint", str(checkpoints))])
    )


def open_checkpoint(checkpoints: Path) -> tuple[Checkpoint, list[Fault]]:
    """The best checkpoint; when it is damaged or unmarked, the newest that holds."""
    best = checkpoints / BEST
    if best.is_symlink():
        try:
            return read_checkpoint(best), []
        except UserError as error:
            checkpoint, more = newest_checkpoint(checkpoints)
            return checkpoint, [*error.faults, *more]
    return newest_checkpoint(checkpoints)


def _newest_first(checkpoints: Path) -> Sequence[Path]:
    folders = [p for p in checkpoints.glob("step-*") if _step(p).isdigit()]
    return sorted(folders, key=lambda p: int(_step(p)), reverse=True)


def _step(folder: Path) -> str:
    return folder.name.removeprefix("step-")


def _write_files(
    folder: Path,
    tensors: Mapping[str, Mapping[str, torch.Tensor]],
    state: bytes,
) -> dict[str, dict[str, Any]]:
    """Write all files but the manifest, and return what it says about them.

    Other threads take the checksums of what this one writes, and flush what it has
    written (none of them holds Python's lock); from memory, so nothing is read back.
    They find damage, not forgery, and CRC-32 never misses a change within 32 bits; a
    cryptographic hash takes twice as long, and training waits for it.
    """
    files: dict[str, list[bytes | memoryview]] = {"state.json": [state]}
    for name, group in tensors.items():
        files[f"{name}.safetensors"] = _safetensors(group)
    sizes: dict[str, int] = {}
    with ThreadPoolExecutor(2 * len(files)) as pool:
        sums = {file: pool.submit(_crc32, pieces) for file, pieces in files.items()}
        flushed = []
        for file, pieces in files.items():
            sizes[file] = _write(folder / file, pieces)
            flushed.append(pool.submit(_flush, folder / file))
        for done in flushed:
            done.result()
        return {
            file: {"crc32": sums[file].result(), "size": sizes[file]}
            for file in sorted(files)
        }


def _link_frozen(
    checkpoints: Path, partial: Path, group: Mapping[str, torch.Tensor]
) -> dict[str, dict[str, Any]]:
    """Take over the file of frozen tensors of the last checkpoint that has it whole.

    Returns:
        Its line of the manifest; nothing where there is no such file, or no links.
    """
    file = f"{FROZEN}.safetensors"
    header = _header(group) if group else b""
    for folder in _newest_first(checkpoints) if group else ():
        path = folder / file
        try:
            row = json.loads((folder / MANIFEST).read_text())[file]
            with path.open("rb") as opened:
                same = opened.read(len(header)) == header
            if same and not _changed(path, row["crc32"]):
                os.link(path, partial / file)
                return {file: row}
        except (OSError, ValueError, KeyError):
            continue
    return {}


def _header(group: Mapping[str, torch.Tensor]) -> bytes:
    """The header of a safetensors file, its length before it.

    Format: https://github.com/huggingface/safetensors#format. As there, wide types come
    first, so that every tensor is aligned, and the header is padded to 8 bytes.
    """
    header: dict[str, Any] = {}
    start = 0
    for name in _ordered(group):
        tensor = group[name]
        stop = start + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, stop],
        }
        start = stop
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _ordered(group: Mapping[str, torch.Tensor]) -> list[str]:
    return sorted(group, key=lambda name: (-group[name].element_size(), name))


def _safetensors(group: Mapping[str, torch.Tensor]) -> list[bytes | memoryview]:
    """The pieces of a safetensors file: its header, and each tensor's bytes.

    safetensors' own writer gives no chance to hash on the way.
    """
    pieces: list[bytes | memoryview] = [_header(group)]
    for name in _ordered(group):
        plain = group[name].detach().cpu().contiguous()
        if plain.numel():
            pieces.append(plain.view(-1).view(torch.uint8).numpy().data)
    return pieces


def _write(path: Path, pieces: Iterable[bytes | memoryview]) -> int:
    with path.open("wb") as file:
        for piece in pieces:
            file.write(piece)
        return file.tell()


def _crc32(pieces: Iterable[bytes | memoryview]) -> str:
    value = 0
    for piece in pieces:
        value = zlib.crc32(piece, value)
    return f"{value:08x}"


def _changed(path: Path, crc32: str) -> str:
    """Why a file is not what was written; empty if it is."""
    try:
        with path.open("rb") as file:
            found = _crc32(iter(lambda: file.read(CHUNK), b""))
    except OSError as error:
        return str(error)
    return "" if found == crc32 else "its checksum is not the one in the manifest"


def _canonical(manifest: Mapping[str, Any]) -> bytes:
    return json.dumps(manifest, indent=1, sort_keys=True).encode()


def _replace(partial: Path, final: Path) -> None:
    """Give a written checkpoint its name; one that is there already and holds stays.

    The same step gives the same bits, so that only a damaged one has to go.
    """
    same = final.exists() and not faults_of(final)
    if same and (final / MANIFEST).read_bytes() == (partial / MANIFEST).read_bytes():
        shutil.rmtree(partial)
        return
    if final.exists():
        _delete(final)
    partial.rename(final)
    _flush(final.parent)


def _delete(folder: Path) -> None:
    """Delete a checkpoint so that half of it never bears its name."""
    hidden = folder.with_name(f".old-{folder.name}")
    shutil.rmtree(hidden, ignore_errors=True)
    folder.rename(hidden)
    shutil.rmtree(hidden)


def _sweep(checkpoints: Path) -> None:
    """Remove what a killed process left; one process at a time writes here."""
    for pattern in HIDDEN:
        for left in checkpoints.glob(pattern):
            if left.is_symlink():
                left.unlink()
            else:
                shutil.rmtree(left, ignore_errors=True)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
