"""What a first user of the plugin meets: the console, predictions, and their words."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from headstart.errors import DataError
from headstart.listing import format_rows, prediction_row
from headstart_recsys.data import InteractionData
from headstart_recsys.embeddings import read_embeddings
from headstart_recsys.inputs import nothing_known, user_rows
from headstart_recsys.settings import InteractionSettings
from headstart_recsys.tiny import tiny_interactions

if TYPE_CHECKING:
    from pathlib import Path

TASK = {
    "items": ["50", "181", "7"],
    "users": ["42"],
    "titles": ["Star Wars", "Return of the Jedi", ""],
}


def loaded(folder: Path, **given: Any) -> InteractionData:
    settings = InteractionSettings(**tiny_interactions(folder) | given)
    data = InteractionData(settings, 0)
    data.load()
    return data


def test_the_console_line_counts_events_by_split(tmp_path: Path) -> None:
    data = loaded(tmp_path, earlier=0.4)
    told = data.describe()
    for split in ("train", "validation", "test"):
        assert told[split] == len(data.interactions(split))
    assert told["events of the earlier period"] == len(data.interactions("earlier"))
    new = sum(sample["cold_user"] for sample in data.samples("test"))
    assert told["test users without training events"] == new > 0
    assert told["test users"] == len(data.samples("test"))


def test_the_report_shows_no_brackets(tmp_path: Path) -> None:
    told = loaded(tmp_path, cold_items=0.2, positive_from=3, min_user_events=4)
    values = told.describe()
    assert all(isinstance(value, str | int | float) for value in values.values())
    json.dumps(values)
    removed = {name: v for name, v in values.items() if name.startswith("left out: ")}
    assert "left out: ratings below 3" in removed
    assert all(" event" in str(told) for told in removed.values())
    assert values["items made new"] > 0


def test_a_title_in_place_of_an_id_gives_the_id() -> None:
    with pytest.raises(DataError) as error:
        user_rows([{"like": ["star wars", "18"]}], TASK, nothing_known, "user", 0)
    first, second = (fault.fix for fault in error.value.faults)
    assert first == "give an id: 'Star Wars' is item '50'"
    assert "did you mean '181'" in second


def test_nobody_is_told_what_to_type() -> None:
    with pytest.raises(DataError, match=r"--user 42.*--all \("):
        user_rows([], TASK, nothing_known, "user", 0)


def test_known_and_unknown_users_stand_in_one_table() -> None:
    items = [{"id": "50", "title": "Star Wars", "score": 2.5}]
    found = [
        {"input": "7", "user": None, "items": items, "reason": "not a user"},
        {"input": "42", "user": "42", "items": items},
    ]
    for results in (found, found[::-1]):
        lines = format_rows([prediction_row(one) for one in results], 100)
        assert len(lines) == 3 and "None" not in "".join(lines)
        assert sum("not a user" in line for line in lines) == 1
        assert sum(" – " in f" {line} " for line in lines) == 2


def test_a_missing_file_of_vectors_names_files_of_vectors_alone(tmp_path: Path) -> None:
    np.save(tmp_path / "found.npy", np.zeros((2, 2)))
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(DataError) as error:
        from headstart.data import Findings

        settings = InteractionSettings(name="recsys/interactions")
        read_embeddings(tmp_path / "zzz.npz", settings, Findings())
    assert "found.npy" in str(error.value) and "notes.txt" not in str(error.value)
