"""Matrix factorisation by implicit: trained from scratch, or continued.

Always implicit's CPU code, so that the same seed gives the same vectors everywhere.
ALS: Hu, Koren and Volinsky 2008; BPR: Rendle et al. 2009; LMF: Johnson 2014.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from headstart.errors import DataError, UserError

if TYPE_CHECKING:
    from collections.abc import Callable

    from headstart_recsys.columns import Interactions

    Told = Callable[[int, int], None]

BIASES = {"verify_negative_samples": 1, "neg_prop": 2}
"""Columns of biases behind the vectors of implicit's BPR and LMF models, by the name
of a setting that only that model has."""


@dataclass(frozen=True)
class Factors:
    """Vectors whose dot products are scores.

    Attributes:
        items: float32 ``(items, factors)``.
        users: float32 ``(users, factors)``.
        bias: float32 ``(items,)``: what implicit's BPR and LMF add to an item's scores;
            split off their vectors' extra columns, so it is no part of ``items``.
    """

    items: np.ndarray
    users: np.ndarray
    bias: np.ndarray | None = None


def interaction_matrix(
    interactions: Interactions, users: int, items: int, *, weighted: bool
) -> sparse.csr_matrix:
    """Users by items, float32; events of a pair are added up.

    Args:
        interactions: The events.
        users: Rows.
        items: Columns.
        weighted: Entries are sums of the events' values, else how many there are.
    """
    values = interactions.values if weighted else None
    if values is None:
        values = np.ones(len(interactions), dtype=np.float32)
    pairs = (interactions.users, interactions.items)
    matrix = sparse.csr_matrix((values, pairs), (users, items), dtype=np.float32)
    matrix.sum_duplicates()
    return matrix


def train_als(
    matrix: sparse.csr_matrix,
    *,
    factors: int = 64,
    iterations: int = 15,
    regularization: float = 0.01,
    alpha: float = 1.0,
    seed: int = 0,
    told: Told | None = None,
) -> Factors:
    """Alternating least squares from random vectors.

    Args:
        matrix: Users by items: confidences, times ``alpha``.
        factors: Width of the vectors.
        iterations: Each solves all users, then all items.
        regularization: Of both.
        alpha: What confidences are multiplied with.
        seed: Of the vectors at the start.
        told: Called with the iterations done and those in all.

    Raises:
        DataError: The matrix is empty.
    """
    from implicit.cpu.als import AlternatingLeastSquares

    return _fitted(
        AlternatingLeastSquares,
        matrix,
        told,
        factors=factors,
        iterations=iterations,
        regularization=regularization,
        alpha=alpha,
        random_state=seed,
    )


def continue_als(
    matrix: sparse.csr_matrix,
    items: np.ndarray,
    users: np.ndarray | None = None,
    *,
    iterations: int = 15,
    regularization: float = 0.01,
    alpha: float = 1.0,
    told: Told | None = None,
) -> Factors:
    """Alternating least squares that goes on from given vectors.

    An iteration solves the users from the items before the items from the users, so
    the items are what a warm start is about.

    Args:
        matrix: Users by items.
        items: ``(items, factors)``, a row for each column of the matrix; zeros for an
            item that is new, which then says nothing about users until it is solved.
        users: ``(users, factors)``; ``None`` solves them exactly from the items.
        iterations: With 0, what was given comes back.
        regularization: Of both.
        alpha: What confidences are multiplied with.
        told: As :func:`train_als`.

    Raises:
        DataError: The matrix is empty, or not of these users and items.
    """
    from implicit.cpu.als import AlternatingLeastSquares

    given = "items" if users is None else "items and users"
    sizes = (len(items) if users is None else len(users), len(items))
    wanted = (sizes[0] if users is not None else matrix.shape[0], sizes[1])
    widths = {items.shape[1], items.shape[1] if users is None else users.shape[1]}
    if matrix.shape != wanted or len(widths) > 1:
        shapes = [items.shape, *(() if users is None else (users.shape,))]
        raise DataError(
            f"{given} of the shapes {', '.join(map(str, shapes))} do not fit a matrix "
            f"of {matrix.shape[0]} users by {matrix.shape[1]} items"
        )
    return _fitted(
        AlternatingLeastSquares,
        matrix,
        told,
        start=(items, users),
        factors=items.shape[1],
        iterations=iterations,
        regularization=regularization,
        alpha=alpha,
    )


def train_bpr(
    matrix: sparse.csr_matrix,
    *,
    factors: int = 64,
    iterations: int = 100,
    learning_rate: float = 0.01,
    regularization: float = 0.01,
    seed: int = 0,
    told: Told | None = None,
) -> Factors:
    """Bayesian personalised ranking, in one thread since several would race.

    Args:
        matrix: Users by items; only where it is not zero matters.
        factors: Width of the vectors, the items' bias not counted.
        iterations: Passes over the events.
        learning_rate: Of the gradient steps.
        regularization: Of vectors and bias.
        seed: Of the start and of what is sampled.
        told: As :func:`train_als`.

    Raises:
        DataError: The matrix is empty.
        UserError: It diverged.
    """
    from implicit.cpu.bpr import BayesianPersonalizedRanking

    return _fitted(
        BayesianPersonalizedRanking,
        matrix,
        told,
        factors=factors,
        iterations=iterations,
        learning_rate=learning_rate,
        regularization=regularization,
        random_state=seed,
        num_threads=1,
    )


def train_lmf(
    matrix: sparse.csr_matrix,
    *,
    factors: int = 64,
    iterations: int = 30,
    learning_rate: float = 1.0,
    regularization: float = 0.6,
    negatives: int = 30,
    seed: int = 0,
    told: Told | None = None,
) -> Factors:
    """Logistic matrix factorisation, in one thread: what is sampled depends on them.

    Args:
        matrix: Users by items: weights.
        factors: Width of the vectors, biases not counted.
        iterations: Each updates all users, then all items.
        learning_rate: Of Adagrad.
        regularization: Of both.
        negatives: Items sampled for each event of a user.
        seed: Of the start and of what is sampled.
        told: As :func:`train_als`.

    Raises:
        DataError: The matrix is empty.
        UserError: It diverged.
    """
    from implicit.cpu.lmf import LogisticMatrixFactorization

    return _fitted(
        LogisticMatrixFactorization,
        matrix,
        told,
        factors=factors,
        iterations=iterations,
        learning_rate=learning_rate,
        regularization=regularization,
        neg_prop=negatives,
        random_state=seed,
        num_threads=1,
    )


def _fitted(
    kind: type,
    matrix: sparse.csr_matrix,
    told: Told | None,
    start: tuple[np.ndarray, np.ndarray | None] | None = None,
    **settings: Any,
) -> Factors:
    from implicit.recommender_base import ModelFitError
    from threadpoolctl import threadpool_limits

    if not matrix.nnz:
        raise DataError(
            "there are no events to learn embeddings from",
            fix="leave some for it: data.earlier is the share of the training events "
            "that embeddings are learned from",
        )
    iterations = settings["iterations"]

    def done(iteration: int, *_: Any) -> None:
        if told:
            told(iteration + 1, iterations)

    # implicit's own threads and those of BLAS get into each other's way.
    with threadpool_limits(1, "blas"):
        model = kind(**settings)
        if start is not None:
            items, users = start
            model.item_factors = np.array(items, dtype=np.float32, order="C")
            if users is None:
                users = model.recalculate_user(np.arange(matrix.shape[0]), matrix)
            model.user_factors = np.array(users, dtype=np.float32, order="C")
        try:
            model.fit(matrix, show_progress=False, callback=done)
        except ModelFitError as error:
            raise UserError(
                "learning the embeddings diverged",
                where=kind.__name__,
                why=str(error),
                fix="lower its learning_rate, or raise its regularization",
            ) from error
    width = settings["factors"]
    items, users = model.item_factors, model.user_factors
    # The items' bias is where the users' columns are 1: BPR's last, LMF's first.
    bias = items[:, width].copy() if items.shape[1] > width else None
    return Factors(
        np.ascontiguousarray(items[:, :width]),
        np.ascontiguousarray(users[:, :width]),
        bias,
    )
