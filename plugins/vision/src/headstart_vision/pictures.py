"""Photos with boxes and masks as inline SVG, for the report.

Photos are small JPEGs inside the page, boxes and texts are vectors. Text outside a
photo takes the page's own colour; text on one stands on its class's colour.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from headstart_vision import images
from headstart_vision.drawing import (
    FILL,
    Box,
    edges,
    font,
    ink_on,
    place_tag,
    rgb,
    shortened,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

LONGEST = 320
"""Longest side of a photo inside a report."""
HEAVIEST = 60_000
"""Characters of a thumbnail as it comes; a larger one is made anew."""
PANEL = 300.0
"""Width of a photo as it is shown; its height is at most 1.2 times that."""
GAP = 8.0
TEXT = 11
TITLE = 13
CHECKED = 1 << 40
"""No limit of pixels: the data module has already held every file to the recipe's."""
_URI = re.compile(r"data:image/(?:jpeg|png|webp);base64,[A-Za-z0-9+/]+={0,2}")
_UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")


@dataclass(frozen=True)
class Photo:
    """A picture to embed: a ``data:`` URI, and its size in pixels."""

    uri: str
    width: int
    height: int


@dataclass(frozen=True)
class Mark:
    """A box with a name, in pixels of the original image."""

    box: Sequence[float]
    text: str
    colour: str
    dashed: bool = False


@dataclass(frozen=True)
class Panel:
    """One view of a photo.

    Attributes:
        title: Above it.
        marks: Boxes, the most important first.
        overlay: A PNG over the whole photo, as :func:`overlay` makes it.
    """

    title: str
    marks: Sequence[Mark] = ()
    overlay: str = ""


def escaped(text: Any) -> str:
    """Text for SVG, without what neither XML nor a reader knows."""
    return html.escape(_UNSEEN.sub("", str(text)))


def photo(shown: Mapping[str, Any], longest: int = LONGEST) -> Photo | None:
    """The picture of a sample as people see it; ``None`` where there is none.

    Args:
        shown: What the data module's ``show`` gives: ``thumbnail``, a ``data:`` URI,
            or ``path``, an image file.
        longest: Its longest side.
    """
    try:
        uri = str(shown.get("thumbnail", ""))
        if not _URI.fullmatch(uri):
            path = shown.get("path")
            if not path:
                return None
            uri = images.thumbnail(images.decode(path, CHECKED), longest)
        with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as picture:
            if max(picture.size) > longest or len(uri) > HEAVIEST:
                small = picture.convert("RGB")
                small.thumbnail((longest, longest))
                return Photo(_jpeg(small), *small.size)
            return Photo(uri, *picture.size)
    except (OSError, ValueError):
        return None


def beside(
    picture: Photo | None,
    size: Sequence[int],
    panels: Sequence[Panel],
    legend: Mapping[str, str] | None = None,
) -> str:
    """Views of one photo in a row.

    Args:
        picture: The photo; without one the marks stand on grey.
        size: Height and width of the original image, in whose pixels marks are.
        panels: The views.
        legend: Colours by name, below.
    """
    high, wide = (max(int(side), 1) for side in size)
    width = min(PANEL, 1.2 * PANEL * wide / high)
    height = width * high / wide
    top = TITLE + 5.0
    total = len(panels) * (width + GAP) - GAP
    keys, below = _legend(legend or {}, total)
    name, base = _photo(picture, width, height)
    parts = [f"<defs>{base}</defs>"]
    for place, panel in enumerate(panels):
        body = [f'<use href="#{name}"/>']
        if panel.overlay:
            body.append(_image(panel.overlay, width, height))
        body += _marks(panel.marks, width / wide, (width, height))
        title = (
            f'<text x="0" y="-5" fill="currentColor" font-size="{TITLE}" '
            f'font-weight="600">{escaped(panel.title)}</text>'
        )
        left = place * (width + GAP)
        shift = f"translate({left:.1f} {top:.1f})"
        parts.append(f'<g transform="{shift}">{title}{"".join(body)}</g>')
    bottom = top + height
    parts.append(f'<g transform="translate(0 {bottom:.1f})">{keys}</g>')
    return _svg("".join(parts), total, bottom + below)


