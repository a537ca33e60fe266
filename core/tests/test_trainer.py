"""The training loop against a plain one, and each of its promises by hand."""

from __future__ import annotations

import copy
import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn

from headstart.batch_order import epoch_batches
from headstart.callbacks import Callback
from headstart.checkpoint import newest_checkpoint, open_checkpoint
from headstart.errors import HeadstartError, UserError
from headstart.evaluate import MetricSet, evaluate
from headstart.fine_tuning import run
from headstart.range_test import range_test, suggestion

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from headstart.callbacks import Record
    from headstart.model import Model
    from headstart.plugins import Registry
    from headstart.trainer import Trainer

    Tensors = Mapping[str, torch.Tensor]
    Build = Callable[..., Trainer]

SMALL = {"data.count": 100, "train.batch_size": 10}
"""60 training samples: 6 steps an epoch."""


class Recorder(Callback):
    """Keeps every record and, after every step, a copy of the model."""

    def __init__(self) -> None:
        self.model: Model | None = None
        self.records: list[Record] = []
        self.states: list[dict[str, torch.Tensor]] = []

    def on_assembled(self, recipe: Any, assembly: Any, *rest: Any) -> None:
        self.watch(assembly.model)

    def watch(self, model: Model) -> None:
        self.model = model
        self.states = [copy.deepcopy(model.state_dict())]

    def on_step(self, step: int) -> None:
        if self.model is not None:
            self.states.append(copy.deepcopy(self.model.state_dict()))

    def on_record(self, record: Record) -> None:
        self.records.append(record)

    def steps(self, event: str) -> list[int]:
        return [r["step"] for r in self.records if r["event"] == event]

    def values(self, event: str, key: str) -> list[Any]:
        return [r[key] for r in self.records if r["event"] == event]


class Scripted:
    """In place of the metrics: what is measured is written beforehand."""

    def __init__(self, *rows: dict[str, float]) -> None:
        self.rows = list(rows)

    def update(self, outputs: Any) -> None:
        pass

    def compute(self) -> dict[str, float]:
        return self.rows.pop(0)


def scripted(trainer: Trainer, key: str, *values: float) -> Trainer:
    rows = [{"accuracy": 0.5, key: value} for value in values]
    trainer.validation.metrics = Scripted(*rows)  # type: ignore[assignment]
    return trainer


def identical(left: Tensors, right: Tensors, part: str = "") -> bool:
    keys = [key for key in left if key.startswith(part)]
    assert keys
    return all(torch.equal(left[key], right[key]) for key in keys)


# Against a plain loop


def plain_loop(
    model: Model, points: torch.Tensor, labels: torch.Tensor, epochs: int, rate: float
) -> tuple[nn.Sequential, list[float]]:
    """What a user would write without headstart, on the same batches and seeds."""
    layers: list[nn.Module] = []
    for stage in model.backbone.stages.values():
        layers += [stage.linear, stage.norm, nn.ReLU(), nn.Dropout(0.1)]
    network = copy.deepcopy(nn.Sequential(*layers, model.head.linear)).train()
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in network.parameters() if p.ndim > 1]},
            {
                "params": [p for p in network.parameters() if p.ndim == 1],
                "weight_decay": 0.0,
            },
        ],
        lr=rate,
        weight_decay=0.01,
        fused=True,
    )
    total = epochs * math.ceil(len(points) / 10)
    warmup = math.ceil(0.1 * total)
    losses: list[float] = []
    for epoch in range(epochs):
        for batch in epoch_batches(
            len(points), 10, seed=5, epoch=epoch, sizes=np.ones(len(points))
        ):
            step = len(losses)
            factor = (
                (step + 1) / (warmup + 1)
                if step < warmup
                else (total - step) / (total - warmup)
            )
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
            torch.manual_seed((5 * 1_000_003 + step) * 1_024)
            logits = network(points[batch])
            loss = nn.functional.cross_entropy(logits, labels[batch])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 0.5)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    return network, losses


