"""Going on with a run that was stopped: as if nothing had happened."""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import pytest
import torch

import headstart
from headstart.callbacks import Callback
from headstart.checkpoint import newest_checkpoint
from headstart.errors import UserError
from headstart.plugins import load_plugins
from headstart.testing import toy
from headstart.testing.toy.data import Ring

BASE = {
    "data.count": 200,
    "train.epochs": 3,
    "train.batch_size": 16,
    "train.checkpoint_every": 3,
    "train.log_every": 4,
    "train.keep_checkpoints": 2,
    "data.noise": 0.1,
}
FOUR_STEPS = {**BASE, "train.max_steps": 4}
SITUATIONS = {
    "global": {},
    "unfreezing": {"strategy.name": "gradual", "strategy.unfreeze_share": 0.8},
    "lp-ft": {"strategy.name": "lp-ft"},
    # The step of the change, 9, is that of a checkpoint.
    "lp-ft above a stage": {
        "strategy.name": "lp-ft",
        "strategy.head_share": 0.375,
        "strategy.freeze_until": "first",
        "train.ema": 0.9,
    },
    "lp-ft above all": {
        "strategy.name": "lp-ft",
        "strategy.head_share": 0.375,
        "strategy.freeze_until": "third",
    },
    "unfreezing above a stage": {
        "strategy.name": "gradual",
        "strategy.freeze_until": "first",
        "train.ema": 0.9,
    },
    "accumulation": {"train.accumulate": 3},
    "average": {"train.ema": 0.9},
    "workers": {"data.workers": 1},
    "cache": {
        "strategy.name": "feature-extraction",
        "data.noise": 0.0,
        "cache.mode": "on",
    },
    "early stopping": {"early_stopping.patience": 4, "train.evaluate_every": 0.25},
    "sgd": {"train.optimizer": "sgd"},
    "found rate": {"train.learning_rate": "auto"},
}
if importlib.util.find_spec("peft"):
    SITUATIONS["adapters"] = {
        "strategy.name": "lora",
        "strategy.lora.dropout": 0.1,
        "strategy.lora.dora": True,
        "train.ema": 0.9,
    }


class Killed(BaseException):
    """No handler of ours may see it, as none sees SIGKILL."""


class KillAt(Callback):
    def __init__(self, step):
        self.step = step

    def on_step(self, step):
        if step == self.step:
            raise Killed


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    load_plugins().add(toy, "toy")
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))


def losses(folder):
    records = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    shown = []
    for record in records:
        if record["event"] in ("train", "validation", "trainable", "test", "range"):
            del record["time"]
            shown.append(record)
    return shown


def weights(folder):
    checkpoint, _ = newest_checkpoint(folder / "checkpoints")
    return {
        **checkpoint.tensors("model"),
        **{f"optimizer {k}": v for k, v in checkpoint.tensors("optimizer").items()},
        **{f"average {k}": v for k, v in checkpoint.tensors("average").items()},
    }


def same_bits(left, right):
    return left.keys() == right.keys() and all(
        torch.equal(value, right[name]) for name, value in left.items()
    )


@pytest.mark.parametrize("situation", SITUATIONS)
def test_a_killed_run_ends_with_the_same_bits(situation, tmp_path):
    settings = {**BASE, **SITUATIONS[situation]}
    whole = headstart.run("toy/ring", settings, folder=tmp_path / "whole")
    folder = tmp_path / "killed"
    # In the middle of an epoch (of 8 steps), between checkpoints; then twice again.
    with pytest.raises(Killed):
        headstart.run("toy/ring", settings, folder=folder, callbacks=[KillAt(5)])
    for step in (11, 14):
        with pytest.raises(Killed):
            headstart.resume(folder, callbacks=[KillAt(step)])
    resumed = headstart.resume(folder)
    assert same_bits(weights(folder), weights(whole.folder))
    assert losses(folder) == losses(whole.folder)
    assert resumed.metrics == whole.metrics
    assert resumed.summary["best_step"] == whole.summary["best_step"]
    assert resumed.summary["steps"] == whole.summary["steps"]


def test_costs_are_those_of_the_whole_training(tmp_path):
    folder = tmp_path / "killed"
    with pytest.raises(Killed):
        headstart.run("toy/ring", BASE, folder=folder, callbacks=[KillAt(5)])
    log = folder / "metrics.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    # 2 batches of 16 and the short one of 8. As if they had taken a while.
    [last] = [row for row in rows if row["event"] == "checkpoint"]
    assert (last["step"], last["spent"]["count"]) == (3, 40)
    assert 0 < last["spent"]["train_seconds"] < sum(last["spent"]["seconds"].values())
    last["spent"]["seconds"]["loading"] += 1000
    last["spent"]["train_seconds"] += 2000
    last["spent"]["peak_memory_bytes"] = 10**15
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(Killed):
        headstart.resume(folder, callbacks=[KillAt(11)])
    summary = headstart.resume(folder).summary
    assert 1000 < summary["time"]["loading"] < 1100
    assert summary["time"]["total"] > 1000
    # 3 epochs of the 120 samples to train on; the steps that were lost count once.
    flow = summary["throughput"]["samples_per_second"]
    assert 3 * 120 / flow == pytest.approx(2000, abs=100)
    assert summary["peak_memory_bytes"] == 10**15


