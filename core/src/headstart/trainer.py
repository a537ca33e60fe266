"""The training loop, one for every domain."""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from headstart.batch_norm import explained
from headstart.batches import BatchParts
from headstart.costs import spent
from headstart.distributed import World, replicate, shard
from headstart.interruption import Interruption
from headstart.keeping import Keeper
from headstart.loss_log import LossLog, too_many_bad_steps
from headstart.memory import fits, more_parts, refuse_more_parts
from headstart.prefetch import prefetch
from headstart.prefix_cache import PrefixCache, PrefixCaches
from headstart.progress import Progress
from headstart.schedule import learning_rate_factor
from headstart.specs import short_name
from headstart.update import Update
from headstart.validation import Validation

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from headstart.batches import Part
    from headstart.callbacks import Callback
    from headstart.checkpoint import Checkpoint
    from headstart.clock import Clock
    from headstart.data import DataModule
    from headstart.evaluate import MetricSet
    from headstart.execution import Execution
    from headstart.model import Model
    from headstart.recipe import Recipe
    from headstart.specs import Goal
    from headstart.stages import State
    from headstart.strategy import Plan


class Trainer:
    """Fine-tunes a model as a recipe says.

    Args:
        model: On its device.
        data: Loaded and prepared.
        recipe: What to do.
        plan: What trains at each step; its total is the number of steps.
        execution: Device and precision.
        metrics: Measured on validation.
        learning_rate: Base learning rate (the recipe's, or the range test's).
        clock: Where the time is booked.
        callbacks: Watchers; only the main rank has any. Whoever made them ends them.
        checkpoints: Folder to save to; ``None`` saves nothing.
        world: The ranks that train together.
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
        world: World | None = None,
    ) -> None:
        self.model = model
        self.data = data
        self.recipe = recipe
        self.plan = plan
        self.execution = execution
        self.goals: dict[str, Goal] = {"loss": "min"}
        self.goals |= {short_name(s.name): s.goal for s in recipe.metric_specs}
        self.callbacks = callbacks
        self.clock = clock
        self.world = world or World()
        self.progress = Progress(
            accumulate=recipe.train.accumulate, learning_rate=learning_rate
        )
        self.losses = LossLog(self.progress, self.world)
        self.batches = BatchParts(data, recipe, self.world)
        self.validation = Validation(
            data, recipe, execution, metrics, self.world, self.batches.steps_per_epoch
        )
        self._sharded = self.world.size > 1 and recipe.train.parallel == "fsdp"
        if self._sharded:
            shard(model)
        self.update = Update(model, recipe.train, plan, learning_rate, self.world)
        self.keeper = Keeper(
            checkpoints,
            recipe.train.keep_checkpoints,
            model,
            self.update,
            self.world,
            constant=model.constant(plan.ever()),
        )
        self._interruption = Interruption(speaks=self.world.main)
        self.caches = PrefixCaches(
            model,
            data,
            recipe.cache,
            execution,
            # A GPU wants large batches, a CPU's caches small ones.
            batch_size=recipe.eval_batch_size
            if execution.device.type == "cuda"
            else recipe.train.batch_size,
            batch_total=recipe.train.batch_total,
            seed=recipe.train.seed,
            tell=self._tell,
            world=self.world,
            sharded=self._sharded,
            asked=lambda: self._interruption.asked,
        )
        self.train_seconds = 0.0
        self.earlier_peak = 0
        """The most memory that was used before the run was resumed, in bytes."""
        self._engine: nn.Module = model
        self._train_cache: PrefixCache | None = None
        self._validation_cache: PrefixCache | None = None
        self._generator = torch.Generator(execution.device)
        self._stop = ""
        self._started = time.perf_counter()

    @property
    def evaluated(self) -> Model:
        """The model that is validated and kept: the moving average if there is one."""
        return self.update.averaged

    def fit(self) -> str:
        """Train to the end of the plan.

        Returns:
            ``done``, ``stopped early`` or ``interrupted``; the last leaves a
            checkpoint to go on from.
        """
        self.batches.accumulate = self.progress.accumulate
        for callback in self.callbacks:
            callback.on_start(self.plan.total, self.progress.step)
        with self._interruption, explained(self.model, self.batches, self.progress):
            self._train()
        return self._stop or "done"

    def _train(self) -> None:
        progress, plan = self.progress, self.plan
        first = self.recipe.train.evaluate_at_start or not plan.total
        if first and not progress.step and not progress.best_metrics:
            self.model.train_stages(plan.trainable(0))
            if self.data.samples("validation"):
                self._validate()
            else:
                self.save(best=True)
        if progress.stops_early(self.recipe.early_stopping):
            self._stop = "stopped early"
        if self.recipe.train.micro_batch == "auto" and not progress.step:
            self._probe_memory()
        entered: frozenset[str] | None = None
        while progress.step < plan.total and not self._stop:
            stages = plan.trainable(progress.step)
            if stages != entered:
                self._enter(stages)
                entered = stages
                # Filling a cache may have taken hours.
                self._heed_interruption(logs=True)
                continue
            fitted = True
            try:
                self._epoch(*divmod(progress.step, self.batches.steps_per_epoch))
            except torch.OutOfMemoryError:
                fitted = False
            if not fitted:
                # Outside the handler, whose traceback holds on to the step's tensors.
                self.update.forget()
                self._halve(together=self.world.size == 1)
        if self._stop == "interrupted":
            self.save()

    def _epoch(self, epoch: int, position: int) -> None:
        """Steps until the epoch, the phase or the training ends."""
        began = time.perf_counter()
        train, progress = self.recipe.train, self.progress
        try:
            steps = self.batches.steps(epoch, position, self._train_cache)
            for parts in prefetch(steps, self._move, self.execution.device):
                self.clock.lap("loading")
                self._step(parts)
                self.batches.took_step()
                progress.step += 1
                step = progress.step
                for callback in self.callbacks:
                    callback.on_step(step)
                last = step == self.plan.total
                logs = step % train.log_every == 0
                if logs:
                    self._log()
                if last or self.validation.due(step):
                    self.train_seconds += time.perf_counter() - began
                    self._validate()
                    began = time.perf_counter()
                elif train.checkpoint_every and step % train.checkpoint_every == 0:
                    now = time.perf_counter()
                    self.train_seconds, began = self.train_seconds + now - began, now
                    self.save()
                self._heed_interruption(logs)
                if last or self._stop or self.plan.changes_at(step):
                    break
        finally:
            self.train_seconds += time.perf_counter() - began

    def _heed_interruption(self, logs: bool) -> None:
        """Stop if asked to; several ranks agree on the step with a line of the log."""
        asked = self._interruption.asked
        if self.world.size > 1:
            asked = logs and self.world.any(asked, self.execution.device)
        if asked:
            self._stop = self._stop or "interrupted"

    def _step(self, parts: Sequence[tuple[Part, State]]) -> None:
        """One optimizer step on the parts of one batch, averaged by weight."""
        factor = learning_rate_factor(self.recipe.train, self.plan, self.progress.step)
        self.update.begin(factor, self.plan.later(self.progress.step))
        parts = self._augmented(parts)
        shares = self._shares(parts)
        loss: torch.Tensor | None = None
        for place, (part, state) in enumerate(parts):
            with self._synchronised(place == len(parts) - 1):
                share = self._loss(state, part)
                if shares:
                    share = share * shares[place]
                # Engines average over ranks what has to be summed.
                scaled = share * self.world.size if self.world.size > 1 else share
                scaled.backward()  # type: ignore[no-untyped-call]
            loss = share.detach() if loss is None else loss + share.detach()
            self.clock.lap("forward/backward")
        assert loss is not None
        self.losses.add(self.update.finish(loss))
        self.clock.lap("optimizer")

    def _move(self, parts: list[tuple[Part, State]]) -> list[tuple[Part, State]]:
        return [(part, self.execution.move(state)) for part, state in parts]

    def _augmented(
        self, parts: Sequence[tuple[Part, State]]
    ) -> Sequence[tuple[Part, State]]:
        """The parts after random changes, which may change how much they weigh."""
        if self._train_cache is not None or not self.data.augments:
            return parts
        changed = []
        for part, state in parts:
            self._generator.manual_seed(self._chance(part.number) + 1)
            changed.append((part, self.data.augment(state, self._generator)))
        return changed

    def _shares(self, parts: Sequence[tuple[Part, State]]) -> list[torch.Tensor]:
        """Each part's share in the batch by weight; empty when one part is all."""
        if len(parts) == 1 and self.world.size == 1:
            return []
        weights = [
            self.model.head.weight(state) * float(part.counts) for part, state in parts
        ]
        total = self.world.sum(torch.stack(weights).sum()).clamp(min=1e-12)
        return [weight / total for weight in weights]

    def _loss(self, state: State, part: Part) -> torch.Tensor:
        """Mean loss of one part of the current step's batch."""
        seed = self._chance(part.number)
        torch.default_generator.manual_seed(seed)
        if self.execution.device.type == "cuda":
            torch.cuda.manual_seed(seed)
        with self.execution.autocast():
            if self._train_cache is None:
                state = self.model.prefix(state)
                self.clock.lap("prefix")
            return self.model.head.loss(self._engine(state))

    def _chance(self, part: int) -> int:
        """All randomness of a step is a function of (seed, step, part).

        So a resumed run needs no stored generator state, and dropout is the same
        whatever ran before.
        """
        step = self.progress.step
        return (self.recipe.train.seed * 1_000_003 + step) * 1_024 + part

    def _synchronised(self, last: bool) -> AbstractContextManager[None]:
        """Ranks exchange gradients once a step, with its last part."""
        if isinstance(self._engine, DistributedDataParallel) and not last:
            return cast("AbstractContextManager[None]", self._engine.no_sync())
        return nullcontext()

    def _enter(self, stages: frozenset[str]) -> None:
        """Freeze and unfreeze as the plan says; engine and caches follow."""
        model, step = self.model, self.progress.step
        model.train()
        model.train_stages(stages)
        if self.evaluated is not model:
            # It is validated from the same freeze point on, maybe from the cache.
            self.evaluated.train_stages(stages)
        if step and step in self.plan.phases:
            self.update.start_anew()
        self.update.enter(stages)
        if self.plan.changes_at(step):
            ordered = [name for name in self.plan.stages if name in stages]
            self._record("trainable", {"stages": ordered})
        if self.world.size > 1 and not self._sharded:
            self._engine = replicate(model, self.execution)
        elif self.recipe.train.compile:
            self._engine = cast("nn.Module", torch.compile(model))
        left = (self.plan.change_after(step) - step) / self.batches.steps_per_epoch
        checks = left / self.recipe.train.evaluate_every
        self._train_cache = self.caches.choose("train", left)
        self._validation_cache = self.caches.choose("validation", checks)
        self.clock.lap("prefix")

    def _halve(self, together: bool) -> None:
        """Repeat the step in twice as many parts, if all ranks do so together."""
        where = f"step {self.progress.step + 1}"
        refuse_more_parts(where, self.batches, self.world, together)
        more_parts(self.batches, self.model, self._tell)
        self.progress.accumulate = self.batches.accumulate
        self._record("memory", {"accumulate": self.progress.accumulate})

    def _probe_memory(self) -> None:
        """Find out before the first step in how many parts the largest batch fits."""
        self.model.train()
        self.model.train_stages(self.plan.trainable(self.plan.total - 1))
        while True:
            full = not fits(self.model, self.data, self.batches, self.execution)
            # Ranks with shards wait for each other in every pass, and cannot be asked.
            if not self._sharded:
                full = self.world.any(full, self.execution.device)
            if not full:
                return
            self._halve(together=not self._sharded)

    def _log(self) -> None:
        mean = self.losses.mean()
        if mean is not None:
            rate, factor = self.progress.learning_rate, self.update.factor
            later = self.plan.later(self.progress.step - 1)
            head_rate = (not later and self.recipe.train.head_learning_rate) or rate
            values = {
                "loss": mean,
                "learning_rate": rate * factor,
                "head_learning_rate": head_rate * factor,
            }
            norm = float(self.update.norm)
            if math.isfinite(norm):
                values["gradient_norm"] = norm
            self._record("train", values)
        if self.progress.untold:
            self._tell_of_bad_steps()

    def _tell_of_bad_steps(self) -> None:
        """Say which step was left out last, and stop when there were too many.

        Raises:
            HeadstartError: Names the batch and the checkpoint to go back to.
        """
        step = self.progress.untold[-1]
        self.progress.untold.clear()
        count = self.progress.bad_steps
        self._record("bad step", {"bad_step": step, "bad_steps": count})
        self._tell(f"step {step + 1} left out: its loss or gradient is not finite")
        if count >= self.recipe.train.bad_steps:
            batch = self.batches.batch(step).tolist()
            ids = [str(self.batches.samples[i]["id"]) for i in batch]
            raise too_many_bad_steps(count, step, ids, self.keeper.last)

    def _validate(self) -> None:
        self._log()
        self.clock.lap("optimizer")
        values = self.validation.measure(self.evaluated, self._validation_cache)
        self.clock.lap("evaluation")
        self._record("validation", values)
        for fault in self.model.head.diagnose(values):
            self._tell(f"warning: {fault}")
        progress, stopping = self.progress, self.recipe.early_stopping
        improved = progress.judge(values, self.recipe.best, self.goals, stopping)
        if progress.stops_early(stopping):
            self._stop = self._stop or "stopped early"
        self.save(best=improved)

    def save(self, best: bool = False) -> None:
        """Write a checkpoint from which training can go on exactly."""
        if self.keeper.folder is None:
            return
        self.losses.read()
        self.clock.lap("optimizer")
        self.keeper.save(self.progress, best)
        self.clock.lap("checkpoint")
        values = {"path": self.keeper.last, "best": best, "spent": spent(self)}
        self._record("checkpoint", values)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go back to where a checkpoint was written."""
        self.progress = self.keeper.restore(checkpoint)
        # A resumed recipe may ask for more parts; fewer did not fit.
        self.progress.accumulate = max(
            self.progress.accumulate, self.recipe.train.accumulate
        )
        self.losses = LossLog(self.progress, self.world)

    def _tell(self, text: str) -> None:
        for callback in self.callbacks:
            callback.on_message(text)

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
