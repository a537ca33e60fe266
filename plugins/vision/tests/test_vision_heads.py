"""Classification heads against torchvision's networks, torch's losses and by hand."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest
import torch
from torchvision.models import mobilenet_v2, resnet18

from headstart.errors import UserError
from headstart.report.parts import Evaluation
from headstart.specs import Feature
from headstart_vision.heads import (
    build_classifier,
    build_multi_label,
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


HEADS = [
    (classifier, {}, LABELS),
    (classifier, {"class_weights": WEIGHTS, "label_smoothing": 0.1}, LABELS),
    (classifier, {}, MIXED),
    (classifier, {"class_weights": WEIGHTS, "label_smoothing": 0.1}, MIXED),
    (multi_label, {}, LABEL_SETS),
    (multi_label, {"class_weights": "balanced", "label_smoothing": 0.1}, LABEL_SETS),
]


@pytest.mark.parametrize(("make", "settings", "labels"), HEADS)
def test_gradient_reaches_every_parameter(
    make: Any, settings: dict[str, Any], labels: torch.Tensor
) -> None:
    head = make(layers=2, **settings).train()
    head.loss(run_head(head, batch(labels))).backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


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
