"""All events of a data set in one order: by part, then by user, then by time.

So every part is a slice of the columns, and so is what a user has in a part; nothing is
held twice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from headstart_recsys.arrays import order
from headstart_recsys.columns import Interactions
from headstart_recsys.samples import PADDING, Ragged, grouped
from headstart_recsys.splits import DROPPED, PARTS, TRAIN

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scipy import sparse

Part = Literal["earlier", "train", "known", "validation", "test"]


class Events:
    """Events with their parts; users get new codes.

    Users with a training event (earlier period included) come first, then those with
    other events; who has none left has no code. Inside, the old order stays.

    Args:
        columns: As :meth:`Interactions.columns` gives them; emptied, so that each
            column is there twice only while it is put into order.
        parts: The part of each event, see :mod:`headstart_recsys.splits`.
        users: Users in all.

    Attributes:
        all: Every event that belongs to a part.
        old_users: The old code of each user.
        trained: How many users have a training event.
        rows: By part: the items of each user, oldest first.
    """

    def __init__(
        self, columns: dict[str, np.ndarray], parts: np.ndarray, users: int
    ) -> None:
        codes = columns.pop("users")
        used = np.bincount(codes[parts < DROPPED], minlength=users) > 0
        trained = np.bincount(codes[parts <= TRAIN], minlength=users) > 0
        self.trained = int(trained.sum())
        self.old_users = np.concatenate(
            [np.flatnonzero(trained), np.flatnonzero(used & ~trained)]
        )
        table = np.full(users, PADDING, dtype=np.int32)
        table[self.old_users] = np.arange(len(self.old_users), dtype=np.int32)
        codes = table[codes]
        times = [columns["times"]] if "times" in columns else []
        sizes = np.bincount(parts, minlength=DROPPED + 1)[:DROPPED]
        sequence = order(parts, codes, *times)[: sizes.sum()]
        del times
        ordered = {"users": codes[sequence]}
        del codes
        for name in list(columns):
            ordered[name] = columns.pop(name)[sequence]
        self.all = Interactions(**ordered)
        stops = sizes.cumsum().tolist()
        self.slices = {
            name: slice(stop - size, stop)
            for name, stop, size in zip(PARTS, stops, sizes.tolist(), strict=True)
        }
        self.rows: dict[str, Ragged] = {}
        for name in PARTS:
            part = self.part(name)
            self.rows[name] = grouped(part.users, part.items, len(self.old_users))

    def part(self, name: str) -> Interactions:
        """The events of a part; views of the columns."""
        return self.all.take(self.slices[name])

    def counts(self, names: Sequence[str], items: int) -> np.ndarray:
        """Events of each item in some parts, int64 ``(items,)``."""
        found = [np.bincount(self.part(n).items, minlength=items) for n in names]
        counts: np.ndarray = np.stack(found).sum(axis=0, dtype=np.int64)
        return counts

    def joined(
        self, column: Literal["users", "items"], names: Sequence[str]
    ) -> np.ndarray:
        """A column over some parts; a copy."""
        return np.concatenate([getattr(self.part(name), column) for name in names])

    def matrix(
        self, names: Sequence[str], items: int, weighted: bool
    ) -> sparse.csr_matrix:
        """Users by items of some parts, float32, with sorted indices.

        Args:
            names: The parts.
            items: Columns.
            weighted: Whether values count; else each event is a 1.
        """
        from scipy import sparse

        users, ours = (self.joined(column, names) for column in ("users", "items"))
        weights = np.ones(len(users), dtype=np.float32)
        if weighted and self.all.values is not None:
            weights = np.concatenate(
                [self.all.values[self.slices[name]] for name in names]
            )
        shape = (len(self.old_users), items)
        matrix = sparse.csr_matrix((weights, (users, ours)), shape=shape)
        matrix.sort_indices()
        return matrix
