"""Three orthogonal views of a case as inline SVG, truth and prediction outlined."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage

from headstart.report.plots import COLOURS, render
from headstart_medical.grids import to_ras
from headstart_medical.measures import UNKNOWN, lesions_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

TRUTH, FOUND = "#56B4E9", "#E69F00"
"""Of one class: blue and orange, which everybody tells apart, also on grey."""
FINEST = 256
"""Voxels along a view's side; more would only make the page heavy."""
SMALLEST_WINDOW = 40.0
"""mm; a close view is no narrower."""
GAP, HEADLINE = 0.015, 0.05
"""Of a figure whose width is 1."""
WIDTH = 7.2
PLANES = {"axial": (0, 1, 2), "coronal": (0, 2, 1), "sagittal": (1, 2, 0)}
"""Axes of RAS that are horizontal, vertical and across."""
LEFT = {"axial": "R", "coronal": "R", "sagittal": "A"}
"""What is at the left of a view: the patient's right, or the front."""


@dataclass(frozen=True)
class Case:
    """What is drawn: arrays (x, y, z) on one grid.

    Attributes:
        image: Any numbers; ``None`` leaves the ground black.
        truth: The true class of each voxel.
        found: The predicted one.
        affine: From voxels to RAS+ millimetres, (4, 4).
    """

    image: np.ndarray | None
    truth: np.ndarray
    found: np.ndarray
    affine: np.ndarray

    def upright(self) -> tuple[Case, np.ndarray]:
        """With axes to the right, to the front and up; and the spacing then, mm."""
        truth, grid = to_ras(
            np.where(self.truth == UNKNOWN, 0, self.truth), self.affine
        )
        found, image = to_ras(self.found, self.affine)[0], None
        if self.image is not None:
            image = _grey(to_ras(self.image, self.affine)[0])
        return Case(image, truth, found, grid.affine), grid.spacing


@dataclass(frozen=True)
class _View:
    """A window of a slice, and where it stands in the figure."""

    plane: str
    low: np.ndarray
    high: np.ndarray
    """Its first voxel along each of the three axes, and the one behind its last."""
    left: float
    bottom: float
    scale: float
    """Of a millimetre."""


