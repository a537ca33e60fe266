"""Full ranking of a catalogue for many users, block by block, never sampled.

A block of users' scores of all candidates is in memory at once, in a buffer that all
blocks share. All this runs on the tensors' device, in float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch.nn import functional as F

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

SCORES = 1 << 27
"""Most scores in memory at once, however many users a block should have."""
LEFT_OUT = float("-inf")


class Lists(NamedTuple):
    """Ranked lists of users, best first.

    Attributes:
        top: Item codes, int64 (users, k); -1 behind the last candidate.
        scores: Their scores, float32 (users, k); minus infinity there.
    """

    top: Tensor
    scores: Tensor


class Found(NamedTuple):
    """What ranked lists hold of the items that are to be found.

    Attributes:
        top: As in :class:`Lists`.
        scores: As in :class:`Lists`.
        hits: Which places hold such an item, bool (users, k).
        relevant: How many of them are candidates, int64 (users,).
    """

    top: Tensor
    scores: Tensor
    hits: Tensor
    relevant: Tensor


class Candidates:
    """The items that are ranked, as columns of a block of scores.

    Args:
        items: Items of the catalogue.
        chosen: Codes of those that are ranked, int64; ``None`` ranks all.
        device: Where the ranking runs.
    """

    def __init__(
        self, items: int, chosen: Tensor | None, device: torch.device | str = "cpu"
    ) -> None:
        self.chosen = chosen if chosen is None else chosen.to(device)
        self.count = items if chosen is None else len(chosen)
        if self.chosen is None:
            self._columns = torch.arange(items + 1, device=device)
        else:
            self._columns = torch.full((items + 1,), self.count, device=device)
            self._columns[self.chosen] = torch.arange(self.count, device=device)

    def columns(self, codes: Tensor) -> Tensor:
        """Column of each code; of -1 and of other items the one behind the last."""
        # -1 names the last entry, which stands for no item.
        return self._columns[codes]

    def best(self, scores: Tensor, k: int) -> tuple[Lists, Tensor]:
        """The k highest scores of each row, and their columns (users, k)."""
        values, columns = scores.topk(min(k, self.count), dim=1)
        if values.shape[1] < k:
            missing = (0, k - values.shape[1])
            values = F.pad(values, missing, value=LEFT_OUT)
            columns = F.pad(columns, missing, value=0)
        codes = columns if self.chosen is None else self.chosen[columns]
        return Lists(codes.masked_fill(values == LEFT_OUT, -1), values), columns


def top_k(
    query: Tensor,
    table: Tensor,
    bias: Tensor | None = None,
    k: int = 10,
    masked: Tensor | None = None,
    candidates: Tensor | None = None,
    block: int = 1024,
) -> Lists:
    """The items with the highest scores ``<query, item> + bias[item]`` of each user.

    Args:
        query: (users, channels).
        table: Vectors of all items, (items, channels).
        bias: (items,); ``None`` stands for zeros.
        k: Length of the lists.
        masked: Items that a user's list must not hold, int64 (users, any), padded
            with -1.
        candidates: Codes of the only items that are ranked, int64; ``None`` ranks all.
        block: Users whose scores are in memory at once, at most.
    """
    items = Candidates(len(table), candidates, table.device)
    parts = [Lists(*_nothing(query, k))]
    with torch.no_grad():
        for rows, buffer in _blocks(query, table, bias, items, block):
            scores = buffer[:, :-1]
            if masked is not None:
                buffer.scatter_(1, items.columns(masked[rows]), LEFT_OUT)
            parts.append(items.best(scores, k)[0])
    return Lists(*map(torch.cat, zip(*parts, strict=True)))


def find(
    query: Tensor,
    table: Tensor,
    bias: Tensor | None,
    k: int,
    held_out: Tensor,
    masked: Tensor | None = None,
    candidates: Candidates | None = None,
    among: Candidates | None = None,
    block: int = 1024,
) -> tuple[Found, Found | None, Tensor]:
    """As :func:`top_k`, looking for held-out items; scores are computed only once.

    Args:
        query: (users, channels).
        table: Vectors of all items, (items, channels).
        bias: (items,); ``None`` stands for zeros.
        k: Length of the lists.
        held_out: Items to find, int64 (users, any), padded with -1, each once a user.
        masked: As in :func:`top_k`. What is both masked and held out cannot be found.
        candidates: What is ranked; ``None`` ranks all.
        among: Chosen ones of the candidates, ranked again among themselves.
        block: Users whose scores are in memory at once, at most.

    Returns:
        The lists, those of ``among``, and of each user the cross entropy of the softmax
        over their candidates, summed over held-out candidates, float32 (users,). An
        item to find is in its own sum even when it is masked.
    """
    items = candidates or Candidates(len(table), None, table.device)
    lists, second, losses = [], [], []
    with torch.no_grad():
        for rows, buffer in _blocks(query, table, bias, items, block):
            scores = buffer[:, :-1]
            wanted = held_out[rows]
            columns = items.columns(wanted)
            own = buffer.gather(1, columns)
            if masked is not None:
                buffer.scatter_(1, items.columns(masked[rows]), LEFT_OUT)
            free = buffer.gather(1, columns) > LEFT_OUT
            lists.append(_found(scores, columns, free, items, k))
            if among is not None and among.chosen is not None:
                some = scores.index_select(1, items.columns(among.chosen))
                places = among.columns(wanted)
                in_both = free & (places < among.count)
                second.append(_found(some, places, in_both, among, k))
            total = _log_sum(scores, lists[-1].scores[:, :1])
            total = torch.where(free, total, torch.logaddexp(total, own))
            counts = columns < items.count
            losses.append((total - own).masked_fill(~counts, 0.0).sum(1))
    empty = Found(
        *_nothing(query, k),
        torch.empty(0, k, dtype=torch.bool, device=query.device),
        torch.empty(0, dtype=torch.int64, device=query.device),
    )
    found = Found(*map(torch.cat, zip(empty, *lists, strict=True)))
    rest = Found(*map(torch.cat, zip(empty, *second, strict=True)))
    loss = torch.cat([query.new_empty(0, dtype=torch.float32), *losses])
    return found, rest if among is not None else None, loss


def _blocks(
    query: Tensor, table: Tensor, bias: Tensor | None, items: Candidates, block: int
) -> Iterator[tuple[slice, Tensor]]:
    """Rows of users and their scores, with a column of minus infinity behind the last.

    What is done to the scores of one block is gone with the next.
    """
    if items.chosen is not None:
        table = table[items.chosen]
        bias = None if bias is None else bias[items.chosen]
    query, table = query.detach().float(), table.detach().float()
    block = max(1, min(block, SCORES // (items.count + 1), len(query)))
    # Fresh memory for every block would cost as much as filling it.
    buffer = query.new_empty(block, items.count + 1)
    with torch.autocast(query.device.type, enabled=False):
        for start in range(0, len(query), block):
            rows = slice(start, min(start + block, len(query)))
            part = buffer[: rows.stop - start]
            if bias is None:
                torch.mm(query[rows], table.T, out=part[:, :-1])
            else:
                offset = bias.detach().float()
                torch.addmm(offset, query[rows], table.T, out=part[:, :-1])
            part[:, -1] = LEFT_OUT
            yield rows, part


def _found(
    scores: Tensor, columns: Tensor, free: Tensor, items: Candidates, k: int
) -> Found:
    """Ranked lists, and where in them the wanted columns are."""
    lists, places = items.best(scores, k)
    # A table of all items: comparing lists with lists would take (users, k, wanted).
    wanted = torch.zeros(
        len(scores), items.count + 1, dtype=torch.bool, device=scores.device
    ).scatter_(1, columns, True)
    hits = wanted.gather(1, places) & (lists.top >= 0)
    return Found(*lists, hits, free.sum(1))


def _log_sum(scores: Tensor, peak: Tensor) -> Tensor:
    """Log of the sum of exponentials of each row, (users, 1); uses the scores up.

    Args:
        scores: (users, candidates).
        peak: Highest score of each row, (users, 1).
    """
    peak = peak.masked_fill(peak == LEFT_OUT, 0.0)
    return scores.sub_(peak).exp_().sum(1, keepdim=True).log() + peak


def _nothing(query: Tensor, k: int) -> tuple[Tensor, Tensor]:
    top = torch.empty(0, k, dtype=torch.int64, device=query.device)
    return top, torch.empty(0, k, dtype=torch.float32, device=query.device)
