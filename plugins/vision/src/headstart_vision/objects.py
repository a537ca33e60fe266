"""The data module ``vision/objects``: images with boxes, and masks, of objects.

Annotations are those of the upright image, after its EXIF orientation, as viewers and
annotation tools show it. An image without objects is kept: it teaches what is not one.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from headstart.errors import DataError, Fault
from headstart_vision import augment, checks, resizing
from headstart_vision.annotations import labels as classes
from headstart_vision.annotations import layout, rle
from headstart_vision.base import SPLITS, ImageModule
from headstart_vision.items import Item
from headstart_vision.paths import below

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor

    from headstart.data import Sample, Split
    from headstart.stages import State
    from headstart_vision.annotations import Annotations
    from headstart_vision.items import Parts
    from headstart_vision.settings import ImageSettings, ObjectSettings

_STEP = 0.1
"""Images whose pixels differ by about this share are sorted by their shape."""


class ObjectData(ImageModule):
    """COCO, Pascal VOC or YOLO annotations for detectors."""

    settings: ObjectSettings
    size_unit = "pixels"

    def load(self) -> None:
        """Read, check and split."""
        if faults := settings_faults(self.settings):
            raise DataError(*faults)
        super().load()

    def read(self, path: Path, key: str) -> Parts:
        found = layout.read(path, key, self.settings, self.findings)
        root = path if path.is_dir() else path.parent
        parts: Parts = {}
        for split, source in found.items():
            parts[split] = [  # type: ignore[index]
                Item(
                    id=below(image.path, root),
                    path=str(image.path),
                    target=(source, image),
                    file=image.file,
                    row=image.row,
                    unit="image",
                )
                for image in source.images
            ]
        return parts

    def check(self, parts: Parts) -> None:
        settings, findings = self.settings, self.findings
        sources: dict[str, Annotations] = {
            split: items[0].target[0] for split, items in parts.items() if items
        }
        forms = {source.format for source in sources.values()}
        if sum(map(len, parts.values())) == 1 and "train" in parts:
            what, fix = "only one image", "give more: some are kept for testing"
            findings.fatal.append(Fault(what, settings.path, fix=fix))
        if settings.kind == "instances" and checks.no_masks(sources.values(), findings):
            # One fault for all; the boxes are checked all the same.
            settings = settings.model_copy(update={"kind": "boxes"})
        self._labels = classes.resolve(sources, settings, findings)
        items = [item for part in parts.values() for item in part]
        for item in items:
            image = item.target[1]
            item.target = checks.check_image(image, item.size, settings, findings)
        empty = [item.path for item in items if not item.target and item.digest]
        checks.warn_empty(empty, len(items), findings)
        if "yolo" not in forms:
            # There, an image that no file lists is one without objects.
            checks.warn_unlisted([item.path for item in items], findings)

    def make_task(self, train: Sequence[Item]) -> dict[str, Any]:
        counts = Counter(one["label"] for item in train for one in item.target)
        return {
            "kind": self.settings.kind,
            "labels": list(self._labels),
            "counts": [counts[label] for label in self._labels],
        }

    def strata(self, items: Sequence[Item]) -> list[str]:
        """The rarest class of each image, so that it reaches every split."""
        held = [{one["label"] for one in item.target} for item in items]
        counts = Counter(label for each in held for label in each)
        return [min(each, key=lambda n: (counts[n], n), default="") for each in held]

    def target_of(self, item: Item) -> dict[str, Any]:
        """``boxes`` (n, 4) float32, ``box_labels`` (n,) from 1 on, ``crowd`` (n,).

        And ``outlines`` for instances: polygons or an RLE of each.
        """
        number = {label: i for i, label in enumerate(self._labels, start=1)}
        found = item.target
        target = {
            "boxes": np.array([o["box"] for o in found], np.float32).reshape(-1, 4),
            "box_labels": np.array([number[o["label"]] for o in found], np.int64),
            "crowd": np.array([o["crowd"] for o in found], np.bool_),
        }
        if self.settings.kind == "instances":
            target["outlines"] = [o.get("rle") or o["polygons"] for o in found]
        return target

    def sizes(self, split: Split) -> np.ndarray | None:
        """About the pixels of each image; near numbers are of near shapes."""
        return shape_ranks([self._resized(item.size) for item in self.items[split]])

    def collate(self, samples: Sequence[Sample]) -> State:
        """Decode, resize as torchvision's detectors do, and pad at the right and below.

        Returns:
            ``pixels`` uint8 (batch, 3, H, W), ``image_sizes`` and ``original_sizes``
            int64 (batch, 2); with targets ``boxes`` float32 (batch, N, 4) in pixels of
            ``pixels``, ``box_labels`` int64 (batch, N) from 1 on with 0 for none,
            ``crowd`` bool (batch, N) and, for instances, ``masks`` uint8
            (batch, N, H, W); N is at least 1.
        """
        pictures, originals = [], []
        for sample in samples:
            picture = self.picture(sample)
            originals.append((picture.shape[1], picture.shape[2]))
            size = list(self._resized(originals[-1]))
            # Without antialiasing, as the weights of torchvision's detectors know it.
            bilinear = InterpolationMode.BILINEAR
            pictures.append(F.resize(picture, size, bilinear, antialias=False))
        stride = int(self.preprocessing.get("stride", resizing.STRIDE))
        pixels, sizes = resizing.stack_images(pictures, max(stride, resizing.STRIDE))
        state = {"pixels": pixels, "image_sizes": sizes}
        state["original_sizes"] = torch.tensor(originals)
        if "boxes" in samples[0]:
            state.update(self._targets(samples, state))
        return state

    def _targets(self, samples: Sequence[Sample], state: State) -> State:
        batch = len(samples)
        most = max(1, *(len(sample["boxes"]) for sample in samples))
        targets = {
            "boxes": torch.zeros(batch, most, 4),
            "box_labels": torch.zeros(batch, most, dtype=torch.int64),
            "crowd": torch.zeros(batch, most, dtype=torch.bool),
        }
        scales = state["image_sizes"] / state["original_sizes"]
        for i, sample in enumerate(samples):
            count = len(sample["boxes"])
            for name, rows in targets.items():
                rows[i, :count] = torch.from_numpy(sample[name])
            targets["boxes"][i] *= scales[i].flip(0).repeat(2)
        if self.settings.kind == "instances":
            shape = (batch, most, *state["pixels"].shape[-2:])
            targets["masks"] = torch.zeros(shape, dtype=torch.uint8)
            for i, sample in enumerate(samples):
                original, size = (
                    state[name][i].tolist()
                    for name in ("original_sizes", "image_sizes")
                )
                for j, outline in enumerate(sample["outlines"]):
                    mask = _mask(outline, original, size)
                    targets["masks"][i, j, : size[0], : size[1]] = mask
        return targets

    def _resized(self, size: tuple[int, int]) -> tuple[int, int]:
        return resized(size, self.settings.size, self.settings.max_size)

    @property
    def augments(self) -> bool:
        return self.settings.augmentation != "none"

    def augment(self, batch: State, generator: torch.Generator) -> State:
        """Flip, scale, shift and recolour, boxes and masks moved along."""
        return augment.augment_objects(batch, self.settings.augmentation, generator)

    def show(self, sample: Sample) -> dict[str, Any]:
        """As every image, and ``objects``: how many of each class."""
        shown = super().show(sample)
        if "box_labels" in sample:
            counts = Counter(sample["box_labels"].tolist())
            names = self.task["labels"]
            listed = [
                f"{n} x {names[label - 1]}" for label, n in sorted(counts.items())
            ]
            shown["objects"] = ", ".join(listed) or "none"
        return shown

    def describe(self) -> dict[str, Any]:
        """As every image, objects by split and class, and images without objects."""
        described = super().describe()
        counts = {
            split: Counter(
                o["label"] for item in self.items[split] for o in item.target
            )
            for split in SPLITS
        }
        described["objects"] = {
            split: {label: counts[split][label] for label in self._labels}
            for split in SPLITS
        }
        described["images without objects"] = {
            split: sum(not item.target for item in self.items[split])
            for split in SPLITS
        }
        crowds = sum(
            o["crowd"]
            for items in self.items.values()
            for item in items
            for o in item.target
        )
        if crowds:
            described["crowd or difficult objects"] = crowds
        return described


def resized(
    size: tuple[int, int], shortest: int | None, longest: int
) -> tuple[int, int]:
    """Height and width as torchvision's ``GeneralizedRCNNTransform`` makes them.

    Args:
        size: Height and width of the image.
        shortest: What the shorter side becomes; ``None`` leaves the image as it is.
        longest: What the longer side must not exceed.
    """
    if shortest is None:
        return size
    scale = min(shortest / min(size), longest / max(size))
    height, width = (max(1, math.floor(side * scale)) for side in size)
    return height, width


def _mask(outline: Any, original: list[int], size: list[int]) -> Tensor:
    """A mask of polygons or an RLE as uint8 (height, width)."""
    encoded = (
        rle.compressed(outline)
        if isinstance(outline, dict)
        else rle.from_polygons(outline, *original)
    )
    whole = torch.from_numpy(rle.to_mask(encoded))[None]
    mask: Tensor = F.resize(whole, size, InterpolationMode.NEAREST)[0]
    return mask


def shape_ranks(shapes: Sequence[tuple[int, int]]) -> np.ndarray | None:
    """A number for each image, about its pixels, ordered by pixels and then by shape.

    Two shapes never have the same number: batches of one number are of one shape.

    Args:
        shapes: Height and width of each.

    Returns:
        int64, one number for each; ``None`` when all have the same shape.
    """

    def order(shape: tuple[int, int]) -> tuple[float, ...]:
        height, width = shape
        return math.floor(math.log(height * width) / _STEP), width / height, width

    ranks: dict[tuple[int, int], int] = {}
    last = 0
    for shape in sorted(set(shapes), key=order):
        ranks[shape] = last = max(last + 1, shape[0] * shape[1])
    if len(ranks) == 1:
        return None
    return np.array([ranks[shape] for shape in shapes], dtype=np.int64)


def settings_faults(settings: ImageSettings) -> list[Fault]:
    """Faults of settings that this kind of data cannot follow."""
    faults = []
    if settings.group and "(" not in settings.group:
        what = f"{settings.group!r} is no pattern, and annotations have no columns"
        fix = r'write one with a group, e.g. data.group="(patient\\d+)"'
        faults.append(Fault(what, "data.group", fix=fix))
    if settings.augmentation == "trivial-augment":
        what = "trivial-augment does not move boxes and masks"
        faults.append(Fault(what, "data.augmentation", fix='"light" or "strong"'))
    return faults
