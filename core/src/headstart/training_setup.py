"""From an assembled recipe to a trainer: the plan, the learning rate, the start."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from headstart.batches import epoch_length
from headstart.errors import UserError
from headstart.evaluate import MetricSet
from headstart.range_test import range_test
from headstart.stages import moves_statistics
from headstart.strategy import make_plan
from headstart.trainer import Trainer

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from headstart.assembly import Assembly
    from headstart.callbacks import Callback
    from headstart.checkpoint import Checkpoint
    from headstart.clock import Clock
    from headstart.distributed import World
    from headstart.model import Model
    from headstart.recipe import Recipe
    from headstart.strategy import Plan


def plan_training(
    recipe: Recipe, assembly: Assembly, world: World | None = None
) -> Plan:
    """How many steps there are, and what trains at each.

    Raises:
        UserError: The ranks cannot share a batch equally, or keep no moving average.
    """
    train = recipe.train
    ranks = world.size if world else 1
    if train.batch_total is None and train.batch_size % ranks:
        raise UserError(
            f"{ranks} ranks cannot share a batch of {train.batch_size} equally",
            where="train.batch_size",
            fix=f"choose a multiple of {ranks}, e.g. "
            f"{-(-train.batch_size // ranks) * ranks}",
        )
    if ranks > 1 and train.parallel == "fsdp" and train.ema:
        raise UserError(
            "a moving average of shards is not kept",
            where="train.ema",
            fix='set train.ema = 0, or train.parallel = "ddp"',
        )
    samples = len(assembly.data.samples("train"))
    steps = math.ceil(train.epochs * epoch_length(assembly.data, train))
    total = min(steps, train.max_steps or steps)
    if recipe.strategy.name == "none":
        total = 0
    elif not samples:
        raise UserError(
            "there is nothing to train on",
            where="data",
            why="all of the data is the test split",
            fix='strategy.name = "none" tests the pretrained model as it is',
        )
    backbone = assembly.model.backbone
    return make_plan(
        recipe.strategy, backbone.stage_names, total, backbone.adapted_stages
    )


def make_trainer(
    recipe: Recipe,
    assembly: Assembly,
    plan: Plan,
    clock: Clock,
    callbacks: Sequence[Callback] = (),
    checkpoints: Path | None = None,
    world: World | None = None,
    checkpoint: Checkpoint | None = None,
) -> Trainer:
    """A trainer for an assembled recipe, at step 0 or where a checkpoint was written.

    Finds the learning rate first if asked to.
    """
    rate = recipe.train.learning_rate
    if recipe.train.gradient_checkpointing:
        _checkpoint_gradients(assembly.model, plan, callbacks)
    if checkpoint is not None:
        rate = float(checkpoint.state()["learning_rate"])
    elif rate == "auto" and not plan.total:
        rate = 0.0
    elif rate == "auto":
        rate, curve = range_test(
            assembly.model, assembly.data, recipe, plan, assembly.execution
        )
        for tried, loss in curve:
            record = {"event": "range", "step": 0, "epoch": 0.0, "time": 0.0}
            for callback in callbacks:
                callback.on_record({**record, "learning_rate": tried, "loss": loss})
        clock.lap("range test")
    data, execution = assembly.data, assembly.execution
    trainer = Trainer(
        assembly.model,
        data,
        recipe,
        plan,
        execution,
        MetricSet(recipe.metric_specs, data.task, execution.device),
        learning_rate=rate,
        callbacks=callbacks,
        checkpoints=checkpoints,
        clock=clock,
        world=world,
    )
    if checkpoint is not None:
        trainer.restore(checkpoint)
    return trainer


def _checkpoint_gradients(
    model: Model, plan: Plan, callbacks: Sequence[Callback]
) -> None:
    """Let a model keep less while it trains; say where it cannot."""
    model.gradient_checkpointing = True
    trains = frozenset[str]().union(*(stages for _, stages in plan.changes))
    whole = [
        name
        for name, stage in model.backbone.stages.items()
        if name in trains and moves_statistics(stage)
    ]
    if whole:
        for callback in callbacks:
            callback.on_message(
                f"gradient checkpointing leaves out {', '.join(whole)}: computed "
                "twice, their BatchNorm would count every batch twice"
            )
