"""Heads that give labels: their losses, results and class weights."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.utils.class_weight import compute_class_weight

from headstart.classification import (
    MultiLabelHead,
    SingleLabelHead,
    class_weights,
    sample_label_outputs,
    sample_labels,
)
from headstart.errors import UserError
from headstart.settings import ClassificationSettings

NAMES = ["cat", "dog", "owl"]
SINGLE = {"kind": "single-label", "labels": NAMES, "counts": [6, 2, 4]}
MULTI = {"kind": "multi-label", "labels": ["sun", "sea", "sky"], "counts": [6, 2, 4]}
LABELS = torch.tensor([0, 2, 1, 2])
MIXED = torch.tensor(
    [[1.0, 0.0, 0.0], [0.3, 0.0, 0.7], [0.0, 0.6, 0.4], [0.5, 0.5, 0.0]]
)
LABEL_SETS = torch.tensor(
    [[1.0, 0.0, 0.0], [0.0, 1.0, 1.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]
)
WEIGHTS = {"dog": 3.0, "owl": 0.5}
VECTOR = torch.tensor([1.0, 3.0, 0.5])


class One(SingleLabelHead):
    """Takes its features for logits."""

    def __init__(self, settings: ClassificationSettings, task: Any) -> None:
        super().__init__()
        self.set_labels(settings, task)

    def forward(self, state: Any) -> Any:
        return {**state, "logits": state["scores"]}


class Five(One):
    shown = 5


class Many(MultiLabelHead):
    def __init__(self, settings: ClassificationSettings, task: Any) -> None:
        super().__init__()
        self.set_labels(settings, task)

    def forward(self, state: Any) -> Any:
        return {**state, "logits": state["scores"]}


def single(task: Any = SINGLE, **settings: Any) -> One:
    return One(ClassificationSettings(name="toy/one", **settings), task)


def multi(**settings: Any) -> Many:
    return Many(ClassificationSettings(name="toy/many", **settings), MULTI)


def batch(labels: torch.Tensor) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    return {"scores": torch.randn(4, 3, generator=generator), "labels": labels}


HEADS = [
    (single, {}, LABELS),
    (single, {"class_weights": WEIGHTS, "label_smoothing": 0.1}, LABELS),
    (single, {}, MIXED),
    (single, {"class_weights": WEIGHTS, "label_smoothing": 0.1}, MIXED),
    (multi, {}, LABEL_SETS),
    (multi, {"class_weights": "balanced", "label_smoothing": 0.1}, LABEL_SETS),
]


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_classifier_loss_is_cross_entropy(smoothing: float) -> None:
    plain = single(label_smoothing=smoothing)
    state = plain(batch(LABELS))
    expected = F.cross_entropy(state["logits"], LABELS, label_smoothing=smoothing)
    torch.testing.assert_close(plain.loss(state), expected)
    weighted = single(label_smoothing=smoothing, class_weights=WEIGHTS)
    expected = F.cross_entropy(
        state["logits"], LABELS, weight=VECTOR, label_smoothing=smoothing
    )
    torch.testing.assert_close(weighted.loss(state), expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weights", ["none", WEIGHTS])
def test_loss_of_mixed_labels_by_hand(smoothing: float, weights: Any) -> None:
    """A share of a sample of a class counts as so much of that sample's loss."""
    head = single(label_smoothing=smoothing, class_weights=weights)
    state = head(batch(MIXED))
    logs = state["logits"].detach().double().numpy()
    logs = logs - np.log(np.exp(logs).sum(1, keepdims=True))
    by_class = VECTOR.double().numpy() if weights != "none" else np.ones(3)
    total = unit = 0.0
    for row, shares in enumerate(MIXED.double().numpy()):
        for label, share in enumerate(shares):
            target = (1 - smoothing) * share + smoothing / 3
            total -= by_class[label] * target * logs[row, label]
            unit += by_class[label] * share
    assert head.loss(state).item() == pytest.approx(total / unit, rel=1e-5)
    assert head.weight(state).item() == pytest.approx(unit)


@pytest.mark.parametrize("weights", ["none", "balanced"])
def test_unmixed_shares_are_labels(weights: str) -> None:
    head = single(label_smoothing=0.1, class_weights=weights)
    shares = F.one_hot(LABELS, 3).float()
    whole, mixed = batch(LABELS), batch(shares)
    torch.testing.assert_close(head.loss(head(mixed)), head.loss(head(whole)))
    torch.testing.assert_close(head.weight(mixed), head.weight(whole))


def test_multi_label_loss_is_binary_cross_entropy() -> None:
    bce = F.binary_cross_entropy_with_logits
    plain = multi()
    state = plain(batch(LABEL_SETS))
    torch.testing.assert_close(plain.loss(state), bce(state["logits"], LABEL_SETS))
    smooth = multi(label_smoothing=0.2)
    expected = bce(state["logits"], torch.where(LABEL_SETS == 1, 0.9, 0.1))
    torch.testing.assert_close(smooth.loss(state), expected)
    weighted = multi(class_weights={"sky": 4.0})
    vector = torch.tensor([1.0, 1.0, 4.0])
    expected = bce(state["logits"], LABEL_SETS, pos_weight=vector)
    torch.testing.assert_close(weighted.loss(state), expected)


