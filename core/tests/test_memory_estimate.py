"""What a training will need, counted by hand and measured on a few samples."""

from __future__ import annotations

import copy
import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn

import headstart
from headstart import memory_estimate
from headstart.callbacks import Callback
from headstart.environment import (
    free_memory_bytes,
    peak_memory_bytes,
    used_memory_bytes,
)
from headstart.memory_estimate import LiveBytes, MemoryEstimate, estimate_memory
from headstart.testing.toy import backbones, data, heads

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from headstart.trainer import Trainer

CPU = torch.device("cpu")
SETTINGS: dict[str, Any] = {
    "backbone.dropout": 0.3,
    "data.count": 400,
    "data.noise": 0.1,
    "train.batch_size": 64,
    "train.max_steps": 6,
    "train.log_every": 1,
    "report.baselines": False,
    "cache.mode": "off",
}


@pytest.fixture(autouse=True)
def plugin(registry: object) -> None:
    """The toy plugin."""


@pytest.fixture
def estimated(toy_trainer: Callable[..., Trainer]) -> Callable[..., MemoryEstimate]:
    def estimate(**settings: Any) -> MemoryEstimate:
        changes = {key.replace("__", "."): value for key, value in settings.items()}
        found = estimate_memory(toy_trainer({**SETTINGS, **changes}))
        assert isinstance(found, MemoryEstimate), found
        return found

    return estimate


class Told(Callback):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def on_message(self, text: str) -> None:
        self.texts.append(text)


def test_live_bytes_by_hand() -> None:
    known, given = torch.ones(1000), torch.ones(10)
    with LiveBytes(CPU, [known]) as live:
        live.hold({"nested": [given]})
        twice = known * 2
        view = twice[:10]
        other = twice + known.view(10, 100).sum()
        del twice
        view.add_(1)
        del view
        other.zero_()
    # Views and what is written in place are no new bytes; a view keeps the whole.
    assert live.after[0] == 40
    assert live.after[1:3] == [4040, 4040]
    assert max(live.after) == 40 + 4000 + 4 + 4000
    assert live.after[-1] == 40 + 4000
    assert live.made == 40 + 4000 + 4 + 4000


def test_parts_are_those_of_what_trains(
    estimated: Callable[..., MemoryEstimate], toy_trainer: Callable[..., Trainer]
) -> None:
    model = toy_trainer(SETTINGS).model
    weights = sum(4 * p.numel() for p in model.parameters())
    # Running mean and variance, and a count of 8 bytes.
    buffers = sum(
        8 * stage.norm.num_features + 8 for stage in model.backbone.stages.values()
    )
    head = sum(4 * p.numel() for p in model.head.parameters())
    whole = estimated()
    assert whole.parts["weights"] == weights + buffers
    assert whole.parts["gradients"] == weights
    assert whole.parts["optimizer"] == 2 * weights
    assert "average" not in whole.parts
    sgd = estimated(train__optimizer="sgd", train__ema=0.9)
    assert sgd.parts["optimizer"] == weights
    # torch's counts its updates in 8 bytes.
    assert sgd.parts["average"] == weights + buffers + 8
    features = estimated(strategy__name="feature-extraction")
    assert features.parts["weights"] == weights + buffers
    assert features.parts["gradients"] == head
    assert features.parts["optimizer"] == 2 * head
    # Gradual unfreezing ends with everything.
    gradual = estimated(strategy__name="gradual")
    assert gradual.parts["gradients"] == weights


@pytest.mark.parametrize("norm", [nn.BatchNorm1d, nn.LayerNorm])
def test_few_samples_tell_of_many(
    norm: type[nn.Module],
    estimated: Callable[..., MemoryEstimate],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backbones.nn, "BatchNorm1d", norm)
    monkeypatch.setattr(memory_estimate, "SMALL", 10**12)
    whole = estimated(train__eval_batch_size=1).parts["activations"]
    monkeypatch.setattr(memory_estimate, "SMALL", 0)
    taken: list[int] = []
    batch = data.Ring.batch

    def noted(self: data.Ring, samples: Any, indices: np.ndarray) -> Any:
        taken.append(len(indices))
        return batch(self, samples, indices)

    monkeypatch.setattr(data.Ring, "batch", noted)
    few = estimated(train__eval_batch_size=1).parts["activations"]
    assert taken == [2, 3, 1, 1]
    assert few == whole > 64 * 4 * 32


def test_what_grows_with_pairs_of_samples_shows() -> None:
    def measure(indices: np.ndarray) -> Any:
        count = len(indices)
        return SimpleNamespace(after=[count, count**2], made=1000 * count)

    assert memory_estimate._peak(measure, np.arange(500)) == 500**2
    assert memory_estimate._peak(measure, np.arange(1)) == 1


def test_other_operations_with_more_samples_are_no_lines() -> None:
    def measure(indices: np.ndarray) -> Any:
        count = len(indices)
        return SimpleNamespace(after=[count * 10] * count, made=10**9 * count)

    assert memory_estimate._peak(measure, np.arange(100)) == 1000


def test_less_is_kept_with_gradient_checkpointing(
    estimated: Callable[..., MemoryEstimate], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backbones.nn, "BatchNorm1d", nn.LayerNorm)
    settings = {"train__eval_batch_size": 1, "train__batch_size": 240}
    plain = estimated(**settings).parts["activations"]
    twice = estimated(**settings, train__gradient_checkpointing=True)
    assert twice.parts["activations"] < 0.8 * plain


