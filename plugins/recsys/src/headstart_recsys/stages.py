"""Stages of recommenders: tables of item and user vectors, text and content.

Every stage that changes the items' vectors writes ``item_table`` anew, (items,
channels), one for the whole batch; the last stage writes what is matched with them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from headstart.errors import UserError
from headstart_recsys.folding import fold_in, sum_rows
from headstart_recsys.tables import look_up

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from headstart.stages import State


def random_table(
    rows: int, channels: int, std: float, unknown: Sequence[int] = ()
) -> nn.Parameter:
    """Normally distributed rows; those of which nothing can be learned are zero.

    A row that no training sample ever moves would otherwise rank by chance.
    """
    table = torch.randn(rows, channels) * std
    table[list(unknown)] = 0.0
    return nn.Parameter(table)


class ItemTable(nn.Module):
    """A vector for each item.

    Args:
        items: How many there are.
        channels: Width of a vector.
        std: Standard deviation at the start.
        cold: Items without a training event.
    """

    def __init__(
        self, items: int, channels: int, std: float, cold: Sequence[int]
    ) -> None:
        super().__init__()
        self.weight = random_table(items, channels, std, cold)

    def forward(self, state: State) -> State:
        # A copy: FSDP frees a whole parameter behind the stage it belongs to.
        return {**state, "item_table": self.weight.clone()}


class ItemText(nn.Module):
    """Adds a projection of the items' text vectors to their table.

    It starts as zero, so that a table that was learned beforehand is not disturbed.

    Args:
        items: How many there are.
        width: Of the text vectors; :meth:`TableBackbone.set_text` brings them.
        channels: Width of the table.
    """

    vectors: Tensor

    def __init__(self, items: int, width: int, channels: int) -> None:
        super().__init__()
        self.register_buffer("vectors", torch.zeros(items, width))
        self.projection = nn.Linear(width, channels, bias=False)
        nn.init.zeros_(self.projection.weight)

    def forward(self, state: State) -> State:
        added = self.projection(self.vectors)
        return {**state, "item_table": state["item_table"] + added}


class ItemDelta(nn.Module):
    """Adds a table that starts as zero to the items', which may be frozen.

    Args:
        items: How many there are.
        channels: Width of the table.
        rank: Make it a product of two narrow matrices (Hu et al. 2022, LoRA); 0 a
            whole table.
    """

    def __init__(self, items: int, channels: int, rank: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(items, rank or channels))
        self.expand = nn.Linear(rank, channels, bias=False) if rank else None

    def forward(self, state: State) -> State:
        added = self.weight if self.expand is None else self.expand(self.weight)
        return {**state, "item_table": state["item_table"] + added}


class UserTable(nn.Module):
    """A vector for each user, written as ``query``.

    Reads ``user`` and, where users may be unknown (-1), ``history``. An unknown user's
    direction is solved from the items of the history, its length is the known users'
    mean one, which is what the scores' other parts are used to. Without a history they
    are the mean user.

    Args:
        users: How many there are.
        channels: Width of a vector.
        std: Standard deviation at the start.
        ridge: Regularisation of the solution.
    """

    def __init__(self, users: int, channels: int, std: float, ridge: float) -> None:
        super().__init__()
        self.weight = random_table(users, channels, std)
        self.ridge = ridge

    def forward(self, state: State) -> State:
        user = state["user"]
        if "history" not in state:
            return {**state, "query": look_up(self.weight, user)}
        history = state["history"]
        # Solved for every row: to look which ones need it would wait for the device.
        solved = fold_in(state["item_table"], history, self.ridge)
        length = self.weight.detach().norm(dim=1).mean()
        solved = F.normalize(solved, dim=1) * length
        mean = self.weight.detach().mean(dim=0)
        empty = (history < 0).all(dim=1, keepdim=True)
        unknown = torch.where(empty, mean, solved)
        return {**state, "query": _known_or(user, self.weight, unknown)}


def _known_or(user: Tensor, table: Tensor, otherwise: Tensor) -> Tensor:
    """Rows of the table, and others for users of -1."""
    known = look_up(table, user.clamp(min=0))
    return torch.where(user[:, None] < 0, otherwise, known)


class Residual(nn.Module):
    """A hidden layer beside the identity; it starts as the identity."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(channels, width)
        self.outer = nn.Linear(width, channels)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(self, vectors: Tensor) -> Tensor:
        change: Tensor = self.outer(F.gelu(self.inner(vectors)))
        return vectors + change


