"""What a run shows: result table, verdict, costs; on terminals and in pipes."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from headstart.callbacks import Callback
from headstart.console import (
    RunConsole,
    Screen,
    Transfers,
    cost_lines,
    show_faults,
    show_result,
)
from headstart.errors import Fault

if TYPE_CHECKING:
    from collections.abc import Callable

METRICS = {"loss": 0.41234567, "accuracy": 0.8765432, "error": 1234.5678}
SUMMARY: dict[str, Any] = {
    "status": "done",
    "metrics": METRICS,
    "goals": {"accuracy": "max", "error": "min"},
    "intervals": {"accuracy": [0.85, 0.9]},
    "baselines": [
        {
            "name": "majority class",
            "metrics": {"accuracy": 0.5, "error": 1000.0},
            "gains": {"accuracy": [0.3, 0.4]},
        }
    ],
    "scratch": {"metrics": {"accuracy": 0.6}, "gains": {"accuracy": [0.2, 0.3]}},
    "time": {"setup": 1.23456, "loading": 0.01, "baselines": 312.345, "total": 1313.9},
    "throughput": {
        "samples_per_second": 1234.567,
        "units_per_second": 45.678,
        "unit": "tokens",
    },
    "padding_waste": 0.04321,
    "peak_memory_bytes": 1_510_000_000,
    "memory": {"estimated_bytes": 1_640_000_000, "parts": {"weights": 90_000_000}},
    "bottleneck": "the model itself",
}


@pytest.fixture
def shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """What show_result prints for a summary; on a terminal if columns are given."""

    def show(columns: int | None = None, **changes: Any) -> str:
        if columns:
            monkeypatch.setenv("TTY_COMPATIBLE", "1")
            monkeypatch.setenv("TTY_INTERACTIVE", "0")
            monkeypatch.setenv("COLUMNS", str(columns))
        recipe = SimpleNamespace(to_dict=lambda: {"metrics": {"best": "accuracy"}})
        run: Any = SimpleNamespace(
            summary={**SUMMARY, **changes}, folder=Path("runs/a"), recipe=lambda: recipe
        )
        show_result(run)
        return re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)

    return show


def test_table_in_a_pipe(shown: Callable[..., str]) -> None:
    text = shown()
    assert text.splitlines()[:4] == [
        "test            loss ↓  accuracy ↑  error ↓",
        "this run         0.412       0.877    1,235",
        "majority class       –       0.500    1,000",
        "from scratch         –       0.600        –",
    ]


def test_verdict_and_warnings(shown: Callable[..., str]) -> None:
    text = shown(expect={"accuracy": [0.9, 0.95]})
    assert "\nThe transfer paid. Accuracy 0.877 on the test split, against" in text
    assert "\nwarning: A simple baseline is better on error" in text
    assert "\nwarning: The recipe expects accuracy 0.900 to 0.950" in text


def test_costs_and_places(shown: Callable[..., str]) -> None:
    assert shown().splitlines()[-6:] == [
        "time    1,314 s: setup 1.2, baselines 312",
        "pace    1,235 samples/s, 45.7 tokens/s, padding 4.3%",
        "memory  1.51 GB at the peak, 1.64 GB estimated",
        "        the model itself",
        "run     runs/a",
        "report  runs/a/report.html",
    ]


def test_no_estimate_of_the_memory(shown: Callable[..., str]) -> None:
    text = shown(memory={"reason": "the parameters are spread over the ranks"})
    assert "\nmemory  1.51 GB at the peak\n" in text


def test_numbers_have_four_digits_at_most(shown: Callable[..., str]) -> None:
    for found in re.findall(r"\d[\d,.]*", shown()):
        assert len(found.replace(",", "").replace(".", "").lstrip("0")) <= 4, found


def test_narrow_terminal_has_a_row_for_each_metric(shown: Callable[..., str]) -> None:
    names = [f"mean-average-precision-{i}" for i in range(4)]
    metrics = {name: i / 10 for i, name in enumerate(names)}
    goals = dict.fromkeys(names, "max")
    wide = shown(columns=140, metrics=metrics, goals=goals, baselines=[], scratch=None)
    narrow = shown(columns=60, metrics=metrics, goals=goals, baselines=[], scratch=None)
    assert wide.split("\n")[1].split() == ["test"] + [
        word for name in names for word in (name, "↑")
    ]
    lines = narrow.splitlines()
    assert lines[1].split() == ["test", "this", "run"]
    assert lines[3].split() == [names[1], "↑", "0.100"]
    assert max(map(len, lines)) <= 60


def test_long_texts_continue_under_their_beginning(shown: Callable[..., str]) -> None:
    bottleneck = "most of the time went to the forward and the backward pass"
    text = shown(columns=50, bottleneck=bottleneck)
    assert (
        "\n        most of the time went to the forward and\n"
        "        the backward pass\n"
    ) in text


def test_run_without_metrics_says_why(shown: Callable[..., str]) -> None:
    text = shown(metrics={}, status="interrupted", reason="stopped after step 7 of [9]")
    assert text.startswith("interrupted: stopped after step 7 of [9]\n")
    assert "report" in text


def test_costs_of_a_run_that_has_none() -> None:
    assert cost_lines({"status": "failed"}) == []


def test_validation_line(capsys: pytest.CaptureFixture[str]) -> None:
    teller = RunConsole()
    teller.on_start(total_steps=120, start_step=0)
    record = {"event": "validation", "step": 30, "epoch": 1.5, "time": 2.0}
    teller.on_record({**record, "loss": 0.123456, "accuracy": 0.9})
    teller.on_record({**record, "event": "trainable", "stages": ["layer5", "head"]})
    teller.on_end()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "step  30/120  epoch  1.50  validation: loss 0.123  accuracy 0.900",
        "step 30: now training layer5, head",
    ]


def test_long_validation_line_keeps_names_with_their_numbers(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("COMPATIBLE", "1"), ("INTERACTIVE", "0")):
        monkeypatch.setenv(f"TTY_{name}", value)
    monkeypatch.setenv("COLUMNS", "60")
    record = {"event": "validation", "step": 5, "epoch": 0.5, "time": 2.0}
    RunConsole().on_record({**record, "loss": 0.5, "auroc": 0.25, "f1": 0.125})
    lines = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().err).splitlines()
    assert lines == [
        "step 5/0  epoch  0.50  validation: loss 0.500  auroc 0.250",
        "                       f1 0.125",
    ]


def test_run_console_watches_everything_that_happens() -> None:
    hooks = {name for name in vars(Callback) if name.startswith("on_")}
    assert hooks <= set(vars(RunConsole))


@pytest.mark.parametrize("columns", [80, 120])
def test_what_wraps_hangs_under_its_line(
    columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("COMPATIBLE", "1"), ("INTERACTIVE", "0")):
        monkeypatch.setenv(f"TTY_{name}", value)
    monkeypatch.setenv("COLUMNS", str(columns))
    fault = Fault("what [it] is, " * 10, "a.csv:3", "because, " * 20, "mend it, " * 20)
    show_faults(Screen(), [fault])
    RunConsole().on_message(f"warning: {fault}")
    told, message = (
        re.sub(r"\x1b\[[0-9;]*m", "", text) for text in capsys.readouterr()
    )
    lines = told.splitlines()
    assert message.splitlines() == lines
    assert max(map(len, lines)) <= columns
    starts = [line for line in lines if not line.startswith("    ")]
    assert starts[0].startswith("warning: a.csv:3: what [it] is")
    assert [line[:6] for line in starts if line.startswith("  ")][-2:] == [
        "  why:",
        "  fix:",
    ]
    # Only the first line is at the edge, and no word is lost.
    assert [line for line in lines if not line.startswith("  ")] == lines[:1]
    assert " ".join(told.split()) == " ".join(f"warning: {fault}".split())


def test_transfers_are_silent_until_something_is_fetched(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with Transfers() as transfers:
        assert capsys.readouterr().err == ""
        transfers(10, 100, "[weights].bin")
        transfers(100, 100, "[weights].bin")
    captured = capsys.readouterr()
    assert captured.err == "fetching [weights].bin\n"
    assert captured.out == ""


def test_screen_does_not_wrap_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    text = "word " * 100
    Screen().say(text.strip())
    assert capsys.readouterr().out == text.strip() + "\n"
