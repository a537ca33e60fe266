"""Heads against torch's functional losses and by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from headstart.errors import DataError, UserError
from headstart.report.parts import Evaluation
from headstart.specs import Feature, resolve
from headstart_nlp import register_heads
from headstart_nlp.heads import (
    build_classifier,
    build_multi_label,
    build_regressor,
    sample_values,
)
from headstart_nlp.settings import ClassifierSettings, RegressorSettings

SINGLE = {"kind": "single-label", "labels": ["neg", "neu", "pos"], "counts": [6, 2, 4]}
MULTI = {"kind": "multi-label", "labels": ["cast", "plot", "end"], "counts": [6, 2, 4]}
VALUE = {"kind": "regression", "mean": 100.0, "std": 20.0}
FEATURES = {"hidden": Feature("hidden", "tokens", 8)}
MASK = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0]])
LABELS = torch.tensor([0, 2, 1, 2])
LABEL_SETS = torch.tensor([[1, 0, 0], [0, 1, 1], [1, 1, 0], [0, 0, 0]])
VALUES = torch.tensor([90.0, 130.0, 100.0, 71.0])


def run_head(head: Any, state: Any) -> Any:
    """A head as the model runs it."""
    return head(head.reduce(state))


def classifier(**settings: Any) -> Any:
    torch.manual_seed(0)
    given = ClassifierSettings(name="nlp/classifier", **settings)
    return build_classifier(given, FEATURES, SINGLE).eval()


def multi_label(**settings: Any) -> Any:
    torch.manual_seed(0)
    given = ClassifierSettings(name="nlp/multi-label", **settings)
    return build_multi_label(given, FEATURES, MULTI).eval()


def regressor(**settings: Any) -> Any:
    torch.manual_seed(0)
    given = RegressorSettings(name="nlp/regressor", **settings)
    return build_regressor(given, FEATURES, VALUE).eval()


def batch(labels: torch.Tensor | None) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    state = {
        "hidden": torch.randn(4, 4, 8, generator=generator),
        "attention_mask": MASK,
    }
    return state if labels is None else {**state, "labels": labels}


def pooled_by_hand(state: dict[str, Any], row: int) -> torch.Tensor:
    return state["hidden"][row, : int(MASK[row].sum())].mean(0)


def test_mean_pooling_takes_tokens_only() -> None:
    head, state = classifier(pooling="mean"), batch(None)
    logits = run_head(head, state)["logits"]
    linear = head.layers[-1]
    for row in range(4):
        expected = linear(pooled_by_hand(state, row))
        torch.testing.assert_close(logits[row], expected)
    assert "logits" not in state


def test_cls_pooling_takes_the_first_token() -> None:
    head, state = classifier(pooling="cls"), batch(None)
    expected = head.layers[-1](state["hidden"][:, 0])
    torch.testing.assert_close(run_head(head, state)["logits"], expected)


def test_attention_pooling_by_hand_and_starts_as_the_mean() -> None:
    head, state = classifier(pooling="attention"), batch(None)
    start = torch.stack([pooled_by_hand(state, row) for row in range(4)])
    pooled = head.pooling(state["hidden"], MASK.bool())
    torch.testing.assert_close(pooled, start)
    query = torch.linspace(-3, 3, 8)
    with torch.no_grad():
        head.pooling.query.copy_(query)
    pooled = head.pooling(state["hidden"], MASK.bool())
    for row in range(4):
        tokens = state["hidden"][row, : int(MASK[row].sum())]
        scores = torch.exp(tokens @ query / 8**0.5)
        expected = (scores[:, None] * tokens).sum(0) / scores.sum()
        torch.testing.assert_close(pooled[row], expected)


@pytest.mark.parametrize("pooling", ["mean", "cls", "attention"])
def test_padding_never_counts(pooling: str) -> None:
    head, state = classifier(pooling=pooling), batch(None)
    if pooling == "attention":
        torch.nn.init.normal_(head.pooling.query)
    logits = run_head(head, state)["logits"]
    for junk in (1e4, torch.nan):
        hidden = state["hidden"].masked_fill(MASK[..., None] == 0, junk)
        assert torch.equal(
            run_head(head, {**state, "hidden": hidden})["logits"], logits
        )
    short = {"hidden": state["hidden"][2:3, :2], "attention_mask": MASK[2:3, :2]}
    torch.testing.assert_close(run_head(head, short)["logits"], logits[2:3])


@pytest.mark.parametrize("pooling", ["mean", "attention"])
def test_pooling_of_long_texts_in_bf16(pooling: str) -> None:
    """Only the result is rounded, by half a unit in the last of bf16's 8 bits."""
    head = classifier(pooling=pooling)
    if pooling == "attention":
        torch.nn.init.normal_(head.pooling.query)
    hidden = torch.randn(64, 500, 8) + 1.0
    mask = torch.ones(64, 500, dtype=torch.bool)
    exact = head.pooling(hidden.bfloat16().float(), mask)
    half = head.pooling(hidden.bfloat16(), mask)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), exact, rtol=1.001 * 2**-8, atol=0)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = head.pooling(hidden, mask)
        state = run_head(head, {"hidden": hidden, "attention_mask": mask.long()})
    torch.testing.assert_close(mixed, head.pooling(hidden, mask))
    assert state["logits"].dtype == torch.float32


