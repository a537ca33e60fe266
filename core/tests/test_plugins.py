from __future__ import annotations

import importlib
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING, Protocol

import pytest

from headstart.errors import PluginError, UserError
from headstart.plugins import PluginInfo, Registry, load_plugins, plugin_table

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HEADER = """
from headstart.hookspecs import hookimpl
from headstart.specs import HeadSpec, MetricSpec, RecipeSource, WeightSourceSpec

HOOK_API = "1.0"

def metric(name):
    return MetricSpec(name, "", "m:f", (), (), "max", "m:s", {})

def recipe(name):
    return RecipeSource(name, __name__, "recipes/r.toml")
"""

HEALTHY = (
    HEADER
    + """
@hookimpl
def register_metrics():
    return [metric("healthy/accuracy")]

@hookimpl
def register_recipes():
    return (recipe("healthy/first"), recipe("healthy/second"))

@hookimpl
def register_weight_sources():
    return [WeightSourceSpec("vault", "", "m:resolve")]

@hookimpl
def make_callbacks(recipe):
    return [("healthy", recipe)]
"""
)


class Install(Protocol):
    def __call__(
        self,
        name: str,
        code: str,
        *,
        requires: str = ...,
        project: str = ...,
        value: str = ...,
    ) -> str: ...


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Write a distribution as pip would leave it, into a folder on sys.path."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(
        name: str,
        code: str,
        *,
        requires: str = "headstart",
        project: str = "",
        value: str = "",
    ) -> str:
        project = project or f"headstart-{name}"
        package = "fake_" + project.replace("-", "_")
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text(textwrap.dedent(code))
        info = tmp_path / f"{project.replace('-', '_')}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {project}\nVersion: 1.2\n"
            f'Requires-Dist: headstart[test]>=77; extra == "test"\n'
            f"Requires-Dist: {requires}\n"
        )
        (info / "entry_points.txt").write_text(
            f"[headstart.plugins]\n{name} = {value or package}\n"
        )
        importlib.invalidate_caches()
        load_plugins.cache_clear()
        return package

    yield write
    load_plugins.cache_clear()
    for module in set(sys.modules) - before:
        if module.startswith("fake_"):
            del sys.modules[module]


def infos(registry: Registry, name: str) -> list[PluginInfo]:
    return [info for info in registry.plugins if info.name == name]


def registered(registry: Registry) -> set[str]:
    tables = (
        registry.backbones,
        registry.heads,
        registry.data,
        registry.metrics,
        registry.recipes,
        registry.weight_sources,
    )
    return {key for table in tables for key in table}


GOOD_HALF = """
@hookimpl
def register_metrics():
    return [metric("bad/accuracy")]
"""

