"""Recommenders: vectors learned on an earlier period against a cold start.

`recsys/warm-start` as packaged, and the same from random vectors, over several seeds
(order of the events, random parts). A cold start wants a higher learning rate, so it
gets each of several, and the warm start is compared with the one that does best on
validation. What they are compared on is the same for all: the split is by time. Steps
are counted on validation, results are those of the test split.
"""

from __future__ import annotations

import argparse
import math
import statistics
from typing import Any

import numpy as np
from common import publish, setting

from headstart.assembly import assemble
from headstart.callbacks import Callback
from headstart.clock import Clock
from headstart.evaluate import measure
from headstart.judgement import test
from headstart.plugins import load_plugins
from headstart.recipe import load_recipe
from headstart.training_setup import make_trainer, plan_training

METRIC = "ndcg@10"
RATES = (1e-3, 2e-3, 4e-3)
STUDENT = {3: 4.303, 5: 2.776, 10: 2.262}
"""Two-sided 95 % quantiles of Student's t by the number of seeds."""


class Curve(Callback):
    def __init__(self) -> None:
        self.points: list[tuple[int, float]] = []

    def on_record(self, record: dict[str, Any]) -> None:
        if record["event"] == "validation":
            self.points.append((record["step"], record[METRIC]))


def trained(seed: int, **changed: Any) -> tuple[list[tuple[int, float]], float, Any]:
    """The validation curve and the test result of the last step."""
    registry = load_plugins()
    overrides = {"train.seed": seed, "train.evaluate_every": 0.25, **changed}
    recipe = load_recipe("recsys/warm-start", overrides, registry=registry)
    assembly = assemble(recipe, registry)
    plan = plan_training(recipe, assembly)
    curve = Curve()
    clock = Clock(assembly.execution.device)
    make_trainer(recipe, assembly, plan, clock, [curve]).fit()
    return curve.points, test(recipe, assembly).metrics[METRIC], (recipe, assembly)


def mean_and_interval(values: list[float]) -> str:
    mean = statistics.mean(values)
    half = STUDENT[len(values)] * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean:.3f} ({mean - half:.3f} to {mean + half:.3f})"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=5, choices=sorted(STUDENT))
    seeds = range(parser.parse_args().seeds)
    warm = [trained(seed) for seed in seeds]
    random = {"backbone.weights": "none"}
    colds = {
        rate: [
            trained(seed, **random, **{"train.learning_rate": rate}) for seed in seeds
        ]
        for rate in RATES
    }
    best = max(RATES, key=lambda rate: sum(curve[-1][1] for curve, *_ in colds[rate]))
    cold = colds[best]
    shares, reached = [], []
    for (ours, _, _), (theirs, _, _) in zip(warm, cold, strict=True):
        total, goal = theirs[-1]
        first = next((step for step, value in ours if value >= goal), math.inf)
        reached.append(first)
        shares.append(first / total)
    gains = [a[1] - b[1] for a, b in zip(warm, cold, strict=True)]
    recipe, assembly = warm[0][2]
    rows: list[dict[str, Any]] = [
        {"model": "warm start", METRIC: mean_and_interval([one[1] for one in warm])},
        *(
            {
                "model": f"cold start, learning rate {rate:g}",
                METRIC: mean_and_interval([one[1] for one in runs]),
            }
            for rate, runs in colds.items()
        ),
        {"model": "gain, seed by seed", METRIC: mean_and_interval(gains)},
    ]
    for baseline in assembly.data.baselines():
        values = measure(baseline.outputs, recipe.metric_specs, assembly.data.task)
        rows.append({"model": baseline.name, METRIC: f"{values[METRIC]:.3f}"})
    total = cold[0][0][-1][0]
    remark = (
        f"Compared with the cold start at {best:g}, best on validation. The warm start "
        f"reaches its final {METRIC} on validation after "
        f"{', '.join(map(str, reached))} of {total} steps, seed by seed: "
        f"{mean_and_interval(shares)} of them, {np.max(shares):.3f} at worst. All "
        f"results are of the last step, on {len(assembly.data.samples('test'))} users."
    )
    publish(
        "warm_start",
        "Warm start of a recommender: MovieLens-100k by time, mean and 95 % interval "
        f"over {len(seeds)} seeds",
        rows,
        setting("headstart", "headstart-recsys", "implicit"),
        goal="at most half of the cold start's steps to its final NDCG@10; at least "
        "tuned ALS, above item-kNN",
        remark=remark,
    )


if __name__ == "__main__":
    main()
