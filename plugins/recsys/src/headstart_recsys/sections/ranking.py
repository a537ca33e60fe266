"""Sections about rankings: by popularity, for what is known and new, and samples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from headstart.report import plots
from headstart.report.parts import Cell, Evaluation, Figure, Section, Table
from headstart_recsys.metrics import ndcg

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes

    from headstart_recsys.sections.items import Items

DEPTH = 20
SHORT = 10
SHOWN = 8
"""Items of a list that a sample shows."""
FEWEST = 20
"""With fewer users the normal approximation of an interval is not worth printing."""


def held_out(outputs: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """All held-out items, and the row each belongs to; both (held-out items,)."""
    rows = [np.asarray(row, dtype=np.int64) for row in outputs["held_out"]]
    rows = [row[row >= 0] for row in rows]
    owner = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    return np.concatenate([*rows, np.zeros(0, np.int64)]), owner


def _lists(outputs: Mapping[str, Any], depth: int) -> tuple[np.ndarray, np.ndarray]:
    """Items at the top and which of them are right; both (users, at most depth)."""
    top = np.asarray(outputs["top"])[:, :depth]
    return top, np.asarray(outputs["hits"], dtype=bool)[:, :depth]


def by_popularity(evaluation: Evaluation, items: Items) -> list[Section]:
    """How well popular and rare items are found, and how often they are recommended."""
    wanted, _ = held_out(evaluation.outputs)
    top, hits = _lists(evaluation.outputs, DEPTH)
    if not len(wanted):
        return []
    listed = top[top >= 0]
    counted = [
        np.bincount(codes, minlength=len(items))
        for codes in (wanted, top[hits], listed)
    ]
    rows: list[tuple[Cell, ...]] = []
    for group in items.groups:
        asked, found, given = (int(n[group.members].sum()) for n in counted)
        rows.append(
            (
                group.name,
                len(group.members),
                asked,
                found / asked if asked else None,
                asked / len(wanted),
                given / max(len(listed), 1),
            )
        )
    depth = top.shape[1]
    table = Table(
        (
            "training events",
            "items",
            "held-out events",
            f"recall@{depth}",
            "share of held-out",
            f"share of top {depth}",
        ),
        tuple(rows),
        caption=f"{evaluation.split.capitalize()} split. Each held-out event counts "
        "once here; in the results each user does.",
    )
    text = (
        "Items in groups by how many training events they have; the groups have about "
        "equally many events together. A model that recommends what is popular gives "
        "the first groups more than their share."
    )
    return [
        Section(
            "Results by popularity",
            text,
            tables=(table,),
            figures=_popularity_figures(rows, depth),
        )
    ]


def _popularity_figures(
    rows: Sequence[tuple[Cell, ...]], depth: int
) -> tuple[Figure, ...]:
    names = [str(row[0]) for row in rows]
    places = np.arange(len(rows))
    recall, asked, given = (
        np.array([np.nan if row[k] is None else row[k] for row in rows], dtype=float)
        for k in (3, 4, 5)
    )

    def shares(axes: Axes) -> None:
        bars = (("held-out events", asked), (f"top {depth}", given))
        for k, (name, values) in enumerate(bars):
            axes.bar(
                places + 0.4 * k - 0.2,
                values,
                0.38,
                color=plots.COLOURS[k],
                label=name,
            )
        axes.set_ylabel("share")
        axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
        named(axes)

    def recalls(axes: Axes) -> None:
        axes.bar(places, recall, 0.6, color=plots.COLOURS[2])
        axes.set_ylabel(f"recall@{depth}")
        named(axes)

    def named(axes: Axes) -> None:
        axes.set_xticks(places, labels=[name.replace(" to ", "–") for name in names])
        axes.set_xlabel("training events of an item")
        axes.tick_params(axis="x", length=0)
        axes.grid(visible=False, axis="x")

    spoken = ", ".join(
        f"{n}: {a:.0%} of held-out, {g:.0%} of recommended, recall {r:.3f}"
        for n, a, g, r in zip(names, asked, given, recall, strict=True)
    )
    return (
        Figure(
            plots.render(shares),
            caption="What users took, and what they were recommended.",
            alt=f"Shares by training events of an item; {spoken}",
        ),
        Figure(
            plots.render(recalls),
            caption=f"Share of held-out events that are in the top {depth}.",
            alt="Recall by training events of an item",
        ),
    )


def known_and_new(evaluation: Evaluation, items: Items) -> list[Section]:
    """Results for users and items with and without training events beside each other.

    Empty where neither a user nor an item is new.
    """
    outputs, task = evaluation.outputs, evaluation.task
    if not len(outputs["relevant"]):
        return []
    new_user = np.asarray(outputs["cold_user"], dtype=bool)
    some_items = bool(items.new.any())
    if not new_user.any() and not some_items:
        return []
    relevant = np.asarray(outputs["relevant"])
    _, hits = _lists(outputs, int(np.shape(outputs["top"])[1]))
    depth = min(DEPTH, hits.shape[1])
    only_new = task.get("candidates") == "cold"
    pool = np.full(len(relevant), items.new.sum() if only_new else len(items))
    if task.get("mask_seen") and not only_new:
        pool = pool - np.asarray(outputs["known"])
    chance = np.minimum(depth / np.maximum(pool, 1), 1.0)
    recall = hits[:, :depth].sum(axis=1) / np.maximum(relevant, 1)
    gain = _ndcg(hits, relevant)
    lists = [("every user", relevant > 0)]
    if new_user.any():
        lists.append(("known users", (relevant > 0) & ~new_user))
        lists.append(("new users (no training event)", (relevant > 0) & new_user))
    rows = [_row(name, used, recall, chance, gain) for name, used in lists]
    if some_items:
        for name, members in (("known items", ~items.new), ("new items", items.new)):
            asked, found = _of_items(outputs, members, depth)
            share = found / np.maximum(asked, 1)
            rows.append(_row(f"{name}, among all", asked > 0, share, chance))
        if "cold_hits" in outputs:
            asked = np.asarray(outputs["cold_relevant"])
            among = np.asarray(outputs["cold_hits"], dtype=bool)
            share = among[:, :depth].sum(axis=1) / np.maximum(asked, 1)
            luck = np.full(len(asked), min(depth / int(items.new.sum()), 1.0))
            order = _ndcg(among, asked)
            name = "new items, among new ones alone"
            rows.append(_row(name, asked > 0, share, luck, order))
    table = Table(
        (
            "",
            "users",
            f"NDCG@{SHORT}",
            f"recall@{depth}",
            "95% interval",
            f"recall@{depth} by chance",
        ),
        tuple(row for row in rows if row[1]),
        caption=f"{evaluation.split.capitalize()} split, means over the users who have "
        "such items to find. The interval covers the choice of users, not of seeds.",
    )
    text = "New means without any training event: no vector of their own was learned."
    if some_items:
        text += (
            f" {int(items.new.sum()):,} of {len(items):,} items are new; popularity "
            "says nothing about them, so only their content can rank them."
        )
    return [Section("Known and new users and items", text, tables=(table,))]


def _ndcg(hits: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    """NDCG of each list, (users,)."""
    short = torch.from_numpy(np.ascontiguousarray(hits[:, :SHORT]))
    return ndcg(short, torch.from_numpy(relevant.astype(np.int64)), 0).numpy()


def _of_items(
    outputs: Mapping[str, Any], members: np.ndarray, depth: int
) -> tuple[np.ndarray, np.ndarray]:
    """How many held-out items are of some kind, and how many were found; (users,)."""
    wanted, owner = held_out(outputs)
    top, hits = _lists(outputs, depth)
    asked = np.bincount(owner[members[wanted]], minlength=len(top))
    return asked, (hits & members[top]).sum(axis=1)


def _row(
    name: str,
    used: np.ndarray,
    recall: np.ndarray,
    chance: np.ndarray,
    gain: np.ndarray | None = None,
) -> tuple[Cell, ...]:
    count = int(used.sum())
    if not count:
        return (name, 0)
    values = recall[used]
    mean, spread = float(values.mean()), ""
    if count >= FEWEST and values.any():
        error = 1.96 * float(values.std(ddof=1)) / count**0.5
        spread = f"{max(mean - error, 0):.3f} to {min(mean + error, 1):.3f}"
    order = None if gain is None else float(gain[used].mean())
    return (name, count, order, mean, spread or None, float(chance[used].mean()))


def samples(evaluation: Evaluation, items: Items) -> list[Section]:
    """What some users had, what they took later, and what they were recommended."""
    outputs = evaluation.outputs
    able = np.flatnonzero(np.asarray(outputs["relevant"]) > 0)
    count = min(evaluation.rows, len(able))
    if count < 1:
        return []
    picked = able[np.linspace(0, len(able) - 1, count).round().astype(int)]
    shown = [evaluation.shown(int(i)) for i in picked]
    top, hits = _lists(outputs, SHOWN)
    had = [_had(one, items) for one in shown]
    some = any(had)
    rows: list[tuple[Cell, ...]] = []
    for i, one, past in zip(picked, shown, had, strict=True):
        codes = np.asarray(outputs["held_out"][i])
        codes = codes[codes >= 0]
        right = top[i][hits[i]]
        # What was found comes first, as the list is cut.
        later = [*right, *np.setdiff1d(codes, right)]
        marked = [_marked(items, c, c in right) for c in later[:SHOWN]]
        if len(codes) > SHOWN:
            marked.append(f"{len(codes) - SHOWN} more")
        given = [
            _marked(items, c, bool(hit))
            for c, hit in zip(top[i], hits[i], strict=True)
            if c >= 0
        ]
        row: list[Cell] = [_user(evaluation, int(i), one)]
        if some:
            row.append(past or "nothing known")
        rows.append((*row, "; ".join(marked), "; ".join(given)))
    columns = ("user", *(("had",) if some else ()), "took later", "recommended")
    found = int(hits[able].any(axis=1).sum())
    table = Table(
        columns,
        tuple(rows),
        caption=f"{count} of {len(able):,} users of the {evaluation.split} split at "
        f"equal distances, not chosen. {top.shape[1]} items are shown; ✓ was taken "
        f"later. {found / len(able):.0%} of the users have a ✓.",
    )
    return [
        Section(
            "Sample recommendations",
            "The first items of a user's list, best first.",
            tables=(table,),
        )
    ]


def _marked(items: Items, code: int, right: bool) -> str:
    return ("✓ " if right else "") + items.name(int(code))


def _had(shown: Mapping[str, Any], items: Items) -> str:
    """The last items of a user's history as the data module shows it."""
    past = shown.get("history", "")
    if isinstance(past, str):
        return past
    last = [str(one) for one in past][-SHOWN:]
    return "; ".join(items.called(one) for one in last)


def _user(evaluation: Evaluation, index: int, shown: Mapping[str, Any]) -> str:
    if "user" in shown:
        return str(shown["user"])
    code = int(evaluation.outputs["user"][index])
    return str(evaluation.task["users"][code]) if code >= 0 else "new"
