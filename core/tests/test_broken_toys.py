"""The conformance suite catches what it is for: one broken toy for each promise.

Every toy is the healthy one with a single thing changed, run through the suite in a
pytest of its own. Said is which test fails, and with which words.
"""

from __future__ import annotations

import sys
import types
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from headstart.hookspecs import hookimpl
from headstart.model import Model
from headstart.plugins import load_plugins
from headstart.specs import Feature
from headstart.testing import toy
from headstart.testing.toy import backbones, data, heads, metrics

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from headstart.stages import Backbone, State

    Patch = pytest.MonkeyPatch
    Suite = Callable[..., dict[str, str]]

CONFORMANCE = """
from headstart.testing import PluginSuite, toy

class TestToy(PluginSuite):
    plugin = toy
    name = "toy"
"""
SLOW = "not runs_on_tiny_parts and not imports_no_torch"
Layer, build_network = backbones.Layer, backbones.build_network


class Failures:
    """Pytest plugin: what failed, by the test's name, with its message."""

    def __init__(self) -> None:
        self.found: dict[str, str] = {}
        self.count = 0

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.count += report.when == "call"
        if report.failed:
            name = report.nodeid.rpartition("::")[2].partition("[")[0]
            self.found[name] = report.longreprtext


@pytest.fixture
def failures(tmp_path: Path) -> Iterator[Suite]:
    """Run the suite in this process, so that it sees what a test has patched."""

    def run(code: str = CONFORMANCE, only: str = SLOW) -> dict[str, str]:
        path = tmp_path / "test_it.py"
        path.write_text(code)
        load_plugins.cache_clear()
        sys.modules.pop(path.stem, None)
        watch = Failures()
        options = ["--import-mode=importlib", "-c", "/dev/null", "--rootdir"]
        quiet = ["-p", "no:cacheprovider", "-p", "no:terminal"]
        arguments = [str(path), *options, str(tmp_path), *quiet, "-k", only]
        status = pytest.main(arguments, [watch])
        assert status in (0, 1) and watch.count > 0
        return watch.found

    yield run
    load_plugins.cache_clear()


def stages_with(
    patch: Patch, change: Callable[[Backbone], None] | None = None, **layers: Any
) -> None:
    """The toy network with other classes for some of its stages, then changed."""

    def build(settings: Any, folder: Any, task: Any) -> Backbone:
        backbone = build_network(settings, folder, task)
        for name, layer in layers.items():
            old = backbone.stages[name]
            new = layer(
                old.source, old.linear.in_features, old.linear.out_features, 0.0
            )
            new.load_state_dict(old.state_dict(), strict=False)
            backbone.stages[name] = new
        if change:
            change(backbone)
        return backbone

    patch.setattr(backbones, "build_network", build)


def test_the_healthy_toy_passes(failures: Suite) -> None:
    assert failures() == {}


# 1. Slices equal the whole, and the whole equals the upstream library's


class Hoarder(Layer):
    """Keeps what it computed, on the object."""

    def forward(self, state: State) -> State:
        self.last = super().forward(state)["hidden"]
        return {**state, "hidden": self.last}


def test_a_stage_that_looks_at_an_earlier_ones_memory(
    failures: Suite, monkeypatch: Patch
) -> None:
    def spy(backbone: Backbone) -> None:
        first, third = backbone.stages["first"], backbone.stages["third"]

        def forward(state: State) -> State:
            left = getattr(first, "last", torch.zeros(1))
            return Layer.forward(third, {**state, "hidden": state["hidden"] + left})

        third.forward = forward

    stages_with(monkeypatch, spy, first=Hoarder)
    assert "cut at 1" in failures()["test_slices_equal_the_whole"]


def test_a_stage_that_looks_at_a_global(failures: Suite, monkeypatch: Patch) -> None:
    memory: dict[str, torch.Tensor] = {}

    class First(Layer):
        def forward(self, state: State) -> State:
            state = super().forward(state)
            memory["first"] = state["hidden"].detach()
            return state

    class Third(Layer):
        def forward(self, state: State) -> State:
            left = memory["first"][: len(state["hidden"])]
            return super().forward({**state, "hidden": state["hidden"] + left})

    stages_with(monkeypatch, first=First, third=Third)
    assert "cut at 1" in failures()["test_slices_equal_the_whole"]


