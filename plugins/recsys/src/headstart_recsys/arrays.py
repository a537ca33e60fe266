"""Long columns: put together, and put into order, with little memory beside them."""

from __future__ import annotations

import numpy as np

BLOCK = 1 << 20
"""Rows that are looked up at once; the copies that this needs are as long."""
BITS = 63
"""Of an int64 that is not negative."""


class Growing:
    """A column that is read piece by piece and never there twice.

    Args:
        kind: Type of its values.
    """

    def __init__(self, kind: type[np.generic] | type[bool]) -> None:
        self._data = np.empty(0, dtype=kind)
        self._size = 0

    def add(self, piece: np.ndarray) -> None:
        """Append values; they are copied."""
        stop = self._size + len(piece)
        if stop > len(self._data):
            # Where memory is mapped anew instead of copied, small steps cost nothing.
            # Nobody else has a view, so there is no reference to look for.
            self._data.resize(max(stop, stop + stop // 8), refcheck=False)
        self._data[self._size : stop] = piece
        self._size = stop

    def finish(self) -> np.ndarray:
        """The column; it is let go here, so that the caller alone holds it."""
        data, self._data = self._data, np.empty(0, dtype=self._data.dtype)
        data.resize(self._size, refcheck=False)
        self._size = 0
        return data


def order(*keys: np.ndarray) -> np.ndarray:
    """Places of rows in ascending order; those that are equal stay as they are.

    The same as ``np.lexsort(keys[::-1])``, several times as fast: keys and place are
    put into one int64, which is sorted in place. Where they do not fit, there is one
    such pass for some of the keys, the last ones first.

    Args:
        keys: Integers ``(N,)`` each; the first decides first.

    Returns:
        int64 ``(N,)``.
    """
    count = len(keys[0])
    room = BITS - max(count - 1, 0).bit_length()
    found: np.ndarray | None = None
    left = [(key, *_range(key)) for key in keys]
    while left:
        some = [left.pop()]
        width = some[0][2]
        while left and width + left[-1][2] <= room:
            width += left[-1][2]
            some.insert(0, left.pop())
        if width <= room:
            found = _pass(some, found, BITS - room)
        else:
            key = some[0][0]
            if found is None:
                found = np.argsort(key, kind="stable")
            else:
                found = found[np.argsort(key[found], kind="stable")]
    assert found is not None
    return found


def _range(key: np.ndarray) -> tuple[int, int]:
    """The least value, and how many bits the others need from there on."""
    if not len(key):
        return 0, 0
    low = int(key.min())
    return low, (int(key.max()) - low).bit_length()


def _pass(
    keys: list[tuple[np.ndarray, int, int]], before: np.ndarray | None, bits: int
) -> np.ndarray:
    """Order by some keys; ``before`` is that by the keys after them."""
    count = len(keys[0][0])
    packed = np.empty(count, dtype=np.int64)
    for start in range(0, count, BLOCK):
        stop = min(start + BLOCK, count)
        rows = slice(start, stop) if before is None else before[start:stop]
        value = np.zeros(stop - start, dtype=np.int64)
        for key, low, width in keys:
            value <<= width
            value |= key[rows].astype(np.int64) - low
        value <<= bits
        packed[start:stop] = value | np.arange(start, stop)
    packed.sort()
    packed &= (1 << bits) - 1
    if before is not None:
        for start in range(0, count, BLOCK):
            part = packed[start : start + BLOCK]
            part[:] = before[part]
    return packed
