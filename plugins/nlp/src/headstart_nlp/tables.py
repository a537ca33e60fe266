"""Tables of texts on disk: CSV, TSV, JSON lines, Parquet and ``datasets`` folders.

Everything that is wrong with a file is put into :class:`Findings`, with the line (text
formats, as an editor counts) or the row (binary ones, from 1); nothing stops at the
first fault. What the values mean is checked in ``checks.py``.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headstart.errors import Fault
from headstart_nlp.delimited import read_delimited
from headstart_nlp.files import (
    Table,
    empty,
    missing_columns,
    missing_file,
    read_text,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from headstart.data import Findings
    from headstart_nlp.settings import LanguageDataSettings, TableSettings

    Reading = TableSettings | LanguageDataSettings

DELIMITERS = {".csv": ",", ".tsv": "\t", ".tab": "\t", ".txt": "\t"}
JSON_LINES = (".jsonl", ".ndjson", ".json")
KNOWN = ".csv, .tsv, .txt, .jsonl, .parquet, a `datasets` folder; text also as .gz"
DATASET_FILES = ("dataset_dict.json", "state.json")


def read(
    path: str,
    key: str,
    wanted: Mapping[str, str],
    settings: Reading,
    findings: Findings,
) -> dict[str, Table]:
    """Read a file or a ``datasets`` folder.

    Args:
        path: As the user gave it.
        key: The setting that named it, e.g. ``data.path``.
        wanted: Columns by role; ``role:name`` for one of several that a setting names.
        settings: The format.
        findings: Takes the faults.

    Returns:
        Tables by split; ``{"train": …}`` for what has no splits of its own, and
        nothing where the file cannot be used at all.
    """
    file = Path(path).expanduser()
    try:
        if not file.exists():
            findings.fatal.append(missing_file(file, key))
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
            table = read_delimited(file, delimiter, settings, wanted, findings)
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


def _json_lines(
    file: Path, settings: Reading, wanted: Mapping[str, str], findings: Findings
) -> Table | None:
    text = read_text(file, settings.encoding, findings)
    if text is None:
        return None
    table = Table(str(file))
    records: list[tuple[int, dict[str, Any]]] = []
    shown = ", ".join(f'"{name}": …' for name in wanted.values())
    if text.lstrip().startswith("["):
        table.unit = "item"
        found = _json_list(file, text, findings)
        if found is None:
            return None
        lines: Iterator[tuple[int, Any]] = enumerate(found, start=1)
    else:
        numbered = enumerate(text.split("\n"), start=1)
        lines = ((i, line) for i, line in numbered if line.strip())
    for number, line in lines:
        table.total += 1
        record, why = line, f"the {table.unit} holds something else than an object"
        if table.unit == "line":
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
                f"not a JSON object: {str(line).strip()[:40]!r}",
                where=table.where(number),
                why=why,
                fix=f"write one object on each line: {{{shown}}}",
            ),
        )
    header = list(dict.fromkeys(key for _, record in records for key in record))
    missing = missing_columns(f"{file}, columns", header, wanted) if records else []
    findings.fatal.extend(missing)
    if missing:
        return None
    table.numbers = [number for number, _ in records]
    table.columns = {
        role: [record.get(name) for _, record in records]
        for role, name in wanted.items()
    }
    return table


def _json_list(file: Path, text: str, findings: Findings) -> list[Any] | None:
    try:
        found: list[Any] = json.loads(text)
    except (ValueError, RecursionError) as error:
        findings.fatal.append(
            Fault(
                "this is one JSON list that is broken",
                where=str(file),
                why=str(error),
                fix="mend it, or write one object on each line and no brackets",
            )
        )
        return None
    if not found:
        findings.fatal.append(empty(file, "the list is empty"))
        return None
    return found


def _parquet(file: Path, wanted: Mapping[str, str], findings: Findings) -> Table | None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        header = pq.read_schema(file).names
        missing = missing_columns(f"{file}, columns", header, wanted)
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
        findings.fatal.append(empty(file, "the table has no rows"))
        return None
    columns = {role: content[name].to_pylist() for role, name in wanted.items()}
    return _numbered(str(file), columns)


def _numbered(file: str, columns: dict[str, list[Any]]) -> Table:
    total = len(next(iter(columns.values())))
    return Table(file, "row", total, list(range(1, total + 1)), columns)


def is_datasets(folder: Path) -> bool:
    """Whether `datasets` wrote this folder."""
    return any((folder / name).is_file() for name in DATASET_FILES)


def _datasets(
    folder: Path, key: str, wanted: Mapping[str, str], findings: Findings
) -> dict[str, Table]:
    if not is_datasets(folder):
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
        missing = missing_columns(f"{name}, columns", part.column_names, wanted)
        findings.fatal.extend(missing)
        if missing:
            continue
        columns = {role: list(part[column]) for role, column in wanted.items()}
        for role, column in wanted.items():
            inner = getattr(part.features[column], "feature", part.features[column])
            if hasattr(inner, "int2str"):
                columns[role] = [_named(v, inner) for v in columns[role]]
        if len(part):
            tables[split] = _numbered(name, columns)
        else:
            findings.fatal.append(empty(Path(name), "the split has no rows"))
    return tables


def _named(value: Any, feature: Any) -> Any:
    """Class numbers as names; -1 is how `datasets` marks a label that is unknown."""
    if isinstance(value, list):
        return [_named(v, feature) for v in value]
    return feature.int2str(value) if value is not None and value >= 0 else None
