"""Masks as run lengths, small enough for JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping


def encode(mask: np.ndarray) -> dict[str, Any]:
    """A mask of any shape as its runs of equal values.

    Returns:
        ``shape``; ``values`` and ``runs``, how often each follows the one before, in C
        order (the last axis fastest).
    """
    flat = np.ascontiguousarray(mask).ravel()
    starts = np.concatenate([[0], np.flatnonzero(np.diff(flat)) + 1, [len(flat)]])
    runs = np.diff(starts)
    values = flat[starts[:-1]] if len(flat) else flat
    return {
        "shape": list(mask.shape),
        "values": values.tolist(),
        "runs": runs.tolist() if len(flat) else [],
    }


def decode(runs: Mapping[str, Any]) -> np.ndarray:
    """The mask, uint8, that :func:`encode` was given."""
    values = np.array(runs["values"], dtype=np.uint8)
    flat: np.ndarray = np.repeat(values, np.array(runs["runs"], dtype=np.int64))
    return flat.reshape(runs["shape"])
