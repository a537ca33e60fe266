"""Subtitles in SubRip's format (SRT) that people can read in time."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

LINES, WIDTH = 2, 42
"""Of a cue: what subtitles on a television have at most."""
LONGEST, SHORTEST = 7.0, 1.0
"""Seconds that a cue stays, the shortest where the next one leaves it time."""
PAUSE = 1.5
"""Seconds of silence after which a new cue begins."""


@dataclass(frozen=True)
class Timed:
    """A word, or lines of them, with its time in seconds."""

    text: str
    start: float
    end: float


def srt(segments: Sequence[Mapping[str, Any]]) -> str:
    """Segments as SubRip text.

    Args:
        segments: In order, with ``start``, ``end`` and ``text``; with ``words`` where
            their times are known, else they are spread over the segment by length.

    Returns:
        Numbered cues of at most two lines of 42 characters and 7 seconds, which do not
        overlap; empty without a word.
    """
    blocks, free = [], 0
    found = list(cues(_words(segments)))
    starts = [_milliseconds(cue.start) for cue in found]
    for number, (cue, start) in enumerate(zip(found, starts, strict=True), start=1):
        begin = max(start, free)
        stop = max(_milliseconds(cue.end), begin + _milliseconds(SHORTEST))
        stop = min(stop, begin + _milliseconds(LONGEST))
        if number < len(found):
            stop = min(stop, starts[number])
        free = max(stop, begin + 1)
        blocks.append(f"{number}\n{_clock(begin)} --> {_clock(free)}\n{cue.text}\n")
    return "\n".join(blocks)


def cues(words: Iterable[Timed]) -> Iterator[Timed]:
    """Words in cues: as many as there is room and time for, and no long pause."""
    held: list[Timed] = []
    for word in words:
        if held:
            long = word.end - held[0].start > LONGEST
            pause = word.start - held[-1].end > PAUSE
            if long or pause or len(_lines([*held, word])) > LINES:
                yield _cue(held)
                held = []
        held.append(word)
    if held:
        yield _cue(held)


def _lines(words: Sequence[Timed]) -> list[str]:
    return textwrap.wrap(
        " ".join(word.text for word in words), WIDTH, break_on_hyphens=False
    )


def _cue(words: Sequence[Timed]) -> Timed:
    return Timed("\n".join(_lines(words)), words[0].start, words[-1].end)


def _words(segments: Iterable[Mapping[str, Any]]) -> Iterator[Timed]:
    """Words of at most one line, in order."""
    for segment in segments:
        words = segment.get("words")
        if words:
            timed = [Timed(w["word"], w["start"], w["end"]) for w in words]
        else:
            whole = Timed(segment["text"], segment["start"], segment["end"])
            timed = list(_spread(whole, segment["text"].split()))
        for word in timed:
            # Scripts without spaces, and what was run together.
            length = range(0, len(word.text), WIDTH)
            yield from _spread(word, [word.text[i : i + WIDTH] for i in length])


def _spread(whole: Timed, parts: Sequence[str]) -> Iterator[Timed]:
    """Parts of a text, each with as much of its time as it has characters."""
    total = sum(map(len, parts))
    done, length = 0, whole.end - whole.start
    for part in parts:
        start = whole.start + length * done / total
        done += len(part)
        yield Timed(part, start, whole.start + length * done / total)


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


def _clock(milliseconds: int) -> str:
    seconds, rest = divmod(milliseconds, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{seconds:02},{rest:03}"
