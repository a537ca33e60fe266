"""SIGINT and SIGTERM as a wish that the loop can grant between two steps."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType, TracebackType


NOTED = b"\nstopping after this step; again to stop at once\n"


class Interruption:
    """Within it, the first signal is noted in ``asked``; a second one does not wait.

    Outside the main thread nobody sends us signals, and nothing changes.

    Args:
        speaks: Whether to say on standard error that the first one was heard.
    """

    def __init__(self, speaks: bool = True) -> None:
        self.asked = False
        self._speaks = speaks
        self._before: dict[int, signal._HANDLER] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        if self._speaks:
            # Not print(): the signal may have come in the middle of one.
            with suppress(OSError):
                os.write(2, NOTED)
