"""MONAI's U-Nets cut into stages: UNet, SegResNet, DynUNet.

The blocks are MONAI's own modules. A level of the encoder leaves its skip in the state,
``down0`` at the top; ``bottom`` is what the decoder starts from; a level of the decoder
leaves ``up3`` … ``up1`` and, at the top, ``decoded``.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from monai.networks.layers.simplelayers import SkipConnection
from monai.networks.nets.dynunet import DynUNet
from monai.networks.nets.segresnet import SegResNet
from monai.networks.nets.unet import UNet
from torch import nn

from headstart.errors import UserError
from headstart.specs import Feature
from headstart_medical.backbones import Configuration, MedicalBackbone, construct
from headstart_medical.stages import IMAGE, AddSkip, First, Level, SkipFirst, Up

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from headstart_medical.settings import (
        DynUNetSettings,
        SegResNetSettings,
        UNetSettings,
    )

BOTTOM = "bottom"


def up_name(level: int) -> str:
    """What a level of the decoder leaves in the state."""
    return f"up{level}" if level else "decoded"


def build_unet(
    settings: UNetSettings, folder: Path | None, task: Mapping[str, Any]
) -> MedicalBackbone:
    """MONAI's U-Net with random parameters, cut into stages.

    Its last level writes one channel for each class of its weights, not features. This
    is ``decoded``, and the head's convolution mixes it; for other numbers of classes
    ``backbone.out_channels`` gives that level more channels and a fresh start.

    Args:
        settings: What they leave open comes from ``folder``.
        folder: May hold ``config.json``.
        task: Names the channels.

    Raises:
        UserError: The weights are for another network, or it cannot be built.
    """
    config = Configuration(settings, folder, task, "UNet")
    arguments = config.arguments(num_res_units=2)
    widths = arguments.setdefault("channels", [16, 32, 64, 128, 256])
    strides = arguments.setdefault("strides", [2] * (len(widths) - 1))
    arguments.setdefault("out_channels", widths[0])
    arguments |= {"spatial_dims": 3, "in_channels": len(config.channels)}
    block, path = construct(UNet, arguments).model, "model"
    steps = [math.prod(strides[:level]) for level in range(len(strides) + 1)]

    stages: dict[str, nn.Module] = {}
    upstream: dict[str, str] = {}
    ups: list[tuple[nn.Module, str]] = []
    source, level = IMAGE, 0
    while _has_skip(block):
        name = f"down{level}"
        stages[name] = (
            Level(source, name, block[0])
            if level
            else First(name, block[0], [steps[-1]] * 3)
        )
        upstream[f"stages.{name}.block."] = f"{path}.0."
        ups.append((block[2], path))
        block, path = block[1].submodule, f"{path}.1.submodule"
        source, level = name, level + 1
    stages[BOTTOM] = Level(source, BOTTOM, block)
    upstream[f"stages.{BOTTOM}.block."] = f"{path}."
    features = [Feature(BOTTOM, "volume", widths[-1], steps[-1], BOTTOM)]
    origin = {BOTTOM: path, "decoded": "model"}
    source = BOTTOM
    for level in reversed(range(len(ups))):
        module, above = ups[level]
        stage, name = f"up{level}", up_name(level)
        stages[stage] = Up(source, f"down{level}", name, SkipFirst(module))
        upstream[f"stages.{stage}.block.block."] = f"{above}.2."
        width = widths[level - 1] if level else arguments["out_channels"]
        features.append(Feature(name, "volume", width, steps[level], stage))
        origin[name] = f"{above}.2"
        source = name
    return MedicalBackbone(
        stages,
        features=features,
        upstream=upstream,
        network="UNet",
        arguments=arguments,
        channels=config.channels,
        their_channels=config.their_channels,
        entry=("model.0.conv.weight", "model.0.conv.unit0.*", "model.0.residual.*"),
        anew=("model.2.*",),
        origin=origin,
        preprocessing={"stride": [steps[-1]] * 3},
    )


def _has_skip(block: nn.Module) -> bool:
    if not isinstance(block, nn.Sequential) or len(block) != 3:
        return False
    return isinstance(block[1], SkipConnection)


def build_segresnet(
    settings: SegResNetSettings, folder: Path | None, task: Mapping[str, Any]
) -> MedicalBackbone:
    """MONAI's SegResNet with random parameters, cut into stages.

    Args:
        settings: What they leave open comes from ``folder``.
        folder: May hold ``config.json``.
        task: Names the channels.

    Raises:
        UserError: The weights are for another network, or it cannot be built.
    """
    config = Configuration(settings, folder, task, "SegResNet")
    arguments = config.arguments(init_filters=16)
    arguments.pop("out_channels", None)
    arguments.pop("use_conv_final", None)
    filters = arguments.setdefault("init_filters", 8)
    depth = len(arguments.setdefault("blocks_down", [1, 2, 2, 4]))
    blocks_up = arguments.setdefault("blocks_up", [1] * (depth - 1))
    if len(blocks_up) != depth - 1:
        raise UserError(
            f"{depth} levels down and {len(blocks_up)} up do not end at full size",
            where="backbone.blocks_up",
            fix=f"give {depth - 1} numbers",
        )
    arguments |= {"spatial_dims": 3, "in_channels": len(config.channels)}
    net: Any = construct(SegResNet, arguments)
    stride = 2 ** (depth - 1)

    first = [net.convInit, net.down_layers[0]]
    if net.dropout_prob is not None:
        first.insert(1, net.dropout)
    stages: dict[str, nn.Module] = {
        "down0": First("down0", nn.Sequential(*first), [stride] * 3)
    }
    upstream = {
        "stages.down0.block.0.": "convInit.",
        f"stages.down0.block.{len(first) - 1}.": "down_layers.0.",
    }
    source = "down0"
    for level in range(1, depth):
        stage = f"down{level}"
        name = stage if level < depth - 1 else BOTTOM
        stages[stage] = Level(source, name, net.down_layers[level])
        upstream[f"stages.{stage}.block."] = f"down_layers.{level}."
        source = name
    width = filters * stride
    features = [Feature(BOTTOM, "volume", width, stride, f"down{depth - 1}")]
    origin = {BOTTOM: f"down_layers.{depth - 1}"}
    for step, level in enumerate(reversed(range(depth - 1))):
        stage, name = f"up{level}", up_name(level)
        layers: nn.Module = net.up_layers[step]
        origin[name] = f"up_layers.{step}"
        prefix = f"stages.{stage}.block."
        upstream[f"{prefix}sample."] = f"up_samples.{step}."
        upstream[f"{prefix}block."] = f"up_layers.{step}."
        if not level:
            # Norm and activation in front of the output convolution.
            layers = nn.Sequential(layers, *net.conv_final[:2])
            del upstream[f"{prefix}block."]
            upstream[f"{prefix}block.0."] = f"up_layers.{step}."
            upstream[f"{prefix}block.1."] = "conv_final.0."
            origin[name] = "conv_final.1"
        block = AddSkip(net.up_samples[step], layers)
        stages[stage] = Up(source, f"down{level}", name, block)
        width = filters * 2**level
        features.append(Feature(name, "volume", width, 2**level, stage))
        source = name
    return MedicalBackbone(
        stages,
        features=features,
        upstream=upstream,
        network="SegResNet",
        arguments=arguments,
        channels=config.channels,
        their_channels=config.their_channels,
        entry=("convInit.*",),
        origin=origin,
        preprocessing={"stride": [stride] * 3},
    )


def build_dynunet(
    settings: DynUNetSettings, folder: Path | None, task: Mapping[str, Any]
) -> MedicalBackbone:
    """MONAI's DynUNet with random parameters, cut into stages.

    The heads of deep supervision are the head's, which reads ``up1``, ``up2`` ….

    Args:
        settings: What they leave open comes from ``folder``.
        folder: May hold ``config.json``.
        task: Names the channels; ``patch`` and ``spacing`` plan the strides.

    Raises:
        UserError: The weights are for another network, or it cannot be built.
    """
    config = Configuration(settings, folder, task, "DynUNet")
    arguments = config.arguments()
    for key in ("out_channels", "deep_supervision", "deep_supr_num"):
        arguments.pop(key, None)
    if "strides" not in arguments:
        strides, kernels = plan_levels(task.get("patch"), task.get("spacing"))
        arguments["strides"] = strides
        arguments.setdefault("kernel_size", kernels)
    strides = [axes(stride) for stride in arguments["strides"]]
    arguments.setdefault("kernel_size", [3] * len(strides))
    arguments["upsample_kernel_size"] = arguments["strides"][1:]
    arguments |= {"spatial_dims": 3, "in_channels": len(config.channels)}
    net: Any = construct(DynUNet, {**arguments, "out_channels": 1})
    widths, depth = list(net.filters), len(strides)
    if strides[0] != [1, 1, 1]:
        raise UserError(
            "the first level must keep the image's size",
            where="backbone.strides",
            fix="let the strides start with 1",
        )
    steps = [
        [math.prod(s[axis] for s in strides[: level + 1]) for axis in range(3)]
        for level in range(depth)
    ]

    downs = [net.input_block, *net.downsamples, net.bottleneck]
    stages: dict[str, nn.Module] = {}
    upstream: dict[str, str] = {}
    source = IMAGE
    for level, block in enumerate(downs):
        stage = f"down{level}" if level < depth - 1 else BOTTOM
        path = f"downsamples.{level - 1}." if level else "input_block."
        upstream[f"stages.{stage}.block."] = (
            path if level < depth - 1 else "bottleneck."
        )
        stages[stage] = (
            Level(source, stage, block) if level else First(stage, block, steps[-1])
        )
        source = stage
    features = [Feature(BOTTOM, "volume", widths[-1], max(steps[-1]), BOTTOM)]
    origin = {BOTTOM: "bottleneck"}
    for step, level in enumerate(reversed(range(depth - 1))):
        stage, name = f"up{level}", up_name(level)
        stages[stage] = Up(source, f"down{level}", name, net.upsamples[step])
        upstream[f"stages.{stage}.block."] = f"upsamples.{step}."
        feature = Feature(name, "volume", widths[level], max(steps[level]), stage)
        features.append(feature)
        origin[name] = f"upsamples.{step}"
        source = name
    return MedicalBackbone(
        stages,
        features=features,
        upstream=upstream,
        network="DynUNet",
        arguments=arguments,
        channels=config.channels,
        their_channels=config.their_channels,
        entry=("input_block.conv1.*", "input_block.conv3.*"),
        # The same tensors a second time, and heads of deep supervision.
        ignored=("skip_layers.*", "deep_supervision_heads.*"),
        origin=origin,
        preprocessing={"stride": steps[-1]},
    )


def axes(value: int | Sequence[int]) -> list[int]:
    """One number for each of the three axes."""
    return [value] * 3 if isinstance(value, int) else list(value)


def plan_levels(
    patch: Sequence[int] | None, spacing: Sequence[float] | None
) -> tuple[list[Any], list[Any]]:
    """Strides and kernels of each level, as nnU-Net plans them (Isensee et al. 2021).

    An axis is halved while it has 8 voxels or more, an even number of them, and they
    are at most twice as long as the shortest; until then kernels do not span it either.

    Args:
        patch: Voxels along each axis; ``None`` plans five levels without it.
        spacing: Length of a voxel along each axis; ``None``: the same.

    Returns:
        For each level a number for each axis.

    Raises:
        UserError: The patch cannot be halved twice.
    """
    if patch is None:
        return [[1] * 3] + [[2] * 3] * 4, [[3] * 3] * 5
    sides, lengths = list(patch), list(spacing or [1.0] * 3)
    strides, kernels = [[1, 1, 1]], []
    while True:
        near = [length <= 2 * min(lengths) for length in lengths]
        kernels.append([3 if close else 1 for close in near])
        halved = [
            close and side >= 8 and side % 2 == 0
            for close, side in zip(near, sides, strict=True)
        ]
        if not any(halved) or len(strides) == 6:
            break
        strides.append([2 if half else 1 for half in halved])
        sides = [s // 2 if half else s for s, half in zip(sides, halved, strict=True)]
        lengths = [
            x * 2 if half else x for x, half in zip(lengths, halved, strict=True)
        ]
    if len(strides) < 3:
        raise UserError(
            f"a patch of {'x'.join(map(str, patch))} cannot be halved twice",
            where="data.patch",
            why="DynUNet has at least three levels; sides are halved down to 4 voxels",
            fix="give a larger patch, with sides that 4 divides, or backbone.strides",
        )
    return strides, kernels
