"""A tiny folder of images with a mask each: coloured rectangles on noise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from headstart_vision.tiny_objects import COLOURS, HEIGHT, WIDTH, rectangles

if TYPE_CHECKING:
    from pathlib import Path


def tiny_masks(folder: Path) -> dict[str, Any]:
    """Images and palette PNGs with the class of each pixel, for tests.

    Returns:
        Settings of ``[data]`` that read them.
    """
    from PIL import Image

    numbers = {name: i for i, name in enumerate(COLOURS, start=1)}
    palette = [0, 0, 0, *(value for colour in COLOURS.values() for value in colour)]
    (folder / "images").mkdir()
    (folder / "masks").mkdir()
    for i, (pixels, placed) in enumerate(rectangles()):
        # Letters: numbers would look like frames of one video.
        name = f"scene{chr(ord('a') + i)}.png"
        Image.fromarray(pixels).save(folder / "images" / name)
        values = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
        for label, (x1, y1, x2, y2) in placed:
            values[y1:y2, x1:x2] = numbers[label]
        mask = Image.fromarray(values)
        mask.putpalette(palette)
        mask.save(folder / "masks" / name)
    labels = ["background", *COLOURS]
    return {"name": "vision/masks", "path": str(folder), "labels": labels}
