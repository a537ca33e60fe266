"""The data module ``vision/images``: images with labels to batches of pixels."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from headstart_vision import labels, resizing
from headstart_vision.base import SPLITS, ImageModule
from headstart_vision.listings import read_listing

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from headstart.data import Baseline, Sample, Split
    from headstart.stages import State
    from headstart_vision.items import Item, Parts
    from headstart_vision.settings import ClassificationSettings


class ImageClassification(ImageModule):
    """Images with one label or several: class folders, CSV files or IDX files.

    A folder has a folder for each class; or folders ``train``, ``val`` and ``test``
    with the classes inside, which are then the splits. A CSV file has a row for each
    image. IDX files are those of MNIST and Fashion-MNIST; ``t10k`` is the test split.
    Random splits are stratified by class.
    """

    settings: ClassificationSettings

    def __init__(self, settings: ClassificationSettings, seed: int) -> None:
        super().__init__(settings, seed)
        self._labels: tuple[str, ...] = ()

    def read(self, path: Path, key: str) -> Parts:
        return read_listing(path, key, self.settings, self.findings)

    def check(self, parts: Parts) -> None:
        self._labels = labels.check_labels(parts, self.settings, self.findings)

    def strata(self, items: Sequence[Item]) -> list[str]:
        """The class; with several labels the rarest one."""
        return labels.rarest(items)

    def make_task(self, train: Sequence[Item]) -> dict[str, Any]:
        counts = list(self._counts(train).values())
        return {
            "kind": self.settings.kind,
            "labels": list(self._labels),
            "counts": counts,
        }

    def target_of(self, item: Item) -> dict[str, Any]:
        """``label``: the class's number, or 0/1 (labels,) float32."""
        numbers = [self._labels.index(name) for name in labels.names(item)]
        if self.settings.kind == "single-label":
            return {"label": numbers[0]}
        row = np.zeros(len(self._labels), dtype=np.float32)
        row[numbers] = 1
        return {"label": row}

    def collate(self, samples: Sequence[Sample]) -> State:
        """Decode, resize and crop as the weights were trained.

        Returns:
            ``pixels`` uint8 (batch, 3, size, size); ``labels``: class numbers (batch)
            int64, or 0/1 (batch, labels) float32.
        """
        pixels = [
            resizing.resize_crop(
                self.picture(sample), self.preprocessing, self.settings.size
            )
            for sample in samples
        ]
        state: State = {"pixels": torch.stack(pixels)}
        if "label" in samples[0]:
            state["labels"] = torch.from_numpy(np.array([s["label"] for s in samples]))
        return state

    @property
    def augments(self) -> bool:
        settings = self.settings
        return bool(
            settings.augmentation != "none" or settings.mixup or settings.cutmix
        )

    def augment(self, batch: State, generator: torch.Generator) -> State:
        """Random changes to the images, then mixup or CutMix, as the recipe asks."""
        if not self.augments:
            return batch
        from headstart_vision.augment import augment_classification

        classes = len(self.task["labels"])
        return augment_classification(batch, self.settings, generator, classes)

    def show(self, sample: Sample) -> dict[str, Any]:
        """``image``: its name, ``label``, and ``path`` or ``thumbnail``."""
        about = super().show(sample)
        if "label" not in sample:
            return about
        known, label = self.task["labels"], sample["label"]
        if self.settings.kind == "single-label":
            text = known[int(label)]
        else:
            text = ", ".join(known[i] for i in np.flatnonzero(label))
        return {"image": about.pop("image"), "label": text, **about}

    def baselines(self) -> Iterator[Baseline]:
        """The most frequent class, and a linear model on raw pixels of train."""
        from headstart_vision.baselines import baselines

        yield from baselines(self)

    def describe(self) -> dict[str, Any]:
        """As every image module, and images by class and split."""
        described = super().describe()
        described["classes"] = {s: self._counts(self.items[s]) for s in SPLITS}
        return described

    def targets(self, split: Split) -> np.ndarray:
        """Class numbers (samples,) int64, or 0/1 (samples, labels) float32."""
        return np.array([sample["label"] for sample in self.samples(split)])

    def _counts(self, items: Sequence[Item]) -> dict[str, int]:
        found = Counter(name for item in items for name in labels.names(item))
        return {label: found[label] for label in self._labels}
