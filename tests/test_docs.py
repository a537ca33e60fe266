"""The documents say what is so: names, signatures, commands, paths and code."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import importlib.util
import inspect
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click
import pytest

from headstart import callbacks, data, heads, hookspecs, plugins, specs, stages
from headstart.cli import commands
from headstart.errors import UserError
from headstart.reading import parse_overrides
from headstart.recipe import build_recipe, load_recipe
from headstart.weights.sources import Weights

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[1]
CORE = ROOT / "core" / "src" / "headstart"
SOURCES = [CORE, *ROOT.glob("plugins/*/src/*")]
DOCS = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "core/*.md", "plugins/*/*.md")
    for path in ROOT.glob(pattern)
)
HOOKS = ROOT / "docs" / "hooks.md"
OURS = ("headstart ", "make ")


class Block(NamedTuple):
    """A fenced block: its language, its text, and the line of prose before it."""

    language: str
    text: str
    before: str


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def blocks(text: str) -> list[Block]:
    found = re.finditer(
        r"(?P<before>[^\n]*)\n\n?^```(?P<language>\w*)\n(?P<text>.*?)^```$",
        text,
        re.MULTILINE | re.DOTALL,
    )
    return [Block(m["language"], m["text"], m["before"]) for m in found]


def prose(text: str) -> str:
    """Without fenced blocks."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def inline_code(text: str) -> list[str]:
    return [" ".join(c.split()) for c in re.findall(r"`([^`]+)`", prose(text))]


def shown_commands(text: str) -> Iterator[tuple[str, str]]:
    """Command lines, each with the first line of what it printed, if that is shown.

    A command stands after `$ ` where a block has such lines; else ours are taken.
    """
    for block in blocks(text):
        if block.language not in ("", "console", "sh", "bash", "shell"):
            continue
        lines = block.text.splitlines()
        prompt = "$ " if any(line.startswith("$ ") for line in lines) else ""
        starts = (prompt,) if prompt else OURS
        for line, after in zip(lines, [*lines[1:], ""], strict=True):
            if line.startswith(starts):
                yield line.removeprefix(prompt), after
    for code in inline_code(text):
        if code.startswith(OURS):
            yield code, ""


def document(path: Path) -> str:
    return str(path.relative_to(ROOT))


each_document = pytest.mark.parametrize("path", DOCS, ids=document)


def test_there_are_documents() -> None:
    wanted = "tutorial hooks recipes writing-a-plugin core-in-an-hour decisions"
    for name in wanted.split():
        assert ROOT / "docs" / f"{name}.md" in DOCS
    index = read(ROOT / "docs" / "README.md")
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert not {page for page in pages if f"({page})" not in index}


@each_document
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(read(path))):
        if not re.match(r"https?:", target):
            assert (path.parent / target.partition("#")[0]).exists(), target


@each_document
def test_paths_exist(path: Path) -> None:
    top = {p.name for p in ROOT.iterdir()} - {"runs"}
    for code in inline_code(read(path)):
        first = code.partition("/")[0]
        if "/" in code and first in top and " " not in code:
            assert (ROOT / code).exists(), code


@each_document
def test_python_compiles(path: Path) -> None:
    for block in blocks(read(path)):
        if block.language == "python":
            ast.parse(block.text)


@each_document
def test_toml_is_valid_and_whole_recipes_too(path: Path) -> None:
    registry = plugins.load_plugins()
    for block in blocks(read(path)):
        if block.language != "toml":
            continue
        tables = tomllib.loads(block.text)
        name = str(tables.get("backbone", {}).get("name", ""))
        if {"backbone", "head", "data"} <= set(tables) and name in registry.backbones:
            build_recipe(tables, {}, origin=str(path), registry=registry)


@each_document
def test_commands_can_be_typed(path: Path) -> None:
    for line, printed in shown_commands(read(path)):
        program, *arguments = shlex.split(line.partition(" < ")[0], comments=True)
        if program == "headstart":
            # Wrong settings are an error; wrong data is found only when it is read.
            wrong = printed.startswith("error:") and "data.path" not in line
            _check_command(arguments, line, wrong)
        elif program == "make" and arguments:
            targets = re.findall(
                r"^([a-z-]+):.*## ", read(ROOT / "Makefile"), re.MULTILINE
            )
            assert arguments[0] in targets, line


