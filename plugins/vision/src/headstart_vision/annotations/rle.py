"""Masks as arrays, polygons and COCO's run-length encoding (RLE).

An RLE counts pixels column by column, alternately outside and inside the mask. The
conversions are those of the COCO mask API (equal to pycocotools).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

Rle = dict[str, Any]
"""``{"size": [height, width], "counts": str}``, JSON-ready."""


def from_polygons(polygons: Sequence[Sequence[float]], height: int, width: int) -> Rle:
    """The union of polygons, each ``x, y, x, y …`` in pixels."""
    from faster_coco_eval.core import mask as api

    parts = api.frPyObjects([list(map(float, p)) for p in polygons], height, width)
    return _plain(api.merge(parts))


def from_mask(mask: np.ndarray) -> Rle:
    """The RLE of a (height, width) mask; all that is not 0 is inside."""
    from faster_coco_eval.core import mask as api

    return _plain(api.encode(np.asfortranarray(mask != 0).astype(np.uint8, order="F")))


def compressed(rle: Rle) -> Rle:
    """The RLE with its counts as a string; they may be a list of numbers.

    It must be without :func:`fault`.
    """
    from faster_coco_eval.core import mask as api

    counts = rle["counts"]
    if not isinstance(counts, list):
        return _plain(rle)
    height, width = map(int, rle["size"])
    whole = {"size": [height, width], "counts": [int(n) for n in counts]}
    return _plain(api.frPyObjects(whole, height, width))


def to_mask(rle: Rle) -> np.ndarray:
    """The (height, width) uint8 mask of an RLE with a string of counts: 0 and 1."""
    from faster_coco_eval.core import mask as api

    return np.ascontiguousarray(api.decode(rle))


def fault(rle: Any, size: tuple[int, int] | None = None) -> str | None:
    """What is wrong with an RLE; ``None`` if nothing is.

    Args:
        rle: As read from a file.
        size: Height and width that it must have.
    """
    if not isinstance(rle, dict) or not {"size", "counts"} <= rle.keys():
        return "an RLE without 'size' and 'counts'"
    shape = rle["size"]
    whole = isinstance(shape, list) and len(shape) == 2
    if not whole or not all(type(n) is int and n > 0 for n in shape):
        return f"an RLE whose size is no [height, width]: {shape!r}"[:80]
    if size is not None and tuple(shape) != tuple(size):
        return (
            f"an RLE of another size than its image: {shape[1]} x {shape[0]}, "
            f"not {size[1]} x {size[0]}"
        )
    counts = rle["counts"]
    if isinstance(counts, (str, bytes)):
        runs = _runs(counts)
    elif isinstance(counts, list) and all(_whole(n) for n in counts):
        runs = np.array(counts, dtype=np.float64)
    else:
        runs = None
    if runs is None or (len(runs) and runs.min() < 0):
        return "an RLE whose counts cannot be read"
    if runs.sum() != shape[0] * shape[1]:
        return (
            f"an RLE that does not fit: its counts are of {int(runs.sum())} pixels, "
            f"its size is {shape[1]} x {shape[0]} = {shape[0] * shape[1]}"
        )
    return None


def _whole(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and value == value // 1


def _runs(counts: str | bytes) -> np.ndarray | None:
    """The numbers in a string of counts; ``None`` if it is none.

    Each number is in groups of five bits, the lowest first, with a sixth bit where
    another group follows; from the fourth on it is the difference to the last but one.
    """
    raw = counts.encode("utf-8") if isinstance(counts, str) else counts
    codes = np.frombuffer(raw, dtype=np.uint8).astype(np.int64) - 48
    if not len(codes):
        return np.zeros(0)
    last = (codes & 0x20) == 0
    if codes.min() < 0 or codes.max() > 0x3F or not last[-1]:
        return None
    ends = np.flatnonzero(last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 7:
        return None
    place = np.arange(len(codes)) - np.repeat(starts, lengths)
    values = np.add.reduceat((codes & 0x1F) << (5 * place), starts)
    values = values - np.where(codes[ends] & 0x10, 1 << (5 * lengths), 0)
    values[2::2] = np.cumsum(values[2::2])
    values[1::2] = np.cumsum(values[1::2])
    return values


def _plain(rle: Rle) -> Rle:
    counts = rle["counts"]
    text = counts.decode("ascii") if isinstance(counts, bytes) else counts
    return {"size": [int(n) for n in rle["size"]], "counts": text}
