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
    from pydantic.fields import FieldInfo
    from pydantic_core import ErrorDetails

_BOUNDS = {
    "greater_than": ("above", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("below", "lt"),
    "less_than_equal": ("at most", "le"),
}
_RANGES = {
    "gt": "above {:g}",
    "ge": "of {:g} or more",
    "lt": "below {:g}",
    "le": "of {:g} or less",
}
_NUMBERS = ("int", "float", "finite")
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
        last, about = details[-1]["loc"][-1], _about(model, path)
        if isinstance(last, int):
            what, fix = "has too few values", f"give {last + 1} of them"
            return Fault(what, where(path), about, fix)
        return Fault("is missing", where(path), about, _give(_kinds(model, path)))
    given = details[0]["input"]
    choices = [c for detail in details for c in _choices(detail)]
    wanted = list(dict.fromkeys(filter(None, map(_wanted, details))))
    limits = _limits(_field(model, path)[1])
    allowed = [text for detail in details if (text := _allowed(detail, limits))]
    if choices:
        listed = ("one of " if len(choices) > 1 else "") + ", ".join(choices)
        wanted.append(listed)
        allowed.append(listed)
    if not wanted:
        what = details[0]["msg"].removeprefix("Value error, ")
        what = what[:1].lower() + what[1:]
    else:
        what = f"must be {' or '.join(wanted)}"
    meant = closest(given, [c.strip("'") for c in choices]) if _is_text(given) else None
    # What is all that is allowed needs no saying twice.
    fix = _give(allowed) if allowed != wanted else ""
    fix = f"did you mean {meant!r}?" if meant else fix
    if kinds & {"tuple_type", "list_type"} and isinstance(given, str | int | float):
        one = [shown(given)]
        parts = given.split(",") if isinstance(given, str) else ()
        values = ", ".join([shown(part.strip()) for part in parts] or one)
        fix = f"write {path.rpartition('.')[2]} = [{values}]"
    why = (f"it is {shown(given)}" if path else "", _about(model, path))
    return Fault(what, where(path), "; ".join(filter(None, why)), fix)


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


def _allowed(detail: ErrorDetails, limits: Mapping[str, float]) -> str:
    """What a value may be, to follow 'give': of a number, also how large."""
    kind, context = detail["type"], detail.get("ctx", {})
    if kind in _BOUNDS:
        key = _BOUNDS[kind][1]
        whole = isinstance(context[key], int)
        noun, limits = "a whole number" if whole else "a number", {**context, **limits}
    elif kind.partition("_")[0] in _NUMBERS:
        noun = _KINDS[kind.partition("_")[0]]
    else:
        return _wanted(detail)
    if {"ge", "le"} <= limits.keys():
        return f"{noun} from {limits['ge']:g} to {limits['le']:g}"
    ranges = [text.format(limits[k]) for k, text in _RANGES.items() if k in limits]
    return " ".join([noun, *filter(None, [" and ".join(ranges)])])


def _limits(field: FieldInfo | None) -> dict[str, float]:
    """How large the number of a setting may be: ``{"ge": 0}``."""
    metadata = field.metadata if field else ()
    return {k: getattr(m, k) for m in metadata for k in _RANGES if hasattr(m, k)}


def _kinds(model: type[BaseModel], path: str) -> list[str]:
    """What a setting may be, by its types; those that are not known are left out."""
    field = _field(model, path)[1]
    kinds = _flat(field.annotation) if field else ()
    names = {"str": "string", "Path": "string"}
    found = [getattr(get_origin(kind) or kind, "__name__", "") for kind in kinds]
    known = {_KINDS.get(names.get(name, name), "") for name in found}
    return sorted(known - {""})


def _give(allowed: Sequence[str]) -> str:
    return f"give {' or '.join(dict.fromkeys(allowed))}" if allowed else ""


def _choices(detail: ErrorDetails) -> list[str]:
    if detail["type"] not in ("literal_error", "enum"):
        return []
    expected = str(detail.get("ctx", {}).get("expected", ""))
    return expected.replace(" or ", ", ").split(", ")


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _field(model: type[BaseModel], path: str) -> tuple[str, FieldInfo | None]:
    """The last setting along a dotted key that a model names, and its key."""
    found: tuple[str, FieldInfo | None] = ("", None)
    fields: Mapping[str, FieldInfo] = model.model_fields
    for key in path.split("."):
        if key not in fields:
            break
        found = (key, fields[key])
        kinds = _flat(fields[key].annotation)
        inner = [getattr(kind, "model_fields", {}) for kind in kinds]
        fields = {name: field for each in inner for name, field in each.items()}
    return found


def _about(model: type[BaseModel], path: str) -> str:
    """What the setting is, from its documentation."""
    key, field = _field(model, path)
    about = (field.description or "").replace("``", "").split() if field else ()
    return f"{key}: {' '.join(about)}" if about else ""
