"""The command line. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from headstart.command_group import Commands
from headstart.errors import DataError, UserError, nearest
from headstart.listing import (
    KINDS,
    SPECS,
    list_rows,
    plugin_rows,
    prediction_row,
    print_json,
    print_rows,
    recipe_text,
    show_settings,
    show_spec,
)
from headstart.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from headstart.plugins import Registry

overrides_argument = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON for programs."
)


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
@click.option("--quiet", is_flag=True, help="Say nothing but the result.")
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
    from headstart.console import RunConsole, show_result
    from headstart.recipe import parse_overrides
    from headstart.runs import run as run_recipe

    values = parse_overrides(overrides)
    teller = None if quiet or as_json else RunConsole()
    try:
        done = run_recipe(
            recipe,
            values,
            folder=folder,
            callbacks=[teller] if teller else [],
            progress=teller.transfers if teller else None,
        )
    finally:
        if teller:
            teller.close()
    if as_json:
        print_json({"folder": str(done.folder), **done.summary})
    else:
        show_result(done)
    if done.summary["status"] == "interrupted":
        sys.exit(130)


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

    metrics = Run(run_folder).evaluate(split, parse_overrides(overrides))
    if as_json:
        print_json(metrics)
        return
    from headstart.report.verdict import number

    rows = [{"metric": name, split: number(value)} for name, value in metrics.items()]
    print_rows(rows, right=[split])


@commands.command(short_help="Predict for texts or files with a run's model.")
@click.argument("run_folder", metavar="RUN")
@click.argument("inputs", nargs=-1, metavar="INPUT...")
@click.option(
    "--output", type=click.Path(path_type=Path), help="Write JSON lines to this file."
)
@json_option
def predict(
    run_folder: str, inputs: tuple[str, ...], output: Path | None, as_json: bool
) -> None:
    """Predict for INPUTs: texts or files, as the run's data has them; - reads lines
    from standard input. To a terminal as a table, else as JSON lines.
    """
    from headstart.runs import Run

    items: list[str] = []
    for item in inputs or ("-",):
        items += _input_lines() if item == "-" else [item]
    results = Run(run_folder).predict_each(items)
    if output:
        count = _write_lines(output, results)
        click.echo(f"{count} prediction{'s' * (count != 1)} in {output}", err=True)
    elif as_json or not sys.stdout.isatty():
        for result in results:
            print_json(result, indent=None)
    else:
        print_rows(
            [
                {**prediction_row(result), "input": item}
                for result, item in zip(results, items, strict=True)
            ]
        )


@commands.command("list", short_help="List recipes, backbones, heads, data and more.")
@click.argument("kind", type=click.Choice(KINDS), required=False)
@json_option
def list_(kind: str | None, as_json: bool) -> None:
    """List recipes, backbones, heads, data, metrics or weights sources."""
    registry = _registry()
    listed = {k: list_rows(registry, k) for k in ([kind] if kind else KINDS)}
    if as_json:
        print_json(listed)
        return
    for position, (name, rows) in enumerate(listed.items()):
        if not kind:
            click.secho(("\n" if position else "") + name, bold=True)
        print_rows(rows, header=False)
    _say_missing(registry)


@commands.command(short_help="Show a recipe, or what can be set on a piece of one.")
@click.argument("name")
@click.option(
    "--kind",
    type=click.Choice(["recipe", *SPECS]),
    help="Which, where several have the name.",
)
def show(name: str, kind: str | None) -> None:
    """Show a recipe's text, or what can be set on a backbone, a head or data.

    NAME may also be a section that every recipe has: train, strategy, metrics …
    """
    from headstart.recipe import CORE_SECTIONS

    registry = _registry()
    tables: dict[str, Mapping[str, Any]] = {
        "recipe": registry.recipes,
        **{noun: getattr(registry, table) for noun, table in SPECS.items()},
    }
    if name in CORE_SECTIONS and not kind:
        show_settings(name, CORE_SECTIONS[name])
        return
    found = [k for k, table in tables.items() if name in table and kind in (None, k)]
    if not found:
        known = {n for k, table in tables.items() if kind in (None, k) for n in table}
        try:
            registry.recipe(name)  # for the fate of a plugin that is not there
        except UserError:
            pass
        hint = nearest(name, known if kind else known | set(CORE_SECTIONS))
        raise UserError(f"no {kind or 'piece'} is called {name!r}", fix=hint)
    if found[0] == "recipe":
        click.echo(recipe_text(registry, name), nl=False)
    else:
        show_spec(found[0], tables[found[0]][name])
    for other in found[1:]:
        click.echo(f"also: headstart show {name} --kind {other}", err=True)


@commands.command(short_help="Copy a packaged recipe, to make it your own.")
@click.argument("recipe")
@click.argument("file", type=click.Path(path_type=Path))
def copy(recipe: str, file: Path) -> None:
    """Copy a packaged RECIPE to FILE, to make it your own."""
    text = recipe_text(_registry(), recipe)
    try:
        with file.open("x", encoding="utf-8") as target:
            target.write(text)
    except FileExistsError:
        raise UserError(
            "the file is there already", where=str(file), fix="name a new one"
        ) from None
    except OSError as error:
        raise UserError(
            "the file cannot be written", where=str(file), why=str(error)
        ) from error
    click.echo(f"{file}: change it, then `headstart run {file}`")


@commands.command(short_help="Check a recipe and its data, and train nothing.")
@click.argument("recipe")
@overrides_argument
@click.option(
    "--no-data", is_flag=True, help="Only the recipe; fetch and read nothing."
)
def check(recipe: str, overrides: tuple[str, ...], no_data: bool) -> None:
    """Check a recipe and its data, and train nothing."""
    from headstart.recipe import load_recipe, parse_overrides

    registry = _registry()
    checked = load_recipe(recipe, parse_overrides(overrides), registry=registry)
    pieces = f"{checked.backbone.name} + {checked.head.name} on {checked.data.name}"
    click.echo(f"{checked.name}: {pieces} fit together")
    if no_data:
        return
    from headstart.console import check_data

    check_data(checked, registry)


@commands.command(short_help="List plugins, and why one did not load.")
@click.option("-v", "--verbose", is_flag=True, help="With the full traceback.")
@json_option
def plugins(verbose: bool, as_json: bool) -> None:
    """List plugins, and why one did not load."""
    from headstart.plugins import plugin_table

    registry = _registry()
    if as_json:
        print_json(plugin_table(registry))
        return
    print_rows(plugin_rows(registry))
    if not registry.plugins:
        _say_missing(registry)
    failed = [plugin for plugin in registry.plugins if plugin.traceback]
    for plugin in failed if verbose else ():
        click.secho(f"\n{plugin.name}", bold=True)
        click.echo(plugin.traceback.rstrip())
    if failed and not verbose:
        click.echo("`headstart plugins -v` shows the full traceback", err=True)


@commands.command(short_help="List, fetch, verify or remove weights and data.")
@click.argument(
    "action", type=click.Choice(["list", "fetch", "verify", "remove"]), default="list"
)
@click.argument("names", nargs=-1)
def assets(action: str, names: tuple[str, ...]) -> None:
    """List, fetch, verify or remove the weights and data that recipes use."""
    from headstart import assets as store

    packages = _registry().packages()
    known = {a.name: a for p in packages for a in store.load_manifest(p).values()}
    chosen = [store.find_asset(name, packages) for name in names] or [*known.values()]
    if action == "list":
        click.echo(f"cache: {store.cache_folder()}", err=True)
        print_rows(
            [
                {
                    "asset": asset.name,
                    "size": f"{asset.size / 1e6:.1f} MB",
                    "here": "yes" if store.is_present(asset) else "no",
                    "licence": asset.licence,
                    "summary": asset.summary,
                }
                for asset in chosen
            ],
            right=["size"],
        )
        return
    if action == "remove" and not names:
        raise UserError("name the assets to remove", fix=", ".join(known))
    if action == "fetch":
        from headstart.console import Transfers

        with Transfers() as transfers:
            for asset in chosen:
                place = store.fetch(asset, progress=transfers)
                click.echo(f"{asset.name}: {place}")
        return
    faults = []
    for asset in chosen:
        if action == "remove":
            store.remove(asset)
            click.echo(f"{asset.name}: removed")
        elif wrong := store.verify(asset):
            faults += wrong
        else:
            click.echo(f"{asset.name}: every hash holds")
    if faults:
        raise DataError(*faults)


@commands.command(short_help="Tell what this machine has, and what is amiss.")
@json_option
def doctor(as_json: bool) -> None:
    """Tell what this machine has, and what is amiss; then the exit code is 1."""
    from headstart.doctor import examine

    findings = examine(_registry())
    if as_json:
        print_json([vars(finding) for finding in findings])
    else:
        for finding in findings:
            mark, colour = ("ok  ", "green") if finding.ok else ("FAIL", "red")
            click.echo(f"{click.style(mark, fg=colour)}  {finding.text}")
    if not all(finding.ok for finding in findings):
        sys.exit(1)


@commands.command(short_help="Write a run's report anew and print where it is.")
@click.argument("run_folder", metavar="RUN")
def report(run_folder: str) -> None:
    """Write a run's report anew and print where it is."""
    from headstart.runs import Run

    click.echo(Run(run_folder).report)


def main() -> None:
    """The console script."""
    commands(prog_name="headstart")


def _registry() -> Registry:
    from headstart.plugins import load_plugins

    return load_plugins()


def _say_missing(registry: Registry) -> None:
    """Why there may be less than was hoped for."""
    failed = sum(info.status != "loaded" for info in registry.plugins)
    if failed:
        noun = "a plugin" if failed == 1 else f"{failed} plugins"
        click.echo(f"{noun} did not load: see `headstart plugins`", err=True)
    if not registry.plugins:
        click.echo("no plugin is installed: pip install headstart-nlp", err=True)


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
