"""The order of training samples, and the batches that come of it."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.utils.data import DataLoader

from headstart.batch_order import epoch_batches
from headstart.data import Columns
from headstart.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from headstart.data import DataModule
    from headstart.distributed import World
    from headstart.prefix_cache import PrefixCache
    from headstart.recipe import Recipe
    from headstart.settings import TrainSettings
    from headstart.stages import State


@dataclass(frozen=True)
class Part:
    """What is computed in one go: a part of a batch.

    Attributes:
        number: Its place in the batch over all ranks; randomness is seeded by it, so
            that dropout does not depend on the number of ranks.
        samples: Indices of its samples.
        counts: False for a rank that found no sample left and computes on one of
            another rank's, to keep step with it; its weight is 0.
    """

    number: int
    samples: np.ndarray
    counts: bool = True


def epoch_length(data: DataModule, train: TrainSettings) -> int:
    """Batches of an epoch, the same number in each.

    Raises:
        DataError: They are to be made by size, and the samples have none.
    """
    count = len(data.samples("train"))
    total = data.in_steps(train.batch_total)
    if total is None or not count:
        return math.ceil(count / train.batch_size)
    sizes = data.sizes("train")
    if sizes is None:
        raise DataError(
            "the data does not say how large its training samples are",
            where="train.batch_total",
            why="all of them count as equally large",
            fix="set train.batch_size alone",
        )
    batches = epoch_batches(
        count, train.batch_size, seed=0, epoch=0, sizes=sizes, total=total
    )
    return len(batches)


class BatchParts:
    """The batches of every epoch, cut into the parts of one optimizer step.

    Which samples are in a batch is a function of (seed, epoch, position) alone, the
    same for any number of ranks and parts.
    """

    def __init__(self, data: DataModule, recipe: Recipe, world: World) -> None:
        train = recipe.train
        self.samples = data.samples("train")
        self.sizes = data.sizes("train")
        self.batch_size = train.batch_size
        self._train = train
        self.total = data.in_steps(train.batch_total)
        self._world = world
        self.accumulate = train.accumulate
        # A pretrained model that is only tested needs nothing to train on.
        self.steps_per_epoch = max(epoch_length(data, train), 1)
        self.used = self.padded = self.count = 0
        self._data = data
        self._in_columns = isinstance(self.samples, Columns)
        self._planned: list[list[Part]] = []
        self._costs: deque[tuple[int, int, int]] = deque()
        self._loader: DataLoader[State] = DataLoader(
            self.samples,  # type: ignore[arg-type]
            batch_sampler=self,
            collate_fn=data.collate,
            num_workers=data.settings.workers,
            persistent_workers=data.settings.workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    @property
    def cut(self) -> int:
        """Parts into which a batch is cut, over all ranks."""
        return self._world.size * self.accumulate

    @property
    def shortest(self) -> int:
        """Samples in the shortest batch of an epoch; the same in all epochs."""
        return min(map(len, self._batches(0)))

    def batch(self, step: int) -> np.ndarray:
        """Indices of the samples of a step's batch, over all ranks."""
        epoch, position = divmod(step, self.steps_per_epoch)
        return self._batches(epoch)[position]

    def parts(self, batch: np.ndarray) -> list[Part]:
        """This rank's parts of a batch; every rank has as many.

        Sharded models exchange parameters in every part, so all must keep step.
        """
        if self.cut == 1:
            return [Part(0, batch)]
        size = self._world.size
        pieces = np.array_split(batch, self.cut)
        mine = [
            Part(number, piece)
            for number, piece in enumerate(pieces)
            if number % size == self._world.rank and len(piece)
        ]
        most = math.ceil(min(len(batch), len(pieces)) / size)
        return mine + [Part(0, batch[:1], counts=False)] * (most - len(mine))

    def largest(self) -> np.ndarray:
        """The batch that takes most memory: the largest samples together."""
        count = self.batch_size
        if self.sizes is None:
            return np.arange(min(count, len(self.samples)))
        if self.total is not None:
            sizes = self.sizes
            return max(self._batches(0), key=lambda b: len(b) * int(sizes[b].max()))
        return np.argsort(-self.sizes, kind="stable")[:count]

    def collate(self, part: Part) -> State:
        """A part as a batch, outside the loader."""
        return self._data.batch(self.samples, part.samples)

    def __iter__(self) -> Iterator[list[int]]:
        for step in self._planned:
            for part in step:
                yield part.samples.tolist()

    def steps(
        self, epoch: int, start: int, cache: PrefixCache | None = None
    ) -> Iterator[list[tuple[Part, State]]]:
        """The parts of each step of an epoch with their batches, from a position on.

        With a cache they are states at the freeze point instead.
        """
        self._planned = [self.parts(b) for b in self._batches(epoch)[start:]]
        self._costs = deque(self._costs_planned(cache is not None))
        if cache is not None:
            for step in self._planned:
                yield [(part, cache.batch(part.samples, epoch)) for part in step]
            return
        if self._in_columns:
            for step in self._planned:
                yield [(part, self.collate(part)) for part in step]
            return
        loaded = iter(self._loader)
        for step in self._planned:
            yield [(part, next(loaded)) for part in step]

    def took_step(self) -> None:
        """Count the samples of the step that was just trained on.

        Not counted where batches are made: an epoch may end before its last one is
        asked for, and some are made ahead.
        """
        count, used, padded = self._costs.popleft()
        self.count += count
        self.used += used
        self.padded += padded

    @property
    def padding_waste(self) -> float | None:
        """Share of what the model computed on that was padding; of none if unknown."""
        return 1 - self.used / self.padded if self.padded else None

    def _batches(self, epoch: int) -> list[np.ndarray]:
        return epoch_batches(
            len(self.samples),
            self._train.batch_size,
            seed=self._train.seed,
            epoch=epoch,
            sizes=self.sizes if self._train.group_by_size else None,
            total=self.total,
        )

    def _costs_planned(self, cached: bool) -> list[tuple[int, int, int]]:
        """Of each planned step: samples, their size, and their size with padding.

        Cached samples are not padded anew.
        """
        if self.sizes is None or cached:
            return [(sum(len(p.samples) for p in step), 0, 0) for step in self._planned]
        costs = []
        for step in self._planned:
            sizes = [self.sizes[part.samples] for part in step]
            count = sum(map(len, sizes))
            padded = sum(int(each.max()) * len(each) for each in sizes)
            costs.append((count, sum(int(each.sum()) for each in sizes), padded))
        return costs
