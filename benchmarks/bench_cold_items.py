"""Recommenders: new items ranked by their text, against chance and popularity.

`recsys/cold-items` as packaged, over several seeds; each seed draws other items that
are new. Popularity knows nothing of them, so it draws lots as chance does.
"""

from __future__ import annotations

import argparse
from typing import Any

from bench_warm_start import STUDENT, mean_and_interval
from common import publish, setting

from headstart.assembly import assemble
from headstart.clock import Clock
from headstart.evaluate import measure
from headstart.judgement import test
from headstart.plugins import load_plugins
from headstart.recipe import load_recipe
from headstart.training_setup import make_trainer, plan_training

METRIC = "recall@20"


def results(seed: int, **changed: Any) -> dict[str, float]:
    """Of the model with the best validation, and of the baselines beside it."""
    registry = load_plugins()
    overrides = {"train.seed": seed, **changed}
    recipe = load_recipe("recsys/cold-items", overrides, registry=registry)
    assembly = assemble(recipe, registry)
    plan = plan_training(recipe, assembly)
    make_trainer(recipe, assembly, plan, Clock(assembly.execution.device)).fit()
    found = {"titles and genres": test(recipe, assembly).metrics[METRIC]}
    for baseline in assembly.data.baselines():
        values = measure(baseline.outputs, recipe.metric_specs, assembly.data.task)
        found[baseline.name] = values[METRIC]
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=5, choices=sorted(STUDENT))
    seeds = range(parser.parse_args().seeds)
    found = [results(seed) for seed in seeds]
    genres = {"backbone.weights": "none", "backbone.text": False}
    alone = [results(seed, **genres)["titles and genres"] for seed in seeds]
    ours = [one["titles and genres"] for one in found]
    rows = [
        {
            "ranked by": "titles and genres",
            METRIC: mean_and_interval(ours),
            "gain of titles and genres": "",
        }
    ]
    others = {name: [one[name] for one in found] for name in found[0] if name in CHANCE}
    for name, theirs in {"genres alone": alone, **others}.items():
        gains = [a - b for a, b in zip(ours, theirs, strict=True)]
        rows.append(
            {
                "ranked by": name,
                METRIC: mean_and_interval(theirs),
                "gain of titles and genres": mean_and_interval(gains),
            }
        )
    publish(
        "cold_items",
        "Items never seen in training: MovieLens-100k, new films alone, mean and 95 % "
        f"interval over {len(seeds)} seeds",
        rows,
        setting("headstart", "headstart-recsys", "transformers"),
        goal="above random and above popularity",
        remark="Results are of the last step.",
    )


CHANCE = ("random", "most popular")


if __name__ == "__main__":
    main()
