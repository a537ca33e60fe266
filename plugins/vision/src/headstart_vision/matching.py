"""Which detection is which object, and what is wrong with those that are none.

The kinds of error follow the idea of TIDE (Bolya et al., ECCV 2020), with its
thresholds: an IoU of .5 is a match, below .1 a detection is on the background.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SCORE = 0.5
"""Detections with a lower score are left out: nobody would act on them."""
FOUND = 0.5
"""IoU from which on a detection is on an object."""
TOUCHING = 0.1
"""IoU below which a detection has nothing to do with an object."""
RIGHT, CONFUSED, MISPLACED, BOTH, DUPLICATE, BACKGROUND = (
    "right",
    "wrong class",
    "poor localisation",
    "wrong class and poor localisation",
    "duplicate",
    "background",
)
ERRORS = (BACKGROUND, CONFUSED, MISPLACED, BOTH, DUPLICATE)


@dataclass(frozen=True)
class Matches:
    """One image's detections beside its objects; crowds and what is on them left out.

    Attributes:
        detections: Places of the detections that count, best first, (d,).
        kinds: :data:`RIGHT` or one of :data:`ERRORS`, (d,).
        partners: Place of the object that each one is on, -1 for none, (d,). No object
            has two.
        objects: Places of the objects, (o,).
        missed: Places of those that no detection of their class is on.
    """

    detections: np.ndarray
    kinds: tuple[str, ...]
    partners: np.ndarray
    objects: np.ndarray
    missed: np.ndarray

    @property
    def errors(self) -> int:
        """False detections and missed objects; a wrong class is one error, not two."""
        false = sum(kind != RIGHT for kind in self.kinds)
        return false + len(np.setdiff1d(self.missed, self.partners))


def match(prediction: Mapping[str, Any], target: Mapping[str, Any]) -> Matches:
    """Match one image's detections with its objects, by masks where there are any.

    As COCO does it at one IoU: the best detection chooses first, among objects of its
    class. Those without an object may then be on one of another class that nobody has.

    Args:
        prediction: ``boxes`` (n, 4), ``scores``, ``labels``, maybe ``masks``; arrays.
        target: ``boxes``, ``labels``, ``crowd``, maybe ``masks``.
    """
    scores = np.asarray(prediction["scores"])
    labels, theirs = np.asarray(prediction["labels"]), np.asarray(target["labels"])
    crowd = np.asarray(target["crowd"], dtype=bool)
    order = np.argsort(-scores, kind="stable")
    order = order[scores[order] >= SCORE]
    ious = _ious(prediction, target, crowd)[order]
    same = labels[order][:, None] == theirs[None, :]
    partners = np.full(len(order), -1)
    ignored = np.zeros(len(order), dtype=bool)
    free = ~crowd
    for row in range(len(order)):
        fit = np.where(same[row] & free, ious[row], 0.0)
        if fit.max(initial=0.0) >= FOUND:
            partners[row] = fit.argmax()
            free[partners[row]] = False
        else:
            over = np.where(same[row] & crowd, ious[row], 0.0)
            ignored[row] = over.max(initial=0.0) >= FOUND
    right = partners >= 0
    _pair_rest(ious, partners, ~right & ~ignored, free)
    kinds = tuple(
        RIGHT
        if right[row]
        else _error(ious[row][~crowd], same[row][~crowd], partners[row] >= 0)
        for row in np.flatnonzero(~ignored)
    )
    objects = np.flatnonzero(~crowd)
    return Matches(
        detections=order[~ignored],
        kinds=kinds,
        partners=partners[~ignored],
        objects=objects,
        missed=np.setdiff1d(objects, partners[right]),
    )


def confusion_pairs(
    matches: Sequence[Matches],
    outputs: Mapping[str, Any],
    background: int,
) -> tuple[np.ndarray, np.ndarray]:
    """True and predicted class from 0 on of every object and every false detection.

    Args:
        matches: Of each image.
        outputs: ``prediction`` and ``target`` of each image.
        background: The number that stands for no object.
    """
    true, predicted = [], []
    for one, found, real in zip(
        matches, outputs["prediction"], outputs["target"], strict=True
    ):
        said = np.asarray(found["labels"])[one.detections] - 1
        theirs = np.asarray(real["labels"], dtype=int) - 1
        on = one.partners >= 0
        nobody = np.setdiff1d(one.objects, one.partners)
        # Pairs, false detections, and objects that nothing is on.
        true += [theirs[one.partners[on]], np.full((~on).sum(), background)]
        predicted += [said[on], said[~on]]
        true.append(theirs[nobody])
        predicted.append(np.full(len(nobody), background))
    empty = [np.zeros(0, dtype=int)]
    return np.concatenate(true or empty), np.concatenate(predicted or empty)


def _pair_rest(
    ious: np.ndarray, partners: np.ndarray, single: np.ndarray, free: np.ndarray
) -> None:
    """Give detections that are left the objects that are left, highest IoU first."""
    left = np.where(single[:, None] & free[None, :], ious, 0.0)
    while left.size and left.max() >= FOUND:
        row, place = np.unravel_index(left.argmax(), left.shape)
        partners[row] = place
        left[row, :] = 0.0
        left[:, place] = 0.0


def _error(ious: np.ndarray, same: np.ndarray, paired: bool) -> str:
    """What is wrong with one detection, from its IoU with each object, (objects,)."""
    own, other = ious[same].max(initial=0.0), ious[~same].max(initial=0.0)
    if paired:
        return CONFUSED
    if TOUCHING <= own < FOUND:
        return MISPLACED
    if other >= FOUND:
        return CONFUSED
    if own >= FOUND:
        return DUPLICATE
    return BACKGROUND if other < TOUCHING else BOTH


def _ious(
    prediction: Mapping[str, Any], target: Mapping[str, Any], crowd: np.ndarray
) -> np.ndarray:
    """IoU of every detection with every object, (n, m); with crowds the share of the
    detection that is on it."""
    from faster_coco_eval.core import mask as api

    shape = (len(prediction["boxes"]), len(target["boxes"]))
    if not all(shape):
        return np.zeros(shape)
    sides: tuple[Any, Any]
    if "masks" in prediction and "masks" in target:
        sides = list(prediction["masks"]), list(target["masks"])
    else:
        sides = _xywh(prediction["boxes"]), _xywh(target["boxes"])
    found = api.iou(*sides, crowd.astype(int).tolist())
    return np.asarray(found).reshape(shape)


def _xywh(boxes: Any) -> np.ndarray:
    corners = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    return np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
