"""Classification heads against torchvision's networks, torch's losses and by hand."""

from __future__ import annotations

import sys
import types
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchvision.models import mobilenet_v2, resnet18

from headstart.errors import UserError
from headstart.report.parts import Evaluation
from headstart.specs import Feature
from headstart_vision.heads import (
    build_classifier,
    build_multi_label,
    sample_targets,
)
from headstart_vision.settings import ImageHeadSettings

SINGLE = {"kind": "single-label", "labels": ["cat", "dog", "owl"], "counts": [6, 2, 4]}
MULTI = {"kind": "multi-label", "labels": ["sun", "sea", "sky"], "counts": [6, 2, 4]}
FEATURES = {
    "layer1": Feature("layer1", "map", 4, stride=4),
    "layer2": Feature("layer2", "map", 8, stride=8),
}
LABELS = torch.tensor([0, 2, 1, 2])
MIXED = torch.tensor(
    [[1.0, 0.0, 0.0], [0.3, 0.0, 0.7], [0.0, 0.6, 0.4], [0.5, 0.5, 0.0]]
)
LABEL_SETS = torch.tensor(
    [[1.0, 0.0, 0.0], [0.0, 1.0, 1.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]
)
WEIGHTS = {"dog": 3.0, "owl": 0.5}
VECTOR = torch.tensor([1.0, 3.0, 0.5])


def run_head(head: Any, state: Any) -> Any:
    """A head as the model runs it."""
    return head(head.reduce(state))


def classifier(features: Any = FEATURES, **settings: Any) -> Any:
    torch.manual_seed(0)
    given = ImageHeadSettings(name="vision/classifier", **settings)
    return build_classifier(given, features, SINGLE).eval()


def multi_label(**settings: Any) -> Any:
    torch.manual_seed(0)
    given = ImageHeadSettings(name="vision/multi-label", **settings)
    return build_multi_label(given, FEATURES, MULTI).eval()


def batch(labels: torch.Tensor | None = None) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    state: dict[str, Any] = {
        "layer1": torch.randn(4, 4, 6, 4, generator=generator),
        "layer2": torch.randn(4, 8, 3, 2, generator=generator),
        "image_sizes": torch.tensor([[24, 16]] * 4),
    }
    return state if labels is None else {**state, "labels": labels}


@pytest.mark.parametrize("build", [mobilenet_v2, resnet18])
def test_equals_the_whole_network_of_torchvision(build: Any) -> None:
    """With the maps and the last layer of its network, its logits."""
    torch.manual_seed(0)
    network = build(num_classes=3).eval()
    linear = network.fc if build is resnet18 else network.classifier[1]
    modules = list(network.children())[: -2 if build is resnet18 else -1]
    maps = torch.nn.Sequential(*modules)
    features = {"last": Feature("last", "map", linear.in_features, stride=32)}
    head = classifier(features)
    head.layers[-1].load_state_dict(linear.state_dict())
    images = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        logits = run_head(head, {"last": maps(images)})["logits"]
        torch.testing.assert_close(logits, network(images), rtol=1e-6, atol=1e-6)


def test_reduction_leaves_one_vector_of_the_last_map_and_the_labels() -> None:
    head, state = classifier(), batch(LABELS)
    reduced = head.reduce(state)
    assert set(reduced) == {"labels", "pooled"}
    torch.testing.assert_close(reduced["pooled"], state["layer2"].flatten(2).mean(2))
    assert head.reads == ("layer2",)
    assert "pooled" not in state
    assert set(head.reduce(batch())) == {"pooled"}


def test_pooling_of_the_maximum_and_of_both() -> None:
    state = batch()
    values = state["layer2"].flatten(2)
    mean, highest = values.mean(2), values.max(2).values
    names = set()
    for pooling, expected in (
        ("max", highest),
        ("mean-max", torch.cat([mean, highest], 1)),
        ("mean", mean),
    ):
        head = classifier(pooling=pooling)
        torch.testing.assert_close(head.reduce(state)["pooled"], expected)
        assert run_head(head, state)["logits"].shape == (4, 3)
        names.add(head.reduction)
    assert len(names) == 3


def test_a_vector_is_read_as_it_is() -> None:
    head = classifier({"embedding": Feature("embedding", "vector", 8)}, pooling="max")
    vectors = torch.randn(4, 8)
    expected = head.layers[-1](vectors)
    logits = run_head(head, {"embedding": vectors})["logits"]
    torch.testing.assert_close(logits, expected)


def test_depth_width_and_dropout() -> None:
    head, state = classifier(layers=3, width=5, dropout=0.5), batch()
    shapes = [tuple(p.shape) for p in head.layers.parameters() if p.ndim == 2]
    assert shapes == [(5, 8), (5, 5), (3, 5)]
    pooled = head.reduce(state)["pooled"]
    first, second, last = (m for m in head.layers if isinstance(m, torch.nn.Linear))
    by_hand = last(second(first(pooled).clamp(min=0)).clamp(min=0))
    logits = run_head(head, state)["logits"]
    torch.testing.assert_close(logits, by_hand)
    head.train()
    assert not torch.equal(run_head(head, state)["logits"], logits)
    deep = classifier(layers=2, pooling="mean-max")
    assert deep.layers[-1].in_features == 8


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_classifier_loss_is_cross_entropy(smoothing: float) -> None:
    plain = classifier(label_smoothing=smoothing)
    state = run_head(plain, batch(LABELS))
    expected = F.cross_entropy(state["logits"], LABELS, label_smoothing=smoothing)
    torch.testing.assert_close(plain.loss(state), expected)
    weighted = classifier(label_smoothing=smoothing, class_weights=WEIGHTS)
    expected = F.cross_entropy(
        state["logits"], LABELS, weight=VECTOR, label_smoothing=smoothing
    )
    torch.testing.assert_close(weighted.loss(state), expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weights", ["none", WEIGHTS])
def test_loss_of_mixed_labels_by_hand(smoothing: float, weights: Any) -> None:
    """A share of a sample of a class counts as so much of that sample's loss."""
    head = classifier(label_smoothing=smoothing, class_weights=weights)
    state = run_head(head, batch(MIXED))
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
    head = classifier(label_smoothing=0.1, class_weights=weights)
    shares = F.one_hot(LABELS, 3).float()
    whole, mixed = batch(LABELS), batch(shares)
    torch.testing.assert_close(
        head.loss(run_head(head, mixed)), head.loss(run_head(head, whole))
    )
    torch.testing.assert_close(head.weight(mixed), head.weight(whole))


def test_multi_label_loss_is_binary_cross_entropy() -> None:
    bce = F.binary_cross_entropy_with_logits
    plain = multi_label()
    state = run_head(plain, batch(LABEL_SETS))
    torch.testing.assert_close(plain.loss(state), bce(state["logits"], LABEL_SETS))
    smooth = multi_label(label_smoothing=0.2)
    expected = bce(state["logits"], torch.where(LABEL_SETS == 1, 0.9, 0.1))
    torch.testing.assert_close(smooth.loss(state), expected)
    weighted = multi_label(class_weights={"sky": 4.0})
    vector = torch.tensor([1.0, 1.0, 4.0])
    expected = bce(state["logits"], LABEL_SETS, pos_weight=vector)
    torch.testing.assert_close(weighted.loss(state), expected)


HEADS = [
    (classifier, {}, LABELS),
    (classifier, {"class_weights": WEIGHTS, "label_smoothing": 0.1}, LABELS),
    (classifier, {}, MIXED),
    (classifier, {"class_weights": WEIGHTS, "label_smoothing": 0.1}, MIXED),
    (multi_label, {}, LABEL_SETS),
    (multi_label, {"class_weights": "balanced", "label_smoothing": 0.1}, LABEL_SETS),
]


@pytest.mark.parametrize(("make", "settings", "labels"), HEADS)
def test_parts_of_a_batch_average_to_the_whole(
    make: Any, settings: dict[str, Any], labels: torch.Tensor
) -> None:
    head = make(**settings)
    whole = batch(labels)
    parts = [{k: v[i:j] for k, v in whole.items()} for i, j in ((0, 1), (1, 4))]
    weights = torch.stack([head.weight(part) for part in parts])
    losses = torch.stack([head.loss(run_head(head, part)) for part in parts])
    torch.testing.assert_close(
        (losses * weights).sum() / weights.sum(), head.loss(run_head(head, whole))
    )
    torch.testing.assert_close(weights.sum(), head.weight({"labels": labels}))


@pytest.mark.parametrize(("make", "settings", "labels"), HEADS)
def test_gradient_reaches_every_parameter(
    make: Any, settings: dict[str, Any], labels: torch.Tensor
) -> None:
    head = make(layers=2, **settings).train()
    head.loss(run_head(head, batch(labels))).backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_class_weights_of_wrong_labels_are_told_together() -> None:
    with pytest.raises(UserError) as caught:
        classifier(class_weights={"fish": 2.0, "Dog": 1.0, "owl": -1.0})
    texts = [str(fault) for fault in caught.value.faults]
    assert len(texts) == 3
    assert "'fish'" in texts[0]
    assert "did you mean 'dog'?" in texts[1]
    assert "-1.0" in texts[2]


def test_classifier_outputs_and_decode() -> None:
    labels = ["ant", "bee", "cat", "dog", "elk", "fox"]
    task = {"kind": "single-label", "labels": labels, "counts": [1] * 6}
    settings = ImageHeadSettings(name="vision/classifier")
    head = build_classifier(settings, FEATURES, task)
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
    head, state = multi_label(), batch(LABEL_SETS)
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


@pytest.mark.parametrize(
    ("build", "kind", "texts"),
    [
        (build_classifier, "multi-label", ("single-label", "vision/multi-label")),
        (build_multi_label, "single-label", ("multi-label", "vision/classifier")),
        (build_classifier, "boxes", ("single-label", "vision/faster-rcnn")),
    ],
)
def test_wrong_kind_of_task_names_the_right_head(
    build: Any, kind: str, texts: tuple[str, str]
) -> None:
    with pytest.raises(UserError) as caught:
        build(ImageHeadSettings(name="x"), FEATURES, {**SINGLE, "kind": kind})
    (fault,) = caught.value.faults
    assert f"is for {texts[0]} tasks, the data's kind is {kind!r}" in fault.what
    assert fault.fix == f'head.name = "{texts[1]}"'


def test_a_backbone_without_maps_is_refused() -> None:
    with pytest.raises(UserError, match="hidden"):
        classifier({"hidden": Feature("hidden", "tokens", 8)})


@pytest.mark.parametrize("make", [classifier, multi_label])
def test_report_is_that_of_the_sections(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in: Any = types.ModuleType("headstart_vision.sections")
    stand_in.classification_sections = lambda evaluation: [evaluation.split]
    monkeypatch.setitem(sys.modules, "headstart_vision.sections", stand_in)
    assert make().report(Evaluation("test", {}, {}, SINGLE, [])) == ["test"]


def test_sample_targets_hold_every_label() -> None:
    assert set(sample_targets(SINGLE, 6)["labels"].tolist()) == {0, 1, 2}
    assert sample_targets(MULTI, 4)["labels"].mean(0).tolist() == [0.5] * 3
    for make, task in ((classifier, SINGLE), (multi_label, MULTI)):
        head = make()
        state = run_head(head, {**batch(), **sample_targets(task, 4)})
        assert head.loss(state).isfinite()
        assert head.weight(sample_targets(task, 4)) == 4