# name of the failure: (the module's code, status, what the cause must say)
FAILURES: dict[str, tuple[str, str, list[str]]] = {
    "import error": (
        "import no_such_library",
        "broken",
        ["ModuleNotFoundError: No module named 'no_such_library'"],
    ),
    "syntax error": ("def (", "broken", ["SyntaxError"]),
    "exits": ("raise SystemExit(3)", "broken", ["SystemExit: 3"]),
    "no API": (
        HEADER.replace("HOOK_API", "HOOKAPI") + GOOD_HALF,
        "broken",
        ["no HOOK_API"],
    ),
    "API not a version": (
        HEADER.replace('"1.0"', "1.0") + GOOD_HALF,
        "broken",
        ["HOOK_API is 1.0, not a string"],
    ),
    "API of a later major": (
        HEADER.replace("1.0", "2.0") + GOOD_HALF,
        "incompatible",
        ["HOOK_API is 2.0", "upgrade headstart"],
    ),
    "API of a later minor": (
        HEADER.replace("1.0", "1.1") + GOOD_HALF,
        "incompatible",
        ["HOOK_API is 1.1", "upgrade headstart"],
    ),
    "API of an earlier major": (
        HEADER.replace("1.0", "0.9") + GOOD_HALF,
        "incompatible",
        ["HOOK_API is 0.9", "upgrade headstart-bad"],
    ),
    "misspelt hook": (
        HEADER + GOOD_HALF + "@hookimpl\ndef register_head():\n    return []\n",
        "broken",
        ["no hook 'register_head'", "did you mean 'register_heads'?"],
    ),
    "misspelt by specname": (
        HEADER
        + GOOD_HALF
        + '@hookimpl(specname="register_recipe")\ndef f():\n    return []\n',
        "broken",
        ["no hook 'register_recipe'", "did you mean 'register_recipes'?"],
    ),
    "undecorated hook": (
        HEADER + GOOD_HALF + "def register_heads():\n    return []\n",
        "broken",
        ["register_heads is not decorated with @hookimpl"],
    ),
    "two faults": (
        HEADER
        + "def register_heads():\n    return []\n"
        + "@hookimpl\ndef register_dato():\n    return []\n",
        "broken",
        ["register_heads is not decorated", "did you mean 'register_data'?"],
    ),
    "wrapper": (
        HEADER
        + GOOD_HALF
        + "@hookimpl(wrapper=True)\ndef register_heads():\n    return (yield)\n",
        "broken",
        ["register_heads is a wrapper"],
    ),
    "wrong signature": (
        HEADER + GOOD_HALF + "@hookimpl\ndef register_recipes(folder):\n    return []",
        "broken",
        ["wrong signature", "register_recipes(folder)"],
    ),
    "hook raises": (
        HEADER
        + GOOD_HALF
        + "@hookimpl\ndef register_recipes():\n    raise OSError('one\\ntwo')\n",
        "broken",
        ["register_recipes raised OSError: one"],
    ),
    "hook exits": (
        HEADER
        + GOOD_HALF
        + "@hookimpl\ndef register_recipes():\n    raise SystemExit\n",
        "broken",
        ["register_recipes raised SystemExit"],
    ),
    "returns one spec": (
        HEADER
        + GOOD_HALF
        + "@hookimpl\ndef register_recipes():\n    return recipe('bad/r')\n",
        "broken",
        ["register_recipes returned RecipeSource, not a list"],
    ),
    "returns nothing": (
        HEADER + GOOD_HALF + "@hookimpl\ndef register_recipes():\n    pass\n",
        "broken",
        ["register_recipes returned None, not a list"],
    ),
    "yields": (
        HEADER
        + GOOD_HALF
        + "@hookimpl\ndef register_recipes():\n    yield recipe('bad/r')\n",
        "broken",
        ["register_recipes returned generator, not a list"],
    ),
    "another type of spec": (
        HEADER
        + GOOD_HALF
        + "@hookimpl\ndef register_heads():\n    return [recipe('bad/r')]\n",
        "broken",
        ["register_heads returned RecipeSource in its list, not HeadSpec"],
    ),
    "another's prefix": (
        HEADER
        + GOOD_HALF
        + "@hookimpl\ndef register_recipes():\n    return [recipe('healthy/mine')]\n",
        "broken",
        ["'healthy/mine' does not start with 'bad/'"],
    ),
    "duplicate within": (
        HEADER
        + GOOD_HALF
        + "@hookimpl\ndef register_recipes():\n    return [recipe('bad/r')] * 2\n",
        "broken",
        ["duplicate name 'bad/r'"],
    ),
    "the core's scheme": (
        HEADER
        + GOOD_HALF
        + "@hookimpl\ndef register_weight_sources():\n"
        + "    return [WeightSourceSpec('hf', '', 'm:resolve')]\n",
        "broken",
        ["duplicate name 'hf'"],
    ),
}


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("healthy", ["aaa", "zzz"])
def test_failed_plugin_says_why_and_stops_no_other(
    failure: str, healthy: str, install: Install
) -> None:
    code, status, said = FAILURES[failure]
    install("bad", code)
    # One that loads before and one that loads after the failing one.
    install(healthy, HEALTHY.replace("healthy", healthy))

    registry = load_plugins()

    (bad,) = infos(registry, "bad")
    assert bad.status == status
    for part in said:
        assert part in bad.cause
    assert "\n" not in bad.cause
    assert (bad.distribution, bad.version) == ("headstart-bad", "1.2")
    assert not [key for key in registered(registry) if key.startswith("bad/")]
    assert (
        registry.weight_source("hf").resolver == "headstart.weights.sources:resolve_hub"
    )
    (good,) = infos(registry, healthy)
    assert (good.status, good.cause) == ("loaded", "")
    assert registry.metric(f"{healthy}/accuracy").goal == "max"
    assert (healthy, "a recipe") in registry.callbacks("a recipe")


def test_traceback_is_kept_when_the_plugins_code_raised(install: Install) -> None:
    install("bad", "def deep():\n    raise OSError('x')\n\ndeep()\n")
    install("worse", FAILURES["hook raises"][0].replace("bad", "worse"))
    registry = load_plugins()
    (bad,), (worse,) = infos(registry, "bad"), infos(registry, "worse")
    assert "in deep" in bad.traceback
    assert "in register_recipes" in worse.traceback


