"""Drawings of speech: a clip with its words, and texts with their differences."""

from __future__ import annotations

import unicodedata
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torchaudio.transforms import AmplitudeToDB, Spectrogram

from headstart.report.plots import COLOURS, INK, Series, curves, render

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from matplotlib.axes import Axes

    from headstart_speech.differences import Piece

HIGHEST = 8000
"""Hz; speech has little above."""
WINDOW = 0.016
"""Seconds of a spectrogram's window: short enough to see single sounds."""
COLUMNS, POINTS = 400, 600
"""Of a spectrogram and of a waveform; more would only make the page heavy."""
DYNAMICS = 70.0
"""dB below the loudest that are drawn."""
WIDTH = 7.2
LETTER = 0.0095
"""Width of a character of a word's label, as a part of the figure's."""
TEXT_COLUMNS = 92
MARKS = {"substituted": COLOURS[1], "inserted": COLOURS[0], "deleted": COLOURS[3]}
FADED = "#888888"


def spoken(
    waveform: np.ndarray, rate: int, words: Sequence[Mapping[str, Any]] = ()
) -> str:
    """Waveform over spectrogram, and the words where they were aligned.

    Args:
        waveform: Mono, float (samples,).
        rate: Samples a second.
        words: ``word``, ``start`` and ``end`` in seconds.
    """
    seconds = len(waveform) / rate
    power, top = _spectrogram(waveform, rate)
    rows = _rows(words, seconds)
    ceiling = 1.72 + 0.13 * (1 + max(rows, default=-1))

    def paint(axes: Axes) -> None:
        axes.imshow(
            power,
            extent=(0, seconds, 0, 1),
            origin="lower",
            aspect="auto",
            cmap="Greys",
            vmin=-DYNAMICS,
            vmax=0,
            # Anything else would be drawn anew at the figure's own resolution.
            interpolation="none",
        )
        low, high, times = _envelope(waveform, rate)
        # Its middle at 1.38, at most .3 to both sides.
        axes.fill_between(
            times, 1.38 + 0.3 * low, 1.38 + 0.3 * high, color=COLOURS[0], linewidth=0.5
        )
        for word, row in zip(words, rows, strict=True):
            start, end = float(word["start"]), min(float(word["end"]), seconds)
            axes.axvspan(
                start,
                end,
                ymin=1.04 / ceiling,
                ymax=1.72 / ceiling,
                color=COLOURS[4],
                alpha=0.22,
            )
            for edge in (start, end):
                axes.plot([edge, edge], [0, 1.72], color=INK, linewidth=0.4)
            axes.text(
                (start + end) / 2,
                1.74 + 0.13 * row,
                str(word["word"]),
                ha="center",
                va="bottom",
                fontsize=8,
            )
        axes.set_xlim(0, seconds)
        axes.set_ylim(0, ceiling)
        ticks = np.arange(0, top / 1000 + 1e-9, 2 if top > 4000 else 1)
        axes.set_yticks(ticks * 1000 / top, labels=[f"{tick:g}" for tick in ticks])
        axes.set_ylabel("kHz", y=0.5 / ceiling)
        axes.set_xlabel("seconds")
        axes.grid(visible=False)
        axes.spines["left"].set_visible(False)

    return _render(paint, WIDTH, 1.5 * ceiling + 0.5)


