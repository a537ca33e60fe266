"""Full ranking of a catalogue for many users, what they have left out.

Ours is the evaluation of `recsys/ranking`: lists, hits and the loss over all items.
implicit's is its own `recommend` on the same vectors, which gives lists alone. Each
runs in a process of its own, to have a peak of memory of its own; rounds in turn.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

import numpy as np
import torch
from common import peak_memory, publish, setting
from scipy import sparse

FACTORS, K = 64, 100
KNOWN, HELD_OUT = 100, 10
THREADS = 2


def make(users: int, items: int) -> tuple[Any, ...]:
    """Vectors of users and items, and the items that each user has or is to find."""
    generator = np.random.default_rng(0)
    queries, table = (
        generator.normal(scale=0.3, size=(rows, FACTORS)).astype(np.float32)
        for rows in (users, items)
    )
    # A stride that shares no factor with the catalogue's size repeats no item.
    first = generator.integers(items, size=(users, 1))
    wanted = (first + 7919 * np.arange(KNOWN + HELD_OUT)) % items
    return queries, table, wanted[:, :KNOWN], wanted[:, KNOWN:]


def ours(users: int, items: int, batch: int) -> float:
    """Seconds of the head's evaluation of all users."""
    from headstart.specs import Feature
    from headstart_recsys.heads import build_ranking
    from headstart_recsys.settings import RankingSettings

    queries, table, known, held_out = map(torch.from_numpy, make(users, items))
    task = {
        "kind": "ranking",
        "items": list(map(str, range(items))),
        "users": [],
        "counts": [1] * items,
        "titles": [],
        "cold": [],
        "mask_seen": True,
        "candidates": "all",
    }
    features = {
        "item_table": Feature("item_table", "table", FACTORS),
        "query": Feature("query", "vector", FACTORS),
    }
    settings = RankingSettings(name="recsys/ranking", depth=K)
    head = build_ranking(settings, features, task).eval()
    nobody_cold = torch.zeros(batch, dtype=torch.bool)
    began = time.perf_counter()
    for start in range(0, users, batch):
        rows = slice(start, start + batch)
        state = {
            "item_table": table,
            "query": queries[rows],
            "user": torch.arange(users)[rows],
            "history": known[rows],
            "held_out": held_out[rows],
            "cold_user": nobody_cold[: len(queries[rows])],
        }
        with torch.no_grad():
            head.outputs(head(head.reduce(state)))
    return time.perf_counter() - began


def implicits(users: int, items: int, batch: int) -> float:
    """Seconds of implicit's `recommend` for all users."""
    from implicit.cpu.matrix_factorization_base import MatrixFactorizationBase

    class Given(MatrixFactorizationBase):
        def fit(self, *_: Any, **__: Any) -> None: ...

        def save(self, *_: Any) -> None: ...

    queries, table, known, _ = make(users, items)
    matrix = sparse.csr_matrix(
        (
            np.ones(known.size, dtype=np.float32),
            known.ravel(),
            np.arange(users + 1) * KNOWN,
        ),
        shape=(users, items),
    )
    model = Given(num_threads=THREADS)
    model.user_factors, model.item_factors = queries, table
    began = time.perf_counter()
    for start in range(0, users, batch):
        some = np.arange(start, min(start + batch, users))
        model.recommend(some, matrix[some], N=K, filter_already_liked_items=True)
    return time.perf_counter() - began


WAYS = {"ours, with hits and loss": ours, "implicit, recommend": implicits}


def measured(name: str, arguments: argparse.Namespace) -> dict[str, float]:
    """One round in a process of its own."""
    command = [sys.executable, __file__, "--one", name]
    for option in ("users", "items", "batch"):
        command += [f"--{option}", str(getattr(arguments, option))]
    environment = {**os.environ, "OMP_NUM_THREADS": str(THREADS)}
    done = subprocess.run(
        command, env=environment, check=True, capture_output=True, text=True
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", choices=WAYS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(THREADS)
    sizes = arguments.users, arguments.items, arguments.batch
    if arguments.one:
        seconds = WAYS[arguments.one](*sizes)
        peak = peak_memory() / 2**20
        print(json.dumps({"seconds": seconds, "peak": peak}))
        return
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in WAYS}
    for _ in range(arguments.rounds):
        for name, results in rounds.items():
            results.append(measured(name, arguments))
    rows = [
        {
            "way": name,
            "seconds (median)": statistics.median(one["seconds"] for one in results),
            "slowest": max(one["seconds"] for one in results),
            "peak MB of the process": max(one["peak"] for one in results),
        }
        for name, results in rounds.items()
    ]
    publish(
        "full_ranking",
        f"Full ranking of {arguments.items:,} items for {arguments.users:,} users, the "
        f"first {K}, {FACTORS} factors, {KNOWN} items of each user left out",
        rows,
        setting("headstart", "headstart-recsys", "implicit"),
        goal="within 2 minutes on 2 cores, memory bounded",
        remark=f"In batches of {arguments.batch:,} users. Vectors and what users have "
        "take part in the peak: "
        f"{_megabytes(arguments.users, arguments.items):,.0f} MB.",
    )


def _megabytes(users: int, items: int) -> float:
    vectors = 4 * FACTORS * (users + items)
    return (vectors + 8 * users * (KNOWN + HELD_OUT)) / 2**20


if __name__ == "__main__":
    main()
