"""Metrics against a plain reference, and against implicit's own evaluation."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from implicit.cpu.als import AlternatingLeastSquares
from implicit.evaluation import ranking_metrics_at_k
from scipy import sparse

from headstart.errors import UserError
from headstart_recsys import metrics
from headstart_recsys.metrics import sample_outputs

ITEMS = 30
COLD = [3, 8, 21, 28]
TASK = {
    "kind": "ranking",
    "items": [f"i{i}" for i in range(ITEMS)],
    "users": [f"u{i}" for i in range(5)],
    "counts": [0 if i in COLD else 1 + i * i % 7 for i in range(ITEMS)],
    "cold": COLD,
    "mask_seen": True,
    "candidates": "all",
}


def reference(name: str, ranked: list[int], wanted: set[int], k: int) -> float:
    """One user's value, place by place."""
    ranked = ranked[:k]
    hit = [item in wanted for item in ranked]
    possible = min(k, len(wanted))
    if name == "ndcg":
        best = sum(1 / math.log2(place + 2) for place in range(possible))
        gained = sum(1 / math.log2(place + 2) for place, h in enumerate(hit) if h)
        return gained / best
    if name == "recall":
        return sum(hit) / len(wanted)
    if name == "hr":
        return float(any(hit))
    if name == "mrr":
        return next((1 / (place + 1) for place, h in enumerate(hit) if h), 0.0)
    assert name == "map"
    precisions = [sum(hit[: p + 1]) / (p + 1) for p, h in enumerate(hit) if h]
    return sum(precisions) / possible


def random_lists(
    seed: int, users: int = 40, candidates: list[int] | None = None
) -> tuple[list[list[int]], list[set[int]], dict[str, torch.Tensor]]:
    """Ranked lists and wanted items of users, some of whom want nothing."""
    generator = np.random.default_rng(seed)
    among = np.arange(ITEMS) if candidates is None else np.array(candidates)
    ranked = [generator.permutation(among).tolist() for _ in range(users)]
    wanted = [
        set(generator.permutation(among)[: generator.integers(0, 4)].tolist())
        for _ in range(users)
    ]
    hits = [[i in w for i in r] for r, w in zip(ranked, wanted, strict=True)]
    outputs = {
        "top": torch.tensor(ranked),
        "hits": torch.tensor(hits),
        "relevant": torch.tensor([len(w) for w in wanted]),
    }
    return ranked, wanted, outputs


def measured(name: str, *values: torch.Tensor, task=TASK) -> float:
    """A metric over two batches."""
    metric = getattr(metrics, name)(task)
    half = len(values[0]) // 3
    metric.update(*(value[:half] for value in values))
    metric.update(*(value[half:] for value in values))
    return float(metric.compute())


@pytest.mark.parametrize("k", [1, 5, 10, 100])
@pytest.mark.parametrize("name", ["ndcg", "recall", "hr", "mrr", "map"])
def test_metric_equals_plain_reference(name: str, k: int) -> None:
    ranked, wanted, outputs = random_lists(k)
    expected = [
        reference(name, r, w, k) if w else math.nan
        for r, w in zip(ranked, wanted, strict=True)
    ]
    assert 0 < np.isnan(expected).sum() < 20

    found = measured(f"{name}_at_{k}", outputs["hits"], outputs["relevant"])
    scores = getattr(metrics, f"{name}_at_{k}_scores")(TASK, outputs)

    assert found == pytest.approx(np.nanmean(expected), rel=1e-12)
    np.testing.assert_allclose(scores, expected, rtol=1e-12)


def test_values_by_hand() -> None:
    hits = torch.tensor([[False, True, False, True, False]])
    relevant = torch.tensor([3])

    assert measured("recall_at_2", hits, relevant) == pytest.approx(1 / 3)
    assert measured("recall_at_5", hits, relevant) == pytest.approx(2 / 3)
    assert measured("precision_at_2", hits, relevant) == pytest.approx(1 / 2)
    assert measured("mrr_at_5", hits, relevant) == pytest.approx(1 / 2)
    assert measured("mrr_at_1", hits, relevant) == 0
    assert measured("map_at_5", hits, relevant) == pytest.approx((1 / 2 + 2 / 4) / 3)
    ideal = 1 + 1 / math.log2(3) + 1 / 2
    gained = 1 / math.log2(3) + 1 / math.log2(5)
    assert measured("ndcg_at_5", hits, relevant) == pytest.approx(gained / ideal)


def implicit_case(seed: int) -> tuple[AlternatingLeastSquares, sparse.csr_matrix, ...]:
    generator = np.random.default_rng(seed)
    known = generator.random((50, ITEMS)) < 0.2
    held_out = (generator.random((50, ITEMS)) < 0.1) & ~known
    held_out[::7] = False
    model = AlternatingLeastSquares(factors=4, num_threads=1)
    model.user_factors = generator.normal(size=(50, 4)).astype(np.float32)
    model.item_factors = generator.normal(size=(ITEMS, 4)).astype(np.float32)
    return (
        model,
        sparse.csr_matrix(known.astype(np.float32)),
        sparse.csr_matrix(held_out.astype(np.float32)),
    )


@pytest.mark.parametrize("k", [1, 3, 10])
@pytest.mark.filterwarnings("ignore:OpenBLAS is configured")
def test_metrics_equal_implicit(k: int) -> None:
    model, known, held_out = implicit_case(k)
    theirs = ranking_metrics_at_k(
        model, known, held_out, K=k, show_progress=False, num_threads=1
    )
    top, _ = model.recommend(np.arange(50), known, N=10)
    wanted = held_out.toarray() > 0
    hits = torch.from_numpy(np.take_along_axis(wanted, top.astype(np.int64), 1))
    relevant = torch.from_numpy(wanted.sum(1))

    ours = {
        name: measured(f"{name}_at_{k}", hits, relevant)
        for name in ("precision", "map", "ndcg", "auc")
    }

    assert 0 < ours["map"] < 1
    assert ours == pytest.approx(theirs, rel=1e-9)


