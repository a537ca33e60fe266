"""The data module ``vision/masks``: images with the class of each pixel.

A mask is a PNG of one channel, a value a pixel. In a palette PNG the value is the
index, whatever colour is shown for it. Images and masks have the same names.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from headstart.data import Baseline
from headstart.errors import DataError, Fault
from headstart_vision import augment, images, mask_checks, resizing
from headstart_vision.annotations.layout import ALIASES
from headstart_vision.base import SPLITS, ImageModule
from headstart_vision.images import ImageError
from headstart_vision.items import Item
from headstart_vision.objects import settings_faults, shape_ranks
from headstart_vision.paths import below, image_files, shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from torch import Tensor

    from headstart.data import Sample, Split
    from headstart.stages import State
    from headstart_vision.items import Parts
    from headstart_vision.settings import MaskSettings

IGNORED = 255
"""In a batch; ``data.ignore`` is the value in the files."""


class MaskData(ImageModule):
    """Images and masks for semantic segmentation."""

    settings: MaskSettings
    size_unit = "pixels"
    padding: ClassVar = {"mask": IGNORED}

    def __init__(self, settings: MaskSettings, seed: int) -> None:
        super().__init__(settings, seed)
        self._masks: dict[str, str] = {}
        self._labels: tuple[str, ...] = ()

    def load(self) -> None:
        """Read, check and split."""
        if faults := settings_faults(self.settings):
            raise DataError(*faults)
        super().load()

    def read(self, path: Path, key: str) -> Parts:
        settings = self.settings
        folders = _folders(path, settings) if path.is_dir() else {}
        if not folders:
            what = f"there are no folders {settings.images!r} and {settings.masks!r}"
            fix = "name them in data.images and data.masks"
            self.findings.fatal.append(Fault(what, shown(path), f"{key} names it", fix))
        return {
            split: self._pairs(top, masks, path)  # type: ignore[misc]
            for split, (top, masks) in folders.items()
        }

    def _pairs(self, folder: Path, masks: Path, root: Path) -> list[Item]:
        """Images with the masks of the same name."""
        found = {
            file.relative_to(masks).with_suffix("").as_posix(): file
            for file in image_files(masks)
        }
        items = []
        for file in image_files(folder):
            item = Item(id=below(file, root), path=str(file))
            name = file.relative_to(folder).with_suffix("").as_posix()
            mask = found.pop(name, None)
            if mask is None:
                what = "an image without a mask"
                why = f"there is no {shown(masks / name)}.png"
                fix = "add it, under the image's name, or take the image away"
                fault = Fault(what, item.where, why, fix)
                self.findings.sample(*item.place, fault)
            else:
                self._masks[item.path] = str(mask)
            items.append(item)
        for mask in found.values():
            what, fix = "a mask without an image", "add the image, or remove it"
            self.findings.sample(str(mask), 0, Fault(what, shown(mask), fix=fix))
        return items

    def check(self, parts: Parts) -> None:
        findings = self.findings
        items = [item for part in parts.values() for item in part]
        if len(items) == 1 and "train" in parts:
            what, fix = "only one image", "give more: some are kept for testing"
            findings.fatal.append(Fault(what, self.settings.path, fix=fix))
        known = [item for item in items if item.path in self._masks]
        limit = self.settings.max_pixels

        def look(item: Item) -> mask_checks.Look:
            return mask_checks.look(self._masks[item.path], item.size, limit)

        looks = images.in_threads(look, known, "checking masks")
        found = dict(zip((item.path for item in known), looks, strict=True))
        train = [found[i.path] for i in parts.get("train", ()) if i.path in found]
        self._labels = mask_checks.labels(train, self.settings, findings)
        for item in items:
            seen = found.get(item.path)
            item.target = {"digest": "", "counts": {}}
            if seen is None:
                continue
            item.target = {"digest": seen.digest, "counts": seen.counts}
            if fault := mask_checks.fault(
                seen, self._masks[item.path], self._labels, self.settings
            ):
                findings.sample(*item.place, fault)
        mask_checks.warn_palettes(looks, findings)

    def make_task(self, train: Sequence[Item]) -> dict[str, Any]:
        counts = self._pixels(train)
        return {
            "kind": self.settings.kind,
            "labels": list(self._labels),
            "counts": [counts[value] for value in range(len(self._labels))],
        }

    def _pixels(self, items: Sequence[Item]) -> Counter[int]:
        """Labelled pixels by class."""
        counts: Counter[int] = Counter()
        for item in items:
            counts.update(item.target["counts"])
        counts.pop(self.settings.ignore, None)
        return counts

    def strata(self, items: Sequence[Item]) -> list[str]:
        """The rarest class of each image, so that it reaches every split."""
        held = [set(item.target["counts"]) - {self.settings.ignore} for item in items]
        counts = Counter(value for each in held for value in each)
        rarest = (min(each, key=lambda v: (counts[v], v), default="") for each in held)
        return [str(value) for value in rarest]

    def target_of(self, item: Item) -> dict[str, Any]:
        """``mask``: the path of its file."""
        return {"mask": self._masks[item.path]}

    def signature(self, item: Item) -> Any:
        return [item.digest, item.target["digest"]]

    def sizes(self, split: Split) -> np.ndarray | None:
        """About the pixels of each image; near numbers are of near shapes."""
        return shape_ranks([self._resized(item.size) for item in self.items[split]])

    def collate(self, samples: Sequence[Sample]) -> State:
        """Decode, bring the shorter side to ``data.size``, and pad to one shape.

        Returns:
            ``pixels`` uint8 (batch, 3, H, W), ``image_sizes`` and ``original_sizes``
            int64 (batch, 2); with targets ``mask`` int64 (batch, H, W), 255 where
            nothing is known.
        """
        pictures, masks, originals = [], [], []
        for sample in samples:
            picture = self.picture(sample)
            originals.append((picture.shape[1], picture.shape[2]))
            size = list(self._resized(originals[-1]))
            # As torchvision's preset for segmentation.
            bilinear = InterpolationMode.BILINEAR
            pictures.append(F.resize(picture, size, bilinear, antialias=True))
            if "mask" in sample:
                mask = self.values(sample)[None]
                masks.append(F.resize(mask, size, InterpolationMode.NEAREST)[0])
        stride = int(self.preprocessing.get("stride", resizing.STRIDE))
        pixels, sizes = resizing.stack_images(pictures, max(stride, resizing.STRIDE))
        state = {"pixels": pixels, "image_sizes": sizes}
        state["original_sizes"] = torch.tensor(originals)
        if masks:
            shape = (len(masks), *pixels.shape[-2:])
            state["mask"] = torch.full(shape, IGNORED, dtype=torch.int64)
            for place, mask in zip(state["mask"], masks, strict=True):
                place[: mask.shape[0], : mask.shape[1]] = mask
        return state

    def values(self, sample: Sample) -> Tensor:
        """The class of each pixel of a sample, uint8 (height, width), 255 for none."""
        try:
            values = mask_checks.read(sample["mask"], self.settings.max_pixels).values
        except ImageError as error:
            fix = "it was good when the data was checked; run `headstart check`"
            where = shown(sample["mask"])
            raise DataError(error.what, where=where, why=error.why, fix=fix) from None
        ignored = values == self.settings.ignore
        return torch.from_numpy(np.where(ignored, IGNORED, values).astype(np.uint8))

    def _resized(self, size: tuple[int, int]) -> tuple[int, int]:
        shortest = self.settings.size
        if shortest is None:
            return size
        longest = math.floor(shortest * max(size) / min(size))
        height, width = size
        return (shortest, longest) if height <= width else (longest, shortest)

    @property
    def augments(self) -> bool:
        return self.settings.augmentation != "none"

    def augment(self, batch: State, generator: torch.Generator) -> State:
        """Flip, scale, shift and recolour, masks moved along."""
        return augment.augment_masks(batch, self.settings.augmentation, generator)

    def baselines(self) -> Iterator[Baseline]:
        """The class that most pixels of train have, for every pixel."""
        most = int(np.argmax(self.task["counts"]))
        target = [self.values(sample).numpy() for sample in self.samples("test")]
        prediction = [np.full_like(mask, most) for mask in target]
        name = f"majority class ({self._labels[most]})"
        yield Baseline(name, {"prediction": prediction, "target": target})

    def show(self, sample: Sample) -> dict[str, Any]:
        """As every image, and ``classes``: those in its mask."""
        shown_ = super().show(sample)
        if "mask" in sample:
            found = np.unique(self.values(sample).numpy())
            names = [self._labels[v] for v in found if v != IGNORED]
            shown_["classes"] = ", ".join(names)
        return shown_

    def describe(self) -> dict[str, Any]:
        """As every image, and the share of labelled pixels by split and class."""
        described = super().describe()
        described["pixels by class"] = {}
        for split in SPLITS:
            counts = self._pixels(self.items[split])
            total = max(counts.total(), 1)
            described["pixels by class"][split] = {
                label: round(counts[value] / total, 4)
                for value, label in enumerate(self._labels)
            }
        return described


def _folders(path: Path, settings: MaskSettings) -> dict[str, tuple[Path, Path]]:
    """Folders of images and masks by split; one pair alone is ``train``."""
    top, masks = path / settings.images, path / settings.masks
    found: dict[str, tuple[Path, Path]] = {}
    if top.is_dir() and masks.is_dir():
        for entry in sorted(top.iterdir()):
            split = ALIASES.get(entry.name.casefold())
            if split and (masks / entry.name).is_dir():
                found[split] = (entry, masks / entry.name)
        return found or {"train": (top, masks)}
    for entry in sorted(path.iterdir()):
        split = ALIASES.get(entry.name.casefold())
        pair = (entry / settings.images, entry / settings.masks)
        if split and all(folder.is_dir() for folder in pair):
            found[split] = pair
    return found
