"""The conformance suite: what headstart promises, tested on a plugin's tiny variants.

Nothing is downloaded. A test that cannot hold for a plugin is switched off by
overriding it with ``pytest.mark.xfail(reason=…)``, so that the reason is seen.
"""

from __future__ import annotations

import copy
import itertools
import json
import math
import pickle
import random
import subprocess
import sys
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
import pytest
import tomli_w
import torch
from safetensors.torch import save_file

from headstart.assets import load_manifest
from headstart.errors import UserError
from headstart.evaluate import MetricSet
from headstart.fine_tuning import run
from headstart.model import Model
from headstart.optim import build_optimizer, parameter_groups
from headstart.plugins import Registry, load_plugins
from headstart.recipe import load_recipe, read_recipe
from headstart.settings import StrategySettings, TrainSettings
from headstart.specs import resolve
from headstart.strategy import make_plan
from headstart.weights.sources import Weights
from headstart.weights.transfer import load_weights

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from types import ModuleType

    from headstart.heads import Head
    from headstart.specs import BackboneSpec, DataSpec, HeadSpec, MetricSpec
    from headstart.stages import Backbone, State

FEATURE_DIMENSIONS = {"tokens": 3, "map": 4, "volume": 5, "vector": 2, "table": 2}


def tiny_backbone(spec: BackboneSpec, seed: int = 0) -> Backbone:
    """The spec's tiny variant with random parameters."""
    torch.manual_seed(seed)
    settings = resolve(spec.settings)(name=spec.name, **spec.tiny)
    backbone: Backbone = resolve(spec.factory)(settings, None)
    return backbone


def tiny_head(spec: HeadSpec, backbone: Backbone) -> Head:
    settings = resolve(spec.settings)(name=spec.name, **spec.tiny)
    head: Head = resolve(spec.factory)(settings, backbone.features, spec.sample_task)
    return head


def batch_length(state: Mapping[str, Any]) -> int:
    return next(len(v) for v in state.values() if isinstance(v, torch.Tensor))


def sample_batch(backbone_spec: BackboneSpec, head_spec: HeadSpec) -> State:
    """Inputs and targets of one batch."""
    inputs: State = resolve(backbone_spec.sample)(tiny_backbone(backbone_spec))
    targets = resolve(head_spec.sample)(head_spec.sample_task, batch_length(inputs))
    return {**inputs, **targets}


def same(left: Any, right: Any) -> bool:
    """Bit-identical, through nested values."""
    if isinstance(left, torch.Tensor):
        return bool(left.dtype == right.dtype and torch.equal(left, right))
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(
            same(left[k], right[k]) for k in left
        )
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


