"""Items that the same users have: cosine between the columns of a sparse matrix."""

from __future__ import annotations

import numpy as np
from scipy import sparse

BLOCK = 512
"""Items whose similarities with all items are in memory at once."""


def item_similarities(
    matrix: sparse.csr_matrix, neighbours: int, shrink: float = 0.0
) -> sparse.csr_matrix:
    """Each item's most similar other items.

    The cosine of items a and b is <a, b> / (|a| |b| + shrink): shrinkage trusts the
    similarity of rare items less (Bell & Koren 2007).

    Args:
        matrix: Users by items; weights of what is known.
        neighbours: Items kept for each.
        shrink: What is added to the product of norms.

    Returns:
        Items by items, float32; rows are the items whose neighbours they hold, never
        themselves. Rows are shorter where fewer items have a user in common.
    """
    columns = matrix.tocsc().astype(np.float32)
    squares = np.asarray(columns.multiply(columns).sum(0), np.float64).ravel()
    norms = np.sqrt(squares).astype(np.float32)
    items = columns.shape[1]
    kept = min(neighbours, items)
    rows = columns.tocsr()
    found = []
    for start in range(0, items, BLOCK):
        part = columns[:, start : start + BLOCK]
        dots = (part.T @ rows).toarray()
        own = np.arange(dots.shape[0])
        dots[own, start + own] = 0
        scale = norms[start : start + BLOCK, None] * norms + np.float32(shrink)
        np.divide(dots, scale, out=dots, where=dots != 0)
        best = np.argpartition(-dots, kept - 1, axis=1)[:, :kept]
        values = np.take_along_axis(dots, best, 1)
        row, place = np.nonzero(values)
        found.append(
            sparse.csr_matrix(
                (values[row, place], (row, best[row, place])), shape=dots.shape
            )
        )
    return sparse.vstack(found, format="csr")


def strongest(similarities: sparse.csr_matrix, neighbours: int) -> sparse.csr_matrix:
    """The same with fewer neighbours for each item."""
    rows = np.repeat(np.arange(similarities.shape[0]), np.diff(similarities.indptr))
    order = np.lexsort((-similarities.data, rows))
    place = np.arange(len(rows)) - similarities.indptr[rows]
    kept = order[place < neighbours]
    return sparse.csr_matrix(
        (similarities.data[kept], (rows[kept], similarities.indices[kept])),
        shape=similarities.shape,
    )
