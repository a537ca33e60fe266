"""Columns, JSON, and what `headstart list` and `headstart show` print."""

from __future__ import annotations

import json
import math
import shutil
import sys
import textwrap
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from pydantic import BaseModel

    from headstart.plugins import Registry

KINDS = ("recipes", "backbones", "heads", "data", "metrics", "weights")
SPECS = {
    "backbone": "backbones",
    "head": "heads",
    "data": "data",
    "metric": "metrics",
}
"""What `show` calls a spec, and the registry's table of it."""
UNWRAPPED = 100_000
SHOWN = 3
"""Of a list in a table's cell."""


def terminal_width() -> int:
    """Columns of the terminal; without one, lines are not wrapped: a line is a row."""
    if not sys.stdout.isatty():
        return UNWRAPPED
    return shutil.get_terminal_size().columns


def wrapped(text: str, width: int) -> str:
    """Each line of a text wrapped at words, continued under its own beginning."""
    return "\n".join(
        textwrap.fill(
            line,
            width,
            subsequent_indent=" " * (len(line) - len(line.lstrip()) + 2),
            break_long_words=False,
            break_on_hyphens=False,
            expand_tabs=False,
            replace_whitespace=False,
        )
        for line in text.splitlines()
    )


def format_rows(
    rows: Sequence[Mapping[str, str]],
    width: int,
    *,
    header: bool = True,
    right: Collection[str] = (),
) -> list[str]:
    """Columns as wide as their cells; the last one is wrapped at words.

    Args:
        rows: Cells by column name; what a row lacks is a dash.
        width: Of a line, in characters.
        header: Whether the first line names the columns.
        right: The columns that are aligned to the right.
    """
    if not rows:
        return []
    keys = list(dict.fromkeys(key for row in rows for key in row))
    table = [{key: key for key in keys}] if header else []
    table += [{key: row.get(key, "–") for key in keys} for row in rows]
    wide = {key: max(len(row[key]) for row in table) for key in keys}
    *before, last = keys
    indent = sum(wide[key] + 2 for key in before)
    room = max(width - indent, 24)
    lines = []
    for row in table:
        cells = {
            key: row[key].rjust(wide[key])
            if key in right
            else row[key].ljust(wide[key])
            for key in keys
        }
        start = "".join(f"{cells[key]}  " for key in before)
        text = [cells[last]]
        if last not in right:
            text = textwrap.wrap(
                row[last], room, break_long_words=False, break_on_hyphens=False
            ) or [""]
        lines.append((start + text[0]).rstrip())
        lines += [" " * indent + line for line in text[1:]]
    return lines


def print_rows(
    rows: Sequence[Mapping[str, str]],
    *,
    header: bool = True,
    right: Collection[str] = (),
) -> None:
    """:func:`format_rows` to standard output, the header in bold."""
    lines = format_rows(rows, terminal_width(), header=header, right=right)
    for number, line in enumerate(lines):
        click.echo(click.style(line, bold=True) if header and not number else line)


def print_json(value: Any, *, indent: int | None = 1) -> None:
    """JSON for programs; what is no number there (NaN, infinity) becomes null."""
    text = json.dumps(_finite(value), indent=indent, ensure_ascii=False, default=str)
    click.echo(text)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def list_rows(registry: Registry, kind: str) -> list[dict[str, str]]:
    """Name and summary of everything of one of :data:`KINDS`."""
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
    return [{"name": name, "summary": specs[name].summary} for name in sorted(specs)]


def plugin_rows(registry: Registry) -> list[dict[str, str]]:
    """What each plugin brings, or why it does not."""
    return [
        {
            "name": info.name,
            "distribution": info.distribution,
            "version": info.version,
            "status": info.status,
            "brings": ", ".join(
                filter(
                    None,
                    (
                        *(f"{n} {_counted(k, n)}" for k, n in info.counts.items()),
                        info.cause,
                    ),
                )
            ),
        }
        for info in registry.plugins
    ]


def _counted(kind: str, count: int) -> str:
    noun = "weight sources" if kind == "weight_sources" else kind
    return noun.removesuffix("s") if count == 1 else noun


