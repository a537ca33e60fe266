"""Weights by torchvision's enumeration names, e.g. ResNet50_Weights.IMAGENET1K_V2."""

from __future__ import annotations

import json
import os
from functools import cache
from typing import TYPE_CHECKING, Any

from headstart.errors import UserError, nearest
from headstart.files import write_text
from headstart.weights.published import cache_place, published_file
from headstart.weights.sources import Weights
from headstart.weights.tensors import read_tensors
from headstart_vision import catalogue
from headstart_vision.old_names import current_name

if TYPE_CHECKING:
    from pathlib import Path

    from headstart.weights.sources import SourceContext

LICENCE = "BSD-3-Clause (torchvision); the data it was trained on has terms of its own"
# Video and optical flow take no single images; quantised tensors cannot be fine-tuned.
MODULES = ("", "detection", "segmentation")
# Detectors whose normalisations torchvision runs with another epsilon than its
# classifiers': set to 0 after building, or the default of FrozenBatchNorm2d.
NORM_EPS = {
    "fasterrcnn_resnet50_fpn": 0.0,
    "keypointrcnn_resnet50_fpn": 0.0,
    "maskrcnn_resnet50_fpn": 0.0,
    "retinanet_resnet50_fpn": 0.0,
    "fasterrcnn_mobilenet_v3_large_fpn": 1e-5,
    "fasterrcnn_mobilenet_v3_large_320_fpn": 1e-5,
}
# What no stages here are cut from.
OTHER_BODIES = {
    "ssdlite320_mobilenet_v3_large": (
        "this detector is built into a MobileNetV3 of its own, with half the channels "
        "at its end and a map from the middle of a block",
        "train vision/ssdlite on torchvision:MobileNet_V3_Large_Weights.IMAGENET1K_V2, "
        "or take torchvision:FasterRCNN_MobileNet_V3_Large_320_FPN_Weights.COCO_V1",
    ),
    "ssd300_vgg16": (
        "this detector is built into a VGG, which no backbone here is",
        "take torchvision:FasterRCNN_MobileNet_V3_Large_320_FPN_Weights.COCO_V1",
    ),
}


def resolve_torchvision(reference: str, context: SourceContext) -> Weights:
    """Weights from torchvision's server, kept in the cache with a ``config.json``.

    The file's hash is compared with the part of it that its name states. The pickle is
    read by the core, with ``weights_only`` and once.

    Args:
        reference: ``ENUMERATION.NAME``; ``DEFAULT`` is what torchvision recommends.
        context: Its progress is told about the transfer.

    Raises:
        UserError: There are no such weights, or they cannot be had.
    """
    model, weights = _find(reference)
    if model in OTHER_BODIES:
        what, fix = OTHER_BODIES[model]
        raise UserError(what, where=f"torchvision:{reference}", fix=fix)
    with cache_place(f"torchvision/{weights}") as folder:
        otherwise = "use an asset: (see `headstart assets`)"
        path = published_file(str(weights.url), folder, context.progress, otherwise)
        files = (_renamed(path),) if _is_detector(model) else (path,)
        text = json.dumps(_config(model, weights), indent=1)
        config = folder / "config.json"
        # A cache that was filled for many may be read-only.
        if not config.is_file() or config.read_text(encoding="utf-8") != text:
            write_text(config, text)
    return Weights(
        f"torchvision:{reference}",
        folder,
        files,
        licence=str(weights.meta.get("license", LICENCE)),
        classes=_classes(model, weights),
    )


def _is_detector(model: str) -> bool:
    from torchvision import models

    return model in models.list_models(module=models.detection)


def _classes(model: str, weights: Any) -> tuple[str, ...]:
    """The classes by number.

    For a segmenter the background is a class like any other, called as users call it;
    for a detector it is what is in no box, and torchvision's name for it is nobody's.
    """
    classes = tuple(weights.meta.get("categories", ()))
    if _is_detector(model):
        return classes
    return tuple("background" if c == "__background__" else c for c in classes)


def _renamed(path: Path) -> Path:
    """The same tensors under the names that torchvision's modules have today.

    Files of detectors are older than their modules, which rename on loading.

    Raises:
        UserError: The file is no plain pickle of tensors.
        OSError: The disk.
    """
    from safetensors.torch import save_file

    target = path.with_suffix(".safetensors")
    if target.is_file():
        return target
    tensors = read_tensors((path,))
    names = {name: current_name(name) for name in tensors}
    if all(old == new for old, new in names.items()):
        return path
    draft = target.with_suffix(".part")
    save_file({names[name]: tensor for name, tensor in tensors.items()}, draft)
    os.replace(draft, target)
    return target


def _find(reference: str) -> tuple[str, Any]:
    """The model that weights are for, and their entry.

    Raises:
        UserError: There are none of that name.
    """
    known = weight_names()
    if reference not in known:
        enumeration, _, _ = reference.partition(".")
        own = [name for name in known if name.startswith(f"{enumeration}.")]
        raise UserError(
            f"torchvision has no weights {reference!r}",
            where=f"torchvision:{reference}",
            fix=f"choose {' or '.join(sorted(own))}"
            if own
            else nearest(reference, known),
        )
    return known[reference]


@cache
def weight_names() -> dict[str, tuple[str, Any]]:
    """All weights for images: model and entry by the entry's full name."""
    from torchvision import models

    found: dict[str, tuple[str, Any]] = {}
    for module in MODULES:
        place = getattr(models, module) if module else models
        for model in models.list_models(module=place):
            enumeration = models.get_model_weights(model)
            for name, entry in enumeration.__members__.items():
                found[f"{enumeration.__name__}.{name}"] = (model, entry)
    return found


def _config(model: str, weights: Any) -> dict[str, Any]:
    """What a backbone must know that these weights are loaded into, JSON-ready."""
    # A detector's or segmenter's name holds its backbone's.
    inside = [name for name in catalogue.NETWORKS if name in model]
    config: dict[str, Any] = {
        "architecture": max(inside, key=len, default=model),
        "preprocessing": preprocessing(weights.transforms()),
        "categories": list(weights.meta.get("categories", ())),
    }
    if model in NORM_EPS:
        config["norm_eps"] = NORM_EPS[model]
    if model.startswith(("deeplabv3", "fcn")):
        config["output_stride"] = 16 if "mobilenet" in model else 8
    elif model.startswith("lraspp"):
        config["output_stride"] = 16
    return config


def preprocessing(preset: Any) -> dict[str, Any]:
    """What torchvision's preset does to an image, as data modules take it.

    Detectors' presets change no sizes or colours (the model does, with ImageNet's
    mean and deviation), so theirs is the usual one.
    """
    found = dict(catalogue.IMAGENET)
    if hasattr(preset, "mean"):
        found["mean"] = [float(value) for value in preset.mean]
        found["std"] = [float(value) for value in preset.std]
        found["interpolation"] = preset.interpolation.value
        (found["resize"],) = preset.resize_size
        (found["size"],) = getattr(preset, "crop_size", preset.resize_size)
        found["antialias"] = bool(getattr(preset, "antialias", True))
    return found
