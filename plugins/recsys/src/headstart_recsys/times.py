"""Times as numbers or text, and what the numbers count."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

if TYPE_CHECKING:
    from collections.abc import Callable

NUMBER = r"^-?(\d{1,40}\.?\d{0,40}|\.\d{1,40})([eE][+-]?\d{1,2})?$"
_DATE = r"^\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])"
_CLOCK = r"([ T]([01]\d|2[0-3]):[0-5]\d(:[0-5]\d(\.\d{1,9})?)?)"
_ZONE = r"(Z|[+-]([01]\d|2[0-3])(:?[0-5]\d)?)"
LOCAL = f"{_DATE}{_CLOCK}?$"
ZONED = f"{_DATE}{_CLOCK}{_ZONE}$"

STEPS = "steps"
UNITS = (
    (1e8, STEPS, 1),
    (1e11, "seconds", 1),
    (1e14, "milliseconds", 10**3),
    (1e17, "microseconds", 10**6),
    (np.inf, "nanoseconds", 10**9),
)
"""Numbers below this count what, and how many of them make a second. 1e8 seconds are
in 1973 and 1e11 milliseconds too, so that dates since then can be told apart."""
TEXT, BAD = len(UNITS), len(UNITS) + 1
"""How a time is written: a place in :data:`UNITS`, or one of these."""
WRITTEN = (*(name for _, name, _ in UNITS), "text")
LAST = 2**63 - 2**10
"""Times must fit int64; the largest float64 below it."""


def numbers(array: pa.Array) -> np.ndarray:
    """Strings or numbers as float64; NaN where there is none."""
    if _is_text(array):
        array = pc.utf8_ltrim(pc.utf8_trim_whitespace(array), "+")
        try:
            array = array.cast(pa.float64())
        except pa.ArrowInvalid:
            good = pc.match_substring_regex(array, NUMBER)
            array = pc.if_else(good, array, None).cast(pa.float64())
    return np.asarray(_filled(array.cast(pa.float64()), np.nan))


def moments(array: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Times as they are written.

    Returns:
        Numbers as they stand, or seconds since 1970 of text, int64 ``(N,)``, rounded
        down; and how each was written, a place in :data:`UNITS`, :data:`TEXT` or
        :data:`BAD`, uint8 ``(N,)``. Text without a time zone is taken as UTC.
    """
    found, text, known = _moments(array)
    written = np.where(text, np.uint8(TEXT), _units(found))
    written[~known] = BAD
    return found, written


def _moments(array: pa.Array) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Times, which were text, and which could be understood."""
    kind = array.type
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        known = np.asarray(array.is_valid())
        return _whole_seconds(array), known, known
    if not _is_text(array):
        if pa.types.is_integer(kind):
            found = np.asarray(_filled(array.cast(pa.int64(), safe=False), 0))
            return found, np.zeros(len(found), bool), np.asarray(array.is_valid())
        return _floored(np.asarray(_filled(array.cast(pa.float64()), np.nan)))
    try:
        found = np.asarray(_filled(array.cast(pa.int64()), 0))
    except pa.ArrowInvalid:
        return _from_text(pc.utf8_trim_whitespace(array))
    return found, np.zeros(len(found), bool), np.asarray(array.is_valid())


def seconds(text: str) -> int | None:
    """Seconds since 1970 of a date or of a number of seconds; ``None``: neither."""
    found, written = moments(pa.array([text], type=pa.string()))
    return int(found[0]) if written[0] != BAD else None


def _units(found: np.ndarray) -> np.ndarray:
    """Places in :data:`UNITS` of numbers, by their size, uint8 ``(N,)``."""
    limits = np.array([int(limit) for limit, _, _ in UNITS[:-1]], dtype=np.int64)
    absolute = np.abs(np.maximum(found, -LAST))
    return np.searchsorted(limits, absolute, side="right").astype(np.uint8)


def _floored(found: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    good = np.isfinite(found) & (np.abs(found) < LAST)
    whole = np.floor(np.where(good, found, 0)).astype(np.int64)
    return whole, np.zeros(len(found), bool), good


def _from_text(array: pa.Array) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    found = np.full(len(array), _NO_DATE)
    text = np.zeros(len(array), dtype=bool)

    def fill(
        pattern: str, dates: bool, convert: Callable[[pa.Array], np.ndarray]
    ) -> None:
        match = np.asarray(_filled(pc.match_substring_regex(array, pattern), False))
        if match.any():
            found[match] = convert(array.filter(pa.array(match)))
            text[match] = dates

    fill(NUMBER, False, lambda some: _floored(numbers(some))[0])
    for pattern, kind in ((LOCAL, pa.timestamp("ns")), (ZONED, _utc())):
        fill(pattern, True, lambda some, kind=kind: _dates(some, kind))
    known = found != _NO_DATE
    return np.where(known, found, 0), text, known


_NO_DATE = np.iinfo(np.int64).min


def _utc() -> pa.DataType:
    return pa.timestamp("ns", "UTC")


def _dates(array: pa.Array, kind: pa.DataType) -> np.ndarray:
    """Seconds of dates; those that no calendar has are halved down to and marked."""
    for unit in (kind, pa.timestamp("us", kind.tz)):
        try:
            return _whole_seconds(array.cast(unit))
        except pa.ArrowInvalid:
            continue
    if len(array) == 1:
        return np.array([_NO_DATE])
    half = len(array) // 2
    return np.concatenate([_dates(array[:half], kind), _dates(array[half:], kind)])


def _whole_seconds(array: pa.Array) -> np.ndarray:
    kind = array.type
    if pa.types.is_date(kind):
        array, kind = array.cast(pa.timestamp("s")), pa.timestamp("s")
    per = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[kind.unit]
    return np.asarray(_filled(array.cast(pa.int64()), 0)) // per


def _is_text(array: pa.Array) -> bool:
    return pa.types.is_string(array.type) or pa.types.is_large_string(array.type)


def _filled(array: pa.Array, value: float) -> pa.Array:
    return pc.fill_null(array, value) if array.null_count else array
