"""MONAI's transformers for segmentation cut into stages: SwinUNETR and UNETR.

``tokens`` is what goes from level to level of the transformer; each level also leaves
the skip that MONAI makes of it, ``skip0`` at full resolution.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from monai.networks.nets.swin_unetr import SwinUNETR
from monai.networks.nets.unetr import UNETR
from torch import nn
from torch.nn import functional as F

from headstart.errors import UserError
from headstart.specs import Feature
from headstart_medical.backbones import Configuration, MedicalBackbone, construct
from headstart_medical.stages import IMAGE, Up, by, check_sides
from headstart_medical.surgery import resize_positions

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from headstart.stages import State
    from headstart_medical.settings import SwinUnetrSettings, UnetrSettings

TOKENS = "tokens"
BOTTOM = "bottom"
PATCH = 16
# UNETR's blocks by stage; behind all but the last a skip is made.
UNETR_BLOCKS = (range(4), range(4, 7), range(7, 10), range(10, 12))
SWIN_ENTRY = ("swinViT.patch_embed.proj.weight", "encoder1.layer.conv[13].*")
UNETR_ENTRY = (
    "vit.patch_embedding.patch_embeddings.weight",
    "encoder1.layer.conv[13].*",
)


class SwinPatch(nn.Module):
    """The first stage of SwinUNETR: embeds patches; the image's own skip."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.embed = net.swinViT.patch_embed
        self.drop = net.swinViT.pos_drop
        self.skip0 = net.encoder1
        self.skip1 = net.encoder2
        self.normalize = bool(net.normalize)
        self.stride = int(net.patch_size) ** 5

    def forward(self, state: State) -> State:
        image = state[IMAGE]
        check_sides(image, [self.stride] * 3)
        tokens = self.drop(self.embed(image))
        return {
            **state,
            TOKENS: tokens,
            "skip0": self.skip0(image),
            "skip1": self.skip1(_normalised(tokens, self.normalize)),
        }


class SwinLevel(nn.Module):
    """A level of the Swin transformer, and the skip, or the bottom, made of it.

    Args:
        layer: MONAI's ``BasicLayer``, which halves the sides.
        conv: What SwinUNETR-V2 has before it; ``None`` in the first version.
        skip: What makes the skip; ``None`` leaves it as it is.
        name: The entry of the skip.
        normalize: Whether the skip is normalised first.
    """

    def __init__(
        self,
        layer: nn.Module,
        conv: nn.Module | None,
        skip: nn.Module | None,
        name: str,
        normalize: bool,
    ) -> None:
        super().__init__()
        self.layer = layer
        self.conv = conv
        self.skip = skip
        self.name = name
        self.normalize = normalize

    def forward(self, state: State) -> State:
        tokens = state[TOKENS]
        if self.conv is not None:
            tokens = self.conv(tokens.contiguous())
        tokens = self.layer(tokens.contiguous())
        skip = _normalised(tokens, self.normalize)
        if self.skip is not None:
            skip = self.skip(skip)
        state = {**state, TOKENS: tokens, self.name: skip}
        if self.name == BOTTOM:
            del state[TOKENS]
        return state


def _normalised(tokens: Tensor, normalize: bool) -> Tensor:
    """Layer normalisation over the channels, without parameters, as MONAI's."""
    if not normalize:
        return tokens
    last = tokens.movedim(1, -1)
    return F.layer_norm(last, last.shape[-1:]).movedim(-1, 1)


