"""Image files to pixels: every colour mode, upright, within limits, or a reason.

All images become RGB with 8 bits a channel, uint8 (3, height, width):

- EXIF orientation is applied; of several pages or frames the first is taken.
- Grey is repeated; 1-bit is 0 and 255; palettes are looked up.
- Transparency, of whatever kind, is laid on white, as most viewers and papers have it.
- 16-bit grey is scaled by its full range (65,535 becomes 255), never clipped.
- CMYK is converted without colour management (Adobe's inverted JPEGs the right way).
- 32-bit grey has no agreed range: floats within 0 to 1 are taken for shares of white,
  all else is stretched from its own darkest to its own brightest value.

Formats are those of :data:`FORMATS`: none that starts another program, as EPS does.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from headstart_vision.paths import missing
from headstart_vision.progress import track

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

FORMATS = (
    *("JPEG", "MPO", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM"),
    *("JPEG2000", "AVIF", "TGA"),
)
ORIENTATION = 0x0112
_CHUNK = 512
GONE = "there is no such image"
HINTS = 20
"""Missing files that are told what has nearly their name."""
_LIMIT_LOCK = threading.Lock()


class ImageError(ValueError):
    """A file that is no usable image.

    Attributes:
        what: The finding, short.
        why: What the decoder says, or the limit; may be empty.
        fix: What to do.
    """

    def __init__(self, what: str, why: str = "", fix: str = "") -> None:
        super().__init__(f"{what}: {why}" if why else what)
        self.what, self.why, self.fix = what, why, fix

    def __reduce__(self) -> tuple[type[ImageError], tuple[str, str, str]]:
        return type(self), (self.what, self.why, self.fix)


@dataclass(frozen=True)
class Look:
    """What is known of a file that was decoded.

    Attributes:
        size: Height and width, EXIF orientation applied.
        format: Pillow's name of the file's format.
        mode: Pillow's name of its colour mode.
        digest: sha256 of the file.
    """

    size: tuple[int, int]
    format: str
    mode: str
    digest: str


@contextmanager
def opened(path: str | Path, max_pixels: int) -> Iterator[Image.Image]:
    """A file opened by Pillow, not decoded yet; whatever goes wrong has a reason.

    Also what fails inside the ``with`` block becomes an :class:`ImageError`.

    Raises:
        ImageError: There is no such file, it is empty, no image of a known format,
            larger than ``max_pixels``, cut short or damaged.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            if not file.read(1):
                fix = "fetch or export it again, or remove it"
                raise ImageError("the file is empty", "it has 0 bytes", fix)
            file.seek(0)
            with _without_limit():
                image = Image.open(file, formats=_formats())
            _check_size(image.width, image.height, max_pixels)
            yield image
    except ImageError:
        raise
    except FileNotFoundError:
        fault = missing(path)
        raise ImageError(GONE, fault.why, fault.fix) from None
    except UnidentifiedImageError:
        why = "its first bytes are those of no format that can be read"
        fix = "export it as PNG or JPEG, or remove it"
        raise ImageError("not an image", why, fix) from None
    except IsADirectoryError:
        raise ImageError("this is a folder, not an image") from None
    except PermissionError as error:
        raise ImageError("the file cannot be opened", error.strerror or "") from None
    except Exception as error:  # decoders meet damaged files with every kind of error
        text = " ".join(str(error).split())[:160] or type(error).__name__
        fix = "fetch or export it again, or remove it"
        cut = any(word in text.lower() for word in ("truncated", "cut", "not enough"))
        what = "the image is cut short" if cut else "the image is damaged"
        raise ImageError(what, text, fix) from None


def verify(path: str | Path, max_pixels: int) -> Look:
    """Decode a file to the last pixel and hash it, keeping nothing.

    Raises:
        ImageError: It cannot be used; see :func:`opened`.
    """
    with opened(path, max_pixels) as image:
        mode = image.mode
        upright = to_rgb(image)
        with Path(path).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return Look(upright.size[::-1], image.format or "", mode, digest)


def inspect(
    paths: Sequence[str | Path], max_pixels: int, label: str = "checking images"
) -> list[Look | ImageError]:
    """:func:`verify` many files, in threads, with a bar over two seconds.

    Returns:
        What was seen of each file, or why it cannot be used, in the order of the paths.
    """

    gone = [path for path in paths if not Path(path).exists()]
    # A search for names that are nearly the same takes long where thousands are gone.
    unhinted = {*gone[HINTS:]}

    def look(path: str | Path) -> Look | ImageError:
        if path in unhinted:
            return ImageError(GONE, fix="give the path of an existing one")
        try:
            return verify(path, max_pixels)
        except ImageError as error:
            return error

    return in_threads(look, paths, label)


def in_threads(function: Any, values: Sequence[Any], label: str) -> list[Any]:
    """A function's results in order; Pillow decodes without Python's global lock."""
    results: list[Any] = []
    with (
        track(len(values), label) as done,
        ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool,
    ):
        for start in range(0, len(values), _CHUNK):
            for result in pool.map(function, values[start : start + _CHUNK]):
                results.append(result)
                done()
    return results


def decode(path: str | Path, max_pixels: int) -> Tensor:
    """The pixels of a file.

    Returns:
        uint8 (3, height, width), RGB, upright.

    Raises:
        ImageError: It cannot be used; see :func:`opened`.
    """
    with opened(path, max_pixels) as image:
        return to_tensor(to_rgb(image))


