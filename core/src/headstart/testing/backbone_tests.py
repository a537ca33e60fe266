"""Backbones: the stage contract (docs/hooks.md)."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save_file

from headstart.errors import UserError
from headstart.model import Model
from headstart.optim import parameter_groups
from headstart.settings import StrategySettings, TrainSettings
from headstart.specs import resolve
from headstart.strategy import make_plan
from headstart.testing.parts import (
    OwnParts,
    backward,
    cuts,
    feature_loss,
    no_head,
    same,
    tiny_backbone,
    training,
)
from headstart.weights.sources import Weights
from headstart.weights.transfer import load_weights

if TYPE_CHECKING:
    from pathlib import Path

    from headstart.specs import BackboneSpec

FEATURE_DIMENSIONS = {
    "tokens": 3,
    "logits": 3,
    "map": 4,
    "volume": 5,
    "vector": 2,
    "table": 2,
}


class BackboneTests(OwnParts):
    """Each test runs on every backbone of the plugin, most at every freeze point."""

    def test_slices_equal_the_whole(self, backbone_spec: BackboneSpec) -> None:
        backbone = tiny_backbone(backbone_spec).eval()
        sample = resolve(backbone_spec.sample)(backbone)
        with torch.no_grad():
            whole = backbone.run(sample)
            for cut in range(len(backbone.stages) + 1):
                # A copy, as from a cache: nothing may hang on to the tensors' identity.
                middle = copy.deepcopy(backbone.run(sample, 0, cut))
                fresh = tiny_backbone(backbone_spec).eval()
                fresh.load_state_dict(backbone.state_dict())
                # What a stage left outside the state is now another network's.
                tiny_backbone(backbone_spec, seed=1).eval().run(sample)
                parts = fresh.run(middle, cut)
                for name in backbone.features:
                    assert same(parts[name], whole[name]), f"{name}, cut at {cut}"

    def test_whole_equals_upstream(self, backbone_spec: BackboneSpec) -> None:
        if not backbone_spec.reference:
            pytest.skip("no upstream library has this network")
        backbone = tiny_backbone(backbone_spec).eval()
        sample = resolve(backbone_spec.sample)(backbone)
        with torch.no_grad():
            ours = backbone.run(sample)
            expected = resolve(backbone_spec.reference)(backbone, sample)
        assert expected
        for name, value in expected.items():
            torch.testing.assert_close(ours[name], value, rtol=1e-5, atol=1e-5)

    def test_stages_leave_their_input_alone(self, backbone_spec: BackboneSpec) -> None:
        backbone = tiny_backbone(backbone_spec).eval()
        state = resolve(backbone_spec.sample)(backbone)
        for name, stage in backbone.stages.items():
            before = copy.deepcopy(state)
            after = stage(state)
            assert same(state, before), f"{name} changed the state that it was given"
            state = {
                k: v.detach() if isinstance(v, torch.Tensor) else v
                for k, v in after.items()
            }

    def test_features_are_as_declared(self, backbone_spec: BackboneSpec) -> None:
        backbone = tiny_backbone(backbone_spec).eval()
        if backbone_spec.stages:
            assert backbone.stage_names == backbone_spec.stages
        sample = resolve(backbone_spec.sample)(backbone)
        assert set(backbone_spec.inputs) <= set(sample)
        state = backbone.run(sample)
        assert set(backbone.features) == {f.name for f in backbone_spec.features}
        for declared in backbone_spec.features:
            feature, value = backbone.features[declared.name], state[declared.name]
            assert value.ndim == FEATURE_DIMENSIONS[feature.kind]
            channels = value.shape[1 if feature.kind in ("map", "volume") else -1]
            assert channels == feature.channels

    def test_frozen_part_stays_bit_identical(self, backbone_spec: BackboneSpec) -> None:
        for cut in cuts(backbone_spec):
            model, optimizer, sample = training(backbone_spec, cut)
            frozen = model.backbone.stage_names[:cut]
            prefixes = tuple(f"backbone.stages.{name}." for name in frozen)
            before = {
                k: v.clone()
                for k, v in model.state_dict().items()
                if k.startswith(prefixes)
            }
            for _ in range(2):
                model.train()
                backward(feature_loss(model, model.prefix(sample)))
                optimizer.step()
                optimizer.zero_grad()
            after = model.state_dict()
            changed = [k for k, v in before.items() if not torch.equal(v, after[k])]
            assert not changed, f"frozen up to stage {cut}, yet {changed[0]} moved"
            for name in frozen:
                assert not model.backbone.stages[name].training

    def test_prefix_keeps_no_gradients(self, backbone_spec: BackboneSpec) -> None:
        for cut in cuts(backbone_spec):
            model, _, sample = training(backbone_spec, cut)
            state = model.prefix(sample)
            tensors = [v for v in state.values() if isinstance(v, torch.Tensor)]
            assert not any(tensor.requires_grad for tensor in tensors)

    def test_cached_prefix_gives_the_same_losses(
        self, backbone_spec: BackboneSpec
    ) -> None:
        for cut in cuts(backbone_spec)[1:]:
            model, optimizer, sample = training(backbone_spec, cut)
            twin, twin_optimizer, _ = training(backbone_spec, cut)
            cached = copy.deepcopy(twin.prefix(sample))
            for step in range(2):
                torch.manual_seed(step)
                loss = feature_loss(model, model.prefix(sample))
                torch.manual_seed(step)
                twin_loss = feature_loss(twin, cached)
                assert torch.equal(loss, twin_loss), f"step {step}, cut at {cut}"
                for each, value in ((optimizer, loss), (twin_optimizer, twin_loss)):
                    if value.requires_grad:
                        backward(value)
                    each.step()
                    each.zero_grad()

    def test_stages_use_their_own_parameters_alone(
        self, backbone_spec: BackboneSpec
    ) -> None:
        for cut in cuts(backbone_spec)[1:]:
            backbone = tiny_backbone(backbone_spec).eval()
            sample = resolve(backbone_spec.sample)(backbone)
            with torch.no_grad():
                middle = backbone.run(sample, 0, cut)
                expected = backbone.run(middle, cut)
                for stage in list(backbone.stages.values())[:cut]:
                    for parameter in stage.parameters():
                        parameter.add_(1.0)
                after = backbone.run(middle, cut)
            for name in backbone.features:
                assert same(after[name], expected[name]), (
                    f"a stage after {backbone.stage_names[cut - 1]} reads a parameter "
                    "of a stage before it"
                )

    def test_consumed_entries_are_for_the_first_stage(
        self, backbone_spec: BackboneSpec
    ) -> None:
        backbone = tiny_backbone(backbone_spec).eval()
        sample = resolve(backbone_spec.sample)(backbone)
        with torch.no_grad():
            whole = backbone.run(sample)
            middle = backbone.run(sample, 0, 1)
            for key in backbone.consumed:
                middle.pop(key, None)
            rest = backbone.run(middle, 1)
        for name in backbone.features:
            assert same(rest[name], whole[name])

    def test_every_parameter_is_in_one_group(self, backbone_spec: BackboneSpec) -> None:
        model, _, sample = training(backbone_spec, 0)
        backward(feature_loss(model, sample))
        plan = make_plan(StrategySettings(), model.backbone.stage_names, 10)
        groups = parameter_groups(model, TrainSettings(), plan, 1e-3)
        grouped = [name for group in groups for name in group["names"]]
        assert sorted(grouped) == sorted(name for name, _ in model.named_parameters())
        outside = [
            n for n in grouped if not n.startswith(("backbone.stages.", "head."))
        ]
        assert not outside, f"{outside[0]} belongs to no stage"
        known = {id(p) for group in groups for p in group["params"]}
        fresh, _, _ = training(backbone_spec, 0)
        built = {name for name, _ in fresh.named_parameters()}
        late = set(grouped) - built
        assert known and not late, f"made after step 0: {sorted(late)}"

    def test_shared_parameters_are_refused(self, backbone_spec: BackboneSpec) -> None:
        backbone = tiny_backbone(backbone_spec)
        names = backbone.stage_names
        owners: dict[int, set[int]] = {}
        for index, stage in enumerate(backbone.stages.values()):
            for parameter in stage.parameters():
                owners.setdefault(parameter.data_ptr(), set()).add(index)
        model = Model(backbone, no_head())
        for cut in range(len(names) + 1):
            torn = [s for s in owners.values() if min(s) < cut <= max(s)]
            if torn:
                with pytest.raises(UserError, match="share"):
                    model.train_stages(frozenset(names[cut:]))
            else:
                model.train_stages(frozenset(names[cut:]))

    def test_weights_go_out_and_come_back(
        self, backbone_spec: BackboneSpec, tmp_path: Path
    ) -> None:
        backbone = tiny_backbone(backbone_spec, seed=1)
        names = [backbone.upstream_name(key) for key in backbone.state_dict()]
        assert len(set(names)) == len(names), "two tensors have one upstream name"
        path = tmp_path / "model.safetensors"
        tensors = backbone.upstream_state_dict()
        save_file({k: v.clone().contiguous() for k, v in tensors.items()}, path)
        other = tiny_backbone(backbone_spec, seed=2)
        rows = {backbone.upstream_name(k): (*v,) for k, v in backbone.rows.items()}
        report = load_weights(other, Weights("file:test", None, (path,), rows=rows))
        assert report.loaded == len(names)
        assert same(dict(other.state_dict()), dict(backbone.state_dict()))

    def test_bf16_is_finite(self, backbone_spec: BackboneSpec) -> None:
        backbone = tiny_backbone(backbone_spec)
        sample = resolve(backbone_spec.sample)(backbone)
        with torch.autocast("cpu", torch.bfloat16):
            state = backbone.run(sample)
        for name in backbone.features:
            assert torch.isfinite(state[name].float()).all()
