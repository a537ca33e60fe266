"""Samples as columns: any number of them becomes a batch without a loop over rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from headstart.data import Sample
    from headstart.stages import State

PADDING = -1


@dataclass(frozen=True)
class Ragged:
    """Rows of different lengths, each a slice of one array.

    Attributes:
        flat: What all rows are slices of.
        starts: Where each row begins, int64 ``(rows,)``.
        stops: Where it ends.
    """

    flat: np.ndarray
    starts: np.ndarray
    stops: np.ndarray

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def lengths(self) -> np.ndarray:
        lengths: np.ndarray = self.stops - self.starts
        return lengths

    def take(self, rows: np.ndarray) -> Ragged:
        """Some of the rows; ``flat`` is shared."""
        return Ragged(self.flat, self.starts[rows], self.stops[rows])

    def row(self, index: int) -> np.ndarray:
        """One row, int64."""
        row = self.flat[self.starts[index] : self.stops[index]]
        return np.asarray(row, dtype=np.int64)

    def only(self, wanted: np.ndarray) -> Ragged:
        """Each row without the values for which ``wanted[value]`` is false."""
        owner, places = self.places()
        values = self.flat[places]
        kept = wanted[values]
        counts = np.bincount(owner[kept], minlength=len(self))
        stops = counts.cumsum()
        return Ragged(values[kept], stops - counts, stops)

    def places(self) -> tuple[np.ndarray, np.ndarray]:
        """The row of each value, row after row, and its place in ``flat``."""
        lengths = self.lengths
        owner = np.repeat(np.arange(len(self)), lengths)
        inside = np.arange(len(owner)) - np.repeat(lengths.cumsum() - lengths, lengths)
        return owner, self.starts[owner] + inside


def grouped(keys: np.ndarray, values: np.ndarray, count: int) -> Ragged:
    """Values by key: row ``k`` has those of key ``k``.

    Args:
        keys: Sorted, in ``range(count)``.
        values: One for each key.
        count: Rows.
    """
    counts = np.bincount(keys, minlength=count).astype(np.int64)
    stops = counts.cumsum()
    return Ragged(values, stops - counts, stops)


def joined(
    parts: Sequence[Ragged], width: int | None = None, *, left: bool = False
) -> torch.Tensor:
    """Rows of several parts behind each other, padded with -1.

    Args:
        parts: With as many rows each; not empty.
        width: Keep the last so many values of a row; ``None``: all, and as many
            columns as the longest row has (at least one).
        left: Pad on the left.

    Returns:
        int64 ``(rows, width)``.
    """
    total = sum(part.lengths for part in parts)
    assert isinstance(total, np.ndarray)
    if width is None:
        width = max(1, int(total.max(initial=0)))
    out = np.full((len(total), width), PADDING, dtype=np.int64)
    # The column of a row's first value; below 0 where its head is cut off.
    column = width - total if left else np.minimum(width - total, 0)
    for part in parts:
        # Only what stays is read: a history may be far longer than a sequence.
        cut = np.clip(-column, 0, part.lengths)
        kept = Ragged(part.flat, part.starts + cut, part.stops)
        owner, places = kept.places()
        first = (column + cut)[owner] - kept.starts[owner]
        out[owner, first + places] = part.flat[places]
        column = column + part.lengths
    return torch.from_numpy(out)


def padded(rows: Sequence[np.ndarray]) -> torch.Tensor:
    """Rows of different lengths as one array, padded with -1 on the right; int64."""
    flat = np.concatenate([np.asarray(row, dtype=np.int64) for row in rows])
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    stops = lengths.cumsum()
    return joined([Ragged(flat, stops - lengths, stops)])


class TrainingEvents(Sequence["Sample"]):
    """The events that are trained on, one sample each.

    Args:
        users: User codes, int32 ``(N,)``.
        items: Item codes, int32 ``(N,)``.
        weights: float32 ``(N,)``; ``None``: all are 1.
        user_ids: By user code.
        item_ids: By item code.
    """

    def __init__(
        self,
        users: np.ndarray,
        items: np.ndarray,
        weights: np.ndarray | None,
        user_ids: Sequence[str],
        item_ids: Sequence[str],
    ) -> None:
        self.users, self.items, self.weights = users, items, weights
        self._user_ids, self._item_ids = user_ids, item_ids

    def __len__(self) -> int:
        return len(self.users)

    def __getitem__(self, index: Any) -> Any:
        """One event; its id names user and item, who meet only once."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        user, item = int(self.users[index]), int(self.items[index])
        weight = 1.0 if self.weights is None else float(self.weights[index])
        name = f"train: user {self._user_ids[user]}, item {self._item_ids[item]}"
        return {"id": name, "user": user, "item": item, "weight": weight}

    def take(self, indices: np.ndarray) -> State:
        """``user``, ``item`` int64 ``(B,)`` and ``weight`` float32 ``(B,)``."""
        if self.weights is None:
            weight = torch.ones(len(indices))
        else:
            weight = torch.from_numpy(self.weights[indices])
        return {
            "user": torch.from_numpy(self.users[indices].astype(np.int64)),
            "item": torch.from_numpy(self.items[indices].astype(np.int64)),
            "weight": weight,
        }


