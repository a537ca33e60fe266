"""YOLO's text files: one an image, a line an object, shares of the image's size.

A line is ``class x y width height`` with the box's centre, or ``class x y x y x y …``
with an outline of three points or more. Class numbers start at 0. An image whose file
is empty or missing has no objects.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from headstart.errors import Fault
from headstart_vision.annotations import AnnotatedImage, Annotations, Object

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from headstart.data import Findings

_LARGEST = 1 << 20
"""Bytes of a ``data.yaml``; one has a few hundred."""
_SPLITS = {"train": "train", "val": "validation", "valid": "validation", "test": "test"}


@dataclass
class Described:
    """What a ``data.yaml`` or ``classes.txt`` says.

    Attributes:
        names: Class names by number.
        splits: Folders, or text files with an image a line, by split.
    """

    names: dict[int, str] = field(default_factory=dict)
    splits: dict[str, list[Path]] = field(default_factory=dict)


def read(
    images: Sequence[Path],
    labels: Mapping[Path, tuple[Path, str]],
    where: str,
    findings: Findings,
) -> Annotations:
    """Read the label files of some images.

    Args:
        images: Image files.
        labels: Label file of each image that has one, and the name that the user
            knows it by.
        where: The folder as the user named it.
        findings: Takes the faults.
    """
    found = Annotations(where, numbers=True, format="yolo")
    for path in images:
        file, shown = labels.get(path, (None, ""))
        image = AnnotatedImage(path=path, id=path.stem, file=shown, relative=True)
        if file is not None:
            for fault in _fill(image, file):
                findings.sample(*image.place, fault)
        found.images.append(image)
    return found


def _fill(image: AnnotatedImage, file: Path) -> list[Fault]:
    faults = []
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        return [Fault("this is not UTF-8 text", image.file, str(error))]
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            image.objects.append(_object(line, f"line {number}"))
        except ValueError as error:
            what, fix = error.args
            faults.append(Fault(what, f"{image.file}, line {number}", fix=fix))
    return faults


def _object(line: str, ref: str) -> Object:
    """An object; ``ValueError(what, fix)`` where the line is none."""
    form = "class x y width height"
    words = line.split()
    try:
        label, *values = map(float, words)
    except ValueError:
        what = f"not numbers: {line.strip()[:60]!r}"
        raise ValueError(what, f"write {form!r}, separated by spaces") from None
    if not label.is_integer():
        what = f"the class is no whole number: {words[0]!r}"
        raise ValueError(what, f"write {form!r}")
    if len(values) == 5:
        what = f"6 numbers, a box has 5: {line.strip()[:60]!r}"
        fix = "remove the last one if it is the score of a prediction"
        raise ValueError(what, fix)
    if len(values) == 4:
        x, y, width, height = values
        box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        return Object(int(label), box, ref)
    if len(values) < 4:
        what = f"too few numbers: {len(words)}, a box has 5"
        raise ValueError(what, f"write {form!r}")
    if len(values) % 2:
        what = f"an outline with half a point: {len(values)} numbers"
        raise ValueError(what, "an x and a y for each point")
    xs, ys = values[::2], values[1::2]
    box = (min(xs), min(ys), max(xs), max(ys))
    return Object(int(label), box, ref, polygons=[values])


def read_names(file: Path, shown: str, findings: Findings) -> Described:
    """Read ``data.yaml``, or a text file with a name a line."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        findings.fatal.append(Fault("this is not UTF-8 text", shown, str(error)))
        return Described()
    if file.suffix.lower() not in (".yaml", ".yml"):
        lines = [line.strip() for line in text.splitlines()]
        while lines and not lines[-1]:
            lines.pop()
        return Described(dict(enumerate(lines)))
    return _described(text, file, shown, findings)


def _described(text: str, file: Path, shown: str, findings: Findings) -> Described:
    import yaml

    try:
        if len(text) > _LARGEST:
            raise yaml.YAMLError(f"{len(text)} characters are no list of classes")
        content = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        why = " ".join(str(error).split())[:200]
        findings.fatal.append(Fault("this is not valid YAML", shown, why))
        return Described()
    values: dict[str, Any] = content if isinstance(content, dict) else {}
    if "kpt_shape" in values:
        what = "key points (kpt_shape) are not read"
        fix = "export boxes or outlines"
        findings.fatal.append(Fault(what, shown, fix=fix))
    names = _names(values.get("names"))
    if names is None:
        what = "'names' is no list of class names"
        fix = "e.g. names: [cat, dog]"
        findings.fatal.append(Fault(what, shown, fix=fix))
        names = {}
    count = values.get("nc")
    if names and isinstance(count, int) and count != len(names):
        what = f"nc is {count}, and there are {len(names)} names"
        why = "it cannot be told which class a number means"
        findings.fatal.append(Fault(what, shown, why, "mend the one that is wrong"))
    root = file.parent / str(values.get("path") or "")
    splits = {}
    for key, split in _SPLITS.items():
        given = values.get(key)
        places = given if isinstance(given, list) else [given] if given else []
        paths = [_place(str(place), root, file.parent) for place in places]
        if paths:
            splits[split] = paths
    return Described(names, splits)


def _names(given: Any) -> dict[int, str] | None:
    if given is None:
        return {}
    if isinstance(given, list):
        given = dict(enumerate(given))
    if not isinstance(given, dict) or not all(type(k) is int for k in given):
        return None
    if not all(isinstance(name, (str, int, float)) for name in given.values()):
        return None
    return {number: str(given[number]).strip() for number in sorted(given)}


def _place(text: str, root: Path, folder: Path) -> Path:
    """Where a split is, by the first reading that exists.

    Files are written relative to ``path``, to the file itself, or, by some exports,
    one folder too high.
    """
    inner = text
    while inner.startswith("../"):
        inner = inner[3:]
    places = [root / text, folder / text, root / inner, folder / inner]
    return next((place for place in places if place.exists()), places[0])
