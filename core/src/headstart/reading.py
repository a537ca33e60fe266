"""The raw tables of a recipe, from a package or a file, and the overrides to them."""

from __future__ import annotations

import re
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headstart.errors import Fault, UserError, closest

if TYPE_CHECKING:
    from collections.abc import Iterable

    from headstart.plugins import Registry


class Overrides(dict[str, Any]):
    """Typed values by dotted key, and as they were written.

    Attributes:
        texts: What a setting that is a text takes: the folder ``2024.10`` is not the
            number 2024.1.
    """

    def __init__(self) -> None:
        super().__init__()
        self.texts: dict[str, str] = {}


def read_recipe(
    reference: str | Path, registry: Registry
) -> tuple[dict[str, Any], str]:
    """The raw tables of a packaged recipe (``nlp/sentiment``) or of a TOML file.

    Returns:
        The tables, and what to call their origin in errors.

    Raises:
        UserError: No such recipe or file, or not TOML.
        PluginError: The plugin that has the recipe is missing or broken.
    """
    text = str(reference)
    path = Path(text)
    if text not in registry.recipes and (path.suffix == ".toml" or path.exists()):
        content = _read_file(path)
    else:
        source = registry.recipe(text)
        content = files(source.package).joinpath(source.path).read_bytes()
    return _parse(content, text), text


def _read_file(path: Path) -> bytes:
    if path.is_dir():
        inside = path / "recipe.toml"
        raise UserError(
            "this is a folder, not a recipe",
            where=str(path),
            fix=f"to repeat this run: {inside}"
            if inside.is_file()
            else "give a TOML file, or one of `headstart list recipes`",
        )
    try:
        return path.read_bytes()
    except FileNotFoundError:
        beside = [other.name for other in path.parent.glob("*.toml")]
        meant = closest(path.name, beside)
        raise UserError(
            "there is no such recipe file",
            where=str(path),
            fix=f"did you mean {str(path.with_name(meant))!r}?"
            if meant
            else "`headstart list recipes` shows the packaged ones; `headstart copy "
            "RECIPE FILE` makes one your own",
        ) from None
    except OSError as error:
        raise UserError(
            "the recipe cannot be read", where=str(path), why=str(error)
        ) from error


def _parse(content: bytes, origin: str) -> dict[str, Any]:
    try:
        # Editors on Windows put a byte-order mark before the first line.
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(
            "this is not UTF-8 text",
            where=f"{origin}, line {line}",
            why=f"it has the byte 0x{content[error.start]:02x}",
            fix="save the file as UTF-8",
        ) from error
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        message = str(error)
        found = re.search(r" \(at line (\d+), column \d+\)", message)
        where, why = origin, message
        if found:
            line = int(found[1])
            where = f"{origin}, line {line}"
            written = text.splitlines()[line - 1].strip()
            why = f"{message.replace(found[0], '')} in `{written}`"
        raise UserError(
            "this is not valid TOML",
            where=where,
            why=why,
            fix='write key = value, texts in "quotes", [section] on a line of its own',
        ) from error


def parse_overrides(pairs: Iterable[str]) -> Overrides:
    """``["train.epochs=3", "data.path=a.csv"]`` to typed values.

    A value is read as TOML where it is valid TOML (``3``, ``true``, ``[1, 2]``), else
    as text.

    Raises:
        UserError: A pair without ``=``; all of them together.
    """
    values = Overrides()
    faults = []
    for pair in pairs:
        key, equals, text = pair.partition("=")
        key = key.strip()
        if not equals or not all(part.strip() for part in key.split(".")):
            faults.append(
                Fault(
                    f"{pair!r} is not an override",
                    fix="write key=value, e.g. train.epochs=3",
                )
            )
            continue
        try:
            parsed = tomllib.loads(f"value = {text}")
        except tomllib.TOMLDecodeError:
            parsed = {}
        # A text with a line break could be a document of several keys.
        values[key] = parsed["value"] if len(parsed) == 1 else text
        values.texts[key] = text
    if faults:
        raise UserError(*faults)
    return values
