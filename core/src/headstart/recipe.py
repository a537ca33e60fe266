"""Recipes: TOML files that name a backbone, a head, data, a strategy, and settings.

A recipe is data: no value in it imports code. Everything that is wrong with one is
said at once, each time with the nearest valid name.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import tomli_w

from headstart.errors import (
    Fault,
    HeadstartError,
    nearest,
)
from headstart.fit import fit_faults, metric_faults
from headstart.reading import parse_overrides, read_recipe
from headstart.recipe_tables import (
    CORE_SECTIONS,
    PLUGIN_SECTIONS,
    SECTIONS,
    Faults,
    hint,
    joined,
    validate,
)
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
from headstart.specs import resolve, short_name

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from headstart.plugins import Registry
    from headstart.specs import BackboneSpec, DataSpec, HeadSpec, MetricSpec

__all__ = [
    "Recipe",
    "build_recipe",
    "load_recipe",
    "parse_overrides",
    "read_recipe",
    "short_name",
]

HARMLESS = (
    "name",
    "summary",
    "report.",
    "train.seed",
    "train.device",
    "train.log_every",
    "train.keep_checkpoints",
    "train.tensorboard",
    "data.workers",
)
"""Overrides after which a recipe's ``[expect]`` holds; others void it unless they
state another."""


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
    cache: CacheSettings
    early_stopping: EarlyStoppingSettings
    metrics: MetricSettings
    report: ReportSettings
    expect: Expectation
    backbone_spec: BackboneSpec
    head_spec: HeadSpec
    data_spec: DataSpec
    metric_specs: tuple[MetricSpec, ...]

    @property
    def best(self) -> str:
        """The metric that decides."""
        first = short_name(self.metric_specs[0].name) if self.metric_specs else "loss"
        return self.metrics.best or first

    @property
    def eval_batch_size(self) -> int:
        return self.train.eval_batch_size or 2 * self.train.batch_size

    @property
    def eval_batch_total(self) -> float | None:
        return self.train.batch_total and 2 * self.train.batch_total

    def to_dict(self) -> dict[str, Any]:
        """All settings, defaults included, ready for TOML."""
        sections = {
            section: getattr(self, section).model_dump(mode="json", exclude_none=True)
            for section in SECTIONS
        }
        return {"name": self.name, "summary": self.summary, **sections}

    def to_toml(self) -> str:
        return tomli_w.dumps(self.to_dict())


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
        PluginError: The same, when it needs a plugin that is missing or broken.
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
    faults = Faults(origin, overrides)
    merged, unknown = joined(tables, overrides, faults)
    specs: dict[str, Any] = {}
    models: dict[str, type[Settings]] = {**PLUGIN_SECTIONS, **CORE_SECTIONS}
    lookups: dict[str, Callable[[str], Any]] = {
        "backbone": registry.backbone,
        "head": registry.head,
        "data": registry.data_module,
    }
    for section, lookup in lookups.items():
        name = merged[section].get("name")
        if not isinstance(name, str):
            kinds = section if section == "data" else f"{section}s"
            faults.add(
                f"{section}.name",
                f"the recipe names no {section}",
                fix=f"`headstart list {kinds}` shows what there is",
            )
            merged[section].setdefault("name", "")
            continue
        try:
            specs[section] = lookup(name)
            models[section] = resolve(specs[section].settings)
        except HeadstartError as error:
            faults.take(error, f"{section}.name", name)
            continue
        own = tables.get(section, {}).get("name", name)
        if own != name:
            for key in _left_behind(own, lookup, models[section]):
                if f"{section}.{key}" not in overrides:
                    merged[section].pop(key, None)
    for key, where in unknown.items():
        faults.found.append(Fault(f"unknown key {key!r}", where, fix=hint(key, models)))
    settings = {
        section: checked
        for section, model in models.items()
        # The keys of a piece that is not known are not known either.
        if (section in CORE_SECTIONS or section in specs)
        and (checked := validate(model, merged[section], section, models, faults))
    }
    backbone_spec, head, data = (specs.get(section) for section in PLUGIN_SECTIONS)
    kind = _kind(merged["data"], models["data"], settings.get("data"))
    misfits = fit_faults(backbone_spec, head, data, kind, registry)
    # Short names mean the head's metrics: of another domain's they say nothing.
    foreign = misfits and head and data and _plugin(head) != _plugin(data)
    metric_specs = _metrics(settings, specs, registry, faults, bool(foreign))
    if kind and not misfits:
        misfits += metric_faults(metric_specs, kind, registry)
    for fault in misfits:
        faults.found.append(replace(fault, where=faults.where(fault.where)))
    strategy = cast("StrategySettings | None", settings.get("strategy"))
    told = {o.split(".")[1] for o in overrides if o.startswith("strategy.")}
    for key in sorted(told):
        # Of overrides alone: a recipe may bring what another strategy of it reads.
        if strategy and (readers := strategy.not_read(key)):
            what = f"the strategy {strategy.name!r} does not read it"
            fix = f"strategy.name={' or '.join(readers)}, or leave it out"
            faults.add(f"strategy.{key}", what, fix=fix)
    faults.raise_all()
    backbone = cast("BackboneSettings", settings["backbone"])
    if not backbone.weights:
        default = {"weights": specs["backbone"].weights}
        settings["backbone"] = backbone.model_copy(update=default)
    stated = any(key.startswith("expect.") for key in overrides)
    if not stated and any(not key.startswith(HARMLESS) for key in overrides):
        settings["expect"] = Expectation()
    return Recipe(
        name=merged["name"] or Path(origin).stem,
        summary=merged["summary"],
        **cast("dict[str, Any]", settings),
        **{f"{section}_spec": spec for section, spec in specs.items()},
        metric_specs=metric_specs,
    )


def _plugin(spec: HeadSpec | DataSpec) -> str:
    return spec.name.partition("/")[0]


def _left_behind(
    name: Any, lookup: Callable[[str], Any], model: type[Settings]
) -> set[str]:
    """Keys of the piece that a recipe names which the one in its stead has not.

    A recipe speaks to its own piece: with another one such keys mean nothing, while
    those that neither has are mistakes all the same.
    """
    try:
        own: type[Settings] = resolve(lookup(name).settings)
    except (HeadstartError, TypeError):
        return set()
    return {*own.model_fields} - {*model.model_fields}


def _kind(
    table: Mapping[str, Any], model: type[Settings], checked: Settings | None
) -> str:
    """``data.kind``, also where another key of the data is wrong."""
    given = cast("DataSettings | None", checked)
    if given or "kind" in table:
        return given.kind if given else ""
    return str(model.model_fields["kind"].default)


def _metrics(
    settings: Mapping[str, Settings],
    specs: Mapping[str, Any],
    registry: Registry,
    faults: Faults,
    foreign: bool,
) -> tuple[MetricSpec, ...]:
    """The metrics named by short or full name, else the head's own.

    Of a ``foreign`` head, which is a fault already, those that it has not are not told.
    """
    wanted = cast("MetricSettings | None", settings.get("metrics"))
    head: HeadSpec | None = specs.get("head")
    if head is None or wanted is None:
        return ()
    plugin = _plugin(head)
    asked = wanted.names or head.metrics
    found = []
    for name in asked:
        full = name if "/" in name else f"{plugin}/{name}"
        try:
            found.append(registry.metric(full))
        except HeadstartError as error:
            if not foreign:
                faults.take(error, "metrics.names", full)
    measured = [*map(short_name, asked), "loss"]
    known = {short_name(n) for n in registry.metrics if n.startswith(f"{plugin}/")}
    stopping = cast("EarlyStoppingSettings | None", settings.get("early_stopping"))
    deciding = {
        "metrics.best": wanted.best or measured[0],
        "early_stopping.metric": stopping.metric if stopping else "",
    }
    watched = {short_name(spec.name) for spec in found if spec.goal == "none"}
    for key, name in deciding.items():
        if name in watched:
            fix = f"choose one of {', '.join(n for n in measured if n not in watched)}"
            why = "neither more nor less of it is better"
            faults.add(key, f"{name!r} cannot decide", why, fix)
        if name and name not in measured:
            fix = f"add it to metrics.names: {list(asked)}" if name in known else ""
            faults.add(
                key, f"{name!r} is not measured", fix=fix or nearest(name, measured)
            )
    expected = cast("Expectation | None", settings.get("expect"))
    for name, (low, high) in expected.metrics.items() if expected else ():
        if name not in {*measured, *known}:
            fix = nearest(name, [*measured, *known])
            faults.add(f"expect.metrics.{name}", "there is no such metric", fix=fix)
        elif low > high:
            fix = f"write [{high}, {low}]"
            faults.add(f"expect.metrics.{name}", "the range is upside down", fix=fix)
    return tuple(found)