@pytest.mark.parametrize(
    ("requires", "advice"),
    [
        ("headstart>=99", "headstart is too old, upgrade headstart"),
        ("headstart==99.*", "headstart is too old, upgrade headstart"),
        ("headstart~=99.1", "headstart is too old, upgrade headstart"),
        ("Headstart<0.0.1", "the plugin is too old, upgrade headstart-skewed"),
        ("headstart>=0.0.0,<0.0.1", "the plugin is too old, upgrade headstart-skewed"),
        ("headstart==0.0.1", "the plugin is too old, upgrade headstart-skewed"),
    ],
)
def test_version_skew_is_told_before_the_import(
    requires: str, advice: str, install: Install
) -> None:
    package = install("skewed", "import gone_since_then", requires=requires)
    install("healthy", HEALTHY)
    registry = load_plugins()
    (skewed,) = infos(registry, "skewed")
    assert skewed.status == "incompatible"
    assert skewed.cause.endswith(advice)
    assert skewed.cause.startswith("needs headstart")
    assert package not in sys.modules
    assert infos(registry, "healthy")[0].status == "loaded"


def test_requirements_that_the_core_meets(install: Install) -> None:
    install("healthy", HEALTHY, requires="headstart>=0.0.1,<99")
    (info,) = infos(load_plugins(), "healthy")
    assert info.status == "loaded"
    assert info.counts == {"metrics": 1, "recipes": 2, "weight_sources": 1}


def test_unreadable_requirement(install: Install) -> None:
    install("bad", HEALTHY, requires="headstart >> 1")
    install("healthy", HEALTHY)
    registry = load_plugins()
    assert infos(registry, "bad")[0].status == "broken"
    assert infos(registry, "healthy")[0].status == "loaded"


def test_distribution_without_metadata(install: Install, tmp_path: Path) -> None:
    install("bad", HEADER)
    install("healthy", HEALTHY)
    (tmp_path / "headstart_bad-1.2.dist-info" / "METADATA").unlink()
    registry = load_plugins()
    # Python versions differ in whether they complain; the plugin is listed anyway.
    assert len(infos(registry, "bad")) == 1
    assert infos(registry, "healthy")[0].status == "loaded"


def test_entry_point_must_name_a_module(install: Install) -> None:
    install("bad", HEALTHY, value="fake_headstart_bad:metric")
    (bad,) = infos(load_plugins(), "bad")
    assert bad.status == "broken"
    assert "names a function" in bad.cause


def test_of_two_plugins_of_one_name_the_first_keeps_it(install: Install) -> None:
    # Installed in the other order than they load in.
    other = HEADER + "\n@hookimpl\ndef register_recipes():\n"
    install("twice", other + "    return [recipe('twice/z')]\n", project="z-twice")
    install("twice", other + "    return [recipe('twice/a')]\n", project="a-twice")
    registry = load_plugins()
    first, second = infos(registry, "twice")
    assert (first.distribution, first.status) == ("a-twice", "loaded")
    assert (second.distribution, second.status) == ("z-twice", "broken")
    assert second.cause == "the plugin name 'twice' is taken by 'a-twice'"
    assert registry.package("twice") == "fake_a_twice"
    assert {k for k in registered(registry) if "twice" in k} == {"twice/a"}


def test_of_two_plugins_with_one_scheme_the_first_keeps_it(install: Install) -> None:
    install("aaa", HEALTHY.replace("healthy", "aaa").replace("m:resolve", "a:a"))
    install("zzz", HEALTHY.replace("healthy", "zzz").replace("m:resolve", "z:z"))
    registry = load_plugins()
    (second,) = infos(registry, "zzz")
    assert second.status == "broken"
    assert "duplicate name 'vault'" in second.cause
    assert registry.weight_source("vault").resolver == "a:a"
    assert not [key for key in registered(registry) if key.startswith("zzz/")]
    assert ("zzz", None) not in registry.callbacks(None)


