"""Whether the transfer paid: intervals, comparisons, and the sentence that says so."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from headstart.report.parts import Evaluation

UNTOUCHED = "untouched model"
"""The baseline that is this model before its first step."""
Z95 = 1.959964
"""Two-sided 95 % quantile of the standard normal distribution."""


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


def interval(correct: Any) -> tuple[float, float]:
    """95 % interval of an accuracy.

    Args:
        correct: Whether each sample is right, (samples,).

    Returns:
        Wilson's score interval (1927), which stays within 0 and 1 and is right for
        few samples as well. It covers the choice of test samples, not that of seeds.
    """
    right = np.asarray(correct, dtype=float)
    count = len(right)
    if count == 0:
        return (0.0, 1.0)
    share, z2 = float(right.mean()), Z95**2
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    spread = share * (1 - share) / count + z2 / (4 * count**2)
    half = Z95 * math.sqrt(spread) / (1 + z2 / count)
    return (max(centre - half, 0.0), min(centre + half, 1.0))


def mean_interval(values: Any) -> tuple[float, float]:
    """95 % interval of a mean by the normal approximation, of two values or more.

    Values that are not a number do not count.
    """
    known = np.asarray(values, dtype=float)
    known = known[~np.isnan(known)]
    if len(known) < 2:
        return (-math.inf, math.inf)
    half = Z95 * float(known.std(ddof=1)) / math.sqrt(len(known))
    return (float(known.mean()) - half, float(known.mean()) + half)


# Metrics that are means of one score per sample, by their usual names.
_SCORES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "accuracy": lambda target, prediction: target == prediction,
    "exact-match": lambda target, prediction: (target == prediction).all(axis=-1),
    "mean-absolute-error": lambda target, prediction: np.abs(target - prediction),
}
_SHARES = ("accuracy", "exact-match")
"""Those whose score is right or wrong."""
_ERRORS = ("mean-absolute-error",)
"""Those where less is better, should no spec say so."""


def scores_by_sample(evaluation: Evaluation) -> dict[str, np.ndarray]:
    """Scores of the metrics that are known to be made of them.

    Returns:
        Each sample's share in a mean, (samples,), or in both sums of a ratio,
        (samples, 2), by the metric's name.
    """
    return {**_usual_scores(evaluation), **evaluation.scores}


def shares(scores: Any, exponential: bool = False) -> np.ndarray:
    """Values by sample whose mean is the metric, and whose spread is its own.

    A mean's are its scores. A ratio of sums, and the exponential of one, are linear in
    the samples but for terms that vanish as there are more (the delta method, by way
    of the influence function; Hampel 1974).

    Args:
        scores: (samples,) or (samples, 2), as :func:`scores_by_sample` gives them.
        exponential: Whether the metric is ``exp`` of the mean or ratio.

    Returns:
        float64 (samples,); not a number where a sample does not count.
    """
    values = np.asarray(scores, dtype=float)
    above, below = values.T if values.ndim == 2 else (values, np.ones_like(values))
    known = ~np.isnan(above + below)
    if not below[known].sum():
        return np.full(len(values), math.nan)
    ratio = above[known].sum() / below[known].sum()
    around = (above - ratio * below) / below[known].mean()
    if exponential:
        return np.asarray(np.exp(ratio) * (1 + around))
    return np.asarray(ratio + around) if values.ndim == 2 else values


def _usual_scores(evaluation: Evaluation) -> dict[str, np.ndarray]:
    """Those of metrics whose names say what they are."""
    if not {"target", "prediction"} <= set(evaluation.outputs):
        return {}
    if not _SCORES.keys() & evaluation.metrics.keys():
        return {}
    target = np.asarray(evaluation.outputs["target"])
    prediction = np.asarray(evaluation.outputs["prediction"])
    if target.shape != prediction.shape or target.ndim == 0 or len(target) < 2:
        return {}
    found = {}
    for name, score in _SCORES.items():
        if name in evaluation.metrics:
            values = np.asarray(score(target, prediction), dtype=float)
            # A macro average may be called "accuracy" too; its interval is another.
            mean = evaluation.metrics[name]
            same = math.isclose(values.mean(), mean, rel_tol=1e-4, abs_tol=1e-6)
            if same and values.shape == (len(target),):
                found[name] = values
    return found


def intervals(evaluation: Evaluation) -> dict[str, list[float]]:
    """95 % intervals of the metrics that are means over samples.

    Returns:
        ``{"accuracy": [low, high]}``, as ``summary.json`` holds it in ``intervals``.
    """
    return {
        name: list(
            interval(values)
            if name in _SHARES
            else _interval(values, _exponential(evaluation, name))
        )
        for name, values in scores_by_sample(evaluation).items()
    }


def _exponential(evaluation: Evaluation, name: str) -> bool:
    return name in evaluation.specs and evaluation.specs[name].link == "exp"


def _interval(scores: Any, exponential: bool) -> tuple[float, float]:
    """Of an exponential, the interval of its logarithm: it never falls below 0."""
    low, high = mean_interval(shares(scores))
    return (float(np.exp(low)), float(np.exp(high))) if exponential else (low, high)


def gains(ours: Evaluation, theirs: Evaluation) -> dict[str, list[float]]:
    """95 % intervals of what we gain over another result on the same samples.

    Samples are paired, so that their common difficulty cancels. Positive is better,
    whichever way the metric points.

    Returns:
        ``{"accuracy": [low, high]}``, as ``summary.json`` holds it in ``gains`` of
        each baseline and of the scratch control.
    """
    mine, other = scores_by_sample(ours), scores_by_sample(theirs)
    found = {}
    for name in mine.keys() & other.keys():
        if len(mine[name]) == len(other[name]):
            exponential = _exponential(ours, name)
            gain = shares(mine[name], exponential) - shares(other[name], exponential)
            spec = ours.specs.get(name)
            less = spec.goal == "min" if spec else name in _ERRORS
            found[name] = list(mean_interval(-gain if less else gain))
    return found


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
    """

    name: str
    value: float
    gain: float
    interval: tuple[float, float] | None
    outcome: Literal["better", "worse", "unclear"]
    change: float | None = None

    def __str__(self) -> str:
        text = f"gain {number(self.gain, signed=True)}"
        if self.change and abs(self.change) >= 0.005:
            side = "lower" if self.change < 0 else "higher"
            text = f"{abs(self.change):.0%} {side}, {text}"
        if self.interval and not all(map(math.isfinite, self.interval)):
            text += ", too few samples for an interval"
        elif self.interval:
            low, high = (number(bound, signed=True) for bound in self.interval)
            text += f", 95% interval {low} to {high}"
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
    return Comparison(name, value, gain, paired, outcome, change)


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
        text += " The difference is within what the choice of test samples explains."
        return Verdict("unclear", "Not shown that it paid", text, warnings)
    if not scratch:
        text += " Random weights were not tried (report.scratch_control = true does)."
    alone = tuned and len(baselines) == 1 and not scratch
    what = "fine-tuning" if alone else "transfer"
    return Verdict("yes", f"The {what} paid", text, warnings)


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
        if best and best.gain < 0:
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
