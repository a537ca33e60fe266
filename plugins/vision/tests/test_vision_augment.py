"""Augmentation: boxes and masks go where the pixels go, and chance is the seed's."""

from __future__ import annotations

import copy
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from headstart_vision import augment
from headstart_vision.augment import (
    augment_classification,
    augment_masks,
    augment_objects,
)

PRESETS = ("light", "strong")
SEEDS = range(40)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def chosen(augmentation="none", mixup=0.0, cutmix=0.0):
    return SimpleNamespace(augmentation=augmentation, mixup=mixup, cutmix=cutmix)


def rectangles(dtype=torch.uint8):
    """Three images of 64x96 canvas, one smaller, each with a bright rectangle."""
    sizes = [(64, 96), (48, 80), (64, 64)]
    corners = [(20, 10, 60, 40), (30, 12, 58, 40), (8, 20, 40, 50)]
    pixels = torch.zeros(3, 3, 64, 96, dtype=torch.uint8)
    masks = torch.zeros(3, 2, 64, 96, dtype=torch.uint8)
    mask = torch.full((3, 64, 96), 255)
    boxes = torch.zeros(3, 2, 4)
    for i, ((height, width), (x0, y0, x1, y1)) in enumerate(
        zip(sizes, corners, strict=True)
    ):
        # As what comes into view beside an image, so that there are two greys alone.
        pixels[i, :, :height, :width] = 114
        pixels[i, :, y0:y1, x0:x1] = 240
        masks[i, 0, y0:y1, x0:x1] = 1
        mask[i, :height, :width] = 0
        mask[i, y0:y1, x0:x1] = 2
        boxes[i, 0] = torch.tensor([x0, y0, x1, y1])
    if dtype != torch.uint8:
        pixels = pixels.to(dtype) / 255
    return {
        "pixels": pixels,
        "image_sizes": torch.tensor(sizes),
        "original_sizes": torch.tensor(sizes) * 2,
        "boxes": boxes,
        "box_labels": torch.tensor([[1, 0], [2, 0], [3, 0]]),
        "crowd": torch.zeros(3, 2, dtype=torch.bool),
        "masks": masks,
        "mask": mask,
    }


def extent(inside):
    """xyxy of the true entries of a (height, width) array."""
    rows, columns = torch.nonzero(inside.any(1)), torch.nonzero(inside.any(0))
    return torch.tensor(
        [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1],
        dtype=torch.float32,
    )


def bright(pixels):
    """Whose grey is nearer to the rectangle's than to that of what surrounds it."""
    grey = pixels.float().mean(0)
    return grey > (grey.max() + grey.min()) / 2


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("preset", PRESETS)
def test_box_and_mask_lie_on_the_pixels(preset, dtype, monkeypatch):
    # A blur swallows what is left of the surroundings near the border.
    monkeypatch.setattr(v2, "GaussianBlur", lambda *_, **__: v2.Identity())
    batch = {k: v for k, v in rectangles(dtype).items() if k != "mask"}
    checked = 0
    for seed in SEEDS:
        new = augment_objects(batch, preset, seeded(seed))
        for i, (height, width) in enumerate(batch["image_sizes"].tolist()):
            if not new["box_labels"][i, 0]:
                continue
            box, mask = new["boxes"][i, 0], new["masks"][i, 0].bool()
            assert (box - extent(mask)).abs().max() <= 1, (seed, i)
            pixels = new["pixels"][i, :, :height, :width]
            if mask.sum() < 0.9 * height * width:
                assert (box - extent(bright(pixels))).abs().max() <= 1.01, (seed, i)
                checked += 1
            assert box[0] >= 0 and box[1] >= 0
            assert box[2] <= width and box[3] <= height
    assert checked > len(SEEDS)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_image_has_its_own_draw(preset):
    batch = rectangles()
    for key in ("pixels", "boxes", "masks", "image_sizes"):
        batch[key] = batch[key][[2, 2, 2]]
    first, second, third = augment_objects(batch, preset, seeded(0))["pixels"]
    assert not torch.equal(first, second) and not torch.equal(second, third)


@pytest.mark.parametrize("preset", PRESETS)
def test_padding_stays_empty(preset):
    batch = rectangles()
    for seed in SEEDS:
        objects = augment_objects(batch, preset, seeded(seed))
        semantic = augment_masks(batch, preset, seeded(seed))
        for i, (height, width) in enumerate(batch["image_sizes"].tolist()):
            for new in (objects, semantic):
                assert new["pixels"][i, :, height:].sum() == 0
                assert new["pixels"][i, :, :, width:].sum() == 0
            assert (semantic["mask"][i, height:] == 255).all()
            assert (semantic["mask"][i, :, width:] == 255).all()
            assert objects["masks"][i, :, height:].sum() == 0
            assert objects["masks"][i, :, :, width:].sum() == 0
        assert torch.equal(objects["image_sizes"], batch["image_sizes"])
        assert torch.equal(objects["box_labels"][:, 1], torch.zeros(3).long())
        assert objects["boxes"][:, 1].abs().sum() == 0


