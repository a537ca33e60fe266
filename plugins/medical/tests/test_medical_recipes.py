"""What the recipes and the README say to type works on a user's own data."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

import headstart_medical
from headstart.cli import commands
from headstart_medical.tiny import tiny_scans, tiny_volumes

if TYPE_CHECKING:
    from collections.abc import Iterator

RECIPES = Path(headstart_medical.__file__).parent / "recipes"
README = Path(__file__).parents[1] / "README.md"
OWN = ("my_cases", "my_heads", "my_scans", "unlabelled")


def typed(text: str) -> Iterator[list[str]]:
    """The words of each command, lines joined, comments behind it left away."""
    lines = [line.removeprefix("#").strip() for line in text.splitlines()]
    joined = "\n".join(lines).replace("\\\n", " ")
    for line in joined.splitlines():
        if line.startswith("headstart run ") and any(name in line for name in OWN):
            yield shlex.split(line.split("   ")[0])[1:]


COMMANDS = [
    pytest.param(words, id=f"{path.name}-{number}")
    for path in [*sorted(RECIPES.glob("*.toml")), README]
    for number, words in enumerate(typed(path.read_text("utf-8")))
]


@pytest.mark.parametrize("words", COMMANDS)
def test_commands_for_own_data(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    for name in OWN:
        Path(name).mkdir()
        (tiny_scans if name == "my_scans" else tiny_volumes)(Path(name))
    words = [word for word in words if "weights" not in word]
    if "--folder" in words:
        words = words[: words.index("--folder")]
    # Tiny volumes are smaller than any patch, and nothing is fetched.
    more = ["backbone.weights=none", "data.small=pad", "data.validation_path="]
    result = CliRunner().invoke(
        commands, ["check", *words[1:], *more, "data.test_path="]
    )
    assert result.exit_code == 0, result.output + str(result.exception)


def test_every_recipe_has_commands_for_own_data() -> None:
    assert len(COMMANDS) >= 6


def test_summaries_are_true_of_own_data_too() -> None:
    result = CliRunner().invoke(commands, ["list", "recipes", "--json"])
    rows = json.loads(result.output)["recipes"]
    found = {row["name"]: row["summary"] for row in rows}
    medical = {
        name: text for name, text in found.items() if name.startswith("medical/")
    }
    assert len(medical) == 4
    for name, text in medical.items():
        data = ("simulated", "Colin27", "patients")
        assert "by default" in text or not any(word in text for word in data), name
