"""Patches: where they are taken, and how they are cut."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence


def positions(
    mask: np.ndarray | None,
    shape: Sequence[int],
    patch: Sequence[int],
    count: int,
    share: float,
    generator: np.random.Generator,
) -> np.ndarray:
    """First voxels of some patches of a volume, balanced by what they show.

    As MONAI's ``RandCropByLabelClasses``, with two differences: the share is kept
    exactly, not on average, and the labelled voxel is anywhere in the middle half of
    the patch, not always at its centre, which a network could learn.

    Args:
        mask: Classes (x, y, z), 0 the background; ``None`` where nothing is labelled.
        shape: Of the volume.
        patch: Sides of a patch.
        count: How many.
        share: Of patches with a labelled voxel, of a class drawn evenly from those
            that the volume has; the others are anywhere.
        generator: The only source of chance.

    Returns:
        int64 (count, 3); patches are inside the volume, along axes that are longer
        than they are.
    """
    size, whole = np.asarray(patch), np.asarray(shape)
    highest = np.maximum(whole - size, 0)
    starts = generator.integers(0, highest + 1, (count, 3))
    classes = [] if mask is None else [c for c in np.unique(mask) if c > 0]
    if mask is None or not classes:
        return starts
    places = {c: np.flatnonzero(mask.ravel() == c) for c in classes}
    for row in range(round(count * share)):
        inside = places[classes[generator.integers(len(classes))]]
        flat = inside[generator.integers(len(inside))]
        voxel = np.array(np.unravel_index(flat, mask.shape))
        within = generator.integers(size // 4, size - size // 4)
        starts[row] = np.clip(voxel - within, 0, highest)
    return starts


def cut(
    array: np.ndarray,
    start: Sequence[int] | np.ndarray,
    size: Sequence[int],
    fill: float | np.ndarray,
) -> np.ndarray:
    """A box of a volume; what lies outside is filled.

    Args:
        array: (…, x, y, z).
        start: First voxel, may be negative.
        size: Sides of the box.
        fill: Value outside the volume, or values of the array's leading axes.

    Returns:
        A new array (…, *size).
    """
    ends = [int(s) + n for s, n in zip(start, size, strict=True)]
    shape = array.shape[-3:]
    source: tuple[Any, ...] = tuple(
        slice(max(int(s), 0), max(min(e, n), 0))
        for s, e, n in zip(start, ends, shape, strict=True)
    )
    box = array[(..., *source)]
    if box.shape[-3:] == tuple(size):
        return box.copy()
    filled = np.empty((*array.shape[:-3], *size), dtype=array.dtype)
    filled[...] = np.asarray(fill)[..., None, None, None]
    place: tuple[Any, ...] = tuple(
        slice(max(-int(s), 0), max(-int(s), 0) + n)
        for s, n in zip(start, box.shape[-3:], strict=True)
    )
    filled[(..., *place)] = box
    return filled
