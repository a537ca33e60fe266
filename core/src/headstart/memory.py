"""When the device runs out of memory: the same batch, in more and smaller parts.

Of several ranks, one that runs out while it trains ends them all instead. By then the
others wait for its gradients, in the middle of a backward pass, where they cannot be
reached; asking them in every step would make each wait for its device. Before the
first step nobody waits yet, so the probe (``train.micro_batch = "auto"``) asks them.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from headstart.batch_norm import trains_batch_norm
from headstart.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable

    from headstart.batches import BatchParts
    from headstart.data import DataModule
    from headstart.distributed import World
    from headstart.execution import Execution
    from headstart.model import Model


def refuse_more_parts(
    where: str, batches: BatchParts, world: World, together: bool
) -> None:
    """Whatever stands against computing the batches in more parts.

    Args:
        where: The step.
        batches: In too few parts.
        world: The ranks that train together.
        together: Whether all ranks would do so.

    Raises:
        UserError: A part is a single sample already, or this rank alone is out of
            memory.
    """
    if batches.accumulate >= math.ceil(batches.batch_size / world.size):
        raise UserError(
            "a single sample does not fit into the device's memory",
            where=where,
            fix="use a smaller backbone, smaller samples, more frozen stages, or "
            "train.precision=bf16",
        )
    if not together:
        raise UserError(
            f"rank {world.rank} of {world.size} ran out of memory",
            where=where,
            why="the other ranks wait for its gradients and cannot repeat the step in "
            "smaller parts",
            fix=f"set train.accumulate={2 * batches.accumulate}, also to go on with "
            "`headstart resume`; with train.parallel=ddp, train.micro_batch=auto finds "
            "it before the first step",
        )


def more_parts(batches: BatchParts, model: Model, tell: Callable[[str], None]) -> None:
    """Cut batches into twice as many parts, and say what the user should know of it.

    The loss is averaged over the whole batch as before; only BatchNorm can tell.
    """
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    batches.accumulate *= 2
    tell(f"out of memory: each batch is now computed in {batches.accumulate} parts")
    if trains_batch_norm(model):
        tell(
            "BatchNorm trains here and sees the smaller parts: its statistics, unlike "
            "the loss, are no longer those of the whole batch"
        )


def fits(
    model: Model, data: DataModule, batches: BatchParts, execution: Execution
) -> bool:
    """Whether the largest part goes forward and backward; leaves no trace.

    Augmented as in training: that may change its size, and add what the loss reads.
    """
    before = {name: value.clone() for name, value in model.named_buffers()}
    try:
        part = batches.parts(batches.largest())[0]
        state = execution.move(batches.collate(part))
        if data.augments:
            generator = torch.Generator(execution.device).manual_seed(0)
            state = data.augment(state, generator)
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
