"""Grids: orientation, spacing, and the way back to a file's own grid."""

from __future__ import annotations

import itertools

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from headstart_medical.data_settings import VolumeSettings
from headstart_medical.grids import (
    Grid,
    from_ras,
    labels_on_original,
    resample,
    to_original,
    to_ras,
)
from headstart_medical.intensity import (
    normalised,
    percentile,
    robust,
    window,
    z_score,
)
from headstart_medical.patches import cut, positions

SHAPE = (7, 10, 13)


def affine_of(
    codes: str, spacing: tuple[float, float, float], turn: float = 0.0
) -> np.ndarray:
    """An affine with axes as coded, turned about z, and some origin."""
    start = nib.orientations.axcodes2ornt(tuple("RAS"))
    wanted = nib.orientations.axcodes2ornt(tuple(codes))
    change = nib.orientations.ornt_transform(start, wanted)
    c, s = np.cos(turn), np.sin(turn)
    rotation = np.array([[c, -s, 0, 5], [s, c, 0, -7], [0, 0, 1, 11], [0, 0, 0, 1.0]])
    plain = np.diag([*spacing, 1.0])
    return rotation @ plain @ nib.orientations.inv_ornt_aff(change, SHAPE)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "LAS", "PIR", "SRA", "IPL"])
def test_ras_moves_no_voxel_in_the_world(codes: str) -> None:
    affine = affine_of(codes, (1.0, 2.0, 3.0), turn=0.2)
    array = np.random.default_rng(0).random(SHAPE)
    turned, grid = to_ras(array, affine)
    assert nib.aff2axcodes(grid.affine) == ("R", "A", "S")
    assert turned.shape == grid.shape
    back = np.linalg.inv(affine)
    for voxel in itertools.product(*(range(0, n, 3) for n in grid.shape)):
        world = grid.affine @ [*voxel, 1]
        i, j, k, _ = np.rint(back @ world).astype(int)
        assert turned[voxel] == array[i, j, k]
    assert np.array_equal(from_ras(turned, Grid.of(SHAPE, affine)), array)


def test_spacing_keeps_the_middle_and_the_field_of_view() -> None:
    grid = Grid.of((60, 50, 25), affine_of("RAS", (0.8, 1.0, 6.5), turn=0.3))
    finer = grid.with_spacing((1.6, 2.0, 2.0))
    # 25 slices of 6.5 mm are 162.5 mm, 81.25 of 2 mm.
    assert finer.shape == (30, 25, 81)
    assert finer.spacing == pytest.approx([1.6, 2.0, 2.0])

    def middle(g: Grid) -> np.ndarray:
        return g.affine @ [*((np.array(g.shape) - 1) / 2), 1]

    assert middle(finer) == pytest.approx(middle(grid))
    whole = grid.with_shape((30, 30, 30))
    assert np.array(whole.shape) * whole.spacing == pytest.approx(
        np.array(grid.shape) * grid.spacing
    )


def test_resampling_is_scikit_images_resize() -> None:
    """``resize(order=1, mode="edge", anti_aliasing=True)`` is these two of scipy."""
    array = np.random.default_rng(1).random((24, 17, 30))
    for shape in [(12, 12, 12), (30, 17, 45), (8, 40, 15)]:
        source = Grid.of(array.shape, np.eye(4))
        ours = resample(array, source, source.with_shape(shape))
        factors = np.array(array.shape) / shape
        sigma = np.maximum(0, (factors - 1) / 2)
        smooth = ndimage.gaussian_filter(array, sigma, mode="nearest")
        theirs = ndimage.zoom(
            smooth, 1 / factors, order=1, mode="nearest", grid_mode=True
        )
        assert ours == pytest.approx(theirs, abs=2e-6)


def test_a_ramp_stays_where_it_is_in_the_world() -> None:
    """A linear function of world coordinates is resampled without error inside."""
    grid = Grid.of((20, 22, 24), affine_of("RAS", (1.0, 1.5, 2.0), turn=0.4))
    finer = grid.with_spacing((0.7, 0.7, 0.7))
    slope = np.array([0.3, -0.2, 0.5])

    def ramp(g: Grid) -> np.ndarray:
        voxels = np.stack(np.meshgrid(*map(np.arange, g.shape), indexing="ij"), -1)
        return (voxels @ g.affine[:3, :3].T + g.affine[:3, 3]) @ slope

    found = resample(ramp(grid), grid, finer)
    inner = (slice(3, -3),) * 3
    assert found[inner] == pytest.approx(ramp(finer)[inner], abs=1e-4)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "SAR"])
def test_same_spacing_is_the_exact_inverse(codes: str) -> None:
    original = Grid.of(SHAPE, affine_of(codes, (1.0, 2.0, 3.0), turn=0.1))
    labels = np.random.default_rng(2).integers(0, 3, SHAPE).astype(np.uint8)
    turned, grid = to_ras(labels, original.affine)
    same = grid.with_spacing(tuple(grid.spacing))
    assert same.is_as(grid)
    found = resample(turned, grid, same, order=0)
    assert np.array_equal(to_original(found, same, original, order=0), labels)
    one_hot = np.stack([(turned == c).astype(np.float32) for c in range(3)])
    assert np.array_equal(labels_on_original(one_hot, same, original), labels)


