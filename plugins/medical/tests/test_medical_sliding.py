"""Sliding windows against MONAI's and by hand; connected components by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from monai.inferers.utils import sliding_window_inference
from torch import nn

from headstart_medical.components import clean_components
from headstart_medical.head_settings import SegmentationSettings
from headstart_medical.sliding import Windows, enlarged

if TYPE_CHECKING:
    import pytest


def network() -> Any:
    """Sees where something is: mirroring the input changes more than the place."""
    torch.manual_seed(0)
    return nn.Conv3d(2, 3, 3, padding=1).requires_grad_(False)


def volume(*shape: int) -> torch.Tensor:
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(1))


def test_voxels_are_monais() -> None:
    given, net = volume(19, 14, 11), network()
    found = Windows((8, 8, 8), overlap=0.5, batch=3)(net, given, 3)
    expected = sliding_window_inference(
        given[None], (8, 8, 8), 1, net, overlap=0.5, mode="gaussian"
    )
    torch.testing.assert_close(found, expected[0])
    # The blend is what a network at once gives, only away from the windows' edges.
    assert not torch.allclose(found, net(given[None])[0], atol=1e-3)


def test_a_volume_of_one_window_goes_through_at_once() -> None:
    given, net = volume(8, 6, 4), network()
    found = Windows((8, 6, 4))(net, given, 3)
    torch.testing.assert_close(found, net(given[None])[0])


def test_a_volume_smaller_than_a_window_keeps_its_size() -> None:
    given, seen = volume(5, 8, 3), []

    def double(windows: torch.Tensor) -> torch.Tensor:
        seen.append(windows)
        return 2 * windows

    found = Windows((8, 8, 8))(double, given, 2)
    torch.testing.assert_close(found, 2 * given)
    # Padded with the darkest value of each channel.
    for channel in range(2):
        expected = np.full((8, 8, 8), given[channel].min())
        expected[1:6, :, 2:5] = given[channel]
        np.testing.assert_allclose(seen[0][0, channel], expected, rtol=1e-5)


def test_network_sees_no_more_than_a_batch_of_windows() -> None:
    shapes = []

    def net(windows: torch.Tensor) -> torch.Tensor:
        shapes.append(tuple(windows.shape))
        return windows

    given = volume(20, 8, 8)
    found = Windows((8, 8, 8), overlap=0.5, batch=3)(net, given, 2)
    torch.testing.assert_close(found, given)
    # Starts 0, 4, 8 and 12.
    assert shapes == [(3, 2, 8, 8, 8), (1, 2, 8, 8, 8)]


def test_flips_are_the_mean_over_mirror_images() -> None:
    given, net = volume(4, 5, 6), network()
    images = [(), (2,), (4,), (2, 4)]
    mirrored = [net(given[None].flip(axes)).flip(axes) for axes in images]
    expected = torch.stack(mirrored).mean(0)[0]
    found = Windows((4, 5, 6), flips=("z", "x", "x"))(net, given, 3)
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, net(given[None])[0], atol=1e-3)


def test_window_is_the_patch_unless_settings_have_one() -> None:
    settings = SegmentationSettings(name="x", overlap=0.5, window_batch=2)
    assert Windows.of(settings, [8, 9, 10]) == Windows((8, 9, 10), 0.5, 2)
    settings = SegmentationSettings(name="x", window=(4, 4, 4), flips=("x",))
    assert Windows.of(settings, [8, 9, 10]) == Windows((4, 4, 4), flips=("x",))


def test_volumes_go_where_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda")
    places = []
    # 1,000 values of 4 bytes, twice, in half of what is free.
    for free in (15_999, 16_000):
        monkeypatch.setattr(
            torch.cuda, "mem_get_info", lambda device, free=free: (free, 10**9)
        )
        places.append(Windows((4, 4, 4)).stitch_device(gpu, 1000).type)
    assert places == ["cpu", "cuda"]
    always = {
        stitch: Windows((4, 4, 4), stitch=stitch).stitch_device(gpu, 10**9).type
        for stitch in ("cpu", "device")
    }
    assert always == {"cpu": "cpu", "device": "cuda"}


def test_enlarged_keeps_the_field_of_view() -> None:
    coarse = torch.tensor([0.0, 4.0]).view(1, 1, 2, 1, 1)
    found = enlarged(coarse, (4, 1, 1)).flatten().tolist()
    assert found == [0.0, 1.0, 3.0, 4.0]


def pieces() -> np.ndarray:
    """Class 1: 8 voxels and, apart, 2; class 2: 3 voxels beside the first piece."""
    mask = np.zeros((10, 6, 6), dtype=np.uint8)
    mask[:2, :2, :2] = 1
    mask[8:, 5, 5] = 1
    mask[2:5, 2, 2] = 2
    return mask


def test_largest_component_of_each_class_stays() -> None:
    mask = pieces()
    before = mask.copy()
    cleaned = clean_components(mask, (1, 1, 1), largest=True)
    expected = before.copy()
    expected[8:] = 0
    np.testing.assert_array_equal(cleaned, expected)
    np.testing.assert_array_equal(mask, before)


def test_small_components_go_by_their_volume() -> None:
    # A voxel has 10 x 10 x 1 mm = 0.1 ml.
    cleaned = clean_components(pieces(), (10, 10, 1), smallest_ml=0.3)
    expected = pieces()
    expected[8:] = 0
    np.testing.assert_array_equal(cleaned, expected)
    kept = clean_components(pieces(), (10, 10, 1), smallest_ml=0.2)
    np.testing.assert_array_equal(kept, pieces())


def test_voxels_that_share_a_corner_are_one_component() -> None:
    mask = np.zeros((4, 4, 4), dtype=np.uint8)
    for place in range(4):
        mask[place, place, place] = 1
    np.testing.assert_array_equal(clean_components(mask, (1, 1, 1), largest=True), mask)