def test_a_run_equals_a_plain_loop_bit_for_bit(toy_trainer: Build) -> None:
    recorder = Recorder()
    trainer = toy_trainer(
        {
            **SMALL,
            "train.epochs": 3,
            "train.learning_rate": 0.02,
            "train.warmup": 0.1,
            "train.clip": 0.5,
            "train.seed": 5,
            "train.log_every": 1,
        },
        [recorder],
    )
    samples = list(trainer.data.samples("train"))
    batch = trainer.data.collate(samples)
    expected, losses = plain_loop(
        trainer.model, batch["points"], batch["labels"], epochs=3, rate=0.02
    )
    assert trainer.fit() == "done"
    ours = list(trainer.model.state_dict().values())
    theirs = list(expected.state_dict().values())
    assert len(ours) == len(theirs)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert recorder.values("train", "loss") == losses
    assert min(losses) < losses[0]


def test_accumulated_parts_equal_the_whole_batch(toy_trainer: Build) -> None:
    """Batches of 10 in parts of 3, 3, 2, 2: each counts by its samples."""
    heads = []
    for parts in (1, 4):
        trainer = toy_trainer(
            {
                **SMALL,
                "data.count": 90,
                "train.accumulate": parts,
                "train.optimizer": "sgd",
                "train.learning_rate": 0.5,
                "train.clip": 0.1,
                "backbone.dropout": 0.0,
                # Batch statistics depend on the parts; frozen stages have none.
                "strategy.name": "feature-extraction",
            }
        )
        before = copy.deepcopy(trainer.model.head.state_dict())
        trainer.fit()
        heads.append(trainer.model.head.state_dict())
        assert not identical(before, heads[-1])
    for name, whole in heads[0].items():
        torch.testing.assert_close(heads[1][name], whole, rtol=1e-5, atol=1e-6)


def test_every_step_has_randomness_of_its_own(toy_trainer: Build) -> None:
    """Dropout at a step does not hang on what ran before it."""
    states = []
    for noise in (0, 3):
        recorder = Recorder()
        trainer = toy_trainer({**SMALL, "train.epochs": 1, "backbone.dropout": 0.4})
        recorder.watch(trainer.model)
        trainer.callbacks = [recorder]
        torch.rand(noise)
        np.random.default_rng(noise)
        trainer.fit()
        states.append(recorder.states[-1])
    assert identical(states[0], states[1])


def test_seed_changes_the_run(toy_trainer: Build) -> None:
    states = []
    for seed in (1, 2):
        trainer = toy_trainer({**SMALL, "train.epochs": 1, "train.seed": seed})
        trainer.fit()
        states.append(trainer.model.state_dict())
    assert not identical(states[0], states[1], "head")


def test_augmentation_acts_in_training_alone(toy_trainer: Build) -> None:
    heads = []
    for noise in (0.0, 0.5):
        trainer = toy_trainer(
            {**SMALL, "train.epochs": 1, "data.noise": noise, "backbone.dropout": 0.0}
        )
        before = trainer.data.collate(list(trainer.data.samples("validation")))
        trainer.fit()
        after = trainer.data.collate(list(trainer.data.samples("validation")))
        assert identical(before, after)
        heads.append(trainer.model.head.state_dict())
    assert not identical(heads[0], heads[1])


@pytest.mark.parametrize("clip", [0.0, 0.01])
def test_clipping_limits_the_gradient(toy_trainer: Build, clip: float) -> None:
    """The first step of SGD is the gradient itself: its length can be measured."""
    recorder = Recorder()
    trainer = toy_trainer(
        {
            **SMALL,
            "train.max_steps": 1,
            "train.warmup": 0,
            "train.clip": clip,
            "train.optimizer": "sgd",
            "train.learning_rate": 1.0,
            "train.weight_decay": 0.0,
        },
        [recorder],
    )
    names = [name for name, _ in trainer.model.named_parameters()]
    recorder.watch(trainer.model)
    trainer.fit()
    before, after = recorder.states
    moved = torch.cat([(after[name] - before[name]).flatten() for name in names])
    if clip:
        assert float(moved.norm()) == pytest.approx(clip, rel=1e-3)
        (norm,) = recorder.values("train", "gradient_norm")
        assert norm > 10 * clip, "the norm that is logged is the one before clipping"
    else:
        assert float(moved.norm()) > 0.1


