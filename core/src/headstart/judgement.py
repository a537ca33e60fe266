"""After training: the test split, the baselines beside it, the scratch control."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from headstart.assembly import build_backbone, build_head
from headstart.clock import Clock
from headstart.evaluate import MetricSet, evaluate, measure
from headstart.model import Model
from headstart.report.parts import Evaluation
from headstart.report.verdict import gains, intervals
from headstart.run_folder import write_json
from headstart.settings import StrategySettings
from headstart.strategy import make_plan
from headstart.training_setup import make_trainer

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from headstart.assembly import Assembly
    from headstart.distributed import World
    from headstart.recipe import Recipe
    from headstart.strategy import Plan


def judge(
    recipe: Recipe,
    assembly: Assembly,
    plan: Plan,
    clock: Clock,
    folder: Path,
    world: World,
) -> dict[str, Any]:
    """Test the model on all ranks; the main one sets simpler means beside it.

    Writes ``sections.json``, the parts of the report that only this task has.

    Returns:
        ``metrics``, ``intervals``, ``baselines`` and ``scratch`` for the summary.
    """
    ours = test(recipe, assembly, world)
    clock.lap("evaluation")
    if not world.main:
        return {}
    sections = [section.to_dict() for section in assembly.model.head.report(ours)]
    write_json(folder / "sections.json", sections)
    baselines = []
    for baseline in assembly.data.baselines() if recipe.report.baselines else ():
        values = measure(baseline.outputs, recipe.metric_specs, assembly.data.task)
        theirs = _evaluation(recipe, assembly, values, baseline.outputs)
        baselines.append(
            {"name": baseline.name, "metrics": values, "gains": gains(ours, theirs)}
        )
    clock.lap("baselines")
    scratch = None
    if recipe.report.scratch_control:
        theirs = _scratch_control(recipe, assembly, plan, clock)
        scratch = {
            "metrics": theirs.metrics,
            "steps": plan.total,
            "gains": gains(ours, theirs),
        }
    return {
        "metrics": ours.metrics,
        "intervals": intervals(ours),
        "baselines": baselines,
        "scratch": scratch,
    }


def test(recipe: Recipe, assembly: Assembly, world: World | None = None) -> Evaluation:
    """The model on the test split."""
    data = assembly.data
    result = evaluate(
        assembly.model,
        data,
        data.samples("test"),
        sizes=data.sizes("test"),
        batch_size=recipe.eval_batch_size,
        execution=assembly.execution,
        metrics=MetricSet(recipe.metric_specs, data.task, assembly.execution.device),
        collect=True,
        world=world,
    )
    return _evaluation(recipe, assembly, result.metrics, result.outputs)


def _evaluation(
    recipe: Recipe,
    assembly: Assembly,
    metrics: Mapping[str, float],
    outputs: Mapping[str, Any],
) -> Evaluation:
    data = assembly.data
    samples = data.samples("test")
    return Evaluation(
        split="test",
        metrics=metrics,
        outputs=outputs,
        task=data.task,
        samples=lambda index: data.show(samples[index]),
        rows=recipe.report.samples,
    )


def _scratch_control(
    recipe: Recipe, assembly: Assembly, plan: Plan, clock: Clock
) -> Evaluation:
    """The same model from random weights, trained whole for as many steps.

    Judged after the last step; our own best checkpoint was chosen on validation,
    which is no more than early stopping would give the control.
    """
    recipe = replace(recipe, strategy=StrategySettings(name="scratch"))
    torch.manual_seed(recipe.train.seed)
    backbone = build_backbone(recipe, assembly.weights.folder)
    head = build_head(recipe, backbone, assembly.data.task)
    model = Model(backbone, head).to(assembly.execution.device)
    control = replace(assembly, model=model)
    whole = make_plan(recipe.strategy, plan.stages, plan.total)
    # Where the control's own time goes is of no interest, and not our run's.
    trainer = make_trainer(recipe, control, whole, Clock(assembly.execution.device))
    trainer.fit()
    result = test(recipe, replace(control, model=trainer.evaluated))
    clock.lap("scratch control")
    return result
