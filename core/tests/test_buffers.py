"""Buffers that are taken back when a step is left out."""

from __future__ import annotations

import copy

import torch
from torch import nn

from headstart.buffers import MovingBuffers


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.BatchNorm1d(4))


def test_they_stay_the_same_tensors_and_still_move() -> None:
    model, twin = network(), network()
    before = list(model.buffers())
    MovingBuffers([model])
    assert all(a is b for a, b in zip(before, model.buffers(), strict=True))
    for seed in range(3):
        points = torch.randn(8, 3, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(model(points), twin(points))
    assert len({b.untyped_storage().data_ptr() for b in model.buffers()}) == 2
    for ours, theirs in zip(model.buffers(), twin.buffers(), strict=True):
        assert torch.equal(ours, theirs)


def test_taken_back_where_true_even_from_nan() -> None:
    model = network()
    guard = MovingBuffers([model])
    guard.keep()
    kept = copy.deepcopy(model.state_dict())
    model(torch.full((8, 3), float("nan")))
    assert not torch.isfinite(model[1].running_mean).any()
    moved = copy.deepcopy(model.state_dict())
    guard.take_back(torch.tensor(False))
    assert str(model.state_dict()) == str(moved)
    guard.take_back(torch.tensor(True))
    assert all(torch.equal(v, kept[k]) for k, v in model.state_dict().items())
    model(torch.ones(8, 3))
    guard.take_back()
    assert all(torch.equal(v, kept[k]) for k, v in model.state_dict().items())


def test_two_guards_one_after_another_and_none_at_all() -> None:
    model = network()
    MovingBuffers([model]).keep()
    later = MovingBuffers([model[2]])
    later.keep()
    model(torch.ones(8, 3))
    later.take_back()
    assert int(model[1].num_batches_tracked) == 1
    assert int(model[2].num_batches_tracked) == 0
    MovingBuffers(()).take_back()
