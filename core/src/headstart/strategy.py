"""Strategies: which stages train, when, and at which learning rate.

A strategy is turned into a :class:`Plan` once. What trains at a step is then a pure
function of the step, so that resuming or unfreezing cannot lose anything.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING

from headstart.errors import UserError, nearest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from headstart.settings import StrategySettings


@dataclass(frozen=True)
class Plan:
    """What trains, from which step on.

    Attributes:
        stages: All stage names in order.
        changes: (first step, stages that train from it on), by rising step, the first
            at step 0. The head always trains.
        factors: Learning-rate factor of each stage.
        phases: Steps at which the learning-rate schedule starts anew.
        total: Steps in all.
    """

    stages: tuple[str, ...]
    changes: tuple[tuple[int, frozenset[str]], ...]
    factors: Mapping[str, float]
    phases: tuple[int, ...]
    total: int

    def trainable(self, step: int) -> frozenset[str]:
        """The stages that train at a step."""
        starts = [start for start, _ in self.changes]
        return self.changes[bisect_right(starts, step) - 1][1]

    def ever(self) -> frozenset[str]:
        """The stages that train at some step."""
        return frozenset().union(*(stages for _, stages in self.changes))

    def changes_at(self, step: int) -> bool:
        """Whether from this step on something else trains."""
        return any(start == step for start, _ in self.changes)

    def change_after(self, step: int) -> int:
        """The first step after this one at which something else trains, or the end."""
        return next((s for s, _ in self.changes if s > step), self.total)

    def phase(self, step: int) -> tuple[int, int]:
        """First step and end of the schedule phase that a step is in."""
        bounds = [*self.phases, self.total]
        place = bisect_right(self.phases, step) - 1
        return bounds[place], bounds[place + 1]

    def later(self, step: int) -> bool:
        """Whether a step is in a later phase than the first."""
        return self.phase(step)[0] > 0


def freeze_point(stages: Sequence[str], trainable: frozenset[str]) -> int:
    """Length of the prefix: how many leading stages do not train."""
    for index, stage in enumerate(stages):
        if stage in trainable:
            return index
    return len(stages)


def make_plan(
    settings: StrategySettings,
    stages: Sequence[str],
    total: int,
    adapted: Sequence[str] = (),
) -> Plan:
    """Turn a strategy into what trains at each of ``total`` steps.

    - ``feature-extraction``: the head alone.
    - ``layer-retraining``: the stages after the freeze point.
    - ``global`` and ``scratch``: everything.
    - ``none``: nothing, in no steps: the pretrained model as it is.
    - ``surgical``: the named stages (Lee et al. 2023, Surgical fine-tuning).
    - ``gradual``: the head, then one stage more at equal distances, last stage first
      (Howard and Ruder 2018, ULMFiT).
    - ``lp-ft``: the head, then everything, each with its own schedule (Kumar et al.
      2022, linear probing then fine-tuning); in the second part the head has the
      learning rate of the rest. With ``freeze_until`` the stages up to it never train
      in these two either.
    - ``lora``: the head and the adapters, in the stages ``adapted`` (Hu et al. 2022,
      LoRA); what they are beside stays as it is (``Backbone.fixed``).

    Raises:
        UserError: A stage that does not exist, or settings that contradict.
    """
    names = tuple(stages)
    every = frozenset(names)
    phases: tuple[int, ...] = (0,)
    changes: list[tuple[int, frozenset[str]]]
    match settings.name:
        case "feature-extraction" | "none":
            changes = [(0, frozenset())]
        case "layer-retraining":
            changes = [(0, _after_freeze_point(settings, names))]
        case "surgical":
            changes = [(0, _named(settings, names))]
        case "lora":
            changes = [(0, frozenset(adapted))]
        case "gradual":
            last = settings.unfreeze_share * total
            depth = len(_above(settings, names))
            changes = []
            for count in range(depth + 1):
                start = round(count * last / max(depth, 1))
                if changes and changes[-1][0] == start:
                    changes.pop()
                changes.append((start, frozenset(names[len(names) - count :])))
        case "lp-ft":
            above = frozenset(_above(settings, names))
            switch = max(round(settings.head_share * total), 1)
            changes = [(0, frozenset())]
            if above and switch < total:
                changes.append((switch, above))
                phases = (0, switch)
        case _:
            changes = [(0, every)]
    factors = {
        name: settings.stage_decay ** (len(names) - 1 - index)
        for index, name in enumerate(names)
    }
    return Plan(names, tuple(changes), factors, phases, total)


def _after_freeze_point(
    settings: StrategySettings, names: tuple[str, ...]
) -> frozenset[str]:
    if settings.freeze_until and settings.train_last is not None:
        raise UserError(
            "both freeze_until and train_last are set",
            where="strategy",
            why="each of them says where the freeze point is",
            fix="keep one of them",
        )
    if settings.freeze_until:
        return frozenset(_above(settings, names))
    count = settings.train_last or 1
    if count > len(names):
        raise UserError(
            f"cannot train the last {count} of {len(names)} stages",
            where="strategy.train_last",
            fix=f"choose 1 to {len(names)}",
        )
    return frozenset(names[len(names) - count :])


def _above(settings: StrategySettings, names: tuple[str, ...]) -> tuple[str, ...]:
    """The stages after ``freeze_until``, or all."""
    if not settings.freeze_until:
        return names
    _require(settings.freeze_until, names, "strategy.freeze_until")
    return names[names.index(settings.freeze_until) + 1 :]


def _named(settings: StrategySettings, names: tuple[str, ...]) -> frozenset[str]:
    if not settings.stages:
        raise UserError(
            "no stages are named",
            where="strategy.stages",
            fix=f"name those that train, of {', '.join(names)}",
        )
    for stage in settings.stages:
        _require(stage, names, "strategy.stages")
    return frozenset(settings.stages)


def _require(stage: str, names: tuple[str, ...], where: str) -> None:
    if stage not in names:
        raise UserError(
            f"there is no stage {stage!r}",
            where=where,
            why=f"this backbone has {', '.join(names)}",
            fix=nearest(stage, names),
        )
