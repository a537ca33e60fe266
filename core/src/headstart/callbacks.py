"""Objects that watch one run: progress bar, metrics log, TensorBoard."""

from __future__ import annotations

import errno
import json
from contextlib import ExitStack, nullcontext, suppress
from typing import TYPE_CHECKING, Any

from headstart.errors import HeadstartError, UserError
from headstart.files import write_text

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from headstart.assembly import Assembly
    from headstart.recipe import Recipe
    from headstart.weights.transfer_report import TransferReport

Record = dict[str, Any]


class Callback:
    """Watches a run. Every method may stay as it is; none may change the training."""

    def on_assembled(
        self,
        recipe: Recipe,
        assembly: Assembly,
        transfer: TransferReport,
        total_steps: int,
    ) -> None:
        """Model and data are there, nothing has been trained."""

    def on_start(self, total_steps: int, start_step: int) -> None:
        """Before the first step."""

    def on_step(self, step: int) -> None:
        """After every optimizer step; must not read a tensor."""

    def on_record(self, record: Record) -> None:
        """A line of the metrics log: ``event``, ``step``, ``epoch``, values."""

    def on_message(self, text: str) -> None:
        """Something that the user should know now."""

    def on_end(self) -> None:
        """Once, after the last step, or when the run was stopped or failed before."""


class Watchers(list[Callback]):
    """The callbacks of one run. Within it they are ended once, however the run goes."""

    def __enter__(self) -> Watchers:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Why the run failed is what counts, not who could not end well after it.
        with suppress(Exception) if error else nullcontext():
            self.end()

    def end(self) -> None:
        """End all that are left, each also when another one fails; none is left."""
        with ExitStack() as ends:
            while self:
                ends.callback(self.pop().on_end)


class MetricsLog(Callback):
    """Appends every record to ``metrics.jsonl``, flushed at once.

    Args:
        path: The log; what it holds of steps after ``step`` is taken back first.
        step: Where training goes on.

    Raises:
        HeadstartError: The disk is full or cannot be written, here or at a record.
    """

    def __init__(self, path: Path, step: int = 0) -> None:
        self._path = path
        try:
            if path.exists():
                lines = path.read_text(encoding="utf-8").splitlines()
                kept = [line for line in lines if _upto(line, step)]
                write_text(path, "".join(f"{line}\n" for line in kept))
            self._file = path.open("a", encoding="utf-8")
        except OSError as error:
            raise self._unwritable(error) from error

    def on_record(self, record: Record) -> None:
        try:
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()
        except OSError as error:
            raise self._unwritable(error) from error

    def on_end(self) -> None:
        # It would try once more to write the line that failed, which was told.
        with suppress(OSError):
            self._file.close()

    def _unwritable(self, error: OSError) -> HeadstartError:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        return HeadstartError(
            "the disk is full" if full else "the metrics log cannot be written",
            where=str(self._path),
            why=str(error),
            fix="make room, then go on from the last checkpoint, which is whole, with "
            f"`headstart resume {self._path.parent}`",
        )


def _upto(line: str, step: int) -> bool:
    """Whether a line of the log stays when training goes on at a step.

    A line that was cut off while written does not; what trains at the step will be
    written again.
    """
    try:
        record = json.loads(line)
    except ValueError:
        return False
    if record["event"] == "trainable":
        return bool(record["step"] < step)
    return bool(step and record["step"] <= step and record["event"] != "test")


class TensorBoardLog(Callback):
    """Numbers of every record as TensorBoard scalars, ``event/name``."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder))

    @staticmethod
    def require() -> None:
        """Find out before anything is written whether TensorBoard is there.

        Raises:
            UserError: It is not installed.
        """
        try:
            import torch.utils.tensorboard  # noqa: F401
        except ImportError as error:
            raise UserError(
                "TensorBoard is not installed",
                where="train.tensorboard",
                fix="pip install 'headstart[tensorboard]', or leave it false",
            ) from error

    def on_record(self, record: Record) -> None:
        for name, value in record.items():
            if isinstance(value, (int, float)) and name not in ("step", "time"):
                self._writer.add_scalar(
                    f"{record['event']}/{name}", value, record["step"]
                )

    def on_end(self) -> None:
        self._writer.close()
