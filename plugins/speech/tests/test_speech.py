"""Whole runs of the speech plugin, as its users start them; letters are tones."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file

import headstart
from headstart.callbacks import Callback
from headstart.checkpoint import open_checkpoint
from headstart.cli import commands
from headstart_speech.catalogue import TINY
from headstart_speech.tiny import RATE, tiny_unlabelled, tiny_utterances, tones, write

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from headstart.runs import Run

# A Whisper that hears tones at once: its log-mel spectrogram needs no learning.
WHISPER = {
    "backbone.name": "speech/whisper",
    "backbone.weights": "none",
    "backbone.config": TINY["speech/whisper"]["config"],
}
WAV2VEC = {
    "backbone.name": "speech/wav2vec2",
    "backbone.weights": "none",
    "backbone.config": TINY["speech/wav2vec2"]["config"],
}
PLAIN = {
    "backbone.mask_time": 0.0,
    "strategy.name": "scratch",
    "report.scratch_control": False,
    "expect.metrics": {},
}
LEARNS = {
    **WHISPER,
    **PLAIN,
    "head.layers": 1,
    "head.layer": "conv",
    "head.width": 32,
    "train.batch_total": 8.0,
    "train.epochs": 45,
    "train.evaluate_every": 15,
    "train.learning_rate": 4e-3,
    "train.head_learning_rate": 4e-3,
}


def data_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What makes a packaged recipe read a tiny data set."""
    return {f"data.{key}": value for key, value in settings.items()} | {
        "data.long": "stop"
    }


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that learned four tones."""
    folder = tmp_path_factory.mktemp("tones")
    (folder / "data").mkdir()
    data = data_of(tiny_utterances(folder / "data", clips=80))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEADSTART_CACHE", str(folder / "cache"))
        return headstart.run(
            "speech/transcribe", {**data, **LEARNS}, folder=folder / "run"
        )


def test_it_learns_what_tones_say(done: Run) -> None:
    assert done.metrics["cer"] < 0.2
    assert done.metrics["wer"] < 0.6
    assert done.evaluate()["cer"] == pytest.approx(done.metrics["cer"])


def test_a_file_is_printed_as_text_or_with_its_times(done: Run, tmp_path: Path) -> None:
    write(tmp_path / "one.wav", tones("abc dab"))

    def printed(*options: str) -> str:
        command = ["predict", str(done.folder), str(tmp_path / "one.wav"), *options]
        result = CliRunner().invoke(commands, command)
        assert result.exit_code == 0, result.output
        return result.stdout

    text = printed().strip()
    assert set(text) <= set("abcd ") and len(text) >= 5
    row = json.loads(printed("--format", "json"))
    assert row["text"] == text and row["input"].endswith("one.wav")
    words = [word for segment in row["segments"] for word in segment["words"]]
    assert [word["word"] for word in words] == text.split()
    assert 0 <= words[0]["start"] < words[0]["end"] <= words[-1]["end"] <= 0.6
    subtitles = printed("--format", "srt").splitlines()
    assert subtitles[0] == "1" and " --> " in subtitles[1] and subtitles[2] == text


def test_a_long_file_is_heard_in_pieces_and_told_as_one(
    done: Run, tmp_path: Path
) -> None:
    sentences = ["abc dab", "cad bac", "bad cab"] * 8
    pause = np.zeros(RATE)
    sound = [part for text in sentences for part in (tones(text), pause)]
    whole = np.concatenate(sound)
    write(tmp_path / "long.wav", whole)
    assert len(whole) / RATE > 32, "longer than the encoder hears at a time"
    (row,) = done.predict([tmp_path / "long.wav"], format="json")
    assert len(row["segments"]) > 1
    assert row["seconds"] == pytest.approx(len(whole) / RATE, abs=0.01)
    times = [word["start"] for s in row["segments"] for word in s["words"]]
    assert times == sorted(times) and times[-1] > 30
    # Each sentence is told when it is said, as far as it is understood.
    period = (len(tones("abc dab")) + len(pause)) / RATE
    heard = {int(time // period) for time in times}
    assert len(heard) > 0.8 * len(sentences) and max(heard) < len(sentences)


def test_new_data_is_measured_without_the_training_data(
    done: Run, tmp_path: Path
) -> None:
    write(tmp_path / "one.wav", tones("abc dab"))
    (tmp_path / "new.csv").write_text("path,text\none.wav,abc dab\n")
    changes = {
        "data.path": str(tmp_path / "gone.csv"),
        "data.test_path": str(tmp_path / "new.csv"),
    }
    assert done.evaluate(overrides=changes)["cer"] < 0.5


def test_the_report_shows_what_was_heard(done: Run) -> None:
    page = done.report.read_text(encoding="utf-8")
    for title in ("Worst utterances", "Clips", "Errors by length"):
        assert title in page
    assert "<svg" in page


def test_a_pretrained_run_is_a_weights_source(tmp_path: Path) -> None:
    (tmp_path / "unlabelled").mkdir()
    (tmp_path / "labelled").mkdir()
    quick = {"train.max_steps": 2, "train.batch_size": 8, **PLAIN}
    codebook = {"head.codes": 8, "head.code_width": 8, "head.width": 8}
    data = data_of(tiny_unlabelled(tmp_path / "unlabelled"))
    first = headstart.run(
        "speech/pretrain",
        {**data, **WAV2VEC, **codebook, **quick},
        folder=tmp_path / "pretrained",
    )
    metrics = set(first.metrics)
    assert {"contrastive-accuracy", "codebook-perplexity"} <= metrics
    second = headstart.run(
        "speech/transcribe",
        {
            **data_of(tiny_utterances(tmp_path / "labelled")),
            **quick,
            "backbone.name": "speech/wav2vec2",
            "backbone.weights": f"run:{first.folder}",
            "strategy.name": "feature-extraction",
        },
        folder=tmp_path / "transcribing",
    )
    before, after = (tensors(run) for run in (first, second))
    stages = [name for name in after if name.startswith("backbone.")]
    assert len(stages) > 20
    assert all(np.array_equal(after[name], before[name]) for name in stages)


def test_another_run_brings_the_characters_that_both_know(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    data = data_of(tiny_utterances(tmp_path / "data"))
    quick = {**PLAIN, "head.layers": 0, "train.max_steps": 1, "train.batch_size": 8}
    first = headstart.run(
        "speech/transcribe", {**data, **WAV2VEC, **quick}, folder=tmp_path / "first"
    )
    manifest = tmp_path / "data" / "clips.csv"
    header, rows = manifest.read_text().split("\n", 1)
    names = [row.split(",", 1) for row in rows.splitlines()]
    # Another letter in b's stead, which changes the order of the others.
    rest = [f"{path},{more.replace('b', 'z')}" for path, more in names]
    manifest.write_text("\n".join([header, *rest]) + "\n")
    second = headstart.run(
        "speech/transcribe",
        {
            **data,
            **quick,
            "backbone.name": "speech/wav2vec2",
            "backbone.weights": f"run:{first.folder}",
            "strategy.name": "feature-extraction",
            "train.learning_rate": 1e-12,
            "train.head_learning_rate": 1e-12,
        },
        folder=tmp_path / "second",
    )
    (before, old), (after, new) = (
        (tensors(run)["head.linear.weight"], task(run)) for run in (first, second)
    )
    known = [name for name in new if name in old]
    assert known == ["<blank>", " ", "a", "c", "d"] and new[-1] == "z"
    for name in known:
        np.testing.assert_allclose(
            after[new.index(name)], before[old.index(name)], atol=1e-6
        )
    report = json.loads((second.folder / "transfer.json").read_text())
    assert report["classes_new"] == ["z"]


def task(run: Run) -> list[str]:
    """The characters of a run, by row."""
    found: list[str] = json.loads((run.folder / "task.json").read_text())["vocabulary"]
    return found


def tensors(run: Run) -> dict[str, np.ndarray]:
    """The run's kept model, by our names."""
    checkpoint, _ = open_checkpoint(run.folder / "checkpoints")
    found: dict[str, np.ndarray] = {}
    for path in checkpoint.folder.glob("*.safetensors"):
        if "optimizer" not in path.name:
            found |= load_file(path)
    return found


