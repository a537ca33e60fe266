"""Documents of different lengths in rows of a batch: none sees another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from headstart.stages import State

Document: TypeAlias = tuple[np.ndarray, np.ndarray]
"""Token ids (int32), and which of them are something to predict (bool)."""
IGNORED = -100
"""Label of what is not predicted; what torch's cross entropy leaves out."""


def pack(lengths: np.ndarray, capacity: int, seed: int) -> list[np.ndarray]:
    """Put documents into as few rows as can be found quickly.

    Best-fit decreasing (Johnson, *Near-optimal bin packing algorithms*, 1973): the
    longest document first, each into the row that it fills best. At most 11/9 of the
    fewest possible rows, and next to none too many where short documents abound.

    Args:
        lengths: Tokens of each document, int64, from 1 to ``capacity``.
        capacity: Tokens in a row.
        seed: Decides between documents of one length, and the order of everything.

    Returns:
        The documents of each row; every document is in one row.
    """
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(lengths))
    order = order[np.argsort(-lengths[order], kind="stable")]
    rows: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(capacity + 1)]
    # Bit r is set while some row has room for exactly r tokens: the lowest bit from a
    # document's length on is the best fit, found without a search through rows.
    rooms = 0
    for document, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            row = with_room[room].pop()
            if not with_room[room]:
                rooms ^= 1 << room
        else:
            room, row = capacity, len(rows)
            rows.append([])
        rows[row].append(document)
        left = room - length
        with_room[left].append(row)
        rooms |= 1 << left
    return [
        generator.permutation(rows[row]) for row in generator.permutation(len(rows))
    ]


def windows(document: Document, size: int) -> list[Document]:
    """Cut a document into parts of at most ``size`` tokens.

    A part begins with the last token of the one before it, which is read there and not
    predicted again: so each token but the document's first is predicted once.
    """
    ids, counted = document
    if len(ids) <= size:
        return [document]
    parts = []
    for start in range(0, len(ids) - 1, size - 1):
        stop = start + size
        part = counted[start:stop].copy()
        part[0] = False
        parts.append((ids[start:stop], part))
    return parts


def collate(samples: Sequence[Mapping[str, Any]], pad_id: int = 0) -> State:
    """Rows of documents as one batch, padded on the right.

    Args:
        samples: Each has ``documents``, one or several :data:`Document`.
        pad_id: Stands where there is nothing; no token attends to it.

    Returns:
        All int64 of shape (rows, longest row): ``input_ids``; ``positions``, which
        begin at 0 with every document; ``segments``, 1, 2, … by document and 0 where
        there is none; ``labels``, the ids of what is predicted and -100 elsewhere, at
        the first token of each document too.
    """
    sizes = [sum(len(ids) for ids, _ in sample["documents"]) for sample in samples]
    shape = (len(samples), max(sizes))
    batch = {
        "input_ids": np.full(shape, pad_id, dtype=np.int64),
        "positions": np.zeros(shape, dtype=np.int64),
        "segments": np.zeros(shape, dtype=np.int64),
        "labels": np.full(shape, IGNORED, dtype=np.int64),
    }
    for row, (sample, size) in enumerate(zip(samples, sizes, strict=True)):
        documents = sample["documents"]
        lengths = np.array([len(ids) for ids, _ in documents])
        starts = np.cumsum(lengths) - lengths
        ids = np.concatenate([ids for ids, _ in documents])
        counted = np.concatenate([counted for _, counted in documents])
        counted[starts] = False
        batch["input_ids"][row, :size] = ids
        batch["positions"][row, :size] = np.arange(size) - np.repeat(starts, lengths)
        batch["segments"][row, :size] = np.repeat(
            np.arange(1, len(documents) + 1), lengths
        )
        batch["labels"][row, :size] = np.where(counted, ids, IGNORED)
    return {name: torch.from_numpy(values) for name, values in batch.items()}
