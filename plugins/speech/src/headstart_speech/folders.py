"""Folders of audio: LibriSpeech, Common Voice, plain files, and Asterisk's prompts."""

from __future__ import annotations

import gzip
import json
import os
import re
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from headstart.errors import DataError, Fault
from headstart_speech.audio_faults import ENDINGS, shown
from headstart_speech.clips import Clip
from headstart_speech.manifests import read_manifest, read_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from headstart.data import Findings, Split
    from headstart_speech.settings import AudioSettings

TRANSCRIPTS = ".trans.txt"
TABLES = (".csv", ".tsv", ".jsonl", ".ndjson")
"""Endings of files in a folder that are taken for manifests."""
COMMON_VOICE_FILES: dict[Split, str] = {
    "train": "train.tsv",
    "validation": "dev.tsv",
    "test": "test.tsv",
}
_LIBRISPEECH_SPLITS: tuple[tuple[str, Split], ...] = (
    ("train", "train"),
    ("dev", "validation"),
    ("test", "test"),
)


def walk(root: Path) -> Iterator[Path]:
    """The files below a folder in order, without the system's own.

    Raises:
        DataError: A folder in it may not be read.
    """
    known: set[str] = set()
    for place, folders, names in os.walk(root, onerror=_closed, followlinks=True):
        # A link may lead to a folder that was seen, or to the one that it is in.
        if (real := os.path.realpath(place)) in known:
            folders.clear()
            continue
        known.add(real)
        folders[:] = sorted(n for n in folders if n[0] != "." and n != "__MACOSX")
        yield from (Path(place, name) for name in sorted(names) if name[0] != ".")


def _closed(error: OSError) -> None:
    what, why = "the folder cannot be read", str(error.strerror)
    raise DataError(what, where=shown(error.filename), why=why) from error


def audio_files(root: Path) -> list[Path]:
    """The files of a folder that have the ending of audio, sorted."""
    return [path for path in walk(root) if path.suffix.lower() in ENDINGS]


def layout(root: Path) -> str:
    """``librispeech``, ``common-voice`` (the folder of a language) or ``folder``."""
    if any(path.name.endswith(TRANSCRIPTS) for path in walk(root)):
        return "librispeech"
    return "common-voice" if _is_common_voice(root) else "folder"


def _is_common_voice(root: Path) -> bool:
    return (root / "clips").is_dir() and any(root.glob("*.tsv"))


def manifests_in(root: Path) -> list[Path]:
    """What else in a folder could be read: manifests, and folders of Common Voice."""
    tables = [path for path in walk(root) if path.suffix.lower() in TABLES]
    voices = {place: _is_common_voice(place) for place in {p.parent for p in tables}}
    return list(dict.fromkeys(p.parent if voices[p.parent] else p for p in tables))


def several(paths: Iterable[Path]) -> str:
    """How to name several paths on a command line."""
    names = json.dumps([*map(shown, paths)], ensure_ascii=False)
    return f"'data.path={names}'"


_TAKEN = {
    "librispeech": "its LibriSpeech part",
    "common-voice": "its Common Voice part",
    "folder": "its audio files that have a .txt file beside them",
}


def left_over(
    root: Path,
    clips: Sequence[Clip],
    named: Sequence[Path],
    settings: AudioSettings,
) -> Fault | None:
    """What lies in a folder beside the layout that was read, and is in no clip.

    Args:
        root: A folder whose layout was told by a look.
        clips: The clips of all paths.
        named: All paths that are read.
        settings: Whether transcripts are needed.
    """
    kind = layout(root)
    known = {clip.path for clip in clips}
    sounds, places = [], []
    if kind != "folder":
        sounds = [path for path in audio_files(root) if path not in known]
    if kind == "common-voice":
        # What is not validated, or not in the split, is left by those who made it.
        sounds = [path for path in sounds if not path.is_relative_to(root / "clips")]
    if settings.kind == "transcription":
        places = [path for path in manifests_in(root) if path not in (root, *named)]
    if not sounds and not places:
        return None
    left = [shown(path) for path in places[:3]]
    if len(places) > 3:
        left[-1] += " …"
    if sounds:
        files = "1 audio file" if len(sounds) == 1 else f"{len(sounds)} audio files"
        left.append(f"{files} ({shown(sounds[0])}{' …' * (len(sounds) > 1)})")
    inside = [place if place.is_dir() else place.parent for place in places]
    rest = [p for p in sounds if not any(p.is_relative_to(place) for place in inside)]
    parts = {root / path.relative_to(root).parts[0] for path in rest}
    wanted = [root, *places, *sorted(part for part in parts if part.is_dir())]
    fix = f"to read them too: {several(wanted)}"
    return Fault(
        f"of this folder {_TAKEN[kind]} alone is read",
        shown(root),
        f"left: {', '.join(left)}",
        fix if len(wanted) in range(2, 7) else "give its parts: data.path takes a list",
    )


