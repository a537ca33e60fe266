"""In which order samples come: a function of (seed, epoch, position) alone."""

from __future__ import annotations

import numpy as np


def epoch_batches(
    count: int,
    batch_size: int,
    *,
    seed: int,
    epoch: int,
    sizes: np.ndarray | None = None,
    window: int = 50,
    total: int | None = None,
) -> list[np.ndarray]:
    """The batches of one epoch: a function of its arguments alone.

    With ``sizes``, samples are shuffled, sorted by size inside windows of ``window``
    batches, cut into batches, and the batches are shuffled: hardly any padding, and
    still a different mixture every epoch.

    With ``total``, a batch has as many samples as fit into it, padding included: all
    samples are sorted by size in steps of 10 %, in random order within a step, and cut
    where the next one would be too much. Where, depends on the steps alone: every
    epoch has as many batches.

    Returns:
        Arrays of sample indices; every sample once. The last batch may be smaller. One
        of a single sample, on which BatchNorm cannot train, is there only where there
        is no other sample, or ``total`` allows none of the batch before beside it.
    """
    generator = np.random.default_rng([seed, epoch])
    order = generator.permutation(count)
    if sizes is not None and total is not None:
        steps = _size_steps(sizes)
        order = order[np.argsort(steps[order], kind="stable")]
        batches = cut_by_total(order, steps, batch_size, total)
        for i in range(1, len(batches)):
            before, last = batches[i - 1 : i + 1]
            if len(last) == 1 and len(before) > 2 and 2 * steps[last[0]] <= total:
                batches[i - 1 : i + 1] = np.split(np.append(before, last), [-2])
        return [batches[i] for i in generator.permutation(len(batches))]
    if sizes is not None:
        windows = [
            order[i : i + batch_size * window]
            for i in range(0, count, batch_size * window)
        ]
        order = np.concatenate(
            [w[np.argsort(sizes[w], kind="stable")] for w in windows]
        )
    cuts = list(range(batch_size, count, batch_size))
    if cuts and count - cuts[-1] == 1 and batch_size > 2:
        # BatchNorm cannot train on one sample: the last two batches share theirs.
        cuts[-1] -= batch_size // 2
    batches = np.split(order, cuts)
    if sizes is None:
        return batches
    return [batches[i] for i in generator.permutation(len(batches))]


def evaluation_batches(
    count: int,
    batch_size: int,
    sizes: np.ndarray | None = None,
    total: int | None = None,
) -> list[np.ndarray]:
    """Every sample once, longest first so that memory runs out at once or never."""
    order = np.arange(count) if sizes is None else np.argsort(-sizes, kind="stable")
    if sizes is not None and total is not None:
        return cut_by_total(order, sizes, batch_size, total)
    return [order[i : i + batch_size] for i in range(0, count, batch_size)]


def prediction_batches(
    count: int, batch_size: int, sizes: np.ndarray | None, total: int | None
) -> list[np.ndarray]:
    """Every sample once, in order, so that what is predicted is told as it comes."""
    order = np.arange(count)
    if sizes is not None and total is not None:
        return cut_by_total(order, sizes, batch_size, total)
    return [order[i : i + batch_size] for i in range(0, count, batch_size)]


def cut_by_total(
    order: np.ndarray, sizes: np.ndarray, batch_size: int, total: int
) -> list[np.ndarray]:
    """An order cut into batches of at most ``total`` with padding.

    A sample that is larger than that is a batch of its own.
    """
    cuts, start, largest = [], 0, 0
    for place, size in enumerate(sizes[order].tolist()):
        largest = max(largest, size)
        count = place - start + 1
        if count > 1 and (count > batch_size or count * largest > total):
            cuts.append(place)
            start, largest = place, size
    return [batch for batch in np.split(order, cuts) if len(batch)]


def _size_steps(sizes: np.ndarray) -> np.ndarray:
    """Each size rounded up to the next step, a step being 10 % of the size."""
    smallest = max(int(sizes.min()), 1) if len(sizes) else 1
    count = np.ceil(np.log(np.maximum(sizes, 1) / smallest) / np.log(1.1) - 1e-9)
    # Sizes are whole numbers: none lies between a step and the whole number below it.
    steps: np.ndarray = np.floor(smallest * 1.1**count).astype(np.int64)
    rounded: np.ndarray = np.maximum(steps, sizes)
    return rounded
