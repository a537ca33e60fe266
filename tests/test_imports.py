"""Who may import whom, what a light command may import, and what every plugin has."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PLUGINS = sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))
SOURCES = [ROOT / "core" / "src", *(plugin / "src" for plugin in PLUGINS)]
HEAVY = {"torch", "transformers", "matplotlib", "sklearn", "pyarrow"}


def lint_imports(
    sources: list[Path], config: Path = ROOT / "pyproject.toml"
) -> subprocess.CompletedProcess[str]:
    """Check the contracts in `config` against the packages in `sources`."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, sources))}
    code = "from importlinter.cli import lint_imports_command as main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, "--no-cache", "--config", config],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def packages() -> set[str]:
    return {path.name for source in SOURCES for path in source.glob("headstart*")}


def test_contracts_name_every_package() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    linter = settings["tool"]["importlinter"]
    assert set(linter["root_packages"]) == packages(), (
        "tool.importlinter.root_packages in pyproject.toml must name every package"
    )
    [contract] = [each for each in linter["contracts"] if each["id"] == "plugins"]
    named = set(re.findall(r"\w+", " ".join(contract["layers"])))
    assert packages() <= named, "the contract 'plugins' must name every package"


def test_imports_point_from_plugins_to_core_and_downwards() -> None:
    result = lint_imports(SOURCES)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("module", "line", "message"),
    [
        ("headstart/errors.py", "import headstart_nlp", "errors -> headstart_nlp"),
        (
            "headstart/errors.py",
            "from headstart import specs",
            "errors -> headstart.specs",
        ),
        ("headstart/unlisted.py", "", "- headstart.unlisted"),
    ],
)
def test_contracts_notice(tmp_path: Path, module: str, line: str, message: str) -> None:
    for source in SOURCES:
        shutil.copytree(source, tmp_path, dirs_exist_ok=True)
    with (tmp_path / module).open("a", encoding="utf-8") as file:
        file.write(f"\n{line}\n")
    result = lint_imports([tmp_path])
    assert result.returncode != 0
    assert message in result.stdout, result.stdout + result.stderr


def test_contracts_notice_a_plugin_that_imports_another(tmp_path: Path) -> None:
    for source in SOURCES:
        shutil.copytree(source, tmp_path, dirs_exist_ok=True)
    (tmp_path / "headstart_vision").mkdir(exist_ok=True)
    with (tmp_path / "headstart_vision" / "__init__.py").open("a") as file:
        file.write("\nimport headstart_nlp\n")
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    text, count = re.subn(
        r"^root_packages = .*$",
        'root_packages = ["headstart", "headstart_nlp", "headstart_vision"]',
        text,
        flags=re.MULTILINE,
    )
    assert count == 1
    config = tmp_path / "pyproject.toml"
    config.write_text(text, encoding="utf-8")
    result = lint_imports([tmp_path], config)
    assert result.returncode != 0
    assert "headstart_vision is not allowed to import headstart_nlp" in result.stdout


@pytest.mark.parametrize("arguments", [["--help"], ["list"]], ids=" ".join)
def test_light_commands_import_nothing_heavy(arguments: list[str]) -> None:
    script = ROOT / "tests" / "tools" / "imported_by.py"
    result = subprocess.run(
        [sys.executable, script, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    seen = json.loads(result.stdout.splitlines()[-1])
    assert seen["code"] == 0, result.stdout + result.stderr
    assert HEAVY.isdisjoint(seen["modules"]), HEAVY & set(seen["modules"])
    if arguments == ["list"]:
        # It did look at the plugins: not importing them would be light as well.
        assert packages() <= set(seen["modules"])


@pytest.mark.parametrize("package", sorted(packages()))
def test_packages_import_nothing_heavy(package: str) -> None:
    code = f"import sys, {package}; print(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    modules = {name.partition(".")[0] for name in result.stdout.split()}
    assert HEAVY.isdisjoint(modules), HEAVY & modules


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda path: path.name)
def test_plugins_have_the_same_files(plugin: Path) -> None:
    package = f"src/headstart_{plugin.name}"
    wanted = [
        "README.md",
        "LICENSE",
        *(
            f"{package}/{name}"
            for name in (
                "__init__.py",
                "backbones.py",
                "heads.py",
                "data.py",
                "metrics.py",
                "assets.toml",
            )
        ),
        "tests/test_conformance.py",
        f"tests/test_{plugin.name}.py",
    ]
    missing = [name for name in wanted if not (plugin / name).is_file()]
    assert not missing
    assert list(plugin.glob(f"{package}/recipes/*.toml")), "no recipe"


def repository_files() -> list[Path]:
    """What git tracks or would add."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout, so what is tracked is unknown")
    listing = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    files = [ROOT / name for name in listing.split("\0") if name]
    return [path for path in files if path.is_file() and not path.is_symlink()]


# Written so that no pattern matches its own text here.
UNWANTED = {
    "a path of one machine": r"(?<![\w.*)-])/(?:root|home|work|opt|Users)/[\w.]",
    "an index address": r"(?:pypi|pythonhosted|npmjs|debian)\.(?:org|com)/?\w*",
    "an index option": r"index-ur[l]|find-link[s]|PIP_\w*(?:UR[L]|LINK[S])",
    "an unfinished place": r"\b(?:TOD[O]|FIXM[E])\b",
}


@pytest.mark.parametrize("what", UNWANTED)
def test_files_are_fit_for_everyone(what: str) -> None:
    pattern = re.compile(UNWANTED[what], re.IGNORECASE if "index" in what else 0)
    found = []
    for path in repository_files():
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            continue
        found += [
            f"{path.relative_to(ROOT)}:{number}: {match[0]}"
            for number, line in enumerate(lines, 1)
            if (match := pattern.search(line))
        ]
    assert not found, f"{what} in:\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("what", "line"),
    [
        ("a path of one machine", "cd /ro" + "ot/.cache"),
        ("a path of one machine", "open('/wo" + "rk/main/x')"),
        ("an index address", "https://py" + "pi.org/simple"),
        ("an index option", "pip install --index" + "-url x"),
        ("an unfinished place", "# TO" + "DO: later"),
    ],
)
def test_unwanted_text_is_noticed(what: str, line: str) -> None:
    assert re.search(UNWANTED[what], line, re.IGNORECASE)
