"""Ids to codes: a column of them, block by block, and what is wrong with some."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headstart.errors import Fault
from headstart_recsys.arrays import Growing

if TYPE_CHECKING:
    from collections.abc import Callable

    from headstart_recsys.checks import RowFaults

NOTHING = ("", "nan", "NaN", "None", "null", "NULL", "<NA>")
"""What other programs write where there is no id."""
INTEGER = r"^[+-]?\d+$"
FLOAT = r"^[+-]?(\d+\.\d*|\.\d+|\d+(\.\d+)?[eE][+-]?\d+)$"
OPEN_QUOTE = "a quote is opened and not closed in its line"
QUOTES = (
    "a double quote begins a field that ends at the next one, maybe many lines below",
    "remove the quote, or write it twice",
)
"""Why and fix of such a quote."""
EXACT = 2.0**53
"""From here on float64 no longer tells all integers apart."""
_REPAIR = "write the ids as text or as integers"


class Ids:
    """Codes of the ids in one column, by first appearance.

    Args:
        role: What has these ids: ``user``, ``item`` or ``session``.
    """

    def __init__(self, role: str) -> None:
        self.role = role
        self._known = pa.array([], type=pa.string())
        self._codes = Growing(np.int32)

    def add(self, column: pa.Array) -> None:
        """Take the next block of the column; nulls are missing ids."""
        block = column.dictionary_encode()
        texts = _as_text(block.dictionary)
        places = pc.index_in(texts, value_set=self._known)
        fresh = np.asarray(places.is_null())
        table = np.asarray(pc.fill_null(places, 0)).astype(np.int32)
        # Two numbers of a block may be one text (2 and 2.0), so ask again.
        new = texts.filter(pa.array(fresh)).unique()
        self._known = pa.concat_arrays([self._known, new])
        if len(new):
            places = pc.index_in(texts, value_set=self._known)
            table = np.asarray(places).astype(np.int32)
        codes = np.asarray(pc.fill_null(block.indices, -1))
        # Code -1 takes the row that is appended here.
        self._codes.add(np.append(table, np.int32(-1))[codes])

    def finish(
        self, faults: RowFaults, numbers: np.ndarray
    ) -> tuple[np.ndarray, list[str]]:
        """All codes, and the ids that they stand for.

        Args:
            faults: Takes what is wrong.
            numbers: Line or row of each event, in order.

        Returns:
            Codes, int32 ``(N,)``, -1 where there is no valid id; ids by code.
        """
        codes = self._codes.finish()
        texts, wrong = self._decoded()
        if (missing := codes < 0).any():
            faults.add(f"no {self.role} id", numbers[missing], fix="complete the row")
        self._mixed(texts, wrong, codes)
        for what, (bad, why, fix) in wrong.items():
            rows = np.flatnonzero(bad[codes] & (codes >= 0)) if bad.any() else ()
            if len(rows):
                name = _namer(texts, codes[rows])
                faults.add(what.format(role=self.role), numbers[rows], name, why, fix)
        bad = np.zeros(len(texts), dtype=bool)
        for some, _, _ in wrong.values():
            bad |= some
        texts = self._plain(texts, bad, faults)
        return _recoded(codes, texts, bad)

    def _decoded(self) -> tuple[pa.Array, dict[str, tuple[np.ndarray, str, str]]]:
        """Ids as clean text, and which of them cannot be ids at all."""
        raw = self._known
        broken = np.zeros(len(raw), dtype=bool)
        try:
            raw.validate(full=True)
        except pa.ArrowInvalid:
            values = raw.cast(pa.binary()).to_pylist()
            decoded = [value.decode("utf-8", errors="replace") for value in values]
            broken = np.array(["\ufffd" in text for text in decoded], dtype=bool)
            raw = pa.array(decoded, type=pa.string())
        texts = pc.utf8_trim_whitespace(raw)
        nothing = np.asarray(pc.is_in(texts, value_set=pa.array(NOTHING)))
        lines = np.asarray(pc.match_substring(raw, "\n"))
        return texts, {
            "no {role} id": (nothing, "", "complete the row"),
            "{role} id is not UTF-8": (
                broken,
                "it was written in another encoding",
                "save the file as UTF-8",
            ),
            OPEN_QUOTE: (lines, *QUOTES),
        }

    def _mixed(
        self,
        texts: pa.Array,
        wrong: dict[str, tuple[np.ndarray, str, str]],
        codes: np.ndarray,
    ) -> None:
        """Mark ids that are numbers of another kind than the rest."""
        bad = np.logical_or.reduce([some for some, _, _ in wrong.values()])
        floats = np.asarray(pc.match_substring_regex(texts, FLOAT)) & ~bad
        if not floats.any():
            return
        integers = np.asarray(pc.match_substring_regex(texts, INTEGER)) & ~bad
        kind = "{role} id is a fraction"
        if (floats | integers | bad).all():
            values = np.full(len(texts), np.nan)
            values[floats] = _numbers(texts.filter(pa.array(floats)))
            fraction = floats & ~((values % 1 == 0) & (np.abs(values) < EXACT))
            whole = floats & ~fraction
            why = "ids are names: rounding would make two of them one"
            wrong[kind] = (fraction, why, f"{_REPAIR}; is this the right column?")
            if not (integers.any() and whole.any()):
                return
            counts = np.bincount(codes[codes >= 0], minlength=len(texts))
            rarer = integers
            if counts[whole].sum() <= counts[integers].sum():
                rarer = whole
            why = "some ids are integers and some have a decimal point, as happens when"
            why += " a column with gaps was saved as floats; 42 and 42.0 are two names"
        else:
            twins = pc.replace_substring_regex(texts, r"\.0*$", "")
            rarer = floats & np.asarray(pc.is_in(twins, value_set=texts))
            why = "there is the same id without decimal point as well"
        wrong["{role} ids of two kinds"] = (rarer, why, f"{_REPAIR} everywhere")

    def _plain(self, texts: pa.Array, bad: np.ndarray, faults: RowFaults) -> pa.Array:
        """Whole numbers without decimal point, and warnings about look-alikes."""
        warnings = faults.findings.warnings
        floats = np.asarray(pc.match_substring_regex(texts, FLOAT)) & ~bad
        if len(texts) and floats.any() and (floats | bad).all():
            values = _numbers(texts.filter(pa.array(floats))).astype(np.int64)
            plain = pa.array(values).cast(pa.string())
            example = texts.filter(pa.array(floats))[0]
            texts = pc.replace_with_mask(texts, pa.array(floats), plain)
            what = f"all {self.role} ids are written as floats ({example})"
            why = f"they are read as integers, e.g. {plain[0]}"
            warnings.append(Fault(what, faults.file, why))
        integers = np.asarray(pc.match_substring_regex(texts, INTEGER)) & ~bad
        some = texts.filter(pa.array(integers)).unique()
        bare = pc.utf8_ltrim(some, "0")
        if twins := len(some) - len(bare.unique()):
            again = pc.value_counts(bare)
            twice = again.filter(pc.greater(pc.struct_field(again, "counts"), 1))
            one = twice.field("values")[0]
            both = some.filter(pc.equal(bare, one)).to_pylist()[:2]
            what = f"{self.role} ids that differ in leading zeros only: {twins}"
            why = f"{both[0]!r} and {both[1]!r} are taken as two"
            fix = "write them in one way if they are the same"
            warnings.append(Fault(what, faults.file, why, fix))
        return texts


def _as_text(values: pa.Array) -> pa.Array:
    kind = values.type
    if pa.types.is_floating(kind):
        numbers = np.asarray(values.cast(pa.float64()))
        whole = (numbers % 1 == 0) & (np.abs(numbers) < EXACT)
        texts = values.cast(pa.string())
        plain = pa.array(numbers[whole].astype(np.int64)).cast(pa.string())
        return pc.replace_with_mask(texts, pa.array(whole), plain)
    return values.cast(pa.string())


def _numbers(texts: pa.Array) -> np.ndarray:
    return np.asarray(pc.utf8_ltrim(texts, "+").cast(pa.float64()))


def _namer(texts: pa.Array, codes: np.ndarray) -> Callable[[int], str]:
    def name(i: int) -> str:
        text = texts[int(codes[i])].as_py()
        return repr(text if len(text) <= 60 else f"{text[:59]}…")

    return name


def _recoded(
    codes: np.ndarray, texts: pa.Array, bad: np.ndarray
) -> tuple[np.ndarray, list[str]]:
    """One code for one text, none for bad ones, still by first appearance."""
    kept = texts.filter(pa.array(~bad)).unique()
    if len(kept) == len(texts):
        return codes, kept.to_pylist()
    table = np.asarray(pc.fill_null(pc.index_in(texts, value_set=kept), -1))
    table = np.where(bad, -1, table).astype(np.int32)
    return np.append(table, np.int32(-1))[codes], kept.to_pylist()
