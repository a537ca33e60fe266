"""What the command line shows: transfers, the plan of a run, progress, results."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

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

from headstart.callbacks import Callback, Record
from headstart.listing import UNWRAPPED, format_rows
from headstart.report.verdict import number, verdict

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from headstart.assembly import Assembly
    from headstart.errors import Fault
    from headstart.plugins import Registry
    from headstart.recipe import Recipe
    from headstart.runs import Run
    from headstart.weights.transfer import TransferReport

REFRESH = 5
"""Steps between two updates of the bar; each costs the training some microseconds."""
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
        self.print(text, style=style, soft_wrap=not self.is_terminal)

    def say_rows(self, rows: Iterable[tuple[str, str]]) -> None:
        """Labels and texts in two columns."""
        table = [{"label": f"{label:6s}", "text": text} for label, text in rows]
        for line in format_rows(table, self.columns, header=False):
            self.print(escape(line), soft_wrap=True)

    def on_broken_pipe(self) -> None:
        """A closed standard error must not end a training; rich would exit with 1."""
        if self.ends_quietly:
            raise BrokenPipeError
        self.quiet = True


class Transfers:
    """A bar for each file that is fetched; silent when nothing is."""

    def __init__(self, console: Console) -> None:
        self._bar = Progress(
            TextColumn("fetching {task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._console = console
        self._tasks: dict[str, Any] = {}

    def __call__(self, done_bytes: int, total_bytes: int, label: str) -> None:
        if label not in self._tasks:
            if not self._tasks:
                self._bar.start()
            self._console.print(f"fetching {escape(label)}", highlight=False)
            self._tasks[label] = self._bar.add_task(escape(label), total=None)
        self._bar.update(
            self._tasks[label], completed=done_bytes, total=total_bytes or None
        )

    def close(self) -> None:
        self._bar.stop()


class RunConsole(Callback):
    """Tells a run as it goes: what was loaded, what trains, how it improves."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.transfers = Transfers(console)
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[loss]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
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
        say = self._say
        say(f"[bold]{escape(recipe.name)}[/bold]  {escape(recipe.summary)}")
        for line in transfer.lines():
            say(escape(line))
        counts = assembly.data.describe()
        shown = "  ".join(
            f"{name} {number(value)}"
            for name, value in counts.items()
            if isinstance(value, int)
        )
        say(f"data: {escape(shown)}")
        show_faults(self.console, assembly.data.findings.warnings, "warning")
        left_out = assembly.data.findings.left_out
        if left_out:
            say(f"[yellow]left out: {len(left_out)} bad samples[/yellow] (data.json)")
        device = assembly.execution.device
        precision = "bf16" if assembly.execution.bf16 else "fp32"
        say(
            f"training: {recipe.strategy.name}, {total_steps} steps of "
            f"{recipe.train.batch_size} on {device} in {precision}"
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
            self._bar.update(self._task, loss=f"loss {record['loss']:.4f}")
        elif record["event"] == "trainable" and record["step"]:
            last = ", ".join(record["stages"])
            self._say(f"step {record['step']}: now training {escape(last)}")
        elif record["event"] == "validation":
            values = "  ".join(
                f"{name} {number(value)}"
                for name, value in record.items()
                if isinstance(value, float) and name not in ("epoch", "time")
            )
            self._say(
                f"step {record['step']:>5}/{self._total}  epoch {record['epoch']:.2f}"
                f"  validation: {values}"
            )

    def on_end(self) -> None:
        self._bar.stop()

    def _say(self, text: str) -> None:
        self.console.print(text, highlight=False, soft_wrap=True)


def show_faults(console: Console, faults: Sequence[Any], kind: str) -> None:
    """Warnings or errors, each with its why and its fix."""
    colour = {"warning": "yellow", "error": "red"}[kind]
    for fault in faults:
        text = escape(str(fault))
        console.print(
            f"[{colour}]{kind}:[/{colour}] {text}", highlight=False, soft_wrap=True
        )


def show_result(console: Console, run: Run) -> None:
    """The result beside the baselines, what it cost, and where the report is."""
    summary = run.summary
    metrics: Mapping[str, float] = summary.get("metrics", {})
    if metrics:
        console.print(_result_table(summary))
        console.print(
            verdict(summary, run.recipe().to_dict()).sentence,
            highlight=False,
            soft_wrap=True,
        )
    else:
        console.print(
            f"[yellow]{summary['status']}[/yellow]: {escape(summary['reason'])}",
            highlight=False,
        )
    for line in cost_lines(summary):
        console.print(line, highlight=False, soft_wrap=True)
    console.print(f"run     {escape(str(run.folder))}", highlight=False, soft_wrap=True)
    report = run.folder / "report.html"
    console.print(f"report  {escape(str(report))}", highlight=False, soft_wrap=True)


def _result_table(summary: Mapping[str, Any]) -> Table:
    table = Table(title="test", title_justify="left", box=None, pad_edge=False)
    table.add_column("")
    names = list(summary["metrics"])
    for name in names:
        arrow = {"max": " ↑", "min": " ↓"}.get(summary["goals"].get(name, "min"), "")
        table.add_column(name + arrow, justify="right")
    rows = [("this run", summary["metrics"])]
    rows += [(row["name"], row["metrics"]) for row in summary.get("baselines", ())]
    if summary.get("scratch"):
        rows.append(("from scratch", summary["scratch"]["metrics"]))
    for label, values in rows:
        cells = (number(values.get(name)) for name in names)
        table.add_row(label, *cells, style="bold" if label == "this run" else "")
    return table


def cost_lines(summary: Mapping[str, Any]) -> list[str]:
    """Time, throughput, padding and memory in a few lines."""
    seconds: Mapping[str, float] = summary.get("time", {})
    if not seconds:
        return []
    shown = "  ".join(
        f"{phase} {spent:.1f}"
        for phase, spent in seconds.items()
        if phase != "total" and spent >= 0.05
    )
    flow = summary["throughput"]
    pace = f"{flow['samples_per_second']:.1f} samples/s"
    if "unit" in flow:
        pace += f", {flow['units_per_second']:.0f} {flow['unit']}/s"
    if summary["padding_waste"] is not None:
        pace += f", padding {summary['padding_waste']:.1%}"
    memory = summary["peak_memory_bytes"] / 2**30
    return [
        f"time    {seconds['total']:.1f} s: {shown}",
        f"pace    {pace}, peak memory {memory:.2f} GiB",
        f"        {summary['bottleneck']}",
    ]