def _check_command(arguments: list[str], line: str, wrong: bool) -> None:
    context = click.Context(commands, info_name="headstart")
    if arguments[0].startswith("-"):
        assert any(
            arguments[0] in option.opts for option in commands.get_params(context)
        ), line
        return
    name, command, rest = commands.resolve_command(context, arguments)
    assert command is not None, line
    if not rest:
        return  # in prose, a command by its name alone
    values = command.make_context(name, rest, parent=context).params
    recipe = str(values.get("recipe", ""))
    if name in ("run", "check") and recipe in plugins.load_plugins().recipes:
        overrides = parse_overrides(values["overrides"])
        with pytest.raises(UserError) if wrong else nullcontext():
            load_recipe(recipe, overrides, registry=plugins.load_plugins())


@each_document
def test_dotted_names_exist(path: Path) -> None:
    for code in inline_code(read(path)):
        for name in re.findall(r"(?<![\w/.-])(headstart(?:_\w+)?(?:\.\w+)+)", code):
            if importlib.util.find_spec(name.partition(".")[0]) is not None:
                _import(name)


def _import(name: str) -> Any:
    module, _, rest = name.partition(".")
    found: Any = importlib.import_module(module)
    for part in rest.split("."):
        module = f"{module}.{part}"
        try:
            found = getattr(found, part)
        except AttributeError:
            found = importlib.import_module(module)
    return found


@each_document
def test_environment_variables_are_read(path: Path) -> None:
    code = "".join(read(p) for source in SOURCES for p in source.rglob("*.py"))
    for name in re.findall(r"\bHEADSTART_[A-Z]+\b", read(path)):
        assert f'"{name}"' in code, name


def test_every_module_of_the_core_is_in_the_hour() -> None:
    text = read(ROOT / "docs" / "core-in-an-hour.md")
    named = {code for code in inline_code(text) if code.endswith(".py")}
    modules = {path.relative_to(CORE).as_posix() for path in CORE.rglob("*.py")}
    assert named == modules


# docs/hooks.md against the code


def section(title: str) -> str:
    """What stands under a heading of hooks.md, without its sub-headings."""
    _, found, rest = read(HOOKS).partition(f"### `{title}`\n")
    assert found, f"hooks.md has no heading `{title}`"
    return re.split(r"^##", rest, maxsplit=1, flags=re.MULTILINE)[0]


def table(text: str, first: str) -> list[list[str]]:
    """The rows of the table whose first column is called so, code marks removed."""
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {first} |"))
    found = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        cells = re.split(r"(?<!\\)\|", line)[1:-1]
        found.append([cell.strip().strip("`").replace(r"\|", "|") for cell in cells])
    return found


def signature(name: str, function: Any) -> str:
    """As it is written in the source, without `self`."""
    found = inspect.signature(function)
    parts = [
        f"{p.name}: {p.annotation}"
        + ("" if p.default is p.empty else f" = {p.default!r}")
        for p in found.parameters.values()
        if p.name != "self"
    ]
    return f"{name}({', '.join(parts)}) -> {found.return_annotation}"


def test_hooks_are_all_documented() -> None:
    hooks = [
        signature(name, value)
        for name, value in vars(hookspecs).items()
        if hasattr(value, f"{hookspecs.PROJECT}_spec")
    ]
    assert len(hooks) >= len(plugins.KINDS)
    part = read(HOOKS).split("\n## Hooks\n")[1].split("\n## ")[0]
    assert re.findall(r"^### `(.+)`$", part, re.MULTILINE) == hooks
    for hook in hooks:
        assert f"def {hook.partition('(')[0]}(" in section(hook), "no example"


SPECS = [
    value
    for value in vars(specs).values()
    if dataclasses.is_dataclass(value) and value.__module__ == specs.__name__
]


def test_specs_are_all_documented() -> None:
    part = read(HOOKS).split("\n## Specs\n")[1].split("\n## ")[0]
    titles = re.findall(r"^### `headstart\.specs\.(\w+)`$", part, re.MULTILINE)
    assert sorted(titles) == sorted(spec.__name__ for spec in SPECS)


@pytest.mark.parametrize("spec", [*SPECS, Weights, data.Baseline])
def test_fields_are_as_documented(spec: Any) -> None:
    text = section(f"{spec.__module__}.{spec.__name__}")
    fields = [
        [field.name, str(field.type), _default(field)]
        for field in dataclasses.fields(spec)
    ]
    rows = table(text, "field")
    assert [row[:3] for row in rows] == fields
    assert all(row[3] for row in rows)


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default_factory is not dataclasses.MISSING:
        return repr(field.default_factory())
    return "required" if field.default is dataclasses.MISSING else repr(field.default)


