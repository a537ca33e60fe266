"""How many feature frames a clip has: the arithmetic of a stack of convolutions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from torch import Tensor

    Counts = TypeVar("Counts", int, np.ndarray[Any, Any], Tensor)

Layers: TypeAlias = "Sequence[Sequence[int]]"
"""Of each convolution over time: kernel, stride, padding on each side."""


def frame_counts(samples: Counts, layers: Layers) -> Counts:
    """Feature frames of clips.

    Args:
        samples: Length of each clip in samples, int64.
        layers: The convolutions in order.

    Returns:
        Frames, of the type and shape of ``samples``; 0 where a clip is too short.
    """
    counts = samples
    for kernel, stride, padding in layers:
        frames = (counts + 2 * padding - kernel) // stride + 1
        # Padding alone makes no frames: a clip that ended before stays at none.
        counts = frames * (frames > 0) * (counts > 0)
    return counts


def shortest_clip(layers: Layers) -> int:
    """Samples of the shortest clip that has a frame."""
    length = 1
    for kernel, stride, padding in reversed(layers):
        length = max((length - 1) * stride + kernel - 2 * padding, 1)
    return length


def total_stride(layers: Layers) -> int:
    """Samples from the start of one frame to that of the next."""
    product = 1
    for _, stride, _ in layers:
        product *= stride
    return product
