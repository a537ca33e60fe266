"""Settings of the medical plugin's data modules; torch-free."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from headstart.settings import DataSettings, Share

Positive = Annotated[int, Field(ge=1)]
Size = Annotated[float, Field(ge=0.0)]
Millimetres = Annotated[float, Field(gt=0.0)]
Sides = tuple[Positive, Positive, Positive]
Flat = tuple[Positive, Positive]
Spacing = tuple[Millimetres, Millimetres, Millimetres]


class CaseSettings(DataSettings):
    """What all data modules of this plugin have in common: cases and their grid."""

    path: str = ""
    """Folder of cases, a Decathlon ``dataset.json``, a CSV file of paths, or
    ``asset:NAME``; split by patient unless ``validation_path`` and ``test_path`` are
    given."""
    validation_path: str = ""
    """As ``path``, for the validation split."""
    test_path: str = ""
    """As ``path``, for the test split."""
    validation_size: Size = 0.2
    """Share of the training patients (below 1) or their number, without a path."""
    test_size: Size = 0.2
    """Share of all patients (below 1) or their number, without a path."""
    folds: Annotated[int, Field(ge=2)] | None = None
    """Cut the patients into so many folds instead; ``fold`` is the test split."""
    fold: Annotated[int, Field(ge=0)] = 0
    """Which of ``folds`` is the test split, from 0 on."""
    patient: str = ""
    """Whose a case is: a column of the CSV file, or a regular expression on the case's
    path whose first group names the patient, whatever the patient id of a DICOM header;
    empty takes each case for a patient, those of equal header ids for one."""
    channels: tuple[str, ...] = ()
    """Names of the volumes of a case, in order, as files or columns have them (``T1``,
    ``FLAIR``); empty takes what ``path`` says, else one channel."""
    image: str = "image"
    """Column, folder or start of the file's name of a case's volume, where it has one
    channel alone."""
    label: str = "label"
    """Column, folder or start of the file's name of a case's label."""
    labels: tuple[str, ...] = ()
    """Class of each value in a label map, from 0 (background) on; where a label is one
    file for each class, the classes without the background are the files' names.
    For classification the classes in order. Empty takes what ``path`` says."""
    values: tuple[int, ...] = ()
    """Value of each of ``labels`` in a label map; empty takes 0, 1, 2 …"""
    ignore: int | None = None
    """Value of voxels in a label whose truth is not known; they do not count."""
    above: float | None = None
    """Where a label is a volume of grey values: what is above this is the class."""
    modality: Literal["", "mri", "ct", "pet", "other"] = ""
    """What made the volumes; empty takes what ``path`` says, else ``other``."""
    empty: bool = False
    """Whether a case without a labelled voxel is as good as any other."""
    small: Literal["stop", "pad"] = "stop"
    """What to do about a volume that is smaller than the patch: it is a bad
    sample, or it is filled up with its darkest value."""
    tolerance: Annotated[float, Field(gt=0.0)] = 0.01
    """Voxels by which the affines of a case's volume and label may differ."""
    spacing: Spacing | None = None
    """Millimetres between the voxels that the network sees; ``None`` takes the median
    of the training cases, axis by axis."""
    shape: Sides | None = None
    """Bring every volume to so many voxels instead, whatever its spacing; needed where
    volumes are classified, and by networks that read a whole volume at once."""
    intensity: Literal[
        "auto", "z-score", "robust", "ct-window", "percentile", "max", "none"
    ] = "auto"
    """How grey values are scaled; ``auto`` does as the weights want it, else by
    modality: z-score inside the foreground for MRI and PET, whose bright spots are not
    cut then, and a window for CT. ``robust`` is a z-score by median and absolute
    deviation, brought to about 0 to 1."""
    window: tuple[float, float] = (-160.0, 240.0)
    """``ct-window``: Hounsfield units that become 0 and 1; soft tissue by default,
    (-1000, 400) shows the lungs."""
    percentiles: tuple[Annotated[float, Field(ge=0.0, le=100.0)], ...] = (0.5, 99.5)
    """``percentile``: the two that become 0 and 1."""
    augmentation: Literal["none", "light", "strong"] = "none"
    """Random changes to what is trained on, labels moved along."""
    cache: Literal["auto", "memory", "disk", "off"] = "auto"
    """Where volumes on the network's grid are kept after their first use: in memory as
    far as ``cache_gb`` goes and on disk beyond, in one of both alone, or nowhere."""
    cache_gb: Annotated[float, Field(ge=0.0)] = 4.0
    """Memory for volumes, in GB."""

    @model_validator(mode="after")
    def _consistent(self) -> CaseSettings:
        if len(self.percentiles) != 2 or self.percentiles[0] >= self.percentiles[1]:
            raise ValueError("percentiles: give two, the lower one first")
        if self.window[0] >= self.window[1]:
            raise ValueError("window: give the lower end first")
        if self.values and len(self.values) != len(self.labels):
            raise ValueError("values: give one for each of data.labels")
        for key in ("labels", "values"):
            given = getattr(self, key)
            if len(set(given)) < len(given):
                raise ValueError(f"{key}: one of them is there twice")
        if self.folds is None and self.fold:
            raise ValueError(f"fold: say of how many, data.folds; this is {self.fold}")
        if self.folds is not None and self.fold >= self.folds:
            raise ValueError(f"fold: the folds are 0 to {self.folds - 1}")
        if self.spacing is not None and self.shape is not None:
            raise ValueError("shape: volumes get a spacing or a shape, not both")
        return self


