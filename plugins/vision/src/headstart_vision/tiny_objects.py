"""A tiny folder of photographs that are none: coloured rectangles with boxes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

COLOURS = {"red": (220, 40, 40), "blue": (40, 60, 220)}
COUNT, WIDTH, HEIGHT = 24, 64, 48
Placed = list[tuple[str, tuple[int, int, int, int]]]


def rectangles() -> Iterator[tuple[np.ndarray, Placed]]:
    """Pixels (48, 64, 3) uint8 and one or two rectangles by colour, as x1 y1 x2 y2."""
    generator = np.random.default_rng(0)
    for i in range(COUNT):
        pixels = generator.integers(90, 150, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        placed: Placed = []
        for j in range(1 + i % 2):
            name = list(COLOURS)[(i // 2 + j) % 2]
            # One in each half, so that none hides another.
            x1, y1 = generator.integers((2 + j * 32, 2), (8 + j * 32, 12))
            width, height = generator.integers(14, (22, 32))
            x2, y2 = x1 + width, y1 + height
            pixels[y1:y2, x1:x2] = COLOURS[name]
            placed.append((name, (int(x1), int(y1), int(x2), int(y2))))
        yield pixels, placed


def tiny_objects(folder: Path) -> dict[str, Any]:
    """Images and a COCO file with boxes and polygons, for tests.

    Returns:
        Settings of ``[data]`` that read them.
    """
    from PIL import Image

    numbers = {name: i for i, name in enumerate(COLOURS, start=1)}
    content: dict[str, list[dict[str, Any]]] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": i, "name": name} for name, i in numbers.items()],
    }
    (folder / "images").mkdir()
    for number, (pixels, placed) in enumerate(rectangles(), start=1):
        name = f"scene{_letters(number)}.png"
        Image.fromarray(pixels).save(folder / "images" / name)
        size = {"width": WIDTH, "height": HEIGHT}
        content["images"].append({"id": number, "file_name": name, **size})
        for label, (x1, y1, x2, y2) in placed:
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": number,
                    "category_id": numbers[label],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": 0,
                    "segmentation": [[x1, y1, x2, y1, x2, y2, x1, y2]],
                }
            )
    (folder / "annotations.json").write_text(json.dumps(content))
    return {"name": "vision/objects", "path": str(folder), "kind": "instances"}


def _letters(number: int) -> str:
    """Names that do not look like frames of one video, which a split keeps together."""
    return chr(ord("a") + number - 1)
