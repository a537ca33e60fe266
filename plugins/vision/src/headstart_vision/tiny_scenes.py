"""Made-up garments and photographs in the files of the real ones, for tests."""

from __future__ import annotations

import gzip
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from headstart_vision.garments import FILES, NAMES

if TYPE_CHECKING:
    from pathlib import Path

PHOTOS = ("beach", "forest", "kitchen", "road", "square")


def tiny_scenes(folder: Path) -> dict[str, Any]:
    """Write ten garments of each class and five photographs.

    Returns:
        Settings of ``[data]`` that compose small scenes of them.
    """
    chance = np.random.default_rng(0)
    (folder / "objects").mkdir(parents=True)
    (folder / "photos").mkdir()
    for names in FILES.values():
        pictures = np.stack([_garment(i % len(NAMES), chance) for i in range(100)])
        labels = np.arange(100, dtype=np.uint8) % len(NAMES)
        for name, array in zip(names, (pictures, labels), strict=True):
            write_idx(folder / "objects" / f"{name}.gz", array)
    for i, name in enumerate(PHOTOS):
        coarse = chance.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        photo = Image.fromarray(coarse).resize((80 + 4 * i, 72))
        photo.save(folder / "photos" / f"{name}.png")
    return {
        "name": "vision/composited",
        "objects": str(folder / "objects"),
        "backgrounds": str(folder / "photos"),
        "labels": [],
        "size": 64,
        "train": 8,
        "validation": 4,
        "test": 4,
    }


def write_idx(path: Path, array: np.ndarray) -> None:
    """Write uint8 values as a packed IDX file."""
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    head = bytes([0, 0, 8, array.ndim]) + sizes
    path.write_bytes(gzip.compress(head + array.tobytes(), 1, mtime=0))


def _garment(label: int, chance: np.random.Generator) -> np.ndarray:
    """A grey shape on black, uint8 (28, 28): its sides tell the class."""
    picture = np.zeros((28, 28), np.uint8)
    height, width = 8 + 2 * label, 26 - 2 * label
    top, left = (28 - height) // 2, (28 - width) // 2
    shade = chance.integers(60, 255, (height, width), dtype=np.uint8)
    picture[top : top + height, left : left + width] = shade
    return picture
