"""A tiny folder of generated images in three classes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

_COLOURS = {"blue": (40, 60, 220), "green": (40, 200, 60), "red": (220, 50, 40)}


def tiny_classification(folder: Path) -> dict[str, Any]:
    """Thirty generated PNG images of 48 x 40 pixels in three classes, for tests.

    Returns:
        Settings of ``[data]`` that read them.
    """
    from PIL import Image

    generator = np.random.default_rng(0)
    for label, colour in _COLOURS.items():
        (folder / "images" / label).mkdir(parents=True)
        for i in range(10):
            noise = generator.integers(-40, 41, (40, 48, 3))
            pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "images" / label / f"{i:02d}.png")
    return {"name": "vision/images", "path": str(folder / "images"), "size": 64}
