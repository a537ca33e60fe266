"""What trains at each step, written out by hand for three stages."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest

from headstart.errors import UserError
from headstart.settings import StrategySettings
from headstart.strategy import freeze_point, make_plan

STAGES = ("low", "middle", "high")


def trained(total: int, **settings: Any) -> list[str]:
    """First letters of what trains at each step, in the stages' order."""
    plan = make_plan(StrategySettings(**settings), STAGES, total)
    return [
        "".join(name[0] for name in STAGES if name in plan.trainable(step))
        for step in range(total)
    ]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"name": "feature-extraction"}, [""] * 4),
        ({"name": "global"}, ["lmh"] * 4),
        ({"name": "scratch"}, ["lmh"] * 4),
        ({"name": "layer-retraining"}, ["h"] * 4),
        ({"name": "layer-retraining", "train_last": 2}, ["mh"] * 4),
        ({"name": "layer-retraining", "train_last": 3}, ["lmh"] * 4),
        ({"name": "layer-retraining", "freeze_until": "low"}, ["mh"] * 4),
        ({"name": "layer-retraining", "freeze_until": "high"}, [""] * 4),
        ({"name": "surgical", "stages": ["low"]}, ["l"] * 4),
        ({"name": "surgical", "stages": ["high", "low"]}, ["lh"] * 4),
        ({"name": "lp-ft", "head_share": 0.5}, ["", "", "lmh", "lmh"]),
        ({"name": "lp-ft", "head_share": 0.25}, ["", "lmh", "lmh", "lmh"]),
        ({"name": "lp-ft", "head_share": 1.0}, [""] * 4),
        (
            {"name": "lp-ft", "head_share": 0.5, "freeze_until": "low"},
            ["", "", "mh", "mh"],
        ),
        ({"name": "lp-ft", "head_share": 0.5, "freeze_until": "high"}, [""] * 4),
    ],
)
def test_trainable_stages_by_hand(
    settings: dict[str, Any], expected: list[str]
) -> None:
    assert trained(4, **settings) == expected


def test_gradual_unfreezes_last_stage_first_at_equal_distances() -> None:
    # Half of 12 steps in three equal parts: a stage every 2 steps, all from step 6.
    assert trained(12, name="gradual") == [
        *["", "", "h", "h", "mh", "mh"],
        *["lmh"] * 6,
    ]
    assert trained(6, name="gradual", unfreeze_share=1.0) == [
        *["", "", "h", "h", "mh", "mh"]
    ]


def test_gradual_stops_at_the_stage_that_never_trains() -> None:
    assert trained(12, name="gradual", freeze_until="low") == [
        *["", "", "", "h", "h", "h"],
        *["mh"] * 6,
    ]
    assert trained(4, name="gradual", freeze_until="high") == [""] * 4


def test_gradual_at_its_ends() -> None:
    assert trained(4, name="gradual", unfreeze_share=0.0) == ["lmh"] * 4
    # Fewer steps than stages: some come together, none is left out.
    assert trained(2, name="gradual", unfreeze_share=0.5)[-1] == "lmh"
    plan = make_plan(StrategySettings(name="gradual"), STAGES, 2)
    assert plan.changes[0][0] == 0


def test_gradual_never_freezes_again() -> None:
    for total in range(1, 40):
        steps = trained(total, name="gradual", unfreeze_share=0.7)
        assert all(len(now) <= len(later) for now, later in itertools.pairwise(steps))


def test_trainable_is_a_function_of_the_step_alone() -> None:
    plan = make_plan(StrategySettings(name="gradual"), STAGES, 30)
    in_order = [plan.trainable(step) for step in range(30)]
    steps = list(range(30)) * 3
    random.Random(0).shuffle(steps)
    assert all(plan.trainable(step) == in_order[step] for step in steps)


def test_linear_probing_has_a_schedule_of_its_own() -> None:
    plan = make_plan(StrategySettings(name="lp-ft", head_share=0.3), STAGES, 10)
    assert [plan.phase(step) for step in range(10)] == [(0, 3)] * 3 + [(3, 10)] * 7
    # With no step left for fine-tuning there is one phase, and none of length 0.
    whole = make_plan(StrategySettings(name="lp-ft", head_share=1.0), STAGES, 10)
    assert whole.phases == (0,) and whole.phase(9) == (0, 10)
    # At least one step of probing.
    none = make_plan(StrategySettings(name="lp-ft", head_share=0.0), STAGES, 10)
    assert none.trainable(0) == frozenset() and none.trainable(1) == frozenset(STAGES)


def test_other_strategies_have_one_phase() -> None:
    plan = make_plan(StrategySettings(name="gradual"), STAGES, 10)
    assert {plan.phase(step) for step in range(10)} == {(0, 10)}


def test_stage_decay_falls_from_the_last_stage_down() -> None:
    plan = make_plan(StrategySettings(stage_decay=0.5), STAGES, 10)
    assert plan.factors == {"high": 1.0, "middle": 0.5, "low": 0.25}
    assert set(make_plan(StrategySettings(), STAGES, 10).factors.values()) == {1.0}


@pytest.mark.parametrize(
    ("trainable", "expected"),
    [((), 3), (("high",), 2), (("low",), 0), (("middle", "low"), 0), (STAGES, 0)],
)
def test_freeze_point(trainable: tuple[str, ...], expected: int) -> None:
    assert freeze_point(STAGES, frozenset(trainable)) == expected


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"name": "surgical", "stages": ["low", "midle"]}, "strategy.stages"),
        (
            {"name": "layer-retraining", "freeze_until": "Middle"},
            "strategy.freeze_until",
        ),
        ({"name": "lp-ft", "freeze_until": "Middle"}, "strategy.freeze_until"),
    ],
)
def test_an_unknown_stage_names_the_nearest(settings: dict[str, Any], key: str) -> None:
    with pytest.raises(UserError) as caught:
        make_plan(StrategySettings(**settings), STAGES, 10)
    (fault,) = caught.value.faults
    assert fault.where == key
    assert fault.fix == "did you mean 'middle'?"
    assert "low, middle, high" in fault.why


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"name": "surgical"}, "no stages are named"),
        ({"name": "layer-retraining", "train_last": 4}, "choose 1 to 3"),
        (
            {"name": "layer-retraining", "train_last": 1, "freeze_until": "low"},
            "keep one of them",
        ),
    ],
)
def test_settings_that_cannot_be_met(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        make_plan(StrategySettings(**settings), STAGES, 10)
