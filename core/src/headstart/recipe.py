"""Recipes: TOML files that name a backbone, a head, data, a strategy, and settings.

A recipe is data: no value in it imports code. Everything that is wrong with one is
said at once, each time with the nearest valid name.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import tomli_w
from pydantic import ValidationError

from headstart.errors import Fault, HeadstartError, UserError, nearest
from headstart.settings import (
    BackboneSettings,
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
from headstart.specs import resolve

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from headstart.plugins import Registry
    from headstart.specs import (
        BackboneSpec,
        DataSpec,
        FeatureKind,
        HeadSpec,
        MetricSpec,
    )

S = TypeVar("S", bound=Settings)

CORE_SECTIONS: dict[str, type[Settings]] = {
    "strategy": StrategySettings,
    "train": TrainSettings,
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


@dataclass(frozen=True)
class Recipe:
    """A checked recipe: its settings, and the specs that they name."""

    name: str
    summary: str
    backbone: BackboneSettings
    head: HeadSettings
    data: DataSettings
    strategy: StrategySettings
    train: TrainSettings
    early_stopping: EarlyStoppingSettings
    metrics: MetricSettings
    report: ReportSettings
    expect: Expectation
    backbone_spec: BackboneSpec
    head_spec: HeadSpec
    data_spec: DataSpec
    metric_specs: tuple[MetricSpec, ...]

    @property
    def weights(self) -> str:
        """The weights reference: the recipe's, else the backbone's default."""
        return self.backbone.weights or self.backbone_spec.weights

    @property
    def best(self) -> str:
        """The metric that decides."""
        return self.metrics.best or short_name(self.metric_specs[0].name)

    @property
    def eval_batch_size(self) -> int:
        return self.train.eval_batch_size or 2 * self.train.batch_size

    def to_dict(self) -> dict[str, Any]:
        """All settings, defaults included, ready for TOML."""
        sections = {
            section: getattr(self, section).model_dump(mode="json", exclude_none=True)
            for section in SECTIONS
        }
        return {"name": self.name, "summary": self.summary, **sections}

    def to_toml(self) -> str:
        return tomli_w.dumps(self.to_dict())


def short_name(name: str) -> str:
    """``accuracy`` of ``nlp/accuracy``: how recipes and logs call it."""
    return name.rpartition("/")[2]


def read_recipe(
    reference: str | Path, registry: Registry
) -> tuple[dict[str, Any], str]:
    """The raw tables of a packaged recipe (``nlp/sentiment``) or of a TOML file.

    Returns:
        The tables, and what to call their origin in errors.

    Raises:
        UserError: No such recipe or file, or not TOML.
    """
    text = str(reference)
    if text.endswith(".toml") or Path(text).is_file():
        path = Path(text)
        if not path.is_file():
            raise UserError(
                "there is no such recipe file",
                where=text,
                fix="`headstart list recipes` shows the packaged ones; `headstart "
                "copy RECIPE FILE` makes one your own",
            )
        content = path.read_bytes()
    else:
        source = registry.recipe(text)
        content = files(source.package).joinpath(source.path).read_bytes()
    try:
        return tomllib.loads(content.decode("utf-8")), text
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(
            "this is not a valid TOML file",
            where=text,
            why=str(error),
            fix="texts want quotes, and every table its [header]",
        ) from error


def parse_overrides(pairs: Iterable[str]) -> dict[str, Any]:
    """``["train.epochs=3", "data.path=a.csv"]`` to typed values.

    A value is read as TOML where it is valid TOML (``3``, ``true``, ``[1, 2]``), else
    as text.

    Raises:
        UserError: A pair without ``=``; all of them together.
    """
    values: dict[str, Any] = {}
    faults = []
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            faults.append(
                Fault(
                    f"{pair!r} is not an override",
                    fix="write key=value, e.g. train.epochs=3",
                )
            )
            continue
        try:
            values[key.strip()] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            values[key.strip()] = value
    if faults:
        raise UserError(*faults)
    return values


def load_recipe(
    reference: str | Path,
    overrides: Mapping[str, Any] | None = None,
    *,
    registry: Registry,
) -> Recipe:
    """Read, override and check a recipe.

    Args:
        reference: ``plugin/name``, or the path of a TOML file.
        overrides: Values by dotted key, e.g. ``{"train.epochs": 3}``.
        registry: The loaded plugins.

    Raises:
        UserError: Everything that is wrong with it, together.
        PluginError: It needs a plugin that is missing or broken.
    """
    tables, origin = read_recipe(reference, registry)
    return build_recipe(tables, overrides or {}, origin=origin, registry=registry)


def build_recipe(
    tables: Mapping[str, Any],
    overrides: Mapping[str, Any],
    *,
    origin: str,
    registry: Registry,
) -> Recipe:
    """Check the raw tables of a recipe; see :func:`load_recipe`."""
    faults: list[Fault] = []
    merged = _merged(tables, overrides, origin, faults)
    specs: dict[str, Any] = {}
    settings: dict[str, Settings] = {}
    lookups: dict[str, Callable[[str], Any]] = {
        "backbone": registry.backbone,
        "head": registry.head,
        "data": registry.data_module,
    }
    for section, lookup in lookups.items():
        model = PLUGIN_SECTIONS[section]
        name = merged[section].get("name")
        if not isinstance(name, str):
            faults.append(
                Fault(
                    f"[{section}] names nothing",
                    f"{origin}: {section}.name",
                    fix=f"`headstart list {_plural(section)}` shows what there is",
                )
            )
            continue
        try:
            specs[section] = lookup(name)
            model = cast("type[Settings]", resolve(specs[section].settings))
        except UserError as error:
            faults += _at(error, f"{origin}: {section}.name")
            continue
        _validate(model, merged[section], section, origin, settings, faults)
    for section, model in CORE_SECTIONS.items():
        _validate(model, merged[section], section, origin, settings, faults)
    metric_specs = _metrics(settings, specs, registry, origin, faults)
    if len(specs) == len(lookups):
        faults += fit_faults(
            specs["backbone"],
            specs["head"],
            specs["data"],
            cast("DataSettings | None", settings.get("data")),
            registry,
        )
    if faults:
        raise UserError(*faults)
    return Recipe(
        name=str(merged["name"] or Path(origin).stem),
        summary=str(merged["summary"]),
        **cast("dict[str, Any]", settings),
        **{f"{section}_spec": spec for section, spec in specs.items()},
        metric_specs=metric_specs,
    )


def _merged(
    tables: Mapping[str, Any],
    overrides: Mapping[str, Any],
    origin: str,
    faults: list[Fault],
) -> dict[str, Any]:
    """Tables and overrides in one, every section present."""
    known = ("name", "summary", *SECTIONS)
    merged: dict[str, Any] = {"name": "", "summary": ""}
    merged |= {section: {} for section in SECTIONS}
    for key, value in tables.items():
        if key not in known:
            faults.append(
                Fault(f"unknown section {key!r}", origin, fix=nearest(key, known))
            )
        elif key in SECTIONS and not isinstance(value, dict):
            faults.append(
                Fault(f"{key!r} must be a table", origin, fix=f"write [{key}]")
            )
        else:
            merged[key] = dict(value) if key in SECTIONS else value
    for key, value in overrides.items():
        section, dot, rest = key.partition(".")
        if section not in SECTIONS or not dot:
            every = [f"{s}.{f}" for s in SECTIONS for f in _fields(s)]
            if section in SECTIONS:
                hint = f"write {section}.KEY=value"
            elif dot:
                hint = nearest(section, SECTIONS)
            else:
                hint = nearest_key(key, every)
            faults.append(Fault(f"unknown key {key!r}", "override", fix=hint))
            continue
        table = merged[section]
        *path, last = rest.split(".")
        for part in path:
            table = table.setdefault(part, {})
        table[last] = value
    return merged


def _fields(section: str) -> list[str]:
    return list({**PLUGIN_SECTIONS, **CORE_SECTIONS}[section].model_fields)


def nearest_key(key: str, every: Iterable[str]) -> str:
    """The hint for a key without its section: a full key that ends like it."""
    endings = {full.rpartition(".")[2]: full for full in every}
    hint = nearest(key, endings)
    return next(
        (
            f"did you mean '{full}'?"
            for end, full in endings.items()
            if f"'{end}'?" in hint
        ),
        f"known sections: {', '.join(SECTIONS)}",
    )


def _validate(
    model: type[S],
    table: Mapping[str, Any],
    section: str,
    origin: str,
    settings: dict[str, Settings],
    faults: list[Fault],
) -> None:
    try:
        settings[section] = model.model_validate(table)
    except ValidationError as error:
        for detail in error.errors():
            path = ".".join(
                str(part) for part in detail["loc"] if not _is_union_branch(part)
            )
            where = f"{origin}: {section}.{path}"
            if detail["type"] == "extra_forbidden":
                fault = Fault(
                    "unknown key", where, fix=nearest(path, model.model_fields)
                )
            else:
                fault = Fault(
                    f"{detail['msg'][0].lower()}{detail['msg'][1:]}",
                    where,
                    f"it is {detail['input']!r}",
                    _documentation(model, path),
                )
            if all(fault.where != other.where for other in faults):
                faults.append(fault)


def _is_union_branch(part: object) -> bool:
    """Pydantic names the branches of a union in its path; readers do not need them."""
    text = str(part)
    return "[" in text or text in ("float", "int", "str", "bool")


def _documentation(model: type[Settings], path: str) -> str:
    field = model.model_fields.get(path)
    return " ".join((field.description or "").split()) if field else ""


def _metrics(
    settings: Mapping[str, Settings],
    specs: Mapping[str, Any],
    registry: Registry,
    origin: str,
    faults: list[Fault],
) -> tuple[MetricSpec, ...]:
    """The metrics named by short or full name, else the head's own."""
    if "head" not in specs or "metrics" not in settings:
        return ()
    head: HeadSpec = specs["head"]
    wanted = cast("MetricSettings", settings["metrics"])
    stopping = cast("EarlyStoppingSettings | None", settings.get("early_stopping"))
    plugin = head.name.partition("/")[0]
    found = []
    for name in wanted.names or head.metrics:
        try:
            found.append(registry.metric(name if "/" in name else f"{plugin}/{name}"))
        except HeadstartError as error:
            faults += _at(error, f"{origin}: metrics.names")
    names = [short_name(spec.name) for spec in found]
    chosen = {
        "metrics.best": wanted.best,
        "early_stopping.metric": stopping.metric if stopping else "",
    }
    for key, name in chosen.items():
        if name and name not in (*names, "loss"):
            faults.append(
                Fault(
                    f"{name!r} is not measured",
                    f"{origin}: {key}",
                    fix=nearest(name, [*names, "loss"]),
                )
            )
    return tuple(found)


