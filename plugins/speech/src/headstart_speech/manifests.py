"""Manifests: CSV, TSV and JSON-lines files with a clip in each row."""

from __future__ import annotations

import codecs
import csv
import io
import json
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from headstart.errors import Fault, nearest
from headstart_speech.audio_faults import ENDINGS, exists, expanded, shown
from headstart_speech.clips import Clip
from headstart_speech.columns import COMMON_VOICE, columns_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from headstart.data import Findings
    from headstart_speech.settings import AudioSettings

DELIMITERS = {".csv": ",", ".tsv": "\t"}
JSON_LINES = (".jsonl", ".ndjson", ".json")


@dataclass
class Table:
    """Records of a manifest with the line of each.

    Attributes:
        file: As the user named it.
        header: Column names.
        rows: Line, and values by column.
    """

    file: str
    header: list[str] = field(default_factory=list)
    rows: list[tuple[int, dict[str, Any]]] = field(default_factory=list)


def is_manifest(path: Path, settings: AudioSettings) -> bool:
    """Whether a file is one, by its ending, or because a separator is given."""
    known = {*DELIMITERS, *JSON_LINES}
    return path.suffix.lower() in known or bool(settings.delimiter)


def read_manifest(
    path: Path,
    settings: AudioSettings,
    findings: Findings,
    *,
    common_voice: bool = False,
) -> list[Clip]:
    """The clips that a manifest lists, their audio not yet looked at.

    Args:
        path: The file.
        settings: Names of columns; whether a transcript is needed.
        findings: Takes the faults.
        common_voice: Its columns are those of Common Voice, its files in ``clips/``
            where there is such a folder.
    """
    table = read_table(path, settings, findings)
    if table is None:
        return []
    columns = columns_of(table, settings, findings, common_voice=common_voice)
    if columns is None:
        return []
    root = path.parent
    if common_voice and (root / "clips").is_dir():
        root /= "clips"
    seen: dict[str, int] = {}
    clips = [
        _clip(table, line, record, columns, root, seen, findings)
        for line, record in table.rows
    ]
    return [clip for clip in clips if clip is not None]


def is_common_voice(path: Path, settings: AudioSettings) -> bool:
    """Whether a manifest's first line is that of Common Voice."""
    if path.suffix.lower() != ".tsv":
        return False
    try:
        with path.open("rb") as file:
            first = file.readline().decode("utf-8-sig", "replace")
    except OSError:
        # Whoever reads it says so.
        return False
    header = first.rstrip("\r\n").split("\t")
    asked = {settings.audio, getattr(settings, "text", "sentence")}
    return set(COMMON_VOICE.values()) <= set(header) and not (
        asked <= set(header) and asked != {"path", "sentence"}
    )


def read_table(path: Path, settings: AudioSettings, findings: Findings) -> Table | None:
    """The records of a file; ``None`` where it cannot be used at all."""
    text = read_text(path, settings.encoding, findings)
    if text is None:
        return None
    if path.suffix.lower() in JSON_LINES and not settings.delimiter:
        table = _json_lines(path, text, findings)
    else:
        # On a command line a tab is written as two characters.
        delimiter = settings.delimiter.replace(r"\t", "\t")
        delimiter = delimiter or DELIMITERS.get(path.suffix.lower(), ",")
        table = _delimited(path, text, delimiter, findings)
    file = shown(path)
    if table and not table.rows and not any(file == at[0] for at in findings.samples):
        why = "there is a header and no row below it"
        fix = "give a file with rows"
        findings.fatal.append(Fault("no clips", shown(path), why, fix))
    return table


