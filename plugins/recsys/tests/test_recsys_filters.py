"""Filters keep what they should and say what they removed."""

from __future__ import annotations

import numpy as np
import pytest

from headstart.data import Findings
from headstart.errors import DataError
from headstart_recsys.columns import Interactions
from headstart_recsys.filters import compact, filtered, k_core, without_repeats
from headstart_recsys.reading import Log
from headstart_recsys.settings import InteractionSettings


def log_of(pairs, values=None, times=None):
    users, items = np.array(pairs, dtype=np.int32).T
    given = Interactions(
        users,
        items,
        None if values is None else np.array(values, dtype=np.float32),
        None if times is None else np.array(times, dtype=np.int64),
    )
    return Log(
        given,
        [f"u{i}" for i in range(users.max() + 1)],
        [f"i{i}" for i in range(items.max() + 1)],
        ("events.csv",),
        np.arange(2, len(users) + 2, dtype=np.int32),
        len(users),
    )


def run(log, **given):
    findings = Findings()
    settings = InteractionSettings(
        name="recsys/interactions", path="events.csv", **given
    )
    found, steps = filtered(log, settings, findings)
    findings.settle(settings, log.total)
    return found, steps


def naive_core(pairs, users, items):
    """By hand: look at every event again until nothing falls out."""
    left = list(range(len(pairs)))
    while True:
        kept = [
            e
            for e in left
            if sum(pairs[x][0] == pairs[e][0] for x in left) >= users
            and sum(pairs[x][1] == pairs[e][1] for x in left) >= items
        ]
        if kept == left:
            return left
        left = kept


@pytest.mark.parametrize(("users", "items"), [(1, 1), (2, 2), (3, 2), (2, 4), (9, 9)])
def test_the_k_core_is_that_of_a_plain_loop(users, items):
    rng = np.random.default_rng(5)
    pairs = np.stack([rng.integers(0, 15, 60), rng.integers(0, 20, 60)], axis=1)
    keep, _ = k_core(log_of(pairs).interactions, users, items)
    assert np.flatnonzero(keep).tolist() == naive_core(pairs.tolist(), users, items)


def test_what_the_k_core_removed_is_told():
    # u2 has one event; without it i2 has one; without that u1 has one, and so on.
    pairs = [(0, 0), (0, 1), (3, 0), (3, 1), (1, 0), (1, 2), (2, 2)]
    found, steps = run(log_of(pairs), min_user_events=2, min_item_events=2)
    assert found.user_ids == ["u0", "u3"]
    assert found.item_ids == ["i0", "i1"]
    assert found.interactions.users.tolist() == [0, 0, 1, 1]
    assert found.rows.tolist() == [2, 3, 4, 5]
    (step,) = steps
    assert (step.events, step.users, step.items) == (3, 2, 1)
    assert step.rounds == 4
    assert "fewer than 2" in step.why
    assert step.describe() == "3 events, 2 users, 1 item in 4 rounds"


REPEATS = [(0, 0), (0, 1), (0, 0), (1, 0), (0, 0)]


@pytest.mark.parametrize(
    ("how", "times", "rows", "values"),
    [
        ("first", None, [0, 1, 3], [1, 2, 8]),
        ("last", None, [1, 3, 4], [2, 8, 16]),
        ("sum", None, [1, 3, 4], [2, 8, 21]),
        ("first", [5, 0, 3, 0, 4], [1, 2, 3], [2, 4, 8]),
        ("last", [5, 0, 3, 0, 4], [0, 1, 3], [1, 2, 8]),
        ("sum", [5, 0, 3, 0, 4], [0, 1, 3], [21, 2, 8]),
        ("last", [5, 0, 5, 0, 4], [1, 2, 3], [2, 4, 8]),
    ],
)
def test_repeated_events(how, times, rows, values):
    log = log_of(REPEATS, [1, 2, 4, 8, 16], times)
    kept, index = without_repeats(log.interactions, how, 2)
    assert index.tolist() == rows
    assert kept.values.tolist() == values


def naive_repeats(pairs, values, times, how):
    """By hand: the place and the value of what is left of each pair."""
    groups = {}
    for event, pair in enumerate(pairs):
        groups.setdefault(tuple(pair), []).append(event)
    left = {}
    for events in groups.values():
        events.sort(key=lambda e: times[e] if times is not None else e)
        chosen = events[0] if how == "first" else events[-1]
        if values is None:
            left[chosen] = len(events) if how == "sum" else None
        else:
            counted = events if how == "sum" else [chosen]
            left[chosen] = sum(values[e] for e in counted)
    return sorted(left), [left[event] for event in sorted(left)]


