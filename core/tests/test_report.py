"""The report: from a run folder's files to one page that a person can trust."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import pytest

from headstart.errors import UserError
from headstart.report.page import read_run, write_report
from headstart.report.parts import Figure, Section, Table
from headstart.report.verdict import counted, number, verdict

if TYPE_CHECKING:
    from pathlib import Path

RECIPE = """
name = "toy/sentiment"
summary = "Is it <good>?"
[backbone]
name = "toy/encoder"
[head]
name = "toy/single-label"
[strategy]
name = "gradual"
[metrics]
names = ["accuracy", "macro-f1"]
best = "accuracy"
[expect]
on = "toy reviews"
takes = "1 minute"
"""
SUMMARY: dict[str, Any] = {
    "status": "done",
    "reason": "",
    "metrics": {"loss": 0.33, "accuracy": 0.871, "macro-f1": 0.869},
    "goals": {"accuracy": "max", "macro-f1": "max"},
    "intervals": {"accuracy": [0.856, 0.885]},
    "best_step": 40,
    "steps": 60,
    "epochs": 3.0,
    "baselines": [
        {"name": "majority class", "metrics": {"accuracy": 0.504, "macro-f1": 0.335}},
        {
            "name": "tf-idf + logistic regression",
            "metrics": {"accuracy": 0.809, "macro-f1": 0.808},
            "gains": {"accuracy": [0.044, 0.08]},
        },
    ],
    "scratch": {"metrics": {"accuracy": 0.701, "macro-f1": 0.7}, "steps": 60},
    "expect": {"accuracy": [0.86, 0.9]},
    "time": {"loading": 2.0, "forward/backward": 75.0, "optimizer": 8.0, "total": 90.0},
    "throughput": {
        "samples_per_second": 118.25,
        "units_per_second": 3110.4,
        "unit": "tokens",
    },
    "padding_waste": 0.031,
    "peak_memory_bytes": 1_510_000_000,
    "memory": {"estimated_bytes": 1_640_000_000, "parts": {}},
    "bottleneck": "83% of the time went to forward/backward.",
}
SECTION = Section(
    "Most <b>wrong</b>",
    "Look & see.",
    (
        Table(
            ("text", "probability"),
            (("<script>alert(1)</script>", 0.98765), ("a & b", None)),
            "two of them",
        ),
    ),
    (Figure("<svg><text>inside</text></svg>", "a caption", "a picture"),),
)


def events() -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = [
        {
            "event": "range",
            "step": i,
            "learning_rate": 10.0 ** (i - 6),
            "loss": 1.0 - i / 9,
        }
        for i in range(4)
    ]
    lines.append({"event": "trainable", "step": 0, "stages": ["layer1"]})
    lines.append({"event": "trainable", "step": 30, "stages": ["layer0", "layer1"]})
    for step in range(1, 61):
        rate = 5e-5 * (1 - step / 61)
        lines.append(
            {
                "event": "train",
                "step": step,
                "loss": math.exp(-step / 30),
                "learning_rate": rate,
                "head_learning_rate": 20 * rate,
            }
        )
    for step, value in ((20, 0.81), (40, 0.87), (60, 0.86)):
        scores = {"loss": 0.4, "accuracy": value, "macro-f1": value}
        lines.append({"event": "validation", "step": step, **scores})
    return lines


def write_run(folder: Path, **changes: Any) -> Path:
    """A whole run folder; a file's name with ``None`` leaves the file out."""
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, Any] = {
        "environment": {
            "headstart": "0.1.0",
            "python": "3.11.9",
            "torch": "2.14.1",
            "packages": {"transformers": "5.23.0"},
            "device": "cpu",
            "seed": 7,
            "command": ["headstart", "run", "toy/sentiment", "data.path=my file.csv"],
            "started": "2026-11-23T10:15:02",
            "weights": {"reference": "asset:toy", "sha256": "b9a0", "licence": "MIT"},
            "data": {"fingerprint": "9f118f"},
        },
        "task": {"kind": "single-label", "labels": ["bad", "good"], "counts": [30, 10]},
        "data": {
            "description": {"train": 7200, "test": 2043},
            "warnings": [
                {"what": "3 texts twice", "where": "a.csv", "fix": "drop them"}
            ],
            "left_out": [{"what": "empty text", "where": "a.csv:17"}],
        },
        "transfer": {
            "reference": "asset:toy",
            "loaded": 101,
            "skipped": [{"name": "pooler.weight", "why": "no part of the backbone"}],
            "reinitialised": [],
            "parameters": {"total": 3000, "frozen": 2000, "trainable": 1000},
            "stages": [
                {
                    "name": f"layer{i}",
                    "parameters": 1000 + i,
                    "trainable_at_start": i == 1,
                    "learning_rate_factor": 0.5 + i / 2,
                }
                for i in range(2)
            ]
            + [
                {
                    "name": "head",
                    "parameters": 7,
                    "trainable_at_start": True,
                    "learning_rate_factor": 1.0,
                }
            ],
            "new": ["head.weight"],
        },
        "summary": SUMMARY,
        "sections": [SECTION.to_dict()],
        "metrics": events(),
        **changes,
    }
    (folder / "recipe.toml").write_text(RECIPE, encoding="utf-8")
    for name, values in files.items():
        if name == "metrics" and values is not None:
            lines = "".join(json.dumps(value) + "\n" for value in values)
            (folder / "metrics.jsonl").write_text(lines, encoding="utf-8")
        elif values is not None:
            text = json.dumps(values)
            (folder / f"{name}.json").write_text(text, encoding="utf-8")
    return folder


