"""The command line. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from headstart.errors import HeadstartError, UserError, nearest
from headstart.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from headstart.plugins import Registry

KINDS = ("recipes", "backbones", "heads", "data", "metrics", "weights")
overrides_argument = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON for programs."
)


class Commands(click.Group):
    """Offers the nearest command for a misspelt one."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            hint = nearest(args[0], self.list_commands(ctx))
            raise click.UsageError(
                f"There is no command {args[0]!r}; {hint}", ctx
            ) from error


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="headstart")
def commands() -> None:
    """Fine-tune a pretrained model on your data, and see whether it paid.

    Start with `headstart list recipes` and `headstart run RECIPE`.
    """


@commands.command()
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
    from rich.console import Console

    from headstart.console import RunConsole, show_result
    from headstart.recipe import parse_overrides
    from headstart.runs import run as run_recipe

    values = parse_overrides(overrides)
    teller = None if quiet or as_json else RunConsole(Console(stderr=True))
    done = run_recipe(
        recipe,
        values,
        folder=folder,
        callbacks=[teller] if teller else [],
        progress=teller.transfers if teller else None,
    )
    if as_json:
        _print_json({"folder": str(done.folder), **done.summary})
    else:
        show_result(Console(), done)
    if done.summary["status"] == "interrupted":
        sys.exit(130)


@commands.command()
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
        _print_json(metrics)
    else:
        _print_rows([{"metric": k, split: f"{v:.4f}"} for k, v in metrics.items()])


@commands.command()
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
    from standard input.
    """
    from headstart.runs import Run

    items: list[str] = []
    for item in inputs or ("-",):
        items += sys.stdin.read().splitlines() if item == "-" else [item]
    results = Run(run_folder).predict_each(items)
    if output:
        count = _write_lines(output, results)
        click.echo(f"{count} predictions in {output}")
    elif as_json or not sys.stdout.isatty():
        for result in results:
            click.echo(json.dumps(result, ensure_ascii=False))
    else:
        _print_rows([_flat(result) for result in results])


@commands.command("list")
@click.argument("kind", type=click.Choice(KINDS), required=False)
@json_option
def list_(kind: str | None, as_json: bool) -> None:
    """List recipes, backbones, heads, data, metrics or weights sources."""
    registry = _registry()
    listed = {k: _listing(registry, k) for k in ([kind] if kind else KINDS)}
    if as_json:
        _print_json(listed)
        return
    for position, (name, rows) in enumerate(listed.items()):
        if not kind:
            click.secho(("\n" if position else "") + name, bold=True)
        _print_rows(rows, header=False)
    if not registry.plugins:
        click.echo("No plugin is installed: pip install headstart-nlp")


@commands.command()
@click.argument("name")
def show(name: str) -> None:
    """Show a recipe's text, or what can be set on a backbone, a head or data."""
    registry = _registry()
    tables: dict[str, Mapping[str, Any]] = {
        "backbone": registry.backbones,
        "head": registry.heads,
        "data": registry.data,
        "metric": registry.metrics,
    }
    if name in registry.recipes:
        click.echo(_recipe_text(registry, name), nl=False)
        return
    for kind, specs in tables.items():
        if name in specs:
            _show_spec(kind, specs[name])
            return
    known = [n for specs in (registry.recipes, *tables.values()) for n in specs]
    raise UserError(f"nothing is called {name!r}", fix=nearest(name, known))


@commands.command()
@click.argument("recipe")
@click.argument("file", type=click.Path(path_type=Path))
def copy(recipe: str, file: Path) -> None:
    """Copy a packaged RECIPE to FILE, to make it your own."""
    text = _recipe_text(_registry(), recipe)
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


