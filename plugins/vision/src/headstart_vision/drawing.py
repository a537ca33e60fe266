"""Colours of classes, and predictions drawn on images with Pillow."""

from __future__ import annotations

import colorsys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from headstart.report.plots import COLOURS
from headstart_vision.annotations import rle

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

IGNORED = 255
FILL = 0.5
"""Opacity of masks."""
LONGEST_LABEL = 24
GOLDEN = 0.618034

Box = tuple[float, float, float, float]


@cache
def class_colours(count: int) -> tuple[str, ...]:
    """A colour per class, ``#rrggbb``: first the report's, then hues far apart."""
    more = (
        colorsys.hsv_to_rgb(
            (GOLDEN * i) % 1, (0.85, 0.6)[i % 2], (0.9, 0.65, 0.8)[i % 3]
        )
        for i in range(max(count - len(COLOURS), 0))
    )
    made = tuple("#" + "".join(f"{round(255 * v):02X}" for v in rgb) for rgb in more)
    return (*COLOURS, *made)[:count]


def rgb(colour: str) -> tuple[int, int, int]:
    """Red, green and blue of ``#rrggbb``."""
    red, green, blue = bytes.fromhex(colour[1:])
    return red, green, blue


def ink_on(colour: str) -> str:
    """Black or white, whichever reads better on a colour (WCAG's contrast)."""
    parts = np.array(rgb(colour)) / 255
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    light = float(linear @ [0.2126, 0.7152, 0.0722])
    return "#000000" if (light + 0.05) ** 2 > 1.05 * 0.05 else "#FFFFFF"


@cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which knows more alphabets than Pillow's own; size in pixels."""
    import matplotlib

    folder = Path(matplotlib.get_data_path(), "fonts", "ttf")
    return ImageFont.truetype(str(folder / "DejaVuSans-Bold.ttf"), size)


def shortened(text: str, longest: int = LONGEST_LABEL) -> str:
    """One line of at most so many characters."""
    line = " ".join(str(text).split())
    return line if len(line) <= longest else line[: longest - 1] + "…"


def tag(label: str, score: float | None = None) -> str:
    """What stands at a box: the label, and the score as ``.93``."""
    name = shortened(label)
    if score is None:
        return name
    return f"{name} {f'{score:.2f}'.removeprefix('0')}"


def place_tag(
    box: Sequence[float],
    extent: tuple[float, float],
    within: tuple[float, float],
    taken: Sequence[Box],
) -> Box:
    """Where a tag goes: at a corner of its box, inside the image, off other tags.

    Args:
        box: Corners of what it names.
        extent: The tag's width and height.
        within: The image's width and height.
        taken: Where tags already are.

    Returns:
        Corners of the first place that is free, or of the least covered one.
    """
    wide, high = extent
    rows = (box[1] - high, box[1], box[3], box[3] - high)
    columns = (box[0], box[2] - wide)
    places: list[Box] = []
    for top in rows:
        for column in columns:
            left = min(max(column, 0.0), max(within[0] - wide, 0.0))
            if 0 <= top <= within[1] - high:
                places.append((left, top, left + wide, top + high))
    top = min(max(box[1], 0.0), max(within[1] - high, 0.0))
    left = min(max(box[0], 0.0), max(within[0] - wide, 0.0))
    places = places or [(left, top, left + wide, top + high)]
    return min(places, key=lambda place: sum(_overlap(place, one) for one in taken))


def _overlap(one: Box, other: Box) -> float:
    wide = min(one[2], other[2]) - max(one[0], other[0])
    high = min(one[3], other[3]) - max(one[1], other[1])
    return max(wide, 0.0) * max(high, 0.0)


def draw_detections(
    image: Image.Image, detections: Sequence[Mapping[str, Any]], labels: Sequence[str]
) -> Image.Image:
    """A copy with boxes, masks, labels and scores; lines and text grow with the image.

    Args:
        image: RGB.
        detections: ``label``, ``score``, ``box`` as corners in pixels, and maybe
            ``mask``, an RLE.
        labels: The task's; each has its colour.
    """
    colours = dict(zip(labels, class_colours(len(labels)), strict=True))
    detections = sorted(detections, key=lambda one: one["score"])
    masks = [one for one in detections if "mask" in one]
    image = _with_masks(image, masks, colours) if masks else image.copy()
    draw = ImageDraw.Draw(image)
    line = max(2, round((image.width * image.height) ** 0.5 / 250))
    for one in detections:
        _draw_box(draw, one["box"], colours[one["label"]], line)
    # Tags last: no box crosses them. The surest chooses its place first, and is on top.
    size, taken = _text_size(image), list[Box]()
    texts = [tag(one["label"], one["score"]) for one in detections]
    for one, text in zip(reversed(detections), reversed(texts), strict=True):
        extent = _tag_extent(text, size)
        taken.append(place_tag(one["box"], extent, image.size, taken))
    for one, text, place in zip(detections, texts, reversed(taken), strict=True):
        _draw_tag(draw, place, text, colours[one["label"]], size)
    return image


