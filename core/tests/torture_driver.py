"""Kills training processes at any instant and resumes them; run by test_torture.py.

One process imports everything once and forks for every attempt. Nothing here touches a
tensor: what comes out is compared byte by byte.

Kills at random instants are spread over whole lives of a run. Kills at a call stop the
process right before the n-th time it touches a file: makes, renames, removes, opens to
write, or flushes it.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import pkgutil
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import headstart
from headstart.checkpoint import BEST, faults_of
from headstart.errors import UserError
from headstart.plugins import load_plugins
from headstart.runs import Run
from headstart.testing import toy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BASE = {
    "data.count": 120,
    "train.batch_size": 8,
    "train.epochs": 3,
    "train.checkpoint_every": 2,
    "train.log_every": 3,
    "train.evaluate_every": 0.5,
    "train.keep_checkpoints": 2,
}
LIVES: dict[str, dict[str, Any]] = {
    "unfreezing, average, early stopping, accumulation": {
        "strategy.name": "gradual",
        "strategy.unfreeze_share": 0.8,
        "train.ema": 0.9,
        "early_stopping.patience": 3,
        "train.accumulate": 2,
        "data.noise": 0.1,
    },
    "unfreezing from caches": {
        "strategy.name": "gradual",
        "cache.mode": "on",
    },
    "features of augmented views": {
        "strategy.name": "feature-extraction",
        "data.noise": 0.1,
        "cache.mode": "on",
        "cache.views": 2,
        "train.keep_checkpoints": 1,
    },
    "found rate, head first": {
        "strategy.name": "lp-ft",
        "train.learning_rate": "auto",
        "train.optimizer": "sgd",
        "train.keep_checkpoints": 1,
    },
}
SHORT = {**BASE, "train.max_steps": 5, "train.keep_checkpoints": 1, "cache.mode": "on"}
SHORT |= {"strategy.name": "gradual", "train.ema": 0.9, "data.count": 40}
TOUCHES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "open")
COMPARED = ("train", "validation", "trainable", "test", "range")
RESULTS = (
    "status metrics intervals baselines validation best_step steps bad_steps accumulate"
).split()


@dataclass(frozen=True)
class Place:
    """Where a run and its cache are."""

    root: Path

    @property
    def folder(self) -> Path:
        return self.root / "run"

    @property
    def complaint(self) -> Path:
        return self.root / "complaint"


def attempt(place: Place, settings: dict[str, Any]) -> None:
    """Start the run, or go on with it; in a process of its own."""
    os.environ["HEADSTART_CACHE"] = str(place.root / "cache")
    if not place.folder.exists():
        headstart.run("toy/ring", settings, folder=place.folder)
        return
    try:
        headstart.resume(place.folder)
    except UserError as error:
        if "the run is complete" not in str(error):
            raise
        # Killed between the result and the report, which is made of it at any time.
        assert Run(place.folder).report.is_file()


def fork(place: Place, settings: dict[str, Any], before: Callable[[], None]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        before()
        attempt(place, settings)
        code = 0
    except BaseException:
        place.complaint.write_text(traceback.format_exc())
    os._exit(code)


def finished(place: Place, status: int) -> bool:
    """Whether the process came to its end; checks what a killed one left behind."""
    check(place.folder / "checkpoints")
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL, f"signal {os.WTERMSIG(status)}"
        return False
    assert os.WEXITSTATUS(status) == 0, place.complaint.read_text()
    return True


def check(checkpoints: Path) -> None:
    """What bears a checkpoint's name is whole, and ``best`` leads to one."""
    for folder in checkpoints.glob("step-*"):
        faults = faults_of(folder)
        assert not faults, faults
    best = checkpoints / BEST
    if best.is_symlink():
        assert best.is_dir(), f"{best} leads to {best.readlink()}, which is gone"


