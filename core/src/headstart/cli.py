"""The command line: train, evaluate, predict. Nothing heavy is imported before a
command needs it.
"""

from __future__ import annotations

import io
import json
import os
import sys
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from headstart.cli_catalogue import catalogue, json_option
from headstart.cli_folds import cross_validate
from headstart.command_group import Commands, overrides_argument, quiet_option
from headstart.errors import DataError, UserError
from headstart.listing import prediction_row, print_json, print_rows
from headstart.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from headstart.console import Counter
    from headstart.runs import Run


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="headstart")
@click.pass_context
def commands(ctx: click.Context) -> None:
    """Fine-tune a pretrained model on your data, and see whether it paid.

    Start with `headstart list recipes` and `headstart run RECIPE`.
    """
    if os.environ.get("NO_COLOR"):
        ctx.color = False


@commands.command(short_help="Train as a recipe says, test, and write a report.")
@click.argument("recipe")
@overrides_argument
@click.option("--folder", type=click.Path(path_type=Path), help="The run folder.")
@quiet_option
@json_option
def run(
    recipe: str,
    overrides: tuple[str, ...],
    folder: Path | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Train as RECIPE says, test, and write a report.

    RECIPE is a packaged recipe (nlp/sentiment) or a TOML file. KEY=VALUE changes a
    setting: train.epochs=3 data.path=reviews.csv
    """
    from headstart import fine_tuning

    start = partial(fine_tuning.run, recipe, folder=folder)
    _train(start, overrides, quiet, as_json)


@commands.command(short_help="Go on with a run that was stopped.")
@click.argument("run_folder", metavar="RUN")
@overrides_argument
@quiet_option
@json_option
def resume(
    run_folder: str, overrides: tuple[str, ...], quiet: bool, as_json: bool
) -> None:
    """Go on with a RUN that was stopped, as if nothing had happened.

    KEY=VALUE may change what no past step depends on, e.g. train.epochs=5
    """
    from headstart import fine_tuning

    _train(partial(fine_tuning.resume, run_folder), overrides, quiet, as_json)


def _train(
    start: Callable[..., Run], overrides: tuple[str, ...], quiet: bool, as_json: bool
) -> None:
    """Train with what a terminal shows; with several ranks the main one speaks."""
    from headstart.console import RunConsole, show_result
    from headstart.recipe import parse_overrides

    values = parse_overrides(overrides)
    silent = quiet or as_json or os.environ.get("RANK", "0") != "0"
    teller = None if silent else RunConsole()
    try:
        done = start(
            values,
            callbacks=[teller] if teller else [],
            progress=teller.transfers if teller else None,
        )
    finally:
        if teller:
            teller.close()
    summary = done.summary
    if os.environ.get("RANK", "0") != "0":
        pass
    elif as_json:
        print_json({"folder": str(done.folder), **summary})
    else:
        show_result(done)
    _leave_world()
    if summary["status"] == "interrupted":
        sys.exit(130)


def _leave_world() -> None:
    if "TORCHELASTIC_RUN_ID" in os.environ:
        from headstart.distributed import leave_world

        leave_world()


@commands.command(short_help="Measure a run's model on a split or on other data.")
@click.argument("run_folder", metavar="RUN")
@overrides_argument
@click.option(
    "--split", type=click.Choice(["train", "validation", "test"]), default="test"
)
@json_option
def evaluate(
    run_folder: str, overrides: tuple[str, ...], split: Any, as_json: bool
) -> None:
    """Measure a run's model on a split, or on other data (data.test_path=FILE)."""
    from headstart.recipe import parse_overrides
    from headstart.runs import Run

    tell = partial(click.echo, err=True)
    metrics = Run(run_folder).evaluate(split, parse_overrides(overrides), tell)
    if as_json:
        print_json(metrics)
        return
    from headstart.report.verdict import number

    rows = [{"metric": name, split: number(value)} for name, value in metrics.items()]
    print_rows(rows, right=[split])


@commands.command(
    short_help="Predict for texts or files with a run's model.",
    context_settings={"ignore_unknown_options": True},
)
@click.argument("run_folder", metavar="RUN")
@click.argument(
    "words", nargs=-1, metavar="INPUT... [--OPTION VALUE]...", type=click.UNPROCESSED
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="Write JSON lines to this file (.jsonl), or to a new folder what suits the "
    "domain, e.g. annotated images.",
)
@click.option(
    "--skip-bad",
    is_flag=True,
    help="Leave out inputs that cannot be used, list them at the end, and exit with 1.",
)
@json_option
def predict(
    run_folder: str,
    words: tuple[str, ...],
    output: Path | None,
    skip_bad: bool,
    as_json: bool,
) -> None:
    """Predict for INPUTs: texts or files, as the run's data has them; - reads lines
    from standard input. To a terminal as a table, else as JSON lines. Some heads take
    OPTIONs of their own: `headstart show HEAD` names them.
    """
    from headstart.console import Counter
    from headstart.predict_options import check_options, options_model, split_options
    from headstart.runs import Run

    run = Run(run_folder)
    head = run.recipe().head_spec
    inputs, options = split_options(words, options_model(head))
    checked = check_options(head, options)
    items: list[str] = []
    for item in inputs or (() if checked and checked.inputs() else ("-",)):
        items += _input_lines() if item == "-" else [item]
    with Counter("predicting") as counter:
        if output and not output.suffix:
            files = run.predict_into(output, items, counter, options, skip_bad)
            click.echo("\n".join(map(str, files)), err=True)
        else:
            bare = "" if output or as_json or not checked else checked.bare()
            predict = partial(run.predict_each, options=options, skip_bad=skip_bad)
            _tell_predictions(predict, items, counter, bare, output, as_json)
    if run.skipped:
        for fault in run.skipped:
            click.echo(f"left out: {fault}", err=True)
        sys.exit(1)


def _tell_predictions(
    predict: Callable[..., Iterator[dict[str, Any]]],
    items: list[str],
    counter: Counter,
    bare: str,
    output: Path | None,
    as_json: bool,
) -> None:
    """Into a file, as a table, as lines, or as what a head calls bare."""
    from headstart.console import Pieces

    shown = not output and not as_json and sys.stdout.isatty()
    # Of several inputs nobody could tell which text belongs to which.
    pieces = Pieces() if shown and len(items) == 1 else None
    # The text itself shows how far it is.
    told = None if pieces else counter
    results = predict(items, progress=told, emit=pieces)
    if bare:
        # One input may be a folder: what is in it needs names.
        first = list(islice(results, 2))
        results = chain(first, results)
        bare = bare if len(first) == 1 else ""
    if output:
        count = _write_lines(output, results)
        click.echo(f"{count} prediction{'s' * (count != 1)} in {output}", err=True)
    elif bare:
        for result in results:
            click.echo(result[bare])
    elif not shown:
        for result in results:
            print_json(result, indent=None)
    else:
        rows = [prediction_row(result) for result in results]
        # What was shown as it came needs no table.
        if not (pieces and pieces.end()):
            print_rows(rows)


@commands.command(short_help="Write a run's model for use without headstart.")
@click.argument("run_folder", metavar="RUN")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--merge", is_flag=True, help="Fold adapters (LoRA) into the weights they adapt."
)
def export(run_folder: str, folder: Path, merge: bool) -> None:
    """Write the model of a RUN into a new FOLDER as the library it comes from has it:
    tensors under that library's names, its configuration and vocabulary, and the head
    beside them. Adapters go alone, in peft's format, unless merged.
    """
    from headstart.runs import Run

    click.echo(Run(run_folder).export(folder, merge))


