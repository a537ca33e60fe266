"""torchvision's ImageNet networks, applied to a volume slice by slice.

A volume's slices lie along its last axis. What goes from stage to stage is
(batch, channels, height, width, slices).
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torchvision import models

from headstart.errors import UserError, nearest
from headstart.specs import Feature
from headstart_medical.backbones import Configuration, MedicalBackbone
from headstart_medical.settings import SLICE_NETWORKS
from headstart_medical.stages import IMAGE

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

    from headstart.stages import Backbone, State
    from headstart_medical.settings import SlicesSettings

ENCODED = "encoded"
VOLUME = 5
"""Dimensions of a batch of volumes."""
STAGES = ("stem", "layer1", "layer2", "layer3", "layer4")
# The modules of each stage, as torchvision calls them; maps of stride 4 to 32 behind
# the layers.
CUTS: dict[str, tuple[tuple[str, ...], ...]] = {
    "mobilenet_v2": tuple(
        tuple(f"features.{number}" for number in numbers)
        for numbers in (range(2), range(2, 4), range(4, 7), range(7, 14), range(14, 19))
    ),
    "efficientnet_b0": tuple(
        tuple(f"features.{number}" for number in numbers)
        for numbers in (range(2), range(2, 3), range(3, 4), range(4, 6), range(6, 9))
    ),
    "convnext_tiny": tuple(
        tuple(f"features.{number}" for number in numbers)
        for numbers in (range(1), range(1, 2), range(2, 4), range(4, 6), range(6, 8))
    ),
    "densenet121": (
        tuple(f"features.{name}" for name in ("conv0", "norm0", "relu0", "pool0")),
        ("features.denseblock1",),
        ("features.transition1", "features.denseblock2"),
        ("features.transition2", "features.denseblock3"),
        ("features.transition3", "features.denseblock4", "features.norm5"),
    ),
} | dict.fromkeys(
    ("resnet18", "resnet34", "resnet50"),
    (
        ("conv1", "bn1", "relu", "maxpool"),
        ("layer1",),
        ("layer2",),
        ("layer3",),
        ("layer4",),
    ),
)
HALVED = ("mobilenet_v2", "efficientnet_b0")
"""Networks whose stem has a stride of 2; that of the others is 4."""


class SliceLevel(nn.Module):
    """A 2D block that is applied to every slice of a volume.

    Args:
        source: The entry that it reads, (batch, channels, height, width, slices); an
            image without slices is one slice.
        name: The entry that it writes.
        block: Of 2D modules.
    """

    def __init__(self, source: str, name: str, block: nn.Module) -> None:
        super().__init__()
        self.source = source
        self.name = name
        self.block = block

    def forward(self, state: State) -> State:
        volume = state[self.source]
        volume = volume if volume.ndim == VOLUME else volume.unsqueeze(-1)
        slices = volume.movedim(-1, 1)
        maps = self.block(slices.flatten(0, 1)).unflatten(0, slices.shape[:2])
        return {**state, self.name: maps.movedim(1, -1)}


def build_slices(
    settings: SlicesSettings, folder: Path | None, task: Mapping[str, Any]
) -> MedicalBackbone:
    """A network of torchvision with random parameters that reads volumes.

    Its first convolution has as many input channels as the data. The volume is not
    normalised again: intensities of mean 0 and deviation 1 are what it was trained on.

    Args:
        settings: Which network; empty takes what the weights are for.
        folder: May hold ``config.json``: ``architecture``.
        task: Names the channels.

    Raises:
        UserError: The weights are for another network, or there is none of that name.
    """
    config = Configuration(settings, folder, task, "slices")
    theirs = str(config.raw.get("architecture", ""))
    name = settings.architecture or theirs or SLICE_NETWORKS[0]
    if theirs and theirs != name:
        raise UserError(
            f"the weights are for {theirs!r}, the recipe asks for {name!r}",
            where="backbone.architecture",
            fix=f'backbone.architecture = "{theirs}", or other weights',
        )
    if name not in CUTS:
        fix = nearest(name, CUTS)
        raise UserError(
            f"there is no network {name!r}", where="backbone.architecture", fix=fix
        )
    width = settings.width or float(config.raw.get("width", 1.0))
    net = upstream_network(name, width, len(config.channels))
    entry = _first_convolution(net)
    stages: dict[str, nn.Module] = {}
    upstream: dict[str, str] = {}
    source = IMAGE
    for stage, paths in zip(STAGES, CUTS[name], strict=True):
        parts = OrderedDict((str(i), net.get_submodule(p)) for i, p in enumerate(paths))
        for number, path in enumerate(paths):
            upstream[f"stages.{stage}.block.{number}."] = f"{path}."
        if name == "densenet121" and stage == STAGES[-1]:
            parts["relu"] = nn.ReLU()
        key = ENCODED if stage == STAGES[-1] else stage
        stages[stage] = SliceLevel(source, key, nn.Sequential(parts))
        source = key
    return MedicalBackbone(
        stages,
        features=_features(stages, len(config.channels), name),
        upstream=upstream,
        network="slices",
        arguments={},
        channels=config.channels,
        their_channels=config.their_channels,
        entry=(f"{entry}.weight",),
        ignored=("classifier.*", "fc.*"),
        renames=_old_names(name),
        config={
            "network": "slices",
            "architecture": name,
            "width": width,
            "channel_names": config.channels,
        },
    )


def upstream_network(name: str, width: float, channels: int) -> Any:
    """torchvision's own network, its first convolution for other input channels.

    Raises:
        UserError: It has one width alone.
    """
    arguments: dict[str, Any] = {"num_classes": 1}
    if width != 1.0 and name != "mobilenet_v2":
        raise UserError(
            f"{name!r} has one width", where="backbone.width", fix="leave it out"
        )
    if name == "mobilenet_v2":
        arguments["width_mult"] = width
    net: Any = models.get_model(name, weights=None, **arguments)
    path = _first_convolution(net)
    old = net.get_submodule(path)
    if old.in_channels != channels:
        parent, _, child = path.rpartition(".")
        new = nn.Conv2d(
            channels,
            old.out_channels,
            old.kernel_size,
            old.stride,
            old.padding,
            bias=old.bias is not None,
        )
        nn.init.kaiming_normal_(new.weight, mode="fan_out")
        setattr(net.get_submodule(parent), child, new)
    return net


def _first_convolution(net: nn.Module) -> str:
    for path, module in net.named_modules():
        if isinstance(module, nn.Conv2d):
            return str(path)
    raise AssertionError("a network of images has a convolution")


def _old_names(name: str) -> tuple[tuple[str, str], ...]:
    """torchvision's file of DenseNet still has the names of its first version."""
    if name != "densenet121":
        return ()
    return tuple(
        (f".{kind}.{number}.{what}", f".{kind}{number}.{what}")
        for kind in ("norm", "conv")
        for number in (1, 2)
        for what in ("weight", "bias", "running_mean", "running_var")
    )


