"""Convolutional networks of torchvision, cut into stages.

The blocks are torchvision's own modules. Each stage reads the map of the stage before
it and leaves its own in the state under its name; the first one reads ``pixels``.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.efficientnet import EfficientNet, MBConvConfig
from torchvision.models.resnet import BasicBlock, ResNet
from torchvision.ops import FrozenBatchNorm2d
from torchvision.transforms.v2 import functional as transforms

from headstart.errors import UserError
from headstart.specs import Feature
from headstart.stages import Backbone
from headstart_vision import catalogue
from headstart_vision.efficientnet_lite import EFFICIENTNET_B0, EfficientNetLite

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from headstart.stages import State
    from headstart_vision.settings import CnnSettings

# Parts of classifiers, detectors and segmenters that are no part of a backbone, as
# torchvision's files name them.
HEAD_TENSORS = (
    "fc.*",
    "_fc.*",
    "classifier.*",
    "aux_classifier.*",
    "head.*",
    "rpn.*",
    "roi_heads.*",
    "anchor_generator.*",
    "fpn.*",
    "backbone.fpn.*",
)
# Where those files keep the backbone.
WRAPPERS = ("backbone.body.", "backbone.")

Names: TypeAlias = "dict[str, str]"
"""Prefixes of tensors' names inside a module, and what upstream calls them."""


