"""Metrics of pretraining, by hand and against transformers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from transformers.models.wav2vec2.modeling_wav2vec2 import Wav2Vec2GumbelVectorQuantizer

from headstart_speech.pretraining_metrics import (
    code_perplexity,
    codebook_perplexity,
    contrastive_accuracy,
    contrastive_accuracy_scores,
    sample_pretraining_outputs,
)

TASK = {"kind": "unlabelled-audio", "rate": 16000}


def test_accuracy_is_over_frames_not_clips() -> None:
    metric = contrastive_accuracy(TASK)
    metric.update(torch.tensor([1, 0]), torch.tensor([1, 3]))
    metric.update(torch.tensor([4]), torch.tensor([6]))
    assert float(metric.compute()) == 0.5


def test_accuracy_of_nothing_is_not_a_number() -> None:
    metric = contrastive_accuracy(TASK)
    metric.update(torch.tensor([0]), torch.tensor([0]))
    assert math.isnan(metric.compute())


def test_scores_leave_out_clips_without_hidden_frames() -> None:
    outputs = {"right": np.array([2, 0, 1]), "masked": np.array([4, 0, 1])}
    scores = contrastive_accuracy_scores(TASK, outputs)
    np.testing.assert_array_equal(scores, [[2, 4], [np.nan, np.nan], [1, 1]])


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        # Both codes of the first group alike, one of the second.
        ([[[0, 3], [1, 3]], [[0, 3], [1, 3]]], 2 + 1),
        # Shares 3/4 and 1/4 in the first group, four codes in the second.
        (
            [[[0, 0]], [[0, 1], [0, 2], [5, 3]]],
            math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25)) + 4,
        ),
    ],
)
def test_perplexity_by_hand(codes: list[list[list[int]]], expected: float) -> None:
    metric = codebook_perplexity(TASK)
    for clip in codes:
        metric.update([np.array(clip, dtype=np.int32)])
    assert float(metric.compute()) == pytest.approx(expected)


def test_perplexity_counts_the_whole_split() -> None:
    """Clips of one code each are not one code in all."""
    metric = codebook_perplexity(TASK)
    metric.update([np.full((5, 1), code) for code in range(4)])
    metric.update([np.zeros((0, 1), dtype=np.int32)])
    assert float(metric.compute()) == pytest.approx(4.0)
    metric.reset()
    metric.update([np.zeros((0, 2), dtype=np.int32)])
    assert math.isnan(metric.compute())


def test_perplexity_keeps_no_frames() -> None:
    metric = codebook_perplexity(TASK)
    for _ in range(3):
        metric.update([np.zeros((1000, 2), dtype=np.int32)])
    assert metric.counts == {0: {0: 3000}, 1: {0: 3000}}


def test_perplexity_of_probabilities_equals_transformers() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(50, 2, 30, generator=generator)
    probabilities = logits.softmax(-1)
    theirs = Wav2Vec2GumbelVectorQuantizer._compute_perplexity(probabilities)
    torch.testing.assert_close(code_perplexity(probabilities.mean(0)), theirs)


def test_a_code_that_is_never_used_has_a_finite_slope() -> None:
    shares = torch.tensor([[1.0, 0.0]], requires_grad=True)
    code_perplexity(shares).backward()
    assert shares.grad is not None and shares.grad.isfinite().all()
    assert shares.grad[0, 1] > shares.grad[0, 0], "using the other code is worth more"


def test_samples_have_a_clip_without_hidden_frames() -> None:
    outputs = sample_pretraining_outputs(TASK, 12)
    assert 0 in outputs["masked"] and (outputs["right"] <= outputs["masked"]).all()
    lengths = [len(codes) for codes in outputs["codes"]]
    assert lengths == outputs["masked"].tolist()
