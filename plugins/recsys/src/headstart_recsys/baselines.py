"""What established methods without transfer reach on the same split.

Most popular, item-kNN and implicit's ALS, each a full ranking with the same outputs as
the head's. They learn from the training events alone, as the model does, and know of a
user what the split's samples say they had before. Settings are chosen by NDCG@10 on
validation; the test is never looked at.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from scipy import sparse

from headstart.data import Baseline
from headstart_recsys import metrics
from headstart_recsys.neighbours import item_similarities, strongest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from headstart_recsys.data import InteractionData

    Scores = Callable[["Block"], np.ndarray]
    """From users to their scores of all items, float32 (users, items)."""

DEPTH = 100
"""Length of the ranked lists; no metric looks further."""
BLOCK = 256
"""Users whose scores of all items are in memory at once."""
TUNING_USERS = 5_000
"""Most validation users by whom settings are chosen, a seeded sample."""
TUNING_EVENTS = 1_000_000
"""With more training events, ALS settings are chosen on a seeded sample of users."""

NEIGHBOURS = (200, 50, 20)
SHRINK = (0.0, 10.0, 100.0)
ALPHA = (1.0, 3.0, 10.0, 30.0)
REGULARIZATION = (0.1, 1.0, 10.0, 100.0)
FACTORS = (16, 32, 128)
"""Tried beside the default with the best alpha and regularisation."""
ITERATIONS = 5
"""Passes of ALS between two looks at validation."""


@dataclass(frozen=True)
class Block:
    """Some users of a split.

    Attributes:
        user: Position in the task's users, -1 for others, int64 (users,).
        seen: Known items, boolean (users, items).
        weights: The same with the weights of the events, float32 (users, items).
        held_out: Items to find, padded with -1, int64 (users, most).
        cold_user: Users without a training event, bool (users,).
        number: Of the block within its split.
    """

    user: np.ndarray
    seen: sparse.csr_matrix
    weights: sparse.csr_matrix
    held_out: np.ndarray
    cold_user: np.ndarray
    number: int


@dataclass(frozen=True)
class ALSSettings:
    """What is chosen for ALS; the values that stand here without a validation."""

    alpha: float = 1.0
    regularization: float = 1.0
    factors: int = 64
    iterations: int = 20


def baselines(data: InteractionData) -> Iterator[Baseline]:
    """All of them, of a loaded data module.

    Where cold items are ranked popularity draws lots; ``random`` stands beside it.
    """
    ranking = Ranking(data)
    test = list(ranking.blocks("test"))
    if data.task["candidates"] == "cold":
        yield Baseline("random", ranking.outputs(test, ranking.at_random))
    yield Baseline("most popular", ranking.outputs(test, ranking.by_popularity))
    validation = list(ranking.blocks("validation", TUNING_USERS))
    yield Baseline("item-kNN", ranking.outputs(test, item_knn(ranking, validation)))
    als, _ = tuned_als(ranking, validation)
    yield Baseline("tuned ALS (implicit)", ranking.outputs(test, als))


class Ranking:
    """Full rankings by any scores, over the users of a split.

    Items with equal scores, and all items of a user of whom nothing is known, come in
    the order of their popularity, and equally popular ones in a random order, another
    for each user: where a method says nothing, it is as good as chance.

    Args:
        data: A loaded data module.
    """

    def __init__(self, data: InteractionData) -> None:
        self.data = data
        self.task: Mapping[str, Any] = data.task
        self.known = data.train_matrix("validation").astype(np.float32)
        """Training events, all users by items."""
        items = self.known.shape[1]
        self.counts = np.bincount(self.known.indices, minlength=items)
        steps, step = np.unique(self.counts, return_inverse=True)
        self._random_bits = 31 - len(steps).bit_length()
        self._popularity = step.astype(np.int64) << self._random_bits

    def blocks(
        self, split: Literal["validation", "test"], most: int | None = None
    ) -> Iterator[Block]:
        """The users of a split in order, or a seeded sample of so many."""
        samples = self.data.samples(split)
        chosen = np.arange(len(samples))
        if most is not None and most < len(chosen):
            generator = np.random.default_rng(self.data.seed)
            chosen = np.sort(generator.permutation(len(chosen))[:most])
        events = self.data.train_matrix(split).astype(np.float32)
        row = {name: i for i, name in enumerate(self.data.user_ids)}
        rows = np.array([row[name] for name in self.task["users"]], np.int64)
        for number, start in enumerate(range(0, len(chosen), BLOCK)):
            batch = self._take(samples, chosen[start : start + BLOCK])
            user = batch["user"]
            seen = _indicator(batch["history"], self.known.shape[1])
            # Of users that are not in the task there are no weights.
            own = events[rows[user.clip(min=0)]] if len(rows) else seen
            familiar = sparse.diags((user >= 0).astype(np.float32))
            weights = familiar @ own + (sparse.identity(len(user)) - familiar) @ seen
            yield Block(
                user,
                seen,
                weights.tocsr().astype(np.float32),
                batch["held_out"],
                batch["cold_user"],
                number,
            )

    def outputs(
        self, blocks: Sequence[Block], scores: Scores, depth: int = DEPTH
    ) -> dict[str, Any]:
        """As :meth:`headstart_recsys.heads.RankingHead.outputs`, for all blocks.

        Args:
            blocks: Users.
            scores: Rates all items for them.
            depth: Length of the lists.
        """
        parts = [self._rank_block(block, scores(block), depth) for block in blocks]
        found: dict[str, Any] = {
            key: torch.from_numpy(np.concatenate([part[key] for part in parts]))
            for key in parts[0]
        }
        found["held_out"] = [
            row[row >= 0] for block in blocks for row in block.held_out
        ]
        return found

    def ndcg(self, blocks: Sequence[Block], scores: Scores) -> float:
        """NDCG@10, by which settings are chosen."""
        outputs = self.outputs(blocks, scores, 10)
        values = metrics.ndcg_at_10_scores(self.task, outputs)
        return float(np.nanmean(values)) if (~np.isnan(values)).any() else 0.0

    def at_random(self, block: Block) -> np.ndarray:
        """Scores without any sense; another order for each user."""
        generator = np.random.default_rng([self.data.seed, block.number, 1])
        scores: np.ndarray = generator.random(block.seen.shape, dtype=np.float32)
        return scores

    def by_popularity(self, block: Block) -> np.ndarray:
        """The users that have an item in training."""
        counts = self.counts.astype(np.float32)
        return np.broadcast_to(counts, block.seen.shape)

    def _take(
        self, samples: Sequence[Any], chosen: np.ndarray
    ) -> dict[str, np.ndarray]:
        if hasattr(samples, "take"):
            batch = samples.take(chosen)
        else:
            batch = self.data.collate([samples[i] for i in chosen.tolist()])
        keys = ("user", "history", "held_out", "cold_user")
        return {key: batch[key].numpy() for key in keys}

    def _rank_block(
        self, block: Block, scores: np.ndarray, depth: int
    ) -> dict[str, np.ndarray]:
        users, items = block.seen.shape
        wanted = _indicator(block.held_out, items).toarray()
        allowed = np.ones((users, items), bool)
        if self.task["mask_seen"]:
            allowed[block.seen.nonzero()] = False
        everything = np.arange(items)
        cold = np.asarray(self.task["cold"], np.int64)
        candidates = cold if self.task["candidates"] == "cold" else everything
        # Order by score, then popularity, then chance: one integer holds them all.
        keys = _ordered(scores) << 32
        keys |= self._popularity
        generator = np.random.default_rng([self.data.seed, block.number])
        keys |= generator.integers(1 << self._random_bits, size=keys.shape)
        keys[~allowed] = NEVER
        top, hits, relevant = _best(keys, wanted & allowed, candidates, depth)
        found = {
            "user": block.user,
            "top": top,
            "scores": np.where(
                top >= 0, np.take_along_axis(scores, top.clip(min=0), 1), -np.inf
            ).astype(np.float32),
            "hits": hits,
            "relevant": relevant,
            "cold_user": block.cold_user,
            "known": np.diff(block.seen.indptr).astype(np.int64),
        }
        if len(cold):
            of_cold = _best(keys, wanted & allowed, cold, depth)
            names = ("cold_top", "cold_hits", "cold_relevant")
            found.update(zip(names, of_cold, strict=True))
        return found


def item_knn(ranking: Ranking, validation: Sequence[Block]) -> Scores:
    """Scores by the similarity of an item to those that a user has.

    The sum over the user's items, as far as it is among their nearest neighbours
    (Deshpande & Karypis 2004); neighbours and shrinkage chosen on validation.
    """
    best, score = None, -1.0
    for shrink in SHRINK:
        similar = item_similarities(ranking.known, max(NEIGHBOURS), shrink)
        for neighbours in NEIGHBOURS:
            fewer = strongest(similar, neighbours)
            if not validation:
                return by_neighbours(fewer)
            reached = ranking.ndcg(validation, by_neighbours(fewer))
            if reached > score:
                best, score = fewer, reached
    return by_neighbours(best)


def by_neighbours(similarities: sparse.csr_matrix) -> Scores:
    """Scores of items from what a user has and the similarities of items."""
    return lambda block: (block.weights @ similarities).toarray()


def tuned_als(
    ranking: Ranking, validation: Sequence[Block]
) -> tuple[Scores, ALSSettings]:
    """implicit's ALS with the settings that are best on validation.

    Alpha and regularisation are chosen together, then the factors; of each the
    iterations as well. Users' factors are solved from what they have (fold-in), so
    that those without a training event get some as well.
    """
    seed = ranking.data.seed
    sample = _sample(ranking.known, seed)
    chosen, best, score = ALSSettings(), None, -1.0

    def look(tried: ALSSettings) -> None:
        nonlocal chosen, best, score
        for done, scores in fit_als(sample, tried, seed):
            reached = ranking.ndcg(validation, scores)
            if reached > score:
                chosen, best, score = replace(tried, iterations=done), scores, reached

    if validation:
        for alpha, regularization in product(ALPHA, REGULARIZATION):
            look(ALSSettings(alpha, regularization))
        first = chosen
        for factors in FACTORS:
            look(replace(first, factors=factors, iterations=ALSSettings.iterations))
    if best is None or sample is not ranking.known:
        *_, (_, best) = fit_als(ranking.known, chosen, seed)
    return best, chosen


def fit_als(
    matrix: sparse.csr_matrix, settings: ALSSettings, seed: int
) -> Iterator[tuple[int, Scores]]:
    """implicit's ALS (Hu, Koren & Volinsky 2008) on a matrix of users by items.

    Yields:
        Iterations done and scores by the factors then, every few iterations.
    """
    from implicit.cpu.als import AlternatingLeastSquares
    from threadpoolctl import threadpool_limits

    model = None
    for done in range(0, settings.iterations, ITERATIONS):
        now = min(ITERATIONS, settings.iterations - done)
        # Threads of BLAS inside those of implicit only slow each other down.
        with threadpool_limits(1, "blas"):
            if model is None:
                model = AlternatingLeastSquares(
                    factors=settings.factors,
                    regularization=settings.regularization,
                    alpha=settings.alpha,
                    random_state=seed,
                )
            model.iterations = now
            model.fit(matrix, show_progress=False)
        yield done + now, by_factors(model.item_factors.copy(), settings)


def by_factors(items: np.ndarray, settings: ALSSettings) -> Scores:
    """Scores of items from their factors and what a user has.

    Args:
        items: Factors (items, factors).
        settings: With which they were fitted.
    """
    from implicit.cpu.als import AlternatingLeastSquares
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, "blas"):
        model = AlternatingLeastSquares(
            factors=items.shape[1],
            regularization=settings.regularization,
            alpha=settings.alpha,
        )
    model.item_factors = items

    def scores(block: Block) -> np.ndarray:
        with threadpool_limits(1, "blas"):
            users = model.recalculate_user(np.arange(len(block.user)), block.weights)
        found: np.ndarray = users @ items.T
        return found

    return scores


NEVER = np.iinfo(np.int64).min


def _ordered(scores: np.ndarray) -> np.ndarray:
    """Integers (int64) in the order of float32 scores, equal where they are equal."""
    # The bits of floats are in order; of negative ones the other way round.
    bits = scores.astype(np.float32).view(np.int32).astype(np.int64)
    return np.where(bits >= 0, bits, -(bits & 0x7FFFFFFF))


def _best(
    keys: np.ndarray, wanted: np.ndarray, candidates: np.ndarray, depth: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Items with the largest keys, which of them are wanted, and how many there are.

    Lists are as long as there are candidates, at most ``depth``; -1 fills them up
    where a user may have fewer.
    """
    among = keys if len(candidates) == keys.shape[1] else keys[:, candidates]
    length = min(depth, len(candidates))
    values, places = torch.from_numpy(among).topk(length)
    top = candidates[places.numpy()]
    hits = np.take_along_axis(wanted, top, 1)
    missing = values.numpy() == NEVER
    hits[missing] = False
    top[missing] = -1
    return top, hits, wanted[:, candidates].sum(1)


def _indicator(lists: np.ndarray, items: int) -> sparse.csr_matrix:
    """Boolean (rows, items) of item codes in rows padded with -1."""
    row, place = np.nonzero(lists >= 0)
    column = lists[row, place]
    ones = np.ones(len(row), bool)
    return sparse.csr_matrix((ones, (row, column)), shape=(len(lists), items))


def _sample(matrix: sparse.csr_matrix, seed: int) -> sparse.csr_matrix:
    """Rows of a matrix that hold at most :data:`TUNING_EVENTS` entries."""
    if matrix.nnz <= TUNING_EVENTS:
        return matrix
    order = np.random.default_rng(seed).permutation(matrix.shape[0])
    held = np.cumsum(np.diff(matrix.indptr)[order])
    return matrix[np.sort(order[held <= TUNING_EVENTS])]
