"""The test split, the baselines beside it, the untouched model, the scratch control."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from headstart.assembly import build_backbone, build_head
from headstart.callbacks import Callback, Record
from headstart.clock import Clock
from headstart.evaluate import MetricSet, evaluate, measure
from headstart.heads import Head
from headstart.model import Model
from headstart.probe import as_arrays, read_probe, read_untouched, write_untouched
from headstart.report.intervals import gains, group_count, intervals, scores_by_sample
from headstart.report.parts import Evaluation
from headstart.report.verdict import UNTOUCHED
from headstart.run_folder import CALIBRATION, write_json
from headstart.settings import StrategySettings
from headstart.specs import resolve, short_name
from headstart.strategy import make_plan
from headstart.training_setup import make_trainer

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from headstart.assembly import Assembly
    from headstart.callbacks import Watchers
    from headstart.data import Split
    from headstart.distributed import World
    from headstart.recipe import Recipe
    from headstart.strategy import Plan
    from headstart.weights.transfer_report import TransferReport


class _Curve(Callback):
    """Collects the validations of the scratch control."""

    def __init__(self) -> None:
        self.points: list[Record] = []

    def on_record(self, record: Record) -> None:
        if record["event"] == "validation":
            self.points.append(record)


def judge_untouched(
    recipe: Recipe,
    assembly: Assembly,
    plan: Plan,
    transfer: TransferReport,
    folder: Path,
    world: World,
    clock: Clock,
    watchers: Watchers,
) -> None:
    """Test the model as it is before the first step, on all ranks, and keep the result.

    Only where the weights bring a whole model: a new head has nothing to say yet. And
    only where steps follow. The test split chooses nothing here either: the result is
    put away until the trained model is tested, and stands beside it as a baseline.
    """
    if not (recipe.report.baselines and plan.total):
        return
    if not transfer.brings_all(assembly.model.head.neutral):
        return
    for watcher in watchers:
        watcher.on_message(
            "first the test of the untouched model (report.baselines = false: none)"
        )
    device = assembly.execution.device
    # Loaders draw seeds, and a range test comes next: what is random stays as it is.
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        theirs = test(recipe, assembly, world)
    if world.main:
        write_untouched(folder, theirs.metrics, scores_by_sample(theirs))
    clock.lap("baselines")


def judge(
    recipe: Recipe,
    assembly: Assembly,
    plan: Plan,
    clock: Clock,
    folder: Path,
    world: World,
) -> dict[str, Any]:
    """Test the model on all ranks; the main one sets simpler means beside it.

    Writes ``calibration.json``, what the head fits to validation, if anything; and
    ``sections.json``, the parts of the report that only this task has.

    Returns:
        ``metrics``, ``intervals``, ``groups``, ``diagnosis``, ``baselines`` and
        ``scratch`` for the summary.
    """
    head = assembly.model.head
    _calibrate(recipe, assembly, world)
    if world.main and head.calibration:
        write_json(folder / CALIBRATION, head.calibration)
    ours = test(recipe, assembly, world)
    clock.lap("evaluation")
    # On all ranks: shards are put together whenever the model runs.
    after = as_arrays(head.probe(assembly.model))
    if not world.main:
        return {}
    untouched = read_untouched(folder) if recipe.report.baselines else None
    before = read_probe(folder) | ({"metrics": untouched[0]} if untouched else {})
    probed = replace(ours, before=before, after=after)
    sections = [section.to_dict() for section in head.report(probed)]
    write_json(folder / "sections.json", sections)
    baselines = []
    if untouched:
        metrics, scores = untouched
        theirs = replace(ours, metrics=metrics, outputs={}, scores=scores)
        baselines.append(
            {"name": UNTOUCHED, "metrics": metrics, "gains": gains(ours, theirs)}
        )
    for baseline in assembly.data.baselines() if recipe.report.baselines else ():
        values = measure(baseline.outputs, recipe.metric_specs, assembly.data.task)
        theirs = _evaluation(recipe, assembly, values, baseline.outputs)
        baselines.append(
            {"name": baseline.name, "metrics": values, "gains": gains(ours, theirs)}
        )
    clock.lap("baselines")
    scratch = None
    if recipe.report.scratch_control:
        curve = _Curve()
        theirs = _scratch_control(recipe, assembly, plan, clock, curve)
        scratch = {
            "metrics": theirs.metrics,
            "steps": plan.total,
            "gains": gains(ours, theirs),
            "curve": curve.points,
        }
    return {
        "metrics": ours.metrics,
        "intervals": intervals(ours),
        "groups": group_count(ours, assembly.data.group_unit),
        "diagnosis": [str(fault) for fault in head.diagnose(ours.metrics)],
        "baselines": baselines,
        "scratch": scratch,
    }


def _calibrate(recipe: Recipe, assembly: Assembly, world: World | None = None) -> None:
    """Let a head that has something to fit do so, on validation."""
    head = assembly.model.head
    if not assembly.data.samples("validation"):
        return
    if type(head).calibrate is not Head.calibrate:
        outputs = test(recipe, assembly, world, split="validation").outputs
        head.calibration = head.calibrate(outputs)


def test(
    recipe: Recipe,
    assembly: Assembly,
    world: World | None = None,
    split: Split = "test",
) -> Evaluation:
    """The model on a split."""
    data = assembly.data
    result = evaluate(
        assembly.model,
        data,
        data.samples(split),
        sizes=data.sizes(split),
        batch_size=recipe.eval_batch_size,
        batch_total=recipe.eval_batch_total,
        execution=assembly.execution,
        metrics=MetricSet(recipe.metric_specs, data.task, assembly.execution.device),
        collect=True,
        world=world,
    )
    return _evaluation(recipe, assembly, result.metrics, result.outputs, split)


def _evaluation(
    recipe: Recipe,
    assembly: Assembly,
    metrics: Mapping[str, float],
    outputs: Mapping[str, Any],
    split: Split = "test",
) -> Evaluation:
    data = assembly.data
    samples = data.samples(split)
    scores = {
        short_name(spec.name): resolve(spec.scores)(data.task, outputs)
        for spec in recipe.metric_specs
        if spec.scores
    }
    return Evaluation(
        split=split,
        metrics=metrics,
        outputs=outputs,
        task=data.task,
        samples=lambda index: data.show(samples[index]),
        rows=recipe.report.samples,
        scores=scores,
        specs={short_name(spec.name): spec for spec in recipe.metric_specs},
        groups=data.groups(split),
    )


def _scratch_control(
    recipe: Recipe,
    assembly: Assembly,
    plan: Plan,
    clock: Clock,
    curve: _Curve,
) -> Evaluation:
    """The same model from random weights, trained whole for as many steps.

    Judged after the last step; our own best checkpoint was chosen on validation,
    which is no more than early stopping would give the control.
    """
    recipe = replace(recipe, strategy=StrategySettings(name="scratch"))
    torch.manual_seed(recipe.train.seed)
    task = assembly.data.task
    backbone = build_backbone(recipe, assembly.weights.folder, task)
    head = build_head(recipe, backbone, task)
    model = Model(backbone, head).to(assembly.execution.device)
    control = replace(assembly, model=model)
    whole = make_plan(recipe.strategy, plan.stages, plan.total)
    # Where the control's own time goes is of no interest, and not our run's.
    clock_of_its_own = Clock(assembly.execution.device)
    trainer = make_trainer(recipe, control, whole, clock_of_its_own, [curve])
    trainer.fit()
    trained = replace(control, model=trainer.evaluated)
    _calibrate(recipe, trained)
    result = test(recipe, trained)
    clock.lap("scratch control")
    return result