def fit_faults(
    backbone: BackboneSpec,
    head: HeadSpec,
    data: DataSpec,
    settings: DataSettings | None,
    registry: Registry,
) -> list[Fault]:
    """Pieces that do not fit each other, found from the specs alone."""
    faults = []
    kinds: set[FeatureKind] = {feature.kind for feature in backbone.features}
    if not kinds & set(head.needs):
        fitting = [
            spec.name for spec in registry.heads.values() if kinds & set(spec.needs)
        ]
        faults.append(
            Fault(
                f"the head {head.name!r} does not fit the backbone {backbone.name!r}",
                "head.name",
                f"the head reads {' or '.join(head.needs)}, the backbone gives "
                f"{', '.join(sorted(kinds))}",
                _choose("heads that fit", fitting),
            )
        )
    missing = sorted(set(backbone.inputs) - set(data.yields))
    if missing:
        fitting = [
            spec.name
            for spec in registry.data.values()
            if set(backbone.inputs) <= set(spec.yields)
        ]
        faults.append(
            Fault(
                f"the data {data.name!r} does not fit the backbone {backbone.name!r}",
                "data.name",
                f"the backbone reads {', '.join(missing)}, the data yields "
                f"{', '.join(data.yields)}",
                _choose("data that fits", fitting),
            )
        )
    lacking = sorted(set(head.targets) - set(data.yields))
    if lacking:
        fitting = [
            spec.name
            for spec in registry.data.values()
            if set(head.targets) <= set(spec.yields)
        ]
        faults.append(
            Fault(
                f"the data {data.name!r} does not fit the head {head.name!r}",
                "data.name",
                f"the head learns from {', '.join(lacking)}, which the data lacks",
                _choose("data that fits", fitting),
            )
        )
    kind = settings.kind if settings else ""
    if kind and kind not in head.kinds:
        fitting = [spec.name for spec in registry.heads.values() if kind in spec.kinds]
        faults.append(
            Fault(
                f"the head {head.name!r} does not serve {kind!r} data",
                "head.name",
                f"it serves {', '.join(head.kinds)}; data.kind is {kind!r}",
                _choose("heads that do", fitting),
            )
        )
    return faults


def _choose(label: str, names: list[str]) -> str:
    return f"{label}: {', '.join(sorted(names))}" if names else ""


def _at(error: HeadstartError, where: str) -> list[Fault]:
    return [Fault(f.what, f.where or where, f.why, f.fix) for f in error.faults]


def _plural(section: str) -> str:
    return section if section == "data" else f"{section}s"
