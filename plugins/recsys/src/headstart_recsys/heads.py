"""The head of recommenders: how well each item fits a user, and what is best."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from headstart.errors import UserError
from headstart.heads import Head
from headstart_recsys.losses import (
    bpr,
    log_expected,
    log_sum,
    rank_weights,
    sampled_softmax,
    warp,
)
from headstart_recsys.options import RankingOptions
from headstart_recsys.ranking import Candidates, Found, find, top_k
from headstart_recsys.tables import look_up, match

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from headstart.model import Model
    from headstart.report.parts import Evaluation, Section
    from headstart.specs import Feature
    from headstart.stages import State
    from headstart_recsys.settings import RankingSettings

TARGETS = ("item", "weight", "positives", "negatives", "held_out", "cold_user")
ITEM_STAGES = ("item", "text", "delta")
"""Stages that make the items' vectors and read no batch."""


class RankingHead(Head):
    """Scores ``scale * <query, item> + bias[item]`` over a table of item vectors.

    It trains on events with sampled items and ranks all candidates in evaluation. A
    batch with ``held_out`` items is evaluated unless the head is in training mode.

    Args:
        settings: Loss, scale and bias.
        query: What is matched with the items: ``query`` (batch, channels) or ``hidden``
            (batch, time, channels), of which evaluation takes the last place.
        task: Items with their training events, and which of them are ranked.
    """

    neutral = ("log_scale", "bias")

    popularity: Tensor
    sampling: Tensor
    ranks: Tensor
    cold: Tensor

    def __init__(
        self, settings: RankingSettings, query: Feature, task: Mapping[str, Any]
    ) -> None:
        super().__init__()
        self.settings = settings
        self.query = query.name
        self.reads = (query.name, "item_table")
        self.task = task
        items = len(task["items"])
        self.only_cold = task["candidates"] == "cold"
        self.depth = min(settings.depth, len(task["cold"]) if self.only_cold else items)
        # Of shape (1,): sharded training takes no scalars.
        scale = torch.full((1,), math.log(settings.scale))
        if settings.train_scale:
            self.log_scale: Tensor = nn.Parameter(scale)
        else:
            self.register_buffer("log_scale", scale)
        self.bias = nn.Parameter(torch.zeros(items)) if settings.bias else None
        counts = torch.tensor(task["counts"], dtype=torch.float64)
        popularity = (counts / counts.sum().clamp(min=1)).float()
        # What no training event names is never drawn.
        uniform = torch.ones(items)
        uniform[task["cold"]] = 0
        uniform /= uniform.sum().clamp(min=1)
        by_popularity = task.get("negative_sampling") == "popularity"
        buffers = {
            "popularity": popularity,
            "sampling": popularity if by_popularity else uniform,
            "ranks": rank_weights(items),
            "cold": torch.tensor(task["cold"], dtype=torch.int64),
        }
        for name, values in buffers.items():
            self.register_buffer(name, values, persistent=False)

    def reduce(self, state: State) -> State:
        """Leave out all but the features, the targets and what is known of users."""
        kept = (*self.reads, *TARGETS, "user", "history")
        return {key: state[key] for key in kept if key in state}

    def forward(self, state: State) -> State:
        """Add ``loss``, a scalar, and in evaluation what :meth:`outputs` gives."""
        events = "positives" in state or "item" in state
        if self.training and events:
            return {**state, "loss": self._training_loss(state)}
        found = self._evaluate(state)
        if events and "held_out" not in state:
            found["loss"] = self._training_loss(state)
        return {**state, **found}

    def loss(self, state: State) -> Tensor:
        """Mean over training events or, in evaluation, over the held-out items.

        The latter is the cross entropy of the softmax over all candidates without those
        that the user is known to have.
        """
        loss: Tensor = state["loss"]
        return loss

    def weight(self, batch: State) -> Tensor:
        """Sum of the events' weights; in evaluation the number of items to find."""
        events = "positives" in batch or "item" in batch
        if "held_out" in batch and not (self.training and events):
            held_out = batch["held_out"]
            candidates = self._candidates(held_out.device)
            return (candidates.columns(held_out) < candidates.count).sum().float()
        if self.query == "hidden" and "positives" in batch:
            positives: Tensor = batch["positives"]
            return (positives >= 0).sum().float()
        if "weight" in batch:
            weights: Tensor = batch["weight"]
            return weights.float().sum()
        rows = next(batch[key] for key in ("item", "user", "history") if key in batch)
        return torch.full((), float(len(rows)), device=rows.device)

    def outputs(self, state: State) -> dict[str, Any]:
        """Ranked lists of all candidates, best first, without what the user has.

        Returns:
            ``user`` (batch,), ``top`` (batch, k) item codes, -1 behind the last, their
            ``scores``, ``known`` (batch,) items of the history; with targets also
            ``hits`` (batch, k) bool, ``relevant`` (batch,) items that could be found,
            ``held_out``, a list of arrays, ``cold_user`` (batch,), and ``cold_top``,
            ``cold_hits``, ``cold_relevant`` of a ranking of the cold items alone.
        """
        found = {key: state[key] for key in OUTPUTS if key in state}
        if "held_out" in state:
            rows = state["held_out"].cpu().numpy()
            found["held_out"] = [row[row >= 0] for row in rows]
        return found

    def decode(self, outputs: dict[str, Any]) -> list[dict[str, Any]]:
        """``user`` id, ``items`` with title and score; a ``reason`` if unknown."""
        users, items = self.task["users"], self.task["items"]
        titles = self.task["titles"] or [""] * len(items)
        rows = []
        for user, known, top, scores in zip(
            *(outputs[key].tolist() for key in ("user", "known", "top", "scores")),
            strict=True,
        ):
            listed = [
                {"id": items[i], "title": titles[i], "score": round(score, 6)}
                for i, score in zip(top, scores, strict=True)
                if i >= 0
            ]
            row = {"user": users[user] if user >= 0 else None, "items": listed}
            rows.append(row if user >= 0 else {**row, "reason": _reason(known)})
        return rows

    def probe(self, model: Model) -> dict[str, Any]:
        """``item_table`` (items, channels), all items' vectors, on the CPU."""
        state: State = {}
        training = model.training
        model.eval()
        with torch.no_grad():
            for name, stage in model.backbone.stages.items():
                if name in ITEM_STAGES:
                    state = stage(state)
        model.train(training)
        table: Tensor = state["item_table"]
        # A copy: training goes on in the same memory.
        return {"item_table": table.detach().float().cpu().clone()}

    def report(self, evaluation: Evaluation) -> Sequence[Section]:
        from headstart_recsys.sections import sections

        return sections(evaluation)

    def _training_loss(self, state: State) -> Tensor:
        """Weighted mean of the loss over the events of a batch, a scalar."""
        query, positive, negative, weights, owners = self._events(state)
        table = state["item_table"]
        known = positive >= 0
        codes = torch.cat([positive[:, None], negative], 1).clamp(min=0)
        scores = match(query, table, codes).float() * self.log_scale.exp()
        if self.bias is not None:
            scores = scores + look_up(self.bias, codes)
        # Sampled by accident, or padding.
        masked = (negative == positive[:, None]) | (negative < 0)
        if self.settings.loss == "bpr":
            losses = bpr(scores[:, 0], scores[:, 1:], masked)
        elif self.settings.loss == "warp":
            losses = warp(scores[:, 0], scores[:, 1:], masked, self.ranks)
        else:
            vectors, count = query, 1
            if self.settings.in_batch:
                vectors = look_up(table, codes[:, 0])
                count = math.ceil(len(query) / self.settings.in_batch_block)
            events = (query, vectors, scores, codes, masked, known, owners)
            blocks = zip(*(rows.tensor_split(count) for rows in events), strict=True)
            losses = torch.cat([self._softmax(*block) for block in blocks])
        # Padding has a weight of 0, but may have any loss.
        return (losses * weights).sum() / weights.sum().clamp(min=1e-12)

    def _softmax(
        self,
        query: Tensor,
        vectors: Tensor,
        scores: Tensor,
        codes: Tensor,
        masked: Tensor,
        known: Tensor,
        owners: Tensor,
    ) -> Tensor:
        """Sampled softmax over each event's own samples and, in a block, others' items.

        Args:
            query: (events, channels).
            vectors: Of the events' own items, (events, channels); read only where
                they are negatives of others.
            scores: Of the own item, then of the samples, (events, 1 + samples).
            codes: Of the same items.
            masked: Samples that do not count, (events, samples).
            known: False for padding, (events,).
            owners: Whose event it is, (events,).
        """
        samples = codes.shape[1] - 1
        expected = samples * self.sampling
        others = []
        if self.settings.in_batch:
            expected = expected + (known.sum() - 1).clamp(min=0) * self.popularity
        correction = log_expected(expected)
        if self.settings.in_batch:
            item = codes[:, 0]
            offset = -correction[item]
            if self.bias is not None:
                offset = offset + look_up(self.bias, item)
            taken = (item[:, None] == item) | (owners[:, None] == owners) | ~known
            logits = (query * self.log_scale.exp()) @ vectors.T
            others.append(log_sum(logits.float() + offset, taken))
        if samples:
            corrected = scores[:, 1:] - correction[codes[:, 1:]]
            others.append(log_sum(corrected, masked))
        return sampled_softmax(scores[:, 0], others)

    def _events(self, state: State) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Query, item, samples, weight and owner of each event, a row each."""
        query, negative = state[self.query], state.get("negatives")
        if self.query == "hidden" and "positives" in state:
            positive: Tensor = state["positives"]
            rows = torch.arange(len(positive), device=positive.device)
            # By place, then by sequence: a block is to hold many sequences.
            owners = rows.repeat(positive.shape[1])
            query = query.transpose(0, 1).flatten(0, 1)
            positive = positive.T.flatten()
            weights = (positive >= 0).float()
            if negative is not None:
                negative = negative.transpose(0, 1).flatten(0, 1)
        else:
            query, positive = self._last(state), state["item"]
            weights = state.get("weight", torch.ones_like(positive)).float()
            rows = torch.arange(len(positive), device=positive.device)
            owners = state.get("user", rows)
        if negative is None:
            negative = positive.new_empty(len(positive), 0)
        softmax = self.settings.loss == "softmax" and self.settings.in_batch
        if not negative.shape[1] and not softmax:
            raise UserError(
                f"the loss {self.settings.loss!r} compares with sampled items, and "
                "there are none",
                where="data.negatives",
                fix="data.negatives = 1 or more; for warp 10 or more",
            )
        return query, positive, negative, weights, owners

    def _last(self, state: State) -> Tensor:
        """What is matched with the items at the end, (batch, channels)."""
        query: Tensor = state[self.query]
        return query[:, -1] if self.query == "hidden" else query

    def _candidates(self, device: torch.device) -> Candidates:
        chosen = self.cold if self.only_cold else None
        return Candidates(len(self.task["items"]), chosen, device)

    @torch.no_grad()
    def _evaluate(self, state: State) -> dict[str, Any]:
        """Full rankings; with items to find also the loss."""
        query = self._last(state).float() * self.log_scale.exp()
        table = state["item_table"]
        device = query.device
        history = state.get("history")
        masked = history if self.task["mask_seen"] else None
        nobody = torch.full((len(query),), -1, device=device)
        found: dict[str, Any] = {
            "user": state.get("user", nobody),
            "known": nobody + 1 if history is None else (history >= 0).sum(1),
        }
        block = self.settings.user_block
        candidates = self._candidates(device)
        if "held_out" not in state:
            k = self.depth
            if isinstance(self.options, RankingOptions):
                k = self.options.k
            lists = top_k(query, table, self.bias, k, masked, candidates.chosen, block)
            return found | lists._asdict()
        cold = Candidates(len(table), self.cold, device) if len(self.cold) else None
        ranked, among, losses = find(
            query,
            table,
            self.bias,
            self.depth,
            state["held_out"],
            masked,
            candidates,
            cold,
            block,
        )
        found |= ranked._asdict()
        if among is not None:
            found |= _cold(among, min(self.depth, len(self.cold)))
        found["loss"] = losses.sum() / self.weight(
            {"held_out": state["held_out"]}
        ).clamp(min=1)
        return found


OUTPUTS = (
    "user",
    "top",
    "scores",
    "hits",
    "relevant",
    "cold_user",
    "known",
    "cold_top",
    "cold_hits",
    "cold_relevant",
)


def build_ranking(
    settings: RankingSettings,
    features: Mapping[str, Feature],
    task: Mapping[str, Any],
) -> RankingHead:
    """The head ``recsys/ranking``.

    Raises:
        UserError: The task is of another kind, the backbone has no items to rank or
            nothing to match them with, or no item is to be ranked.
    """
    if task["kind"] != "ranking":
        raise UserError(
            f"the head {settings.name!r} ranks items, the data's kind is "
            f"{task['kind']!r}",
            where="head.name",
            fix='data.kind = "ranking", or another head; `headstart list heads`',
        )
    query = features.get("hidden") or features.get("query")
    if "item_table" not in features or query is None:
        raise UserError(
            "the backbone leaves no items, or nothing to match them with",
            where="backbone.name",
            why=f"it leaves {', '.join(features) or 'nothing'}; this head reads "
            "item_table and query or hidden",
            fix="choose a recommender; `headstart list backbones` names them",
        )
    if task["candidates"] == "cold" and not task["cold"]:
        raise UserError(
            "there is nothing to rank",
            where="data.candidates",
            why="only cold items are asked for, and every item has events in training",
            fix='data.candidates = "all", or set data.cold_items or '
            "data.catalogue_items",
        )
    return RankingHead(settings, query, task)


def sample_targets(task: Mapping[str, Any], batch_size: int) -> State:
    """Valid targets for tests; of sequences where the task states their length."""
    items = len(task["items"])
    rows = torch.arange(batch_size)
    held_out = torch.stack([rows, rows + 1], 1) % items
    # The second one is padding in every other row.
    held_out[1::2, 1] = -1
    state: State = {"held_out": held_out, "cold_user": rows % 2 == 1}
    known = torch.tensor([i for i in range(items) if i not in task["cold"]])
    if "sequence_length" in task:
        steps = torch.arange(task["sequence_length"])
        places = rows[:, None] + steps
        positives = known[(places + 1) % len(known)]
        state["positives"] = positives.masked_fill(steps < rows[:, None] % 2, -1)
        state["negatives"] = known[
            (places[..., None] + torch.arange(2, 4)) % len(known)
        ]
        return state
    state["item"] = known[rows % len(known)]
    state["weight"] = 1.0 + rows % 2
    state["negatives"] = known[(rows[:, None] + torch.arange(1, 3)) % len(known)]
    return state


def _cold(found: Found, k: int) -> dict[str, Tensor]:
    """Outputs of the ranking among cold items, no longer than there are any."""
    return {
        "cold_top": found.top[:, :k],
        "cold_hits": found.hits[:, :k],
        "cold_relevant": found.relevant,
    }


def _reason(known: int) -> str:
    """Why an unknown user gets what they get."""
    if known:
        items = "1 item" if known == 1 else f"{known} items"
        return f"not a user of the training data: ranked from {items} they have"
    return "not a user of the training data, and no item is known: ranked for anyone"
