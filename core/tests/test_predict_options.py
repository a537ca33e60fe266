"""Options of predictions, and what is kept from before the training."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import headstart
from headstart.cli import commands
from headstart.data import Columns
from headstart.errors import UserError
from headstart.predict_options import check_options, split_options
from headstart.settings import PredictOptions
from headstart.testing.toy import data as toy_data
from headstart.testing.toy import heads as toy_heads

if TYPE_CHECKING:
    from pathlib import Path

    from headstart.heads import Head
    from headstart.model import Model
    from headstart.plugins import Registry
    from headstart.report.parts import Evaluation, Section
    from headstart.specs import HeadSpec


class Options(PredictOptions):
    times: int = 1
    at: tuple[str, ...] = ()
    loud: bool = False

    def bare(self) -> str:
        return "times" if self.loud else ""

    def inputs(self) -> Sequence[Any]:
        return self.at


def test_words_are_taken_apart() -> None:
    words = ["1,2", "--times", "3", "--at=0,1", "--loud", "--at", "4,4", "--", "--x"]
    assert split_options(words, Options) == (
        ["1,2", "--x"],
        {"times": "3", "at": ["0,1", "4,4"], "loud": True},
    )


def test_what_is_true_by_default_can_be_switched_off() -> None:
    assert split_options(["--no-loud", "x"], Options) == (["x"], {"loud": False})
    with pytest.raises(UserError, match="there is no option --no-times"):
        split_options(["--no-times"], Options)
    with pytest.raises(UserError, match="did you mean '--no-loud'"):
        split_options(["--no-lod"], Options)
    # Whether that is true or false, nobody could tell.
    with pytest.raises(UserError) as caught:
        split_options(["--no-loud=false"], Options)
    (fault,) = caught.value.faults
    assert fault.what == "--no-loud takes no value"
    assert fault.fix == "--no-loud alone, or --loud=false"


def test_all_wrong_words_are_told() -> None:
    with pytest.raises(UserError) as caught:
        split_options(["--tims", "3", "--at"], Options)
    assert [fault.what for fault in caught.value.faults] == [
        "there is no option --tims",
        "--at needs a value",
    ]
    assert "--times" in caught.value.faults[0].fix
    with pytest.raises(UserError, match="there is no option --k"):
        split_options(["--k", "3"], None)


@pytest.fixture
def with_options(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> Iterator[HeadSpec]:
    """The toy's head with options of its own, which it shows in predictions."""
    spec = registry.head("toy/classifier")
    object.__setattr__(spec, "options", "headstart.testing.toy.heads:Options")
    monkeypatch.setattr(toy_heads, "Options", Options, raising=False)
    kind = type(toy_heads.build_classifier(None, _features(), spec.sample_task))  # type: ignore[arg-type]
    plain = kind.decode

    def decode(self: Head, outputs: dict[str, Any]) -> list[dict[str, Any]]:
        assert isinstance(self.options, Options)
        times = self.options.times
        return [{**row, "times": times} for row in plain(self, outputs)]

    monkeypatch.setattr(kind, "decode", decode)
    yield spec
    object.__setattr__(spec, "options", "")


def _features() -> Any:
    from headstart.specs import Feature

    return {"hidden": Feature("hidden", "vector", 8)}


def test_show_names_the_options(with_options: HeadSpec) -> None:
    result = CliRunner().invoke(commands, ["show", "toy/classifier"])
    assert result.exit_code == 0, result.output
    _, _, options = result.output.partition("options of `headstart predict`")
    assert all(f"--{name}" in options for name in ("times", "at", "loud"))


def test_wrong_values_are_told_by_option(with_options: HeadSpec) -> None:
    with pytest.raises(UserError) as caught:
        check_options(with_options, {"times": "many", "lod": True})
    assert {fault.where for fault in caught.value.faults} == {"--times", "--lod"}


