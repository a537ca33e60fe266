"""Files in blocks of columns: what is in memory at once is one block of text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.csv as arrow_csv

from headstart.errors import Fault
from headstart_recsys.formats import opened, shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from headstart.data import Findings
    from headstart_recsys.formats import Layout

BLOCK = 16 << 20
"""Bytes of text that are converted at once."""
ROWS = 1 << 18
"""Rows of a Parquet file that are converted at once."""
BUFFER = 1 << 20
"""Bytes of each of its columns that are read at once."""


class Refusing(Protocol):
    """Takes note of the lines that have too few or too many fields."""

    malformed: list[int]
    """Their numbers, so far."""

    def refuse(self, row: arrow_csv.InvalidRow) -> str:
        """``skip`` to go on without this line, ``error`` to give up."""


def blocks(
    file: Path,
    found: Layout,
    wanted: Mapping[str, str],
    refusing: Refusing,
    findings: Findings,
) -> Iterator[tuple[dict[str, pa.Array], np.ndarray]]:
    """Read a file piece by piece.

    Args:
        file: An existing one.
        found: How it is to be read.
        wanted: Names of columns by role; the file has them all.
        refusing: Told about malformed lines.
        findings: Takes columns of the wrong type.

    Yields:
        The wanted columns by role, and the line or row of each of their rows.
    """
    if found.delimiter:
        yield from _delimited(file, found, wanted, refusing)
        return
    import pyarrow.parquet as pq

    # As Arrow opens them, it would hold what it has read of a file until the end.
    with pq.ParquetFile(file, pre_buffer=False, buffer_size=BUFFER) as parquet:
        kinds = {
            name: parquet.schema_arrow.field(name).type for name in wanted.values()
        }
        wrong = [
            Fault(
                f"column {wanted[role]!r} is of type {kinds[wanted[role]]}",
                where=f"{shown(file)}, columns",
                fix=f"say which column it is with data.{role}",
            )
            for role in wanted
            if not _usable(role, kinds[wanted[role]])
        ]
        if wrong:
            findings.fatal += wrong
            return
        at = 1
        for batch in parquet.iter_batches(ROWS, columns=sorted(set(wanted.values()))):
            block = {
                role: _decoded(batch.column(name)) for role, name in wanted.items()
            }
            yield block, np.arange(at, at + len(batch))
            at += len(batch)


def _usable(role: str, kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    number = pa.types.is_integer(kind) or pa.types.is_floating(kind)
    date = pa.types.is_timestamp(kind) or pa.types.is_date(kind)
    return text or number or (role == "time" and date)


def _decoded(column: pa.Array) -> pa.Array:
    if isinstance(column, pa.DictionaryArray):
        column = column.dictionary_decode()
    kind = column.type
    return column.cast(pa.string()) if pa.types.is_large_string(kind) else column


def _delimited(
    file: Path, found: Layout, wanted: Mapping[str, str], refusing: Refusing
) -> Iterator[tuple[dict[str, pa.Array], np.ndarray]]:
    # Arrow takes one character: "a::b" has an empty field between two colons.
    step = len(found.delimiter)
    width = (len(found.header) - 1) * step + 1
    places = {role: found.header.index(name) * step for role, name in wanted.items()}
    columns = [f"c{place}" for place in sorted(set(places.values()))]
    stream = arrow_csv.open_csv(
        opened(file),
        read_options=arrow_csv.ReadOptions(
            column_names=[f"c{i}" for i in range(width)],
            skip_rows=found.skip,
            block_size=BLOCK,
        ),
        parse_options=arrow_csv.ParseOptions(
            delimiter=found.delimiter[0],
            quote_char='"' if _quoted(file) else False,
            invalid_row_handler=refusing.refuse,
            # An empty line is then a row of nothing, and lines can be counted.
            ignore_empty_lines=False,
        ),
        convert_options=arrow_csv.ConvertOptions(
            include_columns=columns,
            column_types=dict.fromkeys(columns, pa.string()),
            check_utf8=False,
        ),
    )
    at = found.skip + 1
    for batch in stream:
        numbers, at = _numbered(len(batch), at, refusing.malformed)
        columns_of = {r: batch.column(f"c{place}") for r, place in places.items()}
        blank = _blank(list(columns_of.values()))
        if blank.any():
            kept = pa.array(~blank)
            columns_of = {r: c.filter(kept) for r, c in columns_of.items()}
            numbers = numbers[~blank]
        yield columns_of, numbers


def _numbered(count: int, at: int, left_out: list[int]) -> tuple[np.ndarray, int]:
    """Lines of the next rows, and the line after them."""
    between = np.array([n for n in left_out[::-1] if n >= at], dtype=np.int64)
    numbers = np.arange(at, at + count + len(between))
    if len(between):
        numbers = numbers[~np.isin(numbers, between)][:count]
    return numbers, int(numbers[-1]) + 1 if count else at


def _blank(columns: list[pa.Array]) -> np.ndarray:
    """Rows in which every column is empty, bool ``(N,)``."""
    blank = np.ones(len(columns[0]), dtype=bool)
    for column in columns:
        if not blank.any():
            break
        offsets = np.frombuffer(column.buffers()[1], dtype=np.int32)
        blank &= np.diff(offsets[column.offset : column.offset + len(column) + 1]) == 0
    return blank


def _quoted(file: Path) -> bool:
    """Whether fields are put between quotes, judged by the beginning."""
    with opened(file) as stream:
        return b'"' in stream.read(1 << 20)
