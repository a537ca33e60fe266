"""Two ranks on one machine (gloo), started by torchrun, against one rank."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import tomli_w
import torch
from torch.distributed import HashStore

import headstart
from headstart.checkpoint import newest_checkpoint
from headstart.distributed import of_this_start
from headstart.plugins import load_plugins
from headstart.testing import toy

if TYPE_CHECKING:
    from collections.abc import Iterator

DRIVER = Path(__file__).with_name("distributed_driver.py")
TORCHRUN = [
    *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"),
    *("--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "--local-addr=127.0.0.1"),
]
# 25 samples train: batches of 8, 8, 4 and 5, of which ranks get unequal shares.
TEXTS = {"data.validation_size": 7, "data.test_size": 8, "train.epochs": 3}
RUNS: dict[str, dict[str, Any]] = {
    "global": {},
    "weighted": {"head.class_weights": {"positive": 5.0, "negative": 0.2}},
    "unfreezing": {"strategy.name": "gradual", "strategy.unfreeze_share": 0.7},
    "cached": {"strategy.name": "layer-retraining", "cache.mode": "on"},
    "recomputed": {"train.gradient_checkpointing": True, "train.accumulate": 2},
    "sharded": {"train.parallel": "fsdp"},
    "sharded recomputed": {
        "train.parallel": "fsdp",
        "train.gradient_checkpointing": True,
    },
    "sharded unfreezing": {
        "train.parallel": "fsdp",
        "strategy.name": "gradual",
        "strategy.unfreeze_share": 0.7,
    },
    "sharded parts": {"train.parallel": "fsdp", "train.accumulate": 2},
}
REFUSED = {
    "indivisible": {"train.batch_size": 7},
    "average of shards": {"train.parallel": "fsdp", "train.ema": 0.9},
}


@pytest.fixture(scope="module", autouse=True)
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    pytest.importorskip("headstart_nlp")
    load_plugins().add(toy, "toy")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEADSTART_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("GLOO_SOCKET_IFNAME", "lo")
        yield
    load_plugins.cache_clear()


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny encoder with dropout on texts of different lengths."""
    from headstart_nlp.tiny import tiny_table

    folder = tmp_path_factory.mktemp("texts")
    config = {
        "model_type": "bert",
        "vocab_size": 64,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
    }
    tables = {
        "name": "test/texts",
        "summary": "made-up reviews",
        "backbone": {"name": "nlp/encoder", "weights": "none", "config": config},
        "head": {"name": "nlp/classifier", "dropout": 0.2},
        "data": tiny_table(folder),
        "train": {"batch_size": 8, "learning_rate": 0.002, "log_every": 1},
        "report": {"baselines": False},
    }
    path = folder / "texts.toml"
    path.write_text(tomli_w.dumps(tables))
    return path


