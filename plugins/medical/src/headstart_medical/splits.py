"""Splits and folds by patient: seeded, in proportion to the classes, nobody torn apart.

Patients are put in order of their class, at random within it, and every so many-th one
is taken (systematic sampling), so that each split has its share of every class.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from headstart.errors import DataError, Fault
from headstart_medical.paths import counted
from headstart_medical.patients import NAME_THEM, by_headers, unite

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headstart.data import Findings, Split
    from headstart_medical.cases import Case
    from headstart_medical.data_settings import CaseSettings

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
Parts = dict["Split", "list[Case]"]


def split_cases(
    cases: Sequence[Case], settings: CaseSettings, seed: int, findings: Findings
) -> Parts:
    """Cases by split: where the data set puts them, else by chance, whole patients.

    With ``data.folds`` the patients without a split are cut into folds, of which
    ``data.fold`` is tested on; as many folds as patients leave one patient out. The
    rest gives ``data.validation_size`` for validation and is trained on.

    Args:
        cases: Those that were read; their patients, content and classes are looked at.
        settings: Sizes (of patients) and folds.
        seed: The only source of chance.
        findings: Takes a warning about classes that are measured and never learned.

    Cases that are all of the test split stay so, and there is nothing to train on.

    Raises:
        DataError: A split would be empty.
    """
    parts: Parts = {
        split: [case for case in cases if case.split == split] for split in SPLITS
    }
    pool = [case for case in cases if case.split is None]
    if settings.folds is not None and parts["test"]:
        what = "the data has a test split of its own"
        fix = "leave out data.folds, or give the cases without their splits"
        raise DataError(what, where="data.folds", fix=fix)
    if parts["test"] and not (pool or parts["train"] or parts["validation"]):
        # A pretrained model is measured on them; nothing is trained.
        return parts
    if not parts["test"]:
        # Files that say train and validation alone are split further.
        pool, parts["train"] = [*pool, *parts["train"]], []
        if settings.folds is not None:
            parts["test"], pool = _fold(pool, settings, seed)
        else:
            parts["test"], pool = _take(pool, "test", settings, seed)
    if not parts["validation"]:
        pool, parts["train"] = [*pool, *parts["train"]], []
        parts["validation"], pool = _take(pool, "validation", settings, seed)
    parts["train"] += pool
    if not parts["train"]:
        what, fix = "no case is left to train on", "give more patients"
        raise DataError(what, where="data.path", fix=fix)
    _warn_unseen(parts, settings, findings)
    return parts


def strata(cases: Sequence[Case]) -> list[str]:
    """The rarest class that each case has; what splits keep in proportion."""
    held = [_classes(case) for case in cases]
    counts = Counter(name for names in held for name in names)
    return [
        min(names, key=lambda name: (counts[name], name), default="") for names in held
    ]


def _classes(case: Case) -> list[str]:
    if case.target is not None:
        return [case.target]
    counts = case.look.counts if case.look is not None else ()
    return [str(index) for index, count in enumerate(counts) if index and count]


def _grouped(cases: Sequence[Case], generator: np.random.Generator) -> list[list[Case]]:
    """Whole patients: at random, then in order of their rarest class."""
    numbers = unite(cases)
    rare = np.array(strata(cases), dtype=object)
    common = Counter(rare.tolist())
    groups = [np.flatnonzero(numbers == n) for n in range(numbers.max(initial=-1) + 1)]
    shuffled = [groups[i] for i in generator.permutation(len(groups))]

    def stratum(rows: np.ndarray) -> tuple[int, str]:
        name = min(rare[rows].tolist(), key=lambda name: (common[name], name))
        return common[name], name

    ordered = sorted(shuffled, key=stratum)
    return [[cases[i] for i in rows.tolist()] for rows in ordered]


def _fold(
    pool: Sequence[Case], settings: CaseSettings, seed: int
) -> tuple[list[Case], list[Case]]:
    """The cases of the fold that is tested on, and the others."""
    folds = settings.folds or 0
    groups = _grouped(pool, np.random.default_rng([seed, 0]))
    if folds > len(groups):
        what = f"{folds} folds of {counted(len(groups), 'patient')}"
        why, fix = by_headers(pool), f"data.folds={len(groups)} leaves one patient out"
        if why or len(groups) == 1:
            fix = NAME_THEM if why else "give more patients"
        raise DataError(what, where="data.folds", why=why, fix=fix)
    return _apart(pool, [g for i, g in enumerate(groups) if i % folds == settings.fold])


def _take(
    pool: Sequence[Case], split: Split, settings: CaseSettings, seed: int
) -> tuple[list[Case], list[Case]]:
    """Cases of so many patients for a split, and those that stay."""
    stream = (0, 0) if split == "test" else (1, settings.fold)
    generator = np.random.default_rng([seed, *stream])
    groups = _grouped(pool, generator)
    key = f"data.{split}_size"
    size = getattr(settings, f"{split}_size")
    total = len(groups)
    count = int(size) if size >= 1 else max(1, round(size * total))
    if not size or count >= total:
        patients = counted(total, "patient")
        full = f"{size:g} of {patients} leaves nothing to train on"
        none = f"{size:g} of {patients} leaves the {split} split empty"
        fix = f"give more patients, or files for it: data.{split}_path"
        why = by_headers(pool)
        if why:
            fix = NAME_THEM
        elif len(pool) > total:
            why = (
                f"of {len(pool)} cases those of a patient count as one: by name, "
                "or with the same voxels"
            )
        raise DataError(full if size else none, where=key, why=why, fix=fix)
    start = generator.random()
    picked = {int((i + start) * total / count) for i in range(count)}
    return _apart(pool, [g for i, g in enumerate(groups) if i in picked])


def _apart(
    pool: Sequence[Case], groups: Sequence[Sequence[Case]]
) -> tuple[list[Case], list[Case]]:
    """The cases of some groups, and the others, both in their order."""
    chosen = {id(case) for group in groups for case in group}
    return (
        [case for case in pool if id(case) in chosen],
        [case for case in pool if id(case) not in chosen],
    )


def _warn_unseen(parts: Parts, settings: CaseSettings, findings: Findings) -> None:
    """Classes of other splits that no case of train has."""
    seen = {name for case in parts["train"] for name in _classes(case)}
    for split in ("validation", "test"):
        strange = {name for case in parts[split] for name in _classes(case)} - seen
        if not seen or not strange:
            continue
        names = [
            repr(settings.labels[int(name)])
            if name.isdigit() and int(name) < len(settings.labels)
            else repr(name)
            for name in sorted(strange)
        ]
        what = f"no case of train has {', '.join(names)}, and {split} does"
        why, fix = "it is measured and never learned", "give more patients"
        findings.warnings.append(Fault(what, "data.path", why, fix))
