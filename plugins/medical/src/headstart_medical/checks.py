"""What volumes and labels must be: every file read once, all faults told together."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from nibabel import orientations

from headstart.errors import Fault
from headstart_medical import reading
from headstart_medical.cases import Case, Listing, Look
from headstart_medical.classes import check_targets, name_classes
from headstart_medical.grids import to_ras
from headstart_medical.paths import counted, shown
from headstart_medical.patients import check_leaks
from headstart_medical.reading import Volume, VolumeError, by

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headstart.data import Findings, Split
    from headstart_medical.data_settings import CaseSettings

Wanted = Literal["mask", "target", ""]
AXES = "xyz"
_THREADS = 4
_turns: Any = orientations


def check_cases(
    listing: Listing,
    settings: CaseSettings,
    findings: Findings,
    wanted: Wanted | None = None,
    only: Sequence[Split] | None = None,
) -> None:
    """Read every file of every case, fill in ``look``, and tell what is wrong.

    Also patients and volumes in two splits: see
    :func:`headstart_medical.patients.check_leaks`.

    Args:
        listing: Its labels are filled in for targets, and its modality from DICOM.
        settings: Tolerance, ignored value, and whether empty labels are good.
        findings: Takes the faults of cases; ``data.bad`` decides about them.
        wanted: What a case must have: a label map, a class, or nothing; ``None`` goes
            by ``data.kind``. Label files of cases that need none are not looked at.
        only: The splits whose cases need it; ``None`` for all.
    """

    needed = _needed(settings) if wanted is None else wanted

    def wants(case: Case) -> Wanted:
        return needed if only is None or case.split in only else ""

    if needed == "target":
        check_targets(listing, [c for c in listing.cases if wants(c)], findings)
    if needed == "mask" and not name_classes(listing, settings, findings):
        return
    # A case that lacks a file or a channel has that fault alone.
    readable = [
        case
        for case in listing.cases
        if case.images and case.place not in findings.samples
    ]

    def look(case: Case) -> list[Fault]:
        return _look(case, listing, settings, wants(case) == "mask")

    flat: list[str] = []
    looked = _in_threads(look, readable)
    if shared := _shared(looked):
        findings.fatal.append(shared)
        return
    for case, faults in zip(readable, looked, strict=True):
        for fault in faults:
            if fault.what == _UNPLACED:
                flat.append(fault.where)
                continue
            findings.sample(*case.place, fault)
    if flat:
        why = f"{', '.join(flat[:4])}{' …' if len(flat) > 4 else ''}"
        fix = "check that its axes are right, left and up as you think"
        what = f"{_UNPLACED} of {counted(len(flat), 'file')}"
        found = Fault(what, "data.path", why, fix)
        findings.warnings.append(found)
    _check_modality(listing, findings)
    check_leaks(listing.cases, findings)


def check_patch(
    cases: Sequence[Case],
    patch: Sequence[int],
    spacing: Sequence[float] | None,
    settings: CaseSettings,
    findings: Findings,
) -> None:
    """Volumes that are smaller than the patch, a fault unless ``data.small`` is "pad".

    Args:
        cases: Those that were read.
        patch: Voxels along each axis, on the network's grid.
        spacing: Millimetres of that grid; ``None`` takes each case's own.
        settings: ``small`` decides.
        findings: Takes the faults, or one warning.
    """
    padded = []
    for case in cases:
        if case.look is None:
            continue
        shape, own = case.look.canonical
        target = own if spacing is None else spacing
        sides = [
            max(1, round(side * mm / new))
            for side, mm, new in zip(shape, own, target, strict=True)
        ]
        short = [
            f"{AXES[i]} {have} of {want}"
            for i, (have, want) in enumerate(zip(sides, patch, strict=True))
            if have < want
        ]
        if not short:
            continue
        what = f"a volume smaller than the patch: {', '.join(short)} voxels"
        if settings.small == "pad":
            padded.append(f"{case.id} ({', '.join(short)})")
            continue
        why = f"it has {by(sides)} on the network's grid, data.patch is {by(patch)}"
        fix = 'a smaller data.patch or data.spacing, or data.small="pad" to fill it up'
        findings.sample(*case.place, Fault(what, case.where, why, fix))
    if padded:
        are = "is" if len(padded) == 1 else "are"
        what = f"{counted(len(padded), 'volume')} {are} smaller than the patch"
        what += " and filled up"
        why = "; ".join(padded[:4]) + (" …" if len(padded) > 4 else "")
        findings.warnings.append(Fault(what, "data.patch", why))


_UNPLACED = "no orientation in the header"


def _look(
    case: Case, listing: Listing, settings: CaseSettings, wants_mask: bool
) -> list[Fault]:
    """Read a case's files; what is wrong with them."""
    volumes, faults = read_checked(case, len(listing.channels), settings.tolerance)
    if not volumes:
        return faults
    first = volumes[0]

    def blame(what: str, why: str = "", fix: str = "", file: str = "") -> None:
        where = f"{case.where} ({file})" if file else case.where
        faults.append(Fault(what, where, why, fix))

    if not all(volume.facts.get("oriented", True) for volume in volumes):
        faults.append(Fault(_UNPLACED, case.where))
    counts: tuple[int, ...] = ()
    if wants_mask and not case.labels:
        fix = "add its label, or leave it out"
        blame("no label", "the segmentation of every case is needed", fix)
    elif wants_mask:
        try:
            mask = reading.read_mask(
                case.labels,
                list(listing.labels.values()),
                above=case.above,
                ignore=settings.ignore,
            )
        except VolumeError as error:
            faults.append(_of_file(case, error, case.labels[0].name))
        else:
            for what, why, fix in mismatch(first, mask, settings.tolerance, "label"):
                blame(what, why, fix, case.labels[0].name)
            known = mask.array[mask.array >= 0]
            found = np.bincount(known, minlength=len(listing.labels))
            counts = tuple(int(count) for count in found)
            if not sum(counts[1:]) and not settings.empty:
                what = "an empty label: no voxel of any class but the first"
                why = f"every case should have {_or(list(listing.labels)[1:])}"
                fix = "label it, leave it out, or say data.empty=true"
                blame(what, why, fix, case.labels[0].name)
    case.look = Look(
        shape=first.array.shape,
        affine=first.affine,
        counts=counts,
        digests=tuple(map(digest, volumes)),
        person=first.person,
        modality=str(first.facts.get("modality", "")),
    )
    return faults


