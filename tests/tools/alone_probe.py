"""Runs in the clean environment that `alone.py` made: is what is installed enough?

Uses the standard library only, so that it sees what the wheels brought, no more.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
from pathlib import Path

TOOLS = Path(__file__).resolve().parent


def installed() -> set[str]:
    """Normalised names of all distributions in this environment."""
    return {
        re.sub(r"[-_.]+", "-", found.metadata["Name"]).lower()
        for found in importlib.metadata.distributions()
    }


def headstart(faults: list[str], *arguments: str) -> str:
    """Output of the installed command; a non-zero exit code is a fault."""
    command = Path(sys.executable).with_name("headstart")
    print("$ headstart", *arguments, flush=True)
    done = subprocess.run(
        [command, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    print(done.stdout, flush=True)
    if done.returncode:
        faults.append(f"headstart {' '.join(arguments)}: exit code {done.returncode}")
    return done.stdout


def heavy_imports(faults: list[str], libraries: set[str], argument: str) -> None:
    """torch and domain libraries that a light command imports are faults."""
    done = subprocess.run(
        [sys.executable, TOOLS / "imported_by.py", argument],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        faults.append(f"what headstart {argument} imports is unknown, it failed")
        return
    modules = set(json.loads(done.stdout.splitlines()[-1])["modules"])
    faults += [
        f"headstart {argument} imports {name}"
        for name in sorted(modules & ({"torch"} | libraries))
    ]


def main() -> None:
    expected = json.loads(sys.argv[1])
    name, recipes = expected["name"], expected["recipes"]
    faults: list[str] = []

    here = installed()
    unwanted = sorted(here & set(expected["forbidden"]))
    faults += [f"another domain's library is installed: {each}" for each in unwanted]
    others = {each for each in here if each.startswith("headstart-")}
    if name != "core":
        others.discard(f"headstart-{name}")
    faults += [f"another plugin is installed: {each}" for each in sorted(others)]

    headstart(faults, "--help")
    headstart(faults, "list")
    plugins = headstart(faults, "plugins")
    headstart(faults, "doctor")
    if name != "core" and not re.search(rf"\b{name}\b.*\bloaded\b", plugins):
        faults.append(f"`headstart plugins` does not show {name!r} as loaded")

    for argument in ("--help", "list"):
        heavy_imports(faults, set(expected["libraries"]), argument)

    listed = headstart(faults, "list", "recipes")
    if name != "core" and not recipes:
        faults.append(f"{name} packages no recipe")
    for recipe in recipes:
        if recipe not in listed:
            faults.append(f"`headstart list recipes` does not show {recipe}")
        headstart(faults, "check", recipe, "--no-data")

    if faults:
        sys.exit("\n".join(f"FAULT {fault}" for fault in faults))
    print(
        f"{name} works alone: {len(here)} distributions, recipes: {recipes or 'none'}"
    )


if __name__ == "__main__":
    main()
