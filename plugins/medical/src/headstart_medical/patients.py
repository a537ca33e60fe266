"""Whose a case is, which cases belong together, and who is in two splits."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np

from headstart.errors import Fault
from headstart_medical.paths import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Sequence

    from headstart.data import Findings, Split
    from headstart_medical.cases import Case
    from headstart_medical.data_settings import CaseSettings

BIDS = re.compile(r"(?:^|/)(sub-[A-Za-z0-9]+)")
"""A subject in the paths of the Brain Imaging Data Structure."""
ORDER: tuple[Split, ...] = ("test", "validation", "train")
"""A volume in two splits is left out of the later one: what is measured stays."""
EXAMPLES = 4
NAME_THEM = (
    "if an anonymiser gave everybody one id, data.patient names them otherwise, "
    "e.g. 'data.patient=(case[0-9]+)', or a column `patient` of a CSV file"
)


def name_patients(
    cases: Sequence[Case], settings: CaseSettings, findings: Findings
) -> bool:
    """Fill in whose each case is, where its listing does not say.

    Returns:
        Whether anybody said so; else each case counts as a patient.
    """
    pattern = settings.patient
    if "(" in pattern:
        return _by_pattern(cases, pattern, findings)
    if pattern and not any(case.patient for case in cases):
        what = f"{pattern!r} is no pattern, and there are no columns"
        fix = "write one with a group, e.g. 'data.patient=(case[0-9]+)'"
        findings.fatal.append(Fault(what, "data.patient", fix=fix))
    known = False
    for case in cases:
        case.told = bool(case.patient)
        if not case.patient and (subject := BIDS.search(case.id)):
            case.patient = subject[1]
        known = known or bool(case.patient)
        case.patient = case.patient or case.id
    return known


def _by_pattern(cases: Sequence[Case], pattern: str, findings: Findings) -> bool:
    try:
        search = re.compile(pattern).search
        groups = re.compile(pattern).groups
    except re.error as error:
        what = f"{pattern!r} is no regular expression"
        findings.fatal.append(Fault(what, "data.patient", str(error)))
        return False
    strangers = []
    for case in cases:
        found = search(case.id) if groups else None
        case.patient = (found.group(1) or "") if found else ""
        case.told = bool(case.patient)
        if not case.patient:
            strangers.append(case)
    if strangers:
        what = f"no patient in {len(strangers)} of {counted(len(cases), 'case')}"
        why = f"{pattern!r} finds none in {strangers[0].id!r}"
        fix = "write a pattern whose first group names the patient in every case's id"
        findings.fatal.append(Fault(what, "data.patient", why, fix))
    return True


def unite(cases: Sequence[Case]) -> np.ndarray:
    """Which cases stay on one side: those of a patient, and those of equal content.

    Returns:
        int64, the number of each case's group, from 0 in order of appearance.
    """
    parent = list(range(len(cases)))

    def root(index: int) -> int:
        while parent[index] != index:
            index = parent[index]
        return index

    first: dict[tuple[str, str], int] = {}
    people = _people(cases)
    for index, case in enumerate(cases):
        for key in _keys(case, people):
            one, other = sorted((root(first.setdefault(key, index)), root(index)))
            parent[other] = one
    roots = [root(index) for index in range(len(cases))]
    place = {one: i for i, one in enumerate(dict.fromkeys(roots))}
    return np.array([place[one] for one in roots], dtype=np.int64)


def join(cases: Sequence[Case]) -> None:
    """Give cases that :func:`unite` keeps together one patient's name."""
    names: dict[int, str] = {}
    for case, number in zip(cases, unite(cases).tolist(), strict=True):
        case.patient = names.setdefault(number, case.patient)


def _keys(case: Case, people: Container[str]) -> list[tuple[str, str]]:
    keys = [("patient", case.patient)]
    if case.look is not None:
        keys += [("content", digest) for digest in case.look.digests]
        keys += [("person", case.look.person)] * (case.look.person in people)
    return keys


def _people(cases: Iterable[Case]) -> set[str]:
    """Patient ids of headers, as hashes, that count: nobody says otherwise of a case.

    Where all cases of an id are told apart, an anonymiser may have given it to all.
    """
    found = {case.look.person for case in cases if case.look and not case.told}
    return found - {""}


