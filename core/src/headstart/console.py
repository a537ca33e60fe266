"""What the command line shows: transfers, the plan of a run, progress, results."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

from headstart.callbacks import Callback, Record
from headstart.listing import UNWRAPPED, format_rows, wrapped
from headstart.report.verdict import counted, number, verdict

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from headstart.assembly import Assembly
    from headstart.data import DataModule
    from headstart.errors import Fault
    from headstart.plugins import Registry
    from headstart.recipe import Recipe
    from headstart.runs import Run
    from headstart.weights.transfer_report import TransferReport

PATIENCE = 2.0
"""Seconds without a bar."""
REFRESH = 5
"""Steps between two updates of the bar; each costs the training some microseconds."""
SPLITS = ("train", "validation", "test")
NO_BREAK = "\N{NO-BREAK SPACE}"
LISTED = 20
"""Rows of a table of the data (classes) that are shown."""


class Screen(Console):
    """Wraps at words on a terminal and never elsewhere, where a line is a record."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, highlight=False)
        self.ends_quietly = not stderr

    @property
    def columns(self) -> int:
        return self.width if self.is_terminal else UNWRAPPED

    def say(self, text: str = "", style: str = "") -> None:
        """Markup; on a terminal, what of a line wraps hangs under its beginning."""
        shown = Text.from_markup(text, style=style)
        if self.is_terminal:
            lines = [hung(line, self.width) for line in shown.split("\n")]
            shown = Text("\n").join(lines)
        self.print(shown, soft_wrap=True)

    def say_rows(self, rows: Iterable[tuple[str, str]]) -> None:
        """Labels and texts in two columns."""
        table = [{"label": f"{label:6s}", "text": text} for label, text in rows]
        for line in format_rows(table, self.columns, header=False):
            self.print(escape(line.replace(NO_BREAK, " ")), soft_wrap=True)

    def on_broken_pipe(self) -> None:
        """A closed standard error must not end a training; rich would exit with 1."""
        if self.ends_quietly:
            raise BrokenPipeError
        self.quiet = True


def hung(line: Text, width: int) -> Text:
    """A line wrapped as :func:`headstart.listing.wrapped` does it, styles kept."""
    pieces, start = [], 0
    for piece in wrapped(line.plain, width).split("\n"):
        words = piece.strip()
        start = line.plain.index(words, start)
        indent = " " * (len(piece) - len(piece.lstrip()))
        pieces.append(Text(indent) + line[start : start + len(words)])
        start += len(words)
    return Text("\n").join(pieces)


