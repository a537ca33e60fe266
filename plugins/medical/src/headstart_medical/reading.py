"""Volumes from files: NIfTI by nibabel, NRRD by pynrrd, DICOM series by pydicom.

World coordinates are RAS+ millimetres, whatever the file's own are. Nothing of a header
leaves this module but the grid, the modality and the format: no name, no date, no text.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from headstart_medical.paths import ENDINGS, counted, missing, stem

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

MOST_VOXELS = 2**31
"""A header that promises more is refused before anything is decompressed."""
UNKNOWN = -1
"""Class of a voxel whose truth is not known."""
_MILLIMETRES = {"mm": 1.0, "meter": 1e3, "m": 1e3, "cm": 10.0, "micron": 1e-3,
                "um": 1e-3, "µm": 1e-3}  # fmt: skip


class VolumeError(ValueError):
    """A file or folder that is no usable volume.

    Attributes:
        what: The finding, short.
        why: What the reader says; may be empty.
        fix: What to do.
        path: The file or folder, where one is to blame.
    """

    def __init__(self, what: str, why: str = "", fix: str = "") -> None:
        super().__init__(f"{what}: {why}" if why else what)
        self.what, self.why, self.fix = what, why, fix
        self.path: Path | None = None

    def __reduce__(self) -> tuple[type[VolumeError], tuple[str, str, str]]:
        return type(self), (self.what, self.why, self.fix)


@dataclass(frozen=True)
class Volume:
    """A volume on its own grid.

    Attributes:
        array: (x, y, z), or (x, y, z, channels) where the file has four dimensions;
            images of several files are (channels, x, y, z). Whole numbers stay such.
        affine: float64 (4, 4): voxel indices to RAS+ millimetres.
        facts: ``format``, ``oriented`` (whether the header says where the grid lies)
            and, of DICOM, ``modality`` and ``slices``.
        person: Equal for the same patient id of a DICOM header while this process
            lives; it is a keyed hash and says nothing outside. Empty elsewhere.
    """

    array: np.ndarray
    affine: np.ndarray
    facts: dict[str, Any] = field(default_factory=dict)
    person: str = field(default="", repr=False)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Millimetres between voxels along each axis of the array."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)


def read_volume(path: Path) -> Volume:
    """The volume of a NIfTI or NRRD file, or of a folder with one DICOM series.

    Returns:
        (x, y, z), or (x, y, z, channels) for four dimensions; trailing dimensions of
        one are dropped.

    Raises:
        VolumeError: It does not exist, is damaged, or holds no volume.
    """
    try:
        return _checked(_read(path))
    except VolumeError as error:
        error.path = path
        raise


def _read(path: Path) -> Volume:
    if path.is_dir():
        return _read_folder(path)
    if not path.exists():
        fault = missing(path)
        raise VolumeError(fault.what, fault.why, fault.fix)
    if stem(path.name) is None:
        why = f"known endings: {', '.join(ENDINGS)}; a DICOM series is a folder"
        raise VolumeError("the format is not known by its ending", why)
    if not path.stat().st_size:
        fix = "fetch or export it again, or remove it"
        raise VolumeError("the file is empty", "it has 0 bytes", fix)
    read = _read_nrrd if path.suffix.lower() == ".nrrd" else _read_nifti
    try:
        return read(path)
    except VolumeError:
        raise
    except (EOFError, zlib.error) as error:
        raise _cut(error) from None
    except PermissionError as error:
        raise VolumeError("the file cannot be opened", error.strerror or "") from None
    except Exception as error:  # readers meet damaged files with every kind of error
        text = " ".join(str(error).split())[:160] or type(error).__name__
        words = ("truncated", "bytes, got", "end-of-stream", "cannot reshape", "short")
        if any(word in text.lower() for word in words):
            raise _cut(error) from None
        fix = "fetch or export it again, or remove it"
        raise VolumeError("the volume is damaged", text, fix) from None


def _read_folder(path: Path) -> Volume:
    from headstart_medical.dicom import read_series

    try:
        return read_series(path)
    except VolumeError:
        raise
    except OSError as error:
        raise VolumeError("the folder cannot be read", error.strerror or "") from None
    except Exception as error:  # its text may hold values of tags
        what = "a DICOM series that cannot be read"
        raise VolumeError(what, type(error).__name__, "export it again") from None


def read_images(paths: Sequence[Path], channels: int) -> Volume:
    """The images of a case, which are on one grid.

    Args:
        paths: One a channel, or a single file that has all channels behind (x, y, z).
        channels: How many there must be.

    Returns:
        float32 (channels, x, y, z); ``person`` is that of the first.

    Raises:
        VolumeError: A file cannot be read, has four dimensions where three are
            expected, or the channels are of different shape.
    """
    volumes = read_channels(paths, channels)
    first = volumes[0]
    for path, other in zip(paths[1:], volumes[1:], strict=False):
        if first.array.shape != other.array.shape:
            what = f"channels of different shape: {by(first.array.shape)} and "
            fix = "resample them onto one grid"
            raise VolumeError(f"{what}{by(other.array.shape)} ({path.name})", "", fix)
    array = np.stack([v.array.astype(np.float32, copy=False) for v in volumes])
    return Volume(array, first.affine, first.facts, first.person)


def read_channels(paths: Sequence[Path], channels: int) -> list[Volume]:
    """The images of a case, one a channel, each on its own grid.

    Raises:
        VolumeError: As :func:`read_images`, but for shapes that differ.
    """
    if len(paths) == 1 and channels > 1:
        volume = read_volume(paths[0])
        if volume.array.ndim != 4 or volume.array.shape[-1] != channels:
            count = volume.array.shape[3] if volume.array.ndim == 4 else 1
            what = f"{counted(count, 'channel')} where {channels} are expected"
            fix = "name in data.channels those alone that each case has"
            raise VolumeError(what, f"the shape is {by(volume.array.shape)}", fix)
        return [
            Volume(array, volume.affine, volume.facts, volume.person)
            for array in np.moveaxis(volume.array, -1, 0)
        ]
    if len(paths) != channels:
        what = f"{counted(len(paths), 'image')} where {channels} are expected"
        raise VolumeError(what)
    return [_three(read_volume(path), path) for path in paths]


def read_mask(
    paths: Sequence[Path],
    values: Sequence[int],
    *,
    above: float | None = None,
    ignore: int | None = None,
) -> Volume:
    """The label of a case as class indices.

    Args:
        paths: One map of all classes, or one file for each class but the first, the
            background; where those overlap, the later class counts.
        values: The value of each class in a map, in the order of the classes.
        above: Voxels greater than it belong to the class, in files of one class each.
        ignore: Value of voxels whose truth is not known.

    Returns:
        int16 (x, y, z): class indices, ``UNKNOWN`` where the truth is not known.

    Raises:
        VolumeError: A file cannot be read, or has values that are not in the list.
    """
    several = len(paths) > 1
    if (several or above is not None) and len(paths) != len(values) - 1:
        what = f"{counted(len(paths), 'label file')} for {len(values)} classes"
        raise VolumeError(what, "there is one for each class but the background")
    volumes = [_three(read_volume(path), path) for path in paths]
    first = volumes[0]
    if not several and above is None:
        mask = _classes(first.array, values, ignore)
        return Volume(mask, first.affine, first.facts)
    mask = np.zeros(first.array.shape, np.int16)
    unknown = np.zeros(first.array.shape, bool)
    for index, (path, volume) in enumerate(zip(paths, volumes, strict=True), start=1):
        if volume.array.shape != first.array.shape or not np.allclose(
            volume.affine, first.affine, atol=1e-3
        ):
            what = f"labels on different grids: {paths[0].name} and {path.name}"
            raise VolumeError(what, fix="export all classes on the image's grid")
        if ignore is not None:
            unknown |= volume.array == ignore
        if above is None:
            mask[_binary(volume.array, path, ignore)] = index
        else:
            mask[volume.array > above] = index
    mask[unknown] = UNKNOWN
    return Volume(mask, first.affine, first.facts)


def by(shape: Sequence[int]) -> str:
    """A shape for people: ``256 x 256 x 25``."""
    return " x ".join(map(str, shape))


def _classes(
    array: np.ndarray, values: Sequence[int], ignore: int | None
) -> np.ndarray:
    strange = -2
    mask = np.full(array.shape, strange, np.int16)
    if ignore is not None:
        mask[array == ignore] = UNKNOWN
    for index, value in enumerate(values):
        mask[array == value] = index
    if (others := array[mask == strange]).size:
        raise VolumeError(
            f"label values that are not in the list: {_listed(others)}",
            f"the list has {', '.join(map(str, values))}",
            "name every value with data.labels and data.values, say with data.above "
            "from where on a voxel counts, or which value is not known with "
            "data.ignore",
        )
    return mask


def _binary(array: np.ndarray, path: Path, ignore: int | None) -> np.ndarray:
    inside: np.ndarray = array != 0
    if ignore is not None:
        inside &= array != ignore
    found = array[inside]
    # NaN equals nothing, itself neither.
    if found.size and not found.min() == found.max():
        raise VolumeError(
            f"label values that are not in the list: {_listed(found)} ({path.name})",
            "a file of one class has 0 and one other value",
            "say with data.above from where on a voxel counts",
        )
    return inside


def _listed(values: np.ndarray) -> str:
    found = np.unique(values).tolist()
    more = f" and {len(found) - 8} more" if len(found) > 8 else ""
    return ", ".join(f"{value:g}" for value in found[:8]) + more


def _three(volume: Volume, path: Path) -> Volume:
    if volume.array.ndim == 3:
        return volume
    error = VolumeError(
        f"4D where 3D is expected: {by(volume.array.shape)}",
        f"it has {volume.array.shape[-1]} volumes (channels or times) in one file",
        "name all of them with data.channels, or give one volume a file",
    )
    error.path = path
    raise error


def _cut(error: Exception) -> VolumeError:
    text = " ".join(str(error).split())[:160]
    fix = "fetch or export it again, or remove it"
    return VolumeError("the file is cut short", text, fix)


def _checked(volume: Volume) -> Volume:
    """The volume, if its grid is one and its dimensions are three or four."""
    array = volume.array
    if array.ndim == 5 and array.shape[3] == 1:
        array = array[:, :, :, 0]  # ITK puts channels behind a time of one
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim not in (3, 4) or not array.size:
        what = f"no volume: {array.ndim} dimensions"
        raise VolumeError(what, f"its shape is {by(array.shape)}", "give (x, y, z)")
    if array.dtype.kind not in "iufb":
        what = f"values that are no grey: {array.dtype}"
        raise VolumeError(what, fix="export it as whole numbers or floats")
    affine = volume.affine
    # A voxel's volume next to that of a box: micrometres are small, and no fault.
    box = float(np.prod(volume.spacing))
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) <= (
        1e-6 * box
    ):
        fix = "write a header with spacing and orientation"
        raise VolumeError("its affine has no inverse", str(affine.tolist()), fix)
    return Volume(array, affine, volume.facts, volume.person)


def _read_nifti(path: Path) -> Volume:
    import nibabel

    image: Any = nibabel.load(path)
    _promise(image.shape)
    header = image.header
    units, _ = header.get_xyzt_units()
    affine = np.array(image.affine, np.float64)
    affine[:3] *= _MILLIMETRES.get(units, 1.0)
    oriented = bool(int(header["sform_code"]) or int(header["qform_code"]))
    array = np.asanyarray(image.dataobj)
    if array.dtype == np.float64:
        array = array.astype(np.float32)
    return Volume(array, affine, {"format": "NIfTI", "oriented": oriented})


_TO_RAS = {
    "right-anterior-superior": (1, 1, 1),
    "left-anterior-superior": (-1, 1, 1),
    "left-posterior-superior": (-1, -1, 1),
}
_TO_RAS |= {"ras": (1, 1, 1), "las": (-1, 1, 1), "lps": (-1, -1, 1)}


def _read_nrrd(path: Path) -> Volume:
    import nrrd

    with path.open("rb") as file:
        try:
            header = nrrd.read_header(file)
        except Exception as error:  # behind a colon it repeats what the header says
            why = str(error).partition(":")[0]
            fix = "fetch or export it again, or remove it"
            raise VolumeError("the header is damaged", why, fix) from None
        if "data file" in header or "datafile" in header:
            why = "its header names another file"
            raise VolumeError("the voxels are elsewhere", why, "save it as one file")
        _promise(header["sizes"])
        array = nrrd.read_data(header, file, str(path), index_order="F")
    rows = header.get("space directions")
    count = array.ndim
    if rows is None:
        spacings = np.asarray(header.get("spacings", np.ones(count)), np.float64)
        finite = [i for i in range(count) if np.isfinite(spacings[i])]
        kinds = header.get("kinds", ["???"] * count)
        # Channels come first, but for files that say so of another axis.
        spatial = [i for i in finite if kinds[i] in ("domain", "space")] or finite[-3:]
        directions = np.diag(np.abs(spacings[spatial]))
    else:
        # A list or vector axis has no direction: ``none`` in the file, NaN here.
        known = [row is not None and np.isfinite(row).all() for row in rows]
        spatial = [i for i, is_known in enumerate(known) if is_known]
        directions = np.array([rows[i] for i in spatial], np.float64)
    if len(spatial) != 3 or directions.shape != (3, 3):
        what = f"no volume: {len(spatial)} spatial axes"
        raise VolumeError(what, f"its shape is {by(array.shape)}", "give (x, y, z)")
    other = [axis for axis in range(count) if axis not in spatial]
    array = np.transpose(array, [*spatial, *other])
    space = str(header.get("space", "")).casefold()
    signs = np.array(_TO_RAS.get(space, (1, 1, 1)), np.float64)
    origin = np.asarray(header.get("space origin", np.zeros(3)), np.float64)
    affine = np.eye(4)
    affine[:3, :3] = directions.T * signs[:, None]
    affine[:3, 3] = np.where(np.isfinite(origin), origin, 0) * signs
    units = header.get("space units") or ["mm"]
    affine[:3] *= _MILLIMETRES.get(str(units[0]).strip('"'), 1.0)
    if array.dtype == np.float64:
        array = array.astype(np.float32)
    oriented = rows is not None and space in _TO_RAS
    return Volume(array, affine, {"format": "NRRD", "oriented": oriented})


def _promise(shape: Sequence[int]) -> None:
    count = 1
    for side in shape:
        count *= int(side)
    if count > MOST_VOXELS:
        what = f"too large: {by([int(side) for side in shape])} voxels"
        raise VolumeError(what, f"more than {MOST_VOXELS:,} are not read", "crop it")
