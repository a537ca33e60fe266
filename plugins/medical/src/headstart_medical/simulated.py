"""The data modules with simulated lesions: real anatomy, invented lesions, real tests.

Training and validation volumes are healthy ones with lesions that
:mod:`headstart_medical.lesions` paints in; the test split has real patients alone.
Whatever is reported of train and validation is of simulated lesions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from headstart.errors import DataError, Fault
from headstart_medical.cases import ASSET
from headstart_medical.checks import mismatch
from headstart_medical.data import CaseModule, changed, seed_of
from headstart_medical.intensity import foreground
from headstart_medical.lesions import simulate
from headstart_medical.paths import counted, shown
from headstart_medical.patients import unite
from headstart_medical.reading import Volume, VolumeError, read_volume
from headstart_medical.scans import Scans
from headstart_medical.splits import split_cases
from headstart_medical.volumes import Volumes

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from headstart.data import Split
    from headstart_medical.cases import Case
    from headstart_medical.checks import Wanted
    from headstart_medical.data import Entry
    from headstart_medical.data_settings import LesionSettings, LesionSliceSettings
    from headstart_medical.splits import Parts

COUNTED = 2
"""Simulated volumes of each healthy one that are made to count voxels of classes."""


class Simulated(CaseModule):
    """Makes volumes of healthy ones; put before the module that reads them."""

    settings: LesionSettings | LesionSliceSettings
    learns: ClassVar[str]
    """What to say to learn from labels instead."""

    def __init__(self, settings: Any, seed: int) -> None:
        super().__init__(settings, seed)
        self._inside: dict[str, tuple[tuple[Path, ...], float]] = {}
        self._latest: tuple[str, np.ndarray, np.ndarray] | None = None

    def wanted(self) -> tuple[Wanted, Sequence[Split] | None]:
        return "mask", ("test",)

    def split(self, cases: Sequence[Case]) -> Parts:
        """As the paths say; folds are of the real patients alone.

        Raises:
            DataError: There are no real patients. Healthy volumes cannot be the test:
                their label says where lesions may be, not where they are. Or the
                volumes to simulate into have classes of their own.
        """
        self._check_healthy([case for case in cases if case.split != "test"])
        if not any(case.split == "test" for case in cases):
            raise DataError(
                "there are no real patients to test on",
                where="data.test_path",
                why="data.path has healthy volumes, and lesions are simulated there",
                fix="data.test_path=FOLDER of patients with labels of their lesions; "
                "data.name=medical/volumes learns from patients alone",
            )
        settings = self.settings.model_copy(update={"folds": None})
        return split_cases(cases, settings, self.seed, self.findings)

    def divide(self, parts: Parts) -> None:
        """The label of a healthy volume is where lesions may be, and no target.

        With folds the real patients of the other folds are trained on as well.
        """
        settings = self.settings
        if (count := len(settings.channels)) > 1:
            raise DataError(
                f"lesions are simulated in one channel, not in {count}",
                where="data.channels",
                why=", ".join(settings.channels),
                fix="name one channel",
            )
        for case in (*parts["train"], *parts["validation"]):
            above = settings.above if case.above is None else case.above
            self._inside[case.id] = (case.labels, above or 0.0)
            case.labels, case.above = (), None
            # What is wrong with it should not come out in the middle of a training.
            self._healthy(case)
        if settings.folds is None:
            return
        real = sorted(parts["test"], key=lambda case: case.patient)
        # Numbered in the order of their names, those of a DICOM id or content alike.
        numbers = unite(real)
        count = int(numbers.max(initial=-1)) + 1
        if settings.folds > count:
            what = f"{settings.folds} folds of {counted(count, 'real patient')}"
            fix = f"data.folds={count} leaves one patient out"
            raise DataError(what, where="data.folds", fix=fix)
        order = np.random.default_rng([self.seed, 0]).permutation(count)
        tested = np.isin(numbers, order[settings.fold :: settings.folds])
        parts["train"] += [
            c for c, is_test in zip(real, tested, strict=True) if not is_test
        ]
        parts["test"] = [c for c, is_test in zip(real, tested, strict=True) if is_test]

    def _check_healthy(self, cases: Sequence[Case]) -> None:
        """Data that is there to be learned from is no place to simulate lesions into.

        A data set with classes of its own stops the run; of a label nobody knows what
        it is of, so that is a warning.
        """
        own = [case for case in cases if not case.where.startswith(ASSET)]
        targets = {case.target for case in own if case.target is not None}
        names = {name for case in own if case.labels for name in case.classes[1:]}
        labelled = [case for case in own if case.labels]
        if 1 < len(targets) < len(own):
            found, learn = targets, "data.name=medical/scans data.shape=[64,64,64]"
            same = "healthy volumes of several folders are given as data.path=ONE,OTHER"
        elif labelled and self.settings.above is None:
            found, learn = names, self.learns
            same = "data.above=0 says that lesions may be inside them"
        else:
            return
        if found:
            raise DataError(
                f"the data has classes of its own: {', '.join(sorted(found)[:8])}",
                where="data.path",
                why=f"{self.settings.name} simulates lesions into its volumes, and "
                "learns those alone",
                fix=f"{learn} learns its classes; {same}",
            )
        what = "lesions are simulated into volumes that have labels: "
        what += counted(len(labelled), "volume")
        why = "a label there is where lesions may be (the brain), and is not learned"
        fix = f"{learn} learns the labels; {same}"
        self.findings.warnings.append(Fault(what, "data.path", why, fix))

    def variants(self, case: Case, split: Split) -> int:
        if case.id not in self._inside:
            return 0
        settings = self.settings
        return settings.variants if split == "train" else settings.validation_variants

    def label_files(self, case: Case) -> Sequence[Path]:
        return [*case.labels, *self._inside.get(case.id, ((), 0.0))[0]]

    def raw(self, entry: Entry) -> tuple[np.ndarray, np.ndarray | None]:
        """A healthy volume with simulated lesions, or a real patient's."""
        if entry.variant is None:
            return super().raw(entry)
        painted, mask = self.simulated(entry)
        return painted[None], mask.astype(np.int16)

    def simulated(self, entry: Entry) -> tuple[np.ndarray, np.ndarray]:
        """A volume (x, y, z) with lesions, and where they are; see ``lesions.py``."""
        volume, inside = self._healthy(entry.case)
        painted, mask = simulate(
            volume,
            inside,
            entry.original.spacing,
            self.settings,
            np.random.default_rng(seed_of(self.seed, entry.id, "lesions")),
        )
        if self._stripped(entry):
            painted[~inside] = 0
        return painted, mask

    def _stripped(self, entry: Entry) -> bool:
        """Whether only what is inside the label is left, evenly among the variants."""
        share, variant = self.settings.stripped, entry.variant
        if variant is None or entry.measured:
            return False
        return int((variant + 1) * share) > int(variant * share)

    def describe(self) -> dict[str, Any]:
        """As every module's; says what is simulated."""
        described = super().describe()
        for split, entries in self.entries.items():
            simulated = sum(entry.variant is not None for entry in entries)
            kind = f"{simulated} of them simulated lesions in healthy volumes"
            described[split] += f", {kind}" if simulated else ", all real"
        return described

    def _healthy(self, case: Case) -> tuple[np.ndarray, np.ndarray]:
        """A volume and where lesions may be: in its label, else in its foreground.

        All variants of a case come one after the other, so the latest is kept.
        """
        if self._latest is None or self._latest[0] != case.id:
            volume = self.read_case(case)[0][0]
            inside = self._inside_of(case, volume)
            self._latest = (case.id, volume, inside)
        return self._latest[1], self._latest[2]

    def _inside_of(self, case: Case, volume: np.ndarray) -> np.ndarray:
        labels, above = self._inside[case.id]
        inside = np.zeros(volume.shape, dtype=bool)
        for path in labels:
            try:
                label = read_volume(path)
            except VolumeError as error:
                raise changed(case, error) from None
            assert case.look is not None
            image = Volume(volume, case.look.affine)
            for what, why, fix in mismatch(
                image, label, self.settings.tolerance, "label"
            ):
                raise DataError(what, where=shown(path), why=why, fix=fix)
            inside |= label.array > above
        if not labels:
            inside = foreground(volume)
        if not inside.any():
            raise DataError(
                "there is no voxel where a lesion may be",
                where=case.where,
                why=f"no voxel of its label is above {above:g}",
                fix="set data.above, or leave its label away",
            )
        return inside

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_latest": None}


class Lesions(Simulated, Volumes):
    """``medical/simulated-lesions``: segmentation of lesions."""

    settings: LesionSettings
    learns = "data.name=medical/volumes"

    def class_counts(self, train: Sequence[Case]) -> list[int]:
        """Voxels of each class in some simulated volumes, scaled to all of them."""
        counts = np.zeros(len(self.settings.labels))
        made = min(COUNTED, self.settings.variants)
        for case in train:
            if case.look and case.look.counts:
                counts += case.look.counts
                continue
            for entry in self._entries(case, "train")[:made]:
                mask = self.simulated(entry)[1]
                found = np.bincount(mask.ravel(), minlength=len(counts))
                counts += found * self.settings.variants / made
        return [int(n) for n in np.rint(counts)]


class LesionSlices(Simulated, Scans):
    """``medical/simulated-lesion-slices``: slices with and without a lesion."""

    settings: LesionSliceSettings
    learns = "data.name=medical/scans data.slices=true"