def read_text(path: Path, encoding: str, findings: Findings) -> str | None:
    """A whole file as text; ``None`` and a fault where it is none."""
    where = shown(path)
    try:
        raw = path.read_bytes()
    except OSError as error:
        findings.fatal.append(Fault("cannot be read", where, str(error)))
        return None
    if not raw.strip():
        fix = "give a file with rows"
        findings.fatal.append(Fault("the file is empty", where, fix=fix))
        return None
    utf8 = encoding.lower().replace("_", "-") in ("utf-8", "utf8")
    try:
        return raw.decode("utf-8-sig" if utf8 else encoding)
    except LookupError:
        fix = nearest(encoding, ("utf-8", "utf-16", "latin-1", "cp1252"))
        fault = Fault(f"there is no encoding {encoding!r}", "data.encoding", fix=fix)
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        why = f"line {line} has the byte 0x{raw[error.start]:02x}"
        wide = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        other = "utf-16" if wide else "latin-1"
        fix = f'name its encoding, e.g. data.encoding="{other}"'
        fault = Fault(f"this is not {encoding} text", where, why, fix)
    except ValueError as error:
        fix = 'data.encoding="utf-8" or "latin-1"'
        fault = Fault(f"this is not {encoding} text", where, str(error), fix)
    findings.fatal.append(fault)
    return None


def _json_lines(path: Path, text: str, findings: Findings) -> Table | None:
    table = Table(shown(path))
    if text.lstrip().startswith("["):
        what, fix = "this is one JSON list", "write one object on each line"
        findings.fatal.append(Fault(what, table.file, fix=fix))
        return None
    header: dict[str, None] = {}
    # `splitlines` would cut at characters that JSON leaves inside a text.
    for line, content in enumerate(text.split("\n"), start=1):
        if not content.strip():
            continue
        record, why = None, "the line holds something else"
        try:
            record = json.loads(content)
        except (ValueError, RecursionError) as error:
            why = str(error)
        if isinstance(record, dict):
            table.rows.append((line, record))
            header.update(dict.fromkeys(record))
            continue
        what = f"not a JSON object: {content.strip()[:40]!r}"
        fix = 'write one object on each line: {"path": …, "text": …}'
        fault = Fault(what, f"{table.file}, line {line}", why, fix)
        findings.sample(table.file, line, fault)
    table.header = list(header)
    return table


def _delimited(
    path: Path, text: str, delimiter: str, findings: Findings
) -> Table | None:
    if len(delimiter) != 1 or delimiter in "\r\n":
        fix = 'give one character, e.g. data.delimiter=";"'
        what = f"{delimiter!r} cannot separate fields"
        findings.fatal.append(Fault(what, "data.delimiter", fix=fix))
        return None
    table = Table(shown(path))
    # Tab-separated transcripts have quotes of their own and never quote a field.
    quoting: Any = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting, strict=True
    )
    limit = csv.field_size_limit(len(text) + 1)
    try:
        line = 1
        while (fields := next(reader, None)) is not None:
            if not any(value.strip() for value in fields):
                pass
            elif not table.header:
                table.header = [name.strip() for name in fields]
                if fault := _undivided(table, delimiter):
                    findings.fatal.append(fault)
                    return None
            elif len(fields) == len(table.header):
                record = dict(zip(table.header, fields, strict=True))
                table.rows.append((line, record))
            else:
                findings.sample(table.file, line, _width(table, line, fields))
            line = reader.line_num + 1
    except csv.Error as error:
        why = "a double quote begins a field that ends at the next double quote"
        fix = "write a quote inside a field twice, or use tabs: they need no quotes"
        where = f"{table.file}, line {line}"
        findings.fatal.append(
            Fault(f"quotes that do not pair: {error}", where, why, fix)
        )
        return None
    finally:
        csv.field_size_limit(limit)
    return table


def _undivided(table: Table, delimiter: str) -> Fault | None:
    """A header that another separator divides: what follows would all be wrong."""
    if len(table.header) > 1:
        return None
    (name,) = table.header
    other = max(set(DELIMITERS.values()) | {";", "|"}, key=lambda c: (name.count(c), c))
    if not name.count(other):
        return None
    what = f"{delimiter!r} does not separate its columns"
    fix = f"name what does: data.delimiter={json.dumps(other)}"
    return Fault(what, f"{table.file}, header", f"it reads {name[:60]!r}", fix)


