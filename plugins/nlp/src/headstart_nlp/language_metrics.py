"""Metrics of language models, over sums that the head gives for each document."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torchmetrics.metric import Metric

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor


class PerToken(Metric):
    """A sum over documents divided by their tokens.

    Summed in float64: a float32 sum over millions of tokens stops growing.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    total: Tensor
    tokens: Tensor

    def __init__(self) -> None:
        super().__init__()
        zero = torch.zeros((), dtype=torch.float64)
        self.add_state("total", zero, dist_reduce_fx="sum")
        self.add_state("tokens", zero.clone(), dist_reduce_fx="sum")

    def update(self, values: Tensor, tokens: Tensor) -> None:
        """Add a batch: each document's sum and its number of tokens, both (batch,)."""
        self.total += values.double().sum()
        self.tokens += tokens.double().sum()

    def compute(self) -> Tensor:
        """A scalar; not a number where there is no token."""
        return self.total / self.tokens


class Perplexity(PerToken):
    """Exponential of the mean negative log-likelihood of a token, in nats.

    Over all tokens of the split, not a mean over documents.
    """

    higher_is_better = False

    def compute(self) -> Tensor:
        return super().compute().exp()


class GreedyMatch(PerToken):
    """Share of documents that greedy decoding gives word for word.

    Documents without a token that counts are left out.
    """

    def update(self, whole: Tensor, tokens: Tensor) -> None:
        """Add a batch: whether each document is right, and its tokens, (batch,)."""
        there = tokens > 0
        super().update(whole.bool() & there, there)


def perplexity(task: Mapping[str, Any]) -> Metric:
    """How many tokens the model wavers between, on average; 1 is certainty."""
    return Perplexity()


def token_accuracy(task: Mapping[str, Any]) -> Metric:
    """Share of tokens that are the model's first choice, given those before them."""
    return PerToken()


def greedy_match(task: Mapping[str, Any]) -> Metric:
    """Share of documents (responses) that greedy decoding gives word for word."""
    return GreedyMatch()


def perplexity_scores(
    task: Mapping[str, Any], outputs: Mapping[str, Any]
) -> np.ndarray:
    """Each document's share in both sums of the loss a token; the metric is its exp."""
    return _shares(outputs, "nll")


def token_accuracy_scores(
    task: Mapping[str, Any], outputs: Mapping[str, Any]
) -> np.ndarray:
    """Each document's share in both sums."""
    return _shares(outputs, "right")


def greedy_match_scores(
    task: Mapping[str, Any], outputs: Mapping[str, Any]
) -> np.ndarray:
    """1 or 0 for each document, (documents,)."""
    return _shares(outputs, "whole")[:, 0]


def sample_language_outputs(task: Mapping[str, Any], batch_size: int) -> dict[str, Any]:
    """Outputs as the head gives them, for tests: one document has no token."""
    generator = torch.Generator().manual_seed(batch_size)
    tokens = torch.arange(batch_size) * 5 % 7
    nll = tokens * (0.5 + torch.rand(batch_size, generator=generator))
    right = tokens - torch.arange(batch_size) % 2
    right = right.clamp(min=0)
    return {"nll": nll, "tokens": tokens, "right": right, "whole": right == tokens}


def _shares(outputs: Mapping[str, Any], key: str) -> np.ndarray:
    """A sum and the tokens of each document, (documents, 2).

    Not a number where there is no token.
    """
    pair = [np.asarray(outputs[name], dtype=np.float64) for name in (key, "tokens")]
    found = np.stack(pair, axis=1)
    found[found[:, 1] == 0] = np.nan
    return found
