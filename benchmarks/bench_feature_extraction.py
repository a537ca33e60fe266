"""Feature extraction with MiniLM: frozen backbone, linear head, beside three peers.

The same texts in the same order and batches (random, padded to the longest of each),
the same starting head without dropout. Ours starts from an empty cache folder, and its
whole job contains filling it and one validation at the end, which the others do not do.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from common import publish, setting
from peer_data import Order, write_texts
from peer_loops import EQUAL, Job, cold_cache, hugging_face, lightning, ours, plain
from peer_model import PeerClassifier
from torch.utils.data import DataLoader

from headstart.assembly import Assembly, assemble
from headstart.evaluate import MetricSet, evaluate
from headstart.plugins import load_plugins
from headstart.recipe import Recipe, load_recipe

if TYPE_CHECKING:
    from collections.abc import Callable

    from headstart.prefix_cache import PrefixCache

LEARNING_RATE = 1e-3
BATCH_SIZE = 32
GOAL = (
    "whole job at least 10 times as fast as the plain loop and the Hugging Face "
    "Trainer, 6 times as fast as Lightning; from the second epoch on 1,000 times"
)


def predictions(
    recipe: Recipe, assembly: Assembly, cache: PrefixCache | None
) -> np.ndarray:
    """Probabilities of every training text, (texts, classes)."""
    data = assembly.data
    outputs = evaluate(
        assembly.model,
        data,
        data.samples("train"),
        sizes=data.sizes("train"),
        batch_size=recipe.eval_batch_size,
        execution=assembly.execution,
        metrics=MetricSet([], data.task, assembly.execution.device),
        collect=True,
        cache=cache,
    ).outputs
    return np.asarray(outputs["probabilities"])


def own_runs(
    recipe: Recipe, assembly: Assembly, uncached: Recipe
) -> tuple[Job, Job, float]:
    """Ours with a cold cache and without any, and how far predictions are apart.

    Raises:
        SystemExit: A text is classified differently.
    """
    one, other = (
        replace(assembly, model=copy.deepcopy(assembly.model)) for _ in range(2)
    )
    with cold_cache():
        job, trainer = ours(recipe, one)
        cache = trainer.caches.choose("train", recipe.train.epochs)
        if cache is None:
            raise SystemExit("the cache was not used")
        from_cache = predictions(recipe, one, cache)
    print("ours, without cache")
    slow, _ = ours(uncached, other)
    computed = predictions(recipe, other, None)
    differ = int((from_cache.argmax(1) != computed.argmax(1)).sum())
    if differ:
        raise SystemExit(f"{differ} predictions differ with and without the cache")
    return job, slow, float(np.abs(from_cache - computed).max())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--texts", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument(
        "--variants",
        action="store_true",
        help="also the plain loop with a backbone in eval(), Lightning with one that "
        "was left in train()",
    )
    arguments = parser.parse_args()
    epochs = arguments.epochs
    registry = load_plugins()
    with tempfile.TemporaryDirectory() as folder:
        keys, texts = write_texts(Path(folder), arguments.texts, snippets=3)
        overrides = {
            **keys,
            **EQUAL,
            "data.max_length": 128,
            "head.dropout": 0.0,
            "strategy.name": "feature-extraction",
            "train.batch_size": BATCH_SIZE,
            "train.epochs": epochs,
            "train.evaluate_every": epochs,
            "train.group_by_size": False,
            "train.learning_rate": LEARNING_RATE,
        }
        recipe, uncached = (
            load_recipe("nlp/classify", overrides | extra, registry=registry)
            for extra in ({}, {"cache.mode": "off"})
        )
        assembly = assemble(recipe, registry)
    samples = assembly.data.samples("train")

    def loader() -> DataLoader[Any]:
        return DataLoader(
            samples,  # type: ignore[arg-type]
            batch_sampler=Order(len(samples), BATCH_SIZE, recipe.train.seed),
            collate_fn=assembly.data.collate,
        )

    def model(frozen_eval: bool) -> PeerClassifier:
        return PeerClassifier(
            assembly, dropout=0.0, trained_layers=0, frozen_eval=frozen_eval
        )

    how = {"epochs": epochs, "learning_rate": LEARNING_RATE}
    peers: dict[str, tuple[str, Callable[[], Job]]] = {
        "plain loop": ("train()", lambda: plain(model(False), loader(), **how)),
        "Hugging Face Trainer": (
            "train()",
            lambda: hugging_face(
                model(False),
                samples,
                assembly.data.collate,
                batch_size=BATCH_SIZE,
                loader=loader(),
                **how,
            ),
        ),
        "Lightning": ("eval()", lambda: lightning(model(True), loader(), **how)),
    }
    if arguments.variants:
        peers |= {
            "plain loop, backbone in eval()": (
                "eval()",
                lambda: plain(model(True), loader(), **how),
            ),
            "Lightning, backbone in train()": (
                "train()",
                lambda: lightning(model(False), loader(), **how),
            ),
        }
    torch.manual_seed(recipe.train.seed)
    print("ours, from an empty cache folder")
    job, slow, difference = own_runs(recipe, assembly, uncached)
    jobs = {"ours": ("eval()", job), "ours, cache off": ("eval()", slow)}
    for name, (mode, run) in peers.items():
        print(name)
        jobs[name] = (mode, run())
    weights = job.model.head.layers[-1].weight
    rows = []
    for name, (mode, done) in jobs.items():
        head = getattr(done.model, "linear", None)
        if head is None:
            head = done.model.head.layers[-1]
        rows.append(
            {
                "loop": name,
                "frozen backbone in": mode,
                "whole job, s": done.seconds,
                "this / ours": done.seconds / job.seconds,
                "first epoch, s": done.epochs[0],
                "later epochs, median s": statistics.median(done.epochs[1:]),
                "this / ours from epoch 2": statistics.median(done.epochs[1:])
                / statistics.median(job.epochs[1:]),
                "trained head, largest difference": f"{_apart(head, weights):.1e}",
            }
        )
    publish(
        "feature_extraction",
        f"Feature extraction with MiniLM, {texts}, {epochs} epochs",
        rows,
        setting("headstart", "transformers", "accelerate", "lightning"),
        goal=GOAL,
        remark=f"With and without the cache all {len(samples)} predictions are the "
        f"same; the largest difference of a probability is {difference:.1e}. The plain "
        "loop and the Hugging Face Trainer have the frozen backbone in train(), where "
        "`model.train()` puts it unless one prevents it: its dropout stays on, which "
        "costs time and blurs the features. Lightning since 2.2 keeps a backbone in "
        "eval() that its owner put there, as its guide to transfer learning does. The "
        "last column compares the weights of the trained heads with ours.",
    )


def _apart(head: torch.nn.Linear, weights: torch.Tensor) -> float:
    return float((head.weight - weights).detach().abs().max())


if __name__ == "__main__":
    main()
