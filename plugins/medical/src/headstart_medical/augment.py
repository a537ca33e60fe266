"""Random changes to whole batches of patches or slices, on their device.

A batch has a margin around what the network sees. Turning, scaling and moving look into
it, so that a patch has no empty corners; what comes from beyond is not known (-1).

========  =========================================================================
preset    what
========  =========================================================================
light     moved by up to the margin, left and right flipped (.5); brightness and
          contrast +-.1
strong    turned by up to 15 degrees about every axis, scaled by .85 to 1.15, moved;
          every axis flipped (.5); brightness and contrast +-.25, gamma .7 to 1.4
          (.5), Gaussian noise of up to .1 of the deviation (.5)
========  =========================================================================

In parentheses: how probable it is. Every sample has its own draw. Turning is in
millimetres: thick slices are not sheared. The ranges are about those of nnU-Net
(Isensee et al. 2021), which turns by up to 30 degrees.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

UNKNOWN = -1
"""In masks: a voxel that does not count."""


@dataclass(frozen=True)
class Preset:
    """How far random changes go."""

    angle: float
    scale: float
    flips: int
    contrast: float
    gamma: float
    noise: float

    @property
    def turns(self) -> bool:
        return self.angle > 0


PRESETS = {
    "light": Preset(0.0, 0.0, flips=1, contrast=0.1, gamma=0.0, noise=0.0),
    "strong": Preset(
        math.radians(15), 0.15, flips=3, contrast=0.25, gamma=0.5, noise=0.1
    ),
}


class Chance:
    """Draws for a batch from one generator, wherever that is."""

    def __init__(self, generator: torch.Generator, device: torch.device) -> None:
        self._generator = generator
        self._device = device

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        drawn = torch.rand(
            shape, generator=self._generator, device=self._generator.device
        )
        return (low + (high - low) * drawn).to(self._device)

    def normal(self, shape: Sequence[int]) -> Tensor:
        drawn = torch.randn(
            tuple(shape), generator=self._generator, device=self._generator.device
        )
        return drawn.to(self._device)

    def true(self, *shape: int, probability: float = 0.5) -> Tensor:
        return self.uniform(*shape) < probability


def augmented(
    image: Tensor,
    mask: Tensor | None,
    size: Sequence[int],
    preset: str,
    spacing: Sequence[float],
    generator: torch.Generator,
) -> tuple[Tensor, Tensor | None]:
    """Move, turn, flip and change the grey values of a batch.

    Args:
        image: float32 (batch, channels, *sides), two or three sides, the margin
            included.
        mask: int64 (batch, *sides), or ``None``.
        size: Sides of what comes out.
        preset: ``light`` or ``strong``.
        spacing: Millimetres of a voxel along each side.
        generator: The only source of chance.

    Returns:
        Image (batch, channels, *size) and mask (batch, *size), new tensors.
    """
    how = PRESETS[preset]
    chance = Chance(generator, image.device)
    if how.turns:
        image, mask = _turned(image, mask, size, how, spacing, chance)
    else:
        image, mask = _moved(image, mask, size, chance)
    image, mask = _flipped(image, mask, how.flips, chance)
    return _recoloured(image, how, chance), mask


def _moved(
    image: Tensor, mask: Tensor | None, size: Sequence[int], chance: Chance
) -> tuple[Tensor, Tensor | None]:
    """A window somewhere in the margin, voxel for voxel."""
    drawn = chance.uniform(len(image), len(size))
    rows = torch.arange(len(image), device=image.device)
    windows, labels = image.movedim(1, -1), mask
    starts = []
    for axis, side in enumerate(size):
        room = image.shape[2 + axis] - side
        starts.append((drawn[:, axis] * (room + 1)).long().clamp(max=room))
        # Views of all windows: where to cut stays on the device, nobody waits for it.
        windows = windows.unfold(1 + axis, side, 1)
        labels = None if labels is None else labels.unfold(1 + axis, side, 1)
    place = (rows, *starts)
    return windows[place], None if labels is None else labels[place]


def _turned(
    image: Tensor,
    mask: Tensor | None,
    size: Sequence[int],
    how: Preset,
    spacing: Sequence[float],
    chance: Chance,
) -> tuple[Tensor, Tensor | None]:
    """Sampled once through an affine map: turned, scaled and moved at the same time."""
    count, sides = len(image), len(size)
    device = image.device
    whole = torch.tensor(image.shape[2:], dtype=torch.float32, device=device)
    wanted = torch.tensor(list(size), dtype=torch.float32, device=device)
    mm = torch.tensor(list(spacing), dtype=torch.float32, device=device)
    turn = _rotations(chance.uniform(count, 3, low=-how.angle, high=how.angle), sides)
    factor = chance.uniform(count, 1, 1, low=1 - how.scale, high=1 + how.scale)
    # From offsets in voxels of what comes out to offsets in voxels of what goes in.
    linear = turn * factor * mm / mm[:, None]
    shift = chance.uniform(count, sides, low=-0.5, high=0.5) * (whole - wanted)
    # grid_sample counts from -1 to 1 over a side, the last side first.
    theta = torch.cat(
        [linear * wanted / whole[:, None], (2 * shift / whole)[..., None]], dim=2
    )
    theta = torch.cat([theta[..., :sides].flip(2), theta[..., sides:]], 2).flip(1)
    grid = F.affine_grid(theta, [count, 1, *size], align_corners=False)
    images = F.grid_sample(
        image, grid, mode="bilinear", padding_mode="border", align_corners=False
    )
    if mask is None:
        return images, None
    # One more than the class, since beyond the edges come zeros.
    classes = (mask - UNKNOWN).to(torch.float32)[:, None]
    found = F.grid_sample(
        classes, grid, mode="nearest", padding_mode="zeros", align_corners=False
    )
    return images, found[:, 0].round().to(mask.dtype) + UNKNOWN


def _rotations(angles: Tensor, sides: int) -> Tensor:
    """Matrices (batch, sides, sides) that turn by angles (batch, 3) about the axes.

    In a plane, the first angle alone counts.
    """
    cos, sin = angles.cos(), angles.sin()
    planes = [(0, 1)] if sides == 2 else [(1, 2), (0, 2), (0, 1)]
    turn = torch.eye(sides, device=angles.device).repeat(len(angles), 1, 1)
    for axis, (a, b) in enumerate(planes):
        one = torch.eye(sides, device=angles.device).repeat(len(angles), 1, 1)
        one[:, a, a], one[:, b, b] = cos[:, axis], cos[:, axis]
        one[:, a, b], one[:, b, a] = -sin[:, axis], sin[:, axis]
        turn = turn @ one
    return turn


def _flipped(
    image: Tensor, mask: Tensor | None, axes: int, chance: Chance
) -> tuple[Tensor, Tensor | None]:
    """Each of the first axes turned round or not; the first is left and right."""
    for axis in range(min(axes, image.ndim - 2)):
        flip = chance.true(len(image))
        wide = flip.view(-1, *[1] * (image.ndim - 1))
        image = torch.where(wide, image.flip(2 + axis), image)
        if mask is not None:
            mask = torch.where(wide[:, 0], mask.flip(1 + axis), mask)
    return image, mask


def _recoloured(image: Tensor, how: Preset, chance: Chance) -> Tensor:
    """Other brightness, contrast, gamma, and noise, relative to each channel's own."""
    shape = (*image.shape[:2], *[1] * (image.ndim - 2))
    inner = tuple(range(2, image.ndim))
    mean, deviation = image.mean(inner, keepdim=True), image.std(inner, keepdim=True)
    if how.gamma:
        low, high = image.amin(inner, keepdim=True), image.amax(inner, keepdim=True)
        # 2 ** +-.5 is .7 to 1.4.
        power = 2 ** chance.uniform(*shape, low=-how.gamma, high=how.gamma)
        power = torch.where(chance.true(*shape), power, 1.0)
        extent = (high - low).clamp(min=1e-6)
        image = ((image - low) / extent).clamp(0, 1) ** power * extent + low
    contrast = chance.uniform(*shape, low=1 - how.contrast, high=1 + how.contrast)
    brightness = chance.uniform(*shape, low=-how.contrast, high=how.contrast)
    image = (image - mean) * contrast + mean + brightness * deviation
    if how.noise:
        amount = chance.uniform(*shape, high=how.noise) * chance.true(*shape)
        image = image + chance.normal(image.shape) * amount * deviation
    return image


def hide(
    image: Tensor, share: float, block: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Hide random blocks, as masked image modelling does.

    The blocks lie on a grid and exactly the share of them is hidden, as in masked
    autoencoders (He et al. 2022); each channel's mean stands in their place.

    Args:
        image: float32 (batch, channels, D, H, W).
        share: Of the blocks, at least one and never all.
        block: Side of a block; the last ones of a side may be smaller.
        generator: The only source of chance.

    Returns:
        The image with holes, and bool (batch, 1, D, H, W) where they are.
    """
    chance = Chance(generator, image.device)
    counts = [math.ceil(side / block) for side in image.shape[2:]]
    total = math.prod(counts)
    number = min(max(round(total * share), 1), max(total - 1, 1))
    ranks = chance.uniform(len(image), total).argsort(1).argsort(1)
    hidden = (ranks < number).view(len(image), 1, *counts)
    for axis, side in enumerate(image.shape[2:], start=2):
        hidden = hidden.repeat_interleave(block, axis).narrow(axis, 0, side)
    mean = image.mean(tuple(range(2, image.ndim)), keepdim=True)
    return torch.where(hidden, mean, image), hidden
