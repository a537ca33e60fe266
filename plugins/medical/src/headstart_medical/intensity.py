"""What grey values mean to a network: by modality, or as its weights want them.

==========  =====================================================================
z-score     mean 0, deviation 1 of the foreground: voxels above the volume's mean
ct-window   Hounsfield units of a window to 0 to 1, cut beyond
robust      the foreground's median to 0.5, its deviation to 0.1, cut at 0 and 1.5: as
            z-score, but a bright lesion or fat hardly changes what the rest becomes,
            and all is in the range of networks that were trained on 0 to 1
percentile  two percentiles to 0 and 1, cut beyond
max         divided by the largest value, where that is above 0
==========  =====================================================================

Each channel by itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from headstart_medical.data_settings import CaseSettings

Method = Literal["z-score", "robust", "ct-window", "percentile", "max", "none"]

BY_MODALITY: Mapping[str, Method] = {
    "mri": "z-score",
    "ct": "ct-window",
    "pet": "z-score",
    "other": "percentile",
}
_STEP = 8
"""Every so many voxels of a large volume are enough for a percentile."""
_MANY = 10**6


def foreground(volume: np.ndarray) -> np.ndarray:
    """Where there is something: above the mean, bool of the same shape.

    Air is most of a scan and dark, in MRI and CT alike, so the mean lies between it
    and tissue.
    """
    above: np.ndarray = volume > volume.mean(dtype=np.float64)
    return above


def z_score(volume: np.ndarray) -> np.ndarray:
    """Mean 0 and deviation 1 of the foreground, float32."""
    inside = volume[foreground(volume)]
    if not inside.size:
        return np.zeros(volume.shape, dtype=np.float32)
    mean = inside.mean(dtype=np.float64)
    deviation = inside.std(dtype=np.float64)
    scaled = (volume - np.float32(mean)) / np.float32(deviation or 1.0)
    return np.asarray(scaled, dtype=np.float32)


def robust(volume: np.ndarray) -> np.ndarray:
    """The foreground's median to 0.5 and its deviation to 0.1, cut at 0 and 1.5.

    The deviation is that of a normal distribution with the same median absolute
    deviation.
    """
    inside = volume[foreground(volume)]
    if not inside.size:
        return np.full(volume.shape, 0.5, dtype=np.float32)
    middle = float(np.median(inside))
    deviation = 1.4826 * float(np.median(np.abs(inside - middle))) or 1.0
    scaled = 0.5 + 0.1 * (volume.astype(np.float32) - middle) / deviation
    return np.asarray(np.clip(scaled, 0.0, 1.5, out=scaled), dtype=np.float32)


def window(volume: np.ndarray, low: float, high: float) -> np.ndarray:
    """``low`` to 0 and ``high`` to 1, cut beyond, float32."""
    scaled = (volume.astype(np.float32) - low) / max(high - low, 1e-12)
    return np.asarray(np.clip(scaled, 0.0, 1.0, out=scaled), dtype=np.float32)


def percentile(volume: np.ndarray, low: float, high: float) -> np.ndarray:
    """The percentiles ``low`` and ``high`` to 0 and 1, cut beyond, float32."""
    values = volume.ravel()
    if values.size > _MANY:
        values = values[::_STEP]
    bottom, top = np.percentile(values, [low, high])
    return window(volume, float(bottom), float(top))


def normalised(
    volume: np.ndarray, method: Method, settings: CaseSettings
) -> np.ndarray:
    """A volume with the grey values that the network reads.

    Args:
        volume: (x, y, z), one channel.
        method: See the table above.
        settings: Has the window and the percentiles.

    Returns:
        float32 of the same shape.
    """
    if method == "z-score":
        return z_score(volume)
    if method == "robust":
        return robust(volume)
    if method == "ct-window":
        return window(volume, *settings.window)
    if method == "percentile":
        return percentile(volume, *settings.percentiles)
    if method == "max":
        largest = float(volume.max())
        # Of values below 0 alone, dark would become bright.
        scale = np.float32(largest if largest > 0 else 1.0)
        return np.asarray(volume / scale, dtype=np.float32)
    return volume.astype(np.float32, copy=False)
