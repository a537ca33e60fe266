"""The report of a run: one HTML file, written from the run folder's files alone.

Opens without a network and without JavaScript. Sections of single tasks are made at
evaluation time (:mod:`headstart.report.sections`) and kept in ``sections.json``; the
page can
be written anew at any time.
"""

from __future__ import annotations

import json
import math
import os
import shlex
import tomllib
from collections import defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headstart.errors import UserError
from headstart.report.parts import Cell, Figure, Section
from headstart.report.verdict import (
    compare,
    counted,
    number,
    primary_metric,
    span,
    verdict,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

LONGEST_TABLE = 100
"""Rows that a table shows; the rest is counted."""


@dataclass
class RunFiles:
    """Everything in a run folder that the report reads; what is missing is empty."""

    folder: Path
    recipe: dict[str, Any]
    recipe_text: str
    environment: dict[str, Any] = field(default_factory=dict)
    task: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    transfer: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    events: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    sections: list[Section] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return str(self.recipe.get("name") or self.folder.name)

    @property
    def steps(self) -> int:
        seen = [
            int(e["step"]) for kind in ("train", "validation") for e in self.of(kind)
        ]
        return max([int(self.summary.get("steps") or 0), *seen, 1])

    @property
    def label_rows(self) -> list[tuple[Cell, ...]]:
        """Label, samples and share, where the task counts its labels."""
        labels, counts = self.task.get("labels"), self.task.get("counts")
        if not labels or not isinstance(counts, list) or len(labels) != len(counts):
            return []
        total = sum(counts) or 1
        pairs = zip(labels, counts, strict=True)
        return [(str(name), count, f"{count / total:.1%}") for name, count in pairs]

    def of(self, event: str) -> list[dict[str, Any]]:
        return self.events.get(event, [])


def read_run(folder: Path) -> RunFiles:
    """Read a run folder, also one of a run that was cut off.

    Raises:
        UserError: There is no run in the folder, or its recipe cannot be read.
    """
    path = folder / "recipe.toml"
    try:
        text = path.read_text(encoding="utf-8")
        run = RunFiles(folder.absolute(), tomllib.loads(text), text)
    except FileNotFoundError:
        raise UserError(
            "this is not a run folder: it has no recipe.toml",
            where=str(folder),
            why="the report is rebuilt from the files that `headstart run` leaves",
            fix="name a folder such as runs/nlp-sentiment-20261123-101502",
        ) from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(
            "the run's recipe cannot be read", where=str(path), why=str(error)
        ) from error
    for name in ("environment", "task", "data", "transfer", "summary"):
        setattr(run, name, _read_json(folder / f"{name}.json", dict, run.notes))
    for values in _read_json(folder / "sections.json", list, run.notes):
        try:
            run.sections.append(Section.from_dict(values))
        except (KeyError, TypeError) as error:
            run.notes.append(f"A section in sections.json cannot be read: {error!r}.")
    run.events = _read_events(folder / "metrics.jsonl", run.notes)
    return run


def _read_json(path: Path, kind: type, notes: list[str]) -> Any:
    """A JSON file, or nothing and a note when it is damaged."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return kind()
    except (OSError, ValueError) as error:
        notes.append(f"{path.name} cannot be read: {error}.")
        return kind()
    if isinstance(values, kind):
        return values
    notes.append(f"{path.name} does not hold a {kind.__name__}.")
    return kind()


def _read_events(path: Path, notes: list[str]) -> dict[str, list[dict[str, Any]]]:
    """The metrics log by kind of event; a resumed run's repeated steps count once."""
    events: dict[str, list[dict[str, Any]]] = defaultdict(list)
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        notes.append("There is no metrics.jsonl, so there are no learning curves.")
        return {}
    for row, line in enumerate(lines, start=1):
        try:
            event = json.loads(line)
            kind, step = event["event"], event["step"]
        except (ValueError, KeyError, TypeError):
            end = " (the log was cut off while writing)" if row == len(lines) else ""
            notes.append(f"Line {row} of metrics.jsonl cannot be read{end}.")
            continue
        if kind in ("train", "validation", "trainable"):
            while events[kind] and events[kind][-1]["step"] >= step:
                events[kind].pop()
        events[kind].append(event)
    return dict(events)


def write_report(run_folder: Path) -> Path:
    """Write ``report.html`` from the files of a run.

    Args:
        run_folder: A run's folder; the run may be unfinished.

    Returns:
        The report's path.

    Raises:
        UserError: There is no run in the folder, or the report cannot be written.
    """
    run = read_run(Path(run_folder))
    html = _render(run)
    path = run.folder / "report.html"
    draft = path.with_name(".report.html.part")
    try:
        draft.write_text(html, encoding="utf-8")
        os.replace(draft, path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise UserError(
            "the report cannot be written", where=str(path), why=str(error)
        ) from error
    return path


def _render(run: RunFiles) -> str:
    from jinja2 import ChainableUndefined, Environment, PackageLoader

    from headstart.report import plots

    environment = Environment(
        loader=PackageLoader("headstart.report"),
        autoescape=True,
        undefined=ChainableUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "counted": counted,
        "number": number,
        "seconds": _seconds,
        "shell": shlex.join,
        "span": span,
    }
    metric, goal = primary_metric(run.summary, run.recipe)
    time = _time_parts(run.summary.get("time") or {})
    return environment.get_template("report.html.j2").render(
        run=run,
        verdict=verdict(run.summary, run.recipe),
        metric=metric,
        results=_results(run, metric, goal),
        curves=_curves(run),
        time=time,
        time_bars=_time_bars(time),
        colours=plots.COLOURS,
        longest=LONGEST_TABLE,
    )


def _results(run: RunFiles, metric: str, goal: str) -> dict[str, Any]:
    """Columns and rows of the result table, the best value of each column marked."""
    summary = run.summary
    goals: dict[str, str] = summary.get("goals", {})
    final = summary.get("metrics") or {}
    valid = run.of("validation")
    ours: dict[str, Any]
    ours = {"name": "this run", "metrics": final, "intervals": summary.get("intervals")}
    if not final:
        ours = {
            "name": "this run, last validation",
            "metrics": summary.get("validation") or (valid[-1] if valid else {}),
        }
    scratch = summary.get("scratch")
    others = list(summary.get("baselines") or [])
    if scratch:
        steps = scratch.get("steps")
        name = "same model from random weights" + (
            f", {counted(steps, 'step')}" if steps else ""
        )
        others.append({**scratch, "name": name})
    names = dict.fromkeys([*(goals or _metric_names(valid)), "loss"])
    columns = [name for name in names if name in ours["metrics"]]
    rows = [ours, *others]
    best = {}
    for name in columns:
        values = [row["metrics"].get(name) for row in rows]
        known = [v for v in values if v is not None and math.isfinite(v)]
        if len(known) > 1 and goals.get(name) != "none":
            best[name] = (max if goals.get(name) == "max" else min)(known)
    return {
        "columns": columns,
        "goals": goals,
        "rows": rows,
        "best": best,
        "expect": summary.get("expect") or {},
        "gains": [None] + [compare(summary, other, metric, goal) for other in others],
    }


def _curves(run: RunFiles) -> list[Figure]:
    """Loss, every validation metric, learning rate, which stages train, range test."""
    from headstart.report import plots

    train, valid = run.of("train"), run.of("validation")
    best = run.summary.get("best_step")
    mark = (float(best), "best") if best and valid else None
    figures = []

    def column(events: list[dict[str, Any]], key: str) -> list[float]:
        return [math.nan if (v := e.get(key)) is None else float(v) for e in events]

    def line(name: str, events: list[dict[str, Any]], key: str, colour: int) -> Any:
        return plots.Series(name, column(events, "step"), column(events, key), colour)

    def add(label: str, series: list[Any], caption: str, **options: Any) -> None:
        options = {"xlabel": "step", "stop": run.steps, **options}
        if any(math.isfinite(y) for one in series for y in one.y):
            svg = plots.curves(series, ylabel=label, **options)
            figures.append(Figure(svg, caption, f"{label} over {options['xlabel']}"))

    loss = [line("train", train, "loss", 0)]
    caption = "Loss on the training and validation split."
    if len(train) > plots.FEW:
        steady = replace(loss[0], y=plots.smooth(loss[0].y).tolist())
        loss = [replace(loss[0], name="", faint=True), steady]
        caption += " Pale: each logged mean of the training loss; strong: smoothed."
    add("loss", [*loss, line("validation", valid, "loss", 1)], caption, mark=mark)
    control = (run.summary.get("scratch") or {}).get("curve", [])
    for name in run.summary.get("goals") or _metric_names(valid):
        if name == "loss":
            continue
        caption = f"Validation {name}."
        lines = [line("", valid, name, 1)]
        if control:
            # Both from pretrained and from random weights, step by step.
            lines = [line("this run", valid, name, 1)]
            lines.append(line("from scratch", control, name, 2))
            caption += " From scratch: the same model from random weights."
        add(name, lines, caption, mark=mark)
    metric, _ = primary_metric(run.summary, run.recipe)
    if control and metric:
        # A step of one may cost more than a step of the other, so time tells more.
        lines = [
            plots.Series(label, _seconds_of(events), column(events, metric), colour)
            for label, events, colour in (
                ("this run", valid, 1),
                ("from scratch", control, 2),
            )
        ]
        caption = (
            f"Validation {metric} over the time since training began; what it cost to "
            "make the weights is not in it."
        )
        add(metric, lines, caption, xlabel="seconds", stop=None)
    base = line("backbone", train, "learning_rate", 0)
    head = line("head", train, "head_learning_rate", 2)
    tops = [max((y for y in one.y if y > 0), default=0.0) for one in (base, head)]
    rates = [base, head] if tops[0] != tops[1] else [replace(base, name="")]
    apart = min(tops) > 0 and max(tops) / min(tops) > 5
    caption = "Learning rate before each stage's factor."
    add("learning rate", rates, caption, log_y=apart)
    figures += _bands(run)
    tried = run.of("range")
    test = plots.Series("", column(tried, "learning_rate"), column(tried, "loss"))
    caption = "Range test before training: the loss while the learning rate rises."
    add("loss", [test], caption, xlabel="learning rate", stop=None, log_x=True)
    return figures


def _seconds_of(events: list[dict[str, Any]]) -> list[float]:
    """Seconds since training began at each event; a resumed run's parts add up."""
    seconds, before, last = [], 0.0, 0.0
    for event in events:
        now = float(event.get("time") or 0.0)
        before += last if now < last else 0.0
        last = now
        seconds.append(before + now)
    return seconds


def _metric_names(events: list[dict[str, Any]]) -> list[str]:
    known = {"event", "step", "epoch", "time", "loss"}
    return [name for name in (events[-1] if events else {}) if name not in known]


def _bands(run: RunFiles) -> list[Figure]:
    from headstart.report import plots

    changes = run.of("trainable")
    if not changes:
        return []
    stages = [str(stage.get("name")) for stage in run.transfer.get("stages", ())]
    named = [name for change in changes for name in change.get("stages", ())]
    rows: dict[str, list[tuple[float, float]]] = {
        name: [] for name in dict.fromkeys([*stages, *named])
    }
    ends = [*(change["step"] for change in changes[1:]), run.steps]
    for change, end in zip(changes, ends, strict=True):
        for name in change.get("stages", ()):
            rows[name].append((change["step"], end))
    # A new head trains under every strategy, listed or not.
    rows["head"] = rows.get("head") or [(0, run.steps)]
    caption = (
        "Which stages train when, input at the bottom: blue trains, grey is frozen."
    )
    return [Figure(plots.bands(rows, stop=run.steps), caption, "Stages that train")]


def _time_parts(time: Mapping[str, float]) -> dict[str, float]:
    """Seconds by part, longest first, with what no part accounts for."""
    parts = {name: float(value) for name, value in time.items() if name != "total"}
    rest = float(time.get("total", 0.0)) - sum(parts.values())
    if rest > 0.005 * float(time.get("total", 0.0)):
        parts["other"] = rest
    known = {name: value for name, value in parts.items() if value > 0}
    return dict(sorted(known.items(), key=lambda item: -item[1]))


def _time_bars(time: Mapping[str, float]) -> list[Figure]:
    from headstart.report import plots

    if not time:
        return []
    return [Figure(plots.stacked_bar(time, unit="seconds"), alt="Time by part")]


def _seconds(value: float) -> str:
    """A duration for people: ``8.4 s``, ``4 min 12 s``, ``2 h 05 min``."""
    if value < 60:
        return f"{value:.1f} s"
    minutes, seconds = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {seconds:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
