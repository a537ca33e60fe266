"""Carry out a recipe, from assembling to the report; go on with a run that stopped."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headstart.errors import Fault, HeadstartError, UserError
from headstart.plugins import load_plugins
from headstart.recipe import build_recipe, load_recipe, read_recipe
from headstart.report.verdict import counted
from headstart.runs import Run
from headstart.specs import short_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from headstart.assembly import Assembly
    from headstart.callbacks import Callback, Watchers
    from headstart.checkpoint import Checkpoint
    from headstart.distributed import World
    from headstart.fetch.http import Progress
    from headstart.recipe import Recipe
    from headstart.strategy import Plan
    from headstart.trainer import Trainer

CHANGEABLE = (
    "train.epochs",
    "train.max_steps",
    "train.evaluate_every",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.eval_batch_size",
    "train.log_every",
    "train.bad_steps",
    "train.gradient_checkpointing",
    "train.tensorboard",
    "early_stopping.patience",
    "early_stopping.min_delta",
    "report.baselines",
    "report.samples",
    "report.scratch_control",
    "cache.mode",
    "cache.memory_gb",
    "cache.disk_gb",
    "data.workers",
)
"""What may change on resuming: nothing that a step's numbers depend on.

``train.accumulate`` may rise as well, as it does by itself when the device is full.
"""


@dataclass(frozen=True)
class _Start:
    """Where training begins: at step 0, or at a checkpoint."""

    checkpoint: Checkpoint | None = None
    messages: tuple[str, ...] = ()


def run(
    recipe: str | Path,
    overrides: Mapping[str, Any] | None = None,
    *,
    folder: str | Path | None = None,
    callbacks: Sequence[Callback] = (),
    progress: Progress | None = None,
) -> Run:
    """Train as a recipe says, test, and write the report.

    Under ``torchrun`` every rank calls it with the same arguments; when the ranks were
    started again after a failure, the run goes on instead.

    Args:
        recipe: ``plugin/name`` or the path of a TOML file.
        overrides: Values by dotted key, e.g. ``{"train.epochs": 3}``.
        folder: The run folder; by default a new one under ``runs/``.
        callbacks: Watchers beside the run's own; see ``headstart.callbacks``.
        progress: Told about transfers.

    Raises:
        HeadstartError: What is wrong with recipe or data; then nothing was written.
    """
    if folder is not None and (Path(folder) / "recipe.toml").is_file():
        if _started_again():
            return resume(folder, callbacks=callbacks, progress=progress)
    began = time.perf_counter()
    registry = load_plugins()
    checked = load_recipe(recipe, overrides, registry=registry)

    from headstart.assembly import assemble, complete_strategy
    from headstart.callbacks import TensorBoardLog, Watchers
    from headstart.distributed import join_world
    from headstart.run_folder import create_run_folder
    from headstart.training_setup import plan_training

    if checked.train.tensorboard:
        TensorBoardLog.require()
    world = join_world()
    checked = replace(checked, strategy=complete_strategy(checked))
    assembly = assemble(checked, registry, progress)
    # The data module may have completed its settings, e.g. with an asset's own.
    checked = replace(checked, data=assembly.data.settings)
    plan = plan_training(checked, assembly, world)
    with Watchers(callbacks if world.main else ()) as watchers:
        target = None
        if world.main:
            watchers.extend(registry.callbacks(checked))
            target = create_run_folder(folder, checked, registry, assembly)
        target = world.share(target)
        assert target is not None
        start = _Start()
        return _carry_out(
            checked, assembly, plan, target, watchers, world, began, start
        )


def _longer(recipe: Recipe) -> str:
    """The setting that ends the training, at twice its value."""
    if recipe.train.max_steps is not None:
        return f"train.max_steps={2 * recipe.train.max_steps}"
    return f"train.epochs={2 * recipe.train.epochs:g}"


def _started_again() -> bool:
    """Whether ``torchrun`` started the ranks anew after a failure, on any machine."""
    import torch

    from headstart.distributed import join_world

    again = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    return join_world().any(again, torch.device("cpu"))


def resume(
    folder: str | Path,
    overrides: Mapping[str, Any] | None = None,
    *,
    callbacks: Sequence[Callback] = (),
    progress: Progress | None = None,
) -> Run:
    """Go on with a run that was stopped, as if nothing had happened.

    On the same device and number of ranks the losses and weights are those of an
    undisturbed run, to the last bit.

    Args:
        folder: The run folder.
        overrides: Changes that no past step depends on, e.g. more ``train.epochs``.
        callbacks: Watchers beside the run's own.
        progress: Told about transfers, when there is no checkpoint yet.

    Raises:
        UserError: The run is complete, another version's, its data or its recipe
            changed in what steps depend on, or no checkpoint holds.
    """
    began = time.perf_counter()
    registry = load_plugins()
    opened = Run(folder)
    tables, origin = read_recipe(opened.folder / "recipe.toml", registry)
    before = build_recipe(tables, {}, origin=origin, registry=registry)
    checked = build_recipe(tables, overrides or {}, origin=origin, registry=registry)
    _refuse_changes(before, checked, origin)
    environment = _environment(opened)

    from headstart.assembly import assemble
    from headstart.callbacks import Watchers
    from headstart.distributed import join_world
    from headstart.files import write_text
    from headstart.run_folder import ARCHITECTURE
    from headstart.training_setup import plan_training

    world = join_world()
    start = _latest(opened.folder / "checkpoints")
    architecture = opened.folder / ARCHITECTURE if start.checkpoint else None
    assembly = assemble(checked, registry, progress, architecture)
    _refuse_other_data(assembly, environment, opened.folder)
    plan = plan_training(checked, assembly, world)
    messages = [*start.messages, *_changes_of_schedule(before, checked, plan, start)]
    ranks = environment.get("ranks", 1)
    if ranks != world.size:
        messages.append(
            f"trained on {counted(ranks, 'rank')} before, now on {world.size}: the "
            "order of samples is the same, the numbers agree to rounding only"
        )
    parts = start.checkpoint.state()["accumulate"] if start.checkpoint else 0
    if 0 < parts < checked.train.accumulate:
        messages.append(
            f"from here on train.accumulate is {checked.train.accumulate}, before it "
            f"was {parts}: the numbers agree to rounding only, and BatchNorm that "
            "trains sees smaller parts"
        )
    if start.checkpoint and start.checkpoint.step >= plan.total:
        finished = opened.finished
        if finished and not overrides:
            raise UserError(
                "the run is complete",
                where=str(opened.folder),
                why=f"all {plan.total} steps are done",
                fix=f"to train longer: {_longer(checked)}",
            )
    start = replace(start, messages=tuple(messages))
    with Watchers(callbacks if world.main else ()) as watchers:
        if world.main:
            watchers.extend(registry.callbacks(checked))
            write_text(opened.folder / "recipe.toml", checked.to_toml())
        return _carry_out(
            checked, assembly, plan, opened.folder, watchers, world, began, start
        )


def _carry_out(
    recipe: Recipe,
    assembly: Assembly,
    plan: Plan,
    folder: Path,
    watchers: Watchers,
    world: World,
    began: float,
    start: _Start,
) -> Run:
    """Train, judge, and write what came out; a failure leaves its reason."""
    from headstart.callbacks import MetricsLog, TensorBoardLog
    from headstart.report.page import write_report
    from headstart.run_folder import write_json

    if world.main:
        step = start.checkpoint.step if start.checkpoint else 0
        watchers.append(MetricsLog(folder / "metrics.jsonl", step))
        if recipe.train.tensorboard:
            watchers.append(TensorBoardLog(folder / "tensorboard"))
        write_json(folder / "summary.json", {"status": "running"})
    try:
        summary = _train(recipe, assembly, plan, folder, watchers, world, began, start)
    except BaseException as error:
        if world.main:
            stopped = isinstance(error, KeyboardInterrupt)
            status = "interrupted" if stopped else "failed"
            reason = str(error) or type(error).__name__
            # On a full disk this fails too; why the run did is what counts.
            with suppress(HeadstartError):
                outcome = {"status": status, "reason": reason}
                write_json(folder / "summary.json", outcome)
        raise
    if world.main:
        write_json(folder / "summary.json", summary)
        write_report(folder)
    world.wait()
    return Run(folder)


def _train(
    recipe: Recipe,
    assembly: Assembly,
    plan: Plan,
    folder: Path,
    watchers: Watchers,
    world: World,
    began: float,
    start: _Start,
) -> dict[str, Any]:
    """Train and judge; returns the summary."""
    from headstart.assembly import complete_transfer
    from headstart.checkpoint import open_checkpoint
    from headstart.clock import Clock
    from headstart.costs import costs, go_on_counting
    from headstart.distributed import load_whole
    from headstart.judgement import judge, judge_untouched
    from headstart.probe import write_probe
    from headstart.run_folder import write_json
    from headstart.training_setup import make_trainer

    transfer = complete_transfer(assembly, plan)
    if world.main and start.checkpoint is None:
        write_json(folder / "transfer.json", transfer.to_dict())
        write_probe(folder, assembly.model.head.probe(assembly.model))
    for watcher in watchers:
        watcher.on_assembled(recipe, assembly, transfer, plan.total)
        for message in start.messages:
            watcher.on_message(message)
    clock = Clock(assembly.execution.device, setup=time.perf_counter() - began)
    if start.checkpoint is None:
        judge_untouched(
            recipe, assembly, plan, transfer, folder, world, clock, watchers
        )
    trainer = make_trainer(
        recipe,
        assembly,
        plan,
        clock,
        watchers,
        folder / "checkpoints",
        world,
        start.checkpoint,
    )
    if world.main and start.checkpoint is not None:
        go_on_counting(folder / "metrics.jsonl", trainer)
    memory = _estimate_memory(trainer, watchers)
    clock.lap("setup")
    status = trainer.fit()
    if recipe.report.scratch_control and status != "interrupted":
        for watcher in watchers:
            watcher.on_message(
                f"scratch control: {counted(plan.total, 'step')} of the same model "
                "from random weights come after the test (report.scratch_control = "
                "false: none)"
            )
    watchers.end()
    progress = trainer.progress
    summary: dict[str, Any] = {
        "status": status,
        "goals": {short_name(s.name): s.goal for s in recipe.metric_specs},
        "expect": recipe.expect.model_dump(mode="json")["metrics"],
        "validation": progress.best_metrics,
        "best_step": progress.best_step,
        "steps": progress.step,
        "total_steps": plan.total,
        "epochs": progress.step / trainer.batches.steps_per_epoch,
        "bad_steps": progress.bad_steps,
        "accumulate": progress.accumulate,
        "ranks": world.size,
        "parameters": assembly.model.counts(),
        "memory": memory,
    }
    if status == "interrupted":
        summary["reason"] = (
            f"stopped after step {progress.step} of {plan.total}; go on with "
            f"`headstart resume {folder}`"
        )
    else:
        checkpoint, _ = open_checkpoint(folder / "checkpoints")
        load_whole(assembly.model, checkpoint.kept_model())
        summary |= judge(recipe, assembly, plan, clock, folder, world)
    device, data = assembly.execution.device, assembly.data
    spent, peak = trainer.train_seconds, trainer.earlier_peak
    return summary | costs(clock, trainer.batches, spent, data, device, peak)


def _estimate_memory(trainer: Trainer, watchers: Watchers) -> dict[str, Any]:
    """Tell what the training will need at its peak; for the summary."""
    from headstart.memory_estimate import estimate_memory

    estimate = estimate_memory(trainer)
    if isinstance(estimate, str):
        messages, summary = [f"memory: no estimate, {estimate}"], {"reason": estimate}
    else:
        messages, summary = estimate.messages(), estimate.to_dict()
    for message in messages:
        for watcher in watchers:
            watcher.on_message(message)
    return summary


def _latest(checkpoints: Path) -> _Start:
    """The newest checkpoint that holds, and what was wrong with newer ones."""
    from headstart.checkpoint import newest_checkpoint

    if not any(checkpoints.glob("step-*")):
        return _Start(None, ("no checkpoint was written yet: starting from step 0",))
    checkpoint, passed_over = newest_checkpoint(checkpoints)
    damaged = [f"{f.where} is damaged and passed over: {f.what}" for f in passed_over]
    going_on = f"going on from {checkpoint.folder.name}"
    return _Start(checkpoint, (*damaged, going_on))


def _flat(recipe: Recipe) -> dict[str, Any]:
    return {
        f"{section}.{key}": value
        for section, values in recipe.to_dict().items()
        if isinstance(values, dict)
        for key, value in values.items()
    }


def _refuse_changes(before: Recipe, after: Recipe, origin: str) -> None:
    """Refuse changes that past steps depend on; name all of them."""
    old, new = _flat(before), _flat(after)
    faults = [
        Fault(
            f"{key} cannot change from {old.get(key)!r} to {new.get(key)!r}",
            where=origin,
            why="the steps that were taken depend on it",
            fix="resume without it, or start a new run with it",
        )
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
        and key not in CHANGEABLE
        and not (key == "train.accumulate" and new[key] > old[key])
    ]
    if faults:
        raise UserError(*faults)


def _changes_of_schedule(
    before: Recipe, after: Recipe, plan: Plan, start: _Start
) -> list[str]:
    lengths = [(r.train.epochs, r.train.max_steps) for r in (before, after)]
    if lengths[0] == lengths[1] or start.checkpoint is None:
        return []
    if after.train.schedule == "constant" and len(plan.changes) == 1:
        return []
    return [
        f"the run now has {counted(plan.total, 'step')}: from step "
        f"{start.checkpoint.step} on the schedule is that of the longer run, before it "
        "was not"
    ]


def _environment(run: Run) -> dict[str, Any]:
    """What the run wrote down about itself, if its version is one we can follow."""
    from packaging.version import Version

    from headstart.run_folder import read_json
    from headstart.version import __version__

    environment: dict[str, Any] = read_json(run.folder / "environment.json")
    theirs = str(environment.get("headstart", "0"))
    if Version(theirs).release[:2] != Version(__version__).release[:2]:
        raise UserError(
            f"the run was started with headstart {theirs}, this is {__version__}",
            where=str(run.folder),
            why="another version may take its steps differently",
            fix=f"pip install 'headstart=={theirs}', or run its recipe.toml anew",
        )
    return environment


def _refuse_other_data(
    assembly: Assembly, environment: Mapping[str, Any], folder: Path
) -> None:
    if assembly.data.fingerprint() != environment["data"]["fingerprint"]:
        raise UserError(
            "the data is not what the run was started on",
            where=str(folder),
            why="its hash differs from the one in environment.json",
            fix="put the data back, or start a new run on the changed data",
        )
