"""From the labels in files to the classes of the task.

Class numbers are looked up in the file's own list, so no base is assumed: the risk is
a file whose list and whose annotations count from different ends. Wherever the numbers
allow that reading, it is told; ``data.label_base`` is the user's word on it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING

from headstart.errors import Fault, nearest

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from headstart.data import Findings
    from headstart_vision.annotations import AnnotatedImage, Annotations
    from headstart_vision.settings import ObjectSettings


def resolve(
    parts: Mapping[str, Annotations], settings: ObjectSettings, findings: Findings
) -> tuple[str, ...]:
    """Turn the labels of all objects into class names, in place.

    Args:
        parts: Annotations by split; ``train`` holds all that will be split at random.
            Without it ``labels`` are those of a trained model.
        settings: ``labels`` and ``label_base`` are the user's word.
        findings: Takes the faults: a class that is not known is its image's.

    Returns:
        The classes in order, background not among them.
    """
    sources = list(parts.values())
    _warn_first_unused(sources, settings, findings)
    known = [_named(source, settings, findings) for source in sources]
    if findings.fatal:
        return ()
    train = parts.get("train")
    if train is None:
        for image in (image for source in sources for image in source.images):
            why = "the run was trained without it"
            _check_known(image, settings.labels, why, findings)
        return settings.labels
    names = list(known[list(parts).index("train")])
    if not train.numbers:
        names = sorted({str(o.label) for i in train.images for o in i.objects})
    labels = settings.labels or tuple(names)
    _check_names(labels, "data.labels" if settings.labels else train.where, findings)
    everywhere = {name for each in known for name in each}
    if settings.labels and everywhere:
        for label in (label for label in labels if label not in everywhere):
            what, fix = f"no file knows the class {label!r}", nearest(label, everywhere)
            findings.fatal.append(Fault(what, "data.labels", fix=fix))
    why = f"{'data.labels' if settings.labels else 'train'} does not have it"
    for source in sources:
        for image in source.images:
            _check_known(image, labels, why, findings)
    _check_enough(train, labels, findings)
    return labels


def _named(
    source: Annotations, settings: ObjectSettings, findings: Findings
) -> list[str]:
    """Replace a source's numbers by names; gives the names in the numbers' order."""
    if not source.numbers:
        return []
    used = {int(o.label) for image in source.images for o in image.objects}
    table = _table(source, used, settings, findings)
    if table is None:
        return []
    hint = _shift_hint(used, table)
    kind = "category id" if source.format == "coco" else "class number"
    shown = _listed(table)
    for image in source.images:
        for one in image.objects:
            number = int(one.label)
            if number in table:
                one.label = table[number]
                continue
            what = f"{kind} {number} is not in the list"
            where = f"{image.file}, {one.ref} ({image.path.name})"
            findings.sample(*image.place, Fault(what, where, f"it has {shown}", hint))
    return [table[number] for number in sorted(table)]


def _table(
    source: Annotations, used: set[int], settings: ObjectSettings, findings: Findings
) -> dict[int, str] | None:
    """What each number means; ``None`` where that cannot be told."""
    names, base = source.names, settings.label_base
    span = f"its objects have the numbers {min(used)} to {max(used)}" if used else ""
    if not names:
        if not settings.labels:
            what = "its classes have no names"
            fix = 'name them: data.labels=["cat", "dog"]'
            if source.format == "yolo":
                fix = "add a data.yaml with `names:` or a classes.txt, or " + fix
            findings.fatal.append(Fault(what, source.where, span, fix))
            return None
        if source.format == "coco" and not base:
            what = "it has no categories, so numbers may start at 0 or at 1"
            fix = 'data.label_base="1" (COCO\'s own way) or data.label_base="0"'
            findings.fatal.append(Fault(what, source.where, span, fix))
            return None
        return {int(base or 0) + i: name for i, name in enumerate(settings.labels)}
    if not base:
        return names
    first = min(names)
    if set(names) != set(range(first, first + len(names))):
        what = f"data.label_base is {base}, and the file's numbers have gaps"
        why = f"it has {_listed(names)}; they are read as they are listed"
        fix = 'remove data.label_base, or set data.label_base=""'
        findings.fatal.append(Fault(what, source.where, why, fix))
        return None
    moved = {int(base) + number - first: name for number, name in names.items()}
    if int(base) != first:
        what = f"class numbers are read from {base} on, as data.label_base says"
        why = f"its list starts at {first}; now they are {_listed(moved)}"
        findings.warnings.append(Fault(what, source.where, why))
    return moved


def _shift_hint(used: set[int], table: Mapping[int, str]) -> str:
    """What to do about numbers that are not listed."""
    first = min(table)
    for base in (first + 1, first - 1):
        moved = {number - first + base for number in table}
        if base in (0, 1) and used <= moved:
            return (
                f'if the objects\' numbers start at {base}: data.label_base="{base}"; '
                "else add the class to the list, or mend the annotation"
            )
    return "add the class to the list, or mend the annotation"


def _warn_first_unused(
    sources: Sequence[Annotations], settings: ObjectSettings, findings: Findings
) -> None:
    """Lists that start at 0 whose first class nobody has: maybe 1-based numbers."""
    if settings.label_base:
        return
    groups: dict[str, list[Annotations]] = defaultdict(list)
    for source in sources:
        if source.names and min(source.names) == 0:
            groups[str(source.names)].append(source)
    for group in groups.values():
        first = group[0]
        used = {o.label for s in group for i in s.images for o in i.objects}
        fix = 'data.label_base="0" if this is meant, "1" if objects count from 1'
        if used and 0 not in used and len(first.names) > 1:
            what = f"class number 0 ({first.names[0]!r}) is never used"
            why = "an off-by-one looks like this, too"
            findings.warnings.append(Fault(what, first.where, why, fix))
        elif first.format == "coco":
            what = f"category ids start at 0 ({first.names[0]!r})"
            why = "COCO's own start at 1; they are read as the file lists them"
            findings.warnings.append(Fault(what, first.where, why, fix))


def _check_names(labels: Iterable[str], where: str, findings: Findings) -> None:
    """Classes that cannot be: background, one name twice; and a warning on likes."""
    counts = Counter(labels)
    for label, count in counts.items():
        if count > 1:
            what, fix = f"two classes are called {label!r}", "give each its own name"
            findings.fatal.append(Fault(what, where, fix=fix))
        if label.strip("_- ").casefold() == "background":
            what = f"{label!r} is listed as a class"
            why = "all that is in no box is background; no object is"
            fix = "remove it from the list, or name the others in data.labels"
            findings.fatal.append(Fault(what, where, why, fix))
    alike = defaultdict(list)
    for label in counts:
        alike["".join(label.casefold().split())].append(label)
    for names in (names for names in alike.values() if len(names) > 1):
        what = "classes that differ by case or space only: "
        what += ", ".join(map(repr, names))
        why, fix = "each is a class of its own", "write them alike"
        findings.warnings.append(Fault(what, where, why, fix))


def _check_known(
    image: AnnotatedImage, labels: Sequence[str], why: str, findings: Findings
) -> None:
    known = set(labels)
    for one in image.objects:
        # A number is left where it could not be named, which is a fault already.
        if isinstance(one.label, int) or one.label in known:
            continue
        what = f"unknown class: {one.label!r}"
        where = f"{image.file}, {one.ref} ({image.path.name})"
        fault = Fault(what, where, why, nearest(one.label, labels))
        findings.sample(*image.place, fault)


def _check_enough(
    train: Annotations, labels: Sequence[str], findings: Findings
) -> None:
    counts = Counter(o.label for image in train.images for o in image.objects)
    if not counts:
        what, why = "no image has an object", "there is nothing to learn"
        fix = "check that these are the annotations of these images"
        findings.fatal.append(Fault(what, train.where, why, fix))
        return
    if missing := [label for label in labels if not counts[label]]:
        what = f"no object of class {', '.join(map(repr, missing[:10]))}"
        what += f" and {len(missing) - 10} more" if len(missing) > 10 else ""
        fix = "name the classes that are there in data.labels"
        findings.warnings.append(Fault(what, train.where, "it is never learned", fix))


def _listed(names: Mapping[int, str]) -> str:
    shown = [f"{number} {names[number]!r}" for number in sorted(names)]
    more = f" … {shown[-1]}" if len(shown) > 4 else ""
    return ", ".join(shown[: 3 if more else 4]) + more
