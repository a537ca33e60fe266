"""Heads that find objects in one stage: RetinaNet and SSDLite of torchvision."""

from __future__ import annotations

from abc import abstractmethod
from collections import OrderedDict
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.retinanet import RetinaNet, RetinaNetHead
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.ssdlite import (
    SSDLiteHead,
    _extra_block,
    _normal_init,
)
from torchvision.ops import box_iou
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from headstart.errors import UserError
from headstart_vision.detections import Detector
from headstart_vision.pyramid import (
    Images,
    choose_maps,
    make_anchors,
    make_pyramid,
    stand_ins,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from headstart.specs import Feature
    from headstart.stages import State
    from headstart_vision.settings import BoxHeadSettings, DetectorSettings

# torchvision's levels of SSDLite, and the widths of those that it adds.
SSD_LEVELS = 6
SSD_EXTRA = (512, 256, 256, 128)

Detections = list[dict[str, Tensor]]


class SingleStage(Detector):
    """Boxes and classes straight from every position of the levels."""

    def _results(self, levels: dict[str, Tensor], images: Images) -> State:
        maps = list(levels.values())
        predicted = {k: v.float() for k, v in self.detector.head(maps).items()}
        anchors = self.detector.anchor_generator(images, stand_ins(maps))
        results: State = {}
        if images.targets is not None:
            results["losses"] = self._losses(predicted, anchors, images)
        if not self.training:
            counts = [m.shape[-2] * m.shape[-1] for m in maps]
            results["detections"] = self._detections(predicted, anchors, images, counts)
        return results

    @abstractmethod
    def _losses(
        self, predicted: dict[str, Tensor], anchors: list[Tensor], images: Images
    ) -> dict[str, Tensor]:
        """torchvision's losses by name."""

    @abstractmethod
    def _detections(
        self,
        predicted: dict[str, Tensor],
        anchors: list[Tensor],
        images: Images,
        counts: list[int],
    ) -> Detections:
        """What is found, labels from 1 on; ``counts`` are the levels' positions."""


class RetinaNetDetector(SingleStage):
    """RetinaNet (Lin et al. 2017): a pyramid, and the focal loss.

    Without a row for the background: every class is there or not by itself.
    """

    upstream_names: ClassVar[Mapping[str, str]] = {
        "backbone.": "backbone.fpn.",
        "head.": "head.",
    }

    def _losses(
        self, predicted: dict[str, Tensor], anchors: list[Tensor], images: Images
    ) -> dict[str, Tensor]:
        targets = [{**t, "labels": t["labels"] - 1} for t in images.targets or ()]
        losses: dict[str, Tensor] = self.detector.compute_loss(
            targets, predicted, anchors
        )
        return losses

    def _detections(
        self,
        predicted: dict[str, Tensor],
        anchors: list[Tensor],
        images: Images,
        counts: list[int],
    ) -> Detections:
        shapes = self.detector.anchor_generator.num_anchors_per_location()
        cuts = [count * n for count, n in zip(counts, shapes, strict=True)]
        levels = {k: list(torch.split(v, cuts, 1)) for k, v in predicted.items()}
        found: Detections = self.detector.postprocess_detections(
            levels,
            [list(torch.split(boxes, cuts)) for boxes in anchors],
            images.image_sizes,
        )
        return [{**each, "labels": each["labels"] + 1} for each in found]

    @property
    def _class_names(self) -> tuple[str, ...]:
        return self.labels

    def _class_layers(self) -> dict[str, tuple[int, int]]:
        anchors = self.detector.anchor_generator.num_anchors_per_location()[0]
        return {"detector.head.classification_head.cls_logits": (anchors, 1)}


class SsdliteDetector(SingleStage):
    """SSDLite (Sandler et al. 2018): SSD with separable convolutions.

    Its boxes are shares of the batch's height and width, not pixels.
    """

    upstream_names: ClassVar[Mapping[str, str]] = {
        "backbone.extra.": "backbone.extra.",
        "head.": "head.",
    }

    def _losses(
        self, predicted: dict[str, Tensor], anchors: list[Tensor], images: Images
    ) -> dict[str, Tensor]:
        targets = list(images.targets or ())
        matched = [
            self.detector.proposal_matcher(box_iou(target["boxes"], boxes))
            if len(target["boxes"])
            else torch.full((len(boxes),), -1, device=boxes.device)
            for target, boxes in zip(targets, anchors, strict=True)
        ]
        losses: dict[str, Tensor] = self.detector.compute_loss(
            targets, predicted, anchors, matched
        )
        return losses

    def _detections(
        self,
        predicted: dict[str, Tensor],
        anchors: list[Tensor],
        images: Images,
        counts: list[int],
    ) -> Detections:
        found: Detections = self.detector.postprocess_detections(
            predicted, anchors, images.image_sizes
        )
        return found

    def _class_layers(self) -> dict[str, tuple[int, int]]:
        layers = "detector.head.classification_head.module_list"
        per_level = self.detector.anchor_generator.num_anchors_per_location()
        return {f"{layers}.{i}.1": (n, 1) for i, n in enumerate(per_level)}


class ExtraLevels(nn.Module):
    """Maps, and SSDLite's coarser ones behind them, each of half the size."""

    def __init__(self, channels: Sequence[int], norm_layer: Any) -> None:
        super().__init__()
        widths = SSD_EXTRA[: max(0, SSD_LEVELS - len(channels))]
        inputs = (channels[-1], *widths)
        self.channels = [*channels, *widths]
        self.extra = nn.ModuleList(
            _extra_block(before, width, norm_layer)
            for before, width in zip(inputs, widths, strict=False)
        )
        _normal_init(self.extra)

    def forward(self, maps: dict[str, Tensor]) -> dict[str, Tensor]:
        levels = list(maps.values())
        for block in self.extra:
            levels.append(block(levels[-1]))
        return OrderedDict((str(i), level) for i, level in enumerate(levels))


def build_retinanet(
    settings: DetectorSettings,
    features: Mapping[str, Feature],
    task: Mapping[str, Any],
) -> RetinaNetDetector:
    """The head ``vision/retinanet``; raises as :func:`build_faster_rcnn`."""
    maps = choose_maps(settings.features, features, finest=8)
    width, last, newer = settings.channels, maps[-1], settings.design == "v2"
    if newer and (width % 32 or width == 32):
        raise UserError(
            f"{width} channels do not make 32 groups of two and more, all alike",
            where="head.channels",
            why="RetinaNet v2 normalises in 32 groups",
            fix="choose a multiple of 32 from 64 on, or head.design = 'v1'",
        )
    strides = [*(f.stride for f in maps), 2 * last.stride, 4 * last.stride]
    anchors = make_anchors(settings.anchor_sizes, strides, times=4, octaves=3)
    head = RetinaNetHead(
        width,
        anchors.num_anchors_per_location()[0],
        len(task["labels"]),
        norm_layer=partial(nn.GroupNorm, 32) if newer else None,
    )
    if newer:
        head.regression_head._loss_type = "giou"
    coarser = LastLevelP6P7(cast("int", last.channels) if newer else width, width)
    detector = RetinaNet(
        make_pyramid(maps, width, coarser),
        num_classes=len(task["labels"]),
        anchor_generator=anchors,
        head=head,
        score_thresh=settings.score_threshold,
        nms_thresh=settings.nms_threshold,
        detections_per_img=settings.detections,
    )
    return RetinaNetDetector(detector, maps, task["labels"])


def build_ssdlite(
    settings: BoxHeadSettings,
    features: Mapping[str, Feature],
    task: Mapping[str, Any],
) -> SsdliteDetector:
    """The head ``vision/ssdlite``; raises as :func:`build_faster_rcnn`."""
    maps = choose_maps(settings.features, features, finest=8)
    # Statistics and boxes as torchvision's ssdlite320_mobilenet_v3_large has them.
    norm = partial(nn.BatchNorm2d, eps=0.001, momentum=0.03)
    levels = ExtraLevels([cast("int", f.channels) for f in maps], norm)
    anchors = DefaultBoxGenerator(
        [[2, 3] for _ in levels.channels], min_ratio=0.2, max_ratio=0.95
    )
    classes = len(task["labels"]) + 1
    per_level = anchors.num_anchors_per_location()
    detector = SSD(
        levels,
        anchors,
        size=(320, 320),  # of its own resizing, which is the data module's here
        num_classes=classes,
        head=SSDLiteHead(levels.channels, per_level, classes, norm),
        score_thresh=settings.score_threshold,
        nms_thresh=settings.nms_threshold,
        detections_per_img=settings.detections,
        topk_candidates=300,
    )
    return SsdliteDetector(detector, maps, task["labels"])
