"""Simulated lesions: smooth random blobs painted into a real volume.

Nothing here is a model of a disease. A blob is a ball with a bumpy surface; its rim and
core are brighter or darker than the brain by some of the brain's own deviations, with a
texture, a soft edge and sometimes a darker halo (oedema). Bright thin tubes that are
not labelled (vessels) keep a network from taking all that is bright for a lesion, and
slices are blurred to the thickness of real ones. Whoever trains on these sees contrast
and outlines of lesions in real anatomy, and must be tested on real patients.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

if TYPE_CHECKING:
    from headstart_medical.data_settings import LesionSimulation

_MAD = 1.4826
"""A normal distribution's deviation by its median absolute deviation."""
_FWHM = 2.3548
"""A Gaussian's full width at half maximum by its deviation."""


@dataclass(frozen=True)
class _Scene:
    """What a volume is painted with: itself, where lesions may be, its scale."""

    volume: np.ndarray
    inside: np.ndarray
    spacing: np.ndarray
    deviation: float


def simulate(
    volume: np.ndarray,
    inside: np.ndarray,
    spacing: np.ndarray,
    settings: LesionSimulation,
    generator: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """A copy of a volume with lesions in it.

    Args:
        volume: (x, y, z), any scale of grey values.
        inside: bool (x, y, z): where a lesion's voxels may be, the brain.
        spacing: Millimetres of a voxel along each axis.
        settings: Sizes and number of the lesions, thickness of the slices.
        generator: The only source of chance.

    Returns:
        float32 of the same shape, and bool, where the lesions are: at least one voxel.

    Raises:
        ValueError: There is no voxel inside.
    """
    if not inside.any():
        raise ValueError("there is no voxel where a lesion may be")
    brain = volume[inside]
    middle = np.median(brain)
    deviation = float(_MAD * np.median(np.abs(brain - middle))) or 1.0
    scene = _Scene(
        volume.astype(np.float32), inside, np.asarray(spacing, float), deviation
    )
    mask = np.zeros(volume.shape, dtype=bool)
    places = np.flatnonzero(inside)
    for _ in range(int(generator.integers(1, settings.most + 1))):
        flat = places[generator.integers(len(places))]
        centre = np.array(np.unravel_index(flat, volume.shape))
        _paint_lesion(scene, mask, centre, settings.radius, generator)
    for _ in range(int(generator.integers(0, 5))):
        flat = places[generator.integers(len(places))]
        centre = np.array(np.unravel_index(flat, volume.shape))
        _paint_vessel(scene, mask, centre, generator)
    return _thickened(scene, settings.slice_thickness, generator), mask


def _paint_lesion(
    scene: _Scene,
    mask: np.ndarray,
    centre: np.ndarray,
    radii: tuple[float, float],
    generator: np.random.Generator,
) -> None:
    """Change the volume and the mask in place, around the centre."""
    # Small ones are more frequent than large ones, as in patients.
    radius = float(np.exp(generator.uniform(*np.log(radii))))
    axes = radius * generator.uniform(0.7, 1.4, 3)
    box, offsets = _box(scene, centre, 2.2 * axes)
    shape = offsets[0].size, offsets[1].size, offsets[2].size
    x, y, z = np.meshgrid(*offsets, indexing="ij", sparse=True)
    distance = np.sqrt((x / axes[0]) ** 2 + (y / axes[1]) ** 2 + (z / axes[2]) ** 2)
    distance = distance + 0.25 * _texture(shape, radius / 3, scene.spacing, generator)
    inside = scene.inside[box]
    blob = (distance < 1) & inside
    # The bumps may have taken the centre away, where a lesion may surely be.
    middle = tuple(int(np.abs(o).argmin()) for o in offsets)
    blob[middle] = True
    rim = generator.uniform(1.0, 6.0) * (1 if generator.random() < 0.8 else -0.6)
    core = rim * generator.uniform(-0.3, 1.1)
    change = np.where(distance < generator.uniform(0.4, 0.8), core, rim)
    strength = generator.uniform(0.0, 0.3) * abs(rim)
    change = change + strength * _texture(shape, 1.5, scene.spacing, generator)
    edge = generator.uniform(0.3, 1.5) / scene.spacing
    soft = ndimage.gaussian_filter(blob.astype(np.float32), edge)
    painted = soft * change
    if generator.random() < 0.5:
        halo = (distance < 1.6) & inside & ~blob
        wide = ndimage.gaussian_filter(halo.astype(np.float32), 2.0 / scene.spacing)
        painted = painted - generator.uniform(0.0, 1.5) * wide * inside
    scene.volume[box] += (painted * scene.deviation).astype(np.float32)
    mask[box] |= blob


def _paint_vessel(
    scene: _Scene,
    mask: np.ndarray,
    centre: np.ndarray,
    generator: np.random.Generator,
) -> None:
    """A thin bright tube along a random walk of 60 mm; lesions stay as they are."""
    box, offsets = _box(scene, centre, np.full(3, 40.0))
    low = np.array([o[0] for o in offsets])
    tube = np.zeros([o.size for o in offsets], dtype=np.float32)
    place, direction = np.zeros(3), generator.standard_normal(3)
    for _ in range(60):
        direction = direction + 0.3 * generator.standard_normal(3)
        direction /= np.linalg.norm(direction)
        place = place + direction
        voxel = np.rint((place - low) / scene.spacing).astype(int)
        if (voxel < 0).any() or (voxel >= tube.shape).any():
            break
        tube[tuple(voxel)] = 1.0
    tube = ndimage.gaussian_filter(tube, 0.7 / scene.spacing)
    tube *= generator.uniform(2.0, 8.0) / max(float(tube.max()), 1e-6)
    where = scene.inside[box] & ~mask[box]
    scene.volume[box] += (tube * where * scene.deviation).astype(np.float32)


def _thickened(
    scene: _Scene,
    thickness: tuple[float, float],
    generator: np.random.Generator,
) -> np.ndarray:
    """Blurred along the last axis as slices of some thickness would be."""
    width = float(generator.uniform(*thickness))
    sigma = width / _FWHM / scene.spacing[2]
    if width <= scene.spacing[2]:
        return scene.volume.copy()
    blurred = ndimage.gaussian_filter1d(scene.volume, sigma, axis=2, mode="nearest")
    return np.asarray(blurred, dtype=np.float32)


def _box(
    scene: _Scene, centre: np.ndarray, reach: np.ndarray
) -> tuple[tuple[slice, ...], list[np.ndarray]]:
    """The part of a volume within reach (mm) of a voxel, and its offsets in mm."""
    voxels = np.ceil(reach / scene.spacing).astype(int)
    low = np.maximum(centre - voxels, 0)
    high = np.minimum(centre + voxels + 1, scene.volume.shape)
    box = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    offsets = [
        (np.arange(a, b) - c) * s
        for a, b, c, s in zip(low, high, centre, scene.spacing, strict=True)
    ]
    return box, offsets


def _texture(
    shape: tuple[int, ...],
    size: float,
    spacing: np.ndarray,
    generator: np.random.Generator,
) -> np.ndarray:
    """Smooth noise of deviation 1 with structures of some millimetres."""
    noise = generator.standard_normal(shape, dtype=np.float32)
    smooth = ndimage.gaussian_filter(noise, size / spacing)
    return np.asarray(smooth / max(float(smooth.std()), 1e-6))
