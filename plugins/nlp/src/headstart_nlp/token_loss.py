"""Cross entropy of every token without a second full copy of the logits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch.autograd.function import once_differentiable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

CHUNK = {"cpu": 1 << 20}
LARGE_CHUNK = 1 << 24
"""Logits looked at in one go: 4 MiB in float32 stay in a CPU's cache; other devices
want few and large pieces of work, 64 MiB."""


class _TokenLoss(torch.autograd.Function):
    """Chunks of rows go forward, and again backward, where their softmax is made anew.

    torch's own keeps the log-softmax of all rows until the backward pass and makes the
    gradient beside it; here the gradient is the only tensor of that size. Chunking is
    torchtune's idea (its pull request 1390).
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
        losses = logits.new_zeros(targets.shape, dtype=torch.float32)
        for rows in _chunks(logits, targets):
            scores = torch.log_softmax(logits[rows], -1, dtype=torch.float32)
            wanted = targets[rows]
            picked = scores.gather(-1, wanted.clamp(min=0)[:, None])[:, 0]
            loss = -(1 - smoothing) * picked
            if smoothing:
                loss -= smoothing * scores.mean(-1)
            losses[rows] = loss.masked_fill(wanted < 0, 0.0)
        ctx.save_for_backward(logits, targets)
        ctx.smoothing = smoothing
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        logits, targets = ctx.saved_tensors
        smoothing, classes = ctx.smoothing, logits.shape[-1]
        result = torch.zeros_like(logits)
        for rows in _chunks(logits, targets):
            share = torch.softmax(logits[rows], -1, dtype=torch.float32)
            wanted = targets[rows]
            if smoothing:
                share -= smoothing / classes
            hit = torch.full_like(share[:, :1], smoothing - 1)
            share.scatter_add_(-1, wanted.clamp(min=0)[:, None], hit)
            share *= gradient[rows].masked_fill(wanted < 0, 0.0)[:, None]
            result[rows] = share.to(result.dtype)
        return result, None, None


def token_losses(logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross entropy of each token.

    Args:
        logits: (rows, vocabulary), any floating-point type.
        targets: (rows,) int64; negative ones do not count.
        smoothing: Share of the target that is spread over the vocabulary.

    Returns:
        (rows,) float32 in nats; 0 where a row does not count.
    """
    return cast("Tensor", _TokenLoss.apply(logits, targets, smoothing))


def _chunks(logits: Tensor, targets: Tensor) -> Iterator[Tensor | slice]:
    """Rows to look at together; on a CPU only those that count.

    A GPU would have to be waited for to learn which do.
    """
    elements = CHUNK.get(logits.device.type, LARGE_CHUNK)
    size = max(1, elements // logits.shape[-1])
    if logits.device.type == "cpu":
        counted = targets.ge(0).nonzero()[:, 0]
        if len(counted) < len(targets):
            yield from torch.split(counted, size)
            return
    for start in range(0, len(targets), size):
        yield slice(start, start + size)
