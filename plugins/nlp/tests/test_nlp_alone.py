"""A test split that is read alone, and inputs that are left out."""

from __future__ import annotations

import json

import numpy as np
import pytest

from headstart.errors import DataError
from headstart_nlp.conversations import Conversations
from headstart_nlp.corpus import Corpus
from headstart_nlp.data import TextTable
from headstart_nlp.settings import (
    ConversationSettings,
    CorpusSettings,
    TableSettings,
)
from headstart_nlp.tiny import tiny_conversations, tiny_corpus, tiny_table

ROWS = "".join(
    f"the film is good {'a ' * i},yes\nthe plot was dull {'the ' * i},no\n"
    for i in range(10)
)
NEW = "text,label\na good film,yes\na good film,yes\n"


@pytest.fixture
def table(tmp_path):
    """The settings of a run, its task, and a file of new data without the class no."""
    train, test = tmp_path / "train.csv", tmp_path / "new.csv"
    train.write_text("text,label\n" + ROWS)
    test.write_text(NEW)
    tiny = {**tiny_table(tmp_path), "path": str(train), "test_path": str(test)}
    whole = TextTable(TableSettings(**tiny), 0)
    whole.load()
    whole.prepare({})
    train.unlink()
    return whole, tiny, test


def alone(kind, settings, tiny, task, split="test"):
    data = kind(settings(**tiny), 0)
    data.task = json.loads(json.dumps(task))
    assert data.load_split(split)
    data.prepare({})
    return data


def test_a_table_without_its_training_data(table):
    whole, tiny, _ = table
    data = alone(TextTable, TableSettings, tiny, whole.task)
    assert data.task == whole.task
    assert data.task["labels"] == ["no", "yes"]
    ours, theirs = data.samples("test"), whole.samples("test")
    assert [s["id"] for s in ours] == ["new.csv:2", "new.csv:3"]
    for name, value in whole.collate(theirs).items():
        assert data.collate(ours)[name].equal(value)
    # In the run's order: alone, the only class of the file would be 0.
    assert data.collate(ours)["labels"].tolist() == [1, 1]
    assert np.array_equal(data.sizes("test"), whole.sizes("test"))


def test_a_class_that_was_not_trained_is_a_fault(table):
    whole, tiny, test = table
    test.write_text(NEW + "what,maybe\n")
    with pytest.raises(DataError) as caught:
        alone(TextTable, TableSettings, tiny, whole.task)
    (fault,) = caught.value.faults
    assert fault.what == "unknown label: 'maybe'"
    assert fault.why == "the run was trained without it"
    assert fault.where.endswith("new.csv, line 4")


def test_a_split_without_a_file_needs_all(table):
    whole, tiny, _ = table
    for split in ("train", "validation"):
        data = TextTable(TableSettings(**tiny), 0)
        data.task = whole.task
        assert not data.load_split(split)


def test_numbers_alone(tmp_path):
    test = tmp_path / "new.csv"
    test.write_text("text,label\na good film,2.5\na plot,2.5\n")
    tiny = {**tiny_table(tmp_path), "path": "gone.csv", "kind": "regression"}
    tiny["test_path"] = str(test)
    task = {"kind": "regression", "mean": 1.0, "std": 2.0}
    data = alone(TextTable, TableSettings, tiny, task)
    labels = data.collate(data.samples("test"))["labels"]
    assert labels.tolist() == [2.5, 2.5]


@pytest.mark.parametrize(
    ("kind", "settings", "make"),
    [
        (Corpus, CorpusSettings, tiny_corpus),
        (Conversations, ConversationSettings, tiny_conversations),
    ],
)
def test_language_without_its_training_data(tmp_path, kind, settings, make):
    tiny = make(tmp_path)
    task = {"kind": "text", "probe": {"prompts": ["kept"]}}
    data = alone(
        kind, settings, {**tiny, "path": "gone", "test_path": tiny["path"]}, task
    )
    whole = kind(settings(**tiny), 0)
    whole.load()
    whole.prepare({})
    assert data.task == task
    documents = sum(whole.counts[s].documents for s in ("train", "validation", "test"))
    assert data.counts["test"].documents == documents
    assert len(data.sizes("test")) == len(data.samples("test"))
    data.collate(data.samples("test")[:2])


@pytest.mark.parametrize(
    ("kind", "settings", "make"),
    [
        (TextTable, TableSettings, tiny_table),
        (Corpus, CorpusSettings, tiny_corpus),
        (Conversations, ConversationSettings, tiny_conversations),
    ],
)
def test_inputs_without_text_are_left_out(tmp_path, kind, settings, make):
    data = kind(settings(**make(tmp_path)), 0)
    data.prepare({"max_positions": 64})
    data.skipped = []
    samples = data.from_inputs(["the film", " ", "a plot"])
    assert [data.input_name(sample) for sample in samples] == ["the film", "a plot"]
    assert [sample["id"] for sample in samples] == ["1", "3"]
    assert [fault.where for fault in data.skipped] == ["input 2"]
    with pytest.raises(DataError):
        data.from_inputs([" ", ""])


def test_a_prompt_that_is_too_long_is_left_out(tmp_path):
    data = Corpus(CorpusSettings(**tiny_corpus(tmp_path)), 0)
    data.prepare({"max_positions": 32})
    data.skipped = []
    samples = data.from_inputs(["the film", "very " * 40])
    assert [sample["id"] for sample in samples] == ["1"]
    assert [fault.where for fault in data.skipped] == ["input 2"]
