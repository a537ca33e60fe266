"""Which samples a prefix runs on together, and what of its rows is padding."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from headstart.prefix_filling import filling_batches, own_extents, padded_dimensions

if TYPE_CHECKING:
    from headstart.stages import State

SIZES = np.array([3, 7, 5, 7, 2])


def padded_texts(indices: np.ndarray) -> State:
    """A row of values per sample and one per pair of tokens, padded at the end."""
    longest = int(SIZES[indices].max())
    hidden = torch.zeros(len(indices), longest, 4)
    pairs = torch.zeros(len(indices), longest, longest)
    for row, sample in enumerate(indices.tolist()):
        size = int(SIZES[sample])
        hidden[row, :size] = sample + 1.0
        pairs[row, :size, :size] = sample + 1.0
    pooled = torch.full((len(indices), 4), 2.0)
    return {"hidden": hidden, "pairs": pairs, "pooled": pooled}


def test_batches_of_one_size_or_of_neighbours() -> None:
    apart = [batch.tolist() for batch in filling_batches(5, SIZES, 2)]
    assert apart == [[1, 3], [2], [0], [4]]
    mixed = [batch.tolist() for batch in filling_batches(5, SIZES, 2, mixed=True)]
    assert mixed == [[1, 3], [2, 0], [4]]
    assert [b.tolist() for b in filling_batches(3, None, 2)] == [[0, 1], [2]]


def test_no_filling_batch_takes_more_than_the_total() -> None:
    for mixed in (True, False):
        batches = filling_batches(5, SIZES, 5, mixed, total=int(SIZES.max()))
        assert sorted(np.concatenate(batches).tolist()) == [0, 1, 2, 3, 4]
        assert all(len(b) * SIZES[b].max() <= SIZES.max() for b in batches)


def test_dimensions_that_are_as_long_as_the_sample() -> None:
    padded = padded_dimensions(padded_texts, SIZES)
    assert padded == {"hidden": [0], "pairs": [0, 1]}
    batch = np.array([1, 4])
    own = own_extents(padded_texts(batch), batch, SIZES, padded)
    assert own["hidden"].tolist() == [[7, 4], [2, 4]]
    assert own["pairs"].tolist() == [[7, 7], [2, 2]]
    assert "pooled" not in own


def test_lengths_that_a_stage_rewrites_keep_sizes_apart() -> None:
    def halved(indices: np.ndarray) -> State:
        return {"hidden": padded_texts(indices)["hidden"][:, ::2]}

    assert padded_dimensions(halved, SIZES) is None


def test_padding_that_changes_the_rest_keeps_sizes_apart() -> None:
    def leaking(indices: np.ndarray) -> State:
        hidden = padded_texts(indices)["hidden"]
        return {"hidden": hidden - hidden.mean(dim=1, keepdim=True)}

    assert padded_dimensions(leaking, SIZES) is None


def test_padding_at_the_start_keeps_sizes_apart() -> None:
    def flipped(indices: np.ndarray) -> State:
        return {"hidden": padded_texts(indices)["hidden"].flip(1)}

    assert padded_dimensions(flipped, SIZES) is None


def test_prefixes_without_a_trace_of_the_size_take_any_neighbours() -> None:
    assert padded_dimensions(lambda i: {"pooled": torch.ones(len(i), 2)}, SIZES) == {}
    assert padded_dimensions(padded_texts, None) == {}
