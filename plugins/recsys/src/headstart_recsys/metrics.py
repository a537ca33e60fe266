"""Metrics of ranked lists: each is a mean over users, as the field defines it.

They read what ``recsys/ranking`` and the baselines give, full rankings that are never
sampled. ``hits`` (users, depth) bool says where in a user's list the held-out items
are, ``relevant`` (users,) how many of those there were to find; users with none do not
count. Held-out items are all equally good (binary relevance).

A metric's code is named after it: that of ``cold-users-recall@20`` is
``cold_users_recall_at_20``, called with the task. The same with ``_scores`` behind it
gives the value of each user, called with the task and outputs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics.metric import Metric

from headstart.errors import UserError

PerUser = Callable[[Tensor, Tensor, int], Tensor]
"""From ``hits`` (users, k), ``relevant`` (users,) and the number of candidates."""

INPUTS = {
    "": ("hits", "relevant"),
    "cold": ("cold_hits", "cold_relevant"),
    "cold_users": ("hits", "relevant", "cold_user"),
    "known_users": ("hits", "relevant", "cold_user"),
}
"""Outputs that a metric of ranked lists reads, by what stands before its name."""


def ndcg(hits: Tensor, relevant: Tensor, candidates: int) -> Tensor:
    """Discounted gain over that of the best list of k (Järvelin & Kekäläinen 2002).

    The best list has min(k, relevant) hits in front; ranks are discounted by log2.
    """
    k = hits.shape[1]
    discount = torch.arange(2, k + 2, device=hits.device).double().log2().reciprocal()
    best = discount.cumsum(0)[relevant.clamp(1, k) - 1]
    return (hits * discount).sum(1) / best


def recall(hits: Tensor, relevant: Tensor, candidates: int) -> Tensor:
    """Share of all relevant items that are among the first k; can stay below 1."""
    return hits.sum(1).double() / relevant


def hit_rate(hits: Tensor, relevant: Tensor, candidates: int) -> Tensor:
    """1 when any of the first k is relevant."""
    return hits.any(1).double()


def reciprocal_rank(hits: Tensor, relevant: Tensor, candidates: int) -> Tensor:
    """1 / rank of the first relevant item, 0 when it is beyond k."""
    first = hits.int().argmax(1)
    return hits.any(1).double() / (first + 1)


def average_precision(hits: Tensor, relevant: Tensor, candidates: int) -> Tensor:
    """Sum of the precisions at each hit over min(k, relevant), as in implicit."""
    k = hits.shape[1]
    ranks = torch.arange(1, k + 1, device=hits.device)
    precisions = hits.cumsum(1).double() / ranks
    return (precisions * hits).sum(1) / relevant.clamp(max=k)


def precision(hits: Tensor, relevant: Tensor, candidates: int) -> Tensor:
    """Hits over min(k, relevant), as in implicit: 1 is always possible."""
    return hits.sum(1).double() / relevant.clamp(max=hits.shape[1])


def limited_auc(hits: Tensor, relevant: Tensor, candidates: int) -> Tensor:
    """Area under the ROC curve where only the first k are ranked, as in implicit.

    What is beyond them counts as if it came in any order.
    """
    found = hits.sum(1)
    missed = hits.shape[1] - found
    inside = (hits.cumsum(1) * ~hits).sum(1)
    others = candidates - relevant
    beyond = (found + relevant) / 2 * (others - missed)
    return (inside + beyond).double() / (relevant * others)


PER_USER: Mapping[str, PerUser] = {
    "ndcg": ndcg,
    "recall": recall,
    "hr": hit_rate,
    "mrr": reciprocal_rank,
    "map": average_precision,
    "precision": precision,
    "auc": limited_auc,
}


class UserMean(Metric):
    """A figure's mean over the users that count.

    Args:
        values: From one batch's outputs to the value of each user (users,), not a
            number for those that do not count, and the weights (users,) of the mean.
    """

    is_differentiable = False
    full_state_update = False

    total: Tensor
    count: Tensor

    def __init__(self, values: Callable[..., tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.values = values
        for name in ("total", "count"):
            zero = torch.zeros((), dtype=torch.float64)
            self.add_state(name, zero, dist_reduce_fx="sum")

    def update(self, *outputs: Tensor) -> None:
        """Add a batch of the outputs that this metric reads."""
        values, weights = self.values(*outputs)
        weights = torch.where(values.isnan(), 0.0, weights.double())
        self.total += (values.nan_to_num() * weights).sum()
        self.count += weights.sum()

    def compute(self) -> Tensor:
        """The mean, a scalar; not a number when no user counts."""
        return self.total / self.count


class Coverage(Metric):
    """Share of the candidates that are recommended to anyone among the first k.

    Args:
        items: Items of the catalogue.
        candidates: Those that can be recommended.
        k: Length of the lists.
    """

    is_differentiable = False
    full_state_update = False

    recommended: Tensor

    def __init__(self, items: int, candidates: int, k: int) -> None:
        super().__init__()
        self.candidates = candidates
        self.k = k
        nothing = torch.zeros(items, dtype=torch.int64)
        self.add_state("recommended", nothing, dist_reduce_fx="sum")

    def update(self, top: Tensor) -> None:
        """Add lists ``top`` (users, depth) of item codes, padded with -1."""
        shown = _first(top, self.k, self.candidates)
        shown = shown[shown >= 0]
        self.recommended += torch.bincount(shown, minlength=len(self.recommended))

    def compute(self) -> Tensor:
        """The share, a scalar."""
        return (self.recommended > 0).sum() / self.candidates


def popularity_ranks(counts: Any) -> np.ndarray:
    """Share of items that are less popular than each, float64 (items,).

    Items with as many events count by half, so that the mean over all is 0.5.

    Args:
        counts: Training events of each item (items,).
    """
    _, group, size = np.unique(counts, return_inverse=True, return_counts=True)
    below = np.cumsum(size) - size
    ranks: np.ndarray = ((below + size / 2) / len(group))[group]
    return ranks


def sample_outputs(task: Mapping[str, Any], batch_size: int) -> dict[str, Any]:
    """Outputs as the head gives them, for tests; seeded, some users without any hit."""
    generator = torch.Generator().manual_seed(batch_size)
    items = len(task["items"])

    def lists(candidates: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        depth = min(100, len(candidates))
        order = torch.rand(batch_size, len(candidates), generator=generator).argsort(1)
        top = candidates[order[:, :depth]]
        hits = torch.rand(top.shape, generator=generator) < 0.2
        hits[::3] = False
        left = len(candidates) - hits.sum(1)
        relevant = hits.sum(1) + torch.arange(batch_size).remainder(3).minimum(left)
        return top, hits, relevant

    top, hits, relevant = lists(torch.arange(items))
    found: dict[str, Any] = {
        "user": torch.arange(batch_size) % max(len(task["users"]), 1),
        "top": top,
        "scores": torch.linspace(1, 0, top.shape[1]).repeat(batch_size, 1),
        "hits": hits,
        "relevant": relevant,
        "held_out": [top[i][hits[i]].numpy() for i in range(batch_size)],
        "cold_user": torch.arange(batch_size) % 2 == 1,
        "known": torch.arange(batch_size),
    }
    if task["cold"]:
        cold = lists(torch.tensor(task["cold"]))
        found.update(zip(("cold_top", "cold_hits", "cold_relevant"), cold, strict=True))
    return found


def __getattr__(attribute: str) -> Any:
    found = NAME.fullmatch(attribute)
    if not found:
        raise AttributeError(f"module {__name__!r} has no attribute {attribute!r}")
    group, ranked, whole, k, scores = found.groups()
    if scores and (ranked == "precision" or whole == "coverage"):
        raise AttributeError(f"{ranked or whole} is no plain mean over users")
    return partial(_scores if scores else _metric, ranked or whole, group or "", int(k))


NAME = re.compile(
    r"(?:(?:(cold_users|known_users|cold)_)?"
    rf"({'|'.join(PER_USER)})|(coverage|popularity))_at_([1-9]\d*)(_scores)?"
)


def _metric(name: str, group: str, k: int, task: Mapping[str, Any]) -> Metric:
    _check(name, group, k, task)
    if name == "coverage":
        return Coverage(len(task["items"]), _candidates(group, task), k)
    return UserMean(_values(name, group, k, task))


def _scores(
    name: str, group: str, k: int, task: Mapping[str, Any], outputs: Mapping[str, Any]
) -> np.ndarray:
    """The value of each user, float64 (users,); not a number where it does not count.

    Args:
        name: Of the metric.
        group: Of items or users that it is about.
        k: Length of the lists.
        task: What the data module found out.
        outputs: Of a head or a baseline, tensors or arrays.
    """
    _check(name, group, k, task)
    keys = ("top",) if name == "popularity" else INPUTS[group]
    read = (torch.as_tensor(outputs[key]) for key in keys)
    scores: np.ndarray = _values(name, group, k, task)(*read)[0].cpu().numpy()
    return scores


def _values(
    name: str, group: str, k: int, task: Mapping[str, Any]
) -> Callable[..., tuple[Tensor, Tensor]]:
    """From outputs to the users' values and their weights in the mean."""
    candidates = _candidates(group, task)
    if name == "popularity":
        ranks = torch.from_numpy(popularity_ranks(task["counts"]))

        def popular(top: Tensor) -> tuple[Tensor, Tensor]:
            top = _first(top, k, candidates)
            shown = top >= 0
            total = (ranks.to(top.device)[top.clamp(min=0)] * shown).sum(1)
            return total / shown.sum(1), torch.ones_like(total)

        return popular
    per_user = PER_USER[name]

    def ranked(
        hits: Tensor, relevant: Tensor, cold_user: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        hits = _first(hits, k, candidates).bool()
        relevant = relevant.long()
        counts = relevant > 0
        if cold_user is not None:
            counts &= cold_user if group == "cold_users" else ~cold_user
        values = per_user(hits, relevant.clamp(min=1), candidates)
        weights = torch.ones_like(values)
        if name == "precision":  # implicit's is that of all users' lists together
            weights = relevant.clamp(max=k).double()
        return values.where(counts, torch.nan), weights

    return ranked


def _first(lists: Tensor, k: int, candidates: int) -> Tensor:
    if lists.shape[1] < min(k, candidates):
        raise UserError(
            f"lists of {lists.shape[1]} are too short for a metric at {k}",
            where="head.depth",
            fix=f"set it to {k} or more, or leave the metric out of metrics.names",
        )
    return lists[:, :k]


def _candidates(group: str, task: Mapping[str, Any]) -> int:
    cold = group == "cold" or task["candidates"] == "cold"
    return len(task["cold"] if cold else task["items"])


def _check(name: str, group: str, k: int, task: Mapping[str, Any]) -> None:
    shown = "-".join(filter(None, (group.replace("_", "-"), name))) + f"@{k}"
    if group == "cold" and not task["cold"]:
        raise UserError(
            f"the metric {shown!r} has nothing to measure",
            where="metrics.names",
            why="every item has events in training",
            fix="leave it out, or set data.cold_items or data.catalogue_items",
        )
