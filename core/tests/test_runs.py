"""One execution of a recipe, and the folder that it leaves."""

from __future__ import annotations

import json
import math
import sys
import tomllib
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from headstart import judgement
from headstart.batch_order import epoch_batches
from headstart.callbacks import Callback
from headstart.checkpoint import open_checkpoint
from headstart.errors import HeadstartError, UserError
from headstart.fine_tuning import run
from headstart.runs import Run
from headstart.training_setup import make_trainer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from headstart.clock import Clock


pytestmark = pytest.mark.usefixtures("registry")

QUICK: dict[str, Any] = {
    "data.count": 100,
    "train.batch_size": 10,
    "train.epochs": 2,
    "train.learning_rate": 0.05,
    "train.log_every": 4,
}


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def events(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def without_time(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    costs = ("time", "spent")
    return [{k: v for k, v in r.items() if k not in costs} for r in records]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run that several tests look at."""
    from headstart.plugins import load_plugins
    from headstart.testing import toy

    load_plugins().add(toy, "toy")
    return run("toy/ring", QUICK, folder=tmp_path_factory.mktemp("runs") / "done")


# What is in the folder


def test_the_folder_holds_what_is_promised(done: Run) -> None:
    assert {path.name for path in done.folder.iterdir()} >= {
        "recipe.toml",
        "environment.json",
        "task.json",
        "data.json",
        "transfer.json",
        "metrics.jsonl",
        "summary.json",
        "sections.json",
        "checkpoints",
        "report.html",
    }
    assert not [path for path in done.folder.rglob(".*")]


def test_environment(done: Run) -> None:
    environment = read(done.folder / "environment.json")
    assert environment["python"] == ".".join(map(str, sys.version_info[:3]))
    assert environment["torch"] == torch.__version__
    assert (environment["device"], environment["precision"]) == ("cpu", "fp32")
    assert (environment["seed"], environment["threads"]) == (0, torch.get_num_threads())
    assert environment["weights"]["reference"] == "none"
    assert len(environment["data"]["fingerprint"]) == 64
    assert environment["packages"]["safetensors"]


def test_task_and_data(done: Run, toy_parts: Callable[..., Any]) -> None:
    train = list(toy_parts(QUICK)[1].data.samples("train"))
    outside = sum(sample["label"] for sample in train)
    assert read(done.folder / "task.json") == {
        "kind": "single-label",
        "labels": ["inside", "outside"],
        "counts": [len(train) - outside, outside],
    }
    data = read(done.folder / "data.json")
    assert data["description"] == {"test": 20, "validation": 20, "train": 60}
    assert data["warnings"] == data["left_out"] == []


def test_transfer(done: Run) -> None:
    transfer = read(done.folder / "transfer.json")
    stages = {row["name"]: row for row in transfer["stages"]}
    # Linear and normalisation; the head is 8 x 2 + 2.
    counts = {"first": 40, "second": 88, "third": 88, "head": 18}
    assert {name: row["parameters"] for name, row in stages.items()} == counts
    assert all(row["trainable_at_start"] for row in stages.values())
    assert transfer["parameters"] == {"total": 234, "frozen": 0, "trainable": 234}
    assert sorted(transfer["new"]) == ["head.linear.bias", "head.linear.weight"]


def test_metrics_log(done: Run) -> None:
    log = events(done.folder)
    by_event: dict[str, list[dict[str, Any]]] = {}
    for record in log:
        by_event.setdefault(record["event"], []).append(record)
        assert record["epoch"] == pytest.approx(record["step"] / 6)
    assert [r["step"] for r in by_event["train"]] == [4, 6, 8, 12]
    assert [r["step"] for r in by_event["validation"]] == [6, 12]
    assert [r["step"] for r in by_event["checkpoint"]] == [6, 12]
    assert by_event["trainable"][0]["stages"] == ["first", "second", "third"]
    for record in by_event["train"]:
        assert record.keys() >= {
            "loss",
            "learning_rate",
            "head_learning_rate",
            "gradient_norm",
        }
    assert by_event["validation"][0].keys() >= {"loss", "accuracy"}


def test_summary(done: Run) -> None:
    summary = done.summary
    log = events(done.folder)
    validations = {r["step"]: r for r in log if r["event"] == "validation"}
    best = max(validations.values(), key=lambda r: r["accuracy"])
    assert summary["status"] == "done"
    assert summary["goals"] == {"accuracy": "max"}
    assert (summary["steps"], summary["total_steps"], summary["epochs"]) == (12, 12, 2)
    assert summary["best_step"] == best["step"]
    assert summary["validation"] == {k: best[k] for k in ("loss", "accuracy")}
    assert summary["metrics"] == done.metrics
    assert summary["parameters"]["trainable"] == 234
    assert summary["scratch"] is None
    assert summary["padding_waste"] == 0.0
    time = dict(summary["time"])
    total = time.pop("total")
    assert total == pytest.approx(sum(time.values()))
    assert {"setup", "loading", "forward/backward", "optimizer", "evaluation"} <= set(
        time
    )
    slowest = max(time, key=lambda phase: time[phase])
    assert f"went to {slowest}:" in summary["bottleneck"]
    assert summary["throughput"]["samples_per_second"] > 0
    assert summary["throughput"]["unit"] == "points"
    assert summary["peak_memory_bytes"] > 1e7


def test_the_majority_baseline(done: Run, toy_parts: Callable[..., Any]) -> None:
    data = toy_parts(QUICK)[1].data
    train = [sample["label"] for sample in data.samples("train")]
    most = max((0, 1), key=train.count)
    test = [sample["label"] for sample in data.samples("test")]
    (baseline,) = done.summary["baselines"]
    assert baseline["name"] == "majority class"
    assert baseline["metrics"] == {"accuracy": test.count(most) / len(test)}


def test_the_report_names_its_run(done: Run) -> None:
    text = done.report.read_text()
    assert "toy/ring" in text
    assert f"{done.metrics['accuracy']:.3f}" in text


# Repeatable


def test_a_runs_recipe_repeats_it_bit_for_bit(done: Run, tmp_path: Path) -> None:
    torch.rand(5)
    again = run(done.folder / "recipe.toml", folder=tmp_path / "again")
    assert again.metrics == done.metrics
    assert without_time(events(again.folder)) == without_time(events(done.folder))
    first, second = (
        open_checkpoint(each.folder / "checkpoints")[0].tensors("model")
        for each in (done, again)
    )
    assert all(torch.equal(value, second[key]) for key, value in first.items())
    texts = [(each.folder / "recipe.toml").read_text() for each in (done, again)]
    assert texts[0] == texts[1]


def test_the_resolved_recipe_holds_overrides_and_defaults(done: Run) -> None:
    recipe = tomllib.loads((done.folder / "recipe.toml").read_text())
    assert recipe["name"] == "toy/ring"
    assert recipe["train"]["epochs"] == 2
    assert recipe["train"]["clip"] == 1.0
    assert recipe["backbone"]["width"] == 8
    assert recipe["strategy"]["name"] == "global"


# Opened again


def kept_model(done: Run, toy_parts: Callable[..., Any]) -> Any:
    model = toy_parts(QUICK)[1].model
    model.load_state_dict(open_checkpoint(done.folder / "checkpoints")[0].kept_model())
    return model.eval()


def test_predict_equals_the_model_called_directly(
    done: Run, toy_parts: Callable[..., Any]
) -> None:
    points = np.random.default_rng(0).normal(size=(45, 2)).round(3)
    inputs = [f"{x},{y}" for x, y in points]
    model = kept_model(done, toy_parts)
    with torch.no_grad():
        hidden = model.backbone.run({"points": torch.from_numpy(points).float()})
        scores = model.head.linear(hidden["hidden"]).softmax(1)
    for opened in (done, Run(done.folder)):
        predictions = opened.predict(inputs)
        labels = [["inside", "outside"][i] for i in scores.argmax(1).tolist()]
        assert [row["label"] for row in predictions] == labels
        assert [row["probability"] for row in predictions] == pytest.approx(
            scores.max(1).values.tolist(), rel=1e-5
        )
    assert len(set(labels)) == 2
    assert done.predict([]) == []


def test_evaluate_equals_the_summary(done: Run) -> None:
    opened = Run(done.folder)
    assert opened.evaluate() == pytest.approx(done.metrics, rel=1e-6)
    validation = opened.evaluate("validation")
    assert validation == pytest.approx(done.summary["validation"], rel=1e-6)
    assert validation != done.metrics


def test_evaluate_on_other_data(done: Run, toy_parts: Callable[..., Any]) -> None:
    data = toy_parts({**QUICK, "data.count": 300})[1].data
    batch = data.collate(list(data.samples("test")))
    model = kept_model(done, toy_parts)
    with torch.no_grad():
        logits = model.head.linear(model.backbone.run(batch)["hidden"])
    right = (logits.argmax(1) == batch["labels"]).float().mean()
    measured = Run(done.folder).evaluate(overrides={"data.count": 300})
    assert measured["accuracy"] == pytest.approx(float(right))


def test_evaluate_refuses_other_labels(done: Run, tmp_path: Path) -> None:
    task = read(done.folder / "task.json")
    changed = tmp_path / "changed"
    changed.mkdir()
    for path in done.folder.iterdir():
        (changed / path.name).symlink_to(path)
    (changed / "task.json").unlink()
    task["labels"] = ["inside", "beyond"]
    (changed / "task.json").write_text(json.dumps(task))
    with pytest.raises(UserError, match="other labels"):
        Run(changed).evaluate()


@pytest.mark.parametrize("make", [False, True])
def test_a_folder_that_is_no_run(tmp_path: Path, make: bool) -> None:
    if make:
        (tmp_path / "x").mkdir()
    with pytest.raises(UserError, match="this is not a run folder"):
        Run(tmp_path / "x")


# What goes wrong


def test_a_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "note").write_text("mine")
    with pytest.raises(UserError, match="the run folder is not empty"):
        run("toy/ring", QUICK, folder=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["note"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"train.epoch": 3}, r"did you mean '(train\.)?epochs'"),
        ({"train.epochs": -1}, r"train\.epochs"),
        ({"strategy.name": "surgical", "strategy.stages": ["frist"]}, "mean 'first'"),
        ({"backbone.name": "toy/netwrok"}, "did you mean 'toy/network'"),
        ({"metrics.best": "acuracy"}, "did you mean 'accuracy'"),
        ({"early_stopping.metric": "los"}, "did you mean 'loss'"),
        ({"train.device": "cuda:77"}, "there is no device 'cuda:77'"),
        ({"backbone.weights": "file:/nowhere/at/all"}, "/nowhere/at/all"),
    ],
)
def test_a_bad_recipe_writes_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    overrides: dict[str, Any],
    words: str,
) -> None:
    monkeypatch.setenv("HEADSTART_RUNS", str(tmp_path / "runs"))
    for folder in (tmp_path / "run", None):
        with pytest.raises(UserError, match=words):
            run("toy/ring", {**QUICK, **overrides}, folder=folder)
    assert list(tmp_path.iterdir()) == []


def test_all_faults_of_a_recipe_come_together(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        run(
            "toy/ring",
            {"train.epoch": 3, "data.count": 2, "backbone.wdith": 3, "strategy.x": 1},
            folder=tmp_path / "run",
        )
    assert len(caught.value.faults) == 4


class Failing(Callback):
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def on_step(self, step: int) -> None:
        if step == 3:
            raise self.error


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (RuntimeError("out of luck"), "failed", "out of luck"),
        (MemoryError(), "failed", "MemoryError"),
        (KeyboardInterrupt(), "interrupted", "KeyboardInterrupt"),
    ],
)
def test_a_run_that_raises_says_so(
    tmp_path: Path, error: BaseException, status: str, reason: str
) -> None:
    with pytest.raises(type(error)):
        run("toy/ring", QUICK, folder=tmp_path / "run", callbacks=[Failing(error)])
    left = Run(tmp_path / "run")
    assert left.summary == {"status": status, "reason": reason}
    assert left.metrics == {}
    assert reason in left.report.read_text()


def test_a_run_whose_loss_runs_away(tmp_path: Path) -> None:
    class Poison(Callback):
        def on_assembled(self, recipe: Any, assembly: Any, *rest: Any) -> None:
            with torch.no_grad():
                assembly.model.head.linear.weight.fill_(math.inf)

    with pytest.raises(HeadstartError, match="is not finite"):
        run(
            "toy/ring",
            {**QUICK, "train.bad_steps": 2, "train.log_every": 1},
            folder=tmp_path / "run",
            callbacks=[Poison()],
        )
    assert Run(tmp_path / "run").summary["status"] == "failed"


def test_default_folder_is_named_after_the_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADSTART_RUNS", str(tmp_path / "runs"))
    overrides = {**QUICK, "train.max_steps": 1}
    made = [run("toy/ring", overrides).folder for _ in range(2)]
    assert made[0] != made[1]
    assert all(folder.name.startswith("toy-ring-2") for folder in made)
    assert all(folder.parent == tmp_path / "runs" for folder in made)


# What is asked for beside


def test_scratch_control_is_a_run_from_random_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights that were trained are taken out for the control, and for it alone."""
    clocks: list[Clock] = []

    def watched(*arguments: Any, **more: Any) -> Any:
        clocks.append(arguments[3])
        return make_trainer(*arguments, **more)

    monkeypatch.setattr(judgement, "make_trainer", watched)
    trained = run("toy/ring", {**QUICK, "train.epochs": 15}, folder=tmp_path / "a")
    weights = tmp_path / "weights.safetensors"
    from safetensors.torch import save_file

    state = open_checkpoint(trained.folder / "checkpoints")[0].kept_model()
    numbers = {"first": "0", "second": "1", "third": "2"}
    tensors = {
        f"{numbers[name.split('.')[2]]}.{name.split('.', 3)[3]}": value
        for name, value in state.items()
        if name.startswith("backbone")
    }
    save_file(tensors, weights)
    short = {**QUICK, "train.epochs": 1, "train.learning_rate": 1e-3}
    ours = run(
        "toy/ring",
        {
            **short,
            "backbone.weights": f"file:{weights}",
            "strategy.name": "feature-extraction",
            "report.scratch_control": True,
        },
        folder=tmp_path / "b",
    )
    # The control trains everything, as does a run without weights.
    alone = run("toy/ring", short, folder=tmp_path / "c")
    scratch = ours.summary["scratch"]
    assert scratch["steps"] == 6
    # Its time is its own: all of it is in one phase of the run's, none in the others.
    [control] = clocks
    spent = control.seconds()["forward/backward"]
    assert ours.summary["time"]["scratch control"] > spent > 0
    assert scratch["metrics"] == pytest.approx(alone.metrics, rel=1e-6)
    assert ours.metrics["loss"] < scratch["metrics"]["loss"]
    assert Run(ours.folder).evaluate() == pytest.approx(ours.metrics, rel=1e-6)


def test_tensorboard_has_what_the_log_has(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = run(
        "toy/ring", {**QUICK, "train.tensorboard": True}, folder=tmp_path / "run"
    ).folder
    board = EventAccumulator(str(folder / "tensorboard"))
    board.Reload()
    logged = events(folder)
    for event, name in [
        ("train", "loss"),
        ("train", "learning_rate"),
        ("validation", "accuracy"),
        ("validation", "loss"),
    ]:
        expected = [(r["step"], r[name]) for r in logged if r["event"] == event]
        scalars = board.Scalars(f"{event}/{name}")
        assert [s.step for s in scalars] == [step for step, _ in expected]
        assert [s.value for s in scalars] == pytest.approx(
            [value for _, value in expected]
        )


def test_tensorboard_that_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match="TensorBoard is not installed"):
        run("toy/ring", {**QUICK, "train.tensorboard": True}, folder=tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_records_reach_the_callers_callbacks(tmp_path: Path) -> None:
    class Watch(Callback):
        def __init__(self) -> None:
            self.calls: list[Any] = []

        def on_assembled(
            self, recipe: Any, assembly: Any, transfer: Any, total_steps: int
        ) -> None:
            self.calls.append(("assembled", total_steps))

        def on_start(self, total_steps: int, start_step: int) -> None:
            self.calls.append(("start", total_steps, start_step))

        def on_step(self, step: int) -> None:
            self.calls.append(step)

        def on_end(self) -> None:
            self.calls.append("end")

    watch = Watch()
    overrides = {**QUICK, "train.max_steps": 2}
    run("toy/ring", overrides, folder=tmp_path / "run", callbacks=[watch])
    assert watch.calls == [("assembled", 2), ("start", 2, 0), 1, 2, "end"]


def test_steps_follow_the_batches(tmp_path: Path) -> None:
    """62 samples in batches of 10 are 7 steps, and half an epoch is 4 of them."""
    overrides = {**QUICK, "data.count": 102, "train.epochs": 0.5}
    summary = run("toy/ring", overrides, folder=tmp_path / "run").summary
    assert len(epoch_batches(62, 10, seed=0, epoch=0)) == 7
    assert (summary["steps"], summary["epochs"]) == (4, pytest.approx(4 / 7))


def test_what_a_head_fits_to_validation_is_kept_with_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fitted once, after the training; set before the test and when opened again."""
    from headstart.testing.toy.heads import Classifier

    seen: list[int] = []
    states: list[dict[str, float]] = []
    plain = Classifier.outputs

    def calibrate(self: Classifier, outputs: dict[str, Any]) -> dict[str, float]:
        seen.append(len(outputs["target"]))
        return {"temperature": 2.0}

    def outputs(self: Classifier, state: dict[str, Any]) -> dict[str, Any]:
        states.append(dict(self.calibration))
        return plain(self, state)

    monkeypatch.setattr(Classifier, "calibrate", calibrate)
    monkeypatch.setattr(Classifier, "outputs", outputs)
    done = run("toy/ring", QUICK, folder=tmp_path / "run")
    assert seen == [read(tmp_path / "run" / "data.json")["description"]["validation"]]
    assert states[0] == {} and states[-1] == {"temperature": 2.0}
    assert read(tmp_path / "run" / "calibration.json") == {"temperature": 2.0}
    states.clear()
    Run(done.folder).evaluate()
    assert states and all(state == {"temperature": 2.0} for state in states)


def test_what_a_head_diagnoses_is_told_and_stands_in_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from headstart.errors import Fault
    from headstart.testing.toy.heads import Classifier

    told: list[str] = []

    class Listener(Callback):
        def on_message(self, text: str) -> None:
            told.append(text)

    def diagnose(self: Classifier, metrics: dict[str, float]) -> list[Fault]:
        assert {"loss", "accuracy"} <= metrics.keys()
        return [Fault("it has collapsed", fix="lower the rate")]

    monkeypatch.setattr(Classifier, "diagnose", diagnose)
    done = run("toy/ring", QUICK, folder=tmp_path / "run", callbacks=[Listener()])
    assert sum("it has collapsed" in text for text in told) == 2  # one an epoch
    assert "it has collapsed" in (done.folder / "report.html").read_text()


def test_predictions_of_pieces_are_joined(
    done: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from headstart.testing.toy.data import Ring

    def join(self: Ring, samples: Any, predictions: Any) -> Any:
        rows = [found["label"] for found in predictions]
        yield {"input": f"{len(samples)} points", "labels": rows}

    inputs = ["0,0", "3,3"]
    plain = done.predict(inputs)
    assert [row["input"] for row in plain] == inputs
    monkeypatch.setattr(Ring, "join", join)
    labels = [row["label"] for row in plain]
    joined = [{"input": "2 points", "labels": labels}]
    assert done.predict(inputs) == joined
    (file,) = done.predict_into(tmp_path / "out", inputs)
    assert [json.loads(line) for line in file.read_text().splitlines()] == joined


def test_parts_are_weighed_after_random_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which may change what they weigh: their length, what of them is masked."""
    from headstart.testing.toy.data import Ring
    from headstart.testing.toy.heads import Classifier

    weighed: list[bool] = []
    plain_augment, plain_weight = Ring.augment, Classifier.weight

    def augment(self: Ring, batch: Any, generator: torch.Generator) -> Any:
        return {**plain_augment(self, batch, generator), "changed": True}

    def weight(self: Classifier, batch: Any) -> torch.Tensor:
        weighed.append("changed" in batch)
        return plain_weight(self, batch)

    monkeypatch.setattr(Ring, "augment", augment)
    monkeypatch.setattr(Classifier, "weight", weight)
    changes = {"data.noise": 0.1, "train.accumulate": 2, "report.baselines": False}
    run("toy/ring", {**QUICK, **changes}, folder=tmp_path / "run")
    # 2 epochs of 6 steps in 2 parts each; the rest are evaluations.
    assert sum(weighed) == 24
