"""A progress bar for what takes longer than two seconds, and none for the rest."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PATIENCE = 2.0
"""Seconds without a bar."""
_PAUSE = 0.1


@contextmanager
def track(total: int, label: str) -> Iterator[Callable[[], None]]:
    """Yields a function to call after each of ``total`` steps.

    The bar goes to standard error, on a terminal alone, and leaves nothing behind.
    """
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    from headstart.console import Screen

    screen = Screen(stderr=True)
    bar = Progress(
        TextColumn(label),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=screen,
        disable=not screen.is_terminal,
        transient=True,
    )
    task = bar.add_task(label, total=total)
    began = drawn = time.monotonic()
    count = 0

    def done() -> None:
        nonlocal count, drawn
        count += 1
        now = time.monotonic()
        if now - began < PATIENCE or now - drawn < _PAUSE:
            return
        bar.start()
        bar.update(task, completed=count)
        drawn = now

    try:
        yield done
    finally:
        bar.stop()
