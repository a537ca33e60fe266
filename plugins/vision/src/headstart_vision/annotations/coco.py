"""COCO's JSON of instances: images, categories, boxes, polygons and RLE.

Coordinates are those of the image as a viewer shows it, after its EXIF orientation.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from headstart.errors import Fault
from headstart_vision import paths
from headstart_vision.annotations import AnnotatedImage, Annotations, Object

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from headstart.data import Findings

_ROOT_TRIES = 50
"""Images that are looked for in each folder to find which one has them."""


def read(
    file: Path, shown: str, roots: Sequence[Path], findings: Findings
) -> Annotations:
    """Read one file.

    Args:
        file: The JSON file.
        shown: The file as the user named it.
        roots: Folders that ``file_name`` may be relative to; that which has the most
            images is taken.
        findings: Takes the faults.

    Returns:
        Every image of the file, those without annotations too.
    """
    found = Annotations(shown, numbers=True, format="coco")
    content = _parsed(file, shown, findings)
    if content is None:
        return found
    found.names = _categories(content.get("categories") or [], shown, findings)
    entries = _Entries(found, findings)
    names = [
        entry["file_name"]
        for entry in content["images"][:_ROOT_TRIES]
        if isinstance(entry, dict) and isinstance(entry.get("file_name"), str)
    ]
    held = {root: sum((root / name).is_file() for name in names) for root in roots}
    # In a tie the likeliest, which is the first.
    root = max(roots, key=lambda place: held[place])
    if names and not held[root]:
        # One fault for a wrong folder, not one for each image.
        what = "none of its images is found"
        where = ", ".join(dict.fromkeys(map(paths.shown, roots[:4])))
        why = f"looked for {names[0]!r} in {where}"
        fix = "name their folder, relative to data.path, in data.images"
        findings.fatal.append(Fault(what, shown, why, fix))
        return found
    by_id = entries.images(content["images"], root)
    entries.annotations(content["annotations"], by_id)
    return found


def is_coco(file: Path) -> bool:
    """Whether a JSON file looks like annotations, by its first and last bytes."""
    with file.open("rb") as stream:
        head = stream.read(1 << 16)
        stream.seek(0, 2)
        stream.seek(max(0, stream.tell() - (1 << 16)))
        tail = stream.read()
    keys = (b'"images"', b'"annotations"')
    return any(key in part for key in keys for part in (head, tail))


def _parsed(file: Path, shown: str, findings: Findings) -> dict[str, Any] | None:
    try:
        content = json.loads(file.read_bytes())
    except UnicodeDecodeError as error:
        fault = Fault("this is not UTF-8 text", shown, str(error), "export it again")
        findings.fatal.append(fault)
        return None
    except (json.JSONDecodeError, RecursionError) as error:
        what = "this is not valid JSON"
        fix = "it may be cut off: export or download it again"
        findings.fatal.append(Fault(what, shown, str(error), fix))
        return None
    if isinstance(content, list):
        what = "a list where COCO's file of instances has an object"
        why = "it may be a file of results, which has detections and no images"
        fix = 'give the file with "images", "annotations" and "categories"'
        findings.fatal.append(Fault(what, shown, why, fix))
        return None
    keys = content if isinstance(content, dict) else {}
    lists = ("images", "annotations")
    bad = [key for key in lists if not isinstance(keys.get(key), list)]
    if isinstance(keys.get("categories", []), list) and not bad:
        return keys
    missing = " and ".join(f"{key!r}" for key in bad or ["categories"])
    what = f"no list {missing}: this is not COCO's JSON of instances"
    why = f"it has {', '.join(map(repr, list(keys)[:8])) or 'nothing'}"
    fix = 'give the file with "images", "annotations" and "categories"'
    findings.fatal.append(Fault(what, shown, why, fix))
    return None


def _categories(listed: list[Any], shown: str, findings: Findings) -> dict[int, str]:
    names: dict[int, str] = {}
    for position, category in enumerate(listed):
        values = category if isinstance(category, dict) else {}
        number, name = values.get("id"), values.get("name")
        where = f"{shown}, categories[{position}]"
        if type(number) is not int or not isinstance(name, str) or not name.strip():
            fix = 'e.g. {"id": 1, "name": "cat"}'
            what = "a category without a whole number as id, or without a name"
            findings.fatal.append(Fault(what, where, fix=fix))
        elif number in names:
            what = f"duplicate category id: {number}"
            why = f"{names[number]!r} has it already"
            fix = "give each category its own id"
            findings.fatal.append(Fault(what, where, why, fix))
        else:
            names[number] = name.strip()
    return names


class _Entries:
    """Fills an :class:`Annotations` from a file's lists."""

    def __init__(self, found: Annotations, findings: Findings) -> None:
        self.found = found
        self.findings = findings

    def images(self, listed: list[Any], root: Path) -> dict[Any, int]:
        """Read the images; gives the position of each id."""
        by_id: dict[Any, int] = {}
        named: dict[str, Any] = {}
        whole = all(isinstance(e, dict) and type(e.get("id")) is int for e in listed)
        for position, entry in enumerate(listed):
            values = entry if isinstance(entry, dict) else {}
            number, name = values.get("id"), values.get("file_name")
            where = f"{self.found.where}, images[{position}]"
            if type(number) not in (int, str) or not isinstance(name, str) or not name:
                what = "an image without id or file_name"
                fix = "give it both, or remove it with its annotations"
                self.found.stray(self.findings, Fault(what, where, fix=fix))
                continue
            where = f"{self.found.where}, image {number}"
            row = number if whole and isinstance(number, int) else position + 1
            if number in by_id:
                first = self.found.images[by_id[number]]
                what = f"duplicate image id: {number}"
                why = f"{first.path.name!r} has it already, and {name!r} again"
                fix = "give each image its own id, in its annotations too"
                # Whose annotations these are cannot be told: both are bad.
                self.findings.sample(*first.place, Fault(what, where, why, fix))
                continue
            if name in named:
                what = f"duplicate file name: {name!r}"
                why = f"images {named[name]} and {number} have it"
                fix = "list each file once, with all its annotations"
                fault = Fault(what, where, why, fix)
                # Each has a part of the objects: both are bad.
                for place in (
                    self.found.images[by_id[named[name]]].place,
                    (self.found.where, row),
                ):
                    self.findings.sample(*place, fault)
            named.setdefault(name, number)
            by_id[number] = len(self.found.images)
            self.found.images.append(
                AnnotatedImage(
                    path=root / name,
                    id=str(number),
                    file=self.found.where,
                    row=row,
                    size=_size(values),
                )
            )
        return by_id

    def annotations(self, listed: list[Any], by_id: dict[Any, int]) -> None:
        seen: set[Any] = set()
        for position, entry in enumerate(listed):
            values = entry if isinstance(entry, dict) else {}
            number = values.get("id")
            ref = f"annotations[{position}]"
            if type(number) in (int, str):
                ref = f"annotation {number}"
            where = f"{self.found.where}, {ref}"
            owner = values.get("image_id")
            index = by_id.get(owner) if type(owner) in (int, str) else None
            if index is None:
                what = f"an annotation of no listed image: image_id {owner!r}"[:80]
                fix = "list its image, or remove the annotation"
                self.found.stray(self.findings, Fault(what, where, fix=fix))
                continue
            image = self.found.images[index]
            if number is not None and ref[-1] != "]":
                if number in seen:
                    what = f"duplicate annotation id: {number}"
                    fix = "give each its own id; remove what is there twice"
                    self.findings.sample(*image.place, Fault(what, where, fix=fix))
                seen.add(number)
            fault = _fault(values)
            if fault:
                what, fix = fault
                where = f"{where} ({image.path.name})"
                self.findings.sample(*image.place, Fault(what, where, fix=fix))
                continue
            image.objects.append(_object(values, ref))


