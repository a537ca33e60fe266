"""A device without room: the same batch in more parts, and nothing else changes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn

import headstart
from headstart.callbacks import Callback
from headstart.checkpoint import newest_checkpoint, write_checkpoint
from headstart.errors import HeadstartError
from headstart.execution import Execution
from headstart.testing.toy import backbones, data, heads

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from headstart.runs import Run
    from headstart.stages import State

SETTINGS: dict[str, Any] = {
    "data.count": 80,
    "data.noise": 0.1,
    "train.batch_size": 16,
    "train.epochs": 3,
    "train.checkpoint_every": 5,
    "train.keep_checkpoints": 9,
    "train.log_every": 1,
}
"""48 training samples: 3 steps an epoch, 9 in all."""


@pytest.fixture(autouse=True)
def plugin(registry: object) -> None:
    """The toy plugin."""


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let training run out of memory with more than so many samples at a time."""
    whole = heads.Classifier.forward

    def leave(rows: int, needed: Callable[[], bool] = lambda: True) -> None:
        def forward(self: heads.Classifier, state: State) -> State:
            if self.training and len(state["hidden"]) > rows and needed():
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
            return whole(self, state)

        monkeypatch.setattr(heads.Classifier, "forward", forward)

    return leave


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A network of which every row is on its own: no BatchNorm, no dropout."""
    monkeypatch.setattr(backbones.nn, "BatchNorm1d", nn.LayerNorm)
    return {**SETTINGS, "backbone.dropout": 0.0, "data.noise": 0.0}


@pytest.fixture
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """No estimate before the first step, which runs the model too."""
    name = "headstart.memory_estimate.estimate_memory"
    monkeypatch.setattr(name, lambda trainer: "not in this test")


class Watch(Callback):
    def __init__(self, kill_at: int = -1) -> None:
        self.kill_at = kill_at
        self.step = 0
        self.told: list[str] = []

    def on_step(self, step: int) -> None:
        self.step = step
        if step == self.kill_at:
            raise KilledError

    def on_message(self, text: str) -> None:
        self.told.append(text)


class KilledError(BaseException):
    pass


def files(run: Run) -> dict[str, bytes]:
    folder = run.folder / "checkpoints"
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.glob("step-*/*")}


def records(folder: Path, *events: str) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    found = [r for r in map(json.loads, lines) if r["event"] in events]
    for record in found:
        del record["time"]
    return found


def losses(folder: Path) -> list[float]:
    return [record["loss"] for record in records(folder, "train", "validation")]


# While training


def test_batches_are_cut_until_they_fit(
    room: Callable[..., None], tmp_path: Path
) -> None:
    """The first step fails three times; BatchNorm and dropout are part of the bits."""
    expected = headstart.run(
        "toy/ring", {**SETTINGS, "train.accumulate": 8}, folder=tmp_path / "eight"
    )
    watch = Watch()
    room(3)
    cut = headstart.run(
        "toy/ring", SETTINGS, folder=tmp_path / "cut", callbacks=[watch]
    )
    assert files(cut) == files(expected)
    assert losses(cut.folder) == losses(expected.folder)
    assert cut.metrics == expected.metrics
    assert cut.summary["accumulate"] == 8
    events = records(cut.folder, "memory")
    assert [(r["step"], r["accumulate"]) for r in events] == [(0, 2), (0, 4), (0, 8)]
    told = [text for text in watch.told if "out of memory" in text]
    assert [text.split()[-2] for text in told] == ["2", "4", "8"]


def test_the_step_that_failed_is_repeated(
    room: Callable[..., None], exact: dict[str, Any], tmp_path: Path
) -> None:
    undisturbed = headstart.run("toy/ring", exact, folder=tmp_path / "whole")
    watch = Watch()
    room(10, lambda: watch.step == 5)
    cut = headstart.run("toy/ring", exact, folder=tmp_path / "cut", callbacks=[watch])
    (event,) = records(cut.folder, "memory")
    assert (event["step"], event["accumulate"]) == (5, 2)
    # The loss of a batch is that of its parts together, whatever their number.
    assert losses(cut.folder) == pytest.approx(losses(undisturbed.folder), rel=1e-5)
    # The same steps on purpose: as far as step 5 whole, from there on in two parts.
    room(99)
    stopped = tmp_path / "on purpose"
    with pytest.raises(KilledError):
        headstart.run("toy/ring", exact, folder=stopped, callbacks=[Watch(kill_at=6)])
    five, _ = newest_checkpoint(stopped / "checkpoints")
    assert five.step == 5
    tensors = {name: five.tensors(name) for name in ("model", "optimizer")}
    state = {**five.state(), "accumulate": 2}
    write_checkpoint(stopped / "checkpoints", 5, tensors, state)
    on_purpose = headstart.resume(stopped)
    last = [name for name in files(cut) if name.startswith("step-000009")]
    assert len(last) == 4
    assert {n: files(cut)[n] for n in last} == {n: files(on_purpose)[n] for n in last}
    assert losses(cut.folder) == losses(on_purpose.folder)


def test_the_choice_is_kept_on_resume(
    room: Callable[..., None], tmp_path: Path
) -> None:
    room(4)
    whole = headstart.run("toy/ring", SETTINGS, folder=tmp_path / "whole")
    folder = tmp_path / "killed"
    with pytest.raises(KilledError):
        headstart.run("toy/ring", SETTINGS, folder=folder, callbacks=[Watch(7)])
    # There is room now, and yet the numbers are to be those of before.
    room(99)
    watch = Watch()
    resumed = headstart.resume(folder, callbacks=[watch])
    assert not any("out of memory" in text for text in watch.told)
    assert files(resumed) == files(whole)
    assert losses(folder) == losses(whole.folder)
    assert resumed.summary["accumulate"] == 4
    assert records(folder, "memory") == records(whole.folder, "memory")


def test_parts_may_rise_on_resume_and_not_fall(tmp_path: Path) -> None:
    folder, two = tmp_path / "run", {**SETTINGS, "train.accumulate": 2}
    with pytest.raises(KilledError):
        headstart.run("toy/ring", two, folder=folder, callbacks=[Watch(7)])
    with pytest.raises(HeadstartError, match="cannot change from 2 to 1"):
        headstart.resume(folder, {"train.accumulate": 1})
    watch = Watch()
    done = headstart.resume(folder, {"train.accumulate": 4}, callbacks=[watch])
    assert done.summary["accumulate"] == 4
    assert any("accumulate is 4, before it was 2" in text for text in watch.told)


def test_the_weighting_of_uneven_parts_is_exact(
    room: Callable[..., None], exact: dict[str, Any], tmp_path: Path
) -> None:
    """47 samples: the last batch of 15 falls into parts of different sizes."""
    uneven = {**exact, "data.count": 78, "train.batch_size": 16}
    whole = headstart.run("toy/ring", uneven, folder=tmp_path / "whole")
    room(5)
    cut = headstart.run("toy/ring", uneven, folder=tmp_path / "cut")
    assert losses(cut.folder) == pytest.approx(losses(whole.folder), rel=1e-5)


def test_a_sample_that_does_not_fit_is_an_error(
    room: Callable[..., None], exact: dict[str, Any], tmp_path: Path
) -> None:
    room(0)
    with pytest.raises(HeadstartError, match="a single sample does not fit") as caught:
        headstart.run("toy/ring", exact, folder=tmp_path / "run")
    (fault,) = caught.value.faults
    assert fault.where == "step 1"
    assert "smaller" in fault.fix
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == "failed"
    tried = [r["accumulate"] for r in records(tmp_path / "run", "memory")]
    assert tried == [2, 4, 8, 16]


@pytest.mark.parametrize(
    ("strategy", "pointed_out"), [("global", True), ("feature-extraction", False)]
)
def test_batch_norm_that_trains_is_pointed_out(
    strategy: str, pointed_out: bool, room: Callable[..., None], tmp_path: Path
) -> None:
    room(8)
    watch = Watch()
    settings = {**SETTINGS, "strategy.name": strategy, "cache.mode": "off"}
    headstart.run("toy/ring", settings, folder=tmp_path / "run", callbacks=[watch])
    assert any("out of memory" in text for text in watch.told)
    assert any("BatchNorm" in text for text in watch.told) == pointed_out


@pytest.mark.usefixtures("unmeasured")
def test_a_part_that_fitted_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The second part fails when the first has moved BatchNorm's statistics."""
    four = {**SETTINGS, "train.accumulate": 4}
    expected = headstart.run("toy/ring", four, folder=tmp_path / "four")
    whole, calls = heads.Classifier.forward, []

    def forward(self: heads.Classifier, state: State) -> State:
        calls.append(len(state["hidden"]))
        if len(calls) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        return whole(self, state)

    monkeypatch.setattr(heads.Classifier, "forward", forward)
    two = {**SETTINGS, "train.accumulate": 2}
    cut = headstart.run("toy/ring", two, folder=tmp_path / "two")
    assert calls[:4] == [8, 8, 4, 4]
    assert files(cut) == files(expected)