def by_headers(cases: Sequence[Case]) -> str:
    """Which cases are one patient by their DICOM headers alone; empty for none."""
    known = _people(cases)
    united = [found for id_, found in _differing(cases).items() if id_ in known]
    if not united:
        return ""
    one = "one patient" if len(united) == 1 else f"{len(united)} patients"
    return f"{sum(map(len, united))} cases are {one} by their DICOM headers"


def _differing(cases: Iterable[Case]) -> dict[str, list[Case]]:
    """Cases by the patient id of their headers, where they are several patients'."""
    several: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        if case.look and case.look.person:
            several[case.look.person].append(case)
    return {k: v for k, v in several.items() if len({c.patient for c in v}) > 1}


def check_leaks(cases: Sequence[Case], findings: Findings) -> None:
    """The same patient, or the same volume by content, in two given splits.

    Cases without a split are trained on where there is a test split: they count as
    training data. Patients are fatal; a volume is a fault of the case that is trained
    on. The same content twice on one side is a warning, and so is where names of
    patients and their ids in DICOM headers do not agree.
    """
    given = any(case.split is not None for case in cases)

    def split_of(case: Case) -> Split:
        return case.split or "train"

    if given:
        _check_shared(cases, split_of, lambda case: case.patient, findings)
        known = _people(cases)
        people = [case for case in cases if case.look and case.look.person in known]
        _check_shared(people, split_of, lambda case: "", findings)
    owner: dict[str, Case] = {}
    twice: list[str] = []
    for case in sorted(cases, key=lambda case: ORDER.index(split_of(case))):
        for digest in case.look.digests if case.look is not None else ():
            first = owner.setdefault(digest, case)
            if first is case:
                continue
            if split_of(first) == split_of(case):
                twice.append(f"{first.where} and {case.where}")
                continue
            here, there = split_of(case), split_of(first)
            what = f"the same volume in {here} and {there}"
            why = f"{first.where} has the same voxels"
            fix = f"remove it from one of them, best from {here}"
            findings.sample(*case.place, Fault(what, case.where, why, fix))
    if twice:
        is_ = "is" if len(twice) == 1 else "are"
        what = f"{counted(len(twice), 'volume')} {is_} there more than once"
        fix = "remove the copies, or leave them: they are kept in one split"
        findings.warnings.append(Fault(what, "data.path", _examples(twice), fix))
    if what := by_headers(cases):
        why = "they have the same patient id, and are kept in one split"
        findings.warnings.append(Fault(what, "data.patient", why, NAME_THEM))
    known = _people(cases)
    for id_, found in _differing(cases).items():
        if id_ not in known:
            people = sorted({case.patient for case in found})
            what = (
                f"{len(found)} cases of one DICOM patient id are {len(people)} patients"
            )
            why = f"they are called {_examples(people)}, which goes before the headers"
            fix = (
                "correct a name that is misspelt; fine if an anonymiser gave all one id"
            )
            findings.warnings.append(Fault(what, "data.patient", why, fix))


def _check_shared(
    cases: Iterable[Case],
    split_of: Callable[[Case], Split],
    name_of: Callable[[Case], str],
    findings: Findings,
) -> None:
    """Fatal: patients on two sides. Without a name they are known by their headers."""
    owner: dict[str, Case] = {}
    shared: dict[str, str] = {}
    headers = False
    for case in cases:
        name = name_of(case)
        key = name or (case.look.person if case.look else "")
        first = owner.setdefault(key, case)
        if split_of(first) != split_of(case) and key not in shared:
            headers = not name
            places = f"{first.where} ({split_of(first)}), {case.where} "
            shared[key] = f"{name}: {places}" if name else places
            shared[key] += f"({split_of(case)})"
    if not shared:
        return
    by = " by the patient id of their DICOM headers" if headers else ""
    are = "is" if len(shared) == 1 else "are"
    what = f"{counted(len(shared), 'patient')} {are} in two splits{by}"
    fix = (
        "move each patient to one split, or give no validation_path and test_path: "
        "random splits keep patients whole; of different people whose names are alike "
        "say with data.patient how they are told apart"
    )
    why = _examples(list(shared.values()))
    findings.fatal.append(Fault(what, "data.patient", why, fix))


def _examples(texts: list[str]) -> str:
    more = f"; and {len(texts) - EXAMPLES} more" if len(texts) > EXAMPLES else ""
    return "; ".join(texts[:EXAMPLES]) + more
