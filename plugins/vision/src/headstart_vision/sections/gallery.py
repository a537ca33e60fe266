"""What the sections of all kinds of task share: figures of images in some order."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from headstart.report.parts import Evaluation, Figure, Section

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

HEAVIEST = 1_100_000
"""Characters of the figures in one gallery; a report has two at most."""
PICTURES = ("thumbnail", "picture", "path")


def gallery(
    evaluation: Evaluation,
    title: str,
    text: str,
    order: Sequence[int],
    draw: Callable[[int], Figure],
    empty: str = "",
) -> list[Section]:
    """Figures of the first images of an order, while they are not too heavy."""
    if evaluation.rows < 1:
        return []
    if not order:
        return [Section(title, empty)] if empty else []
    figures: list[Figure] = []
    weight = 0
    wanted = order[: evaluation.rows]
    for index in wanted:
        figure = draw(index)
        weight += len(figure.svg)
        if figures and weight > HEAVIEST:
            text += (
                f" {len(figures)} of {len(wanted)}: more would make the page too heavy."
            )
            break
        figures.append(figure)
    return [Section(title, text, figures=tuple(figures))]


def spread(preferred: Sequence[int], count: int, rows: int) -> list[int]:
    """So many images at equal distances; the others only where those run out."""
    if len(preferred) >= rows:
        places = np.linspace(0, len(preferred) - 1, max(rows, 1)).round().astype(int)
        return [preferred[k] for k in places][:rows]
    others = [i for i in range(count) if i not in set(preferred)]
    return [*preferred, *others[: rows - len(preferred)]]


def printed(shown: Mapping[str, Any]) -> dict[str, Any]:
    """A sample without its picture, for tables."""
    return {key: value for key, value in shown.items() if key not in PICTURES}


def name_of(shown: Mapping[str, Any], index: int) -> str:
    name = shown.get("image") or shown.get("id") or f"image {index}"
    return Path(str(name)).name if "path" in shown else str(name)


def shortened(text: str, longest: int = 400) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"
