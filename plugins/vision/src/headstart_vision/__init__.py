"""Images for headstart: CNN classification, object detection and segmentation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from headstart.hookspecs import hookimpl
from headstart.specs import (
    BackboneSpec,
    DataSpec,
    HeadSpec,
    MetricSpec,
    RecipeSource,
    WeightSourceSpec,
    label_metrics,
)
from headstart_vision.catalogue import backbone_specs, weight_sources

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__version__ = "0.1.0"
HOOK_API = "1.0"

_LABELS = ["cat", "dog", "cow"]
_COUNTS = [5, 3, 2]
_SINGLE = {"kind": "single-label", "labels": _LABELS, "counts": _COUNTS}
_MULTI = {"kind": "multi-label", "labels": _LABELS, "counts": _COUNTS}
_BOXES = {"kind": "boxes", "labels": _LABELS, "counts": _COUNTS}
_INSTANCES = {"kind": "instances", "labels": _LABELS, "counts": _COUNTS}
_SEMANTIC = {
    "kind": "semantic",
    "labels": ["background", *_LABELS],
    "counts": [90, *_COUNTS],
}


@hookimpl
def register_backbones() -> Sequence[BackboneSpec]:
    return backbone_specs()


@hookimpl
def register_weight_sources() -> Sequence[WeightSourceSpec]:
    return weight_sources()


def _head(
    name: str,
    summary: str,
    build: str,
    settings: str,
    task: Mapping[str, Any],
    **rest: Any,
) -> HeadSpec:
    module = build.partition(":")[0]
    return HeadSpec(
        name=f"vision/{name}",
        summary=summary,
        factory=f"headstart_vision.{build}",
        settings=f"headstart_vision.settings:{settings}",
        needs=("map",),
        sample_task=task,
        **{"sample": f"headstart_vision.{module}:sample_targets", **rest},
    )


_CLASSIFICATION: dict[str, Any] = {
    "sample": "headstart.classification:sample_labels",
    "targets": ("labels",),
}
_DETECTION: dict[str, Any] = {
    "sample": "headstart_vision.detectors:sample_targets",
    "targets": ("boxes", "box_labels", "crowd"),
    "kinds": ("boxes",),
    "metrics": ("map-50", "map", "map-75"),
}
_SEGMENTATION: dict[str, Any] = {
    "targets": ("mask",),
    "kinds": ("semantic",),
    "metrics": ("miou", "dice", "pixel-accuracy"),
}


@hookimpl
def register_heads() -> Sequence[HeadSpec]:
    return [
        _head(
            "classifier",
            "one label per image",
            "heads:build_classifier",
            "ImageHeadSettings",
            _SINGLE,
            **_CLASSIFICATION,
            kinds=("single-label",),
            metrics=("accuracy", "top-5", "macro-f1"),
            tiny={"layers": 2, "class_weights": "balanced"},
        ),
        _head(
            "multi-label",
            "any number of labels per image",
            "heads:build_multi_label",
            "ImageHeadSettings",
            _MULTI,
            **_CLASSIFICATION,
            kinds=("multi-label",),
            metrics=("macro-f1", "auroc", "exact-match"),
        ),
        _head(
            "faster-rcnn",
            "boxes in two stages, on a feature pyramid (Ren et al. 2015)",
            "detectors:build_faster_rcnn",
            "RegionSettings",
            _BOXES,
            **_DETECTION,
            tiny={"channels": 16},
        ),
        _head(
            "mask-rcnn",
            "boxes with a mask each, in two stages (He et al. 2017)",
            "detectors:build_mask_rcnn",
            "RegionSettings",
            _INSTANCES,
            **{
                **_DETECTION,
                "targets": (*_DETECTION["targets"], "masks"),
                "kinds": ("instances",),
                "metrics": ("mask-map-50", "mask-map", "map-50"),
            },
            tiny={"channels": 16},
        ),
        _head(
            "retinanet",
            "boxes in one stage, with focal loss (Lin et al. 2017)",
            "single_stage:build_retinanet",
            "DetectorSettings",
            _BOXES,
            **_DETECTION,
            tiny={"channels": 32},
        ),
        _head(
            "ssdlite",
            "boxes in one stage, light enough for a phone (Sandler et al. 2018)",
            "single_stage:build_ssdlite",
            "BoxHeadSettings",
            _BOXES,
            **_DETECTION,
        ),
        _head(
            "deeplab",
            "a class per pixel, atrous pyramid (DeepLabV3, Chen et al. 2017)",
            "segmenters:build_deeplab",
            "DeepLabSettings",
            _SEMANTIC,
            **_SEGMENTATION,
            tiny={"channels": 8, "rates": [2]},
        ),
        _head(
            "fcn",
            "a class per pixel, plain convolutions (Long et al. 2015)",
            "segmenters:build_fcn",
            "FcnSettings",
            _SEMANTIC,
            **_SEGMENTATION,
            tiny={"channels": 8, "auxiliary": 0.5},
        ),
        _head(
            "lraspp",
            "a class per pixel, light (LR-ASPP, Howard et al. 2019)",
            "segmenters:build_lraspp",
            "SegmenterSettings",
            _SEMANTIC,
            **_SEGMENTATION,
            tiny={"channels": 8},
        ),
    ]


_IMAGE = ("pixels", "image_sizes", "original_sizes")
_OBJECTS = (*_IMAGE, "boxes", "box_labels", "crowd", "masks")


def _data(
    name: str, summary: str, factory: str, settings: str, **rest: Any
) -> DataSpec:
    return DataSpec(
        name=f"vision/{name}",
        summary=summary,
        factory=f"headstart_vision.data:{factory}",
        settings=f"headstart_vision.settings:{settings}",
        **rest,
    )


@hookimpl
def register_data() -> Sequence[DataSpec]:
    return [
        _data(
            "images",
            "images with labels: class folders, a CSV file, or IDX files",
            "ImageClassification",
            "ClassificationSettings",
            yields=("pixels", "labels"),
            tiny="headstart_vision.tiny_classification:tiny_classification",
        ),
        _data(
            "objects",
            "images with boxes and masks: COCO, Pascal VOC or YOLO files",
            "ObjectData",
            "ObjectSettings",
            yields=_OBJECTS,
            tiny="headstart_vision.tiny_objects:tiny_objects",
        ),
        _data(
            "masks",
            "images with a class per pixel in a PNG each",
            "MaskData",
            "MaskSettings",
            yields=(*_IMAGE, "mask"),
            tiny="headstart_vision.tiny_masks:tiny_masks",
        ),
        _data(
            "composited",
            "composited scenes: real garments on real photos, boxes and masks exact",
            "SceneData",
            "SceneSettings",
            yields=(*_OBJECTS, "mask"),
            tiny="headstart_vision.tiny_scenes:tiny_scenes",
            licence="MIT (Fashion-MNIST) and BSD-3-Clause (scikit-image's photos)",
        ),
    ]


def _metric(
    name: str, summary: str, task: Mapping[str, Any], *kinds: str
) -> MetricSpec:
    return MetricSpec(
        name=f"vision/{name}",
        summary=summary,
        factory=f"headstart_vision.metrics:{name.replace('-', '_')}",
        inputs=("prediction", "target"),
        kinds=(task["kind"], *kinds),
        goal="max",
        sample="headstart_vision.metrics:sample_outputs",
        sample_task=task,
    )


@hookimpl
def register_metrics() -> Sequence[MetricSpec]:
    return [
        *label_metrics("vision", "images"),
        _metric(
            "map",
            "COCO's mean average precision of boxes, IoU .5 to .95",
            _BOXES,
            "instances",
        ),
        _metric(
            "map-50", "mean average precision of boxes at IoU .5", _BOXES, "instances"
        ),
        _metric(
            "map-75", "mean average precision of boxes at IoU .75", _BOXES, "instances"
        ),
        _metric(
            "mask-map",
            "COCO's mean average precision of masks, IoU .5 to .95",
            _INSTANCES,
        ),
        _metric("mask-map-50", "mean average precision of masks at IoU .5", _INSTANCES),
        _metric("miou", "mean over the classes of intersection over union", _SEMANTIC),
        _metric("dice", "mean over the classes of the Dice coefficient", _SEMANTIC),
        _metric("pixel-accuracy", "share of pixels with the right class", _SEMANTIC),
    ]


@hookimpl
def register_recipes() -> Sequence[RecipeSource]:
    return [
        RecipeSource(f"vision/{name}", "headstart_vision", f"recipes/{name}.toml")
        for name in ("classify", "detect", "segment", "instance")
    ]
