"""Every command, in this process with the toy plugin alone, and as a process."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import pty
import signal
import subprocess
import sys
import termios
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from headstart import assets, doctor, fine_tuning, runs
from headstart.assets import Asset, AssetFile
from headstart.cli import commands
from headstart.doctor import Examined
from headstart.errors import DataError, Fault, HeadstartError
from headstart.listing import prediction_row
from headstart.plugins import GROUP, load_plugins
from headstart.testing.toy import data as toy_data

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from click.testing import Result

TOY = ("toy", "headstart.testing.toy")
SHORT = ("toy/ring", "train.epochs=2", "data.count=100")


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Make exactly these plugins the installed ones."""
    every = metadata.entry_points

    def install(*plugins: tuple[str, str]) -> None:
        points = [metadata.EntryPoint(n, value, GROUP) for n, value in plugins]

        def entry_points(**wanted: str) -> Any:
            # triton and others look for their own.
            return points if wanted.get("group") == GROUP else every(**wanted)

        monkeypatch.setattr(metadata, "entry_points", entry_points)
        load_plugins.cache_clear()

    yield install
    load_plugins.cache_clear()


@pytest.fixture(autouse=True)
def toy_alone(installed: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    installed(TOY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HEADSTART_RUNS", raising=False)


def headstart(*arguments: object, stdin: str | bytes | None = None) -> Result:
    return CliRunner().invoke(commands, [str(a) for a in arguments], input=stdin)


def done(*arguments: object, stdin: str | bytes | None = None) -> str:
    """The standard output of a command that succeeds."""
    result = headstart(*arguments, stdin=stdin)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(code: int, *arguments: object, stdin: str | bytes | None = None) -> str:
    """The standard error of a command that ends with this code and prints nothing."""
    result = headstart(*arguments, stdin=stdin)
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    return result.stderr


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A finished run of the toy."""
    load_plugins.cache_clear()
    from headstart.testing import toy

    load_plugins().add(toy, "toy")
    folder = tmp_path_factory.mktemp("trained") / "run"
    fine_tuning.run("toy/ring", {"train.epochs": 2, "data.count": 100}, folder=folder)
    load_plugins.cache_clear()
    yield folder


# run


def test_run_prints_result_and_report(tmp_path: Path) -> None:
    result = headstart("run", *SHORT, "--folder", "out")
    assert result.exit_code == 0, result.output
    header, ours, baseline = result.stdout.splitlines()[:3]
    assert header.split() == ["test", "loss", "↓", "accuracy", "↑"]
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    values = summary["metrics"]
    assert ours.split() == [
        "this",
        "run",
        f"{values['loss']:.3f}",
        f"{values['accuracy']:.3f}",
    ]
    assert baseline.startswith("majority class")
    assert "random weights" in result.stdout
    assert str(summary["bottleneck"]) in result.stdout
    report = result.stdout.splitlines()[-1].split()
    assert report[0] == "report"
    assert (tmp_path / report[1]).is_file()
    assert "validation: loss" in result.stderr
    assert "data" in result.stderr and "train 60" in result.stderr


def test_run_prints_warnings_of_the_verdict() -> None:
    shown = done("run", *SHORT, "--quiet", "expect.metrics={accuracy = [2, 3]}")
    assert "warning: The recipe expects accuracy 2.000 to 3.000" in shown


def test_run_json_is_json_and_nothing_else(tmp_path: Path) -> None:
    result = headstart("run", *SHORT, "--json")
    told = json.loads(result.stdout)
    assert result.stderr == ""
    summary = json.loads((tmp_path / told["folder"] / "summary.json").read_text())
    assert told == {"folder": told["folder"], **summary}
    assert told["status"] == "done"


def test_json_of_a_run_has_no_nan(
    monkeypatch: pytest.MonkeyPatch, trained: Path
) -> None:
    run = runs.Run(trained)
    summary = {**run.summary, "metrics": {"loss": float("nan"), "f": [float("inf")]}}
    monkeypatch.setattr(runs.Run, "summary", summary)
    monkeypatch.setattr(fine_tuning, "run", lambda *_, **__: run)
    strict = json.loads(done("run", "toy/ring", "--json"), parse_constant=pytest.fail)
    assert strict["metrics"] == {"loss": None, "f": [None]}


def test_quiet_run_says_only_the_result() -> None:
    result = headstart("run", *SHORT, "--quiet")
    assert result.exit_code == 0
    assert result.stderr == ""
    assert "accuracy" in result.stdout


def test_run_that_cannot_start_writes_nothing(tmp_path: Path) -> None:
    told = refused(2, "run", "toy/ring", "train.epohcs=3", "data.count=ten")
    assert "2 faults" in told
    assert "did you mean 'train.epochs'?" in told
    assert list(tmp_path.iterdir()) == []


def test_run_without_any_plugin(installed: Any) -> None:
    installed()
    told = refused(4, "run", "nlp/sentiment")
    assert "needs the plugin 'nlp', which is not installed" in told
    assert "pip install headstart-nlp" in told


def test_run_of_a_file(tmp_path: Path) -> None:
    done("copy", "toy/ring", "mine.toml")
    done("run", "mine.toml", *SHORT[1:], "--folder", "out", "--quiet")
    assert (tmp_path / "out" / "report.html").is_file()
    # and of what the run resolved it to
    done("run", "out/recipe.toml", "--folder", "again", "--quiet")
    first, second = (
        json.loads((tmp_path / name / "summary.json").read_text())["metrics"]
        for name in ("out", "again")
    )
    assert first == second


# What a run is good for


def test_evaluate(trained: Path) -> None:
    known = runs.Run(trained).metrics
    assert json.loads(done("evaluate", trained, "--json")) == pytest.approx(known)
    lines = done("evaluate", trained).splitlines()
    assert lines[0].split() == ["metric", "test"]
    assert ["accuracy", f"{known['accuracy']:.3f}"] in map(str.split, lines)


def test_evaluate_another_split(trained: Path) -> None:
    told = done("evaluate", trained, "--split", "validation", "--json")
    assert json.loads(told) == pytest.approx(runs.Run(trained).summary["validation"])


def test_evaluate_what_is_no_run(tmp_path: Path) -> None:
    assert "this is not a run folder" in refused(2, "evaluate", tmp_path)


POINTS = ("0,0", "3,3", "0.1,-0.1")


def test_predict_prints_json_lines_into_a_pipe(trained: Path) -> None:
    expected = runs.Run(trained).predict(POINTS)
    for arguments in ((), ("--json",)):
        shown = done("predict", trained, *POINTS, *arguments)
        assert [json.loads(line) for line in shown.splitlines()] == expected


@pytest.mark.parametrize(
    ("result", "row"),
    [
        (
            {"input": "a", "label": "cat", "probability": 0.91234, "all": {"cat": 0.9}},
            {"label": "cat", "probability": "0.912", "input": "a"},
        ),
        (
            {
                "input": "a.jpg",
                "found": [
                    {
                        "label": "cat",
                        "score": 0.9,
                        "box": [1.0, 2.0],
                        "mask": {"n": "x"},
                    },
                    *[{"label": "dog", "score": 0.5, "box": [1.0, 2.0]}] * 4,
                ],
            },
            {"found": "cat 0.900, dog 0.500, dog 0.500 and 2 more", "input": "a.jpg"},
        ),
        ({"input": "a", "labels": []}, {"labels": "–", "input": "a"}),
        (
            {"input": "a", "classes": {"road": 0.2, "sky": 0.8}, "masks": {"sky": {}}},
            {"classes": "sky 0.800, road 0.200", "input": "a"},
        ),
    ],
)
def test_prediction_rows_are_short(result: dict[str, Any], row: dict[str, str]) -> None:
    assert prediction_row(result) == row
    assert list(prediction_row(result))[-1] == "input"


@pytest.mark.parametrize("arguments", [(), ("-",)])
def test_predict_lines_of_standard_input(
    trained: Path, arguments: tuple[str, ...]
) -> None:
    # A form feed is white space inside a line, not the end of one.
    shown = done("predict", trained, *arguments, stdin="0,0\r\n3,\f3\n0.1,-0.1")
    expected = runs.Run(trained).predict(["0,0", "3,\f3", "0.1,-0.1"])
    assert [json.loads(line) for line in shown.splitlines()] == expected


def test_predict_mixes_inputs_and_standard_input(trained: Path) -> None:
    shown = done("predict", trained, "0,0", "-", "0.1,-0.1", stdin="3,3\n")
    expected = runs.Run(trained).predict(POINTS)
    assert [json.loads(line) for line in shown.splitlines()] == expected


def test_predict_standard_input_that_is_not_utf8(trained: Path) -> None:
    told = refused(3, "predict", trained, stdin=b"0,0\ncaf\xe9\n")
    assert "standard input: this is not UTF-8 text" in told


def test_predict_into_a_file(trained: Path, tmp_path: Path) -> None:
    result = headstart("predict", trained, *POINTS, "--output", "out.jsonl")
    assert result.exit_code == 0
    assert "3 predictions in out.jsonl" in result.stderr
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == runs.Run(trained).predict(POINTS)
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]


def test_predict_writes_the_whole_file_or_none(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_off(*_: object, **__: object) -> Iterator[dict[str, Any]]:
        yield {"label": "inside"}
        raise DataError("the second input is bad")

    monkeypatch.setattr(runs.Run, "predict_each", break_off)
    (tmp_path / "out.jsonl").write_text("before")
    told = refused(3, "predict", trained, "0,0", "1,1", "--output", "out.jsonl")
    assert "the second input is bad" in told
    assert (tmp_path / "out.jsonl").read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]


def test_predict_into_a_folder(trained: Path, tmp_path: Path) -> None:
    result = headstart("predict", trained, *POINTS, "--output", "out")
    assert result.exit_code == 0
    assert "out/predictions.jsonl" in result.stderr
    lines = (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == runs.Run(trained).predict(POINTS)
    assert [json.loads(line)["input"] for line in lines] == list(POINTS)
    told = refused(2, "predict", trained, "0,0", "--output", "out")
    assert "out: there is something already" in told
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_predict_into_a_folder_wholly_or_not_at_all(
    trained: Path, tmp_path: Path
) -> None:
    refused(4, "predict", trained, "0,0", "no point", "--output", "out")
    assert not list(tmp_path.iterdir())


def test_predict_into_a_folder_that_is_not_there(trained: Path) -> None:
    told = refused(2, "predict", trained, "0,0", "--output", "no/out.jsonl")
    assert "no/out.jsonl: the predictions cannot be written" in told


def test_report_is_written_anew(trained: Path) -> None:
    report = trained / "report.html"
    report.unlink()
    assert done("report", trained).strip() == str(report)
    assert "<html" in report.read_text(encoding="utf-8")


# Looking around


def test_list() -> None:
    lines = done("list").splitlines()
    for kind, name in (
        ("recipes", "toy/ring"),
        ("backbones", "toy/network"),
        ("heads", "toy/classifier"),
        ("data", "toy/ring"),
        ("metrics", "toy/accuracy"),
        ("weights", "asset:"),
    ):
        assert lines[lines.index(kind) + 1].split()[0] == name


def test_list_one_kind_and_json() -> None:
    assert done("list", "heads").split()[0] == "toy/classifier"
    listed = json.loads(done("list", "heads", "--json"))
    assert listed == {
        "heads": [{"name": "toy/classifier", "summary": "one linear layer"}]
    }
    assert set(json.loads(done("list", "--json"))) == {
        *("recipes", "backbones", "heads", "data", "metrics", "weights")
    }


def test_list_says_what_did_not_load(installed: Any) -> None:
    installed(TOY, ("ill", "no_such_module_at_all"))
    result = headstart("list")
    assert result.exit_code == 0
    assert "a plugin did not load: see `headstart plugins`" in result.stderr


def test_list_without_plugins(installed: Any) -> None:
    installed()
    result = headstart("list", "recipes")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "pip install headstart-nlp" in result.stderr


def test_show_recipe_is_its_text() -> None:
    text = files("headstart.testing.toy").joinpath("recipes/ring.toml").read_text()
    result = headstart("show", "toy/ring")
    assert result.stdout == text
    assert "also: headstart show toy/ring --kind data" in result.stderr


def test_show_data_has_settings_with_defaults() -> None:
    lines = done("show", "toy/ring", "--kind", "data").splitlines()
    assert lines[0] == "data toy/ring"
    assert "yields  points, labels" in lines
    rows = {line.split()[0]: line.split()[1] for line in lines if line}
    assert rows["count"] == "240"
    assert rows["bad"] == '"stop"'
    assert any("One of stop, skip." in line for line in lines)


def test_show_backbone_head_and_metric() -> None:
    backbone = done("show", "toy/network")
    assert "features  hidden (vector, 8 channels)" in backbone
    assert "stages    first, second, third" in backbone
    assert "settings of [backbone]" in backbone
    assert "needs    vector" in done("show", "toy/classifier")
    metric = done("show", "toy/accuracy")
    assert "goal    max" in metric
    assert "settings" not in metric


def test_show_a_section_that_every_recipe_has() -> None:
    shown = done("show", "train")
    assert "settings of [train]" in shown
    (row,) = (line for line in shown.splitlines() if line.startswith("batch_size"))
    assert row.split(maxsplit=2) == ["batch_size", "32", "Samples per optimizer step."]


def test_show_what_is_not_there() -> None:
    assert "did you mean 'toy/network'?" in refused(2, "show", "toy/netwrok")
    assert "did you mean 'strategy'?" in refused(2, "show", "stratgy")
    assert "pip install headstart-vision" in refused(4, "show", "vision/resnet")
    told = refused(2, "show", "toy/network", "--kind", "head")
    assert "no head is called 'toy/network'" in told


def test_copy_never_overwrites(tmp_path: Path) -> None:
    done("copy", "toy/ring", "mine.toml")
    text = files("headstart.testing.toy").joinpath("recipes/ring.toml").read_text()
    assert (tmp_path / "mine.toml").read_text() == text
    (tmp_path / "mine.toml").write_text("changed")
    told = refused(2, "copy", "toy/ring", "mine.toml")
    assert "mine.toml: the file is there already" in told
    assert (tmp_path / "mine.toml").read_text() == "changed"
    assert "cannot be written" in refused(2, "copy", "toy/ring", "no/mine.toml")
    assert "did you mean 'toy/ring'?" in refused(2, "copy", "toy/rnig", "b.toml")


def test_check_tells_what_is_there_and_trains_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    described = {
        "train": 60,
        "validation": 20,
        "test": 1020,
        "classes": {"train": {"inside": 31, "outside": 29}, "test": {"inside": 9}},
        "size": {"median": 26.0, "longest": 64},
    }
    monkeypatch.setattr(toy_data.Ring, "describe", lambda self: described)
    shown = done("check", "toy/ring", "data.count=100")
    assert "toy/network + toy/classifier on toy/ring fit together" in shown
    rows = [line.split() for line in shown.splitlines()]
    assert ["data", "train", "60", "validation", "20", "test", "1,020"] in rows
    assert ["size", "median", "26", "longest", "64"] in rows
    assert ["train", "16", "steps", "of", "16"] in rows
    assert ["classes", "train", "test"] in rows
    assert ["outside", "29", "0"] in rows
    assert list(tmp_path.iterdir()) == []


def test_check_prints_warnings_of_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    load = toy_data.Ring.load

    def load_and_warn(self: toy_data.Ring) -> None:
        load(self)
        self.findings.warnings.append(Fault("a text is in two splits", "a.csv, row 3"))

    monkeypatch.setattr(toy_data.Ring, "load", load_and_warn)
    assert "warning: a.csv, row 3: a text is in two splits" in done("check", "toy/ring")


def test_check_without_data_reads_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toy_data.Ring, "load", lambda self: pytest.fail("was read"))
    assert "fit together" in done("check", "toy/ring", "--no-data")
    assert "must be at least 10" in refused(2, "check", "toy/ring", "data.count=1")


def test_bad_data_is_exit_code_3(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(self: toy_data.Ring) -> None:
        raise DataError("the file is empty", where="a.csv", fix="fill it")

    monkeypatch.setattr(toy_data.Ring, "load", load)
    told = "error: a.csv: the file is empty\n  fix: fill it\n"
    assert headstart("check", "toy/ring").stderr == told
    assert refused(3, "run", "toy/ring", "--quiet") == told


def test_plugins(installed: Any) -> None:
    installed(TOY, ("ill", "no_such_module_at_all"))
    result = headstart("plugins")
    assert result.exit_code == 0
    rows = {line.split()[0]: line for line in result.stdout.splitlines()}
    assert "loaded" in rows["toy"]
    assert "1 backbone, 1 head" in rows["toy"]
    assert "broken" in rows["ill"]
    assert "no_such_module_at_all" in rows["ill"]
    assert "Traceback" not in result.output
    assert "headstart plugins -v" in result.stderr


@pytest.mark.parametrize("flag", ["-v", "--verbose"])
def test_plugins_verbose_has_the_traceback(installed: Any, flag: str) -> None:
    installed(("ill", "no_such_module_at_all"))
    shown = done("plugins", flag)
    assert "Traceback (most recent call last)" in shown
    assert "ModuleNotFoundError" in shown


def test_plugins_json(installed: Any) -> None:
    installed(TOY, ("ill", "no_such_module_at_all"))
    rows = json.loads(done("plugins", "--json"))
    assert {row["name"]: row["status"] for row in rows} == {
        "ill": "broken",
        "toy": "loaded",
    }
    assert set(rows[0]) == {"name", "distribution", "version", "status", "cause"}


def test_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    findings = [Examined(True, "all is well")]
    monkeypatch.setattr(doctor, "examine", lambda registry: findings)
    assert done("doctor") == "ok    all is well\n"
    findings.append(Examined(False, "torch does not import"))
    result = headstart("doctor")
    assert result.exit_code == 1
    assert result.stdout.splitlines()[-1] == "FAIL  torch does not import"
    result = headstart("doctor", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)[1] == {
        "ok": False,
        "text": "torch does not import",
    }


# assets


@pytest.fixture
def words(tmp_path_factory: pytest.TempPathFactory, monkeypatch: Any) -> Iterator[Any]:
    """An asset of the toy plugin, served on 127.0.0.1; gives its asset."""
    site = tmp_path_factory.mktemp("site")
    content = b"one\ntwo\n"
    (site / "words.txt").write_bytes(content)
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(site))
    monkeypatch.setattr(SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/words.txt"
    sha256 = hashlib.sha256(content).hexdigest()
    file = AssetFile("words.txt", sha256, len(content), (url,))
    asset = Asset("words", TOY[1], "two words", "MIT", (file,))
    monkeypatch.setattr(assets, "load_manifest", lambda package: {"words": asset})
    monkeypatch.delenv("HEADSTART_OFFLINE", raising=False)
    yield asset
    server.shutdown()
    server.server_close()


def here() -> str:
    header, row = done("assets", "list").splitlines()
    assert header.split() == ["asset", "size", "here", "licence", "summary"]
    return row.split()[3]


def test_assets_list_fetch_verify_remove(words: Asset) -> None:
    assert here() == "no"
    assert "cache" in headstart("assets").stderr
    assert "words" in refused(3, "assets", "verify", "words")
    folder = assets.asset_folder(words)
    assert done("assets", "fetch", "words") == f"words: {folder}\n"
    assert (folder / "words.txt").read_text() == "one\ntwo\n"
    assert here() == "yes"
    assert done("assets", "verify") == "words: every hash holds\n"
    (folder / "words.txt").write_text("one\ntoo\n")
    assert "words.txt" in refused(3, "assets", "verify", "words")
    assert done("assets", "remove", "words") == "words: removed\n"
    assert not (folder / "words.txt").exists()


def test_assets_misspelt_or_unnamed(words: Asset) -> None:
    assert "did you mean 'words'?" in headstart("assets", "fetch", "wrods").stderr
    assert "name the assets to remove" in refused(2, "assets", "remove")
    assert refused(2, "assets", "fetsch")


# Mistakes at the command line


def test_misspelt_command_lists_close_ones() -> None:
    assert "did you mean 'plugins'?" in refused(2, "plugin")
    told = refused(2, "re")
    assert "There is no command 're'" in told
    assert "report" in told
    assert "known: " in refused(2, "xyzzy")


def test_misspelt_option_names_the_nearest() -> None:
    assert "--quiet" in refused(2, "run", "toy/ring", "--quite")


def test_missing_argument_is_exit_code_2() -> None:
    assert "Missing argument 'RECIPE'" in refused(2, "run")


# Exit codes of what nobody planned


def test_fault_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    def examine(registry: object) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(doctor, "examine", examine)
    told = refused(1, "doctor")
    assert told.startswith("Traceback (most recent call last)")
    assert "error: this is a fault of headstart, not of yours" in told
    assert "ZeroDivisionError: division by zero" in told
    assert "report it to the authors of headstart" in told


def test_fault_of_a_plugin(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toy_data, "np", None)
    told = refused(4, "predict", trained, "0,0")
    assert "Traceback (most recent call last)" in told
    assert "this is a fault of the plugin 'toy'" in told


def test_full_disk_is_told_without_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: object, **__: object) -> None:
        raise HeadstartError("the disk is full", where="runs/a")

    monkeypatch.setattr(fine_tuning, "run", run)
    assert refused(1, "run", "toy/ring") == "error: runs/a: the disk is full\n"


def test_interrupted_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(fine_tuning, "run", run)
    assert refused(130, "run", "toy/ring") == "interrupted\n"


# As a process


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Variables under which the toy is an installed plugin."""
    site = tmp_path_factory.mktemp("site-packages")
    info = site / "toy-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{GROUP}]\n{TOY[0]} = {TOY[1]}\n")
    cleared = ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "TTY_COMPATIBLE")
    kept = {k: v for k, v in os.environ.items() if k not in cleared}
    path = os.pathsep.join([str(site), *filter(None, [kept.get("PYTHONPATH")])])
    return {**kept, "PYTHONPATH": path, "TERM": "xterm", "PYTHONUTF8": "1"}