def prediction_row(result: Mapping[str, Any]) -> dict[str, str]:
    """The short values of a prediction, for a table, what it is for last."""
    row = {
        key: _cell(value)
        for key, value in result.items()
        if not isinstance(value, dict)
    }
    name = row.pop("input")
    if not row:
        # Tables are left out beside a result; here they are the result.
        row = {key: cell for key in result if (cell := _shares(result[key]))}
    return {**row, "input": name}


def _cell(value: Any) -> str:
    """A value in few characters; of a list's objects their names and numbers."""
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, dict):
        return " ".join(_cell(v) for v in value.values() if isinstance(v, str | float))
    if not isinstance(value, list):
        return "–" if value is None else str(value)
    cells = ", ".join(_cell(item) for item in value[:SHOWN])
    return f"{cells} and {len(value) - SHOWN} more" if value[SHOWN:] else cells or "–"


def _shares(value: Any) -> str:
    """The largest numbers of a table; empty for what is no table of numbers."""
    if not isinstance(value, dict) or not all(
        isinstance(number, float) for number in value.values()
    ):
        return ""
    best = sorted(value.items(), key=lambda entry: -entry[1])
    return _cell([{"name": name, "share": number} for name, number in best])


def recipe_text(registry: Registry, name: str) -> str:
    """The TOML text of a packaged recipe; raises as ``Registry.recipe`` does."""
    from importlib.resources import files

    source = registry.recipe(name)
    return files(source.package).joinpath(source.path).read_text(encoding="utf-8")


def _recipe_summary(registry: Registry, name: str) -> str:
    import tomllib

    return str(tomllib.loads(recipe_text(registry, name)).get("summary", ""))


def show_spec(kind: str, spec: Any) -> None:
    """What a spec says of itself, and what can be set on it."""
    from headstart.specs import resolve

    click.secho(f"{kind} {spec.name}", bold=True)
    click.echo(spec.summary)
    facts = {
        label: ", ".join(value) if isinstance(value, tuple) else str(value)
        for label in _SHOWN
        if (value := getattr(spec, label, None))
    }
    if kind == "backbone":
        facts["features"] = ", ".join(map(_feature, spec.features))
        facts.setdefault("stages", "known with the weights")
    click.echo()
    print_rows([{"": k, "value": v} for k, v in facts.items()], header=False)
    if kind != "metric":
        click.echo()
        show_settings(kind, resolve(spec.settings))
    if getattr(spec, "options", ""):
        click.echo()
        show_options(resolve(spec.options))


_SHOWN = (
    "weights",
    "licence",
    "inputs",
    "stages",
    "needs",
    "targets",
    "kinds",
    "metrics",
    "yields",
    "goal",
)


def show_settings(section: str, model: type[BaseModel]) -> None:
    """The keys of a section of a recipe, their defaults and meaning."""
    click.secho(f"settings of [{section}]", bold=True)
    _show_keys(model, lambda key: key)


def show_options(model: type[BaseModel]) -> None:
    """What `headstart predict` takes for a head beside the inputs."""
    click.secho("options of `headstart predict`", bold=True)
    _show_keys(model, lambda key: f"--{key.replace('_', '-')}")


def _show_keys(model: type[BaseModel], written: Callable[[str], str]) -> None:
    rows = []
    for key, field in model.model_fields.items():
        if key == "name" and field.is_required():
            continue
        default = field.get_default(call_default_factory=True)
        about = (field.description or "").replace("``", "").split()
        if len(choices := _choices(model, key)) > 1:
            about += ["One", "of", *", ".join(choices).split()]
            about[-1] += "."
        rows.append(
            {
                "key": written(key),
                "default": "required" if field.is_required() else _written(default),
                "about": " ".join(about),
            }
        )
    print_rows(rows)
    if not rows:
        click.echo("none")


def _choices(model: type[BaseModel], key: str) -> list[str]:
    from headstart.explain import types_of

    literals = [t for t in types_of(model, key) if get_origin(t) is Literal]
    return [str(choice) for literal in literals for choice in get_args(literal)]


def _written(default: Any) -> str:
    """A default as a recipe would write it; ``None`` as the documentation has it."""
    if default is None:
        return "None"
    return json.dumps(default, default=str, ensure_ascii=False)


def _feature(feature: Any) -> str:
    width = f", {feature.channels} channels" if feature.channels else ""
    return f"{feature.name} ({feature.kind}{width})"
