"""Tiny generated tables of interactions with something to find for every metric."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

USERS, ITEMS, TASTES = 40, 30, 3
LATE_USERS, LATE_ITEMS = 4, 4
"""The last users and items appear only at the end: cold in the test."""
DAYS = 100


def tiny_interactions(folder: Path) -> dict[str, Any]:
    """Forty users who like one of three kinds of thirty items, for tests.

    Four users and four items appear only in the last days, two items of the catalogue
    never.

    Returns:
        Settings of ``[data]`` that read them.
    """
    generator = np.random.default_rng(0)
    events: list[tuple[int, int, int, int]] = []
    for user in range(USERS):
        late = user >= USERS - LATE_USERS
        for item in generator.permutation(ITEMS).tolist():
            likes = item % TASTES == user % TASTES
            if generator.random() > (0.8 if likes else 0.25):
                continue
            new = late or item >= ITEMS - LATE_ITEMS
            day = generator.uniform(0.9 if new else 0.0, 1.0) * DAYS
            stars = generator.integers(4, 6) if likes else generator.integers(1, 6)
            second = 1_600_000_000 + int(day * 86_400)
            events.append((user, item, int(stars), second))
    generator.shuffle(events)
    with (folder / "ratings.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("user", "item", "rating", "time"))
        writer.writerows((f"u{u}", f"i{i}", r, t) for u, i, r, t in events)
    kinds = ("blue", "green", "red")
    with (folder / "items.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("item", "title", "kind"))
        for item in range(ITEMS + 2):
            kind = kinds[item % TASTES]
            size = "large" if item % 2 else "small"
            title = f"The {size} {kind} thing {item}"
            writer.writerow((f"i{item}", title, f"{kind}|{size}"))
    return {
        "name": "recsys/interactions",
        "path": str(folder / "ratings.csv"),
        "items_path": str(folder / "items.csv"),
        "value": "rating",
        "time": "time",
        "category": "kind",
        "catalogue_items": True,
        "test_size": 0.2,
        "validation_size": 0.15,
        "negatives": 2,
        "history": 4,
    }


def tiny_sequences(folder: Path) -> dict[str, Any]:
    """The same events as sequences of at most eight items."""
    settings = tiny_interactions(folder)
    return {**settings, "name": "recsys/sequences", "length": 8}
