"""A class for every pixel: the loss, and masks at another size."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

IGNORED = 255
# Classes whose logits are enlarged at a time: those of a large photo fill the memory.
TOGETHER = 8


def pixel_cross_entropy(logits: Tensor, mask: Tensor) -> Tensor:
    """Mean cross entropy over labelled pixels; 0 where there are none.

    Args:
        logits: (batch, classes, height, width).
        mask: Classes, int64 (batch, height, width); 255 is not labelled.
    """
    # Pixel by pixel: torch's own mean adds up in another order every time on a GPU.
    losses = F.cross_entropy(logits, mask, ignore_index=IGNORED, reduction="none")
    return losses.sum() / (mask != IGNORED).sum().clamp(min=1)


def enlarged(logits: Tensor, size: Sequence[int]) -> Tensor:
    """Logits (batch, classes, height, width) at another size, float32."""
    return F.interpolate(
        logits.float(), size=list(size), mode="bilinear", align_corners=False
    )


def classes_at(logits: Tensor, size: Sequence[int]) -> Tensor:
    """The class of the highest logit at another size, uint8; a few classes at a time.

    Args:
        logits: (classes, height, width).
        size: Height and width of the result.
    """
    if list(logits.shape[-2:]) == list(size):
        return logits.argmax(0).to(torch.uint8)
    highest, classes = None, None
    for start in range(0, len(logits), TOGETHER):
        part = enlarged(logits[None, start : start + TOGETHER], size)[0]
        values, places = part.max(0)
        places = (places + start).to(torch.uint8)
        if highest is None or classes is None:
            highest, classes = values, places
        else:
            classes = torch.where(values > highest, places, classes)
            highest = torch.maximum(values, highest)
    assert classes is not None
    return classes


def nearest_at(mask: Tensor, size: Sequence[int]) -> Tensor:
    """A uint8 mask (height, width) at another size: of the nearest pixel's class."""
    if list(mask.shape) == list(size):
        return mask
    return F.interpolate(mask[None, None], size=list(size), mode="nearest-exact")[0, 0]