def _spectrogram(waveform: np.ndarray, rate: int) -> tuple[np.ndarray, float]:
    """Power in dB below the loudest, (frequencies, times); and the highest, in Hz."""
    window = max(round(WINDOW * rate), 2)
    hop = max(window // 2, -(-len(waveform) // COLUMNS))
    sound = torch.from_numpy(np.array(waveform, dtype=np.float32))
    power = AmplitudeToDB()(
        Spectrogram(n_fft=window, hop_length=hop, pad_mode="constant")(sound)
    )
    rows = min(round(HIGHEST * window / rate) + 1, len(power))
    kept = power[:rows]
    return (kept - kept.max()).numpy(), (rows - 1) * rate / window


def _envelope(
    waveform: np.ndarray, rate: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lowest and highest value of each short stretch, the largest being 1; its time."""
    step = max(-(-len(waveform) // POINTS), 1)
    starts = np.arange(0, len(waveform), step)
    largest = max(float(np.abs(waveform).max()), 1e-9)
    low, high = (
        edge.reduceat(waveform, starts) / largest for edge in (np.minimum, np.maximum)
    )
    return low, high, (starts + step / 2) / rate


def _rows(words: Sequence[Mapping[str, Any]], seconds: float) -> list[int]:
    """A row for each word's label, the lowest in which it touches no other."""
    ends: list[float] = []
    rows = []
    for word in words:
        middle = (float(word["start"]) + float(word["end"])) / 2
        half = LETTER * seconds * (_columns(str(word["word"])) + 1) / 2
        free = (r for r, end in enumerate(ends) if end <= middle - half)
        row = next(free, len(ends))
        ends[row : row + 1] = [middle + half]
        rows.append(row)
    return rows


def compared_texts(clips: Sequence[tuple[str, Sequence[Piece]]]) -> str:
    """What was said above what was recognised, word below word, errors marked.

    Args:
        clips: What is written over each, and its words.
    """
    blocks = [(headline, list(_wrapped(pieces))) for headline, pieces in clips]
    height = sum(1.5 + 2.4 * len(lines) for _, lines in blocks)

    def paint(axes: Axes) -> None:
        at = 0.0
        for headline, lines in blocks:
            axes.text(0, at, headline, fontsize=8.5, va="top", color=FADED)
            at += 1.15
            for line in lines:
                _line(axes, line, at)
                at += 2.4
            at += 0.35
        axes.set_xlim(0, TEXT_COLUMNS)
        axes.set_ylim(height, 0)
        axes.axis("off")

    return _render(paint, WIDTH, 0.17 * height + 0.1)


def _wrapped(pieces: Sequence[Piece]) -> Iterator[list[tuple[int, Piece]]]:
    """Lines of words, each with the column at which it begins."""
    line: list[tuple[int, Piece]] = []
    column = first = 11
    for piece in pieces:
        width = max(map(_columns, (piece.reference, piece.hypothesis)))
        if line and column + width > TEXT_COLUMNS:
            yield line
            line, column = [], first
        line.append((column, piece))
        column += width + 1
    if line:
        yield line


def _line(axes: Axes, line: Sequence[tuple[int, Piece]], at: float) -> None:
    for row, name in ((at, "said"), (at + 1.05, "recognised")):
        axes.text(0, row, name, fontsize=7.5, va="top", color=FADED)
    for column, piece in line:
        right = piece.kind == "correct"
        colour = INK if right else MARKS[piece.kind]
        width = max(map(_columns, (piece.reference, piece.hypothesis)))
        rows = (piece.reference, at), (piece.hypothesis, at + 1.05)
        for text, row in rows:
            axes.text(
                column,
                row,
                # A gap is drawn as well: colour alone does not reach everybody.
                text or "·" * width,
                family="monospace",
                fontsize=8,
                va="top",
                color=colour,
                fontweight="normal" if right else "bold",
            )


def _columns(text: str) -> int:
    """Width in a font of equal widths; characters of East Asia take two."""
    return sum(
        0
        if unicodedata.combining(character)
        else 1 + (unicodedata.east_asian_width(character) in "WF")
        for character in text
    )


def rates_by_length(
    lengths: Sequence[float], rates: Mapping[str, Sequence[float]], unit: str
) -> str:
    """Error rates over the length of clips.

    Args:
        lengths: Mean length of each group of clips.
        rates: Rate of each group, by name.
        unit: Of the lengths.
    """
    lines = [
        Series(name, list(lengths), list(values), colour)
        for colour, (name, values) in enumerate(rates.items())
    ]
    return curves(lines, xlabel=unit, ylabel="error rate", stop=max(lengths))


def _render(paint: Callable[[Axes], None], width: float, height: float) -> str:
    with warnings.catch_warnings():
        # Text stays text; the reader's own fonts have the letters that ours lacks.
        warnings.filterwarnings("ignore", message="Glyph")
        return render(paint, width=width, height=height)
