"""Where a training is, and which of its checkpoints is the best so far."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from headstart.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from headstart.settings import EarlyStoppingSettings
    from headstart.specs import Goal


@dataclass
class Progress:
    """Where the loop is; all of it goes into a checkpoint's ``state.json``."""

    step: int = 0
    best: float | None = None
    best_step: int = 0
    best_metrics: dict[str, float] = field(default_factory=dict)
    since_best: int = 0
    """Validations since the early-stopping metric last improved."""
    watched: float | None = None
    """Best value of the early-stopping metric."""
    pending: list[float] = field(default_factory=list)
    """Losses of the steps since the last line of the log."""
    bad_steps: int = 0
    """Steps left out because a loss or gradient was not finite."""
    untold: list[int] = field(default_factory=list)
    """Those of them, counted from 0, that no line of the log has told yet."""
    accumulate: int = 1
    """Parts of a rank's share of a batch, as memory allowed."""
    learning_rate: float = 0.0
    """The recipe's, or what the range test found."""

    def judge(
        self,
        values: dict[str, float],
        best: str,
        goals: Mapping[str, Goal],
        stopping: EarlyStoppingSettings,
    ) -> bool:
        """Take in a validation.

        Args:
            values: Its metrics.
            best: The metric that decides.
            goals: Whether more or less is better, for each metric.
            stopping: What early stopping watches.

        Returns:
            Whether it is the best so far.

        Raises:
            UserError: Early stopping watches what is not measured.
        """
        improved = better(goals[best], values[best], self.best)
        if improved:
            self.best = values[best]
            self.best_step = self.step
            self.best_metrics = values
        name = stopping.metric or best
        if name not in values:
            raise UserError(
                f"there is no metric {name!r} to watch",
                where="early_stopping.metric",
                fix=f"choose one of {', '.join(values)}",
            )
        if better(goals[name], values[name], self.watched, stopping.min_delta):
            self.watched = values[name]
            self.since_best = 0
        else:
            self.since_best += 1
        return improved

    def stops_early(self, stopping: EarlyStoppingSettings) -> bool:
        return 0 < stopping.patience <= self.since_best


def better(goal: Goal, value: float, best: float | None, margin: float = 0.0) -> bool:
    """Whether a value beats the best one; what is not a number beats nothing."""
    if math.isnan(value):
        return False
    if best is None:
        return True
    return value > best + margin if goal == "max" else value < best - margin