@pytest.mark.parametrize("preset", PRESETS)
def test_an_object_that_all_but_left_is_none(preset, monkeypatch):
    """By hand: a shift of 36 pixels leaves 4 of 40 columns (10 %), one of 38 two."""
    batch = rectangles()
    batch = {k: v[2:] for k, v in batch.items()}  # 64x64, the box is 8..40, 20..50
    batch["boxes"][0, 1] = torch.tensor([0.0, 0, 40, 10])
    batch["masks"][0, 1, :10, :40] = 1
    batch["box_labels"][0, 1] = 5
    batch["crowd"][0, 1] = True
    for shift, left in ((-36, True), (-38, False)):
        by_hand(monkeypatch, translate=(shift, 0))
        new = augment_objects(batch, preset, seeded(0))
        assert new["box_labels"].tolist() == [[3 if shift == -36 else 0, 5 * left]]
        assert new["crowd"].tolist() == [[False, left]]
        assert bool(new["masks"][0, 1].any()) is left
        expected = [0.0, 0, 4, 10] if left else [0.0] * 4
        assert new["boxes"][0, 1].tolist() == expected


@pytest.mark.parametrize(
    ("scale", "shift", "kept"), [(0.5, -28, [1, 0]), (1.0, -28, [0, 0])]
)
def test_shrinking_is_no_loss_and_an_empty_mask_is(monkeypatch, scale, shift, kept):
    """By hand: of 30 columns 2 are left (7 %), of the 15 at half the size 3 (20 %).

    Those 3 are a twentieth of the area before the move. The second box stays in part,
    but its mask, on its left, is moved out.
    """
    batch = {k: v[2:].clone() for k, v in rectangles().items()}
    batch["boxes"][0] = torch.tensor([[0.0, 10, 30, 50], [0.0, 10, 64, 50]])
    batch["box_labels"][0] = torch.tensor([1, 1])
    batch["masks"].zero_()
    batch["masks"][0, 0, 10:50, :30] = 1
    batch["masks"][0, 1, 10:50, :4] = 1
    by_hand(monkeypatch, scale=scale, translate=(shift, 0))
    new = augment_objects(batch, "light", seeded(0))
    assert new["box_labels"].tolist() == [kept]


def by_hand(monkeypatch, scale=1.0, translate=(0, 0)):
    """Neither chance nor colour: this move, and no flip."""
    move = {"angle": 0.0, "translate": translate, "scale": scale, "shear": (0, 0)}
    monkeypatch.setattr(v2.RandomAffine, "make_params", lambda *_: move)
    monkeypatch.setattr(augment.torch, "rand", lambda *_: torch.tensor(0.9))
    monkeypatch.setattr(augment, "_colour", lambda _: lambda image: image)


def test_a_flip_loses_nothing():
    batch = rectangles()
    flipped = F.horizontal_flip(batch["pixels"][0])
    found = 0
    for seed in SEEDS:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(augment, "_geometry", lambda _: v2.RandomAffine(0))
            patch.setattr(augment, "_colour", lambda _: lambda image: image)
            new = augment_objects(batch, "light", seeded(seed))
        assert new["box_labels"].tolist() == [[1, 0], [2, 0], [3, 0]]
        if torch.equal(new["pixels"][0], flipped):
            found += 1
            assert new["boxes"][0, 0].tolist() == [96 - 60, 10, 96 - 20, 40]
        else:
            assert torch.equal(new["pixels"][0], batch["pixels"][0])
    assert 5 < found < 35


def test_semantic_mask_lies_on_the_pixels(monkeypatch):
    monkeypatch.setattr(v2, "GaussianBlur", lambda *_, **__: v2.Identity())
    batch = rectangles()
    for preset in PRESETS:
        for seed in SEEDS:
            new = augment_masks(batch, preset, seeded(seed))
            assert set(new["mask"].unique().tolist()) <= {0, 2, 255}
            for i, (height, width) in enumerate(batch["image_sizes"].tolist()):
                inside = new["mask"][i] == 2
                if 0 < inside.sum() < 0.9 * height * width:
                    grey = bright(new["pixels"][i, :, :height, :width])
                    assert (extent(inside) - extent(grey)).abs().max() <= 1.01


def test_what_comes_into_view_is_ignored():
    """At the smallest scale, images have a border whose class nobody knows."""
    batch = rectangles()
    shares = [
        (augment_masks(batch, "strong", seeded(s))["mask"][0] == 255).float().mean()
        for s in SEEDS
    ]
    assert max(shares) > 0.5 and min(shares) == 0


