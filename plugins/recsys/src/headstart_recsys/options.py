"""What ``headstart predict`` takes for recommenders beside the inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from headstart.settings import PredictOptions

if TYPE_CHECKING:
    from collections.abc import Sequence


class RankingOptions(PredictOptions):
    """``--user 42 --k 10``, ``--like 50 --like 181``, or ``--all``."""

    user: tuple[str, ...] = ()
    """Ids of the users to recommend to."""
    like: tuple[str, ...] = ()
    """Ids of items that someone likes who is not among the users."""
    all: bool = False
    """Recommend to every user of the training data."""
    k: Annotated[int, Field(ge=1)] = 10
    """How many items to recommend."""

    def inputs(self) -> Sequence[Any]:
        """``{"user": id}`` of each, ``{"like": ids}``, ``{"all": True}``."""
        found: list[dict[str, Any]] = [{"user": user} for user in self.user]
        if self.like:
            found.append({"like": list(self.like)})
        if self.all:
            found.append({"all": True})
        return found
