"""Losses against MONAI's where all voxels are known, and by hand where they are not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from monai.losses import DeepSupervisionLoss, DiceCELoss, DiceFocalLoss

from headstart_medical import losses
from headstart_medical.losses import SegmentationLoss, deep_supervision, mask_at

KINDS = ("dice-ce", "dice-focal")


def patches(classes: int = 3, size: int = 6, batch: int = 2) -> tuple[Any, Any]:
    generator = torch.Generator().manual_seed(3)
    shape = (size, size + 1, size + 2)
    logits = torch.randn(batch, classes, *shape, generator=generator)
    mask = torch.randint(classes, (batch, *shape), generator=generator)
    return logits, mask


def monai_loss(kind: str, background: bool, **given: Any) -> Any:
    made = {"dice-ce": DiceCELoss, "dice-focal": DiceFocalLoss}[kind]
    return made(include_background=background, to_onehot_y=True, softmax=True, **given)


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_loss_is_monais(kind: Any, background: bool) -> None:
    logits, mask = patches()
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    loss = SegmentationLoss(kind, background)(ours, mask).mean()
    expected = monai_loss(kind, background)(theirs, mask.unsqueeze(1))
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_is_the_loss_of_its_patch(kind: Any) -> None:
    logits, mask = patches()
    rows = SegmentationLoss(kind)(logits, mask)
    for row in range(2):
        alone = monai_loss(kind, False)(logits[[row]], mask[[row]].unsqueeze(1))
        torch.testing.assert_close(rows[row], alone)


@pytest.mark.parametrize("kind", KINDS)
def test_slabs_add_up(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    logits, mask = patches()
    mask[0, :2] = -1
    whole = SegmentationLoss(kind)(logits.clone().requires_grad_(), mask)
    seen = []
    original = SegmentationLoss._sums

    def sums(self: Any, part: Any, known: Any) -> Any:
        seen.append(part.shape[2])
        return original(self, part, known)

    monkeypatch.setattr(SegmentationLoss, "_sums", sums)
    monkeypatch.setattr(losses, "SLAB", logits.numel() // 3)
    torch.testing.assert_close(SegmentationLoss(kind)(logits, mask), whole.detach())
    assert seen == [2, 2, 2]


@pytest.mark.parametrize("kind", KINDS)
def test_unknown_voxels_do_not_count(kind: Any) -> None:
    logits, mask = patches()
    loss = SegmentationLoss(kind)
    expected = loss(logits[:, :, 2:], mask[:, 2:])
    mask[:, :2] = -1
    logits = logits.requires_grad_()
    found = loss(logits, mask)
    torch.testing.assert_close(found, expected)
    found.sum().backward()
    assert not logits.grad[:, :, :2].any() and logits.grad[:, :, 2:].any()


def test_a_patch_without_a_known_voxel_costs_nothing() -> None:
    logits, mask = patches()
    mask[1] = -1
    found = SegmentationLoss()(logits, mask)
    assert found[1] == 0 and found[0] > 0


def test_deep_supervision_is_monais_with_weights_that_add_up_to_one() -> None:
    logits, mask = patches(size=8)
    generator = torch.Generator().manual_seed(4)
    coarse = [
        torch.randn(2, 3, *(n // s for n in (8, 9, 10)), generator=generator)
        for s in (2, 4)
    ]
    levels = [logits, *coarse]
    found = deep_supervision(SegmentationLoss(), levels, mask).mean()
    # Whose weights are 1, 1/2, 1/4.
    theirs = DeepSupervisionLoss(monai_loss("dice-ce", False))
    expected = theirs(levels, mask.unsqueeze(1).float()) / 1.75
    torch.testing.assert_close(found, expected)


def test_coarser_masks_keep_what_is_not_known() -> None:
    mask = torch.tensor([-1, -1, 2, 2, 0, 0]).view(1, 6, 1, 1)
    assert mask_at(mask, (3, 1, 1)).flatten().tolist() == [-1, 2, 0]
