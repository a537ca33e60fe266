"""Composited scenes: garments laid on photographs, with exact boxes and masks.

A scene is planned first, from a generator and without pixels, and rendered later, in
whichever process needs it: the plan is small and has all that chance decided.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from headstart_vision import images

if TYPE_CHECKING:
    from collections.abc import Sequence

SMALLEST, LARGEST = 0.125, 0.4
"""Longest side of an object, as a share of the scene's."""
OUTSIDE = 0.2
"""Share of an object's side that may lie beside the scene."""
VISIBLE = 0.5
"""Of every object so much is seen; an object that would hide more is put elsewhere."""
TRIES = 20
PATCHES = 3
THRESHOLD = 16
"""Grey above which a pixel of Fashion-MNIST is part of the garment …"""
EDGE = 96
"""… and from which on one at its edge is so wholly."""


@dataclass(frozen=True)
class Backdrop:
    """A square crop of a photograph, and how its colours change.

    Attributes:
        photo: The file.
        side: Of the crop, as a share of the photo's shorter side.
        left: Where in the free space it begins, 0 to 1.
        top: As ``left``.
        flip: Left and right change places.
        gain: Factors of red, green and blue.
    """

    photo: str
    side: float
    left: float
    top: float
    flip: bool
    gain: tuple[float, float, float]


@dataclass(frozen=True)
class Patch:
    """Clutter: an ellipse or rectangle filled from elsewhere in the photo."""

    place: tuple[int, int, int, int]
    """Left, top, width and height in the scene."""
    source: Backdrop
    ellipse: bool


@dataclass(frozen=True)
class Placed:
    """An object in a scene.

    Attributes:
        label: Number of the class, from 0.
        garment: Grey values, uint8 (height, width), cut to the garment.
        place: Left, top, width and height in the scene, before it is cut.
        flip: Left and right change places.
        colour: Red, green and blue of its brightest part, 0 to 1.
        dark: Brightness of its darkest part, as a share of the brightest.
        box: What is seen of it: left, top, right, bottom.
    """

    label: int
    garment: np.ndarray
    place: tuple[int, int, int, int]
    flip: bool
    colour: tuple[float, float, float]
    dark: float
    box: tuple[int, int, int, int] = (0, 0, 0, 0)


@dataclass(frozen=True)
class Scene:
    """The plan of a scene, objects from back to front."""

    size: int
    backdrop: Backdrop
    patches: tuple[Patch, ...]
    objects: tuple[Placed, ...]


def plan(
    chance: np.random.Generator,
    photos: Sequence[str],
    garments: Sequence[np.ndarray],
    *,
    size: int,
    most: int,
) -> Scene:
    """Decide on a scene.

    Args:
        chance: The only source of it.
        photos: Files to choose the background from.
        garments: For each class its garments, uint8 (count, height, width).
        size: Side of the scene in pixels.
        most: Most objects.
    """
    photo = photos[int(chance.integers(len(photos)))]
    backdrop = _backdrop(chance, photo, 0.5, 1.0)
    patches = tuple(
        Patch(
            _place(chance, size, *chance.uniform(0.08, 0.35, 2) * size),
            _backdrop(chance, photo, 0.1, 0.5),
            bool(chance.random() < 0.5),
        )
        for _ in range(chance.integers(PATCHES + 1))
    )
    # A second draw where the first says none: scenes without objects are for learning
    # what is none, and few are enough.
    count = chance.integers(most + 1) or chance.integers(most + 1)
    owner = np.zeros((size, size), np.int32)
    areas = [0]
    placed: list[Placed] = []
    for _ in range(count):
        label = int(chance.integers(len(garments)))
        pool = garments[label]
        garment = _cut(pool[chance.integers(len(pool))])
        for _ in range(TRIES):
            candidate = _candidate(chance, label, garment, size)
            _, alpha = _cutout(candidate)
            inside, part = _meet(candidate.place, size)
            solid = alpha >= 0.5
            trial = owner.copy()
            trial[inside][solid[part]] = len(areas)
            seen = np.bincount(trial.ravel(), minlength=len(areas) + 1)[1:]
            whole = np.array([*areas[1:], solid.sum()])
            if whole[-1] and (seen >= VISIBLE * whole).all():
                owner = trial
                areas.append(int(whole[-1]))
                placed.append(candidate)
                break
    objects = tuple(
        Placed(**{**vars(thing), "box": extent(owner == number)})
        for number, thing in enumerate(placed, start=1)
    )
    return Scene(size, backdrop, patches, objects)