@commands.command(short_help="Check a recipe and its data, and train nothing.")
@click.argument("recipe")
@overrides_argument
@click.option(
    "--no-data", is_flag=True, help="Only the recipe; fetch and read nothing."
)
def check(recipe: str, overrides: tuple[str, ...], no_data: bool) -> None:
    """Check a recipe and its data, and train nothing."""
    from headstart.plugins import load_plugins
    from headstart.recipe import load_recipe, parse_overrides

    registry = load_plugins()
    checked = load_recipe(recipe, parse_overrides(overrides), registry=registry)
    pieces = f"{checked.backbone.name} + {checked.head.name} on {checked.data.name}"
    click.echo(f"{checked.name}: {pieces} fit together")
    if no_data:
        return
    from headstart.console import check_data

    check_data(checked, registry)


@commands.command(short_help="Write a run's report anew and print where it is.")
@click.argument("run_folder", metavar="RUN")
def report(run_folder: str) -> None:
    """Write a run's report anew and print where it is."""
    from headstart.runs import Run

    click.echo(Run(run_folder).report)


for command in (cross_validate, *catalogue):
    commands.add_command(command)


def main() -> None:
    """The console script."""
    commands(prog_name="headstart")


def _input_lines() -> list[str]:
    """The lines of standard input."""
    if sys.stdin.isatty():
        raise UserError(
            "there is nothing to predict for",
            fix="give texts or files, or pipe lines into this command",
        )
    try:
        text = sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            "this is not UTF-8 text", where="standard input", why=str(error)
        ) from error
    # Not splitlines(), for which a form feed also ends a line.
    return [line.rstrip("\n") for line in io.StringIO(text, newline=None)]


def _write_lines(path: Path, results: Iterable[Mapping[str, Any]]) -> int:
    """JSON lines, whole or not at all."""
    count = 0
    fresh = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with fresh.open("w", encoding="utf-8") as file:
            for result in results:
                file.write(json.dumps(result, ensure_ascii=False) + "\n")
                count += 1
        fresh.replace(path)
    except OSError as error:
        raise UserError(
            "the predictions cannot be written", where=str(path), why=str(error)
        ) from error
    finally:
        fresh.unlink(missing_ok=True)
    return count
