"""Ctrl-C, SIGTERM and SIGKILL, sent to real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from headstart.checkpoint import newest_checkpoint, open_checkpoint
from headstart.runs import Run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from headstart.plugins import Registry

DRIVER = """
from headstart.cli import main
from headstart.plugins import load_plugins
from headstart.testing import toy

load_plugins().add(toy, "toy")
main()
"""
ENDLESS = ("train.epochs=1000000", "train.log_every=1", "train.evaluate_every=50000")


SLOW = """
import time
from headstart.model import Model

prefix = Model.prefix
Model.prefix = lambda *given: time.sleep(0.05) or prefix(*given)
"""
STOPPING = "stopping after this step; again to stop at once"


def headstart(
    *arguments: str, driver: str = DRIVER, **environment: str
) -> subprocess.Popen[str]:
    """The command line, with the toy plugin, in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", driver, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


@pytest.fixture
def training(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A run that has done some steps and would go on for ever."""
    folder = tmp_path / "run"
    process = headstart("run", "toy/ring", "--folder", str(folder), *ENDLESS)
    try:
        deadline = time.monotonic() + 120
        log = folder / "metrics.jsonl"
        while not log.exists() or log.read_text().count('"train"') < 5:
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline, "no step was done"
            time.sleep(0.05)
        yield process, folder
    finally:
        process.kill()
        process.wait()
        assert process.stdout
        process.stdout.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_says_so_and_can_be_opened(
    training: tuple[subprocess.Popen[str], Path],
    registry: Registry,
    number: signal.Signals,
) -> None:
    process, folder = training
    process.send_signal(number)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    assert "Traceback" not in output
    assert output.count(STOPPING) == 1
    done = Run(folder)
    steps = done.summary["steps"]
    assert done.summary["status"] == "interrupted"
    assert done.summary["reason"].startswith(f"stopped after step {steps} of ")
    # The step was done to its end, and its checkpoint is the last thing in the log.
    checkpoint, passed_over = newest_checkpoint(folder / "checkpoints")
    assert (checkpoint.step, passed_over) == (steps, [])
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert (last["event"], last["step"]) == ("checkpoint", steps)
    assert "interrupted" in (folder / "report.html").read_text()
    assert len(done.predict(["0.1,0.2", "3,3"])) == 2


@pytest.fixture
def filling(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A run that fills a cache, for some minutes if it is let."""
    folder, cache = tmp_path / "run", tmp_path / "cache"
    slow = ("data.count=40000", "train.batch_size=8", "train.evaluate_every=9")
    frozen = ("strategy.name=feature-extraction", "cache.mode=on", "cache.views=0")
    process = headstart(
        *("run", "toy/ring", "--folder", str(folder), *slow, *frozen),
        driver=SLOW + DRIVER,
        HEADSTART_CACHE=str(cache),
    )
    try:
        deadline = time.monotonic() + 120
        while not list(cache.glob("prefix/.*.partial/*")):
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline, "no cache was begun"
            time.sleep(0.05)
        yield process, folder
    finally:
        process.kill()
        process.wait()
        assert process.stdout
        process.stdout.close()


def test_a_run_is_interrupted_while_it_fills_a_cache(
    filling: tuple[subprocess.Popen[str], Path], registry: Registry
) -> None:
    process, folder = filling
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    assert "Traceback" not in output
    assert output.count(STOPPING) == 1
    assert "stopped before it was whole, nothing of it is kept" in output
    # Neither the cache of train nor, after it, that of validation.
    left = [path.suffix for path in (folder.parent / "cache/prefix").iterdir()]
    assert left == [".lock"]
    summary = Run(folder).summary
    assert (summary["status"], summary["steps"]) == ("interrupted", 0)
    checkpoint, _ = newest_checkpoint(folder / "checkpoints")
    assert checkpoint.step == 0
    again = headstart("resume", str(folder), "train.epochs=0.001", "cache.mode=off")
    output, _ = again.communicate(timeout=120)
    assert again.returncode == 0, output
    assert Run(folder).summary["status"] == "done"


def test_a_killed_run_still_has_a_report(
    training: tuple[subprocess.Popen[str], Path], registry: Registry
) -> None:
    process, folder = training
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert Run(folder).summary == {"status": "running"}
    assert not (folder / "report.html").exists()
    report = headstart("report", str(folder))
    output, _ = report.communicate(timeout=120)
    assert report.returncode == 0, output
    assert output.strip() == str(folder / "report.html")
    assert (folder / "report.html").stat().st_size > 1000
    with pytest.raises(ValueError, match="there is no checkpoint"):
        open_checkpoint(folder / "checkpoints")
    with pytest.raises(ValueError, match="there is no checkpoint"):
        Run(folder).predict(["0.1,0.2"])
