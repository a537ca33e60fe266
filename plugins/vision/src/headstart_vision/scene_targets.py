"""What a head is to learn from composited scenes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from headstart_vision.augment import IGNORED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from headstart.stages import State
    from headstart_vision.compose import Scene


def boxes_of(scenes: Sequence[Scene]) -> State:
    """Objects in the order from back to front; at least one place for each scene."""
    most = max(1, *(len(scene.objects) for scene in scenes))
    boxes = torch.zeros(len(scenes), most, 4)
    labels = torch.zeros(len(scenes), most, dtype=torch.int64)
    for i, scene in enumerate(scenes):
        for j, thing in enumerate(scene.objects):
            boxes[i, j] = torch.tensor(thing.box)
            labels[i, j] = thing.label + 1
    crowd = torch.zeros_like(labels, dtype=torch.bool)
    return {"boxes": boxes, "box_labels": labels, "crowd": crowd}


def masks_of(
    scenes: Sequence[Scene], owners: Sequence[np.ndarray], canvas: Sequence[int]
) -> Tensor:
    """What is seen of each object, uint8 (scenes, objects, height, width)."""
    most = max(1, *(len(scene.objects) for scene in scenes))
    masks = np.zeros((len(scenes), most, *canvas), np.uint8)
    for i, (scene, owner) in enumerate(zip(scenes, owners, strict=True)):
        for j in range(len(scene.objects)):
            masks[i, j, : scene.size, : scene.size] = owner == j + 1
    return torch.from_numpy(masks)


def semantic_of(
    scenes: Sequence[Scene], owners: Sequence[np.ndarray], canvas: Sequence[int]
) -> Tensor:
    """The class at each pixel, int64 (scenes, height, width); 0 is the background."""
    mask = np.full((len(scenes), *canvas), IGNORED, np.int64)
    for i, (scene, owner) in enumerate(zip(scenes, owners, strict=True)):
        values = np.array([0, *(thing.label + 1 for thing in scene.objects)])
        mask[i, : scene.size, : scene.size] = values[owner]
    return torch.from_numpy(mask)
