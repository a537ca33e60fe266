"""95 % intervals of results and of gains, over samples or over groups of them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from headstart.report.parts import Evaluation

Z95 = 1.959964
"""Two-sided 95 % quantile of the standard normal distribution."""
NONE = (-math.inf, math.inf)
"""The interval where nothing is known: of one sample, or of one group."""


def interval(correct: Any, groups: Sequence[str] | None = None) -> tuple[float, float]:
    """95 % interval of an accuracy.

    Args:
        correct: Whether each sample is right, (samples,).
        groups: Whose each sample is, (samples,); ``None``: each is by itself.

    Returns:
        Wilson's score interval (1927), which stays within 0 and 1 and is right for
        few samples as well. It covers the choice of test samples, not that of seeds.
        Samples of groups count as fewer: as many as by themselves would have the
        variance that their groups have (Korn and Graubard 1998); where all are right,
        or all wrong, each group as one.
    """
    right = np.asarray(correct, dtype=float)
    count: float = len(right)
    if count == 0:
        return (0.0, 1.0)
    share, z2 = float(right.mean()), Z95**2
    if groups is not None:
        many = len(set(groups))
        if many < 2:
            return NONE
        alone = share * (1 - share) / (count - 1)
        more = _error(right, groups) ** 2 / alone if alone else count / many
        count /= max(more, 1.0)
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    spread = share * (1 - share) / count + z2 / (4 * count**2)
    half = Z95 * math.sqrt(spread) / (1 + z2 / count)
    return (max(centre - half, 0.0), min(centre + half, 1.0))


def mean_interval(
    values: Any, groups: Sequence[str] | None = None
) -> tuple[float, float]:
    """95 % interval of a mean by the normal approximation.

    Args:
        values: (samples,); those that are not a number do not count.
        groups: Whose each sample is, (samples,); ``None``: each is by itself.

    Returns:
        With infinite bounds where fewer than two samples, or groups, count.
    """
    values = np.asarray(values, dtype=float)
    known = ~np.isnan(values)
    values = values[known]
    kept = None if groups is None else np.asarray(groups)[known]
    if len(values if kept is None else np.unique(kept)) < 2:
        return NONE
    half = Z95 * _error(values, kept)
    return (float(values.mean()) - half, float(values.mean()) + half)


def _error(values: np.ndarray, groups: Any) -> float:
    """Standard error of a mean over samples, whole groups of them being drawn.

    From the sums over each group of what its samples are off the mean (Cochran 1977,
    section 9A; as the cluster-robust variance of Liang and Zeger 1986). Of groups of
    one sample it is the standard deviation by the square root of their number.
    """
    sums = values - values.mean()
    if groups is not None:
        _, owner = np.unique(groups, return_inverse=True)
        sums = np.bincount(owner, weights=sums)
    many = len(sums)
    return math.sqrt(many / (many - 1) * float((sums**2).sum())) / len(values)


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
        ``{"accuracy": [low, high]}``, as ``summary.json`` holds it in ``intervals``;
        with infinite bounds where there is none.
    """
    return {
        name: list(
            interval(values, evaluation.groups)
            if name in _SHARES
            else _interval(evaluation, name, values)
        )
        for name, values in scores_by_sample(evaluation).items()
    }


def group_count(evaluation: Evaluation, unit: str) -> dict[str, Any] | None:
    """Over how many of what intervals are taken, for ``groups`` in ``summary.json``.

    Returns:
        ``None`` where each sample is by itself.
    """
    if evaluation.groups is None:
        return None
    return {"unit": unit, "count": len(set(evaluation.groups))}


def _exponential(evaluation: Evaluation, name: str) -> bool:
    return name in evaluation.specs and evaluation.specs[name].link == "exp"


def _less_is_better(evaluation: Evaluation, name: str) -> bool:
    spec = evaluation.specs.get(name)
    return spec.goal == "min" if spec else name in _ERRORS


def _interval(evaluation: Evaluation, name: str, scores: Any) -> tuple[float, float]:
    """Of an exponential, the interval of its logarithm: it never falls below 0.

    No error is below 0, and no share above 1, so that no interval of theirs is.
    """
    low, high = mean_interval(shares(scores), evaluation.groups)
    if _exponential(evaluation, name):
        return (float(np.exp(low)), float(np.exp(high))) if low > -math.inf else NONE
    values = np.asarray(scores, dtype=float)
    if not math.isfinite(low) or np.nanmin(values) < 0:
        return (low, high)
    less = _less_is_better(evaluation, name)
    above, below = values.T if values.ndim == 2 else (values, np.ones_like(values))
    share = not less and not (above > below).any()
    return (max(low, 0.0) if less or share else low, min(high, 1.0) if share else high)


def gains(ours: Evaluation, theirs: Evaluation) -> dict[str, list[float]]:
    """95 % intervals of what we gain over another result on the same samples.

    Samples are paired, so that their common difficulty cancels. Positive is better,
    whichever way the metric points.

    Returns:
        ``{"accuracy": [low, high]}``, as ``summary.json`` holds it in ``gains`` of
        each baseline and of the scratch control; with infinite bounds where there is
        no interval.
    """
    mine, other = scores_by_sample(ours), scores_by_sample(theirs)
    found = {}
    for name in mine.keys() & other.keys():
        if len(mine[name]) == len(other[name]):
            exponential = _exponential(ours, name)
            gain = shares(mine[name], exponential) - shares(other[name], exponential)
            less = _less_is_better(ours, name)
            found[name] = list(mean_interval(-gain if less else gain, ours.groups))
    return found
