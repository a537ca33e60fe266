"""Heads, on every backbone that they fit."""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING

import torch

from headstart.testing.parts import (
    OwnParts,
    backward,
    batch_length,
    requires_gradient,
    same,
    sample_batch,
    tiny_model,
)

if TYPE_CHECKING:
    from headstart.heads import Head
    from headstart.specs import BackboneSpec, HeadSpec
    from headstart.stages import State


class HeadTests(OwnParts):
    """Each test runs on every pair of a head and a backbone that fit."""

    def test_loss_is_finite_and_reaches_every_parameter(
        self, pair: tuple[BackboneSpec, HeadSpec]
    ) -> None:
        batch = sample_batch(*pair)
        model = tiny_model(pair).train()
        loss = model.head.loss(model(model.prefix(batch)))
        assert loss.ndim == 0 and torch.isfinite(loss)
        backward(loss)
        missing = [n for n, p in model.named_parameters() if p.grad is None]
        assert not missing, f"no gradient reaches {missing[0]}"

    def test_parts_average_to_the_whole(
        self, pair: tuple[BackboneSpec, HeadSpec]
    ) -> None:
        batch = sample_batch(*pair)
        model = tiny_model(pair).eval()
        with torch.no_grad():
            whole = model.head.loss(model(model.prefix(batch)))
            total = model.head.weight(batch)
            length = batch_length(batch)
            parts = []
            for piece in (slice(0, 1), slice(1, length)):
                part = {k: v[piece] for k, v in batch.items()}
                loss = model.head.loss(model(model.prefix(part)))
                parts.append(loss * model.head.weight(part))
        torch.testing.assert_close(sum(parts) / total, whole, rtol=1e-4, atol=1e-5)

    def test_outputs_and_predictions_have_a_row_per_sample(
        self, pair: tuple[BackboneSpec, HeadSpec]
    ) -> None:
        batch = sample_batch(*pair)
        model = tiny_model(pair).eval()
        with torch.no_grad():
            outputs = model.head.outputs(model(model.prefix(batch)))
            length = batch_length(batch)
            assert {key: len(value) for key, value in outputs.items()} == dict.fromkeys(
                outputs, length
            )
            unlabelled = {k: v for k, v in batch.items() if k not in pair[1].targets}
            predictions = model.head.decode(
                model.head.outputs(model(model.prefix(unlabelled)))
            )
        assert len(predictions) == length
        json.dumps(predictions)

    def test_model_saves_and_loads_with_its_head(
        self, pair: tuple[BackboneSpec, HeadSpec]
    ) -> None:
        batch = sample_batch(*pair)
        models = [tiny_model(pair, seed).eval() for seed in (1, 2)]
        models[1].load_state_dict(models[0].state_dict(), strict=True)
        with torch.no_grad():
            first, second = (m.head.outputs(m(m.prefix(batch))) for m in models)
        assert same(first, second)

    def test_reduction_is_a_function_of_the_state(
        self, pair: tuple[BackboneSpec, HeadSpec]
    ) -> None:
        """Without chance and without a parameter: it is computed once and cached."""
        head, state = self._features(pair)
        head.train()
        reduced = []
        for seed in (1, 2):
            torch.manual_seed(seed)
            reduced.append(head.reduce(copy.deepcopy(state)))
        assert same(*reduced), "reduce() gives something else each time"
        used = [k for k, v in reduced[0].items() if requires_gradient(v)]
        assert not used, f"a parameter of the head takes part in {used[0]!r}"

    def test_head_reads_what_its_reduction_leaves(
        self, pair: tuple[BackboneSpec, HeadSpec]
    ) -> None:
        head, state = self._features(pair)
        head.eval()
        with torch.no_grad():
            reduced = head.reduce(dict(state))
            alone = head(dict(reduced))
            beside = head({**state, **reduced})
            assert same(head.outputs(alone), head.outputs(beside))
            assert same(head.loss(alone), head.loss(beside))

    def test_weight_reads_targets_alone(
        self, pair: tuple[BackboneSpec, HeadSpec]
    ) -> None:
        batch = sample_batch(*pair)
        head = tiny_model(pair).head
        weight = head.weight({key: batch[key] for key in pair[1].targets})
        assert weight.ndim == 0 and weight.is_floating_point()
        assert same(weight, head.weight(batch))

    @staticmethod
    def _features(pair: tuple[BackboneSpec, HeadSpec]) -> tuple[Head, State]:
        """A head, and what reaches it behind a frozen backbone."""
        model = tiny_model(pair)
        backbone = model.backbone.eval()
        with torch.no_grad():
            state = backbone.run(sample_batch(*pair))
        kept = {k: v for k, v in state.items() if k not in backbone.consumed}
        return model.head, kept
