"""What a user passes to ``predict``: volume files, DICOM folders, folders of cases."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from headstart.data import Findings
from headstart.errors import Fault
from headstart_medical.cases import Case, Look
from headstart_medical.checks import read_checked
from headstart_medical.dicom import is_dicom
from headstart_medical.folders import read_folder
from headstart_medical.paths import NO_SUCH, counted, shown
from headstart_medical.tables import test_cases

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headstart_medical.data_settings import CaseSettings


def input_cases(
    inputs: Sequence[Any], settings: CaseSettings
) -> tuple[list[Case], list[Fault]]:
    """Cases without labels from what users pass to ``predict``.

    Every file is read here once, beside the time that it is predicted for: a damaged
    one among many is told before the first prediction, with all others.

    Args:
        inputs: Paths: a volume file with all channels, a folder with a DICOM series, a
            folder of cases, whose labels are left aside, or a ``dataset.json``, of
            which the ``test`` list is taken.
        settings: Has the channels that the network was trained on.

    Returns:
        The cases that can be read, and what is wrong with the other inputs.
    """
    cases: list[Case] = []
    faults: list[Fault] = []
    for number, given in enumerate(inputs, start=1):
        if not isinstance(given, (str, Path)):
            what = f"a {type(given).__name__} is no path of a volume"
            faults.append(Fault(what, f"input {number}", fix="give a path"))
            continue
        cases += _of(Path(given).expanduser(), settings, faults)
    good = []
    for case in cases:
        count = len(settings.channels)
        volumes, found = read_checked(case, count, settings.tolerance)
        faults += found
        if not found:
            case.look = Look(volumes[0].array.shape, volumes[0].affine)
            good.append(case)
    if not good and not faults:
        fix = "give files or folders"
        faults.append(Fault("no volume to predict for", "predict", fix=fix))
    return good, faults


def _of(path: Path, settings: CaseSettings, faults: list[Fault]) -> list[Case]:
    if not path.exists():
        fix = "give the path of an existing one"
        faults.append(Fault(NO_SUCH, shown(path), fix=fix))
        return []
    series = path.is_dir() and any(
        is_dicom(file) for file in path.iterdir() if file.is_file()
    )
    listed = path.is_file() and path.suffix.casefold() == ".json"
    if series or (path.is_file() and not listed):
        return [Case(str(path), (path,), where=shown(path))]
    findings = Findings()
    if listed:
        found = test_cases(path, settings, findings)
    else:
        found = read_folder(path, settings, findings, labelled=False).cases
    told = [*findings.fatal]
    told += [fault for several in findings.samples.values() for fault in several]
    faults += told
    if not found and not told:
        fix = "give .nii, .nii.gz or .nrrd files, or folders with a DICOM series"
        what = "no volume in this list" if listed else "no volume in this folder"
        faults.append(Fault(what, shown(path), fix=fix))
    wanted = len(settings.channels)
    for case in found:
        if len(case.images) not in (1, wanted):
            count = counted(len(case.images), "volume")
            what = f"{count} where {counted(wanted, 'channel')} are expected"
            why = f"the channels are {', '.join(settings.channels)}"
            faults.append(Fault(what, case.where, why))
    good = [
        case
        for case in found
        if len(case.images) in (1, wanted) and case.place not in findings.samples
    ]
    above = path.parent if listed else path
    return [Case(f"{above}/{c.id}", c.images, where=c.where) for c in good]
