"""Bad input: each fault is named with its file, its row and a way out, all together."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import pytest

from headstart.errors import DataError
from headstart_nlp.data import TextTable
from headstart_nlp.settings import TableSettings
from headstart_nlp.tiny import tiny_table

GOOD = "".join(f"film {i},{'yes' if i % 2 else 'no'}\n" for i in range(12))
HEADER = "text,label\n"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return tiny_table(tmp_path_factory.mktemp("tiny"))["tokenizer"]


@pytest.fixture
def opened(tokenizer, tmp_path, monkeypatch):
    """Open a file of some content by its bare name, as a user in its folder does."""
    monkeypatch.chdir(tmp_path)

    def open_(content=None, name="rows.csv", preprocessing=None, **settings):
        if content is not None:
            raw = content if isinstance(content, bytes) else content.encode()
            Path(name).write_bytes(raw)
        given = {"name": "nlp/table", "path": name, "tokenizer": tokenizer, **settings}
        table = TextTable(TableSettings(**given), 0)
        table.load()
        table.prepare(preprocessing or {})
        return table

    return open_


def faults(opened, *args, **settings):
    """The faults as one line each."""
    with pytest.raises(DataError) as caught:
        opened(*args, **settings)
    assert caught.value.exit_code == 3
    return [" | ".join(str(fault).splitlines()) for fault in caught.value.faults]


# name of the case: content, settings, what the message must have.
CASES = {
    "empty": (b"", {}, ["rows.csv: no samples", "the file is empty"]),
    "blank": ("\n \n", {}, ["rows.csv: no samples", "the file is empty"]),
    "only a header": (HEADER, {}, ["rows.csv: no samples", "no row below"]),
    "wrong delimiter": (
        (HEADER + GOOD).replace(",", ";"),
        {},
        ["rows.csv, header: ',' does not separate the fields",
         "it gives the columns 'text;label'", 'data.delimiter=";"'],
    ),
    "wrong delimiter given": (
        HEADER + GOOD,
        {"delimiter": "\t"},
        ["it gives the columns 'text,label'", 'data.delimiter=","'],
    ),
    "wrong delimiter without header": (
        GOOD,
        {"columns": ("text", "label"), "delimiter": "|"},
        ["rows.csv, line 1: no row has as many fields as data.columns: 2",
         'data.delimiter=","'],
    ),
    "delimiter of two characters": (
        HEADER + GOOD,
        {"delimiter": "||"},
        ["data.delimiter: '||' cannot separate fields"],
    ),
    "column by case": (
        "Text,label\n" + GOOD,
        {},
        ["there is no column 'text' (data.text)", "its columns are 'Text', 'label'",
         'data.text="Text"', "differ by case or space"],
    ),
    "column by space": (
        "text, label\n" + GOOD,
        {},
        ["there is no column 'label' (data.label)", 'data.label=" label"'],
    ),
    "column misspelt": (
        "text,lable\n" + GOOD,
        {},
        ["there is no column 'label'", "did you mean 'lable'?", "data.label"],
    ),
    "column twice": (
        "text,label,text\n" + GOOD.replace("\n", ",x\n"),
        {},
        ["rows.csv, header: column 'text' is there 2 times"],
    ),
    "no header": (GOOD, {}, ["its columns are 'film 0', 'no'", "data.columns="]),
    "too few fields": (
        HEADER + GOOD + "film\n",
        {},
        ["rows.csv, line 14: too few fields: 1 of 2", "complete or remove"],
    ),
    "too many fields": (
        HEADER + "warm, funny,yes\n" + GOOD,
        {},
        ["rows.csv, line 2: too many fields: 3 of 2", "double quotes"],
    ),
    "header longer than every row": (
        "id,text,label\n" + GOOD,
        {},
        ["line 2: no row has as many fields as rows.csv, header: 3",
         "2 found: 'film 0', 'no'"],
    ),
    "lines of quoted fields count": (
        HEADER + '"two\nlines",yes\n' + GOOD + ",no\n",
        {},
        ["rows.csv, line 16: empty text"],
    ),
    "open quote": (
        HEADER + GOOD + '"film,yes\nfilm 98,no\n',
        {},
        ["rows.csv, line 14: a quote is opened and never closed", "data.quoting=false"],
    ),
    "quote inside": (
        HEADER + GOOD + '"a "film",yes\n',
        {},
        ["rows.csv, line 14: quotes that do not pair", "twice"],
    ),
    "bad utf-8": (
        (HEADER + GOOD).encode() + "un café chaud,yes\n".encode("latin-1"),
        {},
        ["rows.csv, line 14: bad utf-8: byte 0xe9 at byte 7, after 'un caf'",
         'data.encoding="latin-1" if it should read \'un café chaud\''],
    ),
    "bad utf-8 of Windows": (
        (HEADER + GOOD).encode() + "so – so,yes\n".encode("cp1252"),
        {},
        ["line 14: bad utf-8: byte 0x96", 'data.encoding="cp1252"', "'so – so'"],
    ),
    "bad utf-8 in a label": (
        (HEADER + GOOD).encode() + b"film,caf\xe9\n",
        {},
        ["line 14: bad utf-8: byte 0xe9", "(in the label)"],
    ),
    "utf-16": (
        (HEADER + GOOD).encode("utf-16"),
        {},
        ["rows.csv: this is not UTF-8 text", 'data.encoding="utf-16"'],
    ),
    "unknown encoding": (
        HEADER + GOOD,
        {"encoding": "latine-1"},
        ["data.encoding: there is no encoding 'latine-1'", "did you mean 'latin-1'?"],
    ),
    "NUL": (
        HEADER + GOOD + "a\0b,yes\n",
        {},
        ["rows.csv, line 14: NUL byte in the text: after 'a'"],
    ),
    "empty text": (HEADER + GOOD + " ,yes\n", {}, ["rows.csv, line 14: empty text"]),
    "label missing": (
        HEADER + GOOD + "film, \n",
        {},
        ["rows.csv, line 14: label missing", "fill it in"],
    ),
    "one class": (
        HEADER + GOOD.replace("no", "yes"),
        {},
        ["rows.csv: one class only: every row has the label 'yes'"],
    ),
    "rare class": (
        HEADER + GOOD + "film,maybe\n",
        {},
        ["rows.csv, line 14: a class with fewer than 2 rows: 'maybe'"],
    ),
    "label not among the given": (
        HEADER + GOOD + "film,Yes\n",
        {"labels": ("no", "yes")},
        ["rows.csv, line 14: unknown label: 'Yes'", "did you mean 'yes'?"],
    ),
    "not a number": (
        HEADER + "film,2\nplot,1.5\ncast,1;5\n",
        {"kind": "regression"},
        ["rows.csv, line 4: the label is not a number: '1;5'", "decimal point"],
    ),
    "NaN": (
        HEADER + "film,2\nplot,nan\ncast,1\n",
        {"kind": "regression"},
        ["rows.csv, line 3: the label is not a finite number: 'nan'"],
    ),
    "infinite": (
        HEADER + "film,2\nplot,-inf\ncast,1\n",
        {"kind": "regression"},
        ["rows.csv, line 3: the label is not a finite number: '-inf'"],
    ),
    "one number only": (
        HEADER + "film,2\nplot,2\ncast,2.0\n",
        {"kind": "regression"},
        ["rows.csv: every row has the label 2.0"],
    ),
    "numbers taken for classes": (
        HEADER + "".join(f"film {i},{i}.5\n" for i in range(30)),
        {},
        ["30 different labels in 30 rows, all numbers", 'data.kind="regression"'],
    ),
    "duplicate id": (
        "id,text,label\n"
        + "".join(f"{i % 11},{row}\n" for i, row in enumerate(GOOD.splitlines())),
        {"id": "id"},
        ["rows.csv, line 13: duplicate id: '0'", "line 2 has it already"],
    ),
    "bins that touch": (
        HEADER + "film,2\nplot,-1\n",
        {"bins": {"low": (-2, 0), "high": (0, 2)}},
        ["data.bins: 'low' and 'high' both hold 0.0"],
    ),
    "bins upside down": (
        HEADER + "film,2\nplot,-1\n",
        {"bins": {"low": (0, -2), "high": (1, 2)}},
        ["data.bins: the range of 'low' is upside down"],
    ),
    "bins for several labels": (
        HEADER + GOOD,
        {"bins": {"low": (0, 1)}, "kind": "multi-label"},
        ["data.bins: bins make classes", "multi-label"],
    ),
    "nothing in any bin": (
        HEADER + "film,2\nplot,-1\n",
        {"bins": {"low": (-9, -8), "high": (8, 9)}},
        ["no sample is left for train", "2 rows have a score in none of data.bins"],
    ),
    "test as large as all": (
        HEADER + GOOD,
        {"test_size": 12},
        ["data.test_size: 12 of 12 rows leaves nothing to train on"],
    ),
    "no validation": (
        HEADER + GOOD,
        {"validation_size": 0},
        ["data.validation_size: 0 of 10 rows leaves the validation split empty"],
    ),
    "half a row": (
        HEADER + GOOD,
        {"test_size": 2.5},
        ["data.test_size: 2.5 is neither a share below 1 nor a whole number"],
    ),
    "too little": (
        HEADER + "film,yes\nplot,no\ncast,yes\nend,no\n",
        {},
        ["rows.csv: no row can be taken for test from 4", "each class keeps 2"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_bad_table(opened, case):
    content, settings, parts = CASES[case]
    found = faults(opened, content, **settings)
    assert any(all(part in fault for part in parts) for fault in found), found
    # One mistake is one fault; a file without a header misses each of its columns.
    assert len(found) == (2 if case == "no header" else 1)


JSON_GOOD = "".join(
    json.dumps({"text": f"a {i}", "label": "yn"[i % 2]}) + "\n" for i in range(12)
)


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (JSON_GOOD + "{'text': 1}\n", ["line 13: not a JSON object", "double quotes"]),
        (JSON_GOOD + "[1, 2]\n", ["line 13: not a JSON object: '[1, 2]'"]),
        (JSON_GOOD + '{"text": "film"}\n', ["line 13: label missing"]),
        (JSON_GOOD + '{"text": 5, "label": "y"}\n', ["13: the text is not a string"]),
        (JSON_GOOD + '{"text": "a", "label": ["y"]}\n', ["line 13", "multi-label"]),
        (JSON_GOOD + '{"text": "\\ud83d", "label": "y"}\n', ["13: half a character"]),
        (JSON_GOOD.replace('"text"', '"txt"'), ["no column 'text'", "'txt'"]),
        (f"[{JSON_GOOD}]", ["rows.jsonl: this is one JSON list"]),
    ],
)  # fmt: skip
def test_bad_json_lines(opened, content, parts):
    found = faults(opened, content, name="rows.jsonl")
    assert any(all(part in fault for part in parts) for fault in found), found


def test_all_faults_of_all_files_in_one_error(opened, tmp_path):
    (tmp_path / "test.csv").write_text(HEADER + "film,perhaps\n,yes\n")
    found = faults(
        opened,
        HEADER + GOOD + "film\n,yes\nplot,\n",
        test_path="test.csv",
        validation_path="validation.csv",
    )
    for part in (
        "rows.csv, line 14: too few fields",
        "rows.csv, line 15: empty text",
        "rows.csv, line 16: label missing",
        "test.csv, line 2: label not seen in train: 'perhaps' (test)",
        "test.csv, line 3: empty text",
        "validation.csv: there is no such file",
    ):
        assert any(fault.startswith(part) for fault in found), (part, found)
    assert len(found) == 6


def test_all_faults_of_the_tokenizer_in_one_error(opened):
    found = faults(
        opened,
        HEADER + GOOD,
        tokenizer="nowhere",
        max_length=600,
        preprocessing={"max_positions": 512},
    )
    for part in (
        "nowhere: the tokenizer's folder does not exist",
        "data.max_length: 600 tokens are more than the backbone has positions",
    ):
        assert any(fault.startswith(part) for fault in found), (part, found)
    assert len(found) == 2


def test_both_missing_columns_at_once(opened):
    assert len(faults(opened, "body,class\n" + GOOD)) == 2


def test_a_missing_file_names_the_nearest(opened, tmp_path):
    (tmp_path / "reviews.csv").write_text(HEADER + GOOD)
    (fault,) = faults(opened, name="review.csv")
    assert fault.startswith("review.csv: there is no such file")
    assert "did you mean 'reviews.csv'?" in fault
    (fault,) = faults(opened, name="nowhere/review.csv")
    assert "no folder nowhere" in fault


def test_no_path_at_all(opened):
    (fault,) = faults(opened, name="rows.csv", path="")
    assert "data.path is empty" in fault
    assert "data.path=reviews.csv" in fault


def test_a_folder_and_an_unknown_ending(opened, tmp_path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.csv").write_text(HEADER + GOOD)
    (fault,) = faults(opened, name="texts")
    assert "not written by `datasets`" in fault
    assert "a.csv" in fault
    (fault,) = faults(opened, GOOD, name="rows.xlsx")
    assert "'rows.xlsx' is not known" in fault
    assert "data.delimiter" in fault


def test_broken_binaries(opened):
    (fault,) = faults(opened, b"PAR1 and no more", name="rows.parquet")
    assert "not a whole Parquet file" in fault
    cut = gzip.compress((HEADER + GOOD).encode())[:-20]
    (fault,) = faults(opened, cut, name="rows.csv.gz")
    assert "rows.csv.gz: cannot be read" in fault


def test_parquet_faults_count_rows(opened):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    rows = {"text": [f"film {i}" for i in range(9)] + [None], "label": ["a", "b"] * 5}
    pq.write_table(pa.table(rows), "rows.parquet")
    (fault,) = faults(opened, name="rows.parquet")
    assert fault.startswith("rows.parquet, row 10: empty text")


def test_tokenizers_that_cannot_be_used(opened, tmp_path, tokenizer):
    content = HEADER + GOOD
    (fault,) = faults(opened, content, tokenizer="")
    assert "there is no tokenizer" in fault
    (tmp_path / "hollow").mkdir()
    (fault,) = faults(opened, content, tokenizer="hollow")
    assert fault.startswith("hollow: the tokenizer cannot be loaded")
    (fault,) = faults(opened, content, preprocessing={"vocab_size": 10})
    assert "64 tokens, the backbone 10" in fault
    shutil.copytree(tokenizer, "maskless")
    config = Path("maskless/tokenizer_config.json")
    entries = json.loads(config.read_text())
    del entries["mask_token"]
    config.write_text(json.dumps(entries))
    (fault,) = faults(opened, content, tokenizer="maskless", token_dropout=0.1)
    assert "no mask token" in fault
    opened(content, tokenizer="maskless")


def test_skip_leaves_bad_rows_out_and_lists_them(opened):
    good = GOOD + "".join(f"plot {i},{'yn'[i % 2]}\n" for i in range(100))
    content = HEADER + good.replace(",y\n", ",yes\n").replace(",n\n", ",no\n")
    bad = ",yes\nfilm\nonce,never\n"
    table = opened(content + bad, bad="skip")
    left_out = [f.what.split(":")[0] for f in table.findings.left_out]
    assert sorted(left_out) == [
        "a class with fewer than 2 rows",
        "empty text",
        "too few fields",
    ]
    assert table.task["labels"] == ["no", "yes"]
    splits = ("train", "validation", "test")
    assert sum(len(table.samples(split)) for split in splits) == 112
    found = faults(opened, content + bad * 3, bad="skip", bad_cap=0.02)
    assert "6 of 121 samples are bad" in found[0]


def test_hundreds_of_bad_rows_beside_a_fatal_fault_stay_readable(opened):
    found = faults(opened, HEADER + GOOD + ",yes\n" * 300, tokenizer="nowhere")
    assert len(found) < 60
    assert "250 more: 250 x empty text" in found[-1]


def warnings(table):
    return [" | ".join(str(w).splitlines()) for w in table.findings.warnings]


def test_labels_that_differ_by_case_or_space(opened):
    table = opened(
        HEADER + GOOD + "a,Yes\nb,Yes\nc, yes\nd, yes\ne, yes\n", test_size=2
    )
    (warning,) = warnings(table)
    assert "' yes' (3 rows), 'Yes' (2 rows), 'yes' (6 rows)" in warning


def test_the_same_text_in_train_and_test(opened, tmp_path):
    (tmp_path / "test.csv").write_text(HEADER + "FILM  3,yes\nnew,no\nfilm 4,no\n")
    (warning,) = warnings(opened(HEADER + GOOD, test_path="test.csv"))
    assert warning.startswith("test.csv, line 2: 2 texts of test are also in train")


def test_the_same_text_with_different_labels(opened):
    (warning,) = warnings(opened(HEADER + GOOD + "film 3,no\n"))
    assert "the same text with different labels: 1 times" in warning
    assert "'film 3'" in warning


def test_a_class_that_is_named_and_never_there(opened):
    (warning,) = warnings(opened(HEADER + GOOD, labels=("no", "yes", "maybe")))
    assert "no row of class 'maybe' in train" in warning


def test_nothing_is_written(opened, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    faults(opened, name="gone.csv")
    faults(opened, HEADER, name="rows.csv")
    assert sorted(tmp_path.rglob("*")) == sorted([*before, tmp_path / "rows.csv"])
