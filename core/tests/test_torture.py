"""Training that is killed at any instant goes on as if nothing had happened."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

DRIVER = Path(__file__).with_name("torture_driver.py")


def torture(kills: int, every: int) -> str:
    """The driver in a process of its own, which may fork: it runs no other thread."""
    seed = os.environ.get("HEADSTART_SEED")
    command = [sys.executable, str(DRIVER), f"--kills={kills}", f"--every={every}"]
    lines = []
    with subprocess.Popen(
        [*command, *([f"--seed={seed}"] if seed else [])],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    ) as driver:
        assert driver.stdout is not None
        for line in driver.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    output = "".join(lines)
    assert driver.returncode == 0, output
    return output


def test_a_run_survives_a_few_kills() -> None:
    output = torture(kills=12, every=30)
    assert "12 kills at random instants survived" in output


@pytest.mark.slow
def test_a_run_survives_hundreds_of_kills() -> None:
    """`make torture`: HEADSTART_KILLS says how many, HEADSTART_SEED repeats one."""
    kills = int(os.environ.get("HEADSTART_KILLS", "200"))
    output = torture(kills, every=1)
    assert f"{kills} kills at random instants survived" in output