def draw_classes(
    image: Image.Image, mask: np.ndarray, labels: Sequence[str]
) -> Image.Image:
    """A copy under the colours of its pixels' classes, with a legend.

    Args:
        image: RGB.
        mask: Class of each pixel, uint8 (height, width); 255 stays as it is.
        labels: Name of each class; one called background stays as it is.
    """
    colours = class_colours(len(labels))
    shown = [
        value
        for value in np.unique(mask).tolist()
        if value < len(labels) and not is_background(labels, value)
    ]
    pixels = np.array(image)
    for value in shown:
        _blend(pixels, mask == value, rgb(colours[value]))
    names = [(tag(labels[value]), colours[value]) for value in shown]
    return draw_tags(Image.fromarray(pixels), names)


def draw_tags(image: Image.Image, tags: Sequence[tuple[str, str]]) -> Image.Image:
    """A copy with texts on their colours, from the top left down."""
    image = image.copy()
    draw, size, top = ImageDraw.Draw(image), _text_size(image), 0.0
    for text, colour in tags:
        wide, high = _tag_extent(text, size)
        _draw_tag(draw, (0.0, top, wide, top + high), text, colour, size)
        top += high
    return image


def is_background(labels: Sequence[str], value: int) -> bool:
    """Whether a mask's value stands for what is no class: 0, and called so."""
    return value == 0 and str(labels[0]).strip("_").lower() == "background"


def palette(count: int, labels: Sequence[str] = ()) -> list[int]:
    """A PNG's palette of 256 colours: classes, black between, 255 light grey."""
    colours = [rgb(colour) for colour in class_colours(count)]
    if labels and is_background(labels, 0):
        colours[0] = (0, 0, 0)
    colours += [(0, 0, 0)] * (IGNORED - count)
    return [value for colour in (*colours, (224, 224, 224)) for value in colour]


def edges(mask: np.ndarray) -> np.ndarray:
    """Pixels of a boolean mask (height, width) that touch its outside."""
    inside = np.pad(mask, 1)
    core = inside[2:, 1:-1] & inside[:-2, 1:-1] & inside[1:-1, 2:] & inside[1:-1, :-2]
    edge: np.ndarray = mask & ~core
    return edge


def _with_masks(
    image: Image.Image,
    detections: Sequence[Mapping[str, Any]],
    colours: Mapping[str, str],
) -> Image.Image:
    pixels = np.array(image)
    for one in detections:
        colour = rgb(colours[one["label"]])
        mask = rle.to_mask(one["mask"]).astype(bool)
        if mask.shape == pixels.shape[:2]:
            _blend(pixels, mask, colour)
            pixels[edges(mask)] = colour
    return Image.fromarray(pixels)


def _blend(pixels: np.ndarray, where: np.ndarray, colour: tuple[int, int, int]) -> None:
    mixed = (1 - FILL) * pixels[where] + FILL * np.array(colour)
    pixels[where] = mixed.astype(np.uint8)


def _draw_box(
    draw: ImageDraw.ImageDraw, box: Sequence[float], colour: str, line: int
) -> None:
    left, top, right, bottom = box
    # Pillow refuses corners in the wrong order.
    corners = (min(left, right), min(top, bottom), max(left, right), max(top, bottom))
    halo = max(1, line // 2)
    around = (
        corners[0] - halo,
        corners[1] - halo,
        corners[2] + halo,
        corners[3] + halo,
    )
    draw.rectangle(around, outline=ink_on(colour), width=line + 2 * halo)
    draw.rectangle(corners, outline=colour, width=line)


def _draw_tag(
    draw: ImageDraw.ImageDraw, place: Box, text: str, colour: str, size: int
) -> None:
    """Text on its class's colour."""
    draw.rectangle(place, fill=colour)
    middle = (place[0] + size / 5, (place[1] + place[3]) / 2)
    draw.text(middle, text, fill=ink_on(colour), font=font(size), anchor="lm")


def _text_size(image: Image.Image) -> int:
    return int(np.clip((image.width * image.height) ** 0.5 / 32, 11, 96))


def _tag_extent(text: str, size: int) -> tuple[float, float]:
    return (font(size).getlength(text) + 0.4 * size, 1.4 * size)
