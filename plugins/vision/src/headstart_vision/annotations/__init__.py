"""Readers of annotation files, and the one form that they all give.

Readers parse and tell what is no valid file; what the values must be (boxes inside
their image, known classes) is looked at once for all formats, in
:mod:`headstart_vision.checks`. A sample is an image: a fault of one annotation is a
fault of its image, because an image with an object less would teach that there is none.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from headstart.data import Findings
    from headstart.errors import Fault

Box = tuple[float, float, float, float]


@dataclass(slots=True)
class Object:
    """One annotated object.

    Attributes:
        label: Its class: a name, or a number that the file's list names.
        box: ``x1, y1, x2, y2`` in pixels from the image's top left corner; the far
            edges are outside the object. Shares of the image's size where
            :attr:`AnnotatedImage.relative` says so.
        ref: Which one it is, as its file has it: ``annotation 17``, ``line 3``.
        crowd: Whether it is a group (COCO ``iscrowd``) or too hard to tell (VOC
            ``difficult``): neither learned nor held against a detector.
        polygons: Its outline, each ``x, y, x, y …`` in the unit of ``box``.
        rle: Its mask, as COCO's run-length encoding.
    """

    label: str | int
    box: Box
    ref: str
    crowd: bool = False
    polygons: list[list[float]] | None = None
    rle: dict[str, Any] | None = None


@dataclass(slots=True)
class AnnotatedImage:
    """An image and the objects in it, perhaps none.

    Attributes:
        path: Its file, which may not exist.
        id: What its annotations call it.
        file: The annotation file, as the user named it; empty where there is none.
        row: The image's number in ``file``; ``None`` where it is of this image alone.
        size: Height and width as the annotations state them.
        objects: In the file's order.
        relative: Whether coordinates are shares of the image's width and height.
    """

    path: Path
    id: str
    file: str
    row: int | None = None
    size: tuple[int, int] | None = None
    objects: list[Object] = field(default_factory=list)
    relative: bool = False

    @property
    def place(self) -> tuple[str, int]:
        """Under which ``Findings.sample`` notes its faults."""
        return (self.file or str(self.path), self.row or 0)


@dataclass
class Annotations:
    """What a reader found in a file, or in a folder of files.

    Attributes:
        where: The file or folder, as the user named it.
        images: In the file's order.
        names: Class names by number; empty where the file has none.
        numbers: Whether labels are numbers.
        format: ``coco``, ``voc`` or ``yolo``.
        strays: Entries that belong to no image, so far.
    """

    where: str
    images: list[AnnotatedImage] = field(default_factory=list)
    names: dict[int, str] = field(default_factory=dict)
    numbers: bool = False
    format: str = ""
    strays: int = 0

    def stray(self, findings: Findings, fault: Fault) -> None:
        """A fault of what belongs to no image: a bad sample of its own."""
        self.strays += 1
        findings.sample(f"{self.where}, strays", self.strays, fault)
