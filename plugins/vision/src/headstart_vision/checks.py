"""What annotations must be: boxes and outlines inside images that exist as stated.

A fault of one annotation is noted for its image (``data.bad`` decides about that); what
concerns the data as a whole is fatal, or a warning.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headstart.errors import Fault
from headstart_vision import paths
from headstart_vision.annotations import rle
from headstart_vision.paths import shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from headstart.data import Findings
    from headstart_vision.annotations import AnnotatedImage, Annotations, Box, Object
    from headstart_vision.settings import ObjectSettings


LISTED = 5
"""Examples in one fault about many images."""


def check_image(
    image: AnnotatedImage,
    size: tuple[int, int],
    settings: ObjectSettings,
    findings: Findings,
) -> list[dict[str, Any]]:
    """The objects of an image, boxes cut at its border.

    Args:
        image: Its labels are names already.
        size: Height and width of the file, upright; (0, 0) if it cannot be opened.
        settings: ``outside`` and ``kind`` are read.
        findings: Takes the faults.

    Returns:
        JSON-ready objects: ``label``, ``box`` in pixels, ``crowd`` and, for instances,
        ``polygons`` in pixels or ``rle``.
    """
    if fault := _size_fault(image, size):
        findings.sample(*image.place, fault)
        size = (0, 0)
    found = []
    for one in image.objects:
        where = f"{image.file}, {one.ref} ({image.path.name})"
        box, polygons = _in_pixels(one, image, size)
        faults = _box_faults(one, box, image, size, settings.outside)
        kept: dict[str, Any] = {"label": one.label, "crowd": one.crowd}
        if settings.kind == "instances":
            faults += _mask_faults(one, polygons, size)
            if one.rle is not None:
                kept["rle"] = one.rle
            else:
                kept["polygons"] = polygons
        for what, why, fix in faults:
            findings.sample(*image.place, Fault(what, where, why, fix))
        height, width = size
        kept["box"] = [
            min(max(edge, 0.0), float(limit))
            for edge, limit in zip(box, (width, height) * 2, strict=True)
        ]
        found.append(kept)
    return found


def _size_fault(image: AnnotatedImage, size: tuple[int, int]) -> Fault | None:
    stated = image.size
    if stated is None or size in (stated, (0, 0)):
        return None
    what = f"the image's size is {_by(size)}, and {_by(stated)} is stated"
    where = f"{image.file}, image {image.id}: {image.path.name}"
    why = "boxes would be in the wrong place"
    fix = "give the image that was annotated, or annotate this one"
    if stated == size[::-1]:
        why = "width and height are exchanged: perhaps the annotations are of the image"
        why += " without its EXIF orientation, which viewers apply"
        fix = "write the image without EXIF orientation, or export the boxes turned"
    return Fault(what, where, why, fix)


def _in_pixels(
    one: Object, image: AnnotatedImage, size: tuple[int, int]
) -> tuple[Box, list[list[float]] | None]:
    if not image.relative:
        return one.box, one.polygons
    height, width = size
    x1, y1, x2, y2 = one.box
    box = (x1 * width, y1 * height, x2 * width, y2 * height)
    if one.polygons is None:
        return box, None
    sides = (width, height)
    polygons = [
        [value * sides[i % 2] for i, value in enumerate(polygon)]
        for polygon in one.polygons
    ]
    return box, polygons


def _box_faults(
    one: Object, box: Box, image: AnnotatedImage, size: tuple[int, int], outside: float
) -> list[tuple[str, str, str]]:
    """What, why and fix of what is wrong with a box."""
    if not all(map(math.isfinite, one.box)):
        fix = "remove it, or export it again"
        return [("a box with NaN or infinity", "", fix)]
    x1, y1, x2, y2 = one.box
    if x2 <= x1 or y2 <= y1:
        sides = f"{x2 - x1:g} wide, {y2 - y1:g} high"
        form = "a box is left, top, width, height in COCO's files"
        if image.file.endswith(".xml"):
            form = "from xmin to xmax and ymin to ymax, both inside"
        elif image.relative:
            form = "a line is class, centre x, centre y, width, height"
        return [(f"a box without area: {sides}", form, "mend or remove it")]
    if size == (0, 0):
        return []
    height, width = size
    x1, y1, x2, y2 = box
    beyond = max(-x1, -y1, x2 - width, y2 - height)
    gone = x1 >= width or y1 >= height or x2 <= 0 or y2 <= 0
    if beyond <= outside and not gone:
        return []
    what = f"a box outside its image: {x1:g}, {y1:g} to {x2:g}, {y2:g}"
    why = f"the image is {_by(size)}"
    fix = f"cut it; up to data.outside={outside:g} pixels are cut without asking"
    if image.relative and max(one.box) > 2:
        why = "numbers are shares of width and height, from 0 to 1"
        fix = "divide pixels by the image's width and height"
    return [(what, why, fix)]


def _mask_faults(
    one: Object, polygons: list[list[float]] | None, size: tuple[int, int]
) -> list[tuple[str, str, str]]:
    """What, why and fix of what is wrong with an object's outline or mask."""
    if one.rle is not None:
        fault = rle.fault(one.rle, size if size != (0, 0) else None)
        return [(fault, "", "export it again, or remove it")] if fault else []
    if polygons is None:
        why = 'data.kind is "instances"'
        return [("no mask", why, "give it an outline, or use vision/detect for boxes")]
    faults = []
    for polygon in polygons:
        if len(polygon) < 6:
            points = len(polygon) // 2
            what = f"a polygon with {points} point{'s' * (points != 1)}"
            faults.append((what, "an area has 3 or more", "mend or remove it"))
        elif len(polygon) % 2:
            what = f"a polygon with half a point: {len(polygon)} numbers"
            faults.append((what, "", "an x and a y for each point"))
        elif not all(map(math.isfinite, polygon)):
            faults.append(("a polygon with NaN or infinity", "", "export it again"))
    return faults


