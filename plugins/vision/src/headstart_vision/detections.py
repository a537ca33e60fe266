"""What all detectors share: the head around torchvision's, and its results.

Results are at the original images' size, masks as COCO's RLE.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.roi_heads import paste_masks_in_image

from headstart.heads import Head
from headstart_vision.annotations import rle
from headstart_vision.pyramid import Images
from headstart_vision.segmenters import tolerate_single_values

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from headstart.report.parts import Evaluation, Section
    from headstart.specs import Feature
    from headstart.stages import State

BACKGROUND = "__background__"
BATCH = ("boxes", "box_labels", "crowd", "image_sizes", "original_sizes")
# Pixels of masks that are pasted at a time: a hundred on a large photo fill the memory.
TOGETHER = 2**25


class Detector(Head):
    """torchvision's detector behind maps of the state.

    The loss is the sum of torchvision's losses; its unit is an image. The parts stay
    in the state under ``losses``. In training there is nothing else; in evaluation
    there are ``detections``, and the losses where there are targets: the same every
    time, though samplers draw at random, and without moving a statistic.

    Args:
        detector: torchvision's; its ``backbone`` maps maps to levels.
        maps: What it reads, fine to coarse.
        labels: Names of the classes, in order; the first is number 1.
    """

    upstream_names: ClassVar[Mapping[str, str]]
    """Prefixes inside ``detector`` to those in torchvision's files."""

    def __init__(
        self, detector: nn.Module, maps: Sequence[Feature], labels: Sequence[str]
    ) -> None:
        super().__init__()
        # A batch's part can be one image whose coarsest map is one position.
        self.detector: Any = tolerate_single_values(detector)
        self.labels = tuple(labels)
        self.stride = maps[0].stride
        self.reads = tuple(feature.name for feature in maps)
        self.upstream = {f"detector.{k}": v for k, v in self.upstream_names.items()}
        self.batch: tuple[str, ...] = BATCH

    @property
    def reduction(self) -> str:
        return f"maps {', '.join(self.reads)}"

    def reduce(self, state: State) -> State:
        """Leave out all but the maps that it reads, targets and sizes."""
        return {key: state[key] for key in (*self.reads, *self.batch) if key in state}

    def forward(self, state: State) -> State:
        """Add ``losses``, ``detections`` or both, see the class."""
        maps = [state[name] for name in self.reads]
        images = Images(state, maps[0], self.stride)
        levels = self.detector.backbone(
            OrderedDict((str(i), value) for i, value in enumerate(maps))
        )
        return {**state, **self._results(levels, images)}

    @abstractmethod
    def _results(self, levels: dict[str, Tensor], images: Images) -> State:
        """``losses`` in training; else ``detections``, and losses with targets."""

    def loss(self, state: State) -> Tensor:
        return torch.stack(list(state["losses"].values())).sum()

    def weight(self, batch: State) -> Tensor:
        """Images in the batch."""
        labels = batch["box_labels"]
        return torch.full((), float(len(labels)), device=labels.device)

    def outputs(self, state: State) -> dict[str, Any]:
        """``prediction``, ``target`` (with targets) and ``size``; one entry per image.

        In pixels of the original images, see
        :func:`headstart_vision.detections.original_outputs`.
        """
        return original_outputs(state, masks="masks" in self.batch)

    def decode(self, outputs: dict[str, Any]) -> list[dict[str, Any]]:
        """``detections`` of each image, best first: label, score, box and mask."""
        return [readable(found, self.labels) for found in outputs["prediction"]]

    @property
    def _class_names(self) -> tuple[str, ...]:
        """Of the rows of the layers that have rows per class."""
        return (BACKGROUND, *self.labels)

    @abstractmethod
    def _class_layers(self) -> dict[str, tuple[int, int]]:
        """Layers that have rows per class: groups of rows, and rows in a class."""

    def adapt_classes(
        self, name: str, theirs: Tensor, ours: Tensor, classes: Sequence[str]
    ) -> Tensor | None:
        """Rows of scores, boxes and masks of the classes that both know."""
        layout = self._class_layers().get(name.rpartition(".")[0])
        if layout is None:
            return None
        groups, width = layout
        return class_rows(
            theirs, ours, classes, self._class_names, groups=groups, width=width
        )

    def report(self, evaluation: Evaluation) -> Sequence[Section]:
        from headstart_vision.sections import detection_sections

        sections: Sequence[Section] = detection_sections(evaluation)
        return sections


