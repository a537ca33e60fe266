"""Sequences to train on: windows over what each user took, one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from headstart_recsys.samples import PADDING, Ragged, joined

if TYPE_CHECKING:
    from headstart.data import Sample
    from headstart.stages import State


class Windows(Sequence["Sample"]):
    """Windows of at most ``length`` items, each with what came next at each place.

    A user's events are cut into windows from the last one backwards, so that every
    training event is to be predicted exactly once (a user's very first one excepted,
    before which nothing is known). Events of the earlier period are context alone: they
    are in sequences, and are never predicted.

    Args:
        before: Items of the earlier period by user, oldest first.
        train: Training items by user, oldest first.
        length: Items of a window.
        user_ids: By user code.
    """

    def __init__(
        self, before: Ragged, train: Ragged, length: int, user_ids: Sequence[str]
    ) -> None:
        self._before, self._train = before, train
        self.length, self._user_ids = length, user_ids
        known = before.lengths
        # The places, in earlier and training events together, that can be predicted.
        first = np.maximum(known, 1)
        stop = known + train.lengths
        windows = -(-np.maximum(stop - first, 0) // length)
        self.users = np.repeat(np.arange(len(train)), windows)
        number = np.arange(len(self.users)) - np.repeat(
            windows.cumsum() - windows, windows
        )
        # The first window of a user is the last one in time.
        self._stops = stop[self.users] - number * length
        self._starts = np.maximum(self._stops - length, first[self.users])
        self._numbers = number

    def __len__(self) -> int:
        return len(self.users)

    def __getitem__(self, index: Any) -> Any:
        """``sequence`` and ``positives``, int64 ``(length,)``, and the ``user``."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        state = self.take(np.array([index]))
        user = int(self.users[index])
        return {
            "id": f"train: user {self._user_ids[user]}, "
            f"part {int(self._numbers[index]) + 1}",
            "user": user,
            "sequence": state["sequence"][0].numpy(),
            "positives": state["positives"][0].numpy(),
        }

    def take(self, indices: np.ndarray) -> State:
        """``sequence`` and ``positives`` int64 ``(B, L)``, ``user`` int64 ``(B,)``."""
        users, stops = self.users[indices], self._stops[indices]
        low = np.maximum(stops - self.length - 1, 0)
        before, train = self._before.take(users), self._train.take(users)
        known = before.lengths
        parts = (
            Ragged(
                before.flat,
                before.starts + np.minimum(low, known),
                before.starts + np.minimum(stops, known),
            ),
            Ragged(
                train.flat,
                train.starts + np.maximum(low - known, 0),
                train.starts + np.maximum(stops - known, 0),
            ),
        )
        row = joined(parts, self.length + 1, left=True)
        positives = row[:, 1:].clone()
        # Of places before the window's first, the next item is another window's.
        predicted = torch.from_numpy(stops - self._starts[indices])
        place = torch.arange(self.length).flip(0)
        positives[place >= predicted.unsqueeze(1)] = PADDING
        return {
            "sequence": row[:, :-1].contiguous(),
            "positives": positives,
            "user": torch.from_numpy(users),
        }


def collate_windows(samples: Sequence[Sample]) -> State:
    """Samples of :class:`Windows` as their ``take`` gives them."""
    state: State = {
        key: torch.from_numpy(np.stack([sample[key] for sample in samples]))
        for key in ("sequence", "positives")
    }
    state["user"] = torch.tensor([sample["user"] for sample in samples])
    return state
