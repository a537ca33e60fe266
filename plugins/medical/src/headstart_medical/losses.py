"""Losses of segmentation: Dice with cross entropy or focal loss, per patch.

Written with sums over voxels, so that the loss of a whole volume can be taken slab by
slab, and voxels that nobody labelled (-1) leave it alone. Where all are labelled the
values are those of MONAI's ``DiceCELoss`` and ``DiceFocalLoss``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

SMOOTH = 1e-5
FOCUS = 2.0
SLAB = 2**24
"""Logits that are looked at together where no gradients are wanted."""


class _Sums(NamedTuple):
    """Over the known voxels; the first three (batch, classes), the others (batch)."""

    overlap: Tensor
    predicted: Tensor
    actual: Tensor
    pointwise: Tensor
    known: Tensor


def _added(parts: Sequence[_Sums]) -> _Sums:
    return _Sums(*(torch.stack(values).sum(0) for values in zip(*parts, strict=True)))


@dataclass(frozen=True)
class SegmentationLoss:
    """One minus soft Dice (Milletari et al. 2016), plus a loss of every voxel.

    Attributes:
        kind: ``dice-ce`` adds cross entropy; ``dice-focal`` the focal loss (Lin et
            al. 2017, gamma 2) of each class against the rest.
        background: Whether Dice and focal loss count class 0 among the classes.
    """

    kind: Literal["dice-ce", "dice-focal"] = "dice-ce"
    background: bool = False

    def __call__(self, logits: Tensor, mask: Tensor) -> Tensor:
        """The loss of each patch, (batch,); 0 where no voxel is known.

        Args:
            logits: (batch, classes, depth, height, width).
            mask: int64 (batch, depth, height, width), -1 where not known.
        """
        if logits.requires_grad:
            sums = self._sums(logits, mask)
        else:
            planes = max(SLAB * logits.shape[2] // max(logits.numel(), 1), 1)
            slabs = torch.split(logits, planes, 2), torch.split(mask, planes, 1)
            sums = _added([self._sums(*slab) for slab in zip(*slabs, strict=True)])
        first = 0 if self.background else 1
        both = (sums.predicted + sums.actual)[:, first:]
        dice = 1 - (2 * sums.overlap[:, first:] + SMOOTH) / (both + SMOOTH)
        return dice.mean(1) + sums.pointwise / sums.known.clamp(min=1)

    def _sums(self, logits: Tensor, mask: Tensor) -> _Sums:
        logits = logits.float()
        known = (mask >= 0).unsqueeze(1)
        target = mask.clamp(min=0).unsqueeze(1)
        log_p = logits.log_softmax(1)
        p = log_p.exp() * known
        actual = torch.zeros_like(p).scatter_(1, target, known.to(p))
        if self.kind == "dice-ce":
            pointwise = -(log_p.gather(1, target) * known)
        else:
            first = 0 if self.background else 1
            pointwise = known * focal(logits[:, first:], actual[:, first:])
        return _Sums(
            (p * actual).flatten(2).sum(2),
            p.flatten(2).sum(2),
            actual.flatten(2).sum(2),
            pointwise.flatten(1).sum(1),
            known.flatten(1).sum(1),
        )


def focal(logits: Tensor, actual: Tensor) -> Tensor:
    """Focal loss of each voxel, the mean over classes that are told apart one by one.

    Args:
        logits: (batch, classes, …).
        actual: The same shape, 0 or 1.

    Returns:
        (batch, 1, …).
    """
    entropy = F.binary_cross_entropy_with_logits(logits, actual, reduction="none")
    # The probability of the wrong answer, as a logarithm for the sake of small ones.
    wrong = F.logsigmoid(-logits * (2 * actual - 1))
    return ((FOCUS * wrong).exp() * entropy).mean(1, keepdim=True)


def deep_supervision(
    loss: SegmentationLoss, levels: Sequence[Tensor], mask: Tensor
) -> Tensor:
    """The mean of a loss over levels of resolution (Lee et al. 2015), (batch,).

    Each level weighs half of the finer one before it, and the weights add up to 1, as
    in nnU-Net. Masks take the nearest voxel.

    Args:
        loss: Of one level.
        levels: Logits, the finest first.
        mask: As for :class:`SegmentationLoss`.
    """
    weights = [0.5**level for level in range(len(levels))]
    total = torch.zeros(len(mask), device=mask.device)
    for weight, logits in zip(weights, levels, strict=True):
        total = total + weight * loss(logits, mask_at(mask, logits.shape[2:]))
    return total / sum(weights)


def mask_at(mask: Tensor, size: Sequence[int]) -> Tensor:
    """A mask (batch, depth, height, width) with the nearest voxels at another size."""
    if tuple(mask.shape[1:]) == tuple(size):
        return mask
    values = mask.unsqueeze(1).float()
    return F.interpolate(values, list(size), mode="nearest-exact")[:, 0].long()