def original_outputs(state: State, *, masks: bool) -> dict[str, Any]:
    """``prediction``, ``target`` and ``size`` of a detector, in original pixels.

    Args:
        state: With ``detections`` in the pixels that the network saw, both sizes and,
            where they are known, targets.
        masks: Whether detections and targets have masks; they become RLEs.

    Returns:
        ``prediction``: ``boxes`` (n, 4), ``scores`` (n) and ``labels`` (n) of each
        image, best first. ``target``: ``boxes``, ``labels`` and ``crowd``. ``size``:
        height and width, (batch, 2).
    """
    original: Tensor = state["original_sizes"]
    inside: Tensor = state["image_sizes"]
    # Height and width to a factor for each of x1, y1, x2, y2.
    scales = (original / inside).flip(1).repeat(1, 2)
    sizes, shown = original.tolist(), inside.tolist()
    outputs: dict[str, Any] = {"prediction": [], "size": original}
    for row, found in enumerate(state["detections"]):
        boxes = found["boxes"] * scales[row]
        prediction = {
            "boxes": boxes,
            "scores": found["scores"],
            "labels": found["labels"],
        }
        if masks:
            prediction["masks"] = pasted(found["masks"], boxes, sizes[row])
        outputs["prediction"].append(prediction)
    if "boxes" not in state:
        return outputs
    outputs["target"] = []
    for row, labels in enumerate(state["box_labels"]):
        there = labels > 0
        target = {
            "boxes": state["boxes"][row][there] * scales[row],
            "labels": labels[there],
            "crowd": state["crowd"][row][there],
        }
        if masks:
            given = state["masks"][row][there]
            target["masks"] = resized(given, shown[row], sizes[row])
        outputs["target"].append(target)
    return outputs


def pasted(masks: Tensor, boxes: Tensor, size: Sequence[int]) -> list[rle.Rle]:
    """RLEs of predicted masks, laid into an image where their boxes are.

    Args:
        masks: Probabilities inside the boxes, (n, 1, side, side).
        boxes: (n, 4) in the image's pixels.
        size: The image's height and width.
    """
    height, width = size
    # Every mask is cut by numbers from its box, each of which would wait for a GPU.
    masks, boxes = masks.float().cpu(), boxes.cpu()
    together = max(1, TOGETHER // (height * width))
    found = []
    for start in range(0, len(masks), together):
        part = slice(start, start + together)
        whole = paste_masks_in_image(masks[part], boxes[part], (height, width))
        found += [rle.from_mask(mask.numpy()) for mask in whole[:, 0] > 0.5]
    return found


def resized(masks: Tensor, inside: Sequence[int], size: Sequence[int]) -> list[rle.Rle]:
    """RLEs of true masks, cut to their image and taken back to its original size.

    Args:
        masks: (n, height, width) uint8 with the batch's padding.
        inside: Height and width of the image without the padding.
        size: Its original height and width.
    """
    cut = masks[:, : inside[0], : inside[1]].cpu()
    found = []
    for mask in cut:
        whole = F.interpolate(mask[None, None], list(size), mode="nearest-exact")
        found.append(rle.from_mask(whole[0, 0].numpy()))
    return found


def readable(prediction: Mapping[str, Any], labels: Sequence[str]) -> dict[str, Any]:
    """One image's ``detections``, JSON-ready, best first.

    Boxes have hundredths of a pixel.
    """
    boxes, scores, numbers = (
        torch.as_tensor(prediction[key]).tolist()
        for key in ("boxes", "scores", "labels")
    )
    masks = prediction.get("masks", [None] * len(boxes))
    rows = []
    for box, score, number, mask in zip(boxes, scores, numbers, masks, strict=True):
        row = {
            "label": labels[number - 1],
            "score": round(score, 4),
            "box": [round(value, 2) for value in box],
        }
        rows.append(row if mask is None else {**row, "mask": mask})
    order = sorted(range(len(rows)), key=lambda i: -scores[i])
    return {"detections": [rows[i] for i in order]}


def class_rows(
    theirs: Tensor,
    ours: Tensor,
    their_names: Sequence[str],
    our_names: Sequence[str],
    *,
    groups: int,
    width: int,
) -> Tensor | None:
    """Our layer with the rows of the classes that another one knows.

    The rows stand group after group (anchors), in each class after class, ``width``
    of them for each (a box has 4).

    Returns:
        ``None`` where their layer is not laid out like ours.
    """
    expected = (groups * len(their_names) * width, *ours.shape[1:])
    if tuple(theirs.shape) != expected:
        return None
    value = ours.detach().reshape(groups, len(our_names), width, -1).clone()
    source = theirs.reshape(groups, len(their_names), width, -1).to(value)
    for row, name in enumerate(our_names):
        if name in their_names:
            value[:, row] = source[:, list(their_names).index(name)]
    return value.reshape(ours.shape)
