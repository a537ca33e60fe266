"""The data module ``medical/scans``: volumes, or slices of them, with a class each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from headstart.errors import DataError
from headstart_medical import augment
from headstart_medical.classes import SLICE_CLASSES
from headstart_medical.data import SPLITS, CaseModule, by
from headstart_medical.grids import Grid, to_ras

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from headstart.data import Baseline, Sample, Split
    from headstart.stages import State
    from headstart_medical.cases import Case, Listing
    from headstart_medical.checks import Wanted
    from headstart_medical.data import Entry
    from headstart_medical.data_settings import ScanSettings
    from headstart_medical.splits import Parts


class Scans(CaseModule):
    """Volumes with a class, or the slices of labelled volumes.

    Slices are those of the axis that is nearest to upright. Whether a slice has a
    lesion is read from the label of its volume. All slices of a patient are in one
    split.
    """

    settings: ScanSettings
    identity: ClassVar = ("labels", "channels", "shape")

    def __init__(self, settings: ScanSettings, seed: int) -> None:
        super().__init__(settings, seed)
        self._samples: dict[Split, list[Sample]] = {}
        self._predicted: tuple[str, np.ndarray] | None = None

    def load(self) -> None:
        """Read, check and split; of slices, see what is in each."""
        super().load()
        make = self._slices if self.settings.slices else self._volumes
        self._samples = {split: make(split) for split in SPLITS}
        labels = [sample["label"] for sample in self._samples["train"]]
        found = np.bincount(labels, minlength=len(self.task["labels"]))
        self.task["counts"] = found.tolist()

    def wanted(self) -> tuple[Wanted, Sequence[Split] | None]:
        return ("mask" if self.settings.slices else "target"), None

    def make_task(self, listing: Listing, parts: Parts) -> None:
        settings = self.settings
        self._check_sides([case for split in SPLITS for case in parts[split]])
        sides = 2 if settings.slices else 3
        self.task |= {
            "kind": settings.kind,
            "labels": self._labels(listing),
            "shape": list(settings.shape[:sides]),
            "dimensions": sides,
            "slices": settings.slices,
        }
        self.task["channels"] = [
            name if not step else f"{name} {step:+d}"
            for step in self._neighbours
            for name in listing.channels
        ]

    def network_grid(self, original: Grid) -> Grid:
        """Of slices the first two sides are changed alone."""
        turned = original.to_ras()
        if self.settings.slices:
            return turned.with_shape((*self.settings.shape[:2], turned.shape[2]))
        return turned.with_shape(self.settings.shape)

    def samples(self, split: Split) -> Sequence[Sample]:
        return self._samples[split]

    def collate(self, samples: Sequence[Sample]) -> State:
        """One volume or slice of each sample.

        Returns:
            ``image`` float32 (batch, channels, D, H, W), of slices (batch, channels,
            H, W) with neighbouring slices as further channels, the lower ones first;
            ``labels`` int64 (batch,) where they are known.
        """
        images = []
        for sample in samples:
            image = self._image(sample)
            if "slice" in sample:
                last = image.shape[-1] - 1
                places = [
                    min(max(sample["slice"] + step, 0), last)
                    for step in self._neighbours
                ]
                image = np.concatenate([image[..., place] for place in places])
            images.append(image)
        state: State = {"image": torch.from_numpy(np.stack(images))}
        if all("label" in sample for sample in samples):
            state["labels"] = torch.tensor([sample["label"] for sample in samples])
        return state

    @property
    def augments(self) -> bool:
        return self.settings.augmentation != "none"

    def augment(self, batch: State, generator: torch.Generator) -> State:
        """Turn, scale, flip and recolour."""
        if not self.augments:
            return batch
        image, _ = augment.augmented(
            batch["image"],
            None,
            batch["image"].shape[2:],
            self.settings.augmentation,
            self.task["spacing"][: batch["image"].ndim - 2],
            generator,
        )
        return {**batch, "image": image}

    def from_inputs(self, inputs: Sequence[Any]) -> Sequence[Sample]:
        """As every module's; of slices, a sample for each slice of a volume."""
        samples = super().from_inputs(inputs)
        if not self.settings.slices:
            return samples
        return [
            {**sample, "id": f"{sample['id']}#{number}", "slice": number}
            for sample in samples
            for number in range(self.entry(sample).grid.shape[2])
        ]

    def show(self, sample: Sample) -> dict[str, Any]:
        """As every module's, and the class."""
        shown = super().show(sample)
        if "slice" in sample:
            shown["slice"] = sample["slice"]
        if "label" in sample:
            shown["label"] = self.task["labels"][sample["label"]]
        return shown

    def describe(self) -> dict[str, Any]:
        """As every module's, and samples by split and class."""
        described = super().describe()
        described["spacing"] = by(self.task["spacing"][: len(self.task["shape"])], "mm")
        described["voxels of a sample"] = by(self.task["shape"])
        described["samples by class"] = {
            split: {
                name: sum(s["label"] == number for s in self._samples[split])
                for number, name in enumerate(self.task["labels"])
            }
            for split in SPLITS
        }
        return described

    def write_predictions(
        self,
        folder: Path,
        samples: Sequence[Sample],
        predictions: Iterable[dict[str, Any]],
    ) -> list[Path]:
        """A table of labels and probabilities."""
        from headstart_medical.predictions import write_predictions

        names = [self.input_name(sample) for sample in samples]
        images = [sample["case"].images[0] for sample in samples]
        return write_predictions(folder, names, images, predictions, self.task)

    def baselines(self) -> Iterator[Baseline]:
        """The majority class; grey values alone."""
        from headstart_medical.baselines import classification_baselines

        train, test = self._samples["train"], self._samples["test"]
        yield from classification_baselines(
            self._images(train),
            [sample["label"] for sample in train],
            self._images(test),
            [sample["label"] for sample in test],
            self.task,
        )

    def _images(self, samples: Sequence[Sample]) -> Iterator[np.ndarray]:
        for sample in samples:
            yield self.collate([sample])["image"][0].numpy()

    # How it is done

    def _image(self, sample: Sample) -> np.ndarray:
        """The volume of a sample; of one to predict for, until the next one's turn."""
        entry = self.entry(sample)
        if "case" not in sample:
            return self.prepared(entry)["image"]
        if self._predicted is None or self._predicted[0] != entry.id:
            self._predicted = entry.id, self._make(entry)["image"]
        return self._predicted[1]

    def _check_sides(self, cases: Sequence[Case]) -> None:
        """A side of one voxel would squash a volume to one slice of it."""
        shape, slices = self.settings.shape, self.settings.slices
        deep = max((min(c.look.canonical[0]) for c in cases if c.look), default=1)
        if slices or min(shape) > 1 or deep == 1:
            return
        raise DataError(
            f"volumes would be squashed to {by(shape)} voxels",
            where="data.shape",
            why=f"they have {deep} slices and more",
            fix="data.shape=[64,64,64], or data.slices=true takes slices for samples",
        )

    @property
    def _neighbours(self) -> range:
        reach = self.settings.neighbours if self.settings.slices else 0
        return range(-reach, reach + 1)

    def _labels(self, listing: Listing) -> list[str]:
        if self.settings.slices and not self.settings.labels:
            return [*SLICE_CLASSES]
        return list(self.settings.labels or listing.labels)

    def _volumes(self, split: Split) -> list[Sample]:
        labels = self.task["labels"]
        return [
            {
                "id": entry.id,
                "entry": (split, i),
                "label": labels.index(str(entry.case.target)),
            }
            for i, entry in enumerate(self.entries[split])
        ]

    def _slices(self, split: Split) -> list[Sample]:
        samples: list[Sample] = []
        for i, entry in enumerate(self.entries[split]):
            for number, voxels in enumerate(self._labelled(entry).tolist()):
                if number % self.settings.every:
                    continue
                name = f"{entry.id}#{number}"
                label = int(voxels >= self.settings.least)
                samples.append(
                    {"id": name, "entry": (split, i), "slice": number, "label": label}
                )
        return samples

    def _labelled(self, entry: Entry) -> np.ndarray:
        """Labelled voxels in each slice of the upright axis."""
        mask = self.raw(entry)[1]
        assert mask is not None
        turned, _ = to_ras(mask, entry.original.affine)
        counts: np.ndarray = (turned > 0).sum((0, 1))
        return counts
