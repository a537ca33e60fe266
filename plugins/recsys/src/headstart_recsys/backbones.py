"""Recommenders as backbones: matrix factorisation, two towers, SASRec.

Their first parameters are tables whose rows belong to items and users by id, so that
vectors learned elsewhere are brought into line with this catalogue.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from headstart.errors import UserError
from headstart.specs import Feature
from headstart.stages import Backbone
from headstart_recsys.folding import fit_ridge
from headstart_recsys.sequential import Block, SequenceEmbedding, SequenceNorm
from headstart_recsys.stages import (
    ItemDelta,
    ItemTable,
    ItemText,
    ItemTower,
    UserTable,
    UserTower,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from headstart.stages import State
    from headstart_recsys.settings import (
        FactorSettings,
        SequentialSettings,
        TableSettings,
        TwoTowerSettings,
    )

ITEM_TABLE = "stages.item.weight"
TEXT_NAMES = ("item_text", "item_text_projection.*")


class TableBackbone(Backbone):
    """A backbone with tables of items and users.

    Every tensor may be missing from a source of weights: one brings item vectors,
    another one only the items' text.

    Attributes:
        text: Our name of the buffer of text vectors; empty without.
        items: How many there are.
        users: How many there are.

    Args:
        stages: As :class:`Backbone` has them.
        features: The same.
        upstream: The same.
        task: What the data module found out: whose the tables' rows are.
        factors: Width of the item vectors.
        text: Our name of the buffer of text vectors; empty without.
        ignored: Upstream names without a place here.
        trailing: Stages that stay when later ones are dropped.
    """

    def __init__(
        self,
        stages: Mapping[str, nn.Module],
        *,
        features: Sequence[Feature],
        upstream: Mapping[str, str],
        task: Mapping[str, Any],
        factors: int,
        text: str = "",
        ignored: Sequence[str] = (),
        trailing: Sequence[str] = (),
    ) -> None:
        owners = {
            ITEM_TABLE: task["items"],
            text: task["items"],
            "stages.delta.weight": task["items"],
            "stages.user.weight": task["users"],
            "stages.item.categories": task.get("categories", {}).get("names", ()),
        }
        modules = nn.ModuleDict(dict(stages))
        names = {f"stages.{name}" for name in modules.state_dict()}
        super().__init__(
            stages,
            features=features,
            upstream=upstream,
            rows={n: list(ids) for n, ids in owners.items() if n in names},
            optional=("*",),
            ignored=[*ignored, *(() if text else TEXT_NAMES)],
            trailing=trailing,
            config={"factors": factors},
        )
        self.text = text
        self.items = len(task["items"])
        self.users = len(task["users"])

    def set_text(self, vectors: Tensor) -> None:
        """Give the items' text vectors, (items, width); zeros for an item without.

        Raises:
            UserError: The backbone reads none, or their shape is another one.
        """
        if not self.text:
            raise UserError(
                "this backbone reads no text vectors",
                where="backbone.text",
                fix="backbone.text = true",
            )
        buffer = self.get_buffer(self.text)
        if vectors.shape != buffer.shape:
            raise UserError(
                f"the text vectors are {tuple(vectors.shape)}, "
                f"not {tuple(buffer.shape)} (items, width)",
                where="data.text",
            )
        buffer.copy_(vectors)

    @torch.no_grad()
    def start_rows(self, name: str, matched: Tensor) -> str:
        """Fill the rows of a table that a source of weights has nothing for.

        New items start from their text, by a regression of the matched items' vectors
        on theirs, where there is text; else from the mean of the matched rows.

        Args:
            name: Of a parameter or buffer in ``rows``.
            matched: Which of its rows hold a source's values, (rows,) bool.

        Returns:
            How they start, in words.
        """
        values = self.state_dict()[name]
        new = ~matched.to(values.device)
        if name in (self.text, "stages.delta.weight"):
            values[new] = 0.0
            return "zeros"
        if not matched.any():
            return "at random: no row matched"
        mean = values[~new].mean(dim=0)
        values[new] = mean
        if name != ITEM_TABLE or not self.text:
            return "mean of the matched rows"
        vectors = self.get_buffer(self.text).to(values.device)
        has_text = vectors.any(dim=1)
        known, told = has_text & ~new, has_text & new
        if int(known.sum()) < 2 or not told.any():
            return "mean of the matched rows: they or the others have no text"
        predict = fit_ridge(vectors[known], values[known])
        values[told] = predict(vectors[told]).to(values.dtype)
        how = f"from their text, by ridge regression on {int(known.sum())} matched rows"
        rest = int((new & ~has_text).sum())
        return f"{how}; {rest} without text: mean of the matched rows" if rest else how


def build_matrix_factorisation(
    settings: FactorSettings, folder: Path | None, task: Mapping[str, Any]
) -> TableBackbone:
    """Users' and items' vectors, matched by their dot product.

    The stages are ``item``, ``text`` and ``delta`` where asked for, and ``user``.

    Args:
        settings: Which of them.
        folder: May hold ``config.json`` with the width of the weights.
        task: Items, users, and those never seen in training.

    Raises:
        UserError: Text is asked for and the data has none.
    """
    factors = _factors(settings, folder)
    stages: dict[str, nn.Module] = _item_stages(settings, factors, task)
    count = len(task["items"])
    if settings.delta:
        stages["delta"] = ItemDelta(count, factors, settings.delta_rank)
    stages["user"] = UserTable(
        len(task["users"]), factors, settings.init_std, settings.ridge
    )
    return TableBackbone(
        stages,
        features=(
            Feature("item_table", "table", factors),
            Feature("query", "vector", factors, stage="user"),
        ),
        upstream={
            **_item_names(),
            "stages.delta.": "item_delta.",
            "stages.user.weight": "user_factors",
        },
        task=task,
        factors=factors,
        text="stages.text.vectors" if settings.text else "",
    )


def build_two_tower(
    settings: TwoTowerSettings, folder: Path | None, task: Mapping[str, Any]
) -> TableBackbone:
    """Items from their content, users from their history, matched by dot product.

    The stages are ``item`` and ``user``; both start as the sum of their parts, so
    that tables learned by matrix factorisation fit them.

    Args:
        settings: What the towers read.
        folder: May hold ``config.json`` with the width of the weights.
        task: Items with their categories and text, users.

    Raises:
        UserError: A tower would read nothing, or text that the data does not have.
    """
    factors = _factors(settings, folder)
    width = _text_width(task) if settings.text else 0
    categories = task.get("categories") or {}
    if not (settings.item_ids or width or categories):
        raise UserError(
            "there is nothing from which items could be told apart",
            where="backbone.item_ids",
            why="the data has no categories, and backbone.text is off",
            fix="backbone.item_ids = true, or data.category",
        )
    if not (settings.user_ids or settings.history):
        raise UserError(
            "there is nothing from which users could be told apart",
            where="backbone.user_ids",
            fix="backbone.user_ids = true, or backbone.history = true",
        )
    items = ItemTower(
        len(task["items"]),
        factors,
        settings.width,
        settings.init_std,
        task.get("cold", ()) if settings.item_ids else None,
        categories,
        width,
    )
    users = UserTower(
        len(task["users"]) if settings.user_ids else 0,
        factors,
        settings.width,
        settings.init_std,
        settings.history,
    )
    return TableBackbone(
        {"item": items, "user": users},
        features=(
            Feature("item_table", "table", factors, stage="item"),
            Feature("query", "vector", factors, stage="user"),
        ),
        upstream={
            ITEM_TABLE: "item_factors",
            "stages.item.categories": "item_categories",
            "stages.item.vectors": "item_text",
            "stages.item.projection.": "item_text_projection.",
            "stages.item.tower.": "item_tower.",
            "stages.user.weight": "user_factors",
            "stages.user.tower.": "user_tower.",
        },
        task=task,
        factors=factors,
        text="stages.item.vectors" if width else "",
        ignored=() if settings.user_ids else ("user_factors",),
    )


def build_sequential(
    settings: SequentialSettings, folder: Path | None, task: Mapping[str, Any]
) -> TableBackbone:
    """SASRec: what comes next in a sequence of items.

    The stages are ``item``, ``text`` where asked for, ``embedding``, ``layer0`` … and
    ``norm``. ``hidden`` at a place is matched with the items that may come next.

    Args:
        settings: Depth, heads and dropout.
        folder: May hold ``config.json`` with the width of the weights.
        task: Items, and ``sequence_length``.

    Raises:
        UserError: The data has no sequences, or text that it does not have is asked
            for, or the heads do not divide the width.
    """
    factors = _factors(settings, folder)
    if "sequence_length" not in task:
        raise UserError(
            "this backbone reads sequences, and the data has none",
            where="data.name",
            fix='data.name = "recsys/sequences"',
        )
    if factors % settings.attention_heads:
        raise UserError(
            f"{settings.attention_heads} attention heads do not divide a width of "
            f"{factors}",
            where="backbone.attention_heads",
            fix="choose a divisor of backbone.factors",
        )
    stages: dict[str, nn.Module] = _item_stages(settings, factors, task)
    stages["embedding"] = SequenceEmbedding(
        task["sequence_length"], factors, settings.init_std, settings.dropout
    )
    layers = [f"layer{i}" for i in range(settings.layers)]
    for layer in layers:
        stages[layer] = Block(factors, settings.attention_heads, settings.dropout)
    stages["norm"] = SequenceNorm(factors)
    return TableBackbone(
        stages,
        features=(
            Feature("item_table", "table", factors),
            Feature("hidden", "tokens", factors),
        ),
        upstream={
            **_item_names(),
            "stages.embedding.": "",
            **{f"stages.{layer}.": f"{layer}." for layer in layers},
            "stages.norm.norm.": "norm.",
        },
        task=task,
        factors=factors,
        text="stages.text.vectors" if settings.text else "",
        ignored=("user_factors",),
        trailing=("norm",),
    )


def _item_stages(
    settings: TableSettings, factors: int, task: Mapping[str, Any]
) -> dict[str, nn.Module]:
    """The items' table and, where asked for, the projection of their text."""
    count = len(task["items"])
    table = ItemTable(count, factors, settings.init_std, task.get("cold", ()))
    stages: dict[str, nn.Module] = {"item": table}
    if settings.text:
        stages["text"] = ItemText(count, _text_width(task), factors)
    return stages


