"""What the readers of all formats share: the table, its columns, decoded text."""

from __future__ import annotations

import codecs
import gzip
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from headstart.errors import Fault, nearest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from headstart.data import Findings


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


def missing_file(file: Path, key: str) -> Fault:
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


def empty(file: Path, why: str) -> Fault:
    return Fault("no samples", where=str(file), why=why, fix="give a file with rows")


def missing_columns(
    where: str, header: Sequence[str], wanted: Mapping[str, str]
) -> list[Fault]:
    """A fault for each wanted column that the header does not have exactly once."""
    faults = []
    names = ", ".join(repr(name) for name in header[:20])
    names += f" and {len(header) - 20} more" if len(header) > 20 else ""
    for role, name in wanted.items():
        setting, _, part = role.partition(":")
        if header.count(name) > 1:
            faults.append(
                Fault(
                    f"column {name!r} is there {header.count(name)} times",
                    where=where,
                    fix=f"rename one, and say which with data.{setting}",
                )
            )
        if name in header:
            continue
        same = [h for h in header if h.split() == name.split()]
        same = same or [h for h in header if _bare(h) == _bare(name)]
        near = nearest(name, header)
        if same and part:
            fix = f"write {{{same[0]}}} in data.{setting}, or rename the column"
        elif same:
            fix = f"set data.{role}={json.dumps(same[0], ensure_ascii=False)}"
            fix += ", or rename the column: they differ by case or space only"
        elif near.startswith("did"):
            fix = f"{near} then set data.{setting}"
        else:
            fix = f"say which column it is with data.{setting}"
        faults.append(
            Fault(
                f"there is no column {name!r} (data.{setting})",
                where=where,
                why=f"its columns are {names}",
                fix=fix,
            )
        )
    return faults


def _bare(name: str) -> str:
    return "".join(name.split()).casefold()


def read_text(file: Path, encoding: str, findings: Findings) -> str | None:
    """The whole file as text; undecodable bytes stay in it as lone surrogates."""
    raw = file.read_bytes()
    if file.suffix.lower() == ".gz":
        raw = gzip.decompress(raw)
    if not raw.strip():
        findings.fatal.append(empty(file, "the file is empty"))
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
