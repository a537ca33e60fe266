"""The training loop, one for every domain."""

from __future__ import annotations

import math
import signal
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from headstart.batches import BatchParts
from headstart.checkpoint import mark_best, prune, write_checkpoint
from headstart.clock import bottleneck
from headstart.environment import peak_memory_bytes
from headstart.errors import HeadstartError, UserError
from headstart.evaluate import MetricSet, evaluate
from headstart.model import HEAD
from headstart.optim import (
    build_optimizer,
    optimizer_tensors,
    restore_optimizer,
    set_learning_rates,
)
from headstart.range_test import range_test
from headstart.recipe import short_name
from headstart.schedule import learning_rate_factor
from headstart.strategy import make_plan

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from headstart.assembly import Assembly
    from headstart.callbacks import Callback
    from headstart.checkpoint import Checkpoint
    from headstart.clock import Clock
    from headstart.data import DataModule
    from headstart.execution import Execution
    from headstart.model import Model
    from headstart.recipe import Recipe
    from headstart.specs import Goal
    from headstart.stages import State
    from headstart.strategy import Plan


@dataclass
class Progress:
    """Where the loop is; all of it goes into a checkpoint's ``state.json``."""

    step: int = 0
    best: float | None = None
    best_step: int = 0
    best_metrics: dict[str, float] = field(default_factory=dict)
    since_best: int = 0
    """Validations since the early-stopping metric last improved."""
    watched: float | None = None
    """Best value of the early-stopping metric."""
    pending: list[float] = field(default_factory=list)
    """Losses of the steps since the last line of the log."""


