"""Does it pay to start from deepbrain? Simulated lesions, several seeds and budgets.

medical/tumour-segmentation's training from deepbrain's weights and from random ones, as
many steps each, judged on simulated lesions in a head that was not trained on and on
the recipe's two real patients. Dice of every volume; the interval is over volumes, each
with its mean gain over the seeds.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

import numpy as np
from common import publish, setting

from headstart.assembly import assemble
from headstart.clock import Clock
from headstart.judgement import test
from headstart.plugins import load_plugins
from headstart.recipe import load_recipe
from headstart.training_setup import make_trainer, plan_training

if TYPE_CHECKING:
    from headstart.data import Split

STARTS = {"deepbrain's weights": "global", "random weights": "scratch"}
SPLITS: dict[str, Split] = {"simulated": "validation", "real": "test"}
RESAMPLES = 2_000


def dice(start: str, seed: int, epochs: float, volumes: int) -> dict[str, np.ndarray]:
    """Dice of every volume after training, by kind of volume."""
    registry = load_plugins()
    overrides: dict[str, Any] = {
        "strategy.name": STARTS[start],
        "train.seed": seed,
        "train.epochs": epochs,
        "train.evaluate_every": 1000,
        "data.validation_variants": volumes,
        "metrics.names": ["dice"],
        "report.scratch_control": False,
    }
    recipe = load_recipe("medical/tumour-segmentation", overrides, registry=registry)
    assembly = assemble(recipe, registry)
    plan = plan_training(recipe, assembly)
    make_trainer(recipe, assembly, plan, Clock(assembly.execution.device)).fit()
    return {
        kind: test(recipe, assembly, split=split).scores["dice"]
        for kind, split in SPLITS.items()
    }


def interval(gains: np.ndarray) -> tuple[float, float]:
    """95 % of the mean over volumes, by resampling them."""
    generator = np.random.default_rng(0)
    drawn = generator.integers(len(gains), size=(RESAMPLES, len(gains)))
    low, high = np.percentile(gains[drawn].mean(1), (2.5, 97.5))
    return float(low), float(high)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=float, nargs="+", default=[2, 6])
    parser.add_argument("--volumes", type=int, default=12)
    arguments = parser.parse_args()
    rows = []
    for epochs in arguments.epochs:
        found: dict[str, list[dict[str, np.ndarray]]] = {}
        for seed in range(arguments.seeds):
            for start in STARTS:
                found.setdefault(start, []).append(
                    dice(start, seed, epochs, arguments.volumes)
                )
                last = {k: v.round(3).tolist() for k, v in found[start][-1].items()}
                print(f"{epochs:g} epochs, seed {seed}, {start}: {last}", flush=True)
        for kind in SPLITS:
            ours, random = (np.array([s[kind] for s in found[name]]) for name in STARTS)
            low, high = interval((ours - random).mean(0))
            row: dict[str, Any] = {"epochs": epochs, "lesions": kind}
            for name, values in zip(STARTS, (ours, random), strict=True):
                row[f"Dice, {name}"] = float(values.mean())
                row[f"by seed, {name}"] = ", ".join(f"{v:.2f}" for v in values.mean(1))
            row["gain"] = float((ours - random).mean())
            row["95 %"] = f"{low:+.3f} to {high:+.3f}"
            rows.append(row)
    publish(
        "lesions",
        f"medical/tumour-segmentation from deepbrain's weights and from random ones, "
        f"{arguments.seeds} seeds, {arguments.volumes} simulated volumes of one head "
        "that was not trained on, 2 real patients",
        rows,
        setting("headstart-medical", "monai"),
        goal="above the same network from random weights at equal steps",
        remark="The interval of the simulated lesions is over volumes of one head; two "
        "real patients carry none worth the name.",
    )


if __name__ == "__main__":
    main()
