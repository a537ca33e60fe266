"""Augmentation: labels move with the volume, and chance comes from the generator."""

from __future__ import annotations

import math

import pytest
import torch

from headstart_medical.augment import (
    PRESETS,
    UNKNOWN,
    Chance,
    Preset,
    _moved,
    _recoloured,
    _turned,
    augmented,
    hide,
)

SIZE = (16, 12, 10)
SPACING = (1.0, 1.0, 3.0)


def patches(margin: int = 4, count: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Volumes that are bright where the mask has class 1."""
    whole = [side + 2 * margin for side in SIZE]
    mask = torch.zeros(count, *whole, dtype=torch.int64)
    mask[
        :, margin + 2 : margin + 9, margin + 3 : margin + 8, margin + 2 : margin + 7
    ] = 1
    return mask[:, None].float(), mask


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_mask_moves_with_the_volume(preset: str) -> None:
    image, mask = patches()
    changed, classes = augmented(image, mask, SIZE, preset, SPACING, generator(1))
    assert changed.shape == (3, 1, *SIZE)
    assert classes is not None and classes.shape == (3, *SIZE)
    assert classes.dtype == torch.int64
    for values, labels in zip(changed[:, 0], classes, strict=True):
        inside, outside = values[labels == 1], values[labels == 0]
        assert len(inside) > 50
        # Bright inside, dark outside, but for voxels on the interpolated edge.
        middle = (inside.median() + outside.median()) / 2
        agree = ((values > middle) == (labels == 1))[labels != UNKNOWN]
        assert agree.float().mean() > 0.93


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_same_seed_same_change(preset: str) -> None:
    image, mask = patches()
    before = image.clone()
    once = augmented(image, mask, SIZE, preset, SPACING, generator(5))
    torch.manual_seed(9)
    again = augmented(image, mask, SIZE, preset, SPACING, generator(5))
    other = augmented(image, mask, SIZE, preset, SPACING, generator(6))
    assert torch.equal(once[0], again[0]) and torch.equal(once[1], again[1])
    assert not torch.equal(once[0], other[0])
    assert not torch.equal(once[0][0], once[0][1]), "each sample has its own draw"
    assert torch.equal(image, before)


def test_light_moves_voxels_and_makes_none() -> None:
    _, mask = patches()
    numbers = torch.arange(mask[0].numel()).view(1, *mask[0].shape).repeat(3, 1, 1, 1)
    image = numbers[:, None].float()
    _, moved = augmented(image, numbers, SIZE, "light", SPACING, generator(2))
    assert moved is not None
    for values in moved:
        plane = values[:, 0, 0]
        step = plane[1] - plane[0]
        one = numbers[0, 1, 0, 0] - numbers[0, 0, 0, 0]
        assert abs(step) == one, "whole voxels, and x alone may be flipped"
        assert values[0, 1, 0] - values[0, 0, 0] == mask.shape[-1]
        assert values[0, 0, 1] - values[0, 0, 0] == 1


def test_turning_is_in_millimetres() -> None:
    """A quarter turn about x takes 3 mm slices to three voxels of 1 mm."""
    image = torch.zeros(1, 1, 5, 31, 31)
    image[0, 0, 2, 15, 17] = 1.0
    still = Preset(angle=0.0, scale=0.0, flips=0, contrast=0, gamma=0, noise=0)

    class Quarter(Chance):
        def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0):  # type: ignore[no-untyped-def]
            if shape == (1, 3):
                # About the first axis alone; no shift.
                return torch.tensor([[math.pi / 2 if low != -0.5 else 0.0, 0.0, 0.0]])
            return torch.full(shape, (low + high) / 2)

    chance = Quarter(generator(), torch.device("cpu"))
    turned, _ = _turned(image, None, (5, 31, 31), still, (1.0, 1.0, 3.0), chance)
    x, y, z = (turned[0, 0] == turned.max()).nonzero()[0].tolist()
    # The point was 2 slices, 6 mm, from the middle: now 6 voxels of 1 mm along y.
    assert (x, z) == (2, 15)
    assert abs(y - 15) == 6


def test_nothing_drawn_changes_nothing() -> None:
    """Without angle and scale and with no margin, sampling gives the same volume."""
    image, mask = torch.randn(2, 2, *SIZE), torch.randint(0, 4, (2, *SIZE))
    still = Preset(angle=0.0, scale=0.0, flips=0, contrast=0, gamma=0, noise=0)
    chance = Chance(generator(), torch.device("cpu"))
    same, classes = _turned(image, mask, SIZE, still, SPACING, chance)
    assert same == pytest.approx(image, abs=1e-5)
    assert classes is not None and torch.equal(classes, mask)
    assert torch.allclose(_recoloured(image, still, chance), image, atol=1e-5)


def test_what_comes_from_beyond_is_unknown() -> None:
    image, mask = torch.zeros(4, 1, *SIZE), torch.zeros(4, *SIZE, dtype=torch.int64)
    _, classes = augmented(image, mask, SIZE, "strong", SPACING, generator(0))
    assert classes is not None
    assert set(classes.unique().tolist()) == {UNKNOWN, 0}


def test_slices_are_augmented_too() -> None:
    image = torch.rand(4, 3, 20, 18)
    for preset in PRESETS:
        changed, _ = augmented(image, None, (20, 18), preset, (1, 1), generator(1))
        assert changed.shape == image.shape
        assert changed.isfinite().all() and not torch.equal(changed, image)


def test_moving_reaches_both_ends_of_the_margin() -> None:
    """Each start from 0 to the margin's room is drawn, at every axis by itself."""
    places = torch.arange(6 * 5).view(1, 1, 6, 5).repeat(200, 1, 1, 1).float()
    moved, _ = augmented(places, None, (4, 5), "light", (1, 1), generator(0))
    assert moved.shape == (200, 1, 4, 5)
    still, _ = _moved(places, None, (4, 5), Chance(generator(0), places.device))
    starts = still[:, 0, 0, 0] / 5
    assert set(starts.tolist()) == {0.0, 1.0, 2.0}
    assert torch.equal(
        still[:, 0, -1, -1] - still[:, 0, 0, 0], torch.full((200,), 19.0)
    )


def test_hidden_blocks_are_a_share_and_show_nothing() -> None:
    image = torch.randn(2, 2, 16, 16, 12)
    seen, hidden = hide(image, 0.5, 4, generator(0))
    assert hidden.shape == (2, 1, 16, 16, 12) and hidden.dtype == torch.bool
    blocks = hidden.view(2, 4, 4, 4, 4, 3, 4).permute(0, 1, 3, 5, 2, 4, 6).flatten(4)
    assert torch.equal(blocks.all(-1), blocks.any(-1)), "whole blocks"
    assert blocks[..., 0].flatten(1).sum(1).tolist() == [24, 24], "half of 48"
    wide = hidden.expand_as(image)
    assert torch.equal(seen[~wide], image[~wide])
    for sample in range(2):
        for channel in range(2):
            left = seen[sample, channel][hidden[sample, 0]]
            mean = image[sample, channel].mean().item()
            assert left.tolist() == pytest.approx([mean] * len(left), abs=1e-6)
    again, _ = hide(image, 0.5, 4, generator(0))
    assert torch.equal(seen, again)
    assert not torch.equal(hidden[0], hidden[1])


def test_uneven_sides_and_extreme_shares_leave_something() -> None:
    image = torch.randn(1, 1, 10, 9, 7)
    for share in (0.001, 0.999):
        _, hidden = hide(image, share, 4, generator(0))
        assert hidden.any() and not hidden.all()
