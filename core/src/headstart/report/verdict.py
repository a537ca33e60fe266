"""Whether the transfer paid: comparisons, and the sentence that says so."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

UNTOUCHED = "untouched model"
"""The baseline that is this model before its first step."""
TOO_FEW = "too few samples for an interval"


def number(value: Any, signed: bool = False) -> str:
    """A number for people: three decimals, thousands separated, a true minus."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "–" if value is None else str(value)
    if math.isnan(value):
        return "not a number"
    if isinstance(value, int):
        text = f"{value:+,}" if signed else f"{value:,}"
    else:
        size = abs(value)
        digits = ",.0f" if size >= 1000 else ".1f" if size >= 100 else ".3f"
        digits = ".2g" if 0 < size < 0.0005 else digits
        text = format(value, "+" + digits if signed else digits)
    return text.replace("-", "−") if "e" not in text else text


def counted(count: int, noun: str) -> str:
    """``1 step``, ``1,200 steps``."""
    return f"{count:,} {noun}" + "s" * (count != 1)


def span(bounds: Sequence[float], signed: bool = False) -> str:
    """An interval for people; one that is not known has infinite bounds."""
    if not all(map(math.isfinite, bounds)):
        return "no interval"
    return " to ".join(number(bound, signed) for bound in bounds)


def why_no_interval(summary: Mapping[str, Any]) -> str:
    """Why the intervals of a run's test have infinite bounds."""
    groups = summary.get("groups")
    if groups and groups["count"] == 1:
        return f"no interval: all test samples are of one {groups['unit']}"
    return TOO_FEW


@dataclass(frozen=True)
class Comparison:
    """This run beside another result, on the metric that decides.

    Attributes:
        name: The other result.
        value: What it reaches.
        gain: How much better this run is; negative when it is worse.
        interval: 95 % interval of the gain on paired samples, if known.
        outcome: Whether the difference is more than the choice of test samples.
        change: This run's value as a part of the other's less 1, where less is better
            and both are above 0.
        why_none: Why the interval has infinite bounds, where it has.
    """

    name: str
    value: float
    gain: float
    interval: tuple[float, float] | None
    outcome: Literal["better", "worse", "unclear"]
    change: float | None = None
    why_none: str = TOO_FEW

    @property
    def bounds(self) -> str:
        """The interval for people; empty where there is none to speak of."""
        return span(self.interval, signed=True) if self.interval else ""

    def __str__(self) -> str:
        text = f"gain {number(self.gain, signed=True)}"
        if self.change and abs(self.change) >= 0.005:
            side = "lower" if self.change < 0 else "higher"
            text = f"{abs(self.change):.0%} {side}, {text}"
        if self.interval and not all(map(math.isfinite, self.interval)):
            text += f", {self.why_none}"
        elif self.interval:
            text += f", 95% interval {self.bounds}"
        return text


@dataclass(frozen=True)
class Verdict:
    """Whether the transfer paid.

    Attributes:
        answer: ``unknown`` when there is no result or nothing to compare it with.
        headline: Three or four words.
        sentence: The evidence.
        warnings: What a reader must not overlook.
    """

    answer: Literal["yes", "no", "unclear", "unknown"]
    headline: str
    sentence: str
    warnings: tuple[str, ...] = ()


def primary_metric(
    summary: Mapping[str, Any], recipe: Mapping[str, Any]
) -> tuple[str, str]:
    """The metric that decides, and whether ``max`` or ``min`` is its goal."""
    goals: Mapping[str, str] = summary.get("goals", {})
    settings = recipe.get("metrics", {})
    wanted = (settings.get("best", ""), *settings.get("names", ()), *goals)
    names = [name for name in wanted if name in (summary.get("metrics") or goals)]
    name = next((name for name in names if name in goals), "loss")
    return name, goals.get(name, "min")


def compare(
    summary: Mapping[str, Any], other: Mapping[str, Any], metric: str, goal: str
) -> Comparison | None:
    """This run beside a baseline or the control; ``None`` without a common metric."""
    ours = (summary.get("metrics") or {}).get(metric)
    value = other.get("metrics", {}).get(metric)
    if ours is None or value is None or not math.isfinite(ours + value):
        return None
    gain = ours - value if goal == "max" else value - ours
    outcome: Literal["better", "worse", "unclear"]
    outcome = "better" if gain > 0 else "worse" if gain < 0 else "unclear"
    pair = other.get("gains", {}).get(metric)
    alone = summary.get("intervals", {}).get(metric)
    if (pair and pair[0] <= 0 <= pair[1]) or (
        not pair and alone and alone[0] <= value <= alone[1]
    ):
        outcome = "unclear"
    name = other.get("name", "random weights")
    # Of a share of right answers, percent of percent would only confuse.
    change = ours / value - 1 if goal == "min" and min(ours, value) > 0 else None
    paired = tuple(pair) if pair else None
    why = why_no_interval(summary)
    return Comparison(name, value, gain, paired, outcome, change, why)


