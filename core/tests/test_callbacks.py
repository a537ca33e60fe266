"""Watchers of a run are ended once, whatever fails; a full disk is told in words."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

import headstart
from headstart import training_setup
from headstart.callbacks import Callback, MetricsLog, Watchers
from headstart.checkpoint import newest_checkpoint
from headstart.errors import HeadstartError, UserError
from headstart.plugins import Registry

SETTINGS: dict[str, Any] = {
    "data.count": 80,
    "train.batch_size": 16,
    "train.epochs": 2,
    "train.log_every": 1,
    "train.checkpoint_every": 1,
}
"""48 training samples: 6 steps."""


@pytest.fixture(autouse=True)
def plugin(registry: object) -> None:
    """The toy plugin."""


class Ends(Callback):
    """Counts its ends, and fails in one of its methods."""

    def __init__(self, fails: str = "") -> None:
        self.ended = 0
        if fails:
            setattr(self, fails, self.fail)

    def fail(self, *arguments: Any, **named: Any) -> None:
        raise UserError("no more")

    def on_end(self) -> None:
        self.ended += 1


def open_files(folder: Path) -> list[str]:
    links = [
        os.readlink(link)
        for link in Path("/proc/self/fd").iterdir()
        if link.is_symlink()
    ]
    return [name for name in links if name.startswith(str(folder))]


def fail(*arguments: Any, **named: Any) -> Any:
    raise UserError("no more")


needs_proc = pytest.mark.skipif(
    not Path("/proc/self/fd").is_dir(), reason="tells which files are open"
)


@needs_proc
@pytest.mark.parametrize(
    "fails", ["", "on_assembled", "on_start", "on_step", "on_record"]
)
def test_everyone_is_ended_once_whoever_fails(fails: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    watchers = [Ends(), Ends(fails), Ends()]
    if fails:
        with pytest.raises(UserError, match="no more"):
            headstart.run("toy/ring", SETTINGS, folder=folder, callbacks=watchers)
        summary = json.loads((folder / "summary.json").read_text())
        assert (summary["status"], summary["reason"]) == ("failed", "no more")
    else:
        headstart.run("toy/ring", SETTINGS, folder=folder, callbacks=watchers)
    assert [watcher.ended for watcher in watchers] == [1, 1, 1]
    assert open_files(folder) == []


@needs_proc
@pytest.mark.parametrize(
    "place",
    [
        "headstart.run_folder.create_run_folder",
        "headstart.run_folder.write_json",
        "headstart.training_setup.make_trainer",
        "headstart.judgement.judge",
    ],
)
def test_everyone_is_ended_once_whatever_fails(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = Ends()
    monkeypatch.setattr(place, fail)
    with pytest.raises(UserError, match="no more"):
        headstart.run("toy/ring", SETTINGS, folder=tmp_path / "run", callbacks=[ends])
    assert ends.ended == 1
    assert open_files(tmp_path) == []


def test_a_resumed_run_ends_its_watchers_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    headstart.run("toy/ring", SETTINGS, folder=folder)
    ends, longer = Ends(), {"train.epochs": 3}
    with monkeypatch.context() as patch:
        patch.setattr(training_setup, "make_trainer", fail)
        with pytest.raises(UserError, match="no more"):
            headstart.resume(folder, longer, callbacks=[ends])
    assert ends.ended == 1
    headstart.resume(folder, longer, callbacks=[ends])
    assert ends.ended == 2


def test_a_plugin_without_watchers_leaves_those_of_the_caller_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = Ends()
    monkeypatch.setattr(Registry, "callbacks", fail)
    with pytest.raises(UserError, match="no more"):
        headstart.run("toy/ring", SETTINGS, folder=tmp_path / "run", callbacks=[ends])
    assert ends.ended == 1
    assert list(tmp_path.iterdir()) == []


def test_who_cannot_end_well_keeps_nobody_from_it() -> None:
    watchers = [Ends(), Ends("on_end"), Ends()]
    with pytest.raises(UserError, match="no more"):
        Watchers(watchers).end()
    assert [watcher.ended for watcher in watchers] == [1, 0, 1]


def test_what_failed_first_is_what_is_told() -> None:
    watchers = [Ends(), Ends("on_end"), Ends()]
    with pytest.raises(KeyError, match="first"), Watchers(watchers):
        raise KeyError("first")
    assert [watcher.ended for watcher in watchers] == [1, 0, 1]


# A disk that is full


class Fill(Callback):
    """No room for the metrics log from some step on; room for all else."""

    def __init__(self, folder: Path, step: int) -> None:
        self.folder = folder
        self.step = step

    def on_step(self, step: int) -> None:
        if step == self.step:
            full = os.open("/dev/full", os.O_WRONLY)
            for link in Path("/proc/self/fd").iterdir():
                if (
                    link.is_symlink()
                    and link.resolve() == self.folder / "metrics.jsonl"
                ):
                    os.dup2(full, int(link.name))
            os.close(full)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a disk that is full")
def test_no_room_for_the_log_costs_no_checkpoint(tmp_path: Path) -> None:
    whole = headstart.run("toy/ring", SETTINGS, folder=tmp_path / "whole")
    folder = tmp_path / "run"
    with pytest.raises(HeadstartError, match="the disk is full") as caught:
        headstart.run("toy/ring", SETTINGS, folder=folder, callbacks=[Fill(folder, 4)])
    (fault,) = caught.value.faults
    assert fault.where == str(folder / "metrics.jsonl")
    assert "make room" in fault.fix and f"headstart resume {folder}" in fault.fix
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "failed" and "the disk is full" in summary["reason"]
    assert newest_checkpoint(folder / "checkpoints")[0].step == 3
    resumed = headstart.resume(folder)
    assert losses(resumed.folder) == losses(whole.folder)
    assert resumed.metrics == whole.metrics


def losses(folder: Path) -> list[tuple[str, int, float]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [
        (record["event"], record["step"], record["loss"])
        for record in map(json.loads, lines)
        if "loss" in record
    ]


def test_a_log_that_cannot_be_made(tmp_path: Path) -> None:
    missing = tmp_path / "nowhere" / "metrics.jsonl"
    with pytest.raises(HeadstartError, match="cannot be written") as caught:
        MetricsLog(missing)
    assert caught.value.faults[0].where == str(missing)
