"""LoRA as a strategy: what trains, what stays, what opens in peft."""

from __future__ import annotations

import copy
import json
import re
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from headstart import adapters
from headstart.checkpoint import open_checkpoint
from headstart.errors import UserError
from headstart.fine_tuning import run
from headstart.runs import Run
from headstart.settings import LoraSettings
from headstart.specs import Feature
from headstart.stages import Backbone

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

peft = pytest.importorskip("peft", reason="adapters need headstart[lora]")
pytestmark = [
    pytest.mark.usefixtures("registry"),
    # peft asks the hub for the configuration of the base model that it is told.
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),
]

QUICK: dict[str, Any] = {
    "data.count": 100,
    "train.batch_size": 10,
    "train.epochs": 2,
    "train.learning_rate": 0.05,
    "strategy.name": "lora",
    "strategy.lora.rank": 2,
}


class Step(nn.Module):
    """A stage: a linear layer and a gate, as an upstream library may name them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.gate = nn.Linear(width, width, bias=False)

    def forward(self, state: dict[str, Any]) -> dict[str, Any]:
        hidden = state["hidden"]
        return {**state, "hidden": self.dense(hidden) * self.gate(hidden).sigmoid()}


class Upstream(nn.Module):
    """The library's own model, to which peft's adapters are to fit."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            copy.deepcopy(stage) for stage in backbone.stages.values()
        )

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        state = {"hidden": hidden}
        for block in self.blocks:
            state = block(state)
        return state["hidden"]


def backbone(count: int = 3, width: int = 6) -> Backbone:
    torch.manual_seed(0)
    return Backbone(
        {f"step{i}": Step(width) for i in range(count)},
        features=[Feature("hidden", "vector", width)],
        upstream={f"stages.step{i}.": f"blocks.{i}." for i in range(count)},
    )


