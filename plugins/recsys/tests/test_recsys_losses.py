"""Losses of sampled items against sums by hand, closed forms and finite differences."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch

from headstart_recsys.losses import (
    bpr,
    log_expected,
    log_sum,
    rank_weights,
    sampled_softmax,
    warp,
)

POSITIVE = torch.tensor([1.0, -0.5, 2.0], dtype=torch.float64)
NEGATIVE = torch.tensor(
    [[0.5, 1.5, -2.0], [0.0, -4.0, 0.3], [0.5, 0.0, -1.0]], dtype=torch.float64
)
NONE = torch.zeros(3, 3, dtype=torch.bool)
SOME = torch.tensor([[0, 1, 0], [1, 0, 0], [1, 1, 1]], dtype=torch.bool)


def test_bpr_by_hand() -> None:
    for masked in (NONE, SOME):
        losses = bpr(POSITIVE, NEGATIVE, masked).tolist()
        for row in range(3):
            terms = [
                -math.log(1 / (1 + math.exp(-(POSITIVE[row] - NEGATIVE[row, i]))))
                for i in range(3)
                if not masked[row, i]
            ]
            mean = sum(terms) / len(terms) if terms else 0.0
            assert losses[row] == pytest.approx(mean)


def test_bpr_gradient_is_the_sigmoid_of_the_difference() -> None:
    positive, negative = POSITIVE.clone().requires_grad_(), NEGATIVE.clone()
    bpr(positive, negative[:, :1], NONE[:, :1]).sum().backward()
    expected = -torch.sigmoid(NEGATIVE[:, 0] - POSITIVE)
    torch.testing.assert_close(positive.grad, expected)


def test_rank_weights_are_harmonic_numbers() -> None:
    assert rank_weights(5).tolist() == pytest.approx([0, 1, 1.5, 11 / 6, 25 / 12])


def test_warp_by_hand() -> None:
    """Nine items, so that the rank after N trials is 8 // N."""
    ranks = rank_weights(9).double()
    harmonic = [sum(1 / i for i in range(1, rank + 1)) for rank in range(9)]
    losses = warp(POSITIVE, NEGATIVE, NONE, ranks).tolist()
    # The first sample is within the margin at once: rank 8.
    assert losses[0] == pytest.approx(harmonic[8] * (1 - 1.0 + 0.5))
    assert losses[1] == pytest.approx(harmonic[8] * (1 + 0.5 + 0.0))
    # All three are further away than 1.
    assert losses[2] == 0
    # The second comes within the margin: rank 4; then the third: rank 2.
    second = warp(POSITIVE[:1], torch.tensor([[-1.0, 0.5, 3.0]]), NONE[:1], ranks)
    assert second.item() == pytest.approx(harmonic[4] * 0.5)
    third = warp(POSITIVE[:1], torch.tensor([[-1.0, -0.5, 3.0]]), NONE[:1], ranks)
    assert third.item() == pytest.approx(harmonic[2] * 3.0)
    # What is masked is no trial.
    masked = torch.tensor([[True, False, False]])
    skipped = warp(POSITIVE[:1], torch.tensor([[5.0, -0.5, 3.0]]), masked, ranks)
    assert skipped.item() == pytest.approx(harmonic[4] * 3.0)
    assert warp(POSITIVE, NEGATIVE, ~NONE, ranks).tolist() == [0, 0, 0]
    assert warp(POSITIVE, NEGATIVE[:, :0], NONE[:, :0], ranks).tolist() == [0, 0, 0]


def test_warp_moves_the_positive_and_the_one_that_came_near() -> None:
    negative = torch.tensor([[-1.0, 0.5, 3.0]], requires_grad=True)
    positive = torch.tensor([1.0], requires_grad=True)
    warp(positive, negative, NONE[:1], rank_weights(9)).sum().backward()
    assert negative.grad is not None and positive.grad is not None
    weight = 1 + 1 / 2 + 1 / 3 + 1 / 4
    assert negative.grad.tolist() == [[0, pytest.approx(weight), 0]]
    assert positive.grad.tolist() == [pytest.approx(-weight)]


SCORES = torch.tensor([0.3, -1.2, 2.0, 0.7, -0.4], dtype=torch.float64)


@pytest.mark.parametrize("target", range(5))
def test_all_items_as_samples_give_the_full_softmax(target: int) -> None:
    """Value and gradient; each other item is in the sample once."""
    scores = SCORES.clone().requires_grad_()
    others = log_sum(
        scores[None] - log_expected(torch.ones(5)), torch.arange(5)[None] == target
    )
    loss = sampled_softmax(scores[None, target], [others])
    loss.sum().backward()
    full = SCORES.clone().requires_grad_()
    expected = torch.nn.functional.cross_entropy(full[None], torch.tensor([target]))
    expected.backward()
    assert loss.item() == pytest.approx(expected.item())
    torch.testing.assert_close(scores.grad, full.grad)


def test_corrected_sum_is_unbiased() -> None:
    """Its mean over every sample there can be, from two distributions together."""
    popular = np.array([0.5, 0.05, 0.2, 0.15, 0.1])
    target = 2
    expected = torch.tensor(2 * popular + 1 / 5)
    mean = 0.0
    # Two samples by popularity, one uniform: 125 outcomes.
    for first, second, third in itertools.product(range(5), repeat=3):
        chance = popular[first] * popular[second] / 5
        parts = [
            log_sum(SCORES[codes] - log_expected(expected[codes]), codes == target)
            for codes in (torch.tensor([[first, second]]), torch.tensor([[third]]))
        ]
        mean += chance * sum(part.exp().item() for part in parts)
    others = SCORES[torch.arange(5) != target].exp().sum().item()
    assert mean == pytest.approx(others)


def test_a_row_of_masked_samples_has_no_loss_and_no_gradient() -> None:
    positive = torch.tensor([0.7], requires_grad=True)
    negative = torch.tensor([[9.0, 3.0]], requires_grad=True)
    masked = torch.ones(1, 2, dtype=torch.bool)
    others = log_sum(negative - log_expected(torch.zeros(1)), masked)
    loss = sampled_softmax(positive, [others])
    loss.sum().backward()
    assert loss.item() == 0
    assert negative.grad is not None and negative.grad.tolist() == [[0, 0]]


@pytest.mark.parametrize("name", ["bpr", "warp", "softmax"])
def test_gradients_against_finite_differences(name: str) -> None:
    expected = torch.tensor([0.3, 1.2, 0.8], dtype=torch.float64)
    losses: dict[str, Any] = {
        "bpr": lambda p, n: bpr(p, n, SOME),
        "warp": lambda p, n: warp(p, n, SOME, rank_weights(9).double()),
        "softmax": lambda p, n: sampled_softmax(
            p, [log_sum(n - log_expected(expected), SOME)]
        ),
    }
    inputs = (POSITIVE.clone().requires_grad_(), NEGATIVE.clone().requires_grad_())
    assert torch.autograd.gradcheck(losses[name], inputs)
