"""Connected components of a mask: which ones are kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

if TYPE_CHECKING:
    from collections.abc import Sequence

TOUCHING = np.ones((3, 3, 3), dtype=bool)
"""Voxels that share a corner belong together."""


def clean_components(
    mask: np.ndarray,
    spacing: Sequence[float] | np.ndarray,
    *,
    largest: bool = False,
    smallest_ml: float = 0.0,
) -> np.ndarray:
    """A mask without stray pieces; each class is looked at by itself.

    Args:
        mask: (x, y, z) class numbers, 0 the background; it is left as it is.
        spacing: Millimetres between voxels.
        largest: Keep the largest component of each class alone.
        smallest_ml: Components below so many millilitres become background.

    Returns:
        A mask of the same type; the same one where nothing is to be removed.
    """
    if not largest and smallest_ml <= 0:
        return mask
    voxel = float(np.prod(np.asarray(spacing, dtype=np.float64))) / 1000.0
    cleaned = mask.copy()
    for label, box in enumerate(ndimage.find_objects(mask), start=1):
        if box is None:
            continue
        part = mask[box] == label
        components, count = ndimage.label(part, TOUCHING)
        sizes = np.bincount(components.ravel(), minlength=count + 1)
        sizes[0] = 0
        keep = sizes * voxel >= smallest_ml
        if largest:
            keep &= np.arange(count + 1) == sizes.argmax()
        cleaned[box][part & ~keep[components]] = 0
    return cleaned
