"""Global fine-tuning of MiniLM on texts of mixed length, as each loop batches them.

The movie snippets as they are, 2 to about 60 words. Ours puts texts of similar length
into one batch; the Hugging Face Trainer by default shuffles, and its
DataCollatorWithPadding pads to the longest of a batch. The same texts, model, batch
size and number of steps; rounds in turn.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import publish, setting
from peer_data import write_texts
from peer_loops import EQUAL, Job, hugging_face, lightning, ours
from peer_model import PeerClassifier
from torch.utils.data import DataLoader
from transformers import AutoTokenizer, DataCollatorWithPadding

from headstart.assembly import assemble
from headstart.plugins import load_plugins
from headstart.recipe import load_recipe

if TYPE_CHECKING:
    from collections.abc import Callable

LEARNING_RATE = 5e-5
BATCH_SIZE = 32


@dataclass
class Counted:
    """A collate function that counts how much of its batches is padding."""

    collate: Callable[[Any], dict[str, Any]]
    used: int = 0
    padded: int = 0

    def __call__(self, samples: Any) -> dict[str, Any]:
        batch = dict(self.collate(samples))
        self.used += int(batch["attention_mask"].sum())
        self.padded += batch["attention_mask"].numel()
        return batch

    @property
    def waste(self) -> float:
        return 1 - self.used / self.padded


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--texts", type=int, default=1200)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    epochs = arguments.epochs
    registry = load_plugins()
    with tempfile.TemporaryDirectory() as folder:
        keys, texts = write_texts(Path(folder), arguments.texts, snippets=1)
        overrides = {
            **keys,
            **EQUAL,
            "strategy.name": "global",
            "train.batch_size": BATCH_SIZE,
            "train.epochs": epochs,
            "train.evaluate_every": epochs,
            "train.learning_rate": LEARNING_RATE,
        }
        recipe = load_recipe("nlp/classify", overrides, registry=registry)
        assembly = assemble(recipe, registry)
    samples = assembly.data.samples("train")
    encoded = [
        {"input_ids": sample["input_ids"].tolist(), "label": int(sample["label"])}
        for sample in samples
    ]
    padding = DataCollatorWithPadding(
        AutoTokenizer.from_pretrained(str(assembly.weights.folder))
    )
    how = {"epochs": epochs, "learning_rate": LEARNING_RATE}

    def our_job() -> tuple[Job, float]:
        fresh = replace(assembly, model=copy.deepcopy(assembly.model))
        job, trainer = ours(recipe, fresh)
        return job, trainer.batches.padding_waste or 0.0

    def hugging_face_job(sampling: str) -> tuple[Job, float]:
        counted = Counted(padding)
        job = hugging_face(
            PeerClassifier(assembly, dropout=0.1),
            encoded,
            counted,
            batch_size=BATCH_SIZE,
            train_sampling_strategy=sampling,
            **how,
        )
        return job, counted.waste

    def lightning_job() -> tuple[Job, float]:
        counted = Counted(assembly.data.collate)
        loader: DataLoader[Any] = DataLoader(
            samples,  # type: ignore[arg-type]
            BATCH_SIZE,
            shuffle=True,
            collate_fn=counted,
        )
        model = PeerClassifier(assembly, dropout=0.1)
        return lightning(model, loader, **how), counted.waste

    loops: dict[str, Callable[[], tuple[Job, float]]] = {
        "ours": our_job,
        "Hugging Face Trainer": lambda: hugging_face_job("random"),
        "Hugging Face Trainer, group_by_length": lambda: hugging_face_job(
            "group_by_length"
        ),
        "Lightning, shuffled": lightning_job,
    }
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    waste: dict[str, float] = {}
    for _ in range(arguments.rounds):
        for name, run in loops.items():
            print(name)
            job, waste[name] = run()
            # Up to the last step: ours validates after it.
            seconds[name].append(sum(job.epochs))
    rows = []
    for name, spent in seconds.items():
        ratios = [
            other / own for own, other in zip(seconds["ours"], spent, strict=True)
        ]
        rows.append(
            {
                "loop": name,
                "samples/s (median)": len(samples) * epochs / statistics.median(spent),
                "this / ours, median of rounds": statistics.median(ratios),
                "range": f"{min(ratios):.3f} to {max(ratios):.3f}",
                "padding": f"{waste[name]:.1%}",
            }
        )
    publish(
        "mixed_lengths",
        f"Global fine-tuning of MiniLM, {texts}, {epochs} epoch(s)",
        rows,
        setting("headstart", "transformers", "accelerate", "lightning"),
        goal="at least 1.25 times as fast as the Hugging Face Trainer with its default "
        "order and collation",
        remark="Each loop in its own order; all see every text once an epoch.",
    )


if __name__ == "__main__":
    main()