def test_predict_with_options(with_options: HeadSpec, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    values = {"data.count": 60, "train.epochs": 1, "report.baselines": False}
    run = headstart.run("toy/ring", values, folder=folder)
    first, second = run.predict(["0,0"], times=2, at=["3,3"])
    assert (first["times"], second["times"]) == (2, 2)
    assert [first["input"], second["input"]] == ["0,0", "3,3"]
    command = ["predict", str(folder), "--at", "3,3", "--times", "4", "--json"]
    result = CliRunner().invoke(commands, command)
    assert result.exit_code == 0, result.output
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("{")]
    assert json.loads(line) == {**second, "times": 4}
    # One input may be printed by itself; of several nobody could tell them apart.
    for inputs, lines in ((["0,0"], ["4"]), (["0,0", "1,1"], ["{", "{"])):
        command = ["predict", str(folder), *inputs, "--times", "4", "--loud"]
        printed = CliRunner().invoke(commands, command).stdout.splitlines()
        assert [text[:1] for text in printed] == lines
    command = ["predict", str(folder), "0,0", "--loud", "--json"]
    assert json.loads(CliRunner().invoke(commands, command).stdout)["times"] == 1


def test_before_and_after_reach_the_report(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[Evaluation] = []
    kind = type(
        toy_heads.build_classifier(
            None,  # type: ignore[arg-type]
            _features(),
            registry.head("toy/classifier").sample_task,
        )
    )

    def probe(self: Head, model: Model) -> dict[str, Any]:
        weight = next(model.backbone.parameters())
        return {"weight": weight, "words": ["as", "is"]}

    def report(self: Head, evaluation: Evaluation) -> Sequence[Section]:
        seen.append(evaluation)
        return ()

    monkeypatch.setattr(kind, "probe", probe)
    monkeypatch.setattr(kind, "report", report)
    values = {"data.count": 60, "train.epochs": 1}
    run = headstart.run("toy/ring", values, folder=tmp_path / "run")
    (evaluation,) = seen
    before, after = evaluation.before, evaluation.after
    assert before["words"] == after["words"] == ["as", "is"]
    assert before["weight"].shape == after["weight"].shape
    assert not np.array_equal(before["weight"], after["weight"])
    kept = run._open(run.recipe())
    assert np.array_equal(
        after["weight"], next(kept.backbone.parameters()).detach().numpy()
    )


class Points(Sequence[Any]):
    """The ring's samples in columns."""

    def __init__(self, samples: Sequence[Any]) -> None:
        self.samples = samples
        self.points = np.stack([sample["point"] for sample in samples])
        self.labels = np.array([sample["label"] for sample in samples])
        self.taken = 0

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: Any) -> Any:
        return self.samples[index]

    def take(self, indices: np.ndarray) -> dict[str, Any]:
        self.taken += len(indices)
        return {
            "points": torch.from_numpy(self.points[indices]).float(),
            "labels": torch.from_numpy(self.labels[indices]),
        }


def test_columns_train_as_samples_do(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    values = {"data.count": 100, "train.epochs": 2, "cache.mode": "off"}
    plain = headstart.run("toy/ring", values, folder=tmp_path / "plain")
    columns: dict[str, Points] = {}
    given = toy_data.Ring.samples

    def samples(self: Any, split: Any) -> Points:
        if split not in columns:
            columns[split] = Points(given(self, split))
        return columns[split]

    monkeypatch.setattr(toy_data.Ring, "samples", samples)

    def refuse(*_: Any) -> None:
        pytest.fail("collated sample by sample")

    monkeypatch.setattr(toy_data.Ring, "collate", refuse)
    quick = headstart.run("toy/ring", values, folder=tmp_path / "quick")
    assert isinstance(columns["train"], Columns)
    # Besides two epochs the estimate of the memory, of 2, 3 and 16 samples.
    assert columns["train"].taken == 2 * 60 + 2 + 3 + 16
    assert quick.metrics == plain.metrics
    assert quick.summary["validation"] == plain.summary["validation"]


def test_the_control_has_a_curve(registry: Registry, tmp_path: Path) -> None:
    values = {
        "data.count": 100,
        "train.epochs": 2,
        "train.evaluate_at_start": True,
        "report.scratch_control": True,
    }
    run = headstart.run("toy/ring", values, folder=tmp_path / "run")
    lines = (run.folder / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    steps = [r["step"] for r in records if r["event"] == "validation"]
    assert len(steps) == 3 and steps[0] == 0
    curve = run.summary["scratch"]["curve"]
    assert [point["step"] for point in curve] == steps
    assert all({"accuracy", "time"} <= set(point) for point in curve)
    assert "from scratch" in run.report.read_text()
