"""Where and in which precision a model runs."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from headstart.errors import UserError

if TYPE_CHECKING:
    from headstart.settings import TrainSettings
    from headstart.stages import State


M = TypeVar("M", bound=nn.Module)
LAYOUTS = {"Conv2d": torch.channels_last, "Conv3d": torch.channels_last_3d}


@dataclass(frozen=True)
class Execution:
    """Where, in which precision, and in which memory layout a model runs.

    Attributes:
        device: Where.
        bf16: Whether autocast to bf16 is on.
        channels_last: Whether maps and volumes have their channels last in memory,
            which a GPU's convolutions want.
    """

    device: torch.device
    bf16: bool
    channels_last: bool = False

    def autocast(self) -> AbstractContextManager[Any]:
        # A disabled autocast still costs some twenty microseconds a step.
        if not self.bf16:
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def move(self, state: State) -> State:
        """A batch on the device, nested values too."""
        moved: State = self._move(state)
        return moved

    def place(self, model: M) -> M:
        """A model on the device, its convolutions in the right layout."""
        model = model.to(self.device)
        if self.channels_last:
            for module in model.modules():
                layout = LAYOUTS.get(type(module).__name__)
                if layout is not None:
                    module.to(memory_format=layout)
        return model

    def _move(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            layout = torch.preserve_format
            if self.channels_last and value.is_floating_point():
                layout = {4: torch.channels_last, 5: torch.channels_last_3d}.get(
                    value.ndim, layout
                )
            return value.to(self.device, non_blocking=True, memory_format=layout)
        if isinstance(value, dict):
            return {key: self._move(entry) for key, entry in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(self._move(entry) for entry in value)
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
    if device.type == "cpu":
        # A CPU takes many times as long for a number below 1e-38, and gradients of
        # small losses have many. Threads that torch starts later inherit it.
        torch.set_flush_denormal(True)
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
    return Execution(device, bf16, settings.channels_last)