class ItemTower(nn.Module):
    """Items from what is known of them: categories, text, and who they are.

    The parts are summed, so that a table that was learned beforehand can be one of
    them. Beside such a table the others start as zero.

    Args:
        items: How many there are.
        channels: Width of a vector.
        width: Of the hidden layer.
        std: Standard deviation at the start.
        cold: Items without a training event; ``None`` gives items no vector of their
            own.
        categories: ``names`` and, per item, the indices of its own (``rows``).
        text_width: Of the items' text vectors; 0 without.
    """

    flat: Tensor
    offsets: Tensor
    vectors: Tensor

    def __init__(
        self,
        items: int,
        channels: int,
        width: int,
        std: float,
        cold: Sequence[int] | None,
        categories: Mapping[str, Any],
        text_width: int,
    ) -> None:
        super().__init__()
        self.weight = None if cold is None else random_table(items, channels, std, cold)
        std = std if cold is None else 0.0
        self.categories: nn.Parameter | None = None
        if categories:
            rows = categories["rows"]
            flat = [category for row in rows for category in row]
            lengths = torch.tensor([0, *map(len, rows[:-1])], dtype=torch.int64)
            self.register_buffer(
                "flat", torch.tensor(flat, dtype=torch.int64), persistent=False
            )
            self.register_buffer("offsets", lengths.cumsum(0), persistent=False)
            self.categories = random_table(len(categories["names"]), channels, std)
        self.projection: nn.Linear | None = None
        if text_width:
            self.register_buffer("vectors", torch.zeros(items, text_width))
            self.projection = nn.Linear(text_width, channels, bias=False)
            nn.init.normal_(self.projection.weight, std=std)
        self.tower = Residual(channels, width)

    def forward(self, state: State) -> State:
        parts: list[Tensor] = []
        if self.weight is not None:
            parts.append(self.weight)
        if self.categories is not None:
            parts.append(
                F.embedding_bag(self.flat, self.categories, self.offsets, mode="mean")
            )
        if self.projection is not None:
            parts.append(self.projection(self.vectors))
        table = self.tower(torch.stack(parts).sum(dim=0))
        return {**state, "item_table": table}


class UserTower(nn.Module):
    """Users from who they are and from the mean of what they had, as ``query``.

    Reads ``user`` (-1: unknown) and ``history``, in training too: there without the
    item to be found, or the tower learns to copy it.

    Args:
        users: How many there are; 0 gives users no vector of their own.
        channels: Width of a vector.
        width: Of the hidden layer.
        std: Standard deviation at the start.
        history: Whether histories are read.
    """

    def __init__(
        self, users: int, channels: int, width: int, std: float, history: bool
    ) -> None:
        super().__init__()
        self.weight = random_table(users, channels, std) if users else None
        self.history = history
        self.tower = Residual(channels, width)

    def forward(self, state: State) -> State:
        parts: list[Tensor] = []
        if self.weight is not None:
            mean = self.weight.detach().mean(dim=0)
            parts.append(_known_or(state["user"], self.weight, mean))
        if self.history:
            if "history" not in state:
                raise UserError(
                    "the users' tower reads histories, and the batch has none",
                    where="backbone.history",
                    why="a tower that trains without them cannot use them later",
                    fix="backbone.history = false, or data that yields `history`",
                )
            history = state["history"]
            count = (history >= 0).sum(dim=1, keepdim=True).clamp(min=1)
            parts.append(sum_rows(state["item_table"], history) / count)
        return {**state, "query": self.tower(torch.stack(parts).sum(dim=0))}
