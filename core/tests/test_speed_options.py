"""What makes training fast changes nothing else: compilation, prefetching."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch

from headstart.callbacks import Callback
from headstart.execution import Execution, choose_execution
from headstart.prefetch import prefetch
from headstart.settings import TrainSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from headstart.trainer import Trainer

CPU = torch.device("cpu")


class Losses(Callback):
    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_record(self, record: dict[str, Any]) -> None:
        if record["event"] == "train":
            self.losses.append(record["loss"])


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="compiling needs a C++ compiler")
def test_compiled_training_gives_the_same_losses(
    toy_trainer: Callable[..., Trainer],
) -> None:
    settings = {
        "data.count": 80,
        # Compiled dropout draws other numbers.
        "backbone.dropout": 0.0,
        "train.max_steps": 6,
        "train.log_every": 1,
        "train.optimizer": "sgd",
        "strategy.name": "layer-retraining",
    }
    found = []
    for compile_it in (False, True):
        torch.compiler.reset()
        losses = Losses()
        trainer = toy_trainer({**settings, "train.compile": compile_it}, [losses])
        assert trainer.fit() == "done"
        found.append(losses.losses)
    counters = torch._dynamo.utils.counters["stats"]
    assert counters["unique_graphs"] >= 1
    assert found[1] == pytest.approx(found[0], rel=1e-4)


def test_on_a_cpu_batches_are_moved_when_they_are_asked_for() -> None:
    read: list[int] = []
    moved: list[int] = []

    def source() -> Iterator[int]:
        for number in range(3):
            read.append(number)
            yield number

    def move(number: int) -> int:
        moved.append(number)
        return number * 10

    batches = prefetch(source(), move, CPU)
    assert (read, moved) == ([], [])
    assert next(batches) == 0
    assert (read, moved) == ([0], [0])
    assert list(batches) == [10, 20]
    assert list(prefetch([], move, CPU)) == []


@pytest.mark.gpu
def test_on_a_gpu_the_next_batch_is_on_its_way() -> None:
    device = torch.device("cuda")
    execution = Execution(device, bf16=False)
    read: list[int] = []

    def source() -> Iterator[dict[str, Any]]:
        for number in range(20):
            read.append(number)
            yield {"x": torch.full((1 << 20,), float(number)).pin_memory(), "n": number}

    sums = []
    for batch in prefetch(source(), execution.move, device):
        number = batch["n"]
        assert read[-1] == min(number + 1, 19)
        assert batch["x"].device.type == "cuda"
        # Memory that is given back too early would be overwritten by later copies.
        sums.append(batch["x"].mul(2).sum())
        del batch
    assert [float(total) for total in sums] == [2.0 * (1 << 20) * n for n in range(20)]


class NoSync(Callback):
    """Between two lines of the log the host may not wait for the device."""

    def __init__(self, log_every: int) -> None:
        self.log_every = log_every
        self.watched = 0

    def on_step(self, step: int) -> None:
        # The first steps allocate and choose kernels; a line of the log follows the
        # step that is a multiple.
        watching = step > 5 and step % self.log_every != 0
        torch.cuda.set_sync_debug_mode("error" if watching else "default")
        self.watched += watching


@pytest.mark.gpu
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"strategy.name": "feature-extraction", "cache.mode": "on"},
        {"train.accumulate": 2, "train.ema": 0.9},
        {"data.noise": 0.1, "strategy.name": "layer-retraining"},
    ],
    ids=["global", "cached", "accumulation", "augmentation"],
)
def test_steps_do_not_wait_for_the_device(
    toy_trainer: Callable[..., Trainer],
    settings: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path))
    watcher = NoSync(log_every=10)
    always = {
        "train.device": "cuda",
        "train.max_steps": 40,
        "train.epochs": 100,
        "train.evaluate_every": 100,
        "train.log_every": 10,
    }
    try:
        assert toy_trainer({**always, **settings}, [watcher]).fit() == "done"
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert watcher.watched >= 25


def test_numbers_too_small_for_a_float_are_zero_on_a_cpu() -> None:
    """They slow a CPU down, and say nothing."""
    torch.set_flush_denormal(False)
    try:
        if not torch.set_flush_denormal(True):
            pytest.skip("this CPU has no such switch")
        torch.set_flush_denormal(False)
        tiny = torch.full((4,), 1e-38)
        assert (tiny * 0.1 > 0).all()
        choose_execution(TrainSettings(device="cpu"))
        assert (tiny * 0.1 == 0).all()
    finally:
        torch.set_flush_denormal(False)