class Stop(Callback):
    """Interrupts a run after some steps."""

    def __init__(self, after: int) -> None:
        self.after = after

    def on_step(self, step: int) -> None:
        if step == self.after:
            raise KeyboardInterrupt


def test_pretraining_resumes_to_the_last_bit(tmp_path: Path) -> None:
    """Masks, distractors, Gumbel noise and temperature go on where they were."""
    (tmp_path / "data").mkdir()
    settings = {
        **data_of(tiny_unlabelled(tmp_path / "data")),
        **WAV2VEC,
        **PLAIN,
        "head.codes": 8,
        "head.code_width": 8,
        "head.width": 8,
        "head.gumbel_decay": 0.9,
        "backbone.dropout": 0.1,
        "train.batch_size": 4,
        "train.max_steps": 6,
        "train.checkpoint_every": 2,
        "train.keep_checkpoints": 3,
        "report.baselines": False,
    }
    whole = headstart.run("speech/pretrain", settings, folder=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        headstart.run(
            "speech/pretrain",
            settings,
            folder=tmp_path / "cut",
            callbacks=[Stop(3)],
        )
    resumed = headstart.resume(tmp_path / "cut")
    expected, found = tensors(whole), tensors(resumed)
    assert expected.keys() == found.keys()
    assert any(name.endswith("updates") for name in expected)
    for name, values in expected.items():
        assert np.array_equal(values, found[name]), name