class Stem(nn.Module):
    """The first stage: normalises the images and runs the first blocks.

    Reads ``pixels``, uint8 or floating point in [0, 1], (batch, 3, height, width), and
    ``image_sizes`` where images are smaller than the batch: what lies beyond them is 0
    after normalisation. Writes its map and ``canvas``, height and width of ``pixels``,
    int64 (batch, 2).

    Args:
        name: Of its map in the state.
        block: The network's first modules.
        mean: Of the colours in [0, 1].
        std: Of the colours in [0, 1].
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, name: str, block: nn.Module, mean: list[float], std: list[float]
    ) -> None:
        super().__init__()
        self.name = name
        self.block = block
        for key, values in (("mean", mean), ("std", std)):
            buffer = torch.tensor(values).view(1, 3, 1, 1)
            self.register_buffer(key, buffer, persistent=False)

    def forward(self, state: State) -> State:
        pixels = state["pixels"]
        images = pixels.to(self.mean.dtype)
        if not pixels.is_floating_point():
            images = images / 255
        images = (images - self.mean) / self.std
        height, width = pixels.shape[-2:]
        if "image_sizes" in state:
            sizes = state["image_sizes"]
            inside = _inside(sizes[:, 0], height)[:, None, :, None]
            inside = inside & _inside(sizes[:, 1], width)[:, None, None, :]
            images = images.masked_fill(~inside, 0.0)
        sides = [
            torch.full((len(pixels),), side, device=pixels.device)
            for side in (height, width)
        ]
        canvas = torch.stack(sides, dim=1)
        return {**state, "canvas": canvas, self.name: self.block(images)}


def _inside(lengths: Tensor, length: int) -> Tensor:
    """Which positions of each row belong to the image, (batch, length) bool."""
    return torch.arange(length, device=lengths.device)[None] < lengths[:, None]


class Blocks(nn.Module):
    """A later stage: blocks that turn the map of the stage before it into its own.

    Args:
        name: Of its map in the state.
        source: The map that it reads.
        block: The network's modules.
        first: Whether the first module's map is left too, as ``NAME_first``.
    """

    def __init__(
        self, name: str, source: str, block: nn.Module, *, first: bool = False
    ) -> None:
        super().__init__()
        self.name = name
        self.source = source
        self.block = block
        self.first = first

    def forward(self, state: State) -> State:
        features = state[self.source]
        if not self.first:
            return {**state, self.name: self.block(features)}
        head, *rest = self.block.children()
        features = first = head(features)
        for module in rest:
            features = module(features)
        return {**state, f"{self.name}_first": first, self.name: features}


def build_cnn(
    settings: CnnSettings, folder: Path | None, task: Mapping[str, Any]
) -> Backbone:
    """A network of torchvision with random parameters, cut into stages.

    The stages are ``stem`` and ``layer1`` to ``layer4``, with maps of stride 4, 8, 16
    and 32, then ``last`` (the 1x1 convolution before the pooling of MobileNet and
    EfficientNet) or ``norm`` (ConvNeXt's, which torchvision applies behind the
    pooling). MobileNetV3 leaves the first map of stride 8 and 32 too (``layer2_first``,
    ``layer4_first``), which torchvision's segmenters and detectors read.

    Args:
        settings: Which network; what it leaves open comes from ``folder``.
        folder: May hold ``config.json``, as the ``torchvision:`` source writes it.

    Raises:
        UserError: The weights are for another network, or it cannot be so wide or
            dilated.
    """
    found = read_config(folder)
    name = _architecture(settings, found)
    network = catalogue.NETWORKS[name]
    family = catalogue.FAMILIES[network.family]
    output_stride = settings.output_stride or int(found.get("output_stride", 32))
    preprocessing = {
        **catalogue.IMAGENET,
        **(network.preprocessing or {}),
        **found.get("preprocessing", {}),
    }
    model = upstream_model(name, settings.width, output_stride)
    if settings.norm == "frozen":
        _freeze_norms(model)
    if "norm_eps" in found:
        _set_epsilon(model, float(found["norm_eps"]))
    stages: dict[str, nn.Module] = {}
    features: list[Feature] = []
    upstream: Names = {}
    source = ""
    cuts = zip(_cut(model, name).items(), family.strides, strict=True)
    for (stage, part), full_stride in cuts:
        block = nn.Sequential(OrderedDict((n, m) for n, (m, _) in part.items()))
        stride = min(full_stride, output_stride)
        first = stage in network.first
        if first:
            channels = _channels(block[0])
            features.append(Feature(f"{stage}_first", "map", channels, stride, stage))
        features.append(Feature(stage, "map", _channels(block), stride, stage))
        for ours, (_, names) in part.items():
            for inner, theirs in names.items():
                upstream[f"stages.{stage}.block.{ours}.{inner}"] = theirs
        stages[stage] = (
            Blocks(stage, source, block, first=first)
            if source
            else Stem(stage, block, preprocessing["mean"], preprocessing["std"])
        )
        source = stage
    backbone = Backbone(
        stages,
        features=features,
        upstream=upstream,
        # FrozenBatchNorm2d does not count batches.
        ignored=(*HEAD_TENSORS, "*.num_batches_tracked")
        if settings.norm == "frozen"
        else HEAD_TENSORS,
        preprocessing=preprocessing,
        wrappers=WRAPPERS,
        consumed=("pixels",),
        config={
            **found,
            "architecture": name,
            "width": settings.width,
            "output_stride": output_stride,
            "preprocessing": preprocessing,
        },
    )
    # Detectors and segmenters keep the sequence `features` without that name.
    backbone.renames = tuple(
        (path.removeprefix("features."), path)
        for path in map(backbone.upstream_name, backbone.state_dict())
        if path.startswith("features.")
    )
    return backbone


def read_config(folder: Path | None) -> dict[str, Any]:
    """What ``config.json`` beside the weights says; empty when there is none.

    Raises:
        UserError: It is no JSON object.
    """
    if folder is None or not (folder / "config.json").is_file():
        return {}
    path = folder / "config.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"this is no JSON: {error}", where=str(path)) from error
    if not isinstance(found, dict):
        raise UserError("this JSON holds no configuration", where=str(path))
    return found


def _architecture(settings: CnnSettings, found: Mapping[str, Any]) -> str:
    """What the recipe asks for, else what the weights are for, else the default."""
    theirs = str(found.get("architecture", ""))
    family = catalogue.family_of(settings.name)
    name = settings.architecture or theirs or (family.default if family else "")
    if theirs and theirs != name:
        raise UserError(
            f"the weights are for {theirs!r}, the recipe asks for {name!r}",
            where="backbone.architecture",
            fix=f'choose one: backbone.architecture = "{theirs}", or other weights',
        )
    if name not in catalogue.NETWORKS or (
        family and name not in catalogue.architectures(family.name)
    ):
        other = catalogue.backbone_of(name)
        raise UserError(
            f"the backbone {settings.name!r} has no network {name!r}",
            where="backbone.name",
            fix=f'backbone.name = "{other}"'
            if other
            else f"it has {', '.join(catalogue.architectures(settings.name))}",
        )
    return name


def upstream_model(name: str, width: float = 1.0, output_stride: int = 32) -> Any:
    """torchvision's own model (or ours, for Lite0), its classifier with one class.

    Raises:
        UserError: There is no such width or dilation of it.
    """
    family = catalogue.NETWORKS[name].family
    build = partial(models.get_model, name, weights=None, num_classes=1)
    if output_stride != 32:
        options = _dilation(name, output_stride)
        if family == "mobilenet_v3":
            options["width_mult"] = width
        elif width != 1.0:
            raise _no_width(name)
        return build(**options)
    if family == "efficientnet_lite":
        return EfficientNetLite(width)
    if name == "resnet10":
        return ResNet(BasicBlock, [1, 1, 1, 1], num_classes=1)
    if family in ("mobilenet_v2", "mobilenet_v3"):
        return build(width_mult=width)
    if width == 1.0:
        return build()
    if name == "efficientnet_b0":
        rows = [MBConvConfig(*row, width_mult=width) for row in EFFICIENTNET_B0]
        return EfficientNet(rows, dropout=0.2, num_classes=1)
    if name == "convnext_tiny":
        sizes = [round(c * width) for c in (96, 192, 384, 768)]
        rows = [
            CNBlockConfig(channels, following, depth)
            for channels, following, depth in zip(
                sizes, (*sizes[1:], None), (3, 3, 9, 3), strict=True
            )
        ]
        return ConvNeXt(rows, stochastic_depth_prob=0.1, num_classes=1)
    raise _no_width(name)


def _no_width(name: str) -> UserError:
    return UserError(
        f"{name!r} has one width", where="backbone.width", fix="leave it at 1.0"
    )


def _dilation(name: str, output_stride: int) -> dict[str, Any]:
    """The arguments with which torchvision builds a dilated network."""
    if name in ("mobilenet_v3_small", "mobilenet_v3_large") and output_stride == 16:
        return {"dilated": True}
    basic = ("resnet10", "resnet18", "resnet34")
    if catalogue.NETWORKS[name].family == "resnet" and name not in basic:
        return {"replace_stride_with_dilation": [False, output_stride == 8, True]}
    raise UserError(
        f"{name!r} cannot have an output stride of {output_stride}",
        where="backbone.output_stride",
        why="torchvision dilates ResNet from 50 layers on (8, 16) and MobileNetV3 (16)",
        fix="leave it at 32",
    )


def _cut(model: Any, name: str) -> dict[str, dict[str, tuple[nn.Module, Names]]]:
    """The modules of each stage by our names, and what upstream calls their tensors."""
    network = catalogue.NETWORKS[name]
    stages = catalogue.FAMILIES[network.family].stages
    if network.family == "efficientnet_lite":
        own: dict[str, dict[str, tuple[nn.Module, Names]]] = model.stages()
        return own
    if network.family == "resnet":
        paths = {
            stage: [f"{stage}.{i}" for i in range(len(getattr(model, stage)))]
            for stage in stages[1:]
        }
        paths = {"stem": ["conv1", "bn1", "relu", "maxpool"], **paths}
    else:
        cuts = zip(stages, pairwise((0, *network.ends)), strict=False)
        paths = {s: [f"features.{i}" for i in range(*cut)] for s, cut in cuts}
        if network.family == "convnext":
            paths["norm"] = ["classifier.0"]
    return {
        stage: {
            str(i): (model.get_submodule(path), {"": f"{path}."})
            for i, path in enumerate(every)
        }
        for stage, every in paths.items()
    }


def _channels(block: nn.Module) -> int:
    """Channels of the map that a block gives."""
    widths = [
        module.out_channels if isinstance(module, nn.Conv2d) else module.weight.numel()
        for module in block.modules()
        if isinstance(module, nn.Conv2d | models.convnext.LayerNorm2d)
    ]
    return int(widths[-1])


def _freeze_norms(module: nn.Module) -> None:
    """Replace every BatchNorm by one whose four tensors are constants."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, FrozenBatchNorm2d(child.num_features, child.eps))
        else:
            _freeze_norms(child)


