"""Batches of clips at another sampling rate, or at another speed."""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING, TypeVar

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from typing import Any

    import numpy as np
    from torch import Tensor

    Counts = TypeVar("Counts", int, np.ndarray[Any, Any], Tensor)

LARGEST_TERM = 1000
"""Of a ratio of rates. The filter has as many phases: 11,127 Hz would need 16,000 of
them, and is off by less than a millionth this way."""


def ratio(old: int, new: int) -> Fraction:
    """How many samples at the new rate there are for one at the old."""
    return Fraction(new, old).limit_denominator(LARGEST_TERM)


def scaled(lengths: Counts, factor: Fraction) -> Counts:
    """Lengths after resampling, rounded up, exact in whole numbers."""
    top, bottom = factor.numerator, factor.denominator
    return (lengths * top + (bottom - 1)) // bottom


def resampled(
    waveform: Tensor, lengths: Tensor, factor: Fraction
) -> tuple[Tensor, Tensor]:
    """Clips with ``factor`` as many samples, by torchaudio's windowed sinc.

    A clip's result does not depend on its batch.

    Args:
        waveform: float32 (batch, samples), zeros behind each clip's end.
        lengths: int64 (batch).
        factor: As :func:`ratio` gives it.

    Returns:
        New waveform and lengths; the same tensors when ``factor`` is 1.
    """
    if factor == 1:
        return waveform, lengths
    width = scaled(waveform.shape[1], factor)
    lengths = scaled(lengths, factor)
    # torchaudio counts the samples that come out in float32; with one more period in,
    # none of a long clip is missing.
    longer = F.pad(waveform, (0, factor.denominator))
    found = _resample(factor, waveform.device)(longer)[:, :width]
    # The filter rings on behind the end.
    place = torch.arange(width, device=waveform.device)
    return found.masked_fill(place >= lengths[:, None], 0.0), lengths


@lru_cache(maxsize=64)
def _resample(factor: Fraction, device: torch.device) -> torch.nn.Module:
    from torchaudio.transforms import Resample

    made: torch.nn.Module = Resample(factor.denominator, factor.numerator)
    return made.to(device)
