"""Buffers that a forward pass moves, and how a left-out step moves them back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor, nn


class MovingBuffers:
    """Buffers of what trains (BatchNorm's statistics), to be taken back at will.

    They are laid side by side in memory, so that keeping them costs one copy a type
    and not one a buffer; a ResNet has 159.

    Args:
        modules: What trains. Its buffers stay the same tensors, in another place.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        buffers = {id(b): b for module in modules for b in module.buffers()}
        by_type: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
        for buffer in buffers.values():
            by_type.setdefault((buffer.dtype, buffer.device), []).append(buffer)
        self._together = [_side_by_side(group) for group in by_type.values()]
        self._kept: list[Tensor] = []

    def keep(self) -> None:
        """Remember them as they are now."""
        self._kept = [together.clone() for together in self._together]

    def take_back(self, where: Tensor | None = None) -> None:
        """Set them to what was kept last, if anything was.

        Args:
            where: Only if this is true; a scalar bool tensor, which is not read.
        """
        for together, kept in zip(self._together, self._kept, strict=False):
            together.copy_(
                kept if where is None else torch.where(where, kept, together)
            )


def _side_by_side(buffers: list[Tensor]) -> Tensor:
    together = torch.cat([buffer.detach().reshape(-1) for buffer in buffers])
    pieces = torch.split(together, [buffer.numel() for buffer in buffers])
    for buffer, piece in zip(buffers, pieces, strict=True):
        buffer.data = piece.view(buffer.shape)
    return together
