"""Full rankings in blocks against a plain sort of one user's scores after another."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from headstart_recsys.ranking import Candidates, find, top_k
from headstart_recsys.tables import look_up

USERS, ITEMS, WIDTH = 11, 23, 5


def problem(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(USERS, ITEMS, generator=generator).argsort(1)
    masked, held_out = order[:, :6].clone(), order[:, 5:9].clone()
    # Lists of different lengths, and a user without any; column 5 is in both.
    masked[::2, 4:] = -1
    masked[3] = -1
    held_out[1::3, 2:] = -1
    held_out[4] = -1
    return {
        "query": torch.randn(USERS, WIDTH, generator=generator),
        "table": torch.randn(ITEMS, WIDTH, generator=generator),
        "bias": torch.randn(ITEMS, generator=generator),
        "masked": masked,
        "held_out": held_out,
    }


def by_sorting(
    given: dict[str, Any], user: int, candidates: list[int] | None, mask: bool
) -> tuple[list[int], np.ndarray]:
    """A user's candidates, best first, and the scores of all items."""
    query, table = (given[k].double().numpy() for k in ("query", "table"))
    scores = table @ query[user]
    if given["bias"] is not None:
        scores = scores + given["bias"].double().numpy()
    seen = set(given["masked"][user].tolist()) if mask else set()
    left = [i for i in candidates or range(ITEMS) if i not in seen]
    return sorted(left, key=lambda i: -scores[i]), scores


@pytest.mark.parametrize("block", [1, 4, 11, 1000])
@pytest.mark.parametrize("candidates", [None, [20, 3, 7, 11, 2, 9]])
@pytest.mark.parametrize("mask", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_top_k_equals_a_full_sort(
    block: int, candidates: list[int] | None, mask: bool, bias: bool
) -> None:
    given = problem()
    given["bias"] = given["bias"] if bias else None
    k = 8
    lists = top_k(
        given["query"],
        given["table"],
        given["bias"],
        k,
        given["masked"] if mask else None,
        None if candidates is None else torch.tensor(candidates),
        block,
    )
    assert lists.top.shape == lists.scores.shape == (USERS, k)
    assert lists.top.dtype == torch.int64 and lists.scores.dtype == torch.float32
    for user in range(USERS):
        order, scores = by_sorting(given, user, candidates, mask)
        best = order[:k]
        missing = k - len(best)
        assert lists.top[user].tolist() == best + [-1] * missing
        expected = [*scores[best], *[-np.inf] * missing]
        np.testing.assert_allclose(lists.scores[user], expected, rtol=1e-5, atol=1e-6)


def test_lists_longer_than_the_catalogue_and_no_users() -> None:
    given = problem()
    lists = top_k(given["query"], given["table"], None, 40, given["masked"])
    for row, masked in zip(lists.top, given["masked"], strict=True):
        count = ITEMS - int((masked >= 0).sum())
        assert sorted(row[:count].tolist()) == sorted(
            set(range(ITEMS)) - set(masked.tolist())
        )
        assert row[count:].tolist() == [-1] * (40 - count)
    nobody = top_k(given["query"][:0], given["table"], None, 3)
    assert nobody.top.shape == (0, 3)


@pytest.mark.parametrize("block", [3, 1000])
@pytest.mark.parametrize("candidates", [None, [20, 3, 7, 11, 2, 9, 5, 1]])
@pytest.mark.parametrize("mask", [True, False])
def test_finding_held_out_items(
    block: int, candidates: list[int] | None, mask: bool
) -> None:
    """Lists, hits, what could be found, and the loss, all counted user by user."""
    given, k, some = problem(1), 6, [11, 2, 5]
    found, among, losses = find(
        given["query"],
        given["table"],
        given["bias"],
        k,
        given["held_out"],
        given["masked"] if mask else None,
        Candidates(ITEMS, None if candidates is None else torch.tensor(candidates)),
        Candidates(ITEMS, torch.tensor(some)),
        block,
    )
    assert among is not None
    hits = 0
    for user in range(USERS):
        wanted = [i for i in given["held_out"][user].tolist() if i >= 0]
        for got, chosen in ((found, candidates), (among, some)):
            order, scores = by_sorting(given, user, chosen, mask)
            top = got.top[user].tolist()
            assert top == order[:k] + [-1] * (k - len(order[:k]))
            assert got.hits[user].tolist() == [i in wanted and i >= 0 for i in top]
            assert got.relevant[user] == sum(i in order for i in wanted)
            hits += int(got.hits[user].sum())
        order, scores = by_sorting(given, user, candidates, mask)
        loss = 0.0
        for item in wanted:
            if candidates is None or item in candidates:
                # Also of what the user has: it is in its own sum alone.
                total = np.exp(scores[sorted({*order, item})]).sum()
                loss += np.log(total) - scores[item]
        assert losses[user].item() == pytest.approx(loss, rel=1e-4, abs=1e-5)
    assert hits > 5


def test_user_who_has_everything() -> None:
    given = problem()
    everything = torch.arange(ITEMS).repeat(USERS, 1)
    held_out = torch.full((USERS, 1), 4)
    found, _, losses = find(
        given["query"], given["table"], None, 3, held_out, everything
    )
    assert (found.top == -1).all()
    assert not found.hits.any()
    assert (found.relevant == 0).all()
    torch.testing.assert_close(losses, torch.zeros(USERS))


def test_blocks_share_their_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scores of a block are the largest thing, and there is one buffer of them."""
    made: list[tuple[int, ...]] = []
    whole = torch.Tensor.new_empty

    def new_empty(self: torch.Tensor, *size: Any, **rest: Any) -> torch.Tensor:
        made.append(tuple(size))
        return whole(self, *size, **rest)

    monkeypatch.setattr(torch.Tensor, "new_empty", new_empty)
    query, table = torch.randn(500, 4), torch.randn(300, 4)
    top_k(query, table, None, 5, block=50)
    assert made == [(50, 301)]
    monkeypatch.setattr("headstart_recsys.ranking.SCORES", 301 * 7)
    made.clear()
    some = top_k(query, table, None, 5, block=50)
    assert made == [(7, 301)]
    assert torch.equal(some.top, top_k(query, table, None, 5, block=500).top)


def test_ranking_keeps_float32_under_autocast() -> None:
    given = problem()
    expected = top_k(given["query"], given["table"], given["bias"], 5)
    with torch.autocast("cpu", torch.bfloat16):
        lists = top_k(given["query"], given["table"], given["bias"], 5)
    assert torch.equal(lists.scores, expected.scores)


@pytest.mark.parametrize("shape", [(7, 3), (7,)])
def test_rows_looked_up_and_their_gradient(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    table = torch.randn(shape, requires_grad=True)
    twin = table.detach().clone().requires_grad_()
    indices = torch.tensor([[0, 3, 3], [6, 3, 0]])
    rows, expected = look_up(table, indices), twin[indices]
    assert torch.equal(rows, expected)
    factors = torch.randn_like(rows)
    (rows * factors).sum().backward()
    (expected * factors).sum().backward()
    torch.testing.assert_close(table.grad, twin.grad)
    assert look_up(table, indices[:0]).shape == (0, 3, *shape[1:])
