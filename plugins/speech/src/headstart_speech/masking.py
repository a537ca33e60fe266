"""Masks of spans along time and channels (SpecAugment, Park et al. 2019)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from torch import Tensor

    from headstart_speech.settings import SpeechBackboneSettings


def span_mask(
    lengths: Tensor,
    width: int,
    share: float,
    span: int,
    least: int = 0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Random spans, as wav2vec 2.0 draws them; nothing waits for the device.

    Each row has ``share * length / span`` spans, rounded up or down at random. Their
    starts are drawn without replacement, so that spans may overlap.

    Args:
        lengths: Positions of each row, (rows,) int64.
        width: Positions of the mask.
        share: What part of a row the spans would cover if none overlapped.
        span: Positions of a span; a row that is shorter has none.
        least: Spans that a row has that is long enough for them.
        generator: The only source of chance, on any device; ``None``: torch's own.

    Returns:
        (rows, width) bool, true inside a span.
    """
    rows, device = len(lengths), lengths.device
    wanted = share * lengths / span + uniform((rows,), generator, device)
    wanted = wanted.floor().clamp(min=least).minimum(lengths // span)
    positions = torch.arange(width, device=device)
    draws = uniform((rows, width), generator, device)
    draws = draws.masked_fill(positions > (lengths - span)[:, None], torch.inf)
    # The rank of each position in a random order.
    ranks = draws.argsort(dim=1).argsort(dim=1)
    begun = (ranks < wanted[:, None]).long().cumsum(dim=1)
    ended = nn.functional.pad(begun, (span, 0))[:, :width]
    return begun > ended


def uniform(
    shape: tuple[int, ...], generator: torch.Generator | None, device: torch.device
) -> Tensor:
    """Random numbers from 0 to 1, drawn where the generator is."""
    if generator is None:
        return torch.rand(shape, device=device)
    drawn = torch.rand(shape, generator=generator, device=generator.device)
    return drawn.to(device)


class SpecAugment(nn.Module):
    """Masks spans of frames and of channels, in training only.

    Args:
        settings: How much and how long.
    """

    def __init__(self, settings: SpeechBackboneSettings) -> None:
        super().__init__()
        self.time = (settings.mask_time, settings.mask_time_length)
        self.features = (settings.mask_features, settings.mask_features_length)

    def forward(
        self,
        hidden: Tensor,
        lengths: Tensor,
        filler: Tensor,
        masked: Tensor | None = None,
    ) -> Tensor:
        """Mask a batch.

        Args:
            hidden: (batch, frames, channels).
            lengths: Frames of each clip, (batch,).
            filler: What a masked frame becomes, (channels,) or one number.
            masked: Frames that are masked in place of random ones, (batch, frames)
                bool; in evaluation too.
        """
        batch, frames, channels = hidden.shape
        if masked is None and self.training:
            # Even where no frame is masked, a learned filler takes part in the loss:
            # ranks that train together wait for the gradient of every parameter.
            masked = (
                span_mask(lengths, frames, *self.time)
                if self.time[0]
                else torch.zeros(batch, frames, dtype=torch.bool, device=hidden.device)
            )
        if masked is not None:
            hidden = torch.where(masked[..., None], filler.to(hidden.dtype), hidden)
        if self.training and self.features[0]:
            full = torch.full((batch,), channels, device=hidden.device)
            silent = span_mask(full, channels, *self.features)
            hidden = hidden.masked_fill(silent[:, None], 0.0)
        return hidden

    def extra_repr(self) -> str:
        return f"time={self.time}, features={self.features}"
