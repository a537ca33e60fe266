"""What pretraining hides, and the distractors."""

from __future__ import annotations

import itertools

import pytest
import torch

from headstart_speech.masks import distractors, drawn_masks, fixed_masks, hidden_spans

HOW = {"probability": 0.65, "length": 10}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def runs(row: torch.Tensor) -> list[int]:
    """Lengths of the runs of True."""
    return [len(list(group)) for true, group in itertools.groupby(row.tolist()) if true]


def test_spans_lie_inside_their_clip() -> None:
    frames = torch.tensor([60, 25, 10, 9, 0])
    for seed in range(20):
        masked = hidden_spans(frames, 60, **HOW, generator=generator(seed))
        assert masked.dtype == torch.bool
        for row, own in zip(masked, frames.tolist(), strict=True):
            assert not row[own:].any()
            assert all(length >= 10 for length in runs(row))
        # One span fits into the third and is all of it; none fits into the others.
        assert masked.any(1).tolist() == [True, True, True, False, False]


def test_one_span_at_a_time() -> None:
    # 20 frames of 100 in spans of 10: two spans, unless they overlap.
    frames = torch.full((400,), 100)
    masked = hidden_spans(
        frames, 100, probability=0.2, length=10, generator=generator()
    )
    hidden = masked.sum(1)
    assert hidden.max() == 20
    assert hidden.min() >= 11, "two spans never start at one frame"
    # 91 starts are as probable as each other; chance has 400 * 2 / 91 = 8.8 of each.
    firsts = masked.long().argmax(1)
    assert firsts.min() < 5
    assert firsts.max() > 60


def test_share_that_is_hidden() -> None:
    # Baevski et al. 2020, section 4.1: about 49 % of the frames of 15 s.
    frames = torch.full((200,), 749)
    masked = hidden_spans(frames, 749, **HOW, generator=generator())
    assert masked.float().mean().item() == pytest.approx(0.49, abs=0.02)


def test_share_is_right_on_average_where_spans_do_not_come_out_even() -> None:
    # 2.5 spans, two or three, as probable as each other; a pair shares 0.18 frames.
    frames = torch.full((2000,), 500)
    masked = hidden_spans(
        frames, 500, probability=0.05, length=10, generator=generator()
    )
    most = masked.sum(1).max().item()
    assert most == 30
    assert masked.sum(1).float().mean().item() == pytest.approx(24.6, abs=0.5)


def test_distractors_are_other_hidden_frames_of_the_clip() -> None:
    frames = torch.tensor([40, 23])
    masked = hidden_spans(frames, 40, **HOW, generator=generator())
    found = distractors(masked, frames, 100, generator(1))
    assert found.shape == (2, 40, 100)
    assert found.dtype == torch.int64
    for row, hidden in zip(found, masked, strict=True):
        places = set(hidden.nonzero().flatten().tolist())
        for place, drawn in enumerate(row.tolist()):
            if place in places:
                assert set(drawn) <= places - {place}
                assert len(set(drawn)) > len(places) / 2
            else:
                assert set(drawn) == {0}


def test_distractors_are_equally_probable() -> None:
    masked = torch.tensor([[False, True, True, False, True, True]])
    found = distractors(masked, torch.tensor([6]), 30_000, generator())
    for place, others in ((1, (2, 4, 5)), (4, (1, 2, 5))):
        counts = found[0, place].bincount(minlength=6)
        assert counts.nonzero().flatten().tolist() == list(others)
        assert (counts[list(others)] / 30_000).tolist() == pytest.approx(
            [1 / 3] * 3, abs=0.02
        )


def test_where_too_little_is_hidden_other_frames_serve() -> None:
    masked = torch.tensor([[False, True, False, False], [True, False, False, False]])
    found = distractors(masked, torch.tensor([3, 1]), 50, generator())
    assert set(found[0, 1].tolist()) == {0, 2}
    assert set(found[1].flatten().tolist()) == {0}, "there is no other frame"


def test_masks_of_evaluation_are_the_clips_own() -> None:
    how = {**HOW, "negatives": 7}
    ids = ["a", "b", "c"]
    frames = torch.tensor([30, 55, 41])
    masked, negatives = fixed_masks(ids, frames, **how)
    assert masked.shape == (3, 55)
    assert negatives.shape == (3, 55, 7)
    alone, drawn = fixed_masks(["c"], torch.tensor([41]), **how)
    assert torch.equal(masked[2, :41], alone[0])
    assert torch.equal(negatives[2, :41], drawn[0])
    assert not masked[2, 41:].any()
    same = fixed_masks(["a", "b"], torch.tensor([30, 30]), **how)[0]
    assert not torch.equal(same[0], same[1]), "ids make the difference"


def test_masks_of_training_follow_the_generator() -> None:
    frames = torch.tensor([50, 32])
    drawn = [
        drawn_masks(frames, 50, **HOW, negatives=5, generator=generator(seed))
        for seed in (0, 0, 1)
    ]
    assert torch.equal(drawn[0][0], drawn[1][0])
    assert torch.equal(drawn[0][1], drawn[1][1])
    assert not torch.equal(drawn[0][0], drawn[2][0])
