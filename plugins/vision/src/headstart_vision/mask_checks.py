"""What masks must be: one channel, as large as their image, values that are classes."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from headstart.errors import Fault
from headstart_vision.images import ImageError, opened
from headstart_vision.paths import shown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headstart.data import Findings
    from headstart_vision.settings import MaskSettings

_LARGEST = 254
"""Values are bytes, and 255 is what batches are padded with."""


@dataclass(frozen=True)
class Values:
    """A mask's file, decoded.

    Attributes:
        values: (height, width), integers.
        palette: Colours by index, (n, 3); empty without a palette.
    """

    values: np.ndarray
    palette: np.ndarray


@dataclass
class Look:
    """What was seen of a mask.

    Attributes:
        path: Its file.
        counts: Pixels by value.
        digest: sha256 of its size and values.
        colours: Colour of each value, in a palette file.
        error: Why it cannot be used.
    """

    path: str
    counts: dict[int, int] = field(default_factory=dict)
    digest: str = ""
    colours: dict[int, tuple[int, ...]] = field(default_factory=dict)
    error: ImageError | None = None


def read(path: str | Path, max_pixels: int) -> Values:
    """The values of a mask.

    Raises:
        ImageError: It cannot be read, has colours for values, or is a JPEG.
    """
    with opened(path, max_pixels) as image:
        if image.format in ("JPEG", "MPO"):
            why = "its compression changes values at every border"
            raise ImageError("a mask as JPEG", why, "save masks as PNG")
        if image.mode not in ("P", "L", "1", "I", "I;16", "I;16B", "I;16L"):
            raise ImageError(
                f"a mask of colours ({image.mode}), not of classes",
                "one channel with a class number a pixel is read",
                "replace each colour by its number, e.g. with NumPy: "
                "mask = sum(k * (rgb == colour).all(-1) for k, colour in "
                "enumerate(colours)).astype('uint8'), and save it as PNG",
            )
        colours = image.getpalette() or [] if image.mode == "P" else []
        values = np.asarray(image)
        palette = np.array(colours, dtype=np.uint8).reshape(-1, 3)
        return Values(values.astype(np.int32), palette)


def look(path: str, size: tuple[int, int], max_pixels: int) -> Look:
    """Read a mask and compare its size.

    Args:
        path: Its file.
        size: Height and width of its image, upright; (0, 0) if that cannot be read.
        max_pixels: The largest that is decoded.
    """
    seen = Look(path)
    try:
        mask = read(path, max_pixels)
    except ImageError as error:
        seen.error = error
        return seen
    values = mask.values
    found, counts = np.unique(values, return_counts=True)
    seen.counts = dict(zip(found.tolist(), counts.tolist(), strict=True))
    seen.digest = hashlib.sha256(
        np.array(values.shape).tobytes() + values.tobytes()
    ).hexdigest()
    seen.colours = {
        value: tuple(mask.palette[value].tolist())
        for value in seen.counts
        if 0 <= value < len(mask.palette)
    }
    if size not in ((0, 0), values.shape):
        height, width = values.shape
        why = f"the mask is {width} x {height}, the image {size[1]} x {size[0]}"
        fix = "export it in the image's size, without smoothing"
        if values.shape == size[::-1]:
            why += ": perhaps it was drawn without the image's EXIF orientation"
            fix = "write the image without EXIF orientation, or turn the mask"
        seen.error = ImageError("a mask of another size than its image", why, fix)
    return seen


def labels(
    train: Sequence[Look], settings: MaskSettings, findings: Findings
) -> tuple[str, ...]:
    """The classes: as the user names them, or a number for each value."""
    counts: Counter[int] = Counter()
    for seen in train:
        counts.update(seen.counts if seen.error is None else {})
    ignored = counts.pop(settings.ignore, 0)
    used = sorted(value for value in counts if 0 <= value <= _LARGEST)
    if len(used) == 1 and len(settings.labels) != 1:
        what = f"one class only: every pixel is {used[0]}"
        what += f", or ignored ({settings.ignore})" if ignored else ""
        fix = "check that the masks are of these images"
        if ignored:
            fix = f"if {settings.ignore} is a class, give it a number below 255 in the "
            fix += "files, and set data.ignore if another value is to be ignored"
        findings.fatal.append(Fault(what, settings.masks, fix=fix))
    if len(settings.labels) > _LARGEST + 1:
        what = f"{len(settings.labels)} classes: at most {_LARGEST + 1} can be told"
        findings.fatal.append(Fault(what, "data.labels"))
    if settings.labels:
        missing = [n for v, n in enumerate(settings.labels) if v not in counts]
        if missing and len(used) > 1:
            what = f"no pixel of class {', '.join(map(repr, missing[:10]))}"
            why, fix = "it is never learned", "check data.labels: from 0 on, in order"
            findings.warnings.append(Fault(what, "data.labels", why, fix))
        return settings.labels
    names = tuple(str(value) for value in range(max(used, default=0) + 1))
    if gaps := len(names) - len(used):
        what = f"{gaps} of {len(names)} classes have no pixel"
        why = f"the masks' values are {_listed(used)}, and classes count from 0"
        fix = "number the classes without gaps, or name them in data.labels"
        findings.warnings.append(Fault(what, settings.masks, why, fix))
    return names


def fault(
    seen: Look, path: str, known: Sequence[str], settings: MaskSettings
) -> Fault | None:
    """What is wrong with a mask."""
    where = shown(path)
    if seen.error is not None:
        return Fault(seen.error.what, where, seen.error.why, seen.error.fix)
    allowed = {*range(min(len(known), _LARGEST + 1)), settings.ignore}
    strange = sorted(set(seen.counts) - allowed)
    if strange:
        what = f"values that are no class: {_listed(strange)}"
        why = f"classes are 0 to {len(known) - 1}, and {settings.ignore} is ignored"
        if settings.labels:
            why += "; data.labels names one for each value"
        fix = "add the classes to data.labels, or mend the mask"
        if strange == [255]:
            fix = "data.ignore=255 if nothing is known of these pixels; " + fix
        return Fault(what, where, why, fix)
    if set(seen.counts) <= {settings.ignore}:
        what, why = "a mask without a labelled pixel", f"all are {settings.ignore}"
        return Fault(what, where, why, "label it, or take it away with its image")
    return None


def warn_palettes(looks: Sequence[Look], findings: Findings) -> None:
    """A value that is shown in different colours: palettes made for each file."""
    first: dict[int, tuple[Look, tuple[int, ...]]] = {}
    for seen in looks:
        for value, colour in seen.colours.items():
            other, known = first.setdefault(value, (seen, colour))
            if known != colour:
                what = f"value {value} is shown in different colours"
                why = f"{known} in {Path(other.path).name}, {colour} in "
                why += f"{Path(seen.path).name}: perhaps each file has its own numbers"
                fix = "save all masks with one palette"
                where = shown(Path(seen.path).parent)
                findings.warnings.append(Fault(what, where, why, fix))
                return


def _listed(values: Sequence[int]) -> str:
    more = f" … {values[-1]}" if len(values) > 10 else ""
    return ", ".join(map(str, values[: 9 if more else 10])) + more
