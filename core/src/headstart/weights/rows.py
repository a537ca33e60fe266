"""Tables whose rows belong to named things: aligned by id, never by place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from headstart.errors import Fault

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from headstart.stages import Backbone


@dataclass(frozen=True)
class RowTransfer:
    """What became of the rows of one table.

    Attributes:
        table: The source's name of it.
        matched: Our rows that came with the weights.
        new: Our rows that the weights do not know.
        dropped: Their rows that we do not know.
        started: How the new rows start, in words.
    """

    table: str
    matched: int
    new: int
    dropped: int
    started: str = ""


@dataclass
class AlignedTable:
    """A source's table in the order of our rows.

    Attributes:
        parameter: Our name of it.
        table: The source's.
        values: Our shape; rows that did not match hold our present values.
        matched: Which rows came from the source, (rows,).
        dropped: Rows of the source that found no place.
    """

    parameter: str
    table: str
    values: Tensor
    matched: Tensor
    dropped: int

    def start_others(self, backbone: Backbone) -> RowTransfer:
        """Let the backbone start the rows that did not match, and tell."""
        matched = int(self.matched.sum())
        new = len(self.matched) - matched
        started = ""
        if new:
            with torch.no_grad():
                started = backbone.start_rows(self.parameter, self.matched)
        return RowTransfer(self.table, matched, new, self.dropped, started)


def align_tables(
    backbone: Backbone,
    theirs: Mapping[str, Tensor],
    ids: Mapping[str, Sequence[str]],
) -> tuple[list[AlignedTable], list[Fault]]:
    """The source's tables that the backbone has too, with their rows in our order.

    Args:
        backbone: Its ``rows`` name our tables and what their rows belong to.
        theirs: The source's tensors by upstream name.
        ids: What the rows of its tables belong to.

    Returns:
        The tables, and what is wrong with others.
    """
    ours = backbone.state_dict()
    tables: list[AlignedTable] = []
    faults: list[Fault] = []
    for parameter, our_ids in backbone.rows.items():
        name = backbone.upstream_name(parameter)
        if name not in theirs:
            continue
        source, current = theirs[name], ours[parameter]
        if name not in ids:
            what = f"nobody knows what the rows of {name!r} belong to"
            fix = "give the ids with the weights; rows are never matched by place"
            faults.append(Fault(what, fix=fix))
        elif len(ids[name]) != len(source):
            what = f"{name!r} has {len(source)} rows and {len(ids[name])} ids"
            faults.append(Fault(what))
        elif source.shape[1:] != current.shape[1:]:
            faults.append(_of_another_width(backbone, name, source, current))
        else:
            table = _align(parameter, name, source, current, ids[name], our_ids)
            if bool(table.matched.any()):
                tables.append(table)
            else:
                faults.append(_strangers(name, ids[name], our_ids))
    return tables, faults


def _of_another_width(
    backbone: Backbone, name: str, source: Tensor, current: Tensor
) -> Fault:
    theirs, ours = tuple(source.shape[1:]), tuple(current.shape[1:])
    # The setting is called what the configuration calls it.
    keys = [key for key, value in (backbone.config or {}).items() if (value,) == ours]
    key = f"backbone.{keys[0]}" if keys else "the backbone's width"
    return Fault(
        f"the rows of {name!r} have the shape {theirs}, not {ours}",
        fix=f"set {key} to {theirs[0]}" if len(theirs) == 1 else "",
    )


def _align(
    parameter: str,
    name: str,
    source: Tensor,
    current: Tensor,
    theirs: Sequence[str],
    ours: Sequence[str],
) -> AlignedTable:
    place = {one: row for row, one in enumerate(theirs)}
    found = torch.tensor([place.get(one, -1) for one in ours])
    matched = found >= 0
    values = current.detach().clone()
    values[matched] = source[found[matched]].to(values.dtype)
    dropped = len(theirs) - int(matched.sum())
    return AlignedTable(parameter, name, values, matched, dropped)


def _strangers(name: str, theirs: Sequence[str], ours: Sequence[str]) -> Fault:
    def few(ids: Sequence[str]) -> str:
        return ", ".join(map(repr, list(ids)[:3]))

    return Fault(
        f"none of the {len(theirs):,} rows of {name!r} belongs to anything in the data",
        why=f"the weights know {few(theirs)} …, the data {few(ours)} …",
        fix="take weights of the same catalogue, or map the ids of one to the other's",
    )
