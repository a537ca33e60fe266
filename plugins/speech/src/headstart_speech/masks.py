"""What wav2vec 2.0's pretraining hides, and what it must tell the hidden from.

Spans of frames are hidden as in Baevski et al. 2020: where a span starts is drawn
without replacement, so spans overlap and less than the given share of a clip is hidden.
The distractors of a hidden frame are other hidden frames of its clip.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import torch

from headstart_speech.masking import span_mask, uniform

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

LEAST_SPANS = 2
"""Of a clip that is long enough, as in the published training."""


def hidden_spans(
    frames: Tensor,
    width: int,
    *,
    probability: float,
    length: int,
    generator: torch.Generator,
) -> Tensor:
    """Which frames are hidden.

    Args:
        frames: int64 (batch), frames of each clip.
        width: Frames of the longest clip.
        probability: Share of the frames that spans would cover if none overlapped.
        length: Frames of a span; of a shorter clip nothing is hidden.
        generator: The only source of chance, on any device.

    Returns:
        bool (batch, width), False behind a clip's end.
    """
    return span_mask(frames, width, probability, length, LEAST_SPANS, generator)


def distractors(
    masked: Tensor, frames: Tensor, count: int, generator: torch.Generator
) -> Tensor:
    """Frames of the same clip that a hidden frame is told from.

    Drawn with replacement from the other hidden frames; from all others where only
    one frame is hidden. A clip of one frame has none: it gets itself.

    Args:
        masked: bool (batch, width), as :func:`hidden_spans` gives it.
        frames: int64 (batch), frames of each clip.
        count: Distractors of each hidden frame.
        generator: The only source of chance, on any device.

    Returns:
        int64 (batch, width, count), indices of frames; 0 where nothing is hidden.
    """
    batch, width = masked.shape
    present = torch.arange(width, device=masked.device) < frames[:, None]
    pool = torch.where(masked.sum(1, keepdim=True) > 1, masked, present)
    others = (pool.sum(1) - 1).clamp(min=0)[:, None, None]
    drawn = uniform((batch, width, count), generator, masked.device)
    # A factor just below 1 may round to it.
    chosen = (drawn * others).long().minimum((others - 1).clamp(min=0))
    own = (pool.long().cumsum(1) - 1)[:, :, None]
    chosen = chosen + ((chosen >= own) & (others > 0))
    members = (~pool).to(torch.uint8).argsort(dim=1, stable=True)
    found = members.gather(1, chosen.view(batch, -1)).view(batch, width, count)
    return found * masked[:, :, None]


def drawn_masks(
    frames: Tensor,
    width: int,
    *,
    probability: float,
    length: int,
    negatives: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Hidden frames and distractors of a training batch; see the functions above."""
    masked = hidden_spans(
        frames, width, probability=probability, length=length, generator=generator
    )
    return masked, distractors(masked, frames, negatives, generator)


def fixed_masks(
    ids: Sequence[str], frames: Tensor, **how: Any
) -> tuple[Tensor, Tensor]:
    """The same as :func:`drawn_masks`, for evaluation.

    What is hidden of a clip depends on its id and length alone, not on its batch.

    Args:
        ids: Of the clips.
        frames: int64 (batch), frames of each clip.
        how: ``probability``, ``length`` and ``negatives``.
    """
    width = int(frames.max()) if len(frames) else 0
    masked = torch.zeros(len(ids), width, dtype=torch.bool)
    negatives = torch.zeros(len(ids), width, how["negatives"], dtype=torch.long)
    for row, (identity, own) in enumerate(zip(ids, frames.tolist(), strict=True)):
        generator = torch.Generator().manual_seed(_seed(identity))
        alone = drawn_masks(frames[row : row + 1], own, generator=generator, **how)
        masked[row, :own], negatives[row, :own] = alone[0][0], alone[1][0]
    return masked, negatives


def _seed(identity: str) -> int:
    """A seed that depends on an id alone, for all time."""
    digest = hashlib.sha256(identity.encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
