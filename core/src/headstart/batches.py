"""The order of training samples, and the batches that come of it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.utils.data import DataLoader

from headstart.data import epoch_batches

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from headstart.data import DataModule
    from headstart.recipe import Recipe
    from headstart.stages import State


class BatchParts:
    """Batches of index arrays, each cut into the parts of one optimizer step.

    Which samples are in a batch is a function of (seed, epoch, position) alone.
    """

    def __init__(self, data: DataModule, recipe: Recipe) -> None:
        train = recipe.train
        self.samples = data.samples("train")
        self.sizes = data.sizes("train") if train.group_by_size else None
        self._all_sizes = data.sizes("train")
        self._train = train
        self.steps_per_epoch = math.ceil(len(self.samples) / train.batch_size)
        self.used = self.padded = self.count = 0
        self._epoch = self._start = 0
        self._loader: DataLoader[State] = DataLoader(
            self.samples,  # type: ignore[arg-type]
            batch_sampler=self,
            collate_fn=data.collate,
            num_workers=data.settings.workers,
            persistent_workers=data.settings.workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def parts(self, epoch: int) -> list[list[np.ndarray]]:
        """For each step of an epoch, the index arrays of its parts."""
        batches = epoch_batches(
            len(self.samples),
            self._train.batch_size,
            seed=self._train.seed,
            epoch=epoch,
            sizes=self.sizes,
        )
        count = self._train.accumulate
        return [np.array_split(b, min(count, len(b))) for b in batches]

    def __iter__(self) -> Iterator[list[int]]:
        for step in self.parts(self._epoch)[self._start :]:
            for part in step:
                yield part.tolist()

    def steps(self, epoch: int, start: int) -> Iterator[list[State]]:
        """The collated parts of each step of an epoch, from a position on."""
        self._epoch, self._start = epoch, start
        loaded = iter(self._loader)
        for step in self.parts(epoch)[start:]:
            self._measure(step)
            yield [next(loaded) for _ in step]

    @property
    def padding_waste(self) -> float | None:
        """Share of what the model computed on that was padding; of none if unknown."""
        return 1 - self.used / self.padded if self.padded else None

    def _measure(self, step: Sequence[np.ndarray]) -> None:
        for part in step:
            self.count += len(part)
            if self._all_sizes is not None:
                sizes = self._all_sizes[part]
                self.used += int(sizes.sum())
                self.padded += int(sizes.max()) * len(part)