def three_views(case: Case, labels: Sequence[str]) -> str:
    """Axial, coronal and sagittal view through the largest lesion, and closer ones.

    The patient's right is on the left, as radiologists look at it, and the front is on
    the left of sagittal views. Where the lesion is small, a second row has a window
    around it.

    Args:
        case: Image and masks.
        labels: Names of the classes, background first.

    Returns:
        An ``<svg>`` element.
    """
    upright, spacing = case.upright()
    point, size = _largest_lesion(upright, spacing)
    shape = np.array(upright.truth.shape)
    windows = [(np.zeros(3, dtype=int), shape)]
    side = np.ceil(max(2.5 * size, SMALLEST_WINDOW) / spacing).astype(int)
    if (side < 0.6 * shape).sum() >= 2:
        low = np.clip(point - side // 2, 0, np.maximum(shape - side, 0))
        windows.append((low, np.minimum(low + side, shape)))
    rows, bottom = [], 0.0
    for low, high in windows:
        rows.append(_row(low, high, spacing, bottom))
        bottom = rows[-1][0].bottom - GAP

    def paint(axes: Axes) -> None:
        for view in (view for row in rows for view in row):
            _draw(axes, view, upright, spacing, point, len(labels))
        for view in rows[0]:
            axes.text(view.left, 0.008, view.plane, va="bottom", fontsize=8.5)
            for low, high in windows[1:]:
                _frame(axes, view, low, high, spacing)
        _legend(axes, labels, bottom)
        axes.set_xlim(0, 1)
        axes.set_ylim(bottom - HEADLINE, HEADLINE)
        axes.set_aspect("equal")
        axes.axis("off")

    return render(paint, width=WIDTH, height=WIDTH * (2 * HEADLINE - bottom))


def _grey(image: np.ndarray) -> np.ndarray:
    """Numbers as grey, uint8; the darkest and lightest half percent are cut off."""
    known = np.nan_to_num(image.astype(np.float32))
    low, high = np.percentile(known, (0.5, 99.5))
    scaled = (known - low) / max(high - low, 1e-12)
    grey: np.ndarray = (255 * scaled.clip(0, 1)).astype(np.uint8)
    return grey


def _largest_lesion(case: Case, spacing: np.ndarray) -> tuple[np.ndarray, float]:
    """The voxel deepest inside it, and its longest side in mm.

    That of the truth; where there is none, of the prediction; else the middle.
    """
    for mask in (case.truth > 0, case.found > 0):
        if mask.any():
            numbered, _ = lesions_of(mask)
            largest = int(np.bincount(numbered[mask]).argmax())
            box = ndimage.find_objects(numbered, largest)[largest - 1]
            lesion = np.pad(numbered[box] == largest, 1)
            depth = ndimage.distance_transform_edt(lesion, sampling=spacing)
            deepest = np.array(np.unravel_index(depth.argmax(), depth.shape)) - 1
            size = (np.array(lesion.shape) - 2) * spacing
            return deepest + [part.start for part in box], float(size.max())
    return np.array(case.truth.shape) // 2, 0.0


def _row(
    low: np.ndarray, high: np.ndarray, spacing: np.ndarray, top: float
) -> list[_View]:
    """The planes side by side, equally high, together as wide as the figure."""
    size = (high - low) * spacing
    ratios = [size[across] / size[up] for across, up, _ in PLANES.values()]
    height = (1 - GAP * (len(PLANES) - 1)) / sum(ratios)
    views, left = [], 0.0
    for (plane, (_, up, _)), ratio in zip(PLANES.items(), ratios, strict=True):
        scale = height / size[up]
        views.append(_View(plane, low, high, left, top - height, scale))
        left += height * ratio + GAP
    return views


def _draw(
    axes: Axes,
    view: _View,
    case: Case,
    spacing: np.ndarray,
    point: np.ndarray,
    classes: int,
) -> None:
    """The slice through a voxel, and the classes' outlines on it."""
    across, up, through = PLANES[view.plane]
    window = [slice(*ends) for ends in zip(view.low, view.high, strict=True)]
    cut: list[Any] = list(window)
    cut[through] = int(point[through])
    width, height = _size(view, spacing)
    ground = np.zeros((1, 1), dtype=np.uint8)
    if case.image is not None:
        ground = case.image[tuple(cut)]
        ground = ground[tuple(slice(None, None, -(-n // FINEST)) for n in ground.shape)]
    axes.imshow(
        ground[::-1].T,
        extent=(view.left, view.left + width, view.bottom, view.bottom + height),
        origin="lower",
        cmap="gray",
        vmin=0,
        vmax=255,
        # Anything else would be drawn anew at the figure's own resolution.
        interpolation="none",
    )
    for mask, place in ((case.found, 1), (case.truth, 0)):
        for value in range(1, classes):
            x, y = _outline(mask[tuple(cut)] == value)
            axes.plot(
                view.left + width - x * spacing[across] * view.scale,
                view.bottom + y * spacing[up] * view.scale,
                color=_colours(value, classes)[place],
                linewidth=(0.9, 2.4)[place],
                alpha=(1.0, 0.75)[place],
                solid_capstyle="projecting",
            )
    axes.text(
        view.left + 0.006,
        view.bottom + height / 2,
        LEFT[view.plane],
        color="white",
        fontsize=8,
        va="center",
    )


def _size(view: _View, spacing: np.ndarray) -> tuple[float, float]:
    """Width and height in the figure."""
    across, up, _ = PLANES[view.plane]
    size = (view.high - view.low) * spacing * view.scale
    return float(size[across]), float(size[up])


def _outline(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Edges between voxels of a mask and others, in voxels from its lower corner.

    Returns:
        x and y of one line with gaps (NaN).
    """
    x, y = [], []
    for turned in (False, True):
        plane = mask.T if turned else mask
        # Edges lie between neighbours along the first axis, and run along the second.
        edges = np.diff(np.pad(plane.astype(np.int8), ((1, 1), (0, 0))), axis=0) != 0
        turns = np.diff(np.pad(edges.astype(np.int8), ((0, 0), (1, 1))), axis=1)
        place, start = np.nonzero(turns == 1)
        _, stop = np.nonzero(turns == -1)
        gap = np.full(len(place), np.nan)
        fixed = np.stack([place, place, gap], 1).ravel()
        along = np.stack([start, stop, gap], 1).ravel()
        x.append(along if turned else fixed)
        y.append(fixed if turned else along)
    return np.concatenate(x), np.concatenate(y)


def _frame(
    axes: Axes, view: _View, low: np.ndarray, high: np.ndarray, spacing: np.ndarray
) -> None:
    """Where the closer view is."""
    across, up, _ = PLANES[view.plane]
    width, _ = _size(view, spacing)
    x = (
        view.left
        + width
        - np.array([low, high])[:, across] * spacing[across] * view.scale
    )
    y = view.bottom + np.array([low, high])[:, up] * spacing[up] * view.scale
    axes.plot(
        x[[0, 1, 1, 0, 0]], y[[0, 0, 1, 1, 0]],
        color="white", linewidth=0.7, linestyle=(0, (3, 3)), alpha=0.8,
    )  # fmt: skip


def _colours(value: int, classes: int) -> tuple[str, str]:
    """Of a class's true and predicted outline."""
    if classes == 2:
        return TRUTH, FOUND
    colour = COLOURS[value % len(COLOURS)]
    return colour, colour


def _legend(axes: Axes, labels: Sequence[str], bottom: float) -> None:
    """What the lines are, below the views."""
    several = len(labels) > 2
    entries = [
        (name, _colours(value, len(labels))[0], 0.9)
        for value, name in enumerate(labels)
        if value and several
    ]
    ink = ("#555555", "#555555") if several else (TRUTH, FOUND)
    entries += [("truth", ink[0], 0.9), ("prediction", ink[1], 2.4)]
    left, y = 0.0, bottom - HEADLINE / 2
    for name, colour, thick in entries:
        axes.plot([left, left + 0.035], [y, y], color=colour, linewidth=1.5 * thick)
        axes.text(left + 0.045, y, name, va="center", fontsize=8.5)
        left += 0.075 + 0.012 * len(name)