@pytest.mark.parametrize("preset", PRESETS)
def test_images_without_objects(preset):
    batch = rectangles()
    batch["boxes"].zero_()
    batch["box_labels"].zero_()
    batch["masks"].zero_()
    new = augment_objects(batch, preset, seeded(1))
    assert new["boxes"].sum() == 0 and new["box_labels"].sum() == 0
    assert torch.isfinite(new["boxes"]).all()
    assert not torch.equal(new["pixels"], batch["pixels"])


def states():
    return (
        torch.get_rng_state().tolist(),
        random.getstate(),
        np.random.get_state()[1].tolist(),
    )


def labelled(dtype=torch.uint8):
    pixels = rectangles(dtype)["pixels"]
    return {"pixels": pixels, "labels": torch.tensor([0, 2, 1])}


CALLS = {
    "objects light": lambda b, g: augment_objects(b, "light", g),
    "objects strong": lambda b, g: augment_objects(b, "strong", g),
    "masks light": lambda b, g: augment_masks(b, "light", g),
    "masks strong": lambda b, g: augment_masks(b, "strong", g),
    **{
        f"{name} {mix}": lambda b, g, n=name, m=mix: augment_classification(
            {"pixels": b["pixels"], "labels": b["box_labels"][:, 0]},
            chosen(n, **m),
            g,
            4,
        )
        for name in ("light", "strong", "trivial-augment")
        for mix in ({}, {"mixup": 0.4, "cutmix": 1.0})
    },
}


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("call", CALLS.values(), ids=list(CALLS))
def test_the_result_is_a_function_of_the_generator_alone(call, dtype):
    batch = rectangles(dtype)
    given = copy.deepcopy(batch)
    torch.manual_seed(1)
    before = states()
    first = call(batch, seeded(3))
    assert states() == before
    torch.manual_seed(2)
    again = call(batch, seeded(3))
    other = call(batch, seeded(4))
    assert first.keys() == again.keys()
    for key in first:
        assert torch.equal(first[key], again[key])
    assert not torch.equal(first["pixels"], other["pixels"])
    for key in batch:
        assert torch.equal(batch[key], given[key]), key
    pixels = first["pixels"]
    assert pixels.shape == given["pixels"].shape
    if pixels.is_floating_point():
        assert pixels.min() >= 0 and pixels.max() <= 1


def test_no_preset_changes_nothing():
    batch = rectangles()
    for new in (
        augment_objects(batch, "none", seeded(0)),
        augment_masks(batch, "none", seeded(0)),
        augment_classification(batch, chosen(), seeded(0), 3),
    ):
        assert new is not batch
        assert all(new[key] is batch[key] for key in batch)


def test_mixup_by_hand():
    """Every image and its label are blended with the ones before by one share."""
    batch = labelled()
    new = augment_classification(batch, chosen(mixup=1.0), seeded(5), 3)
    share = new["labels"][0, 0]
    assert 0 < share < 1
    plain = batch["pixels"] / 255
    blended = share * plain + (1 - share) * plain[[2, 0, 1]]
    torch.testing.assert_close(new["pixels"], blended)
    # Labels 0, 2, 1; the ones before are 1, 0, 2.
    expected = torch.zeros(3, 3)
    expected[0, 0] = expected[1, 2] = expected[2, 1] = share
    expected[0, 1] = expected[1, 0] = expected[2, 2] = 1 - share
    torch.testing.assert_close(new["labels"], expected)


def test_cutmix_by_hand():
    """The share of a label is the share of the pixels that are its image's."""
    batch = labelled()
    batch["pixels"] = torch.tensor([10, 100, 200], dtype=torch.uint8)[
        :, None, None, None
    ].expand(3, 3, 20, 30)
    for seed in range(10):
        new = augment_classification(batch, chosen(cutmix=1.0), seeded(seed), 3)
        assert new["pixels"].dtype == torch.uint8
        own = (new["pixels"][0, 0] == 10).float().mean()
        other = (new["pixels"][0, 0] == 200).float().mean()
        torch.testing.assert_close(own + other, torch.tensor(1.0))
        torch.testing.assert_close(new["labels"][0], torch.stack([own, other, own * 0]))


def test_several_labels_are_mixed_as_shares():
    batch = labelled()
    batch["labels"] = torch.tensor([[1.0, 1, 0], [0, 0, 1], [0, 0, 0]])
    new = augment_classification(batch, chosen(mixup=1.0), seeded(0), 3)
    share = new["labels"][0, 0]
    expected = share * batch["labels"] + (1 - share) * batch["labels"][[2, 0, 1]]
    torch.testing.assert_close(new["labels"], expected)


def test_with_both_each_batch_gets_one():
    batch = labelled()
    kinds = {
        augment_classification(batch, chosen(mixup=1.0, cutmix=1.0), seeded(s), 3)[
            "pixels"
        ].dtype
        for s in range(12)
    }
    assert kinds == {torch.uint8, torch.float32}