def read_checked(
    case: Case, channels: int, tolerance: float
) -> tuple[list[Volume], list[Fault]]:
    """The images of a case, none where one cannot be read, and what is wrong with them.

    ``tolerance`` is in voxels, as :func:`mismatch` has it.
    """
    try:
        volumes = reading.read_channels(case.images, channels)
    except VolumeError as error:
        return [], [_of_file(case, error)]
    faults = []
    for index, volume in enumerate(volumes):
        found = mismatch(volumes[0], volume, tolerance, "channels")
        if bad := int((~np.isfinite(volume.array)).sum()):
            share = bad / volume.array.size
            many = f"{counted(bad, 'voxel')} ({share:.1%})"
            what = f"values that are no numbers: {many}"
            fix = "fill them in, or leave the case out"
            found.append((what, "NaN or infinite", fix))
        elif volume.array.min() == volume.array.max():
            what = f"a constant volume: every voxel is {volume.array.flat[0]:g}"
            found.append((what, "", "export it again, or leave the case out"))
        file = case.images[min(index, len(case.images) - 1)].name
        where = case.where if file in case.where else f"{case.where} ({file})"
        faults += [Fault(what, where, why, fix) for what, why, fix in found]
    if len({volume.person for volume in volumes} - {""}) > 1:
        what, why = "channels of different patients", "by their DICOM headers"
        fix = "put each patient's volumes together"
        faults.append(Fault(what, case.where, why, fix))
    return volumes, faults


