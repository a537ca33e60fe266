"""What a predicted mask of one case is worth, class by class, on the original grid.

Conventions for what is not there, by class:

- Dice and lesion F1: 1 where neither mask has the class, 0 where only one has it.
- Distances: not counted where neither mask has it; the length of the volume's diagonal
  where only one has it, so that saying nothing never pays.
- Volume errors: relative ones are not counted where the truth has none.
- Lesion recall: not counted where the truth has no lesion.

Not counted is NaN. Voxels whose truth is 255 are not known: both masks are taken for
background there.
"""

from __future__ import annotations

import hashlib
from functools import wraps
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from monai.metrics.utils import get_mask_edges, get_surface_distance
from scipy import ndimage

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    Measures = dict[str, np.ndarray]
    Measure = Callable[[Any, Any, Any, int], Measures]

INPUTS = ("prediction", "target", "spacing")
UNKNOWN = 255
COVERED = 0.1
"""Share of a lesion that must be covered for it to count as found (Commowick et al.
2018, "Objective evaluation of multiple sclerosis lesion segmentation")."""
NEIGHBOURS = np.ones((3, 3, 3), dtype=bool)
"""Voxels that touch by a corner are of one lesion."""
MOST_KEPT = 4096


def as_array(value: Any) -> np.ndarray:
    """A tensor on any device, or an array, as an array."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    return np.asarray(value)


def mean_known(values: Any) -> float:
    """Mean of the values that are numbers; NaN without one."""
    known = np.asarray(values, dtype=float)
    known = known[~np.isnan(known)]
    return float(known.mean()) if len(known) else float("nan")


def lesions_of(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """Connected components of a boolean mask, numbered from 1 on, and how many."""
    numbered, count = ndimage.label(mask, structure=NEIGHBOURS)
    return numbered, int(count)


def box_sides(affine: np.ndarray) -> np.ndarray:
    """Sides of a box as large as a voxel, mm, float64 (3,).

    The distances of neighbouring voxels, but where a tilted gantry shears the slices
    against each other: these are nearer to each other than their voxels.

    Args:
        affine: Voxel indices to millimetres, (4, 4).
    """
    return np.abs(np.diag(np.linalg.qr(affine[:3, :3])[1]))


def volumes_ml(mask: np.ndarray, spacing: Sequence[float], classes: int) -> np.ndarray:
    """Millilitres of each class but the first, (classes - 1,); spacing in mm."""
    voxels = np.bincount(mask.ravel(), minlength=classes)[1:classes]
    volumes: np.ndarray = voxels * (float(np.prod(spacing)) / 1000)
    return volumes


def _once(measure: Measure) -> Measure:
    """Remember results: three metrics, their scores and the report ask for the same."""
    kept: dict[bytes, Measures] = {}

    @wraps(measure)
    def known(prediction: Any, target: Any, spacing: Any, classes: int) -> Measures:
        found, true = as_array(prediction), as_array(target)
        if found.shape != true.shape:
            raise ValueError(f"masks of {found.shape} and {true.shape} are compared")
        # Results come back from other ranks and from the host as float32.
        sides = as_array(spacing).astype(np.float32).astype(float)
        digest = hashlib.blake2b(repr((true.shape, sides.tolist(), classes)).encode())
        for mask in (found, true):
            digest.update(np.ascontiguousarray(mask, dtype=np.uint8).data)
        key = digest.digest()
        if key not in kept:
            if len(kept) >= MOST_KEPT:
                kept.pop(next(iter(kept)))
            unknown = true == UNKNOWN
            if unknown.any():
                found, true = (np.where(unknown, 0, mask) for mask in (found, true))
            kept[key] = measure(found, true, sides, classes)
        return kept[key]

    return known


@_once
def overlap(prediction: Any, target: Any, spacing: Any, classes: int) -> Measures:
    """How much of a mask is right, and how large it is.

    Args:
        prediction: Class of each voxel, uint8 (x, y, z).
        target: The true one, 255 where it is not known.
        spacing: mm along each axis, (3,).
        classes: How many there are, background included.

    Returns:
        ``dice``, ``true-ml``, ``found-ml``, ``volume-error`` (absolute, ml) and
        ``relative-volume-error`` (absolute, as a part of the true volume), each
        float64 (classes - 1,), background left out.
    """
    true, found = (volumes_ml(mask, spacing, classes) for mask in (target, prediction))
    both = volumes_ml(np.where(prediction == target, target, 0), spacing, classes)
    total, error = true + found, np.abs(found - true)
    with np.errstate(divide="ignore", invalid="ignore"):
        dice = np.where(total > 0, 2 * both / total, 1.0)
        relative = np.where(true > 0, error / true, np.nan)
    return {
        "dice": dice,
        "true-ml": true,
        "found-ml": found,
        "volume-error": error,
        "relative-volume-error": relative,
    }


@_once
def surfaces(prediction: Any, target: Any, spacing: Any, classes: int) -> Measures:
    """How far apart the surfaces are, in mm; arguments as :func:`overlap`.

    Surfaces and distances are MONAI's. Returns ``hd95``, the greater of both directed
    95th percentiles, and ``asd``, the mean over both surfaces' voxels.
    """
    diagonal = float(np.linalg.norm(np.multiply(target.shape, spacing)))
    values = []
    for value in range(1, classes):
        found, true = prediction == value, target == value
        if found.any() and true.any():
            one, other = get_mask_edges(found, true)
            sides = [
                np.asarray(get_surface_distance(a, b, spacing=spacing), dtype=float)
                for a, b in ((one, other), (other, one))
            ]
            far = max(float(np.quantile(side, 0.95)) for side in sides)
            values.append((far, float(np.concatenate(sides).mean())))
        else:
            lone = diagonal if found.any() or true.any() else float("nan")
            values.append((lone, lone))
    return dict(zip(("hd95", "asd"), np.array(values).T, strict=True))


@_once
def lesions(prediction: Any, target: Any, spacing: Any, classes: int) -> Measures:
    """Which lesions are found; arguments as :func:`overlap`.

    A lesion is a connected component. A true one is found where the prediction covers
    at least a tenth of it; a predicted one is false where the truth covers less than a
    tenth of it.

    Returns:
        ``true-lesions``, ``found-lesions`` (of the true ones), ``false-lesions``,
        ``lesion-recall``, and ``lesion-f1``, the harmonic mean of recall and of the
        share of predicted lesions that are not false.
    """
    rows = []
    for value in range(1, classes):
        found, true = prediction == value, target == value
        covered, real = _covered(true, found), _covered(found, true)
        recall = float(covered.mean()) if len(covered) else float("nan")
        if len(covered) and len(real):
            precision = float(real.mean())
            f1 = 2 * recall * precision / max(recall + precision, 1e-12)
        else:
            f1 = float(len(covered) == len(real))
        rows.append((len(covered), covered.sum(), (~real).sum(), recall, f1))
    names = (
        "true-lesions", "found-lesions", "false-lesions", "lesion-recall", "lesion-f1"
    )  # fmt: skip
    return dict(zip(names, np.array(rows, dtype=float).T, strict=True))


def _covered(mask: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Of each component of a mask, whether the other covers enough, bool."""
    box = ndimage.find_objects(mask.astype(np.uint8), 1)[0]
    if box is None:
        return np.zeros(0, dtype=bool)
    numbered, count = lesions_of(mask[box])
    sizes = np.bincount(numbered.ravel(), minlength=count + 1)[1:]
    inside = np.bincount(numbered[other[box]], minlength=count + 1)[1:]
    enough: np.ndarray = inside >= COVERED * sizes
    return enough


def by_class(
    outputs: Mapping[str, Any], task: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """Everything about every case: arrays (cases, foreground classes) by name.

    Reads ``prediction``, ``target`` and ``spacing``.
    """
    classes = len(task["labels"])
    rows: list[Measures] = []
    for found, true, spacing in zip(*(outputs[key] for key in INPUTS), strict=True):
        parts = [
            measure(found, true, spacing, classes)
            for measure in (overlap, surfaces, lesions)
        ]
        rows.append({name: value for part in parts for name, value in part.items()})
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}
