"""Decoded clips: kept while there is room, and put together to batches at one rate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from headstart_speech.resampling import ratio, resampled, scaled

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from headstart_speech.clips import Clip

FULL_SCALE = 32768


class Waveforms:
    """Reads clips as 16-bit integers, at their own rate, and keeps what fits.

    Every clip goes through 16 bits, kept or not, so that how much room there is changes
    no result.

    Args:
        limit: Bytes of memory.

    Attributes:
        held: Bytes in memory.
        read: How many clips were read from their files.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = self.read = 0
        self._kept: dict[str, np.ndarray] = {}

    def get(self, clip: Clip, *, keep: bool = True) -> np.ndarray:
        """A clip as int16 (samples,), mono; not to be changed.

        Raises:
            AudioError: The file is no longer what it was, or cannot be decoded.
        """
        if keep and clip.id in self._kept:
            return self._kept[clip.id]
        self.read += 1
        whole = np.rint(clip.read() * FULL_SCALE)
        found: np.ndarray = whole.clip(-FULL_SCALE, FULL_SCALE - 1).astype(np.int16)
        if keep and self.held + found.nbytes <= self.limit:
            self._kept[clip.id] = found
            self.held += found.nbytes
        return found

    def __getstate__(self) -> dict[str, Any]:
        # A worker process that gets a copy fills its own memory.
        return {**self.__dict__, "_kept": {}, "held": 0}


def stacked(
    clips: Sequence[np.ndarray], rates: Sequence[int], rate: int
) -> tuple[Tensor, Tensor]:
    """A batch of clips at one rate; those of one rate are resampled together.

    Args:
        clips: int16 (samples,) each.
        rates: Sampling rate of each, in Hz.
        rate: The one that is wanted.

    Returns:
        float32 (batch, samples) in -1..1, zeros behind each end; lengths int64 (batch).
    """
    factors = [ratio(own, rate) for own in rates]
    own = torch.tensor([len(clip) for clip in clips])
    counts = [scaled(len(c), factor) for c, factor in zip(clips, factors, strict=True)]
    lengths = torch.tensor(counts)
    waveform = torch.zeros(len(clips), int(lengths.max()))
    for factor in dict.fromkeys(factors):
        rows = [row for row, other in enumerate(factors) if other == factor]
        batch = torch.zeros(len(rows), int(own[rows].max()))
        for place, row in enumerate(rows):
            batch[place, : len(clips[row])] = torch.from_numpy(clips[row])
        found, _ = resampled(batch / FULL_SCALE, own[rows], factor)
        # The filter's overshoot at full scale.
        waveform[rows, : found.shape[1]] = found.clamp(-1, 1)
    return waveform, lengths
