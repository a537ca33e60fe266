"""Which interactions are left out on purpose, and what that removed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from headstart.errors import Fault
from headstart_recsys.arrays import order
from headstart_recsys.columns import Interactions

if TYPE_CHECKING:
    from headstart.data import Findings
    from headstart_recsys.reading import Log
    from headstart_recsys.settings import InteractionSettings

NOTHING = Interactions(np.zeros(0, np.int32), np.zeros(0, np.int32))


@dataclass(frozen=True)
class Removed:
    """What a filter took away.

    Attributes:
        why: The filter, in words.
        events: Interactions that are gone.
        users: Users of whom nothing is left.
        items: Items of which nothing is left.
        rounds: Passes over the events until nothing changed any more.
    """

    why: str
    events: int
    users: int
    items: int
    rounds: int = 1

    def describe(self) -> str:
        """In words, without the reason: ``1,204 events, 31 users in 4 rounds``."""
        counts = (("events", self.events), ("users", self.users), ("items", self.items))
        gone = ", ".join(
            f"{count:,} {name if count > 1 else name[:-1]}"
            for name, count in counts
            if count
        )
        return f"{gone} in {self.rounds} rounds" if self.rounds > 1 else gone


def filtered(
    log: Log, settings: InteractionSettings, findings: Findings
) -> tuple[Log, list[Removed]]:
    """Apply the recipe's filters: repeats, then positive ratings, then k-core.

    Ratings are settled first, so that a rating that was taken back does not count;
    only where events are to be summed do positive ones come first.

    Args:
        log: What was read.
        settings: ``repeats``, ``positive_from``, ``min_user_events``,
            ``min_item_events``.
        findings: Takes repeats under ``stop``, and a fault if nothing is left.

    Returns:
        What is left, with codes for its own users and items alone; what each filter
        removed, those that removed nothing not named.
    """
    before = len(log.interactions)
    steps: list[Removed] = []

    def positive(log: Log) -> Log:
        if settings.positive_from is None or log.interactions.values is None:
            return log
        keep = positives(log.interactions, settings.positive_from)
        why = f"ratings below {settings.positive_from:g}"
        steps.append(_removed(why, log.interactions, keep))
        events = replace(log.interactions, values=None)
        return replace(log, interactions=events).take(keep)

    def single(log: Log) -> Log:
        if settings.repeats == "stop":
            _refuse_repeats(log, findings)
            return log
        how = settings.repeats
        merged, index = without_repeats(log.interactions, how, len(log.item_ids))
        if len(index) == len(log.interactions):
            return log
        kept = {
            "first": "the first is kept",
            "last": "the last is kept",
            "sum": "their weights are summed",
        }[how]
        why = f"repeated events of a user with an item; {kept}"
        gone = len(log.interactions) - len(index)
        steps.append(Removed(why, gone, 0, 0))
        return replace(log, interactions=merged, rows=log.rows[index])

    summed = settings.repeats == "sum"
    for step in (positive, single) if summed else (single, positive):
        log = step(log)
    least = settings.min_user_events, settings.min_item_events
    if max(least) > 1:
        keep, rounds = k_core(log.interactions, *least)
        why = f"users with fewer than {least[0]} and items with fewer than {least[1]}"
        removed = _removed(f"{why} events, again and again", log.interactions, keep)
        steps.append(replace(removed, rounds=rounds))
        # One column after another: the caller may hold what was read as well.
        columns = log.interactions.columns()
        log = replace(log, interactions=NOTHING)
        for name in columns:
            columns[name] = columns[name][keep]
        log = replace(log, interactions=Interactions(**columns), rows=log.rows[keep])
    steps = [step for step in steps if step.events]
    if before and not len(log.interactions):
        told = "; ".join(f"{s.events} for {s.why}" for s in steps)
        findings.fatal.append(
            Fault(
                "no interaction is left after filtering",
                where="data.min_user_events" if max(least) > 1 else settings.path,
                why=f"of {before}, removed: {told}",
                fix="lower data.min_user_events, data.min_item_events or "
                "data.positive_from",
            )
        )
    return compact(log), steps


def positives(interactions: Interactions, least: float) -> np.ndarray:
    """Events with at least this rating, a mask (N,)."""
    if interactions.values is None:
        return np.ones(len(interactions), dtype=bool)
    return np.asarray(interactions.values >= least)


def k_core(
    interactions: Interactions, users: int, items: int
) -> tuple[np.ndarray, int]:
    """The largest part in which all users and items have so many events.

    Args:
        interactions: Events ``(N,)``.
        users: Least number of events of a user.
        items: The same of an item.

    Returns:
        Mask of the events that stay ``(N,)``, and the rounds until nothing changed.
    """
    keep = np.ones(len(interactions), dtype=bool)
    sides = [(interactions.users, users), (interactions.items, items)]
    counts = [np.bincount(codes) for codes, _ in sides]
    rounds = 0
    while True:
        rounds += 1
        drop = np.zeros(len(keep), dtype=bool)
        for (codes, least), count in zip(sides, counts, strict=True):
            low = (count > 0) & (count < least)
            if low.any():
                drop |= low[codes]
        drop &= keep
        if not drop.any():
            return keep, rounds
        keep &= ~drop
        for (codes, _), count in zip(sides, counts, strict=True):
            np.subtract(
                count, np.bincount(codes[drop], minlength=len(count)), out=count
            )


def without_repeats(
    interactions: Interactions, how: str, items: int
) -> tuple[Interactions, np.ndarray]:
    """One event for each user and item.

    Args:
        interactions: Events ``(N,)``; by time, those of equal time in their order.
        how: ``first``, ``last`` or ``sum``, which is the last with the sum of the
            values, or with their number where there are no values.
        items: Number of items.

    Returns:
        Those events in their old order, and where each stood ``(M,)``.
    """
    sequence = order(interactions.users, interactions.items)
    fresh = _fresh(interactions, sequence)
    if fresh.all():
        return interactions, np.arange(len(interactions))
    # What has no equal stays as it is; the others are few as a rule.
    several = ~fresh
    several[:-1] |= ~fresh[1:]
    ours = sequence[several]
    starts = np.flatnonzero(fresh[several])
    del sequence, fresh, several
    ends = np.append(starts[1:], len(ours))
    if interactions.times is not None:
        chosen = ours[_by_time(interactions.times[ours], starts, ends, how)]
    else:
        chosen = ours[starts] if how == "first" else ours[ends - 1]
    keep = np.ones(len(interactions), dtype=bool)
    keep[ours] = False
    keep[chosen] = True
    sums = None
    if how == "sum":
        if interactions.values is None:
            sums = np.ones(len(interactions), dtype=np.float32)
            sums[chosen] = ends - starts
        else:
            sums = interactions.values.copy()
            values = interactions.values[ours].astype(np.float64)
            sums[chosen] = np.add.reduceat(values, starts)
        sums = sums[keep]
    del ours, starts, ends, chosen
    index = np.flatnonzero(keep)
    kept = interactions.take(keep)
    return (kept if sums is None else replace(kept, values=sums)), index


def _by_time(
    times: np.ndarray, starts: np.ndarray, ends: np.ndarray, how: str
) -> np.ndarray:
    """The place of the first or last event of each run, by time and then by place."""
    extreme = np.minimum if how == "first" else np.maximum
    best = np.repeat(extreme.reduceat(times, starts), ends - starts)
    places = np.flatnonzero(times == best)
    if how == "first":
        return np.asarray(places[np.searchsorted(places, starts)])
    return np.asarray(places[np.searchsorted(places, ends) - 1])


def compact(log: Log) -> Log:
    """The log with codes for users and items that have events, and for no other."""
    events = log.interactions
    users, user_ids = _compacted(events.users, log.user_ids)
    items, item_ids = _compacted(events.items, log.item_ids)
    events = replace(events, users=users, items=items)
    return replace(log, interactions=events, user_ids=user_ids, item_ids=item_ids)


def _compacted(codes: np.ndarray, ids: list[str]) -> tuple[np.ndarray, list[str]]:
    there = np.bincount(codes, minlength=len(ids)) > 0
    if there.all():
        return codes, ids
    table = np.cumsum(there, dtype=np.int32) - np.int32(1)
    return table[codes], [ids[i] for i in np.flatnonzero(there)]


def _fresh(interactions: Interactions, sequence: np.ndarray) -> np.ndarray:
    """Whether user or item is another than in the row before, in this order."""
    fresh = np.zeros(len(sequence), dtype=bool)
    fresh[:1] = True
    for codes in (interactions.users, interactions.items):
        ranked = codes[sequence]
        fresh[1:] |= ranked[1:] != ranked[:-1]
    return fresh


def _refuse_repeats(log: Log, findings: Findings) -> None:
    """Faults of events whose user and item came before, by row."""
    from headstart_recsys.checks import RowFaults

    events = log.interactions
    sequence = order(events.users, events.items)
    fresh = _fresh(events, sequence)
    if fresh.all():
        return
    late = np.flatnonzero(~fresh)
    starts = np.flatnonzero(fresh)
    first = sequence[starts[np.searchsorted(starts, late) - 1]]
    again = sequence[late]
    place = np.argsort(again)
    again, first = again[place], first[place]

    def what(i: int) -> str:
        event = again[i]
        user = log.user_ids[events.users[event]]
        item = log.item_ids[events.items[event]]
        before = log.rows[first[i]]
        return f"user {user!r}, item {item!r}, as in {log.row_unit} {before}"

    faults = RowFaults(log.files[0], log.row_unit, findings)
    fix = 'remove it, or say what counts with data.repeats="last"'
    faults.add("a repeated event", log.rows[again], what, fix=fix)


def _removed(why: str, interactions: Interactions, keep: np.ndarray) -> Removed:
    gone = [
        int((np.bincount(codes) > 0).sum() - (np.bincount(codes[keep]) > 0).sum())
        for codes in (interactions.users, interactions.items)
    ]
    return Removed(why, int(len(keep) - keep.sum()), *gone)
