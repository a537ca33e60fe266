"""Metrics against scikit-learn and scipy."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
import torchmetrics
from scipy import stats
from sklearn import metrics as sk

from headstart.errors import UserError
from headstart.evaluate import MetricSet
from headstart.specs import resolve
from headstart_nlp import register_heads, register_metrics
from headstart_nlp.metrics import OF_KIND, auroc, macro_f1, mcc, sample_outputs

# Those of language models have tests of their own.
SPECS = {s.name: s for s in register_metrics() if s.sample_task["kind"] != "text"}
BINARY = {"kind": "single-label", "labels": ["n", "p"], "counts": [4, 4]}
SINGLE = {"kind": "single-label", "labels": ["a", "b", "c"], "counts": [4, 4, 4]}
MULTI = {"kind": "multi-label", "labels": ["a", "b", "c"], "counts": [4, 4, 4]}
VALUE = {"kind": "regression", "mean": 0.0, "std": 1.0}


def measured(name: str, task: dict[str, Any], outputs: dict[str, Any]) -> float:
    """The value after two unequal batches."""
    spec = SPECS[f"nlp/{name}"]
    metric = resolve(spec.factory)(task)
    for rows in (slice(0, 7), slice(7, None)):
        metric.update(*(outputs[key][rows] for key in spec.inputs))
    return float(metric.compute())


def ovr(target: np.ndarray, probabilities: np.ndarray) -> float:
    return sk.roc_auc_score(target, probabilities, multi_class="ovr", average="macro")


SKLEARN = [
    ("accuracy", SINGLE, lambda t, p, q: sk.accuracy_score(t, p)),
    ("accuracy", BINARY, lambda t, p, q: sk.accuracy_score(t, p)),
    ("macro-f1", SINGLE, lambda t, p, q: sk.f1_score(t, p, average="macro")),
    ("macro-f1", BINARY, lambda t, p, q: sk.f1_score(t, p, average="macro")),
    ("macro-f1", MULTI, lambda t, p, q: sk.f1_score(t, p, average="macro")),
    ("mcc", SINGLE, lambda t, p, q: sk.matthews_corrcoef(t, p)),
    ("mcc", BINARY, lambda t, p, q: sk.matthews_corrcoef(t, p)),
    ("auroc", SINGLE, lambda t, p, q: ovr(t, q)),
    ("auroc", BINARY, lambda t, p, q: sk.roc_auc_score(t, q[:, 1])),
    ("auroc", MULTI, lambda t, p, q: sk.roc_auc_score(t, q, average="macro")),
    ("exact-match", MULTI, lambda t, p, q: sk.accuracy_score(t, p)),
    ("mean-absolute-error", VALUE, lambda t, p, q: sk.mean_absolute_error(t, p)),
    (
        "root-mean-squared-error",
        VALUE,
        lambda t, p, q: sk.root_mean_squared_error(t, p),
    ),
    ("spearman", VALUE, lambda t, p, q: stats.spearmanr(t, p).statistic),
]


@pytest.mark.parametrize(("name", "task", "expected"), SKLEARN)
def test_equals_the_reference(name: str, task: dict[str, Any], expected: Any) -> None:
    outputs = sample_outputs(task, 40)
    arrays = {key: value.numpy() for key, value in outputs.items()}
    value = expected(
        arrays["target"], arrays["prediction"], arrays.get("probabilities")
    )
    assert measured(name, task, outputs) == pytest.approx(value, abs=1e-5)


def test_every_metric_of_every_kind_is_compared() -> None:
    compared = {(name, task["kind"]) for name, task, _ in SKLEARN}
    assert compared == {(n, kind) for kind, names in OF_KIND.items() for n in names}
    assert {f"nlp/{name}" for name, _ in compared} == set(SPECS)


def test_heads_name_the_metrics_of_their_kind() -> None:
    for spec in register_heads():
        if spec.sample_task["kind"] == "text":
            continue
        (kind,) = spec.kinds
        assert spec.metrics == OF_KIND[kind]


def test_auroc_leaves_out_a_class_that_is_absent() -> None:
    """With a, b alone in the test set, each is scored against the rest."""
    probabilities = torch.tensor(
        [[0.7, 0.2, 0.1], [0.3, 0.6, 0.1], [0.5, 0.3, 0.2], [0.2, 0.1, 0.7]]
    )
    target = torch.tensor([0, 1, 0, 1])
    metric = auroc(SINGLE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metric.update(probabilities, target)
        # a: both of 0.7, 0.5 above 0.3, 0.2; b: 0.6 above both, 0.1 above none.
        assert float(metric.compute()) == pytest.approx((1.0 + 0.5) / 2)
        one = auroc(BINARY)
        one.update(probabilities[:, :2], torch.zeros(4, dtype=torch.long))
        assert np.isnan(float(one.compute()))


def test_macro_f1_and_mcc_without_a_class() -> None:
    target, prediction = torch.tensor([0, 1, 0, 1]), torch.tensor([0, 1, 1, 1])
    f1 = macro_f1(SINGLE)
    f1.update(prediction, target)
    expected = sk.f1_score(target, prediction, average="macro")
    assert float(f1.compute()) == pytest.approx(expected)
    constant = mcc(BINARY)
    constant.update(torch.zeros(4, dtype=torch.long), target)
    assert float(constant.compute()) == 0.0


def test_auroc_starts_afresh_after_reset() -> None:
    metric = auroc(BINARY)
    metric.update(torch.tensor([[0.9, 0.1], [0.2, 0.8]]), torch.tensor([1, 0]))
    assert float(metric.compute()) == 0.0
    metric.reset()
    metric.update(torch.tensor([[0.9, 0.1], [0.2, 0.8]]), torch.tensor([0, 1]))
    assert float(metric.compute()) == 1.0


def test_goals() -> None:
    low = {name for name, spec in SPECS.items() if spec.goal == "min"}
    assert low == {"nlp/mean-absolute-error", "nlp/root-mean-squared-error"}


@pytest.mark.parametrize("spec", SPECS.values(), ids=lambda spec: spec.name)
def test_specs_measure_their_own_samples(spec: Any) -> None:
    outputs = resolve(spec.sample)(spec.sample_task, 12)
    metric = resolve(spec.factory)(spec.sample_task)
    metric.update(*(outputs[key] for key in spec.inputs))
    assert np.isfinite(float(metric.compute()))


def test_a_metric_of_another_kind_names_those_that_fit() -> None:
    with pytest.raises(UserError) as caught:
        resolve(SPECS["nlp/accuracy"].factory)(VALUE)
    assert "mean-absolute-error" in caught.value.faults[0].fix


def test_a_constant_prediction_correlates_with_nothing() -> None:
    """Unbalanced: where torchmetrics' own coefficient gives .975."""
    target = torch.tensor([1] * 60 + [0])
    metric = mcc(BINARY)
    metric.update(torch.ones(61, dtype=torch.long), target)
    assert float(metric.compute()) == 0.0


@pytest.mark.parametrize("name", ["macro-f1", "spearman"])
def test_one_rank_measures_without_asking_the_others(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The main rank alone measures baselines; nobody would answer it."""

    def gather(*arguments: Any, **more: Any) -> None:
        raise AssertionError("asked the other ranks")

    monkeypatch.setattr(torch.distributed, "is_available", lambda: True)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torchmetrics.Metric, "_sync_dist", gather)
    spec = SPECS[f"nlp/{name}"]
    metrics = MetricSet([spec], spec.sample_task, torch.device("cpu"))
    metrics.update(resolve(spec.sample)(spec.sample_task, 12))
    assert np.isfinite(metrics.compute()[name])
