"""Baselines against plain loops and implicit's own recommenders, on made-up events."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from implicit.cpu.als import AlternatingLeastSquares
from implicit.nearest_neighbours import CosineRecommender
from scipy import sparse

from headstart_recsys import baselines as module
from headstart_recsys import metrics
from headstart_recsys.baselines import (
    ALSSettings,
    Ranking,
    baselines,
    by_neighbours,
    fit_als,
    item_knn,
    tuned_als,
)
from headstart_recsys.neighbours import item_similarities, strongest

pytestmark = pytest.mark.filterwarnings("ignore:OpenBLAS is configured")

USERS, ITEMS, COLD = 60, 40, (7, 19, 30)
KEYS = {
    "user",
    "top",
    "scores",
    "hits",
    "relevant",
    "held_out",
    "cold_user",
    "known",
    "cold_top",
    "cold_hits",
    "cold_relevant",
}


class Rows:
    """Users of a split as columns, as the data module gives them."""

    def __init__(self, rows: list[tuple[int, list[int], list[int]]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, indices: np.ndarray) -> dict[str, torch.Tensor]:
        rows = [self.rows[i] for i in indices]

        def padded(lists: list[list[int]]) -> torch.Tensor:
            width = max(map(len, lists))
            return torch.tensor([row + [-1] * (width - len(row)) for row in lists])

        user = torch.tensor([row[0] for row in rows])
        return {
            "user": user,
            "history": padded([row[1] for row in rows]),
            "held_out": padded([row[2] for row in rows]),
            "cold_user": user < 0,
        }


class Data:
    """Two groups of users, each with items of its own; the last users are new.

    User 3 also has an event in validation, which the test knows of.
    """

    seed = 4

    def __init__(self, *, weights: bool = False, validation: bool = True) -> None:
        generator = np.random.default_rng(0)
        group = np.arange(USERS) % 2 == np.arange(ITEMS)[:, None] % 2
        chance = np.where(group.T, 0.5, 0.05) * np.linspace(1.4, 0.2, ITEMS)
        full = generator.random((USERS, ITEMS)) < chance
        part = generator.random(full.shape)
        train, check = full & (part < 0.6), full & (part >= 0.6) & (part < 0.8)
        train[:, COLD] = False
        train[-6:] = check[-6:] = False
        before = train | check
        # Users of whom the split knows something although training does not.
        history = before.copy()
        history[-3:, :10:2] = True
        self._splits = {
            "validation": (train, check & ~train if validation else check & False),
            "test": (history, full & ~history),
        }
        values = generator.integers(1, 6, full.shape) if weights else np.ones_like(full)
        self._known = {
            "validation": sparse.csr_matrix((train * values).astype(np.float32)),
            "test": sparse.csr_matrix((before * values).astype(np.float32)),
        }
        # In the task users are in another order than in the matrices.
        known = np.flatnonzero(train.any(1))[::-1]
        self.codes = {int(user): code for code, user in enumerate(known)}
        self.user_ids = [f"u{user}" for user in range(USERS)]
        self.task: dict[str, Any] = {
            "kind": "ranking",
            "items": [f"i{item}" for item in range(ITEMS)],
            "users": [f"u{user}" for user in known],
            "counts": train.sum(0).tolist(),
            "cold": list(COLD),
            "mask_seen": True,
            "candidates": "all",
        }

    def train_matrix(self, upto: str) -> sparse.csr_matrix:
        return self._known[upto]

    def samples(self, split: str) -> Rows:
        history, held_out = self._splits[split]
        return Rows(
            [
                (
                    self.codes.get(user, -1),
                    np.flatnonzero(history[user]).tolist(),
                    np.flatnonzero(held_out[user]).tolist(),
                )
                for user in range(USERS)
                if held_out[user].any()
            ]
        )


@pytest.fixture(scope="module")
def data() -> Data:
    return Data()


@pytest.fixture(scope="module")
def found(data: Data) -> dict[str, dict[str, Any]]:
    return {baseline.name: baseline.outputs for baseline in baselines(data)}


def reach(data: Data, outputs: dict[str, Any], name: str) -> float:
    return float(np.nanmean(getattr(metrics, f"{name}_scores")(data.task, outputs)))


def test_outputs_are_those_of_the_head(data: Data, found: dict[str, Any]) -> None:
    assert list(found) == ["most popular", "item-kNN", "tuned ALS (implicit)"]
    rows = data.samples("test").rows
    for outputs in found.values():
        assert set(outputs) == KEYS
        assert outputs["user"].tolist() == [row[0] for row in rows]
        assert outputs["known"].tolist() == [len(row[1]) for row in rows]
        assert outputs["cold_user"].tolist() == [row[0] < 0 for row in rows]
        assert [o.tolist() for o in outputs["held_out"]] == [row[2] for row in rows]
        assert outputs["top"].dtype == outputs["relevant"].dtype == torch.int64
        assert outputs["scores"].dtype == torch.float32
        assert outputs["top"].shape == outputs["hits"].shape == (len(rows), ITEMS)


def test_every_allowed_item_is_ranked_and_no_other(
    data: Data, found: dict[str, Any]
) -> None:
    for outputs in found.values():
        for index, (_, history, held_out) in enumerate(data.samples("test").rows):
            top = outputs["top"][index].tolist()
            free = sorted(set(range(ITEMS)) - set(history))
            assert sorted(top[: len(free)]) == free
            assert set(top[len(free) :]) <= {-1}
            hits = outputs["hits"][index].tolist()
            assert hits == [item in held_out for item in top]
            assert int(outputs["relevant"][index]) == len(held_out)
            cold = outputs["cold_top"][index].tolist()
            assert sorted(i for i in cold if i >= 0) == sorted(set(COLD) - set(history))
            wanted = set(held_out) & set(COLD)
            assert int(outputs["cold_relevant"][index]) == len(wanted)
            hits = outputs["cold_hits"][index].tolist()
            assert hits == [item in wanted for item in cold]
            scores = outputs["scores"][index][: len(free)]
            assert (scores.diff() <= 0).all()


def test_learned_methods_beat_popularity(data: Data, found: dict[str, Any]) -> None:
    reached = {name: reach(data, o, "ndcg_at_10") for name, o in found.items()}
    ranking = Ranking(data)
    chance = ranking.outputs(list(ranking.blocks("test")), ranking.at_random)
    assert reach(data, chance, "ndcg_at_10") < reached["most popular"]
    assert reached["most popular"] < reached["item-kNN"]
    assert reached["most popular"] < reached["tuned ALS (implicit)"]


def test_most_popular_counts_training_events_only(
    data: Data, found: dict[str, Any]
) -> None:
    counts = np.asarray(data.train_matrix("validation").astype(bool).sum(0)).ravel()
    outputs = found["most popular"]
    for index, (_, history, _) in enumerate(data.samples("test").rows):
        free = sorted(set(range(ITEMS)) - set(history))
        expected = sorted((counts[item] for item in free), reverse=True)
        assert outputs["scores"][index][: len(free)].tolist() == expected
        top = outputs["top"][index][: len(free)].numpy()
        assert counts[top].tolist() == expected


def test_ties_are_broken_by_popularity_then_chance(data: Data) -> None:
    ranking = Ranking(data)
    blocks = list(ranking.blocks("test"))
    nothing = lambda block: np.zeros(block.seen.shape, np.float32)  # noqa: E731

    outputs = ranking.outputs(blocks, nothing)
    again = ranking.outputs(blocks, nothing)

    popular = ranking.outputs(blocks, ranking.by_popularity)
    assert torch.equal(outputs["top"], popular["top"])
    assert torch.equal(outputs["top"], again["top"])
    # Nobody has the cold items in training: their order is another for each user.
    cold = outputs["cold_top"]
    orders = {tuple(row) for row in cold[(cold >= 0).all(1)].tolist()}
    assert len(orders) > 3


def test_negative_scores_are_in_order(data: Data) -> None:
    ranking = Ranking(data)
    row = np.linspace(-3, 2, ITEMS, dtype=np.float32)[::-1]
    scores = lambda block: np.tile(row, (len(block.user), 1))  # noqa: E731

    outputs = ranking.outputs(list(ranking.blocks("test")), scores)

    for index, (_, history, _) in enumerate(data.samples("test").rows):
        free = [item for item in range(ITEMS) if item not in history]
        assert outputs["top"][index][: len(free)].tolist() == free


def test_what_is_seen_may_be_ranked_and_cold_items_alone() -> None:
    data = Data()
    data.task |= {"mask_seen": False, "candidates": "cold"}
    ranking = Ranking(data)

    outputs = ranking.outputs(list(ranking.blocks("test")), ranking.by_popularity)

    for index, (_, _, held_out) in enumerate(data.samples("test").rows):
        assert sorted(outputs["top"][index].tolist()) == list(COLD)
        assert int(outputs["relevant"][index]) == len(set(held_out) & set(COLD))


def test_blocks_and_lists_of_samples_make_no_difference(
    data: Data, found: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Listed(Data):
        def samples(self, split: str) -> list[Any]:  # type: ignore[override]
            return super().samples(split).rows

        def collate(self, samples: list[Any]) -> dict[str, torch.Tensor]:
            return Rows(samples).take(np.arange(len(samples)))

    monkeypatch.setattr(module, "BLOCK", 7)
    ranking = Ranking(Listed())
    blocks = list(ranking.blocks("test"))
    knn = ranking.outputs(blocks, item_knn(ranking, list(ranking.blocks("validation"))))

    assert len(blocks) > 3
    assert torch.equal(knn["scores"], found["item-kNN"]["scores"])
    assert knn["held_out"][8].tolist() == found["item-kNN"]["held_out"][8].tolist()


def test_cosine_equals_plain_numpy_and_implicit() -> None:
    generator = np.random.default_rng(2)
    dense = generator.integers(1, 5, (30, 12)) * (generator.random((30, 12)) < 0.4)
    dense[:, 5] = 0
    matrix = sparse.csr_matrix(dense.astype(np.float32))

    found = item_similarities(matrix, 12).toarray()
    shrunk = item_similarities(matrix, 12, shrink=10.0).toarray()

    dots = dense.T @ dense
    norms = np.linalg.norm(dense, axis=0)
    off = ~np.eye(12, dtype=bool)
    expected = dots / np.maximum(np.outer(norms, norms), 1e-9) * off
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)
    expected = dots / (np.outer(norms, norms) + 10) * off
    np.testing.assert_allclose(shrunk, expected, rtol=1e-5)
    theirs = CosineRecommender(K=12, num_threads=1)
    theirs.fit(matrix, show_progress=False)
    np.testing.assert_allclose(
        found, theirs.similarity.toarray() * off, rtol=1e-5, atol=1e-7
    )


def test_neighbours_are_the_most_similar_in_any_block_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    matrix = sparse.random(40, 23, 0.3, "csr", np.float32, random_state=1)
    whole = item_similarities(matrix, 23).toarray()
    expected = np.where(whole >= -np.sort(-whole, axis=1)[:, 3:4], whole, 0)

    np.testing.assert_allclose(item_similarities(matrix, 4).toarray(), expected)
    monkeypatch.setattr("headstart_recsys.neighbours.BLOCK", 5)
    four = item_similarities(matrix, 9)
    np.testing.assert_allclose(strongest(four, 4).toarray(), expected, rtol=1e-6)


def test_item_knn_recommends_as_implicit_does(data: Data) -> None:
    ranking = Ranking(data)
    blocks = list(ranking.blocks("test"))
    similar = item_similarities(ranking.known, 20)
    outputs = ranking.outputs(blocks, by_neighbours(similar))
    theirs = CosineRecommender(K=21, num_threads=1)  # they count the item itself
    theirs.fit(ranking.known, show_progress=False)

    weights = sparse.vstack([block.weights for block in blocks]).tocsr()
    compared = 0
    for index in range(len(weights.indptr) - 1):
        _, scores = theirs.recommend(0, weights[index], N=5)
        ours = outputs["scores"][index][: len(scores)].numpy()
        np.testing.assert_allclose(ours, scores, rtol=1e-5)
        compared += len(scores)
    assert compared > 100


def test_neighbours_are_chosen_on_validation(
    data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "NEIGHBOURS", (40, 2))
    monkeypatch.setattr(module, "SHRINK", (1e4, 0.0))
    ranking = Ranking(data)
    blocks = list(ranking.blocks("validation"))

    reached = ranking.ndcg(blocks, item_knn(ranking, blocks))

    tried = [
        ranking.ndcg(blocks, by_neighbours(item_similarities(ranking.known, n, shrink)))
        for n in (40, 2)
        for shrink in (1e4, 0.0)
    ]
    assert min(tried) < max(tried)
    assert reached == pytest.approx(max(tried))


def test_als_is_that_of_implicit(data: Data) -> None:
    settings = ALSSettings(alpha=3.0, regularization=0.5, factors=6, iterations=12)
    ranking = Ranking(data)
    (block,) = ranking.blocks("test")

    looks = list(fit_als(ranking.known, settings, seed=3))

    model = AlternatingLeastSquares(
        factors=6, regularization=0.5, alpha=3.0, iterations=12, random_state=3
    )
    model.fit(ranking.known, show_progress=False)
    users = model.recalculate_user(np.arange(len(block.user)), block.weights)
    assert [done for done, _ in looks] == [5, 10, 12]
    np.testing.assert_allclose(
        looks[-1][1](block), users @ model.item_factors.T, rtol=1e-3, atol=1e-5
    )
    # An earlier look is not changed by the iterations after it.
    assert not np.allclose(looks[0][1](block), looks[-1][1](block), rtol=1e-2)


def test_settings_are_chosen_on_validation(
    data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    class Watched(Data):
        def samples(self, split: str) -> Rows:
            asked.append(split)
            return super().samples(split)

    monkeypatch.setattr(module, "ALPHA", (1.0, 20.0))
    monkeypatch.setattr(module, "REGULARIZATION", (0.1, 1000.0))
    monkeypatch.setattr(module, "FACTORS", (2,))
    ranking = Ranking(Watched())
    blocks = list(ranking.blocks("validation"))
    best, chosen = tuned_als(ranking, blocks)

    tried = {}
    for alpha in (1.0, 20.0):
        for regularization in (0.1, 1000.0):
            for factors in (2, 64):
                settings = ALSSettings(alpha, regularization, factors)
                for done, scores in fit_als(ranking.known, settings, ranking.data.seed):
                    key = (alpha, regularization, factors, done)
                    tried[key] = ranking.ndcg(blocks, scores)
    key = (chosen.alpha, chosen.regularization, chosen.factors, chosen.iterations)
    wide = max(value for k, value in tried.items() if k[2] == 64)
    assert ranking.ndcg(blocks, best) == pytest.approx(tried[key])
    assert tried[key] >= wide
    assert set(asked) == {"validation"}


def test_large_training_sets_are_tuned_on_some_users(
    data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ALPHA", (2.0,))
    monkeypatch.setattr(module, "REGULARIZATION", (1.0,))
    monkeypatch.setattr(module, "FACTORS", ())
    monkeypatch.setattr(module, "TUNING_EVENTS", 100)
    fitted: list[int] = []
    monkeypatch.setattr(
        module,
        "fit_als",
        lambda matrix, *rest: fitted.append(matrix.nnz) or fit_als(matrix, *rest),
    )
    ranking = Ranking(data)
    (block,) = ranking.blocks("test")

    best, chosen = tuned_als(ranking, list(ranking.blocks("validation")))

    assert fitted[0] <= 100 < fitted[-1] == ranking.known.nnz
    *_, (_, expected) = fit_als(ranking.known, chosen, data.seed)
    np.testing.assert_allclose(best(block), expected(block), rtol=1e-4, atol=1e-6)
    assert len(next(iter(ranking.blocks("validation", 5))).user) == 5


def test_weights_of_events_count_where_they_are_known() -> None:
    data = Data(weights=True)
    (block,) = Ranking(data).blocks("test")

    dense, events = block.weights.toarray(), data.train_matrix("test").toarray()
    users = {code: user for user, code in data.codes.items()}
    for index, (code, history, _) in enumerate(data.samples("test").rows):
        if code >= 0:
            np.testing.assert_array_equal(dense[index], events[users[code]])
        else:
            assert np.flatnonzero(dense[index]).tolist() == history
            assert set(dense[index]) <= {0.0, 1.0}
    assert block.weights.max() == 5


def test_without_validation_there_are_still_baselines() -> None:
    data = Data(validation=False)
    data.task |= {"cold": []}

    found = {baseline.name: baseline.outputs for baseline in baselines(data)}

    assert list(found) == ["most popular", "item-kNN", "tuned ALS (implicit)"]
    assert "cold_top" not in found["item-kNN"]
    als, popular = found["tuned ALS (implicit)"], found["most popular"]
    assert reach(data, als, "ndcg_at_10") > reach(data, popular, "ndcg_at_10")
