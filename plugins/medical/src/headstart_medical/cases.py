"""Cases: which volumes and labels belong to which patient, as a data set lists them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headstart.errors import Fault
from headstart_medical import patients
from headstart_medical.paths import counted, missing

if TYPE_CHECKING:
    import numpy as np

    from headstart.assets import Asset
    from headstart.data import Findings, Split
    from headstart_medical.data_settings import CaseSettings

ASSET = "asset:"
PATHS: dict[str, Split | None] = {
    "path": None,
    "validation_path": "validation",
    "test_path": "test",
}


@dataclass(frozen=True)
class Look:
    """What is known of a case whose files were read once.

    Attributes:
        shape: Voxels along each axis of the files.
        affine: float64 (4, 4) of the image: voxel indices to RAS+ millimetres.
        counts: Voxels of each class, in the order of the classes; empty without label.
        digests: sha256 of each image's voxels in RAS order, whatever its file format.
        person: See :class:`headstart_medical.reading.Volume`.
        modality: ``mri``, ``ct``, ``pet``, ``other``, or empty where the files do not
            say.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray
    counts: tuple[int, ...] = ()
    digests: tuple[str, ...] = ()
    person: str = field(default="", repr=False)
    modality: str = ""

    @property
    def canonical(self) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """Shape and spacing (mm) with the axes in the order of RAS."""
        import numpy as np
        from nibabel import orientations

        spacing = np.linalg.norm(self.affine[:3, :3], axis=0)
        turns: Any = orientations
        order = np.argsort(turns.io_orientation(self.affine)[:, 0])
        return (
            tuple(self.shape[i] for i in order),
            tuple(float(spacing[i]) for i in order),
        )


@dataclass
class Case:
    """One patient's volumes at one time, with their label.

    Attributes:
        id: Unique in the data set.
        images: One file or DICOM folder a channel, or one file with all channels.
        labels: One map of all classes, or one file a class without the background.
        patient: Whose it is; the id where the data set does not say.
        told: Whether ``data.patient`` or a column says whose it is; then the patient
            id of a DICOM header, which may be the same for everybody, does not count.
        target: Class of the whole case, where there is one.
        where: How a fault names it: a folder or file, or a line of one.
        split: Where the data set puts it; ``None`` leaves that to chance.
        above: Voxels of the label files that are greater belong to the class.
        classes: Names that the data set itself gives the values of the label.
        look: Filled by :func:`headstart_medical.checks.check_cases`.
    """

    id: str
    images: tuple[Path, ...]
    labels: tuple[Path, ...] = ()
    patient: str = ""
    told: bool = False
    target: str | None = None
    where: str = ""
    split: Split | None = None
    above: float | None = None
    classes: tuple[str, ...] = ()
    look: Look | None = None

    @property
    def place(self) -> tuple[str, int]:
        """Under which ``Findings.sample`` notes its faults."""
        return self.where, 0


@dataclass
class Listing:
    """What a data set has, before its files are read.

    Attributes:
        cases: All of them, those with a fault included.
        channels: Names of the images of each case, in order.
        labels: Value of each class in a label map, by name, background first; of
            classification the classes, numbered. Empty where nobody said.
        modality: ``mri``, ``ct``, ``pet``, ``other``, or empty where nobody said.
        named: Whether the data set or the recipe says whose a case is.
    """

    cases: list[Case] = field(default_factory=list)
    channels: tuple[str, ...] = ()
    labels: dict[str, int] = field(default_factory=dict)
    modality: str = ""
    named: bool = False


def list_cases(settings: CaseSettings, findings: Findings) -> Listing:
    """The cases of ``path``, ``validation_path`` and ``test_path``.

    What the recipe says of channels, labels and modality goes before what the data set
    says. No volume is read here.

    Args:
        settings: See :class:`headstart_medical.data_settings.CaseSettings`.
        findings: Takes the faults: missing files, channels and columns, ids that are
            there twice.
    """
    whole = Listing()
    for name, split in PATHS.items():
        value = str(getattr(settings, name))
        if not value:
            if name == "path" and not settings.test_path:
                fix = "give a folder, dataset.json, a CSV file or asset:NAME"
                findings.fatal.append(Fault("data.path is empty", "data.path", fix=fix))
            continue
        for one in _several(value):
            part = _one(one, f"data.{name}", settings, findings)
            for case in part.cases:
                if case.above is None:
                    case.above = settings.above
                case.classes = tuple(part.labels)
                if split is not None:
                    case.split, case.id = split, f"{split}/{case.id}"
            _join(whole, part)
    if settings.channels:
        whole.channels = settings.channels
    whole.channels = whole.channels or ("image",)
    if settings.labels:
        values = settings.values or range(len(settings.labels))
        whole.labels = dict(zip(settings.labels, values, strict=True))
    _leave_ignored(whole, settings, findings)
    whole.modality = settings.modality or whole.modality
    if not whole.cases and not findings.fatal:
        fix = "give a folder with .nii, .nii.gz, .nrrd files or DICOM folders"
        findings.fatal.append(Fault("no cases found", settings.path, fix=fix))
    _check_channels(whole, findings)
    _check_ids(whole, findings)
    whole.named = patients.name_patients(whole.cases, settings, findings)
    return whole


