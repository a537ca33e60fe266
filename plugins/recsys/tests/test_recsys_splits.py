"""Splits: what is trained on, what is known, what is to be found."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from headstart.data import Findings
from headstart.errors import DataError
from headstart_recsys import splits
from headstart_recsys.columns import Interactions
from headstart_recsys.settings import InteractionSettings
from headstart_recsys.splits import (
    DROPPED,
    EARLIER,
    KNOWN,
    TEST,
    TRAIN,
    VALIDATION,
    divide,
)

DAY = 86_400


def settings(**values: Any) -> InteractionSettings:
    return InteractionSettings(name="recsys/interactions", **values)


def events(users: Any, items: Any, times: Any = None) -> Interactions:
    return Interactions(
        np.array(users, dtype=np.int32),
        np.array(items, dtype=np.int32),
        times=None if times is None else np.array(times, dtype=np.int64),
    )


def some(count: int = 400, seed: int = 0) -> Interactions:
    generator = np.random.default_rng(seed)
    pairs = generator.permutation(30 * 40)[:count]
    return events(pairs // 40, pairs % 40, generator.integers(0, 1000, count))


def parts_of(interactions: Interactions, **values: Any) -> np.ndarray:
    return divide(interactions, settings(**values), 0, Findings()).parts


def test_temporal_split_cuts_by_time_not_by_row() -> None:
    log = events([0] * 10, range(10), [90, 10, 30, 20, 80, 50, 70, 60, 40, 100])
    parts = parts_of(log, test_size=0.2, validation_size=0.3)
    assert parts.tolist() == [
        *(TEST, TRAIN, TRAIN, TRAIN, VALIDATION),
        *(TRAIN, VALIDATION, VALIDATION, TRAIN, TEST),
    ]


def test_temporal_split_never_trains_on_what_comes_later() -> None:
    log = some()
    parts = parts_of(log, earlier=0.4)
    assert log.times is not None
    bounds = [log.times[parts == p] for p in (EARLIER, TRAIN, VALIDATION, TEST)]
    for before, after in itertools.pairwise(bounds):
        assert before.max() < after.min()
    sizes = [len(b) / len(log) for b in bounds]
    assert sizes == pytest.approx([0.32, 0.48, 0.1, 0.1], abs=0.02)


def test_events_of_one_second_stay_together_on_the_closer_side() -> None:
    # A share of 0.2 would cut through the four at second 5.
    log = events([0] * 10, range(10), [0, 1, 2, 3, 4, 5, 5, 5, 5, 9])
    assert (parts_of(log, test_size=0.2) == TEST).sum() == 1
    # ... and here three of four belong behind the cut.
    assert (parts_of(log, test_size=0.4) == TEST).sum() == 5


def test_dates_cut_from_their_first_second_on() -> None:
    log = events([0] * 5, range(5), np.array([0, 1, 2, 3, 4]) * DAY + 100)
    parts = parts_of(log, validation_from="1970-01-03", test_from="1970-01-05T00:01:40")
    assert parts.tolist() == [TRAIN, TRAIN, VALIDATION, VALIDATION, TEST]
    late = parts_of(log, validation_from="1970-01-03", test_from="1970-01-04T00:01:41")
    assert late.tolist() == [TRAIN, TRAIN, VALIDATION, VALIDATION, TEST]


def test_leave_last_one_by_hand() -> None:
    log = events(
        [0, 1, 0, 2, 0, 1, 0], [0, 0, 1, 0, 2, 1, 3], [40, 2, 10, 5, 30, 1, 20]
    )
    parts = parts_of(log, split="leave-last-one")
    # User 0: 10, 20 train, 30 validation, 40 test; user 1: 1 train, 2 test.
    assert parts.tolist() == [TEST, TEST, TRAIN, TRAIN, VALIDATION, TRAIN, TRAIN]


@pytest.mark.parametrize("timed", [False, True])
def test_leave_last_one_is_that_of_a_plain_loop(timed: bool) -> None:
    rng = np.random.default_rng(4)
    users, times = rng.integers(0, 30, 120), rng.integers(0, 3, 120)
    log = events(users, np.arange(120), times if timed else None)
    expected = np.full(120, TRAIN)
    for user in range(30):
        mine = np.flatnonzero(users == user).tolist()
        if timed:
            mine.sort(key=lambda event: times[event])
        if len(mine) >= 2:
            expected[mine[-1]] = TEST
        if len(mine) >= 3:
            expected[mine[-2]] = VALIDATION
    assert parts_of(log, split="leave-last-one").tolist() == expected.tolist()


def test_user_holdout_trains_on_nobody_who_is_held_out() -> None:
    log = some()
    assert log.times is not None
    parts = parts_of(log, split="user-holdout", test_size=0.2, validation_size=0.1)
    found = {p: set(log.users[parts == p]) for p in (TRAIN, KNOWN, VALIDATION, TEST)}
    assert len(found[TEST]) == 6
    assert len(found[VALIDATION]) == 3
    assert not found[TRAIN] & (found[TEST] | found[VALIDATION])
    assert not found[TEST] & found[VALIDATION]
    assert found[KNOWN] == found[TEST] | found[VALIDATION]
    for user in found[KNOWN]:
        mine = log.users == user
        hidden = mine & (parts != KNOWN)
        assert hidden.sum() == max(1, round(0.2 * mine.sum()))
        assert log.times[mine & (parts == KNOWN)].max() <= log.times[hidden].min()


def test_user_holdout_never_takes_users_with_one_event() -> None:
    log = events([0, 1, 1, 2, 3, 3, 3, 4], [0, 0, 1, 0, 0, 1, 2, 0])
    parts = parts_of(log, split="user-holdout", test_size=0.2, validation_size=0.2)
    assert set(parts[np.isin(log.users, [0, 2, 4])]) == {TRAIN}
    assert sorted(parts[log.users == 1]) in ([KNOWN, TEST], [KNOWN, VALIDATION])


def test_user_holdout_is_a_function_of_the_seed() -> None:
    log, chosen = some(), settings(split="user-holdout")
    runs = [divide(log, chosen, seed, Findings()).parts for seed in (0, 0, 1)]
    assert (runs[0] == runs[1]).all()
    assert (runs[0] != runs[2]).any()


def test_the_test_does_not_depend_on_the_other_settings() -> None:
    log = some()
    for split in ("temporal", "user-holdout"):
        tests = [
            parts_of(log, split=split, validation_size=size, earlier=earlier) == TEST
            for size, earlier in ((0.1, 0.0), (0.3, 0.0), (0.1, 0.5))
        ]
        assert (tests[0] == tests[1]).all() and (tests[0] == tests[2]).all()


def test_cold_items_are_new_in_one_split_and_nowhere_else() -> None:
    log = some(900)
    parts = parts_of(log, cold_items=0.3)
    plain = parts_of(log)
    chosen = splits.draw_cold_items(log.items, 0.3, 0)
    assert np.bincount(chosen).tolist()[VALIDATION:] == [6, 6]
    for split in (VALIDATION, TEST):
        cold = chosen[log.items] == split
        assert set(parts[cold]) <= {DROPPED, split}
        assert ((parts == split) & cold == (plain == split) & cold).all()
    warm = chosen[log.items] == 0
    assert (parts[warm] == plain[warm]).all()
    # What is tested is not what the best checkpoint was picked by.
    assert (parts[chosen[log.items] > 0] != TRAIN).all()


def test_earlier_without_times_goes_by_row() -> None:
    parts = np.array([TRAIN, TEST, TRAIN, TRAIN, TRAIN], dtype=np.uint8)
    found = splits.set_earlier_apart(parts, None, 0.5)
    assert found.tolist() == [EARLIER, TEST, EARLIER, TRAIN, TRAIN]


def test_temporal_split_needs_times() -> None:
    with pytest.raises(DataError, match="no times") as error:
        parts_of(events([0, 1], [0, 1]))
    assert "data.time" in str(error.value)


def test_shares_that_leave_nothing_are_refused() -> None:
    with pytest.raises(DataError, match="nothing to train on"):
        parts_of(some(), test_size=0.6, validation_size=0.4)


def test_an_empty_test_says_which_times_there_are() -> None:
    log = events([0] * 4, range(4), [DAY, 2 * DAY, 3 * DAY, 4 * DAY])
    with pytest.raises(DataError, match="no event is left for test") as error:
        parts_of(log, test_from="2024-01-01")
    assert "data.test_from" in str(error.value)
    assert "1970-01-02" in str(error.value)


def test_all_empty_parts_are_told_together() -> None:
    log = events([0, 1, 2], [0, 1, 2], [1, 2, 3])
    with pytest.raises(DataError) as error:
        parts_of(log, split="leave-last-one")
    assert len(error.value.faults) == 2
    assert "no user has 2" in str(error.value)


def test_splits_that_know_the_future_say_so() -> None:
    # Users one after the other in time: half of the training is after half the tests.
    users = np.repeat(np.arange(10), 5)
    log = events(users, np.arange(50), np.arange(50))
    findings = Findings()
    divide(log, settings(split="leave-last-one"), 0, findings)
    (warning,) = findings.warnings
    assert "later than half of the test" in warning.what
    findings = Findings()
    divide(log, settings(), 0, findings)
    assert not findings.warnings
