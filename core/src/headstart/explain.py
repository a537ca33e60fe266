"""What pydantic finds wrong with a section of a recipe, in a reader's words."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args, get_origin

from headstart.errors import Fault, closest

if TYPE_CHECKING:
    from collections.abc import Callable

    from pydantic import BaseModel, ValidationError
    from pydantic_core import ErrorDetails

_BOUNDS = {
    "greater_than": ("above", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("below", "lt"),
    "less_than_equal": ("at most", "le"),
}
_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "finite": "a finite number",
    "bool": "true or false",
    "string": "a text",
    "tuple": 'a list, e.g. ["a", "b"]',
    "list": 'a list, e.g. ["a", "b"]',
    "dict": "a table",
    "model": "a table",
}
"""By the first word of pydantic's error type: ``int_parsing``, ``int_from_float`` …"""


def setting_faults(
    error: ValidationError,
    model: type[BaseModel],
    table: Mapping[str, Any],
    where: Callable[[str], str],
    hint: Callable[[str], str],
) -> list[Fault]:
    """One fault for each key that is wrong.

    Args:
        error: What pydantic raised for ``table``.
        model: What the table was to become.
        where: Place of a key (``""`` for the whole section) for the reader.
        hint: What to write instead of an unknown key.
    """
    found: dict[str, list[ErrorDetails]] = {}
    for detail in error.errors(include_url=False):
        found.setdefault(_path(detail, table), []).append(detail)
    return [
        _fault(path, details, model, where, hint)
        for path, details in found.items()
        # Of a union of a text and a table, the branch that came further is meant.
        if not any(other.startswith(f"{path}.") for other in found)
    ]


def number_faults(
    model: type[BaseModel], table: Mapping[str, Any], where: Callable[[str], str]
) -> list[Fault]:
    """``epochs = true`` is no number, though Python and pydantic take it for 1."""
    return [
        Fault("must be a number", where(key), f"it is {shown(value)}")
        for key, value in table.items()
        if isinstance(value, bool)
        and (kinds := types_of(model, key)) & {int, float}
        and bool not in kinds
    ]


def types_of(model: type[BaseModel], key: str) -> set[Any]:
    """The types that a setting may have, unions taken apart; empty if unknown."""
    field = model.model_fields.get(key)
    return _flat(field.annotation) if field else set()


def shown(value: Any) -> str:
    """A value as a recipe would have it, shortened."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except TypeError:
        text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _flat(annotation: Any) -> set[Any]:
    origin = get_origin(annotation)
    if origin is Annotated:
        return _flat(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return set().union(*map(_flat, get_args(annotation)))
    return {annotation}


def _path(detail: ErrorDetails, table: Mapping[str, Any]) -> str:
    """The dotted key, without the names that pydantic gives to branches of a union."""
    value: Any = table
    parts = []
    for part in detail["loc"]:
        if isinstance(value, Mapping) and part in value:
            value = value[str(part)]
        elif (
            isinstance(value, Sequence)
            and not isinstance(value, str)
            and isinstance(part, int)
            and part < len(value)
        ):
            value = value[part]
        elif detail["type"] != "missing" or isinstance(part, int):
            continue
        parts.append(str(part))
    return ".".join(parts)


def _fault(
    path: str,
    details: Sequence[ErrorDetails],
    model: type[BaseModel],
    where: Callable[[str], str],
    hint: Callable[[str], str],
) -> Fault:
    kinds = {detail["type"] for detail in details}
    if "extra_forbidden" in kinds:
        return Fault("unknown key", where(path), fix=hint(path))
    if "missing" in kinds:
        short = isinstance(details[0]["loc"][-1], int)
        what = "has too few values" if short else "is missing"
        return Fault(what, where(path), fix=_about(model, path))
    given = details[0]["input"]
    choices = [c for detail in details for c in _choices(detail)]
    wanted = list(dict.fromkeys(filter(None, map(_wanted, details))))
    if choices:
        wanted.append(("one of " if len(choices) > 1 else "") + ", ".join(choices))
    if not wanted:
        what = details[0]["msg"].removeprefix("Value error, ")
        what = what[:1].lower() + what[1:]
    else:
        what = f"must be {' or '.join(wanted)}"
    meant = closest(given, [c.strip("'") for c in choices]) if _is_text(given) else None
    fix = f"did you mean {meant!r}?" if meant else _about(model, path)
    if kinds & {"tuple_type", "list_type"} and isinstance(given, str | int | float):
        one = [shown(given)]
        parts = given.split(",") if isinstance(given, str) else ()
        values = ", ".join([shown(part.strip()) for part in parts] or one)
        fix = f"write {path.rpartition('.')[2]} = [{values}]"
    return Fault(what, where(path), f"it is {shown(given)}" if path else "", fix)


def _wanted(detail: ErrorDetails) -> str:
    """What a value must be, to follow 'must be'; empty when pydantic says it better."""
    kind, limits = detail["type"], detail.get("ctx", {})
    if kind in _BOUNDS:
        words, key = _BOUNDS[kind]
        return f"{words} {limits[key]:g}"
    if kind in ("too_long", "too_short"):
        bound = limits.get("max_length", limits.get("min_length"))
        return f"a list of {'at most' if kind == 'too_long' else 'at least'} {bound}"
    return _KINDS.get(kind.partition("_")[0], "")


def _choices(detail: ErrorDetails) -> list[str]:
    if detail["type"] not in ("literal_error", "enum"):
        return []
    expected = str(detail.get("ctx", {}).get("expected", ""))
    return expected.replace(" or ", ", ").split(", ")


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _about(model: type[BaseModel], path: str) -> str:
    """What the setting is, from its documentation."""
    key = path.partition(".")[0]
    field = model.model_fields.get(key)
    about = (
        " ".join((field.description or "").replace("``", "").split()) if field else ""
    )
    return f"{key}: {about}" if about else ""
