"""Evaluation: one pass over samples, metrics, and outputs in the samples' order."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from headstart.batch_order import evaluation_batches
from headstart.data import Columns
from headstart.distributed import World
from headstart.errors import PluginError
from headstart.specs import resolve

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from headstart.data import DataModule, Sample
    from headstart.execution import Execution
    from headstart.model import Model
    from headstart.prefix_cache import PrefixCache
    from headstart.specs import MetricSpec
    from headstart.stages import State


class MetricSet:
    """The metrics of a run, built from their specs for one task."""

    def __init__(
        self, specs: Sequence[MetricSpec], task: Mapping[str, Any], device: torch.device
    ) -> None:
        self._metrics: dict[str, tuple[MetricSpec, Any]] = {}
        for spec in specs:
            metric = resolve(spec.factory)(task)
            if isinstance(metric, torch.nn.Module):
                metric = metric.to(device)
            for part in metric.modules() if isinstance(metric, torch.nn.Module) else ():
                # Every rank is given all outputs, or the main one alone measures:
                # torchmetrics would gather them from all ranks once more. (Its
                # ``sync_on_compute`` is read only when a metric is made.)
                if hasattr(part, "distributed_available_fn"):
                    setattr(part, "distributed_available_fn", lambda: False)  # noqa: B010
            self._metrics[spec.name.rpartition("/")[2]] = (spec, metric)

    def update(self, outputs: Mapping[str, Any]) -> None:
        for name, (spec, metric) in self._metrics.items():
            missing = [key for key in spec.inputs if key not in outputs]
            if missing:
                raise PluginError(
                    f"the metric {name!r} needs {missing[0]!r}, which the head does "
                    "not give",
                    why=f"it gives {', '.join(outputs)}",
                    fix="choose a metric made for this head in metrics.names",
                )
            metric.update(*(outputs[key] for key in spec.inputs))

    def compute(self) -> dict[str, float]:
        """Every metric's value, and a fresh start."""
        values = {}
        for name, (_, metric) in self._metrics.items():
            values[name] = float(metric.compute())
            metric.reset()
        return values


@dataclass
class Pass:
    """What one pass over a set of samples gave.

    Attributes:
        metrics: ``loss`` (when there are targets) and each metric.
        outputs: The head's outputs as NumPy arrays or lists, in the samples' order;
            empty unless asked for.
    """

    metrics: dict[str, float]
    outputs: dict[str, Any]


def forward_batches(
    model: Model,
    data: DataModule,
    samples: Sequence[Sample],
    batches: Sequence[np.ndarray],
    execution: Execution,
    cache: PrefixCache | None = None,
) -> Iterator[State]:
    """The states after the head, batch by batch, in evaluation mode."""
    model.eval()
    if cache is not None:
        for batch in batches:
            with torch.no_grad(), execution.autocast():
                state = model(execution.move(cache.batch(batch, 0)))
            yield state
        return
    for loaded in _loaded(data, samples, batches, execution):
        # Closed at every yield: a consumer must not lose its gradients unawares.
        with torch.no_grad(), execution.autocast():
            state = model.head.infer(model, execution.move(loaded))
        yield state


def _loaded(
    data: DataModule,
    samples: Sequence[Sample],
    batches: Sequence[np.ndarray],
    execution: Execution,
) -> Iterator[State]:
    """The batches, made in worker processes where the data wants them."""
    if isinstance(samples, Columns):
        yield from (data.batch(samples, batch) for batch in batches)
        return
    loader: DataLoader[State] = DataLoader(
        samples,  # type: ignore[arg-type]
        batch_sampler=[batch.tolist() for batch in batches],
        collate_fn=data.collate,
        num_workers=data.settings.workers,
        pin_memory=execution.device.type == "cuda",
    )
    yield from loader


def evaluate(
    model: Model,
    data: DataModule,
    samples: Sequence[Sample],
    *,
    sizes: np.ndarray | None,
    batch_size: int,
    execution: Execution,
    metrics: MetricSet,
    collect: bool = False,
    world: World | None = None,
    cache: PrefixCache | None = None,
    batch_total: float | None = None,
) -> Pass:
    """Run a model over samples.

    Args:
        model: Evaluated in ``eval()``; its mode is put back.
        data: Collates.
        samples: What to evaluate on.
        sizes: Sizes of the samples for grouping, or ``None``.
        batch_size: Samples per forward pass.
        execution: Device and precision.
        metrics: What to measure.
        collect: Keep the outputs of every sample.
        world: Ranks among which the batches are dealt out; all get all results.
        cache: The prefix's output for these samples, if there is one.
        batch_total: Most that a forward pass takes, in the data's unit.
    """
    world = world or World()
    training = model.training
    most = data.in_steps(batch_total)
    batches = evaluation_batches(len(samples), batch_size, sizes, most)
    # Every rank runs as often: one that has no batch left repeats the first, which
    # then does not count (sharded models exchange parameters in every pass).
    rounds = math.ceil(len(batches) / world.size)
    mine = [batches[i] for i in range(world.rank, len(batches), world.size)]
    mine += [batches[0]] * (rounds - len(mine))
    losses, weights, rows = [], [], []
    for turn, state in enumerate(
        forward_batches(model, data, samples, mine, execution, cache)
    ):
        with torch.no_grad():
            outputs = model.head.outputs(state)
            weight = model.head.weight(state).float()
            result = (outputs, model.head.loss(state).float() * weight, weight)
        if world.size > 1:
            everyone = world.gather(_host(result))[: len(batches) - turn * world.size]
        else:
            everyone = [result]
        for shown, loss, count in everyone:
            metrics.update(_tensors(shown) if world.size > 1 else shown)
            losses.append(torch.as_tensor(loss))
            weights.append(torch.as_tensor(count))
            if collect:
                rows.append(_host(shown))
    model.train(training)
    total = torch.stack(losses).sum() / torch.stack(weights).sum().clamp(min=1e-12)
    values = {"loss": float(total), **metrics.compute()}
    return Pass(values, _in_order(rows, np.concatenate(batches)) if rows else {})


def measure(
    outputs: Mapping[str, Any],
    specs: Iterable[MetricSpec],
    task: Mapping[str, Any],
) -> dict[str, float]:
    """Metrics of outputs that are already there (a baseline's)."""
    metrics = MetricSet(list(specs), task, torch.device("cpu"))
    metrics.update(_tensors(outputs))
    return metrics.compute()


def _host(value: Any) -> Any:
    """NumPy arrays in place of tensors."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        return (value.float() if value.is_floating_point() else value).numpy()
    if isinstance(value, dict):
        return {key: _host(entry) for key, entry in value.items()}
    return (
        [_host(entry) for entry in value] if isinstance(value, (list, tuple)) else value
    )


def _tensors(value: Any) -> Any:
    """Tensors in place of NumPy arrays."""
    if isinstance(value, np.ndarray):
        return torch.as_tensor(value)
    if isinstance(value, dict):
        return {key: _tensors(entry) for key, entry in value.items()}
    return [_tensors(entry) for entry in value] if isinstance(value, list) else value


def _in_order(rows: Sequence[Mapping[str, Any]], order: np.ndarray) -> dict[str, Any]:
    back = np.argsort(order)
    result: dict[str, Any] = {}
    for key in rows[0]:
        parts = [row[key] for row in rows]
        if isinstance(parts[0], np.ndarray):
            result[key] = np.concatenate(parts)[back]
        else:
            flat = [entry for part in parts for entry in part]
            result[key] = [flat[i] for i in back]
    return result
