"""SIGTERM and SIGINT: a checkpoint first, and the same bits after going on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import headstart
from headstart.checkpoint import newest_checkpoint

if TYPE_CHECKING:
    from pathlib import Path

    from headstart.plugins import Registry

DRIVER = """
import json, os, sys, time
from headstart.callbacks import Callback
from headstart.cli import main
from headstart.hookspecs import hookimpl
from headstart.plugins import load_plugins
from headstart.testing import toy

class Told(Callback):
    # Steps that take a while, and a file that says how many are done.
    def on_step(self, step):
        with open(os.environ["STEPS"], "w") as file:
            file.write(str(step))
        time.sleep(float(os.environ["PACE"]))

registry = load_plugins()
registry.add(toy, "toy")
registry.callbacks = lambda recipe: [Told()]
main()
"""
SETTINGS = {
    "data.noise": 0.1,
    "strategy.name": "gradual",
    "train.ema": 0.9,
    "train.accumulate": 2,
    "train.log_every": 4,
    "train.epochs": 4,
    "early_stopping.patience": 9,
}
"""144 training samples, 9 steps an epoch, 36 in all."""
COMPARED = ("train", "validation", "trainable", "test")


def first(folder: Path) -> list[str]:
    """Arguments of the first command."""
    overrides = [f"{key}={value}" for key, value in SETTINGS.items()]
    return ["run", "toy/ring", "--folder", str(folder), *overrides]


def start(tmp_path: Path, *arguments: str, pace: float) -> subprocess.Popen[str]:
    """The command line in a process of its own."""
    steps = tmp_path / "steps"
    steps.write_text("0")
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "HEADSTART_CACHE": str(tmp_path / "cache"),
            "STEPS": str(steps),
            "PACE": str(pace),
        },
    )


def wait_for(process: subprocess.Popen[str], tmp_path: Path, step: int) -> None:
    deadline = time.monotonic() + 120
    while int((tmp_path / "steps").read_text() or 0) < step:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, f"step {step} was not reached"
        time.sleep(0.005)


def finish(process: subprocess.Popen[str], code: int) -> str:
    output, _ = process.communicate(timeout=120)
    assert process.returncode == code, output
    return output


def summary(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return content


def records(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    found = [r for r in map(json.loads, lines) if r["event"] in COMPARED]
    for record in found:
        del record["time"]
    return found


def files(folder: Path) -> dict[str, bytes]:
    newest, passed_over = newest_checkpoint(folder / "checkpoints")
    assert not passed_over
    return {path.name: path.read_bytes() for path in newest.folder.iterdir()}


def test_a_pre_empted_run_ends_with_the_same_bits(
    registry: Registry, tmp_path: Path
) -> None:
    undisturbed = headstart.run("toy/ring", SETTINGS, folder=tmp_path / "whole")
    folder = tmp_path / "run"
    process = start(tmp_path, *first(folder), pace=0.02)
    stopped_at = []
    for step, number in ((2, signal.SIGTERM), (12, signal.SIGINT)):
        wait_for(process, tmp_path, step)
        process.send_signal(number)
        output = finish(process, 130)
        assert "Traceback" not in output
        outcome = summary(folder)
        assert outcome["status"] == "interrupted"
        assert f"headstart resume {folder}" in outcome["reason"]
        # No step that was done is lost: the checkpoint is of the last of them.
        newest, _ = newest_checkpoint(folder / "checkpoints")
        assert newest.step == outcome["steps"] == newest.state()["step"]
        assert newest.step == int((tmp_path / "steps").read_text())
        stopped_at.append(newest.step)
        process = start(tmp_path, "resume", str(folder), pace=0.02)
    finish(process, 0)
    assert 2 <= stopped_at[0] < stopped_at[1] < 36
    assert files(folder) == files(undisturbed.folder)
    assert records(folder) == records(undisturbed.folder)
    assert summary(folder)["metrics"] == undisturbed.metrics
    assert summary(folder)["status"] == "done"


def test_a_second_signal_does_not_wait_for_the_step(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = start(tmp_path, *first(folder), pace=60)
    wait_for(process, tmp_path, 1)
    process.send_signal(signal.SIGTERM)
    # Signals of one kind that come together are one; the first must have been seen.
    status = f"/proc/{process.pid}/status"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with open(status) as file:
            pending = [row for row in file if row.startswith(("SigPnd", "ShdPnd"))]
        if not any(int(row.split()[1], 16) for row in pending):
            break
        time.sleep(0.01)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    finish(process, 130)
    assert summary(folder)["status"] == "interrupted"