class Trainer:
    """Fine-tunes a model as a recipe says.

    Args:
        model: On its device.
        data: Loaded.
        recipe: What to do.
        plan: What trains at each step; its total is the number of steps.
        execution: Device and precision.
        metrics: Measured on validation.
        callbacks: Watchers.
        checkpoints: Folder to save to; ``None`` saves nothing.
        learning_rate: Base learning rate (the recipe's, or the range test's).
        clock: Where the time is booked.
    """

    def __init__(
        self,
        model: Model,
        data: DataModule,
        recipe: Recipe,
        plan: Plan,
        execution: Execution,
        metrics: MetricSet,
        *,
        learning_rate: float,
        clock: Clock,
        callbacks: Sequence[Callback] = (),
        checkpoints: Path | None = None,
    ) -> None:
        self.model = model
        self.data = data
        self.recipe = recipe
        self.plan = plan
        self.execution = execution
        self.metrics = metrics
        self.goals: dict[str, Goal] = {"loss": "min"}
        self.goals |= {short_name(s.name): s.goal for s in recipe.metric_specs}
        self.best = recipe.best
        self.callbacks = callbacks
        self.checkpoints = checkpoints
        self.clock = clock
        self.progress = Progress()
        self.batches = BatchParts(data, recipe)
        self.optimizer = build_optimizer(model, recipe.train, plan, learning_rate)
        self.average: AveragedModel | None = None
        if recipe.train.ema:
            self.average = AveragedModel(
                model,
                multi_avg_fn=get_ema_multi_avg_fn(  # type: ignore[no-untyped-call]
                    recipe.train.ema
                ),
            )
        self.train_seconds = 0.0
        self._generator = torch.Generator(execution.device)
        self._losses: list[torch.Tensor] = []
        self._norm = torch.zeros(())
        self._stop = ""
        self._started = time.perf_counter()

    @property
    def evaluated(self) -> Model:
        """The model that is validated and kept: the moving average if there is one."""
        if self.average is None:
            return self.model
        return cast("Model", self.average.module)

    def fit(self) -> str:
        """Train to the end of the plan.

        Returns:
            ``done``, ``stopped early`` or ``interrupted``; the last leaves a
            checkpoint to go on from.
        """
        steps_per_epoch = self.batches.steps_per_epoch
        for callback in self.callbacks:
            callback.on_start(self.plan.total, self.progress.step)
        try:
            with self._signals():
                self._apply(self.plan.trainable(self.progress.step), log=True)
                while self.progress.step < self.plan.total and not self._stop:
                    epoch, position = divmod(self.progress.step, steps_per_epoch)
                    self._epoch(epoch, position)
                if self._stop == "interrupted":
                    self.save()
        finally:
            for callback in self.callbacks:
                callback.on_end()
        return self._stop or "done"

    def _epoch(self, epoch: int, position: int) -> None:
        began = time.perf_counter()
        for parts in self.batches.steps(epoch, position):
            self.clock.lap("loading")
            self._apply(self.plan.trainable(self.progress.step))
            self._step(parts)
            self.progress.step += 1
            step = self.progress.step
            for callback in self.callbacks:
                callback.on_step(step)
            if step % self.recipe.train.log_every == 0:
                self._log()
            if self._validates(step) or step == self.plan.total:
                self.train_seconds += time.perf_counter() - began
                self._validate()
                began = time.perf_counter()
            if self._stop or step == self.plan.total:
                break
        self.train_seconds += time.perf_counter() - began

    def _step(self, parts: Sequence[State]) -> None:
        """One optimizer step on the parts of one batch, averaged by weight."""
        train, step = self.recipe.train, self.progress.step
        states = [self.execution.move(part) for part in parts]
        weights = [self.model.head.weight(state) for state in states]
        total = torch.stack(weights).sum().clamp(min=1e-12)
        set_learning_rates(self.optimizer, learning_rate_factor(train, self.plan, step))
        loss = torch.zeros((), device=self.execution.device)
        for index, batch in enumerate(states):
            share = self._loss(batch, index) * (weights[index] / total)
            share.backward()  # type: ignore[no-untyped-call]
            loss += share.detach()
            self.clock.lap("forward/backward")
        if train.clip:
            self._norm = torch.nn.utils.clip_grad_norm_(
                self.model.parameters(), train.clip
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update_parameters(self.model)
        self._losses.append(loss)
        self.clock.lap("optimizer")

    def _loss(self, batch: State, part: int) -> torch.Tensor:
        """Mean loss of one part of the current step's batch."""
        self._seed(self.progress.step, part)
        if self.data.augments:
            batch = self.data.augment(batch, self._generator)
        with self.execution.autocast():
            features = self.model.prefix(batch)
            self.clock.lap("prefix")
            return self.model.head.loss(self.model(features))

    def _seed(self, step: int, part: int) -> None:
        """All randomness of a step is a function of (seed, step, part).

        So a resumed run needs no stored generator state, and dropout is the same
        whatever ran before.
        """
        seed = (self.recipe.train.seed * 1_000_003 + step) * 1_024 + part
        torch.default_generator.manual_seed(seed)
        if self.execution.device.type == "cuda":
            torch.cuda.manual_seed(seed)
        self._generator.manual_seed(seed + 1)

    def _apply(self, stages: frozenset[str], log: bool = False) -> None:
        """Freeze and unfreeze as the plan says."""
        if stages == self.model.trainable and not log:
            return
        self.model.train()
        self.model.train_stages(stages)
        ordered = [name for name in self.plan.stages if name in stages]
        self._record("trainable", {"stages": ordered})

    def _log(self) -> None:
        """Read the losses of the last steps, the only place where the host waits."""
        pending = self.progress.pending
        if self._losses:
            pending += torch.stack(self._losses).tolist()
            self._losses = []
        if not pending:
            return
        mean = sum(pending) / len(pending)
        pending.clear()
        rates = {
            "head_learning_rate" if group["part"] == HEAD else "learning_rate": group[
                "lr"
            ]
            for group in self.optimizer.param_groups
        }
        norm = {"gradient_norm": float(self._norm)} if self.recipe.train.clip else {}
        if not math.isfinite(mean):
            raise HeadstartError(
                f"the loss is {mean} near step {self.progress.step}",
                why="the numbers ran away; what follows would train on nothing",
                fix="lower train.learning_rate, keep train.clip on, or look at the "
                "data; the last checkpoint is whole",
            )
        self._record("train", {"loss": mean, **rates, **norm})

    def _validates(self, step: int) -> bool:
        interval = self.recipe.train.evaluate_every * self.batches.steps_per_epoch
        return math.floor(step / interval) > math.floor((step - 1) / interval)

    def _validate(self) -> None:
        self._log()
        self.clock.lap("optimizer")
        values = evaluate(
            self.evaluated,
            self.data,
            self.data.samples("validation"),
            sizes=self.data.sizes("validation"),
            batch_size=self.recipe.eval_batch_size,
            execution=self.execution,
            metrics=self.metrics,
        ).metrics
        self.clock.lap("evaluation")
        self._record("validation", values)
        improved = self._better(values[self.best], self.progress.best, self.best)
        if improved:
            self.progress.best = values[self.best]
            self.progress.best_step = self.progress.step
            self.progress.best_metrics = values
        self._watch(values)
        self.save(best=improved)

    def _watch(self, values: dict[str, float]) -> None:
        stopping = self.recipe.early_stopping
        name = stopping.metric or self.best
        if name not in values:
            raise UserError(
                f"there is no metric {name!r} to watch",
                where="early_stopping.metric",
                fix=f"choose one of {', '.join(values)}",
            )
        if self._better(values[name], self.progress.watched, name, stopping.min_delta):
            self.progress.watched = values[name]
            self.progress.since_best = 0
        else:
            self.progress.since_best += 1
        if 0 < stopping.patience <= self.progress.since_best:
            self._stop = "stopped early"

    def _better(
        self, value: float, best: float | None, name: str, margin: float = 0.0
    ) -> bool:
        if math.isnan(value):
            return False
        if best is None:
            return True
        if self.goals[name] == "max":
            return value > best + margin
        return value < best - margin

    def save(self, best: bool = False) -> None:
        """Write a checkpoint from which training can go on exactly."""
        if self.checkpoints is None:
            return
        if self._losses:
            self.progress.pending += torch.stack(self._losses).tolist()
            self._losses = []
        self.clock.lap("optimizer")
        tensors = {
            "model": self.model.state_dict(),
            "optimizer": optimizer_tensors(self.optimizer),
        }
        if self.average is not None:
            tensors["average"] = self.average.state_dict()
        checkpoint = write_checkpoint(
            self.checkpoints, self.progress.step, tensors, vars(self.progress)
        )
        if best:
            mark_best(checkpoint)
        prune(self.checkpoints, self.recipe.train.keep_checkpoints)
        self.clock.lap("checkpoint")
        self._record("checkpoint", {"path": checkpoint.folder.name, "best": best})

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go back to where a checkpoint was written."""
        self.model.load_state_dict(checkpoint.tensors("model"))
        restore_optimizer(self.optimizer, checkpoint.tensors("optimizer"))
        if self.average is not None:
            self.average.load_state_dict(checkpoint.tensors("average"))
        self.progress = Progress(**checkpoint.state())

    def costs(self) -> dict[str, Any]:
        """Where the time went, throughput, padding and memory, for the summary."""
        phases = self.clock.seconds()
        batches, seconds = self.batches, max(self.train_seconds, 1e-9)
        throughput: dict[str, Any] = {"samples_per_second": batches.count / seconds}
        if batches.padded:
            throughput["units_per_second"] = batches.used / seconds
            throughput["unit"] = self.data.size_unit
        return {
            "time": {**phases, "total": sum(phases.values())},
            "throughput": throughput,
            "padding_waste": batches.padding_waste,
            "peak_memory_bytes": peak_memory_bytes(self.execution.device),
            "bottleneck": bottleneck(phases),
        }

    def _record(self, event: str, values: dict[str, Any]) -> None:
        record = {
            "event": event,
            "step": self.progress.step,
            "epoch": self.progress.step / self.batches.steps_per_epoch,
            "time": round(time.perf_counter() - self._started, 3),
            **values,
        }
        for callback in self.callbacks:
            callback.on_record(record)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM end the run after the step, with a checkpoint.

        A second one does not wait.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def request(number: int, frame: object) -> None:
            if self._stop == "interrupted":
                raise KeyboardInterrupt
            self._stop = "interrupted"

        before = {
            number: signal.signal(number, request)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def plan_training(recipe: Recipe, assembly: Assembly) -> Plan:
    """How many steps there are, and what trains at each."""
    train = recipe.train
    samples = len(assembly.data.samples("train"))
    steps = math.ceil(train.epochs * math.ceil(samples / train.batch_size))
    total = min(steps, train.max_steps or steps)
    return make_plan(recipe.strategy, assembly.model.backbone.stage_names, total)


def make_trainer(
    recipe: Recipe,
    assembly: Assembly,
    plan: Plan,
    clock: Clock,
    callbacks: Sequence[Callback] = (),
    checkpoints: Path | None = None,
) -> Trainer:
    """A trainer for an assembled recipe; finds the learning rate first if asked to."""
    rate = recipe.train.learning_rate
    if rate == "auto":
        rate, curve = range_test(
            assembly.model, assembly.data, recipe, plan, assembly.execution
        )
        for step, (tried, loss) in enumerate(curve):
            record = {"event": "range", "step": step, "epoch": 0.0, "time": 0.0}
            for callback in callbacks:
                callback.on_record({**record, "learning_rate": tried, "loss": loss})
        clock.lap("range test")
    data, execution = assembly.data, assembly.execution
    return Trainer(
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
    )