class Transfers:
    """A bar for each file that is fetched; silent when nothing is."""

    def __init__(self, screen: Screen | None = None) -> None:
        self._screen = screen or Screen(stderr=True)
        self._bar = Progress(
            TextColumn("fetching {task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            console=self._screen,
            disable=not self._screen.is_terminal,
            transient=True,
        )
        self._tasks: dict[str, Any] = {}

    def __call__(self, done_bytes: int, total_bytes: int, label: str) -> None:
        if label not in self._tasks:
            if not self._tasks:
                self._bar.start()
            self._screen.say(f"fetching {escape(label)}")
            self._tasks[label] = self._bar.add_task(escape(label), total=None)
        self._bar.update(
            self._tasks[label], completed=done_bytes, total=total_bytes or None
        )

    def __enter__(self) -> Transfers:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        self._bar.stop()


class Counter:
    """A bar over things that are done one after another, where they take a while."""

    def __init__(self, what: str) -> None:
        screen = Screen(stderr=True)
        self._bar = Progress(
            TextColumn(what),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=screen,
            disable=not screen.is_terminal,
            transient=True,
        )
        self._task = self._bar.add_task(what, total=None)
        self._began = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        if time.monotonic() - self._began > PATIENCE:
            self._bar.start()
        self._bar.update(self._task, completed=done, total=total)

    def __enter__(self) -> Counter:
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()


class Pieces:
    """Shows predictions on a terminal as they are made, piece by piece."""

    def __init__(self) -> None:
        self._last = ""

    def __call__(self, piece: str) -> None:
        if piece:
            click.echo(piece, nl=False)
            self._last = piece

    def end(self) -> bool:
        """End the line; whether there was anything to show."""
        if self._last and not self._last.endswith("\n"):
            click.echo()
        return bool(self._last)


class RunConsole(Callback):
    """Tells a run as it goes: what was loaded, what trains, how it improves."""

    def __init__(self) -> None:
        self.screen = Screen(stderr=True)
        self.transfers = Transfers(self.screen)
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[loss]}"),
            TimeRemainingColumn(),
            console=self.screen,
            disable=not self.screen.is_terminal,
            transient=True,
        )
        self._task = self._bar.add_task("training", loss="", total=None)
        self._total = 0

    def on_assembled(
        self,
        recipe: Recipe,
        assembly: Assembly,
        transfer: TransferReport,
        total_steps: int,
    ) -> None:
        self.transfers.close()
        self.screen.say(f"[bold]{escape(recipe.name)}[/bold]  {escape(recipe.summary)}")
        execution = assembly.execution
        self.screen.say_rows(
            [
                *_transfer_rows(transfer),
                ("data", _splits(assembly.data.describe())),
                (
                    "train",
                    f"{recipe.strategy.name}, {counted(total_steps, 'step')} of "
                    f"{_batch(recipe, assembly.data)} on {execution.device} in "
                    f"{'bf16' if execution.bf16 else 'fp32'}",
                ),
            ]
        )
        findings = assembly.data.findings
        show_faults(self.screen, findings.warnings)
        if findings.left_out:
            bad = counted(len(findings.left_out), "fault")
            self.screen.say(
                f"[yellow]warning:[/yellow] bad samples are left out ({bad}); "
                "data.json names them"
            )

    def on_start(self, total_steps: int, start_step: int) -> None:
        self._total = total_steps
        self._bar.start()
        self._bar.update(self._task, total=total_steps, completed=start_step)

    def on_step(self, step: int) -> None:
        if step % REFRESH == 0:
            self._bar.update(self._task, completed=step)

    def on_record(self, record: Record) -> None:
        if record["event"] == "train":
            self._bar.update(self._task, loss=f"loss {number(record['loss'])}")
        elif record["event"] == "trainable" and record["step"]:
            last = ", ".join(record["stages"])
            self.screen.say(f"step {record['step']}: now training {escape(last)}")
        elif record["event"] == "validation":
            values = "  ".join(
                _pair(name, value)
                for name, value in record.items()
                if isinstance(value, float) and name not in ("epoch", "time")
            )
            width = len(str(self._total))
            when = f"step {record['step']:>{width}}/{self._total}"
            when += f"  epoch {record['epoch']:5.2f}"
            self.screen.say_rows([(when, f"validation: {values}")])

    def on_message(self, text: str) -> None:
        self.screen.say(escape(text))

    def on_end(self) -> None:
        self._bar.stop()

    def close(self) -> None:
        """Give the terminal back, however the run ended."""
        self.transfers.close()
        self._bar.stop()


def show_faults(screen: Screen, faults: Iterable[Fault]) -> None:
    """Warnings, each with its why and its fix."""
    for fault in faults:
        screen.say(f"[yellow]warning:[/yellow] {escape(str(fault))}")


def check_data(recipe: Recipe, registry: Registry) -> None:
    """Fetch, read and assemble what a recipe names, and tell what is there."""
    from headstart.assembly import assemble, complete_transfer
    from headstart.training_setup import plan_training

    with Transfers() as transfers:
        assembly = assemble(recipe, registry, transfers)
    plan = plan_training(recipe, assembly)
    described = assembly.data.describe()
    screen = Screen()
    rows = [
        *_transfer_rows(complete_transfer(assembly, plan)),
        ("data", _splits(described)),
    ]
    rows += [
        (name, _inline(value))
        for name, value in described.items()
        if name not in SPLITS and not _is_table(value)
    ]
    batch = _batch(recipe, assembly.data)
    rows.append(("train", f"{counted(plan.total, 'step')} of {batch}"))
    screen.say_rows(rows)
    for name, value in described.items():
        if _is_table(value):
            _show_table(screen, name, value)
    show_faults(screen, assembly.data.findings.warnings)
    show_faults(screen, assembly.data.findings.left_out)


def _transfer_rows(transfer: TransferReport) -> list[tuple[str, str]]:
    first, *others = transfer.lines()
    parts = (line.split(maxsplit=1) for line in others)
    return [("weights", first), *((f"  {label}", text) for label, text in parts)]


def _pair(name: str, value: Any) -> str:
    """A name and its number, which stay on one line."""
    return f"{name}{NO_BREAK}{number(value)}"


def _batch(recipe: Recipe, data: DataModule) -> str:
    """How large a step is, in words."""
    if recipe.train.batch_total is None:
        return str(recipe.train.batch_size)
    return f"at most {_inline(recipe.train.batch_total)} {data.size_unit}"


def _splits(described: Mapping[str, Any]) -> str:
    return "  ".join(
        _pair(name, described[name]) for name in SPLITS if name in described
    )