def mismatch(
    image: Volume, other: Volume, tolerance: float, what: str
) -> list[tuple[str, str, str]]:
    """How the grid of a label, or of another channel, differs from the image's.

    Args:
        image: The first image of the case.
        other: What should be on the same grid.
        tolerance: Voxels by which any corner may be elsewhere.
        what: ``label`` or ``channels``, for the text.

    Returns:
        What, why and fix of each difference; the shape alone, where that differs.
    """
    both = "image and label" if what == "label" else "channels"
    fix = "resample one onto the other's grid; if the voxels do match, copy the header"
    one, two = image.array.shape[:3], other.array.shape[:3]
    if one != two:
        return [(f"{both} of different shape: {by(one)} and {by(two)}", "", fix)]
    apart = np.array(
        [
            (other.affine - image.affine) @ [*corner, 1.0]
            for corner in itertools.product(*((0, side - 1) for side in one))
        ]
    )[:, :3]
    moved = float(np.linalg.norm(apart, axis=1).max())
    voxels = float(np.abs(apart @ np.linalg.inv(image.affine[:3, :3]).T).max())
    if voxels <= tolerance:
        return []
    limit = f"data.tolerance is {tolerance:g} voxels"
    far = f"{_plain(moved, 3)} mm ({_plain(voxels, 2)} voxels)"
    ours, theirs = image.spacing, other.spacing
    differ = [
        i
        for i in range(3)
        if abs(theirs[i] - ours[i]) * (one[i] - 1) > tolerance * ours[i]
    ]
    if differ:
        listed = ", ".join(
            f"{AXES[i]} {ours[i]:.5g} and {theirs[i]:.5g} mm "
            f"({abs(theirs[i] - ours[i]):.2g} mm apart)"
            for i in differ
        )
        why = f"up to {far} at a corner; {limit}"
        return [(f"{both} of different spacing: {listed}", why, fix)]
    axes = [_turns.aff2axcodes(volume.affine) for volume in (image, other)]
    names = ["".join(map(str, codes)) for codes in axes]
    why = limit
    if names[0] != names[1]:
        why = f"axes run to {names[0]} and {names[1]}; {limit}"
    return [(f"{both} of different affine: up to {far} apart", why, fix)]


def digest(volume: Volume) -> str:
    """sha256 of the voxels and their shape in RAS order, as float32.

    The same scan as ``.nii`` and ``.nii.gz``, or with its axes in another order, has
    the same one.
    """
    turned, _ = to_ras(volume.array, volume.affine)
    array = np.ascontiguousarray(turned, dtype=np.float32)
    found = hashlib.sha256(str(array.shape).encode())
    found.update(array.data)
    return found.hexdigest()


def _needed(settings: CaseSettings) -> Wanted:
    if settings.kind == "single-label":
        return "mask" if getattr(settings, "slices", False) else "target"
    return "mask" if settings.kind == "volume-segmentation" else ""


def _of_file(case: Case, error: VolumeError, file: str = "") -> Fault:
    where = shown(error.path) if error.path is not None else file
    inside = where in case.where or not where
    where = case.where if inside else f"{case.where}: {where}"
    return Fault(error.what, where, error.why, error.fix)


def _check_modality(listing: Listing, findings: Findings) -> None:
    known = Counter(
        case.look.modality for case in listing.cases if case.look and case.look.modality
    )
    if not known:
        return
    if not listing.modality:
        listing.modality = known.most_common(1)[0][0]
    others = {name: n for name, n in known.items() if name != listing.modality}
    if others:
        counted = ", ".join(f"{n} of {name}" for name, n in sorted(others.items()))
        what = f"DICOM headers speak of another modality than {listing.modality}"
        fix = "say which with data.modality, or take them apart"
        findings.warnings.append(Fault(what, "data.modality", counted, fix))


def _plain(number: float, digits: int) -> str:
    """Rounded to so many digits, whole from 100 on: ``3.5``, ``123``, ``1,234``."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.{digits}g}"


def _shared(looked: Sequence[Sequence[Fault]]) -> Fault | None:
    """What is wrong with every case alike, told once: the data is not at fault then,
    but how it is read."""
    kinds = {tuple(fault.what for fault in faults) for faults in looked}
    if len(looked) < 2 or len(kinds) > 1 or [*map(len, kinds)] != [1]:
        return None
    first = looked[0][0]
    if first.what == _UNPLACED:
        return None
    what = f"each of {len(looked)} cases: {first.what}"
    why = "; ".join(filter(None, [first.why, f"e.g. {first.where}"]))
    return Fault(what, "data.path", why, first.fix)


def _or(names: Sequence[str]) -> str:
    return " or ".join(names[:4]) + (" …" if len(names) > 4 else "")


def _in_threads(look: object, cases: Sequence[Case]) -> list[list[Fault]]:
    """In order; decompression does not hold Python's lock. A bar on a terminal."""
    from rich.progress import track

    from headstart.console import Screen

    screen = Screen(stderr=True)
    threads = min(_THREADS, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool:
        return list(
            track(
                pool.map(look, cases),  # type: ignore[arg-type]
                "checking volumes",
                len(cases),
                console=screen,
                transient=True,
                disable=not screen.is_terminal or len(cases) < 4,
            )
        )
