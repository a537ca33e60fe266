"""Rows of tables and dot products with them equal plain indexing, gradients too."""

from __future__ import annotations

import pytest
import torch

from headstart_recsys.tables import BLOCK, look_up, match


def plain(
    query: torch.Tensor, table: torch.Tensor, codes: torch.Tensor
) -> torch.Tensor:
    return (query[:, None] * table[codes]).sum(-1)


@pytest.mark.parametrize("events", [0, 1, BLOCK, 2 * BLOCK + 3])
@pytest.mark.parametrize("samples", [0, 1, 3])
def test_matches_and_their_gradients_are_those_of_indexing(
    events: int, samples: int
) -> None:
    generator = torch.Generator().manual_seed(events + samples)
    query = torch.randn(events, 8, generator=generator, dtype=torch.float64)
    table = torch.randn(11, 8, generator=generator, dtype=torch.float64)
    codes = torch.randint(11, (events, samples), generator=generator)
    weights = torch.randn(events, samples, generator=generator, dtype=torch.float64)
    found = []
    for way in (match, plain):
        leaves = [values.clone().requires_grad_() for values in (query, table)]
        scores = way(*leaves, codes)
        found.append([scores, *torch.autograd.grad((scores * weights).sum(), leaves)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_matches_take_memory_in_any_order() -> None:
    query = torch.randn(8, 5).T.requires_grad_()
    table = torch.randn(8, 7).T.requires_grad_()
    codes = torch.randint(7, (2, 5)).T
    ours, theirs = match(query, table, codes), plain(query, table, codes)
    torch.testing.assert_close(ours, theirs)
    for a, b in zip(
        torch.autograd.grad(ours.sum(), (query, table)),
        torch.autograd.grad(theirs.sum(), (query, table)),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("code", [-1, 7])
def test_a_code_outside_the_table_is_refused(code: int) -> None:
    with pytest.raises(IndexError):
        match(torch.randn(1, 8), torch.randn(7, 8), torch.tensor([[code]]))


def test_rows_add_up_their_gradients() -> None:
    table = torch.zeros(4, 2, requires_grad=True)
    rows = look_up(table, torch.tensor([[1, 3], [1, 0]]))
    (rows * torch.tensor([[[1.0], [2.0]], [[4.0], [8.0]]])).sum().backward()
    assert table.grad is not None
    assert table.grad.tolist() == [[8, 8], [5, 5], [0, 0], [2, 2]]
