"""Frozen stages stay frozen whatever calls ``train()``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from headstart.errors import PluginError, UserError

if TYPE_CHECKING:
    from collections.abc import Callable

    from headstart.model import Model

STAGES = ("first", "second", "third")


@pytest.fixture
def parts(toy_parts: Callable[..., Any]) -> tuple[Model, dict[str, Any]]:
    """The toy model and a batch of its data."""
    _, assembly, _ = toy_parts({"data.count": 40})
    samples = list(assembly.data.samples("train"))
    return assembly.model, assembly.data.collate(samples)


def test_train_leaves_frozen_stages_in_evaluation(
    parts: tuple[Model, dict[str, Any]],
) -> None:
    model, _ = parts
    model.train_stages(frozenset({"second"}))
    for call in (model.train, lambda: model.train(True), lambda: model.eval().train()):
        call()
        modes = {name: model.backbone.stages[name].training for name in STAGES}
        assert modes == {"first": False, "second": True, "third": False}
        assert not model.backbone.stages["third"].norm.training
        assert model.head.training
    model.eval()
    assert not any(module.training for module in model.modules())


def test_only_what_trains_gets_gradients(parts: tuple[Model, dict[str, Any]]) -> None:
    model, batch = parts
    model.train()
    model.train_stages(frozenset({"second"}))
    model.head.loss(model(model.prefix(batch))).backward()
    with_gradient = {
        model.part_of(n) for n, p in model.named_parameters() if p.grad is not None
    }
    assert with_gradient == {"second", "head"}


def test_freezing_drops_gradients(parts: tuple[Model, dict[str, Any]]) -> None:
    """A gradient left over would move a frozen stage at the next step."""
    model, batch = parts
    model.head.loss(model(model.prefix(batch))).backward()
    model.train_stages(frozenset({"third"}))
    for name in ("first", "second"):
        assert all(p.grad is None for p in model.backbone.stages[name].parameters())
    assert all(p.grad is not None for p in model.backbone.stages["third"].parameters())


@pytest.mark.parametrize("point", range(4))
def test_prefix_and_rest_equal_the_whole(
    parts: tuple[Model, dict[str, Any]], point: int
) -> None:
    model, batch = parts
    model.eval()
    with torch.no_grad():
        expected = model.head(model.backbone.run(batch))["logits"]
    model.train_stages(frozenset(STAGES[point:]))
    assert model.freeze_point == point
    # A frozen prefix keeps no graph, whatever its inputs ask for.
    prefix = model.prefix({**batch, "points": batch["points"].requires_grad_()})
    prefix["points"] = batch["points"].detach()
    assert not any(
        v.requires_grad for v in prefix.values() if isinstance(v, torch.Tensor)
    )
    assert ("hidden" in prefix) == (point > 0)
    assert torch.equal(model(prefix)["logits"], expected)


def test_counts(parts: tuple[Model, dict[str, Any]]) -> None:
    model, _ = parts
    # Linear 2 x 8 + 8, twice 8 x 8 + 8, normalisation 8 + 8 each, head 8 x 2 + 2.
    first, other, head = 24 + 16, 72 + 16, 18
    model.train_stages(frozenset({"first"}))
    assert model.counts() == {
        "total": first + 2 * other + head,
        "frozen": 2 * other,
        "trainable": first + head,
    }


def test_a_weight_shared_across_the_freeze_point_is_refused(
    parts: tuple[Model, dict[str, Any]],
) -> None:
    model, _ = parts
    stages = model.backbone.stages
    stages["third"].linear.weight = stages["second"].linear.weight
    for together in (frozenset(STAGES), frozenset(), frozenset({"second", "third"})):
        model.train_stages(together)
    with pytest.raises(UserError, match="share the parameter") as caught:
        model.train_stages(frozenset({"third"}))
    (fault,) = caught.value.faults
    assert "'second' and 'third' together" in fault.fix


def test_a_weight_tied_to_the_head_is_refused_when_its_stage_is_frozen(
    parts: tuple[Model, dict[str, Any]],
) -> None:
    model, _ = parts
    model.head.extra = model.backbone.stages["first"].linear
    model.train_stages(frozenset({"first"}))
    with pytest.raises(UserError, match="'first' and 'head' share"):
        model.train_stages(frozenset({"third"}))


def test_a_parameter_of_no_stage_is_refused(
    parts: tuple[Model, dict[str, Any]],
) -> None:
    model, _ = parts
    model.backbone.scale = torch.nn.Parameter(torch.ones(1))
    with pytest.raises(PluginError, match=r"'backbone\.scale' belongs to no stage"):
        model.train_stages(frozenset())
