"""Rows of large tables, with a gradient that keeps up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch.nn import functional as F

if TYPE_CHECKING:
    from torch import Tensor


class _Rows(torch.autograd.Function):
    """``index_select`` whose gradient is one ``index_add``."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, indices: Tensor) -> Tensor:
        ctx.save_for_backward(indices)
        ctx.shape = table.shape
        return table.index_select(0, indices)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        (indices,) = ctx.saved_tensors
        zeros = gradient.new_zeros(ctx.shape)
        return zeros.index_add_(0, indices, gradient), None


def look_up(table: Tensor, indices: Tensor) -> Tensor:
    """The rows that indices name; their gradient is dense, and the same every time.

    On a CPU the gradient is several times as fast as that of an embedding, which goes
    over all indices for each part of the table. On a GPU, where adding in any order
    would not repeat, an embedding sorts them.

    Args:
        table: (rows, channels) or (rows,).
        indices: int64, any shape, none below 0.

    Returns:
        The shape of the indices, and channels behind it if the table has them.
    """
    if table.device.type == "cpu":
        flat = cast("Tensor", _Rows.apply(table, indices.reshape(-1)))
        return flat.view(*indices.shape, *table.shape[1:])
    if table.ndim == 1:
        return F.embedding(indices, table[:, None])[..., 0]
    return F.embedding(indices, table)
