"""Which networks the plugin has, and where each is cut; imports no torch.

All are cut alike: ``stem``, then ``layer1`` to ``layer4`` with maps of stride 4, 8, 16
and 32, then what a network has on top at stride 32 (``last``, ``norm``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from headstart.specs import BackboneSpec, Feature, WeightSourceSpec

if TYPE_CHECKING:
    from collections.abc import Mapping

LAYERS = ("stem", "layer1", "layer2", "layer3", "layer4")
IMAGENET: Mapping[str, Any] = {
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
    "size": 224,
    "resize": 256,
    "interpolation": "bilinear",
    "antialias": True,
    "stride": 32,
}
"""What most ImageNet weights were trained on."""


@dataclass(frozen=True)
class Network:
    """One architecture.

    Attributes:
        family: Which builder cuts it.
        channels: Of each stage's map, in order.
        ends: For networks that upstream keeps as one sequence ``features``: the index
            after the last module of each stage.
        weights: Its default weights; empty where nobody publishes any.
        first: Stages whose first block's map is a feature too, ``NAME_first``: what
            torchvision's detectors and segmenters read from this network.
        preprocessing: Where it differs from ImageNet's usual one.
    """

    family: str
    channels: tuple[int, ...]
    ends: tuple[int, ...] = ()
    weights: str = ""
    first: tuple[str, ...] = ()
    preprocessing: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Family:
    """Networks that differ in depth and width alone; one backbone each.

    Attributes:
        name: Of the backbone.
        summary: One line for lists.
        default: The architecture that is used when none is named.
        stages: Names, the same for all its networks.
        strides: Of each stage's map.
        licence: Of the default weights.
        tiny: Settings of a small variant.
        reference: Code, the same maps from the upstream library.
    """

    name: str
    summary: str
    default: str
    stages: tuple[str, ...]
    strides: tuple[int, ...]
    licence: str
    tiny: Mapping[str, Any]
    reference: str = "headstart_vision.backbones:reference_cnn"


TORCHVISION_LICENCE = "BSD-3-Clause; trained on ImageNet-1K, which has terms of its own"

FAMILIES: dict[str, Family] = {
    "mobilenet_v2": Family(
        "vision/mobilenet-v2",
        "MobileNetV2, 3.5 M parameters: small and quick",
        "mobilenet_v2",
        (*LAYERS, "last"),
        (2, 4, 8, 16, 32, 32),
        "BSD-3-Clause",
        {"width": 0.25},
    ),
    "mobilenet_v3": Family(
        "vision/mobilenet-v3",
        "MobileNetV3 small and large, 2.5 and 5.5 M parameters",
        "mobilenet_v3_large",
        (*LAYERS, "last"),
        (2, 4, 8, 16, 32, 32),
        TORCHVISION_LICENCE,
        {"architecture": "mobilenet_v3_small", "width": 0.25},
    ),
    "efficientnet_lite": Family(
        "vision/efficientnet-lite0",
        "EfficientNet-Lite0, 4.7 M parameters, made for phones",
        "efficientnet_lite0",
        (*LAYERS, "last"),
        (2, 4, 8, 16, 32, 32),
        "Apache-2.0",
        {"width": 0.25},
        reference="",
    ),
    "resnet": Family(
        "vision/resnet",
        "ResNet 18, 34, 50, 101, 152, ResNeXt and Wide ResNet",
        "resnet50",
        LAYERS,
        (4, 4, 8, 16, 32),
        TORCHVISION_LICENCE,
        {"architecture": "resnet10"},
    ),
    "efficientnet": Family(
        "vision/efficientnet",
        "EfficientNet b0 to b7 and EfficientNetV2 s, m, l",
        "efficientnet_b0",
        (*LAYERS, "last"),
        (2, 4, 8, 16, 32, 32),
        TORCHVISION_LICENCE,
        {"width": 0.25},
    ),
    "convnext": Family(
        "vision/convnext",
        "ConvNeXt tiny, small, base and large",
        "convnext_tiny",
        (*LAYERS, "norm"),
        (4, 4, 8, 16, 32, 32),
        TORCHVISION_LICENCE,
        {"width": 0.125},
    ),
}

_WIDE = (64, 256, 512, 1024, 2048)
_NARROW = (64, 64, 128, 256, 512)
_B_ENDS = (2, 3, 4, 6, 8, 9)


def _resnet(weights: str, channels: tuple[int, ...] = _WIDE) -> Network:
    return Network("resnet", channels, weights=weights and f"torchvision:{weights}")


def _efficientnet(
    weights: str, channels: tuple[int, ...], ends: tuple[int, ...] = _B_ENDS
) -> Network:
    name = f"torchvision:EfficientNet_{weights}"
    return Network("efficientnet", channels, ends, name)


def _convnext(size: str, *channels: int) -> Network:
    name = f"torchvision:ConvNeXt_{size}_Weights.IMAGENET1K_V1"
    every = (channels[0], *channels, channels[-1])
    return Network("convnext", every, (1, 2, 4, 6, 8), name)


NETWORKS: dict[str, Network] = {
    "mobilenet_v2": Network(
        "mobilenet_v2",
        (16, 24, 32, 96, 320, 1280),
        (2, 4, 7, 14, 18, 19),
        "asset:mobilenet-v2",
    ),
    "mobilenet_v3_small": Network(
        "mobilenet_v3",
        (16, 16, 24, 48, 96, 576),
        (1, 2, 4, 9, 12, 13),
        "torchvision:MobileNet_V3_Small_Weights.IMAGENET1K_V1",
        ("layer2", "layer4"),
    ),
    "mobilenet_v3_large": Network(
        "mobilenet_v3",
        (16, 24, 40, 112, 160, 960),
        (2, 4, 7, 13, 16, 17),
        "torchvision:MobileNet_V3_Large_Weights.IMAGENET1K_V2",
        ("layer2", "layer4"),
    ),
    "efficientnet_lite0": Network(
        "efficientnet_lite",
        (16, 24, 40, 112, 320, 1280),
        weights="asset:efficientnet-lite0",
        preprocessing={
            "mean": [127 / 255] * 3,
            "std": [128 / 255] * 3,
            "interpolation": "bicubic",
        },
    ),
    "resnet10": _resnet("", _NARROW),
    "resnet18": _resnet("ResNet18_Weights.IMAGENET1K_V1", _NARROW),
    "resnet34": _resnet("ResNet34_Weights.IMAGENET1K_V1", _NARROW),
    "resnet50": _resnet("ResNet50_Weights.IMAGENET1K_V2"),
    "resnet101": _resnet("ResNet101_Weights.IMAGENET1K_V2"),
    "resnet152": _resnet("ResNet152_Weights.IMAGENET1K_V2"),
    "resnext50_32x4d": _resnet("ResNeXt50_32X4D_Weights.IMAGENET1K_V2"),
    "resnext101_32x8d": _resnet("ResNeXt101_32X8D_Weights.IMAGENET1K_V2"),
    "resnext101_64x4d": _resnet("ResNeXt101_64X4D_Weights.IMAGENET1K_V1"),
    "wide_resnet50_2": _resnet("Wide_ResNet50_2_Weights.IMAGENET1K_V2"),
    "wide_resnet101_2": _resnet("Wide_ResNet101_2_Weights.IMAGENET1K_V2"),
    "efficientnet_b0": _efficientnet(
        "B0_Weights.IMAGENET1K_V1", (16, 24, 40, 112, 320, 1280)
    ),
    "efficientnet_b1": _efficientnet(
        "B1_Weights.IMAGENET1K_V2", (16, 24, 40, 112, 320, 1280)
    ),
    "efficientnet_b2": _efficientnet(
        "B2_Weights.IMAGENET1K_V1", (16, 24, 48, 120, 352, 1408)
    ),
    "efficientnet_b3": _efficientnet(
        "B3_Weights.IMAGENET1K_V1", (24, 32, 48, 136, 384, 1536)
    ),
    "efficientnet_b4": _efficientnet(
        "B4_Weights.IMAGENET1K_V1", (24, 32, 56, 160, 448, 1792)
    ),
    "efficientnet_b5": _efficientnet(
        "B5_Weights.IMAGENET1K_V1", (24, 40, 64, 176, 512, 2048)
    ),
    "efficientnet_b6": _efficientnet(
        "B6_Weights.IMAGENET1K_V1", (32, 40, 72, 200, 576, 2304)
    ),
    "efficientnet_b7": _efficientnet(
        "B7_Weights.IMAGENET1K_V1", (32, 48, 80, 224, 640, 2560)
    ),
    "efficientnet_v2_s": _efficientnet(
        "V2_S_Weights.IMAGENET1K_V1", (24, 48, 64, 160, 256, 1280), (2, 3, 4, 6, 7, 8)
    ),
    "efficientnet_v2_m": _efficientnet(
        "V2_M_Weights.IMAGENET1K_V1", (24, 48, 80, 176, 512, 1280)
    ),
    "efficientnet_v2_l": _efficientnet(
        "V2_L_Weights.IMAGENET1K_V1", (32, 64, 96, 224, 640, 1280)
    ),
    "convnext_tiny": _convnext("Tiny", 96, 192, 384, 768),
    "convnext_small": _convnext("Small", 96, 192, 384, 768),
    "convnext_base": _convnext("Base", 128, 256, 512, 1024),
    "convnext_large": _convnext("Large", 192, 384, 768, 1536),
}


def architectures(backbone: str) -> tuple[str, ...]:
    """The networks that a backbone of this plugin can be, the default one first."""
    family = family_of(backbone)
    if family is None:
        return ()
    own = [n for n, network in NETWORKS.items() if FAMILIES[network.family] is family]
    return (family.default, *(name for name in own if name != family.default))


def family_of(backbone: str) -> Family | None:
    """The family that is registered under a name."""
    return next((f for f in FAMILIES.values() if f.name == backbone), None)


def backbone_of(architecture: str) -> str:
    """The backbone that has a network; empty when none has it."""
    network = NETWORKS.get(architecture)
    return FAMILIES[network.family].name if network else ""


def backbone_specs() -> list[BackboneSpec]:
    """One backbone for each family, and timm's."""
    return [*(_spec(family) for family in FAMILIES.values()), _timm()]


