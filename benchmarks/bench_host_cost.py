"""Host cost of the loop: microseconds a step beyond a plain loop of the same math.

A network so small (8 wide, three layers) that the loop is all there is to see. Every
loop trains it on the same batches in the same order from the same numbers; what they
train must agree in the end, or nothing is reported.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from common import publish, setting
from peer_data import Order
from peer_loops import EQUAL, Job, cold_cache, hugging_face, lightning, ours, plain
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader

from headstart.assembly import assemble
from headstart.plugins import load_plugins
from headstart.recipe import load_recipe
from headstart.testing import toy

if TYPE_CHECKING:
    from collections.abc import Callable

    from headstart.assembly import Assembly

LEARNING_RATE = 1e-3
BATCH_SIZE = 8


class Network(nn.Module):
    """The toy network as one writes it."""

    def __init__(self, assembly: Assembly) -> None:
        super().__init__()
        model = copy.deepcopy(assembly.model)
        layers: list[nn.Module] = []
        for stage in model.backbone.stages.values():
            layers += [stage.linear, stage.norm, nn.ReLU(), stage.dropout]
        self.layers = nn.Sequential(*layers)
        self.linear = model.head.linear

    def forward(self, points: torch.Tensor, labels: torch.Tensor) -> dict[str, Any]:
        logits = self.linear(self.layers(points))
        return {"loss": functional.cross_entropy(logits, labels), "logits": logits}


class Linear(nn.Module):
    """Its head on features that are already there."""

    def __init__(self, assembly: Assembly) -> None:
        super().__init__()
        self.linear = copy.deepcopy(assembly.model.head.linear)

    def forward(self, hidden: torch.Tensor, labels: torch.Tensor) -> dict[str, Any]:
        logits = self.linear(hidden)
        return {"loss": functional.cross_entropy(logits, labels), "logits": logits}


class Rows:
    """Batches of rows of tensors: the least that a loader can cost."""

    def __init__(self, tensors: dict[str, torch.Tensor], order: Order) -> None:
        self.tensors, self.order = tensors, order

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Any:
        for batch in self.order:
            yield {key: tensor[batch] for key, tensor in self.tensors.items()}


def features(assembly: Assembly) -> dict[str, torch.Tensor]:
    """What the frozen network gives for every sample."""
    model = copy.deepcopy(assembly.model)
    model.train_stages(frozenset())
    batch = assembly.data.collate(assembly.data.samples("train"))
    state = model.eval().prefix(batch)
    return {"hidden": state["hidden"], "labels": state["labels"]}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=400, help="in each epoch")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    epochs = arguments.epochs
    registry = load_plugins()
    registry.add(toy, "toy")
    overrides = {
        **EQUAL,
        "backbone.dropout": 0.0,
        # Three fifths are for training.
        "data.count": arguments.steps * BATCH_SIZE * 5 // 3,
        "train.batch_size": BATCH_SIZE,
        "train.epochs": epochs,
        "train.evaluate_every": epochs,
        "train.group_by_size": False,
        "train.learning_rate": LEARNING_RATE,
    }
    whole, head = (
        load_recipe("toy/ring", overrides | extra, registry=registry)
        for extra in (
            {},
            {"strategy.name": "feature-extraction", "cache.mode": "on"},
        )
    )
    assembly = assemble(whole, registry)
    samples = assembly.data.samples("train")
    rows_of_head = features(assembly)
    how = {"epochs": epochs, "learning_rate": LEARNING_RATE}

    def order() -> Order:
        return Order(len(samples), BATCH_SIZE, whole.train.seed)

    def loader() -> DataLoader[Any]:
        return DataLoader(
            samples,  # type: ignore[arg-type]
            batch_sampler=order(),
            collate_fn=assembly.data.collate,
        )

    def our_job(recipe: Any) -> Job:
        fresh = replace(assembly, model=copy.deepcopy(assembly.model))
        with cold_cache():
            return ours(recipe, fresh, tell=False)[0]

    loops: dict[tuple[str, str], Callable[[], Job]] = {
        ("everything trains", "plain loop"): lambda: plain(
            Network(assembly), loader(), **how
        ),
        ("everything trains", "ours"): lambda: our_job(whole),
        ("everything trains", "Lightning"): lambda: lightning(
            Network(assembly), loader(), **how
        ),
        ("everything trains", "Hugging Face Trainer"): lambda: hugging_face(
            Network(assembly),
            samples,
            assembly.data.collate,
            batch_size=BATCH_SIZE,
            loader=loader(),
            **how,
        ),
        ("head on cached features", "plain loop"): lambda: plain(
            Linear(assembly),
            Rows(rows_of_head, order()),  # type: ignore[arg-type]
            **how,
        ),
        ("head on cached features", "ours"): lambda: our_job(head),
    }
    micros: dict[tuple[str, str], list[float]] = {key: [] for key in loops}
    steps = len(order())
    for _ in range(arguments.rounds):
        weights: dict[str, torch.Tensor] = {}
        for (task, name), run in loops.items():
            job = run()
            # The first epoch also builds what the others use.
            micros[task, name].append(statistics.median(job.epochs[1:]) / steps * 1e6)
            trained = _head(job.model)
            torch.testing.assert_close(
                trained, weights.setdefault(task, trained), rtol=1e-3, atol=1e-5
            )
    rows = []
    for (task, name), values in micros.items():
        beyond = [
            own - base
            for own, base in zip(values, micros[task, "plain loop"], strict=True)
        ]
        rows.append(
            {
                "task": task,
                "loop": name,
                "µs a step (median)": statistics.median(values),
                "beyond the plain loop, median of rounds": statistics.median(beyond),
                "range": f"{min(beyond):.0f} to {max(beyond):.0f}",
            }
        )
    publish(
        "host_cost",
        f"Host cost of the loop on a tiny network, batches of {BATCH_SIZE}",
        rows,
        setting("headstart", "transformers", "accelerate", "lightning"),
        goal="at most 100 µs a step beyond the plain loop",
        remark="A step is loading, forward, backward, clipping, AdamW and the learning "
        "rate. All trained heads agree to 1e-3.",
    )


def _head(model: nn.Module) -> torch.Tensor:
    head = getattr(model, "linear", None) or model.head.linear
    return head.weight.detach()


if __name__ == "__main__":
    main()
