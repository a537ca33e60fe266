"""Which column of a manifest holds what: named by settings, or well known."""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from headstart.errors import Fault, closest
from headstart_speech.audio_faults import ENDINGS

if TYPE_CHECKING:
    from headstart.data import Findings
    from headstart_speech.manifests import Table
    from headstart_speech.settings import AudioSettings

OPTIONAL = ("id", "speaker", "start", "end", "rate")
COMMON_VOICE = {"audio": "path", "text": "sentence", "speaker": "client_id"}
"""Columns of Mozilla Common Voice's TSV files."""
USUAL = {"audio": "path", "text": "text", "speaker": "speaker"}
KNOWN = {
    "audio": ("audio_filepath", "file_name", "wav"),
    "text": ("transcription", "wrd"),
    "speaker": ("spk_id",),
}
"""Where the usual name is not there: columns of NeMo's manifests, of audio folders of
Hugging Face's datasets and of SpeechBrain's manifests, in this order."""
_SENTENCE = 5
"""So many words in one field are no column's name."""


def columns_of(
    table: Table, settings: AudioSettings, findings: Findings, *, common_voice: bool
) -> dict[str, str] | None:
    """Column by role; ``None`` where one that is needed is missing.

    Args:
        table: What was read.
        settings: Names of columns; whether a transcript is needed.
        findings: Takes the faults.
        common_voice: Its columns are those of Common Voice.

    Returns:
        ``audio``, ``text`` where it is needed, of :data:`OPTIONAL` those that are
        there, and ``duration`` where the end of a clip is told so.
    """
    if not table.header:
        return None
    needed = {"audio": settings.audio}
    if settings.kind == "transcription":
        needed["text"] = getattr(settings, "text")  # noqa: B009
    chosen = {role: getattr(settings, role) for role in OPTIONAL}
    if common_voice:
        needed = {role: COMMON_VOICE[role] for role in needed}
        chosen["speaker"] = chosen["speaker"] or COMMON_VOICE["speaker"]
    else:
        needed = {role: _known(table, role, name) for role, name in needed.items()}
        if not chosen["speaker"] and "speaker" not in table.header:
            speaker = _known(table, "speaker", "speaker")
            chosen["speaker"] = speaker if speaker in table.header else ""
    needed |= {role: name for role, name in chosen.items() if name}
    if needed["audio"] not in table.header and (fault := _headless(table)):
        findings.fatal.append(fault)
        return None
    faults = [
        fault for role, name in needed.items() for fault in _missing(table, role, name)
    ]
    findings.fatal.extend(faults)
    if faults:
        return None
    found = {r: r for r in OPTIONAL if not chosen[r] and table.header.count(r) == 1}
    if needed["audio"] == "audio_filepath" and not {"start", "end"} & {*found, *needed}:
        # NeMo says where a clip is in its file so; alone, the duration is the file's.
        nemo = {"start": "offset", "duration": "duration"}
        if set(nemo.values()) <= set(table.header):
            found |= nemo
    return found | needed


def _known(table: Table, role: str, name: str) -> str:
    """The column that is asked for, else the well-known one where there is just one."""
    if name in table.header or name != USUAL[role]:
        return name
    found = [known for known in KNOWN[role] if known in table.header]
    return found[0] if len(found) == 1 else name


def _headless(table: Table) -> Fault | None:
    """A first line that is a clip's."""
    if not any(
        _is_audio(name) or len(name.split()) >= _SENTENCE for name in table.header
    ):
        return None
    return Fault(
        "the header is missing: its first line has no names of columns",
        table.file,
        why=f"it reads {' | '.join(table.header)[:60]!r}",
        fix="write a line above it with the name of each column, such as path and text",
    )


def _missing(table: Table, role: str, name: str) -> list[Fault]:
    where = f"{table.file}, header"
    if table.header.count(name) > 1:
        fix = f"rename one, and say which with data.{role}"
        return [Fault(f"column {name!r} is there more than once", where, fix=fix)]
    if name in table.header:
        return []
    columns = ", ".join(map(repr, table.header[:20]))
    fix = f"say which column it is with data.{role}"
    if near := closest(name, table.header):
        fix = f"did you mean {near!r}? Then data.{role}={near}"
    elif guess := _guess(table, role):
        fix = f"say which column it is, e.g. data.{role}={guess}"
    what = f"there is no column {name!r} (data.{role})"
    return [Fault(what, where, f"its columns are {columns}", fix)]


def _guess(table: Table, role: str) -> str:
    """A column that may be meant, by well-known names and the first row."""
    for name in KNOWN.get(role, ()):
        if name in table.header:
            return name
    first = table.rows[0][1] if table.rows else {}
    row = {name: str(value) for name, value in first.items()}
    sounds = [name for name, value in row.items() if _is_audio(value)]
    if role == "audio":
        return sounds[0] if sounds else ""
    others = [name for name in row if name not in sounds and row[name].strip()]
    # What is said has the most characters.
    words = max(others, key=lambda name: len(row[name]), default="")
    return words if role == "text" else ""


def _is_audio(value: Any) -> bool:
    return PurePath(str(value).strip()).suffix.lower() in ENDINGS
