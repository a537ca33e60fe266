"""Pretrained tensors made to fit: other input channels, 2D to 3D, other positions.

Each function gives the tensor and, in words, how it came about; ``None`` where the
difference is not of its kind.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch.nn import functional as F

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

Fitted: TypeAlias = "tuple[Tensor, str]"


def fit_channels(
    theirs: Tensor,
    count: int,
    names: Sequence[str] = (),
    their_names: Sequence[str] = (),
) -> Fitted:
    """A first convolution for another number of input channels.

    Where the weights' channels are known, those of the same name take theirs, and new
    ones start at zero: the answer to the known ones stays as it was. Otherwise one
    channel takes the sum of all (an image copied into each of them gives the same
    answer), and several take theirs in turn, scaled by how many they are, as timm does
    it: the answer to equal channels is the same where theirs go into ours, else about.

    Args:
        theirs: (out, in, …).
        count: Our input channels.
        names: Of our channels.
        their_names: Of the weights' channels.
    """
    known = theirs.shape[1]
    words = f"{_channels(count)} from {known}"
    folded = [name.casefold() for name in their_names]
    places = [
        folded.index(name.casefold()) if name.casefold() in folded else None
        for name in names
    ]
    if len(places) == count and len(folded) == known and any(_given(places)):
        none = torch.zeros_like(theirs[:, 0])
        parts = [none if place is None else theirs[:, place] for place in places]
        same = [
            name for name, found in zip(names, _given(places), strict=True) if found
        ]
        new = [n for n, found in zip(names, _given(places), strict=True) if not found]
        words += f": {', '.join(same)} by name"
        words += f", {', '.join(new)} new (at zero)" if new else ""
        return torch.stack(parts, dim=1), words
    if count == 1:
        return theirs.sum(dim=1, keepdim=True), f"{words}: their sum"
    turns = torch.arange(count) % known
    factor = known / count
    return theirs[:, turns] * factor, f"{words}: in turn, times {factor:.3g}"


def _given(places: Sequence[int | None]) -> list[bool]:
    return [place is not None for place in places]


def _channels(count: int) -> str:
    return "1 input channel" if count == 1 else f"{count} input channels"


def inflate(theirs: Tensor, depth: int, stride: int | None = None) -> Fitted:
    """A 2D kernel as a 3D one (I3D, Carreira & Zisserman 2017).

    The kernel is repeated along the new last axis, that of the slices, and divided by
    how often: on a volume whose slices are all equal it answers, away from the border,
    as the 2D kernel does on one slice. A transposed convolution meets every output with
    ``depth / stride`` of its repetitions, which is what it is divided by.

    Args:
        theirs: (…, height, width).
        depth: Length of the new axis.
        stride: Of a transposed convolution; ``None`` for any other.
    """
    share = depth / (stride or 1)
    kernel = theirs.unsqueeze(-1).expand(*theirs.shape, depth) / share
    return kernel, f"a 3D kernel from 2D: {depth} times itself, divided by {share:g}"


def resize_positions(
    theirs: Tensor, shape: Sequence[int], their_shape: Sequence[int] = ()
) -> Fitted | None:
    """A learned position embedding, interpolated for another grid.

    Args:
        theirs: (1, positions, width).
        shape: Our grid, positions along the three axes.
        their_shape: The weights' grid; empty takes it for a cube.
    """
    _, count, width = theirs.shape
    sides = [*their_shape] or [round(count ** (1 / 3))] * 3
    if math.prod(sides) != count:
        return None
    grid = theirs.float().mT.reshape(1, width, *sides)
    resized = F.interpolate(grid, size=tuple(shape), mode="trilinear")
    words = f"positions of {_by(shape)} from {_by(sides)}: trilinear"
    return resized.flatten(2).mT.to(theirs.dtype), words


def _by(sides: Sequence[int]) -> str:
    return "x".join(map(str, sides))