class VolumeSettings(CaseSettings):
    """``[data]``: volumes with a label map each, or unlabelled ones to pretrain on."""

    kind: Literal["volume-segmentation", "reconstruction"] = "volume-segmentation"
    """Whether the class of each voxel is the target, or what was hidden of the
    volume."""
    patch: Sides = (96, 96, 96)
    """Sides of the patches that are trained on, in voxels of the network's grid; with
    ``shape`` the whole volume is the patch."""
    patches_per_case: Positive = 4
    """Patches of each volume in an epoch, at fixed places."""
    foreground: Share = 0.5
    """Share of the patches that are taken around a labelled voxel."""
    margin: Annotated[int, Field(ge=0)] = 8
    """Voxels around a patch within which augmentation moves and turns it; without
    augmentation there is none."""
    hidden: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5
    """``reconstruction``: share of the blocks of a patch that are hidden."""
    block: Positive = 8
    """``reconstruction``: side of a block, in voxels."""


class ScanSettings(CaseSettings):
    """``[data]``: volumes or slices with a class each."""

    kind: Literal["single-label"] = "single-label"
    """What the targets are: one class for each volume or slice."""
    shape: Sides | Flat = (64, 64, 64)  # type: ignore[assignment]
    """Voxels that every volume is brought to, three numbers; of slices two, or the
    first two."""
    slices: bool = False
    """Take the slices of labelled volumes for samples; a slice's class is the first
    of ``labels`` without a labelled voxel and the second with one."""
    least: Positive = 1
    """``slices``: labelled voxels from which on a slice counts as having the class."""
    every: Positive = 1
    """``slices``: take every so many-th slice of a volume."""
    neighbours: Annotated[int, Field(ge=0)] = 0
    """``slices``: slices on each side that are further channels."""

    @model_validator(mode="after")
    def _whole(self) -> ScanSettings:
        if len(self.shape) < 3 and not self.slices:
            raise ValueError(
                "shape: volumes have three sides, e.g. data.shape=[64,64,64]; two are "
                "of slices, data.slices=true"
            )
        return self


class LesionSimulation(CaseSettings):
    """What is simulated, into which volumes, and on whom it is tested."""

    path: str = "asset:colin27"
    """Healthy volumes to simulate lesions into, for training; where they have a label,
    lesions are inside it."""
    validation_path: str = "asset:mni152"
    """The same for validation."""
    test_path: str = "asset:brain-tumours"
    """Real patients with a lesion label."""
    labels: tuple[str, ...] = ("background", "lesion")
    """Background and what is simulated."""
    folds: Annotated[int, Field(ge=2)] | None = None
    """Cut the real patients into so many folds: ``fold`` is the test split, the others
    are trained on beside the simulated ones."""
    variants: Positive = 24
    """Volumes with other lesions that are made of each healthy one for training."""
    validation_variants: Positive = 4
    """The same for validation."""
    radius: tuple[Millimetres, Millimetres] = (4.0, 18.0)
    """Smallest and largest mean radius of a lesion, in mm."""
    most: Positive = 3
    """Most lesions in one volume; the least is one."""
    stripped: Share = 0.0
    """Share of the simulated training volumes in which all outside of the healthy
    volume's label (skull, scalp, neck) is blacked out, as in many templates."""
    slice_thickness: tuple[Millimetres, Millimetres] = (1.0, 7.0)
    """Range of slice thicknesses, in mm, that simulated volumes are blurred to along
    their last axis, as real scans are thick."""


class LesionSettings(LesionSimulation, VolumeSettings):
    """``[data]``: real volumes with simulated lesions; real patients in the test split.

    ``path`` and ``validation_path`` have volumes without lesions, ``test_path`` real
    patients with labels.
    """

    kind: Literal["volume-segmentation"] = "volume-segmentation"
    """The target is the class of each voxel."""


class LesionSliceSettings(LesionSimulation, ScanSettings):
    """``[data]``: slices of real volumes with simulated lesions, and of real patients.

    As :class:`LesionSettings`; a slice's class is whether a lesion is in it.
    """

    kind: Literal["single-label"] = "single-label"
    """The target is one class for each slice."""

    shape: Sides | Flat = (128, 128)  # type: ignore[assignment]
    """Voxels that every slice is brought to, two numbers."""
    labels: tuple[str, ...] = ("without lesion", "with lesion")
    """The class of a slice without a lesion's voxels, and that of one with them."""
    slices: Literal[True] = True
    """Slices are the samples."""
    variants: Positive = 8
    """Volumes with other lesions that are made of each healthy one for training."""