@pytest.mark.parametrize(("make", "settings", "labels"), HEADS)
def test_parts_of_a_batch_average_to_the_whole(
    make: Any, settings: dict[str, Any], labels: torch.Tensor
) -> None:
    head = make(**settings)
    whole = batch(labels)
    parts = [{k: v[i:j] for k, v in whole.items()} for i, j in ((0, 1), (1, 4))]
    weights = torch.stack([head.weight(part) for part in parts])
    losses = torch.stack([head.loss(head(part)) for part in parts])
    torch.testing.assert_close(
        (losses * weights).sum() / weights.sum(), head.loss(head(whole))
    )
    torch.testing.assert_close(weights.sum(), head.weight({"labels": labels}))


def test_classifier_outputs_and_decode() -> None:
    labels = ["ant", "bee", "cat", "dog", "elk", "fox"]
    task = {"kind": "single-label", "labels": labels, "counts": [1] * 6}
    head = Five(ClassificationSettings(name="toy/five"), task)
    logits = torch.tensor([[0.0, 2.0, 1.0, -3.0, 0.5, 0.2], [5.0, 0, 0, 0, 0, 0]])
    outputs = head.outputs({"logits": logits, "labels": torch.tensor([1, 3])})
    assert outputs["prediction"].tolist() == [1, 0]
    assert outputs["target"].tolist() == [1, 3]
    rows = head.decode(outputs)
    odds = np.exp(logits[0].numpy())
    assert rows[0]["label"] == "bee"
    assert rows[0]["probability"] == pytest.approx(odds[1] / odds.sum(), abs=1e-6)
    assert list(rows[0]["probabilities"]) == ["bee", "cat", "elk", "fox", "ant"]
    expected = odds[4] / odds.sum()
    assert rows[0]["probabilities"]["elk"] == pytest.approx(expected, abs=1e-6)
    assert rows[1]["label"] == "ant"
    assert head.decode({k: v.numpy() for k, v in outputs.items()}) == rows
    assert "target" not in head.outputs({"logits": logits})
    mixed = head.outputs({"logits": logits, "labels": torch.eye(6)[[4, 2]]})
    assert mixed["target"].tolist() == [4, 2]


def test_multi_label_outputs_and_decode() -> None:
    head, state = multi(), batch(LABEL_SETS)
    state["logits"] = torch.tensor([[3.0, -1.0, 1.0], [0.0, -0.1, 0.1]])
    state["labels"] = LABEL_SETS[:2]
    outputs = head.outputs(state)
    assert outputs["prediction"].tolist() == [[1, 0, 1], [1, 0, 1]]
    assert outputs["target"].tolist() == [[1, 0, 0], [0, 1, 1]]
    rows = head.decode(outputs)
    assert rows[0]["labels"] == ["sun", "sky"]
    expected = 1 / (1 + np.exp(1.0))
    assert rows[0]["probabilities"]["sea"] == pytest.approx(expected, abs=1e-6)
    assert "target" not in head.outputs({"logits": state["logits"]})


def test_all_probabilities_in_the_order_of_the_labels() -> None:
    head = single()
    (row,) = head.decode(head.outputs({"logits": torch.tensor([[0.0, 1.0, 2.0]])}))
    assert list(row["probabilities"]) == NAMES
    assert sum(row["probabilities"].values()) == pytest.approx(1, abs=2e-6)


def test_samples_hold_every_label() -> None:
    assert set(sample_labels(SINGLE, 6)["labels"].tolist()) == {0, 1, 2}
    assert sample_labels(MULTI, 4)["labels"].mean(0).tolist() == [0.5] * 3
    for task in (SINGLE, MULTI):
        outputs = sample_label_outputs(task, 12)
        assert {len(values) for values in outputs.values()} == {12}
        right = (outputs["prediction"] == outputs["target"]).float().mean()
        assert 0 < right < 1


# Class weights


def test_none_is_no_weight() -> None:
    assert class_weights("none", NAMES, [1, 2, 3]) is None


def test_balanced_is_scikit_learns() -> None:
    counts = [30, 10, 2]
    y = np.repeat([0, 1, 2], counts)
    expected = compute_class_weight("balanced", classes=np.arange(3), y=y)
    balanced = class_weights("balanced", LABELS, counts)
    assert balanced is not None
    np.testing.assert_allclose(balanced.numpy(), expected, rtol=1e-6)


def test_a_class_without_samples_has_a_finite_weight() -> None:
    balanced = class_weights("balanced", NAMES, [6, 3, 0])
    assert balanced is not None and balanced.tolist() == [0.5, 1.0, 3.0]


def test_labels_that_are_not_named_weigh_one() -> None:
    weights = class_weights({"owl": 4}, NAMES, [1, 1, 1])
    assert weights is not None and weights.tolist() == [1.0, 1.0, 4.0]


@pytest.mark.parametrize("weight", [-1.0, 0.0, math.inf, math.nan])
def test_weights_are_above_zero(weight: float) -> None:
    with pytest.raises(UserError, match="above 0") as caught:
        class_weights({"owl": weight}, NAMES, [1, 1, 1])
    assert caught.value.faults[0].where == "head.class_weights.owl"


def test_all_faults_are_told_together() -> None:
    with pytest.raises(UserError) as caught:
        class_weights({"fish": 2.0, "Dog": 1.0, "owl": -1.0}, NAMES, [1, 1, 1])
    texts = [str(fault) for fault in caught.value.faults]
    assert len(texts) == 3
    assert "'fish'" in texts[0]
    assert "did you mean 'dog'?" in texts[1]
    assert "-1.0" in texts[2]
