"""Matrix factorisation on many interactions: our trainer beside implicit's BPR.

Synthetic interactions, popularity and activity Zipf-like, no pair twice. Both draw one
negative item for each interaction and draw again what the user has; 64 factors.
implicit changes a user's and two items' vectors after every single interaction (SGD,
two threads without locks); ours takes AdamW steps on large batches, and gives the same
result every time. Rounds in turn.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from common import peak_memory, publish, setting

from headstart.assembly import Assembly, assemble
from headstart.clock import Clock
from headstart.plugins import load_plugins
from headstart.recipe import Recipe, load_recipe
from headstart.training_setup import make_trainer, plan_training

USERS, ITEMS, FACTORS = 138_000, 27_000, 64
THREADS = 2
OPTIONS: dict[str, Any] = {
    "backbone.weights": "none",
    "backbone.factors": FACTORS,
    "data.time": "time",
    # All but a few events are trained on.
    "data.earlier": 0.0,
    "data.test_size": 1e-4,
    "data.validation_size": 1e-4,
    "data.negatives": 1,
    "train.epochs": 1,
    "train.evaluate_every": 1,
    "train.evaluate_at_start": False,
    "train.eval_batch_size": 1024,
    "train.log_every": 100,
    "train.device": "cpu",
}


def write_interactions(path: Path, count: int) -> None:
    """``user``, ``item`` int32 and ``time`` int64 in random order."""
    generator = np.random.default_rng(0)
    limits = [
        np.cumsum(np.arange(1, rows + 1, dtype=np.float64) ** -power)
        for rows, power in ((USERS, 0.5), (ITEMS, 0.8))
    ]
    keys = np.zeros(0, dtype=np.int64)
    while len(keys) < count:
        more = int(1.2 * (count - len(keys))) + 1000
        users, items = (
            np.searchsorted(limit, generator.random(more) * limit[-1])
            for limit in limits
        )
        keys = np.unique(np.concatenate([keys, users * ITEMS + items]))
    keys = generator.permutation(keys)[:count]
    columns = {
        "user": (keys // ITEMS).astype(np.int32),
        "item": (keys % ITEMS).astype(np.int32),
        "time": np.arange(count) + 1_500_000_000,
    }
    pq.write_table(pa.table(columns), path)


def our_recipe(path: Path, loss: str, batch_size: int, **changed: Any) -> Recipe:
    options = {
        "data.path": str(path),
        "head.loss": loss,
        "train.batch_size": batch_size,
        **OPTIONS,
        **changed,
    }
    return load_recipe("recsys/warm-start", options, registry=load_plugins())


def our_round(recipe: Recipe, assembly: Assembly) -> float:
    """Interactions a second over one epoch, without evaluation."""
    plan = plan_training(recipe, assembly)
    trainer = make_trainer(recipe, assembly, plan, Clock(assembly.execution.device))
    trainer.fit()
    return trainer.batches.count / trainer.train_seconds


def implicit_round(matrix: Any) -> float:
    """The same of implicit; its threads are started anew for every epoch."""
    from implicit.cpu.bpr import BayesianPersonalizedRanking

    laps = []
    model = BayesianPersonalizedRanking(
        factors=FACTORS,
        iterations=2,
        num_threads=THREADS,
        verify_negative_samples=True,
        random_state=0,
    )

    def lap(*_: Any) -> None:
        laps.append(time.perf_counter())

    # The first epoch's time holds the start.
    model.fit(matrix, show_progress=False, callback=lap)
    return float(matrix.nnz / (laps[1] - laps[0]))


def own_memory(path: Path, batch_size: int) -> None:
    """Print how much the peak of reading and training exceeds that of the imports."""
    recipe = our_recipe(path, "bpr", batch_size, **{"train.max_steps": 20})
    before = peak_memory()
    assembly = assemble(recipe, load_plugins())
    read = peak_memory()
    our_round(recipe, assembly)
    trained = peak_memory()
    print(read - before, trained - before)


def memory(path: Path, batch_size: int, count: int) -> list[float]:
    """Peak of reading, and of reading and training, by the size of the columns."""
    command = [sys.executable, __file__, "--memory-of", str(path)]
    command += ["--batch-size", str(batch_size)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(THREADS)}
    done = subprocess.run(
        command, env=environment, check=True, capture_output=True, text=True
    )
    columns = count * (4 + 4 + 8)
    return [float(value) / columns for value in done.stdout.split()[-2:]]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--events", type=int, default=20_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=131_072)
    parser.add_argument("--softmax-events", type=int, default=2_000_000)
    parser.add_argument("--memory-of", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(THREADS)
    if arguments.memory_of:
        own_memory(arguments.memory_of, arguments.batch_size)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "interactions.parquet"
        write_interactions(path, arguments.events)
        peaks = memory(path, arguments.batch_size, arguments.events)
        registry = load_plugins()
        recipe = our_recipe(path, "bpr", arguments.batch_size)
        assembly = assemble(recipe, registry)
        matrix = assembly.data.train_matrix("validation")
        ours, theirs = [], []
        # The filter of known pairs is made at the first batch, once.
        batch = assembly.data.samples("train").take(np.arange(2))
        assembly.data.augment(batch, torch.Generator())
        for _ in range(arguments.rounds):
            ours.append(our_round(recipe, assembly))
            theirs.append(implicit_round(matrix))
        del assembly, matrix
        steps = -(-arguments.softmax_events // 8192)
        recipe = our_recipe(path, "softmax", 8192, **{"train.max_steps": steps})
        assembly = assemble(recipe, registry)
        softmax = [our_round(recipe, assembly) for _ in range(arguments.rounds)]
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    rows = [
        _row("ours, BPR", arguments.batch_size, ours)
        | {
            "ours / implicit, median of rounds": statistics.median(ratios),
            "range": f"{min(ratios):.3f} to {max(ratios):.3f}",
            "peak of reading / columns": peaks[0],
            "peak of reading and training / columns": peaks[1],
        },
        _row("implicit, BPR", 1, theirs),
        _row("ours, softmax with the batch's other items", 8192, softmax),
    ]
    publish(
        "recsys_throughput",
        f"Training on {arguments.events:,} interactions of {USERS:,} users with "
        f"{ITEMS:,} items, {FACTORS} factors",
        rows,
        setting("headstart", "headstart-recsys", "implicit"),
        goal="at least implicit's interactions a second; a peak of at most 4 times the "
        "interactions' columns in memory",
        remark="The peak is beyond that of the imports; the columns are two of int32 "
        f"and one of int64. The softmax row trains on {arguments.softmax_events:,} "
        "interactions a round.",
    )


def _row(name: str, batch: int, pace: list[float]) -> dict[str, Any]:
    return {
        "model": name,
        "batch": batch,
        "interactions/s (median)": statistics.median(pace),
    }


if __name__ == "__main__":
    main()