def _features(
    stages: Mapping[str, nn.Module], channels: int, name: str
) -> list[Feature]:
    """Each stage's map, its channels found out by running on nothing."""
    first = 2 if name in HALVED else 4
    strides = (first, 4, 8, 16, 32)
    state: State = {IMAGE: torch.zeros(1, channels, 32, 32, 1)}
    features = []
    for (stage, module), stride in zip(stages.items(), strides, strict=True):
        with torch.no_grad():
            state = module.eval()(state)
        module.train()
        key = ENCODED if stage == STAGES[-1] else stage
        width = state[key].shape[1]
        features.append(Feature(key, "volume", width, stride, stage))
    return features


def reference_slices(backbone: Backbone, state: State) -> dict[str, Tensor]:
    """The last map of torchvision's own network, slice for slice."""
    assert backbone.config is not None
    config = backbone.config
    name, channels = config["architecture"], len(config["channel_names"])
    net = upstream_network(name, config["width"], channels)
    ours = backbone.upstream_state_dict()
    missing, unexpected = net.load_state_dict(ours, strict=False)
    assert not unexpected
    assert all(key.startswith(("classifier.", "fc.")) for key in missing)
    net.train(backbone.training)
    found: list[Tensor] = []
    # What the pooling reads; DenseNet pools in a function.
    watched = net.features if hasattr(net, "features") else net.layer4
    watched.register_forward_hook(lambda _m, _i, output: found.append(output.clone()))
    volume = state[IMAGE]
    for number in range(volume.shape[-1]):
        net(volume[..., number])
    encoded = torch.stack(found, dim=-1)
    return {ENCODED: encoded.relu() if name == "densenet121" else encoded}
