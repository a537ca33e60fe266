"""Transcripts as files: text, JSON with times, and subtitles, one of each an input.

A long file is predicted in pieces, which come one after the other. Of a sample this
reads ``seconds``, its length; ``start``, where in its file it begins, in seconds; and
``piece``, its number within its input, 0 for the first. Of a prediction it reads
``text``; ``words``, each with ``word``, ``start`` and ``end`` in seconds from where the
sample begins; and ``format``, which one of :data:`FORMATS` is wanted; without it all.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headstart_speech.subtitles import srt, tsv, vtt

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    Row = dict[str, Any]

SUBTITLES = {"srt": srt, "vtt": vtt, "tsv": tsv}
FORMATS = {"text": ".txt", "json": ".json", **{key: f".{key}" for key in SUBTITLES}}
INDEX = "predictions.jsonl"
LONGEST_NAME = 60
"""Characters of a file's name: at most 255 bytes with its ending in every script."""
FEW_FILES = 12
"""More are not named one by one."""
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


def joined(
    samples: Iterable[Mapping[str, Any]],
    predictions: Iterable[Mapping[str, Any]],
    name: Callable[[Any], str],
) -> Iterator[Row]:
    """One row an input, its pieces put together, as soon as all have come.

    Args:
        samples: In order, the pieces of an input one after another.
        predictions: Of each sample, computed as it is asked for.
        name: What the input of a sample is called.

    Yields:
        ``input`` and, by the format that is wanted, ``text``; or ``srt``, ``vtt`` or
        ``tsv``; or ``text``, ``seconds`` and ``segments``, each with ``start``,
        ``end``, ``text`` and, where they are known, ``words``; all times in seconds
        from the input's start.
    """
    for row, wanted in _whole(samples, predictions, name):
        yield _shaped(row, wanted)


def write_predictions(
    folder: Path,
    samples: Iterable[Mapping[str, Any]],
    predictions: Iterable[Mapping[str, Any]],
    name: Callable[[Any], str],
) -> list[Path]:
    """Write each input's transcript as soon as it is whole, in the wanted format.

    Args:
        folder: An empty one.
        samples: As for :func:`joined`.
        predictions: As for :func:`joined`.
        name: As for :func:`joined`.

    Returns:
        The transcripts; of many inputs the table of them, ``predictions.jsonl``.
    """
    taken: set[str] = set()
    written = []
    with (folder / INDEX).open("w", encoding="utf-8") as index:
        for row, wanted in _whole(samples, predictions, name):
            bare = _free_name(row["input"], taken)
            files = {}
            for key in [wanted] if wanted else FORMATS:
                path = folder / f"{bare}{FORMATS[key]}"
                path.write_text(_contents(row, key), encoding="utf-8")
                written.append(path)
                files[key] = path.name
            line = {"input": row["input"], "text": row["text"], "files": files}
            index.write(json.dumps(line, ensure_ascii=False) + "\n")
    return written if len(written) <= FEW_FILES else [folder / INDEX]


def _whole(
    samples: Iterable[Mapping[str, Any]],
    predictions: Iterable[Mapping[str, Any]],
    name: Callable[[Any], str],
) -> Iterator[tuple[Row, str]]:
    """Rows with all that is known, and the format that is wanted or nothing."""
    row: Row | None = None
    wanted = ""
    for sample, found in zip(samples, predictions, strict=True):
        if not sample.get("piece") and row is not None:
            yield row, wanted
            row = None
        if row is None:
            row = {"input": name(sample), "text": "", "seconds": 0.0, "segments": []}
        wanted = found.get("format") or ""
        start = float(sample.get("start") or 0.0)
        stop = round(start + float(sample["seconds"]), 3)
        row["seconds"] = stop
        text = found["text"].strip()
        if text:
            row["text"] = f"{row['text']} {text}".lstrip()
            row["segments"].append(_segment(text, found.get("words"), start, stop))
    if row is not None:
        yield row, wanted


def _segment(text: str, words: Any, start: float, stop: float) -> Row:
    """A piece's text from its first word to its last, where those are known."""
    if not words:
        return {"start": round(start, 3), "end": stop, "text": text}
    shifted = [
        {
            **word,
            "start": round(start + word["start"], 3),
            # The last frame may reach a bit beyond the sound.
            "end": min(round(start + word["end"], 3), stop),
        }
        for word in words
    ]
    ends = {"start": shifted[0]["start"], "end": shifted[-1]["end"]}
    return {**ends, "text": text, "words": shifted}


def _shaped(row: Row, wanted: str) -> Row:
    if write := SUBTITLES.get(wanted):
        return {"input": row["input"], wanted: write(row["segments"])}
    return {key: row[key] for key in ("input", "text")} if wanted == "text" else row


def _contents(row: Row, form: str) -> str:
    if form == "text":
        # A line a piece: an hour on one line is no text to read.
        return "".join(f"{segment['text']}\n" for segment in row["segments"])
    if write := SUBTITLES.get(form):
        return write(row["segments"])
    return json.dumps(row, ensure_ascii=False, indent=1) + "\n"


def _free_name(given: str, taken: set[str]) -> str:
    """A file's name for an input, without an ending, that is not taken yet."""
    bare = re.sub(r"[^\w.-]+", "-", Path(given).stem).strip(".-")[:LONGEST_NAME]
    first = place = f"clip-{bare}" if _RESERVED.fullmatch(bare) else bare or "clip"
    number = 1
    # As a file system compares names that takes upper for lower case.
    while place.casefold() in taken:
        number += 1
        place = f"{first}-{number}"
    taken.add(place.casefold())
    return place
