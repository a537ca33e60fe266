"""MONAI's networks for classification cut into stages: DenseNet and ResNet, 2D and 3D.

Each stage leaves its map in the state under its name; the last one's is ``encoded``.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Literal

from monai.networks.nets.densenet import DenseNet
from monai.networks.nets.resnet import ResNet
from torch import nn

from headstart.errors import UserError
from headstart.specs import Feature
from headstart_medical.backbones import Configuration, MedicalBackbone, construct
from headstart_medical.stages import IMAGE, Level

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from headstart_medical.settings import (
        DenseNetSettings,
        EncoderSettings,
        ResNetSettings,
    )

ENCODED = "encoded"
LAYERS: dict[int, tuple[str, list[int]]] = {
    10: ("basic", [1, 1, 1, 1]),
    18: ("basic", [2, 2, 2, 2]),
    34: ("basic", [3, 4, 6, 3]),
    50: ("bottleneck", [3, 4, 6, 3]),
}
"""Block and layers of a ResNet by its depth."""
# torchvision's layers have no module `layers` around them.
TORCHVISION_NAMES = tuple(
    (f".{norm}.{what}", f".layers.{name}.{what}")
    for name in ("norm1", "norm2", "conv1", "conv2")
    for norm in (name, f"{name[:-1]}.{name[-1]}")
    for what in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
)


def build_densenet(
    settings: DenseNetSettings, folder: Path | None, task: Mapping[str, Any]
) -> MedicalBackbone:
    """MONAI's DenseNet with random parameters, cut into stages.

    Takes torchvision's weights too; their 2D kernels are inflated for volumes.

    Args:
        settings: What they leave open comes from ``folder``.
        folder: May hold ``config.json``.
        task: Names the channels and tells the dimensions.

    Raises:
        UserError: The weights are for another network, or it cannot be built.
    """
    config = Configuration(
        settings, folder, task, "DenseNet", ("DenseNet121", "densenet121")
    )
    dimensions = _dimensions(settings, task)
    arguments = config.arguments()
    arguments.pop("out_channels", None)
    arguments |= {"spatial_dims": dimensions, "in_channels": len(config.channels)}
    width = arguments.setdefault("init_features", 64)
    growth = arguments.setdefault("growth_rate", 32)
    blocks = arguments.setdefault("block_config", [6, 12, 24, 16])
    parts = construct(DenseNet, {**arguments, "out_channels": 1}).features

    names = {"stem": ["conv0", "norm0", "relu0", "pool0"]}
    widths = [width]
    for number, layers in enumerate(blocks, start=1):
        names[f"block{number}"] = [f"denseblock{number}"]
        if number > 1:
            names[f"block{number}"].insert(0, f"transition{number - 1}")
            width //= 2
        width += layers * growth
        widths.append(width)
    last = f"block{len(blocks)}"
    names[last].append("norm5")
    cut = {
        stage: [(name, getattr(parts, name), f"features.{name}.") for name in own]
        for stage, own in names.items()
    }
    # MONAI's own, in front of the pooling, writes into its input.
    cut[last].append(("relu5", nn.ReLU(), ""))
    origin = {stage: f"features.{own[-1]}" for stage, own in names.items()}
    origin[last] = "class_layers.relu"
    return _encoder(
        config,
        cut,
        widths,
        [4, *(4 * 2**level for level in range(len(blocks)))],
        arguments,
        origin,
        entry=("features.conv0.weight",),
        renames=TORCHVISION_NAMES,
        ignored=("classifier.*",),
    )


def build_resnet(
    settings: ResNetSettings, folder: Path | None, task: Mapping[str, Any]
) -> MedicalBackbone:
    """MONAI's ResNet with random parameters, cut into stages.

    By default it has torchvision's layers and names in 2D, so that those weights load;
    in 3D they are inflated.

    Args:
        settings: What they leave open comes from ``folder``.
        folder: May hold ``config.json``.
        task: Names the channels and tells the dimensions.

    Raises:
        UserError: The weights are for another network, or it cannot be built.
    """
    functions = tuple(f"resnet{depth}" for depth in LAYERS)
    config = Configuration(settings, folder, task, "ResNet", functions)
    dimensions = _dimensions(settings, task)
    arguments = config.arguments(conv1_t_stride=2, bias_downsample=False)
    theirs = str(config.raw.get("architecture", config.raw.get("network", "")))
    named = int(theirs[6:]) if theirs in functions else None
    if "layers" not in arguments:
        depth = settings.depth or named or 18
        arguments["block"], arguments["layers"] = LAYERS[depth]
    known = (arguments["block"], arguments["layers"])
    if settings.depth and (
        known != LAYERS[settings.depth] or (named or settings.depth) != settings.depth
    ):
        raise UserError(
            f"the weights are not for a ResNet of {settings.depth} layers",
            where="backbone.depth",
            fix="leave it out, or choose other weights",
        )
    for key in ("num_classes", "feed_forward"):
        arguments.pop(key, None)
    planes = arguments.setdefault("block_inplanes", [64, 128, 256, 512])
    arguments |= {"spatial_dims": dimensions, "n_input_channels": len(config.channels)}
    net = construct(ResNet, {**arguments, "num_classes": 1})

    stem = [("conv1", net.conv1, "conv1."), ("bn1", net.bn1, "bn1.")]
    stem.append(("act", net.act, ""))
    if not net.no_max_pool:
        stem.append(("maxpool", net.maxpool, ""))
    cut = {"stem": stem}
    for level in range(1, 5):
        layers = getattr(net, f"layer{level}")
        cut[f"layer{level}"] = [("blocks", layers, f"layer{level}.")]
    first = net.conv1.stride[0] * (1 if net.no_max_pool else 2)
    widen = arguments.get("widen_factor", 1.0)
    expansion = 4 if arguments["block"] == "bottleneck" else 1
    outer = [int(width * widen) for width in planes]
    # The stem's last module; the activation is the one that the blocks share.
    origin = {} if net.no_max_pool else {"stem": "maxpool"}
    origin |= {f"layer{level}": f"layer{level}" for level in range(1, 5)}
    return _encoder(
        config,
        cut,
        [outer[0], *(width * expansion for width in outer)],
        [first, *(first * 2**level for level in range(4))],
        arguments,
        origin,
        entry=("conv1.weight",),
    )


def _dimensions(settings: EncoderSettings, task: Mapping[str, Any]) -> Literal[2, 3]:
    """2 for slices, 3 for volumes."""
    theirs = task.get("dimensions")
    if settings.dimensions and theirs and settings.dimensions != theirs:
        raise UserError(
            f"the data has {theirs} dimensions, the network {settings.dimensions}",
            where="backbone.dimensions",
            fix="leave it out, or let the data give slices or volumes",
        )
    return settings.dimensions or (2 if theirs == 2 else 3)


def _encoder(
    config: Configuration,
    cut: Mapping[str, Sequence[tuple[str, nn.Module, str]]],
    widths: Sequence[int],
    strides: Sequence[int],
    arguments: Mapping[str, Any],
    origin: Mapping[str, str],
    **options: Any,
) -> MedicalBackbone:
    """Stages one after another.

    Args:
        cut: Of each stage its modules: our name, module, the library's prefix (empty
            without parameters).
        widths: Channels of each stage's map.
        strides: Of each stage's map.
    """
    kind: Literal["map", "volume"] = (
        "map" if arguments["spatial_dims"] == 2 else "volume"
    )
    last = list(cut)[-1]
    stages: dict[str, nn.Module] = {}
    features: list[Feature] = []
    upstream: dict[str, str] = {}
    source = IMAGE
    for (stage, parts), width, stride in zip(cut.items(), widths, strides, strict=True):
        name = ENCODED if stage == last else stage
        block = nn.Sequential(OrderedDict((own, module) for own, module, _ in parts))
        stages[stage] = Level(source, name, block)
        features.append(Feature(name, kind, width, stride, stage))
        for own, _, theirs in parts:
            if theirs:
                upstream[f"stages.{stage}.block.{own}."] = theirs
        source = name
    return MedicalBackbone(
        stages,
        features=features,
        upstream=upstream,
        network=config.network,
        arguments=arguments,
        channels=config.channels,
        their_channels=config.their_channels,
        origin={ENCODED if k == last else k: v for k, v in origin.items()},
        **options,
    )
