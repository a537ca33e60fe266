"""Metrics against scikit-learn and scipy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torchmetrics
from scipy import stats
from sklearn import metrics as sk

from headstart.evaluate import MetricSet
from headstart.specs import resolve
from headstart_nlp import register_metrics
from headstart_nlp.metrics import sample_outputs

# Those of labels are the core's, and those of language models have tests of their own.
SPECS = {s.name: s for s in register_metrics() if s.kinds == ("regression",)}
VALUE = {"kind": "regression", "mean": 0.0, "std": 1.0}


def measured(name: str, task: dict[str, Any], outputs: dict[str, Any]) -> float:
    """The value after two unequal batches."""
    spec = SPECS[f"nlp/{name}"]
    metric = resolve(spec.factory)(task)
    for rows in (slice(0, 7), slice(7, None)):
        metric.update(*(outputs[key][rows] for key in spec.inputs))
    return float(metric.compute())


REFERENCES = [
    ("mean-absolute-error", VALUE, sk.mean_absolute_error),
    (
        "root-mean-squared-error",
        VALUE,
        sk.root_mean_squared_error,
    ),
    ("spearman", VALUE, lambda t, p: stats.spearmanr(t, p).statistic),
]


@pytest.mark.parametrize(("name", "task", "expected"), REFERENCES)
def test_equals_the_reference(name: str, task: dict[str, Any], expected: Any) -> None:
    outputs = sample_outputs(task, 40)
    arrays = {key: value.numpy() for key, value in outputs.items()}
    value = expected(arrays["target"], arrays["prediction"])
    assert measured(name, task, outputs) == pytest.approx(value, abs=1e-5)


def test_goals() -> None:
    low = {name for name, spec in SPECS.items() if spec.goal == "min"}
    assert low == {"nlp/mean-absolute-error", "nlp/root-mean-squared-error"}


@pytest.mark.parametrize("spec", SPECS.values(), ids=lambda spec: spec.name)
def test_specs_measure_their_own_samples(spec: Any) -> None:
    outputs = resolve(spec.sample)(spec.sample_task, 12)
    metric = resolve(spec.factory)(spec.sample_task)
    metric.update(*(outputs[key] for key in spec.inputs))
    assert np.isfinite(float(metric.compute()))


@pytest.mark.parametrize("name", ["spearman"])
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