@commands.command()
@click.argument("recipe")
@overrides_argument
@click.option(
    "--no-data", is_flag=True, help="Only the recipe; fetch and read nothing."
)
def check(recipe: str, overrides: tuple[str, ...], no_data: bool) -> None:
    """Check a recipe and its data, and train nothing."""
    from rich.console import Console

    from headstart.recipe import load_recipe, parse_overrides

    registry = _registry()
    checked = load_recipe(recipe, parse_overrides(overrides), registry=registry)
    click.echo(
        f"{checked.name}: {checked.backbone.name} + {checked.head.name} on "
        f"{checked.data.name} fit together"
    )
    if no_data:
        return
    from headstart.assembly import assemble, complete_transfer
    from headstart.console import Transfers, show_faults
    from headstart.trainer import plan_training

    console = Console()
    transfers = Transfers(console)
    try:
        assembly = assemble(checked, registry, transfers)
    finally:
        transfers.close()
    plan = plan_training(checked, assembly)
    for line in complete_transfer(assembly, plan).lines():
        click.echo(line)
    for key, value in assembly.data.describe().items():
        click.echo(f"{key}: {value}")
    findings = assembly.data.findings
    show_faults(console, findings.warnings, "warning")
    show_faults(console, findings.left_out, "warning")
    click.echo(f"ready: {plan.total} steps of {checked.train.batch_size}")


@commands.command()
@click.option("-v", "--verbose", is_flag=True, help="With the full traceback.")
@json_option
def plugins(verbose: bool, as_json: bool) -> None:
    """List plugins, and why one did not load."""
    from headstart.plugins import plugin_table

    registry = _registry()
    rows = plugin_table(registry)
    if as_json:
        _print_json(rows)
        return
    _print_rows(rows)
    if not rows:
        click.echo("No plugin is installed: pip install headstart-nlp")
    for plugin in registry.plugins if verbose else ():
        if plugin.traceback:
            click.echo(f"\n{plugin.name}\n{plugin.traceback}")


@commands.command()
@click.argument(
    "action", type=click.Choice(["list", "fetch", "verify", "remove"]), default="list"
)
@click.argument("names", nargs=-1)
def assets(action: str, names: tuple[str, ...]) -> None:
    """List, fetch, verify or remove the weights and data that recipes use."""
    from rich.console import Console

    from headstart import assets as store
    from headstart.console import Transfers, show_faults

    packages = _registry().packages()
    known = {a.name: a for p in packages for a in store.load_manifest(p).values()}
    chosen = [store.find_asset(name, packages) for name in names] or [*known.values()]
    if action == "list":
        click.echo(f"cache: {store.cache_folder()}")
        _print_rows(
            [
                {
                    "asset": asset.name,
                    "size": f"{asset.size / 1e6:.1f} MB",
                    "here": "yes" if store.is_present(asset) else "no",
                    "licence": asset.licence,
                    "summary": asset.summary,
                }
                for asset in chosen
            ]
        )
        return
    if action == "remove" and not names:
        raise UserError("name the assets to remove", fix=", ".join(known))
    console = Console()
    transfers = Transfers(console)
    failed = False
    for asset in chosen:
        if action == "fetch":
            click.echo(f"{asset.name}: {store.fetch(asset, progress=transfers)}")
        elif action == "remove":
            store.remove(asset)
            click.echo(f"{asset.name}: removed")
        else:
            faults = store.verify(asset)
            failed = failed or bool(faults)
            show_faults(console, faults, "error")
            if not faults:
                click.echo(f"{asset.name}: every hash holds")
    transfers.close()
    if failed:
        sys.exit(3)


@commands.command()
@json_option
def doctor(as_json: bool) -> None:
    """Tell what this machine has, and what is amiss."""
    from headstart.doctor import examine

    findings = examine(_registry())
    if as_json:
        _print_json([vars(finding) for finding in findings])
    else:
        for finding in findings:
            mark, colour = ("ok  ", "green") if finding.ok else ("FAIL", "red")
            click.echo(f"{click.style(mark, fg=colour)}  {finding.text}")
    if not all(finding.ok for finding in findings):
        sys.exit(1)


