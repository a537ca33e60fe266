"""Commands about what there is: recipes, pieces, plugins, assets, caches, devices."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from headstart.cli_cache import cache
from headstart.errors import DataError, UserError, nearest
from headstart.listing import (
    KINDS,
    SPECS,
    list_rows,
    plugin_rows,
    print_json,
    print_rows,
    recipe_text,
    show_settings,
    show_spec,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from headstart.plugins import Registry

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON for programs."
)


@click.command("list", short_help="List recipes, backbones, heads, data and more.")
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


@click.command(short_help="Show a recipe, or what can be set on a piece of one.")
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
    from headstart.recipe_tables import CORE_SECTIONS

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


@click.command(short_help="Copy a packaged recipe, to make it your own.")
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


@click.command(short_help="List plugins, and why one did not load.")
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


@click.command(short_help="List, fetch, verify or remove weights and data.")
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


@click.command(short_help="Tell what this machine has, and what is amiss.")
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


catalogue = (list_, show, copy, plugins, assets, cache, doctor)