def test_depth_width_and_dropout() -> None:
    head = classifier(layers=3, width=5, dropout=0.5)
    shapes = [tuple(p.shape) for p in head.layers.parameters() if p.ndim == 2]
    assert shapes == [(5, 8), (5, 5), (3, 5)]
    state = batch(None)
    assert torch.equal(run_head(head, state)["logits"], run_head(head, state)["logits"])
    head.train()
    assert not torch.equal(
        run_head(head, state)["logits"], run_head(head, state)["logits"]
    )
    default = classifier(layers=2)
    assert default.layers[-1].in_features == 8


def test_regressor_loss_is_squared_error_of_standardised_values() -> None:
    head = regressor()
    state = run_head(head, batch(VALUES))
    expected = F.mse_loss(state["logits"][:, 0], (VALUES - 100) / 20)
    torch.testing.assert_close(head.loss(state), expected)
    outputs = head.outputs(state)
    torch.testing.assert_close(outputs["prediction"], state["logits"][:, 0] * 20 + 100)
    assert torch.equal(outputs["target"], VALUES)


HEADS = [
    (classifier, {}, LABELS),
    (classifier, {"label_smoothing": 0.1}, LABELS),
    (classifier, {"class_weights": "balanced"}, LABELS),
    (classifier, {"class_weights": {"neu": 7.0}, "label_smoothing": 0.1}, LABELS),
    (multi_label, {}, LABEL_SETS),
    (multi_label, {"class_weights": "balanced", "label_smoothing": 0.1}, LABEL_SETS),
    (regressor, {}, VALUES),
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
    assert weights.dtype == torch.float32
    assert weights[0] != weights[1]
    torch.testing.assert_close(
        (losses * weights).sum() / weights.sum(), head.loss(run_head(head, whole))
    )
    torch.testing.assert_close(weights.sum(), head.weight(whole))


@pytest.mark.parametrize(("make", "settings", "labels"), HEADS)
@pytest.mark.parametrize("pooling", ["mean", "cls", "attention"])
def test_gradient_reaches_every_parameter(
    make: Any, settings: dict[str, Any], labels: torch.Tensor, pooling: str
) -> None:
    head = make(pooling=pooling, layers=2, **settings).train()
    head.loss(run_head(head, batch(labels))).backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_weight_is_the_number_of_samples() -> None:
    assert classifier().weight(batch(LABELS)) == 4
    assert multi_label(class_weights="balanced").weight(batch(LABEL_SETS)) == 4
    assert regressor().weight(batch(VALUES)) == 4
    head = classifier(class_weights={"neu": 3.0, "pos": 0.5})
    assert head.weight(batch(LABELS)) == 1 + 0.5 + 3 + 0.5


def test_regressor_decode() -> None:
    rows = regressor().decode({"prediction": np.array([1.5, -2.0], dtype=np.float32)})
    assert rows == [{"value": 1.5}, {"value": -2.0}]


def test_a_head_keeps_its_units_in_its_checkpoint() -> None:
    saved = regressor().state_dict()
    given = RegressorSettings(name="nlp/regressor")
    other = build_regressor(given, FEATURES, {**VALUE, "mean": 0.0, "std": 1.0})
    other.load_state_dict(saved)
    state = {"logits": torch.tensor([[0.5]])}
    assert other.outputs(state)["prediction"].tolist() == [110.0]


def test_constant_targets_and_missing_tokens_are_refused() -> None:
    given = RegressorSettings(name="nlp/regressor")
    with pytest.raises(DataError, match="all values"):
        build_regressor(given, FEATURES, {**VALUE, "std": 0.0})
    maps = {"layer4": Feature("layer4", "map", 8)}
    with pytest.raises(UserError, match="layer4"):
        build_regressor(given, maps, VALUE)


@pytest.mark.parametrize(("make", "settings", "labels"), HEADS[:1] + HEADS[4:])
def test_report_sections(
    make: Any, settings: dict[str, Any], labels: torch.Tensor
) -> None:
    head = make(**settings)
    state = run_head(head, batch(labels))
    outputs = {k: v.detach().numpy() for k, v in head.outputs(state).items()}
    texts = [{"text": f"text {i}"} for i in range(4)]
    task = {classifier: SINGLE, multi_label: MULTI, regressor: VALUE}[make]
    sections = head.report(Evaluation("test", {}, outputs, task, texts))
    titles = [section.title for section in sections]
    assert (
        titles
        == {
            classifier: [
                "Confusion matrix",
                "Results by label",
                "Calibration",
                "Most wrong",
                "Most unsure",
            ],
            multi_label: ["Results by label", "Most wrong", "Most unsure"],
            regressor: ["Predicted against true"],
        }[make]
    )


# The language model's has tests of its own.
POOLING = [spec for spec in register_heads() if spec.needs == ("tokens",)]


@pytest.mark.parametrize("spec", POOLING, ids=lambda spec: spec.name)
def test_specs_build_and_their_samples_train(spec: Any) -> None:
    settings = resolve(spec.settings)(name=spec.name, **spec.tiny)
    head = resolve(spec.factory)(settings, FEATURES, spec.sample_task)
    targets = resolve(spec.sample)(spec.sample_task, 4)
    assert set(targets) == set(spec.targets)
    assert spec.sample_task["kind"] in spec.kinds
    state = run_head(head, {**batch(None), **targets})
    assert head.loss(state).isfinite()
    assert all(len(value) == 4 for value in head.outputs(state).values())


def test_sample_values_are_around_the_mean() -> None:
    assert sample_values(VALUE, 3)["labels"].tolist() == [80.0, 100.0, 120.0]
