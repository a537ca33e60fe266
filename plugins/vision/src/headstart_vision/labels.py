"""Which classes there are, and whether each can be learned and measured."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from typing import TYPE_CHECKING

from headstart.errors import Fault, nearest
from headstart_vision.listings import separator_hint

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from headstart.data import Findings
    from headstart_vision.items import Item, Parts
    from headstart_vision.settings import ClassificationSettings


def names(item: Item) -> Sequence[str]:
    """The labels of an item."""
    if item.target is None:
        return ()
    return (item.target,) if isinstance(item.target, str) else item.target


def check_labels(
    parts: Parts, settings: ClassificationSettings, findings: Findings
) -> tuple[str, ...]:
    """The classes in order; what cannot be learned or measured becomes a fault.

    Args:
        parts: Items by split; ``train`` holds everything that will be split at random.
            Without it ``labels`` are those of a trained model.
        settings: ``labels`` names the classes, if the user does.
        findings: Takes the faults.
    """
    train = parts.get("train", [])
    counts = Counter(name for item in train for name in names(item))
    labels = settings.labels or ordered(counts)
    _warn_alike(counts, findings)
    for split, items in parts.items():
        for item in items:
            for name in names(item):
                fault = _fault(name, split, settings, labels, counts, bool(train))
                if fault:
                    what, why, fix = fault
                    findings.sample(*item.place, Fault(what, item.where, why, fix))
    if not train:
        return labels
    known = [name for name in labels if counts[name]]
    least = 2 if settings.kind == "single-label" else 1
    if len(known) < least:
        what = f"one class only: every image is {known[0]!r}" if known else "no labels"
        why = "there is nothing to tell apart" if known else "no image has a label"
        fix = "give images of another class; each class is a folder or a label"
        where = settings.path
        findings.fatal.append(Fault(what, where, why, fix))
    elif missing := [name for name in labels if not counts[name]]:
        what = f"no image of class {', '.join(map(repr, missing[:8]))} in train"
        fault_ = Fault(what, settings.path, "it is never learned", "check data.labels")
        findings.warnings.append(fault_)
    return labels


def _fault(
    name: str,
    split: str,
    settings: ClassificationSettings,
    labels: Sequence[str],
    counts: Counter[str],
    trains: bool,
) -> tuple[str, str, str] | None:
    """What is wrong with one label, why, and the fix."""
    if name not in labels:
        fix = separator_hint(name, labels) or nearest(name, labels)
        if settings.labels:
            why = "data.labels does not have it"
            why = why if trains else "the run was trained without it"
            return f"unknown label: {name!r}", why, fix
        return f"label not seen in train: {name!r} ({split})", "", fix
    if split == "train" and counts[name] < 2:
        why = "one image cannot be both learned from and tested on"
        fix = "add images, merge it with another class, or remove it"
        return f"a class with one image: {name!r}", why, fix
    return None


def ordered(labels: Iterable[str]) -> tuple[str, ...]:
    """By value when all are whole numbers, else by name."""
    found = list(labels)
    if all(re.fullmatch(r"-?\d{1,18}", label) for label in found):
        return tuple(sorted(found, key=lambda label: (int(label), label)))
    return tuple(sorted(found))


def rarest(items: Sequence[Item]) -> list[str]:
    """Of each item the label that is rarest, so that rare ones reach every split."""
    counts = Counter(name for item in items for name in names(item))
    return [
        min(names(item), key=lambda name: (counts[name], name), default="")
        for item in items
    ]


def _warn_alike(counts: Counter[str], findings: Findings) -> None:
    alike = defaultdict(list)
    for label in sorted(counts):
        alike[" ".join(label.casefold().split())].append(label)
    for group in alike.values():
        if len(group) > 1:
            listed = ", ".join(f"{label!r} ({counts[label]} images)" for label in group)
            what = f"labels that differ by case or space only: {listed}"
            fault = Fault(
                what, "data.label", "each is a class of its own", "write them alike"
            )
            findings.warnings.append(fault)
