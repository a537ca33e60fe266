"""How much memory a training will need, before its first step.

Weights, gradients and the optimizer's state are counted. What the passes need beside
them is measured on a few of the largest samples: after each operation, the bytes of
all tensors that are alive. Two samples and three take the same operations, so what each
leaves is a line in the number of samples, and the highest of these lines at the size
of a batch is the peak, whatever is kept, recomputed or given back on the way.
"""

from __future__ import annotations

import weakref
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from headstart.batch_order import evaluation_batches
from headstart.environment import (
    free_memory_bytes,
    peak_memory_bytes,
    used_memory_bytes,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from headstart.data import Split
    from headstart.model import Model
    from headstart.trainer import Trainer

SMALL = 64 * 10**6
"""Bytes that operations may make in a measurement beyond the first two."""

SPLITS: tuple[Split, ...] = ("validation", "test")


@dataclass(frozen=True)
class MemoryEstimate:
    """What a training will need at its peak, in bytes.

    Attributes:
        parts: What needs how much; ``other`` is what the process has besides.
        used: What the process has already.
        peak: The most that it has had so far.
        free: What it can have beside what it has, where that is known.
        ways_out: What would need less.
    """

    parts: Mapping[str, int]
    used: int
    peak: int
    free: int | None
    ways_out: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        """Comparable with :func:`headstart.environment.peak_memory_bytes`."""
        return max(self.peak, sum(self.parts.values()))

    @property
    def fits(self) -> bool:
        """Whether there is enough, as far as is known."""
        return self.free is None or sum(self.parts.values()) <= self.used + self.free

    def line(self) -> str:
        """The estimate in one line."""
        parts = ", ".join(
            f"{name} {gigabytes(size)}"
            for name, size in self.parts.items()
            if size >= 5e6 or name == "weights"
        )
        text = f"memory: about {gigabytes(self.total)} GB needed ({parts})"
        if self.free is not None:
            text += f", {gigabytes(self.used)} GB of it in use, "
            text += f"{gigabytes(self.free)} GB free"
        return text

    def messages(self) -> list[str]:
        """The line, and a warning if it does not fit."""
        if self.fits:
            return [self.line()]
        return [
            self.line(),
            "warning: the training will probably run out of memory; what needs less: "
            + "; ".join(self.ways_out),
        ]

    def to_dict(self) -> dict[str, Any]:
        """For the summary."""
        return {"estimated_bytes": self.total, "parts": dict(self.parts)}


def gigabytes(size: int) -> str:
    """Gigabytes (10^9 bytes), to two digits or so."""
    amount = size / 1e9
    return f"{amount:.{0 if amount >= 9.95 else 1 if amount >= 0.995 else 2}f}"


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within it, the bytes of the tensors that are alive, after each operation.

    Args:
        device: Of the tensors that are counted.
        known: Tensors that do not count.

    Attributes:
        after: Bytes that were alive after each operation.
        made: Bytes of all tensors together.
    """

    supports_higher_order_operators = True

    def __init__(self, device: torch.device, known: Iterable[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.after: list[int] = []
        self.made = 0
        self._device = device.type
        self._bytes = 0
        self._alive: dict[int, weakref.ref[Any]] = {}
        self._count(known, False)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.hold(result)
        return result

    def hold(self, value: Any) -> None:
        """Count what came to be: tensors in any nesting."""
        self._count(tree_leaves(value), True)
        self.after.append(self._bytes)

    def _count(self, values: Iterable[Any], counts: bool) -> None:
        for value in values:
            if (
                not isinstance(value, torch.Tensor)
                or value.device.type != self._device
                or value.layout != torch.strided
            ):
                continue
            storage = value.untyped_storage()
            key = storage._cdata
            if key not in self._alive:
                size = storage.nbytes() if counts else 0
                self._bytes += size
                self.made += size
                gone = partial(self._forget, key, size)
                self._alive[key] = weakref.ref(storage, gone)

    def _forget(self, key: int, size: int, _: Any) -> None:
        del self._alive[key]
        self._bytes -= size


def estimate_memory(trainer: Trainer) -> MemoryEstimate | str:
    """What a training will need at its peak; leaves no trace.

    Several ranks estimate each for itself. A compiled model may need less.

    Args:
        trainer: Before its first step.

    Returns:
        The estimate, or why there is none.
    """
    if trainer.world.size > 1 and trainer.recipe.train.parallel == "fsdp":
        return "the parameters are spread over the ranks"
    if trainer.progress.step >= trainer.plan.total:
        return "there are no steps to take"
    try:
        with _without_a_trace(trainer):
            return _estimate(trainer)
    except torch.OutOfMemoryError:
        return "not even two samples fit into the device's memory"
    except Exception as error:
        text = str(error).partition("\n")[0]
        return f"the model cannot be measured: {type(error).__name__}: {text}"


def _estimate(trainer: Trainer) -> MemoryEstimate:
    model, update, recipe = trainer.model, trainer.update, trainer.recipe
    device = trainer.execution.device
    trains = [p for p in model.parameters() if p.requires_grad]
    weights = _size([*model.parameters(), *model.buffers()])
    average = update.average
    averaged = _size([*average.parameters(), *average.buffers()]) if average else 0
    gradients = _size(trains)
    moments = {"adamw": 2, "sgd": 1}[recipe.train.optimizer] * gradients
    state = update.optimizer.state.values()
    there = _size(v for values in state for v in values.values())
    training = _training_peak(trainer)
    # Updating the average takes a copy of all parameters for a moment.
    training = max(training, _size(model.parameters()) if average else 0)
    evaluation = _evaluation_peak(trainer)
    # Now, since libraries allocate for themselves when they are first used.
    used, peak = used_memory_bytes(device), peak_memory_bytes(device)
    parts = {
        "weights": weights,
        "average": averaged,
        # Of several ranks each has the buckets that they exchange as well.
        "gradients": gradients * (1 if trainer.world.size == 1 else 2),
        "optimizer": moments,
        "activations": max(training, evaluation, gradients) - gradients,
        "cache": _cache(trainer),
        "other": max(used - weights - averaged - there, 0),
    }
    parts = {name: size for name, size in parts.items() if size}
    free = free_memory_bytes(device)
    ways_out = _ways_out(trainer, evaluation > training)
    return MemoryEstimate(parts, used, peak, free, tuple(ways_out))


@contextmanager
def _without_a_trace(trainer: Trainer) -> Iterator[None]:
    """Within it, all that ever trains does; afterwards everything is as before."""
    model, plan, device = trainer.model, trainer.plan, trainer.execution.device
    stages, training = model.trainable, model.training
    gpus = [device] if device.type == "cuda" else []
    ever = frozenset[str]().union(*(trained for _, trained in plan.changes))
    with torch.random.fork_rng(gpus):
        model.train()
        model.train_stages(ever)
        moving = [*(model.backbone.stages[name] for name in ever), model.head]
        before = [(b, b.clone()) for module in moving for b in module.buffers()]
        try:
            yield
        finally:
            model.zero_grad(set_to_none=True)
            with torch.no_grad():
                for buffer, value in before:
                    buffer.copy_(value)
            model.train_stages(stages)
            model.train(training)


def _training_peak(trainer: Trainer) -> int:
    """Bytes that the largest part of a batch takes, gradients included."""
    batches = trainer.batches
    part = batches.parts(batches.largest())[0].samples
    return _peak(lambda indices: _train(trainer, indices), part)


def _evaluation_peak(trainer: Trainer) -> int:
    """Bytes that the largest batch of validation and test takes."""
    data, rows = trainer.data, trainer.recipe.eval_batch_size
    total = data.in_steps(trainer.recipe.eval_batch_total)
    largest = []
    for split in SPLITS:
        sizes, count = data.sizes(split), len(data.samples(split))
        for batch in evaluation_batches(count, rows, sizes, total):
            size = 1 if sizes is None else int(sizes[batch].max())
            largest.append((len(batch) * size, split, batch))
    _, split, part = max(largest, key=lambda each: each[0])
    trainer.model.eval()
    if not trainer.model.head.cacheable:
        # Windows over a whole volume take their time: one sample has to do.
        return max(_evaluate(trainer, split, part[:1]).after) * len(part)
    return _peak(lambda indices: _evaluate(trainer, split, indices), part)


def _peak(measure: Callable[[np.ndarray], LiveBytes], indices: np.ndarray) -> int:
    """The peak with all samples, from two or three measurements with few."""
    # One sample may take other operations (no padding), and BatchNorm refuses it.
    few, many = min(2, len(indices)), min(3, len(indices))
    before, after = measure(indices[:few]), measure(indices[:many])
    if many < len(indices):
        growth = max((after.made - before.made) // (many - few), 1)
        larger = min(SMALL // growth, len(indices))
        if larger > many:
            # Small samples: what grows with their square (pairs in a batch) shows.
            few, many, before = many, larger, after
            after = measure(indices[:many])
    lines = list(zip(before.after, after.after, strict=False))
    if len(before.after) != len(after.after):
        lines = [(max(before.after), max(after.after))]
    ahead = (len(indices) - many) / max(many - few, 1)
    return int(max(b + max(b - a, 0) * ahead for a, b in lines))


def _train(trainer: Trainer, indices: np.ndarray) -> LiveBytes:
    """A step on some training samples, but for the optimizer's."""
    model, data, execution = trainer.model, trainer.data, trainer.execution
    torch.default_generator.manual_seed(0)
    live = LiveBytes(execution.device, _tensors(model))
    with live:
        state = execution.move(data.batch(data.samples("train"), indices))
        live.hold(state)
        if data.augments:
            generator = torch.Generator(execution.device).manual_seed(0)
            state = data.augment(state, generator)
        with execution.autocast():
            loss = model.head.loss(model(model.prefix(state)))
        loss.backward()  # type: ignore[no-untyped-call]
    model.zero_grad(set_to_none=True)
    return live


def _evaluate(trainer: Trainer, split: Split, indices: np.ndarray) -> LiveBytes:
    """Some samples of a split, as they are evaluated."""
    model, data, execution = trainer.model, trainer.data, trainer.execution
    live = LiveBytes(execution.device, _tensors(model))
    with torch.no_grad(), live:
        batch = execution.move(data.batch(data.samples(split), indices))
        live.hold(batch)
        with execution.autocast():
            state = model.head.infer(model, batch)
        model.head.outputs(state)
        model.head.loss(state)
    return live


def _cache(trainer: Trainer) -> int:
    """Bytes of the prefix caches that will be kept in memory, if there are any."""
    model, data, settings = trainer.model, trainer.data, trainer.recipe.cache
    passes = trainer.plan.total / trainer.batches.steps_per_epoch
    pays = settings.mode == "on" or (settings.mode == "auto" and passes > 1)
    if not pays or not model.freeze_point or data.augments:
        return 0
    if trainer.execution.device.type == "cuda":
        # It is kept there only where it takes no more than a quarter of what is free.
        return 0
    total = 0
    for split in ("train", "validation"):
        samples, sizes = data.samples(split), data.sizes(split)
        batch = trainer.execution.move(data.batch(samples, np.arange(1)))
        with trainer.execution.autocast():
            row = _size(tree_leaves(model.prefix(batch)))
        share = 1.0 if sizes is None else float(sizes.mean() / max(sizes[0], 1))
        size = int(row * share * len(samples))
        total += size if size <= settings.memory_gb * 2**30 else 0
    return total


def _tensors(model: Model) -> list[torch.Tensor]:
    return [*model.parameters(), *model.buffers()]


def _size(values: Iterable[Any]) -> int:
    """Bytes of tensors; of those that share a storage once."""
    storages = {
        storage._cdata: storage.nbytes()
        for value in values
        if isinstance(value, torch.Tensor)
        for storage in [value.untyped_storage()]
    }
    return sum(storages.values())


def _ways_out(trainer: Trainer, evaluating: bool) -> Iterator[str]:
    """What would need less, the least costly first."""
    recipe = trainer.recipe
    train = recipe.train
    if train.batch_total is not None:
        yield f"train.batch_total={train.batch_total / 2:g}"
    elif evaluating:
        yield f"train.eval_batch_size={max(recipe.eval_batch_size // 2, 1)}"
    if trainer.batches.cut < train.batch_size:
        yield f"train.accumulate={2 * train.accumulate} or a smaller train.batch_size"
    if not trainer.execution.bf16:
        yield "train.precision=bf16"
    if not train.gradient_checkpointing:
        yield "train.gradient_checkpointing=true"
    yield "more frozen stages, or strategy.name=lora where it is offered"
