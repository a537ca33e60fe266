"""Losses and gradients that are not finite: the step is left out, counted, and told."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import headstart
from headstart.batch_order import epoch_batches
from headstart.callbacks import Callback
from headstart.checkpoint import read_checkpoint
from headstart.errors import HeadstartError
from headstart.testing.toy import data, heads

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from headstart.stages import State

SETTINGS: dict[str, Any] = {
    "data.count": 80,
    "train.batch_size": 8,
    "train.epochs": 2,
    "train.checkpoint_every": 1,
    "train.keep_checkpoints": 99,
    "train.log_every": 3,
}
"""48 training samples: 6 steps an epoch, 12 in all, a checkpoint after each."""
STEPS = 12


@pytest.fixture(autouse=True)
def plugin(registry: object) -> None:
    """The toy plugin."""


class KilledError(BaseException):
    pass


class Watch(Callback):
    def __init__(self, kill_at: int = -1) -> None:
        self.kill_at = kill_at
        self.step = 0
        self.told: list[str] = []

    def on_start(self, total_steps: int, start_step: int) -> None:
        self.step = start_step

    def on_step(self, step: int) -> None:
        self.step = step
        if step == self.kill_at:
            raise KilledError

    def on_message(self, text: str) -> None:
        self.told.append(text)


def spoil(monkeypatch: pytest.MonkeyPatch, sample: int, value: float) -> None:
    """A training sample that has a number which is none."""
    load = data.Ring.load

    def spoilt(self: data.Ring) -> None:
        load(self)
        self.samples("train")[sample]["point"][0] = value

    monkeypatch.setattr(data.Ring, "load", spoilt)


def infinite_loss(loss: torch.Tensor, state: State) -> torch.Tensor:
    return loss / 0.0


def no_loss(loss: torch.Tensor, state: State) -> torch.Tensor:
    return loss * math.nan


def gradient_alone(loss: torch.Tensor, state: State) -> torch.Tensor:
    """The root of 0 is 0, its slope is not finite."""
    return loss + (state["logits"] * 0).square().sum().sqrt()


@pytest.fixture
def derail(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Watch]:
    """Let the loss of some steps go wrong; returns what counts the steps."""

    def change(steps: set[int], how: Callable[..., torch.Tensor], **kill: int) -> Watch:
        watch = Watch(**kill)
        whole = heads.Classifier.loss

        def loss(self: heads.Classifier, state: State) -> torch.Tensor:
            right = whole(self, state)
            if self.training and watch.step in steps:
                return how(right, state)
            return right

        monkeypatch.setattr(heads.Classifier, "loss", loss)
        return watch

    return change


def batches() -> list[np.ndarray]:
    """The batches of all steps."""
    return [
        batch
        for epoch in range(2)
        for batch in epoch_batches(48, 8, seed=0, epoch=epoch, sizes=np.ones(48))
    ]


def tensors(folder: Path, step: int) -> dict[str, torch.Tensor]:
    checkpoint = read_checkpoint(folder / "checkpoints" / f"step-{step:06d}")
    model, optimizer = checkpoint.tensors("model"), checkpoint.tensors("optimizer")
    average = checkpoint.tensors("average")
    average.pop("n_averaged", None)
    return {
        **model,
        **{f"optimizer/{k}": v for k, v in optimizer.items()},
        **{f"average/{k}": v for k, v in average.items()},
    }


def unmoved(folder: Path) -> list[int]:
    """Steps, from 0, across which nothing moved: weights, statistics, moments."""
    still = []
    for step in range(1, STEPS):
        before, after = tensors(folder, step), tensors(folder, step + 1)
        assert before.keys() == after.keys()
        same = [torch.equal(before[name], after[name]) for name in before]
        if all(same):
            still.append(step)
        else:
            moved = [name for name, kept in zip(before, same, strict=True) if not kept]
            weights = [n for n in moved if n.endswith("linear.weight") and "/" not in n]
            assert len(weights) == 4, "a step moves every layer"
    return still


def records(folder: Path, event: str) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    found = [r for r in map(json.loads, lines) if r["event"] == event]
    for record in found:
        del record["time"]
    return found


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_bad_sample_moves_nothing(
    value: float, optimizer: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Not even BatchNorm's statistics, which would spoil every validation."""
    spoil(monkeypatch, 17, value)
    watch = Watch()
    settings = {**SETTINGS, "train.optimizer": optimizer, "train.ema": 0.5}
    done = headstart.run(
        "toy/ring", settings, folder=tmp_path / "run", callbacks=[watch]
    )
    bad = [step for step, batch in enumerate(batches()) if 17 in batch]
    assert len(bad) == 2
    assert unmoved(done.folder) == [step for step in bad if step]
    assert done.summary["status"] == "done"
    assert done.summary["bad_steps"] == 2
    told = [text for text in watch.told if "left out" in text]
    assert [text.split()[1] for text in told] == [str(step + 1) for step in bad]
    assert [r["bad_step"] for r in records(done.folder, "bad step")] == bad
    for event in ("train", "validation"):
        assert all(math.isfinite(r["loss"]) for r in records(done.folder, event))
    last = tensors(done.folder, STEPS)
    assert all(bool(value.isfinite().all()) for value in last.values())


