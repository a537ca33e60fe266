"""The optimizer: every parameter in exactly one group, built once, before step 0."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from headstart.model import HEAD

if TYPE_CHECKING:
    from collections.abc import Iterable

    from headstart.model import Model
    from headstart.settings import TrainSettings
    from headstart.strategy import Plan


def parameter_groups(
    model: Model, settings: TrainSettings, plan: Plan, learning_rate: float
) -> list[dict[str, Any]]:
    """Groups of one learning rate and weight decay each; as few as there can be.

    Vectors (biases, normalisation) do not decay. Frozen parameters are in their group
    from the start: they have no gradient, so the optimizer passes over them, and
    unfreezing needs no new group.

    Returns:
        Groups with ``params``, ``names``, ``base_lr``, ``later_lr``, ``lr`` and
        ``weight_decay``; ``later_lr`` takes the place of ``base_lr`` from the second
        phase of the plan on.
    """
    head_rate = settings.head_learning_rate or learning_rate
    groups: dict[tuple[float, float, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        owner = model.part_of(name)
        rate = head_rate if owner == HEAD else learning_rate * plan.factors[owner]
        # A head that was trained goes on as carefully as what is below it.
        later = learning_rate if owner == HEAD and len(plan.phases) > 1 else rate
        decay = settings.weight_decay if parameter.ndim >= 2 else 0.0
        group = groups.setdefault(
            (rate, later, decay),
            {
                "params": [],
                "names": [],
                "base_lr": rate,
                "later_lr": later,
                "lr": rate,
                "weight_decay": decay,
            },
        )
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def build_optimizer(
    model: Model, settings: TrainSettings, plan: Plan, learning_rate: float
) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019) or SGD with momentum, fused kernels."""
    groups = parameter_groups(model, settings, plan, learning_rate)
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=learning_rate, momentum=0.9, fused=True)
    return torch.optim.AdamW(groups, lr=learning_rate, fused=True)


def start_momentum(
    optimizer: torch.optim.Optimizer, parameters: Iterable[torch.nn.Parameter]
) -> None:
    """Momentum of 0 for parameters that are about to train.

    SGD's fused kernel leaves a first momentum unwritten where the step is left out,
    and takes what it finds there for one in the next.
    """
    if not isinstance(optimizer, torch.optim.SGD):
        return
    for parameter in parameters:
        if parameter not in optimizer.state:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def set_learning_rates(
    optimizer: torch.optim.Optimizer, factor: float, later: bool = False
) -> None:
    """Scale the base learning rates; those of later phases where one has begun."""
    for group in optimizer.param_groups:
        group["lr"] = group["later_lr" if later else "base_lr"] * factor


def optimizer_tensors(
    optimizer: torch.optim.Optimizer,
) -> dict[str, torch.Tensor]:
    """The optimizer's state as flat tensors, ``parameter name/entry``."""
    tensors = {}
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            for entry, value in optimizer.state.get(parameter, {}).items():
                if value is not None:
                    tensors[f"{name}/{entry}"] = torch.as_tensor(value)
    return tensors


def restore_optimizer(
    optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]
) -> None:
    """Put back what :func:`optimizer_tensors` gave, by parameter name."""
    by_name: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        name, _, entry = key.rpartition("/")
        by_name.setdefault(name, {})[entry] = value
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            if name in by_name:
                optimizer.state[parameter] = {
                    entry: _laid_out(value, parameter)
                    for entry, value in by_name.pop(name).items()
                }
    assert not by_name, f"optimizer state of unknown parameters: {sorted(by_name)[:3]}"


def _laid_out(value: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """State of a parameter on its device, in memory as the parameter is.

    Files have rows last, convolutions may have channels last, and fused kernels take
    both for one layout without looking.
    """
    value = value.to(parameter.device)
    strides = parameter.stride()
    if value.shape != parameter.shape or value.stride() == strides:
        return value
    empty = torch.empty_strided(
        value.shape, strides, dtype=value.dtype, device=value.device
    )
    return empty.copy_(value)
