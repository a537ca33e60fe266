"""Feature extraction from images: an epoch from the cache beside an epoch without."""

from __future__ import annotations

import argparse
import copy
import statistics
from dataclasses import replace

import torch
from common import publish, setting
from peer_loops import EQUAL, cold_cache, ours

from headstart.assembly import assemble
from headstart.assets import fetch, find_asset
from headstart.plugins import load_plugins
from headstart.recipe import load_recipe


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--size", type=int, default=224)
    arguments = parser.parse_args()
    registry = load_plugins()
    data = fetch(find_asset("fashion-mnist", ("headstart_vision",)))
    overrides = {
        **EQUAL,
        "data.path": str(data),
        "data.rows": arguments.images + 40,
        "data.validation_size": 40,
        "data.size": arguments.size,
        "backbone.keep": None,
        "head.grid": 1,
        "head.dropout": 0.0,
        "train.epochs": arguments.epochs,
        "train.evaluate_every": arguments.epochs,
        "report.scratch_control": False,
    }
    cached, uncached = (
        load_recipe("vision/classify", overrides | extra, registry=registry)
        for extra in ({"cache.mode": "on"}, {"cache.mode": "off", "train.epochs": 2})
    )
    assembly = assemble(cached, registry)
    jobs, heads = {}, {}
    for name, recipe in (("uncached", uncached), ("cached", cached)):
        fresh = replace(assembly, model=copy.deepcopy(assembly.model))
        with cold_cache():
            jobs[name], _ = ours(recipe, fresh)
    # The same steps with and without: the head must come out alike.
    for name, mode in (("uncached", "off"), ("cached", "on")):
        two = load_recipe(
            "vision/classify",
            overrides | {"cache.mode": mode, "train.epochs": 2},
            registry=registry,
        )
        fresh = replace(assembly, model=copy.deepcopy(assembly.model))
        with cold_cache():
            job, _ = ours(two, fresh, tell=False)
        heads[name] = torch.cat([p.flatten() for p in job.model.head.parameters()])
    apart = float((heads["cached"] - heads["uncached"]).detach().abs().max())
    once = statistics.median(jobs["uncached"].epochs)
    later = statistics.median(jobs["cached"].epochs[1:])
    rows = [
        {"epoch": "without the cache", "seconds": once, "times": 1.0},
        {
            "epoch": "first, which fills the cache",
            "seconds": jobs["cached"].epochs[0],
            "times": once / jobs["cached"].epochs[0],
        },
        {"epoch": "each later one", "seconds": later, "times": once / later},
    ]
    publish(
        "image_cache",
        f"MobileNetV2, all frozen, {arguments.images} images of {arguments.size} "
        "pixels",
        rows,
        setting("headstart", "torchvision"),
        goal="from epoch 2 on at least 500 times the epoch without the cache",
        remark="After two epochs with and without the cache the heads differ by "
        f"{apart:.1e} at most.",
    )


if __name__ == "__main__":
    main()
