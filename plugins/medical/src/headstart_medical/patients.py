"""Whose a case is, which cases belong together, and who is in two splits."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from headstart.errors import Fault

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from headstart.data import Findings, Split
    from headstart_medical.cases import Case
    from headstart_medical.data_settings import CaseSettings

BIDS = re.compile(r"(?:^|/)(sub-[A-Za-z0-9]+)")
"""A subject in the paths of the Brain Imaging Data Structure."""
ORDER: tuple[Split, ...] = ("test", "validation", "train")
"""A volume in two splits is left out of the later one: what is measured stays."""
EXAMPLES = 4


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
        fix = r'write one with a group, e.g. data.patient="(patient\\d+)"'
        findings.fatal.append(Fault(what, "data.patient", fix=fix))
    known = False
    for case in cases:
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
        if not case.patient:
            strangers.append(case)
    if strangers:
        what = f"{len(strangers)} of {len(cases)} cases have no patient"
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
    for index, case in enumerate(cases):
        for key in _keys(case):
            one, other = sorted((root(first.setdefault(key, index)), root(index)))
            parent[other] = one
    roots = [root(index) for index in range(len(cases))]
    place = {one: i for i, one in enumerate(dict.fromkeys(roots))}
    return np.array([place[one] for one in roots], dtype=np.int64)


def _keys(case: Case) -> list[tuple[str, str]]:
    keys = [("patient", case.patient)]
    if case.look is not None:
        keys += [("content", digest) for digest in case.look.digests]
        keys += [("person", case.look.person)] * bool(case.look.person)
    return keys


def check_leaks(cases: Sequence[Case], findings: Findings) -> None:
    """The same patient, or the same volume by content, in two given splits.

    Cases without a split are trained on where there is a test split: they count as
    training data. Patients are fatal; a volume is a fault of the case that is trained
    on. The same content twice on one side is a warning.
    """
    given = any(case.split is not None for case in cases)

    def split_of(case: Case) -> Split:
        return case.split or "train"

    if given:
        _check_shared(cases, split_of, lambda case: case.patient, findings)
        people = [case for case in cases if case.look and case.look.person]
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
        what = f"{len(twice)} volumes are there more than once"
        fix = "remove the copies, or leave them: they are kept in one split"
        findings.warnings.append(Fault(what, "data.path", _examples(twice), fix))


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
    what = f"{len(shared)} patients are in two splits{by}"
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
