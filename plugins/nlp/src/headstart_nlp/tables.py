"""Tables of texts on disk: CSV, TSV, JSON lines, Parquet and ``datasets`` folders.

Everything that is wrong with a file is put into :class:`Findings`, with the line (text
formats, as an editor counts) or the row (binary ones, from 1); nothing stops at the
first fault. What the values mean is checked in ``checks.py``.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headstart.errors import Fault, nearest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from headstart.data import Findings
    from headstart_nlp.settings import TableSettings

DELIMITERS = {".csv": ",", ".tsv": "\t", ".tab": "\t", ".txt": "\t"}
JSON_LINES = (".jsonl", ".ndjson", ".json")
KNOWN = ".csv, .tsv, .txt, .jsonl, .parquet, a `datasets` folder; text also as .gz"
DATASET_FILES = ("dataset_dict.json", "state.json")


@dataclass
class Table:
    """The columns that were asked for.

    Attributes:
        file: The file as the user named it.
        unit: What ``numbers`` count: ``line`` or ``row``.
        total: Samples in the file, unreadable ones included.
        numbers: Line or row of each sample.
        columns: Values by role (``text``, ``label`` …), one per sample.
    """

    file: str
    unit: str = "line"
    total: int = 0
    numbers: list[int] = field(default_factory=list)
    columns: dict[str, list[Any]] = field(default_factory=dict)

    def where(self, number: int) -> str:
        return f"{self.file}, {self.unit} {number}"


def read(
    path: str, key: str, settings: TableSettings, findings: Findings
) -> dict[str, Table]:
    """Read a file or a ``datasets`` folder.

    Args:
        path: As the user gave it.
        key: The setting that named it, e.g. ``data.path``.
        settings: Column names and format.
        findings: Takes the faults.

    Returns:
        Tables by split; ``{"train": …}`` for what has no splits of its own, and
        nothing where the file cannot be used at all.
    """
    roles = {"text": settings.text, "pair": settings.pair, "label": settings.label}
    wanted = {
        role: name for role, name in {**roles, "id": settings.id}.items() if name
    }
    file = Path(path).expanduser()
    try:
        if not file.exists():
            findings.fatal.append(_missing(file, key))
            return {}
        if file.is_dir():
            return _datasets(file, key, wanted, findings)
        endings = [s.lower() for s in file.suffixes[-2:]] or [""]
        ending = endings[-2] if endings[-1] == ".gz" and endings[1:] else endings[-1]
        if ending == ".parquet":
            table = _parquet(file, wanted, findings)
        elif ending in JSON_LINES and not settings.delimiter:
            table = _json_lines(file, settings, wanted, findings)
        elif settings.delimiter or ending in DELIMITERS:
            delimiter = settings.delimiter or DELIMITERS[ending]
            table = _delimited(file, delimiter, settings, wanted, findings)
        else:
            findings.fatal.append(
                Fault(
                    f"the format of {file.name!r} is not known by its ending",
                    where=key,
                    why=f"known: {KNOWN}",
                    fix='name the separator if it is text: data.delimiter=","',
                )
            )
            return {}
    except (OSError, EOFError, zlib.error) as error:
        findings.fatal.append(Fault("cannot be read", where=str(file), why=str(error)))
        return {}
    return {"train": table} if table else {}


def _missing(file: Path, key: str) -> Fault:
    folder = file.parent
    if not folder.is_dir():
        return Fault("there is no such file", str(file), f"no folder {folder}", key)
    beside = [p.name for p in folder.iterdir() if not p.name.startswith(".")]
    return Fault(
        "there is no such file",
        where=str(file),
        why=f"{key} names it; {str(folder.resolve())!r} has no {file.name!r}",
        fix=nearest(file.name, beside) or "give the path of an existing file",
    )


def _empty(file: Path, why: str) -> Fault:
    return Fault("no samples", where=str(file), why=why, fix="give a file with rows")


def _missing_columns(
    file: str, header: Sequence[str], wanted: Mapping[str, str], hint: str = ""
) -> list[Fault]:
    """A fault for each wanted column that the header does not have exactly once."""
    faults = []
    names = ", ".join(repr(name) for name in header[:20])
    names += f" and {len(header) - 20} more" if len(header) > 20 else ""
    for role, name in wanted.items():
        if header.count(name) > 1:
            faults.append(
                Fault(
                    f"column {name!r} is there {header.count(name)} times",
                    where=f"{file}, header",
                    fix=f"rename one, and say which with data.{role}",
                )
            )
        if name in header:
            continue
        same = [h for h in header if h.split() == name.split()]
        same = same or [
            h for h in header if "".join(h.split()).casefold() == name.casefold()
        ]
        near = nearest(name, header)
        if same:
            fix = f"set data.{role}={json.dumps(same[0], ensure_ascii=False)}"
            fix += ", or rename the column: they differ by case or space only"
        elif near.startswith("did"):
            fix = f"{near} then set data.{role}"
        else:
            fix = f"say which column it is with data.{role}"
        faults.append(
            Fault(
                f"there is no column {name!r} (data.{role})",
                where=f"{file}, header",
                why=f"its columns are {names}",
                fix="; ".join(part for part in (hint, fix) if part),
            )
        )
    return faults


def _text(file: Path, encoding: str, findings: Findings) -> str | None:
    """The whole file as text; undecodable bytes stay in it as lone surrogates."""
    raw = file.read_bytes()
    if file.suffix.lower() == ".gz":
        raw = gzip.decompress(raw)
    if not raw.strip():
        findings.fatal.append(_empty(file, "the file is empty"))
        return None
    fault: Fault | None = None
    wide = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    if encoding.lower().replace("_", "-") in ("utf-8", "utf8"):
        encoding = "utf-8-sig"
        if wide or raw[:4096].count(0) > len(raw[:4096]) // 5:
            fault = Fault(
                "this is not UTF-8 text",
                where=str(file),
                why="it is full of NUL bytes, as UTF-16 and binary files are",
                fix='data.encoding="utf-16" if it is text',
            )
    if fault is None:
        try:
            return raw.decode(encoding, errors="surrogateescape")
        except LookupError:
            fault = Fault(
                f"there is no encoding {encoding!r}",
                where="data.encoding",
                fix=nearest(encoding, ("utf-8", "utf-16", "latin-1", "cp1252")),
            )
        except UnicodeError as error:
            fault = Fault(
                f"this is not {encoding} text",
                where=str(file),
                why=str(error),
                fix='data.encoding="utf-8" or "latin-1"',
            )
    findings.fatal.append(fault)
    return None


def _delimited(
    file: Path,
    delimiter: str,
    settings: TableSettings,
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
    text = _text(file, settings.encoding, findings)
    if text is None:
        return None
    table = Table(str(file))
    rows = _records(text, delimiter, settings.quoting, table, findings)
    if settings.columns:
        header, origin = list(settings.columns), "data.columns"
    else:
        header, origin = (rows.pop(0)[1] if rows else []), "the header"
    hint = _other_delimiter(text, delimiter, header, wanted)
    if not settings.columns:
        if not hint and not set(wanted.values()) & set(header):
            hint = 'if the first line is no header: data.columns=["…", "…"]'
        missing = _missing_columns(str(file), header, wanted, hint)
    else:
        missing = _missing_columns("data.columns", header, wanted)
    findings.fatal.extend(missing)
    if not rows and not missing and not findings.samples:
        findings.fatal.append(_empty(file, "there is a header and no row below it"))
    if missing or not rows:
        return None
    width = len(header)
    if all(len(fields) != width for _, fields in rows):
        found = len(rows[0][1])
        findings.fatal.append(
            Fault(
                f"no row has the {width} fields that {origin} names",
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
        fields = [f.strip().casefold() for f in next(csv.reader([first], delimiter=other))]
        named = names <= set(fields) or names <= {h.strip().casefold() for h in header}
        if other != delimiter and named and len(fields) > 1:
            return f"the separator is {other!r}: data.delimiter={json.dumps(other)}"
    return ""


def _json_lines(
    file: Path, settings: TableSettings, wanted: Mapping[str, str], findings: Findings
) -> Table | None:
    text = _text(file, settings.encoding, findings)
    if text is None:
        return None
    if text.lstrip().startswith("["):
        findings.fatal.append(
            Fault(
                "this is one JSON list, not JSON lines",
                where=str(file),
                why='every line must hold one object: {"text": …, "label": …}',
                fix=f"write it again as JSON lines: jq -c '.[]' {file.name}",
            )
        )
        return None
    table = Table(str(file))
    records: list[tuple[int, dict[str, Any]]] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        table.total += 1
        why = "the line holds something else than an object"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            record, why = None, str(error)
        if isinstance(record, dict):
            records.append((number, record))
            continue
        findings.sample(
            str(file),
            number,
            Fault(
                f"not a JSON object: {line.strip()[:40]!r}",
                where=table.where(number),
                why=why,
                fix='write one object on each line: {"text": …, "label": …}',
            ),
        )
    header = list(dict.fromkeys(key for _, record in records for key in record))
    missing = _missing_columns(str(file), header, wanted) if records else []
    findings.fatal.extend(missing)
    if missing:
        return None
    table.numbers = [number for number, _ in records]
    table.columns = {
        role: [record.get(name) for _, record in records]
        for role, name in wanted.items()
    }
    return table


def _parquet(
    file: Path, wanted: Mapping[str, str], findings: Findings
) -> Table | None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        header = pq.read_schema(file).names
        missing = _missing_columns(str(file), header, wanted)
        findings.fatal.extend(missing)
        if missing:
            return None
        content = pq.read_table(file, columns=list(dict.fromkeys(wanted.values())))
    except (pa.ArrowException, OSError) as error:
        findings.fatal.append(
            Fault(
                "this is not a whole Parquet file",
                where=str(file),
                why=str(error).split("\n", 1)[0],
                fix="write or download it again",
            )
        )
        return None
    if not content.num_rows:
        findings.fatal.append(_empty(file, "the table has no rows"))
        return None
    columns = {role: content[name].to_pylist() for role, name in wanted.items()}
    return _numbered(str(file), columns)


def _numbered(file: str, columns: dict[str, list[Any]]) -> Table:
    total = len(columns["text"])
    return Table(file, "row", total, list(range(1, total + 1)), columns)


def _datasets(
    folder: Path, key: str, wanted: Mapping[str, str], findings: Findings
) -> dict[str, Table]:
    if not any((folder / name).is_file() for name in DATASET_FILES):
        files = sorted(p.name for p in folder.iterdir() if p.is_file())
        inside = ", ".join(files[:8]) or "nothing"
        findings.fatal.append(
            Fault(
                "this folder was not written by `datasets`",
                where=str(folder),
                why=f"{key} names a folder without {' or '.join(DATASET_FILES)}; "
                f"it has {inside}",
                fix="name a file in it, or a folder made by `save_to_disk`",
            )
        )
        return {}
    try:
        import datasets
    except ImportError:
        findings.fatal.append(
            Fault(
                "the library `datasets` is not installed",
                where=str(folder),
                why="it reads such folders",
                fix="pip install 'headstart-nlp[datasets]'",
            )
        )
        return {}
    try:
        loaded = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError) as error:
        why = f"{type(error).__name__}: {error}"
        findings.fatal.append(
            Fault("this `datasets` folder cannot be read", str(folder), why)
        )
        return {}
    parts = dict(loaded) if isinstance(loaded, dict) else {"train": loaded}
    if "train" not in parts:
        findings.fatal.append(
            Fault(
                "there is no split 'train'",
                where=str(folder),
                why=f"its splits are {', '.join(map(str, parts))}",
                fix="save it again with splits train, validation and test",
            )
        )
        return {}
    tables = {}
    for split in ("train", "validation", "test"):
        if split not in parts:
            continue
        part, name = parts[split], str(folder if len(parts) == 1 else folder / split)
        missing = _missing_columns(name, part.column_names, wanted)
        findings.fatal.extend(missing)
        if missing:
            continue
        columns = {role: list(part[column]) for role, column in wanted.items()}
        feature = part.features[wanted["label"]]
        inner = getattr(feature, "feature", feature)
        if hasattr(inner, "int2str"):
            columns["label"] = [_named(v, inner) for v in columns["label"]]
        if columns["text"]:
            tables[split] = _numbered(name, columns)
        else:
            findings.fatal.append(_empty(Path(name), "the split has no rows"))
    return tables


def _named(value: Any, feature: Any) -> Any:
    """Class numbers as names; -1 is how `datasets` marks a label that is unknown."""
    if isinstance(value, list):
        return [_named(v, feature) for v in value]
    return feature.int2str(value) if value is not None and value >= 0 else None