def _requires_gradient(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return value.requires_grad
    if isinstance(value, dict):
        return any(map(_requires_gradient, value.values()))
    return isinstance(value, (list, tuple)) and any(map(_requires_gradient, value))


def no_head() -> Head:
    """In place of a head where only the backbone is on trial."""
    return cast("Head", torch.nn.Module())


def _backward(loss: torch.Tensor) -> None:
    loss.backward()  # type: ignore[no-untyped-call]


class PluginSuite:
    """Subclass it, set ``plugin`` and ``name``, and run pytest.

    Attributes:
        plugin: The plugin's entry module.
        name: Its entry point's name; all that it registers starts with it.
    """

    plugin: ClassVar[ModuleType]
    name: ClassVar[str]

    @classmethod
    def registry(cls) -> Registry:
        registry = load_plugins()
        info = registry.add(cls.plugin, cls.name)
        assert info.status == "loaded", info.cause
        return registry

    @classmethod
    def _own(cls, kind: str) -> list[Any]:
        specs = getattr(cls.registry(), kind)
        return [s for n, s in sorted(specs.items()) if n.startswith(f"{cls.name}/")]

    @classmethod
    def _pairs(cls) -> list[tuple[BackboneSpec, HeadSpec]]:
        """Every head with every backbone of this plugin whose features it reads."""
        return [
            (backbone, head)
            for head in cls._own("heads")
            for backbone in cls._own("backbones")
            if {f.kind for f in backbone.features} & set(head.needs)
        ]

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        cls = type(self)
        singular = {
            "backbone_spec": "backbones",
            "data_spec": "data",
            "metric_spec": "metrics",
        }
        for argument, kind in singular.items():
            if argument in metafunc.fixturenames:
                specs = cls._own(kind)
                metafunc.parametrize(argument, specs, ids=[s.name for s in specs])
        if "pair" in metafunc.fixturenames:
            pairs = cls._pairs()
            ids = [f"{head.name}+{backbone.name}" for backbone, head in pairs]
            metafunc.parametrize("pair", pairs, ids=ids)
        if "recipe_name" in metafunc.fixturenames:
            metafunc.parametrize("recipe_name", [r.name for r in cls._own("recipes")])

    # The plugin as a whole

    def test_plugin_loads(self) -> None:
        self.registry()

    def test_entry_module_imports_no_torch(self) -> None:
        code = f"import {self.plugin.__name__}, sys; sys.exit('torch' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

    def test_manifest_of_assets_is_valid(self) -> None:
        for asset in load_manifest(self.plugin.__name__).values():
            assert asset.licence, f"{asset.name} states no licence"

    def test_every_head_fits_a_backbone(self) -> None:
        fitting = {head.name for _, head in self._pairs()}
        assert fitting == {head.name for head in self._own("heads")}

    # Backbones: the stage contract (docs/hooks.md)

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
        for cut in self._cuts(backbone_spec):
            model, optimizer, sample = self._training(backbone_spec, cut)
            frozen = model.backbone.stage_names[:cut]
            prefixes = tuple(f"backbone.stages.{name}." for name in frozen)
            before = {
                k: v.clone()
                for k, v in model.state_dict().items()
                if k.startswith(prefixes)
            }
            for _ in range(2):
                model.train()
                _backward(self._feature_loss(model, model.prefix(sample)))
                optimizer.step()
                optimizer.zero_grad()
            after = model.state_dict()
            changed = [k for k, v in before.items() if not torch.equal(v, after[k])]
            assert not changed, f"frozen up to stage {cut}, yet {changed[0]} moved"
            for name in frozen:
                assert not model.backbone.stages[name].training

    def test_prefix_keeps_no_gradients(self, backbone_spec: BackboneSpec) -> None:
        for cut in self._cuts(backbone_spec):
            model, _, sample = self._training(backbone_spec, cut)
            state = model.prefix(sample)
            tensors = [v for v in state.values() if isinstance(v, torch.Tensor)]
            assert not any(tensor.requires_grad for tensor in tensors)

    def test_cached_prefix_gives_the_same_losses(
        self, backbone_spec: BackboneSpec
    ) -> None:
        for cut in self._cuts(backbone_spec)[1:]:
            model, optimizer, sample = self._training(backbone_spec, cut)
            twin, twin_optimizer, _ = self._training(backbone_spec, cut)
            cached = copy.deepcopy(twin.prefix(sample))
            for step in range(2):
                torch.manual_seed(step)
                loss = self._feature_loss(model, model.prefix(sample))
                torch.manual_seed(step)
                twin_loss = self._feature_loss(twin, cached)
                assert torch.equal(loss, twin_loss), f"step {step}, cut at {cut}"
                for each, value in ((optimizer, loss), (twin_optimizer, twin_loss)):
                    if value.requires_grad:
                        _backward(value)
                    each.step()
                    each.zero_grad()

    def test_stages_use_their_own_parameters_alone(
        self, backbone_spec: BackboneSpec
    ) -> None:
        for cut in self._cuts(backbone_spec)[1:]:
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
        model, _, sample = self._training(backbone_spec, 0)
        _backward(self._feature_loss(model, sample))
        plan = make_plan(StrategySettings(), model.backbone.stage_names, 10)
        groups = parameter_groups(model, TrainSettings(), plan, 1e-3)
        grouped = [name for group in groups for name in group["names"]]
        assert sorted(grouped) == sorted(name for name, _ in model.named_parameters())
        outside = [
            n for n in grouped if not n.startswith(("backbone.stages.", "head."))
        ]
        assert not outside, f"{outside[0]} belongs to no stage"
        known = {id(p) for group in groups for p in group["params"]}
        fresh, _, _ = self._training(backbone_spec, 0)
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
        report = load_weights(other, Weights("file:test", None, (path,)))
        assert report.loaded == len(names)
        assert same(dict(other.state_dict()), dict(backbone.state_dict()))

    def test_bf16_is_finite(self, backbone_spec: BackboneSpec) -> None:
        backbone = tiny_backbone(backbone_spec)
        sample = resolve(backbone_spec.sample)(backbone)
        with torch.autocast("cpu", torch.bfloat16):
            state = backbone.run(sample)
        for name in backbone.features:
            assert torch.isfinite(state[name].float()).all()

    # Heads, on every backbone that they fit

    def test_loss_is_finite_and_reaches_every_parameter(
        self, pair: tuple[BackboneSpec, HeadSpec]
    ) -> None:
        batch = sample_batch(*pair)
        backbone = tiny_backbone(pair[0])
        model = Model(backbone, tiny_head(pair[1], backbone)).train()
        loss = model.head.loss(model(model.prefix(batch)))
        assert loss.ndim == 0 and torch.isfinite(loss)
        _backward(loss)
        missing = [n for n, p in model.named_parameters() if p.grad is None]
        assert not missing, f"no gradient reaches {missing[0]}"

    def test_parts_average_to_the_whole(
        self, pair: tuple[BackboneSpec, HeadSpec]
    ) -> None:
        batch = sample_batch(*pair)
        backbone = tiny_backbone(pair[0])
        model = Model(backbone, tiny_head(pair[1], backbone)).eval()
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
        backbone = tiny_backbone(pair[0])
        model = Model(backbone, tiny_head(pair[1], backbone)).eval()
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
        models = []
        for seed in (1, 2):
            backbone = tiny_backbone(pair[0], seed)
            models.append(Model(backbone, tiny_head(pair[1], backbone)).eval())
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
        used = [k for k, v in reduced[0].items() if _requires_gradient(v)]
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
        head = tiny_head(pair[1], tiny_backbone(pair[0]))
        weight = head.weight({key: batch[key] for key in pair[1].targets})
        assert weight.ndim == 0 and weight.is_floating_point()
        assert same(weight, head.weight(batch))

    # Data

    def test_data_yields_what_it_declares(
        self, data_spec: DataSpec, tmp_path: Path
    ) -> None:
        data = self._data(data_spec, tmp_path)
        for split in ("train", "validation", "test"):
            samples = data.samples(split)
            assert len(samples) > 0
            batch = data.collate([samples[0], samples[-1]])
            assert set(batch) <= set(data_spec.yields), "more than it declares"
            sizes = data.sizes(split)
            assert sizes is None or len(sizes) == len(samples)
            json.dumps(data.show(samples[0]))
            assert "id" in samples[0]
        json.dumps([data.task, data.describe()])

    def test_data_is_a_function_of_settings_and_seed(
        self, data_spec: DataSpec, tmp_path: Path
    ) -> None:
        loaded = []
        for index in range(2):
            # Global generators are not its seed.
            torch.manual_seed(index)
            np.random.seed(index)
            random.seed(index)
            loaded.append(self._data(data_spec, tmp_path / str(index)))
        once, again = loaded
        assert once.fingerprint() == again.fingerprint()
        for split in ("train", "validation", "test"):
            first = [data.samples(split)[0] for data in (once, again)]
            assert same(
                *(
                    data.collate([s])
                    for data, s in zip((once, again), first, strict=True)
                )
            )

    def test_splits_share_no_sample(self, data_spec: DataSpec, tmp_path: Path) -> None:
        data = self._data(data_spec, tmp_path)
        ids = [
            s["id"] for n in ("train", "validation", "test") for s in data.samples(n)
        ]
        assert len(set(ids)) == len(ids)

    def test_augmentation_follows_its_generator(
        self, data_spec: DataSpec, tmp_path: Path
    ) -> None:
        data = self._data(data_spec, tmp_path)
        batch = data.collate(list(data.samples("train"))[:4])
        untouched = copy.deepcopy(batch)
        results = [
            data.augment(batch, torch.Generator().manual_seed(3)) for _ in range(2)
        ]
        assert same(*results)
        assert same(batch, untouched), "augment changed the batch that it was given"
        if not data.augments:
            assert same(results[0], untouched)

    def test_data_reaches_worker_processes(
        self, data_spec: DataSpec, tmp_path: Path
    ) -> None:
        data = self._data(data_spec, tmp_path)
        samples = data.samples("train")
        collate = pickle.loads(pickle.dumps(data.collate))
        assert same(collate([samples[0]]), data.collate([samples[0]]))

    # Metrics

    def test_metric_in_parts_equals_one_pass(self, metric_spec: MetricSpec) -> None:
        outputs = resolve(metric_spec.sample)(metric_spec.sample_task, 12)
        values = []
        for cuts in ([0, 12], [0, 2, 9, 12]):
            metrics = MetricSet(
                [metric_spec], metric_spec.sample_task, torch.device("cpu")
            )
            for start, stop in itertools.pairwise(cuts):
                metrics.update({k: v[start:stop] for k, v in outputs.items()})
            values.append(metrics.compute())
        (name,) = values[0]
        assert math.isclose(values[0][name], values[1][name], rel_tol=1e-6)
        assert isinstance(values[0][name], float)

    def test_metric_starts_afresh_after_compute(self, metric_spec: MetricSpec) -> None:
        outputs = resolve(metric_spec.sample)(metric_spec.sample_task, 12)
        metrics = MetricSet([metric_spec], metric_spec.sample_task, torch.device("cpu"))
        values = []
        for _ in range(2):
            metrics.update(outputs)
            values.append(metrics.compute())
        assert values[0] == values[1]

    # Recipes

    def test_recipe_is_valid(self, recipe_name: str) -> None:
        recipe = load_recipe(recipe_name, registry=self.registry())
        assert recipe.name == recipe_name
        assert recipe.summary

    def test_recipe_runs_on_tiny_parts(self, recipe_name: str, tmp_path: Path) -> None:
        """Train two steps, test, report, predict, and read the run back."""
        registry = self.registry()
        tables, _ = read_recipe(recipe_name, registry)
        backbone = registry.backbone(tables["backbone"]["name"])
        data = registry.data_module(tables["data"]["name"])
        tables["backbone"] = {"name": backbone.name, **backbone.tiny}
        (tmp_path / "data").mkdir()
        kind = {k: v for k, v in tables["data"].items() if k == "kind"}
        tables["data"] = {**resolve(data.tiny)(tmp_path / "data"), **kind}
        head = registry.head(tables["head"]["name"])
        tables["head"] = {"name": head.name, **head.tiny}
        tables["train"] = {"max_steps": 2, "batch_size": 4}
        tables["expect"] = {}
        file = tmp_path / "tiny.toml"
        file.write_text(tomli_w.dumps(tables))
        done = run(file, folder=tmp_path / "run")
        assert done.summary["status"] == "done"
        assert all(np.isfinite(v) for v in done.metrics.values())
        assert (tmp_path / "run" / "report.html").stat().st_size > 1000
        again = type(done)(tmp_path / "run").evaluate()
        assert again == pytest.approx(done.metrics, rel=1e-5)

    # What the tests above share

    @staticmethod
    def _cuts(spec: BackboneSpec) -> list[int]:
        return list(range(len(tiny_backbone(spec).stages)))

    @staticmethod
    def _training(
        spec: BackboneSpec, cut: int
    ) -> tuple[Model, torch.optim.Optimizer, State]:
        backbone = tiny_backbone(spec)
        model = Model(backbone, no_head()).train()
        names = backbone.stage_names
        model.train_stages(frozenset(names[cut:]))
        plan = make_plan(StrategySettings(), names, 10)
        optimizer = build_optimizer(model, TrainSettings(), plan, 1e-2)
        return model, optimizer, resolve(spec.sample)(backbone)

    @staticmethod
    def _features(pair: tuple[BackboneSpec, HeadSpec]) -> tuple[Head, State]:
        """A head, and what reaches it behind a frozen backbone."""
        backbone = tiny_backbone(pair[0]).eval()
        with torch.no_grad():
            state = backbone.run(sample_batch(*pair))
        kept = {k: v for k, v in state.items() if k not in backbone.consumed}
        return tiny_head(pair[1], backbone), kept

    @staticmethod
    def _feature_loss(model: Model, state: State) -> torch.Tensor:
        """Some loss that every feature takes part in."""
        state = model.backbone.run(state, model.freeze_point)
        terms = [
            (state[name].float() - 0.5).square().mean()
            for name in model.backbone.features
        ]
        return torch.stack(terms).sum()

    def _data(self, spec: DataSpec, folder: Path) -> Any:
        folder.mkdir(exist_ok=True)
        values = resolve(spec.tiny)(folder)
        settings = resolve(spec.settings)(**values)
        data = resolve(spec.factory)(settings, 0)
        data.load()
        data.prepare(self._preprocessing(spec))
        return data

    def _preprocessing(self, spec: DataSpec) -> Mapping[str, Any]:
        """Of the first backbone that reads what this data yields."""
        for backbone in self._own("backbones"):
            if set(backbone.inputs) <= set(spec.yields):
                return tiny_backbone(backbone).preprocessing
        return {}