def test_batches_by_total_go_on_in_the_middle_of_an_epoch(tmp_path, monkeypatch):
    def sizes(self, split):
        return 3 + np.arange(len(self.samples(split)), dtype=np.int64) * 7 % 30

    monkeypatch.setattr(Ring, "sizes", sizes)
    total = {"train.batch_total": 130, "train.batch_size": 40, "train.accumulate": 2}
    settings = {**BASE, **total, "strategy.name": "feature-extraction"}
    whole = headstart.run("toy/ring", settings, folder=tmp_path / "whole")
    assert whole.summary["steps"] % 3 == 0
    folder = tmp_path / "killed"
    with pytest.raises(Killed):
        headstart.run("toy/ring", settings, folder=folder, callbacks=[KillAt(5)])
    with pytest.raises(Killed):
        headstart.resume(folder, callbacks=[KillAt(29)])
    headstart.resume(folder)
    assert same_bits(weights(folder), weights(whole.folder))
    assert losses(folder) == losses(whole.folder)


def test_before_the_first_checkpoint_it_starts_anew(tmp_path):
    whole = headstart.run("toy/ring", BASE, folder=tmp_path / "whole")
    folder = tmp_path / "killed"
    with pytest.raises(Killed):
        headstart.run("toy/ring", BASE, folder=folder, callbacks=[KillAt(2)])
    headstart.resume(folder)
    assert same_bits(weights(folder), weights(whole.folder))
    assert losses(folder) == losses(whole.folder)


def test_a_damaged_checkpoint_is_passed_over_and_named(tmp_path):
    whole = headstart.run("toy/ring", BASE, folder=tmp_path / "whole")
    folder = tmp_path / "killed"
    with pytest.raises(Killed):
        headstart.run("toy/ring", BASE, folder=folder, callbacks=[KillAt(7)])
    newest = max((folder / "checkpoints").glob("step-*"))
    tensors = newest / "model.safetensors"
    content = bytearray(tensors.read_bytes())
    content[-1] ^= 1
    tensors.write_bytes(content)
    told = []

    class Listen(Callback):
        def on_message(self, text):
            told.append(text)

    headstart.resume(folder, callbacks=[Listen()])
    assert any(newest.name in text and "damaged" in text for text in told)
    assert "going on from step-000003" in told
    assert same_bits(weights(folder), weights(whole.folder))


def test_changes_that_steps_depend_on_are_refused_together(tmp_path):
    run = headstart.run(
        "toy/ring", {**BASE, "train.max_steps": 4}, folder=tmp_path / "r"
    )
    with pytest.raises(UserError) as caught:
        headstart.resume(run.folder, {"train.batch_size": 8, "train.seed": 3})
    keys = [fault.what.split()[0] for fault in caught.value.faults]
    assert keys == ["train.batch_size", "train.seed"]


def test_more_epochs_are_allowed(tmp_path):
    constant = {**BASE, "train.schedule": "constant", "train.warmup": 0.0}
    whole = headstart.run("toy/ring", constant, folder=tmp_path / "whole")
    shorter = {**constant, "train.epochs": 1}
    run = headstart.run("toy/ring", shorter, folder=tmp_path / "short")
    longer = headstart.resume(run.folder, {"train.epochs": 3})
    assert longer.summary["steps"] == whole.summary["steps"]
    assert same_bits(weights(longer.folder), weights(whole.folder))


def test_a_stretched_schedule_is_told(tmp_path):
    run = headstart.run("toy/ring", {**BASE, "train.epochs": 1}, folder=tmp_path / "r")
    told = []

    class Listen(Callback):
        def on_message(self, text):
            told.append(text)

    headstart.resume(run.folder, {"train.epochs": 2}, callbacks=[Listen()])
    assert any("schedule" in text for text in told)


def test_a_complete_run_says_so(tmp_path):
    run = headstart.run("toy/ring", {**BASE, "train.epochs": 1}, folder=tmp_path / "r")
    with pytest.raises(UserError, match="complete") as caught:
        headstart.resume(run.folder)
    assert "train.epochs=2" in caught.value.faults[0].fix
    short = headstart.run("toy/ring", FOUR_STEPS, folder=tmp_path / "s")
    with pytest.raises(UserError, match="complete") as caught:
        headstart.resume(short.folder)
    assert "train.max_steps=8" in caught.value.faults[0].fix


def test_another_version_is_refused(tmp_path):
    run = headstart.run(
        "toy/ring", {**BASE, "train.max_steps": 4}, folder=tmp_path / "r"
    )
    path = run.folder / "environment.json"
    path.write_text(path.read_text().replace(headstart.__version__, "9.9.0"))
    with pytest.raises(UserError, match=r"9\.9\.0"):
        headstart.resume(run.folder)


def test_changed_data_is_refused(tmp_path):
    run = headstart.run(
        "toy/ring", {**BASE, "train.max_steps": 4}, folder=tmp_path / "r"
    )
    path = run.folder / "environment.json"
    environment = json.loads(path.read_text())
    environment["data"]["fingerprint"] = "of other data"
    path.write_text(json.dumps(environment))
    with pytest.raises(UserError, match="data is not what"):
        headstart.resume(run.folder)
