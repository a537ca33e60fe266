"""Long columns are the same as if they were put together and sorted plainly."""

from __future__ import annotations

import numpy as np
import pytest

from headstart_recsys import arrays
from headstart_recsys.arrays import Growing, order


def keys_of(count, *, wide=False):
    rng = np.random.default_rng(count)
    times = rng.integers(-5, 5, count)
    if wide and count:
        times[rng.integers(0, count, 4)] = -(2**62), 2**62, 0, -1
    return (
        rng.integers(0, 3, count).astype(np.uint8),
        rng.integers(-1, 20, count).astype(np.int32),
        times,
    )


@pytest.mark.parametrize("bits", [63, 16, 13, 10])
@pytest.mark.parametrize("count", [0, 1, 2, 64, 1000])
@pytest.mark.parametrize("wide", [False, True])
def test_the_order_is_that_of_lexsort(bits, count, wide, monkeypatch):
    # Fewer bits make it take several passes, or a plain sort of a key.
    monkeypatch.setattr(arrays, "BITS", bits)
    monkeypatch.setattr(arrays, "BLOCK", 37)
    keys = keys_of(count, wide=wide)
    found = order(*keys)
    assert found.dtype == np.int64
    assert found.tolist() == np.lexsort(keys[::-1]).tolist()


def test_keys_are_left_as_they_are():
    keys = keys_of(100)
    before = [key.copy() for key in keys]
    order(*keys)
    for key, copy in zip(keys, before, strict=True):
        assert np.array_equal(key, copy)


def test_pieces_make_a_column():
    rng = np.random.default_rng(0)
    pieces = [rng.integers(0, 99, n) for n in (0, 1, 5, 300, 0, 2)]
    column = Growing(np.int32)
    for piece in pieces:
        column.add(piece)
    whole = column.finish()
    assert whole.dtype == np.int32
    assert whole.tolist() == np.concatenate(pieces).tolist()
    assert whole.base is None
    assert len(column.finish()) == 0
