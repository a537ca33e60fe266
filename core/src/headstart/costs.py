"""What a training cost: time by phase, throughput, padding, memory."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from headstart.clock import bottleneck
from headstart.environment import peak_memory_bytes

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from headstart.batches import BatchParts
    from headstart.clock import Clock
    from headstart.data import DataModule
    from headstart.trainer import Trainer


def spent(trainer: Trainer) -> dict[str, Any]:
    """What a training cost so far, as a checkpoint's line of the log holds it."""
    return {
        "seconds": {k: round(v, 3) for k, v in trainer.clock.seconds().items()},
        "train_seconds": round(trainer.train_seconds, 3),
        "count": trainer.batches.count,
        "used": trainer.batches.used,
        "padded": trainer.batches.padded,
        "peak_memory_bytes": max(
            peak_memory_bytes(trainer.execution.device), trainer.earlier_peak
        ),
    }


def go_on_counting(log: Path, trainer: Trainer) -> None:
    """Add what the training that is resumed cost until its checkpoint.

    Steps behind it are taken again, and count once.

    Args:
        log: ``metrics.jsonl``, without what is behind the checkpoint.
        trainer: At the checkpoint; counts what it does itself.
    """
    before: dict[str, Any] = {}
    for line in log.read_text(encoding="utf-8").splitlines():
        before = json.loads(line).get("spent", before)
    if not before:
        return
    trainer.clock.add(before["seconds"])
    trainer.train_seconds += before["train_seconds"]
    for key in ("count", "used", "padded"):
        setattr(trainer.batches, key, getattr(trainer.batches, key) + before[key])
    trainer.earlier_peak = before["peak_memory_bytes"]


def costs(
    clock: Clock,
    batches: BatchParts,
    train_seconds: float,
    data: DataModule,
    device: torch.device,
    earlier_peak: int = 0,
) -> dict[str, Any]:
    """The costs as the summary holds them.

    Args:
        clock: Has booked all of the run's time.
        batches: Counted what was computed on.
        train_seconds: Spent in training steps, validation not counted.
        data: Says what a sample's size is counted in, e.g. tokens.
        device: Whose memory.
        earlier_peak: The most memory that was used before the run was resumed, in
            bytes.
    """
    phases, seconds = clock.seconds(), max(train_seconds, 1e-9)
    throughput: dict[str, Any] = {"samples_per_second": batches.count / seconds}
    if batches.padded:
        throughput["units_per_second"] = batches.used / data.size_steps / seconds
        throughput["unit"] = data.size_unit
    return {
        "time": {**phases, "total": sum(phases.values())},
        "throughput": throughput,
        "padding_waste": batches.padding_waste,
        "peak_memory_bytes": max(peak_memory_bytes(device), earlier_peak),
        "bottleneck": bottleneck(phases),
    }
