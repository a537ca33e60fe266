"""Random changes to batches of waveforms, on their device.

None of them waits for the device: what decides about shapes is drawn on the host.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TYPE_CHECKING

import torch
from torchaudio.functional import add_noise

from headstart_speech.resampling import resampled, scaled

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

LARGEST_TERM = 100
"""Of a speed: 0.9 is 9/10, 1.05 is 21/20."""


def change_speed(
    waveform: Tensor,
    lengths: Tensor,
    speeds: Sequence[float],
    generator: torch.Generator,
    limits: tuple[float, float] = (1, math.inf),
) -> tuple[Tensor, Tensor]:
    """Play a batch faster or slower, which changes its pitch as well (Ko et al. 2015).

    One speed is drawn for the whole batch, so that its clips stay of similar length.

    Args:
        waveform: float32 (batch, samples).
        lengths: int64 (batch), samples of each clip.
        speeds: One of these is taken, each as probable; 1.1 makes clips shorter.
        generator: The only source of chance.
        limits: Samples that the backbone takes, from and to; a speed that would make
            another number of the longest clip is not used.
    """
    choice = _on_host(len(speeds), generator)
    factor = 1 / as_fraction(speeds[choice])
    if not limits[0] <= scaled(waveform.shape[1], factor) <= limits[1]:
        return waveform, lengths
    return resampled(waveform, lengths, factor)


def add_white_noise(
    waveform: Tensor,
    lengths: Tensor,
    decibels: Sequence[float],
    generator: torch.Generator,
) -> Tensor:
    """Add Gaussian noise to each clip, the lower the signal-to-noise ratio the more.

    Args:
        waveform: float32 (batch, samples).
        lengths: int64 (batch), samples of each clip.
        decibels: Range of ratios of the clip's power to the noise's.
        generator: The only source of chance.
    """
    noise = torch.randn(
        waveform.shape, generator=generator, device=generator.device
    ).to(waveform.device)
    place = torch.arange(waveform.shape[1], device=waveform.device)
    noise = noise.masked_fill(place >= lengths[:, None], 0.0)
    ratios = _between(decibels, waveform, generator)
    noisy: Tensor = add_noise(waveform, noise, ratios, lengths)
    return noisy.clamp(-1, 1)


def change_volume(
    waveform: Tensor, decibels: Sequence[float], generator: torch.Generator
) -> Tensor:
    """Make each clip louder or softer; what becomes too loud is clipped.

    Args:
        waveform: float32 (batch, samples).
        decibels: Range of gains; 6 doubles the amplitude.
        generator: The only source of chance.
    """
    gain = 10 ** (_between(decibels, waveform, generator) / 20)
    return (waveform * gain[:, None]).clamp(-1, 1)


def as_fraction(speed: float) -> Fraction:
    """A speed as a ratio of small whole numbers."""
    return Fraction(speed).limit_denominator(LARGEST_TERM)


def _between(
    limits: Sequence[float], waveform: Tensor, generator: torch.Generator
) -> Tensor:
    """A number for each clip, uniform between two limits."""
    low, high = limits
    drawn = torch.rand(len(waveform), generator=generator, device=generator.device)
    return low + (high - low) * drawn.to(waveform.device)


def _on_host(count: int, generator: torch.Generator) -> int:
    """One of so many, each as probable, without waiting for a device.

    A device's generator says on the host where it stands, not what it draws.
    """
    if generator.device.type == "cpu":
        return int(torch.randint(count, (), generator=generator))
    state = (generator.initial_seed() * 1_000_003 + generator.get_offset()) % 2**63
    host = torch.Generator().manual_seed(state)
    # Moved on, so that the next choice is another one.
    torch.rand(1, generator=generator, device=generator.device)
    return int(torch.randint(count, (), generator=host))
