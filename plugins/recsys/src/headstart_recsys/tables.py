"""Rows of large tables, with gradients that keep up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch.nn import functional as F

if TYPE_CHECKING:
    from scipy import sparse
    from torch import Tensor

BLOCK = 1 << 10
"""Events whose rows are gathered at once on a CPU: few enough for its cache."""


class _Rows(torch.autograd.Function):
    """``index_select`` whose gradient takes one pass over the indices."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, indices: Tensor) -> Tensor:
        ctx.save_for_backward(indices)
        ctx.shape = table.shape
        return table.index_select(0, indices)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        (indices,) = ctx.saved_tensors
        if gradient.ndim == 1:
            zeros = gradient.new_zeros(ctx.shape)
            return zeros.index_add_(0, indices, gradient), None
        ones = gradient.new_ones(len(indices), 1)
        chosen = _matrix(indices[:, None], ones, ctx.shape[0])
        return _product(chosen.T, gradient), None


class _Matches(torch.autograd.Function):
    """Dot products, block by block, without keeping any of the rows."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, table: Tensor, codes: Tensor) -> Tensor:
        ctx.save_for_backward(query, table, codes)
        _refuse_outside(codes, len(table))
        scores = query.new_empty(codes.shape)
        vectors, rows = query.detach().numpy(), table.detach().numpy()
        samples, channels = codes.shape[1], table.shape[1]
        memory = np.empty((min(BLOCK, len(query)), samples, channels), rows.dtype)
        out, indices = scores.numpy(), codes.numpy()
        for start in range(0, len(query), BLOCK):
            block = slice(start, start + BLOCK)
            some = memory[: len(indices[block])]
            # Not "raise", which goes by way of a copy.
            rows.take(indices[block], axis=0, out=some, mode="clip")
            np.einsum("bsc,bc->bs", some, vectors[block], out=out[block])
        return scores

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, table, codes = ctx.saved_tensors
        shares = _matrix(codes, gradients[0], len(table))
        return (
            _product(shares, table) if ctx.needs_input_grad[0] else None,
            _product(shares.T, query) if ctx.needs_input_grad[1] else None,
            None,
        )


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
    if _on_cpu(table):
        flat = cast("Tensor", _Rows.apply(table, indices.reshape(-1)))
        return flat.view(*indices.shape, *table.shape[1:])
    if table.ndim == 1:
        return F.embedding(indices, table[:, None])[..., 0]
    return F.embedding(indices, table)


def match(query: Tensor, table: Tensor, codes: Tensor) -> Tensor:
    """Dot products of each query with the rows that it is matched with.

    Args:
        query: (events, channels).
        table: (rows, channels).
        codes: int64 (events, samples), none below 0.

    Returns:
        (events, samples).
    """
    if _on_cpu(table) and query.dtype == table.dtype:
        return cast("Tensor", _Matches.apply(query, table, codes))
    return (query[:, None] * look_up(table, codes)).sum(-1)


def _on_cpu(table: Tensor) -> bool:
    """Whether the ways of this module are taken; NumPy knows no other precision."""
    plain = table.device.type == "cpu" and table.dtype in (torch.float32, torch.float64)
    return plain and not torch.compiler.is_compiling()


def _refuse_outside(codes: Tensor, count: int) -> None:
    """Neither NumPy's nor SciPy's way says so itself.

    Raises:
        IndexError: A code is that of no row.
    """
    if codes.numel() and not (0 <= int(codes.min()) and int(codes.max()) < count):
        raise IndexError(f"a code is not in range({count})")


def _matrix(codes: Tensor, shares: Tensor, count: int) -> sparse.csr_array:
    """Events by rows: the share of each event in the rows that it names.

    Products with it go over the events once, where sums by index sort them first.

    Args:
        codes: Rows of each event, int64 (events, samples).
        shares: (events, samples); what names a row twice counts twice.
        count: Rows of the table.
    """
    from scipy import sparse

    events, samples = codes.shape
    stops = np.arange(events + 1, dtype=np.int32) * samples
    rows = codes.reshape(-1).numpy().astype(np.int32)
    values = shares.reshape(-1).numpy()
    return sparse.csr_array((values, rows, stops), shape=(events, count))


def _product(matrix: sparse.sparray, vectors: Tensor) -> Tensor:
    product: np.ndarray = matrix @ vectors.contiguous().numpy()
    return torch.from_numpy(product)
