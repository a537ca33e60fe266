"""What a training cost: time by phase, throughput, padding, memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from headstart.clock import bottleneck
from headstart.environment import peak_memory_bytes

if TYPE_CHECKING:
    import torch

    from headstart.batches import BatchParts
    from headstart.clock import Clock
    from headstart.data import DataModule


def costs(
    clock: Clock,
    batches: BatchParts,
    train_seconds: float,
    data: DataModule,
    device: torch.device,
) -> dict[str, Any]:
    """The costs as the summary holds them.

    Args:
        clock: Has booked all of the run's time.
        batches: Counted what was computed on.
        train_seconds: Spent in training steps, validation not counted.
        data: Says what a sample's size is counted in, e.g. tokens.
        device: Whose memory.
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
        "peak_memory_bytes": peak_memory_bytes(device),
        "bottleneck": bottleneck(phases),
    }
