"""Learning rates by hand, and every parameter in one group of the optimizer."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from pydantic import ValidationError

from headstart.optim import (
    build_optimizer,
    optimizer_tensors,
    parameter_groups,
    restore_optimizer,
    set_learning_rates,
)
from headstart.schedule import learning_rate_factor
from headstart.settings import StrategySettings, TrainSettings
from headstart.strategy import make_plan

if TYPE_CHECKING:
    from collections.abc import Callable

    from headstart.model import Model
    from headstart.strategy import Plan

STAGES = ("first", "second", "third")


def factors(total: int, strategy: str = "global", **settings: Any) -> list[float]:
    plan = make_plan(StrategySettings(name=strategy, head_share=0.5), STAGES, total)
    train = TrainSettings(**settings)
    return [learning_rate_factor(train, plan, step) for step in range(total)]


def test_linear_with_warmup() -> None:
    # Two steps up in thirds, then eight steps down in eighths.
    expected = [1 / 3, 2 / 3, *(left / 8 for left in range(8, 0, -1))]
    assert factors(10, schedule="linear", warmup=0.2) == pytest.approx(expected)


def test_linear_without_warmup() -> None:
    assert factors(4, schedule="linear", warmup=0) == [1, 0.75, 0.5, 0.25]


def test_cosine() -> None:
    quarter = 0.5 * (1 + math.cos(math.pi / 4))
    expected = [1, quarter, 0.5, 1 - quarter]
    assert factors(4, schedule="cosine", warmup=0) == pytest.approx(expected)


def test_constant_still_warms_up() -> None:
    expected = [1 / 3, 2 / 3, 1, 1, 1]
    assert factors(5, schedule="constant", warmup=0.4) == pytest.approx(expected)


def test_linear_probing_restarts_the_schedule() -> None:
    expected = [1, 0.75, 0.5, 0.25] * 2
    assert factors(8, "lp-ft", schedule="linear", warmup=0) == expected


def test_tri_stage_rises_stays_and_falls_exponentially() -> None:
    # 2 steps up, 4 held, then a twentieth is reached in equal ratios at the last step.
    expected = [1 / 3, 2 / 3, 1, 1, 1, 1, 1, *(0.05 ** (i / 3) for i in (1, 2, 3))]
    found = factors(10, schedule="tri-stage", warmup=0.2, hold=0.4)
    assert found == pytest.approx(expected)


def test_tri_stage_that_is_all_hold_or_more_than_all() -> None:
    whole = factors(10, schedule="tri-stage", warmup=0.3, hold=0.7)
    assert whole == pytest.approx([0.25, 0.5, 0.75, *[1] * 7])
    with pytest.raises(ValidationError, match=r"warmup and hold: 0\.7 and 0\.4 are"):
        TrainSettings(schedule="tri-stage", warmup=0.7)
    # Others do not hold.
    assert TrainSettings(schedule="linear", warmup=0.7).hold == 0.4


def test_a_seed_that_generators_take() -> None:
    assert TrainSettings(seed=10**9 - 1).seed == 10**9 - 1
    for seed in (-1, 10**9):
        with pytest.raises(ValidationError, match="seed"):
            TrainSettings(seed=seed)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant", "tri-stage"])
@pytest.mark.parametrize("warmup", [0.0, 0.06, 0.5, 1.0])
def test_no_step_is_spent_at_zero(schedule: str, warmup: float) -> None:
    for total in (1, 2, 3, 17, 100):
        hold = min(0.4, 1 - warmup)
        values = factors(total, schedule=schedule, warmup=warmup, hold=hold)
        assert all(0 < value <= 1 for value in values)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_last_step_is_just_above_zero(schedule: str) -> None:
    assert 0 < factors(100, schedule=schedule)[-1] < 0.02


@pytest.fixture
def parts(toy_parts: Callable[..., Any]) -> tuple[Model, Plan]:
    _, assembly, plan = toy_parts({"strategy.stage_decay": 0.5})
    return assembly.model, plan


def test_every_parameter_is_in_one_group(parts: tuple[Model, Plan]) -> None:
    model, plan = parts
    # Frozen from the start, and still in its group.
    model.train_stages(frozenset())
    groups = parameter_groups(model, TrainSettings(), plan, 1e-3)
    grouped = [parameter for group in groups for parameter in group["params"]]
    assert len({id(p) for p in grouped}) == len(grouped)
    assert {id(p) for p in grouped} == {id(p) for p in model.parameters()}
    for group in groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            assert model.get_parameter(name) is parameter


def test_learning_rates_and_decay_by_part(parts: tuple[Model, Plan]) -> None:
    model, plan = parts
    settings = TrainSettings(head_learning_rate=0.3, weight_decay=0.1)
    groups = parameter_groups(model, settings, plan, 0.08)
    rates = {"first": 0.02, "second": 0.04, "third": 0.08, "head": 0.3}
    # Matrices decay; biases and both vectors of a normalisation do not.
    kept = {"linear.bias", "norm.weight", "norm.bias"}
    seen = set()
    for group in groups:
        owners = {model.part_of(name) for name in group["names"]}
        seen |= owners
        assert all(group["base_lr"] == pytest.approx(rates[owner]) for owner in owners)
        assert group["lr"] == group["base_lr"]
        assert len({rates[owner] for owner in owners}) == 1
        endings = {".".join(name.split(".")[-2:]) for name in group["names"]}
        if group["weight_decay"]:
            assert group["weight_decay"] == 0.1
            assert endings <= {"linear.weight", "head.weight"}
        else:
            assert endings <= kept
    assert seen == set(rates)


def test_there_are_no_more_groups_than_rates(parts: tuple[Model, Plan]) -> None:
    """Each group costs a kernel launch a step."""
    model, plan = parts
    even = replace(plan, factors=dict.fromkeys(plan.factors, 1.0))
    groups = parameter_groups(model, TrainSettings(), even, 0.08)
    assert [g["weight_decay"] > 0 for g in groups] == [True, False]
    undecayed = TrainSettings(weight_decay=0.0)
    assert len(parameter_groups(model, undecayed, even, 0.08)) == 1
    apart = TrainSettings(weight_decay=0.0, head_learning_rate=0.3)
    assert len(parameter_groups(model, apart, even, 0.08)) == 2


def test_head_takes_the_learning_rate_unless_told(parts: tuple[Model, Plan]) -> None:
    model, plan = parts
    groups = parameter_groups(model, TrainSettings(), plan, 0.08)
    rates = {
        g["base_lr"] for g in groups for name in g["names"] if name.startswith("head.")
    }
    assert rates == {0.08}


def test_set_learning_rates_scales_the_base(parts: tuple[Model, Plan]) -> None:
    model, plan = parts
    optimizer = build_optimizer(model, TrainSettings(), plan, 0.08)
    for factor in (0.5, 0.25):
        set_learning_rates(optimizer, factor)
    for group in optimizer.param_groups:
        assert group["lr"] == group["base_lr"] * 0.25


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_optimizer_state_comes_back(
    parts: tuple[Model, Plan], name: str, toy_parts: Callable[..., Any]
) -> None:
    model, plan = parts
    model.train_stages(frozenset({"third"}))
    twin = toy_parts({})[1].model
    twin.train_stages(frozenset({"third"}))
    settings = TrainSettings(optimizer=name)
    optimizer = build_optimizer(model, settings, plan, 0.1)

    def step(of: Model, by: torch.optim.Optimizer) -> None:
        for index, parameter in enumerate(of.parameters()):
            if parameter.requires_grad:
                parameter.grad = torch.full_like(parameter, 0.1 * index + 0.1)
        by.step()

    step(model, optimizer)
    twin.load_state_dict(model.state_dict())
    restored = build_optimizer(twin, settings, plan, 0.1)
    tensors = {k: v.clone() for k, v in optimizer_tensors(optimizer).items()}
    assert tensors
    assert all(k.startswith(("backbone.stages.third.", "head.")) for k in tensors)
    restore_optimizer(restored, tensors)
    step(model, optimizer)
    step(twin, restored)
    for key, value in model.state_dict().items():
        assert torch.equal(value, twin.state_dict()[key]), key


def test_state_goes_back_into_the_layout_of_its_parameter() -> None:
    """Files have rows last; fused kernels take strides for equal without looking."""
    torch.manual_seed(0)
    weight = torch.randn(4, 3, 3, 3).contiguous(memory_format=torch.channels_last)
    gradients = [torch.randn_like(weight) for _ in range(3)]

    def stepped(resumed: bool) -> torch.Tensor:
        parameter = torch.nn.Parameter(weight.clone())
        group = {"params": [parameter], "names": ["weight"]}
        optimizer = torch.optim.AdamW([group], lr=0.1, fused=True)
        for count, gradient in enumerate(gradients):
            if resumed and count == 2:
                kept = optimizer_tensors(optimizer)
                filed = {name: value.contiguous() for name, value in kept.items()}
                optimizer = torch.optim.AdamW([group], lr=0.1, fused=True)
                restore_optimizer(optimizer, filed)
            parameter.grad = gradient.clone()
            optimizer.step()
        return parameter.detach()

    assert torch.equal(stepped(resumed=True), stepped(resumed=False))
