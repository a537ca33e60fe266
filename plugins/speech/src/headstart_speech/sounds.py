"""How loud a piece of audio is, read through once in bounded memory."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from headstart_speech.audio import blocks
from headstart_speech.audio_faults import AudioError, shown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from headstart_speech.audio import AudioFile

WINDOW_SECONDS = 0.02
_WINDOWS_PER_BLOCK = 500
_FULL = {"8": 127 / 128, "ULAW": 32124 / 32768, "ALAW": 32256 / 32768}
"""The largest value that an encoding has, by how its name ends; 16 bits otherwise."""
_BEYOND = 4.0
"""Floating-point files may go a little beyond full scale; this is another scale."""


@dataclass(frozen=True)
class Sound:
    """What is known of a clip that was decoded once.

    Attributes:
        peak: Largest absolute value; full scale is 1.
        loudest: Root mean square of its loudest 20 ms.
        clipped: Share of samples at full scale.
        digest: BLAKE2b of the mono samples as 16-bit integers, whatever the format.
    """

    peak: float
    loudest: float
    clipped: float
    digest: str


def window(rate: int) -> int:
    """Samples of a window of 20 ms."""
    return max(1, round(WINDOW_SECONDS * rate))


def decibels(amplitude: float) -> float:
    """Of full scale; digital silence is -120 dB."""
    return float(20 * np.log10(max(amplitude, 1e-6)))


def hear(file: AudioFile, start: int, stop: int) -> Sound:
    """Decode a piece once.

    Args:
        file: What :func:`.audio.look` found.
        start: First sample, at the file's own rate.
        stop: The one behind the last.

    Raises:
        AudioError: It cannot be decoded, or its samples are no numbers or on another
            scale than -1..1.
    """
    ends = (full for end, full in _FULL.items() if file.encoding.endswith(end))
    full = next(ends, 32767 / 32768)
    peak = loudest = 0.0
    clipped = 0
    digest = hashlib.blake2b(digest_size=16)
    for block in _blocks(file, start, stop):
        size = np.abs(block)
        peak = max(peak, float(size.max()))
        if not np.isfinite(peak) or np.isnan(size).any():
            why = "it holds infinite values or values that are no number"
            fix = "write it again from the original"
            raise AudioError("broken samples", where=shown(file.path), why=why, fix=fix)
        loudest = max(loudest, float(_rms(block, window(file.rate)).max()))
        clipped += int((size >= full).sum())
        exact = np.clip(np.rint(block * 32768), -32768, 32767)
        digest.update(exact.astype("<i2").tobytes())
    if peak > _BEYOND:
        raise AudioError(
            f"samples up to {peak:.4g}, and full scale is 1",
            where=shown(file.path),
            why="the file stores floating-point numbers of another scale",
            fix="divide them by the largest value of their integers, 32768 for 16 bits",
        )
    return Sound(peak, loudest, clipped / (stop - start), digest.hexdigest())


def levels(file: AudioFile, start: int, stop: int) -> np.ndarray:
    """Root mean square of each 20 ms, float32 (windows,); the last may be shorter."""
    size = window(file.rate)
    found = [_rms(block, size) for block in _blocks(file, start, stop)]
    return np.concatenate(found)


def _blocks(file: AudioFile, start: int, stop: int) -> Iterator[np.ndarray]:
    return blocks(file, start, stop, window(file.rate) * _WINDOWS_PER_BLOCK)


def _rms(block: np.ndarray, size: int) -> np.ndarray:
    starts = np.arange(0, len(block), size)
    power = np.add.reduceat(np.square(block, dtype=np.float64), starts)
    lengths = np.diff(np.append(starts, len(block)))
    return np.sqrt(power / lengths).astype(np.float32)
