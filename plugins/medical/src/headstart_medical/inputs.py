"""What a user passes to ``predict``: volume files, DICOM folders, folders of cases."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from headstart.data import Findings
from headstart.errors import DataError, Fault
from headstart_medical.cases import Case, Look
from headstart_medical.checks import read_checked
from headstart_medical.dicom import is_dicom
from headstart_medical.folders import read_folder
from headstart_medical.paths import NO_SUCH, shown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headstart_medical.data_settings import CaseSettings


def input_cases(inputs: Sequence[Any], settings: CaseSettings) -> list[Case]:
    """Cases without labels from what users pass to ``predict``.

    Every file is read here once, beside the time that it is predicted for: a damaged
    one among many is told before the first prediction, with all others.

    Args:
        inputs: Paths: a volume file with all channels, a folder with a DICOM series, or
            a folder of cases, whose labels are left aside.
        settings: Has the channels that the network was trained on.

    Raises:
        DataError: Inputs that are no such volumes; names them all.
    """
    cases: list[Case] = []
    faults: list[Fault] = []
    for number, given in enumerate(inputs, start=1):
        if not isinstance(given, (str, Path)):
            what = f"a {type(given).__name__} is no path of a volume"
            faults.append(Fault(what, f"input {number}", fix="give a path"))
            continue
        cases += _of(Path(given).expanduser(), settings, faults)
    for case in cases:
        count = len(settings.channels)
        volumes, found = read_checked(case, count, settings.tolerance)
        faults += found
        if volumes:
            case.look = Look(volumes[0].array.shape, volumes[0].affine)
    if faults:
        raise DataError(*faults)
    if not cases:
        raise DataError("no volume to predict for", fix="give files or folders")
    return cases


def _of(path: Path, settings: CaseSettings, faults: list[Fault]) -> list[Case]:
    if not path.exists():
        fix = "give the path of an existing one"
        faults.append(Fault(NO_SUCH, shown(path), fix=fix))
        return []
    series = path.is_dir() and any(
        is_dicom(file) for file in path.iterdir() if file.is_file()
    )
    if series or path.is_file():
        return [Case(str(path), (path,), where=shown(path))]
    findings = Findings()
    found = read_folder(path, settings, findings, labelled=False).cases
    told = [*findings.fatal]
    told += [fault for several in findings.samples.values() for fault in several]
    faults += told
    if not found and not told:
        fix = "give .nii, .nii.gz or .nrrd files, or folders with a DICOM series"
        faults.append(Fault("no volume in this folder", shown(path), fix=fix))
    wanted = len(settings.channels)
    for case in found:
        if len(case.images) not in (1, wanted):
            what = f"{len(case.images)} volumes where {wanted} channels are expected"
            why = f"the channels are {', '.join(settings.channels)}"
            faults.append(Fault(what, case.where, why))
    good = [case for case in found if len(case.images) in (1, wanted)]
    return [Case(f"{path}/{c.id}", c.images, where=c.where) for c in good]
