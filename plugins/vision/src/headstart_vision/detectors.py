"""Heads that find objects: Faster and Mask R-CNN here, RetinaNet and SSDLite.

Each holds torchvision's detector, whose backbone is no more than the pyramid: it reads
maps that the stages left in the state. Losses, sampling and non-maximum suppression
are torchvision's own.
"""

from __future__ import annotations

from contextlib import contextmanager
from math import log2
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import (
    FasterRCNN,
    FastRCNNConvFCHead,
    FastRCNNPredictor,
    TwoMLPHead,
)
from torchvision.models.detection.mask_rcnn import (
    MaskRCNN,
    MaskRCNNHeads,
    MaskRCNNPredictor,
)
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool
from torchvision.ops.poolers import initLevelMapper

from headstart_vision.detections import BATCH, Detector
from headstart_vision.pyramid import (
    Images,
    check_doubling,
    choose_maps,
    make_anchors,
    make_pyramid,
    to_float32,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from headstart.specs import Feature
    from headstart.stages import State
    from headstart_vision.settings import RegionSettings

Detections = list[dict[str, Tensor]]


class FasterRcnn(Detector):
    """Faster R-CNN (Ren et al. 2015) with a feature pyramid (Lin et al. 2017)."""

    upstream_names: ClassVar[Mapping[str, str]] = {
        "backbone.": "backbone.fpn.",
        "rpn.": "rpn.",
        "roi_heads.": "roi_heads.",
    }

    def _results(self, levels: dict[str, Tensor], images: Images) -> State:
        if self.training:
            return {"losses": self._two_stages(levels, images)[1]}
        results: State = {}
        if images.targets is not None:
            stages = (self.detector.rpn, self.detector.roi_heads)
            device = next(iter(levels.values())).device
            with _losses_alone(*stages), _repeatable(device):
                results["losses"] = self._two_stages(levels, images)[1]
        results["detections"] = self._two_stages(levels, images)[0]
        return results

    def _two_stages(
        self, levels: dict[str, Tensor], images: Images
    ) -> tuple[Detections, dict[str, Tensor]]:
        rpn, roi_heads = self.detector.rpn, self.detector.roi_heads
        proposals, rpn_losses = rpn(images, levels, images.targets)
        detections, roi_losses = roi_heads(
            levels, proposals, images.image_sizes, images.targets
        )
        return detections, {**roi_losses, **rpn_losses}

    def _class_layers(self) -> dict[str, tuple[int, int]]:
        predictor = "detector.roi_heads.box_predictor"
        return {f"{predictor}.cls_score": (1, 1), f"{predictor}.bbox_pred": (1, 4)}


class MaskRcnn(FasterRcnn):
    """Mask R-CNN (He et al. 2017): Faster R-CNN that also draws a mask in each box."""

    def __init__(
        self, detector: nn.Module, maps: Sequence[Feature], labels: Sequence[str]
    ) -> None:
        super().__init__(detector, maps, labels)
        self.batch = (*BATCH, "masks")

    def _class_layers(self) -> dict[str, tuple[int, int]]:
        masks = "detector.roi_heads.mask_predictor.mask_fcn_logits"
        return {**super()._class_layers(), masks: (1, 1)}


@contextmanager
def _losses_alone(*stages: nn.Module) -> Iterator[None]:
    """torchvision's stages give losses, while their layers stay in evaluation."""
    for stage in stages:
        stage.training = True
    try:
        yield
    finally:
        for stage in stages:
            stage.training = False


@contextmanager
def _repeatable(device: torch.device) -> Iterator[None]:
    """The same random numbers every time; the generators are put back."""
    cuda = device.type == "cuda"
    with torch.random.fork_rng([device] if cuda else []):
        torch.default_generator.manual_seed(0)
        if cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(0)
        yield


def build_faster_rcnn(
    settings: RegionSettings,
    features: Mapping[str, Feature],
    task: Mapping[str, Any],
) -> FasterRcnn:
    """The head ``vision/faster-rcnn``.

    Raises:
        UserError: Maps or anchors that do not fit.
    """
    parts, maps = _regions(settings, features, len(task["labels"]) + 1)
    return FasterRcnn(FasterRCNN(**parts), maps, task["labels"])


def build_mask_rcnn(
    settings: RegionSettings,
    features: Mapping[str, Feature],
    task: Mapping[str, Any],
) -> MaskRcnn:
    """The head ``vision/mask-rcnn``; raises as :func:`build_faster_rcnn`."""
    classes, width = len(task["labels"]) + 1, settings.channels
    parts, maps = _regions(settings, features, classes)
    predictor = MaskRCNNPredictor(width, width, classes)
    predictor.register_forward_hook(to_float32)
    detector = MaskRCNN(
        **parts,
        mask_roi_pool=_pooling(maps, 14),
        mask_head=MaskRCNNHeads(width, [width] * 4, 1, norm_layer=_norm(settings)),
        mask_predictor=predictor,
    )
    return MaskRcnn(detector, maps, task["labels"])


def sample_targets(task: Mapping[str, Any], batch_size: int) -> State:
    """Valid targets for tests, inside 48 x 64 pixels of a batch of 64 x 64.

    Every fourth image has no object, every second a crowd; every label occurs when
    the batch is large enough.
    """
    rows = torch.arange(batch_size)[:, None]
    labels = 1 + (rows + torch.arange(3)) % len(task["labels"])
    boxes = torch.tensor([[4.0, 4, 40, 36], [28, 10, 62, 46], [2, 20, 30, 44]])
    there = (rows % 4 != 2).expand(batch_size, 3)
    targets = {
        "boxes": boxes * there[..., None],
        "box_labels": labels * there,
        "crowd": there & (rows % 2 == 1) & (torch.arange(3) == 2),
    }
    if task["kind"] == "instances":
        y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
        x1, y1, x2, y2 = boxes[:, :, None, None].unbind(1)
        inside = (x >= x1) & (x < x2) & (y >= y1) & (y < y2)
        targets["masks"] = (inside & there[..., None, None]).to(torch.uint8)
    return targets


def _regions(
    settings: RegionSettings, features: Mapping[str, Feature], classes: int
) -> tuple[dict[str, Any], list[Feature]]:
    """What Faster and Mask R-CNN are made of, and the maps that they read."""
    maps = choose_maps(settings.features, features, finest=4)
    check_doubling(maps)
    width, newer, norm = settings.channels, settings.design == "v2", _norm(settings)
    strides = [*(f.stride for f in maps), 2 * maps[-1].stride]
    anchors = make_anchors(settings.anchor_sizes, strides, times=8)
    per_position = anchors.num_anchors_per_location()[0]
    rpn_head = RPNHead(width, per_position, conv_depth=2 if newer else 1)
    predictor = FastRCNNPredictor(settings.width, classes)
    for layer in (rpn_head, predictor):
        layer.register_forward_hook(to_float32)
    shape = (width, 7, 7)
    if newer:
        head = FastRCNNConvFCHead(shape, [width] * 4, [settings.width], norm)
    else:
        head = TwoMLPHead(width * 7**2, settings.width)
    parts = {
        "backbone": make_pyramid(maps, width, LastLevelMaxPool(), norm),
        "rpn_anchor_generator": anchors,
        "rpn_head": rpn_head,
        "box_roi_pool": _pooling(maps, 7),
        "box_head": head,
        "box_predictor": predictor,
        "box_score_thresh": settings.score_threshold,
        "box_nms_thresh": settings.nms_threshold,
        "box_detections_per_img": settings.detections,
        "box_batch_size_per_image": settings.sampled,
        "rpn_post_nms_top_n_train": settings.proposals or 2000,
        "rpn_post_nms_top_n_test": settings.proposals or 1000,
    }
    return parts, maps


def _norm(settings: RegionSettings) -> type[nn.Module] | None:
    return nn.BatchNorm2d if settings.design == "v2" else None


def _pooling(maps: Sequence[Feature], size: int) -> MultiScaleRoIAlign:
    """RoI pooling that knows the strides.

    torchvision's guesses them from the sizes in the first batch that it sees, and a
    small image in a padded batch leads it astray.
    """
    pooling = MultiScaleRoIAlign([str(i) for i, _ in enumerate(maps)], size, 2)
    pooling.scales = [1 / feature.stride for feature in maps]
    first, last = int(log2(maps[0].stride)), int(log2(maps[-1].stride))
    pooling.map_levels = initLevelMapper(first, last)
    return pooling
