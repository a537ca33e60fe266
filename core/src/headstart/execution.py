"""Where and in which precision a model runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from headstart.errors import UserError

if TYPE_CHECKING:
    from headstart.settings import TrainSettings
    from headstart.stages import State


@dataclass(frozen=True)
class Execution:
    """Where and in which precision a model runs."""

    device: torch.device
    bf16: bool

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def move(self, state: State) -> State:
        """A batch on the device, nested values too."""
        moved: State = _move(state, self.device)
        return moved


def _move(value: Any, device: torch.device) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, dict):
        return {key: _move(entry, device) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_move(entry, device) for entry in value)
    return value


def choose_execution(settings: TrainSettings) -> Execution:
    """Device and precision as the recipe asks, or the best there is.

    Raises:
        UserError: The device is not there, or has no bf16.
    """
    name = settings.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"there is no device {name!r}",
            where="train.device",
            why=str(error).splitlines()[0],
            fix='choose "auto", "cpu", or "cuda"',
        ) from error
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
    able = device.type == "cpu" or torch.cuda.is_bf16_supported()
    if settings.precision == "bf16" and not able:
        raise UserError(
            f"{name!r} has no bf16", where="train.precision", fix='choose "fp32"'
        )
    bf16 = settings.precision == "bf16" or (
        settings.precision == "auto" and device.type == "cuda" and able
    )
    return Execution(device, bf16)
