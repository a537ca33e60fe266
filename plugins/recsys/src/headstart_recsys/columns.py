"""Interactions as columns: one array per property, never an object per event."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Interactions:
    """Who touched what, how much, and when: one row per event.

    Attributes:
        users: User codes, int32 ``(N,)``.
        items: Item codes, int32 ``(N,)``.
        values: Ratings or weights, float32 ``(N,)``; ``None``: all events count alike.
        times: Seconds since 1970, int64 ``(N,)``; ``None``: not known.
        sessions: Session codes, int32 ``(N,)``; ``None``: not known.
    """

    users: np.ndarray
    items: np.ndarray
    values: np.ndarray | None = None
    times: np.ndarray | None = None
    sessions: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.users)

    def columns(self) -> dict[str, np.ndarray]:
        """The columns that are there, by name."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: column for name, column in found.items() if column is not None}

    def take(self, index: np.ndarray | slice) -> Interactions:
        """The events at these places (indices, a mask or a slice), in that order."""
        return Interactions(**{k: v[index] for k, v in self.columns().items()})

    def memory(self) -> int:
        """Bytes that the columns take."""
        return sum(column.nbytes for column in self.columns().values())
