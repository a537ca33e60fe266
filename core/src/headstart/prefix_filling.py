"""How a frozen prefix runs over a split: which samples together, what of it to keep."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from headstart.batch_order import cut_by_total
from headstart.prefix_store import corner, take_apart

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from headstart.stages import State


def filling_batches(
    count: int,
    sizes: np.ndarray | None,
    batch_size: int,
    mixed: bool = False,
    total: int | None = None,
) -> list[np.ndarray]:
    """Batches of samples of one size each, so that no row is padded.

    ``mixed`` takes neighbours in size together, where padding can be told from the
    rest: many small batches take longer than a little padding. With ``total`` no batch
    takes more than that.
    """
    if sizes is None:
        groups = [np.arange(count)]
    else:
        order = np.argsort(-sizes, kind="stable")
        borders = np.flatnonzero(np.diff(sizes[order])) + 1
        groups = [order] if mixed else np.split(order, borders)
        if total is not None:
            # In batches of one size nothing is padded, but they may be large.
            return [
                batch
                for group in groups
                for batch in cut_by_total(group, sizes, batch_size, total)
            ]
    return [
        group[i : i + batch_size]
        for group in groups
        for i in range(0, len(group), batch_size)
    ]


def padded_dimensions(
    prefix: Callable[[np.ndarray], State], sizes: np.ndarray | None
) -> dict[str, list[int]] | None:
    """Where a prefix's tensors are as long as their sample.

    Found on the largest and the smallest sample, alone and together.

    Args:
        prefix: Runs the frozen stages on some samples.
        sizes: Of all samples; ``None`` when they are equal.

    Returns:
        Dimensions by path. ``None`` when a length is anything else, or padding changes
        what is not padding: then rows can only be computed beside others of their size.
    """
    if sizes is None:
        return {}
    if sizes.min() == sizes.max():
        return None
    pair = np.array([int(sizes.argmax()), int(sizes.argmin())])
    alone = [take_apart(prefix(np.array([sample])), 1)[1] for sample in pair]
    _, together, _ = take_apart(prefix(pair), 2)
    padded: dict[str, list[int]] = {}
    for path, both in together.items():
        shapes = [tuple(tensors[path].shape[1:]) for tensors in alone]
        differ = [d for d in range(both.ndim - 1) if shapes[0][d] != shapes[1][d]]
        lengths = [[shape[d] for d in differ] for shape in shapes]
        if lengths != [[int(sizes[sample])] * len(differ) for sample in pair]:
            return None
        for row, tensors, shape in zip(both, alone, shapes, strict=True):
            if not _close(tensors[path][0], corner(row, shape)):
                return None
        if differ:
            padded[path] = differ
    return padded


def own_extents(
    state: State,
    indices: np.ndarray,
    sizes: np.ndarray | None,
    padded: Mapping[str, list[int]] | None,
) -> dict[str, np.ndarray]:
    """The shapes of a batch's rows without their padding.

    Args:
        state: What the prefix gave for the batch.
        indices: The batch's samples.
        sizes: Of all samples.
        padded: What :func:`padded_dimensions` found.

    Returns:
        (samples, dimensions) by path, of the tensors that are padded.
    """
    if not padded or sizes is None:
        return {}
    _, tensors, _ = take_apart(state, len(indices))
    own = {}
    for path, dimensions in padded.items():
        extents = np.tile(np.array(tensors[path].shape[1:]), (len(indices), 1))
        for dimension in dimensions:
            extents[:, dimension] = sizes[indices]
        own[path] = extents
    return own


def agree(fresh: State, stored: State, count: int) -> bool:
    """Whether two states are the same but for rounding."""
    template, ours, _ = take_apart(fresh, count)
    other, theirs, _ = take_apart(stored, count)
    if template != other:
        return False
    return all(_close(ours[path], theirs[path]) for path in ours)


def _close(value: torch.Tensor, found: torch.Tensor) -> bool:
    if value.shape != found.shape or value.dtype != found.dtype:
        return False
    found = found.to(value.device)
    if not value.is_floating_point():
        return torch.equal(value, found)
    # Wide enough for bf16; what only rounds differently is no other prefix.
    margin = 0.02 * float(value.float().nan_to_num().abs().max())
    return torch.allclose(
        value.float(), found.float(), rtol=0, atol=margin + 1e-6, equal_nan=True
    )
