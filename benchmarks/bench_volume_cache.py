"""Cached volumes: an epoch of the tumour recipe's data with and without the cache.

All batches of an epoch as the trainer asks for them: collated in its order, then
augmented. With ``data.cache = "off"`` each patch simulates lesions into its volume,
resamples and scales it; with the cache that is done once a volume. A training step of
the recipe's network is timed too, and what an epoch takes with as many of them is
worked out from both.
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
import time
from typing import TYPE_CHECKING, Any

import torch
from common import publish, setting

from headstart.assembly import Assembly, assemble
from headstart.batch_order import epoch_batches
from headstart.plugins import load_plugins
from headstart.recipe import load_recipe

if TYPE_CHECKING:
    from headstart.recipe import Recipe
    from headstart.stages import State


def parts(cache: str, overrides: dict[str, Any]) -> tuple[Recipe, Assembly]:
    registry = load_plugins()
    recipe = load_recipe(
        "medical/tumour-segmentation",
        {**overrides, "data.cache": cache},
        registry=registry,
    )
    return recipe, assemble(recipe, registry)


def epoch(recipe: Recipe, assembly: Assembly) -> tuple[float, str, State]:
    """Seconds for an epoch's batches, a hash of what they hold, and the last one."""
    data, digest, seconds = assembly.data, hashlib.sha256(), 0.0
    samples = data.samples("train")
    generator = torch.Generator()
    # The same epoch each time, so that the same batches must come out.
    order = epoch_batches(
        len(samples), recipe.train.batch_size, seed=recipe.train.seed, epoch=0
    )
    batch: State = {}
    for step, indices in enumerate(order):
        began = time.perf_counter()
        moved = assembly.execution.move(data.batch(samples, indices))
        batch = data.augment(moved, generator.manual_seed(step))
        seconds += time.perf_counter() - began
        digest.update(batch["image"].numpy().tobytes())
        digest.update(batch["mask"].numpy().tobytes())
    return seconds, digest.hexdigest(), batch


def step_seconds(assembly: Assembly, batch: State, steps: int) -> float:
    """A training step from an augmented batch on: forward, backward, AdamW."""
    model, times = assembly.model.train(), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    for _ in range(steps):
        began = time.perf_counter()
        model.head.loss(model(model.prefix(dict(batch)))).backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--variants", type=int, default=24)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--steps", type=int, default=5)
    arguments = parser.parse_args()
    overrides = {"data.variants": arguments.variants}
    recipe, assembly = parts("memory", overrides)
    seconds, seen = [], set()
    for _ in range(arguments.epochs):
        taken, digest, batch = epoch(recipe, assembly)
        seconds.append(taken)
        seen.add(digest)
    step = step_seconds(assembly, batch, arguments.steps)
    held = assembly.data.store.held
    once, digest, _ = epoch(*parts("off", overrides))
    # What comes out of the cache must be what would have been made.
    assert seen == {digest}
    patches = len(assembly.data.samples("train"))
    training = step * -(-patches // recipe.train.batch_size)
    rows = [
        {
            "epoch": name,
            "seconds, data": taken,
            "times": once / taken,
            "seconds, with training": taken + training,
            "times, with training": (once + training) / (taken + training),
        }
        for name, taken in (
            ("without the cache", once),
            ("first, which fills the cache", seconds[0]),
            ("each later one (median)", statistics.median(seconds[1:])),
        )
    ]
    publish(
        "volume_cache",
        f"medical/tumour-segmentation's data: {patches} augmented patches of "
        f"{arguments.variants} volumes with simulated lesions",
        rows,
        setting("headstart-medical", "monai"),
        goal="from epoch 2 on at least 5 times as fast as the epoch without the cache",
        remark="The batches are the same with and without. The cache holds "
        f"{held / 1e6:.0f} MB in memory. Training is worked out from {step:.2f} s a "
        "step of deepbrain's U-Net, measured on one batch; the faster the device, the "
        "nearer the last column is to that of the data.",
    )


if __name__ == "__main__":
    main()
