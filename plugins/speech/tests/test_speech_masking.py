"""Masked spans."""

from __future__ import annotations

import torch

from headstart_speech.masking import SpecAugment, span_mask
from headstart_speech.settings import SpeechBackboneSettings


def augmentation(**settings: float) -> SpecAugment:
    return SpecAugment(SpeechBackboneSettings(name="speech/test", **settings))


def test_spans_lie_inside_their_row() -> None:
    lengths = torch.tensor([40, 25, 9, 10, 0]).repeat(200)
    mask = span_mask(lengths, 40, 0.6, 10)
    assert not (mask & (torch.arange(40) >= lengths[:, None])).any()
    rows = mask.view(200, 5, 40)
    # Shorter than a span: nothing, rather than everything.
    assert not rows[:, 2].any() and not rows[:, 4].any()
    for row in mask.int():
        edges = torch.diff(row, prepend=torch.zeros(1), append=torch.zeros(1))
        runs = (edges == -1).nonzero() - (edges == 1).nonzero()
        assert (runs >= 10).all()


def test_the_share_is_that_of_spans_without_overlap() -> None:
    torch.manual_seed(0)
    # Spans of one position cannot overlap, so their number can be counted.
    mask = span_mask(torch.full((4000,), 30), 30, 0.25, 1)
    assert set(mask.sum(1).tolist()) == {7, 8}
    assert abs(mask.float().mean().item() - 0.25) < 0.002
    none = span_mask(torch.full((50,), 30), 30, 0.0, 1)
    every = span_mask(torch.full((50,), 30), 30, 1.0, 1)
    assert not none.any() and every.all()


def test_starts_are_equally_likely() -> None:
    torch.manual_seed(0)
    # One span of four in ten positions: seven starts.
    mask = span_mask(torch.full((7000,), 10), 10, 0.4, 4)
    assert (mask.sum(1) == 4).all()
    starts = mask.int().argmax(1).bincount(minlength=7)
    assert starts.shape == (7,) and (starts - 1000).abs().max() < 150


def test_evaluation_masks_nothing() -> None:
    hidden = torch.randn(2, 30, 16)
    augment = augmentation(mask_time=0.5, mask_features=0.5).eval()
    lengths = torch.tensor([30, 20])
    assert torch.equal(augment(hidden, lengths, torch.zeros(())), hidden)


def test_training_masks_frames_and_channels() -> None:
    torch.manual_seed(0)
    hidden = torch.randn(2, 30, 16)
    filler = torch.full((16,), 7.0)
    lengths = torch.tensor([30, 20])
    frames = augmentation(mask_time=0.5, mask_time_length=4)
    changed = frames(hidden, lengths, filler)
    masked = (changed == 7.0).all(-1)
    assert masked.any(1).all() and not masked.all()
    assert torch.equal(changed[~masked], hidden[~masked])
    channels = augmentation(mask_time=0, mask_features=0.5, mask_features_length=4)
    changed = channels(hidden, lengths, filler)
    silent = (changed == 0.0).all(1)
    assert silent.any(1).all() and not silent.all()
    kept = ~silent[:, None].expand_as(hidden)
    assert torch.equal(changed[kept], hidden[kept])


def test_given_masks_come_in_place_of_random_ones() -> None:
    hidden = torch.randn(1, 12, 4)
    masked = torch.zeros(1, 12, dtype=torch.bool)
    masked[0, 3:5] = True
    augment = augmentation(mask_time=1.0, mask_time_length=2)
    for changed in (
        augment.train()(hidden, torch.tensor([12]), torch.ones(4), masked),
        augment.eval()(hidden, torch.tensor([12]), torch.ones(4), masked),
    ):
        assert (changed[0, 3:5] == 1.0).all()
        assert torch.equal(changed[~masked], hidden[~masked])


def test_the_filler_always_has_a_gradient_in_training() -> None:
    filler = torch.ones(4, requires_grad=True)
    hidden = torch.randn(1, 12, 4)
    loss = augmentation(mask_time=0.0)(hidden, torch.tensor([12]), filler).sum()
    (gradient,) = torch.autograd.grad(loss, filler)
    assert torch.equal(gradient, torch.zeros(4))
