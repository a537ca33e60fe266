"""The frozen-prefix cache: nothing but the time may tell that it is there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tomli_w
import torch
from click.testing import CliRunner

from headstart import prefix_cache, prefix_files, prefix_store
from headstart.assembly import assemble
from headstart.callbacks import Callback
from headstart.cli_cache import cache as cache_command
from headstart.clock import Clock
from headstart.data import DataModule
from headstart.execution import Execution
from headstart.model import Model
from headstart.prefix_cache import PrefixCaches
from headstart.prefix_files import (
    INDEX,
    caches_root,
    locked,
    partial_folder,
    prune_caches,
    stored_caches,
)
from headstart.prefix_store import RowWriter, Uncacheable, read_cache
from headstart.recipe import load_recipe
from headstart.settings import CacheSettings
from headstart.testing.toy.data import Ring
from headstart.training_setup import make_trainer, plan_training

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from headstart.plugins import Registry

CPU = torch.device("cpu")
ON = {"cache.mode": "on"}
OFF = {"cache.mode": "off"}
SHORT = {"train.epochs": 3, "train.log_every": 1, "data.count": 90}
STRATEGIES: dict[str, dict[str, Any]] = {
    "feature extraction": {"strategy.name": "feature-extraction"},
    "layer retraining": {"strategy.name": "layer-retraining"},
    "gradual unfreezing": {
        "strategy.name": "gradual",
        "strategy.unfreeze_share": 0.9,
    },
}


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))


class Listener(Callback):
    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []
        self.told: list[str] = []

    def on_record(self, record: dict[str, Any]) -> None:
        self.records.append(record)

    def on_message(self, text: str) -> None:
        self.told.append(text)


@pytest.fixture
def train(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., SimpleNamespace]:
    """Train a recipe; what was logged, told and computed."""
    prefix = Model.prefix

    def build(overrides: dict[str, Any], name: str | Path = "toy/ring") -> Any:
        recipe = load_recipe(name, overrides, registry=registry)
        assembly = assemble(recipe, registry)
        plan = plan_training(recipe, assembly)
        listener = Listener()
        trainer = make_trainer(recipe, assembly, plan, Clock(CPU), [listener])
        passes = []

        def counted(model: Model, state: Any) -> Any:
            passes.append(trainer.progress.step)
            return prefix(model, state)

        monkeypatch.setattr(Model, "prefix", counted)
        trainer.fit()
        monkeypatch.setattr(Model, "prefix", prefix)
        records = listener.records
        return SimpleNamespace(
            losses=[r["loss"] for r in records if r["event"] == "train"],
            validations=[
                {k: v for k, v in r.items() if k not in ("time", "event")}
                for r in records
                if r["event"] == "validation"
            ],
            weights={k: v.clone() for k, v in assembly.model.state_dict().items()},
            told=[text for text in listener.told if "prefix cache" in text],
            passes=passes,
            phases=[start for start, _ in plan.changes],
            trainer=trainer,
        )

    return build


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """A recipe of a tiny encoder with dropout on texts of different lengths."""
    tiny = pytest.importorskip("headstart_nlp.tiny")
    tables = {
        "name": "test/texts",
        "summary": "made-up reviews",
        "backbone": {
            "name": "nlp/encoder",
            "weights": "none",
            "config": {
                "model_type": "bert",
                "vocab_size": 64,
                "hidden_size": 32,
                "intermediate_size": 32,
                "num_hidden_layers": 3,
                "num_attention_heads": 2,
                "max_position_embeddings": 64,
            },
        },
        "head": {"name": "nlp/classifier", "dropout": 0.2},
        "data": tiny.tiny_table(tmp_path),
        "train": {
            "epochs": 3,
            "batch_size": 6,
            "learning_rate": 0.001,
            "log_every": 1,
            "group_by_size": False,
        },
    }
    path = tmp_path / "texts.toml"
    path.write_text(tomli_w.dumps(tables))
    return path


# What is trained


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_training_from_the_cache_gives_the_same_losses(
    train: Callable[..., SimpleNamespace], strategy: str
) -> None:
    # A bias before BatchNorm has no gradient but rounding, which Adam would scale up.
    settings = {**SHORT, **STRATEGIES[strategy], "train.optimizer": "sgd"}
    plain = train({**settings, **OFF})
    cached = train({**settings, **ON})
    assert len(plain.losses) == 12
    assert plain.told == []
    # The prefix takes other samples at once than training does, and rounds so.
    assert cached.losses == pytest.approx(plain.losses, rel=2e-6)
    for ours, theirs in zip(cached.validations, plain.validations, strict=True):
        assert ours == pytest.approx(theirs, rel=2e-6)
    for name, value in plain.weights.items():
        torch.testing.assert_close(cached.weights[name], value, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_prefix_runs_at_the_start_of_a_phase_alone(
    train: Callable[..., SimpleNamespace], strategy: str
) -> None:
    settings = {**SHORT, **STRATEGIES[strategy]}
    cached = train({**settings, **ON})
    frozen = [start for start in cached.phases if start in cached.passes]
    whole = {"gradual unfreezing": 1}.get(strategy, 0)
    assert len(frozen) == len(cached.phases)
    # Only the phase in which all trains has no prefix to keep.
    last = cached.phases[-1] if whole else 10**9
    assert {step for step in cached.passes if step < last} <= set(cached.phases)
    assert len([text for text in cached.told if ": on, " in text]) == 2 * (
        len(cached.phases) - whole
    )


@pytest.mark.parametrize("pooling", ["mean", "attention"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_ragged_texts_give_the_same_losses(
    train: Callable[..., SimpleNamespace], texts: Path, strategy: str, pooling: str
) -> None:
    settings = {**STRATEGIES[strategy], "head.pooling": pooling}
    plain = train({**settings, **OFF}, texts)
    cached = train({**settings, **ON}, texts)
    # Texts of one length go through the prefix together, which rounds differently.
    assert cached.losses == pytest.approx(plain.losses, rel=1e-5)
    for ours, theirs in zip(cached.validations, plain.validations, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    assert sum(": on, " in text for text in cached.told) == 2 * (
        len(cached.phases) - (strategy == "gradual unfreezing")
    )


def test_without_dropout_in_what_trains_losses_would_differ(
    train: Callable[..., SimpleNamespace], texts: Path
) -> None:
    """The comparison above would notice a head that is not in training mode."""
    settings = {**STRATEGIES["feature extraction"], **ON}
    assert (
        train(settings, texts).losses
        != train({**settings, "head.dropout": 0.0}, texts).losses
    )


# Augmentation


NOISY = {**SHORT, **STRATEGIES["feature extraction"], "data.noise": 0.3}


def test_random_augmentation_is_not_cached_unless_asked(
    train: Callable[..., SimpleNamespace],
) -> None:
    done = train({**NOISY, **ON})
    training, validation = done.told
    assert "(train): off" in training and "cache.views" in training
    assert "(validation): on" in validation
    assert done.losses == train({**NOISY, **OFF}).losses


def test_views_differ_and_take_turns(
    train: Callable[..., SimpleNamespace],
) -> None:
    done = train({**NOISY, **ON, "cache.views": 2, "train.epochs": 4})
    cache = done.trainer._train_cache
    samples = np.array([3, 0, 17])
    views = [cache.batch(samples, epoch)["hidden"] for epoch in range(4)]
    assert torch.equal(views[0], views[2]) and torch.equal(views[1], views[3])
    assert not torch.equal(views[0], views[1])
    unchanged = train({**SHORT, **STRATEGIES["feature extraction"], **ON})
    plain = unchanged.trainer._train_cache.batch(samples, 0)
    assert all(not torch.equal(view, plain["hidden"]) for view in views)
    assert torch.equal(plain["labels"], cache.batch(samples, 1)["labels"])
    # Whoever validates does so without augmentation.
    assert done.trainer._validation_cache is not None


# What is stored


def write(
    folder: Path, batches: list[tuple[Any, int]], precision: str = "same"
) -> Path:
    folder.mkdir()
    with RowWriter(folder, precision) as writer:
        rows = [writer.write(state, count) for state, count in batches]
        writer.finish(np.concatenate(rows)[None], {"split": "train"})
    return folder


def read(folder: Path, memory: float = 1e9, **padding: float) -> Any:
    return read_cache(folder, memory_bytes=memory, device=CPU, padding=padding)


def nested(rows: range, length: int, width: int) -> dict[str, Any]:
    """Rows that are told apart by their values."""
    count = len(rows)
    base = torch.tensor(list(rows))
    return {
        "tokens": base[:, None, None] + torch.arange(length * 2.0).view(1, length, 2),
        "image": (
            base[:, None, None] * 100
            + torch.arange(length * width).view(1, length, width)
        ).to(torch.bfloat16),
        "skips": [base.float()[:, None], {"a.b": base % 2 == 0, "[0]": base}],
        "pair": (base.to(torch.int16), None),
        "scale": 0.5,
        "empty": {},
        "none": torch.zeros(count, 0),
    }


@pytest.mark.parametrize("memory", [1e9, 0])
def test_nested_and_ragged_states_come_back(tmp_path: Path, memory: float) -> None:
    parts = [nested(range(4), 3, 5), nested(range(4, 6), 2, 7)]
    folder = write(tmp_path / "c", [(parts[0], 4), (parts[1], 2)])
    cache = read(folder, memory, tokens=-1.0)
    state = cache.batch(np.array([5, 0, 3]), 0)
    assert list(state) == list(parts[0])
    tokens = torch.full((3, 3, 2), -1.0)
    tokens[0, :2] = parts[1]["tokens"][1]
    tokens[1:] = parts[0]["tokens"][[0, 3]]
    assert torch.equal(state["tokens"], tokens)
    image = torch.zeros(3, 3, 7, dtype=torch.bfloat16)
    image[0, :2, :7] = parts[1]["image"][1]
    image[1:, :3, :5] = parts[0]["image"][[0, 3]]
    assert torch.equal(state["image"], image)
    assert torch.equal(state["skips"][0], torch.tensor([[5.0], [0.0], [3.0]]))
    assert state["skips"][1]["a.b"].tolist() == [False, True, False]
    assert state["skips"][1]["[0]"].tolist() == [5, 0, 3]
    assert type(state["pair"]) is tuple and state["pair"][1] is None
    assert state["pair"][0].dtype == torch.int16
    assert (state["scale"], state["empty"]) == (0.5, {})
    assert state["none"].shape == (3, 0)
    # Rows of one shape are given without anything around them.
    assert cache.batch(np.array([4]), 0)["tokens"].shape == (1, 2, 2)


@pytest.mark.parametrize(("memory", "mapped"), [(1e9, False), (100, True)])
def test_what_exceeds_the_memory_is_mapped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: float, mapped: bool
) -> None:
    opened = []
    memmap = np.memmap
    monkeypatch.setattr(
        np, "memmap", lambda *a, **k: opened.append(a[0].name) or memmap(*a, **k)
    )
    values = torch.arange(400.0).view(40, 10)
    cache = read(write(tmp_path / "c", [({"x": values}, 40)]), memory)
    assert opened == (["0.bin"] if mapped else [])
    assert torch.equal(cache.batch(np.array([7, 2]), 0)["x"], values[[7, 2]])


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)]
)
def test_half_precision_takes_half_and_is_given_as_it_was(
    tmp_path: Path, precision: str, dtype: torch.dtype
) -> None:
    values = torch.linspace(-3, 3, 500).view(50, 10)
    state = {"x": values, "labels": torch.arange(50)}
    folder = write(tmp_path / "c", [(state, 50)], precision)
    assert (folder / "0.bin").stat().st_size == 1000
    given = read(folder).batch(np.arange(50), 0)
    assert given["x"].dtype == torch.float32
    assert torch.equal(given["x"], values.to(dtype).float())
    assert torch.equal(given["labels"], state["labels"])


def test_values_too_large_for_half_precision_are_not_stored(tmp_path: Path) -> None:
    with pytest.raises(Uncacheable, match="fp16"):
        write(tmp_path / "c", [({"x": torch.tensor([[1.0], [1e6]])}, 2)], "fp16")


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ({"x": torch.zeros(2), "bias": torch.zeros(3)}, "'bias' in the state has no"),
        ({"x": torch.zeros(2), "a": [torch.tensor(1.0)]}, "'a.0' in the state has no"),
        ({"x": torch.zeros(2), "a": {"b": object()}}, "'a.b' in the state is a object"),
        ({"n": 2}, "no tensor"),
    ],
)
def test_what_has_no_rows_is_refused(
    tmp_path: Path, state: dict[str, Any], reason: str
) -> None:
    with pytest.raises(Uncacheable, match=reason):
        write(tmp_path / "c", [(state, 2)])


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({"x": torch.zeros(2), "n": 2}, "'n' .* varies"),
        ({"x": torch.zeros(2)}, "'n' .* varies"),
        ({"x": torch.zeros(2, 1), "n": 1}, "'x' .* varies"),
        ({"x": torch.zeros(2).double(), "n": 1}, "'x' .* varies"),
        ({"n": 1, "x": torch.zeros(2), "e": []}, "not built alike"),
    ],
)
def test_what_varies_from_batch_to_batch_is_refused(
    tmp_path: Path, other: dict[str, Any], reason: str
) -> None:
    first = {"x": torch.zeros(2), "n": 1}
    with pytest.raises(Uncacheable, match=reason):
        write(tmp_path / "c", [(first, 2), (other, 2)])


# Whether it pays


class Watch:
    """A clock that only slow stages move."""

    seconds = 0.0

    def perf_counter(self) -> float:
        return self.seconds

    strftime = staticmethod(time.strftime)


@pytest.fixture(autouse=True)
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    made = Watch()
    monkeypatch.setattr(prefix_cache, "time", made)
    return made


@pytest.fixture
def slow(watch: Watch) -> Callable[[Any], None]:
    """Every pass through the first stage takes .02 s."""

    def change(assembly: Any) -> None:
        stage = assembly.model.backbone.stages["first"]
        forward = stage.forward

        def delayed(state: Any) -> Any:
            watch.seconds += 0.02
            return forward(state)

        stage.forward = delayed

    return change


@pytest.fixture
def choose(
    registry: Registry,
) -> Callable[..., SimpleNamespace]:
    """Choose a cache of the toy with its two first stages frozen."""

    def build(
        passes: float = 10,
        change: Callable[[Any], object] = lambda assembly: None,
        data: dict[str, Any] | None = None,
        bf16: bool = False,
        frozen: int = 2,
        split: Any = "train",
        seed: int = 0,
        total: float | None = None,
        asked: Callable[[], bool] = lambda: False,
        **settings: Any,
    ) -> SimpleNamespace:
        overrides = {"data.count": 60, **(data or {})}
        recipe = load_recipe("toy/ring", overrides, registry=registry)
        assembly = assemble(recipe, registry)
        change(assembly)
        names = assembly.model.backbone.stage_names
        assembly.model.train()
        assembly.model.train_stages(frozenset(names[frozen:]))
        told: list[str] = []
        from headstart.distributed import World

        caches = PrefixCaches(
            assembly.model,
            assembly.data,
            CacheSettings(**settings),
            Execution(CPU, bf16),
            batch_size=16,
            batch_total=total,
            seed=seed,
            tell=told.append,
            world=World(),
            asked=asked,
        )
        cache = caches.choose(split, passes)
        assert assembly.model.training and assembly.model.head.training
        return SimpleNamespace(cache=cache, told=told[-1] if told else "", all=told)

    return build


def test_auto_is_on_where_it_pays_and_says_what_it_gains(
    choose: Callable[..., SimpleNamespace], slow: Callable[[Any], None]
) -> None:
    # 36 samples at .02 s for 16 of them: .045 s a pass; 39 of 40 are saved.
    done = choose(passes=40, change=slow)
    assert done.cache is not None
    assert done.told == ("prefix cache (train): on, 0.0 MiB, saves about 1.8 of 1.8 s")


def test_auto_is_off_where_it_would_not_pay(
    choose: Callable[..., SimpleNamespace], slow: Callable[[Any], None]
) -> None:
    tiny = choose(passes=3, change=slow)
    assert tiny.cache is None
    assert "(train): off, 0.0 MiB, saves about 0.1 of 0.1 s" in tiny.told
    start = (
        "prefix cache (train): off, from this freeze point, training runs over train "
    )
    for passes, words in ((2 / 3, "less than once"), (1, "once")):
        few = choose(passes=passes, change=slow)
        assert few.cache is None
        assert few.told == f"{start}{words}, filling it does so once"
    views = choose(passes=2.5, change=slow, data={"data.noise": 0.1}, views=3)
    assert views.cache is None
    assert views.told == f"{start}2.5 times, filling it does so 3 times"
    assert not list(caches_root().glob(f"*/{INDEX}"))
    assert choose(passes=1, mode="on").cache is not None


def test_who_asks_to_stop_is_heard_between_two_batches(
    choose: Callable[..., SimpleNamespace],
) -> None:
    # 36 samples by 16: two of three batches are written when somebody asks.
    answers = iter([False, False, False, True])
    done = choose(mode="on", asked=lambda: next(answers))
    assert done.cache is None and next(answers, None) is None
    assert done.told == (
        "prefix cache (train): stopped before it was whole, nothing of it is kept"
    )
    left = [path for path in caches_root().iterdir() if path.suffix != ".lock"]
    assert left == []
    assert choose(mode="on", asked=lambda: True).cache is None
    assert choose(mode="on").cache is not None


def test_a_slow_disk_is_part_of_the_bargain(
    choose: Callable[..., SimpleNamespace],
    slow: Callable[[Any], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # 36 rows of 40 bytes: .36 s each time they are read, instead of .045 s.
    monkeypatch.setattr(prefix_cache, "MAPPED", 4e3)
    assert choose(change=slow, memory_gb=0).cache is None
    assert choose(change=slow).cache is not None


def test_limits_of_space_turn_it_off(
    choose: Callable[..., SimpleNamespace], monkeypatch: pytest.MonkeyPatch
) -> None:
    done = choose(mode="on", disk_gb=0)
    assert done.cache is None
    assert "off, it needs 0.0 MiB, more than cache.disk_gb allows" in done.told
    monkeypatch.setattr(
        prefix_cache.shutil, "disk_usage", lambda path: SimpleNamespace(free=100)
    )
    done = choose(mode="on")
    assert done.cache is None and "half of the free disk space" in done.told


def test_a_disk_that_fills_up_turns_it_off(
    choose: Callable[..., SimpleNamespace], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RowWriter, "write", full)
    done = choose(mode="on")
    assert done.cache is None and "No space left on device" in done.told
    assert [path.suffix for path in caches_root().iterdir()] == [".lock"]


def test_states_without_rows_turn_it_off(
    choose: Callable[..., SimpleNamespace],
) -> None:
    def extra(value: Any) -> Callable[[Any], None]:
        def change(assembly: Any) -> None:
            stage = assembly.model.backbone.stages["second"]
            forward = stage.forward
            stage.forward = lambda state: {**forward(state), "extra": value(state)}

        return change

    table = choose(mode="on", change=extra(lambda state: torch.zeros(16, 16)))
    assert table.cache is None
    assert "off, 'extra' in the state has no row per sample" in table.told
    # 36 samples in batches of 16: the last one is smaller.
    count = choose(mode="on", change=extra(lambda state: len(state["labels"])))
    assert count.cache is None and "'extra' in the state varies" in count.told
    assert {path.suffix for path in caches_root().iterdir()} == {".lock"}


def test_other_reasons_are_told(choose: Callable[..., SimpleNamespace]) -> None:
    done = choose(data={"data.noise": 0.1})
    assert done.cache is None and "augmentation before the freeze point" in done.told


# The key


def weight(assembly: Any) -> None:
    assembly.model.backbone.stages["first"].linear.weight.data.view(-1).view(
        torch.uint8
    )[-1] ^= 1


def buffer(assembly: Any) -> None:
    assembly.model.backbone.stages["second"].norm.running_mean[0] += 1


def trained(assembly: Any) -> None:
    assembly.model.backbone.stages["third"].linear.weight.data += 1
    assembly.model.head.linear.weight.data += 1


def reduction(assembly: Any) -> None:
    head = assembly.model.head
    head.__class__ = type("Other", (type(head),), {"reduction": "mean"})


OTHERS: dict[str, dict[str, Any]] = {
    "a byte of a weight": {"change": weight},
    "a buffer": {"change": buffer},
    "data": {"data": {"data.count": 61}},
    "seed": {"data": {"train.seed": 1}},
    "dtype": {"bf16": True},
    "freeze point": {"frozen": 1},
    "stored precision": {"precision": "fp16"},
    "split": {"split": "validation"},
}


@pytest.mark.parametrize("what", OTHERS)
def test_a_change_of_what_it_depends_on_makes_another(
    choose: Callable[..., SimpleNamespace], what: str
) -> None:
    assert ": on, " in choose(mode="on").told
    assert ": found, " in choose(mode="on").told
    assert ": on, " in choose(mode="on", **OTHERS[what]).told
    assert len(stored_caches()) == 2
    assert ": found, " in choose(mode="on").told


def test_what_it_does_not_depend_on_finds_it(
    choose: Callable[..., SimpleNamespace],
) -> None:
    assert ": on, " in choose(mode="on").told
    assert ": found, " in choose(mode="on", change=trained).told
    assert ": found, " in choose(mode="on", change=reduction).told


def test_the_reduction_of_the_head_counts_when_all_is_frozen(
    choose: Callable[..., SimpleNamespace],
) -> None:
    assert ": on, " in choose(mode="on", frozen=3).told
    assert ": found, " in choose(mode="on", frozen=3).told
    assert ": on, " in choose(mode="on", frozen=3, change=reduction).told


def test_views_are_of_a_seed(choose: Callable[..., SimpleNamespace]) -> None:
    noisy = {"data.noise": 0.1}
    for views in (1, 2):
        settings = {"mode": "on", "data": noisy, "views": views}
        assert ": on, " in choose(**settings).told
        assert ": found, " in choose(**settings).told
        # And of the batches, whose samples share it.
        for other in ({"seed": 1}, {"total": 4}):
            (told,) = choose(**settings, **other).all
            assert ": on, " in told
    # Without augmentation there is no chance in it.
    assert ": on, " in choose(mode="on").told
    assert ": found, " in choose(mode="on", seed=1).told


def test_every_batch_of_every_view_has_its_own_chance(
    choose: Callable[..., SimpleNamespace], monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds = []
    augment = Ring.augment

    def noted(data: Any, batch: Any, generator: torch.Generator) -> Any:
        seeds.append(generator.initial_seed())
        return augment(data, batch, generator)

    monkeypatch.setattr(Ring, "augment", noted)
    choose(mode="on", data={"data.noise": 0.1}, views=3)
    # 36 samples in batches of 16, three times; before that, two looks at the first.
    assert len(seeds[-9:]) == len(set(seeds[-9:])) == 9


def test_the_length_of_texts_is_part_of_the_key(
    train: Callable[..., SimpleNamespace], texts: Path
) -> None:
    settings = {**STRATEGIES["feature extraction"], **ON, "train.epochs": 1}
    train(settings, texts)
    again = train(settings, texts)
    assert all(": found, " in text for text in again.told)
    shorter = train({**settings, "data.max_length": 6}, texts)
    assert all(": on, " in text for text in shorter.told)


def test_views_of_texts_are_found_again(
    train: Callable[..., SimpleNamespace], texts: Path
) -> None:
    settings = {
        **STRATEGIES["feature extraction"],
        **ON,
        "data.token_dropout": 0.2,
        "cache.views": 2,
    }
    first, again = train(settings, texts), train(settings, texts)
    assert all(": on, " in text for text in first.told)
    assert all(": found, " in text for text in again.told)
    assert again.losses == first.losses


def test_code_that_changed_is_noticed(choose: Callable[..., SimpleNamespace]) -> None:
    """The key knows weights and settings, not what a stage does with them."""

    def other_code(assembly: Any) -> None:
        stage = assembly.model.backbone.stages["second"]
        forward = stage.forward
        stage.forward = lambda state: {
            **state,
            "hidden": 2 * forward(state)["hidden"],
        }

    first = choose(mode="on").cache.batch(np.arange(5), 0)["hidden"]
    changed = choose(mode="on", change=other_code)
    assert "useless, the model now gives other values" in changed.all[0]
    assert ": on, " in changed.told
    found = changed.cache.batch(np.arange(5), 0)["hidden"]
    torch.testing.assert_close(found, 2 * first)


# The folder


def damaged(folder: Path, how: str) -> None:
    file = folder / ("0.bin" if how != "index" else INDEX)
    content = bytearray(file.read_bytes())
    if how == "cut":
        file.write_bytes(content[:-4])
    elif how == "missing":
        file.unlink()
    elif how == "index":
        file.write_bytes(content.replace(b'"float32"', b'"float16"', 1))
    elif how == "no index":
        (folder / INDEX).unlink()
    else:
        content[len(content) // 2] ^= 1
        file.write_bytes(content)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("cut", "0.bin has"),
        ("missing", "0.bin is missing"),
        ("changed", "0.bin was changed"),
        ("index", "index.json was changed"),
        ("no index", "index.json is missing"),
    ],
)
def test_a_damaged_cache_is_made_anew(
    choose: Callable[..., SimpleNamespace], how: str, message: str
) -> None:
    good = choose(mode="on").cache.batch(np.arange(36), 0)
    (folder,) = [path for path in caches_root().iterdir() if path.is_dir()]
    damaged(folder, how)
    again = choose(mode="on")
    assert "the stored one is useless" in again.all[0] and message in again.all[0]
    assert ": on, " in again.told
    for name, value in again.cache.batch(np.arange(36), 0).items():
        assert torch.equal(value, good[name])
    assert ": found, " in choose(mode="on").told


def test_every_single_byte_and_cut_is_noticed(tmp_path: Path) -> None:
    state = {"x": torch.arange(12.0).view(4, 3), "labels": torch.arange(4)}
    folder = write(tmp_path / "c", [(state, 4)])
    assert prefix_files.damage(folder) == ""
    tried = 0
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        for place in range(len(content)):
            changed = bytearray(content)
            changed[place] ^= 1 << (place % 8)
            path.write_bytes(changed)
            # Space for space is no change of JSON.
            if path.name != INDEX or json.loads(content) != loaded(changed):
                assert prefix_files.damage(folder), f"{path.name}, byte {place}"
                tried += 1
        for length in range(0, len(content), 7):
            path.write_bytes(content[:length])
            assert prefix_files.damage(folder), f"{path.name} cut to {length}"
        path.write_bytes(content)
    assert prefix_files.damage(folder) == ""
    assert tried > 800


def loaded(content: bytes | bytearray) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        return None


MAKER = """
import sys, time
from headstart.assembly import assemble
from headstart.distributed import World
from headstart.plugins import load_plugins
from headstart.prefix_cache import PrefixCaches
from headstart.recipe import load_recipe
from headstart.testing import toy

