"""The loss of connectionist temporal classification, repeatable on every device."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

if TYPE_CHECKING:
    from torch import Tensor

NEVER = -math.inf


def ctc_losses(log_probs: Tensor, labels: Tensor, frames: Tensor) -> Tensor:
    """Negative log-likelihood of each clip's labels (Graves et al., 2006).

    Args:
        log_probs: (clips, frames, classes) float32, log-softmax over classes; class 0
            is the blank.
        labels: (clips, labels) int64, negative behind the end.
        frames: (clips,) int64, how many frames of each clip count.

    Returns:
        (clips,) float32 in nats; infinite, with a gradient of 0, where there are fewer
        frames than labels and repeats.
    """
    there = labels >= 0
    counts = there.sum(1)
    repeats = ((labels[:, 1:] == labels[:, :-1]) & there[:, 1:]).sum(1)
    possible = frames >= (counts + repeats).clamp(min=1)
    labels = labels.clamp(min=0)
    if log_probs.device.type == "cpu":
        losses = F.ctc_loss(
            log_probs.transpose(0, 1),
            labels,
            frames,
            counts,
            reduction="none",
            zero_infinity=True,
        )
    else:
        # torch's own waits for the device to learn the lengths, and sums up gradients
        # in whatever order threads come, so that no run could be repeated exactly.
        losses = scanned_losses(log_probs, labels, counts, frames)
    return losses.masked_fill(~possible, math.inf)


def scanned_losses(
    log_probs: Tensor, labels: Tensor, counts: Tensor, frames: Tensor
) -> Tensor:
    """:func:`ctc_losses` step by step, with deterministic gradients, never waiting.

    Args:
        log_probs: As there.
        labels: As there, but anything that is no class is 0.
        counts: (clips,) int64, labels of each clip.
        frames: As there.

    Returns:
        (clips,), infinite or of no meaning where :func:`ctc_losses` is infinite.
    """
    return cast("Tensor", _ScannedLoss.apply(log_probs, labels, counts, frames))


class _ScannedLoss(torch.autograd.Function):
    """Forward and backward variables are found in one scan.

    The backward variables of a sequence are the forward variables of the reversed
    one, so both go through the same loop as one batch of twice the size.
    """

    @staticmethod
    def forward(
        ctx: Any, log_probs: Tensor, labels: Tensor, counts: Tensor, frames: Tensor
    ) -> Tensor:
        clips, length, classes = log_probs.shape
        states = 2 * labels.shape[1] + 1
        path = labels.new_zeros(clips, states)
        path[:, 1::2] = labels
        emitted = log_probs.gather(2, path[:, None].expand(-1, length, -1))

        place = torch.arange(states, device=path.device)
        time = torch.arange(length, device=path.device)
        last = 2 * counts
        back_place = (last[:, None] - place).clamp(min=0)
        back_time = (frames[:, None] - 1 - time).clamp(min=0)

        def reverse(values: Tensor) -> Tensor:
            values = values.gather(1, back_time[..., None].expand_as(values))
            return values.gather(2, back_place[:, None].expand_as(values))

        forward = _scan(
            torch.cat([emitted, reverse(emitted)]),
            torch.cat([path, path.gather(1, back_place)]),
        )
        ahead, behind = forward[:clips], reverse(forward[clips:])

        end = ahead.gather(
            1, (frames - 1).clamp(min=0)[:, None, None].expand(-1, 1, states)
        )[:, 0]
        final = end.gather(1, last[:, None])[:, 0]
        before = end.gather(1, (last - 1).clamp(min=0)[:, None])[:, 0]
        likelihood = torch.where(counts > 0, torch.logaddexp(final, before), final)
        likelihood = likelihood.masked_fill(frames < 1, NEVER)

        if ctx.needs_input_grad[0]:
            share = (ahead + behind - emitted - likelihood[:, None, None]).exp()
            there = (time < frames[:, None])[..., None] & (place <= last[:, None])[
                :, None
            ]
            there &= torch.isfinite(likelihood)[:, None, None]
            share = share.nan_to_num(0.0).masked_fill(~there, 0.0)
            # A product, not a scatter: the order of its sums is always the same.
            ctx.save_for_backward(share @ F.one_hot(path, classes).to(share))
        return -likelihood

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (occupied,) = ctx.saved_tensors
        return -occupied * gradient[:, None, None], None, None, None


def _scan(emitted: Tensor, path: Tensor) -> Tensor:
    """Log-probabilities of all beginnings that end in each state at each frame.

    Args:
        emitted: (rows, frames, states), log-probability of each state's class.
        path: (rows, states), the classes: blanks with labels between them.
    """
    rows, length, states = emitted.shape
    # Two states that are never reached, so that the first ones have predecessors too.
    reached = emitted.new_full((length, rows, states + 2), NEVER)
    skips = torch.zeros_like(path, dtype=torch.bool)
    skips[:, 2:] = (path[:, 2:] != 0) & (path[:, 2:] != path[:, :-2])
    barred = torch.zeros_like(emitted[:, 0]).masked_fill(~skips, NEVER)
    reached[0, :, 2:4] = emitted[:, 0, :2]
    for frame in range(1, length):
        old, new = reached[frame - 1], reached[frame, :, 2:]
        stayed = torch.logaddexp(old[:, 2:], old[:, 1:-1])
        torch.logaddexp(stayed, old[:, :-2] + barred, out=new)
        new += emitted[:, frame]
    return reached[:, :, 2:].transpose(0, 1)
