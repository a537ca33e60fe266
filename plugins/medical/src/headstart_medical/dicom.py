"""A folder with the files of one DICOM series, as a volume.

Only the tags of :data:`TAGS` are parsed, so no patient's name, date or text is ever in
memory; the patient id becomes a hash with a key that dies with the process. Faults name
files and positions, never values of other tags, nor the words of pydicom's errors.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from headstart_medical.paths import counted, hidden, stem
from headstart_medical.reading import MOST_VOXELS, Volume, VolumeError, by

if TYPE_CHECKING:
    from pathlib import Path

TAGS = (
    *("PatientID", "SeriesInstanceUID", "Modality"),
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"),
    *("SliceThickness", "SpacingBetweenSlices", "NumberOfFrames"),
    *("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit"),
    *("PixelRepresentation", "SamplesPerPixel", "PhotometricInterpretation"),
    *("PlanarConfiguration", "RescaleSlope", "RescaleIntercept"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
    *("PixelData", "FloatPixelData", "DoubleFloatPixelData"),
)
MODALITIES = {"MR": "mri", "CT": "ct", "PT": "pet"}
SAME_PLACE = 0.01
"""Millimetres: two slices that are nearer are in one place."""
UNEVEN = 0.1
"""Share of the distance between slices by which it may vary."""
UPRIGHT = 0.05
"""By how much the area between the directions of rows and columns may differ from 1."""
ALIKE = 1e-3
"""Millimetres, and parts of a direction, by which planes of one volume may differ."""
NOBODY = re.compile(
    r"anon\w*|unknown|none|null|n/?a|no[-_ ]?(id|name|patient)|patient|[0x?*._-]+",
    re.IGNORECASE,
)
"""Patient ids that anonymising programs write for everybody."""
_KEY = secrets.token_bytes(16)
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])


@dataclass(frozen=True)
class _Slice:
    """One plane: where it is, and how to get its pixels."""

    file: str
    data: Any
    frame: int | None
    position: np.ndarray
    orientation: np.ndarray
    spacing: np.ndarray
    size: tuple[int, int]
    thickness: float
    slope: float
    intercept: float

    @property
    def form(self) -> np.ndarray:
        """What is alike in all planes of a volume: size, spacing and orientation."""
        return np.concatenate([self.size, self.spacing, self.orientation])


def is_dicom(path: Path) -> bool:
    """Whether a file has the mark of DICOM behind its first 128 bytes."""
    if path.suffix.casefold() in (".dcm", ".dicom", ".ima"):
        return True
    try:
        if not path.is_file():
            return False  # a pipe would never answer
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM" and path.name != "DICOMDIR"
    except OSError:
        return False


def read_series(folder: Path) -> Volume:
    """The volume of the series in a folder; folders inside it are not looked at.

    Slices are put in order by their positions along the normal of their plane; stored
    values become what ``RescaleSlope`` and ``RescaleIntercept`` say (Hounsfield units).
    A tilted gantry gives a sheared affine, as the positions say.

    Returns:
        (x, y, z): x runs along the rows, y down the columns, z along the normal.

    Raises:
        VolumeError: No series, several, slices that are missing, twice in one place or
            of different planes, or pixels that cannot be decoded.
    """
    files = [
        path
        for path in sorted(folder.iterdir())
        if path.is_file() and not hidden(path.name) and stem(path.name) is None
    ]
    sets = [(path, _header(path)) for path in files if is_dicom(path)]
    # Reports, structures and segmentations may lie beside a series.
    images = [
        (path, data)
        for path, data in sets
        if any(name in data for name in TAGS[-3:])
        and str(data.get("Modality", "")) not in ("SEG", "PR", "SR")
    ]
    if not images:
        what = "no DICOM images in this folder"
        why = f"{counted(len(sets), 'DICOM file')} without pixels" if sets else ""
        raise VolumeError(what, why, "give the folder that holds the slices")
    _one_series(images)
    planes = [plane for path, data in images for plane in _planes(path, data)]
    _one_plane(planes)
    planes, step = _ordered(planes)
    first = planes[0]
    array = _pixels(planes)
    x, y = first.orientation[:3], first.orientation[3:]
    affine = np.eye(4)
    # PixelSpacing is the distance of rows, then of columns.
    affine[:3, :3] = np.stack([x * first.spacing[1], y * first.spacing[0], step], 1)
    affine[:3, 3] = first.position
    affine[:3] = _LPS_TO_RAS @ affine[:3]
    data = images[0][1]
    facts = {
        "format": "DICOM",
        "oriented": True,
        "modality": MODALITIES.get(str(data.get("Modality", "")), "other"),
        "slices": len(planes),
    }
    return Volume(array, affine, facts, _person(data))


def _header(path: Path) -> Any:
    import pydicom

    # Its warnings repeat what is wrong in a tag; here all is looked at anyway.
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    try:
        return pydicom.dcmread(path, specific_tags=list(TAGS))
    except Exception as error:  # its text may hold values of tags
        kind = type(error).__name__
        what = f"not a DICOM file, or damaged: {path.name}"
        raise VolumeError(what, kind, "export it again, or remove it") from None


def _person(data: Any) -> str:
    patient = str(data.get("PatientID", "") or "").strip()
    if not patient or NOBODY.fullmatch(patient):
        return ""
    return hashlib.blake2b(patient.encode(), key=_KEY, digest_size=16).hexdigest()


def _one_series(images: list[tuple[Path, Any]]) -> None:
    series: dict[str, list[str]] = {}
    for path, data in images:
        series.setdefault(str(data.get("SeriesInstanceUID", "")), []).append(path.name)
    if len(series) > 1:
        parts = [f"{counted(len(n), 'file')} such as {n[0]}" for n in series.values()]
        raise VolumeError(
            f"{len(series)} DICOM series in one folder",
            "; ".join(parts[:5]) + (" …" if len(parts) > 5 else ""),
            "give each series a folder of its own",
        )
    if len({_person(data) for _, data in images}) > 1:
        fix = "give each patient a folder of their own"
        raise VolumeError("files of several patients in one DICOM series", "", fix)


def _planes(path: Path, data: Any) -> list[_Slice]:
    """The planes of a file: one, or one a frame of a multi-frame object."""
    try:
        frames = data.get("PerFrameFunctionalGroupsSequence")
        if frames is None and int(data.get("NumberOfFrames", 1) or 1) == 1:
            return [_plane(path, data, None, [data])]
        if frames is None:
            what = f"several frames without positions: {path.name}"
            raise VolumeError(what, fix="export it as one file a slice")
        shared = list(data.get("SharedFunctionalGroupsSequence") or [])
        return [
            _plane(path, data, i, [frame, *shared, data])
            for i, frame in enumerate(frames)
        ]
    except VolumeError:
        raise
    except Exception as error:  # its text may hold values of tags
        what = f"a tag that cannot be read: {path.name}"
        raise VolumeError(what, type(error).__name__, "export it again") from None


_GROUPS = {
    "ImagePositionPatient": "PlanePositionSequence",
    "ImageOrientationPatient": "PlaneOrientationSequence",
    "PixelSpacing": "PixelMeasuresSequence",
    "RescaleSlope": "PixelValueTransformationSequence",
    "RescaleIntercept": "PixelValueTransformationSequence",
    "SliceThickness": "PixelMeasuresSequence",
    "SpacingBetweenSlices": "PixelMeasuresSequence",
}


def _plane(path: Path, data: Any, frame: int | None, groups: list[Any]) -> _Slice:
    def find(name: str) -> Any:
        for group in groups:
            inner = group.get(_GROUPS[name])
            value = inner[0].get(name) if inner else group.get(name)
            if value is not None:
                return value
        return None

    vectors = {}
    for name, size in {
        "ImagePositionPatient": 3,
        "ImageOrientationPatient": 6,
        "PixelSpacing": 2,
    }.items():
        value = find(name)
        vector = np.array([] if value is None else value, np.float64)
        if vector.shape != (size,) or not np.isfinite(vector).all():
            what = f"no {name} in {path.name}"
            why = "without it nobody knows where the slice lies"
            raise VolumeError(what, why, "export the series with its geometry")
        vectors[name] = vector
    orientation = vectors["ImageOrientationPatient"]
    normal = np.cross(orientation[:3], orientation[3:])
    if abs(np.linalg.norm(normal) - 1) > UPRIGHT:
        what = f"rows and columns that are not at right angles: {path.name}"
        why = "ImageOrientationPatient is no pair of directions"
        raise VolumeError(what, why, "export the series with its geometry")
    slope, intercept = find("RescaleSlope"), find("RescaleIntercept")
    return _Slice(
        path.name,
        data,
        frame,
        vectors["ImagePositionPatient"],
        orientation,
        vectors["PixelSpacing"],
        (int(data.Columns), int(data.Rows)),
        abs(float(find("SpacingBetweenSlices") or find("SliceThickness") or 1.0)),
        1.0 if slope is None else float(slope),
        0.0 if intercept is None else float(intercept),
    )


def _one_plane(planes: list[_Slice]) -> None:
    """Every slice has the orientation, spacing and size of most of them."""
    forms = np.stack([plane.form for plane in planes])
    other = np.flatnonzero(np.abs(forms - np.median(forms, 0)).max(1) > ALIKE)
    if not other.size:
        return
    raise VolumeError(
        f"{other.size} of {len(planes)} slices have another plane, spacing or size",
        f"e.g. {planes[other[0]].file}; a localizer, or a mixed series",
        "give each stack of slices a folder of its own",
    )


def _ordered(planes: list[_Slice]) -> tuple[list[_Slice], np.ndarray]:
    """Slices along the normal, and the step from one to the next in millimetres."""
    first = planes[0]
    normal = np.cross(first.orientation[:3], first.orientation[3:])
    places = np.array([plane.position @ normal for plane in planes])
    order = np.argsort(places, kind="stable")
    planes, places = [planes[i] for i in order], places[order]
    if len(planes) == 1:
        return planes, normal * first.thickness
    gaps = np.diff(places)
    if (twice := np.flatnonzero(gaps < SAME_PLACE)).size:
        one, other = planes[twice[0]], planes[twice[0] + 1]
        raise VolumeError(
            f"duplicate slices: {twice.size} more than there are places",
            f"e.g. {one.file} and {other.file}, both at {places[twice[0]]:.2f} mm",
            "remove the copies; give echoes, times and series folders of their own",
        )
    usual = float(np.median(gaps))
    wide = np.flatnonzero(gaps > usual * (1 + UNEVEN))
    if wide.size:
        lost = sum(max(1, round(gaps[i] / usual) - 1) for i in wide)
        i = wide[0]
        raise VolumeError(
            f"missing slices: {lost}, in {counted(wide.size, 'gap')}",
            f"{gaps[i]:.2f} mm from {planes[i].file} to {planes[i + 1].file}, "
            f"where slices are {usual:.2f} mm apart",
            "export the series again, with all its slices",
        )
    if (gaps < usual * (1 - UNEVEN)).any():
        what = "slices that are not evenly apart"
        why = f"from {gaps.min():.2f} to {gaps.max():.2f} mm"
        raise VolumeError(what, why, "resample the series to an even grid")
    step = (planes[-1].position - planes[0].position) / (len(planes) - 1)
    straight = planes[0].position + np.arange(len(planes))[:, None] * step
    off = np.linalg.norm([p.position for p in planes] - straight, axis=1).max()
    if off > max(usual * UNEVEN, SAME_PLACE):
        what = "slices that are not on one line"
        raise VolumeError(what, f"up to {off:.2f} mm beside it", "export it again")
    return planes, step


def _pixels(planes: list[_Slice]) -> np.ndarray:
    from pydicom.pixels.utils import pixel_array

    if int(planes[0].data.get("SamplesPerPixel", 1)) != 1:
        raise VolumeError("a series in colour", fix="give the original grey images")
    shape = (*planes[0].size, len(planes))
    if shape[0] * shape[1] * shape[2] > MOST_VOXELS:
        raise VolumeError(f"too large: {by(shape)} voxels", fix="crop it")
    whole = all(p.slope == 1.0 and p.intercept == int(p.intercept) for p in planes)
    array = np.empty(shape, np.int32 if whole else np.float32)
    for z, plane in enumerate(planes):
        try:
            # The data set's own property would keep every slice a second time.
            pixels = pixel_array(plane.data, index=plane.frame)
        except Exception as error:  # its text may hold values of tags
            raise VolumeError(
                f"pixels that cannot be decoded: {plane.file}",
                type(error).__name__,
                "fetch it again if it is cut short; else export the series without "
                "compression, or install a decoder: pip install pylibjpeg "
                "pylibjpeg-libjpeg pylibjpeg-openjpeg",
            ) from None
        if whole and pixels.dtype.kind == "f":
            array, whole = array.astype(np.float32), False
        if whole:
            array[:, :, z] = pixels.T.astype(np.int32) + int(plane.intercept)
        else:
            scaled = pixels.T.astype(np.float64) * plane.slope + plane.intercept
            array[:, :, z] = scaled
    return array
