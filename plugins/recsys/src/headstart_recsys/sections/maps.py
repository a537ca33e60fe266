"""The drawing of a map of items: dots by category, names where there is room."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from headstart.report import plots

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes

COLOURED = 7
"""Categories with a colour of their own; more are not told apart."""
REST = 6
"""The palette's grey, for all other categories."""
LABELS = 12
SIDE = 5.0
"""Inches of a panel's width and height."""
GAP = 1.08
"""From a panel to the next, in widths."""


@dataclass(frozen=True)
class ItemMap:
    """Where items are, before and after or once.

    Attributes:
        places: Positions by title of a panel, each (items, 2), on the same axes.
        names: Names of the first items; those that follow are drawn as rings and have
            none. Early names are written first, while there is room.
        category: Category of each item, (items,); -1: none.
        category_names: Names of all categories; empty: dots of one colour.
    """

    places: Mapping[str, np.ndarray]
    names: Sequence[str]
    category: np.ndarray
    category_names: Sequence[str]


def draw(shown: ItemMap) -> str:
    """The map as an ``<svg>`` element, panels beside each other."""
    every = np.concatenate(list(shown.places.values()))
    low = every.min(axis=0)
    size = np.maximum(np.ptp(every, axis=0), 1e-9)
    panels = {
        title: (place - low) / size + [GAP * number, 0]
        for number, (title, place) in enumerate(shown.places.items())
    }
    right = GAP * (len(panels) - 1) + 1
    colours, meaning = _colours(shown)
    rings = np.arange(len(colours)) >= len(shown.names)
    written = labelled(list(panels.values()), shown.names)

    def paint(axes: Axes) -> None:
        for title, place in panels.items():
            _dots(axes, place, colours, rings)
            _names(axes, place, shown.names, written)
            if len(panels) > 1:
                left = GAP * list(panels).index(title)
                axes.text(left, 1.06, title, fontweight="bold", va="bottom")
        axes.set_xlim(-0.03, right + 0.03)
        axes.set_ylim(-0.03, 1.12 if len(panels) > 1 else 1.03)
        axes.set_axis_off()
        handles = [
            axes.plot([], [], "o", ms=5, color=plots.COLOURS[colour], label=name)[0]
            for colour, name in meaning.items()
        ]
        if handles:
            axes.legend(
                handles=handles,
                frameon=False,
                fontsize=9,
                loc="upper left",
                bbox_to_anchor=(0, 0),
                ncols=4 * len(panels),
                handletextpad=0.1,
                columnspacing=1.2,
            )

    return plots.render(paint, width=SIDE * right + 0.4, height=SIDE)


def _colours(shown: ItemMap) -> tuple[np.ndarray, dict[int, str]]:
    """A colour for each item, and the names of the colours that occur."""
    category = shown.category
    if not shown.category_names or (category < 0).all():
        return np.zeros(len(category), dtype=int), {}
    size = np.bincount(category[category >= 0], minlength=len(shown.category_names))
    palette = [k for k in range(len(plots.COLOURS)) if k != REST][:COLOURED]
    order = [c for c in np.argsort(-size, kind="stable").tolist() if size[c]]
    index = np.full(len(category), REST)
    names = {}
    for colour, which in zip(palette, order, strict=False):
        index[category == which] = colour
        names[colour] = str(shown.category_names[which])
    if (index == REST).any():
        names[REST] = "other or none"
    return index, names


def _dots(
    axes: Axes, place: np.ndarray, colours: np.ndarray, rings: np.ndarray
) -> None:
    # The grey ones lie below; dots of one call share their style, so the page is small.
    for colour in sorted(set(colours.tolist()), key=lambda k: (k != REST, k)):
        for ring in (False, True):
            here = (colours == colour) & (rings == ring)
            axes.plot(
                *place[here].T,
                linestyle="none",
                marker="o",
                markersize=4.5 if ring else 3.0,
                markerfacecolor="none" if ring else plots.COLOURS[colour],
                markeredgecolor=plots.COLOURS[colour] if ring else "none",
                markeredgewidth=0.9,
                alpha=0.45 if colour == REST else 0.75,
            )


def _names(
    axes: Axes, place: np.ndarray, names: Sequence[str], which: Sequence[int]
) -> None:
    for k in which:
        axes.plot(*place[k], "o", ms=4.5, mfc="none", mec=plots.INK, mew=0.9)
        axes.annotate(
            names[k],
            place[k],
            xytext=(4, 2),
            textcoords="offset points",
            fontsize=8,
            bbox={"facecolor": "white", "alpha": 0.75, "pad": 0.6, "lw": 0},
        )


def labelled(panels: Sequence[np.ndarray], names: Sequence[str]) -> list[int]:
    """The first items whose names fit beside their dots, in every panel."""
    scale = 72 * SIDE * 0.9
    taken: list[list[tuple[float, float, float]]] = [[] for _ in panels]
    chosen = []
    for k, name in enumerate(names):
        boxes = []
        for number, place in enumerate(panels):
            x, y = (place[k] - [GAP * number, 0]) * scale
            boxes.append((float(x) - 4, float(y), float(x) + 6 + 4.4 * len(name)))
        if all(
            end < 1.05 * scale
            and all(abs(y - v) > 13 or end < u or x > w for u, v, w in boxed)
            for (x, y, end), boxed in zip(boxes, taken, strict=True)
        ):
            chosen.append(k)
            for box, boxed in zip(boxes, taken, strict=True):
                boxed.append(box)
        if len(chosen) == LABELS:
            break
    return chosen
