"""Checkpoints that are whole or not there: safetensors, JSON, and a manifest.

A checkpoint is written to a temporary folder, flushed, hashed into its manifest, and
renamed. The reader takes the newest one whose manifest holds, and says so when it had
to go back.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file, save_file

from headstart.errors import Fault, HeadstartError, UserError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import torch

MANIFEST = "MANIFEST.json"
BEST = "best"


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
        """The tensors of ``NAME.safetensors``; empty when there is no such file."""
        path = self.folder / f"{name}.safetensors"
        return load_file(path) if path.exists() else {}

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
        tensors: Tensors by file name without ending (``model``, ``optimizer``).
        state: JSON-ready state of the loop.

    Raises:
        HeadstartError: The disk is full or cannot be written; what was there before
            is untouched.
    """
    final = checkpoints / f"step-{step:06d}"
    partial = checkpoints / f".partial-{final.name}-{os.getpid()}"
    try:
        partial.mkdir(parents=True)
        for name, group in tensors.items():
            plain = {k: v.detach().contiguous().cpu() for k, v in group.items()}
            save_file(plain, partial / f"{name}.safetensors")
        (partial / "state.json").write_text(json.dumps(state, indent=1))
        manifest = {
            path.name: {"sha256": _sha256(path), "size": path.stat().st_size}
            for path in sorted(partial.iterdir())
        }
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=1))
        for path in partial.iterdir():
            _flush(path)
        _flush(partial)
        if final.exists():
            shutil.rmtree(final)
        partial.rename(final)
        _flush(checkpoints)
    except Exception as error:
        shutil.rmtree(partial, ignore_errors=True)
        # safetensors reports what the system says as text in an error of its own.
        if not isinstance(error, OSError) and "I/O error" not in str(error):
            raise
        full = getattr(error, "errno", None) == errno.ENOSPC or "No space" in str(error)
        raise HeadstartError(
            "the disk is full" if full else "the checkpoint cannot be written",
            where=str(final),
            why=str(error),
            fix="make room, then go on from the last checkpoint, which is whole",
        ) from error
    return Checkpoint(final, step)


def mark_best(checkpoint: Checkpoint) -> None:
    """Point ``best`` at a checkpoint, atomically."""
    link = checkpoint.folder.parent / BEST
    fresh = link.with_name(f".{BEST}-{os.getpid()}")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(checkpoint.folder.name)
    fresh.replace(link)


def prune(checkpoints: Path, keep: int) -> None:
    """Delete all but the last ``keep`` checkpoints and the best one."""
    best = (checkpoints / BEST).resolve()
    for folder in _newest_first(checkpoints)[keep:]:
        if folder.resolve() != best:
            shutil.rmtree(folder)


def faults_of(folder: Path) -> list[Fault]:
    """Everything by which a checkpoint differs from its manifest; empty if it holds."""
    where = str(folder)
    fix = "use another checkpoint; this one is not read"
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        expected = {
            name: (row["size"], row["sha256"]) for name, row in manifest.items()
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        return [Fault("the manifest cannot be read", where, str(error), fix)]
    faults = []
    present = {path.name for path in folder.iterdir()} - {MANIFEST}
    for name in sorted(present - expected.keys()):
        faults.append(Fault(f"{name} is not in the manifest", where, "", fix))
    for name, (size, sha256) in expected.items():
        path = folder / name
        if name not in present:
            faults.append(Fault(f"{name} is missing", where, "", fix))
        elif path.stat().st_size != size:
            why = f"{path.stat().st_size} bytes, {size} were written"
            faults.append(Fault(f"{name} has another size", where, why, fix))
        elif _sha256(path) != sha256:
            why = "its hash is not the one in the manifest"
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


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