def grid(
    pictures: Sequence[Photo | None],
    lines: Sequence[Sequence[str]],
    names: Sequence[str],
    *,
    columns: int = 4,
    side: float = 112.0,
) -> str:
    """Small photos in rows, with lines of text below each.

    Args:
        pictures: The photos.
        lines: Below each photo; as many for all.
        names: Shown when a pointer rests on a photo.
        columns: Photos in a row.
        side: Width and height of a photo's place.
    """
    cell, step = side + 18.0, TEXT + 4.0
    high = side + 8 + step * max((len(one) for one in lines), default=0) + 10
    fits = int(cell / (0.56 * TEXT))
    parts = []
    for place, (picture, texts, name) in enumerate(
        zip(pictures, lines, names, strict=True)
    ):
        row, column = divmod(place, columns)
        width = height = side
        if picture is not None:
            scale = side / max(picture.width, picture.height)
            width, height = picture.width * scale, picture.height * scale
        body = (
            _image(picture.uri, width, height, picture.width < width / 1.5)
            if picture
            else _blank(width, height)
        )
        down = f"translate(0 {side - height:.1f})"
        written = "".join(
            f'<text x="0" y="{side + 4 + step * line:.1f}" fill="currentColor" '
            f'font-size="{TEXT}">{escaped(shortened(text, fits))}</text>'
            for line, text in enumerate(texts, start=1)
        )
        shift = f"translate({column * cell:.1f} {row * high:.1f})"
        parts.append(
            f'<g transform="{shift}"><title>{escaped(name)}</title>'
            f'<g transform="{down}">{body}</g>{written}</g>'
        )
    used = min(columns, max(len(pictures), 1))
    rows = -(-len(pictures) // columns)
    return _svg("".join(parts), used * cell, max(rows, 1) * high)


def overlay(layers: Sequence[tuple[np.ndarray, str]], size: Sequence[int]) -> str:
    """Masks as one transparent PNG, later ones on top, with firm edges.

    Args:
        layers: Boolean masks (height, width) of the whole image, and their colours.
        size: The image's height and width.

    Returns:
        A ``data:`` URI; empty without layers.
    """
    if not layers:
        return ""
    colours = list(dict.fromkeys(colour for _, colour in layers))[:127]
    rows, columns = _sampling(size)
    drawn = np.zeros((len(rows), len(columns)), dtype=np.uint8)
    for mask, colour in layers:
        if colour in colours and mask.shape == tuple(size):
            small = mask[np.ix_(rows, columns)]
            index = 2 * colours.index(colour) + 1
            drawn[small] = index
            rim = edges(small)
            drawn[rim | edges(small & ~rim)] = index + 1
    picture = Image.fromarray(drawn)
    entries = [(0, 0, 0), *(rgb(c) for c in colours for _ in range(2))]
    picture.putpalette([value for entry in entries for value in entry])
    opacity = [0, *(round(255 * a) for _ in colours for a in (FILL, 0.95))]
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", transparency=bytes(opacity), optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _sampling(size: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the original that a small overlay shows."""
    scale = min(1.0, LONGEST / max(size))
    shape = [max(1, round(side * scale)) for side in size]
    rows, columns = (
        ((np.arange(few) + 0.5) * many / few).astype(int)
        for few, many in zip(shape, size, strict=True)
    )
    return rows, columns


def _marks(
    marks: Sequence[Mark], scale: float, within: tuple[float, float]
) -> list[str]:
    """Boxes first, so that none crosses a tag; the first mark on top."""
    boxes, tags, taken = [], [], list[Box]()
    for mark in marks:
        if not np.isfinite(mark.box).all():
            continue
        left, top, right, bottom = (float(value) * scale for value in mark.box)
        left, right = (min(max(x, 0.0), within[0]) for x in (left, right))
        top, bottom = (min(max(y, 0.0), within[1]) for y in (top, bottom))
        frame = (
            f'<rect x="{left:.1f}" y="{top:.1f}" width="{max(right - left, 0):.1f}" '
            f'height="{max(bottom - top, 0):.1f}" fill="none" '
        )
        dash = ' stroke-dasharray="6 4"' if mark.dashed else ""
        halo = f'stroke="{ink_on(mark.colour)}" stroke-opacity=".6" stroke-width="3.6"'
        line = f'stroke="{mark.colour}" stroke-width="2"{dash}'
        boxes.append(f"{frame}{halo}/>{frame}{line}/>")
        extent = (1.04 * font(TEXT).getlength(mark.text) + 7, TEXT + 5.0)
        place = place_tag((left, top, right, bottom), extent, within, taken)
        taken.append(place)
        tags.append(
            f'<rect x="{place[0]:.1f}" y="{place[1]:.1f}" width="{extent[0]:.1f}" '
            f'height="{extent[1]:.1f}" fill="{mark.colour}"/><text '
            f'x="{place[0] + 3:.1f}" y="{place[1] + TEXT + 1:.1f}" '
            f'fill="{ink_on(mark.colour)}" font-size="{TEXT}" font-weight="600">'
            f"{escaped(mark.text)}</text>"
        )
    return [*reversed(boxes), *reversed(tags)]


def _legend(colours: Mapping[str, str], width: float) -> tuple[str, float]:
    """Swatches with names, and how high they are."""
    parts, x, y = [], 0.0, 0.0
    for name, colour in colours.items():
        text = shortened(name)
        wide = 1.04 * font(TEXT).getlength(text) + 24
        if x and x + wide > width:
            x, y = 0.0, y + TEXT + 6
        parts.append(
            f'<rect x="{x:.1f}" y="{y + 6:.1f}" width="10" height="10" '
            f'fill="{colour}"/><text x="{x + 14:.1f}" y="{y + 15:.1f}" '
            f'fill="currentColor" font-size="{TEXT}">{escaped(text)}</text>'
        )
        x += wide
    return "".join(parts), y + TEXT + 10 if parts else 2.0


def _photo(picture: Photo | None, width: float, height: float) -> tuple[str, str]:
    """A photo to use several times: its identifier and its element."""
    if picture is None:
        body = _blank(width, height)
    else:
        body = _image(picture.uri, width, height, picture.width < width / 1.5)
    # The same picture may stand in several sections: then the same name is right.
    name = "photo-" + hashlib.sha256(body.encode()).hexdigest()[:16]
    return name, f'<g id="{name}">{body}</g>'


def _image(uri: str, width: float, height: float, coarse: bool = False) -> str:
    style = ' style="image-rendering: pixelated"' if coarse else ""
    return (
        f'<image href="{uri}" width="{width:.1f}" height="{height:.1f}" '
        f'preserveAspectRatio="none"{style}/>'
    )


def _blank(width: float, height: float) -> str:
    return (
        f'<rect width="{width:.1f}" height="{height:.1f}" fill="#888888"/>'
        f'<text x="{width / 2:.1f}" y="{height / 2:.1f}" text-anchor="middle" '
        f'fill="#FFFFFF" font-size="{TEXT}">no picture</text>'
    )


def _jpeg(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _svg(body: str, width: float, height: float) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.1f} '
        f'{height:.1f}" style="max-width: {width:.0f}px" '
        f'font-family="DejaVu Sans, sans-serif">{body}</svg>'
    )