def outcome(folder: Path) -> dict[str, Any]:
    """Everything that has to be the same to the last bit."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    for record in records:
        del record["time"]
    checkpoints = folder / "checkpoints"
    summary = Run(folder).summary
    return {
        "records": [r for r in records if r["event"] in COMPARED],
        "result": {key: summary.get(key) for key in RESULTS},
        "best": (checkpoints / BEST).readlink(),
        "files": {
            str(path.relative_to(checkpoints)): path.read_bytes()
            for path in checkpoints.glob("step-*/*")
        },
    }


def differences(left: dict[str, Any], right: dict[str, Any]) -> list[str]:
    found = []
    for key in ("best", "result", "records"):
        if left[key] != right[key]:
            found.append(f"{key}: {left[key]} instead of {right[key]}")
    # One more may be left, of a process killed between writing the last and pruning.
    found += [
        f"{name} differs"
        for name, content in sorted(right["files"].items())
        if left["files"].get(name) != content
    ]
    return found


def undisturbed(place: Place, settings: dict[str, Any]) -> tuple[dict[str, Any], float]:
    """What comes out if nobody kills, and how long that takes."""
    place.root.mkdir(parents=True)
    began = time.perf_counter()
    _, status = os.waitpid(fork(place, settings, lambda: None), 0)
    assert finished(place, status)
    return outcome(place.folder), time.perf_counter() - began


def kill_at_instants(
    root: Path, name: str, settings: dict[str, Any], kills: int, seed: int
) -> Iterator[str]:
    """So many kills over as many lives of a run as that takes."""
    generator = random.Random(seed)
    expected, seconds = undisturbed(Place(root / "whole"), settings)
    life = 0
    done = 0
    while done < kills:
        life += 1
        place = Place(root / f"life {life}")
        place.root.mkdir()
        died = 0
        # A life ends after its last kill: the run is then left alone.
        for _ in range(min(12, kills - done)):
            pid = fork(place, settings, lambda: None)
            end = time.perf_counter() + generator.uniform(0, 0.5 * seconds)
            gone = 0
            while not gone and time.perf_counter() < end:
                gone, status = os.waitpid(pid, os.WNOHANG)
                time.sleep(0.001)
            if not gone:
                os.kill(pid, signal.SIGKILL)
                gone, status = os.waitpid(pid, 0)
            if finished(place, status):
                break
            died += 1
        else:
            _, status = os.waitpid(fork(place, settings, lambda: None), 0)
            assert finished(place, status), place.complaint
        found = differences(outcome(place.folder), expected)
        assert not found, f"{name}, seed {seed}, life {life}: {found}"
        shutil.rmtree(place.root)
        done += died
        yield f"{name}: life {life}, killed {died} times, the same bits"


def stop_at_call(root: Path, number: int, tally: Path | None = None) -> None:
    """Make this process kill itself before it touches a file below for the n-th time.

    Args:
        root: Where files count.
        number: Of the call, from 1; 0 is never reached.
        tally: Is written a line per call.
    """
    count = 0

    def touched(event: str) -> None:
        nonlocal count
        count += 1
        if tally:
            os.write(handle, f"{event}\n".encode())
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)

    handle = os.open(tally, os.O_CREAT | os.O_WRONLY) if tally else -1
    watched = str(root)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in TOUCHES:
            return
        if event == "open":
            path, _, flags = arguments
            if not isinstance(path, str) or not flags & (os.O_WRONLY | os.O_RDWR):
                return
        # Deleting a tree works with names relative to an open folder.
        relative = event in ("os.remove", "os.rmdir") and arguments[-1] >= 0
        if relative or os.fspath(arguments[0]).startswith(watched):
            touched(f"{event} {arguments}")

    flush = os.fsync

    def fsync(handle: int) -> None:
        touched("os.fsync")
        flush(handle)

    os.fsync = fsync
    sys.addaudithook(hook)


def kill_at_calls(root: Path, every: int, seed: int) -> Iterator[str]:
    """A life for each ``every``-th call that touches a file: killed there, resumed."""
    place, tally = Place(root / "whole"), root / "tally"
    expected, _ = undisturbed(place, SHORT)
    counted = Place(root / "counted")
    counted.root.mkdir()
    before = partial(stop_at_call, counted.root, 0, tally)
    _, status = os.waitpid(fork(counted, SHORT, before), 0)
    assert finished(counted, status)
    calls = tally.read_text().splitlines()
    assert len(calls) > 100, calls
    first = random.Random(seed).randrange(every)
    numbers = range(1 + first, 1 + len(calls), every)
    for number in numbers:
        place = Place(root / f"call {number}")
        place.root.mkdir()
        before = partial(stop_at_call, place.root, number)
        _, status = os.waitpid(fork(place, SHORT, before), 0)
        assert not finished(place, status), f"call {number} was not reached"
        _, status = os.waitpid(fork(place, SHORT, lambda: None), 0)
        assert finished(place, status)
        found = differences(outcome(place.folder), expected)
        assert not found, f"killed at call {number}, {calls[number - 1]}: {found}"
        shutil.rmtree(place.root)
    yield f"{len(numbers)} of {len(calls)} calls that touch a file: the same bits"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=12)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 10**6)
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    load_plugins().add(toy, "toy")
    for module in pkgutil.walk_packages(headstart.__path__, "headstart."):
        importlib.import_module(module.name)
    # What torch and the report import late, once and not in every attempt; and the
    # report is written each time, but drawing its curves would take most of a life.
    importlib.import_module("torch._dynamo")
    importlib.import_module("headstart.report.plots").render = lambda *_, **__: "<svg/>"
    with tempfile.TemporaryDirectory() as name:
        for line in kill_at_calls(
            Path(name) / "calls", arguments.every, arguments.seed
        ):
            print(line, flush=True)
        share, rest = divmod(arguments.kills, len(LIVES))
        for place, (life, settings) in enumerate(LIVES.items()):
            for line in kill_at_instants(
                Path(name) / str(place),
                life,
                {**BASE, **settings},
                share + (place < rest),
                arguments.seed + place,
            ):
                print(line, flush=True)
    print(f"{arguments.kills} kills at random instants survived")


if __name__ == "__main__":
    main()
