"""Cross-validation: a run for each fold, gone on with where it was stopped."""

from __future__ import annotations

import json
import os
import signal
import sys
import types
from collections.abc import Sequence  # noqa: TC003
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from click.testing import CliRunner

import headstart
from headstart.callbacks import Callback
from headstart.cli import commands
from headstart.errors import UserError
from headstart.hookspecs import hookimpl
from headstart.plugins import load_plugins
from headstart.specs import DataSpec
from headstart.testing import toy
from headstart.testing.toy.data import Ring
from headstart.testing.toy.settings import RingSettings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

QUICK = {
    "data.name": "folded/ring",
    "data.count": 60,
    "train.max_steps": 4,
    "report.scratch_control": False,
}


class FoldedSettings(RingSettings):
    """As the medical plugin's: how many folds, and which is the test."""

    folds: int | None = None
    fold: int = 0


class FoldedRing(Ring):
    """A fifth of the points is the test: which fifth, the fold says."""

    settings: FoldedSettings

    def load(self) -> None:
        super().load()
        every = [s for split in self._splits.values() for s in split]
        parts = [list(part) for part in np.array_split(np.array(every), 5)]
        self._splits["test"] = parts.pop(self.settings.fold)
        self._splits["validation"] = parts.pop()
        self._splits["train"] = [sample for part in parts for sample in part]


@hookimpl
def register_data() -> Sequence[DataSpec]:
    return [
        DataSpec(
            name="folded/ring",
            summary="the ring in folds",
            factory=f"{__name__}:FoldedRing",
            settings=f"{__name__}:FoldedSettings",
            yields=("points", "labels"),
            tiny="headstart.testing.toy.data:tiny_ring",
        )
    ]


@pytest.fixture(autouse=True)
def _plugins(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    plugin = types.ModuleType("folded")
    plugin.register_data = register_data  # type: ignore[attr-defined]
    plugin.HOOK_API = toy.HOOK_API  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])
    load_plugins.cache_clear()
    load_plugins().add(toy, "toy")
    load_plugins().add(plugin, "folded")
    yield
    load_plugins.cache_clear()


class Stop(Callback):
    def on_step(self, step: int) -> None:
        os.kill(os.getpid(), signal.SIGINT)


def accuracy(folder: Path) -> float:
    return float(headstart.Run(folder).metrics["accuracy"])


def test_every_fold_is_tested_once_and_the_mean_is_theirs(tmp_path: Path) -> None:
    done = headstart.cross_validate(
        "toy/ring", {**QUICK, "data.folds": 5}, folder=tmp_path / "cv"
    )
    folds = [accuracy(tmp_path / "cv" / f"fold-{k}") for k in range(5)]
    written = json.loads((tmp_path / "cv" / "folds.json").read_text())
    own = written["results"]["this run"]["accuracy"]
    assert done.complete and written["complete"]
    assert own["folds"] == folds and len(set(folds)) > 1
    mean = sum(folds) / 5
    assert own["mean"] == pytest.approx(mean)
    variance = sum((value - mean) ** 2 for value in folds) / 4
    assert own["spread"] == pytest.approx(variance**0.5)
    assert len(written["results"]["majority class"]["accuracy"]["folds"]) == 5


def test_it_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    settings = {**QUICK, "data.folds": 3}
    first = headstart.cross_validate(
        "toy/ring",
        settings,
        folder=tmp_path / "cv",
        callbacks=lambda fold: [Stop()] if fold == 1 else [],
    )
    assert not first.complete and len(first.runs) == 1
    before = (tmp_path / "cv" / "fold-0" / "report.html").stat().st_mtime_ns
    again = headstart.cross_validate("toy/ring", settings, folder=tmp_path / "cv")
    assert again.complete
    after = (tmp_path / "cv" / "fold-0" / "report.html").stat().st_mtime_ns
    assert after == before, "what is done is not done again"
    whole = headstart.cross_validate("toy/ring", settings, folder=tmp_path / "whole")
    assert again.results() == whole.results()


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"data.name": "toy/ring"}, "data.name"),
        ({}, "data.folds"),
        ({"data.folds": 3, "data.fold": 1}, "data.fold"),
    ],
)
def test_what_is_missing_is_told(
    changes: dict[str, Any], where: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as caught:
        headstart.cross_validate(
            "toy/ring", {**QUICK, **changes}, folder=tmp_path / "x"
        )
    assert caught.value.faults[0].where == where
    assert not (tmp_path / "x").exists()


def test_several_ranks_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="one process"):
        headstart.cross_validate("toy/ring", QUICK, folder=tmp_path / "cv")
    assert not (tmp_path / "cv").exists()


def test_a_folder_of_another_cross_validation_is_left_alone(tmp_path: Path) -> None:
    one = {**QUICK, "data.folds": 2}
    headstart.cross_validate("toy/ring", one, folder=tmp_path / "cv")
    with pytest.raises(UserError, match="another recipe"):
        headstart.cross_validate(
            "toy/ring", {**one, "data.folds": 3}, folder=tmp_path / "cv"
        )
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("x")
    with pytest.raises(UserError, match="not empty"):
        headstart.cross_validate("toy/ring", one, folder=tmp_path / "mine")


def test_the_command_shows_mean_and_spread(tmp_path: Path) -> None:
    words = [f"{key}={value}" for key, value in QUICK.items()]
    folder = ["--folder", str(tmp_path / "cv")]
    result = CliRunner().invoke(
        commands,
        ["cross-validate", "toy/ring", *words, "data.folds=2", *folder],
        env={"COLUMNS": "200"},
    )
    assert result.exit_code == 0, result.output
    values = [accuracy(tmp_path / "cv" / f"fold-{k}") for k in range(2)]
    (line,) = (li for li in result.stdout.splitlines() if li.startswith("accuracy"))
    assert f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}" in line
    assert all(f"{value:.3f}" in line for value in values)
    assert "majority class" in result.stdout
