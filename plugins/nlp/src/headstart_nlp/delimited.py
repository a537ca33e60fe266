"""Separated values: CSV, TSV and their kin, with the line of every row."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from typing import TYPE_CHECKING

from headstart.errors import Fault
from headstart_nlp.files import Table, empty, missing_columns, read_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from headstart.data import Findings
    from headstart_nlp.tables import Reading


def read_delimited(
    file: Path,
    delimiter: str,
    settings: Reading,
    wanted: Mapping[str, str],
    findings: Findings,
) -> Table | None:
    if len(delimiter) != 1 or delimiter in "\r\n":
        findings.fatal.append(
            Fault(
                f"{delimiter!r} cannot separate fields",
                where="data.delimiter",
                fix='give one character, e.g. data.delimiter=";"',
            )
        )
        return None
    text = read_text(file, settings.encoding, findings)
    if text is None:
        return None
    table = Table(str(file))
    rows = _records(text, delimiter, settings.quoting, table, findings)
    if settings.columns:
        header = list(settings.columns)
    else:
        header = rows.pop(0)[1] if rows else []
    hint = _other_delimiter(text, delimiter, header, wanted)
    origin = "data.columns" if settings.columns else f"{file}, header"
    missing = missing_columns(origin, header, wanted)
    if missing and hint:
        what = f"{delimiter!r} does not separate the fields"
        why = f"it gives the columns {', '.join(map(repr, header))}"
        missing = [Fault(what, origin, why[:200], hint)]
    elif missing and not settings.columns and len(missing) == len(wanted):
        hint = 'if the first line is no header: data.columns=["…", "…"]'
        missing = [replace(f, fix=f"{f.fix}; {hint}") for f in missing]
    findings.fatal.extend(missing)
    if not rows and not missing and not table.total:
        findings.fatal.append(empty(file, "there is a header and no row below it"))
    if missing or not rows:
        return None
    width = len(header)
    if all(len(fields) != width for _, fields in rows):
        found = len(rows[0][1])
        findings.fatal.append(
            Fault(
                f"no row has as many fields as {origin}: {width}",
                where=table.where(rows[0][0]),
                why=f"{found} found: {', '.join(map(repr, rows[0][1]))[:120]}",
                fix=hint or f"check data.delimiter, now {delimiter!r}, and {origin}",
            )
        )
        return None
    places = {role: header.index(name) for role, name in wanted.items()}
    table.columns = {role: [] for role in wanted}
    table.total += len(rows)
    for number, fields in rows:
        if len(fields) == width:
            table.numbers.append(number)
            for role, place in places.items():
                table.columns[role].append(fields[place])
            continue
        few = len(fields) < width
        mend = f"put text that has {delimiter!r} in it between double quotes"
        findings.sample(
            str(file),
            number,
            Fault(
                f"too {'few' if few else 'many'} fields: {len(fields)} of {width}",
                where=table.where(number),
                why=f"the row begins {(delimiter.join(fields))[:60]!r}",
                fix="complete or remove the row" if few else mend,
            ),
        )
    return table


def _records(
    text: str, delimiter: str, quoting: bool, table: Table, findings: Findings
) -> list[tuple[int, list[str]]]:
    """Records with the line on which each begins; blank lines are no records."""
    reader = csv.reader(
        io.StringIO(text, newline=""),
        delimiter=delimiter,
        quoting=csv.QUOTE_MINIMAL if quoting else csv.QUOTE_NONE,
        strict=True,
    )
    records: list[tuple[int, list[str]]] = []
    # A field may be as long as the file; the limit is the csv module's, so put it back.
    limit = csv.field_size_limit(len(text) + 1)
    try:
        while True:
            line = reader.line_num + 1
            try:
                fields = next(reader)
            except StopIteration:
                return records
            except csv.Error as error:
                unclosed = "end of data" in str(error)
                fault = Fault(
                    "a quote is opened and never closed"
                    if unclosed
                    else f"quotes that do not pair: {error}",
                    where=table.where(line),
                    why="a double quote begins a quoted field that ends at the next",
                    fix="write a quote inside a field twice, "
                    "or data.quoting=false if quotes are plain text",
                )
                if unclosed:  # everything below has gone into this field
                    findings.fatal.append(fault)
                    return records
                table.total += 1
                findings.sample(table.file, line, fault)
                continue
            if any(f.strip() for f in fields) or len(fields) > 1:
                records.append((line, fields))
    finally:
        csv.field_size_limit(limit)


def _other_delimiter(
    text: str, delimiter: str, header: Sequence[str], wanted: Mapping[str, str]
) -> str:
    """The fix, when another separator gives what this one does not."""
    first = text.split("\n", 1)[0].rstrip("\r")
    names = {name.strip().casefold() for name in wanted.values()}
    if names <= {h.strip().casefold() for h in header} and len(
        next(csv.reader([first], delimiter=delimiter))
    ) == len(header):
        return ""
    for other in ",;\t|":
        fields = [
            f.strip().casefold() for f in next(csv.reader([first], delimiter=other))
        ]
        named = names <= set(fields) or names <= {h.strip().casefold() for h in header}
        if other != delimiter and named and len(fields) > 1:
            return f"the separator is {other!r}: data.delimiter={json.dumps(other)}"
    return ""
