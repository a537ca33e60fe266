"""Batches that are on the device before they are asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

T = TypeVar("T")


def prefetch(
    batches: Iterable[T], move: Callable[[T], T], device: torch.device
) -> Iterator[T]:
    """Batches moved to a device, on a GPU one ahead, on a stream of its own.

    While the model computes on one batch, the next is copied; that overlaps only from
    pinned memory. On a CPU nothing is read ahead.

    Args:
        batches: Nested values with tensors.
        move: Moves one batch, without waiting for the copy.
        device: Where to.
    """
    if device.type != "cuda":
        yield from map(move, batches)
        return
    side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    source = iter(batches)

    def start() -> list[T]:
        for batch in source:
            with torch.cuda.stream(side):
                return [move(batch)]
        return []

    ahead = start()
    while ahead:
        (batch,) = ahead
        current = torch.cuda.current_stream(device)
        current.wait_stream(side)
        for tensor in _tensors(batch):
            # Its memory is the side stream's; it may be used again only when the
            # present one, too, is done with it.
            tensor.record_stream(current)
        ahead = start()
        yield batch


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        if value.is_cuda:
            yield value
        return
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return
    for entry in value:
        yield from _tensors(entry)
