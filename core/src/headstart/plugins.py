"""Find and load plugins, and look up by name what they registered.

Each plugin gets a pluggy manager of its own: an error belongs to one plugin, and a
plugin that fails half way goes with its manager.
"""

from __future__ import annotations

import functools
import re
import sys
import traceback
from collections import Counter
from dataclasses import dataclass, field
from importlib import metadata
from typing import TYPE_CHECKING, Any, TypeVar

from headstart.errors import HeadstartError, PluginError, UserError, nearest
from headstart.loader import (
    KINDS,
    Kind,
    Rejected,
    Status,
    call,
    check_requirement,
    identity,
    import_plugin,
    key,
    one_line,
    register,
    specs_of,
)
from headstart.specs import (
    BackboneSpec,
    DataSpec,
    HeadSpec,
    MetricSpec,
    RecipeSource,
    WeightSourceSpec,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import ModuleType

    import pluggy

GROUP = "headstart.plugins"
FIRST_PARTY = ("vision", "nlp", "speech", "medical", "recsys")

CORE_WEIGHT_SOURCES = (
    WeightSourceSpec(
        "asset",
        "a file that a plugin lists in its assets.toml",
        "headstart.weights.sources:resolve_asset",
    ),
    WeightSourceSpec(
        "hf",
        "a repository on the Hugging Face hub",
        "headstart.weights.sources:resolve_hub",
    ),
    WeightSourceSpec(
        "file",
        "a file or folder on this machine",
        "headstart.weights.sources:resolve_file",
    ),
    WeightSourceSpec(
        "run", "the model of another run", "headstart.run_source:resolve_run"
    ),
    WeightSourceSpec(
        "none",
        "random weights, as a control",
        "headstart.weights.sources:resolve_none",
        bare=True,
    ),
)

T = TypeVar("T")


@dataclass(frozen=True)
class PluginInfo:
    """How the loading of one plugin ended.

    Attributes:
        name: Short name; everything that the plugin registers starts with it.
        distribution: What to ``pip install``; empty for a module added by hand.
        version: The distribution's version.
        status: ``loaded``, ``incompatible`` (another version would do) or ``broken``.
        cause: One line that says why it did not load; a warning when it did.
        traceback: The full traceback when the plugin's own code raised.
        counts: How many of each kind it registered, e.g. ``{"heads": 3}``.
        package: The plugin's module, e.g. ``headstart_nlp``.
    """

    name: str
    distribution: str
    version: str
    status: Status
    cause: str = ""
    traceback: str = ""
    counts: Mapping[str, int] = field(default_factory=dict)
    package: str = ""


class Registry:
    """What all loaded plugins registered, by full name (``plugin/name``).

    Attributes:
        plugins: Every plugin that was found, loaded or not, in loading order.
        backbones: Backbones by name; so ``heads``, ``data``, ``metrics``, ``recipes``.
        weight_sources: Weight sources by scheme, the core's own among them.
    """

    def __init__(self) -> None:
        self.plugins: list[PluginInfo] = []
        self.backbones: dict[str, BackboneSpec] = {}
        self.heads: dict[str, HeadSpec] = {}
        self.data: dict[str, DataSpec] = {}
        self.metrics: dict[str, MetricSpec] = {}
        self.recipes: dict[str, RecipeSource] = {}
        self.weight_sources = {s.scheme: s for s in CORE_WEIGHT_SOURCES}
        self._managers: dict[str, pluggy.PluginManager] = {}

    def backbone(self, name: str) -> BackboneSpec:
        """The backbone of this name.

        Like the other look-ups:

        Raises:
            PluginError: The plugin that the name starts with did not load, or is
                one of headstart's own and not installed.
            UserError: Nothing has this name.
        """
        return self._find("backbone", name, self.backbones)

    def head(self, name: str) -> HeadSpec:
        """The head of this name; raises as :meth:`backbone` does."""
        return self._find("head", name, self.heads)

    def data_module(self, name: str) -> DataSpec:
        """The data module of this name; raises as :meth:`backbone` does."""
        return self._find("data module", name, self.data)

    def metric(self, name: str) -> MetricSpec:
        """The metric of this full name; raises as :meth:`backbone` does."""
        return self._find("metric", name, self.metrics)

    def recipe(self, name: str) -> RecipeSource:
        """The packaged recipe of this name; raises as :meth:`backbone` does."""
        return self._find("recipe", name, self.recipes)

    def weight_source(self, scheme: str) -> WeightSourceSpec:
        """The weight source of this scheme (without the colon).

        Raises:
            UserError: Nothing has this scheme.
        """
        if scheme in self.weight_sources:
            return self.weight_sources[scheme]
        loaded = {p.name for p in self.plugins if p.status == "loaded"}
        failed = sorted({p.name for p in self.plugins} - loaded)
        raise UserError(
            f"no weight source '{scheme}:'",
            why=f"plugins that failed to load may offer it: {', '.join(failed)}; "
            "see `headstart plugins -v`"
            if failed
            else "",
            fix=nearest(scheme, self.weight_sources),
        )

    def packages(self) -> list[str]:
        """The modules of all loaded plugins, where assets and recipes are found."""
        return [info.package for info in self.plugins if info.status == "loaded"]

    def package(self, plugin: str) -> str:
        """The module name of a loaded plugin, where its files are.

        Raises:
            PluginError: It is not loaded.
        """
        for info in self.plugins:
            if info.name == plugin and info.status == "loaded":
                return info.package
        self._require("a packaged file", plugin)
        raise PluginError(
            f"no plugin {plugin!r} is installed", fix=nearest(plugin, self._managers)
        )

    def callbacks(self, recipe: Any) -> list[Any]:
        """What the plugins' ``make_callbacks`` give for one run, in loading order.

        Raises:
            HeadstartError: As raised by a plugin, e.g. for a setting it cannot use.
            PluginError: A plugin failed in any other way.
        """
        made: list[Any] = []
        for name, manager in self._managers.items():
            try:
                made += call(manager, "make_callbacks", recipe=recipe)
            except HeadstartError:
                raise
            except Rejected as error:
                raise PluginError(str(error), where=f"plugin {name!r}") from None
            except Exception as error:
                raise PluginError(
                    f"make_callbacks raised {one_line(error)}",
                    where=f"plugin {name!r}",
                    fix="report this to the plugin's authors",
                ) from error
        return made

    def add(self, module: ModuleType, name: str) -> PluginInfo:
        """Load a module as the plugin ``name`` though no distribution declares it.

        Adding a module again, or one that is loaded as an installed plugin, changes
        nothing. Never raises for what is wrong with the module: see ``status``.
        """
        for info in self.plugins:
            loaded = info.status == "loaded" and info.name == name
            if loaded and info.package == module.__name__:
                return info
        return self._admit(name, lambda: module, None)

    def add_entry_point(self, entry_point: metadata.EntryPoint) -> PluginInfo:
        """Load an installed plugin; what is wrong with it is in the result."""
        return self._admit(entry_point.name, entry_point.load, entry_point.dist)

    def _admit(
        self,
        name: str,
        load: Callable[[], Any],
        distribution: metadata.Distribution | None,
    ) -> PluginInfo:
        project, version = identity(distribution)
        had_torch = "torch" in sys.modules
        try:
            self._check_name(name)
            if distribution is not None:
                check_requirement(project, distribution)
            module = import_plugin(load, project or name)
            manager = register(module, name)
            specs = {kind: specs_of(manager, kind) for kind in KINDS}
            self._check_specs(name, specs)
        except Exception as error:
            rejected = error if isinstance(error, Rejected) else Rejected.by(error)
            raised = error.__cause__ if rejected is error else error
            info = PluginInfo(
                name,
                project,
                version,
                rejected.status,
                str(rejected),
                "".join(traceback.format_exception(raised)) if raised else "",
            )
        else:
            # A library imported by an earlier plugin is not seen here; `-X importtime`
            # is the tool for the whole story.
            slow = "torch" in sys.modules and not had_torch
            self._managers[name] = manager
            for kind, found in specs.items():
                getattr(self, kind.table).update((key(s), s) for s in found)
            info = PluginInfo(
                name,
                project,
                version,
                "loaded",
                "slow: imports torch" if slow else "",
                counts={k.table: len(found) for k, found in specs.items() if found},
                package=module.__name__,
            )
        self.plugins.append(info)
        return info

    def _check_name(self, name: str) -> None:
        if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name):
            raise Rejected(
                f"the plugin's name {name!r} is not made of a-z, 0-9, '-' and '_'"
            )
        for info in self.plugins:
            if info.name == name and info.status == "loaded":
                owner = info.distribution or info.package
                raise Rejected(f"the plugin name {name!r} is taken by {owner!r}")

    def _check_specs(self, name: str, specs: Mapping[Kind, list[Any]]) -> None:
        """Every key is the plugin's own and not taken."""
        faults = []
        for kind, found in specs.items():
            names = Counter(key(spec) for spec in found)
            taken = getattr(self, kind.table)
            for full, times in names.items():
                # A scheme is a word of its own ("torchvision:"), not plugin/name.
                own = kind.spec is WeightSourceSpec or full.startswith(f"{name}/")
                if not own:
                    faults.append(f"{full!r} does not start with '{name}/'")
                if times > 1:
                    faults.append(f"duplicate name {full!r} in {kind.hook}")
                if own and full in taken:
                    faults.append(f"duplicate name {full!r}: another has it already")
        if faults:
            raise Rejected("; ".join(faults))

    def _find(self, noun: str, name: str, table: Mapping[str, T]) -> T:
        if name in table:
            return table[name]
        plugin, slash, _ = name.partition("/")
        why = ""
        if slash and plugin not in self._managers:
            self._require(f"{noun} {name!r}", plugin)
            why = f"no plugin {plugin!r} is installed"
        raise UserError(f"no {noun} {name!r}", why=why, fix=nearest(name, table))

    def _require(self, needy: str, plugin: str) -> None:
        """Say what became of a plugin that is not loaded, if anything is known."""
        for info in self.plugins:
            if info.name == plugin and info.status != "loaded":
                fate = (
                    "failed to load" if info.status == "broken" else "is incompatible"
                )
                raise PluginError(
                    f"{needy} needs the plugin {plugin!r}, which {fate}: {info.cause}",
                    fix="see `headstart plugins -v`",
                )
        if plugin in FIRST_PARTY:
            raise PluginError(
                f"{needy} needs the plugin {plugin!r}, which is not installed",
                fix=f"pip install headstart-{plugin}",
            )


@functools.cache
def load_plugins() -> Registry:
    """Load every installed plugin, once a process.

    Sorted by name, so that of two plugins that claim one name the same one always
    wins. ``load_plugins.cache_clear()`` forgets them.
    """
    registry = Registry()
    found = metadata.entry_points(group=GROUP)
    for entry_point in sorted(found, key=lambda e: (e.name, identity(e.dist))):
        registry.add_entry_point(entry_point)
    return registry


def plugin_table(registry: Registry) -> list[dict[str, str]]:
    """One plain row per plugin: name, distribution, version, status, cause."""
    columns = ("name", "distribution", "version", "status", "cause")
    return [{c: getattr(info, c) for c in columns} for info in registry.plugins]
