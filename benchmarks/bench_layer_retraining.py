"""Layer retraining of MiniLM: its last layer of six and the head, beside plain loops.

The same batches (texts of similar length together) in the same order, the same dropout
where the model trains. Ours starts from an empty cache folder; its whole job contains
filling it and one validation at the end. What is left to save once the frozen layers
hold still: 5 epochs of 6 layers forward and 1 backward (twice a forward) are 40 layer
passes; with the first 5 layers run once they are 20.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import publish, setting
from peer_data import Order, write_texts
from peer_loops import EQUAL, Job, cold_cache, ours, plain
from peer_model import PeerClassifier
from torch.utils.data import DataLoader

from headstart.assembly import assemble
from headstart.plugins import load_plugins
from headstart.recipe import load_recipe

LEARNING_RATE = 1e-4
BATCH_SIZE = 32
LAYERS = 6


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--texts", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=1)
    arguments = parser.parse_args()
    epochs = arguments.epochs
    registry = load_plugins()
    with tempfile.TemporaryDirectory() as folder:
        keys, texts = write_texts(Path(folder), arguments.texts, snippets=3)
        overrides = {
            **keys,
            **EQUAL,
            "data.max_length": 128,
            "strategy.name": "layer-retraining",
            "train.batch_size": BATCH_SIZE,
            "train.epochs": epochs,
            "train.evaluate_every": epochs,
            "train.learning_rate": LEARNING_RATE,
        }
        recipe = load_recipe("nlp/classify", overrides, registry=registry)
        assembly = assemble(recipe, registry)
    samples, sizes = assembly.data.samples("train"), assembly.data.sizes("train")

    def our_job() -> Job:
        fresh = replace(assembly, model=copy.deepcopy(assembly.model))
        with cold_cache():
            return ours(recipe, fresh)[0]

    def plain_job(frozen_eval: bool) -> Job:
        loader: DataLoader[Any] = DataLoader(
            samples,  # type: ignore[arg-type]
            batch_sampler=Order(len(samples), BATCH_SIZE, recipe.train.seed, sizes),
            collate_fn=assembly.data.collate,
        )
        model = PeerClassifier(
            assembly, dropout=0.1, trained_layers=1, frozen_eval=frozen_eval
        )
        return plain(model, loader, epochs=epochs, learning_rate=LEARNING_RATE)

    loops = {
        "ours": our_job,
        "plain loop, frozen layers in eval()": lambda: plain_job(True),
        "plain loop, all in train()": lambda: plain_job(False),
    }
    jobs: dict[str, list[Job]] = {name: [] for name in loops}
    for _ in range(arguments.rounds):
        for name, run in loops.items():
            print(name)
            jobs[name].append(run())
    rows = []
    for name, done in jobs.items():
        ratios = [
            other.seconds / own.seconds
            for own, other in zip(jobs["ours"], done, strict=True)
        ]
        rows.append(
            {
                "loop": name,
                "whole job, s": statistics.median(job.seconds for job in done),
                "this / ours": statistics.median(ratios),
                "first epoch, s": statistics.median(job.epochs[0] for job in done),
                "later epochs, median s": statistics.median(
                    seconds for job in done for seconds in job.epochs[1:]
                ),
            }
        )
    passes = epochs * (LAYERS + 2) / (LAYERS - 1 + epochs * 3)
    publish(
        "layer_retraining",
        f"Retraining the last of {LAYERS} layers of MiniLM, {texts}, {epochs} epochs",
        rows,
        setting("headstart", "transformers"),
        goal="at least 1.8 times as fast as the plain loop",
        remark=f"Counted in layers, at most {passes:.2f} times can be saved where the "
        "frozen layers are in eval(); the plain loop that leaves them in train() also "
        "computes their dropout. Ours contains filling the cache and a validation of "
        "32 texts.",
    )


if __name__ == "__main__":
    main()