def to_rgb(image: Image.Image) -> Image.Image:
    """A Pillow image upright and in RGB with 8 bits, as the head of this module says.

    Raises:
        ImageError: Its values are not finite, or its colours cannot be converted.
    """
    # Older versions of Pillow, and PPM, open 16 bits as 32.
    sixteen = image.mode.startswith("I;16") or image.format in ("PNG", "PPM")
    if _orientation(image) != 1:
        image = ImageOps.exif_transpose(image)
    image.load()
    if image.mode == "F" or image.mode.startswith("I"):
        image = Image.fromarray(_eight_bits(image, sixteen))
    if image.mode in ("La", "RGBa"):
        image = image.convert(image.mode.upper())
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image if image.mode == "RGB" else image.convert("RGB")


def to_tensor(image: Image.Image) -> Tensor:
    """A Pillow image in RGB as uint8 (3, height, width)."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def from_array(array: np.ndarray) -> Tensor:
    """Grey (height, width) or RGB (height, width, 3) as uint8 (3, height, width)."""
    pixels = torch.from_numpy(np.ascontiguousarray(array))
    if pixels.ndim == 2:
        return pixels.expand(3, -1, -1).contiguous()
    return pixels.permute(2, 0, 1).contiguous()


def to_array(value: Any, max_pixels: int) -> np.ndarray:
    """What a user may pass as an image, as uint8 (height, width, 3).

    Args:
        value: A Pillow image; an array (height, width), or with 1, 3 or 4 channels
            behind; a tensor (channels, height, width). Integers are 8 or 16 bits wide,
            floats lie within 0 to 1.
        max_pixels: The largest that is taken.

    Raises:
        ImageError: It is no image.
    """
    fix = "give a path, a Pillow image, or uint8 pixels (height, width, 3)"
    if isinstance(value, Image.Image):
        _check_size(value.width, value.height, max_pixels)
        try:
            return np.array(to_rgb(value))
        except (OSError, ValueError) as error:
            raise ImageError("the image is damaged", str(error)) from None
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        value = (value.permute(1, 2, 0) if value.ndim == 3 else value).numpy()
    if not isinstance(value, np.ndarray):
        raise ImageError(f"not an image: {type(value).__name__}", fix=fix)
    shape = "x".join(map(str, value.shape))
    flat = value[..., 0] if value.ndim == 3 and value.shape[-1] == 1 else value
    if flat.ndim != 2 and not (flat.ndim == 3 and flat.shape[-1] in (3, 4)):
        raise ImageError(f"not an image: the array's shape is {shape}", fix=fix)
    if not flat.size:
        raise ImageError(f"an image without pixels: its shape is {shape}", fix=fix)
    _check_size(flat.shape[1], flat.shape[0], max_pixels)
    if flat.dtype.kind == "f":
        if not (np.isfinite(flat).all() and flat.min() >= 0 and flat.max() <= 1):
            raise ImageError("floats outside 0 to 1", fix=fix)
        flat = np.rint(flat * 255).astype(np.uint8)
    elif flat.dtype == np.uint16:
        flat = _from_sixteen(flat)
    elif flat.dtype == np.bool_:
        flat = flat.astype(np.uint8) * 255
    elif flat.dtype != np.uint8:
        raise ImageError(f"not an image: values are {flat.dtype}", fix=fix)
    return np.array(to_rgb(Image.fromarray(np.ascontiguousarray(flat))))


def thumbnail(image: Tensor, side: int = 96) -> str:
    """A small picture as a ``data:`` URI (JPEG), no side longer than ``side``."""
    small = Image.fromarray(image.permute(1, 2, 0).numpy())
    small.thumbnail((side, side))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


@cache
def _formats() -> tuple[str, ...]:
    """Those of the known formats that this Pillow was built with."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


@contextmanager
def _without_limit() -> Iterator[None]:
    """Pillow's own limit off for a moment: ours is checked right behind it."""
    with _LIMIT_LOCK:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise ImageError(
            f"too large: {width:,} x {height:,} pixels",
            f"more than {max_pixels:,} are not decoded (a decompression bomb)",
            "make it smaller, or raise data.max_pixels if you trust it",
        )


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1 to 8, without decoding."""
    if image.format == "PNG" and _speaks_late(image):
        image.load()
    # PngImageFile's own getexif() decodes the whole file first.
    return int(Image.Image.getexif(image).get(ORIENTATION, 1) or 1)


def _speaks_late(image: Image.Image) -> bool:
    """Whether a PNG has EXIF or text behind its pixels, where the header has none."""
    file = getattr(image, "fp", None)
    if file is None or "exif" in image.info:
        return False
    before = file.tell()
    file.seek(8)
    seen = False
    found = False
    while not found and len(head := file.read(8)) == 8:
        kind = head[4:]
        seen = seen or kind == b"IDAT"
        found = seen and kind in (b"eXIf", b"tEXt", b"zTXt", b"iTXt")
        file.seek(int.from_bytes(head[:4], "big") + 4, io.SEEK_CUR)
    file.seek(before)
    return found


def _eight_bits(image: Image.Image, sixteen: bool) -> np.ndarray:
    """Grey of 16 or 32 bits as uint8 (height, width)."""
    values = np.asarray(image)
    if sixteen:
        return _from_sixteen(values)
    values = values.astype(np.float64)
    if not np.isfinite(values).all():
        raise ImageError(
            "values that are no numbers",
            "some of its pixels are NaN or infinite",
            "fill them in, or remove the image",
        )
    low, high = values.min(), values.max()
    if image.mode == "F" and low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    scaled = (values - low) * (255 / (high - low)) if high > low else values * 0
    bright: np.ndarray = np.rint(scaled).astype(np.uint8)
    return bright


def _from_sixteen(values: np.ndarray) -> np.ndarray:
    # 65,535 is 257 times 255.
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