@pytest.mark.parametrize("how", ["first", "last", "sum"])
@pytest.mark.parametrize("timed", [False, True])
@pytest.mark.parametrize("valued", [False, True])
@pytest.mark.parametrize("items", [1, 9, 400])
def test_repeats_are_those_of_a_plain_loop(how, timed, valued, items):
    rng = np.random.default_rng(items)
    pairs = np.stack([rng.integers(0, 8, 300), rng.integers(0, items, 300)], axis=1)
    values = rng.integers(1, 9, 300) / 2 if valued else None
    times = rng.integers(0, 4, 300) if timed else None
    log = log_of(pairs, values, times)
    before = {k: v.copy() for k, v in log.interactions.columns().items()}
    kept, index = without_repeats(log.interactions, how, items)
    rows, left = naive_repeats(pairs.tolist(), values, times, how)
    assert index.tolist() == rows
    assert kept.users.tolist() == pairs[rows, 0].tolist()
    assert kept.items.tolist() == pairs[rows, 1].tolist()
    if valued or how == "sum":
        assert kept.values.tolist() == left
    else:
        assert kept.values is None
    if timed:
        assert kept.times.tolist() == times[rows].tolist()
    for name, column in log.interactions.columns().items():
        assert np.array_equal(column, before[name])


def test_refused_repeats_name_the_first_of_many():
    rng = np.random.default_rng(3)
    pairs = rng.integers(0, 6, (60, 2)).tolist()
    with pytest.raises(DataError) as caught:
        run(log_of(pairs), repeats="stop")
    told = [str(fault).splitlines()[0] for fault in caught.value.faults]
    assert told == [
        f"events.csv, line {row + 2}: a repeated event: user 'u{user}', "
        f"item 'i{item}', as in line {pairs.index([user, item]) + 2}"
        for row, (user, item) in enumerate(pairs)
        if pairs.index([user, item]) < row
    ]


def test_repeats_are_counted_where_there_are_no_values():
    kept, _ = without_repeats(log_of(REPEATS).interactions, "sum", 2)
    assert kept.values.tolist() == [1.0, 1.0, 3.0]


def test_repeats_can_be_refused_by_row():
    with pytest.raises(DataError) as caught:
        run(log_of(REPEATS), repeats="stop")
    told = [str(fault).splitlines()[0] for fault in caught.value.faults]
    assert told == [
        "events.csv, line 4: a repeated event: user 'u0', item 'i0', as in line 2",
        "events.csv, line 6: a repeated event: user 'u0', item 'i0', as in line 2",
    ]


def test_a_rating_that_was_taken_back_is_not_positive():
    pairs = [(0, 0), (0, 0), (1, 0), (1, 1)]
    log = log_of(pairs, [5, 2, 4, 1], [1, 2, 3, 4])
    found, steps = run(log, positive_from=4, value="rating")
    assert found.rows.tolist() == [4]
    assert found.interactions.values is None
    assert [step.events for step in steps] == [1, 2]
    assert (steps[1].users, steps[1].items) == (1, 1)


def test_positive_events_can_be_counted():
    log = log_of([(0, 0), (0, 0), (0, 0), (1, 1)], [5, 2, 4, 4])
    found, _ = run(log, positive_from=4, value="rating", repeats="sum")
    assert found.interactions.values.tolist() == [2.0, 1.0]


def test_nothing_left_names_every_filter():
    log = log_of([(0, 0), (1, 1), (2, 0)], [5, 1, 5])
    with pytest.raises(DataError) as caught:
        run(log, positive_from=4, value="rating", min_user_events=2)
    told = str(caught.value)
    assert "no interaction is left after filtering" in told
    assert "of 3, removed: 1 for ratings below 4; 2 for users with fewer" in told


def test_nothing_to_do_gives_the_same_columns():
    log = log_of([(0, 0), (1, 1)])
    found, steps = run(log)
    assert steps == []
    assert found.interactions.users is log.interactions.users
    assert compact(log).user_ids is log.user_ids


def test_taking_events_takes_every_column():
    log = log_of([(0, 0), (1, 1), (1, 0)], [1, 2, 3], [7, 8, 9])
    part = log.interactions.take(np.array([2, 0]))
    assert {k: v.tolist() for k, v in part.columns().items()} == {
        "users": [1, 0],
        "items": [0, 0],
        "values": [3.0, 1.0],
        "times": [9, 7],
    }
    assert part.memory() == 2 * (4 + 4 + 4 + 8)
