"""Long audio in pieces that begin and end where it is quietest."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from headstart_speech.sounds import WINDOW_SECONDS, levels, window

if TYPE_CHECKING:
    from headstart_speech.audio import AudioFile

PAUSE_SECONDS = 0.3
"""A cut is in the middle of so much quiet: shorter gaps are inside words."""
EARLIEST = 0.5
"""Share of the longest piece before which no cut is looked for."""


def pieces(
    file: AudioFile, start: int, stop: int, longest: float
) -> list[tuple[int, int]]:
    """Cut a stretch of audio at its quietest places.

    Each piece ends in the quietest 0.3 s between half of ``longest`` and ``longest``
    after its beginning, the latest where several are; nothing is left out. The file is
    read in blocks: of an hour, 20 MB are in memory at most.

    Args:
        file: What :func:`.audio.look` found.
        start: First sample, at the file's own rate.
        stop: The one behind the last.
        longest: Seconds that a piece may have.

    Returns:
        First sample of each piece and the one behind its last, one after another.

    Raises:
        AudioError: The file cannot be decoded.
    """
    most = max(1, int(longest * file.rate))
    if stop - start <= most:
        return [(start, stop)]
    size = window(file.rate)
    cuts = split_points(levels(file, start, stop), max(1, most // size))
    bounds = [start, *(start + cut * size for cut in cuts), stop]
    return list(pairwise(bounds))


def split_points(loudness: np.ndarray, longest: int) -> list[int]:
    """Where to cut, in windows.

    Args:
        loudness: (windows,); only its order counts.
        longest: Windows that a piece may have.

    Returns:
        Increasing indices of the windows that begin a new piece.
    """
    total = len(loudness)
    half = min(round(PAUSE_SECONDS / WINDOW_SECONDS / 2), max(1, longest // 4))
    quiet = _around(loudness, half)
    points: list[int] = []
    begin = 0
    while total - begin > longest:
        first = begin + max(1, int(longest * EARLIEST))
        # The rest is not cut into a long piece and a crumb.
        last = max(first, min(begin + longest, total - longest // 4))
        choice = quiet[first : last + 1]
        lowest = np.flatnonzero(choice <= choice.min())
        begin = first + int(lowest[-1])
        points.append(begin)
    return points


def _around(loudness: np.ndarray, half: int) -> np.ndarray:
    """Power in ``half`` windows before and behind each border between windows."""
    sums = np.concatenate([[0.0], np.cumsum(np.square(loudness, dtype=np.float64))])
    borders = np.arange(len(loudness) + 1)
    low = np.maximum(borders - half, 0)
    high = np.minimum(borders + half, len(loudness))
    mean = (sums[high] - sums[low]) / np.maximum(high - low, 1)
    # Sums of other stretches differ by rounding; silence is silence all the same.
    rounded: np.ndarray = np.round(mean, 10)
    return rounded
