"""COCO's average precision of boxes and masks: torchmetrics with faster-coco-eval."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torchmetrics.detection import MeanAveragePrecision
from torchvision.ops import box_convert

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from headstart_vision.annotations.rle import Rle

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10).tolist()
RECALLS = np.linspace(0.0, 1.0, 101).tolist()

Kind = Literal["bbox", "segm"]


class AveragePrecision(MeanAveragePrecision):
    """COCO's mean average precision over classes, recalls and IoU thresholds.

    At most the 100 best detections of an image count. What lies on a crowd region
    counts neither way. Not a number when there is no object at all.

    Three things differ from torchmetrics' own, so that the result is pycocotools':
    thresholds are double precision (a recall of exactly .6 reaches .6), images
    without masks count (what is detected on them is false), and masks come as RLE.

    Args:
        kind: IoU of boxes or of masks.
        thresholds: IoU from which on a detection is right; the mean is over these.
        extended: Whether ``computed`` holds the precision of every class and recall.
    """

    def __init__(
        self, kind: Kind, thresholds: list[float] | None = None, extended: bool = False
    ) -> None:
        super().__init__(
            iou_type=kind,
            iou_thresholds=thresholds or IOU_THRESHOLDS,
            rec_thresholds=RECALLS,
            extended_summary=extended,
            backend="faster_coco_eval",
        )

    def update(
        self, preds: Sequence[Mapping[str, Any]], target: Sequence[Mapping[str, Any]]
    ) -> None:
        """Add images.

        Args:
            preds: ``boxes`` (n, 4) as corners in pixels, ``scores`` (n), ``labels``
                (n) from 1 on, and ``masks``, n RLEs, where masks are compared; tensors
                or arrays.
            target: ``boxes``, ``labels``, ``masks`` and ``crowd`` (n), of each image.
        """
        for found, true in zip(preds, target, strict=True):
            self.detection_box.append(_xywh(found["boxes"]))
            self.detection_labels.append(_host(found["labels"], torch.long))
            self.detection_scores.append(_host(found["scores"], torch.float))
            self.groundtruth_box.append(_xywh(true["boxes"]))
            labels = _host(true["labels"], torch.long)
            self.groundtruth_labels.append(labels)
            self.groundtruth_crowds.append(_host(true["crowd"], torch.long))
            # 0 leaves it to be measured, from the box or mask.
            self.groundtruth_area.append(torch.zeros_like(labels))
            if "segm" in self.iou_type:
                self.detection_mask.append(_runs(found["masks"]))
                self.groundtruth_mask.append(_runs(true["masks"]))

    def computed(self) -> dict[str, Tensor]:
        """Everything that torchmetrics gives."""
        values: dict[str, Tensor] = super().compute()
        return values

    def compute(self) -> Tensor:  # type: ignore[override]
        """The mean, a scalar."""
        # COCO says -1 where there is nothing to find.
        value = self.computed()["map"].reshape(())
        return torch.where(value < 0, torch.nan, value)


@dataclass(frozen=True)
class ClassPrecision:
    """How well one class is detected.

    Attributes:
        label: The class.
        objects: In the truth, without crowds.
        ap: Average precision, mean over IoU .5 to .95; ``None`` without objects.
        ap_50: At IoU .5.
        ap_75: At IoU .75.
        precision: At IoU .5, interpolated at the 101 :data:`RECALLS`; 0 at recalls
            that are not reached.
    """

    label: str
    objects: int
    ap: float | None
    ap_50: float | None
    ap_75: float | None
    precision: np.ndarray


def per_class_ap(
    outputs: Mapping[str, Any], task: Mapping[str, Any], kind: Kind = "bbox"
) -> list[ClassPrecision]:
    """Average precision of each class, in the order of the task's labels.

    Args:
        outputs: ``prediction`` and ``target`` of a detector, over a whole split.
        task: Its ``labels``.
        kind: IoU of boxes or of masks.
    """
    metric = AveragePrecision(kind, extended=True)
    metric.update(outputs["prediction"], outputs["target"])
    values = metric.computed()
    places = {int(c): k for k, c in enumerate(values["classes"].reshape(-1))}
    counts = np.zeros(len(task["labels"]) + 1, dtype=int)
    for true in outputs["target"]:
        labels, crowd = np.asarray(true["labels"]), np.asarray(true["crowd"], bool)
        np.add.at(counts, labels[~crowd].astype(int), 1)
    found = []
    for number, label in enumerate(task["labels"], start=1):
        if not counts[number]:
            empty = np.zeros(len(RECALLS))
            found.append(ClassPrecision(str(label), 0, None, None, None, empty))
            continue
        # IoU thresholds, recalls, classes, areas (all first), numbers of detections.
        precision = values["precision"][:, :, places[number], 0, -1].numpy()
        means = precision.mean(axis=1)
        found.append(
            ClassPrecision(
                label=str(label),
                objects=int(counts[number]),
                ap=float(means.mean()),
                ap_50=float(means[0]),
                ap_75=float(means[5]),
                precision=precision[0],
            )
        )
    return found


def _host(value: Any, dtype: torch.dtype) -> Tensor:
    return torch.as_tensor(value).detach().to("cpu", dtype)


def _xywh(boxes: Any) -> Tensor:
    """Corner, width and height, (n, 4), in double precision as pycocotools has it."""
    corners = _host(boxes, torch.double).reshape(-1, 4)
    converted: Tensor = box_convert(corners, "xyxy", "xywh")
    return converted


def _runs(masks: Sequence[Rle]) -> Any:
    """RLEs as torchmetrics keeps them."""
    return tuple((tuple(mask["size"]), mask["counts"]) for mask in masks)
