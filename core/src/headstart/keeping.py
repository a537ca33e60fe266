"""What a checkpoint keeps of a training, and going back to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from headstart.checkpoint import (
    FROZEN,
    mark_best,
    prune,
    put_best_back,
    write_checkpoint,
)
from headstart.distributed import load_whole, whole
from headstart.optim import optimizer_tensors, restore_optimizer
from headstart.progress import Progress

if TYPE_CHECKING:
    from pathlib import Path

    from headstart.checkpoint import Checkpoint
    from headstart.distributed import World
    from headstart.model import Model
    from headstart.update import Update


@dataclass
class Keeper:
    """Writes the checkpoints of one training; with several ranks the main one does.

    Attributes:
        folder: Where they go; ``None`` keeps nothing.
        count: How many of the last ones stay, the best one not counted.
        model: What trains.
        update: Its optimizer and moving average.
        world: Shards are put together over its ranks.
        constant: Names in the model's state of what never trains.
        last: Name of the last checkpoint, on the main rank; empty before the first.
    """

    folder: Path | None
    count: int
    model: Model
    update: Update
    world: World
    constant: frozenset[str] = frozenset()
    last: str = ""

    def save(self, progress: Progress, best: bool) -> None:
        """Write a checkpoint from which training can go on exactly."""
        assert self.folder is not None
        model, constant = whole(self.model.state_dict()), self.constant
        tensors = {
            "model": {k: v for k, v in model.items() if k not in constant},
            "optimizer": whole(optimizer_tensors(self.update.optimizer)),
            FROZEN: {k: v for k, v in model.items() if k in constant},
        }
        if self.update.average is not None:
            average = whole(self.update.average.state_dict())
            tensors["average"] = {
                key: value
                for key, value in average.items()
                if key.removeprefix("module.") not in constant
            }
        if self.world.main:
            checkpoint = write_checkpoint(
                self.folder, progress.step, tensors, vars(progress)
            )
            self.last = checkpoint.folder.name
            if best:
                mark_best(checkpoint)
            prune(self.folder, self.count)
        self.world.wait()

    def restore(self, checkpoint: Checkpoint) -> Progress:
        """Go back to where a checkpoint was written; returns where that was."""
        load_whole(self.model, checkpoint.tensors("model"))
        restore_optimizer(self.update.optimizer, checkpoint.tensors("optimizer"))
        if self.update.average is not None:
            load_whole(self.update.average, checkpoint.tensors("average"))
        progress = Progress(**checkpoint.state())
        self.last = checkpoint.folder.name
        if self.world.main:
            put_best_back(checkpoint, progress.best_step)
        return progress
