"""Evaluation on a split that is read alone, and the overrides that it takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from headstart.cli import commands
from headstart.errors import UserError
from headstart.fine_tuning import run
from headstart.plugins import load_plugins
from headstart.runs import Run
from headstart.testing import toy
from headstart.testing.toy.data import Ring
from headstart.testing.toy.settings import RingSettings

if TYPE_CHECKING:
    from pathlib import Path

    from headstart.data import Split

pytestmark = pytest.mark.usefixtures("registry")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    load_plugins().add(toy, "toy")
    short = {"data.count": 100, "train.epochs": 1}
    return run("toy/ring", short, folder=tmp_path_factory.mktemp("runs") / "r").folder


class PathSettings(RingSettings):
    test_path: str = ""


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A machine without the training data; the tasks that splits were read with."""
    whole, tasks = Ring.load, []

    def gone(self: Ring) -> None:
        raise UserError("there is no training data")

    def load_split(self: Ring, split: Split) -> bool:
        if split != "test":
            return False
        tasks.append(dict(self.task))
        # What a file would hold: the points that the run was tested on.
        other = Ring(self.settings, self.seed)
        whole(other)
        self._splits = {"test": list(other.samples("test"))}
        return True

    monkeypatch.setattr(Ring, "load", gone)
    monkeypatch.setattr(Ring, "load_split", load_split)
    # Under the name of the real one, which the spec points at.
    monkeypatch.setattr("headstart.testing.toy.settings.RingSettings", PathSettings)
    return tasks


def test_a_split_alone_gives_the_same_numbers(
    trained: Path, elsewhere: list[dict[str, Any]]
) -> None:
    opened, told = Run(trained), list[str]()
    measured = opened.evaluate(tell=told.append)
    assert measured == pytest.approx(opened.metrics, rel=1e-6)
    assert [task["labels"] for task in elsewhere] == [["inside", "outside"]]
    # The run's own test split was compared with train when the run was made.
    assert told == []


def test_what_was_not_checked_is_said(trained: Path, elsewhere: object) -> None:
    words = ["evaluate", str(trained), "data.test_path=new.csv"]
    result = CliRunner().invoke(commands, words)
    assert result.exit_code == 0
    assert result.stderr == (
        "data.test_path was read alone: whether it has samples that were also trained "
        "on is not checked\n"
    )


def test_what_is_not_a_split_alone_needs_all(trained: Path, elsewhere: object) -> None:
    with pytest.raises(UserError, match="there is no training data"):
        Run(trained).evaluate("validation")


def test_a_whole_load_starts_without_the_task(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, whole = list[dict[str, Any]](), Ring.load

    def load(self: Ring) -> None:
        before.append(self.task)
        whole(self)

    monkeypatch.setattr(Ring, "load", load)
    Run(trained).evaluate()
    assert before == [{}]


def test_overrides_of_the_training_are_refused(trained: Path) -> None:
    overrides = {"train.epochs": 3, "strategy.name": "none", "data.count": 100}
    with pytest.raises(UserError) as caught:
        Run(trained).evaluate(overrides=overrides)
    faults = caught.value.faults
    assert [f.where for f in faults] == [
        "override train.epochs",
        "override strategy.name",
    ]
    assert "an evaluation reads data.…, head.…, metrics.names, " in faults[0].fix
    told = CliRunner().invoke(commands, ["evaluate", str(trained), "train.epochs=3"])
    assert told.exit_code == 2


def test_overrides_of_what_is_measured_are_taken(trained: Path) -> None:
    opened = Run(trained)
    some = {"train.eval_batch_size": 7, "train.device": "cpu"}
    assert opened.evaluate(overrides=some) == pytest.approx(opened.metrics, rel=1e-5)
    named = opened.evaluate(overrides={"metrics.names": ["accuracy"]})
    assert named == {
        name: pytest.approx(opened.metrics[name], rel=1e-6)
        for name in ("accuracy", "loss")
    }