def _spec(family: Family) -> BackboneSpec:
    network = NETWORKS[family.default]
    selectable = len(architectures(family.name)) > 1
    features: list[Feature] = []
    for stage, channels, stride in zip(
        family.stages, network.channels, family.strides, strict=True
    ):
        if stage in network.first:
            features.append(Feature(f"{stage}_first", "map", None, stride, stage))
        width = None if selectable else channels
        features.append(Feature(stage, "map", width, stride, stage))
    return BackboneSpec(
        name=family.name,
        summary=family.summary,
        factory="headstart_vision.backbones:build_cnn",
        settings="headstart_vision.settings:CnnSettings",
        weights=network.weights,
        inputs=("pixels",),
        features=tuple(features),
        stages=family.stages,
        licence=family.licence,
        sample="headstart_vision.backbones:sample_pixels",
        reference=family.reference,
        tiny={"weights": "none", **family.tiny},
    )


def _timm() -> BackboneSpec:
    strides = (2, 4, 8, 16, 32)
    return BackboneSpec(
        name="vision/timm",
        summary="any network of timm that is a sequence of stages (optional extra)",
        factory="headstart_vision.timm_source:build_timm",
        settings="headstart_vision.settings:TimmSettings",
        weights="timm:resnet18.a1_in1k",
        inputs=("pixels",),
        features=tuple(
            Feature(stage, "map", None, stride, stage)
            for stage, stride in zip(LAYERS, strides, strict=True)
        ),
        licence="as the model's card on the hub says",
        sample="headstart_vision.backbones:sample_pixels",
        reference="headstart_vision.timm_source:reference_timm",
        tiny={"weights": "none", "architecture": "test_resnet"},
    )


def weight_sources() -> list[WeightSourceSpec]:
    """``torchvision:`` and ``timm:``."""
    return [
        WeightSourceSpec(
            "torchvision",
            "weights by torchvision's names, e.g. ResNet50_Weights.IMAGENET1K_V2",
            "headstart_vision.weights:resolve_torchvision",
        ),
        WeightSourceSpec(
            "timm",
            "weights by timm's names, e.g. resnet18.a1_in1k, from the hub",
            "headstart_vision.timm_source:resolve_timm",
        ),
    ]
