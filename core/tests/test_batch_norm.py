"""BatchNorm that is given a single sample: an error that says where it comes from."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import headstart
from headstart.batch_norm import explained
from headstart.errors import UserError
from headstart.testing.toy import data, heads

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from headstart.stages import State

SETTINGS: dict[str, Any] = {
    "data.count": 80,
    "train.batch_size": 16,
    "train.epochs": 1,
}
"""48 training samples: 3 steps."""


@pytest.fixture(autouse=True)
def plugin(registry: object) -> None:
    """The toy plugin."""


def test_parts_of_one_sample(tmp_path: Path) -> None:
    folder = tmp_path / "sixteen"
    with pytest.raises(UserError, match="BatchNorm") as caught:
        headstart.run("toy/ring", {**SETTINGS, "train.accumulate": 9}, folder=folder)
    (fault,) = caught.value.faults
    assert fault.where == "backbone.stages.first.norm, step 1"
    assert "16 samples are computed in 9 parts" in fault.why
    assert "train.accumulate to 8 at most" in fault.fix
    assert "strategy.name" in fault.fix
    assert json.loads((folder / "summary.json").read_text())["status"] == "failed"
    # What it says does help.
    for fix in ({"train.accumulate": 8}, {"strategy.name": "feature-extraction"}):
        settings = {**SETTINGS, "train.accumulate": 9, **fix}
        name = next(iter(fix))
        done = headstart.run("toy/ring", settings, folder=tmp_path / name)
        assert done.summary["status"] == "done"


def test_the_advice_holds_for_the_shortest_batch(tmp_path: Path) -> None:
    """49 samples: batches of 16, 16, 8 and 9, and 9 in 5 parts leave a part of one."""
    uneven = {**SETTINGS, "data.count": 81}
    with pytest.raises(UserError, match="BatchNorm") as caught:
        headstart.run(
            "toy/ring", {**uneven, "train.accumulate": 5}, folder=tmp_path / "five"
        )
    assert "train.accumulate to 4 at most" in caught.value.faults[0].fix
    four = {**uneven, "train.accumulate": 4}
    done = headstart.run("toy/ring", four, folder=tmp_path / "four")
    assert done.summary["status"] == "done"


def test_a_batch_of_one_sample(tmp_path: Path) -> None:
    """49 samples in batches of 2."""
    pairs = {**SETTINGS, "data.count": 81, "train.batch_size": 2}
    with pytest.raises(UserError, match="BatchNorm") as caught:
        headstart.run("toy/ring", pairs, folder=tmp_path / "two")
    (fault,) = caught.value.faults
    assert "this batch has 1 sample for 1 rank," in fault.why
    assert "train.batch_size to 4 or more," in fault.fix
    done = headstart.run(
        "toy/ring", {**pairs, "train.batch_size": 4}, folder=tmp_path / "four"
    )
    assert done.summary["status"] == "done"


def test_a_batch_of_one_sample_that_is_large(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its batch has as many as there is room for, which batch_size does not change."""

    def sizes(self: data.Ring, split: str) -> np.ndarray:
        found = np.ones(len(self.samples(split)), dtype=np.int64)
        found[7] = 20
        return found

    monkeypatch.setattr(data.Ring, "sizes", sizes)
    total = {**SETTINGS, "train.batch_total": 16}
    with pytest.raises(UserError, match="BatchNorm") as caught:
        headstart.run("toy/ring", total, folder=tmp_path / "sixteen")
    assert "this batch has 1 sample for 1 rank," in caught.value.faults[0].why
    assert caught.value.faults[0].fix.startswith("raise train.batch_total, or freeze")
    more = {**total, "train.batch_total": 44}
    done = headstart.run("toy/ring", more, folder=tmp_path / "more")
    assert done.summary["status"] == "done"
    # The range test takes its own steps, and names the one that failed.
    found = {**total, "train.learning_rate": "auto"}
    with pytest.raises(UserError, match="BatchNorm") as caught:
        headstart.run("toy/ring", found, folder=tmp_path / "auto")
    assert "this batch has 1 sample for 1 rank," in caught.value.faults[0].why


@pytest.mark.parametrize("micro_batch", ["auto", "off"])
def test_parts_that_memory_made_too_small(
    micro_batch: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = heads.Classifier.forward

    def forward(self: heads.Classifier, state: State) -> State:
        if self.training and len(state["hidden"]) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        return whole(self, state)

    monkeypatch.setattr(heads.Classifier, "forward", forward)
    settings = {**SETTINGS, "train.micro_batch": micro_batch}
    with pytest.raises(UserError, match="BatchNorm") as caught:
        headstart.run("toy/ring", settings, folder=tmp_path / "run")
    assert "computed in 16 parts" in caught.value.faults[0].why


def test_other_errors_stay_as_they_are(toy_trainer: Callable[..., Any]) -> None:
    trainer = toy_trainer(SETTINGS)
    error = ValueError("something else")
    with pytest.raises(ValueError, match="something else") as caught:
        with explained(trainer.model, trainer.batches, trainer.progress):
            raise error
    assert caught.value is error