def render(scene: Scene, max_pixels: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw a scene.

    Args:
        scene: Its plan.
        max_pixels: A larger photograph is refused.

    Returns:
        Pixels uint8 (size, size, 3), and which object is seen at each pixel, int32
        (size, size), 0 for none and else its number from 1 in ``scene.objects``.

    Raises:
        ImageError: The photograph cannot be read.
    """
    size = scene.size
    pixels = _crop(scene.backdrop, size, size, size, max_pixels)
    for patch in scene.patches:
        *_, width, height = patch.place
        inside, part = _meet(patch.place, size)
        filling = _crop(patch.source, width, height, size, max_pixels)
        shape = np.ones((height, width), bool)
        if patch.ellipse:
            y, x = np.ogrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
            shape = x * x + y * y <= 1
        pixels[inside][shape[part]] = filling[part][shape[part]]
    owner = np.zeros((size, size), np.int32)
    for number, thing in enumerate(scene.objects, start=1):
        shade, alpha = _cutout(thing)
        inside, part = _meet(thing.place, size)
        cover = alpha[part][..., None]
        tone = thing.dark + (1 - thing.dark) * shade[part][..., None]
        paint = 255 * tone * np.array(thing.colour, np.float32)
        region = pixels[inside]
        region += cover * (paint - region)
        owner[inside][alpha[part] >= 0.5] = number
    return pixels.clip(0, 255).round().astype(np.uint8), owner


def extent(inside: np.ndarray) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the true part of an array that has some."""
    rows, columns = (np.flatnonzero(inside.any(axis)) for axis in (1, 0))
    right, bottom = int(columns[-1]) + 1, int(rows[-1]) + 1
    return int(columns[0]), int(rows[0]), right, bottom


def _backdrop(
    chance: np.random.Generator, photo: str, least: float, most: float
) -> Backdrop:
    gain = chance.uniform(0.6, 1.2) * chance.uniform(0.85, 1.15, 3)
    red, green, blue = (float(value) for value in gain)
    side, left, top = (float(v) for v in chance.uniform((least, 0, 0), (most, 1, 1)))
    return Backdrop(
        photo, side, left, top, bool(chance.random() < 0.5), (red, green, blue)
    )


def _candidate(
    chance: np.random.Generator, label: int, garment: np.ndarray, size: int
) -> Placed:
    """An object somewhere; its longest side is drawn from a log-uniform law."""
    longest = np.exp(chance.uniform(np.log(SMALLEST), np.log(LARGEST))) * size
    height, width = garment.shape
    ratio = width / height * np.exp(chance.uniform(-0.2, 0.2))
    sides = longest * np.minimum([1, 1], [ratio, 1 / ratio])
    place = _place(chance, size, *sides)
    colour = chance.uniform(0.5, 1.0) * chance.uniform(0.25, 1.0, 3)
    red, green, blue = (float(v) for v in (colour + 0.15).clip(0, 1))
    flip = bool(chance.random() < 0.5)
    dark = float(chance.uniform(0.05, 0.35))
    return Placed(label, garment, place, flip, (red, green, blue), dark)


def _place(
    chance: np.random.Generator, size: int, width: float, height: float
) -> tuple[int, int, int, int]:
    sides = [max(round(side), 3) for side in (width, height)]
    corner = [
        round(chance.uniform(-OUTSIDE * s, size - (1 - OUTSIDE) * s)) for s in sides
    ]
    return corner[0], corner[1], sides[0], sides[1]


def _meet(
    place: tuple[int, int, int, int], size: int
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Where a place lies in the scene, and which part of it that is."""
    left, top, width, height = place
    x0, y0 = max(left, 0), max(top, 0)
    x1, y1 = min(left + width, size), min(top + height, size)
    inside = (slice(y0, y1), slice(x0, x1))
    return inside, (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))


def _cut(garment: np.ndarray) -> np.ndarray:
    """The garment without the black around it."""
    left, top, right, bottom = extent(garment > THRESHOLD)
    return garment[top:bottom, left:right]


def _cutout(thing: Placed) -> tuple[np.ndarray, np.ndarray]:
    """Brightness and coverage of an object at its size, float32 (height, width)."""
    *_, width, height = thing.place
    grey = thing.garment[:, ::-1] if thing.flip else thing.garment
    grey = np.pad(grey, 1).astype(np.float32)
    solid = _spread(_spread(grey > THRESHOLD, True), False)
    core = _spread(solid, False)
    # Pixels at the edge are garment in part: they are dark, and cover in part.
    cover = np.where(core, 1, solid * np.minimum(grey / EDGE, 1))
    weight = core + 0.02 * solid
    scale = width / thing.garment.shape[1], height / thing.garment.shape[0]
    larger = round(width + 2 * scale[0]), round(height + 2 * scale[1])
    left, top = (round(s) for s in scale)

    def enlarged(values: np.ndarray, how: Image.Resampling) -> np.ndarray:
        image = Image.fromarray(values.astype(np.float32)).resize(larger, how)
        return np.asarray(image)[top : top + height, left : left + width]

    # Bicubic weights would be below 0 in places.
    bilinear = Image.Resampling.BILINEAR
    share = np.maximum(enlarged(weight, bilinear), 1e-4)
    shade = enlarged(weight * grey / 255, bilinear) / share
    cover = enlarged(cover, Image.Resampling.BICUBIC)
    # Steeper than the enlargement left it: the soft edge is about a pixel wide.
    steep = max(*scale, 1) / 1.5
    alpha = 0.5 + (cover - 0.5) * max(steep, 1)
    return shade.clip(0, 1), alpha.clip(0, 1)


def _spread(solid: np.ndarray, grow: bool) -> np.ndarray:
    """Dilation or erosion with a 3x3 square; there is nothing outside the array."""
    padded = np.pad(solid, 1)
    height, width = solid.shape
    shifted = [
        padded[y : y + height, x : x + width] for y in range(3) for x in range(3)
    ]
    combine = np.logical_or if grow else np.logical_and
    spread: np.ndarray = combine.reduce(shifted)
    return spread


def _crop(
    source: Backdrop, width: int, height: int, size: int, max_pixels: int
) -> np.ndarray:
    """Part of a photograph at a size, float32 (height, width, 3), 0 to 255."""
    photo = _photo(source.photo, 3 * size, max_pixels)
    side = source.side * min(photo.size)
    left, top = (
        share * (whole - side)
        for share, whole in zip((source.left, source.top), photo.size, strict=True)
    )
    box = (left, top, left + side, top + side)
    part = photo.resize((width, height), Image.Resampling.BILINEAR, box=box)
    pixels = np.asarray(part, np.float32)
    if source.flip:
        pixels = pixels[:, ::-1]
    return pixels * np.array(source.gain, np.float32)


@lru_cache(maxsize=32)
def _photo(path: str, most: int, max_pixels: int) -> Image.Image:
    """A decoded photograph, kept by each process; no larger than it is useful."""
    pixels = images.decode(path, max_pixels)
    photo = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    if min(photo.size) > most:
        share = most / min(photo.size)
        width, height = (round(side * share) for side in photo.size)
        photo = photo.resize((width, height), Image.Resampling.BOX)
    return photo
