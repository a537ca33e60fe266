"""Losses that stay on the device until a line of the log is due."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from headstart.errors import HeadstartError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from headstart.distributed import World
    from headstart.progress import Progress


class LossLog:
    """Collects the loss of every step, and reads them together.

    A loss that is not finite marks a step that the optimizer left out.

    Args:
        progress: Holds what was read and not yet logged, and counts bad steps.
        world: Each rank has its share of a loss.
    """

    def __init__(self, progress: Progress, world: World) -> None:
        self._progress = progress
        self._world = world
        self._unread: list[torch.Tensor] = []

    def add(self, loss: torch.Tensor) -> None:
        self._unread.append(loss)

    def read(self) -> None:
        """Bring the losses to the host, the only place where it waits."""
        if not self._unread:
            return
        progress = self._progress
        fresh = self._world.sum(torch.stack(self._unread)).tolist()
        self._unread = []
        first = progress.step - len(fresh)
        bad = [first + i for i, loss in enumerate(fresh) if not math.isfinite(loss)]
        progress.bad_steps += len(bad)
        progress.pending += fresh
        progress.untold += bad

    def mean(self) -> float | None:
        """Mean of the finite losses since the last line; ``None`` if there are none."""
        self.read()
        finite = [loss for loss in self._progress.pending if math.isfinite(loss)]
        self._progress.pending.clear()
        return sum(finite) / len(finite) if finite else None


def too_many_bad_steps(
    count: int, step: int, samples: Iterable[str], checkpoint: str
) -> HeadstartError:
    """Names the batch of the last bad step, and the checkpoint to go back to."""
    return HeadstartError(
        f"{count} step{'s' * (count != 1)} had a loss or gradient that is not finite",
        where=f"step {step + 1}, samples {', '.join(samples)}",
        why="the numbers ran away; those steps were left out, yet they come again",
        fix="look at these samples, lower train.learning_rate, or keep train.clip on; "
        f"the last good checkpoint: {checkpoint or 'none yet'}",
    )