def start(folder: Path, job: dict[str, Any], *options: str) -> subprocess.Popen[str]:
    """Two ranks that do a job."""
    path = folder / "job.json"
    path.write_text(json.dumps(job))
    return subprocess.Popen(
        [*TORCHRUN, *options, str(DRIVER), str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process: subprocess.Popen[str]) -> None:
    """Whatever is left of a job: torchrun ends its ranks, in half a minute at most."""
    if process.poll() is None:
        process.terminate()
        process.communicate(timeout=90)


@pytest.fixture(scope="module")
def two_ranks(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every run, done on two ranks; the folder that holds them."""
    folder = tmp_path_factory.mktemp("ranks")
    runs = [
        {
            "recipe": str(recipe),
            "overrides": {**TEXTS, **RUNS.get(name, {}), **REFUSED.get(name, {})},
            "folder": str(folder / name.replace(" ", "-")),
            "hashes": not name.startswith("sharded"),
        }
        for name in [*RUNS, *REFUSED]
    ]
    process = start(folder, {"runs": runs})
    try:
        _, errors = process.communicate(timeout=240)
    finally:
        end(process)
    assert process.returncode == 0, errors
    return folder


def events(folder: Path, *kinds: str) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    records = map(json.loads, lines)
    return [
        {k: v for k, v in record.items() if k not in ("event", "time")}
        for record in records
        if record["event"] in kinds
    ]


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    checkpoint, _ = newest_checkpoint(folder / "checkpoints")
    found: dict[str, torch.Tensor] = checkpoint.tensors("model")
    return found


@pytest.mark.parametrize("name", RUNS)
def test_two_ranks_equal_one(
    two_ranks: Path, recipe: Path, tmp_path: Path, name: str
) -> None:
    theirs = two_ranks / name.replace(" ", "-")
    overrides = {**TEXTS, **RUNS[name], "train.parallel": "ddp"}
    overrides["train.accumulate"] = 2 * RUNS[name].get("train.accumulate", 1)
    one = headstart.run(recipe, overrides, folder=tmp_path / "one")
    for kinds in (("train",), ("validation",)):
        expected, found = events(one.folder, *kinds), events(theirs, *kinds)
        assert len(found) == len(expected) == (12 if kinds == ("train",) else 3)
        for ours, other in zip(expected, found, strict=True):
            assert other == pytest.approx(ours, rel=2e-4, abs=1e-6)
    expected_weights, found_weights = tensors(one.folder), tensors(theirs)
    assert expected_weights.keys() == found_weights.keys()
    for key, value in expected_weights.items():
        torch.testing.assert_close(found_weights[key], value, rtol=1e-3, atol=1e-4)
    done = headstart.Run(theirs)
    assert done.metrics == pytest.approx(one.metrics, rel=1e-4)
    assert done.summary["ranks"] == 2
    # No sample counts twice: one rank, on the very same weights, finds the same.
    assert done.evaluate() == pytest.approx(done.metrics, rel=1e-5)


@pytest.mark.parametrize("name", [n for n in RUNS if not n.startswith("sharded")])
def test_ranks_hold_the_same_bits(two_ranks: Path, name: str) -> None:
    first, second = (
        json.loads((two_ranks / f"{name}.hashes{rank}").read_text()) for rank in (0, 1)
    )
    assert first == second
    assert first[0] != first[-1] and first[-1][0] == "end"
    if name == "unfreezing":
        trained = [stages for stages, _ in first]
        assert len(set(trained)) >= 4, trained
        assert len({found for _, found in first}) >= 4


def test_rank_0_alone_writes(two_ranks: Path) -> None:
    made = {path.name for path in two_ranks.iterdir() if path.is_dir()}
    assert made - {"average-of-shards"} == {name.replace(" ", "-") for name in RUNS}
    for name in made - {"average-of-shards"}:
        lines = events(two_ranks / name, "train")
        assert [line["step"] for line in lines] == list(range(1, 13))
        assert len(events(two_ranks / name, "validation")) == 3


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("indivisible", "2 ranks cannot share a batch of 7 equally"),
        ("average-of-shards", "train.ema"),
    ],
)
def test_what_ranks_cannot_do_is_refused(
    two_ranks: Path, name: str, words: str
) -> None:
    for rank in (0, 1):
        assert words in (two_ranks / f"{name}.error{rank}").read_text()


def test_shards_open_and_go_on_with_one_rank(
    two_ranks: Path, recipe: Path, tmp_path: Path
) -> None:
    # A copy: other tests compare with the run as it ended.
    shutil.copytree(two_ranks / "sharded", tmp_path / "sharded", symlinks=True)
    run = headstart.Run(tmp_path / "sharded")
    texts = ["a great film", "the plot was dull and weak"]
    (first, second) = run.predict(texts)
    assert {first["label"], second["label"]} <= {"positive", "negative"}
    longer = headstart.resume(run.folder, {"train.epochs": 4})
    assert longer.summary["status"] == "done"
    assert longer.summary["steps"] == 16
    steps = [line["step"] for line in events(run.folder, "train")]
    assert steps == list(range(1, 17))


def test_ranks_started_again_do_not_meet_the_dead() -> None:
    store = HashStore()
    # What a start left whose ranks were all answered, and are no more.
    store.set("headstart", "dead")
    for key in ("dead/1", "dead/2", "dead/nonce"):
        store.set(key, "")
    with ThreadPoolExecutor() as pool:
        others = [pool.submit(of_this_start, store, rank, 3) for rank in (1, 2)]
        # They find the dead start first.
        while store.get("dead/1") == b"" or store.get("dead/2") == b"":
            time.sleep(0.01)
        first = of_this_start(store, 0, 3)
        first.set("address", "of rank 0")
        for other in others:
            assert other.result(timeout=30).get("address") == b"of rank 0"
    assert store.get("headstart") != b"dead"


def test_an_error_on_one_rank_ends_all(recipe: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    values = [f"{key}={value}" for key, value in {**TEXTS, "train.epochs": 99}.items()]
    command = ["run", str(recipe), "--quiet", "--folder", str(folder), *values]
    process = start(tmp_path, {"command": command, "fault": ["error", 3]})
    try:
        _, errors = process.communicate(timeout=120)
    finally:
        end(process)
    assert process.returncode != 0
    assert "reviews.csv, row 7: this sample is beyond reading" in errors
    assert headstart.Run(folder).summary["status"] == "failed"


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_rank_out_of_memory_ends_all_and_they_go_on_in_smaller_parts(
    two_ranks: Path, recipe: Path, tmp_path: Path, parallel: str
) -> None:
    folder = tmp_path / "run"
    settings = {**TEXTS, "train.checkpoint_every": 3, "train.parallel": parallel}
    values = [f"{key}={value}" for key, value in settings.items()]
    command = ["run", str(recipe), "--quiet", "--folder", str(folder), *values]
    process = start(tmp_path, {"command": command, "fault": ["memory", 6]})
    try:
        _, errors = process.communicate(timeout=120)
    finally:
        end(process)
    assert process.returncode != 0
    assert "step 6: rank 1 of 2 ran out of memory" in errors
    assert "train.accumulate=2" in errors
    assert headstart.Run(folder).summary["status"] == "failed"
    # Two parts on one rank are what one part was on each of two.
    done = headstart.resume(folder, {"train.accumulate": 2})
    assert (done.summary["status"], done.summary["accumulate"]) == ("done", 2)
    undisturbed = two_ranks / {"ddp": "global", "fsdp": "sharded"}[parallel]
    expected, found = events(undisturbed, "train"), events(folder, "train")
    assert len(found) == len(expected) == 12
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=2e-4, abs=1e-6)


def test_the_probe_asks_all_ranks(recipe: Path, tmp_path: Path) -> None:
    """Rank 1 alone has room for no more than one sample, of four."""
    folder = tmp_path / "run"
    settings = {**TEXTS, "train.epochs": 1, "train.micro_batch": "auto"}
    values = [f"{key}={value}" for key, value in settings.items()]
    command = ["run", str(recipe), "--quiet", "--folder", str(folder), *values]
    process = start(tmp_path, {"command": command, "fault": ["room", 1]})
    try:
        _, errors = process.communicate(timeout=120)
    finally:
        end(process)
    assert process.returncode == 0, errors
    assert headstart.Run(folder).summary["accumulate"] == 4
    cut = [(event["step"], event["accumulate"]) for event in events(folder, "memory")]
    assert cut == [(0, 2), (0, 4)]


def test_a_killed_rank_is_restarted_and_ends_with_the_same_bits(
    two_ranks: Path, recipe: Path, tmp_path: Path
) -> None:
    """In the third epoch of four steps, between two checkpoints."""
    folder = tmp_path / "run"
    settings = {**TEXTS, "train.checkpoint_every": 3}
    values = [f"{key}={value}" for key, value in settings.items()]
    command = ["run", str(recipe), "--quiet", "--folder", str(folder), *values]
    job = {"command": command, "fault": ["kill", 11]}
    process = start(tmp_path, job, "--max-restarts=1")
    try:
        _, errors = process.communicate(timeout=180)
    finally:
        end(process)
    assert process.returncode == 0, errors
    assert "exitcode: -9" in errors
    undisturbed = two_ranks / "global"
    killed = tensors(folder)
    for name, value in tensors(undisturbed).items():
        assert torch.equal(value, killed[name]), name
    for kind in ("train", "validation"):
        assert events(folder, kind) == events(undisturbed, kind)


def test_torchrun_can_be_interrupted(recipe: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    endless = {**TEXTS, "train.epochs": 100_000, "train.evaluate_every": 50_000}
    values = [f"{key}={value}" for key, value in endless.items()]
    command = ["run", str(recipe), "--quiet", "--folder", str(folder), *values]
    process = start(tmp_path, {"command": command})
    try:
        deadline = time.monotonic() + 120
        log = folder / "metrics.jsonl"
        while not log.exists() or log.read_text().count('"train"') < 5:
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline, "no step was done"
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=120)
    finally:
        end(process)
    done = headstart.Run(folder)
    assert done.summary["status"] == "interrupted", errors
    checkpoint, passed_over = newest_checkpoint(folder / "checkpoints")
    assert (checkpoint.step, passed_over) == (done.summary["steps"], [])
