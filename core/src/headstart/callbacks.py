"""Objects that watch one run: progress bar, metrics log, TensorBoard."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from headstart.errors import UserError
from headstart.files import write_text

if TYPE_CHECKING:
    from pathlib import Path

    from headstart.assembly import Assembly
    from headstart.recipe import Recipe
    from headstart.weights.transfer import TransferReport

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
        """After the last step, also when training was stopped or failed."""


class MetricsLog(Callback):
    """Appends every record to ``metrics.jsonl``, flushed at once.

    Args:
        path: The log; what it holds of steps after ``step`` is taken back first.
        step: Where training goes on.
    """

    def __init__(self, path: Path, step: int = 0) -> None:
        if path.exists():
            kept = [line for line in path.read_text().splitlines() if _upto(line, step)]
            write_text(path, "".join(f"{line}\n" for line in kept))
        self._file = path.open("a", encoding="utf-8")

    def on_record(self, record: Record) -> None:
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def on_end(self) -> None:
        self._file.close()


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
