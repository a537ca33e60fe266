"""Random splits: stratified, seeded, and with identical texts on one side."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING

import numpy as np

from headstart_nlp.checks import names

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headstart_nlp.checks import Rows


def strata(rows: Rows, kind: str) -> list[str]:
    """What a split keeps in proportion.

    The class; for multi-label the rarest class of the row, so that rare ones reach
    every part; for regression the tenth of the range of ranks.
    """
    if kind == "regression":
        ranks = np.argsort(np.argsort(np.array(rows.targets), kind="stable"))
        return [str(tenth) for tenth in ranks * 10 // max(len(rows), 1)]
    counts = Counter(n for target in rows.targets for n in names(target))
    return [
        min(names(target), key=lambda n: (counts[n], n), default="")
        for target in rows.targets
    ]


def take_out(
    strata: Sequence[str],
    groups: Sequence[str],
    count: int,
    generator: np.random.Generator,
    keep: int = 2,
) -> np.ndarray:
    """Choose rows at random, in proportion to the strata.

    Shares are exact by largest remainder. Rows of one group (identical texts) go
    together, so a stratum can miss its share by the last group that does not fit.

    Args:
        strata: Stratum of each row.
        groups: Group of each row.
        count: Rows to choose.
        generator: The only source of chance.
        keep: Rows that stay behind in each stratum, where it has so many.

    Returns:
        Boolean mask, true for the rows that were chosen.
    """
    members: dict[str, list[int]] = defaultdict(list)
    for row, group in enumerate(groups):
        members[group].append(row)
    units: dict[str, list[list[int]]] = defaultdict(list)
    for rows in members.values():
        units[strata[rows[0]]].append(rows)
    names_ = sorted(units)
    sizes = np.array([sum(map(len, units[name])) for name in names_])
    chosen = np.zeros(len(strata), dtype=bool)
    quotas = shares(sizes, np.maximum(sizes - keep, 0), count)
    for name, quota in zip(names_, quotas, strict=True):
        left = int(quota)
        for i in generator.permutation(len(units[name])):
            if len(units[name][i]) <= left:
                chosen[units[name][i]] = True
                left -= len(units[name][i])
    return chosen


def shares(sizes: np.ndarray, limits: np.ndarray, count: int) -> np.ndarray:
    """Cut ``count`` into parts in proportion to ``sizes``, none above its limit."""
    parts = np.zeros_like(sizes)
    while (left := min(count, int(limits.sum())) - int(parts.sum())) > 0:
        room = np.where(parts < limits, sizes, 0)
        exact = left * room / room.sum()
        step = np.floor(exact).astype(parts.dtype)
        rest = np.argsort(-(exact - step), kind="stable")[: left - int(step.sum())]
        step[rest] += 1
        parts = np.minimum(parts + step, limits)
    return parts
