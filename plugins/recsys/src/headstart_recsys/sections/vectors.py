"""Sections about the items' vectors: what moved, what is near what, and a map."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from headstart.report.parts import Cell, Evaluation, Figure, Section, Table
from headstart_recsys.sections import maps

if TYPE_CHECKING:
    from collections.abc import Mapping

    from headstart_recsys.sections.items import Items

MOVED = 8
"""Items in a table of the most moved."""
KNOWN = 8
"""Items whose neighbours are shown."""
NEAR = 5
"""Neighbours of each."""
COMPARED = 200
"""Best-known items over which neighbours before and after are compared."""
DOTS = 1000
NEW_DOTS = 200
SHARED = "(started from a vector that it shared with others)"
BLOCK = 2**24
"""Similarities in memory at once."""


def unit(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of length 1, and which rows have a direction; (I, C) and (I,).

    Rows that are zero or not finite become zero.
    """
    norm = np.linalg.norm(table, axis=1, keepdims=True)
    known = np.isfinite(norm) & (norm > 0)
    unit = np.divide(table, norm, out=np.zeros_like(table), where=known)
    return unit, known[:, 0]


def rotation(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The orthogonal matrix that brings one set of rows closest to another.

    The solution of the orthogonal Procrustes problem (Schönemann 1966).

    Args:
        source: (I, C).
        target: (I, C).

    Returns:
        (C, C); ``source @ rotation`` is close to ``target``.
    """
    left, _, right = np.linalg.svd(source.T @ target)
    return np.asarray(left @ right)


@dataclass(frozen=True)
class Vectors:
    """Directions of the items' vectors after training, and before where known.

    Attributes:
        after: Rows of length 1, (I, C).
        before: The same before training, turned towards ``after`` as a whole; ``None``
            where it is not known.
        known: Whether a vector has a direction, in both, (I,).
        frozen: Whether training changed nothing.
        shared: Whether an item started from the same vector as another, as those do
            that the weights do not know, (I,).
    """

    after: np.ndarray
    before: np.ndarray | None
    known: np.ndarray
    frozen: bool
    shared: np.ndarray

    @classmethod
    def of(cls, evaluation: Evaluation, items: Items) -> Vectors | None:
        """The vectors of an evaluation; nothing where it has none."""
        after = _table(evaluation.after, len(items))
        before = _table(evaluation.before, len(items))
        if after is None:
            return None
        unit_after, known = unit(after)
        if before is None or before.shape != after.shape:
            return cls(unit_after, None, known, False, np.zeros(len(items), dtype=bool))
        # As bytes rows are compared much faster than by their numbers.
        width = before.shape[1] * before.itemsize
        rows = np.ascontiguousarray(before).view(f"V{width}").reshape(-1)
        _, place, size = np.unique(rows, return_inverse=True, return_counts=True)
        shared = size[place.reshape(-1)] > 1
        unit_before, also = unit(before)
        known &= also
        turn = rotation(unit_before[known], unit_after[known])
        frozen = np.array_equal(before, after)
        turned = unit_after if frozen else unit_before @ turn
        return cls(unit_after, turned, known, frozen, shared)

    @cached_property
    def moved(self) -> np.ndarray:
        """Cosine distance between before and after, (I,); NaN where not known."""
        assert self.before is not None
        distance = 1 - np.einsum("ic,ic->i", self.before, self.after)
        return np.where(self.known, distance.clip(min=0), np.nan)

    def was_near(self, items: Items, code: int, near: np.ndarray) -> str:
        """Names of an item's neighbours before training; which of those that share
        its vector come first says nothing."""
        return SHARED if self.shared[code] else items.names(near)


def _table(probe: Mapping[str, Any] | None, count: int) -> np.ndarray | None:
    table = (probe or {}).get("item_table")
    if table is None:
        return None
    table = np.asarray(table, dtype=np.float32)
    return table if table.ndim == 2 and len(table) == count else None


def nearest(
    table: np.ndarray, known: np.ndarray, rows: np.ndarray, count: int
) -> np.ndarray:
    """Nearest other items by cosine, best first, in blocks.

    Args:
        table: Rows of length 1, (I, C).
        known: Items that may be neighbours, (I,).
        rows: Items whose neighbours are sought, (R,).
        count: How many of each.

    Returns:
        Codes, (R, at most ``count``).
    """
    count = min(count, max(int(known.sum()) - 1, 0))
    found = [np.zeros((0, count), dtype=np.int64)]
    step = max(BLOCK // max(len(table), 1), 1)
    for start in range(0, len(rows), step):
        block = rows[start : start + step]
        near = np.where(known, table[block] @ table.T, -np.inf)
        near[np.arange(len(block)), block] = -np.inf
        best = np.sort(np.argpartition(-near, max(count - 1, 0))[:, :count])
        order = np.argsort(-np.take_along_axis(near, best, 1), kind="stable")
        found.append(np.take_along_axis(best, order, 1))
    return np.concatenate(found)


def most_moved(
    evaluation: Evaluation, items: Items, vectors: Vectors | None
) -> list[Section]:
    """Items whose vectors turned most in training, and where they went."""
    title = "Items that moved most"
    if vectors is None or vectors.before is None or not vectors.known.any():
        return []
    if vectors.frozen:
        return [Section(title, "The items' vectors are as they were before training.")]
    moved, rows = vectors.moved, min(evaluation.rows, MOVED)
    usual = float(np.nanmedian(moved))
    text = (
        "How far an item's vector turned in training: 0 is not at all, 1 is to where "
        "nothing of the old direction is left. A rotation of all vectors together "
        "changes no ranking and is taken out first (orthogonal Procrustes). Half of "
        f"{int(vectors.known.sum()):,} items turned by less than {usual:.3f}."
    )
    everything, name = np.arange(len(items)), "Of all items"
    tables = []
    well_known = items.best_known[: max(len(items) // 10, rows)]
    if rows < len(well_known) < len(items):
        name = f"Of the {len(well_known):,} items with the most training events"
        tables.append(_moved_table(items, vectors, well_known, rows, name))
        everything, name = np.setdiff1d(everything, well_known), "Of the other items"
    tables.append(_moved_table(items, vectors, everything, rows, name))
    return [Section(title, text, tables=tuple(tables))] if rows else []


def _moved_table(
    items: Items, vectors: Vectors, among: np.ndarray, rows: int, name: str
) -> Table:
    assert vectors.before is not None
    among = among[vectors.known[among]]
    order = among[np.argsort(-vectors.moved[among], kind="stable")][:rows]
    sides = [
        nearest(side, vectors.known, order, 3)
        for side in (vectors.before, vectors.after)
    ]
    lines: list[tuple[Cell, ...]] = [
        (
            items.name(int(code)),
            int(items.counts[code]),
            float(vectors.moved[code]),
            vectors.was_near(items, int(code), sides[0][k]),
            items.names(sides[1][k]),
        )
        for k, code in enumerate(order)
    ]
    columns = ("item", "training events", "turned by", "was near", "is near")
    return Table(columns, tuple(lines), caption=f"{name}.")


def neighbours(items: Items, vectors: Vectors | None) -> list[Section]:
    """The nearest items of those with the most training events, before and after."""
    if vectors is None:
        return []
    best = items.best_known[vectors.known[items.best_known]][:COMPARED]
    if not len(best) or int(vectors.known.sum()) < 3:
        return []
    after = nearest(vectors.after, vectors.known, best, NEAR)
    text = "Nearest by the angle between vectors, nearest first."
    columns: tuple[str, ...] = ("item", "neighbours")
    rows: list[tuple[Cell, ...]] = [
        (items.name(int(code)), items.names(after[k]))
        for k, code in enumerate(best[:KNOWN])
    ]
    if vectors.frozen:
        text += " The vectors are frozen: they are the same before and after."
    elif vectors.before is not None:
        before = nearest(vectors.before, vectors.known, best, NEAR)
        kept = np.array(
            [len(np.intersect1d(*pair)) for pair in zip(before, after, strict=True)]
        )
        size, own = after.shape[1], ~vectors.shared[best]
        if own.any():
            text += (
                f" Of the {size} nearest of the {int(own.sum()):,} best-known items "
                "with a vector of their own before training, "
                f"{kept[own].mean() / size:.0%} are the same after it."
            )
        columns = ("item", "before training", "after training", "same")
        rows = [
            (
                name,
                vectors.was_near(items, int(best[k]), before[k]),
                near,
                None if vectors.shared[best[k]] else f"{kept[k]} of {size}",
            )
            for k, (name, near) in enumerate(rows)
        ]
    table = Table(
        columns,
        tuple(rows),
        caption=f"The {len(rows)} items with the most training events.",
    )
    return [Section("Neighbours of well-known items", text, tables=(table,))]


def item_map(items: Items, vectors: Vectors | None) -> list[Section]:
    """Items on the two axes along which their vectors differ most."""
    if vectors is None or vectors.after.shape[1] < 2:
        return []
    best = items.best_known[vectors.known[items.best_known]][:DOTS]
    new = np.flatnonzero(items.new & vectors.known)
    new = new[np.linspace(0, len(new) - 1, min(len(new), NEW_DOTS)).round().astype(int)]
    drawn = np.concatenate([best, new])
    if len(drawn) < 3:
        return []
    centre = vectors.after[drawn].mean(axis=0)
    _, spread, axes = np.linalg.svd(vectors.after[drawn] - centre, full_matrices=False)
    # The sign of an axis is free; so chosen, the same vectors give the same picture.
    axes = axes[:2] * np.sign(axes[np.arange(2), np.abs(axes[:2]).argmax(1)])[:, None]
    held = float((spread[:2] ** 2).sum() / max(float((spread**2).sum()), 1e-12))
    tables = {"after training": vectors.after}
    if vectors.before is not None and not vectors.frozen:
        tables = {"before training": vectors.before, **tables}
    places = {name: (table[drawn] - centre) @ axes.T for name, table in tables.items()}
    picture = maps.ItemMap(
        places=places,
        names=[items.name(int(code), 30) for code in best],
        category=items.category[drawn],
        category_names=items.category_names,
    )
    text = (
        f"The {len(best):,} best-known items"
        + (f" and {len(new):,} new ones (rings)" if len(new) else "")
        + ", by the two directions in which their vectors differ most after training "
        f"(principal components; they hold {held:.0%} of the differences, so items "
        "may be apart though they look close)."
    )
    if items.category_names:
        text += " The colour is an item's first category."
    figure = Figure(
        maps.draw(picture),
        caption="On the same axes." if len(places) > 1 else "",
        alt=f"Map of {len(drawn):,} items, {' and '.join(places)}",
        wide=len(places) > 1,
    )
    return [Section("Map of the items", text, figures=(figure,))]
