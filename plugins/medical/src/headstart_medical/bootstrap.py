"""Intervals over patients: what another draw of patients might have given."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    Statistic = Callable[[np.ndarray], float]

RESAMPLES = 2_000


def over_patients(
    statistics: Mapping[str, Statistic],
    patients: Sequence[str],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> dict[str, tuple[float, float] | None]:
    """95 % intervals by the percentile bootstrap (Efron 1979), whole patients drawn.

    A patient's samples go together: they are alike, and drawn one by one they would
    make the interval too narrow.

    Args:
        statistics: By name, from indices of samples (with repeats) to a number.
        patients: Whose each sample is, (samples,).
        seed: Of the draws; the same ones for all statistics.
        resamples: How often patients are drawn.

    Returns:
        (low, high) by name; ``None`` with one patient alone, or where a statistic has
        no value in more than half of the draws.
    """
    _, owner = np.unique(np.asarray(patients, dtype=str), return_inverse=True)
    rows = [np.flatnonzero(owner == k) for k in range(int(owner.max(initial=-1)) + 1)]
    if len(rows) < 2:
        return dict.fromkeys(statistics)
    generator = np.random.default_rng(seed)
    drawn = generator.integers(len(rows), size=(resamples, len(rows)))
    found: dict[str, tuple[float, float] | None] = dict.fromkeys(statistics)
    values = np.empty((len(found), resamples))
    for draw, chosen in enumerate(drawn.tolist()):
        indices = np.concatenate([rows[k] for k in chosen])
        values[:, draw] = [statistic(indices) for statistic in statistics.values()]
    for name, row in zip(found, values, strict=True):
        known = row[~np.isnan(row)]
        if 2 * len(known) > resamples:
            low, high = np.quantile(known, (0.025, 0.975))
            found[name] = (float(low), float(high))
    return found