def test_no_room_for_the_optimizer_is_no_second_gradient(
    exact: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    undisturbed = headstart.run("toy/ring", exact, folder=tmp_path / "whole")
    step, calls = torch.optim.AdamW.step, []

    def once(self: torch.optim.AdamW, *rest: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        return step(self, *rest)

    monkeypatch.setattr(torch.optim.AdamW, "step", once)
    cut = headstart.run("toy/ring", exact, folder=tmp_path / "cut")
    assert cut.summary["accumulate"] == 2
    assert losses(cut.folder) == pytest.approx(losses(undisturbed.folder), rel=1e-5)
    always = [1] * 10**6

    def never(self: torch.optim.AdamW, *rest: Any) -> Any:
        always.pop()
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")

    monkeypatch.setattr(torch.optim.AdamW, "step", never)
    with pytest.raises(HeadstartError, match="does not fit"):
        headstart.run("toy/ring", exact, folder=tmp_path / "never")


def test_no_room_for_the_next_batch_does_not_touch_the_step_that_was_done(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its BatchNorm statistics stay, also when the batch after it cannot be moved."""
    move, watch, failed = Execution.move, Watch(), []

    def once(self: Execution, state: State) -> State:
        if watch.step == 4 and not failed:
            failed.append(watch.step)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        return move(self, state)

    monkeypatch.setattr(Execution, "move", once)
    cut = headstart.run(
        "toy/ring", SETTINGS, folder=tmp_path / "cut", callbacks=[watch]
    )
    assert [r["step"] for r in records(cut.folder, "memory")] == failed == [4]
    # On purpose: the first four steps whole, from there on in two parts.
    stopped = tmp_path / "on purpose"
    often = {**SETTINGS, "train.checkpoint_every": 4}
    with pytest.raises(KilledError):
        headstart.run("toy/ring", often, folder=stopped, callbacks=[Watch(kill_at=5)])
    on_purpose = headstart.resume(stopped, {"train.accumulate": 2})
    last = [name for name in files(cut) if name.startswith("step-000009/model")]
    assert len(last) == 1
    assert {n: files(cut)[n] for n in last} == {n: files(on_purpose)[n] for n in last}


def test_no_room_for_a_validation_is_an_error_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It must neither be taken for a step's nor lose the validation."""
    whole = heads.Classifier.forward

    def forward(self: heads.Classifier, state: State) -> State:
        if not self.training and len(state["hidden"]) > 8:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        return whole(self, state)

    monkeypatch.setattr(heads.Classifier, "forward", forward)
    with pytest.raises(HeadstartError, match="does not fit") as caught:
        headstart.run("toy/ring", SETTINGS, folder=tmp_path / "run")
    (fault,) = caught.value.faults
    assert "train.eval_batch_size" in fault.where + fault.fix
    assert records(tmp_path / "run", "memory") == []
    fits = {**SETTINGS, "train.eval_batch_size": 8}
    done = headstart.run("toy/ring", fits, folder=tmp_path / "fits")
    assert done.summary["status"] == "done"


# Before training


def test_the_probe_finds_the_parts_before_the_first_step(
    room: Callable[..., None], tmp_path: Path
) -> None:
    eight = {**SETTINGS, "train.accumulate": 8, "train.ema": 0.9}
    expected = headstart.run("toy/ring", eight, folder=tmp_path / "eight")
    watch = Watch()
    room(3, lambda: watch.step == 0)
    auto = {**eight, "train.accumulate": 1, "train.micro_batch": "auto"}
    done = headstart.run("toy/ring", auto, folder=tmp_path / "auto", callbacks=[watch])
    assert [r["accumulate"] for r in records(done.folder, "memory")] == [2, 4, 8]
    assert files(done) == files(expected)
    assert losses(done.folder) == losses(expected.folder)


@pytest.mark.parametrize("strategy", ["global", "gradual", "lp-ft"])
def test_the_probe_leaves_no_trace(strategy: str, tmp_path: Path) -> None:
    settings = {**SETTINGS, "strategy.name": strategy}
    plain = headstart.run("toy/ring", settings, folder=tmp_path / "plain")
    auto = {**settings, "train.micro_batch": "auto"}
    probed = headstart.run("toy/ring", auto, folder=tmp_path / "auto")
    assert files(probed) == files(plain)
    events = ("train", "validation", "trainable", "test", "memory")
    assert records(probed.folder, *events) == records(plain.folder, *events)


@pytest.mark.usefixtures("unmeasured")
def test_the_probe_takes_the_largest_samples_with_all_that_will_train(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def sizes(self: data.Ring, split: str) -> np.ndarray:
        return np.arange(len(self.samples(split))) % 37

    monkeypatch.setattr(data.Ring, "sizes", sizes)
    seen: list[tuple[list[int], bool]] = []
    collate = data.Ring.collate
    first = backbones.Layer.forward

    def collated(self: data.Ring, samples: list[dict[str, Any]]) -> State:
        numbers = [int(sample["id"].split()[1]) - 32 for sample in samples]
        seen.append((numbers, False))
        return collate(self, samples)

    def forward(self: backbones.Layer, state: State) -> State:
        if self.source == "points" and len(seen) == 1:
            seen[0] = (seen[0][0], torch.is_grad_enabled() and self.training)
        return first(self, state)

    monkeypatch.setattr(data.Ring, "collate", collated)
    monkeypatch.setattr(backbones.Layer, "forward", forward)
    auto = {**SETTINGS, "train.micro_batch": "auto", "strategy.name": "gradual"}
    headstart.run("toy/ring", {**auto, "cache.mode": "off"}, folder=tmp_path / "run")
    numbers, trained = seen[0]
    assert sorted(n % 37 for n in numbers) == list(range(21, 37))
    assert trained, "the probe is of the phase that takes most memory"


@pytest.mark.usefixtures("unmeasured")
def test_the_probe_augments_as_training_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Some losses read what only augmentation adds, and it may change sizes."""
    augment, loss = data.Ring.augment, heads.Classifier.loss
    seen: list[bool] = []

    def augmented(self: data.Ring, batch: State, generator: torch.Generator) -> State:
        return {**augment(self, batch, generator), "negatives": torch.ones(1)}

    def read(self: heads.Classifier, state: State) -> torch.Tensor:
        if self.training:
            seen.append("negatives" in state)
        return loss(self, state)

    monkeypatch.setattr(data.Ring, "augment", augmented)
    monkeypatch.setattr(heads.Classifier, "loss", read)
    auto = {**SETTINGS, "train.micro_batch": "auto", "data.noise": 0.1}
    done = headstart.run("toy/ring", auto, folder=tmp_path / "run")
    assert len(seen) == done.summary["steps"] + 1
    assert all(seen)


def test_the_probe_says_when_a_single_sample_does_not_fit(
    room: Callable[..., None], exact: dict[str, Any], tmp_path: Path
) -> None:
    room(0)
    auto = {**exact, "train.micro_batch": "auto"}
    with pytest.raises(HeadstartError, match="a single sample does not fit") as caught:
        headstart.run("toy/ring", auto, folder=tmp_path / "run")
    assert caught.value.faults[0].where == "step 1"
