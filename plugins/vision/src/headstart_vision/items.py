"""What a data set lists, before it is checked and split."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from headstart_vision.paths import shown

if TYPE_CHECKING:
    import numpy as np

    from headstart.data import Split


@dataclass
class Item:
    """One image as a data set lists it, before it is a sample.

    Attributes:
        id: Unique in its split; the path below the folder of the data set, with
            forward slashes. ``data.group`` is matched with it.
        path: The file; empty for an image in memory.
        target: What is to be learned, JSON-ready.
        file: The file that lists the image (a CSV or JSON file), as people name it;
            empty when the image file itself is all there is.
        row: Line of ``file``, or the image's id there; ``None`` when there is none.
        unit: What ``row`` counts.
        group: What must stay on one side of a split, where a column says so.
        array: Pixels of an image in memory, uint8 (height, width).
        size: Height and width, EXIF orientation applied; known in ``check``.
        digest: sha256 of the file's bytes; empty for a file that cannot be read.
        bundle: Number of the group of samples that no split tears apart.
    """

    id: str
    path: str = ""
    target: Any = None
    file: str = ""
    row: int | None = None
    unit: str = "line"
    group: str = ""
    array: np.ndarray | None = None
    size: tuple[int, int] = (0, 0)
    digest: str = ""
    bundle: int = -1

    @property
    def place(self) -> tuple[str, int]:
        """Under which ``Findings.sample`` notes its faults."""
        return (self.file or self.path, self.row or 0)

    @property
    def where(self) -> str:
        """How a fault names it."""
        if not self.file:
            return shown(self.path)
        row = f", {self.unit} {self.row}" if self.row is not None else ""
        name = f": {shown(self.path)}" if self.path else ""
        return f"{self.file}{row}{name}"


Parts = dict["Split", list[Item]]
"""Items by split."""
