"""The learning-rate range test."""

from __future__ import annotations

import copy
import math
from itertools import islice
from typing import TYPE_CHECKING

import torch

from headstart.batch_norm import explained
from headstart.batches import BatchParts
from headstart.distributed import World
from headstart.errors import HeadstartError
from headstart.optim import build_optimizer, set_learning_rates
from headstart.progress import Progress

if TYPE_CHECKING:
    from headstart.data import DataModule
    from headstart.execution import Execution
    from headstart.model import Model
    from headstart.recipe import Recipe
    from headstart.strategy import Plan

LOWEST, HIGHEST = 1e-7, 1e-1


def range_test(
    model: Model,
    data: DataModule,
    recipe: Recipe,
    plan: Plan,
    execution: Execution,
    steps: int = 60,
) -> tuple[float, list[tuple[float, float]]]:
    """Raise the learning rate exponentially and watch the loss (Smith 2017).

    Trains a copy, so the model stays as it is. What trains is what trains at the
    plan's last step. The suggestion is a third of the rate at which the smoothed loss
    falls fastest, which keeps a margin to where it diverges.

    Returns:
        The suggested learning rate, and (learning rate, smoothed loss) of each step.
    """
    trial = copy.deepcopy(model)
    trial.train()
    trial.train_stages(plan.trainable(max(plan.total - 1, 0)))
    # One learning rate is sought, so the head takes it too.
    settings = recipe.train.model_copy(update={"head_learning_rate": None})
    optimizer = build_optimizer(trial, settings, plan, LOWEST)
    batches = BatchParts(data, recipe, World())
    curve: list[tuple[float, float]] = []
    smoothed, epoch = 0.0, 0
    growth = (HIGHEST / LOWEST) ** (1 / (steps - 1))
    generator = torch.Generator(execution.device).manual_seed(recipe.train.seed)
    while len(curve) < steps:
        for parts in islice(batches.steps(epoch, 0), steps - len(curve)):
            rate = LOWEST * growth ** len(curve)
            set_learning_rates(optimizer, rate / LOWEST)
            state = execution.move(parts[0][1])
            if data.augments:
                state = data.augment(state, generator)
            with execution.autocast(), explained(trial, batches, Progress(len(curve))):
                loss = trial.head.loss(trial(trial.prefix(state)))
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            smoothed = 0.8 * smoothed + 0.2 * loss.item()
            corrected = smoothed / (1 - 0.8 ** (len(curve) + 1))
            curve.append((rate, corrected))
            if not math.isfinite(corrected) or corrected > 3 * curve[0][1]:
                return suggestion(curve), curve
        epoch += 1
    return suggestion(curve), curve


def suggestion(curve: list[tuple[float, float]]) -> float:
    """A third of the learning rate at the steepest fall of the loss.

    Raises:
        HeadstartError: The loss ran away before there was anything to see.
    """
    usable = [(rate, loss) for rate, loss in curve if math.isfinite(loss)]
    window = 5
    if len(usable) <= window // 2:
        raise HeadstartError(
            "the range test finds no learning rate: the loss ran away at once",
            where="train.learning_rate",
            why=f"it was {curve[-1][1]} at learning rate {curve[-1][0]:.1e}",
            fix="look at the data, or set train.learning_rate yourself",
        )
    lowest = min(range(len(usable)), key=lambda i: usable[i][1])
    falls = [
        (usable[i][1] - usable[min(i + window, lowest)][1], usable[i + window // 2][0])
        for i in range(max(lowest - window // 2, 1))
        if i + window // 2 < len(usable)
    ]
    return max(falls)[1] / 3
