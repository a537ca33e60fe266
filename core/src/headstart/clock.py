"""Where the time of a run goes, and the one sentence about it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping


class Clock:
    """Adds up seconds by phase: ``lap(phase)`` closes what ran since the last lap.

    On a GPU the laps are events in the stream, read when :meth:`seconds` is asked, so
    that timing does not make the host wait for the device.
    """

    def __init__(self, device: torch.device, setup: float = 0.0) -> None:
        self._seconds = {"setup": setup}
        self._cuda = device.type == "cuda"
        self._events: list[tuple[str, torch.cuda.Event]] = []
        self._last = time.perf_counter()
        if self._cuda:
            self._mark("")

    def lap(self, phase: str) -> None:
        """Count the time since the last lap to a phase."""
        if self._cuda:
            self._mark(phase)
            return
        now = time.perf_counter()
        self._seconds[phase] = self._seconds.get(phase, 0.0) + now - self._last
        self._last = now

    def add(self, seconds: Mapping[str, float]) -> None:
        """Count what was spent elsewhere, by phase."""
        for phase, spent in seconds.items():
            self._seconds[phase] = self._seconds.get(phase, 0.0) + spent

    def seconds(self) -> dict[str, float]:
        """Seconds by phase so far; on a GPU this waits for the device."""
        if self._cuda and len(self._events) > 1:
            self._events[-1][1].synchronize()
            for (_, before), (phase, after) in zip(
                self._events, self._events[1:], strict=False
            ):
                spent = before.elapsed_time(after) / 1000
                self._seconds[phase] = self._seconds.get(phase, 0.0) + spent
            self._events = [self._events[-1]]
        return dict(self._seconds)

    def _mark(self, phase: str) -> None:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        self._events.append((phase, event))


ADVICE: Mapping[str, str] = {
    "setup": "fetching and reading come first; longer training makes them matter less",
    "loading": "raise data.workers, or store the data in a faster format",
    "prefix": "frozen stages are computed, or their cache is filled; `headstart show "
    "cache` has what keeps them",
    "forward/backward": "the model itself; a smaller backbone, backbone.keep or more "
    "frozen stages cost less",
    "range test": "set train.learning_rate to what it found",
    "optimizer": "fewer training parameters or larger batches cost less",
    "evaluation": "raise train.evaluate_every or train.eval_batch_size",
    "checkpoint": "raise train.evaluate_every, or save to a faster disk",
    "scratch control": "set report.scratch_control = false while you try things out",
    "baselines": "set report.baselines = false while you try things out",
}


def bottleneck(seconds: Mapping[str, float]) -> str:
    """One sentence naming the phase that took longest, and what would help."""
    total = sum(seconds.values())
    if total <= 0:
        return "No time was spent."
    phase, most = max(seconds.items(), key=lambda item: item[1])
    return f"{most / total:.0%} of the time went to {phase}: {ADVICE[phase]}."