def test_cold_items_and_users_are_measured_apart() -> None:
    ranked, wanted, outputs = random_lists(1)
    cold_ranked, cold_wanted, cold = random_lists(2, candidates=COLD)
    cold_user = torch.arange(len(ranked)) % 3 == 0
    outputs |= {
        "cold_user": cold_user,
        "cold_hits": cold["hits"],
        "cold_relevant": cold["relevant"],
    }

    def mean(name, lists, sets, k, chosen=None):
        values = [
            reference(name, r, w, k)
            for i, (r, w) in enumerate(zip(lists, sets, strict=True))
            if w and (chosen is None or bool(cold_user[i]) == chosen)
        ]
        return pytest.approx(np.mean(values), rel=1e-12)

    expected = {
        "cold_ndcg_at_10": mean("ndcg", cold_ranked, cold_wanted, 10),
        "cold_recall_at_2": mean("recall", cold_ranked, cold_wanted, 2),
        "cold_users_ndcg_at_10": mean("ndcg", ranked, wanted, 10, True),
        "cold_users_recall_at_20": mean("recall", ranked, wanted, 20, True),
        "known_users_ndcg_at_10": mean("ndcg", ranked, wanted, 10, False),
    }
    for name, value in expected.items():
        group = name.rpartition("_at")[0].rpartition("_")[0]
        keys = metrics.INPUTS[group]
        assert measured(name, *(outputs[key] for key in keys)) == value
        scores = getattr(metrics, f"{name}_scores")(TASK, outputs)
        assert np.nanmean(scores) == value


def test_coverage_counts_each_item_once() -> None:
    top = torch.tensor([[0, 1, 2], [1, 0, 9], [4, -1, -1]])
    top = torch.nn.functional.pad(top, (0, 27), value=-1)

    assert measured("coverage_at_2", top) == pytest.approx(3 / ITEMS)
    assert measured("coverage_at_3", top) == pytest.approx(5 / ITEMS)
    only_cold = TASK | {"candidates": "cold", "cold": [0, 1, 2, 4, 9]}
    assert measured("coverage_at_2", top, task=only_cold) == pytest.approx(3 / 5)


def test_popularity_is_the_share_of_less_popular_items() -> None:
    task = TASK | {"items": list("abcd"), "counts": [5, 0, 2, 2], "cold": []}
    # The most popular of four has three below it and half of itself.
    np.testing.assert_allclose(
        metrics.popularity_ranks(task["counts"]), [3.5 / 4, 0.5 / 4, 0.5, 0.5]
    )
    top = torch.tensor([[0, 1, 2, 3], [2, 0, -1, -1], [-1, -1, -1, -1]])

    scores = metrics.popularity_at_2_scores(task, {"top": top.numpy()})

    np.testing.assert_allclose(scores, [0.5, (0.5 + 3.5 / 4) / 2, np.nan])
    expected = (0.5 + (0.5 + 3.5 / 4) / 2) / 2
    assert measured("popularity_at_2", top, task=task) == pytest.approx(expected)
    everything = torch.arange(4)[None].repeat(3, 1)
    assert measured("popularity_at_4", everything, task=task) == pytest.approx(0.5)


def test_nobody_to_measure_is_not_a_number() -> None:
    hits, relevant = torch.zeros(4, 30, dtype=torch.bool), torch.zeros(4).long()

    assert math.isnan(measured("ndcg_at_10", hits, relevant))
    known = torch.zeros(4, dtype=torch.bool)
    assert math.isnan(measured("cold_users_ndcg_at_10", hits, relevant + 1, known))


def test_short_lists_are_named() -> None:
    hits, relevant = torch.zeros(4, 9, dtype=torch.bool), torch.ones(4).long()
    with pytest.raises(UserError, match=r"head\.depth") as caught:
        measured("ndcg_at_10", hits, relevant)
    assert "10 or more" in str(caught.value)
    # With fewer candidates than places, a list can only be as long as those.
    few = TASK | {"items": TASK["items"][:9], "counts": TASK["counts"][:9]}
    assert measured("ndcg_at_10", hits, relevant, task=few) == 0


def test_cold_metric_without_cold_items_is_named() -> None:
    with pytest.raises(UserError, match="cold-ndcg@10") as caught:
        metrics.cold_ndcg_at_10(TASK | {"cold": []})
    assert "data.cold_items" in str(caught.value)


def test_only_what_is_a_mean_has_scores_of_users() -> None:
    for name in ("precision_at_10_scores", "coverage_at_10_scores", "ndcg_at_0", "ndc"):
        assert not hasattr(metrics, name)
    assert hasattr(metrics, "ndcg_at_10_scores")


def test_sample_is_made_of_possible_outputs() -> None:
    outputs = sample_outputs(TASK, 12)

    for prefix, length in (("", ITEMS), ("cold_", len(COLD))):
        hits, relevant = outputs[f"{prefix}hits"], outputs[f"{prefix}relevant"]
        assert hits.shape == outputs[f"{prefix}top"].shape == (12, length)
        assert (hits.sum(1) <= relevant).all()
        assert (relevant <= length).all()
    values = [getattr(metrics, f"ndcg_at_{k}_scores")(TASK, outputs) for k in (5, 20)]
    assert all(0 < np.nanmean(value) < 1 for value in values)
    assert any((a != b).any() for a, b in pairwise(values))
    assert "cold_top" not in sample_outputs(TASK | {"cold": []}, 12)
