"""Subtitles that people can read in time: SubRip (SRT), WebVTT, and a table (TSV).

Cues keep to what television asks for (at most two lines of 42 characters and 7 seconds,
as in Netflix's Timed Text Style Guide), and end where speech pauses: of all ways to cut
the words, the one with the least cost is taken. stable-ts cuts where a gap is long, and
whisperX in the middle of what is too long; here both count at once.
"""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

WIDTH = 42
"""Characters of a line; a cue has two at most, as on a television."""
ROOM = 2 * WIDTH + 1
LONGEST, SHORTEST = 7.0, 1.0
"""Seconds that a cue stays, the shortest where the next one leaves it time."""
PAUSE = 1.0
"""Seconds of silence after which a new cue begins."""
BRIEF = 0.2
"""Seconds of silence at which a cut costs half of one between words that are joined."""
_STOPS = {**dict.fromkeys(".?!…。？！", 1.0), **dict.fromkeys(",;:，、；：", 0.3)}
"""Seconds of silence that a mark at a word's end is worth."""


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
    return "\n".join(
        f"{number}\n{_clock(start, ',')} --> {_clock(stop, ',')}\n{_unmarked(text)}\n"
        for number, (start, stop, text) in enumerate(_shown(segments), start=1)
    )


def vtt(segments: Sequence[Mapping[str, Any]]) -> str:
    """Segments as WebVTT, with the cues of :func:`srt`."""
    cues = (
        f"\n{_clock(start, '.')} --> {_clock(stop, '.')}\n"
        f"{html.escape(text, quote=False)}\n"
        for start, stop, text in _shown(segments)
    )
    return "".join(["WEBVTT\n", *cues])


def tsv(segments: Sequence[Mapping[str, Any]]) -> str:
    """Segments as a table of ``start`` and ``end`` in milliseconds, and ``text``.

    As Whisper's command line writes it, with the cues of :func:`srt`, a line each.
    """
    rows = (
        f"{start}\t{stop}\t{' '.join(text.split())}\n"
        for start, stop, text in _shown(segments)
    )
    return "".join(["start\tend\ttext\n", *rows])


def _shown(
    segments: Sequence[Mapping[str, Any]],
) -> Iterator[tuple[int, int, str]]:
    """From when to when each cue stays, in milliseconds, and its lines."""
    free = 0
    found = list(cues(_words(segments)))
    starts = [_milliseconds(cue.start) for cue in found]
    for number, (cue, start) in enumerate(zip(found, starts, strict=True), start=1):
        begin = max(start, free)
        stop = max(_milliseconds(cue.end), begin + _milliseconds(SHORTEST))
        stop = min(stop, begin + _milliseconds(LONGEST))
        if number < len(found):
            stop = min(stop, starts[number])
        free = max(stop, begin + 1)
        yield begin, free, cue.text


def cues(words: Iterable[Timed]) -> Iterator[Timed]:
    """Words in cues, cut after long pauses, and where it costs least between those."""
    held: list[Timed] = []
    for word in words:
        if held and word.start - held[-1].end > PAUSE:
            yield from _cut(held)
            held = []
        held.append(word)
    yield from _cut(held)


def _cut(words: Sequence[Timed]) -> Iterator[Timed]:
    """The cues of words without a long pause, by dynamic programming from the end.

    A cue costs what its last gap does, and the square of the share of its room that it
    leaves: cues are few, and none is a crumb.
    """
    count = len(words)
    best: list[tuple[float, int]] = [(0.0, count)] * (count + 1)
    for first in reversed(range(count)):
        costs = []
        for stop in range(first + 1, count + 1):
            part = words[first:stop]
            if stop > first + 1 and not _fits(part):
                break
            cost = _gap_cost(words, stop) if stop < count else 0.0
            cost += max(1 - _length(part) / ROOM, 0.0) ** 2
            costs.append((cost + best[stop][0], -stop))
        # Of equal ones the longest.
        cost, stop = min(costs)
        best[first] = (cost, -stop)
    first = 0
    while first < count:
        stop = best[first][1]
        yield _cue(words[first:stop])
        first = stop


def _fits(words: Sequence[Timed]) -> bool:
    """Whether a cue has room and time for so many words."""
    if words[-1].end - words[0].start > LONGEST:
        return False
    return _length(words) <= WIDTH or bool(_breaks(words))


def _gap_cost(words: Sequence[Timed], place: int) -> float:
    """What it costs to part the words before a place from those behind it, 0 to 1."""
    before, behind = words[place - 1], words[place]
    gap = max(behind.start - before.end, 0.0) + _STOPS.get(before.text[-1:], 0.0)
    return BRIEF / (BRIEF + gap)


def _cue(words: Sequence[Timed]) -> Timed:
    """One line where it fits, else two, parted as cues are."""
    text = " ".join(word.text for word in words)
    if len(text) > WIDTH:
        costs = []
        for place, first in _breaks(words):
            uneven = abs(len(text) - 1 - 2 * first) / WIDTH
            costs.append((_gap_cost(words, place) + uneven**2, first))
        first = min(costs)[1]
        text = f"{text[:first]}\n{text[first + 1 :]}"
    return Timed(text, words[0].start, words[-1].end)


def _breaks(words: Sequence[Timed]) -> list[tuple[int, int]]:
    """Before which words a second line may begin, and how long the first is then."""
    total, first, found = _length(words), -1, []
    for place, word in enumerate(words[:-1], start=1):
        first += len(word.text) + 1
        if first <= WIDTH and total - first - 1 <= WIDTH:
            found.append((place, first))
    return found


def _length(words: Sequence[Timed]) -> int:
    return sum(len(word.text) for word in words) + len(words) - 1


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


def _clock(milliseconds: int, point: str) -> str:
    seconds, rest = divmod(milliseconds, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{seconds:02}{point}{rest:03}"


def _unmarked(text: str) -> str:
    """A text that no reader of SubRip takes for times."""
    return text.replace("-->", "->")
