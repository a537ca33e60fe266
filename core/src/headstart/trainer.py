"""The training loop, one for every domain."""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from headstart.batches import BatchParts
from headstart.buffers import MovingBuffers
from headstart.checkpoint import mark_best, prune, put_best_back, write_checkpoint
from headstart.clock import bottleneck
from headstart.distributed import World, load_whole, replicate, shard, whole
from headstart.environment import peak_memory_bytes
from headstart.errors import HeadstartError, UserError
from headstart.evaluate import MetricSet, evaluate
from headstart.interruption import Interruption
from headstart.loss_log import LossLog
from headstart.memory import fits, more_parts, single_sample_too_large
from headstart.optim import (
    build_optimizer,
    optimizer_tensors,
    restore_optimizer,
    set_learning_rates,
    start_momentum,
)
from headstart.prefetch import prefetch
from headstart.prefix_cache import PrefixCache, PrefixCaches
from headstart.progress import Progress
from headstart.recipe import short_name
from headstart.schedule import learning_rate_factor

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from headstart.batches import Part
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


Tensors: TypeAlias = "tuple[torch.Tensor, ...] | list[torch.Tensor]"


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
        callbacks: Watchers; only the main rank has any.
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
        self.metrics = metrics
        self.goals: dict[str, Goal] = {"loss": "min"}
        self.goals |= {short_name(s.name): s.goal for s in recipe.metric_specs}
        self.callbacks = callbacks
        self.checkpoints = checkpoints
        self.clock = clock
        self.world = world or World()
        self.progress = Progress(
            accumulate=recipe.train.accumulate, learning_rate=learning_rate
        )
        self.losses = LossLog(self.progress, self.world)
        self.batches = BatchParts(data, recipe, self.world)
        self._sharded = self.world.size > 1 and recipe.train.parallel == "fsdp"
        if self._sharded:
            shard(model)
        self.optimizer = build_optimizer(model, recipe.train, plan, learning_rate)
        self.average: AveragedModel | None = None
        if recipe.train.ema:
            self.average = AveragedModel(model, multi_avg_fn=self._average)
        self.caches = PrefixCaches(
            model,
            data,
            recipe.cache,
            execution,
            # A GPU wants large batches, a CPU's caches small ones.
            batch_size=recipe.eval_batch_size
            if execution.device.type == "cuda"
            else recipe.train.batch_size,
            seed=recipe.train.seed,
            tell=self._tell,
            world=self.world,
            sharded=self._sharded,
        )
        self.train_seconds = 0.0
        self._engine: nn.Module = model
        self._training: list[nn.Parameter] = []
        self._buffers = MovingBuffers(())
        self._train_cache: PrefixCache | None = None
        self._validation_cache: PrefixCache | None = None
        self._generator = torch.Generator(execution.device)
        self._norm = torch.zeros((), device=execution.device)
        self._taken = torch.ones((), device=execution.device)
        self._factor = 0.0
        self._interruption = Interruption()
        self._last_checkpoint = ""
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
        self.batches.accumulate = self.progress.accumulate
        for callback in self.callbacks:
            callback.on_start(self.plan.total, self.progress.step)
        try:
            with self._interruption:
                self._train()
        finally:
            for callback in self.callbacks:
                callback.on_end()
        return self._stop or "done"

    def _train(self) -> None:
        progress, plan = self.progress, self.plan
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
            fitted = True
            try:
                self._epoch(*divmod(progress.step, self.batches.steps_per_epoch))
            except torch.OutOfMemoryError:
                fitted = False
            if not fitted:
                # Outside the handler, whose traceback holds on to the step's tensors.
                self._forget_step()
                self._halve()
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
                progress.step += 1
                step = progress.step
                for callback in self.callbacks:
                    callback.on_step(step)
                last = step == self.plan.total
                logs = step % train.log_every == 0
                if logs:
                    self._log()
                if last or self._validates(step):
                    self.train_seconds += time.perf_counter() - began
                    self._validate()
                    began = time.perf_counter()
                elif train.checkpoint_every and step % train.checkpoint_every == 0:
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
        set_learning_rates(self.optimizer, factor)
        self._factor = factor
        self._buffers.keep()
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
        self._update(loss)
        self.clock.lap("optimizer")

    def _move(self, parts: list[tuple[Part, State]]) -> list[tuple[Part, State]]:
        return [(part, self.execution.move(state)) for part, state in parts]

    def _shares(self, parts: Sequence[tuple[Part, State]]) -> list[torch.Tensor]:
        """Each part's share in the batch by weight; empty when one part is all."""
        if len(parts) == 1 and self.world.size == 1:
            return []
        weights = [
            self.model.head.weight(state) * float(part.counts) for part, state in parts
        ]
        total = self.world.sum(torch.stack(weights).sum()).clamp(min=1e-12)
        return [weight / total for weight in weights]

    def _update(self, loss: torch.Tensor) -> None:
        """Clip and step, unless a number is not finite; without waiting for the device.

        Fused optimizers leave parameters and state alone where ``found_inf`` is 1, the
        switch that gradient scalers use.
        """
        limit = self.recipe.train.clip or math.inf
        norm = torch.nn.utils.clip_grad_norm_(self._training, limit)
        self._norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        check = self._norm + self.world.sum(
            loss.clone() if self.world.size > 1 else loss
        )
        # 0 if all is finite, else not a number; and no tensor is read.
        check = check - check
        bad = check.ne(0)
        self.optimizer.found_inf = bad.float()  # type: ignore[attr-defined]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        # The forward pass has moved BatchNorm's statistics already.
        self._buffers.take_back(bad)
        self.losses.add(loss + check)
        if self.average is not None:
            self._taken = check.eq(0).float()
            self.average.update_parameters(self.model)

    def _average(
        self, averages: Tensors, values: Tensors, count: torch.Tensor | int
    ) -> None:
        """Exponential moving average; a step that was left out does not move it."""
        share = self._taken * (1 - self.recipe.train.ema)
        changes = torch._foreach_sub(values, averages)
        torch._foreach_mul_(changes, share)
        torch._foreach_add_(averages, changes)

    def _loss(self, state: State, part: Part) -> torch.Tensor:
        """Mean loss of one part of the current step's batch."""
        self._seed(self.progress.step, part.number)
        if self._train_cache is None and self.data.augments:
            state = self.data.augment(state, self._generator)
        with self.execution.autocast():
            if self._train_cache is None:
                state = self.model.prefix(state)
                self.clock.lap("prefix")
            return self.model.head.loss(self._engine(state))

    def _seed(self, step: int, part: int) -> None:
        """All randomness of a step is a function of (seed, step, part).

        So a resumed run needs no stored generator state, and dropout is the same
        whatever ran before.
        """
        seed = (self.recipe.train.seed * 1_000_003 + step) * 1_024 + part
        torch.default_generator.manual_seed(seed)
        if self.execution.device.type == "cuda":
            torch.cuda.manual_seed(seed)
        if self.data.augments:
            self._generator.manual_seed(seed + 1)

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
        if self.average is not None:
            # It is validated from the same freeze point on, maybe from the cache.
            self.evaluated.train_stages(stages)
        self._training = [p for p in model.parameters() if p.requires_grad]
        start_momentum(self.optimizer, self._training)
        trains = [model.backbone.stages[name] for name in stages]
        self._buffers = MovingBuffers([*trains, model.head])
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

    def _forget_step(self) -> None:
        """Leave no trace of a step that was not finished."""
        self.optimizer.zero_grad(set_to_none=True)
        self._buffers.take_back()

    def _halve(self) -> None:
        """Repeat the step in twice as many parts, of half as many samples each."""
        share = math.ceil(self.recipe.train.batch_size / self.world.size)
        if self.progress.accumulate >= share:
            raise single_sample_too_large(f"step {self.progress.step + 1}")
        self.progress.accumulate = self.batches.accumulate = more_parts(
            self.progress.accumulate, self.model, self._tell
        )
        self._record("memory", {"accumulate": self.progress.accumulate})

    def _probe_memory(self) -> None:
        """Find out before the first step in how many parts the largest batch fits."""
        self.model.train()
        self.model.train_stages(self.plan.trainable(self.plan.total - 1))
        while not fits(self.model, self.batches, self.execution):
            self._halve()

    def _log(self) -> None:
        mean = self.losses.mean()
        if mean is not None:
            rate = self.progress.learning_rate
            head_rate = self.recipe.train.head_learning_rate or rate
            values = {
                "loss": mean,
                "learning_rate": rate * self._factor,
                "head_learning_rate": head_rate * self._factor,
            }
            norm = float(self._norm)
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
        epoch, position = divmod(step, self.batches.steps_per_epoch)
        batch = self.batches.batch(epoch, position).tolist()
        ids = ", ".join(str(self.batches.samples[i]["id"]) for i in batch)
        self._record("bad step", {"bad_step": step, "bad_steps": count})
        self._tell(f"step {step + 1} left out: its loss or gradient is not finite")
        if count >= self.recipe.train.bad_steps:
            good = self._last_checkpoint or "none yet"
            raise HeadstartError(
                f"{count} steps had a loss or gradient that is not finite",
                where=f"step {step + 1}, samples {ids}",
                why="the numbers ran away; those steps were left out, yet they come "
                "again",
                fix="look at these samples, lower train.learning_rate, or keep "
                f"train.clip on; the last good checkpoint: {good}",
            )

    def _validates(self, step: int) -> bool:
        interval = self.recipe.train.evaluate_every * self.batches.steps_per_epoch
        return math.floor(step / interval) > math.floor((step - 1) / interval)

    def _measure(self) -> dict[str, float]:
        """Loss and metrics on validation.

        Raises:
            UserError: It does not fit into memory, where training does.
        """
        try:
            return evaluate(
                self.evaluated,
                self.data,
                self.data.samples("validation"),
                sizes=self.data.sizes("validation"),
                batch_size=self.recipe.eval_batch_size,
                execution=self.execution,
                metrics=self.metrics,
                world=self.world,
                cache=self._validation_cache,
            ).metrics
        except torch.OutOfMemoryError as error:
            raise UserError(
                "the validation does not fit into the device's memory",
                where="train.eval_batch_size",
                why=str(error).partition("\n")[0],
                fix=f"choose less than {self.recipe.eval_batch_size}",
            ) from error

    def _validate(self) -> None:
        self._log()
        self.clock.lap("optimizer")
        values = self._measure()
        self.clock.lap("evaluation")
        self._record("validation", values)
        progress, stopping = self.progress, self.recipe.early_stopping
        improved = progress.judge(values, self.recipe.best, self.goals, stopping)
        if progress.stops_early(stopping):
            self._stop = self._stop or "stopped early"
        self.save(best=improved)

    def save(self, best: bool = False) -> None:
        """Write a checkpoint from which training can go on exactly."""
        if self.checkpoints is None:
            return
        self.losses.read()
        self.clock.lap("optimizer")
        tensors = {
            "model": whole(self.model.state_dict()),
            "optimizer": whole(optimizer_tensors(self.optimizer)),
        }
        if self.average is not None:
            tensors["average"] = whole(self.average.state_dict())
        name = ""
        if self.world.main:
            checkpoint = write_checkpoint(
                self.checkpoints, self.progress.step, tensors, vars(self.progress)
            )
            name = checkpoint.folder.name
            if best:
                mark_best(checkpoint)
            prune(self.checkpoints, self.recipe.train.keep_checkpoints)
        self._last_checkpoint = name
        self.world.wait()
        self.clock.lap("checkpoint")
        self._record("checkpoint", {"path": name, "best": best})

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go back to where a checkpoint was written."""
        load_whole(self.model, checkpoint.tensors("model"))
        restore_optimizer(self.optimizer, checkpoint.tensors("optimizer"))
        if self.average is not None:
            load_whole(self.average, checkpoint.tensors("average"))
        self.progress = Progress(**checkpoint.state())
        self.losses = LossLog(self.progress, self.world)
        self._last_checkpoint = checkpoint.folder.name
        if self.world.main:
            put_best_back(checkpoint, self.progress.best_step)

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
