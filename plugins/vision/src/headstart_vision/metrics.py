"""Metrics of boxes, masks and pixels: torchmetrics and COCO's evaluation.

The head's outputs are known to be valid, so torchmetrics does not validate them: that
would wait for the device at every batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torchmetrics.classification import MulticlassConfusionMatrix

from headstart_vision.annotations import rle
from headstart_vision.average_precision import AveragePrecision

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor
    from torchmetrics.metric import Metric

IGNORED = 255


class PixelScore(MulticlassConfusionMatrix):
    """A score from the counts of all labelled pixels of all images together.

    Args:
        classes: Values of a mask; pixels of 255 in the target do not count.
        score: From counts (classes, classes), rows are true classes, to a scalar.
    """

    def __init__(self, classes: int, score: Callable[[Tensor], Tensor]) -> None:
        super().__init__(classes, ignore_index=IGNORED, validate_args=False)
        self.score = score

    def update(  # type: ignore[override]
        self, preds: Sequence[Any], target: Sequence[Any]
    ) -> None:
        """Add masks, each (height, width) of its image; tensors or arrays."""
        for found, true in zip(preds, target, strict=True):
            pair = (torch.as_tensor(mask).flatten() for mask in (found, true))
            super().update(*(mask.to(self.confmat.device).long() for mask in pair))

    def compute(self) -> Tensor:
        """The score, a scalar."""
        return self.score(self.confmat.double())


def intersection_over_union(counts: Tensor) -> Tensor:
    """IoU of each class, (classes); not a number for one that does not occur."""
    right = counts.diagonal()
    return right / (counts.sum(0) + counts.sum(1) - right)


def dice_score(counts: Tensor) -> Tensor:
    """Dice of each class, (classes); not a number for one that does not occur."""
    return 2 * counts.diagonal() / (counts.sum(0) + counts.sum(1))


def map(task: Mapping[str, Any]) -> Metric:
    """COCO's mAP of boxes, mean over IoU .5 to .95."""
    return AveragePrecision("bbox")


def map_50(task: Mapping[str, Any]) -> Metric:
    """COCO's mAP of boxes at IoU .5."""
    return AveragePrecision("bbox", [0.5])


def map_75(task: Mapping[str, Any]) -> Metric:
    """COCO's mAP of boxes at IoU .75."""
    return AveragePrecision("bbox", [0.75])


def mask_map(task: Mapping[str, Any]) -> Metric:
    """COCO's mAP of masks, mean over IoU .5 to .95."""
    return AveragePrecision("segm")


def mask_map_50(task: Mapping[str, Any]) -> Metric:
    """COCO's mAP of masks at IoU .5."""
    return AveragePrecision("segm", [0.5])


def miou(task: Mapping[str, Any]) -> Metric:
    """IoU of all pixels, mean over the classes that occur in target or prediction."""
    return PixelScore(
        len(task["labels"]), lambda counts: intersection_over_union(counts).nanmean()
    )


def dice(task: Mapping[str, Any]) -> Metric:
    """Dice of all pixels, mean over the classes that occur in target or prediction."""
    return PixelScore(len(task["labels"]), lambda counts: dice_score(counts).nanmean())


def pixel_accuracy(task: Mapping[str, Any]) -> Metric:
    """Share of labelled pixels with the right class."""
    return PixelScore(len(task["labels"]), lambda counts: counts.trace() / counts.sum())


def pixel_counts(outputs: Mapping[str, Any], task: Mapping[str, Any]) -> np.ndarray:
    """Labelled pixels by true (rows) and predicted class, (classes, classes) int64."""
    metric = PixelScore(len(task["labels"]), torch.sum)
    metric.update(outputs["prediction"], outputs["target"])
    counts: np.ndarray = metric.confmat.numpy()
    return counts


def sample_outputs(task: Mapping[str, Any], batch_size: int) -> dict[str, Any]:
    """Outputs as this task's head gives them, for tests; seeded, not all right."""
    generator = torch.Generator().manual_seed(batch_size)
    labels = len(task["labels"])
    if task["kind"] in ("boxes", "instances"):
        images = [
            _sample_objects(i, labels, task["kind"], generator)
            for i in range(batch_size)
        ]
        return {
            "prediction": [found for found, _ in images],
            "target": [true for _, true in images],
            "size": torch.tensor([[48, 64]] * batch_size),
        }
    return _sample_masks(batch_size, labels, generator)


def _sample_objects(
    index: int, classes: int, kind: str, generator: torch.Generator
) -> tuple[dict[str, Any], dict[str, Any]]:
    """One image of 48 x 64: no object in every fourth, a crowd in every third."""
    count = 0 if index % 4 == 3 else 1 + index % 3
    corner = torch.rand(count, 2, generator=generator) * torch.tensor([30.0, 20.0])
    side = 6 + torch.rand(count, 2, generator=generator) * 20
    boxes = torch.cat([corner, corner + side], 1)
    labels = 1 + (index + torch.arange(count)) % classes
    # What is found is near the truth, and there is one thing that is not there.
    near = boxes + 2 * torch.randn(count, 4, generator=generator)
    false = torch.tensor([[1.0, 2.0, 12.0, 40.0]])
    edge = torch.tensor([64.0, 48.0, 64.0, 48.0])
    found_boxes = torch.cat([near, false]).clamp(min=0).minimum(edge)
    target: dict[str, Any] = {
        "boxes": boxes,
        "labels": labels,
        "crowd": torch.arange(count) == 2,
    }
    prediction: dict[str, Any] = {
        "boxes": found_boxes,
        "scores": torch.rand(count + 1, generator=generator),
        "labels": torch.cat([labels, labels[:1] if count else torch.tensor([1])]),
    }
    if kind == "instances":
        target["masks"] = [_ellipse(box) for box in boxes.tolist()]
        prediction["masks"] = [_ellipse(box) for box in found_boxes.tolist()]
    return prediction, target


def _ellipse(box: Sequence[float]) -> rle.Rle:
    left, top, right, bottom = box
    y, x = np.mgrid[:48, :64] + 0.5
    across = (2 * x - left - right) / max(right - left, 1.0)
    down = (2 * y - top - bottom) / max(bottom - top, 1.0)
    return rle.from_mask((across**2 + down**2 <= 1).astype(np.uint8))


def _sample_masks(
    batch_size: int, classes: int, generator: torch.Generator
) -> dict[str, Any]:
    sizes = [(48, 64) if i % 2 else (40, 40) for i in range(batch_size)]
    truth, found = [], []
    for index, (height, width) in enumerate(sizes):
        stripes = (torch.arange(width) // 8 + index) % classes
        mask = stripes.expand(height, width).to(torch.uint8).clone()
        noise = torch.rand(height, width, generator=generator) < 0.2
        other = torch.randint(classes, (height, width), generator=generator)
        found.append(torch.where(noise, other.to(torch.uint8), mask))
        mask[:4] = IGNORED
        truth.append(mask)
    return {"prediction": found, "target": truth, "size": torch.tensor(sizes)}
