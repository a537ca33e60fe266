"""Packing: rows of documents, their windows, and the batch that comes of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from headstart_nlp.packing import collate, pack, windows


def document(*ids, counted=None):
    held = np.array(ids, dtype=np.int32)
    marks = np.ones(len(ids), dtype=bool) if counted is None else np.array(counted)
    return held, marks


def best_fit_decreasing(lengths, capacity):
    """How full each row gets, by looking at every row for every document."""
    rows = []
    for length in sorted(lengths, reverse=True):
        fitting = [i for i, used in enumerate(rows) if used + length <= capacity]
        if fitting:
            rows[max(fitting, key=lambda i: rows[i])] += length
        else:
            rows.append(length)
    return sorted(rows)


@pytest.mark.parametrize("capacity", [17, 64, 512])
def test_packing_is_best_fit_decreasing(capacity):
    lengths = np.random.default_rng(capacity).integers(1, capacity + 1, 300)
    rows = pack(lengths, capacity, seed=0)
    filled = sorted(int(lengths[row].sum()) for row in rows)
    assert filled == best_fit_decreasing(lengths.tolist(), capacity)


def test_every_document_is_in_one_row_and_no_row_is_too_long():
    lengths = np.random.default_rng(0).integers(1, 101, 2000)
    rows = pack(lengths, 100, seed=3)
    assert sorted(np.concatenate(rows).tolist()) == list(range(2000))
    assert max(lengths[row].sum() for row in rows) <= 100


def test_less_than_three_percent_is_wasted_on_a_hundred_thousand_documents():
    draws = np.random.default_rng(1).lognormal(4.0, 1.0, 100_000)
    lengths = np.clip(draws.astype(np.int64), 2, 512)
    rows = pack(lengths, 512, seed=0)
    assert 1 - lengths.sum() / (len(rows) * 512) < 0.03


def test_the_seed_decides_rows_and_their_order():
    lengths = np.random.default_rng(2).integers(1, 30, 400)
    first, again, other = (
        [row.tolist() for row in pack(lengths, 64, seed)] for seed in (7, 7, 8)
    )
    assert first == again
    assert first != other
    assert sorted(map(sorted, first)) != sorted(map(sorted, other))


def test_rows_are_not_sorted_by_the_lengths_of_their_documents():
    lengths = np.random.default_rng(3).integers(1, 60, 1000)
    longest = [int(lengths[row].max()) for row in pack(lengths, 64, seed=0)]
    assert abs(np.corrcoef(longest, np.arange(len(longest)))[0, 1]) < 0.2


def test_one_document_and_one_that_fills_its_row():
    assert [row.tolist() for row in pack(np.array([8]), 8, seed=0)] == [[0]]
    rows = pack(np.array([8, 3, 8]), 8, seed=0)
    assert sorted(row.tolist() for row in rows) == [[0], [1], [2]]


def test_a_batch_of_packs():
    batch = collate(
        [
            {"documents": [document(5, 6, 7), document(8, 9)]},
            {"documents": [document(3, 4)]},
        ],
        pad_id=1,
    )
    expected = {
        "input_ids": [[5, 6, 7, 8, 9], [3, 4, 1, 1, 1]],
        "positions": [[0, 1, 2, 0, 1], [0, 1, 0, 0, 0]],
        "segments": [[1, 1, 1, 2, 2], [1, 1, 0, 0, 0]],
        "labels": [[-100, 6, 7, -100, 9], [-100, 4, -100, -100, -100]],
    }
    assert {name: values.tolist() for name, values in batch.items()} == expected
    assert {values.dtype for values in batch.values()} == {torch.int64}


def test_what_does_not_count_has_no_label():
    sample = {"documents": [document(5, 6, 7, 8, counted=[False, False, True, True])]}
    assert collate([sample])["labels"].tolist() == [[-100, -100, 7, 8]]


def test_windows_predict_every_token_but_the_first_once():
    ids = np.arange(100, 123, dtype=np.int32)
    marks = np.ones(23, dtype=bool)
    marks[4] = False
    parts = windows((ids, marks), 8)
    assert [part.tolist() for part, _ in parts] == [
        list(range(100, 108)),
        list(range(107, 115)),
        list(range(114, 122)),
        [121, 122],
    ]
    batch = collate([{"documents": [part]} for part in parts])
    predicted = [label for label in batch["labels"].flatten().tolist() if label >= 0]
    assert predicted == [i for i in range(101, 123) if i != 104]
    assert marks.sum() == 22, "the document itself was changed"


@pytest.mark.parametrize(
    ("length", "sizes"),
    [(7, [7]), (8, [8]), (9, [8, 2]), (15, [8, 8]), (16, [8, 8, 2])],
)
def test_no_window_is_without_something_to_predict(length, sizes):
    parts = windows(document(*range(length)), 8)
    assert [len(ids) for ids, _ in parts] == sizes