def test_a_network_that_differs_from_its_reference(
    failures: Suite, monkeypatch: Patch
) -> None:
    class Smooth(Layer):
        def forward(self, state: State) -> State:
            hidden = self.norm(self.linear(state[self.source]))
            return {**state, "hidden": functional.gelu(hidden)}

    stages_with(monkeypatch, second=Smooth)
    found = failures()
    assert found.keys() == {"test_whole_equals_upstream"}
    assert "not close" in found["test_whole_equals_upstream"]


# 2. The frozen part stays as it is


def test_a_buffer_that_moves_in_evaluation(failures: Suite, monkeypatch: Patch) -> None:
    class Counting(Layer):
        def forward(self, state: State) -> State:
            after = super().forward(state)
            if not self.training:
                self.norm.running_mean.add_(0.1)
            return after

    stages_with(monkeypatch, first=Counting)
    message = failures()["test_frozen_part_stays_bit_identical"]
    assert "backbone.stages.first.norm.running_mean moved" in message


def test_a_stage_that_never_stops_training(failures: Suite, monkeypatch: Patch) -> None:
    class Restless(Layer):
        def train(self, mode: bool = True) -> Restless:
            super().train(True)
            return self

    stages_with(monkeypatch, first=Restless)
    message = failures()["test_frozen_part_stays_bit_identical"]
    assert "first.norm.running_mean moved" in message


def test_a_stage_that_trains_though_it_is_frozen(
    failures: Suite, monkeypatch: Patch
) -> None:
    class Learner(Layer):
        def forward(self, state: State) -> State:
            if torch.is_grad_enabled() or not self.linear.weight.requires_grad:
                with torch.no_grad():
                    self.linear.weight.add_(1e-3)
            return super().forward(state)

    stages_with(monkeypatch, second=Learner)
    message = failures()["test_frozen_part_stays_bit_identical"]
    assert "second.linear.weight moved" in message


# 3. Every parameter is in one group, from step 0 on


def test_a_parameter_outside_every_stage(failures: Suite, monkeypatch: Patch) -> None:
    def add(backbone: Backbone) -> None:
        backbone.scale = nn.Parameter(torch.ones(1))

    stages_with(monkeypatch, add)
    message = failures()["test_every_parameter_is_in_one_group"]
    assert "'backbone.scale' belongs to no stage" in message


def test_a_parameter_made_at_the_first_forward(
    failures: Suite, monkeypatch: Patch
) -> None:
    class Late(Layer):
        def forward(self, state: State) -> State:
            if not hasattr(self, "scale"):
                self.scale = nn.Parameter(torch.ones(1))
            after = super().forward(state)
            return {**after, "hidden": after["hidden"] * self.scale}

    stages_with(monkeypatch, second=Late)
    message = failures()["test_every_parameter_is_in_one_group"]
    assert "made after step 0: ['backbone.stages.second.scale']" in message


# 4. Cached and uncached training are the same


def test_a_prefix_that_is_random_in_evaluation(
    failures: Suite, monkeypatch: Patch
) -> None:
    class Noisy(Layer):
        def forward(self, state: State) -> State:
            after = super().forward(state)
            return {**after, "hidden": functional.dropout(after["hidden"], 0.5)}

    stages_with(monkeypatch, first=Noisy)
    message = failures()["test_cached_prefix_gives_the_same_losses"]
    assert "cut at 1" in message


def test_a_prefix_that_counts_its_calls(failures: Suite, monkeypatch: Patch) -> None:
    class Growing(Layer):
        calls = 0

        def forward(self, state: State) -> State:
            self.calls += 1
            after = super().forward(state)
            return {**after, "hidden": after["hidden"] * self.calls}

    stages_with(monkeypatch, first=Growing)
    message = failures()["test_cached_prefix_gives_the_same_losses"]
    assert "step 1, cut at 1" in message


# 5. Parameters shared across the freeze point


def test_a_stage_that_uses_a_weight_it_does_not_own(
    failures: Suite, monkeypatch: Patch
) -> None:
    def borrow(backbone: Backbone) -> None:
        second, third = backbone.stages["second"], backbone.stages["third"]

        def forward(state: State) -> State:
            hidden = functional.linear(state["hidden"], second.linear.weight)
            return Layer.forward(third, {**state, "hidden": hidden})

        third.forward = forward

    stages_with(monkeypatch, borrow)
    message = failures()["test_stages_use_their_own_parameters_alone"]
    assert "a stage after second reads a parameter of a stage before it" in message


def tie(backbone: Backbone) -> None:
    stages = backbone.stages
    stages["third"].linear.weight = stages["second"].linear.weight