def test_keyboard_interrupt_is_the_users(install: Install) -> None:
    install("bad", "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        load_plugins()


def test_loaded_once_until_the_cache_is_cleared(install: Install) -> None:
    install("healthy", HEALTHY)
    first = load_plugins()
    assert load_plugins() is first
    load_plugins.cache_clear()
    assert load_plugins() is not first


def test_plugin_that_imports_torch_is_loaded_with_a_warning(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    install("slow", "import sys\nsys.modules['torch'] = sys\n" + HEADER)
    (info,) = infos(load_plugins(), "slow")
    sys.modules.pop("torch")
    assert (info.status, info.cause) == ("loaded", "slow: imports torch")


def test_add_a_module_that_is_not_installed(install: Install) -> None:
    package = install("healthy", HEALTHY)
    module = importlib.import_module(package)
    registry = Registry()
    info = registry.add(module, "healthy")
    assert info.status == "loaded"
    assert registry.package("healthy") == package
    assert registry.add(module, "healthy") is info
    assert registry.plugins == [info]
    assert registry.add(module, "other").status == "broken"
    # As the conformance suite does with a plugin that is also installed.
    assert load_plugins().add(module, "healthy").distribution == "headstart-healthy"


def test_needed_plugin_that_failed_to_load(install: Install) -> None:
    install("speech", "raise ImportError('libcudart.so.13')")
    registry = load_plugins()
    with pytest.raises(PluginError) as caught:
        registry.recipe("speech/wav2vec2")
    assert str(caught.value) == (
        "recipe 'speech/wav2vec2' needs the plugin 'speech', which failed to load: "
        "ImportError: libcudart.so.13\n  fix: see `headstart plugins -v`"
    )
    with pytest.raises(PluginError, match="failed to load: ImportError"):
        registry.package("speech")
    with pytest.raises(UserError, match=r"may offer it: .*speech"):
        registry.weight_source("torchaudio")


def test_needed_plugin_that_is_incompatible(install: Install) -> None:
    install("speech", HEALTHY, requires="headstart>=99")
    with pytest.raises(PluginError, match=r"is incompatible: needs headstart>=99"):
        load_plugins().backbone("speech/wav2vec2")


def test_needed_plugin_that_is_not_installed() -> None:
    with pytest.raises(PluginError, match="not installed") as caught:
        Registry().head("medical/segmenter")
    assert caught.value.faults[0].fix == "pip install headstart-medical"
    with pytest.raises(PluginError, match="pip install headstart-medical"):
        Registry().package("medical")


def test_unknown_names_offer_the_nearest(install: Install) -> None:
    install("healthy", HEALTHY)
    registry = load_plugins()
    with pytest.raises(UserError, match="did you mean 'healthy/second'"):
        registry.recipe("healthy/secnd")
    with pytest.raises(UserError, match="did you mean 'healthy/accuracy'"):
        registry.metric("helthy/accuracy")
    with pytest.raises(UserError, match="no plugin 'helthy' is installed"):
        registry.metric("helthy/accuracy")
    with pytest.raises(UserError, match="did you mean 'vault'"):
        registry.weight_source("valt")
    with pytest.raises(UserError, match="no data module 'healthy/table'"):
        registry.data_module("healthy/table")
    with pytest.raises(PluginError, match="did you mean 'healthy'"):
        registry.package("helthy")


@pytest.mark.parametrize(
    ("body", "error", "said"),
    [
        ("raise OSError('no disk')", PluginError, "make_callbacks raised OSError"),
        ("return 3", PluginError, "make_callbacks returned int, not a list"),
        ("raise UserError('a bad setting')", UserError, "a bad setting"),
    ],
)
def test_callbacks_that_fail(
    body: str, error: type[Exception], said: str, install: Install
) -> None:
    code = HEADER + "from headstart.errors import UserError\n"
    code += f"@hookimpl\ndef make_callbacks(recipe):\n    {body}\n"
    module = importlib.import_module(install("bad", code))
    registry = Registry()
    assert registry.add(module, "bad").status == "loaded"
    with pytest.raises(error, match=said):
        registry.callbacks(None)


def test_table(install: Install) -> None:
    install("aaa", "import no_such_library")
    install("healthy", HEALTHY)
    rows = {row["name"]: row for row in plugin_table(load_plugins())}
    assert rows["healthy"] == {
        "name": "healthy",
        "distribution": "headstart-healthy",
        "version": "1.2",
        "status": "loaded",
        "cause": "",
    }
    assert rows["aaa"]["status"] == "broken"
    assert "no_such_library" in rows["aaa"]["cause"]


def test_import_of_the_loader_is_light() -> None:
    code = (
        "import sys, headstart.plugins; "
        "print(*{'torch', 'rich', 'pydantic', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []


def test_core_weight_sources() -> None:
    assert set(Registry().weight_sources) == {"asset", "hf", "file", "run", "none"}