def test_moving_average_equals_one_by_hand(toy_trainer: Build, tmp_path: Path) -> None:
    recorder = Recorder()
    trainer = toy_trainer(
        {**SMALL, "train.epochs": 2, "train.ema": 0.8}, [recorder], tmp_path
    )
    recorder.watch(trainer.model)
    seen: list[Tensors] = []

    class Watched(MetricSet):
        def update(self, outputs: Any) -> None:
            seen.append(copy.deepcopy(trainer.evaluated.state_dict()))
            super().update(outputs)

    trainer.validation.metrics = Watched(
        trainer.recipe.metric_specs, trainer.data.task, torch.device("cpu")
    )
    trainer.fit()
    parameters = dict(trainer.model.named_parameters())
    average = {name: recorder.states[1][name].double() for name in parameters}
    for state in recorder.states[2:]:
        average = {
            name: 0.8 * value + 0.2 * state[name].double()
            for name, value in average.items()
        }
    last = recorder.states[-1]
    kept = newest_checkpoint(tmp_path)[0].kept_model()
    for name, expected in average.items():
        assert not torch.equal(kept[name], last[name])
        torch.testing.assert_close(kept[name].double(), expected, rtol=1e-5, atol=1e-6)
    # Validation looked at the average, and a buffer is the model's own.
    assert identical(seen[-1], kept)
    running = "backbone.stages.first.norm.running_mean"
    assert torch.equal(kept[running], last[running])


# When it validates, stops, and what it keeps


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"train.epochs": 2}, [6, 12]),
        ({"train.epochs": 2, "train.evaluate_every": 0.5}, [3, 6, 9, 12]),
        # Every 2.4 steps: after 2.4, 4.8, 7.2, 9.6 and 12.
        ({"train.epochs": 2, "train.evaluate_every": 0.4}, [3, 5, 8, 10, 12]),
        ({"train.epochs": 3, "train.evaluate_every": 2.0}, [12, 18]),
        ({"train.epochs": 0.5}, [3]),
        ({"train.epochs": 2, "train.max_steps": 8}, [6, 8]),
        ({"train.epochs": 1, "train.max_steps": 50}, [6]),
    ],
)
def test_validations_by_hand(
    toy_trainer: Build, overrides: dict[str, Any], expected: list[int]
) -> None:
    recorder = Recorder()
    trainer = toy_trainer({**SMALL, **overrides}, [recorder])
    assert trainer.fit() == "done"
    assert recorder.steps("validation") == expected
    assert trainer.progress.step == trainer.plan.total == expected[-1]
    # The last step of a training counts as well, wherever in an epoch it ends.
    lengths = [len(trainer.batches.batch(step)) for step in range(expected[-1])]
    assert trainer.batches.count == sum(lengths) > 0


@pytest.mark.parametrize(
    ("settings", "key", "values", "stop", "best"),
    [
        # Two validations without improvement; an equal value is none.
        ({"patience": 2}, "accuracy", [0.5, 0.6, 0.6, 0.59, 0.9], 4, 2),
        ({"patience": 1}, "accuracy", [0.5, 0.4, 0.9], 2, 1),
        # A new best value starts the count again.
        ({"patience": 2}, "accuracy", [0.5, 0.4, 0.6, 0.5, 0.7, 0.8], None, 6),
        ({"patience": 0}, "accuracy", [0.5, 0.4, 0.3, 0.2, 0.1, 0.1], None, 1),
        # min_delta decides when to stop, not which checkpoint is best.
        (
            {"patience": 2, "min_delta": 0.05},
            "accuracy",
            [0.5, 0.6, 0.61, 0.62, 0.9],
            4,
            4,
        ),
        # On the loss less is better; the best checkpoint is still by accuracy.
        ({"patience": 2, "metric": "loss"}, "loss", [0.9, 0.7, 0.8, 0.75, 0.1], 4, 1),
        (
            {"patience": 2, "metric": "loss", "min_delta": 0.1},
            "loss",
            [0.9, 0.85, 0.81, 0.1],
            3,
            1,
        ),
        # What is no number is no improvement.
        ({"patience": 2}, "accuracy", [0.5, math.nan, math.nan, 0.9], 3, 1),
        ({"patience": 2}, "accuracy", [math.nan, 0.5, 0.4, 0.4], 4, 2),
    ],
)
def test_early_stopping_by_hand(
    toy_trainer: Build,
    settings: dict[str, Any],
    key: str,
    values: list[float],
    stop: int | None,
    best: int,
) -> None:
    recorder = Recorder()
    overrides = {f"early_stopping.{name}": value for name, value in settings.items()}
    trainer = toy_trainer({**SMALL, "train.epochs": 6, **overrides}, [recorder])
    status = scripted(trainer, key, *values).fit()
    assert status == ("stopped early" if stop else "done")
    assert recorder.steps("validation") == [
        6 * (number + 1) for number in range(stop or 6)
    ]
    assert trainer.progress.best_step == 6 * best


