"""Clips at one sampling rate: kept while there is room, and put together to batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn.utils.rnn import pad_sequence

from headstart_speech.resampling import ratio, resampled

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from torch import Tensor

    from headstart_speech.clips import Clip

FULL_SCALE = 32768


class Waveforms:
    """Reads clips, resamples them, and keeps what fits as 16-bit integers.

    Every clip goes through 16 bits, kept or not, so that how much room there is changes
    no result. Each is resampled by itself: among others, the sums of a convolution
    might be rounded otherwise, and the clip would then depend on the batch that needed
    it first, which is another one after a resume.

    Args:
        limit: Bytes of memory.
        rate: Of the results, in Hz.

    Attributes:
        held: Bytes in memory.
        read: How many clips were read from their files.
    """

    def __init__(self, limit: int, rate: int) -> None:
        self.limit = limit
        self.rate = rate
        self.held = self.read = 0
        self._kept: dict[str, np.ndarray] = {}

    @property
    def full(self) -> bool:
        """Whether there is no room for another clip."""
        return self.held >= self.limit

    def get(self, clip: Clip, *, keep: bool = True) -> np.ndarray:
        """A clip as int16 (samples,), mono; not to be changed.

        Raises:
            AudioError: The file is no longer what it was, or cannot be decoded.
        """
        if keep and clip.id in self._kept:
            return self._kept[clip.id]
        found = self._resampled(clip)
        self.read += 1
        if keep and self.held + found.nbytes <= self.limit:
            self._kept[clip.id] = found
            self.held += found.nbytes
        return found

    def _resampled(self, clip: Clip) -> np.ndarray:
        assert clip.facts is not None
        sound = torch.from_numpy(clip.read())[None]
        factor = ratio(clip.facts.rate, self.rate)
        sound, _ = resampled(sound, torch.tensor([sound.shape[1]]), factor)
        # Beyond full scale are floating-point files, and the filter's overshoot.
        whole = (sound[0] * FULL_SCALE).round().clamp(-FULL_SCALE, FULL_SCALE - 1)
        return whole.to(torch.int16).numpy()

    def __getstate__(self) -> dict[str, Any]:
        # A worker process that gets a copy fills its own memory.
        return {**self.__dict__, "_kept": {}, "held": 0}


def stacked(sounds: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """A batch of clips.

    Args:
        sounds: int16 (samples,) each.

    Returns:
        float32 (batch, samples) in -1..1, zeros behind each end; lengths int64 (batch).
    """
    rows = [torch.from_numpy(sound) for sound in sounds]
    lengths = torch.tensor([len(row) for row in rows])
    return pad_sequence(rows, batch_first=True) / FULL_SCALE, lengths
