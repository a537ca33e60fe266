"""Error rates against torchmetrics and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torchmetrics.text import CharErrorRate, WordErrorRate

from headstart.evaluate import measure
from headstart.specs import MetricSpec
from headstart.testing.data_tests import DataTests
from headstart_speech import metrics
from headstart_speech.baselines import baselines
from headstart_speech.pretraining_metrics import contrastive_accuracy

TASK = {"kind": "transcription", "vocabulary": ["<blank>", " ", "a", "b", "c", "d"]}
SPECS = {
    name: MetricSpec(
        name=f"speech/{name}",
        summary="",
        factory=f"headstart_speech.metrics:{name.replace('-', '_')}",
        inputs=inputs,
        kinds=("transcription",),
        goal="min",
        sample="headstart_speech.metrics:sample_outputs",
        sample_task=TASK,
        scores=f"headstart_speech.metrics:{name.replace('-', '_')}_scores",
    )
    for name, inputs in {
        "wer": ("prediction", "target"),
        "cer": ("prediction", "target"),
        "blank-ratio": ("blank", "frames"),
    }.items()
}


def texts(seed: int, count: int = 40) -> tuple[list[str], list[str]]:
    """Random sentences, and others that have most of their words."""
    rng = np.random.default_rng(seed)
    words = ["a", "cab", "bad", "dad", "abba", "add", "bcd"]
    said = [list(rng.choice(words, rng.integers(1, 9))) for _ in range(count)]
    heard = [
        [rng.choice(words) if rng.random() < 0.3 else word for word in one]
        + ["cab"] * int(rng.integers(0, 2))
        for one in said
    ]
    return [" ".join(s) for s in said], [" ".join(h[1:]) for h in heard]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("ours", "theirs"), [(metrics.wer, WordErrorRate), (metrics.cer, CharErrorRate)]
)
def test_error_rates_are_torchmetrics(ours, theirs, seed: int) -> None:
    said, heard = texts(seed)
    metric = ours(TASK)
    for part in (slice(0, 15), slice(15, 40)):
        metric.update(heard[part], said[part])
    assert metric.compute() == pytest.approx(float(theirs()(heard, said)), rel=1e-6)


def test_a_clip_counts_as_much_as_is_said_in_it() -> None:
    metric = metrics.wer(TASK)
    metric.update(["x", "a b c d e f g"], ["a", "a b c d e f g"])
    # Not (1/1 + 0/7) / 2.
    assert metric.compute() == 1 / 8


def test_silence_adds_its_errors_and_nothing_to_divide_by() -> None:
    metric = metrics.wer(TASK)
    metric.update(["a b", "a", ""], ["", "a", ""])
    assert metric.compute() == 2.0
    metric.reset()
    metric.update(["a"], [""])
    assert math.isnan(metric.compute())


def test_blank_ratio_is_over_frames() -> None:
    metric = metrics.blank_ratio(TASK)
    outputs = {"blank": torch.tensor([1.0, 0.5]), "frames": torch.tensor([10, 30])}
    metric.update(outputs["blank"], outputs["frames"])
    assert metric.compute() == pytest.approx(25 / 40)
    assert metrics.blank_ratio_scores(TASK, outputs).tolist() == [[10, 10], [15, 30]]


class OnMPS(torch.Tensor):
    """A tensor of a device that has no float64."""

    def double(self) -> torch.Tensor:
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype")

    def cpu(self) -> torch.Tensor:
        return self.as_subclass(torch.Tensor)


@pytest.mark.parametrize(
    "metric", [metrics.blank_ratio(TASK), contrastive_accuracy(TASK)]
)
def test_devices_without_float64_serve(metric: metrics.Ratio) -> None:
    one, other = (torch.tensor(v).as_subclass(OnMPS) for v in ([1, 0], [1, 3]))
    metric.update(one, other)
    assert metric.compute() == 1 / 4


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_metrics_pass_the_conformance_tests(spec: MetricSpec) -> None:
    held = DataTests()
    held.test_metric_in_parts_equals_one_pass(spec)
    held.test_scores_make_the_metric(spec)
    held.test_metric_starts_afresh_after_compute(spec)


def test_normalisation_is_stated() -> None:
    rules = {
        "case": "lower",
        "punctuation": "remove",
        "digits": "keep",
        "unicode": "NFKC",
    }
    said = metrics.normalisation({"text": rules})
    assert "in lower case, without punctuation" in said and "NFKC" in said
    assert "digits" not in said and "accents" not in said
    kept = metrics.normalisation({"text": {"case": "keep", "punctuation": "keep"}})
    assert "as they are written" in kept


def test_baselines_say_nothing_and_always_the_same() -> None:
    found = list(baselines(["b a", "c", "b a", "", "", ""], ["b c", "d d"]))
    assert [one.name for one in found] == ["empty transcript", "always “b a”"]
    values = [measure(one.outputs, SPECS.values(), TASK) for one in found]
    assert values[0] == {"wer": 1.0, "cer": 1.0, "blank-ratio": 1.0}
    assert values[1]["wer"] == 3 / 4
    assert values[1]["blank-ratio"] == 0.0


def test_of_equally_frequent_transcripts_the_shortest_is_said() -> None:
    _, constant = baselines(["a long one", "short"], ["x"])
    assert constant.outputs["prediction"] == ["short"]
    (alone,) = baselines(["", " "], ["x"])
    assert alone.name == "empty transcript"
