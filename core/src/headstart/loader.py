"""Load one plugin and check what it is: its requirement, its API, hooks and specs.

A plugin that cannot be used raises :class:`Rejected`; nothing here keeps any state.
"""

from __future__ import annotations

import re
from contextlib import suppress
from importlib import metadata
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import pluggy
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from headstart import hookspecs
from headstart.errors import nearest
from headstart.specs import (
    BackboneSpec,
    DataSpec,
    HeadSpec,
    MetricSpec,
    RecipeSource,
    WeightSourceSpec,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from packaging.specifiers import Specifier

Status = Literal["loaded", "incompatible", "broken"]
Spec: TypeAlias = (
    BackboneSpec | HeadSpec | DataSpec | MetricSpec | RecipeSource | WeightSourceSpec
)


class Rejected(Exception):
    """Why a plugin is not loaded."""

    def __init__(self, cause: str, status: Status = "broken") -> None:
        super().__init__(cause)
        self.status = status

    @classmethod
    def by(cls, error: BaseException, doing: str = "") -> Rejected:
        """For an exception of the plugin's own code."""
        return cls(doing + one_line(error))


class Kind(NamedTuple):
    """A hook, the table of the registry that it fills, and what it must return."""

    hook: str
    table: str
    spec: type[Spec]


KINDS = (
    Kind("register_backbones", "backbones", BackboneSpec),
    Kind("register_heads", "heads", HeadSpec),
    Kind("register_data", "data", DataSpec),
    Kind("register_metrics", "metrics", MetricSpec),
    Kind("register_recipes", "recipes", RecipeSource),
    Kind("register_weight_sources", "weight_sources", WeightSourceSpec),
)


def identity(distribution: metadata.Distribution | None) -> tuple[str, str]:
    """Name and version; empty where an interrupted install left no metadata."""
    if distribution is not None:
        with suppress(Exception):
            return distribution.name or "", distribution.version or ""
    return "", ""


def check_requirement(project: str, distribution: metadata.Distribution) -> None:
    """Compare what the distribution asks of the core with the installed core.

    Before the import, so that a version skew does not show as an ImportError.
    """
    core = Version(metadata.version("headstart"))
    for text in distribution.requires or ():
        requirement = Requirement(text)
        marker = requirement.marker
        if canonicalize_name(requirement.name) != "headstart" or (
            marker is not None and not marker.evaluate({"extra": ""})
        ):
            continue
        for bound in requirement.specifier:
            if not bound.contains(core, prereleases=True):
                raise Rejected(
                    f"needs headstart{requirement.specifier}, {core} is installed: "
                    + _advice(_asks_newer(bound, core), project),
                    "incompatible",
                )


def _asks_newer(bound: Specifier, core: Version) -> bool:
    """Whether a bound that the core does not meet asks for a newer core."""
    if bound.operator.startswith((">", "<")):
        return bound.operator.startswith(">")
    return core < Version(bound.version.removesuffix(".*"))


def _advice(core_too_old: bool, project: str) -> str:
    if core_too_old:
        return "headstart is too old, upgrade headstart"
    return f"the plugin is too old, upgrade {project}"


def import_plugin(load: Callable[[], Any], project: str) -> ModuleType:
    """Import a plugin and compare its ``HOOK_API`` with the core's.

    The same major version and no newer minor version can be loaded.
    """
    try:
        module = load()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        # SystemExit too: a plugin must not end a program that does not need it.
        raise Rejected.by(error) from error
    if not isinstance(module, ModuleType):
        raise Rejected(f"the entry point names a {type(module).__name__}, no module")
    _check_api(module, project)
    return module


def _check_api(module: ModuleType, project: str) -> None:
    declared = getattr(module, "HOOK_API", None)
    if declared is None:
        raise Rejected(f"no HOOK_API in {module.__name__}")
    if not (isinstance(declared, str) and re.fullmatch(r"\d+\.\d+", declared)):
        raise Rejected(f"HOOK_API is {declared!r}, not a string like '1.0'")
    major, minor = map(int, declared.split("."))
    core_major, core_minor = map(int, hookspecs.HOOK_API.split("."))
    if major != core_major or minor > core_minor:
        raise Rejected(
            f"HOOK_API is {declared}, this headstart has {hookspecs.HOOK_API}: "
            + _advice((major, minor) > (core_major, core_minor), project),
            "incompatible",
        )


def register(module: ModuleType, name: str) -> pluggy.PluginManager:
    """A manager that knows the hooks and this plugin alone."""
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    faults = _hook_faults(manager, module)
    if faults:
        raise Rejected("; ".join(faults))
    try:
        manager.register(module, name)
    except pluggy.PluginValidationError as error:
        detail = " ".join(str(error).splitlines()[1:])
        raise Rejected(f"wrong signature: {detail}") from None
    manager.check_pending()
    return manager


def _hook_faults(manager: pluggy.PluginManager, module: ModuleType) -> list[str]:
    """Hooks that pluggy would pass over in silence, or that the design excludes."""
    hooks = {k for k in vars(manager.hook) if not k.startswith("_")}
    faults = []
    for attribute in dir(module):
        options = manager.parse_hookimpl_opts(module, attribute)
        if options is None:
            if attribute in hooks:
                faults.append(f"{attribute} is not decorated with @hookimpl")
            continue
        hook = options.get("specname") or attribute
        if hook not in hooks and not options.get("optionalhook"):
            faults.append(f"there is no hook {hook!r}: {nearest(hook, hooks)}")
        elif options.get("hookwrapper") or options.get("wrapper"):
            faults.append(f"{attribute} is a wrapper; hooks only return lists")
    return faults


def call(manager: pluggy.PluginManager, hook: str, **arguments: Any) -> list[Any]:
    """Call one hook of one plugin; the items of the list that it returns."""
    caller = getattr(manager.hook, hook)
    results = caller(**arguments)
    if len(results) != len(caller.get_hookimpls()):
        raise Rejected(f"{hook} returned None, not a list")
    for result in results:
        if not isinstance(result, list | tuple):
            raise Rejected(f"{hook} returned {type(result).__name__}, not a list")
    return [item for result in results for item in result]


def specs_of(manager: pluggy.PluginManager, kind: Kind) -> list[Any]:
    """What the plugin registers of one kind."""
    try:
        found = call(manager, kind.hook)
    except (Rejected, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise Rejected.by(error, f"{kind.hook} raised ") from error
    for spec in found:
        if not isinstance(spec, kind.spec):
            raise Rejected(
                f"{kind.hook} returned {type(spec).__name__} in its list, "
                f"not {kind.spec.__name__}"
            )
    return found


def key(spec: Spec) -> str:
    """What a spec is looked up by."""
    return spec.scheme if isinstance(spec, WeightSourceSpec) else spec.name


def one_line(error: BaseException) -> str:
    """Type and first line of an exception."""
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
