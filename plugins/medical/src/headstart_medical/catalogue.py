"""The networks of this plugin and what their specs say; torch-free."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from headstart.specs import BackboneSpec, Feature

if TYPE_CHECKING:
    from collections.abc import Mapping

HEADS_OWN = "output."
"""What weights call the head's layer once their source has renamed it."""


@dataclass(frozen=True)
class Network:
    """A network and the backbone that it is.

    Attributes:
        summary: One line for lists.
        upstream: The library's class; empty for other kinds of network.
        output: The prefix of its last layer, which is the head's, as the library calls
            it; empty where it has none of its own.
        factory: Code that builds it.
        settings: Its settings.
        encoder: Stages of the encoder, top first, with their strides.
        levels: Levels of the decoder, of strides ``2 ** (levels - 1)`` to 1; 0 has no
            decoder.
        tiny: Settings of a small variant.
        rest: Of its spec.
    """

    summary: str
    upstream: str
    output: str
    factory: str
    settings: str
    encoder: Mapping[str, int]
    tiny: Mapping[str, Any]
    levels: int = 0
    rest: Mapping[str, Any] = field(default_factory=dict)

    @property
    def stride(self) -> int:
        """Of the deepest level."""
        return max(self.encoder.values())


_DOWN = {"down0": 1, "down1": 2, "down2": 4, "down3": 8}
_LAYERS = {"layer1": 4, "layer2": 8, "layer3": 16, "layer4": 32}

NETWORKS = {
    "medical/deepbrain-unet": Network(
        "deepbrain's 3D U-Net of three levels, trained to find the brain in T1 images",
        "DeepBrainUNet",
        HEADS_OWN,
        "deepbrain_unet:build_deepbrain",
        "DeepBrainSettings",
        {"level0": 2, "level1": 4, "level2": 8},
        {"widths": [2, 3, 4]},
        levels=3,
        rest={
            "weights": "deepbrain:asset:deepbrain",
            "licence": "MIT",
            # The library is a TensorFlow graph; the plugin's tests walk it.
            "reference": "",
        },
    ),
    "medical/unet": Network(
        "MONAI's 3D U-Net with residual units",
        "UNet",
        "",
        "unets:build_unet",
        "UNetSettings",
        {"down0": 2, "down1": 4, "down2": 8, "down3": 16, "bottom": 16},
        {"channels": [4, 4, 6, 6, 8], "num_res_units": 1},
        levels=4,
    ),
    "medical/segresnet": Network(
        "MONAI's SegResNet (Myronenko 2018)",
        "SegResNet",
        "conv_final.2.conv.",
        "unets:build_segresnet",
        "SegResNetSettings",
        _DOWN,
        {"init_filters": 8, "blocks_down": [1, 1, 1, 1]},
        levels=3,
    ),
    "medical/dynunet": Network(
        "MONAI's DynUNet, the network of nnU-Net (Isensee et al. 2021)",
        "DynUNet",
        "output_block.conv.conv.",
        "unets:build_dynunet",
        "DynUNetSettings",
        {**_DOWN, "bottom": 16},
        {"filters": [4, 4, 6, 6, 8], "strides": [1, 2, 2, 2, 2]},
        levels=4,
    ),
    "medical/swin-unetr": Network(
        "MONAI's SwinUNETR (Hatamizadeh et al. 2022)",
        "SwinUNETR",
        "out.conv.conv.",
        "swin:build_swin_unetr",
        "SwinUnetrSettings",
        {"patch": 2, **_LAYERS},
        {
            "feature_size": 12,
            "depths": [1, 1, 1, 1],
            "num_heads": [1, 1, 2, 2],
            "window_size": 2,
        },
        levels=5,
    ),
    "medical/unetr": Network(
        "MONAI's UNETR (Hatamizadeh et al. 2021), for patches of one size",
        "UNETR",
        "out.conv.conv.",
        "swin:build_unetr",
        "UnetrSettings",
        {"patch": 16, "layer1": 16, "layer2": 16, "layer3": 16, "layer4": 16},
        {"feature_size": 4, "hidden_size": 12, "mlp_dim": 16, "num_heads": 2},
        levels=4,
    ),
    "medical/densenet121": Network(
        "MONAI's DenseNet121 for slices or volumes (Huang et al. 2017)",
        "DenseNet",
        "class_layers.out.",
        "encoders:build_densenet",
        "DenseNetSettings",
        {"stem": 4, "block1": 4, "block2": 8, "block3": 16, "block4": 32},
        {"init_features": 4, "growth_rate": 2, "block_config": [1, 2, 1, 1]},
    ),
    "medical/resnet": Network(
        "MONAI's ResNet for slices or volumes, 10 to 50 layers",
        "ResNet",
        "fc.",
        "encoders:build_resnet",
        "ResNetSettings",
        {"stem": 4, **_LAYERS},
        {"depth": 10, "block_inplanes": [4, 4, 6, 8]},
    ),
    "medical/slices": Network(
        "torchvision's ImageNet networks, applied to a volume slice by slice",
        "",
        "classifier.1.",
        "slices:build_slices",
        "SlicesSettings",
        {"stem": 2, **_LAYERS},
        {"width": 0.25},
        rest={
            "weights": "asset:medical-mobilenet-v2",
            "licence": "BSD-3-Clause",
            "reference": "headstart_medical.slices:reference_slices",
        },
    ),
}
"""Every backbone of this plugin, by name."""


def backbone_of(upstream: str) -> str:
    """The backbone that a class of the upstream library is; empty when none is."""
    found = (
        name for name, n in NETWORKS.items() if upstream and n.upstream == upstream
    )
    return next(found, "")


def backbone_specs() -> list[BackboneSpec]:
    """What the plugin registers."""
    return [_spec(name, network) for name, network in NETWORKS.items()]


def _spec(name: str, network: Network) -> BackboneSpec:
    ups = range(network.levels - 1, -1, -1)
    side = network.stride
    return BackboneSpec(
        name=name,
        summary=network.summary,
        factory=f"headstart_medical.{network.factory}",
        settings=f"headstart_medical.settings:{network.settings}",
        inputs=("image",),
        features=_features(network),
        stages=(*network.encoder, *(f"up{level}" for level in ups)),
        sample="headstart_medical.backbones:sample_volume",
        tiny={"weights": "none", **network.tiny},
        sample_task={
            "channels": ["T1"],
            "dimensions": 3,
            "spacing": [1.0, 1.0, 1.0],
            "patch": [2 * side, side, side],
        },
        **{
            "weights": "none",
            "reference": "headstart_medical.backbones:reference_volume",
            **network.rest,
        },
    )


def _features(network: Network) -> tuple[Feature, ...]:
    """Of a decoder its levels and what it starts from, else the levels themselves."""
    stages = list(network.encoder)
    if not network.levels:
        *levels, last = stages
        named = [*zip(levels, levels, strict=True), ("encoded", last)]
        return tuple(
            Feature(feature, "volume", None, network.encoder[stage], stage)
            for feature, stage in named
        )
    features = [Feature("bottom", "volume", None, network.stride, stages[-1])]
    for level in range(network.levels - 1, -1, -1):
        name = f"up{level}" if level else "decoded"
        features.append(Feature(name, "volume", None, 2**level, f"up{level}"))
    return tuple(features)