def _width(table: Table, line: int, fields: Sequence[str]) -> Fault:
    width, found = len(table.header), len(fields)
    few = "few" if found < width else "many"
    return Fault(
        f"too {few} fields: {found} of {width}",
        where=f"{table.file}, line {line}",
        why=f"the row begins {' | '.join(fields)[:60]!r}",
        fix="complete the row"
        if found < width
        else "put a text with separators in it between double quotes",
    )


def _clip(
    table: Table,
    line: int,
    record: dict[str, Any],
    columns: dict[str, str],
    root: Path,
    seen: dict[str, int],
    findings: Findings,
) -> Clip | None:
    place = f"{table.file}, line {line}"
    faults: list[Fault] = []
    values = {role: record.get(name) for role, name in columns.items()}
    name = _text(values["audio"])
    if not name:
        fix = "name the clip's file, or remove the row"
        faults.append(
            Fault(f"no audio file: {columns['audio']!r} is empty", place, fix=fix)
        )
    if "id" in values and not _text(values["id"]):
        fix = "give every row its own, or remove the column"
        faults.append(Fault(f"no id: {columns['id']!r} is empty", place, fix=fix))
    text: str | None = None
    if "text" in columns:
        said = values["text"]
        # A number that somebody said is written as digits.
        text = "" if said is None else str(said)
        if isinstance(said, bool | list | dict):
            fix = "write what is said between double quotes"
            what = f"{columns['text']!r} is no text: {json.dumps(said)[:40]}"
            faults.append(Fault(what, place, fix=fix))
    numbers = {
        role: _number(values.get(role), role, columns.get(role, ""), place, faults)
        for role in ("start", "end", "duration", "rate")
    }
    if numbers["duration"] is not None:
        numbers["end"] = (numbers["start"] or 0.0) + numbers["duration"]
    faults += _interval(numbers["start"], numbers["end"], place)
    identity = _text(values["id"]) if "id" in values else ""
    if identity and identity in seen:
        why = f"line {seen[identity]} has it already"
        fix = "give every row its own, or remove the column"
        faults.append(Fault(f"duplicate id: {identity!r}", place, why, fix))
    seen.setdefault(identity, line)
    for fault in faults:
        findings.sample(table.file, line, fault)
    if faults:
        return None
    rate = numbers["rate"]
    return Clip(
        id=identity,
        path=audio_path(root, name),
        start=numbers["start"],
        stop=numbers["end"],
        text=text,
        speaker=_text(values.get("speaker")) or None,
        where=(table.file, line),
        rate=None if rate is None else round(rate),
    )


def audio_path(root: Path, name: str) -> Path:
    """A file that a row names; Common Voice once left out the ending."""
    path = root / expanded(name)
    if path.suffix.lower() not in ENDINGS and not exists(path):
        with_ending = path.with_name(f"{path.name}.mp3")
        return with_ending if exists(with_ending) else path
    return path


def _text(value: Any) -> str:
    return "" if value is None else str(value).strip()


def _number(
    value: Any, role: str, column: str, place: str, faults: list[Fault]
) -> float | None:
    if value is None or not _text(value):
        return None
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if math.isfinite(number) and number >= 0:
        return number
    fix = f"write a number, or leave it empty; another column: data.{role}"
    what = f"{column!r} is no number from 0 on: {_text(value)[:40]!r}"
    faults.append(Fault(what, place, fix=fix))
    return None


def _interval(start: float | None, stop: float | None, place: str) -> list[Fault]:
    if stop is None or stop > (start or 0.0):
        return []
    what = f"it ends before it begins: from {start or 0:g} s to {stop:g} s"
    return [
        Fault(what, place, fix="start and end are seconds from the file's beginning")
    ]
