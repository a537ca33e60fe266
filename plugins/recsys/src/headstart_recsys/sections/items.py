"""The items of a task as the sections speak of them: names, popularity, categories."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

GROUPS = 5
"""Groups of items by popularity, with about equally many training events each."""
LONGEST_NAME = 40


@dataclass(frozen=True)
class Group:
    """Items that are about equally popular.

    Attributes:
        name: Training events that each of its items has: ``12 to 30``.
        members: Their codes, (items,).
    """

    name: str
    members: np.ndarray


@dataclass(frozen=True)
class Items:
    """Names, training events and categories by item code.

    Attributes:
        ids: Item ids.
        titles: Titles; empty where there is none. As long as ``ids``, or empty.
        counts: Training events, (items,).
        new: Whether nothing was known of an item before the evaluation, (items,).
        category_names: Names of categories; empty without any.
        category: The first category of each item, (items,); -1: none.
    """

    ids: Sequence[str]
    titles: Sequence[str]
    counts: np.ndarray
    new: np.ndarray
    category_names: Sequence[str]
    category: np.ndarray

    @classmethod
    def of(cls, task: Mapping[str, Any]) -> Items:
        """The items of a ranking task."""
        ids = list(task["items"])
        new = np.zeros(len(ids), dtype=bool)
        new[np.asarray(task.get("cold") or [], dtype=np.int64)] = True
        categories = task.get("categories") or {"names": [], "rows": []}
        first = [row[0] if row else -1 for row in categories["rows"]]
        return cls(
            ids,
            list(task.get("titles") or []),
            np.asarray(task["counts"], dtype=np.int64),
            new,
            list(categories["names"]),
            np.asarray(first or [-1] * len(ids), dtype=np.int64),
        )

    def __len__(self) -> int:
        return len(self.ids)

    def name(self, code: int, longest: int = LONGEST_NAME) -> str:
        """The title of an item, else its id; never long."""
        title = str(self.titles[code]).strip() if self.titles else ""
        name = title or str(self.ids[code])
        return name if len(name) <= longest else name[: longest - 1].rstrip() + "…"

    def names(self, codes: Iterable[int]) -> str:
        """Several items in one line."""
        return "; ".join(self.name(int(code)) for code in codes)

    def called(self, name: str) -> str:
        """The name of the item with this id; else what was asked for."""
        code = self._codes.get(name)
        return name if code is None else self.name(code)

    @cached_property
    def _codes(self) -> dict[str, int]:
        return {str(name): code for code, name in enumerate(self.ids)}

    @cached_property
    def best_known(self) -> np.ndarray:
        """Codes of the items with training events, most of them first."""
        order = np.argsort(-self.counts, kind="stable")
        return order[self.counts[order] > 0]

    @cached_property
    def groups(self) -> list[Group]:
        """Items by popularity, most popular first; those without events come last.

        Items with equally many events are never in two groups, so the groups are only
        about as large as each other.
        """
        counts = self.counts
        total = int(counts.sum())
        found = []
        if total:
            number, place, size = np.unique(
                -counts, return_inverse=True, return_counts=True
            )
            events = -number * size
            # A count belongs where the middle of its events falls.
            middle = (np.cumsum(events) - events / 2) / total
            group = np.minimum((GROUPS * middle).astype(int), GROUPS - 1)
            group = np.where(counts > 0, group[place.reshape(-1)], -1)
            for which in range(GROUPS):
                members = np.flatnonzero(group == which)
                if len(members):
                    found.append(Group(_span(counts[members]), members))
        rest = np.flatnonzero(counts == 0)
        return [*found, *([Group("none", rest)] if len(rest) else [])]


def _span(counts: np.ndarray) -> str:
    low, high = int(counts.min()), int(counts.max())
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
