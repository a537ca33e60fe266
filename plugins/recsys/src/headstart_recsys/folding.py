"""Vectors of users and items that have none, solved by ridge regression."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

GATHERED = 1 << 25
"""Numbers of item vectors that :func:`fold_in` has in memory at once."""


def sum_rows(table: Tensor, indices: Tensor) -> Tensor:
    """Sum of the rows that each list names, without gathering them.

    Args:
        table: (rows, channels).
        indices: int64 (lists, length), padded with -1.

    Returns:
        (lists, channels); of an empty list zeros.
    """
    known = (indices >= 0).to(table.dtype)
    return F.embedding_bag(
        indices.clamp(min=0), table, mode="sum", per_sample_weights=known
    )


@torch.no_grad()
def fold_in(
    table: Tensor,
    items: Tensor,
    regularization: float,
    confidence: Tensor | None = None,
) -> Tensor:
    """Vectors of users who are known by a list of items alone.

    One user's half step of alternating least squares (Hu, Koren & Volinsky 2008,
    equation 4): ``x = (YᵀCY + λI)⁻¹ YᵀCp`` over all items ``Y``, where ``p`` is 1 for
    the user's items and 0 for the others, whose confidence is 1. Computed in float32.

    Args:
        table: Vectors of all items, (items, channels).
        items: int64 (users, length), padded with -1.
        regularization: λ, above 0.
        confidence: (users, length) of the listed items, as ALS gets them (``alpha``
            times the value); below 0 for an item that the user dislikes. ``None``
            takes 1, and one matrix then serves all users.

    Returns:
        (users, channels) float32; of an empty list zeros.
    """
    table = table.detach().float()
    with torch.autocast(table.device.type, enabled=False):
        ridge = regularization * torch.eye(table.shape[1], device=table.device)
        gram = table.T @ table + ridge
        if confidence is None:
            return _solve(gram, sum_rows(table, items).T).T
        step = max(1, GATHERED // max(1, items.shape[1] * table.shape[1]))
        parts = [
            _fold_in_weighted(table, gram, some, weights)
            for some, weights in zip(
                torch.split(items, step),
                torch.split(confidence.float(), step),
                strict=True,
            )
        ]
        return torch.cat(parts) if parts else table.new_zeros(0, table.shape[1])


def _fold_in_weighted(
    table: Tensor, gram: Tensor, items: Tensor, confidence: Tensor
) -> Tensor:
    known = items >= 0
    rows = F.embedding(items.clamp(min=0), table)
    # The Gram matrix has every item with a confidence of 1 already.
    more = torch.where(known, confidence.abs() - 1, 0.0)
    liked = torch.where(known, confidence.clamp(min=0), 0.0)
    left = gram + (rows * more[..., None]).mT @ rows
    right = (rows * liked[..., None]).sum(dim=1)
    return _solve(left, right[..., None])[..., 0]


def _solve(matrix: Tensor, right: Tensor) -> Tensor:
    """Of a positive definite system, without waiting for the device."""
    return torch.cholesky_solve(right, torch.linalg.cholesky_ex(matrix).L)


@dataclass(frozen=True)
class Regression:
    """A linear map with an offset.

    Attributes:
        weight: (inputs, outputs) float64.
        offset: (outputs,) float64.
        penalty: The one chosen.
    """

    weight: Tensor
    offset: Tensor
    penalty: float

    def __call__(self, inputs: Tensor) -> Tensor:
        """(rows, inputs) to (rows, outputs), float64."""
        return inputs.double() @ self.weight + self.offset


def fit_ridge(inputs: Tensor, targets: Tensor) -> Regression:
    """Ridge regression whose penalty leaves the least error on rows left out.

    The errors of leaving out each row in turn have a closed form (Allen's PRESS, 1974),
    so every penalty costs one pass.

    Args:
        inputs: (rows, inputs), at least two rows.
        targets: (rows, outputs).
    """
    inputs, targets = inputs.double(), targets.double()
    centre, mean = inputs.mean(dim=0), targets.mean(dim=0)
    centred, wanted = inputs - centre, targets - mean
    values, vectors = torch.linalg.eigh(centred.T @ centred)
    values = values.clamp(min=0)
    rotated = centred @ vectors
    projected = rotated.T @ wanted
    scale = float(values.mean()) or 1.0
    best, least = Regression(torch.empty(0), mean, 0.0), float("inf")
    for factor in torch.logspace(-4, 4, 17).tolist():
        shrunk = 1 / (values + factor * scale)
        # A row's own part in its prediction; the offset is fitted to it as well.
        leverage = rotated.square() @ shrunk + 1 / len(inputs)
        left = wanted - rotated @ (shrunk[:, None] * projected)
        error = float((left / (1 - leverage)[:, None]).square().mean())
        if error < least:
            weight = vectors @ (shrunk[:, None] * projected)
            best = Regression(weight, mean - centre @ weight, factor * scale)
            least = error
    return best
