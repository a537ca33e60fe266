"""Training and continuing implicit's models, held to implicit and to plain NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from implicit.cpu.als import AlternatingLeastSquares
from implicit.cpu.bpr import BayesianPersonalizedRanking
from implicit.cpu.lmf import LogisticMatrixFactorization
from scipy import sparse

from headstart.errors import DataError, UserError
from headstart_recsys.columns import Interactions
from headstart_recsys.factors import (
    continue_als,
    interaction_matrix,
    train_als,
    train_bpr,
    train_lmf,
)

USERS, ITEMS, WIDTH = 30, 20, 4


@pytest.fixture(scope="module")
def matrix() -> sparse.csr_matrix:
    """Two tastes: even users like the first half of the items, odd ones the second."""
    generator = np.random.default_rng(0)
    likes = np.zeros((USERS, ITEMS), dtype=np.float32)
    likes[::2, :10] = generator.random((15, 10)) < 0.6
    likes[1::2, 10:] = generator.random((15, 10)) < 0.6
    return sparse.csr_matrix(likes)


def als_loss(
    matrix: sparse.csr_matrix, items: np.ndarray, users: np.ndarray, reg: float
) -> float:
    """Hu, Koren and Volinsky's objective, all pairs one by one."""
    confidence = matrix.toarray()
    total = 0.0
    for u, user in enumerate(users):
        for i, item in enumerate(items):
            c = confidence[u, i]
            total += max(c, 1) * (float(c > 0) - float(user @ item)) ** 2
    return total + reg * float((items**2).sum() + (users**2).sum())


def test_als_is_implicits(matrix: sparse.csr_matrix) -> None:
    model = AlternatingLeastSquares(factors=WIDTH, iterations=3, random_state=7)
    model.fit(matrix * 2.0, show_progress=False)
    found = train_als(matrix, factors=WIDTH, iterations=3, alpha=2.0, seed=7)
    np.testing.assert_allclose(found.items, model.item_factors, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.users, model.user_factors, rtol=1e-4, atol=1e-5)
    assert found.bias is None


@pytest.mark.parametrize(
    ("train", "kind", "more", "item_bias"),
    [
        (train_bpr, BayesianPersonalizedRanking, {}, 4),
        (train_lmf, LogisticMatrixFactorization, {"neg_prop": 30}, 4),
    ],
)
def test_biases_are_split_off(
    matrix: sparse.csr_matrix, train: Any, kind: Any, more: Any, item_bias: int
) -> None:
    model = kind(
        factors=WIDTH,
        iterations=3,
        learning_rate=0.1,
        random_state=7,
        num_threads=1,
        **more,
    )
    model.fit(matrix, show_progress=False)
    found = train(
        matrix,
        factors=WIDTH,
        iterations=3,
        learning_rate=0.1,
        seed=7,
        **({"regularization": model.regularization}),
    )
    np.testing.assert_array_equal(found.items, model.item_factors[:, :WIDTH])
    np.testing.assert_array_equal(found.users, model.user_factors[:, :WIDTH])
    assert found.bias is not None
    scores = found.users @ found.items.T + found.bias
    if kind is LogisticMatrixFactorization:
        scores += model.user_factors[:, -1:]
    expected = model.user_factors @ model.item_factors.T
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("train", [train_als, train_bpr, train_lmf])
def test_the_same_seed_gives_the_same_vectors(
    matrix: sparse.csr_matrix, train: Any
) -> None:
    steps: list[tuple[int, int]] = []
    told = lambda done, total: steps.append((done, total))  # noqa: E731
    one = train(matrix, factors=WIDTH, iterations=2, seed=3, told=told)
    two = train(matrix, factors=WIDTH, iterations=2, seed=3)
    other = train(matrix, factors=WIDTH, iterations=2, seed=4)
    np.testing.assert_array_equal(one.items, two.items)
    np.testing.assert_array_equal(one.users, two.users)
    assert not np.array_equal(one.items, other.items)
    assert steps == [(1, 2), (2, 2)]


def test_no_iterations_give_back_what_was_given(matrix: sparse.csr_matrix) -> None:
    given = train_als(matrix, factors=WIDTH, iterations=2)
    found = continue_als(matrix, given.items, given.users, iterations=0)
    np.testing.assert_array_equal(found.items, given.items)
    np.testing.assert_array_equal(found.users, given.users)
    before = given.items.copy()
    continue_als(matrix, given.items, given.users, iterations=1)
    np.testing.assert_array_equal(given.items, before)


def test_users_are_solved_from_the_items(matrix: sparse.csr_matrix) -> None:
    items = train_als(matrix, factors=WIDTH, iterations=2).items.astype(np.float64)
    found = continue_als(matrix, items, iterations=0, regularization=0.5, alpha=3.0)
    dense = matrix.toarray()
    for user, row in zip(found.users, dense, strict=True):
        confidence = np.where(row > 0, 3.0 * row, 1.0)
        left = items.T @ (confidence[:, None] * items) + 0.5 * np.eye(WIDTH)
        right = items.T @ (confidence * (row > 0))
        np.testing.assert_allclose(user, np.linalg.solve(left, right), atol=1e-3)


def test_going_on_is_better_than_starting_over(matrix: sparse.csr_matrix) -> None:
    settings = {"iterations": 1, "regularization": 0.1}
    trained = train_als(matrix, factors=WIDTH, iterations=8, regularization=0.1)
    warm = continue_als(matrix, trained.items, **settings)
    cold = train_als(matrix, factors=WIDTH, seed=1, **settings)
    losses = [als_loss(matrix, f.items, f.users, 0.1) for f in (warm, cold)]
    assert losses[0] < losses[1]
    # And it does not undo what was learned.
    assert losses[0] <= als_loss(matrix, trained.items, trained.users, 0.1) + 1e-3


def test_faults_of_training(matrix: sparse.csr_matrix) -> None:
    with pytest.raises(DataError, match=r"no events to learn embeddings from"):
        train_als(sparse.csr_matrix((3, 4), dtype=np.float32))
    with pytest.raises(DataError, match=r"do not fit a matrix of 30 users by 20 items"):
        continue_als(matrix, np.ones((7, 2), dtype=np.float32))
    with pytest.raises(UserError, match="diverged"):
        train_bpr(matrix, factors=WIDTH, iterations=50, learning_rate=1e20)


def test_matrix_adds_up_events_of_a_pair() -> None:
    events = Interactions(
        np.array([0, 0, 2], dtype=np.int32),
        np.array([1, 1, 0], dtype=np.int32),
        np.array([2.0, 3.0, 4.0], dtype=np.float32),
    )
    counted = interaction_matrix(events, 3, 2, weighted=False)
    weighted = interaction_matrix(events, 3, 2, weighted=True)
    np.testing.assert_array_equal(counted.toarray(), [[0, 2], [0, 0], [1, 0]])
    np.testing.assert_array_equal(weighted.toarray(), [[0, 5], [0, 0], [4, 0]])
