"""Losses of ranking by sampled items: pairs, and the softmax over a whole catalogue.

All give one loss per event and take scores, not vectors; what is masked takes no part
and gets no gradient. Nothing here waits for the device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

MASKED = -1e30
"""Scores that do not count; finite, as a row of them must have a gradient of 0."""


def bpr(positive: Tensor, negative: Tensor, masked: Tensor) -> Tensor:
    """Bayesian personalised ranking (Rendle et al. 2009): ``-log sigmoid(p - n)``.

    Args:
        positive: Scores of what was chosen, (events,).
        negative: Scores of sampled items, (events, samples).
        masked: Samples that do not count, bool (events, samples).

    Returns:
        Mean over the samples that count, (events,); 0 where none does.
    """
    losses = F.softplus(negative - positive[:, None]).masked_fill(masked, 0.0)
    return losses.sum(1) / (~masked).sum(1).clamp(min=1)


def warp(
    positive: Tensor, negative: Tensor, masked: Tensor, ranks: Tensor, margin: float = 1
) -> Tensor:
    """Weighted approximate-rank pairwise loss (Weston, Bengio & Usunier 2011).

    The samples are tried in order until one comes within the margin of the positive.
    If that took N trials, the positive's rank is about ``(items - 1) // N``, and the
    hinge of that one sample counts as much as :func:`rank_weights` gives this rank.

    Args:
        positive: Scores of what was chosen, (events,).
        negative: Scores of sampled items, (events, samples).
        masked: Samples that do not count, bool (events, samples).
        ranks: :func:`rank_weights` of all items.
        margin: By how much the positive's score should be ahead.

    Returns:
        (events,); 0 where no sample comes so near.
    """
    if not negative.shape[1]:
        return positive * 0.0
    hinge = (margin - positive[:, None] + negative).masked_fill(masked, 0.0)
    near = hinge > 0
    # The first of equal ones: torch promises so.
    first = near.int().argmax(1)
    tried = (~masked).cumsum(1).gather(1, first[:, None])[:, 0].clamp(min=1)
    rank = torch.div(len(ranks) - 1, tried, rounding_mode="floor")
    chosen = hinge.gather(1, first[:, None])[:, 0].clamp(min=0)
    return ranks[rank] * chosen


def rank_weights(items: int) -> Tensor:
    """``1 + 1/2 + … + 1/rank`` for ranks from 0 to ``items - 1``, float32."""
    ranks = torch.arange(items, dtype=torch.float64)
    ranks[1:] = ranks[1:].reciprocal()
    return ranks.cumsum(0).float()


def log_expected(expected: Tensor) -> Tensor:
    """What log-Q correction takes off the score of a sampled item.

    Importance sampling (Bengio & Senécal 2008; Yi et al. 2019): an item that is
    expected to occur in the sample x times counts 1/x times.

    Args:
        expected: How often each item occurs in a sample on average; of several samples
            whose sums are added, in all of them together.
    """
    # What never occurs is masked anyway; its correction must only be finite.
    return expected.clamp(min=1e-9).log()


def log_sum(corrected: Tensor, masked: Tensor) -> Tensor:
    """Log of an unbiased estimate of ``sum(exp(scores))`` over all items.

    Args:
        corrected: Scores of sampled items without their :func:`log_expected`,
            (events, samples).
        masked: What the sum leaves out, bool (events, samples).

    Returns:
        (events,); very small where all is masked.
    """
    return corrected.masked_fill(masked, MASKED).logsumexp(1)


def sampled_softmax(positive: Tensor, others: Sequence[Tensor]) -> Tensor:
    """Cross entropy of the softmax over all items, the others' part being estimated.

    The positive is in the sum for certain, not by chance, so its score is not corrected
    (Khrylchenko et al. 2025).

    Args:
        positive: Scores of what was chosen, (events,).
        others: Parts of the sum over other items, from :func:`log_sum`, each (events,).
    """
    return torch.stack([positive, *others], 1).logsumexp(1) - positive
