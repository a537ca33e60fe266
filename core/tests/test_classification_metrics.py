"""Metrics of labels against scikit-learn."""

from __future__ import annotations

import itertools
import warnings
from typing import Any

import numpy as np
import pytest
import torch
import torchmetrics
from sklearn import metrics as sk

from headstart.classification import sample_label_outputs
from headstart.classification_metrics import auroc, macro_f1, mcc
from headstart.evaluate import MetricSet
from headstart.specs import label_metrics, resolve, short_name

SPECS = {short_name(spec.name): spec for spec in label_metrics("toy", "toys")}
BINARY = {"kind": "single-label", "labels": ["n", "p"], "counts": [4, 4]}
SINGLE = {"kind": "single-label", "labels": ["a", "b", "c"], "counts": [4, 4, 4]}
MANY = {"kind": "single-label", "labels": list("abcdefgh"), "counts": [4] * 8}
MULTI = {"kind": "multi-label", "labels": ["a", "b", "c"], "counts": [4, 4, 4]}


def measured(
    name: str, task: dict[str, Any], outputs: dict[str, Any], cuts: Any = (0, 7, 40)
) -> float:
    """The value after batches from cut to cut."""
    metric = resolve(SPECS[name].factory)(task)
    for rows in itertools.starmap(slice, itertools.pairwise(cuts)):
        metric.update(*(outputs[key][rows] for key in SPECS[name].inputs))
    return float(metric.compute())


def ovr(target: np.ndarray, probabilities: np.ndarray) -> float:
    return sk.roc_auc_score(target, probabilities, multi_class="ovr", average="macro")


SKLEARN = [
    ("accuracy", SINGLE, lambda t, p, q: sk.accuracy_score(t, p)),
    ("accuracy", BINARY, lambda t, p, q: sk.accuracy_score(t, p)),
    ("top-5", MANY, lambda t, p, q: sk.top_k_accuracy_score(t, q, k=5)),
    ("top-5", SINGLE, lambda t, p, q: 1.0),
    ("macro-f1", SINGLE, lambda t, p, q: sk.f1_score(t, p, average="macro")),
    ("macro-f1", BINARY, lambda t, p, q: sk.f1_score(t, p, average="macro")),
    ("macro-f1", MULTI, lambda t, p, q: sk.f1_score(t, p, average="macro")),
    ("mcc", SINGLE, lambda t, p, q: sk.matthews_corrcoef(t, p)),
    ("mcc", BINARY, lambda t, p, q: sk.matthews_corrcoef(t, p)),
    ("auroc", SINGLE, lambda t, p, q: ovr(t, q)),
    ("auroc", BINARY, lambda t, p, q: sk.roc_auc_score(t, q[:, 1])),
    ("auroc", MULTI, lambda t, p, q: sk.roc_auc_score(t, q, average="macro")),
    ("exact-match", MULTI, lambda t, p, q: sk.accuracy_score(t, p)),
]


@pytest.mark.parametrize(("name", "task", "expected"), SKLEARN)
def test_equals_scikit_learn(name: str, task: dict[str, Any], expected: Any) -> None:
    outputs = sample_label_outputs(task, 40)
    arrays = {key: value.numpy() for key, value in outputs.items()}
    value = expected(arrays["target"], arrays["prediction"], arrays["probabilities"])
    for cuts in ((0, 7, 40), (0, 40)):
        assert measured(name, task, outputs, cuts) == pytest.approx(value, abs=1e-5)


def test_every_metric_is_compared_on_every_kind_that_it_measures() -> None:
    compared = {(name, task["kind"]) for name, task, _ in SKLEARN}
    assert compared == {(n, kind) for n, spec in SPECS.items() for kind in spec.kinds}


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


def test_a_constant_prediction_correlates_with_nothing() -> None:
    """Unbalanced: where torchmetrics' own coefficient gives .975."""
    target = torch.tensor([1] * 60 + [0])
    metric = mcc(BINARY)
    metric.update(torch.ones(61, dtype=torch.long), target)
    assert float(metric.compute()) == 0.0


@pytest.mark.parametrize("name", ["macro-f1", "auroc"])
def test_one_rank_measures_without_asking_the_others(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The main rank alone measures baselines; nobody would answer it."""

    def gather(*arguments: Any, **more: Any) -> None:
        raise AssertionError("asked the other ranks")

    monkeypatch.setattr(torch.distributed, "is_available", lambda: True)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torchmetrics.Metric, "_sync_dist", gather)
    spec = SPECS[name]
    metrics = MetricSet([spec], spec.sample_task, torch.device("cpu"))
    metrics.update(resolve(spec.sample)(spec.sample_task, 12))
    assert np.isfinite(metrics.compute()[name])