class UserRows(Sequence["Sample"]):
    """Users to recommend to, one sample each.

    Args:
        names: What each is called.
        users: Their codes in the task; -1: not trained on. int64 ``(n,)``.
        history: What they are known to have, in parts, oldest first.
        held_out: What is to be found; ``None`` in predictions.
        length: Of ``sequence``, the most recent items; 0: none is made.
        prefix: Makes ids of names.
    """

    def __init__(
        self,
        names: Sequence[str],
        users: np.ndarray,
        history: Sequence[Ragged],
        held_out: Ragged | None = None,
        length: int = 0,
        prefix: str = "",
    ) -> None:
        self.users, self.history, self.held_out = users, tuple(history), held_out
        self.length, self._names, self._prefix = length, names, prefix

    def __len__(self) -> int:
        return len(self.users)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        user, name = int(self.users[index]), self._names[index]
        history = np.concatenate([part.row(index) for part in self.history])
        sample = {
            "id": f"{self._prefix}{name}",
            "name": name,
            "user": user,
            "history": history,
            "cold_user": user < 0,
        }
        if self.held_out is not None:
            sample["held_out"] = self.held_out.row(index)
        if self.length:
            sample["length"] = self.length
        return sample

    @property
    def lengths(self) -> np.ndarray:
        """Known and held-out items of each user, int64 ``(n,)``."""
        parts = [*self.history, *([] if self.held_out is None else [self.held_out])]
        lengths: np.ndarray = np.stack([part.lengths for part in parts]).sum(axis=0)
        return lengths

    def take(self, indices: np.ndarray) -> State:
        """As :func:`collate_users`."""
        history = [part.take(indices) for part in self.history]
        users = self.users[indices].astype(np.int64)
        state: State = {
            "user": torch.from_numpy(users),
            "history": joined(history),
            "cold_user": torch.from_numpy(users < 0),
        }
        if self.held_out is not None:
            state["held_out"] = joined([self.held_out.take(indices)])
        if self.length:
            state["sequence"] = joined(history, self.length, left=True)
        return state


def collate_events(samples: Sequence[Sample]) -> State:
    """Samples of :class:`TrainingEvents` as their ``take`` gives them."""
    return {
        "user": torch.tensor([sample["user"] for sample in samples]),
        "item": torch.tensor([sample["item"] for sample in samples]),
        "weight": torch.tensor(
            [sample["weight"] for sample in samples], dtype=torch.float32
        ),
    }


def collate_users(samples: Sequence[Sample]) -> State:
    """Samples of :class:`UserRows` as their ``take`` gives them.

    Returns:
        ``user`` int64 ``(B,)``, ``history`` int64 ``(B, S)``, ``cold_user`` bool
        ``(B,)`` and, where the samples have them, ``held_out`` int64 ``(B, T)`` and
        ``sequence`` int64 ``(B, L)``.
    """
    state: State = {
        "user": torch.tensor([sample["user"] for sample in samples]),
        "history": padded([sample["history"] for sample in samples]),
        "cold_user": torch.tensor([sample["cold_user"] for sample in samples]),
    }
    if "held_out" in samples[0]:
        state["held_out"] = padded([sample["held_out"] for sample in samples])
    if length := samples[0].get("length"):
        history = [np.asarray(sample["history"], dtype=np.int64) for sample in samples]
        sizes = np.array([len(row) for row in history], dtype=np.int64)
        stops = sizes.cumsum()
        rows = Ragged(np.concatenate(history), stops - sizes, stops)
        state["sequence"] = joined([rows], length, left=True)
    return state
