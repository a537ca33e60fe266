"""What is wrong with interactions, told by file and row without an object per row."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from headstart.errors import Fault
from headstart_recsys.times import seconds

if TYPE_CHECKING:
    from collections.abc import Callable

    from headstart.data import Findings
    from headstart_recsys.reading import Log
    from headstart_recsys.settings import InteractionSettings

LISTED = 1000
"""Rows of one kind of fault that are listed one by one; the others are counted."""
ONE_EVENT_WARNING = 0.2
"""Share of users with a single event above which the reader is told."""


class RowFaults:
    """Faults of the rows of a file: all are counted, the first of a kind are listed.

    Args:
        file: The file as the user named it.
        unit: What numbers count: ``line`` or ``row``.
        findings: Takes the faults.
    """

    def __init__(self, file: str, unit: str, findings: Findings) -> None:
        self.file, self.unit, self.findings = file, unit, findings
        self._counts: Counter[str] = Counter()
        self._next: dict[str, int] = {}

    def add(
        self,
        kind: str,
        numbers: np.ndarray,
        value: Callable[[int], str] | None = None,
        why: str = "",
        fix: str = "",
    ) -> None:
        """Record one kind of fault for some rows.

        Args:
            kind: What is wrong with each of them.
            numbers: Their lines or rows in the file, int64.
            value: What the i-th of them holds, added to ``kind``.
            why: As in :class:`~headstart.errors.Fault`.
            fix: The same.
        """
        free = max(LISTED - self._counts[kind], 0)
        for i, number in enumerate(numbers[:free].tolist()):
            what = f"{kind}: {value(i)}" if value else kind
            where = f"{self.file}, {self.unit} {number}"
            self.findings.sample(self.file, number, Fault(what, where, why, fix))
        if len(numbers) > free:
            self._next.setdefault(kind, int(numbers[free]))
        self._counts[kind] += len(numbers)

    def close(self, settings: InteractionSettings, bad: int, total: int) -> None:
        """Count what was not listed, and keep ``data.bad_cap`` for all of it."""
        for kind, number in self._next.items():
            where = f"{self.file}, {self.unit} {number}"
            more = self._counts[kind] - LISTED
            fault = Fault(f"{kind}: here and in {more - 1} more rows below", where)
            self.findings.sample(self.file, number, fault)
        if not self._next or settings.bad == "stop":
            return
        if bad > settings.bad_cap * total:
            self.findings.fatal.append(
                Fault(
                    f"{bad} of {total} rows are bad ({bad / max(total, 1):.1%})",
                    where="data.bad_cap",
                    why='`data.bad = "skip"` leaves out at most '
                    f"{settings.bad_cap:.1%}",
                    fix="mend the data, or raise data.bad_cap if you know why",
                )
            )


def check_settings(settings: InteractionSettings) -> list[Fault]:
    """Faults of the settings that need no data to be seen."""
    faults = []
    if not settings.path:
        fix = "give your file, e.g. data.path=ratings.csv, or asset:ml-100k"
        faults.append(Fault("data.path is empty", "data.path", fix=fix))
    for key in ("rating_range", "positive_from"):
        given = getattr(settings, key) is not None
        if given and (not settings.value or settings.values != "ratings"):
            why = "there is no column of ratings"
            if settings.value:
                why = 'data.values = "weights": the column holds no ratings'
            fix = f'name it with data.value (data.values="ratings"), or remove {key}'
            faults.append(Fault(f"{key} needs ratings", f"data.{key}", why, fix))
    if settings.rating_range is not None:
        low, high = settings.rating_range
        if low >= high:
            what = f"the range ends before it begins: {low:g} to {high:g}"
            fix = f"data.rating_range=[{high:g}, {low:g}]"
            faults.append(Fault(what, "data.rating_range", fix=fix))
        elif settings.positive_from is not None and settings.positive_from > high:
            what = f"no rating can be {settings.positive_from:g} or more"
            why = f"data.rating_range ends at {high:g}"
            faults.append(Fault(what, "data.positive_from", why, "lower it"))
    ratings = settings.value and settings.values == "ratings"
    if settings.repeats == "sum" and ratings and settings.positive_from is None:
        why = "the sum of two ratings is no rating"
        fix = 'data.repeats="last", or count positive ones with data.positive_from'
        faults.append(Fault("ratings cannot be summed", "data.repeats", why, fix))
    faults += _check_cut_offs(settings)
    for key in ("category", "catalogue_items"):
        if getattr(settings, key) and not settings.items_path:
            fix = "name the file about the items, or remove it"
            fault = Fault(f"data.{key} needs data.items_path", f"data.{key}", fix=fix)
            faults.append(fault)
    return faults


def _check_cut_offs(settings: InteractionSettings) -> list[Fault]:
    faults = []
    found: dict[str, int] = {}
    for key in ("validation_from", "test_from"):
        text = getattr(settings, key)
        if not text:
            continue
        if settings.split != "temporal":
            why = f'data.split = "{settings.split}" has no cut-off date'
            fix = 'remove it, or data.split="temporal"'
            faults.append(Fault(f"{key} is of no use", f"data.{key}", why, fix))
        moment = seconds(text)
        if moment is None:
            fix = "write it as 1998-03-01 or 1998-03-01T12:00:00Z"
            faults.append(Fault(f"{text!r} is no date", f"data.{key}", fix=fix))
        else:
            found[key] = moment
    if len(found) == 2 and found["validation_from"] >= found["test_from"]:
        what = "validation begins when the test has begun"
        why = f"data.test_from = {settings.test_from!r}"
        fix = "give it an earlier date than data.test_from"
        faults.append(Fault(what, "data.validation_from", why, fix))
    if settings.split == "temporal" and not settings.time:
        why = "it cuts the events at a point in time"
        fix = 'name the column with data.time, or data.split="leave-last-one"'
        what = 'data.split = "temporal" needs times'
        faults.append(Fault(what, "data.time", why, fix))
    return faults


def check_log(log: Log, settings: InteractionSettings, findings: Findings) -> None:
    """Faults and warnings about the interactions as a whole."""
    where = log.files[0] if log.files else settings.path
    if not len(log.interactions):
        if not findings.samples and not findings.fatal:
            fix = "give a file with rows"
            findings.fatal.append(Fault("no interactions", where=where, fix=fix))
        return
    values = log.interactions.values
    if values is not None and settings.values == "ratings":
        _check_ratings(values, where, settings, findings)
    counts = np.bincount(log.interactions.users, minlength=len(log.user_ids))
    single = int((counts == 1).sum())
    users = int((counts > 0).sum())
    if single > ONE_EVENT_WARNING * users:
        findings.warnings.append(
            Fault(
                f"{single} of {users} users ({single / users:.0%}) have one event",
                where=where,
                why="nothing can be learned about them and then found again",
                fix="leave them out with data.min_user_events=2",
            )
        )
    items = int((np.bincount(log.interactions.items) > 0).sum())
    if min(users, items) < 2 and not findings.samples:
        what = f"{users} user{'s' * (users != 1)} and {items} item{'s' * (items != 1)}"
        why = "recommending means choosing between items for different users"
        fix = "are data.user and data.item the right columns?"
        findings.fatal.append(Fault(what, where, why, fix))


def _check_ratings(
    values: np.ndarray, where: str, settings: InteractionSettings, findings: Findings
) -> None:
    low, high = float(values.min()), float(values.max())
    least = settings.positive_from
    if least is not None and high < least:
        findings.fatal.append(
            Fault(
                f"no rating is {least:g} or more",
                where="data.positive_from",
                why=f"the ratings of {where} go from {low:g} to {high:g}",
                fix="lower it",
            )
        )
    if settings.rating_range is None and low < 0 < high:
        negative = int((values < 0).sum())
        findings.warnings.append(
            Fault(
                f"{negative} of {len(values)} ratings are negative",
                where=where,
                why="some data sets write -1 for 'not rated'",
                fix="say which are valid, e.g. data.rating_range=[1, 10]",
            )
        )
