"""Documents to learn from: text files, folders of them, and columns of tables."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headstart.data import Findings
from headstart.errors import Fault
from headstart_nlp import checks, locations, tables
from headstart_nlp.files import missing_file, read_text
from headstart_nlp.settings import CorpusSettings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from headstart_nlp.files import Table
    from headstart_nlp.settings import LanguageDataSettings

TEXT = (".txt", ".text", ".md")
_CONTROL = re.compile("[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]")
_BINARY = 0.02
"""Share of control characters above which a file is no text; random bytes have 10 %."""


@dataclass(frozen=True, slots=True)
class Document:
    """What is learned from as a whole.

    Attributes:
        id: What it is called.
        content: A text, or the messages of a conversation; JSON-ready.
        where: File and line, for people.
    """

    id: str
    content: Any
    where: str

    @property
    def text(self) -> str:
        """All of it as one string."""
        if isinstance(self.content, str):
            return self.content
        return json.dumps(self.content, ensure_ascii=False)

    @property
    def key(self) -> str:
        """What makes two documents the same: their text but for case and spacing."""
        return " ".join(self.text.casefold().split())


def read_documents(
    path: str, key: str, settings: CorpusSettings, findings: Findings
) -> dict[str, list[Document]]:
    """Read a text file, a folder of them, or a table with a column of texts.

    Args:
        path: As the user gave it.
        key: The setting that named it, e.g. ``data.path``.
        settings: What a document is, column names and format.
        findings: Takes the faults.

    Returns:
        Documents by split; ``{"train": …}`` for what has no splits of its own, and
        nothing where it cannot be used at all.
    """
    file = Path(path).expanduser()
    if not file.exists():
        findings.fatal.append(missing_file(file, key))
        return {}
    if file.is_dir() and not any((file / n).is_file() for n in tables.DATASET_FILES):
        return _folder(file, key, settings, findings)
    table = settings.delimiter or settings.columns
    if file.is_file() and _ending(file) in TEXT and not table:
        try:
            return {"train": _text(file, file.name, settings, findings)}
        except (OSError, EOFError) as error:
            fault = Fault("cannot be read", where=str(file), why=str(error))
            findings.fatal.append(fault)
            return {}
    wanted = {"text": settings.text, "id": settings.id}
    wanted = {role: name for role, name in wanted.items() if name}
    found = tables.read(path, key, wanted, settings, findings)
    return {split: _column(part, findings) for split, part in found.items()}


def read_general(settings: LanguageDataSettings, findings: Findings) -> list[str]:
    """The texts of ``data.general``, read by what its asset or its ending says."""
    path = settings.general
    reading = locations.reading_of(path, CorpusSettings)
    general = CorpusSettings(name=settings.name, path=path, **reading)
    apart = Findings()
    found = read_documents(locations.file_of(path), "data.general", general, apart)
    # Bad documents of general text are not samples: they are left out, not settled.
    findings.fatal += apart.fatal
    texts = [document.content for part in found.values() for document in part]
    if not texts and not apart.fatal:
        fix = "name a text file, a table or an asset with text"
        findings.fatal.append(
            Fault("no document of it can be used", "data.general", fix=fix)
        )
    return texts


def _ending(file: Path) -> str:
    plain = file.with_suffix("") if file.suffix.lower() == ".gz" else file
    return plain.suffix.lower()


def _folder(
    folder: Path, key: str, settings: CorpusSettings, findings: Findings
) -> dict[str, list[Document]]:
    """Every text file below a folder; one that cannot be used is a bad sample."""
    files = [p for p in sorted(folder.rglob("*")) if p.is_file()]
    chosen = [p for p in files if _ending(p) in TEXT]
    if not chosen:
        inside = ", ".join(str(p.relative_to(folder)) for p in files[:8]) or "nothing"
        findings.fatal.append(
            Fault(
                f"no text file is in this folder ({', '.join(TEXT)})",
                where=str(folder),
                why=f"{key} names it; it has {inside}",
                fix="name one of its files, or a folder with text files",
            )
        )
        return {}
    documents: list[Document] = []
    for file in chosen:
        apart = Findings(samples=findings.samples)
        name = file.relative_to(folder).as_posix()
        try:
            documents += _text(file, name, settings, apart)
        except (OSError, EOFError) as error:
            apart.fatal.append(Fault("cannot be read", str(file), str(error)))
        for fault in apart.fatal:
            if fault.where == "data.encoding":
                findings.fatal.append(fault)
                return {}
            findings.sample(str(file), 0, fault)
    return {"train": documents}


def _text(
    file: Path, name: str, settings: CorpusSettings, findings: Findings
) -> list[Document]:
    text = read_text(file, settings.encoding, findings)
    if text is None:
        return []
    control = len(_CONTROL.findall(text[:65536]))
    if control > _BINARY * len(text[:65536]):
        why = f"{control} control characters are in its first {len(text[:65536]):,}"
        fix = "name text files; documents of other kinds must be converted first"
        findings.fatal.append(Fault("this is not text", str(file), why, fix))
        return []
    documents = []
    for line, content in _cut(text, settings.documents):
        bad = checks.undecoded_at(content)
        first = line if bad is None else line + content.count("\n", 0, bad)
        where = f"{file}, line {first}"
        faults = checks.text_faults("document", content, where)
        for fault in faults:
            findings.sample(str(file), line, fault)
        if not faults:
            whole = settings.documents == "file"
            documents.append(
                Document(name if whole else f"{name}:{line}", content, where)
            )
    return documents


def _cut(text: str, unit: str) -> Iterator[tuple[int, str]]:
    """Documents of a file, each with the line on which it begins."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    numbered = list(enumerate(lines, start=1))
    if unit == "line":
        yield from ((number, line.strip()) for number, line in numbered if line.strip())
        return
    if unit == "file":
        first = next((number for number, line in numbered if line.strip()), 1)
        yield first, "\n".join(lines).strip()
        return
    for blank, block in groupby(numbered, key=lambda each: not each[1].strip()):
        if not blank:
            held = list(block)
            yield held[0][0], "\n".join(line for _, line in held).strip()


def _column(table: Table, findings: Findings) -> list[Document]:
    documents = []
    identity = partial(checks.identity, table, {})
    for i, (number, text) in enumerate(
        zip(table.numbers, table.columns["text"], strict=True)
    ):
        where = table.where(number)
        name, faults = identity(i)
        faults += checks.text_faults("text", text, where)
        for fault in faults:
            findings.sample(table.file, number, fault)
        if not faults:
            documents.append(Document(name, text, where))
    return documents