def test_a_model_that_lets_shared_weights_pass(
    failures: Suite, monkeypatch: Patch
) -> None:
    stages_with(monkeypatch, tie)
    monkeypatch.setattr(Model, "_refuse_shared", lambda self, stages, fixed: None)
    message = failures()["test_shared_parameters_are_refused"]
    assert "DID NOT RAISE" in message


def test_shared_weights_that_are_refused_are_no_fault_of_that_test(
    failures: Suite, monkeypatch: Patch
) -> None:
    stages_with(monkeypatch, tie)
    assert "test_shared_parameters_are_refused" not in failures()


# Beside the five


def test_a_stage_that_changes_its_input(failures: Suite, monkeypatch: Patch) -> None:
    class Rude(Layer):
        def forward(self, state: State) -> State:
            state["hidden"] = super().forward(state)["hidden"]
            return state

    stages_with(monkeypatch, second=Rude)
    message = failures()["test_stages_leave_their_input_alone"]
    assert "second changed the state that it was given" in message


def test_a_stage_that_changes_a_tensor_in_place(
    failures: Suite, monkeypatch: Patch
) -> None:
    class Inplace(Layer):
        def forward(self, state: State) -> State:
            after = super().forward(state)
            with torch.no_grad():
                state["hidden"].mul_(0.5)
            return after

    stages_with(monkeypatch, second=Inplace)
    message = failures()["test_stages_leave_their_input_alone"]
    assert "second changed the state that it was given" in message


def test_features_that_are_not_as_declared(failures: Suite, monkeypatch: Patch) -> None:
    def lie(backbone: Backbone) -> None:
        backbone.features["hidden"] = Feature("hidden", "vector", 5)

    stages_with(monkeypatch, lie)
    assert "test_features_are_as_declared" in failures()


def test_stages_with_one_upstream_name(failures: Suite, monkeypatch: Patch) -> None:
    def confuse(backbone: Backbone) -> None:
        backbone.upstream["stages.third."] = "1."

    stages_with(monkeypatch, confuse)
    message = failures()["test_weights_go_out_and_come_back"]
    assert "two tensors have one upstream name" in message


def test_a_head_that_weighs_wrongly(failures: Suite, monkeypatch: Patch) -> None:
    def one(self: heads.Classifier, batch: State) -> torch.Tensor:
        return torch.ones(())

    monkeypatch.setattr(heads.Classifier, "weight", one)
    assert failures().keys() == {"test_parts_average_to_the_whole"}


def test_a_head_that_sums_its_losses(failures: Suite, monkeypatch: Patch) -> None:
    def summed(self: heads.Classifier, state: State) -> torch.Tensor:
        return functional.cross_entropy(
            state["logits"], state["labels"], reduction="sum"
        )

    monkeypatch.setattr(heads.Classifier, "loss", summed)
    assert failures().keys() == {"test_parts_average_to_the_whole"}


def test_a_head_with_an_idle_parameter(failures: Suite, monkeypatch: Patch) -> None:
    class Idle(heads.Classifier):
        def __init__(self, width: int, labels: list[str]) -> None:
            super().__init__(width, labels)
            self.idle = nn.Parameter(torch.zeros(1))

    monkeypatch.setattr(heads, "Classifier", Idle)
    message = failures()["test_loss_is_finite_and_reaches_every_parameter"]
    assert "no gradient reaches head.idle" in message


def test_a_head_that_needs_targets_to_predict(
    failures: Suite, monkeypatch: Patch
) -> None:
    outputs = heads.Classifier.outputs

    def strict(self: heads.Classifier, state: State) -> dict[str, Any]:
        return {**outputs(self, state), "target": state["labels"]}

    monkeypatch.setattr(heads.Classifier, "outputs", strict)
    message = failures()["test_outputs_and_predictions_have_a_row_per_sample"]
    assert "KeyError" in message


def test_a_metric_that_forgets_earlier_batches(
    failures: Suite, monkeypatch: Patch
) -> None:
    def update(self: metrics.Accuracy, prediction: Any, target: Any) -> None:
        self.right, self.count = int((prediction == target).sum()), len(target)

    monkeypatch.setattr(metrics.Accuracy, "update", update)
    assert failures().keys() == {"test_metric_in_parts_equals_one_pass"}


def test_a_metric_that_averages_averages(failures: Suite, monkeypatch: Patch) -> None:
    def update(self: metrics.Accuracy, prediction: Any, target: Any) -> None:
        self.right += float((prediction == target).float().mean())
        self.count += 1

    monkeypatch.setattr(metrics.Accuracy, "update", update)
    assert failures().keys() == {"test_metric_in_parts_equals_one_pass"}