def _fault(values: dict[str, Any]) -> tuple[str, str] | None:
    """What keeps an entry from being an object, and the fix."""
    box = values.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(map(_number, box)):
        return (
            f"a box that is not 4 numbers: {box!r}"[:80],
            "bbox is [left, top, width, height] in pixels",
        )
    label = values.get("category_id")
    if type(label) is not int:
        return f"no category id: {label!r}"[:80], "give it a whole number"
    outline = values.get("segmentation")
    if not isinstance(outline, (list, dict, type(None))):
        return (
            f"a segmentation that is neither polygons nor an RLE: {outline!r}"[:80],
            "polygons are [[x, y, x, y, …], …]",
        )
    if isinstance(outline, list):
        for polygon in outline:
            if not isinstance(polygon, list) or not all(map(_number, polygon)):
                return (
                    f"a polygon that is not a list of numbers: {polygon!r}"[:80],
                    "polygons are [[x, y, x, y, …], …]",
                )
    return None


def _object(values: dict[str, Any], ref: str) -> Object:
    left, top, width, height = map(float, values["bbox"])
    outline = values.get("segmentation")
    return Object(
        label=values["category_id"],
        box=(left, top, left + width, top + height),
        ref=ref,
        crowd=bool(values.get("iscrowd", 0)),
        polygons=outline if isinstance(outline, list) and outline else None,
        rle=outline if isinstance(outline, dict) else None,
    )


def _number(value: Any) -> bool:
    """A float, or an integer that is not too large for one."""
    return type(value) is float or (type(value) is int and abs(value) < 1 << 53)


def _size(values: dict[str, Any]) -> tuple[int, int] | None:
    height, width = values.get("height"), values.get("width")
    if type(height) is int and type(width) is int:
        return height, width
    return None
