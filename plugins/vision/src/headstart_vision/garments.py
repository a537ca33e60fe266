"""Fashion-MNIST (Xiao, Rasul and Vollgraf 2017) as a source of objects."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from headstart.errors import DataError, Fault
from headstart_vision.idx import read_idx

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
"""Images and labels of each official part; the files may be packed (``.gz``)."""


def read_garments(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Images uint8 (count, height, width) and labels of both official parts.

    Raises:
        DataError: Files are missing, damaged or do not belong together; names them all.
    """
    faults: list[Fault] = []
    parts: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for part, names in FILES.items():
        arrays = []
        for name in names:
            path = locate(folder, name)
            if path is None:
                what, fix = f"{name}[.gz] is missing", "give Fashion-MNIST's IDX files"
                faults.append(Fault(what, str(folder), fix=fix))
                continue
            try:
                arrays.append(read_idx(path))
            except DataError as error:
                faults += error.faults
        if len(arrays) == 2:
            faults += _check(arrays, f"{folder}: {part}")
            parts[part] = (arrays[0], arrays[1])
    if faults:
        raise DataError(*faults)
    return parts


def locate(folder: Path, name: str) -> Path | None:
    """A file of that name in a folder or below it, packed or not."""
    for ending in ("", ".gz"):
        if found := sorted(folder.rglob(name + ending)):
            return found[0]
    return None


def _check(arrays: Sequence[np.ndarray], where: str) -> list[Fault]:
    images, labels = arrays
    faults = []
    if images.ndim != 3 or images.dtype != np.uint8:
        found = f"{'x'.join(map(str, images.shape))} {images.dtype}"
        faults.append(Fault(f"images are {found}", where, "expected NxHxW uint8"))
    if labels.ndim != 1 or len(labels) != len(images):
        what = f"{len(images)} images and labels of shape {labels.shape}"
        faults.append(Fault(what, where, "one label belongs to each image"))
    elif len(labels) and not 0 <= labels.min() <= labels.max() < len(NAMES):
        what = f"labels reach from {labels.min()} to {labels.max()}"
        faults.append(Fault(what, where, f"there are {len(NAMES)} classes, from 0 on"))
    return faults