def read_librispeech(
    root: Path, settings: AudioSettings, findings: Findings
) -> list[Clip]:
    """LibriSpeech: ``SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt`` beside FLAC files.

    Folders ``train-…``, ``dev-…`` and ``test-…`` between are splits.
    """
    clips = []
    for file in walk(root):
        if not file.name.endswith(TRANSCRIPTS):
            continue
        text = read_text(file, settings.encoding, findings)
        for line, content in enumerate((text or "").split("\n"), start=1):
            if not content.strip():
                continue
            name, _, said = content.strip().partition(" ")
            clips.append(
                Clip(
                    id=name,
                    path=_beside(file.parent, name),
                    text=said.strip(),
                    speaker=name.split("-")[0],
                    where=(shown(file), line),
                    split=_librispeech_split(file.relative_to(root)),
                )
            )
    return clips


def _beside(folder: Path, name: str) -> Path:
    for ending in (".flac", ".wav", ".mp3", ".ogg", ".opus"):
        if (path := folder / f"{name}{ending}").exists():
            return path
    return folder / f"{name}.flac"


def _librispeech_split(path: Path) -> Split | None:
    for folder in path.parts[:-1]:
        for start, split in _LIBRISPEECH_SPLITS:
            if folder == start or folder.startswith(f"{start}-"):
                return split
    return None


def read_common_voice(
    root: Path, settings: AudioSettings, findings: Findings
) -> list[Clip]:
    """The files ``train.tsv``, ``dev.tsv`` and ``test.tsv``, else ``validated.tsv``."""
    clips = []
    for split, name in COMMON_VOICE_FILES.items():
        if not (root / name).is_file():
            continue
        found = read_manifest(root / name, settings, findings, common_voice=True)
        for clip in found:
            clip.split = split
        clips += found
    if any(clip.split == "train" for clip in clips) or findings.fatal:
        return clips
    if (root / "validated.tsv").is_file():
        # What is tested on stays so; the rest of the validated clips are to train on.
        kept = {clip.path for clip in clips}
        path = root / "validated.tsv"
        found = read_manifest(path, settings, findings, common_voice=True)
        return clips + [clip for clip in found if clip.path not in kept]
    if not clips:
        why = f"it has {', '.join(sorted(p.name for p in root.glob('*.tsv')))}"
        fix = "name one of its TSV files"
        what = "no train.tsv and no validated.tsv of Common Voice"
        findings.fatal.append(Fault(what, shown(root), why, fix))
    return clips


def read_audio_folder(
    root: Path, settings: AudioSettings, findings: Findings, key: str = "data.path"
) -> list[Clip]:
    """Audio files, each with its transcript in a ``.txt`` file beside it.

    Args:
        root: The folder.
        settings: Whether transcripts are needed, and their encoding.
        findings: Takes the faults.
        key: The setting that names the folder, for faults.
    """
    labelled = settings.kind == "transcription"
    files = audio_files(root)
    if not files:
        names = sorted(path.name for path in root.iterdir())[:8]
        why = f"it has {', '.join(names)}" if names else "it is empty"
        fix = "name a folder with WAV, FLAC, OGG or MP3 files"
        fix = _manifest_hint(root, key) or fix
        findings.fatal.append(Fault("no audio files", shown(root), why, fix))
    clips = []
    for path in files:
        clip = Clip(id="", path=path, where=(shown(path), 0))
        clips.append(clip)
        if not labelled:
            continue
        transcript = path.with_suffix(".txt")
        if transcript.is_file():
            clip.text = _transcript(transcript, settings, findings, clip)
    if labelled and clips and all(clip.text is None for clip in clips):
        why = f"{len(clips)} audio files, and no .txt file beside any"
        fix = "put NAME.txt beside NAME.wav, or give a manifest with a column of texts"
        fix = _manifest_hint(root, key) or fix
        findings.fatal.append(Fault("no transcripts", shown(root), why, fix))
        return []
    return clips


def _manifest_hint(root: Path, key: str) -> str:
    """How to name a manifest that is in a folder."""
    found = [shown(path) for path in manifests_in(root)]
    if len(found) < 2:
        return f"name the manifest in it: {key}={found[0]}" if found else ""
    more = f"{', '.join(found[1:3])}{' …' * (len(found) > 3)}"
    return f"name a manifest in it: {key}={found[0]} (also {more})"


