"""BatchNorm that trains: it needs more than one sample, and sees each part alone."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch import nn

from headstart.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from headstart.batches import BatchParts
    from headstart.model import Model
    from headstart.progress import Progress

BatchNorm = nn.modules.batchnorm._BatchNorm
TOO_FEW = "Expected more than 1 value per channel"
"""How torch's own error begins."""


def trains_batch_norm(model: nn.Module) -> bool:
    """Whether some BatchNorm layer takes its statistics from the batch."""
    return any(isinstance(m, BatchNorm) and m.training for m in model.modules())


@contextmanager
def explained(model: Model, batches: BatchParts, progress: Progress) -> Iterator[None]:
    """Within it, BatchNorm's error about a single sample says what to do about it.

    It cannot be told beforehand: a layer on maps has enough values in one sample.

    Raises:
        UserError: A part of a batch has one sample, and a layer one value of it.
    """
    try:
        yield
    except ValueError as error:
        if not str(error).startswith(TOO_FEW):
            raise
        why, fix = _why_and_fix(batches, progress.step)
        raise UserError(
            "BatchNorm cannot train on a single value per channel",
            where=f"{_layer(error, model)}, step {progress.step + 1}",
            why=f"{why}, and one value has no variance",
            fix=f"{fix}freeze the stages with BatchNorm (strategy.name)",
        ) from error


def _why_and_fix(batches: BatchParts, step: int) -> tuple[str, str]:
    """Where a single sample came from, and settings that leave none."""
    size = len(batches.batch(step))
    parts, ranks = batches.cut, batches.cut // batches.accumulate
    if size >= 2 * parts:
        return "the layer is given a single value of the whole part", ""
    if most := batches.shortest // (2 * ranks):
        why = f"{size} samples are computed in {parts} parts, as train.accumulate"
        why += " or the device's memory wants it"
        return why, f"set train.accumulate to {most} at most, if memory allows, or "
    plural = "s" * (size > 1)
    why = f"this batch has {size} sample{plural} for {ranks} rank{'s' * (ranks > 1)}"
    if len(batches.samples) < 2 * ranks:
        return why, ""
    if batches.total is not None:
        return why, "raise train.batch_total, or "
    # The last two batches of an epoch may have half of their samples each.
    return why, f"set train.batch_size to {4 * ranks} or more, or "


def _layer(error: ValueError, model: Model) -> str:
    """The name of the layer that raised it."""
    names: dict[int, str] = {id(m): name for name, m in model.named_modules()}
    trace = error.__traceback__
    while trace:
        found = trace.tb_frame.f_locals.get("self")
        if isinstance(found, BatchNorm) and id(found) in names:
            return names[id(found)]
        trace = trace.tb_next
    return "a BatchNorm layer"
