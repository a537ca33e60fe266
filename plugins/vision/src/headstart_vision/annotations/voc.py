"""Pascal VOC's XML: one file an image, boxes 1-based with both ends inside.

A box ``xmin..xmax`` of pixels counted from 1 becomes ``xmin - 1, xmax`` as edges
counted from 0. Objects that are marked ``difficult`` become ``crowd``: VOC's own
evaluation leaves them out, and so does COCO's. Tools that count from 0 give a box one
pixel too far to the left; ``data.outside`` lets that pass.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from headstart.errors import Fault
from headstart_vision.annotations import AnnotatedImage, Annotations, Object

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from headstart.data import Findings

_LINE = "line"
"""Attribute that holds the line of an element."""
_LARGEST = 16 << 20
"""Bytes; the XML of an image has a few thousand."""
_EDGES = ("xmin", "ymin", "xmax", "ymax")


class _RefusedError(ValueError):
    """What a safe reader does not read."""


def read(
    files: Sequence[tuple[Path, str]],
    images: Mapping[str, Path],
    where: str,
    findings: Findings,
) -> Annotations:
    """Read the files of a folder.

    Args:
        files: XML files, each with the name that the user knows it by.
        images: Image files by their name without suffix.
        where: The folder as the user named it.
        findings: Takes the faults.
    """
    found = Annotations(where, format="voc")
    for file, shown in files:
        image = AnnotatedImage(
            path=images.get(file.stem, file.with_suffix(".jpg")),
            id=file.stem,
            file=shown,
        )
        for fault in _fill(image, file, images):
            findings.sample(*image.place, fault)
        found.images.append(image)
    return found


def _fill(image: AnnotatedImage, file: Path, images: Mapping[str, Path]) -> list[Fault]:
    """Put size and objects into an image; gives what is wrong."""
    try:
        root = parse(file.read_bytes())
    except (expat.ExpatError, _RefusedError, ValueError) as error:
        fix = "export it again"
        return [Fault("this is not valid XML", image.file, str(error), fix)]
    if root.tag != "annotation":
        what = f"the outermost element is <{root.tag}>, not <annotation>"
        return [Fault(what, image.file, fix="give Pascal VOC's XML")]
    faults = []
    stated = (root.findtext("filename") or "").strip()
    # Tools on Windows write whole paths.
    name = stated.replace("\\", "/").rpartition("/")[2]
    if name and file.stem not in (name, Path(name).stem):
        held = images.get(Path(name).stem)
        why = f"no image is called {file.stem!r}"
        if file.stem in images:
            why = f"there is an image {images[file.stem].name!r} beside it"
        if held is not None:
            why += f", and {held.name!r} is there too"
        fix = "let both have the same name: one of the two belongs to another image"
        faults.append(Fault(f"its <filename> is {name!r}", image.file, why, fix))
    image.size = _size(root)
    for position, element in enumerate(root.iter("object"), start=1):
        ref = f"object {position}"
        if _LINE in element.attrib:
            ref = f"line {element.attrib[_LINE]}"
        try:
            image.objects.append(_object(element, ref))
        except ValueError as error:
            what, fix = error.args
            faults.append(Fault(what, f"{image.file}, {ref}", fix=fix))
    return faults


def parse(raw: bytes) -> Element:
    """An XML document without a document type, which is where entities come from.

    Raises:
        ValueError: It is too large or has a document type.
        expat.ExpatError: It is no XML.
    """
    if len(raw) > _LARGEST:
        raise _RefusedError(f"{len(raw)} bytes are no annotation of one image")
    builder = TreeBuilder()
    parser = expat.ParserCreate()
    parser.buffer_text = True

    def refuse(*_: object) -> None:
        what = "it has a document type (DOCTYPE), which is not read: entities in it "
        raise _RefusedError(what + "can grow without end or reach other files")

    def start(tag: str, attributes: dict[str, str]) -> None:
        builder.start(tag, {**attributes, _LINE: str(parser.CurrentLineNumber)})

    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    parser.Parse(raw, True)
    return builder.close()


def _object(element: Element, ref: str) -> Object:
    """An object; ``ValueError(what, fix)`` where it is none."""
    name = " ".join((element.findtext("name") or "").split())
    if not name:
        raise ValueError("an object without a <name>", "name its class")
    corners = element.find("bndbox")
    if corners is None:
        raise ValueError("an object without a <bndbox>", "give it a box")
    edges = []
    for tag in _EDGES:
        text = (corners.findtext(tag) or "").strip()
        try:
            edges.append(float(text))
        except ValueError:
            what = f"<{tag}> is not a number: {text[:40]!r}"
            raise ValueError(what, "give it in pixels, counted from 1") from None
    x1, y1, x2, y2 = edges
    return Object(
        label=name,
        box=(x1 - 1, y1 - 1, x2, y2),
        ref=ref,
        crowd=(element.findtext("difficult") or "0").strip() not in ("0", ""),
    )


def _size(root: Element) -> tuple[int, int] | None:
    """Height and width; ``None`` where they are not stated, which some tools call 0."""
    values = []
    for tag in ("height", "width"):
        try:
            values.append(float(root.findtext(f"size/{tag}") or 0))
        except ValueError:
            return None
    if not all(math.isfinite(v) and v >= 1 for v in values):
        return None
    return int(values[0]), int(values[1])
