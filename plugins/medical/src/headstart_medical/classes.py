"""What the classes of masks and of whole cases are called."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from headstart.errors import Fault, nearest
from headstart_medical import reading
from headstart_medical.reading import VolumeError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headstart.data import Findings
    from headstart_medical.cases import Case, Listing
    from headstart_medical.data_settings import CaseSettings

MOST_CLASSES = 127
"""Masks are kept as int8, with -1 for what is not known."""
SLICE_CLASSES = ("without", "with")
"""Of slices whose classes nobody names: without a labelled voxel, and with one."""


def name_classes(listing: Listing, settings: CaseSettings, findings: Findings) -> bool:
    """Whether the classes have names; if nobody said, a fault that tells the values.

    Slices that have the class or have it not need none.
    """
    if len(listing.labels) > MOST_CLASSES:
        what = f"{len(listing.labels)} classes where at most {MOST_CLASSES} have room"
        fix = "join some, or name those alone that you need: data.labels, data.values"
        findings.fatal.append(Fault(what, "data.labels", fix=fix))
        return False
    if len(listing.labels) > 1:
        return True
    if any(case.above is not None for case in listing.cases):
        listing.labels = {"background": 0, "foreground": 1}
        return True
    labelled = [case for case in listing.cases if case.labels][:3]
    if not listing.cases:
        return False  # which has been told
    if not labelled:
        what = "no case has a label"
        fix = "put labels beside the volumes: folders images and labels, or case_label"
        findings.fatal.append(Fault(what, settings.path, fix=fix))
        return False
    if settings.kind == "single-label":
        listing.labels = dict(zip(SLICE_CLASSES, (0, 1), strict=True))
        return True
    values: set[float] = set()
    for case in labelled:
        try:
            values |= set(np.unique(reading.read_volume(case.labels[0]).array).tolist())
        except VolumeError:
            continue
    shown_ = ", ".join(f"{value:g}" for value in sorted(values)[:12])
    why = f"label files have the values {shown_}" if values else ""
    fix = 'e.g. data.labels=["background","tumour"] for the values 0 and 1'
    findings.fatal.append(Fault("the classes have no names", "data.labels", why, fix))
    return False


def check_targets(listing: Listing, cases: Sequence[Case], findings: Findings) -> None:
    """Every case has a class that is in the list."""
    given = set(listing.labels)
    found = sorted({case.target for case in cases if case.target is not None})
    if not listing.labels:
        listing.labels = {name: index for index, name in enumerate(found)}
    for case in cases:
        if case.target is None:
            fix = "one folder for each class, or a column (data.label)"
            findings.sample(*case.place, Fault("no class", case.where, fix=fix))
        elif case.target not in listing.labels:
            what = f"unknown class: {case.target!r}"
            fix = nearest(case.target, given)
            why = "data.labels does not have it"
            findings.sample(*case.place, Fault(what, case.where, why, fix))
    if len(set(found) & set(listing.labels)) == 1 and cases:
        what = f"one class only: every case is {found[0]!r}"
        why = "there is nothing to tell apart"
        findings.fatal.append(Fault(what, "data.path", why, "give another class too"))
