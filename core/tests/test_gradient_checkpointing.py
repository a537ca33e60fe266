"""Stages computed twice: the same bits, in less memory."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

import headstart
from headstart.callbacks import Callback
from headstart.memory_estimate import LiveBytes
from headstart.stages import Backbone, moves_statistics
from headstart.testing.toy import backbones

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from headstart.runs import Run
    from headstart.stages import State
    from headstart.trainer import Trainer

CPU = torch.device("cpu")
ON = {"train.gradient_checkpointing": True}
SETTINGS: dict[str, Any] = {
    "backbone.dropout": 0.3,
    "data.count": 80,
    "train.batch_size": 16,
    "train.max_steps": 6,
    "train.log_every": 1,
    "train.checkpoint_every": 3,
    "train.keep_checkpoints": 9,
    "report.baselines": False,
    "cache.mode": "off",
}


@pytest.fixture(autouse=True)
def plugin(registry: object) -> None:
    """The toy plugin."""


@pytest.fixture
def layer_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backbones.nn, "BatchNorm1d", nn.LayerNorm)


class Told(Callback):
    def __init__(self, kill_at: int = -1) -> None:
        self.kill_at = kill_at
        self.texts: list[str] = []

    def on_step(self, step: int) -> None:
        if step == self.kill_at:
            raise KeyboardInterrupt

    def on_message(self, text: str) -> None:
        self.texts.append(text)


def outcome(run: Run) -> dict[str, Any]:
    """All that a training's steps leave: weights, optimizer state, logged values."""
    tensors = (run.folder / "checkpoints").glob("step-*/*.safetensors")
    found: dict[str, Any] = {
        str(path.relative_to(run.folder)): path.read_bytes() for path in tensors
    }
    for line in (run.folder / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        if record.pop("event") in ("train", "validation"):
            del record["time"]
            found.setdefault("records", []).append(record)
    return found


@pytest.mark.usefixtures("layer_norm")
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"train.precision": "bf16"},
        {"train.accumulate": 2, "train.ema": 0.9},
        {"strategy.name": "gradual"},
        {"strategy.name": "surgical", "strategy.stages": ["second"]},
        {"data.noise": 0.1, "train.optimizer": "sgd"},
    ],
    ids=["fp32", "bf16", "average", "gradual", "surgical", "augmented"],
)
def test_training_takes_the_same_steps_to_the_last_bit(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    settings = {**SETTINGS, **settings}
    plain = headstart.run("toy/ring", settings, folder=tmp_path / "plain")
    twice = headstart.run("toy/ring", {**settings, **ON}, folder=tmp_path / "twice")
    assert outcome(twice) == outcome(plain)
    assert len(outcome(plain)["records"]) >= 7
    assert "gradient_checkpointing = true" in (twice.folder / "recipe.toml").read_text(
        encoding="utf-8"
    )


def test_stages_with_statistics_are_computed_once(tmp_path: Path) -> None:
    """A second pass would move BatchNorm's running mean a second time."""
    plain = headstart.run("toy/ring", SETTINGS, folder=tmp_path / "plain")
    told = Told()
    settings = {**SETTINGS, **ON}
    twice = headstart.run(
        "toy/ring", settings, folder=tmp_path / "twice", callbacks=[told]
    )
    assert outcome(twice) == outcome(plain)
    (text,) = (text for text in told.texts if "checkpointing" in text)
    assert "first, second, third" in text and "BatchNorm" in text
    norm = nn.BatchNorm1d(3)
    assert moves_statistics(nn.Sequential(norm))
    assert not moves_statistics(nn.Sequential(norm.eval(), nn.LayerNorm(3)))
    assert not moves_statistics(nn.BatchNorm1d(3, track_running_stats=False))


@pytest.mark.usefixtures("layer_norm")
def test_what_does_not_train_is_computed_once(
    toy_trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frozen prefix once, the rest twice, and all of it once in evaluation."""
    trainer = toy_trainer({**SETTINGS, **ON, "strategy.name": "layer-retraining"})
    model = trainer.model
    model.train_stages(frozenset({"third"}))
    names = {id(stage): name for name, stage in model.backbone.stages.items()}
    seen: list[str] = []
    forward = backbones.Layer.forward

    def noted(self: backbones.Layer, state: State) -> State:
        seen.append(names[id(self)])
        return forward(self, state)

    monkeypatch.setattr(backbones.Layer, "forward", noted)
    batch = trainer.data.batch(trainer.data.samples("train"), torch.arange(4).numpy())
    model.head.loss(model.train()(model.prefix(batch))).backward()
    assert seen == ["first", "second", "third", "third"]
    seen.clear()
    model.head.loss(model.eval()(model.prefix(batch))).backward()
    assert seen == ["first", "second", "third"]


class Wide(nn.Module):
    """Keeps much inside it and passes little on."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 1000), nn.GELU(), nn.Linear(1000, 4))

    def forward(self, state: State) -> State:
        return {**state, "x": self.layers(state["x"])}


def test_one_stage_at_a_time_is_in_memory() -> None:
    backbone = Backbone({f"s{i}": Wide() for i in range(8)}, features=[], upstream={})
    peaks, marks = [], object()
    for recompute in (False, True):
        batch = {"x": torch.ones(50, 4), "mark": marks, "nested": {"y": [1]}}
        live = LiveBytes(CPU, [*backbone.parameters()])
        with live:
            state = backbone.run(batch, recompute=recompute)
            state["x"].sum().backward()
        assert state["mark"] is marks and state["nested"] is batch["nested"]
        backbone.zero_grad()
        peaks.append(max(live.after))
    # (50, 1000) floats before and after GELU: in each of eight stages, or in one.
    inside = 2 * 50 * 1000 * 4
    assert peaks[0] >= 8 * inside
    assert peaks[1] <= 3 * inside


@pytest.mark.usefixtures("layer_norm")
def test_it_may_change_on_resuming(tmp_path: Path) -> None:
    whole = headstart.run("toy/ring", SETTINGS, folder=tmp_path / "whole")
    folder = tmp_path / "killed"
    with pytest.raises(KeyboardInterrupt):
        headstart.run("toy/ring", SETTINGS, folder=folder, callbacks=[Told(4)])
    resumed = headstart.resume(folder, ON)
    assert outcome(resumed) == outcome(whole)


@pytest.mark.slow
@pytest.mark.usefixtures("layer_norm")
@pytest.mark.skipif(not shutil.which("g++"), reason="compiling needs a C++ compiler")
def test_compiled_training_gives_the_same_losses(
    toy_trainer: Callable[..., Trainer],
) -> None:
    # Compiled dropout draws other numbers.
    settings = {**SETTINGS, "backbone.dropout": 0.0, "train.max_steps": 3}
    losses = []
    for changes in ({}, {**ON, "train.compile": True}):
        torch.compiler.reset()
        trainer = toy_trainer({**settings, **changes})
        assert trainer.fit() == "done"
        losses.append(trainer.progress.best_metrics["loss"])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
