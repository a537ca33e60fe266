"""What all data modules share: cases, their splits, the network's grid, the cache.

A subclass says what its samples are and how they become a batch; one that simulates
says how a volume is made (:meth:`CaseModule.raw`).
"""

from __future__ import annotations

import hashlib
import json
import math
from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np

from headstart.assets import cache_folder
from headstart.data import DataModule
from headstart.errors import DataError, Fault
from headstart_medical import __version__, intensity
from headstart_medical.cases import completed, list_cases
from headstart_medical.checks import check_cases, check_patch
from headstart_medical.grids import Grid, resample, to_ras
from headstart_medical.paths import counted
from headstart_medical.patients import join
from headstart_medical.reading import VolumeError, read_images, read_mask
from headstart_medical.splits import split_cases
from headstart_medical.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from headstart.data import Sample, Split
    from headstart_medical.cases import Case, Listing
    from headstart_medical.checks import Wanted
    from headstart_medical.data_settings import CaseSettings
    from headstart_medical.splits import Parts
    from headstart_medical.store import Arrays

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
ELSEWHERE = {"name", "bad", "bad_cap", "workers", "cache", "cache_gb", "tolerance"}
"""Settings that change no collated sample, and the paths, whose content counts."""
PATHS = ("path", "validation_path", "test_path")


@dataclass(frozen=True)
class Entry:
    """A volume to train or measure on: a case, or one that is made of it.

    Attributes:
        id: Unique in the data.
        case: What it is read from.
        original: The file's grid.
        grid: The grid that the network sees.
        variant: Which simulated volume of the case it is; ``None``: the case itself.
        measured: Whether its truth on the file's grid is asked for.
    """

    id: str
    case: Case
    original: Grid
    grid: Grid
    variant: int | None = None
    measured: bool = True

    def bytes(self, channels: int) -> int:
        """What it takes in memory: image, mask and truth."""
        voxels, truth = math.prod(self.grid.shape), math.prod(self.original.shape)
        return (4 * channels + 1) * voxels + (truth if self.measured else 0)


