"""Which events are trained on, which are known, and which are to be found.

Everything is a function of the columns, the settings and the seed. Each event gets the
number of its part; a part is never empty by accident: :func:`divide` says why it is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from headstart.errors import DataError, Fault
from headstart_recsys.arrays import order
from headstart_recsys.times import seconds

if TYPE_CHECKING:
    from headstart.data import Findings
    from headstart_recsys.columns import Interactions
    from headstart_recsys.settings import InteractionSettings

PARTS = ("earlier", "train", "known", "validation", "test")
"""In the order of their numbers. ``known`` is the history of held-out users: never
trained on, given when something is recommended to them."""
EARLIER, TRAIN, KNOWN, VALIDATION, TEST, DROPPED = range(6)
HELD_OUT_SHARE = 0.2
"""``user-holdout``: share of a held-out user's events that is to be found (Liang et
al. 2018 use the same)."""
LEAK_WARNING = 0.05


@dataclass(frozen=True)
class Division:
    """The part of each event.

    Attributes:
        parts: Numbers of :data:`PARTS`, or ``DROPPED``, uint8 ``(N,)``.
        notes: How it was done, for the console and the report.
    """

    parts: np.ndarray
    notes: dict[str, Any] = field(default_factory=dict)


def divide(
    interactions: Interactions,
    settings: InteractionSettings,
    seed: int,
    findings: Findings,
) -> Division:
    """Divide the events as ``data.split``, ``earlier`` and ``cold_items`` ask for.

    Raises:
        DataError: Settings that do not fit the events, or a part without any.
    """
    if faults := check_settings(settings, interactions.times):
        raise DataError(*faults)
    users, times = interactions.users, interactions.times
    notes: dict[str, Any] = {"split": settings.split}
    if settings.split == "temporal":
        assert times is not None
        parts, cuts = temporal(times, settings)
        for name, cut in cuts.items():
            notes[f"{name} from"] = shown(cut)
    elif settings.split == "leave-last-one":
        parts = leave_last_one(users, times)
    else:
        parts = user_holdout(
            users, times, settings.test_size, settings.validation_size, seed
        )
    if times is None:
        notes["order"] = "that of the file: no times are given"
    elif settings.split != "temporal":
        _warn_leak(parts, times, settings.split, findings)
    if settings.cold_items:
        chosen = draw_cold_items(interactions.items, settings.cold_items, seed)
        before = int((parts == DROPPED).sum())
        parts = drop_cold(parts, interactions.items, chosen)
        notes["items made new"] = int((chosen > 0).sum())
        notes["their events left out"] = int((parts == DROPPED).sum()) - before
    if settings.earlier:
        parts = set_earlier_apart(parts, times, settings.earlier)
    _refuse_empty(parts, settings, times)
    return Division(parts, notes)


def check_settings(
    settings: InteractionSettings, times: np.ndarray | None
) -> list[Fault]:
    """Faults of the split that only the data shows, or that need no dates."""
    faults = []
    if settings.split == "temporal" and times is None:
        fix = 'name their column in data.time, or data.split="leave-last-one"'
        why = "a temporal split cuts the events at a point in time"
        faults.append(Fault("the events have no times", "data.split", why, fix))
    by_share = settings.split == "user-holdout" or not (
        settings.test_from or settings.validation_from
    )
    total = settings.test_size + settings.validation_size
    if by_share and settings.split != "leave-last-one" and total >= 1:
        what = f"validation and test take {total:g} of the data: nothing to train on"
        faults.append(Fault(what, "data.test_size", fix="e.g. 0.1 each"))
    return faults


def temporal(
    times: np.ndarray, settings: InteractionSettings
) -> tuple[np.ndarray, dict[str, int]]:
    """Global cut-offs: nothing that is trained on is later than what is to be found.

    Events of the same second are never torn apart; of the two sides on which they can
    be, the one that comes closer to the share wins.

    Args:
        times: int64 ``(N,)``.
        settings: Dates go before shares.

    Returns:
        Part numbers, and the first second of validation and test.
    """
    count = len(times)
    if settings.test_from:
        test = _moment(settings.test_from)
    else:
        test = _cut(times, count - round(settings.test_size * count))
    before = times[times < test]
    if settings.validation_from:
        validation = _moment(settings.validation_from)
    else:
        validation = _cut(before, len(before) - round(settings.validation_size * count))
    parts = np.full(count, TRAIN, dtype=np.uint8)
    parts[times >= validation] = VALIDATION
    parts[times >= test] = TEST
    return parts, {"validation": validation, "test": test}


def leave_last_one(users: np.ndarray, times: np.ndarray | None) -> np.ndarray:
    """Each user's last event is the test, the one before it validation.

    Users with two events have no validation, users with one are trained on alone.
    """
    behind, counts = _behind(users, times)
    parts = np.full(len(users), TRAIN, dtype=np.uint8)
    parts[(behind == 0) & (counts >= 2)] = TEST
    parts[(behind == 1) & (counts >= 3)] = VALIDATION
    return parts


def user_holdout(
    users: np.ndarray,
    times: np.ndarray | None,
    test_size: float,
    validation_size: float,
    seed: int,
) -> np.ndarray:
    """Users who are never trained on: their last events are to be found from the first.

    Users with a single event cannot be held out. The test users depend on nothing but
    the data, the seed and ``test_size``.
    """
    per_user = np.bincount(users)
    able = np.flatnonzero(per_user >= 2)
    total = int((per_user > 0).sum())
    test = np.random.default_rng([seed, 0]).permutation(able)
    test = test[: round(test_size * total)]
    rest = np.setdiff1d(able, test)
    validation = np.random.default_rng([seed, 1]).permutation(rest)
    validation = validation[: round(validation_size * total)]
    role = np.full(len(per_user), TRAIN, dtype=np.uint8)
    role[validation], role[test] = VALIDATION, TEST
    parts: np.ndarray = role[users]
    behind, counts = _behind(users, times)
    hidden = np.clip(np.rint(counts * HELD_OUT_SHARE), 1, None)
    parts[(parts != TRAIN) & (behind >= hidden)] = KNOWN
    return parts


def draw_cold_items(items: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Items that are to be new: ``VALIDATION``, ``TEST`` or 0 by item code.

    Drawn among the items with events; half of them are new in validation, the other
    half in the test, so that nothing is chosen on the test's items.
    """
    present = np.flatnonzero(np.bincount(items))
    drawn = np.random.default_rng([seed, 2]).permutation(present)
    drawn = drawn[: max(2, round(share * len(present)))]
    chosen = np.zeros(int(items.max()) + 1, dtype=np.uint8)
    chosen[drawn[: len(drawn) // 2]] = VALIDATION
    chosen[drawn[len(drawn) // 2 :]] = TEST
    return chosen


def drop_cold(parts: np.ndarray, items: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Leave out all events of the chosen items but those of their own split.

    A user's history does not know them either, as if the item had come out just then.
    """
    role = chosen[items]
    parts = parts.copy()
    parts[(role > 0) & (role != parts)] = DROPPED
    return parts


def set_earlier_apart(
    parts: np.ndarray, times: np.ndarray | None, share: float
) -> np.ndarray:
    """Make the first share of the training events the ``earlier`` part."""
    places = np.flatnonzero(parts == TRAIN)
    count = round(share * len(places))
    if times is None:
        first = places[:count]
    else:
        when = times[places]
        first = places[when < _cut(when, count)]
    parts = parts.copy()
    parts[first] = EARLIER
    return parts


def shown(second: int) -> str:
    """A time for people, in UTC."""
    try:
        when = datetime.fromtimestamp(second, UTC)
    except (ValueError, OverflowError, OSError):
        return str(second)
    return when.strftime("%Y-%m-%d %H:%M:%S")


def _moment(date: str) -> int:
    found = seconds(date)
    assert found is not None, "checks.check_settings refuses such dates"
    return found


def _cut(times: np.ndarray, before: int) -> int:
    """The second from which on events are behind the cut, with so many before it."""
    if not len(times):
        return 0
    if before >= len(times):
        return int(times.max()) + 1
    second = int(np.partition(times, before)[before])
    earlier = int((times < second).sum())
    same = int((times == second).sum())
    keep = before - earlier <= earlier + same - before
    # Both sides need an event: a share is never meant to be none.
    if (keep and earlier) or earlier + same == len(times):
        return second
    return second + 1


def _behind(
    users: np.ndarray, times: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """How many events of the same user come after each event, and how many they have.

    Without times, and at equal times, the file's order counts.
    """
    sequence = order(users) if times is None else order(users, times)
    place = np.empty(len(users), dtype=np.int32)
    place[sequence] = np.arange(len(users), dtype=np.int32)
    del sequence
    counts = np.bincount(users).astype(np.int32)
    behind = counts.cumsum(dtype=np.int32)[users]
    behind -= place
    behind -= 1
    return behind, counts[users]


def _warn_leak(
    parts: np.ndarray, times: np.ndarray, split: str, findings: Findings
) -> None:
    test = times[parts == TEST]
    train = times[parts == TRAIN]
    if not (len(test) and len(train)):
        return
    late = float((train > np.median(test)).mean())
    if late > LEAK_WARNING:
        findings.warnings.append(
            Fault(
                f"{late:.0%} of the training events are later than half of the test's",
                where="data.split",
                why=f"with {split!r}, training knows what becomes popular after the "
                "moment that is tested, so the figures are too good",
                fix='data.split="temporal"',
            )
        )


def _refuse_empty(
    parts: np.ndarray, settings: InteractionSettings, times: np.ndarray | None
) -> None:
    counts = np.bincount(parts, minlength=DROPPED + 1)
    faults = []
    for number, size in ((TRAIN, ""), (VALIDATION, "validation"), (TEST, "test")):
        if counts[number]:
            continue
        key, fix = "data.split", "give more data, or filter less of it"
        why = f"{len(parts)} events are left after filtering"
        if settings.split == "temporal" and times is not None and len(times):
            why += f", from {shown(int(times.min()))} to {shown(int(times.max()))}"
            if size:
                date = getattr(settings, f"{size}_from")
                key = f"data.{size}_from" if date else f"data.{size}_size"
                fix = "choose a date inside, or a share such as 0.1"
        elif settings.split == "leave-last-one" and size:
            least = 2 if size == "test" else 3
            why += f", and no user has {least} of them"
        if number == TRAIN and settings.earlier:
            key, fix = "data.earlier", "take a smaller share"
        if settings.cold_items and number != TRAIN:
            why += "; data.cold_items left out some of them"
        what = f"no event is left for {PARTS[number]}"
        faults.append(Fault(what, key, why, fix))
    if faults:
        raise DataError(*faults)