def no_masks(sources: Iterable[Annotations], findings: Findings) -> bool:
    """Whether there are boxes and not one outline: a fault where masks are learned."""
    held = [o for source in sources for i in source.images for o in i.objects]
    if not held or any(o.polygons is not None or o.rle is not None for o in held):
        return False
    what = f"none of {len(held)} objects has a mask"
    why = 'data.kind is "instances", and these annotations have boxes alone'
    fix = "use vision/detect for boxes, or give COCO or YOLO files with outlines"
    findings.fatal.append(Fault(what, "data.kind", why, fix))
    return True


def warn_unlisted(given: Iterable[str], findings: Findings) -> None:
    """Image files beside listed ones that no annotation file lists."""
    listed = {os.path.normpath(path) for path in given}
    strangers = []
    for folder in sorted({os.path.dirname(path) for path in listed}):
        if not os.path.isdir(folder):
            continue
        with os.scandir(folder) as entries:
            strangers += sorted(
                entry.path
                for entry in entries
                if Path(entry.name).suffix.lower() in paths.ENDINGS
                and os.path.join(folder, entry.name) not in listed
                and not entry.name.startswith(".")
            )
    if strangers:
        what = f"{len(strangers)} images are listed nowhere: {_some(strangers)}"
        why = "they are not used, not even as images without objects"
        fix = "annotate or list them, or take them away"
        where = shown(os.path.dirname(strangers[0]))
        findings.warnings.append(Fault(what, where, why, fix))


def warn_empty(empty: Sequence[str], total: int, findings: Findings) -> None:
    """Images without objects, by their paths."""
    if not empty:
        return
    what = f"{len(empty)} of {total} images have no object: {_some(empty)}"
    why = "they teach what is background"
    fix = "annotate them if they were forgotten"
    findings.warnings.append(Fault(what, "data.path", why, fix))


def _some(paths: Sequence[str]) -> str:
    names = ", ".join(os.path.basename(path) for path in paths[:LISTED])
    return names + (" …" if len(paths) > LISTED else "")


def _by(size: Sequence[int]) -> str:
    return f"{size[1]} x {size[0]}"