def _set_epsilon(model: nn.Module, eps: float) -> None:
    """Give every BatchNorm the epsilon that the weights were trained with.

    In training BatchNorm divides by a batch's deviation, which may be 0; there the
    epsilon is never below torch's own.
    """
    for module in model.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.eps = eps
        elif isinstance(module, nn.BatchNorm2d):
            module.eps = max(eps, 1e-5)


def sample_pixels(backbone: Backbone) -> State:
    """Four images of 64x64 for tests, two of them 48 high and padded below."""
    generator = torch.Generator().manual_seed(0)
    shape = (4, 3, 64, 64)
    pixels = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    pixels[1::2, :, 48:] = 0
    sizes = torch.tensor([[64, 64], [48, 64]] * 2)
    return {
        "pixels": pixels,
        "image_sizes": sizes,
        "original_sizes": sizes.clone(),
    }


def reference_cnn(backbone: Backbone, state: State) -> dict[str, Tensor]:
    """The maps inside torchvision's own model with the same parameters, as it runs.

    Stages that were dropped are not compared. Runs without gradients.
    """
    config = backbone.config or {}
    name = config["architecture"]
    model = upstream_model(name, config["width"], config["output_stride"]).eval()
    frozen = any(isinstance(m, FrozenBatchNorm2d) for m in backbone.modules())
    if frozen:
        _freeze_norms(model)
    if "norm_eps" in config:
        _set_epsilon(model, float(config["norm_eps"]))
    model.load_state_dict(backbone.upstream_state_dict(), strict=False)
    maps: dict[str, Tensor] = {}
    for stage, part in _cut(model, name).items():
        modules = [module for module, _ in part.values()]
        _keep_output(modules[-1], stage, maps)
        if f"{stage}_first" in backbone.features:
            _keep_output(modules[0], f"{stage}_first", maps)
    with torch.no_grad():
        model(normalised(state, backbone.preprocessing))
        if "norm" in maps:
            # torchvision's comes after the pooling.
            maps["norm"] = model.classifier[0](maps["layer4"])
    return {name: maps[name] for name in backbone.features}


def _keep_output(module: nn.Module, name: str, maps: dict[str, Tensor]) -> None:
    def keep(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        maps[name] = output.clone()

    module.register_forward_hook(keep)


def normalised(state: State, preprocessing: Mapping[str, Any]) -> Tensor:
    """A batch as torchvision's detectors make it: each image by itself, then padded."""
    pixels = state["pixels"]
    sizes = state.get("image_sizes", torch.tensor([pixels.shape[-2:]] * len(pixels)))
    mean, std = preprocessing["mean"], preprocessing["std"]
    batch = torch.zeros(pixels.shape)
    for row, (height, width) in enumerate(sizes.tolist()):
        image = transforms.to_dtype(
            pixels[row, :, :height, :width], torch.float32, scale=True
        )
        batch[row, :, :height, :width] = transforms.normalize(image, mean, std)
    return batch