def test_the_best_by_loss(toy_trainer: Build, tmp_path: Path) -> None:
    trainer = toy_trainer(
        {**SMALL, "train.epochs": 3, "metrics.best": "loss"}, (), tmp_path
    )
    scripted(trainer, "loss", 0.9, 0.3, 0.5).fit()
    assert open_checkpoint(tmp_path)[0].step == 12


def test_best_link_and_pruning(toy_trainer: Build, tmp_path: Path) -> None:
    recorder = Recorder()
    trainer = toy_trainer(
        {**SMALL, "train.epochs": 5, "train.keep_checkpoints": 2}, [recorder], tmp_path
    )
    scripted(trainer, "accuracy", 0.5, 0.9, 0.6, 0.7, 0.8).fit()
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"best", "step-000012", "step-000024", "step-000030"}
    assert (tmp_path / "best").resolve().name == "step-000012"
    assert open_checkpoint(tmp_path)[0].step == 12
    assert newest_checkpoint(tmp_path)[0].step == 30
    assert recorder.values("checkpoint", "best") == [True, True, False, False, False]
    assert recorder.values("checkpoint", "path")[0] == "step-000006"


class Spoil(Callback):
    """Breaks the head once the first epoch is over, and remembers the model of it."""

    def on_assembled(self, recipe: Any, assembly: Any, *rest: Any) -> None:
        self.model = assembly.model

    def on_step(self, step: int) -> None:
        if step == 7:
            self.good = self.before
            with torch.no_grad():
                for parameter in self.model.head.parameters():
                    parameter.zero_()
                self.model.head.linear.bias[0] = 1e6
        self.before = copy.deepcopy(self.model.state_dict())


def test_the_best_checkpoint_is_what_is_tested(
    registry: Registry, toy_parts: Callable[..., Any], tmp_path: Path
) -> None:
    spoil = Spoil()
    overrides = {**SMALL, "train.epochs": 2, "train.learning_rate": 0.05}
    done = run("toy/ring", overrides, folder=tmp_path / "run", callbacks=[spoil])
    assert done.summary["best_step"] == 6
    recipe, assembly, _ = toy_parts(overrides)
    assembly.model.load_state_dict(spoil.good)
    expected = evaluate(
        assembly.model,
        assembly.data,
        assembly.data.samples("test"),
        sizes=None,
        batch_size=64,
        execution=assembly.execution,
        metrics=MetricSet(
            recipe.metric_specs, assembly.data.task, assembly.execution.device
        ),
    )
    assert done.metrics == pytest.approx(expected.metrics, rel=1e-5)
    kept = open_checkpoint(tmp_path / "run" / "checkpoints")[0].kept_model()
    assert identical(spoil.good, kept)


def test_a_loss_that_is_no_number_stops_the_run(toy_trainer: Build) -> None:
    limits = {"train.log_every": 3, "train.bad_steps": 3}
    trainer = toy_trainer({**SMALL, "train.epochs": 2, **limits})
    with torch.no_grad():
        trainer.model.head.linear.weight.fill_(math.nan)
    with pytest.raises(HeadstartError, match="3 steps had a loss") as caught:
        trainer.fit()
    assert "learning_rate" in caught.value.faults[0].fix


