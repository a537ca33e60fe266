"""When the device runs out of memory: the same batch, in more and smaller parts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from headstart.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable

    from headstart.batches import BatchParts
    from headstart.execution import Execution
    from headstart.model import Model


def more_parts(parts: int, model: Model, tell: Callable[[str], None]) -> int:
    """Twice as many parts, and what the user should know of it.

    The loss is averaged over the whole batch as before; only BatchNorm can tell.
    """
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    tell(f"out of memory: each batch is now computed in {2 * parts} parts")
    if any(
        isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training
        for module in model.modules()
    ):
        tell(
            "BatchNorm trains here and sees the smaller parts: its statistics, unlike "
            "the loss, are no longer those of the whole batch"
        )
    return 2 * parts


def fits(model: Model, batches: BatchParts, execution: Execution) -> bool:
    """Whether the largest part goes forward and backward; leaves no trace."""
    before = {name: value.clone() for name, value in model.named_buffers()}
    try:
        part = batches.parts(batches.largest())[0]
        state = execution.move(batches.collate(part))
        with execution.autocast():
            loss = model.head.loss(model(model.prefix(state)))
        loss.backward()  # type: ignore[no-untyped-call]
    except torch.OutOfMemoryError:
        return False
    finally:
        model.zero_grad(set_to_none=True)
        with torch.no_grad():
            for name, value in model.named_buffers():
                value.copy_(before[name])
    return True


def single_sample_too_large(where: str) -> UserError:
    return UserError(
        "a single sample does not fit into the device's memory",
        where=where,
        fix="use a smaller backbone, smaller samples, more frozen stages, or "
        "train.precision=bf16",
    )