class CaseModule(DataModule):
    """Volumes of cases, by patient, on one kind of grid."""

    settings: CaseSettings
    identity: ClassVar[tuple[str, ...]] = ("labels", "channels")
    size_unit = "voxels"
    group_unit = "patient"

    def __init__(self, settings: CaseSettings, seed: int) -> None:
        super().__init__(settings, seed)
        self.entries: dict[Split, list[Entry]] = {}
        """The volumes of each split, filled by :meth:`load`."""
        self.store = Store("off", 0, cache_folder())
        self._values: list[int] = []
        self._named = False

    # What a subclass says

    @abstractmethod
    def make_task(self, listing: Listing, parts: Parts) -> None:
        """Fill ``task``; ``spacing`` and ``channels`` are there already."""

    def wanted(self) -> tuple[Wanted, Sequence[Split] | None]:
        """What a case must have, and in which splits; ``None``: in all."""
        return "mask", None

    def split(self, cases: Sequence[Case]) -> Parts:
        """Cases by split."""
        return split_cases(cases, self.settings, self.seed, self.findings)

    def divide(self, parts: Parts) -> None:
        """Change what is in which split, before anything is made of it."""

    def least_size(self) -> Sequence[int] | None:
        """Voxels that a volume should have along each axis; ``None``: any."""
        return None

    def variants(self, case: Case, split: Split) -> int:
        """Volumes to make of a case; 0: the case itself."""
        return 0

    def raw(self, entry: Entry) -> tuple[np.ndarray, np.ndarray | None]:
        """A volume as its files have it.

        Returns:
            float32 (channels, x, y, z) and int16 (x, y, z) classes, -1 where the truth
            is not known, or ``None`` without label.
        """
        return self.read_case(entry.case)

    # The contract of DataModule

    def load(self) -> None:
        """Read, check and split."""
        findings = self.findings
        listing = list_cases(self.settings, findings)
        check_cases(listing, self.settings, findings, *self.wanted())
        bad = findings.settle(self.settings, len(listing.cases))
        good = [case for case in listing.cases if case.place not in bad]
        parts = self.split(good)
        join(good)
        self._complete(listing, parts)
        self._check_size(parts)
        self.divide(parts)
        self.task = {
            "channels": list(listing.channels),
            "spacing": self._spacing(parts),
        }
        self._values = list(listing.labels.values())
        self._named = listing.named
        self.entries = {
            split: [e for case in parts[split] for e in self._entries(case, split)]
            for split in SPLITS
        }
        self.make_task(listing, parts)

    def load_split(self, split: Split) -> bool:
        """Read and check the cases of ``data.test_path`` alone."""
        if split != "test" or not self.settings.test_path:
            return False
        changes = {"path": "", "validation_path": "", "folds": None, "fold": 0}
        self.settings, trained = self.settings.model_copy(update=changes), self.task
        self.load()
        # What tells the data to be another one than the model's is left as it is.
        own = {key: self.task[key] for key in self.identity if key in self.task}
        self.task = {**trained, **own}
        return True

    def prepare(self, preprocessing: Any) -> None:
        """Choose how grey values are scaled, and where volumes are kept."""
        super().prepare(preprocessing)
        if self.entries:
            # Another version may make other volumes of the same data.
            name = f"{__version__}-{self.fingerprint()[:32]}"
            folder = cache_folder() / "volumes" / name
            limit = int(self.settings.cache_gb * 1e9)
            self.store = Store(self.settings.cache, limit, folder)
            if self.settings.workers and self.settings.cache != "off":
                # Processes that are forked later share what is there by then.
                for entry in self._all():
                    self.prepared(entry)

    def groups(self, split: Split) -> Sequence[str]:
        """The patient of each sample."""
        return [self.entry(sample).case.patient for sample in self.samples(split)]

    def fingerprint(self) -> str:
        """sha256 over the files' content, splits and settings."""
        settings = self.settings.model_dump(mode="json", exclude={*ELSEWHERE, *PATHS})
        head = [settings, self.task, dict(self.preprocessing), self.seed]
        digest = hashlib.sha256(json.dumps(head, default=str).encode())
        for split, entries in self.entries.items():
            for entry in entries:
                look = entry.case.look
                known = look.digests if look else ()
                line = [split, entry.id, known, entry.original.affine.tolist()]
                digest.update(json.dumps(line).encode())
                for label in self.label_files(entry.case):
                    digest.update(hashlib.sha256(label.read_bytes()).digest())
                digest.update(str(entry.case.target).encode())
        return digest.hexdigest()

    def label_files(self, case: Case) -> Sequence[Path]:
        return case.labels

    def describe(self) -> dict[str, Any]:
        """Cases and patients by split, the grid, and what the cache will need."""
        described: dict[str, Any] = {}
        for split in SPLITS:
            entries = self.entries[split]
            patients = {entry.case.patient for entry in entries}
            volumes = counted(len(entries), "volume")
            described[split] = f"{volumes} of {counted(len(patients), 'patient')}"
            if not self._named and entries:
                described[split] += " (each case counts as one)"
            if entries and (path := getattr(self.settings, f"{split}_path", "")):
                described[split] += f", from {path}"
        described["spacing"] = by(self.task["spacing"], "mm")
        sizes = [entry.grid.shape for entry in self._all()]
        described["largest volume"] = by(max(sizes, key=math.prod))
        described["intensity"] = self.method
        described["cached volumes"] = self._memory()
        return described

    def show(self, sample: Sample) -> dict[str, Any]:
        """The case, and the size of its volume."""
        if "entry" not in sample:
            return {"case": sample["id"]}
        entry = self.entry(sample)
        return {
            "case": sample["id"],
            "patient": entry.case.patient,
            "image": str(entry.case.images[0]),
            "voxels": by(entry.original.shape),
        }

    def from_inputs(self, inputs: Sequence[Any]) -> Sequence[Sample]:
        """Samples from volume files, DICOM folders, folders of cases, and lists.

        Raises:
            DataError: Inputs that are no volumes, by :meth:`leave_out`.
        """
        from headstart_medical.inputs import input_cases

        cases, faults = input_cases(inputs, self.settings)
        self.leave_out(faults, len(cases))
        return [{"id": case.id, "case": case} for case in cases]

    # What subclasses use

    @property
    def method(self) -> intensity.Method:
        """How grey values are scaled."""
        chosen = self.settings.intensity
        if chosen == "auto":
            modality = self.settings.modality or "other"
            wanted = self.preprocessing.get(
                "intensity", intensity.BY_MODALITY[modality]
            )
            return cast("intensity.Method", wanted)
        return chosen

    def entry(self, sample: Sample) -> Entry:
        """The volume that a sample is of."""
        if "case" in sample:
            case: Case = sample["case"]
            assert case.look is not None
            grid = Grid.of(case.look.shape, case.look.affine)
            return Entry(case.id, case, grid, self.network_grid(grid))
        split, index = sample["entry"]
        found: Entry = self.entries[split][index]
        return found

    def network_grid(self, original: Grid) -> Grid:
        """The grid that the network sees of a file's."""
        turned = original.to_ras()
        if self.settings.shape is not None:
            return turned.with_shape(self.settings.shape)
        assert self.settings.spacing is not None
        return turned.with_spacing(self.settings.spacing)

    def prepared(self, entry: Entry) -> Arrays:
        """A volume on the network's grid, from the cache where it is there.

        Returns:
            ``image`` float32 (channels, x, y, z); with a label ``mask`` int8 (x, y, z)
            classes (-1: not known), and ``truth`` uint8 on the file's grid (255: not
            known) but for training.
        """
        return self.store.get(entry.id, lambda: self._make(entry))

    def read_case(self, case: Case) -> tuple[np.ndarray, np.ndarray | None]:
        """The files of a case; see :meth:`raw`."""
        try:
            image = read_images(case.images, len(self.settings.channels)).array
        except VolumeError as error:
            raise changed(case, error) from None
        if not case.labels or self.wanted()[0] != "mask":
            return image, None
        try:
            mask = read_mask(
                case.labels,
                self._values,
                above=self.settings.above if case.above is None else case.above,
                ignore=self.settings.ignore,
            )
        except VolumeError as error:
            raise changed(case, error) from None
        return image, mask.array

    # How it is done

    def _make(self, entry: Entry) -> Arrays:
        image, mask = self.raw(entry)
        channels = []
        for values in image:
            turned, grid = to_ras(values, entry.original.affine)
            on_grid = resample(turned, grid, entry.grid)
            scaled = intensity.normalised(on_grid, self.method, self.settings)
            channels.append(np.ascontiguousarray(scaled))
        arrays = {"image": np.stack(channels)}
        if mask is not None:
            turned, grid = to_ras(mask.astype(np.int8), entry.original.affine)
            on_grid = resample(turned, grid, entry.grid, order=0)
            arrays["mask"] = np.ascontiguousarray(on_grid)
            if entry.measured:
                arrays["truth"] = np.where(mask < 0, 255, mask).astype(np.uint8)
        return arrays

    def _entries(self, case: Case, split: Split) -> list[Entry]:
        assert case.look is not None
        original = Grid.of(case.look.shape, case.look.affine)
        grid, measured = self.network_grid(original), split != "train"
        plain = Entry(case.id, case, original, grid, measured=measured)
        count = self.variants(case, split)
        if not count:
            return [plain]
        return [
            replace(plain, id=f"{case.id}/simulated-{i + 1:02d}", variant=i)
            for i in range(count)
        ]

    def _complete(self, listing: Listing, parts: Parts) -> None:
        """Settings that repeat the run from everywhere, whatever the data then says."""
        changes: dict[str, Any] = {
            **completed(self.settings),
            "channels": tuple(listing.channels),
            "modality": listing.modality or "other",
        }
        if self.settings.shape is None and self.settings.spacing is None:
            cases = parts["train"] or parts["test"]
            found = [case.look.canonical[1] for case in cases if case.look]
            changes["spacing"] = tuple(
                round(float(mm), 4) for mm in np.median(np.array(found), axis=0)
            )
        self.settings = self.settings.model_copy(update=changes)

    def _check_size(self, parts: Parts) -> None:
        """Volumes that are smaller than a patch, once the grid is known."""
        if (patch := self.least_size()) is None:
            return
        cases = [case for split in SPLITS for case in parts[split]]
        check_patch(cases, patch, self.settings.spacing, self.settings, self.findings)
        bad = self.findings.settle(self.settings, len(cases))
        for split in SPLITS:
            before = len(parts[split])
            parts[split] = [case for case in parts[split] if case.place not in bad]
            if before and not parts[split]:
                what = f"no case is left for the {split} split"
                raise DataError(what, where="data.patch", fix="give more patients")

    def _spacing(self, parts: Parts) -> list[float]:
        """Millimetres between the network's voxels; of volumes brought to a shape the
        median."""
        if self.settings.spacing is not None:
            return list(self.settings.spacing)
        cases = parts["train"] or parts["test"]
        grids = [Grid.of(c.look.shape, c.look.affine) for c in cases if c.look]
        found = [self.network_grid(grid).spacing for grid in grids]
        return [round(float(mm), 4) for mm in np.median(np.array(found), axis=0)]

    def _all(self) -> Iterable[Entry]:
        for split in SPLITS:
            yield from self.entries.get(split, ())

    def _memory(self) -> str:
        """What the cache will need, said before it is made."""
        mode, limit = self.settings.cache, self.settings.cache_gb
        channels = len(self.settings.channels)
        needed = sum(entry.bytes(channels) for entry in self._all())
        text = f"about {needed / 1e9:.2f} GB"
        if mode == "off":
            return f"none ({text} would be needed)"
        if mode == "disk":
            return f"{text} on disk"
        if needed <= limit * 1e9:
            return f"{text} of the {limit:g} GB of memory allowed (data.cache_gb)"
        rest = needed / 1e9 - limit
        over = "on disk" if mode == "auto" else "made anew each time"
        return f"{text}: {limit:g} GB in memory (data.cache_gb), {rest:.2f} GB {over}"


def changed(case: Case, error: VolumeError) -> DataError:
    """The error of a file that was good when the data was checked."""
    fix = error.fix or "it was good when the data was checked; run `headstart check`"
    return DataError(Fault(error.what, case.where or case.id, error.why, fix))


def by(numbers: Iterable[float], unit: str = "") -> str:
    """Numbers of three axes: ``1 x 1 x 6.5 mm``."""
    return " x ".join(f"{number:g}" for number in numbers) + (f" {unit}" * bool(unit))


def seed_of(*parts: object) -> int:
    """A seed that depends on these alone, for all time."""
    text = json.dumps([str(part) for part in parts])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