# Frozen stages


def test_feature_extraction_leaves_the_backbone_bit_identical(
    registry: Registry, tmp_path: Path
) -> None:
    recorder = Recorder()
    run(
        "toy/ring",
        {**SMALL, "train.epochs": 2, "strategy.name": "feature-extraction"},
        folder=tmp_path / "run",
        callbacks=[recorder],
    )
    before = recorder.states[0]
    kept = open_checkpoint(tmp_path / "run" / "checkpoints")[0].tensors("model")
    assert any("running_mean" in key for key in before)
    assert identical(before, kept, "backbone")
    assert not identical(before, kept, "head")


def test_gradual_unfreezing_moves_each_stage_from_its_step_on(
    registry: Registry, tmp_path: Path
) -> None:
    recorder = Recorder()
    run(
        "toy/ring",
        {**SMALL, "train.epochs": 2, "strategy.name": "gradual"},
        folder=tmp_path / "run",
        callbacks=[recorder],
    )
    # Half of 12 steps in three parts: 'third' trains from step 2 on, and so on.
    first = recorder.states[0]
    for stage, start in {"third": 2, "second": 4, "first": 6}.items():
        part = f"backbone.stages.{stage}."
        for done, state in enumerate(recorder.states):
            if done <= start:
                assert identical(first, state, part), f"{stage} moved by step {done}"
            else:
                moved = [k for k in first if k.startswith(part)]
                assert not any(torch.equal(first[k], state[k]) for k in moved), stage
    assert recorder.steps("trainable") == [0, 2, 4, 6]
    assert recorder.values("trainable", "stages") == [
        [],
        ["third"],
        ["second", "third"],
        ["first", "second", "third"],
    ]


def test_linear_probing_then_fine_tuning(toy_trainer: Build) -> None:
    recorder = Recorder()
    trainer = toy_trainer(
        {
            **SMALL,
            "train.epochs": 2,
            "train.warmup": 0,
            "train.log_every": 1,
            "train.learning_rate": 0.01,
            "train.head_learning_rate": 0.03,
            "strategy.name": "lp-ft",
            "strategy.head_share": 0.5,
        },
        [recorder],
    )
    recorder.watch(trainer.model)
    trainer.fit()
    assert identical(recorder.states[0], recorder.states[6], "backbone")
    assert not identical(recorder.states[0], recorder.states[7], "backbone")
    sixths = [0.01 * left / 6 for left in (6, 5, 4, 3, 2, 1)]
    assert recorder.values("train", "learning_rate") == pytest.approx(sixths * 2)
    # The head has a rate of its own only while it trains alone.
    of_head = [*(3 * rate for rate in sixths), *sixths]
    assert recorder.values("train", "head_learning_rate") == pytest.approx(of_head)
    groups = trainer.update.optimizer.param_groups
    assert [group["lr"] for group in groups] == [pytest.approx(0.01 / 6)] * len(groups)
    # The second one begins without the head's moments of the first.
    optimizer = trainer.update.optimizer
    steps = {int(optimizer.state[p]["step"]) for p in trainer.model.parameters()}
    assert steps == {6}


# The learning-rate range test


def test_range_test_leaves_the_model_alone(toy_parts: Callable[..., Any]) -> None:
    recipe, assembly, plan = toy_parts({**SMALL, "strategy.name": "gradual"})
    model = assembly.model
    model.train_stages(plan.trainable(0))
    before = copy.deepcopy(model.state_dict())
    mode, trainable = model.training, model.trainable
    rate, curve = range_test(model, assembly.data, recipe, plan, assembly.execution)
    assert identical(before, model.state_dict())
    assert (model.training, model.trainable) == (mode, trainable)
    assert all(parameter.grad is None for parameter in model.parameters())
    rates = [tried for tried, _ in curve]
    assert rates == sorted(rates)
    assert rates[0] == pytest.approx(1e-7) and rates[-1] <= 0.1 * (1 + 1e-9)
    assert all(math.isfinite(loss) for _, loss in curve[:-1])
    assert 1e-7 <= rate <= 0.1