@pytest.mark.parametrize(
    "contract",
    [
        stages.Backbone,
        heads.Head,
        data.DataModule,
        data.Findings,
        callbacks.Callback,
    ],
)
def test_contracts_are_as_documented(contract: type) -> None:
    expected = []
    for name, value in vars(contract).items():
        if name.startswith("_") or name in getattr(
            contract, "__dataclass_fields__", {}
        ):
            continue
        if inspect.isfunction(value):
            expected.append(signature(name, value))
        elif isinstance(value, property):
            returned = inspect.signature(value.fget).return_annotation
            expected.append(f"{name}: {returned}")
        else:
            expected.append(f"{name}: {contract.__annotations__[name]}")
    text = section(f"{contract.__module__}.{contract.__name__}")
    assert [row[0] for row in table(text, "member")] == expected


def test_arguments_of_a_backbone_are_as_documented() -> None:
    text = section("headstart.stages.Backbone")
    parameters = list(inspect.signature(stages.Backbone).parameters.values())
    expected = [
        [p.name, p.annotation, "required" if p.default is p.empty else repr(p.default)]
        for p in parameters
    ]
    assert [row[:3] for row in table(text, "argument")] == expected


def test_a_missing_field_is_noticed() -> None:
    rows = table("| field | type |\n|---|---|\n| `a` | `int \\| None` |\n", "field")
    assert rows == [["a", "int | None"]]


# docs/recipes-reference.md and docs/writing-a-plugin.md


def test_reference_of_recipes_is_what_the_settings_say() -> None:
    script = ROOT / "tests" / "tools" / "recipe_reference.py"
    found = importlib.util.spec_from_file_location("recipe_reference", script)
    assert found and found.loader
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    assert read(ROOT / "docs" / "recipes-reference.md") == module.reference(), (
        "run python tests/tools/recipe_reference.py > docs/recipes-reference.md"
    )


@pytest.fixture(scope="module")
def written_plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The plugin of docs/writing-a-plugin.md, from its code blocks."""
    folder = tmp_path_factory.mktemp("plugin")
    for block in blocks(read(ROOT / "docs" / "writing-a-plugin.md")):
        place = re.fullmatch(r"`(headstart-audio-tags/\S+)`", block.before)
        if place:
            target = folder / place[1]
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(block.text, encoding="utf-8")
    root = folder / "headstart-audio-tags"
    # What pip would write: the entry point makes it an installed plugin.
    project = tomllib.loads(read(root / "pyproject.toml"))["project"]
    about = root / "src" / "headstart_audio_tags-0.1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\n"
        f"Version: {project['version']}\nRequires-Dist: {project['dependencies'][0]}\n"
    )
    points = project["entry-points"][plugins.GROUP]
    lines = [f"{name} = {module}\n" for name, module in points.items()]
    (about / "entry_points.txt").write_text(f"[{plugins.GROUP}]\n" + "".join(lines))
    return root


def python(plugin: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(plugin / "src")}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=plugin,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_written_plugin_has_the_files_of_the_listing(written_plugin: Path) -> None:
    text = read(ROOT / "docs" / "writing-a-plugin.md")
    [listing] = [b.text for b in blocks(text) if "headstart-audio-tags/\n" in b.text]
    # No block for the manifest of assets: this plugin has none.
    names = set(re.findall(r"[\w-]+\.(?:py|toml)", listing)) - {"assets.toml"}
    files = [path for path in written_plugin.rglob("*") if path.is_file()]
    assert names == {f.name for f in files if f.suffix in (".py", ".toml")}


def test_written_plugin_loads(written_plugin: Path) -> None:
    code = "from headstart.cli import main; main()"
    result = python(written_plugin, "-c", code, "plugins", "--json")
    assert result.returncode == 0, result.stderr
    rows = {row["name"]: row for row in json.loads(result.stdout)}
    assert rows["audio-tags"]["status"] == "loaded", rows["audio-tags"]["cause"]
    assert rows["audio-tags"]["distribution"] == "headstart-audio-tags"


def test_written_plugin_passes_the_suite(written_plugin: Path) -> None:
    options = ["-q", "-p", "no:cacheprovider", "-o", "addopts="]
    result = python(written_plugin, "-m", "pytest", *options, "tests")
    assert result.returncode == 0, result.stdout + result.stderr
    passed = re.search(r"(\d+) passed", result.stdout)
    assert passed and int(passed[1]) >= 25, result.stdout
