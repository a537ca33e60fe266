"""The data module ``medical/volumes``: patches to train on, whole volumes to measure.

Batches of training have patches with a margin for augmentation, those of evaluation
and prediction whole volumes on the network's grid with what is needed to go back to the
file's own. Of unlabelled volumes (``kind = "reconstruction"``) all batches have
patches, of which parts are hidden.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from headstart.errors import DataError
from headstart_medical import augment
from headstart_medical.data import CaseModule, by, seed_of
from headstart_medical.measures import box_sides
from headstart_medical.patches import cut, positions

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from headstart.data import Baseline, Sample, Split
    from headstart.stages import State
    from headstart_medical.cases import Case, Listing
    from headstart_medical.checks import Wanted
    from headstart_medical.data import Entry
    from headstart_medical.data_settings import VolumeSettings
    from headstart_medical.splits import Parts
    from headstart_medical.store import Arrays

NO_TRUTH = 255


class Volumes(CaseModule):
    """Volumes for segmentation, or unlabelled ones for pretraining."""

    settings: VolumeSettings
    identity: ClassVar = ("labels", "channels", "spacing", "patch")
    padding: ClassVar = {"mask": augment.UNKNOWN, "truth": NO_TRUTH}

    def wanted(self) -> tuple[Wanted, Sequence[Split] | None]:
        return ("" if self._hides else "mask"), None

    def least_size(self) -> Sequence[int] | None:
        return None if self.settings.shape else self.settings.patch

    def make_task(self, listing: Listing, parts: Parts) -> None:
        settings = self.settings
        self.task |= {
            "kind": settings.kind,
            "patch": list(settings.shape or settings.patch),
            "modality": settings.modality,
        }
        if not self._hides:
            self.task["labels"] = list(listing.labels)
            self.task["counts"] = self.class_counts(parts["train"] or parts["test"])

    def class_counts(self, train: Sequence[Case]) -> list[int]:
        """Voxels of each class in the training split."""
        counts = [case.look.counts for case in train if case.look]
        return [int(n) for n in np.array(counts, dtype=np.int64).sum(0)]

    def prepare(self, preprocessing: Mapping[str, Any]) -> None:
        """As every module's; the patch must be what the network's strides divide.

        Raises:
            DataError: It is not.
        """
        super().prepare(preprocessing)
        given = preprocessing.get("stride", 1)
        strides = [given] * 3 if isinstance(given, int) else list(given)
        patch = self.task["patch"]
        if any(side % step for side, step in zip(patch, strides, strict=True)):
            fitting = [
                max(round(side / step), 1) * step
                for side, step in zip(patch, strides, strict=True)
            ]
            key = "data.shape" if self.settings.shape else "data.patch"
            raise DataError(
                f"the network cannot read patches of {by(patch)} voxels",
                where=key,
                why=f"it halves them again and again: {by(strides)} must divide them",
                fix=f"{key} = {fitting}",
            )

    # Samples

    def samples(self, split: Split) -> Sequence[Sample]:
        """Patches of train, volumes of the others; for pretraining all patches."""
        entries = list(enumerate(self.entries[split]))
        if split != "train" and not self._hides:
            return [{"id": e.id, "entry": (split, i)} for i, e in entries]
        return [
            {"id": f"{entry.id}#{patch}", "entry": (split, i), "patch": patch}
            for i, entry in entries
            for patch in range(self._patches)
        ]

    def sizes(self, split: Split) -> np.ndarray | None:
        """Voxels of each whole volume; patches are all equal."""
        if split == "train" or self._hides:
            return None
        shapes = [entry.grid.shape for entry in self.entries[split]]
        voxels: np.ndarray = np.array(shapes, dtype=np.int64).prod(1)
        return voxels

    def collate(self, samples: Sequence[Sample]) -> State:
        """Patches or whole volumes, as the samples are.

        Returns:
            Of patches ``image`` float32 (batch, channels, D, H, W) and ``mask`` int64
            (batch, D, H, W), -1 where the truth is not known; for pretraining,
            outside of training, ``image``, ``target`` and ``hidden`` instead.
            Of volumes these at the largest size of the batch, zeros behind the end of
            an axis; ``extent`` int64 (batch, 3) without these, ``affine`` and
            ``original_affine`` float64 (batch, 4, 4), ``original_shape`` int64
            (batch, 3) and ``truth`` uint8 (batch, *largest original shape), 255 where
            it is not known. Without label neither ``mask`` nor ``truth``.
        """
        if "patch" in samples[0]:
            return self._patch_batch(samples)
        return self._volume_batch(samples)

    @property
    def augments(self) -> bool:
        return self._hides or self.settings.augmentation != "none"

    def augment(self, batch: State, generator: torch.Generator) -> State:
        """Move, turn, flip and recolour patches; for pretraining, hide parts."""
        batch, preset = dict(batch), self.settings.augmentation
        if preset != "none":
            image, mask = augment.augmented(
                batch["image"],
                batch.get("mask"),
                self.task["patch"],
                preset,
                self.task["spacing"],
                generator,
            )
            batch["image"] = image
            if mask is not None:
                batch["mask"] = mask
        if self._hides:
            batch |= self._hidden(batch["image"], generator)
        return batch

    # For people

    def describe(self) -> dict[str, Any]:
        """As every module's; patches, and labelled voxels by split."""
        described = super().describe()
        patches = len(self.samples("train"))
        described["patches"] = f"{patches} of {by(self.task['patch'])} voxels an epoch"
        if not self._hides:
            counts = np.array(self.task["counts"], dtype=float)
            shares = counts / max(counts.sum(), 1)
            described["voxels by class"] = {
                label: round(float(share), 5)
                for label, share in zip(self.task["labels"], shares, strict=True)
            }
        return described

    def baselines(self) -> Iterator[Baseline]:
        """Everything background; the largest bright part."""
        if self._hides:
            return
        from headstart_medical.baselines import segmentation_baselines

        yield from segmentation_baselines(self._test_cases(), self.task)

    def _test_cases(self) -> Iterator[tuple[np.ndarray, np.ndarray, list[float]]]:
        for entry in self.entries["test"]:
            image, mask = self.raw(entry)
            assert mask is not None
            truth = np.where(mask < 0, NO_TRUTH, mask).astype(np.uint8)
            yield image[0], truth, box_sides(entry.original.affine).tolist()

    def write_predictions(
        self,
        folder: Path,
        samples: Sequence[Sample],
        predictions: Iterable[dict[str, Any]],
    ) -> list[Path]:
        """Masks on the files' grids, and a table of volumes; no file of a header."""
        if self._hides:
            return super().write_predictions(folder, samples, predictions)
        from headstart_medical.predictions import write_predictions

        names = [self.input_name(sample) for sample in samples]
        images = [sample["case"].images[0] for sample in samples]
        return write_predictions(folder, names, images, predictions, self.task)

    # How it is done

    @property
    def _hides(self) -> bool:
        return self.settings.kind == "reconstruction"

    @property
    def _patches(self) -> int:
        return 1 if self.settings.shape else self.settings.patches_per_case

    @property
    def _margin(self) -> int:
        return self.settings.margin if self.settings.augmentation != "none" else 0

    def _make(self, entry: Entry) -> Arrays:
        arrays = super()._make(entry)
        if not entry.measured or self._hides:
            arrays["starts"] = positions(
                arrays.get("mask"),
                entry.grid.shape,
                self.task["patch"],
                self._patches,
                self.settings.foreground,
                np.random.default_rng(seed_of(self.seed, entry.id, "patches")),
            )
        arrays["darkest"] = arrays["image"].min((1, 2, 3))
        return arrays

    def _patch_batch(self, samples: Sequence[Sample]) -> State:
        in_train = samples[0]["entry"][0] == "train"
        margin = self._margin if in_train else 0
        size = [side + 2 * margin for side in self.task["patch"]]
        images, masks = [], []
        for sample in samples:
            arrays = self.prepared(self.entry(sample))
            start = arrays["starts"][sample["patch"]] - margin
            images.append(cut(arrays["image"], start, size, arrays["darkest"]))
            if "mask" in arrays:
                masks.append(cut(arrays["mask"], start, size, augment.UNKNOWN))
        state: State = {"image": torch.from_numpy(np.stack(images))}
        if masks and not self._hides:
            state["mask"] = torch.from_numpy(np.stack(masks)).long()
        if self._hides and not in_train:
            # Always the same holes, whatever batch it is in.
            parts = [
                self._hidden(
                    state["image"][i : i + 1],
                    torch.Generator().manual_seed(seed_of(self.seed, sample["id"])),
                )
                for i, sample in enumerate(samples)
            ]
            state = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
        return state

    def _hidden(self, image: torch.Tensor, generator: torch.Generator) -> State:
        seen, hidden = augment.hide(
            image, self.settings.hidden, self.settings.block, generator
        )
        return {"image": seen, "target": image, "hidden": hidden}

    def _volume_batch(self, samples: Sequence[Sample]) -> State:
        entries = [self.entry(sample) for sample in samples]
        # What is predicted for once is not worth keeping.
        several = [
            self._make(entry) if "case" in sample else self.prepared(entry)
            for entry, sample in zip(entries, samples, strict=True)
        ]
        extents = np.array([entry.grid.shape for entry in entries])
        originals = np.array([entry.original.shape for entry in entries])
        affines = np.stack([entry.grid.affine for entry in entries])
        state: State = {
            "image": _padded([a["image"] for a in several], extents.max(0), 0),
            "extent": torch.from_numpy(extents),
            "affine": torch.from_numpy(affines),
            "original_affine": torch.from_numpy(
                np.stack([entry.original.affine for entry in entries])
            ),
            "original_shape": torch.from_numpy(originals),
        }
        if all("mask" in arrays for arrays in several):
            masks = [arrays["mask"] for arrays in several]
            state["mask"] = _padded(masks, extents.max(0), augment.UNKNOWN).long()
        if all("truth" in arrays for arrays in several):
            truths = [arrays["truth"] for arrays in several]
            state["truth"] = _padded(truths, originals.max(0), NO_TRUTH)
        return state


def _padded(
    arrays: Sequence[np.ndarray], shape: np.ndarray, fill: float
) -> torch.Tensor:
    """Volumes of one batch in one tensor, filled behind the end of each axis."""
    leading = arrays[0].shape[:-3]
    whole = np.full((len(arrays), *leading, *shape), fill, dtype=arrays[0].dtype)
    for place, array in zip(whole, arrays, strict=True):
        place[(..., *(slice(side) for side in array.shape[-3:]))] = array
    return torch.from_numpy(whole)