def test_range_test_sees_augmented_batches(
    toy_parts: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some losses read what only augmentation adds, e.g. sampled negatives."""
    recipe, assembly, plan = toy_parts({**SMALL, "data.noise": 0.5})
    given, seen = type(assembly.data).augment, []

    def augment(self: Any, batch: Any, generator: torch.Generator) -> Any:
        seen.append(len(batch["points"]))
        return given(self, batch, generator)

    monkeypatch.setattr(type(assembly.data), "augment", augment)
    _, curve = range_test(
        assembly.model, assembly.data, recipe, plan, assembly.execution, steps=7
    )
    assert len(seen) == len(curve)


def test_range_test_explains_a_single_sample(toy_parts: Callable[..., Any]) -> None:
    values = {**SMALL, "train.batch_size": 1}
    recipe, assembly, plan = toy_parts(values)
    with pytest.raises(UserError, match="BatchNorm cannot train on a single value"):
        range_test(assembly.model, assembly.data, recipe, plan, assembly.execution)


def curve_of(losses: Sequence[float]) -> list[tuple[float, float]]:
    return [(10.0 ** (index - 8), loss) for index, loss in enumerate(losses)]


def test_range_test_suggests_a_third_of_the_steepest_fall() -> None:
    # Over five steps the loss falls most from the fifth (1 to 0.05), whose middle is
    # at a learning rate of 1e-2; after the lowest it runs away.
    losses = [1, 1, 1, 1, 1, 0.9, 0.5, 0.2, 0.1, 0.05, 0.04, 0.9, math.inf]
    assert suggestion(curve_of(losses)) == pytest.approx(1e-2 / 3)
    assert suggestion(curve_of(losses[2:])) == pytest.approx(1e-4 / 3)


@pytest.mark.parametrize("losses", [[math.nan], [1.0, math.inf]])
def test_range_test_that_runs_away_at_once(losses: list[float]) -> None:
    with pytest.raises(HeadstartError, match="range test") as caught:
        suggestion(curve_of(losses))
    assert "train.learning_rate" in caught.value.faults[0].fix


def test_automatic_learning_rate_is_used_and_logged(
    registry: Registry, tmp_path: Path
) -> None:
    overrides = {
        **SMALL,
        "train.epochs": 1,
        "train.warmup": 0,
        "train.schedule": "constant",
        "train.learning_rate": "auto",
        "train.log_every": 1,
    }
    run("toy/ring", overrides, folder=tmp_path / "run")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    curve = [(e["learning_rate"], e["loss"]) for e in events if e["event"] == "range"]
    assert len(curve) > 20
    used = {e["learning_rate"] for e in events if e["event"] == "train"}
    assert used == {suggestion(curve)}


# Evaluation


def test_evaluation_equals_a_plain_loop(toy_parts: Callable[..., Any]) -> None:
    recipe, assembly, _ = toy_parts({"data.count": 100})
    samples = assembly.data.samples("train")
    batch = assembly.data.collate(list(samples))
    model = assembly.model.train()
    model.eval()
    with torch.no_grad():
        logits = model.head.linear(model.backbone.run(batch)["hidden"])
    model.train()
    expected = {
        "loss": float(nn.functional.cross_entropy(logits, batch["labels"])),
        "accuracy": float((logits.argmax(1) == batch["labels"]).float().mean()),
    }
    sizes = np.random.default_rng(0).integers(1, 90, len(samples))
    for size in (1, 7, 60, 1000):
        for given in (None, sizes):
            result = evaluate(
                model,
                assembly.data,
                samples,
                sizes=given,
                batch_size=size,
                execution=assembly.execution,
                metrics=MetricSet(
                    recipe.metric_specs, assembly.data.task, torch.device("cpu")
                ),
                collect=True,
            )
            assert result.metrics == pytest.approx(expected, rel=1e-5)
            assert result.outputs["target"].tolist() == batch["labels"].tolist()
            np.testing.assert_allclose(
                result.outputs["probabilities"],
                logits.softmax(1).numpy(),
                rtol=1e-4,
                atol=1e-6,
            )
            assert model.training, "the mode is put back"