def test_labels_survive_another_spacing_and_orientation() -> None:
    affine = affine_of("LPS", (0.9, 0.9, 4.0))
    labels = np.zeros((40, 44, 12), dtype=np.uint8)
    labels[10:25, 12:30, 3:8] = 1
    labels[26:34, 12:30, 3:8] = 2
    original = Grid.of(labels.shape, affine)
    turned, grid = to_ras(labels, affine)
    target = grid.with_spacing((1.5, 1.5, 1.5))
    one_hot = np.stack(
        [resample((turned == c).astype(np.float32), grid, target) for c in range(3)]
    )
    found = labels_on_original(one_hot, target, original)
    assert found.shape == labels.shape and found.dtype == np.uint8
    for c in (1, 2):
        both = ((found == c) & (labels == c)).sum()
        dice = 2 * both / ((found == c).sum() + (labels == c).sum())
        assert dice > 0.9
    nearest = to_original(
        resample(turned, grid, target, order=0), target, original, order=0
    )
    assert (nearest == labels).mean() > 0.97


def test_another_grid_is_not_taken_for_the_same() -> None:
    grid = Grid.of(SHAPE, np.diag([1.0, 1.0, 1.0, 1.0]))
    moved = grid.affine.copy()
    moved[0, 3] = 0.01
    assert not grid.is_as(Grid(SHAPE, moved))
    assert not grid.is_as(Grid((7, 10, 12), grid.affine))
    assert grid.is_as(Grid(SHAPE, grid.affine.copy()))


def test_z_score_is_of_the_foreground() -> None:
    volume = np.zeros((10, 10, 10), dtype=np.float32)
    volume[2:7] = np.random.default_rng(0).normal(100, 10, (5, 10, 10))
    scaled = z_score(volume)
    inside = scaled[2:7].ravel().astype(np.float64)
    assert inside.mean() == pytest.approx(0, abs=1e-4)
    assert inside.std() == pytest.approx(1, abs=1e-4)
    assert scaled[0, 0, 0] == pytest.approx(
        -volume[2:7].mean() / volume[2:7].std(), rel=1e-4
    )


def test_windows_cut_and_percentiles_find_them() -> None:
    values = np.array([-1000.0, -160.0, 40.0, 240.0, 3000.0]).reshape(5, 1, 1)
    assert window(values, -160, 240).ravel().tolist() == [0.0, 0.0, 0.5, 1.0, 1.0]
    ramp = np.arange(1001.0).reshape(1001, 1, 1)
    scaled = percentile(ramp, 10, 90).ravel()
    assert (scaled[100], scaled[900]) == (0.0, 1.0)
    assert scaled[[0, 500, 1000]].tolist() == [0.0, 0.5, 1.0]


def test_the_largest_value_never_turns_dark_into_bright() -> None:
    settings = VolumeSettings(name="x", path="x")
    volume = np.array([-1000.0, -500.0, -250.0]).reshape(3, 1, 1)
    assert normalised(volume, "max", settings).ravel().tolist() == [-1000, -500, -250]
    assert normalised(-volume, "max", settings).ravel().tolist() == [1, 0.5, 0.25]


def test_a_bright_lesion_hardly_moves_the_robust_scale() -> None:
    volume = np.zeros((10, 10, 10), dtype=np.float32)
    volume[2:] = np.random.default_rng(0).normal(100, 5, (8, 10, 10))
    scaled = robust(volume)
    assert np.median(scaled[2:]) == pytest.approx(0.5, abs=1e-3)
    assert scaled[2:].std() == pytest.approx(0.1, rel=0.1)
    assert scaled.min() == 0.0
    lesion = volume.copy()
    lesion[2, :4, :4] = 300
    again = robust(lesion)
    assert again[2, 0, 0] == 1.5
    assert again[3:] == pytest.approx(scaled[3:], abs=0.06)
    assert np.abs(z_score(lesion)[3:] - z_score(volume)[3:]).max() > 0.8


def test_patches_show_what_they_should() -> None:
    mask = np.zeros((40, 30, 20), dtype=np.uint8)
    mask[30:33, 4:6, 9] = 1
    mask[2, 25, 3] = 2
    starts = positions(mask, mask.shape, (12, 10, 8), 20, 0.5, np.random.default_rng(0))
    shown = [np.unique(cut(mask, start, (12, 10, 8), 9)) for start in starts]
    assert all(found.max() > 0 for found in shown[:10]), "half shows a lesion"
    # A rare class is drawn as often as a frequent one.
    assert any(2 in found for found in shown[:10])
    assert any(1 in found for found in shown[:10])
    assert all(9 not in found for found in shown), "inside the volume"
    assert len({tuple(s) for s in starts.tolist()}) > 15


def test_places_of_lesions_in_patches_vary() -> None:
    mask = np.zeros((60, 60, 60), dtype=np.uint8)
    mask[30, 30, 30] = 1
    starts = positions(mask, mask.shape, (16,) * 3, 50, 1.0, np.random.default_rng(3))
    within = 30 - starts
    assert within.min() >= 4 and within.max() < 12, "in the middle half"
    assert all(len(np.unique(within[:, axis])) > 4 for axis in range(3))


def test_a_box_beyond_the_edges_is_filled() -> None:
    array = np.arange(24).reshape(1, 2, 3, 4)
    padded = np.pad(array, [(0, 0), (3, 3), (3, 3), (3, 3)], constant_values=-1)
    for start in itertools.product((-2, 0, 1, 3), repeat=3):
        box = tuple(
            slice(s + 3, s + 3 + n) for s, n in zip(start, (2, 3, 2), strict=True)
        )
        if any(b.stop > n for b, n in zip(box, padded.shape[1:], strict=True)):
            continue
        expected = padded[(0, *box)]
        assert np.array_equal(cut(array, start, (2, 3, 2), -1)[0], expected)