def disturb(network: Backbone) -> None:
    """Give the adapters values, as training would."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if ".lora_" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))


def hidden(network: Backbone, value: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = network.eval()({"hidden": value})["hidden"]
    return result


INPUT = torch.linspace(-1, 1, 24).reshape(4, 6)


# Where adapters go


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, ["0.dense", "0.gate", "1.dense", "1.gate", "2.dense", "2.gate"]),
        ({"targets": ["gate"]}, ["0.gate", "1.gate", "2.gate"]),
        ({"targets": ["gate"], "stages": ["step1"]}, ["1.gate"]),
        ({"targets": ["blocks.2.dense", "step0.gate"]}, ["0.gate", "2.dense"]),
    ],
)
def test_targets_by_stage_and_name(
    settings: dict[str, Any], expected: list[str]
) -> None:
    network = backbone()
    adapters.attach(network, LoraSettings(**settings))
    assert list(network.adapted) == [f"stages.step{name}" for name in expected]
    assert network.adapted_stages == tuple(
        dict.fromkeys(f"step{name[0]}" for name in expected)
    )


def test_fresh_adapters_change_nothing() -> None:
    network = backbone()
    before = hidden(network, INPUT)
    adapters.attach(network, LoraSettings())
    assert torch.equal(hidden(network, INPUT), before)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"targets": ["gaet"]}, "no linear layer is called 'gaet'.*did you mean 'gate"),
        ({"stages": ["stpe1"]}, "no stage 'stpe1'.*did you mean 'step1'"),
    ],
)
def test_a_misspelt_target_names_the_nearest(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError) as caught:
        adapters.attach(backbone(), LoraSettings(**settings))
    assert re.search(message, str(caught.value), re.DOTALL)


def test_a_backbone_of_convolutions_names_other_strategies() -> None:
    class Convolution(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

    backbone = Backbone({"stem": Convolution()}, features=[], upstream={"stages.": ""})
    with pytest.raises(UserError) as caught:
        adapters.attach(backbone, LoraSettings())
    (fault,) = caught.value.faults
    assert fault.what == "these stages have only convolutions"
    assert 'strategy.name="layer-retraining"' in fault.fix


# Arithmetic


def test_an_adapter_adds_the_scaled_product() -> None:
    """Hu et al. 2022, equation 3, and the scale of rsLoRA (Kalajdzievski 2023)."""
    for rslora, scale in ((False, 6 / 4), (True, 6 / 2)):
        network = backbone(count=1)
        settings = {"rank": 4, "alpha": 6.0, "targets": ["dense"], "rslora": rslora}
        adapters.attach(network, LoraSettings(**settings))
        disturb(network)
        stage = network.stages["step0"]
        a = stage.dense.lora_A.default.weight
        b = stage.dense.lora_B.default.weight
        base = stage.dense.base_layer
        weight = base.weight + scale * b @ a
        expected = INPUT @ weight.T + base.bias
        torch.testing.assert_close(stage.dense(INPUT), expected)


@pytest.mark.parametrize("dora", [False, True])
def test_merged_equals_adapted(dora: bool) -> None:
    network = backbone()
    names = set(network.state_dict())
    adapters.attach(network, LoraSettings(dora=dora))
    disturb(network)
    expected = hidden(network, INPUT)
    adapters.merge(network)
    assert set(network.state_dict()) == names and not network.adapted
    torch.testing.assert_close(hidden(network, INPUT), expected)


# Files


@pytest.mark.parametrize("dora", [False, True])
def test_saved_adapters_open_in_peft(tmp_path: Path, dora: bool) -> None:
    network = backbone()
    plain = Upstream(network)
    settings = LoraSettings(rank=3, dora=dora, targets=("gate",), stages=("step1",))
    adapters.attach(network, settings)
    disturb(network)
    adapters.save(network, settings, tmp_path, "hf:org/model@abc")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "org/model"
    assert config["revision"] == "abc"
    opened = peft.PeftModel.from_pretrained(plain, tmp_path)
    with torch.no_grad():
        theirs = opened(INPUT)
    torch.testing.assert_close(theirs, hidden(network, INPUT))


def peft_adapter(folder: Path, base: str = "", **varying: Any) -> torch.Tensor:
    """An adapter as peft writes it; returns what its model gives."""
    torch.manual_seed(2)
    config = {"r": 2, "lora_alpha": 5, "target_modules": ["dense"], **varying}
    upstream = Upstream(backbone())
    upstream.name_or_path = base
    model = peft.get_peft_model(upstream, peft.LoraConfig(**config))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
        result: torch.Tensor = model.eval()(INPUT)
    model.save_pretrained(folder)
    return result


def test_a_run_starts_from_an_adapter_of_peft(tmp_path: Path) -> None:
    expected = peft_adapter(tmp_path, base="org/model")
    settings = LoraSettings(adapter=str(tmp_path))
    full = adapters.completed(settings, "hf:org/model@1234")
    assert (full.rank, full.alpha, full.targets) == (2, 5.0, ("dense",))
    network = backbone()
    adapters.attach(network, full)
    adapters.load(network, full)
    torch.testing.assert_close(hidden(network, INPUT), expected)


def test_an_adapter_of_another_model_is_refused_with_both_names(tmp_path: Path) -> None:
    peft_adapter(tmp_path, base="org/other")
    settings = LoraSettings(adapter=str(tmp_path))
    with pytest.raises(
        UserError, match=r"'org/other', backbone.weights is 'hf:org/model'"
    ):
        adapters.completed(settings, "hf:org/model")
    named = LoraSettings(adapter=str(tmp_path), base="org/other")
    assert adapters.completed(named, "file:copy").rank == 2


def test_settings_that_contradict_the_adapter_are_named(tmp_path: Path) -> None:
    peft_adapter(tmp_path)
    settings = LoraSettings(adapter=str(tmp_path), rank=4, alpha=9.0)
    with pytest.raises(UserError) as caught:
        adapters.completed(settings, "none")
    assert "rank is 4, the adapter's is 2" in str(caught.value)
    assert "alpha is 9.0, the adapter's is 5" in str(caught.value)


def test_an_adapter_with_other_layers_is_refused(tmp_path: Path) -> None:
    peft_adapter(tmp_path)
    full = adapters.completed(LoraSettings(adapter=str(tmp_path)), "none")
    wide = backbone(width=8)
    adapters.attach(wide, full)
    with pytest.raises(UserError, match=r"\(2, 6\) in the adapter, \(2, 8\) here"):
        adapters.load(wide, full)
    tensors = load_file(tmp_path / adapters.TENSORS)
    renamed = {name.replace("dense", "dens"): value for name, value in tensors.items()}
    save_file(renamed, tmp_path / adapters.TENSORS)
    network = backbone()
    adapters.attach(network, full)
    with pytest.raises(UserError, match=r"'blocks.0.dens.lora_A.weight' has no place"):
        adapters.load(network, full)


def test_what_is_no_plain_lora_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no adapter"):
        adapters.completed(LoraSettings(adapter=str(tmp_path / "gone")), "none")
    peft_adapter(tmp_path, rank_pattern={"dense": 3})
    with pytest.raises(UserError, match="ranks of their own"):
        adapters.completed(LoraSettings(adapter=str(tmp_path)), "none")


# Runs


def test_only_adapters_and_head_train(toy_parts: Callable[..., Any]) -> None:
    _, assembly, plan = toy_parts({**QUICK, "strategy.lora.stages": ["second"]})
    model = assembly.model
    model.train_stages(plan.trainable(0))
    assert model.freeze_point == 1
    training = {name for name, p in model.named_parameters() if p.requires_grad}
    assert training == {
        "backbone.stages.second.linear.lora_A.default.weight",
        "backbone.stages.second.linear.lora_B.default.weight",
        *(f"head.{name}" for name, _ in model.head.named_parameters()),
    }
    model.train()
    assert not model.backbone.stages["second"].norm.training
    assert model.backbone.stages["second"].dropout.training


def test_training_moves_nothing_but_adapters_and_head(
    toy_trainer: Callable[..., Any],
) -> None:
    trainer = toy_trainer(QUICK)
    before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    trainer.fit()
    moved = {k for k, v in trainer.model.state_dict().items() if not v.equal(before[k])}
    assert {k for k in moved if k.startswith("backbone.")} == {
        k for k in before if ".lora_" in k
    }
    assert any(k.startswith("head.") for k in moved)


def test_a_run_keeps_adapters_and_head_to_the_bit(tmp_path: Path) -> None:
    done = run("toy/ring", QUICK, folder=tmp_path / "run")
    parameters = done.summary["parameters"]
    assert parameters["trainable"] < parameters["total"]
    kept = open_checkpoint(tmp_path / "run" / "checkpoints")[0].kept_model()
    model = Run(tmp_path / "run")._open(done.recipe())
    assert set(kept) == set(model.state_dict())
    assert all(value.equal(kept[name]) for name, value in model.state_dict().items())
    assert Run(tmp_path / "run").evaluate() == pytest.approx(done.metrics)
    report = json.loads((tmp_path / "run" / "transfer.json").read_text())
    assert "LoRA of rank 2 (alpha 16) on 3 layers" in report["adapters"]
    assert report["parameters"]["trainable"] == parameters["trainable"]


def test_exported_adapter_starts_another_run(tmp_path: Path) -> None:
    first = run("toy/ring", QUICK, folder=tmp_path / "run")
    first.export(tmp_path / "adapter")
    names = {path.name for path in (tmp_path / "adapter").iterdir()}
    assert names == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "head.safetensors",
        "headstart.json",
    }
    again = {
        "strategy.name": "lora",
        "strategy.lora.adapter": str(tmp_path / "adapter"),
        "data.count": 100,
        "train.max_steps": 1,
        "train.learning_rate": 1e-12,
    }
    second = run("toy/ring", again, folder=tmp_path / "second")
    kept = [
        open_checkpoint(r.folder / "checkpoints")[0].kept_model()
        for r in (first, second)
    ]
    for name, value in kept[0].items():
        if ".lora_" in name:
            torch.testing.assert_close(kept[1][name], value)


def test_merged_export_and_run_as_weights(tmp_path: Path) -> None:
    first = run("toy/ring", QUICK, folder=tmp_path / "run")
    model = first._open(first.recipe())
    points = torch.linspace(-1, 1, 10).reshape(5, 2)
    with torch.no_grad():
        expected = model.eval().backbone({"points": points})["hidden"]
    first.export(tmp_path / "plain", merge=True)
    tensors = load_file(tmp_path / "plain" / "model.safetensors")
    assert "0.linear.weight" in tensors and not any("lora" in n for n in tensors)
    for reference in (f"file:{tmp_path / 'plain'}", f"run:{tmp_path / 'run'}"):
        overrides = {
            "backbone.weights": reference,
            "data.count": 100,
            "strategy.name": "feature-extraction",
            "train.max_steps": 1,
        }
        second = run("toy/ring", overrides, folder=tmp_path / f"from-{reference[:3]}")
        opened = second._open(second.recipe()).eval()
        with torch.no_grad():
            hidden_now = opened.backbone({"points": points})["hidden"]
        torch.testing.assert_close(hidden_now, expected)


def test_a_run_without_adapters_is_exported_whole(tmp_path: Path) -> None:
    done = run(
        "toy/ring", {"data.count": 100, "train.max_steps": 2}, folder=tmp_path / "r"
    )
    done.export(tmp_path / "out")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    model = done._open(done.recipe())
    assert set(tensors) == set(model.backbone.upstream_state_dict())
    head = load_file(tmp_path / "out" / "head.safetensors")
    assert set(head) == set(model.head.state_dict())
    with pytest.raises(UserError, match="something already"):
        done.export(tmp_path / "out")