def _inline(value: Any) -> str:
    if isinstance(value, dict):
        return "  ".join(f"{key} {_inline(item)}" for key, item in value.items())
    whole = isinstance(value, float) and value.is_integer()
    return number(int(value) if whole else value)


def _is_table(value: Any) -> bool:
    """Counts by column and row, e.g. of classes by split."""
    return isinstance(value, dict) and any(isinstance(v, dict) for v in value.values())


def _show_table(screen: Screen, name: str, columns: Mapping[str, Any]) -> None:
    names = list(dict.fromkeys(key for column in columns.values() for key in column))
    rows = [
        {name: row, **{c: number(columns[c].get(row, 0)) for c in columns}}
        for row in names[:LISTED]
    ]
    if len(names) > LISTED:
        rest = f"and {len(names) - LISTED} more"
        rows.append({name: rest, **dict.fromkeys(columns, "")})
    screen.say()
    say_table(screen, rows)


def say_table(
    screen: Screen, rows: Sequence[Mapping[str, str]], bold: Sequence[int] = (0,)
) -> None:
    """Names to the left, numbers to the right; the lines of ``bold`` in bold."""
    lines = format_rows(rows, screen.columns, right=list(rows[0])[1:])
    for position, line in enumerate(lines):
        style = "bold" if position in bold else ""
        screen.print(escape(line), style=style, soft_wrap=True)


def show_result(run: Run) -> None:
    """The result beside the baselines, what it cost, and where the report is."""
    screen = Screen()
    summary = run.summary
    if screen.is_terminal:
        screen.say()
    if summary.get("metrics"):
        _show_metrics(screen, summary)
        judged = verdict(summary, run.recipe().to_dict())
        colour = {"yes": "green", "no": "red"}.get(judged.answer, "yellow")
        screen.say()
        screen.say(
            f"[bold {colour}]{judged.headline}.[/bold {colour}] "
            + escape(judged.sentence)
        )
        for warning in judged.warnings:
            screen.say(f"[yellow]warning:[/yellow] {escape(warning)}")
        screen.say()
    else:
        screen.say(f"[yellow]{summary['status']}[/yellow]: {escape(summary['reason'])}")
    screen.say_rows(
        [
            *cost_lines(summary),
            ("run", str(run.folder)),
            ("report", str(run.folder / "report.html")),
        ]
    )


def _show_metrics(screen: Screen, summary: Mapping[str, Any]) -> None:
    """A row for each result; where that is too wide, a row for each metric."""
    results = {"this run": summary["metrics"]}
    results |= {row["name"]: row["metrics"] for row in summary.get("baselines", ())}
    if summary.get("scratch"):
        results["from scratch"] = summary["scratch"]["metrics"]
    goals = {"loss": "min", **summary["goals"]}
    arrows = {"max": " ↑", "min": " ↓"}
    names = {
        name: name + arrows.get(goals.get(name, ""), "") for name in summary["metrics"]
    }
    rows = [
        {"test": label, **{n: number(values.get(m)) for m, n in names.items()}}
        for label, values in results.items()
    ]
    if len(format_rows(rows, screen.columns, right=list(names.values()))[0]) <= (
        screen.columns
    ):
        say_table(screen, rows, bold=(0, 1))
        return
    say_table(
        screen,
        [
            {"test": n, **{r: number(values.get(m)) for r, values in results.items()}}
            for m, n in names.items()
        ],
    )


def cost_lines(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Time, throughput, padding and memory: labels and texts."""
    seconds: Mapping[str, float] = summary.get("time", {})
    if not seconds:
        return []
    shown = ", ".join(
        f"{phase}{NO_BREAK}{_brief(spent)}"
        for phase, spent in seconds.items()
        if phase != "total" and spent >= 0.05
    )
    flow = summary["throughput"]
    pace = f"{_brief(flow['samples_per_second'])} samples/s"
    if "unit" in flow:
        pace += f", {_brief(flow['units_per_second'])} {flow['unit']}/s"
    if summary["padding_waste"] is not None:
        pace += f", padding {summary['padding_waste']:.1%}"
    return [
        ("time", f"{_brief(seconds['total'])} s: {shown}"),
        ("pace", pace),
        ("memory", _memory(summary)),
        ("", summary["bottleneck"]),
    ]


def _memory(summary: Mapping[str, Any]) -> str:
    """What was needed at the peak, and what it was thought to be."""
    text = f"{summary['peak_memory_bytes'] / 1e9:.2f} GB at the peak"
    estimated = summary.get("memory", {}).get("estimated_bytes")
    return text + (f", {estimated / 1e9:.2f} GB estimated" if estimated else "")


def _brief(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
