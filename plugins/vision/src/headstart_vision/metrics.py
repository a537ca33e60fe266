"""Metrics for images: torchmetrics, by kind of task.

The head's outputs are known to be valid, so torchmetrics does not validate them: that
would wait for the device at every batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
    MultilabelExactMatch,
    MultilabelF1Score,
)
from torchmetrics.functional.classification import binary_auroc
from torchmetrics.metric import Metric
from torchmetrics.utilities import dim_zero_cat

from headstart.errors import UserError
from headstart_vision.annotations import rle
from headstart_vision.average_precision import AveragePrecision

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

OF_KIND = {
    "single-label": ("accuracy", "macro-f1", "top-5", "auroc"),
    "multi-label": ("macro-f1", "auroc", "exact-match"),
    "boxes": ("map", "map-50", "map-75"),
    "instances": ("mask-map", "mask-map-50", "map", "map-50", "map-75"),
    "semantic": ("miou", "dice", "pixel-accuracy"),
}
IGNORED = 255


class MacroAUROC(Metric):
    """Mean over classes of the area under the ROC curve, each class against the rest.

    Classes that are in all or in none of the samples have no curve and are left out;
    not a number when no class is left.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    probabilities: list[Tensor]
    target: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("probabilities", [], dist_reduce_fx="cat")
        self.add_state("target", [], dist_reduce_fx="cat")

    def update(self, probabilities: Tensor, target: Tensor) -> None:
        """Add a batch.

        Args:
            probabilities: (batch, classes).
            target: Class indices (batch), or 0 and 1 (batch, classes).
        """
        self.probabilities.append(probabilities.detach())
        self.target.append(target.detach())

    def compute(self) -> Tensor:
        """The mean, a scalar."""
        probabilities = dim_zero_cat(self.probabilities)
        target = dim_zero_cat(self.target)
        classes = probabilities.shape[1]
        if target.ndim == 1:
            target = target[:, None] == torch.arange(classes, device=target.device)
        positives = target.bool().sum(0)
        areas = [
            binary_auroc(probabilities[:, i], target[:, i].long(), validate_args=False)
            for i in range(classes)
            if 0 < positives[i] < len(target)
        ]
        if not areas:
            return torch.tensor(torch.nan, device=target.device)
        return torch.stack(areas).mean()


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


def accuracy(task: Mapping[str, Any]) -> Metric:
    """Share of images with the right label; reads ``prediction`` and ``target``."""
    _check("accuracy", task)
    return MulticlassAccuracy(len(task["labels"]), average="micro", validate_args=False)


def top_5(task: Mapping[str, Any]) -> Metric:
    """Share of images whose label is among the five likeliest.

    Reads ``probabilities`` and ``target``. With five classes or fewer it is always 1.
    """
    _check("top-5", task)
    classes = len(task["labels"])
    return MulticlassAccuracy(
        classes, average="micro", top_k=min(5, classes), validate_args=False
    )


def macro_f1(task: Mapping[str, Any]) -> Metric:
    """Mean of the labels' F1; reads ``prediction`` and ``target``.

    Of single labels, one that is neither there nor predicted does not count.
    """
    _check("macro-f1", task)
    kind = MultilabelF1Score if task["kind"] == "multi-label" else MulticlassF1Score
    return kind(len(task["labels"]), average="macro", validate_args=False)


def auroc(task: Mapping[str, Any]) -> Metric:
    """Area under the ROC curve, mean over the labels.

    Reads ``probabilities`` and ``target``.
    """
    _check("auroc", task)
    return MacroAUROC()


def exact_match(task: Mapping[str, Any]) -> Metric:
    """Share of images whose labels are all right; reads ``prediction``, ``target``."""
    _check("exact-match", task)
    return MultilabelExactMatch(len(task["labels"]), validate_args=False)


def map(task: Mapping[str, Any]) -> Metric:
    """COCO's mAP of boxes, mean over IoU .5 to .95."""
    _check("map", task)
    return AveragePrecision("bbox")


def map_50(task: Mapping[str, Any]) -> Metric:
    """COCO's mAP of boxes at IoU .5."""
    _check("map-50", task)
    return AveragePrecision("bbox", [0.5])


def map_75(task: Mapping[str, Any]) -> Metric:
    """COCO's mAP of boxes at IoU .75."""
    _check("map-75", task)
    return AveragePrecision("bbox", [0.75])


def mask_map(task: Mapping[str, Any]) -> Metric:
    """COCO's mAP of masks, mean over IoU .5 to .95."""
    _check("mask-map", task)
    return AveragePrecision("segm")


def mask_map_50(task: Mapping[str, Any]) -> Metric:
    """COCO's mAP of masks at IoU .5."""
    _check("mask-map-50", task)
    return AveragePrecision("segm", [0.5])


def miou(task: Mapping[str, Any]) -> Metric:
    """IoU of all pixels, mean over the classes that occur in target or prediction."""
    _check("miou", task)
    return PixelScore(
        len(task["labels"]), lambda counts: intersection_over_union(counts).nanmean()
    )


def dice(task: Mapping[str, Any]) -> Metric:
    """Dice of all pixels, mean over the classes that occur in target or prediction."""
    _check("dice", task)
    return PixelScore(len(task["labels"]), lambda counts: dice_score(counts).nanmean())


def pixel_accuracy(task: Mapping[str, Any]) -> Metric:
    """Share of labelled pixels with the right class."""
    _check("pixel-accuracy", task)
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
    if task["kind"] == "semantic":
        return _sample_masks(batch_size, labels, generator)
    logits = torch.randn(batch_size, labels, generator=generator)
    rows = torch.arange(batch_size)
    if task["kind"] == "single-label":
        probabilities = logits.softmax(-1)
        return {
            "probabilities": probabilities,
            "prediction": probabilities.argmax(-1),
            "target": rows % labels,
        }
    probabilities = logits.sigmoid()
    return {
        "probabilities": probabilities,
        "prediction": (probabilities >= 0.5).long(),
        "target": (rows[:, None] + torch.arange(labels)) % 2,
    }


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


def _check(name: str, task: Mapping[str, Any]) -> None:
    kind = task["kind"]
    if name not in OF_KIND[kind]:
        raise UserError(
            f"the metric {name!r} does not measure {kind} tasks",
            where="metrics.names",
            fix=f"choose from {', '.join(OF_KIND[kind])}",
        )