def test_a_metric_that_never_forgets(failures: Suite, monkeypatch: Patch) -> None:
    def reset(self: metrics.Accuracy) -> None:
        self.right += 1

    monkeypatch.setattr(metrics.Accuracy, "reset", reset)
    assert "test_metric_starts_afresh_after_compute" in failures()


def test_a_metric_tried_on_what_it_does_not_measure(
    failures: Suite, monkeypatch: Patch
) -> None:
    (spec,) = toy.register_metrics()
    wrong = replace(spec, kinds=("boxes",))
    monkeypatch.setattr(toy, "register_metrics", hookimpl(lambda: [wrong]))
    assert "test_metric_is_tried_on_what_it_measures" in failures()


# Data


def test_a_task_of_another_kind_than_the_settings(
    failures: Suite, monkeypatch: Patch
) -> None:
    load = data.Ring.load

    def lie(self: data.Ring) -> None:
        load(self)
        self.task = {**self.task, "kind": "multi-label"}

    monkeypatch.setattr(data.Ring, "load", lie)
    assert "test_data_yields_what_it_declares" in failures()


def with_noise(patch: Patch) -> None:
    tiny = {"name": "toy/ring", "count": 60, "noise": 0.1}
    patch.setattr(data, "tiny_ring", lambda folder: dict(tiny))


def test_healthy_augmentation_passes(failures: Suite, monkeypatch: Patch) -> None:
    with_noise(monkeypatch)
    assert failures() == {}


def test_augmentation_that_changes_its_input(
    failures: Suite, monkeypatch: Patch
) -> None:
    def augment(self: data.Ring, batch: State, generator: torch.Generator) -> State:
        batch["points"] += torch.randn(batch["points"].shape, generator=generator)
        return batch

    with_noise(monkeypatch)
    monkeypatch.setattr(data.Ring, "augment", augment)
    found = failures()
    assert found.keys() == {"test_augmentation_follows_its_generator"}


def test_augmentation_with_randomness_of_its_own(
    failures: Suite, monkeypatch: Patch
) -> None:
    def augment(self: data.Ring, batch: State, generator: torch.Generator) -> State:
        return {**batch, "points": batch["points"] + torch.randn(1)}

    with_noise(monkeypatch)
    monkeypatch.setattr(data.Ring, "augment", augment)
    found = failures()
    assert found.keys() == {"test_augmentation_follows_its_generator"}


def test_splits_that_overlap(failures: Suite, monkeypatch: Patch) -> None:
    load = data.Ring.load

    def leak(self: data.Ring) -> None:
        load(self)
        self._splits["train"] += self._splits["test"][:1]

    monkeypatch.setattr(data.Ring, "load", leak)
    assert failures().keys() == {"test_splits_share_no_sample"}


def test_data_that_is_another_every_time(failures: Suite, monkeypatch: Patch) -> None:
    load = data.Ring.load

    def shuffled(self: data.Ring) -> None:
        load(self)
        self._splits["train"][0]["point"] = torch.randn(2).double().numpy()

    monkeypatch.setattr(data.Ring, "load", shuffled)
    found = failures()
    assert found.keys() == {"test_data_is_a_function_of_settings_and_seed"}


def test_a_batch_with_more_than_was_declared(
    failures: Suite, monkeypatch: Patch
) -> None:
    collate = data.Ring.collate

    def generous(self: data.Ring, samples: Any) -> State:
        return {**collate(self, samples), "extra": len(samples)}

    monkeypatch.setattr(data.Ring, "collate", generous)
    message = failures()["test_data_yields_what_it_declares"]
    assert "more than it declares" in message


# The entry module


BROKEN_ENTRY = """
from headstart.hookspecs import HOOK_API, hookimpl
from headstart.testing import PluginSuite
import entry

class TestEntry(PluginSuite):
    plugin = entry
    name = "entry"
"""


@pytest.mark.parametrize("line", ["import json", "import torch"])
def test_an_entry_module_that_imports_torch(
    failures: Suite, tmp_path: Path, monkeypatch: Patch, line: str
) -> None:
    (tmp_path / "entry.py").write_text(
        f"from headstart.hookspecs import HOOK_API\n{line}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "entry", raising=False)
    found = failures(BROKEN_ENTRY, "imports_no_torch or test_plugin_loads")
    wrong = {"test_entry_module_imports_no_torch"} if "torch" in line else set()
    assert found.keys() == wrong


def test_the_changes_are_gone() -> None:
    """What the tests above patch is put back: they share the toy's modules."""
    assert isinstance(toy, types.ModuleType)
    assert backbones.build_network is build_network