def build_swin_unetr(
    settings: SwinUnetrSettings, folder: Path | None, task: Mapping[str, Any]
) -> MedicalBackbone:
    """MONAI's SwinUNETR with random parameters, cut into stages.

    Args:
        settings: What they leave open comes from ``folder``.
        folder: May hold ``config.json``.
        task: Names the channels.

    Raises:
        UserError: The weights are for another network, or it cannot be built.
    """
    config = Configuration(settings, folder, task, "SwinUNETR")
    arguments = config.arguments()
    for key in ("out_channels", "img_size"):
        arguments.pop(key, None)
    arguments |= {"spatial_dims": 3, "in_channels": len(config.channels)}
    width = arguments.setdefault("feature_size", 24)
    net = construct(SwinUNETR, {**arguments, "out_channels": 1})
    swin, patch = net.swinViT, int(net.patch_size)

    stages: dict[str, nn.Module] = {"patch": SwinPatch(net)}
    upstream = {
        "stages.patch.embed.": "swinViT.patch_embed.",
        "stages.patch.skip0.": "encoder1.",
        "stages.patch.skip1.": "encoder2.",
    }
    encoders = {1: "encoder3", 2: "encoder4", 4: "encoder10"}
    for level in range(1, 5):
        stage, encoder = f"layer{level}", encoders.get(level)
        conv = getattr(swin, f"layers{level}c")[0] if swin.use_v2 else None
        skip = getattr(net, encoder) if encoder else None
        name = f"skip{level + 1}" if level < 4 else BOTTOM
        layer = getattr(swin, f"layers{level}")[0]
        stages[stage] = SwinLevel(layer, conv, skip, name, net.normalize)
        upstream[f"stages.{stage}.layer."] = f"swinViT.layers{level}.0."
        if conv is not None:
            upstream[f"stages.{stage}.conv."] = f"swinViT.layers{level}c.0."
        if encoder:
            upstream[f"stages.{stage}.skip."] = f"{encoder}."
    features = [Feature(BOTTOM, "volume", 16 * width, patch**5, "layer4")]
    widths = (width, width, 2 * width, 4 * width, 8 * width)
    origin = {BOTTOM: "encoder10"}
    _add_ups(net, widths, patch, stages, upstream, features, origin, first=1)
    return MedicalBackbone(
        stages,
        features=features,
        upstream=upstream,
        network="SwinUNETR",
        arguments=arguments,
        channels=config.channels,
        their_channels=config.their_channels,
        entry=SWIN_ENTRY,
        origin=origin,
        preprocessing={"stride": [patch**5] * 3},
    )


def _add_ups(
    net: Any,
    widths: Sequence[int],
    factor: int,
    stages: dict[str, nn.Module],
    upstream: dict[str, str],
    features: list[Feature],
    origin: dict[str, str],
    first: int,
) -> None:
    """The decoder, deepest level first: MONAI's ``decoder5`` to ``decoder{first}``."""
    source = BOTTOM
    for level in reversed(range(len(widths))):
        path = f"decoder{level + first}"
        stage, name = f"up{level}", f"up{level}" if level else "decoded"
        stages[stage] = Up(source, f"skip{level}", name, getattr(net, path))
        upstream[f"stages.{stage}.block."] = f"{path}."
        features.append(Feature(name, "volume", widths[level], factor**level, stage))
        origin[name] = path
        source = name


class UnetrPatch(nn.Module):
    """The first stage of UNETR: embeds patches; the image's own skip."""

    def __init__(self, net: Any, sides: Sequence[int]) -> None:
        super().__init__()
        self.embed = net.vit.patch_embedding
        self.skip = net.encoder1
        self.sides = tuple(sides)

    def forward(self, state: State) -> State:
        image = state[IMAGE]
        if tuple(image.shape[2:]) != self.sides:
            raise UserError(
                f"an image of {by(image.shape[2:])} does not fit this network",
                where="data.patch",
                why=f"this UNETR reads {by(self.sides)} alone",
                fix=f"data.patch = {[*self.sides]}, or another backbone.img_size",
            )
        return {**state, TOKENS: self.embed(image), "skip0": self.skip(image)}


