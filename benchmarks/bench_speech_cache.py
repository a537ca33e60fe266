"""A frozen encoder with a linear CTC head: epochs from the cache and without it.

`speech/transcribe` with all of the encoder frozen: what is left of a step is a linear
layer and the loss. Once with the recipe's Whisper tiny.en, and once with a network of
the size of wav2vec 2.0 base, from random numbers, which cost as much as learned ones.
The learning rate is constant, so that epochs are the same however many there are, and
every step's loss must be the same with and without the cache.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from common import publish, setting
from peer_loops import EQUAL, Watch, cold_cache

from headstart.assembly import assemble
from headstart.batches import epoch_length
from headstart.callbacks import Callback, Watchers
from headstart.clock import Clock
from headstart.plugins import load_plugins
from headstart.recipe import load_recipe
from headstart.training_setup import make_trainer, plan_training

if TYPE_CHECKING:
    from headstart.assembly import Assembly
    from headstart.recipe import Recipe

RECIPE = "speech/transcribe"
ENCODERS: dict[str, dict[str, Any]] = {
    "Whisper tiny.en": {},
    "wav2vec 2.0 base": {
        "backbone.name": "speech/wav2vec2",
        "backbone.weights": "none",
    },
}
CLOSE = 1e-4
"""How far two losses may be apart, relative to them: rounding, batch by batch."""


class Epochs(Callback):
    """Reads the time at the end of each epoch, and keeps every step's loss."""

    def __init__(self, steps_per_epoch: int) -> None:
        self.watch = Watch()
        self.steps_per_epoch = steps_per_epoch
        self.losses: list[float] = []

    def on_step(self, step: int) -> None:
        if step % self.steps_per_epoch == 0:
            self.watch.tick()

    def on_record(self, record: dict[str, Any]) -> None:
        if record["event"] == "train":
            self.losses.append(record["loss"])

    def on_message(self, text: str) -> None:
        print(f"  {text}")

    @property
    def seconds(self) -> list[float]:
        return [after - before for before, after in pairwise(self.watch.times)]


def train(recipe: Recipe, assembly: Assembly) -> Epochs:
    """Trains from an empty cache; validates once, after the last epoch."""
    fresh = replace(assembly, model=copy.deepcopy(assembly.model))
    epochs = Epochs(epoch_length(assembly.data, recipe.train))
    with cold_cache(), Watchers([epochs]) as watchers:
        clock = Clock(assembly.execution.device)
        plan = plan_training(recipe, fresh)
        make_trainer(recipe, fresh, plan, clock, watchers).fit()
    return epochs


def parts(
    arguments: argparse.Namespace, encoder: str, cache: str, epochs: int
) -> tuple[Recipe, Assembly]:
    registry = load_plugins()
    overrides = {
        **EQUAL,
        **ENCODERS[encoder],
        "head.layers": 0,
        "data.train_size": arguments.clips,
        "data.validation_size": 8,
        "strategy.name": "feature-extraction",
        "train.schedule": "constant",
        "train.batch_size": 64,
        "train.batch_total": arguments.seconds,
        "train.log_every": 1,
        "train.epochs": epochs,
        "train.evaluate_every": epochs,
        "cache.mode": cache,
        "report.scratch_control": False,
    }
    recipe = load_recipe(RECIPE, overrides, registry=registry)
    return recipe, assemble(recipe, registry)


def measure(arguments: argparse.Namespace, encoder: str) -> list[dict[str, Any]]:
    cached, assembly = parts(arguments, encoder, "on", arguments.epochs)
    uncached, _ = parts(arguments, encoder, "off", arguments.uncached_epochs)
    for sample in assembly.data.samples("train"):
        assembly.data.collate([sample])  # decoded from here on
    without, with_cache = train(uncached, assembly), train(cached, assembly)
    pairs = list(zip(with_cache.losses, without.losses, strict=False))
    most = max(abs(a - b) / abs(b) for a, b in pairs)
    assert most < CLOSE, f"losses differ by {most:.1e} of their value"
    once = statistics.median(without.seconds)
    return [
        {
            "encoder": encoder,
            "epoch": name,
            "seconds": seconds,
            "times": once / seconds,
            "losses differ by": f"{most:.1e}",
        }
        for name, seconds in (
            ("without the cache (median)", once),
            ("first, which fills the cache", with_cache.seconds[0]),
            ("each later one (median)", statistics.median(with_cache.seconds[1:])),
        )
    ]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--clips", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--uncached-epochs", type=int, default=2)
    parser.add_argument("--encoder", choices=ENCODERS, action="append")
    arguments = parser.parse_args()
    rows = []
    for encoder in arguments.encoder or ENCODERS:
        rows += measure(arguments, encoder)
    publish(
        "speech_cache",
        "A frozen encoder with a linear CTC head, "
        f"{arguments.clips} English prompts in "
        f"batches of at most {arguments.seconds:g} s",
        rows,
        setting("headstart-speech", "transformers"),
        goal="from epoch 2 on at least 50 times the epoch without the cache",
        remark="Losses are compared at every step of the epochs without the cache, "
        "relative to their value. Filling includes the validation split. What is left "
        "of a later epoch is CTC's own forward and backward variables, and dropout: "
        "the smaller the encoder, the more they count.",
    )


if __name__ == "__main__":
    main()