def verdict(summary: Mapping[str, Any], recipe: Mapping[str, Any]) -> Verdict:
    """Did the transfer pay? Against the best baseline, and against random weights."""
    metric, goal = primary_metric(summary, recipe)
    ours = (summary.get("metrics") or {}).get(metric)
    if ours is None:
        return Verdict("unknown", "No result yet", "The test split was not evaluated.")
    if not math.isfinite(ours):
        return Verdict("unknown", "No result", f"{metric} on the test split is {ours}.")
    found = (compare(summary, b, metric, goal) for b in summary.get("baselines", ()))
    baselines = [one for one in found if one]
    best = min(baselines, key=lambda one: one.gain, default=None)
    scratch = compare(summary, summary.get("scratch") or {}, metric, goal)
    result = f"{metric} {number(ours)} on the test split"
    warnings = _warnings(summary, recipe)
    weights = recipe.get("backbone", {}).get("weights")
    if recipe.get("strategy", {}).get("name") == "scratch" or weights == "none":
        text = f"This run starts from random weights: {result}."
        return Verdict("unknown", "A control, not a transfer", text, warnings)
    against = []
    if best:
        against.append(f"{number(best.value)} for {_named(best, len(baselines))} ")
        against[-1] += f"({best})"
    if scratch:
        against.append(f"{number(scratch.value)} from random weights ({scratch})")
    if not against:
        key = "baselines"
        if recipe.get("report", {}).get("baselines", True):
            # They are on, and this data has none.
            key = "scratch_control"
        text = f"{result}, and nothing to compare it with: turn on report.{key}."
        text = text[0].upper() + text[1:]
        return Verdict("unknown", "A result against no baseline", text, warnings)
    text = f"{result}, against {' and '.join(against)}."
    text = text[0].upper() + text[1:]
    outcomes = [one.outcome for one in (best, scratch) if one]
    tuned = best is not None and best.name == UNTOUCHED
    if "worse" in outcomes:
        # Weights that are best left alone have paid; training them has not.
        what = "fine-tuning" if tuned and outcomes[0] == "worse" else "transfer"
        return Verdict("no", f"The {what} did not pay", text, warnings)
    if "unclear" in outcomes:
        text += _unclear(summary, metric)
        return Verdict("unclear", "Not shown that it paid", text, warnings)
    if not scratch:
        text += " Random weights were not tried (report.scratch_control = true does)."
    alone = tuned and len(baselines) == 1 and not scratch
    what = "fine-tuning" if alone else "transfer"
    return Verdict("yes", f"The {what} paid", text, warnings)


def _unclear(summary: Mapping[str, Any], metric: str) -> str:
    unit = (summary.get("groups") or {}).get("unit", "sample")
    known = summary.get("intervals", {}).get(metric, (0.0, 0.0))
    if not all(map(math.isfinite, known)):
        return f" What other {unit}s would give cannot be said."
    return f" The difference is within what the choice of test {unit}s explains."


def _named(best: Comparison, count: int) -> str:
    if best.name != UNTOUCHED:
        return f"the best baseline, {best.name}"
    return f"the {UNTOUCHED}" + (", the best baseline" if count > 1 else "")


def _warnings(summary: Mapping[str, Any], recipe: Mapping[str, Any]) -> tuple[str, ...]:
    """Whatever simple method wins on whatever metric is said aloud; so is a miss."""
    ours: Mapping[str, float] = summary.get("metrics") or {}
    winners = {}
    for name, goal in summary.get("goals", {}).items():
        if goal == "none":
            continue
        others = [*summary.get("baselines", ()), summary.get("scratch") or {}]
        pairs = [
            one for other in others if (one := compare(summary, other, name, goal))
        ]
        best = min(pairs, key=lambda one: one.gain, default=None)
        # Two numbers that read the same are no news, whatever comes behind them.
        if best and best.gain < 0 and number(best.value) != number(ours[name]):
            winners[name] = best
    found = [_defeats(ours, winners)] if winners else []
    for name, (low, high) in (summary.get("expect") or {}).items():
        if name in ours and not low <= ours[name] <= high:
            side = "below" if ours[name] < low else "above"
            found.append(
                f"The recipe expects {name} {number(low)} to {number(high)}; "
                f"{number(ours[name])} is {side} that."
            )
    return (*summary.get("diagnosis", ()), *found)


def _defeats(ours: Mapping[str, float], winners: Mapping[str, Comparison]) -> str:
    """One sentence about all metrics on which something simpler is better."""
    names = {best.name for best in winners.values()}
    kinds = [f"the {UNTOUCHED}"] if UNTOUCHED in names else []
    kinds += ["a simple baseline"] if names - {UNTOUCHED, "random weights"} else []
    kinds += ["the control"] if "random weights" in names else []
    kind = " or ".join(kinds)
    kind = kind[0].upper() + kind[1:]
    reached = [number(best.value) for best in winners.values()]
    if len(names) == 1:
        who = "it" if names == {UNTOUCHED} else names.pop()
        theirs = f"{who} reaches {_listed(reached)}"
    else:
        rows = zip(winners.values(), reached, strict=True)
        theirs = _listed([f"{best.name} reaches {value}" for best, value in rows])
    mine = _listed([number(ours[name]) for name in winners])
    return f"{kind} is better on {_listed(list(winners))}: {theirs}, this run {mine}."


def _listed(words: list[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last
