"""Interactions from files, block by block, into columns.

A file is read in one pass of blocks, so memory holds the columns and one block of
text. What is wrong with a row is put into :class:`~headstart.data.Findings` with the
line (text formats, as an editor counts) or the row (Parquet, from 1); nothing stops at
the first fault.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from headstart.errors import Fault
from headstart_recsys import checks, times
from headstart_recsys.arrays import Growing
from headstart_recsys.blocks import blocks
from headstart_recsys.columns import Interactions
from headstart_recsys.formats import (
    completed,
    interactions_file,
    layout,
    missing_columns,
    shown,
)
from headstart_recsys.ids import OPEN_QUOTE, QUOTES, Ids

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pyarrow.csv import InvalidRow

    from headstart.data import Findings
    from headstart_recsys.formats import Layout
    from headstart_recsys.settings import InteractionSettings

__all__ = ["Log", "completed", "read_interactions"]

MALFORMED = 100_000
"""Lines with the wrong number of fields after which the file is given up."""
DAY = 24 * 3600


@dataclass(frozen=True)
class Log:
    """Interactions and the ids that their codes stand for.

    Rows with a fault are not in it: they are in the findings, which stop or not.

    Attributes:
        interactions: One row per event, in the order of the file.
        user_ids: Ids by user code.
        item_ids: Ids by item code.
        files: What was read, as the user named it.
        rows: Line or row of each event in the file, int32 ``(N,)``.
        total: Rows of the file, bad ones included.
        unit: What times were written in: ``seconds``, ``milliseconds``,
            ``microseconds``, ``nanoseconds``, ``text``, ``steps`` (numbers that are
            too small for dates: they only tell the order); empty without times.
        row_unit: What ``rows`` count: ``line`` or ``row``.
    """

    interactions: Interactions
    user_ids: list[str]
    item_ids: list[str]
    files: tuple[str, ...] = ()
    rows: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    total: int = 0
    unit: str = ""
    row_unit: str = "line"

    def take(self, index: np.ndarray) -> Log:
        """The log of these events (indices or a mask); the ids stay all."""
        events = self.interactions.take(index)
        return replace(self, interactions=events, rows=self.rows[index])

    def where(self, event: int) -> str:
        """File and row of an event."""
        return f"{self.files[0]}, {self.row_unit} {self.rows[event]}"


def read_interactions(settings: InteractionSettings, findings: Findings) -> Log:
    """Read ``data.path``.

    Args:
        settings: As :func:`completed` makes them.
        findings: Takes all faults; they have to be settled with ``Log.total``.

    Returns:
        The rows that can be used; none where the file cannot be read at all.
    """
    findings.fatal += checks.check_settings(settings)
    empty = Log(Interactions(np.zeros(0, np.int32), np.zeros(0, np.int32)), [], [])
    if not settings.path:
        return empty
    file = interactions_file(settings, findings)
    if file is None:
        return empty
    roles = ("user", "item", "value", "time", "session")
    wanted = {role: name for role in roles if (name := getattr(settings, role))}
    found = layout(file, wanted, findings)
    if found is None:
        return empty
    where = f"{shown(file)}, header" if found.delimiter else f"{shown(file)}, columns"
    if faults := missing_columns(where, found.header, wanted):
        findings.fatal += faults
        return empty
    reader = _Reader(shown(file), found, settings, findings)
    try:
        for block, numbers in blocks(file, found, wanted, reader, findings):
            reader.add(block, numbers)
    except (OSError, pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        why = str(error).splitlines()[0]
        fix = "write it again from the original, as UTF-8 text or Parquet"
        findings.fatal.append(Fault("cannot be read", shown(file), why, fix))
        return empty
    # Arrow keeps the memory of the blocks for others to come, which there are not.
    pa.default_memory_pool().release_unused()
    log = reader.finish()
    checks.check_log(log, settings, findings)
    return log


class _Reader:
    """Turns blocks of a file into columns."""

    def __init__(
        self,
        file: str,
        found: Layout,
        settings: InteractionSettings,
        findings: Findings,
    ) -> None:
        self.file, self.settings, self.findings = file, settings, findings
        self.row_unit = found.unit
        self.faults = checks.RowFaults(file, found.unit, findings)
        self.malformed: list[int] = []
        self._width = len(found.header)
        self._ids = {role: Ids(role) for role in ("user", "item")}
        if settings.session:
            self._ids["session"] = Ids("session")
        self._values = Growing(np.float32)
        self._times = Growing(np.int64)
        self._written = Growing(np.uint8)
        self._ways = np.zeros(times.BAD + 1, dtype=np.int64)
        self._numbers = Growing(np.int32)
        self._bad = Growing(bool)

    def refuse(self, row: InvalidRow) -> str:
        """Note a line with too few or too many fields, and go on without it."""
        number = row.number or 0
        self.malformed.append(number)
        if "\n" in row.text:
            self.faults.add(OPEN_QUOTE, np.array([number]), None, *QUOTES)
            return self._go_on()
        few = row.actual_columns < row.expected_columns
        text = row.text if len(row.text) <= 60 else f"{row.text[:59]}…"
        self.faults.add(
            f"too {'few' if few else 'many'} fields, "
            f"{row.actual_columns} of {row.expected_columns}",
            np.array([number]),
            lambda _: repr(text),
            fix="complete or remove the line"
            if few
            else "put text with the separator in it between double quotes",
        )
        return self._go_on()

    def _go_on(self) -> str:
        return "error" if len(self.malformed) > MALFORMED else "skip"

    def add(self, block: Mapping[str, pa.Array], numbers: np.ndarray) -> None:
        for role, ids in self._ids.items():
            ids.add(block[role])
        bad = np.zeros(len(numbers), dtype=bool)
        if "value" in block:
            bad |= self._add_values(block["value"], numbers)
        if "time" in block:
            found, written = times.moments(block["time"])
            self._times.add(found)
            self._written.add(written)
            self._ways += np.bincount(written, minlength=len(self._ways))
            wrong = written == times.BAD
            bad |= wrong
            self._tell(
                "no time",
                "not a time",
                block["time"],
                wrong,
                numbers,
                "write times as seconds, milliseconds or 1998-03-01T12:00:00Z",
            )
        self._numbers.add(numbers)
        self._bad.add(bad)

    def _add_values(self, column: pa.Array, numbers: np.ndarray) -> np.ndarray:
        block = column.dictionary_encode()
        table = np.append(times.numbers(block.dictionary), np.nan)
        codes = np.asarray(block.indices.fill_null(-1))
        values = table.astype(np.float32)[codes]
        self._values.add(values)
        bad = ~np.isfinite(values)
        ratings = self.settings.values == "ratings"
        what = "rating" if ratings else "weight"
        fix = f"give a number as {what}, or remove the row"
        self._tell(f"no {what}", f"not a {what}", column, bad, numbers, fix)
        why = ""
        if not ratings:
            outside = values < 0
            kind, why = "a negative weight", "a weight says how much an event counts"
        elif self.settings.rating_range is not None:
            low, high = self.settings.rating_range
            outside = (values < low) | (values > high)
            kind = f"a rating outside of {low:g} to {high:g}"
            why = "data.rating_range says which are valid"
        else:
            return bad
        rows = np.flatnonzero(outside & ~bad)
        fix = "correct or remove the row"
        self.faults.add(kind, numbers[rows], lambda i: f"{values[rows[i]]:g}", why, fix)
        return bad | outside

    def _tell(
        self,
        missing: str,
        wrong: str,
        column: pa.Array,
        bad: np.ndarray,
        numbers: np.ndarray,
        fix: str,
    ) -> None:
        """Faults of values that are missing or cannot be understood."""
        rows = np.flatnonzero(bad)
        if not len(rows):
            return
        texts = [str(v) if v is not None else "" for v in column.take(rows).to_pylist()]
        gone = np.array([not text.strip() or text == "nan" for text in texts])
        shown_texts = [repr(t) for t, g in zip(texts, gone, strict=True) if not g]
        self.faults.add(missing, numbers[rows[gone]], fix=fix)
        self.faults.add(wrong, numbers[rows[~gone]], shown_texts.__getitem__, fix=fix)

    def finish(self) -> Log:
        numbers = self._numbers.finish()
        total = len(numbers) + len(self.malformed)
        if len(numbers) == 0 and self.malformed:
            what = f"no row has as many fields as the header: {self._width}"
            fix = "check the header and the separator"
            self.findings.fatal.append(Fault(what, self.file, fix=fix))
        bad = self._bad.finish()
        codes, ids = {}, {}
        for role, column in self._ids.items():
            codes[role], ids[role] = column.finish(self.faults, numbers)
            bad |= codes[role] < 0
        values = self._values.finish() if self.settings.value else None
        moments, unit = None, ""
        if self.settings.time:
            moments, unit = self._moments(numbers, bad)
        self.faults.close(self.settings, int(bad.sum()) + len(self.malformed), total)
        events = Interactions(
            codes["user"], codes["item"], values, moments, codes.get("session")
        )
        log = Log(
            events,
            ids["user"],
            ids["item"],
            (self.file,),
            numbers,
            total,
            unit,
            self.row_unit,
        )
        return log.take(~bad) if bad.any() else log

    def _moments(self, numbers: np.ndarray, bad: np.ndarray) -> tuple[np.ndarray, str]:
        """Seconds since 1970 from numbers of one unit or from text; marks the rest."""
        found = self._times.finish()
        written = self._written.finish()
        most = int(self._ways[: times.BAD].argmax())
        unit = times.WRITTEN[most]
        other = np.flatnonzero((written != most) & (written != times.BAD))
        if len(other):
            self.faults.add(
                f"a time that is not in {unit} as most are",
                numbers[other],
                lambda i: f"{found[other[i]]} ({times.WRITTEN[written[other[i]]]})",
                "mixed units would put events into the wrong order",
                "write all times in one way",
            )
            bad[other] = True
        mine = written == most
        if most != times.TEXT:
            found //= times.UNITS[most][2]
        if unit == times.STEPS and mine.any():
            what = f"times from {found[mine].min()} to {found[mine].max()}"
            why = "they are too small for dates, so they only tell what came first"
            self.findings.warnings.append(Fault(what, self.file, why))
            return found, unit
        late = np.flatnonzero(mine & (found > time.time() + DAY))
        if len(late):
            self.faults.add(
                "an event in the future",
                numbers[late],
                lambda i: str(_date(int(found[late[i]]))),
                "nobody can have done this yet",
                "correct or remove the row",
            )
            bad[late] = True
        return found, unit


def _date(moment: int) -> np.datetime64:
    return np.datetime64(moment, "s")
