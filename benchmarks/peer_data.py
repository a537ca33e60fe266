"""The texts that the benchmarks train on, and the order they all train in."""

from __future__ import annotations

import csv
import math
import statistics
from typing import TYPE_CHECKING

from torch.utils.data import Sampler

from headstart.assets import fetch, find_asset
from headstart.batch_order import epoch_batches

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy as np

HELD_OUT = 32
"""Texts in the validation and in the test split; no benchmark is about those."""


def write_texts(folder: Path, count: int, snippets: int) -> tuple[dict[str, str], str]:
    """Movie snippets of one class, joined ``snippets`` at a time, as three tables.

    The same whenever it is called: snippets are taken in the order of their file, the
    classes in turn.

    Args:
        folder: Where the tables go.
        count: Texts to train on.
        snippets: Snippets a text; three have about 60 words.

    Returns:
        The recipe's keys that read them, and what they are in words.
    """
    asset = find_asset("movie-snippets", ("headstart_nlp",))
    source = fetch(asset) / asset.files[0].path
    classes: dict[str, list[str]] = {"negative": [], "positive": []}
    for line in source.read_text(encoding="utf-8").splitlines():
        _, score, text = line.split("\t", 2)
        if abs(float(score)) > 0.5:
            classes["positive" if float(score) > 0 else "negative"].append(text)
    joined = [
        [
            (" ".join(texts[i : i + snippets]), label)
            for i in range(0, len(texts) - snippets + 1, snippets)
        ]
        for label, texts in classes.items()
    ]
    rows = [row for pair in zip(*joined, strict=False) for row in pair]
    if len(rows) < count + 2 * HELD_OUT:
        most = len(rows) - 2 * HELD_OUT
        raise SystemExit(f"there are {most} texts of {snippets} snippets, not {count}")
    splits = {
        "path": rows[:count],
        "validation_path": rows[count : count + HELD_OUT],
        "test_path": rows[count + HELD_OUT : count + 2 * HELD_OUT],
    }
    keys = {}
    for key, split in splits.items():
        file = folder / f"{key}.csv"
        with file.open("w", encoding="utf-8", newline="") as handle:
            csv.writer(handle).writerows([("text", "label"), *split])
        keys[f"data.{key}"] = str(file)
    words = statistics.mean(len(text.split()) for text, _ in splits["path"])
    return keys, f"{count} texts of {words:.0f} words on average"


class Order(Sampler[list[int]]):
    """Our trainer's batches of every epoch, for whoever iterates once an epoch."""

    def __init__(
        self,
        count: int,
        batch_size: int,
        seed: int,
        sizes: np.ndarray | None = None,
    ) -> None:
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self.sizes = sizes
        self.epoch = 0

    def __len__(self) -> int:
        return math.ceil(self.count / self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        batches = epoch_batches(
            self.count,
            self.batch_size,
            seed=self.seed,
            epoch=self.epoch,
            sizes=self.sizes,
        )
        self.epoch += 1
        for batch in batches:
            yield batch.tolist()
