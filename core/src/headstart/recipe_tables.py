"""The tables of a recipe with its overrides: put together, and each section typed.

Nothing here knows which pieces fit each other; see :mod:`headstart.recipe`.
"""

from __future__ import annotations

import copy
import os
from typing import TYPE_CHECKING, Any, get_origin

from pydantic import ValidationError

from headstart.errors import (
    Fault,
    HeadstartError,
    PluginError,
    UserError,
    closest,
    nearest,
)
from headstart.explain import number_faults, setting_faults, types_of
from headstart.reading import Overrides
from headstart.settings import (
    BackboneSettings,
    CacheSettings,
    DataSettings,
    EarlyStoppingSettings,
    Expectation,
    HeadSettings,
    MetricSettings,
    ReportSettings,
    Settings,
    StrategySettings,
    TrainSettings,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

CORE_SECTIONS: dict[str, type[Settings]] = {
    "strategy": StrategySettings,
    "train": TrainSettings,
    "cache": CacheSettings,
    "early_stopping": EarlyStoppingSettings,
    "metrics": MetricSettings,
    "report": ReportSettings,
    "expect": Expectation,
}
PLUGIN_SECTIONS: dict[str, type[Settings]] = {
    "backbone": BackboneSettings,
    "head": HeadSettings,
    "data": DataSettings,
}
SECTIONS = (*PLUGIN_SECTIONS, *CORE_SECTIONS)


class Faults:
    """Everything that is wrong with one recipe."""

    def __init__(self, origin: str, overrides: Mapping[str, Any]) -> None:
        self.found: list[Fault] = []
        self.origin = origin
        self.overrides = overrides
        self._plugins: set[str] = set()

    def where(self, key: str) -> str:
        """Where the reader set a key: in the file, or in an override."""
        over = any(key == o or key.startswith(f"{o}.") for o in self.overrides)
        return f"override {key}" if over else f"{self.origin}: {key}"

    def add(self, key: str, what: str, why: str = "", fix: str = "") -> None:
        self.found.append(Fault(what, self.where(key), why, fix))

    def take(self, error: HeadstartError, key: str, name: str) -> None:
        """The faults of a look-up; a plugin that is missing is told once."""
        if isinstance(error, PluginError):
            plugin = name.partition("/")[0]
            if plugin in self._plugins:
                return
            self._plugins.add(plugin)
        where = self.where(key)
        self.found += [Fault(f.what, where, f.why, f.fix) for f in error.faults]

    def raise_all(self) -> None:
        if self.found:
            raise (PluginError if self._plugins else UserError)(*self.found)


def joined(
    tables: Mapping[str, Any], overrides: Mapping[str, Any], faults: Faults
) -> tuple[dict[str, Any], dict[str, str]]:
    """Tables and overrides in one, every section present.

    Returns:
        The tables, and the keys outside any section with their place.
    """
    merged: dict[str, Any] = {"name": "", "summary": ""}
    merged |= {section: {} for section in SECTIONS}
    unknown: dict[str, str] = {}
    for key, value in tables.items():
        if key in SECTIONS and not isinstance(value, dict):
            faults.add(key, "must be a table", fix=f"write [{key}]")
        elif key in merged:
            merged[key] = copy.deepcopy(value)
        else:
            unknown[key] = faults.origin
    texts = overrides.texts if isinstance(overrides, Overrides) else {}
    for key, value in overrides.items():
        section, dot, rest = key.partition(".")
        if key in ("name", "summary"):
            merged[key] = texts.get(key, value)
        elif section not in SECTIONS or not dot:
            unknown[key] = "override"
        else:
            given = os.fspath(value) if isinstance(value, os.PathLike) else value
            _set(merged[section], rest, copy.deepcopy(given), key, faults)
    for key in ("name", "summary"):
        if not isinstance(merged[key], str):
            faults.add(key, "must be a text", f"it is {merged[key]!r}")
    return merged, unknown


def _set(
    table: dict[str, Any], path: str, value: Any, key: str, faults: Faults
) -> None:
    """Put a value at a dotted path, making tables on the way."""
    *parts, last = path.split(".")
    for depth, part in enumerate(parts, start=1):
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            outer = ".".join(key.split(".")[: depth + 1])
            faults.add(
                key, f"{outer} is a value, not a table", fix=f"write {outer}=value"
            )
            return
    table[last] = value


def hint(key: str, models: Mapping[str, type[Settings]]) -> str:
    """What an unknown key may have meant: in its section, else in any other."""
    section, dot, rest = key.partition(".")
    if section in models and not dot:
        return f"write {section}.KEY=value"
    meant = section if section in models else closest(section, models) if dot else None
    if meant:
        field = closest(rest, _keys(models[meant]))
        if field or section != meant:
            return f"did you mean '{meant}.{field or rest}'?"
    elsewhere: dict[str, str] = {}
    for name in CORE_SECTIONS | PLUGIN_SECTIONS:
        for path in _keys(models[name]):
            elsewhere.setdefault(path.rpartition(".")[2], f"{name}.{path}")
    field = closest(rest or section, [*models, *elsewhere])
    if field in elsewhere:
        return f"did you mean '{elsewhere[field]}'?"
    if meant:
        return nearest(rest, _keys(models[meant]))
    return nearest(section, models)


def _keys(model: type[Settings]) -> list[str]:
    """The keys of a section, those of tables in it behind the table's name."""
    keys = []
    for key, field in model.model_fields.items():
        inner = field.annotation
        keys.append(key)
        if isinstance(inner, type) and issubclass(inner, Settings):
            keys += [f"{key}.{name}" for name in _keys(inner)]
    return keys


def validate(
    model: type[Settings],
    table: dict[str, Any],
    section: str,
    models: Mapping[str, type[Settings]],
    faults: Faults,
) -> Settings | None:
    """The settings of a section; ``None`` when something is wrong with them."""
    texts = faults.overrides.texts if isinstance(faults.overrides, Overrides) else {}
    for key, value in table.items():
        written = texts.get(f"{section}.{key}")
        if written is None or isinstance(value, str):
            continue
        types = types_of(model, key)
        lists = {list, tuple} & {get_origin(known) for known in types}
        if str in types and not (lists and isinstance(value, list)):
            table[key] = written

    def where(key: str) -> str:
        return faults.where(f"{section}.{key}" if key else section)

    found = number_faults(model, table, where)
    checked: Settings | None = None
    try:
        checked = model.model_validate(table)
    except ValidationError as error:
        found += setting_faults(
            error, model, table, where, lambda key: hint(f"{section}.{key}", models)
        )
    faults.found += found
    return None if found else checked