registry = load_plugins()
registry.add(toy, "toy")
overrides = {"data.count": 60, "cache.mode": "on", "train.batch_size": 2}
recipe = load_recipe("toy/ring", overrides, registry=registry)
assembly = assemble(recipe, registry)
model = assembly.model
model.train_stages(frozenset({"third"}))
pause = float(sys.argv[1])
prefix = model.prefix
model.prefix = lambda state: (time.sleep(pause), prefix(state))[1]
caches = PrefixCaches(
    model, assembly.data, recipe.cache, assembly.execution, batch_size=4, seed=0,
    tell=lambda text: print(text, flush=True), world=World(),
)
print("ready", flush=True)
sys.stdin.readline()
cache = caches.choose("train", 5)
import numpy as np
print(float(cache.batch(np.arange(36), 0)["hidden"].sum()), flush=True)
"""


@pytest.fixture
def maker() -> Iterator[Callable[[float], subprocess.Popen[str]]]:
    """Processes that make the same cache, each of their batches after a pause."""
    started = []

    def start(pause: float) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", MAKER, str(pause)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


def test_processes_share_one_and_killed_ones_leave_none(
    maker: Callable[[float], subprocess.Popen[str]],
) -> None:
    first, second, third = maker(0.1), maker(0.02), maker(0.0)
    for process in (first, second, third):
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    go(first)
    assert first.stdout is not None
    assert ": on, " in first.stdout.readline()
    deadline = time.monotonic() + 20
    while not list(caches_root().glob(".*.partial/0.bin")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    first.wait()
    # What the killed one left is neither listed nor taken for a cache.
    assert stored_caches() == []
    assert list(caches_root().glob(".*.partial"))
    for process in (second, third):
        go(process)
    shown = [process.communicate(timeout=60)[0] for process in (second, third)]
    makers = [text for text in shown if ": on, " in text]
    assert len(makers) == 1
    (reader,) = [text for text in shown if text not in makers]
    assert ": found, " in reader
    assert makers[0].splitlines()[-1] == reader.splitlines()[-1]
    assert len(stored_caches()) == 1
    assert not list(caches_root().glob(".*"))


def test_prune_removes_what_killed_processes_left(
    choose: Callable[..., SimpleNamespace],
) -> None:
    choose(mode="on")
    (whole,) = stored_caches()
    for name in ("dead", "alive"):
        folder = caches_root() / name
        partial_folder(folder).mkdir()
        (caches_root() / f"{name}.lock").touch()
    with locked(caches_root() / "alive", lambda: None):
        assert prune_caches(keep_bytes=10**9) == []
        with locked(whole.folder, lambda: None):
            assert prune_caches() == []
    left = {path.name for path in caches_root().iterdir()}
    assert left == {
        whole.folder.name,
        f"{whole.folder.name}.lock",
        ".alive.partial",
        "alive.lock",
    }


def test_prune_goes_by_last_use(choose: Callable[..., SimpleNamespace]) -> None:
    for number, frozen in enumerate((1, 2, 3)):
        choose(mode="on", frozen=frozen)
        for path in caches_root().glob(f"*/{INDEX}"):
            if path.stat().st_mtime > 1e9:
                os.utime(path, (number, number))
    choose(mode="on", frozen=1)
    second, third, first = stored_caches()
    assert [cache.about["freeze_point"] for cache in (first, second, third)] == [
        "first",
        "second",
        "third",
    ]
    gone = prune_caches(first.bytes + third.bytes)
    assert [cache.folder for cache in gone] == [second.folder]
    assert ": on, " in choose(mode="on", frozen=2).told
    assert ": found, " in choose(mode="on", frozen=3).told


def test_the_command_lists_and_prunes(choose: Callable[..., SimpleNamespace]) -> None:
    invoke = CliRunner().invoke
    assert invoke(cache_command).exit_code == 0
    choose(mode="on")
    choose(mode="on", split="validation")
    (caches_root() / "broken").mkdir()
    (caches_root() / "broken" / INDEX).write_text("{")
    listed = invoke(cache_command, ["list"])
    assert listed.exit_code == 0
    rows = [line.split()[-4:] for line in listed.stdout.splitlines()[1:]]
    assert sorted(rows) == [
        ["damaged"] * 4,
        ["train", "36", "1", "second"],
        ["validation", "12", "1", "second"],
    ]
    rows = json.loads(invoke(cache_command, ["--json"]).stdout)
    assert {row["split"] for row in rows} == {"train", "validation", "damaged"}
    kept = invoke(cache_command, ["prune", "--keep", "1"])
    assert "deleted 0 caches" in kept.stdout and len(stored_caches()) == 3
    pruned = invoke(cache_command, ["prune"])
    assert "deleted 3 caches" in pruned.stdout and stored_caches() == []
    assert list(caches_root().iterdir()) == []


def test_a_padding_value_comes_from_the_data(
    train: Callable[..., SimpleNamespace], texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = pytest.importorskip("headstart_nlp.data").TextTable
    assert issubclass(table, DataModule)
    monkeypatch.setattr(table, "padding", {"attention_mask": 7})
    settings = {**STRATEGIES["layer retraining"], **ON, "train.epochs": 1}
    done = train(settings, texts)
    sizes = done.trainer.data.sizes("train")
    samples = np.array([sizes.argmax(), sizes.argmin()])
    mask = done.trainer._train_cache.batch(samples, 0)["attention_mask"]
    assert mask[0].tolist() == [1] * sizes.max()
    assert mask[1].tolist() == [1] * sizes.min() + [7] * (sizes.max() - sizes.min())


def test_a_uniform_batch_is_one_look_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the second epoch on nothing but this is left of the prefix."""
    state = {"pooled": torch.randn(64, 8), "labels": torch.arange(64)}
    cache = read(write(tmp_path / "c", [(state, 64)]))
    looked: list[torch.Size] = []
    select = torch.Tensor.index_select

    def counted(tensor: torch.Tensor, *arguments: Any) -> torch.Tensor:
        looked.append(tensor.shape)
        return select(tensor, *arguments)

    monkeypatch.setattr(torch.Tensor, "index_select", counted)
    monkeypatch.setattr(prefix_store.Column, "_padded", None)
    monkeypatch.setattr(prefix_store.Column, "_nested", None)
    cache.batch(np.arange(3, 9), 0)
    assert looked == [(64, 8), (64,)]