def test_evaluation_counts_where_it_needs_more(
    estimated: Callable[..., MemoryEstimate],
) -> None:
    small = estimated(train__batch_size=2, train__eval_batch_size=2)
    large = estimated(train__batch_size=2, train__eval_batch_size=80)
    assert large.parts["activations"] > small.parts["activations"]


def test_the_model_is_left_as_it_was(toy_trainer: Callable[..., Trainer]) -> None:
    trainer = toy_trainer({**SETTINGS, "strategy.name": "gradual"})
    model = trainer.model
    model.eval()
    model.train_stages(frozenset({"third"}))
    before = copy.deepcopy(model.state_dict())
    trains = [p.requires_grad for p in model.parameters()]
    chance = torch.random.get_rng_state()
    assert isinstance(estimate_memory(trainer), MemoryEstimate)
    assert torch.equal(torch.random.get_rng_state(), chance)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert [p.requires_grad for p in model.parameters()] == trains
    assert all(p.grad is None for p in model.parameters())
    assert model.trainable == {"third"}
    assert not model.training


def test_training_does_not_depend_on_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = []
    for name in ("with", "without"):
        run = headstart.run("toy/ring", SETTINGS, folder=tmp_path / name)
        kept = (run.folder / "checkpoints").glob("step-*/*.safetensors")
        lines = (run.folder / "metrics.jsonl").read_text().splitlines()
        losses = [r["loss"] for r in map(json.loads, lines) if r["event"] == "train"]
        found.append((losses, sorted(p.read_bytes() for p in kept), run.metrics))
        monkeypatch.setattr(memory_estimate, "estimate_memory", lambda _: "not asked")
    assert len(found[0][0]) == 6
    assert found[0] == found[1]


def test_the_summary_has_it_beside_the_peak(tmp_path: Path) -> None:
    told = Told()
    run = headstart.run("toy/ring", SETTINGS, folder=tmp_path / "a", callbacks=[told])
    memory = run.summary["memory"]
    assert memory["estimated_bytes"] >= sum(memory["parts"].values()) > 0
    # Most of it is Python and torch, which are there before and after.
    ratio = memory["estimated_bytes"] / run.summary["peak_memory_bytes"]
    assert 0.5 < ratio < 1.5
    (text,) = (text for text in told.texts if text.startswith("memory: about"))
    assert "weights 0.00" in text
    assert not any("warning" in text for text in told.texts)


def test_too_little_memory_is_a_warning_with_ways_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(memory_estimate, "free_memory_bytes", lambda device: 1000)
    told = Told()
    run = headstart.run("toy/ring", SETTINGS, folder=tmp_path / "a", callbacks=[told])
    assert run.summary["status"] == "done"
    (text,) = (text for text in told.texts if text.startswith("warning"))
    assert "run out of memory" in text
    for way in ("accumulate=2", "precision=bf16", "gradient_checkpointing=true"):
        assert f"train.{way}" in text
    told.texts.clear()
    changes = {**SETTINGS, "train.gradient_checkpointing": True}
    headstart.run("toy/ring", changes, folder=tmp_path / "b", callbacks=[told])
    (text,) = (text for text in told.texts if text.startswith("warning"))
    assert "gradient_checkpointing" not in text
    told.texts.clear()
    changes = {**SETTINGS, "train.batch_total": 9}
    headstart.run("toy/ring", changes, folder=tmp_path / "c", callbacks=[told])
    (text,) = (text for text in told.texts if text.startswith("warning"))
    assert "train.batch_total=4.5" in text
    assert "eval_batch_size" not in text


def test_what_cannot_be_measured_is_trained_all_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    loss = heads.Classifier.loss

    def picky(self: heads.Classifier, state: Any) -> torch.Tensor:
        if len(state["labels"]) < 10:
            raise RuntimeError("too few\nof them")
        return loss(self, state)

    monkeypatch.setattr(heads.Classifier, "loss", picky)
    told = Told()
    run = headstart.run("toy/ring", SETTINGS, folder=tmp_path / "a", callbacks=[told])
    assert run.summary["status"] == "done"
    reason = "the model cannot be measured: RuntimeError: too few"
    assert run.summary["memory"] == {"reason": reason}
    assert f"memory: no estimate, {reason}" in told.texts


def test_no_steps_no_estimate(toy_trainer: Callable[..., Trainer]) -> None:
    found = estimate_memory(toy_trainer({**SETTINGS, "strategy.name": "none"}))
    assert found == "there are no steps to take"


def test_line_in_gigabytes() -> None:
    parts = {"weights": 540_000_000, "gradients": 4_000_000, "other": 1_700_000_000}
    found = MemoryEstimate(parts, 2 * 10**9, 3 * 10**9, 22_400_000_000)
    assert found.total == 3 * 10**9, "the process has had more than it will need"
    assert found.fits
    assert found.line() == (
        "memory: about 3.0 GB needed (weights 0.54, other 1.7), 2.0 GB of it in use, "
        "22 GB free"
    )
    assert not MemoryEstimate(parts, 2 * 10**9, 0, 200_000_000).fits
    unknown = MemoryEstimate(parts, 0, 0, None)
    assert unknown.fits and unknown.line().endswith("other 1.7)")


def test_memory_of_this_process() -> None:
    before = used_memory_bytes(CPU)
    held = torch.ones(25_000_000)
    after = used_memory_bytes(CPU)
    assert 9e7 < after - before < 1.1e8
    assert 1e8 < after <= peak_memory_bytes(CPU) * 1.01
    free = free_memory_bytes(CPU)
    assert free is None or free > 0
    del held
