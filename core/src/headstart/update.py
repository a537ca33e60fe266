"""One update of the parameters, left out on the device where a number is not finite."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypeAlias, cast

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim.swa_utils import AveragedModel

from headstart.buffers import MovingBuffers
from headstart.optim import build_optimizer, set_learning_rates, start_momentum

if TYPE_CHECKING:
    from collections.abc import Iterable

    from headstart.distributed import World
    from headstart.model import Model
    from headstart.settings import TrainSettings
    from headstart.strategy import Plan

Tensors: TypeAlias = "tuple[torch.Tensor, ...] | list[torch.Tensor]"


class Update:
    """Optimizer, clipping and moving average of a model.

    Args:
        model: On its device, sharded if it is to be.
        settings: ``[train]``.
        plan: Its factors are those of the stages' learning rates.
        learning_rate: Base learning rate.
        world: Each rank has its share of a loss.

    Attributes:
        optimizer: Has every parameter, the frozen ones too.
        average: The moving average of the model, if there is one.
        norm: Gradient norm of the last step before clipping, a scalar on the device.
        factor: What the schedule makes of the learning rates in this step.
    """

    def __init__(
        self,
        model: Model,
        settings: TrainSettings,
        plan: Plan,
        learning_rate: float,
        world: World,
    ) -> None:
        self.optimizer = build_optimizer(model, settings, plan, learning_rate)
        self.average: AveragedModel | None = None
        if settings.ema:
            self.average = AveragedModel(model, multi_avg_fn=self._average)
        self.norm = torch.zeros(())
        self.factor = 0.0
        self._begun = False
        self._model = model
        self._settings = settings
        self._world = world
        self._training: list[nn.Parameter] = []
        self._buffers = MovingBuffers(())
        self._taken = torch.ones(())

    @property
    def averaged(self) -> Model:
        """The model that is validated and kept: the moving average if there is one."""
        if self.average is None:
            return self._model
        return cast("Model", self.average.module)

    def enter(self, stages: Iterable[str]) -> None:
        """Follow a change of what trains: the head and these stages."""
        model = self._model
        self._training = [p for p in model.parameters() if p.requires_grad]
        start_momentum(self.optimizer, self._training)
        trains = [model.backbone.stages[name] for name in stages]
        self._buffers = MovingBuffers([*trains, model.head])

    def start_anew(self) -> None:
        """Forget the moments of the steps so far: a training of its own begins.

        At the end of one gradients are small. What comes next is not, and would be
        divided by their size: steps many times too large.
        """
        self.optimizer.state.clear()

    def begin(self, factor: float, later: bool = False) -> None:
        """Before the first forward pass of a step, which moves buffers.

        Args:
            factor: Of the learning rates.
            later: Whether this is in a later phase than the first.
        """
        set_learning_rates(self.optimizer, factor, later)
        self.factor = factor
        self._begun = True
        self._buffers.keep()

    def forget(self) -> None:
        """Leave no trace of a step that was not finished, if one was begun."""
        self.optimizer.zero_grad(set_to_none=True)
        if self._begun:
            self._buffers.take_back()

    def finish(self, loss: torch.Tensor) -> torch.Tensor:
        """Clip and step, unless a number is not finite; without waiting for the device.

        Fused optimizers leave parameters and state alone where ``found_inf`` is 1, the
        switch that gradient scalers use.

        Args:
            loss: This rank's share of the step's loss, a scalar.

        Returns:
            It, or not a number if the step was left out.
        """
        limit = self._settings.clip or math.inf
        norm = torch.nn.utils.clip_grad_norm_(self._training, limit)
        self.norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        world = self._world
        check = self.norm + world.sum(loss.clone() if world.size > 1 else loss)
        # 0 if all is finite, else not a number; and no tensor is read.
        check = check - check
        bad = check.ne(0)
        self.optimizer.found_inf = bad.float()  # type: ignore[attr-defined]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        # The forward pass has moved BatchNorm's statistics already.
        self._buffers.take_back(bad)
        self._begun = False
        if self.average is not None:
            self._taken = check.eq(0).float()
            self.average.update_parameters(self._model)
        return loss + check

    def _average(
        self, averages: Tensors, values: Tensors, count: torch.Tensor | int
    ) -> None:
        """Exponential moving average; a step that was left out does not move it."""
        share = self._taken * (1 - self._settings.ema)
        changes = torch._foreach_sub(values, averages)
        torch._foreach_mul_(changes, share)
        torch._foreach_add_(averages, changes)
