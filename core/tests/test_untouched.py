"""The untouched model beside the trained one, where the weights bring all of it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from safetensors.torch import save_file
from torch.utils.data import DataLoader

import headstart
from headstart import judgement
from headstart.assembly import assemble
from headstart.callbacks import Callback
from headstart.checkpoint import newest_checkpoint
from headstart.evaluate import evaluate
from headstart.recipe import load_recipe
from headstart.report.verdict import UNTOUCHED
from headstart.testing.toy import heads
from headstart.weights.transfer_report import TransferReport

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from headstart.plugins import Registry
    from headstart.runs import Run

QUICK: dict[str, Any] = {
    "data.count": 200,
    "train.batch_size": 20,
    "train.epochs": 2,
    "train.log_every": 1,
    "train.checkpoint_every": 2,
    "train.learning_rate": 0.05,
}

pytestmark = pytest.mark.usefixtures("registry")


@pytest.fixture
def pretrained(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """Overrides that load backbone and head from a file."""
    build = heads.build_classifier

    def with_names(*arguments: Any) -> heads.Classifier:
        head = build(*arguments)
        head.upstream = {"linear.": "classifier."}
        return head

    monkeypatch.setattr(heads, "build_classifier", with_names)
    recipe = load_recipe("toy/ring", {**QUICK, "train.seed": 5}, registry=registry)
    model = assemble(recipe, registry).model
    tensors = model.backbone.upstream_state_dict()
    for name, value in model.head.state_dict().items():
        tensors[name.replace("linear.", "classifier.")] = value
    path = tmp_path / "toy.safetensors"
    save_file({name: value.detach().clone() for name, value in tensors.items()}, path)
    return {**QUICK, "backbone.weights": f"file:{path}"}


def baselines(run: Run) -> dict[str, Any]:
    return {one["name"]: one for one in run.summary["baselines"]}


def losses(run: Run) -> list[Any]:
    lines = (run.folder / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    for record in records:
        del record["time"]
    return [r for r in records if r["event"] in ("train", "validation", "range")]


def right_answers(registry: Registry, overrides: dict[str, Any], run: Any) -> Any:
    """Which test samples the model gets right, worked out without an evaluation."""
    assembly = assemble(load_recipe("toy/ring", overrides, registry=registry), registry)
    model = assembly.model.eval()
    if run is not None:
        checkpoint, _ = newest_checkpoint(run.folder / "checkpoints")
        model.load_state_dict(checkpoint.kept_model())
    batch = assembly.data.collate(list(assembly.data.samples("test")))
    with torch.no_grad():
        logits = model(batch)["logits"]
    return (logits.argmax(-1) == batch["labels"]).numpy().astype(float)


def test_it_is_the_first_baseline_and_its_gain_is_paired(
    pretrained: dict[str, Any], registry: Registry, tmp_path: Path
) -> None:
    run = headstart.run("toy/ring", pretrained, folder=tmp_path / "run")
    assert list(baselines(run)) == [UNTOUCHED, "majority class"]
    found = baselines(run)[UNTOUCHED]
    before = right_answers(registry, pretrained, None)
    after = right_answers(registry, pretrained, run)
    assert found["metrics"]["accuracy"] == pytest.approx(before.mean())
    assert before.mean() != after.mean()
    gain = after - before
    half = 1.959964 * gain.std(ddof=1) / np.sqrt(len(gain))
    assert found["gains"]["accuracy"] == pytest.approx(
        [gain.mean() - half, gain.mean() + half]
    )
    assert run.summary["time"]["baselines"] > 0
    assert f">{UNTOUCHED}</th>" in (run.folder / "report.html").read_text()


def test_the_training_does_not_notice(
    pretrained: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A range test draws dropout from the global generator, and this loader a seed.
    values = {**pretrained, "train.learning_rate": "auto"}

    def drawing(*arguments: Any, **options: Any) -> Any:
        next(iter(DataLoader([0])))  # type: ignore[arg-type]
        return evaluate(*arguments, **options)

    monkeypatch.setattr(judgement, "evaluate", drawing)
    runs = [
        headstart.run(
            "toy/ring", {**values, "report.baselines": on}, folder=tmp_path / str(on)
        )
        for on in (True, False)
    ]
    assert [list(baselines(run)) for run in runs] == [
        [UNTOUCHED, "majority class"],
        [],
    ]
    assert not (runs[1].folder / "untouched.json").exists()
    assert losses(runs[0]) == losses(runs[1])
    first, second = (newest_checkpoint(r.folder / "checkpoints")[0] for r in runs)
    tensors = second.tensors("model")
    assert all(torch.equal(v, tensors[k]) for k, v in first.tensors("model").items())


class Killed(BaseException):
    pass


class KillAt(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, step: int) -> None:
        if step == self.step:
            raise Killed


@pytest.mark.parametrize("step", [1, 5])
def test_a_killed_run_still_has_it(
    step: int, pretrained: dict[str, Any], tmp_path: Path
) -> None:
    """Before the first checkpoint it is measured again, after it kept."""
    whole = headstart.run("toy/ring", pretrained, folder=tmp_path / "whole")
    folder = tmp_path / "killed"
    with pytest.raises(Killed):
        headstart.run("toy/ring", pretrained, folder=folder, callbacks=[KillAt(step)])
    assert set(load_file(folder / "untouched.safetensors")) == {"accuracy"}
    resumed = headstart.resume(folder)
    assert baselines(resumed)[UNTOUCHED] == baselines(whole)[UNTOUCHED]


def test_not_where_there_is_nothing_to_say(
    pretrained: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    still = {**pretrained, "strategy.name": "none"}
    scratch = {**pretrained, "strategy.name": "scratch"}
    for name, values in (("still", still), ("scratch", scratch), ("none", QUICK)):
        run = headstart.run("toy/ring", values, folder=tmp_path / name)
        assert list(baselines(run)) == ["majority class"], name
    build: Callable[..., heads.Classifier] = heads.build_classifier

    def without_bias(*arguments: Any) -> heads.Classifier:
        head = build(*arguments)
        head.upstream = {"linear.weight": "classifier.weight"}
        return head

    monkeypatch.setattr(heads, "build_classifier", without_bias)
    values = {**pretrained, "backbone.allow": ["classifier.*"]}
    run = headstart.run("toy/ring", values, folder=tmp_path / "new")
    assert list(baselines(run)) == ["majority class"]
    # A head may say that this parameter changes nothing before it is trained.
    monkeypatch.setattr(heads.Classifier, "neutral", ("linear.bias",))
    run = headstart.run("toy/ring", values, folder=tmp_path / "neutral")
    assert list(baselines(run)) == [UNTOUCHED, "majority class"]


@pytest.mark.parametrize(
    ("changes", "whole"),
    [
        ({}, True),
        ({"loaded": 0}, False),
        ({"new": ("head.linear.weight",)}, False),
        ({"reinitialised": (("layer.weight", "allowed"),)}, False),
        ({"reinitialised": (("norm.num_batches_tracked", "a counter"),)}, True),
        ({"classes_kept": ("cat",), "classes_new": ("yak",)}, False),
    ],
)
def test_whether_the_weights_bring_all(changes: dict[str, Any], whole: bool) -> None:
    assert TransferReport("w", **{"loaded": 3, **changes}).brings_all() is whole