def _transcript(
    path: Path, settings: AudioSettings, findings: Findings, clip: Clip
) -> str | None:
    try:
        return path.read_bytes().decode(settings.encoding).removeprefix("\ufeff")
    except (OSError, UnicodeError, LookupError) as error:
        fix = "save it as UTF-8, or name its encoding: data.encoding"
        fault = Fault("the transcript cannot be read", shown(path), str(error), fix)
        findings.sample(*clip.where, fault)
        return None


_PROMPT = re.compile(r"([^\s:]+)\s*:\s*(.*)")
_TONES = frozenset(
    "ascending-2tone descending-2tone beep beeperr confbridge-join confbridge-leave "
    "tt-monkeys".split()
)
"""What is heard there is no speech, whatever some translators wrote down for it."""
_SIGN = re.compile(r"\[.?\]")
"""``at [@]``: the sign that the prompt names."""
_DIRECTION = re.compile(r"[][<>(){}]")


def read_asterisk(
    sounds: Path,
    transcripts: Path,
    read: Mapping[str, object],
    settings: AudioSettings,
    findings: Findings,
) -> list[Clip]:
    """Asterisk's prompts: a folder of sounds, and lines ``name: text`` in one file.

    Silence, tones and sounds whose line is empty are left out and counted; where
    transcripts are needed, also those without a line, and lines with a stage direction
    in them (``Press 2 (emphatic)``).

    Args:
        sounds: The folder.
        transcripts: The text file, also as ``.gz``.
        read: ``name``, which begins every id, and ``speaker``; ``one`` says that all
            are by the same person, who is called after the data set.
        settings: Whether a transcript is needed.
        findings: Takes the faults, and a warning about what was left out.
    """
    name = str(read["name"])
    speaker = str(read.get("speaker", "")) or None
    if speaker == "one":
        speaker = name
    labelled = settings.kind == "transcription"
    files = {
        path.relative_to(sounds).with_suffix("").as_posix(): path
        for path in audio_files(sounds)
    }
    lines = _prompts(transcripts, findings)
    # The folder of the voice may be inside the one that was unpacked.
    if not any(key in lines for key in files):
        files = {key.partition("/")[2] or key: path for key, path in files.items()}
    left: dict[str, list[str]] = defaultdict(list)
    clips = []
    for key, path in files.items():
        line, text = lines.get(key, (0, None))
        said = None if text is None else _SIGN.sub(" ", text)
        if key in _TONES or key.startswith("silence/") or (said and _noise(said)):
            left["no speech"].append(key)
        elif labelled and text is None:
            left["no line"].append(key)
        elif text is not None and not said:
            left["an empty line"].append(key)
        elif labelled and _DIRECTION.search(said or ""):
            left["a stage direction in it"].append(key)
        else:
            clips.append(
                Clip(
                    id=f"{name}/{key}",
                    path=path,
                    text=" ".join((said or "").split()) if labelled else None,
                    speaker=speaker,
                    where=(shown(transcripts), line) if line else (shown(path), 0),
                )
            )
    if left:
        total = sum(map(len, left.values()))
        why = "; ".join(
            f"{kind}: {len(keys)} ({', '.join(keys[:3])}{' …' * (len(keys) > 3)})"
            for kind, keys in left.items()
        )
        what = f"{total} of {len(files)} prompts are left out"
        findings.warnings.append(Fault(what, shown(transcripts), why))
    if not clips:
        why = f"{len(files)} sounds, and {len(lines)} lines in {shown(transcripts)}"
        findings.fatal.append(Fault("no prompts", shown(sounds), why))
    return clips


def _noise(said: str) -> bool:
    """Whether nothing but a stage direction is there: ``(ahooga)``."""
    return said[0] in "[(<" and said[-1] in "])>"


def _prompts(path: Path, findings: Findings) -> dict[str, tuple[int, str]]:
    """Line and text by prompt; of two lines for one, the first counts."""
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rb") as file:
            text = file.read().decode("utf-8-sig")
    except (OSError, EOFError, UnicodeError) as error:
        what = "the transcripts cannot be read"
        findings.fatal.append(Fault(what, shown(path), str(error)))
        return {}
    lines: dict[str, tuple[int, str]] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        found = _PROMPT.fullmatch(line.strip())
        if found and not line.lstrip().startswith(";"):
            lines.setdefault(found[1], (number, found[2].strip()))
    return lines
