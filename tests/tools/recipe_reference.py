"""Print every section and key of a recipe, from the settings models themselves.

::

    python tests/tools/recipe_reference.py > docs/recipes-reference.md
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headstart.plugins import load_plugins
from headstart.recipe_tables import CORE_SECTIONS, PLUGIN_SECTIONS
from headstart.settings import Settings
from headstart.specs import resolve

if TYPE_CHECKING:
    from collections.abc import Iterator

    from typing_extensions import TypeIs

ROOT = Path(__file__).resolve().parents[2]
HEADING = """\
# Every key of a recipe

Made by `python tests/tools/recipe_reference.py > docs/recipes-reference.md`; a test
compares. What a recipe is, and what the strategies do, is in [recipes.md](recipes.md).
A dash means that the key is not set and cannot be written as unset in TOML: leave it
out. `headstart show NAME` prints the keys of one backbone, head or data module.
"""


def type_text(schema: dict[str, Any]) -> str:
    """A JSON schema in words, bounds included."""
    if "enum" in schema:
        return " or ".join(f"`{json.dumps(value)}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{json.dumps(schema['const'])}`"
    if "anyOf" in schema:
        kinds = [kind for kind in schema["anyOf"] if kind.get("type") != "null"]
        return " or ".join(map(type_text, kinds))
    match schema.get("type"):
        case "array" if "prefixItems" in schema:
            return f"{len(schema['prefixItems'])} numbers"
        case "array":
            return f"list of {type_text(schema['items'])}s"
        case "object":
            inner = schema.get("additionalProperties")
            known = isinstance(inner, dict) and inner
            return f"table of {type_text(inner)}" if known else "table"
        case kind:
            words = {"boolean": "true or false", "string": "text", "number": "number"}
            return words.get(kind or "", kind or "any") + _bounds(schema)


def _bounds(schema: dict[str, Any]) -> str:
    signs = {
        "minimum": "≥",
        "exclusiveMinimum": ">",
        "maximum": "≤",
        "exclusiveMaximum": "<",
    }
    found = [f"{s} {schema[key]:g}" for key, s in signs.items() if key in schema]
    return f" {', '.join(found)}" if found else ""


def is_table(kind: Any) -> TypeIs[type[Settings]]:
    """Whether a key is a table of settings of its own."""
    return isinstance(kind, type) and issubclass(kind, Settings)


def rows(
    model: type[Settings], base: type[Settings] | None = None
) -> Iterator[tuple[str, str, str, str]]:
    """Key, type, default and meaning of each key that ``base`` lacks or has otherwise.

    Raises:
        ValueError: A key has no docstring.
    """
    known = base.model_json_schema()["properties"] if base else {}
    for key, schema in model.model_json_schema()["properties"].items():
        if known.get(key) == schema:
            continue
        field = model.model_fields[key]
        if is_table(field.annotation):
            continue
        about = " ".join((field.description or "").split())
        if not about:
            raise ValueError(f"{model.__name__}.{key} has no docstring")
        value = field.get_default(call_default_factory=True)
        default = "required" if field.is_required() else f"`{json.dumps(value)}`"
        yield (
            f"`{key}`",
            type_text(schema),
            "–" if value is None else default,
            about.replace("``", "`"),
        )


def table(model: type[Settings], base: type[Settings] | None = None) -> str:
    lines = ["| key | type | default | meaning |", "|---|---|---|---|"]
    lines += [f"| {' | '.join(row)} |" for row in rows(model, base)]
    return "\n".join(lines) + "\n"


def summary(model: type[Settings]) -> str:
    """The model's docstring as a sentence."""
    text = " ".join((model.__doc__ or "").replace("``", "`").split())
    return f"{text}\n"


def core_parts() -> Iterator[str]:
    for section, model in {**PLUGIN_SECTIONS, **CORE_SECTIONS}.items():
        yield f"## `[{section}]`\n"
        yield summary(model)
        yield table(model)
        for key, field in model.model_fields.items():
            if is_table(field.annotation):
                yield f"## `[{section}.{key}]`\n"
                yield summary(field.annotation)
                yield table(field.annotation)


def plugin_parts(plugin: str) -> Iterator[str]:
    """What a plugin's own settings add to the core's, one part a settings model."""
    registry = load_plugins()
    for section, base in PLUGIN_SECTIONS.items():
        kind = section if section == "data" else f"{section}s"
        users: dict[type[Settings], list[str]] = {}
        for name, spec in sorted(getattr(registry, kind).items()):
            if name.startswith(f"{plugin}/"):
                users.setdefault(resolve(spec.settings), []).append(name)
        for model, names in users.items():
            listed = ", ".join(f"`{name}`" for name in names)
            yield f"## `[{section}]` of {listed}\n"
            yield summary(model)
            if list(rows(model, base)):
                yield table(model, base)


def reference() -> str:
    """The whole document: the sections of the core and of the plugins here."""
    plugins = [path.parent.name for path in ROOT.glob("plugins/*/pyproject.toml")]
    parts = [HEADING, *core_parts()]
    for plugin in sorted(plugins):
        parts += plugin_parts(plugin)
    return "\n".join(parts)


if __name__ == "__main__":
    sys.stdout.write(reference())
