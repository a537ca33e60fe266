"""One rank of a job, started by torchrun: ``distributed_driver.py JOB.json``.

``runs`` are carried out one after another, so that one start of the ranks serves many
tests; ``command`` is given to the command line instead. ``fault`` is what happens to
rank 1 in a training step, once.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

import headstart
from headstart import memory_estimate
from headstart.cli import main
from headstart.distributed import leave_world
from headstart.errors import DataError, HeadstartError
from headstart.model import Model
from headstart.plugins import load_plugins
from headstart.testing import toy

RANK = int(os.environ["RANK"])


def digest(model: Model) -> str:
    found = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        found.update(name.encode())
        found.update(value.cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return found.hexdigest()


def watch(hashes: list[list[str]], replicas: list[Model]) -> None:
    """Note every rank's hash of all parameters whenever what trains changes."""
    train_stages = Model.train_stages

    def noted(model: Model, stages: frozenset[str]) -> None:
        hashes.append([",".join(sorted(stages)), digest(model)])
        replicas[:] = [model]
        train_stages(model, stages)

    Model.train_stages = noted  # type: ignore[method-assign]


def arm(kind: str, step: int) -> None:
    """Let something happen to this rank in a training step.

    ``room`` leaves memory for so many samples at a time, in all steps.
    """
    forward, steps = Model.forward, [0]

    def faulty(model: Model, state: Any) -> Any:
        steps[0] += model.training
        if steps[0] == step and kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if steps[0] == step and kind == "error":
            raise DataError("this sample is beyond reading", where="reviews.csv, row 7")
        if steps[0] == step and kind == "memory":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        if kind == "room" and model.training and len(state["labels"]) > step:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        return forward(model, state)

    Model.forward = faulty  # type: ignore[method-assign]


def unmeasured(trainer: Any) -> str:
    """No estimate before the first step, which runs the model too."""
    return "not in this test"


def carry_out(job: dict[str, Any]) -> None:
    for each in job["runs"]:
        folder = Path(each["folder"])
        hashes: list[list[str]] = []
        replicas: list[Model] = []
        original = Model.train_stages
        if each.get("hashes"):
            watch(hashes, replicas)
        try:
            headstart.run(each["recipe"], each["overrides"], folder=folder)
        except HeadstartError as error:
            folder.with_suffix(f".error{RANK}").write_text(str(error))
        Model.train_stages = original  # type: ignore[method-assign]
        hashes += [["end", digest(model)] for model in replicas]
        folder.with_suffix(f".hashes{RANK}").write_text(json.dumps(hashes))


if __name__ == "__main__":
    torch.set_num_threads(1)
    load_plugins().add(toy, "toy")
    given = json.loads(Path(sys.argv[1]).read_text())
    first = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    if "fault" in given:
        memory_estimate.estimate_memory = unmeasured
    if RANK == 1 and first and "fault" in given:
        arm(*given["fault"])
    try:
        if "command" in given:
            sys.argv = ["headstart", *given["command"]]
            main()
        else:
            carry_out(given)
    finally:
        leave_world()