def command(*arguments: str) -> list[str]:
    return [
        sys.executable,
        "-c",
        "from headstart.cli import main; main()",
        *arguments,
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("run", "--help"),
        ("list",),
        ("plugins",),
        ("show", "toy/ring"),
        ("show", "toy/network"),
        ("show", "train"),
        ("check", "toy/ring", "--no-data"),
    ],
    ids=" ".join,
)
def test_looking_around_imports_nothing_heavy(
    arguments: tuple[str, ...], environment: dict[str, str]
) -> None:
    heavy = ("torch", "transformers", "matplotlib", "sklearn", "pyarrow", "rich")
    code = (
        "import sys; from headstart.cli import main\n"
        "try: main()\n"
        "except SystemExit as stop: assert not stop.code, stop.code\n"
        f"print(sorted(set({(*heavy, 'numpy')!r}) & set(sys.modules)), file=sys.stderr)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    assert result.stderr.splitlines()[-1] == "[]"
    assert result.stdout


def test_pipe_gets_plain_lines(environment: dict[str, str]) -> None:
    shown = subprocess.run(
        command("show", "train"),
        capture_output=True,
        text=True,
        env={**environment, "COLUMNS": "40"},
        check=True,
    ).stdout
    assert "\x1b" not in shown
    # A row is a line, however long.
    about = "Decay of the exponential moving average that is evaluated and saved; 0"
    (row,) = (line for line in shown.splitlines() if line.startswith("ema "))
    assert row.split(maxsplit=2)[:2] == ["ema", "0.0"]
    assert about in row


@pytest.mark.parametrize("arguments", [("list",), ("run", *SHORT, "--quiet")])
def test_closed_pipe_is_no_error(
    arguments: tuple[str, ...], environment: dict[str, str], tmp_path: Path
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        result = subprocess.run(
            command(*arguments),
            stdout=writer,
            stderr=subprocess.PIPE,
            env=environment,
            cwd=tmp_path,
            check=False,
        )
    finally:
        os.close(writer)
    assert (result.returncode, result.stderr) == (0, b"")


def test_closed_standard_error_does_not_end_a_training(
    environment: dict[str, str], tmp_path: Path
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        result = subprocess.run(
            command("run", *SHORT),
            stdout=subprocess.PIPE,
            stderr=writer,
            env=environment,
            cwd=tmp_path,
            check=False,
        )
    finally:
        os.close(writer)
    assert result.returncode == 0
    assert b"report.html" in result.stdout


def test_interrupted_training_says_so(
    environment: dict[str, str], tmp_path: Path
) -> None:
    process = subprocess.Popen(
        command("run", "toy/ring", "train.epochs=100000", "--folder", "out"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=tmp_path,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "validation:" in line:
            break
    process.send_signal(signal.SIGINT)
    shown, rest = process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in rest
    assert shown.startswith("interrupted: stopped after step ")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["status"] == "interrupted"


def on_a_terminal(
    environment: dict[str, str], columns: int, *arguments: str
) -> list[str]:
    """What a command shows on a terminal of that width, without colours."""
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (40, columns))
    process = subprocess.Popen(
        command(*arguments), stdin=slave, stdout=slave, stderr=slave, env=environment
    )
    os.close(slave)
    shown = b""
    try:
        while part := os.read(master, 65536):
            shown += part
    except OSError:  # what Linux says at the end
        pass
    os.close(master)
    process.wait()
    text = shown.decode().replace("\r", "")
    assert "\x1b" in text
    for code in ("\x1b[0m", "\x1b[1m", "\x1b[31m"):
        text = text.replace(code, "")
    assert "\x1b" not in text
    return text.splitlines()


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize(
    "arguments",
    [("list",), ("show", "train"), ("run", "toy/ring", "strategy.name=globl")],
    ids=" ".join,
)
def test_terminal_lines_are_wrapped_at_words(
    arguments: tuple[str, ...], columns: int, environment: dict[str, str]
) -> None:
    lines = on_a_terminal(environment, columns, *arguments)
    assert max(map(len, lines)) <= columns
    piped = subprocess.run(
        command(*arguments),
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    whole = (piped.stdout + piped.stderr).split()
    assert " ".join(lines).split() == whole
