"""Inputs that cannot be used: all told together, or left out where that is asked."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from click.testing import CliRunner

from headstart.cli import commands
from headstart.errors import DataError, Fault
from headstart.fine_tuning import run
from headstart.plugins import load_plugins
from headstart.runs import Run
from headstart.testing import toy
from headstart.testing.toy.data import Ring

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from click.testing import Result

    from headstart.data import Sample

pytestmark = pytest.mark.usefixtures("registry", "points")
MIXED = ("0,0", "north", "3,3", "south")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    load_plugins().add(toy, "toy")
    short = {"data.count": 60, "train.epochs": 1}
    return run("toy/ring", short, folder=tmp_path_factory.mktemp("runs") / "r").folder


@pytest.fixture
def points(monkeypatch: pytest.MonkeyPatch) -> None:
    """A data module that knows which inputs are none of its own."""

    def from_inputs(self: Ring, inputs: Sequence[Any]) -> Sequence[Sample]:
        samples, faults = [], []
        for number, text in enumerate(inputs, start=1):
            try:
                point = np.array([float(part) for part in text.split(",")])
            except ValueError:
                faults.append(Fault(f"{text!r} is no point", f"input {number}"))
            else:
                samples.append({"id": text, "point": point})
        self.leave_out(faults, len(samples))
        return samples

    monkeypatch.setattr(Ring, "from_inputs", from_inputs)


def headstart(*arguments: object) -> Result:
    return CliRunner().invoke(commands, [str(a) for a in arguments])


def test_bad_inputs_are_told_together_by_default(trained: Path) -> None:
    with pytest.raises(DataError) as caught:
        Run(trained).predict(MIXED)
    assert [fault.where for fault in caught.value.faults] == ["input 2", "input 4"]


def test_bad_inputs_are_left_out_and_kept(trained: Path) -> None:
    opened = Run(trained)
    predictions = opened.predict(MIXED, skip_bad=True)
    assert predictions == opened.predict(["0,0", "3,3"])
    assert opened.skipped == []
    opened.predict(MIXED, skip_bad=True)
    assert [str(fault) for fault in opened.skipped] == [
        "input 2: 'north' is no point",
        "input 4: 'south' is no point",
    ]


def test_only_bad_inputs_are_an_error_all_the_same(trained: Path) -> None:
    with pytest.raises(DataError, match="2 faults"):
        Run(trained).predict(["north", "south"], skip_bad=True)


def test_the_command_lists_what_it_left_out_and_exits_with_1(trained: Path) -> None:
    result = headstart("predict", trained, *MIXED, "--skip-bad")
    assert result.exit_code == 1
    inputs = [json.loads(line)["input"] for line in result.stdout.splitlines()]
    assert inputs == ["0,0", "3,3"]
    assert result.stderr.splitlines() == [
        "left out: input 2: 'north' is no point",
        "left out: input 4: 'south' is no point",
    ]
    assert headstart("predict", trained, "0,0", "--skip-bad").exit_code == 0


@pytest.mark.parametrize("output", ["out", "out.jsonl"])
def test_what_is_good_is_written(trained: Path, tmp_path: Path, output: str) -> None:
    target = tmp_path / output
    result = headstart("predict", trained, *MIXED, "--skip-bad", "--output", target)
    assert result.exit_code == 1
    assert result.stderr.count("left out: ") == 2
    path = target if target.is_file() else target / "predictions.jsonl"
    lines = path.read_text().splitlines()
    assert [json.loads(line)["input"] for line in lines] == ["0,0", "3,3"]