@pytest.mark.parametrize("how", [infinite_loss, no_loss, gradient_alone])
@pytest.mark.parametrize("clip", [1.0, 0.0])
def test_steps_that_go_wrong_are_left_out(
    how: Callable[..., torch.Tensor],
    clip: float,
    derail: Callable[..., Watch],
    tmp_path: Path,
) -> None:
    watch = derail({3, 4, 9}, how)
    settings = {**SETTINGS, "train.clip": clip}
    done = headstart.run(
        "toy/ring", settings, folder=tmp_path / "run", callbacks=[watch]
    )
    assert unmoved(done.folder) == [3, 4, 9]
    assert done.summary["bad_steps"] == 3


def test_a_bad_first_step_is_as_if_there_was_none(
    derail: Callable[..., Watch], tmp_path: Path, toy_parts: Callable[..., Any]
) -> None:
    """There are no moments yet, and the weights stay what they were."""
    watch = derail({0}, no_loss)
    done = headstart.run(
        "toy/ring", SETTINGS, folder=tmp_path / "run", callbacks=[watch]
    )
    _, assembly, _ = toy_parts(SETTINGS)
    first = tensors(done.folder, 1)
    for name, value in assembly.model.state_dict().items():
        assert torch.equal(first[name], value), name
    moments = [value for name, value in first.items() if name.startswith("optimizer/")]
    assert all(not value.any() for value in moments)
    assert unmoved(done.folder) == []


def test_one_bad_part_spoils_the_batch(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of four parts three are good, and none of them counts."""
    spoil(monkeypatch, 17, math.nan)
    settings = {**SETTINGS, "train.accumulate": 4}
    done = headstart.run("toy/ring", settings, folder=tmp_path / "run")
    bad = [step for step, batch in enumerate(batches()) if 17 in batch]
    assert unmoved(done.folder) == [step for step in bad if step]
    assert done.summary["bad_steps"] == 2


def test_too_many_end_the_run_with_names(
    derail: Callable[..., Watch], tmp_path: Path
) -> None:
    watch = derail(set(range(4, 12)), infinite_loss)
    settings = {**SETTINGS, "train.bad_steps": 3, "train.log_every": 1}
    folder = tmp_path / "run"
    with pytest.raises(HeadstartError, match="3 steps") as caught:
        headstart.run("toy/ring", settings, folder=folder, callbacks=[watch])
    (fault,) = caught.value.faults
    assert fault.where.startswith("step 7, ")
    # A fifth each of 80 points went to test and validation.
    for sample in batches()[6]:
        assert f"point {sample + 32}" in fault.where
    assert "step-000006" in fault.fix, "the last good checkpoint"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "failed"
    assert "not finite" in summary["reason"]
    assert [r["bad_steps"] for r in records(folder, "bad step")] == [1, 2, 3]


def test_the_count_is_kept_on_resume(
    derail: Callable[..., Watch], tmp_path: Path
) -> None:
    """Killed between the checkpoint that counts a bad step and the line that tells."""
    settings = {**SETTINGS, "train.bad_steps": 3, "train.log_every": 5}
    settings["train.evaluate_every"] = 2
    bad = {2, 7}
    whole = headstart.run(
        "toy/ring",
        settings,
        folder=tmp_path / "whole",
        callbacks=[derail(bad, no_loss)],
    )
    folder = tmp_path / "killed"
    for kill_at in (4, 9):
        watch = derail(bad, no_loss, kill_at=kill_at)
        with pytest.raises(KilledError):
            if folder.exists():
                headstart.resume(folder, callbacks=[watch])
            else:
                headstart.run("toy/ring", settings, folder=folder, callbacks=[watch])
    watch = derail(bad, no_loss)
    resumed = headstart.resume(folder, callbacks=[watch])
    assert resumed.summary["bad_steps"] == whole.summary["bad_steps"] == 2
    for event in ("bad step", "train", "validation"):
        assert records(folder, event) == records(whole.folder, event)
    last, expected = tensors(folder, STEPS), tensors(whole.folder, STEPS)
    assert all(torch.equal(last[name], expected[name]) for name in expected)


def test_the_limit_counts_what_was_before_a_kill(
    derail: Callable[..., Watch], tmp_path: Path
) -> None:
    settings = {**SETTINGS, "train.bad_steps": 3, "train.log_every": 1}
    bad, folder = {1, 3, 8}, tmp_path / "run"
    with pytest.raises(KilledError):
        watch = derail(bad, no_loss, kill_at=6)
        headstart.run("toy/ring", settings, folder=folder, callbacks=[watch])
    with pytest.raises(HeadstartError, match="3 steps") as caught:
        headstart.resume(folder, callbacks=[derail(bad, no_loss)])
    assert caught.value.faults[0].where.startswith("step 9, ")
    # With a larger limit the same run goes on from where it stopped.
    done = headstart.resume(
        folder, {"train.bad_steps": 4}, callbacks=[derail(bad, no_loss)]
    )
    assert (done.summary["status"], done.summary["bad_steps"]) == ("done", 3)
