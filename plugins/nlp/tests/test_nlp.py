"""Whole runs of the nlp plugin, as its users start them."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

import headstart
from headstart_nlp.tiny import tiny_table

TINY_BERT = {
    "model_type": "bert",
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 32,
}
QUICK = {
    "backbone.name": "nlp/encoder",
    "backbone.weights": "none",
    "backbone.config": TINY_BERT,
    "train.max_steps": 6,
    "train.batch_size": 8,
    "data.max_length": 16,
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return tiny_table(tmp_path_factory.mktemp("tiny"))["tokenizer"]


def table(path, label):
    """60 rows of texts with labels given by a function of the row's number."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for i in range(60):
            word = "good" if i % 2 else "bad"
            writer.writerow(
                [f"the film is {word} {'very ' * (i % 7)}film {i}", label(i)]
            )
    return path


KINDS = {
    "single-label": (lambda i: "yes" if i % 2 else "no", "nlp/classifier", "accuracy"),
    "multi-label": (
        lambda i: ",".join(["long"] * (i % 3 == 0) + ["good" if i % 2 else "bad"]),
        "nlp/multi-label",
        "macro-f1",
    ),
    "regression": (lambda i: i / 10, "nlp/regressor", "mean-absolute-error"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_target_runs_whole(kind, tokenizer, tmp_path):
    label, head, metric = KINDS[kind]
    overrides = {
        **QUICK,
        "data.path": str(table(tmp_path / "rows.csv", label)),
        "data.kind": kind,
        "data.tokenizer": tokenizer,
        "head.name": head,
        "metrics.names": [metric],
        "metrics.best": metric,
    }
    run = headstart.run("nlp/classify", overrides, folder=tmp_path / "run")
    assert run.summary["status"] == "done"
    assert metric in run.metrics
    assert run.summary["baselines"], "a result without a baseline is no result"
    texts = ["the film is good", "the film is bad and very very long"]
    predictions = run.predict(texts)
    assert len(predictions) == 2
    assert predictions == headstart.Run(run.folder).predict(texts)
    page = run.report.read_text()
    assert metric in page
    assert "majority" in page or "mean" in page


@pytest.mark.parametrize(
    "strategy",
    [
        {"name": "feature-extraction"},
        {"name": "layer-retraining", "train_last": 1},
        {"name": "gradual"},
        {"name": "lp-ft"},
        {"name": "surgical", "stages": ["layer0"]},
        {"name": "global", "stage_decay": 0.8},
        {"name": "scratch"},
    ],
    ids=lambda s: s["name"],
)
def test_every_strategy_runs(strategy, tokenizer, tmp_path):
    rows = table(tmp_path / "rows.csv", KINDS["single-label"][0])
    overrides = {
        **QUICK,
        "data.path": str(rows),
        "data.tokenizer": tokenizer,
        **{f"strategy.{key}": value for key, value in strategy.items()},
    }
    run = headstart.run("nlp/classify", overrides, folder=tmp_path / "run")
    assert run.summary["status"] == "done"


def test_architectures_vary_from_the_recipe(tokenizer, tmp_path):
    rows = table(tmp_path / "rows.csv", KINDS["single-label"][0])
    overrides = {
        **QUICK,
        "data.path": str(rows),
        "data.tokenizer": tokenizer,
        "backbone.keep": 2,
        "head.layers": 3,
        "head.width": 16,
        "head.pooling": "attention",
        "head.class_weights": "balanced",
        "data.token_dropout": 0.1,
        "train.ema": 0.9,
    }
    run = headstart.run("nlp/classify", overrides, folder=tmp_path / "run")
    transfer = json.loads((run.folder / "transfer.json").read_text())
    stages = [stage["name"] for stage in transfer["stages"]]
    assert stages == ["embeddings", "layer0", "head"]
    linear = [name for name in transfer["new"] if name.endswith("weight")]
    assert len(linear) == 3


@pytest.mark.network
@pytest.mark.slow
def test_minilm_learns_sentiment_from_the_packaged_snippets(tmp_path):
    """The real weights and data, few of them, through the command line."""
    command = [
        str(Path(sys.executable).with_name("headstart")),
        *("run", "nlp/sentiment", "data.rows=1600", "train.epochs=1", "--json"),
        *("--folder", str(tmp_path / "run")),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    summary = json.loads(done.stdout)
    baseline = max(b["metrics"]["accuracy"] for b in summary["baselines"])
    assert summary["metrics"]["accuracy"] > baseline
