"""Grids of voxels: to RAS, to another spacing or shape, and back.

A grid is a shape and an affine that takes voxel indices to world millimetres (RAS+, as
nibabel has them). Going to RAS turns and flips axes alone, no voxel changes; the rest
is scaling along the axes, about the middle of the volume, so that the outer edges of
the field of view stay where they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from nibabel import affines, orientations
from scipy import ndimage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike

# nibabel has no types of its own.
_turns: Any = orientations
_affines: Any = affines
_RAS = np.array([[0, 1], [1, 1], [2, 1]])
_SAME = 1e-4
"""Voxels by which grids may differ and still count as one."""


@dataclass(frozen=True, eq=False)
class Grid:
    """Where the voxels of a volume are.

    Attributes:
        shape: Voxels along each axis.
        affine: float64 (4, 4), voxel indices to RAS+ millimetres.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray

    @classmethod
    def of(cls, shape: ArrayLike, affine: ArrayLike) -> Grid:
        """A grid from anything that has its numbers."""
        i, j, k = (int(n) for n in np.asarray(shape))
        return cls((i, j, k), np.asarray(affine, dtype=np.float64))

    @property
    def spacing(self) -> np.ndarray:
        """Millimetres between neighbouring voxels along each axis, float64 (3,)."""
        return np.asarray(_affines.voxel_sizes(self.affine))

    def is_as(self, other: Grid) -> bool:
        """Whether every voxel is where the other grid has it, to 1/10,000 voxel."""
        if self.shape != other.shape:
            return False
        relative = np.linalg.inv(other.affine) @ self.affine
        corners = np.array(np.meshgrid(*[(0, n - 1) for n in self.shape])).reshape(3, 8)
        moved = relative[:3, :3] @ corners + relative[:3, 3:]
        return bool(np.abs(moved - corners).max() < _SAME)

    def to_ras(self) -> Grid:
        """The same voxels with the axes that are nearest to right, anterior, up."""
        orientation = _turns.io_orientation(self.affine)
        affine = self.affine @ _turns.inv_ornt_aff(orientation, self.shape)
        places = orientation[:, 0].astype(int)
        shape = np.empty(3, dtype=int)
        shape[places] = self.shape
        return Grid.of(shape, affine)

    def with_spacing(self, spacing: Sequence[float]) -> Grid:
        """As large, to half a voxel, about the same middle, with another spacing."""
        wanted = np.asarray(spacing, dtype=np.float64)
        shape = np.maximum(np.rint(np.array(self.shape) * self.spacing / wanted), 1)
        return self._scaled(shape, wanted / self.spacing)

    def with_shape(self, shape: Sequence[int]) -> Grid:
        """The same field of view in another number of voxels."""
        wanted = np.asarray(shape)
        return self._scaled(wanted, np.array(self.shape) / wanted)

    def _scaled(self, shape: np.ndarray, factors: np.ndarray) -> Grid:
        middle = (np.array(self.shape) - 1) / 2
        step = np.eye(4)
        step[:3, :3] = np.diag(factors)
        step[:3, 3] = middle - factors * (shape - 1) / 2
        return Grid.of(shape, self.affine @ step)


def to_ras(array: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, Grid]:
    """Axes turned and flipped to RAS; a view, no voxel is changed.

    Args:
        array: (x, y, z).
        affine: Its own.

    Returns:
        The array and where its voxels are.
    """
    grid = Grid.of(array.shape, affine)
    turned = _turns.apply_orientation(array, _turns.io_orientation(grid.affine))
    return turned, grid.to_ras()


def from_ras(array: np.ndarray, original: Grid) -> np.ndarray:
    """What :func:`to_ras` undoes: an array in RAS with the original's axes again."""
    back = _turns.ornt_transform(_RAS, _turns.io_orientation(original.affine))
    return cast("np.ndarray", _turns.apply_orientation(array, back))


def resample(
    array: np.ndarray, source: Grid, target: Grid, *, order: int = 1
) -> np.ndarray:
    """A volume on another grid whose axes are parallel to its own.

    Where the target is coarser, linear interpolation follows a Gaussian against
    aliasing, with scikit-image's sigma of half the factor less one. Beyond the edges
    the outermost voxels go on.

    Args:
        array: (x, y, z).
        source: Its grid.
        target: The grid wanted.
        order: 1 linear (float32 comes out), 0 the nearest voxel (dtype stays).

    Returns:
        The volume; the same array where both grids are the same.
    """
    if source.is_as(target):
        return array
    relative = np.linalg.inv(source.affine) @ target.affine
    factors, offset = np.diag(relative)[:3], relative[:3, 3]
    if order:
        array = array.astype(np.float32, copy=False)
        sigma = np.maximum(0.0, (factors - 1) / 2)
        if sigma.any():
            array = ndimage.gaussian_filter(array, sigma, mode="nearest")
    return cast(
        "np.ndarray",
        ndimage.affine_transform(
            array,
            # Of a vector scipy knows that the axes are apart, which is much faster.
            factors,
            offset,
            output_shape=target.shape,
            order=order,
            mode="nearest",
            prefilter=False,
        ),
    )


def to_original(
    array: np.ndarray, grid: Grid, original: Grid, *, order: int = 1
) -> np.ndarray:
    """A volume on the network's grid, brought back to the file's own grid.

    Args:
        array: (x, y, z) on the network's grid, which is RAS.
        grid: The network's.
        original: The file's, whatever its orientation.
        order: As for :func:`resample`.
    """
    return from_ras(resample(array, grid, original.to_ras(), order=order), original)


def labels_on_original(
    probabilities: np.ndarray, grid: Grid, original: Grid
) -> np.ndarray:
    """The likeliest class of each voxel of the original grid.

    Probabilities are interpolated, class after class, and then compared: outlines are
    smoother than those of labels that are brought back.

    Args:
        probabilities: (classes, x, y, z) on the network's grid.
        grid: The network's.
        original: The file's.

    Returns:
        uint8 of the original's shape; of equal ones the first class.
    """
    if grid.is_as(original.to_ras()):
        return from_ras(probabilities.argmax(0).astype(np.uint8), original)
    best = resample(probabilities[0], grid, original.to_ras())
    labels = np.zeros(best.shape, dtype=np.uint8)
    for number, values in enumerate(probabilities[1:], start=1):
        found = resample(values, grid, original.to_ras())
        better = found > best
        labels[better] = number
        np.maximum(best, found, out=best)
    return from_ras(labels, original)
