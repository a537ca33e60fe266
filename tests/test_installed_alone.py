"""What packaging and `make alone` rest on: pins, licence, the table of domains."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECTS = [
    ROOT / "core",
    *sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml")),
]
PLUGINS = PROJECTS[1:]

_spec = importlib.util.spec_from_file_location(
    "alone", ROOT / "tests" / "tools" / "alone.py"
)
assert _spec and _spec.loader
alone = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(alone)


def by_name(path: Path) -> str:
    return path.name


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    found = {}
    for line in lines:
        if line and not line.startswith("#"):
            name, version = line.split("==")
            assert name not in found, f"{name} is pinned twice"
            found[canonicalize_name(name)] = version
    return found


def project_table(project: Path) -> dict[str, object]:
    text = (project / "pyproject.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


@pytest.mark.parametrize("project", PROJECTS, ids=by_name)
def test_every_requirement_is_pinned_within_its_bounds(project: Path) -> None:
    table = project_table(project)
    lines = [
        *table["project"]["dependencies"],
        *(
            line
            for extra in table["project"].get("optional-dependencies", {}).values()
            for line in extra
        ),
        *table["build-system"]["requires"],
    ]
    exact = pins()
    faults = []
    for requirement in map(Requirement, lines):
        name = canonicalize_name(requirement.name)
        if name.startswith("headstart"):
            continue
        if name not in exact:
            faults.append(f"{name} is not in constraints.txt")
        elif not requirement.specifier.contains(exact[name]):
            faults.append(f"{requirement} does not admit the pinned {exact[name]}")
    assert not faults


def test_the_tools_of_the_makefile_are_pinned() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    [tools] = re.findall(r"^TOOLS := (.+)$", makefile, re.MULTILINE)
    assert {canonicalize_name(tool) for tool in tools.split()} <= pins().keys()


@pytest.mark.parametrize("plugin", PLUGINS, ids=by_name)
def test_the_domain_table_knows_the_plugin(plugin: Path) -> None:
    library = alone.DOMAIN_LIBRARY.get(plugin.name)
    assert library, f"name the domain library of {plugin.name} in tests/tools/alone.py"
    assert library in alone.declared(plugin)
    assert library not in alone.forbidden_libraries(plugin.name)


def test_the_core_may_bring_no_domain_library() -> None:
    libraries = set(alone.DOMAIN_LIBRARY.values())
    assert alone.forbidden_libraries("core") == libraries
    assert libraries.isdisjoint(alone.declared(ROOT / "core"))


def test_a_library_is_forbidden_unless_the_plugin_declares_it(tmp_path: Path) -> None:
    project = tmp_path / "plugins" / "speech"
    project.mkdir(parents=True)
    (project / "pyproject.toml").write_text(
        "[project]\ndependencies = ['torchaudio>=2', 'Transformers[x]'] "
    )
    assert alone.forbidden_libraries("speech", tmp_path) == {
        "implicit",
        "monai",
        "torchvision",
    }


@pytest.mark.parametrize("project", PROJECTS, ids=by_name)
def test_every_project_carries_the_licence(project: Path) -> None:
    assert project_table(project)["project"]["license"] == "Apache-2.0"
    text = (project / "LICENSE").read_text(encoding="utf-8")
    assert text == (ROOT / "LICENSE").read_text(encoding="utf-8")
