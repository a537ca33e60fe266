"""Intervals over groups of samples: by hand, and against a plain cluster bootstrap."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest

from headstart.report.intervals import (
    gains,
    group_count,
    interval,
    intervals,
    mean_interval,
)
from headstart.report.parts import Evaluation
from headstart.specs import MetricSpec


def measured(
    scores: Any,
    groups: Any = None,
    goal: Literal["max", "min"] = "max",
    link: Literal["identity", "exp"] = "identity",
) -> Evaluation:
    """What a test with one metric ``m`` gave."""
    spec = MetricSpec("toy/m", "", "", (), (), goal, "", {}, "given", link)
    given = {"m": np.asarray(scores, dtype=float)}
    return Evaluation("test", {}, {}, {}, [], 12, given, {"m": spec}, groups=groups)


def patients(seed: int) -> tuple[Any, Any, Any]:
    """Scores of two models on 150 patients with 1 to 6 alike scans each."""
    rng = np.random.default_rng(seed)
    owner = np.repeat(np.arange(150), rng.integers(1, 7, 150))
    alike = rng.normal(0.6, 0.1, 150)[owner]
    ours = alike + rng.normal(0, 0.03, len(owner))
    theirs = ours - 0.1 - rng.normal(0, 0.08, 150)[owner]
    return owner, ours, theirs


def bootstrap(owner: Any, statistic: Any) -> Any:
    """2.5 and 97.5 % of a statistic over draws of whole patients."""
    rng = np.random.default_rng(7)
    rows = [np.flatnonzero(owner == k) for k in range(owner.max() + 1)]
    draws = rng.integers(0, len(rows), (3000, len(rows)))
    drawn = [statistic(np.concatenate([rows[k] for k in d])) for d in draws]
    return np.quantile(drawn, [0.025, 0.975])


def test_mean_over_groups_by_hand() -> None:
    # Mean 2; the groups are off by -1 - 1 and 2 in sum: 2 x (4 + 4) / 9, its root 4/3.
    low, high = mean_interval([1, 1, 4], ["a", "a", "b"])
    assert (low + high) / 2 == pytest.approx(2)
    assert high - 2 == pytest.approx(1.959964 * 4 / 3)


def test_groups_of_one_sample_are_samples() -> None:
    values = [0.2, 0.9, 0.4, math.nan, 0.7]
    assert mean_interval(values, list("abcde")) == mean_interval(values)
    right = [1, 1, 0, 1, 0, 1]
    assert interval(right, list("abcdef")) == pytest.approx(interval(right))


def test_intervals_and_gains_are_those_of_a_bootstrap_over_patients() -> None:
    owner, ours, theirs = patients(0)
    names = [f"p{k}" for k in owner]
    one, two = measured(ours, names), measured(theirs, names)
    drawn = bootstrap(owner, lambda rows: ours[rows].mean())
    found = intervals(one)["m"]
    assert found == pytest.approx(drawn, abs=0.1 * (drawn[1] - drawn[0]))
    drawn = bootstrap(owner, lambda rows: (ours - theirs)[rows].mean())
    gain = gains(one, two)["m"]
    assert gain == pytest.approx(drawn, abs=0.1 * (drawn[1] - drawn[0]))
    # Samples that count as patients make it too narrow.
    low, high = intervals(measured(ours))["m"]
    assert high - low < 0.7 * (found[1] - found[0])


def test_a_ratio_over_patients_has_the_interval_of_their_bootstrap() -> None:
    owner, rate, _ = patients(1)
    below = np.random.default_rng(3).integers(5, 60, len(owner))
    pair = np.stack([rate * below, below], axis=1)
    found = intervals(measured(pair, [str(k) for k in owner]))["m"]
    drawn = bootstrap(owner, lambda rows: pair[rows, 0].sum() / pair[rows, 1].sum())
    assert found == pytest.approx(drawn, abs=0.1 * (drawn[1] - drawn[0]))


def test_accuracy_over_groups() -> None:
    groups = [str(k) for k in range(20) for _ in range(5)]
    # All samples of a group alike: as many samples as groups, less the one of a mean.
    right = [k < 12 for k in range(20) for _ in range(5)]
    alone = interval([k < 12 for k in range(20)])
    low, high = interval(right, groups)
    assert (low, high) == pytest.approx(alone, abs=0.01)
    assert interval([True] * 100, groups) == interval([True] * 20)
    # Unlike each other within a group: no narrower than by themselves.
    mixed = [k % 5 < 3 for k in range(100)]
    assert interval(mixed, groups) == interval(mixed)


def test_one_group_has_no_interval() -> None:
    one = measured([0.4, 0.6], ["a", "a"])
    none = [-math.inf, math.inf]
    assert intervals(one) == {"m": none}
    assert gains(one, measured([0.1, 0.9], ["a", "a"])) == {"m": none}
    assert interval([True, False], ["a", "a"]) == tuple(none)
    # Of the other one nothing counts.
    assert intervals(measured([0.4, math.nan], ["a", "b"])) == {"m": none}
    assert group_count(one, "patient") == {"unit": "patient", "count": 1}
    assert group_count(replace(one, groups=None), "patient") is None


def test_errors_and_shares_end_where_they_must() -> None:
    # Mean 10, standard error 10: 10 ± 19.6.
    low, high = intervals(measured([0.0, 20.0], goal="min"))["m"]
    assert low == 0
    assert high == pytest.approx(29.59964)
    # Mean 0.5, standard error 0.5.
    assert intervals(measured([0.0, 1.0]))["m"] == [0.0, 1.0]
    assert intervals(measured([[0, 5], [5, 5]]))["m"] == [0.0, 1.0]
    # More is better and above 1: it may be anything.
    assert intervals(measured([0.0, 20.0]))["m"][0] == pytest.approx(-9.59964)
    # Below 0 it was already.
    low, high = intervals(measured([-1.0, 1.0], goal="min"))["m"]
    assert (low, high) == pytest.approx((-1.959964, 1.959964))
