"""Validation while a model trains: when it is due, and what it finds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from headstart.errors import UserError
from headstart.evaluate import MetricSet, evaluate

if TYPE_CHECKING:
    from headstart.data import DataModule
    from headstart.distributed import World
    from headstart.execution import Execution
    from headstart.model import Model
    from headstart.prefix_cache import PrefixCache
    from headstart.recipe import Recipe


@dataclass
class Validation:
    """The validation split and how it is measured.

    Attributes:
        data: Has the split.
        recipe: Says how often, and how many samples at a time.
        execution: Device and precision.
        metrics: Measured beside the loss.
        world: The ranks that share the work.
        steps_per_epoch: Optimizer steps of one pass over the training split.
    """

    data: DataModule
    recipe: Recipe
    execution: Execution
    metrics: MetricSet
    world: World
    steps_per_epoch: int

    def due(self, step: int) -> bool:
        """Whether one follows after so many steps."""
        interval = self.recipe.train.evaluate_every * self.steps_per_epoch
        return math.floor(step / interval) > math.floor((step - 1) / interval)

    def measure(self, model: Model, cache: PrefixCache | None) -> dict[str, float]:
        """Loss and metrics.

        Raises:
            UserError: It does not fit into memory, where training does.
        """
        size = self.recipe.eval_batch_size
        try:
            return evaluate(
                model,
                self.data,
                self.data.samples("validation"),
                sizes=self.data.sizes("validation"),
                batch_size=size,
                batch_total=self.recipe.eval_batch_total,
                execution=self.execution,
                metrics=self.metrics,
                world=self.world,
                cache=cache,
            ).metrics
        except torch.OutOfMemoryError as error:
            raise UserError(
                "the validation does not fit into the device's memory",
                where="train.eval_batch_size",
                why=str(error).partition("\n")[0],
                fix=f"choose less than {size}"
                if self.recipe.train.batch_total is None
                else "choose less, or lower train.batch_total",
            ) from error
