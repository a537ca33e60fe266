"""Install one project alone in a clean environment and try it: `make alone PLUGIN=nlp`.

Builds wheels of the core and the plugin, installs nothing but those and what they ask
for into a temporary environment, runs `alone_probe.py` there, and removes it again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import tomllib
import venv
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]

# The library that makes a domain a domain: heavy, and of no use to the others. It is
# in an environment only where the plugin itself declares it, never by way of the core
# or of another library.
DOMAIN_LIBRARY = {
    "medical": "monai",
    "nlp": "transformers",
    "recsys": "implicit",
    "speech": "torchaudio",
    "vision": "torchvision",
}


def plugin_names(root: Path = ROOT) -> list[str]:
    """The plugins of this repository."""
    return sorted(path.parent.name for path in root.glob("plugins/*/pyproject.toml"))


def declared(project: Path) -> set[str]:
    """Names of the distributions that a project's wheel always requires."""
    table = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))
    return {
        canonicalize_name(Requirement(line).name)
        for line in table["project"]["dependencies"]
    }


def forbidden_libraries(name: str, root: Path = ROOT) -> set[str]:
    """Domain libraries that must not be there when `name` is installed alone."""
    own = set() if name == "core" else declared(root / "plugins" / name)
    return set(DOMAIN_LIBRARY.values()) - own


def run(*command: str | Path, **settings: object) -> None:
    print("+", *command, flush=True)
    subprocess.run([str(part) for part in command], check=True, **settings)  # type: ignore[call-overload]


def try_alone(name: str) -> None:
    """Build, install and probe one project; raises if any step fails."""
    projects = [ROOT / "core"]
    if name != "core":
        projects.append(ROOT / "plugins" / name)
    with tempfile.TemporaryDirectory(prefix=f"headstart-alone-{name}-") as folder:
        place = Path(folder)
        for project in projects:
            run(
                sys.executable, "-m", "build", "--wheel", "--outdir", place / "wheels",
                project,
            )  # fmt: skip
        venv.create(place / "venv", with_pip=True, symlinks=True)
        python = place / "venv" / "bin" / "python"
        wheels = sorted((place / "wheels").glob("*.whl"))
        pins = ROOT / "constraints.txt"
        run(python, "-m", "pip", "install", "--constraint", pins, *wheels)
        run(python, "-m", "pip", "check")

        # Away from the repository and its settings, so that only the wheels are seen.
        home = place / "home"
        home.mkdir()
        environment = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("PYTHON", "HEADSTART", "HF_", "XDG_"))
        } | {"HOME": str(home), "COLUMNS": "200"}
        recipes = [] if name == "core" else sorted(
            f"{name}/{path.stem}"
            for path in projects[1].glob("src/*/recipes/*.toml")
        )  # fmt: skip
        expected = {
            "name": name,
            "forbidden": sorted(forbidden_libraries(name)),
            "libraries": sorted(DOMAIN_LIBRARY.values()),
            "recipes": recipes,
        }
        probe = ROOT / "tests" / "tools" / "alone_probe.py"
        run(python, probe, json.dumps(expected), cwd=home, env=environment)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=["core", *plugin_names()])
    name = parser.parse_args().name
    try:
        try_alone(name)
    except subprocess.CalledProcessError as error:
        sys.exit(f"alone {name}: failed (exit code {error.returncode}), see above")
    print(f"alone {name}: ok")


if __name__ == "__main__":
    main()