def _leave_ignored(
    listing: Listing, settings: CaseSettings, findings: Findings
) -> None:
    """``data.ignore`` is no class; nnU-Net lists its value as one."""
    for name, value in [*listing.labels.items()]:
        if value == settings.ignore and name in settings.labels:
            what = f"{value} is the value of class {name!r}, too"
            fix = "take the class out of data.labels, or leave data.ignore away"
            findings.fatal.append(Fault(what, "data.ignore", fix=fix))
        elif value == settings.ignore:
            del listing.labels[name]


def find_asset(path: str) -> Asset:
    """The asset that a path names."""
    from headstart import assets

    return assets.find_asset(path.removeprefix(ASSET), ("headstart_medical",))


def _several(value: str) -> list[str]:
    """A setting's paths: commas stand between several."""
    if "," not in value or Path(value).expanduser().exists():
        return [value]
    return [part.strip() for part in value.split(",") if part.strip()]


def _one(value: str, key: str, settings: CaseSettings, findings: Findings) -> Listing:
    from headstart_medical import folders, tables

    if value.startswith(ASSET):
        from headstart import assets

        asset = find_asset(value)
        folder = assets.fetch(asset)
        if asset.read.get("cases"):
            return tables.from_asset(asset, folder, settings)
        return folders.read_folder(folder, settings, findings)
    path = Path(value).expanduser().absolute()
    if not path.exists():
        findings.fatal.append(missing(path, key))
        return Listing()
    if path.is_dir():
        listed = path / "dataset.json"
        if listed.is_file():
            return tables.read_json(listed, settings, findings)
        return folders.read_folder(path, settings, findings)
    if path.suffix.casefold() == ".json":
        return tables.read_json(path, settings, findings)
    if path.suffix.casefold() in (".csv", ".tsv", ".txt"):
        return tables.read_table(path, settings, findings)
    what = f"the format of {path.name!r} is not known by its ending"
    fix = "give a folder, dataset.json, or a .csv or .tsv file"
    findings.fatal.append(Fault(what, key, fix=fix))
    return Listing()


def _join(whole: Listing, part: Listing) -> None:
    whole.cases += part.cases
    whole.channels = whole.channels or part.channels
    whole.labels = whole.labels or part.labels
    whole.modality = whole.modality or part.modality


def _check_channels(listing: Listing, findings: Findings) -> None:
    wanted = len(listing.channels)
    for case in listing.cases:
        # One file may hold all channels; reading it tells.
        if len(case.images) in (1, wanted) or case.place in findings.samples:
            continue
        what = f"{counted(len(case.images), 'volume')} where {wanted} are expected"
        why = f"data.channels: {', '.join(listing.channels)}"
        findings.sample(*case.place, Fault(what, case.where, why))


def _check_ids(listing: Listing, findings: Findings) -> None:
    counts = Counter(case.id for case in listing.cases)
    for name in sorted(name for name, count in counts.items() if count > 1):
        both = [case.where for case in listing.cases if case.id == name]
        why = "; ".join(both[:4])
        fix = "give each case an id of its own"
        what = f"{counts[name]} cases are called {name!r}"
        findings.fatal.append(Fault(what, "data.path", why, fix))


def completed(settings: CaseSettings) -> dict[str, Any]:
    """What the recipe must say so that it repeats the run from everywhere.

    Returns:
        Changes to the settings: relative paths made absolute.
    """
    changes: dict[str, Any] = {}
    for name in PATHS:
        value = str(getattr(settings, name))
        if value:
            changes[name] = ",".join(
                one if one.startswith(ASSET) else str(Path(one).expanduser().absolute())
                for one in _several(value)
            )
    return changes