def _item_names() -> dict[str, str]:
    return {
        ITEM_TABLE: "item_factors",
        "stages.text.vectors": "item_text",
        "stages.text.projection.": "item_text_projection.",
    }


def _factors(settings: TableSettings, folder: Path | None) -> int:
    """Width of the vectors: the recipe's where it has one, else the weights'."""
    path = folder / "config.json" if folder else None
    if path is None or "factors" in settings.model_fields_set or not path.is_file():
        return settings.factors
    try:
        return int(json.loads(path.read_text(encoding="utf-8"))["factors"])
    except (ValueError, KeyError, TypeError):
        return settings.factors


def _text_width(task: Mapping[str, Any]) -> int:
    """Of the items' text vectors.

    Raises:
        UserError: The data has none.
    """
    width = int(task.get("text", {}).get("width", 0))
    if not width:
        raise UserError(
            "the backbone reads text vectors, and the data has none",
            where="backbone.text",
            fix="data.text: a file of vectors, or a text encoder",
        )
    return width


def sample_users(backbone: TableBackbone) -> State:
    """Four users for tests: two known, two unknown, the last without a history."""
    generator = torch.Generator().manual_seed(0)
    history = torch.randint(backbone.items, (4, 5), generator=generator)
    length = torch.tensor([5, 2, 3, 0])
    history[torch.arange(5) >= length[:, None]] = -1
    user = torch.tensor([0, backbone.users - 1, -1, -1])
    return {"user": user, "history": history}


def sample_sequences(backbone: TableBackbone) -> State:
    """Four users for tests as sequences: full, short, of one item, and empty."""
    embedding = backbone.stages["embedding"]
    assert isinstance(embedding, SequenceEmbedding)
    length = len(embedding.positions)
    generator = torch.Generator().manual_seed(0)
    sequence = torch.randint(backbone.items, (4, length), generator=generator)
    known = torch.tensor([length, length - 2, 1, 0])
    sequence[torch.arange(length) < (length - known)[:, None]] = -1
    return {**sample_users(backbone), "sequence": sequence}
