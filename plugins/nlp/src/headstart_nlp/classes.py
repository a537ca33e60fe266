"""Which classes there are, and whether each can be learned and measured."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np

from headstart.errors import Fault, nearest
from headstart_nlp.checks import Rows, names

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from headstart.data import Findings
    from headstart_nlp.settings import TableSettings


def check_classes(
    parts: dict[str, Rows], settings: TableSettings, findings: Findings
) -> tuple[dict[str, Rows], tuple[str, ...]]:
    """The classes, and the rows without those whose class cannot be learned.

    Args:
        parts: Rows by split; ``train`` holds everything that will be split at random.
            Without it ``labels`` are those of a trained model.
        settings: ``labels`` or ``bins`` name the classes, if the user does.
        findings: Takes the faults.
    """
    train = parts.get("train", Rows())
    given = settings.labels or tuple(
        sorted(settings.bins, key=settings.bins.__getitem__)
    )
    counts = Counter(n for target in train.targets for n in names(target))
    _warn_alike(counts, findings)
    if settings.kind == "single-label" and not given and _numeric(counts, len(train)):
        what = f"{len(counts)} different labels in {len(train)} rows, all numbers"
        fix = 'data.kind="regression", or data.bins for classes'
        findings.fatal.append(
            Fault(what, where=f"data.label={settings.label}", fix=fix)
        )
        return parts, tuple(counts)
    rare: set[str] = set()
    while new := {n for n, count in counts.items() if count < 2} - rare:
        rare |= new
        good = (t for t in train.targets if not rare & set(names(t)))
        counts = Counter(n for target in good for n in names(target))
        rare |= {n for t in train.targets for n in names(t)} - set(counts)
    labels = given or _ordered(counts)
    without = "data.labels does not have it"
    if "train" not in parts:
        without = "the run was trained without it"
    kept = {}
    for split, rows in parts.items():
        good_rows = []
        for i, target in enumerate(rows.targets):
            fault = None
            for n in names(target):
                if given and n not in given:
                    what, fix = f"unknown label: {n!r}", nearest(n, given)
                    fault = Fault(what, why=without, fix=fix)
                elif split == "train" and n in rare:
                    what = f"a class with fewer than 2 rows: {n!r}"
                    why = "one row cannot be both learned from and tested on"
                    fix = "add rows, merge it with another class, or remove the row"
                    fault = Fault(what, why=why, fix=fix)
                elif n not in labels:
                    what, fix = f"label not seen in train: {n!r}", nearest(n, labels)
                    fault = Fault(f"{what} ({split})", fix=fix)
            if fault is None:
                good_rows.append(i)
                continue
            table, number = rows.places[i]
            where = table.where(number)
            findings.sample(
                table.file, number, Fault(fault.what, where, fault.why, fault.fix)
            )
        kept[split] = rows.take(good_rows)
    if "train" in kept:
        _check_enough(kept["train"], labels, settings, findings)
    return kept, labels


def _check_enough(
    train: Rows, labels: tuple[str, ...], settings: TableSettings, findings: Findings
) -> None:
    found = {n for target in train.targets for n in names(target)}
    least = 2 if settings.kind == "single-label" else 1
    where = train.places[0][0].file if len(train) else ""
    if train.targets and len(found) < least:
        only = (
            f"every row has the label {min(found)!r}" if found else "no row has a label"
        )
        what = f"one class only: {only}" if least == 2 else only
        fix = "give rows of another class, or check data.label and data.bins"
        findings.fatal.append(Fault(what, where=where, fix=fix))
    elif missing := [label for label in labels if label not in found]:
        what = f"no row of class {', '.join(map(repr, missing))} in train"
        findings.warnings.append(
            Fault(what, where=where, why="it is never learned", fix="check data.labels")
        )


def _numeric(counts: Counter[str], total: int) -> bool:
    """Whether the classes look like a measured quantity."""
    if len(counts) < 20 or len(counts) < total / 3:
        return False
    try:
        return all(math.isfinite(float(label)) for label in counts)
    except ValueError:
        return False


def _ordered(labels: Iterable[str]) -> tuple[str, ...]:
    """By value when all are whole numbers, else by name."""
    found = list(labels)
    if all(re.fullmatch(r"-?\d{1,18}", label) for label in found):
        return tuple(sorted(found, key=lambda label: (int(label), label)))
    return tuple(sorted(found))


def _warn_alike(counts: Counter[str], findings: Findings) -> None:
    alike = defaultdict(list)
    for label in sorted(counts):
        alike[" ".join(label.casefold().split())].append(label)
    for labels in alike.values():
        if len(labels) > 1:
            shown = ", ".join(f"{label!r} ({counts[label]} rows)" for label in labels)
            what = f"labels that differ by case or space only: {shown}"
            why, fix = "each is a class of its own", "write them alike"
            findings.warnings.append(Fault(what, "data.label", why, fix))


def check_regression(rows: Rows, findings: Findings) -> None:
    """A target that never changes cannot be learned."""
    if len(rows) and len(set(rows.targets)) == 1:
        what = f"every row has the label {rows.targets[0]}"
        where, fix = rows.places[0][0].file, "check data.label"
        findings.fatal.append(Fault(what, where=where, fix=fix))


def task_of(train: Rows, kind: str, labels: tuple[str, ...]) -> dict[str, Any]:
    """What the head is built for: from the final training split."""
    if kind == "regression":
        values = np.array(train.targets, dtype=float)
        return {"kind": kind, "mean": float(values.mean()), "std": float(values.std())}
    counts = count(train, labels)
    return {"kind": kind, "labels": list(labels), "counts": list(counts.values())}


def count(rows: Rows, labels: Sequence[str]) -> dict[str, int]:
    """Rows of each class."""
    found = Counter(name for target in rows.targets for name in names(target))
    return {label: found[label] for label in labels}
