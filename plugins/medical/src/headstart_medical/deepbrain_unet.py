"""The network of deepbrain, a 3D U-Net that finds the brain in T1 images.

Source: https://github.com/iitzco/deepbrain; rebuilt from its TensorFlow graph.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F

from headstart.specs import Feature
from headstart_medical.backbones import Configuration, MedicalBackbone
from headstart_medical.stages import IMAGE, Up, check_sides

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

    from headstart.stages import State
    from headstart_medical.settings import DeepBrainSettings

NETWORK = "DeepBrainUNet"
WIDTHS = (8, 16, 32)
DROPOUT = 0.3


class DeepBrainLevel(nn.Module):
    """Two convolutions, which leave the skip, then a map of half the side.

    Args:
        source: The entry that it reads.
        name: The entry of the pooled map.
        skip: The entry of the skip.
        channels: Of its input.
        width: Of both outputs.
        dropout: Of the pooled map.
    """

    def __init__(
        self,
        source: str,
        name: str,
        skip: str,
        channels: int,
        width: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.source = source
        self.name = name
        self.skip = skip
        self.conv1 = nn.Conv3d(channels, width, 3, padding=1)
        self.conv2 = nn.Conv3d(width, width, 3, padding=1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, state: State) -> State:
        if self.source == IMAGE:
            check_sides(state[IMAGE], (8, 8, 8))
        skip = F.relu(self.conv2(F.relu(self.conv1(state[self.source]))))
        pooled = self.dropout(F.max_pool3d(skip, 2))
        return {**state, self.skip: skip, self.name: pooled}


class DeepBrainUp(nn.Module):
    """A transposed convolution, its channels before the skip's, then a convolution."""

    def __init__(self, channels: int, skip: int, width: int, dropout: float) -> None:
        super().__init__()
        self.up = nn.ConvTranspose3d(channels, width, 3, stride=2, bias=False)
        self.conv = nn.Conv3d(width + skip, width, 3, padding=1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, below: Tensor, skip: Tensor) -> Tensor:
        # TensorFlow's SAME cuts the last of 2n + 1 outputs; padding=1 would cut the
        # first, which moves everything by a voxel.
        depth, height, width = (2 * side for side in below.shape[2:])
        raised = self.up(below)[..., :depth, :height, :width]
        decoded = F.relu(self.conv(torch.cat([raised, skip], dim=1)))
        dropped: Tensor = self.dropout(decoded)
        return dropped


def build_deepbrain(
    settings: DeepBrainSettings, folder: Path | None, task: Mapping[str, Any]
) -> MedicalBackbone:
    """deepbrain's network with random parameters, cut into stages.

    It was trained on whole heads of 128 voxels a side, scaled by their maximum.

    Args:
        settings: Widths and dropout.
        folder: May hold ``config.json``.
        task: Names the channels.

    Raises:
        UserError: The weights are for another network.
    """
    config = Configuration(settings, folder, task, NETWORK)
    arguments = config.arguments()
    widths = arguments.setdefault("widths", list(WIDTHS))
    dropout = arguments.setdefault("dropout", DROPOUT)
    channels = len(config.channels)
    stages: dict[str, nn.Module] = {}
    features: list[Feature] = []
    upstream: dict[str, str] = {}
    source, width = IMAGE, channels
    for level, wide in enumerate(widths):
        name = "bottom" if level == len(widths) - 1 else f"down{level}"
        stages[f"level{level}"] = DeepBrainLevel(
            source, name, f"skip{level}", width, wide, dropout
        )
        upstream[f"stages.level{level}."] = f"level{level}."
        source, width = name, wide
    features.append(Feature("bottom", "volume", width, 8, "level2"))
    for level in (2, 1, 0):
        name, wide = f"up{level}" if level else "decoded", widths[level]
        block = DeepBrainUp(width, wide, wide, dropout)
        stages[f"up{level}"] = Up(source, f"skip{level}", name, block)
        upstream[f"stages.up{level}.block."] = f"up{level}."
        features.append(Feature(name, "volume", wide, 2**level, f"up{level}"))
        source, width = name, wide
    return MedicalBackbone(
        stages,
        features=features,
        upstream=upstream,
        network=NETWORK,
        arguments={**arguments, "in_channels": channels},
        channels=config.channels,
        their_channels=config.their_channels or (("T1",) if not config.found else ()),
        entry=("level0.conv1.weight",),
        preprocessing={"stride": [8, 8, 8], "intensity": "max"},
    )
