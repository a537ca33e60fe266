"""Bad input: each fault is named with its file, its row and a way out, all together."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headstart.data import Findings
from headstart.errors import DataError
from headstart_recsys.catalogue import read_catalogue
from headstart_recsys.formats import completed
from headstart_recsys.reading import read_interactions
from headstart_recsys.settings import InteractionSettings


@pytest.fixture(autouse=True)
def inside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def opened(content, name="e.csv", items=None, **given):
    if content is not None:
        raw = content if isinstance(content, bytes) else content.encode()
        Path(name).write_bytes(raw)
    if items is not None:
        Path("items.csv").write_text(items)
        given["items_path"] = "items.csv"
    given = {"name": "recsys/interactions", "path": name, **given}
    if not given.get("time"):
        given.setdefault("split", "leave-last-one")
    settings = completed(InteractionSettings(**given))
    findings = Findings()
    log = read_interactions(settings, findings)
    read_catalogue(settings, log.item_ids, findings)
    findings.settle(settings, log.total)
    return log, findings


def faults(*args, **given):
    """The faults as one line each."""
    with pytest.raises(DataError) as caught:
        opened(*args, **given)
    return [" | ".join(str(fault).splitlines()) for fault in caught.value.faults]


HEAD = "user,item\n"
PAIRS = "u1,a\nu1,b\nu2,a\nu2,b\n"
RATED = "user,item,rating,t\n"
GOOD = "u1,a,4,1000000000\nu2,b,5,1000000001\n"
BOTH = {"value": "rating", "time": "t"}

# name of the case: content, settings, what each message must have.
CASES = {
    "no file": (None, {}, ["e.csv: there is no such file"]),
    "no path": ("", {"path": ""}, ["data.path is empty"]),
    "empty": (b"", {}, ["e.csv: no rows"]),
    "only a header": (HEAD, {}, ["e.csv: no interactions"]),
    "not text": ("user,item\nu,a\n".encode("utf-16"), {}, ["this is not UTF-8 text"]),
    "wrong column": (
        "usr,item\nu,a\n",
        {},
        ["e.csv, header: there is no column 'user' (data.user)", "did you mean 'usr'?"],
    ),
    "column twice": ("user,item,item\nu,a,b\n", {}, ["'item' is there 2 times"]),
    "every row too wide": (
        HEAD + "u,a,1\nv,b,2\n",
        {},
        [
            "no row has as many fields as the header: 2",
            "line 2: too many fields, 3 of 2",
        ],
    ),
    "a row too short": (
        HEAD + "u1\n" + PAIRS,
        {},
        ["e.csv, line 2: too few fields, 1 of 2: 'u1'"],
    ),
    "missing ids": (
        HEAD + "u1,a\n,b\nu2,nan\nu2,b\n",
        {},
        ["e.csv, line 3: no user id", "e.csv, line 4: no item id"],
    ),
    "ids of two kinds": (
        HEAD + "1,10\n2,11\n2.0,10\n3,11\n",
        {},
        ["e.csv, line 4: user ids of two kinds: '2.0'", "42 and 42.0 are two names"],
    ),
    "the integers are the rarer kind": (
        HEAD + "1.0,10\n2.0,11\n2,10\n3.0,11\n",
        {},
        ["e.csv, line 4: user ids of two kinds: '2'"],
    ),
    "the same id with a decimal point among names": (
        HEAD + "x,10\n42,11\n42.0,10\nx,11\n",
        {},
        ["e.csv, line 4: user ids of two kinds: '42.0'"],
    ),
    "ids are fractions": (
        HEAD + "1,1.5\n2,2\n1,2\n2,2\n",
        {},
        ["e.csv, line 2: item id is a fraction: '1.5'", "the right column?"],
    ),
    "ids that lost digits": (
        HEAD + "1,10\n2,11\n1e+18,11\n",
        {},
        ["e.csv, line 4: user id is a fraction: '1e+18'"],
    ),
    "ids in another encoding": (
        HEAD.encode() + b"caf\xe9,a\nu2,b\nu2,a\n",
        {},
        ["e.csv, line 2: user id is not UTF-8: 'caf\ufffd'"],
    ),
    "an open quote": (
        HEAD + 'u1,a\n"u2,b\nu1,b\n',
        {},
        ["e.csv, line 3: a quote is opened and not closed in its line"],
    ),
    "no rating": (
        RATED + GOOD + "u1,b,,1000000002\nu2,a,nan,1000000003\n",
        BOTH,
        ["e.csv, line 4: no rating", "e.csv, line 5: no rating"],
    ),
    "not a rating": (
        RATED + GOOD + "u1,b,good,1000000002\nu2,a,inf,1000000003\n",
        BOTH,
        ["line 4: not a rating: 'good'", "line 5: not a rating: 'inf'"],
    ),
    "ratings out of range": (
        RATED + GOOD + "u1,b,0,1000000002\nu2,a,5.5,1000000003\n",
        {**BOTH, "rating_range": (1, 5)},
        [
            "line 4: a rating outside of 1 to 5: 0",
            "line 5: a rating outside of 1 to 5: 5.5",
        ],
    ),
    "negative weight": (
        RATED + GOOD + "u1,b,-1,1000000002\n",
        {**BOTH, "values": "weights"},
        ["line 4: a negative weight: -1"],
    ),
    "no time": (
        RATED + GOOD + "u1,b,4,\nu2,a,4,soon\nu2,a,4,2001-02-30\nu2,a,4,01/02/2001\n",
        BOTH,
        [
            "e.csv, line 4: no time",
            "line 5: not a time: 'soon'",
            "line 6: not a time: '2001-02-30'",
            "line 7: not a time: '01/02/2001'",
        ],
    ),
    "times of several units": (
        RATED + GOOD + "u1,b,4,1000000002000\nu2,a,4,2001-09-09\nu2,b,5,0\n",
        BOTH,
        [
            "line 4: a time that is not in seconds as most are: "
            "1000000002000 (milliseconds)",
            "line 5: a time that is not in seconds as most are: 999993600 (text)",
            "line 6: a time that is not in seconds as most are: 0 (steps)",
        ],
    ),
    "in the future": (
        RATED + GOOD + "u1,b,4,9999999999\n",
        BOTH,
        ["line 4: an event in the future: 2286-11-20T17:46:39"],
    ),
    "one user": (HEAD + "u,a\nu,b\n", {}, ["1 user and 2 items"]),
    "no positive rating": (
        RATED + GOOD,
        {**BOTH, "positive_from": 6},
        ["data.positive_from: no rating is 6 or more", "go from 4 to 5"],
    ),
    "an unknown asset": (None, {"path": "asset:ml-100"}, ["ml-100k"]),
    "settings": (
        HEAD + PAIRS,
        {
            "split": "temporal",
            "test_from": "yesterday",
            "positive_from": 4,
            "rating_range": (5, 1),
            "category": "genre",
        },
        [
            "data.rating_range: rating_range needs ratings",
            "data.positive_from: positive_from needs ratings",
            "the range ends before it begins",
            "data.test_from: 'yesterday' is no date",
            'data.split = "temporal" needs times',
            "data.category needs data.items_path",
        ],
    ),
    "cut-offs in the wrong order": (
        RATED + GOOD,
        {**BOTH, "test_from": "2001-01-01", "validation_from": "2002-01-01"},
        ["data.validation_from: validation begins when the test has begun"],
    ),
    "ratings summed": (RATED + GOOD, {**BOTH, "repeats": "sum"}, ["cannot be summed"]),
    "a duplicated item": (
        HEAD + PAIRS,
        {"items": "item,title\na,A\nb,B\na,C\n"},
        ["items.csv, line 4: an item that was there before: 'a', as in 2"],
    ),
    "no item id": (
        HEAD + PAIRS,
        {"items": "item,title\na,A\nb,B\n,C\n"},
        ["items.csv, line 4: no item id"],
    ),
    "an id map that does not match": (
        HEAD + PAIRS,
        {"items": "item,title\n1,A\n2,B\n"},
        ["items.csv: no item with events is there", "'1', '2'", "'a', 'b'"],
    ),
    "missing titles for text vectors": (
        HEAD + PAIRS,
        {"items": "item,title\na,A\nb, \n", "text": "asset:item-text-minilm"},
        ["items.csv, line 3: no title: item 'b'"],
    ),
    "no column of titles for text vectors": (
        HEAD + PAIRS,
        {"items": "item,name\na,A\nb,B\n", "text": "asset:item-text-minilm"},
        ["items.csv, header: there is no column 'title' (data.title)"],
    ),
    "a broken line of items": (
        HEAD + PAIRS,
        {"items": "item,title\na,A\nb,B\nc,C,D\n"},
        ["items.csv, line 4: too many fields, 3 of 2"],
    ),
    "no file of items": (
        HEAD + PAIRS,
        {"items_path": "none.csv"},
        ["none.csv: there is no such file", "data.items_path names it"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_each_fault_is_named(case):
    content, given, wanted = CASES[case]
    if case == "an unknown asset":
        with pytest.raises(ValueError, match=r"ml-100k"):
            opened(content, **given)
        return
    told = faults(content, **given)
    for text in wanted:
        assert any(text in line for line in told), told


def test_all_faults_come_together_and_none_is_of_a_good_row():
    text = RATED + GOOD + ",b,x,\nu1,,9,5\n" + GOOD.replace("a", "c")
    told = faults(text, **BOTH, rating_range=(1, 5), items="item,title\na,A\na,B\n")
    where = sorted(line.split(": ")[0] for line in told)
    assert where == ["e.csv, line 4"] * 3 + ["e.csv, line 5"] * 3 + [
        "items.csv, line 3"
    ]


def test_bad_rows_are_left_out_when_asked_for_and_the_cap_holds():
    rows = "".join(f"u{i % 5},a{i % 7},{i % 5 + 1},{10**9 + i}\n" for i in range(50))
    text = RATED + rows + "u1,a1,none,1000000000\n"
    log, findings = opened(text, **BOTH, bad="skip")
    assert (len(log.interactions), log.total) == (50, 51)
    assert [fault.where for fault in findings.left_out] == ["e.csv, line 52"]
    told = faults(text + "u1,a1,none,1000000000\n" * 3, **BOTH, bad="skip")
    assert "4 of 54 samples are bad" in told[0]


def test_a_capped_list_keeps_the_cap_for_all(monkeypatch):
    monkeypatch.setattr("headstart_recsys.checks.LISTED", 2)
    rows = "".join(f"u{i % 5},a{i % 7},{i % 5 + 1},{10**9 + i}\n" for i in range(50))
    text = RATED + rows + "u1,a1,none,1000000000\n" * 10
    told = faults(text, **BOTH, bad="skip", bad_cap=0.1)
    assert "10 of 60 rows are bad (16.7%)" in told[0]
    assert any("here and in 7 more rows below" in line for line in told)


@pytest.mark.parametrize(
    ("column", "kind"),
    [([[1], [2]], "list"), ([True, False], "bool")],
)
def test_parquet_columns_of_no_use(column, kind):
    pq.write_table(pa.table({"user": column, "item": ["a", "b"]}), "e.parquet")
    (told,) = faults(None, name="e.parquet")
    assert "column 'user' is of type" in told
    assert kind in told


def test_parquet_rows_and_broken_files():
    table = {"user": [1.0, None, 2.5, 3.0], "item": ["a", "b", "a", None]}
    pq.write_table(pa.table(table), "e.parquet")
    told = faults(None, name="e.parquet")
    starts = [line.split(" | ")[0] for line in told]
    assert starts == [
        "e.parquet, row 2: no user id",
        "e.parquet, row 3: user id is a fraction: '2.5'",
        "e.parquet, row 4: no item id",
    ]
    (told,) = faults(b"PAR1 and nothing more", name="f.parquet")
    assert told.startswith("f.parquet: cannot be read")


def test_what_is_only_odd_is_a_warning():
    text = HEAD + "007,a\n7,b\n8,a\n9,a\n10,c\n"
    _, findings = opened(text, items="item,title\na,A\nb,\n")
    told = [str(fault) for fault in findings.warnings]
    assert "user ids that differ in leading zeros only: 1" in told[0]
    assert "5 of 5 users (100%) have one event" in told[1]
    assert "1 of 3 items with events are not there" in told[2]
    assert "items without a title: 1" in told[3]
    rows = RATED + GOOD + "u1,b,-1,1000000005\n"
    _, findings = opened(rows, **BOTH)
    assert "1 of 3 ratings are negative" in findings.warnings[0].what


def test_a_quote_that_swallows_lines_is_named():
    told = faults(HEAD + 'u1,a\nu2,"b\nu1,b"\nu2,a\n')
    assert "e.csv, line 3: a quote is opened and not closed in its line" in told[0]


def test_a_folder_without_events():
    Path("folder").mkdir()
    Path("folder/notes.txt").write_text("x")
    (told,) = faults(None, name="folder")
    assert "no MovieLens folder" in told
    assert "notes.txt" in told