class Page(HTMLParser):
    """Words, tags, what would be loaded, and table rows of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.html = path.read_text(encoding="utf-8")
        self.words = ""
        self.tags: set[str] = set()
        self.loads: list[str] = []
        self.handlers: list[str] = []
        self.rows: list[list[str]] = []
        self.strong: list[str] = []
        self._open: list[str] = []
        self.feed(self.html)
        self.words = " ".join(self.words.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag == "strong":
            self.strong.append("")
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "data", "action", "srcset"):
                self.loads.append(value or "")
            if name.startswith("on"):
                self.handlers.append(name)
            if name == "style" and "url(" in (value or ""):
                self.loads.append((value or "").split("url(")[1])

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if "style" in self._open:
            self.loads += ["css"] if "@import" in data or "url(" in data else []
            return
        self.words += data + " "
        if {"td", "th"} & set(self._open):
            self.rows[-1][-1] = " ".join([*self.rows[-1][-1].split(), *data.split()])
        if "strong" in self._open:
            self.strong[-1] += data.strip()

    def row(self, name: str) -> list[str]:
        [found] = [row for row in self.rows if row and row[0] == name]
        return found


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    folder = write_run(tmp_path_factory.mktemp("runs") / "toy-1")
    path = write_report(folder)
    assert path == folder / "report.html"
    assert sorted(p.name for p in folder.iterdir() if "report" in p.name) == [path.name]
    return Page(path)


def test_verdict_and_result_come_first(page: Page) -> None:
    order = [
        "toy/sentiment",
        "done",
        "The transfer paid",
        "Accuracy 0.871 on the test split",
        "Result",
        "Learning curves",
        "Transfer",
        "Most <b>wrong</b>",
        "Where the time went",
        "Reproduce",
    ]
    places = [page.words.index(words) for words in order]
    assert places == sorted(places)


def test_result_table(page: Page) -> None:
    columns = ["", "accuracy ↑", "macro-f1 ↑", "loss ↓", "gain (accuracy)"]
    assert columns in page.rows
    ours = page.row("this run")
    assert ours == ["this run", "0.871 0.856 to 0.885", "0.869", "0.330", ""]
    tfidf = page.row("tf-idf + logistic regression")
    assert tfidf[1:] == ["0.809", "0.808", "–", "+0.062 +0.044 to +0.080"]
    scratch = page.row("same model from random weights, 60 steps")
    assert scratch[1:] == ["0.701", "0.700", "–", "+0.170"]
    assert page.row("the recipe expects")[1] == "0.860 to 0.900 met"
    assert page.strong == ["0.871", "0.869"]


def test_everything_is_told(page: Page) -> None:
    for words in (
        "a.csv:17 : empty text",
        "drop them",
        "pooler.weight : no part of the backbone",
        "3,000: 1,000 trainable, 2,000 frozen",
        "83% of the time went to forward/backward.",
        "3.1%",
        "1.51 GB at the peak, 1.64 GB estimated",
        "118.2",
        "3,110",
        "transformers 5.23.0",
        "headstart run toy/sentiment 'data.path=my file.csv'",
        "headstart run toy-1/recipe.toml",
        'takes = "1 minute"',
        "weights sha256 b9a0",
        "seed 7",
    ):
        assert words in page.words, words
    assert page.row("layer0") == ["layer0", "1,000", "frozen", "0.500"]
    assert page.row("layer1") == ["layer1", "1,001", "trains", "1.000"]
    assert page.row("good") == ["good", "10", "25.0%"]
    assert page.row("forward/backward") == ["forward/backward", "1 min 15 s", "83.3%"]
    # 90 s in all, 85 s accounted for.
    assert page.row("other") == ["other", "5.0 s", "5.6%"]


def test_curves_are_drawn_with_text_as_text(page: Page) -> None:
    # Loss, two metrics, learning rate, stages, range test; time; the section's own.
    assert page.html.count("<svg") == 8
    for words in (
        "validation",
        "learning rate",
        "layer0",
        "head",
        "backbone",
        "inside",
    ):
        assert f">{words}</text>" in page.html, words
    # In the learning rates, and among the stages, though no event names it.
    assert page.html.count(">head</text>") == 2


def test_texts_are_escaped(page: Page) -> None:
    assert "script" not in page.tags
    assert "b" not in page.tags
    assert page.row("<script>alert(1)</script>")[1] == "0.988"
    assert "Is it <good>?" in page.words


def test_opens_without_a_network(page: Page) -> None:
    assert all(load.startswith("#") for load in page.loads)
    assert not page.tags & {"link", "script", "img", "iframe", "object", "base"}
    assert not page.handlers
    # Even a figure that somebody tampered with can load and run nothing.
    assert "default-src 'none'; style-src 'unsafe-inline'; img-src data:" in page.html


def test_same_files_same_bytes(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "toy-1")
    first = write_report(folder).read_bytes()
    assert write_report(folder).read_bytes() == first


def test_needs_no_torch(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "toy-1")
    code = (
        "import sys; from pathlib import Path;"
        "from headstart.report.page import write_report;"
        "before = set(sys.modules); write_report(Path(sys.argv[1]));"
        "assert 'torch' not in sys.modules;"
        "assert not {'matplotlib', 'jinja2'} & before;"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True)


def test_section_survives_json() -> None:
    text = json.dumps(SECTION.to_dict())
    assert Section.from_dict(json.loads(text)) == SECTION


@pytest.mark.parametrize(
    ("status", "reason", "words"),
    [
        ("stopped early", "no gain in 3 validations", "This run stopped early."),
        ("interrupted", "Ctrl-C at step 30", "This run was interrupted."),
        ("failed", "the loss is nan", "This run failed."),
    ],
)
def test_status_is_told(tmp_path: Path, status: str, reason: str, words: str) -> None:
    summary = {**SUMMARY, "status": status, "reason": reason}
    folder = write_run(tmp_path / "run", summary=summary, metrics=events()[:8])
    page = Page(write_report(folder))
    assert f"{words} {reason}" in page.words


def test_a_run_that_was_killed_still_gives_a_report(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", summary=None, sections=None)
    log = folder / "metrics.jsonl"
    log.write_bytes(log.read_bytes()[:-20])
    page = Page(write_report(folder))
    assert "it was cut off, or is still running" in page.words
    assert "No result yet" in page.words
    assert (
        "metrics.jsonl cannot be read (the log was cut off while writing)" in page.words
    )
    # The last whole validation line is the one of step 40.
    assert page.row("this run, last validation")[1:] == ["0.870", "0.870", "0.400"]


def test_an_interrupted_run_shows_its_validation(tmp_path: Path) -> None:
    summary = {
        "status": "interrupted",
        "metrics": {},
        "goals": SUMMARY["goals"],
        "validation": {"accuracy": 0.81},
    }
    page = Page(write_report(write_run(tmp_path / "run", summary=summary)))
    assert page.row("this run, last validation") == [
        "this run, last validation",
        "0.810",
    ]
    assert "the test split was not evaluated" in page.words


def test_a_bare_recipe_is_enough(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text("", encoding="utf-8")
    page = Page(write_report(tmp_path))
    assert tmp_path.name in page.words
    assert "There is no metrics.jsonl" in page.words


def test_damaged_files_are_told_not_hidden(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", sections=[{"title": "half"}])
    (folder / "transfer.json").write_text('{"loaded": 1', encoding="utf-8")
    (folder / "data.json").write_text("[]", encoding="utf-8")
    page = Page(write_report(folder))
    assert "transfer.json cannot be read" in page.words
    assert "data.json does not hold a dict" in page.words
    assert "A section in sections.json cannot be read" in page.words


def test_no_run_in_the_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no recipe\.toml") as raised:
        write_report(tmp_path)
    [fault] = raised.value.faults
    assert fault.where == str(tmp_path)
    assert fault.fix
    assert list(tmp_path.iterdir()) == []


def test_broken_recipe_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text("name = ", encoding="utf-8")
    with pytest.raises(UserError, match=r"recipe\.toml"):
        write_report(tmp_path)


def test_report_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    (folder / "report.html").mkdir()
    with pytest.raises(UserError, match="cannot be written"):
        write_report(folder)
    assert not (folder / ".report.html.part").exists()


def test_repeated_steps_of_a_resumed_run_count_once(tmp_path: Path) -> None:
    log = [
        {"event": "train", "step": step, "loss": loss}
        for step, loss in ((10, 1.0), (20, 0.9), (30, 0.8), (20, 0.7), (30, 0.6))
    ]
    run = read_run(write_run(tmp_path / "run", metrics=log))
    seen = [(event["step"], event["loss"]) for event in run.of("train")]
    assert seen == [(10, 1.0), (20, 0.7), (30, 0.6)]


def test_long_tables_are_cut_with_a_count(tmp_path: Path) -> None:
    rows = tuple((f"row {i}", i) for i in range(130))
    section = Section("Long", tables=(Table(("name", "value"), rows),))
    folder = write_run(tmp_path / "run", sections=[section.to_dict()])
    page = Page(write_report(folder))
    assert page.row("row 99") == ["row 99", "99"]
    assert not [row for row in page.rows if row and row[0] == "row 100"]
    assert "The first 100 rows; 30 more" in page.words


def judged(
    ours: float, *, tfidf: float, scratch: float | None = None, **extra: Any
) -> Any:
    summary = {
        "metrics": {"accuracy": ours},
        "goals": {"accuracy": "max"},
        "baselines": [
            {"name": "majority", "metrics": {"accuracy": 0.5}},
            {"name": "tf-idf", "metrics": {"accuracy": tfidf}, **extra},
        ],
        "scratch": None if scratch is None else {"metrics": {"accuracy": scratch}},
        "intervals": {"accuracy": [ours - 0.015, ours + 0.015]},
    }
    return verdict(summary, {})


@pytest.mark.parametrize(
    ("on", "key"), [(True, "scratch_control"), (False, "baselines")]
)
def test_verdict_without_a_baseline_says_what_to_turn_on(on: bool, key: str) -> None:
    summary = {"metrics": {"map": 0.5}, "goals": {"map": "max"}, "baselines": []}
    found = verdict(summary, {"report": {"baselines": on}})
    assert found.sentence.endswith(f"nothing to compare it with: turn on report.{key}.")


def test_verdict_paid() -> None:
    found = judged(0.87, tfidf=0.81, scratch=0.7)
    assert found.answer == "yes"
    assert found.sentence == (
        "Accuracy 0.870 on the test split, against 0.810 for the best baseline, tf-idf "
        "(gain +0.060) and 0.700 from random weights (gain +0.170)."
    )
    assert found.warnings == ()


def test_verdict_a_baseline_wins() -> None:
    found = judged(0.79, tfidf=0.81, scratch=0.7)
    assert found.answer == "no"
    assert found.warnings == (
        "A simple baseline is better on accuracy: tf-idf reaches 0.810, this run "
        "0.790.",
    )


def test_verdict_random_weights_win() -> None:
    found = judged(0.87, tfidf=0.81, scratch=0.9)
    assert found.answer == "no"
    assert found.warnings[0].startswith("The control is better on accuracy")


def test_verdict_within_the_interval_is_not_shown() -> None:
    assert judged(0.82, tfidf=0.81).answer == "unclear"
    # The interval of the paired gain is the sharper evidence, either way.
    assert judged(0.82, tfidf=0.81, gains={"accuracy": [0.002, 0.018]}).answer == "yes"
    assert (
        judged(0.87, tfidf=0.81, gains={"accuracy": [-0.01, 0.13]}).answer == "unclear"
    )


def test_verdict_without_a_control_says_so() -> None:
    found = judged(0.87, tfidf=0.81)
    assert found.answer == "yes"
    assert "report.scratch_control = true" in found.sentence


def test_verdict_less_can_be_better() -> None:
    summary = {
        "metrics": {"mae": 0.4},
        "goals": {"mae": "min"},
        "baselines": [
            {"name": "mean", "metrics": {"mae": 0.9}},
            {"name": "ridge", "metrics": {"mae": 0.5}},
        ],
    }
    found = verdict(summary, {})
    assert found.answer == "yes"
    better = "0.500 for the best baseline, ridge (20% lower, gain +0.100)"
    assert better in found.sentence


def tuned(ours: float, untouched: float, *others: tuple[str, float]) -> Any:
    rows = [("untouched model", untouched), *others]
    summary = {
        "metrics": {"perplexity": ours},
        "goals": {"perplexity": "min"},
        "baselines": [
            {"name": name, "metrics": {"perplexity": value}} for name, value in rows
        ],
    }
    return verdict(summary, {})


def test_verdict_against_the_untouched_model() -> None:
    found = tuned(31.2, 45.6)
    assert (found.answer, found.headline) == ("yes", "The fine-tuning paid")
    assert found.sentence.startswith(
        "Perplexity 31.200 on the test split, against 45.600 for the untouched model "
        "(32% lower, gain +14.400)."
    )
    found = tuned(31.2, 45.6, ("bigrams", 90.0))
    assert found.headline == "The transfer paid"
    assert "for the untouched model, the best baseline (32%" in found.sentence


def test_verdict_a_model_that_was_better_untouched() -> None:
    found = tuned(50.0, 40.0, ("bigrams", 90.0))
    assert (found.answer, found.headline) == ("no", "The fine-tuning did not pay")
    assert "(25% higher, gain −10.000)" in found.sentence
    assert found.warnings == (
        "The untouched model is better on perplexity: it reaches 40.000, this run "
        "50.000.",
    )


def test_verdict_tells_no_percentage_that_means_nothing() -> None:
    for ours, theirs in ((-1.2, -0.8), (0.5, -0.5), (31.2, 31.2001)):
        assert "%" not in tuned(ours, theirs).sentence


def test_verdict_a_baseline_that_wins_on_another_metric_is_not_hidden() -> None:
    summary = {
        "metrics": {"accuracy": 0.9, "mcc": 0.2},
        "goals": {"accuracy": "max", "mcc": "max"},
        "baselines": [{"name": "tf-idf", "metrics": {"accuracy": 0.8, "mcc": 0.3}}],
    }
    found = verdict(summary, {})
    assert found.answer == "yes"
    assert found.warnings == (
        "A simple baseline is better on mcc: tf-idf reaches 0.300, this run 0.200.",
    )


def test_verdict_names_all_metrics_that_a_baseline_wins_in_one_sentence() -> None:
    summary = {
        "metrics": {"accuracy": 0.9, "f1": 0.4, "mcc": 0.2},
        "goals": {"accuracy": "max", "f1": "max", "mcc": "max"},
        "baselines": [
            {"name": "tf-idf", "metrics": {"accuracy": 0.95, "f1": 0.5, "mcc": 0.3}},
            {"name": "majority", "metrics": {"accuracy": 0.5, "f1": 0.1, "mcc": 0.0}},
        ],
    }
    assert verdict(summary, {}).warnings == (
        "A simple baseline is better on accuracy, f1 and mcc: tf-idf reaches 0.950, "
        "0.500 and 0.300, this run 0.900, 0.400 and 0.200.",
    )
    summary["scratch"] = {"metrics": {"accuracy": 0.91, "f1": 0.1, "mcc": 0.6}}
    assert verdict(summary, {}).warnings == (
        "A simple baseline or the control is better on accuracy, f1 and mcc: tf-idf "
        "reaches 0.950, tf-idf reaches 0.500 and random weights reaches 0.600, this "
        "run 0.900, 0.400 and 0.200.",
    )


def test_verdict_hides_no_winner_but_one_that_reads_the_same() -> None:
    summary = {
        "metrics": {"accuracy": 0.9, "brier": 0.25004},
        "goals": {"accuracy": "max", "brier": "min"},
        "baselines": [{"name": "majority", "metrics": {"brier": 0.24996}}],
    }
    assert verdict(summary, {}).warnings == ()
    summary["baselines"] = [{"name": "majority", "metrics": {"brier": 0.2494}}]
    assert "0.249, this run 0.250" in verdict(summary, {}).warnings[0]


def test_verdict_of_one_group_says_why_there_is_no_interval(tmp_path: Path) -> None:
    none = [-math.inf, math.inf]
    summary = {
        **SUMMARY,
        "metrics": {"accuracy": 0.8},
        "goals": {"accuracy": "max"},
        "intervals": {"accuracy": none},
        "groups": {"unit": "patient", "count": 1},
        "baselines": [
            {"name": "blank", "metrics": {"accuracy": 0.7}, "gains": {"accuracy": none}}
        ],
        "scratch": None,
    }
    found = verdict(summary, {})
    assert found.answer == "unclear"
    assert found.sentence == (
        "Accuracy 0.800 on the test split, against 0.700 for the best baseline, blank "
        "(gain +0.100, no interval: all test samples are of one patient). What other "
        "patients would give cannot be said."
    )
    page = Page(write_report(write_run(tmp_path / "run", summary=summary)))
    assert page.row("this run") == ["this run", "0.800 no interval", ""]
    assert page.row("blank") == ["blank", "0.700", "+0.100 no interval"]
    assert "No intervals: all test samples are of one patient" in page.words
    assert "inf" not in page.words.replace("information", "")


def test_groups_are_told_where_intervals_are(tmp_path: Path) -> None:
    summary = {**SUMMARY, "groups": {"unit": "patient", "count": 12}}
    page = Page(write_report(write_run(tmp_path / "run", summary=summary)))
    assert "over the choice of the 12 test patients, with all samples" in page.words
    close = {"accuracy": [-0.1, 0.2]}
    row = {"name": "all", "metrics": {"accuracy": 0.85}, "gains": close}
    found = verdict({**summary, "baselines": [row], "scratch": None}, {})
    assert found.sentence.endswith("what the choice of test patients explains.")


def test_a_warning_has_its_why_and_fix_on_lines_of_their_own(tmp_path: Path) -> None:
    fault = "Dice 0.000\n  why: the class is <small>\n  fix: wait"
    summary = {**SUMMARY, "diagnosis": [fault, "The loss rose."]}
    html = write_report(write_run(tmp_path / "run", summary=summary)).read_text()
    assert (
        '<p class="warning">Dice 0.000<small>why: the class is &lt;small&gt;</small>'
        "<small>fix: wait</small></p>"
    ) in html
    assert '<p class="warning">The loss rose.</p>' in html
    assert ".verdict .warning small { display: block;" in html


def test_wide_tables_wrap_their_headers_and_show_that_they_scroll(page: Page) -> None:
    [rule] = re.findall(r"\.wide \{([^}]*overflow-x[^}]*)\}", page.html)
    # Covers move with what is scrolled, shadows stay: the trick that needs no script.
    assert rule.count(" local") == 2 and rule.count(" scroll") == 2
    nowrap = re.findall(r"([^{}]*)\{[^}]*white-space: nowrap", page.html)
    assert [selector.strip() for selector in nowrap] == ["td.number"]


def test_one_is_not_in_the_plural(tmp_path: Path) -> None:
    scratch = {"metrics": {"accuracy": 0.7}, "steps": 1}
    summary = {**SUMMARY, "steps": 1, "epochs": 1.0, "scratch": scratch}
    words = Page(write_report(write_run(tmp_path / "run", summary=summary))).words
    assert "1 step, 1 epoch ·" in words
    assert "same model from random weights, 1 step " in words
    assert counted(1200, "step") == "1,200 steps"


def test_verdict_missed_expectation() -> None:
    summary = {
        "metrics": {"accuracy": 0.8},
        "goals": {"accuracy": "max"},
        "expect": {"accuracy": [0.85, 0.9]},
    }
    [warning] = verdict(summary, {}).warnings
    assert warning == "The recipe expects accuracy 0.850 to 0.900; 0.800 is below that."


def test_verdict_needs_something_to_compare_with() -> None:
    summary = {"metrics": {"accuracy": 0.8}, "goals": {"accuracy": "max"}}
    assert verdict(summary, {}).answer == "unknown"
    assert verdict({}, {}).answer == "unknown"
    control = verdict(summary, {"strategy": {"name": "scratch"}})
    assert control.headline == "A control, not a transfer"
    nothing = {"metrics": {"accuracy": math.nan}, "goals": {"accuracy": "max"}}
    assert verdict(nothing, {}).headline == "No result"


def test_verdict_uses_the_metric_that_picks_the_checkpoint() -> None:
    summary = {
        "metrics": {"accuracy": 0.9, "mcc": 0.2},
        "goals": {"accuracy": "max", "mcc": "max"},
    }
    assert verdict(summary, {"metrics": {"best": "mcc"}}).sentence.startswith(
        "Mcc 0.200"
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1234567, "1,234,567"),
        (0.12345, "0.123"),
        (-0.5, "−0.500"),
        (0.0, "0.000"),
        (118.25, "118.2"),
        (3110.4, "3,110"),
        (5e-05, "5e-05"),
        (math.nan, "not a number"),
        (None, "–"),
        (True, "True"),
    ],
)
def test_number(value: Any, text: str) -> None:
    assert number(value) == text


def test_the_head_trains_all_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is in the transfer report's stages, and in no 'trainable' event."""
    from headstart.report import plots

    drawn: list[Any] = []
    real = plots.bands

    def bands(rows: Any, **options: Any) -> str:
        drawn.append(rows)
        return real(rows, **options)

    monkeypatch.setattr(plots, "bands", bands)
    write_report(write_run(tmp_path / "toy-1"))
    assert list(drawn[0]) == ["layer0", "layer1", "head"]
    assert drawn[0]["head"] == [(0, 60)]
    assert drawn[0]["layer0"] == [(30, 60)]


def test_what_came_of_a_pretrained_head(tmp_path: Path) -> None:
    transfer = {
        "reference": "torchvision:X",
        "loaded": 9,
        "skipped": [],
        "reinitialised": [],
        "parameters": {"total": 3, "frozen": 2, "trainable": 1},
        "stages": [],
        "new": [f"head.p{i}" for i in range(5)],
        "head_loaded": ["rpn.weight", "rpn.bias"],
        "classes_kept": ["cat"],
        "classes_new": ["yak", "gnu"],
    }
    words = Page(write_report(write_run(tmp_path / "run", transfer=transfer))).words
    assert "head 2 tensors came with the weights" in words
    assert "classes kept cat classes new yak, gnu" in words
    assert "head.p0, head.p1, head.p2 and 2 more, in transfer.json" in words
    assert "head.p3" not in words


def test_one_sample_has_no_interval() -> None:
    from headstart.report.verdict import Comparison

    one = Comparison("x", 0.7, 0.2, (-math.inf, math.inf), "unclear")
    assert str(one) == "gain +0.200, too few samples for an interval"