class UnetrLevel(nn.Module):
    """Some blocks of UNETR's transformer, and the skip, or the bottom, made of them.

    Args:
        blocks: By their number.
        name: The entry of what is made of their output.
        last: What makes it: the block of a skip, or the transformer's normalisation.
        grid: Patches along each axis.
    """

    def __init__(
        self,
        blocks: Mapping[str, nn.Module],
        name: str,
        last: nn.Module,
        grid: Sequence[int],
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleDict(dict(blocks))
        self.name = name
        self.last = last
        self.grid = tuple(grid)

    def forward(self, state: State) -> State:
        tokens = state[TOKENS]
        for block in self.blocks.values():
            tokens = block(tokens)
        if self.name == BOTTOM:
            rest = {key: value for key, value in state.items() if key != TOKENS}
            return {**rest, BOTTOM: self._fold(self.last(tokens))}
        return {**state, TOKENS: tokens, self.name: self.last(self._fold(tokens))}

    def _fold(self, tokens: Tensor) -> Tensor:
        """(batch, patches, width) as (batch, width, *grid)."""
        batch, _, width = tokens.shape
        return tokens.mT.reshape(batch, width, *self.grid).contiguous()


class Unetr(MedicalBackbone):
    """UNETR: weights for another size have their position embedding interpolated."""

    positions = "vit.patch_embedding.position_embeddings"
    their_grid: tuple[int, ...] = ()

    def fit_tensor(
        self, name: str, theirs: Tensor, ours: Tensor
    ) -> tuple[Tensor, str] | None:
        if name != self.positions or theirs.ndim != 3:
            return super().fit_tensor(name, theirs, ours)
        assert self.config is not None
        grid = [side // PATCH for side in self.config["img_size"]]
        fitted = resize_positions(theirs, grid, self.their_grid)
        return fitted if fitted and fitted[0].shape == ours.shape else None


def build_unetr(
    settings: UnetrSettings, folder: Path | None, task: Mapping[str, Any]
) -> MedicalBackbone:
    """MONAI's UNETR with random parameters, cut into stages.

    Args:
        settings: What they leave open comes from ``folder``; the size from ``task``.
        folder: May hold ``config.json``.
        task: Names the channels; ``patch`` is the size that it reads.

    Raises:
        UserError: The weights are for another network, it cannot be built, or the size
            is not known or no multiple of 16.
    """
    config = Configuration(settings, folder, task, "UNETR")
    arguments = config.arguments()
    arguments.pop("out_channels", None)
    sides = settings.img_size or task.get("patch") or config.found.get("img_size")
    if sides is None:
        raise UserError(
            "UNETR reads images of one size, and it is not known",
            where="backbone.img_size",
            fix="backbone.img_size = [96, 96, 96]",
        )
    sides = _three(sides)
    if any(side % PATCH for side in sides):
        raise UserError(
            f"UNETR cannot read {by(sides)}",
            where="backbone.img_size" if settings.img_size else "data.patch",
            why=f"it cuts images into patches of {PATCH} voxels a side",
            fix=f"choose {[max(round(side / PATCH), 1) * PATCH for side in sides]}",
        )
    arguments |= {
        "img_size": sides,
        "spatial_dims": 3,
        "in_channels": len(config.channels),
    }
    width = arguments.setdefault("feature_size", 16)
    hidden = arguments.setdefault("hidden_size", 768)
    net = construct(UNETR, {**arguments, "out_channels": 1})
    for block in net.vit.blocks:
        # Of a cross attention that these blocks do not have: nothing runs through it.
        block.norm_cross_attn = nn.Identity()
    grid = [side // PATCH for side in sides]

    stages: dict[str, nn.Module] = {"patch": UnetrPatch(net, sides)}
    upstream = {
        "stages.patch.embed.": "vit.patch_embedding.",
        "stages.patch.skip.": "encoder1.",
    }
    for level, numbers in enumerate(UNETR_BLOCKS, start=1):
        stage, encoder = f"layer{level}", f"encoder{level + 1}"
        last = level == len(UNETR_BLOCKS)
        module = net.vit.norm if last else getattr(net, encoder)
        name = BOTTOM if last else f"skip{level}"
        blocks = {str(number): net.vit.blocks[number] for number in numbers}
        stages[stage] = UnetrLevel(blocks, name, module, grid)
        for number in numbers:
            upstream[f"stages.{stage}.blocks.{number}."] = f"vit.blocks.{number}."
        upstream[f"stages.{stage}.last."] = "vit.norm." if last else f"{encoder}."
    features = [Feature(BOTTOM, "volume", hidden, PATCH, "layer4")]
    origin: dict[str, str] = {}
    widths = [width * 2**level for level in range(4)]
    _add_ups(net, widths, 2, stages, upstream, features, origin, first=2)
    backbone = Unetr(
        stages,
        features=features,
        upstream=upstream,
        network="UNETR",
        arguments=arguments,
        channels=config.channels,
        their_channels=config.their_channels,
        entry=UNETR_ENTRY,
        origin=origin,
        ignored=("vit.blocks.*.norm_cross_attn.*",),
        preprocessing={"stride": [PATCH] * 3, "patch": sides},
    )
    if "img_size" in config.found:
        theirs = _three(config.found["img_size"])
        backbone.their_grid = tuple(side // PATCH for side in theirs)
    return backbone


def _three(sides: int | Sequence[int]) -> list[int]:
    return [sides] * 3 if isinstance(sides, int) else [int(side) for side in sides]
