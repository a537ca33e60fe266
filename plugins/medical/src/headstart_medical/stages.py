"""Stages that most networks are made of: a level down, a level up with its skip.

The skip that a level up has read is not in the state that it gives: nobody reads it
twice, and at full resolution it is what memory and caches are filled with.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from headstart.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from headstart.stages import State

IMAGE = "image"


class Level(nn.Module):
    """A block that reads one entry of the state and writes one.

    Args:
        source: The entry that it reads.
        name: The entry that it writes.
        block: ``(batch, channels, *sides)`` to the same of the next level.
    """

    def __init__(self, source: str, name: str, block: nn.Module) -> None:
        super().__init__()
        self.source = source
        self.name = name
        self.block = block

    def forward(self, state: State) -> State:
        return {**state, self.name: self.block(state[self.source])}


class First(Level):
    """The level that reads the image; its sides must be multiples of the strides.

    Args:
        name: The entry that it writes.
        block: The first level.
        strides: Of the whole network, for each axis; empty takes any size.
    """

    def __init__(
        self, name: str, block: nn.Module, strides: Sequence[int] = ()
    ) -> None:
        super().__init__(IMAGE, name, block)
        self.strides = tuple(strides)

    def forward(self, state: State) -> State:
        check_sides(state[IMAGE], self.strides)
        return super().forward(state)


class Up(nn.Module):
    """A level of a decoder: joins what comes from below with the skip beside it.

    Args:
        source: The entry from the level below.
        skip: The encoder's entry of this level.
        name: The entry that it writes.
        block: ``block(below, skip)``.
    """

    def __init__(self, source: str, skip: str, name: str, block: nn.Module) -> None:
        super().__init__()
        self.source = source
        self.skip = skip
        self.name = name
        self.block = block

    def forward(self, state: State) -> State:
        decoded = self.block(state[self.source], state[self.skip])
        rest = {key: value for key, value in state.items() if key != self.skip}
        return {**rest, self.name: decoded}


class SkipFirst(nn.Module):
    """Concatenates skip and map in this order, as MONAI's ``SkipConnection`` does."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, below: Tensor, skip: Tensor) -> Tensor:
        decoded: Tensor = self.block(torch.cat([skip, below], dim=1))
        return decoded


class AddSkip(nn.Module):
    """Resamples the map, adds the skip and runs blocks on the sum (SegResNet)."""

    def __init__(self, sample: nn.Module, block: nn.Module) -> None:
        super().__init__()
        self.sample = sample
        self.block = block

    def forward(self, below: Tensor, skip: Tensor) -> Tensor:
        decoded: Tensor = self.block(self.sample(below) + skip)
        return decoded


def check_sides(image: Tensor, strides: Sequence[int]) -> None:
    """Refuse an image whose sides a network cannot halve and double again.

    Raises:
        UserError: A side is no multiple of its axis' stride.
    """
    sides = image.shape[2:]
    if any(side % stride for side, stride in zip(sides, strides, strict=False)):
        up = [
            -(-side // stride) * stride
            for side, stride in zip(sides, strides, strict=True)
        ]
        raise UserError(
            f"an image of {by(sides)} does not fit this network",
            where="data.patch",
            why=f"its sides must be multiples of {by(strides)}",
            fix=f"data.patch = {up}",
        )


def by(sides: Sequence[int]) -> str:
    """``64x64x32``."""
    return "x".join(map(str, sides))