@commands.command()
@click.argument("run_folder", metavar="RUN")
def report(run_folder: str) -> None:
    """Write a run's report anew and print where it is."""
    from headstart.runs import Run

    click.echo(Run(run_folder).report)


def main() -> None:
    """The console script: every error of ours in words, with its exit code."""
    try:
        commands(prog_name="headstart")
    except HeadstartError as error:
        click.secho("error: ", fg="red", err=True, nl=False)
        click.echo(str(error), err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        click.echo("interrupted", err=True)
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(0)


def _registry() -> Registry:
    from headstart.plugins import load_plugins

    return load_plugins()


def _listing(registry: Registry, kind: str) -> list[dict[str, str]]:
    if kind == "recipes":
        return [
            {"name": name, "summary": _recipe_summary(registry, name)}
            for name in sorted(registry.recipes)
        ]
    if kind == "weights":
        return [
            {"name": f"{scheme}:", "summary": spec.summary}
            for scheme, spec in sorted(registry.weight_sources.items())
        ]
    specs = getattr(registry, kind)
    return [{"name": n, "summary": specs[n].summary} for n in sorted(specs)]


def _recipe_text(registry: Registry, name: str) -> str:
    from importlib.resources import files

    source = registry.recipe(name)
    return files(source.package).joinpath(source.path).read_text(encoding="utf-8")


def _recipe_summary(registry: Registry, name: str) -> str:
    import tomllib

    return str(tomllib.loads(_recipe_text(registry, name)).get("summary", ""))


def _show_spec(kind: str, spec: Any) -> None:
    from headstart.specs import resolve

    click.secho(f"{kind} {spec.name}", bold=True)
    click.echo(spec.summary)
    for label, value in vars(spec).items():
        if label in ("stages", "inputs", "needs", "targets", "metrics", "yields"):
            click.echo(f"{label}: {', '.join(value) or 'known with the weights'}")
        elif label in ("weights", "licence", "goal") and value:
            click.echo(f"{label}: {value}")
    if kind == "metric":
        return
    click.secho(f"\nsettings of [{kind}]", bold=True)
    rows = []
    for key, field in resolve(spec.settings).model_fields.items():
        default = "" if field.is_required() else json.dumps(field.default, default=str)
        about = " ".join((field.description or "").replace("``", "").split())
        rows.append({"key": key, "default": default, "about": about})
    _print_rows(rows)


def _write_lines(path: Path, results: Iterable[Mapping[str, Any]]) -> int:
    """JSON lines, whole or not at all."""
    count = 0
    fresh = path.with_name(f".{path.name}.partial")
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


def _flat(result: Mapping[str, Any]) -> dict[str, str]:
    """The short values of a prediction, for a table."""
    return {
        key: f"{value:.4f}" if isinstance(value, float) else str(value)
        for key, value in result.items()
        if not isinstance(value, dict)
    }


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=1, default=str))


def _print_rows(rows: list[dict[str, str]], header: bool = True) -> None:
    """Columns as wide as their cells; the last one wraps to the terminal."""
    if not rows:
        return
    import shutil
    import textwrap

    keys = list(rows[0])
    widths = [
        max([len(key) if header else 0, *(len(row[key]) for row in rows)])
        for key in keys[:-1]
    ]
    indent = sum(widths) + 2 * len(widths)
    room = max(shutil.get_terminal_size((100, 24)).columns - indent, 24)
    lines = ([dict(zip(keys, keys, strict=True))] if header else []) + rows
    for number, row in enumerate(lines):
        cells = "".join(
            row[k].ljust(w + 2) for k, w in zip(keys[:-1], widths, strict=True)
        )
        text = textwrap.wrap(row[keys[-1]], room) or [""]
        first = (cells + text[0]).rstrip()
        click.echo(click.style(first, bold=True) if header and not number else first)
        for line in text[1:]:
            click.echo(" " * indent + line)
