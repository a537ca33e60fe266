"""Interactions and catalogues from the formats that people have."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headstart.assets import find_asset, is_present, load_manifest
from headstart.data import Findings
from headstart_recsys import blocks, checks
from headstart_recsys.catalogue import read_catalogue
from headstart_recsys.formats import completed
from headstart_recsys.reading import read_interactions
from headstart_recsys.settings import InteractionSettings

CSV = "user,item,rating,when\nu1,a,5,100000000\nu2,b,3,100000060\nu1,b,4,100000120\n"
COLUMNS = {"value": "rating", "time": "when"}


@pytest.fixture(autouse=True)
def inside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def settings_of(path, **given):
    if not given.get("time") and "split" not in given and Path(path).suffix == ".csv":
        given["split"] = "leave-last-one"
    given = {"name": "recsys/interactions", "path": str(path), **given}
    return completed(InteractionSettings(**given))


def read(path, content=None, **given):
    if content is not None:
        raw = content if isinstance(content, bytes) else content.encode()
        Path(path).write_bytes(raw)
    findings = Findings()
    settings = settings_of(path, **given)
    log = read_interactions(settings, findings)
    findings.settle(settings, log.total)
    return log, findings


def events(log):
    """Events as (user id, item id, value, time)."""
    columns = log.interactions.columns()
    none = [None] * len(log.interactions)
    return list(
        zip(
            [log.user_ids[i] for i in columns["users"]],
            [log.item_ids[i] for i in columns["items"]],
            columns["values"].tolist() if "values" in columns else none,
            columns["times"].tolist() if "times" in columns else none,
            strict=True,
        )
    )


def odd(findings):
    """Warnings, but for users with one event: these files are small."""
    return [w.what for w in findings.warnings if "have one event" not in w.what]


EXPECTED = [
    ("u1", "a", 5.0, 100000000),
    ("u2", "b", 3.0, 100000060),
    ("u1", "b", 4.0, 100000120),
]


@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
def test_the_separator_is_found_by_the_header(mark):
    log, _ = read("events.csv", CSV.replace(",", mark), **COLUMNS)
    assert events(log) == EXPECTED
    assert log.rows.tolist() == [2, 3, 4]
    assert (log.total, log.unit, log.where(1)) == (3, "seconds", "events.csv, line 3")
    kinds = {name: c.dtype for name, c in log.interactions.columns().items()}
    assert kinds == {
        "users": np.int32,
        "items": np.int32,
        "values": np.float32,
        "times": np.int64,
    }


def test_compressed_quoted_and_with_a_byte_order_mark():
    text = '\ufeff"user","item","rating","when"\r\n' + "\r\n".join(
        ",".join(f'"{field}"' for field in line.split(","))
        for line in CSV.splitlines()[1:]
    )
    Path("events.csv.gz").write_bytes(gzip.compress(text.encode()))
    log, _ = read("events.csv.gz", **COLUMNS)
    assert events(log) == EXPECTED


def test_lines_are_counted_as_an_editor_does_over_many_blocks(monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 256)
    lines = ["user,item"]
    for i in range(500):
        lines.append(f"u{i % 7},i{i % 11}")
        if i % 50 == 3:
            lines.append("")
        if i % 90 == 5:
            lines.append("broken")
    findings = Findings()
    Path("events.csv").write_text("\n".join(lines) + "\n\n")
    settings = settings_of("events.csv", bad="skip")
    log = read_interactions(settings, findings)
    good = [n for n, line in enumerate(lines, 1) if line.startswith("u") and n > 1]
    broken = [n for n, line in enumerate(lines, 1) if line == "broken"]
    assert log.rows.tolist() == good
    assert sorted(number for _, number in findings.samples) == broken
    assert log.total == len(good) + len(broken)
    told = [f"{log.user_ids[u]}" for u in log.interactions.users]
    assert told == [f"u{i % 7}" for i in range(500)]


@pytest.mark.parametrize(
    ("users", "times", "unit"),
    [
        (["u1", "u2", "u1"], [100000000, 100000060, 100000120], "seconds"),
        (
            pa.array(["u1", "u2", "u1"]).dictionary_encode(),
            pa.array([100000000, 100000060, 100000120], pa.timestamp("s")),
            "text",
        ),
        (
            pa.array(["u1", "u2", "u1"], pa.large_string()),
            [100000000.9, 100000060.0, 100000120.2],
            "seconds",
        ),
    ],
)
def test_parquet(users, times, unit, monkeypatch):
    monkeypatch.setattr(blocks, "ROWS", 2)
    table = {"user": users, "item": ["a", "b", "b"], "rating": [5, 3, 4], "when": times}
    pq.write_table(pa.table(table), "events.parquet")
    log, _ = read("events.parquet", **COLUMNS)
    assert events(log) == EXPECTED
    assert (log.rows.tolist(), log.where(0)) == ([1, 2, 3], "events.parquet, row 1")
    assert log.unit == unit


@pytest.mark.parametrize(
    ("written", "unit"),
    [
        (["1000000000", "1000000060"], "seconds"),
        (["1000000000.0", "1.00000006e9"], "seconds"),
        (["1000000000000", "1000000060999"], "milliseconds"),
        (["1000000000000000", "1000000060000999"], "microseconds"),
        (["1000000000000000000", "1000000060000000999"], "nanoseconds"),
        (["2001-09-09", "2001-09-09 00:01"], "text"),
        (["2001-09-09T01:46:40Z", "2001-09-09 03:47:40.5+02:00"], "text"),
        (["2001-09-09T01:46:40.123456789", " 2001-09-09 01:47:40"], "text"),
    ],
)
def test_times_of_every_unit_become_seconds(written, unit):
    rows = "".join(f"u{i},a{i},{text}\n" for i, text in enumerate(written))
    log, findings = read("events.csv", "user,item,when\n" + rows, time="when")
    midnight = 1_000_000_000 - (1 * 3600 + 46 * 60 + 40)
    first = midnight if written[0] == "2001-09-09" else 1_000_000_000
    assert log.interactions.times.tolist() == [first, first + 60]
    assert log.unit == unit
    assert odd(findings) == []


def test_numbers_that_are_no_dates_only_tell_the_order():
    log, findings = read("e.csv", "user,item,t\nu,a,1\nv,b,2\nu,b,3\n", time="t")
    assert log.unit == "steps"
    assert log.interactions.times.tolist() == [1, 2, 3]
    assert "times from 1 to 3" in findings.warnings[0].what


def test_ids_that_are_all_floats_are_integers():
    log, findings = read("e.csv", "user,item\n1.0,10\n2.0,11\n1.0,11\n")
    assert log.user_ids == ["1", "2"]
    assert "all user ids are written as floats (1.0)" in findings.warnings[0].what
    table = pa.table({"user": [1.0, 2.0, 1.0], "item": [7, 8, 8]})
    pq.write_table(table, "e.parquet")
    log, findings = read("e.parquet", split="leave-last-one")
    assert (log.user_ids, log.item_ids) == (["1", "2"], ["7", "8"])
    assert odd(findings) == []


def test_sessions_have_codes():
    log, _ = read("e.csv", "user,item,s\nu,a,x\nu,b,y\nv,a,x\n", session="s")
    assert log.interactions.sessions.tolist() == [0, 1, 0]


INTER = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
ITEM = "item_id:token\tmovie_title:token_seq\tclass:token_seq\n"


def test_recbole_atomic_files_need_no_settings(tmp_path):
    rows = "u1\ta\t5\t100000000\nu2\tb\t3\t100000060\nu1\tb\t4\t100000120\n"
    Path("toy.inter").write_text(INTER + rows)
    Path("toy.item").write_text(ITEM + 'b\t"Blue" Film\tDrama War\na\tRed\tDrama\n')
    for path in ("toy.inter", str(tmp_path)):
        log, _ = read(path)
        assert events(log) == EXPECTED
        settings = settings_of(path)
        found = read_catalogue(settings, log.item_ids, Findings())
        assert found.titles == ["Red", '"Blue" Film']
        assert (found.categories, found.rows) == (["Drama", "War"], [[0], [0, 1]])
    assert Path(settings.path).is_absolute()
    assert settings_of("toy.inter", value="", item="x").item == "x"
    assert settings_of("toy.inter", value="").value == ""


def test_movielens_folders(tmp_path):
    old, million, latest = (tmp_path / name for name in ("100k", "1m", "latest"))
    for folder in (old, million, latest):
        folder.mkdir()
    rows = [
        ("1", "7", 5, 978300760),
        ("2", "9", 3, 978300800),
        ("1", "9", 4, 978300900),
    ]

    def lines(mark):
        return "".join(mark.join(map(str, row)) + "\n" for row in rows)

    (old / "u.data").write_text(lines("\t"))
    flags = {"7": [0] * 8 + [1] + [0] * 10, "9": [0, 1] + [0] * 17}
    films = "".join(
        f"{name}|Misérables, Les (1995)|01-Jan-1995||http://x|"
        + "|".join(map(str, marks))
        + "\n"
        for name, marks in flags.items()
    )
    (old / "u.item").write_text(films, "latin-1")
    (million / "ratings.dat").write_text(lines("::"))
    (million / "movies.dat").write_text(
        "7::Misérables: Les (1995)::Drama\n9::X::Action|Drama\n", "latin-1"
    )
    (latest / "ratings.csv").write_text(
        "userId,movieId,rating,timestamp\n" + lines(",")
    )
    (latest / "movies.csv").write_text(
        'movieId,title,genres\n7,"Misérables, Les (1995)",Drama\n'
        "9,X,(no genres listed)\n"
    )
    expected = [(u, i, float(v), t) for u, i, v, t in rows]
    seen = {}
    for folder in (old, million, latest):
        log, findings = read(str(folder))
        assert events(log) == expected
        assert odd(findings) == []
        settings = settings_of(str(folder))
        found = read_catalogue(settings, log.item_ids, findings)
        seen[folder.name] = [
            (t, [found.categories[c] for c in row])
            for t, row in zip(found.titles, found.rows, strict=True)
        ]
    film = "Misérables, Les (1995)"
    assert seen["100k"] == [(film, ["Drama"]), (film, ["Action"])]
    assert seen["1m"] == [
        ("Misérables: Les (1995)", ["Drama"]),
        ("X", ["Action", "Drama"]),
    ]
    assert seen["latest"] == [(film, ["Drama"]), ("X", [])]


def test_the_catalogue_adds_items_that_nobody_touched():
    log, _ = read("e.csv", "user,item\nu,a\nv,b\n")
    Path("items.csv").write_text(
        'item,title,kind\nz,"Zed, new",k2|k1\na,A,k1\nb,,\ny,Y,k2\n'
    )
    asked = {"items_path": "items.csv", "category": "kind"}
    findings = Findings()
    found = read_catalogue(settings_of("e.csv", **asked), log.item_ids, findings)
    assert (found.titles, found.new) == (["A", ""], [])
    assert "items without a title: 1" in findings.warnings[0].what
    asked["catalogue_items"] = True
    found = read_catalogue(settings_of("e.csv", **asked), log.item_ids, Findings())
    assert found.new == ["z", "y"]
    assert found.titles == ["A", "", "Zed, new", "Y"]
    assert found.categories == ["k1", "k2"]
    assert found.rows == [[0], [], [1, 0], [1]]
    part = found.take([2, 0])
    assert (part.titles, part.rows) == (["Zed, new", "A"], [[1, 0], [0]])


def test_a_catalogue_in_parquet_knows_integers_and_lists():
    log, _ = read("e.csv", "user,item\nu,2\nv,1\n")
    table = {"item": [1, 2], "title": ["One", None], "kind": [["x", "y"], None]}
    pq.write_table(pa.table(table), "items.parquet")
    settings = settings_of("e.csv", items_path="items.parquet", category="kind")
    found = read_catalogue(settings, log.item_ids, Findings())
    assert (found.titles, found.rows) == (["", "One"], [[], [0, 1]])


def test_many_faults_are_counted_and_the_first_are_listed(monkeypatch):
    monkeypatch.setattr(checks, "LISTED", 5)
    rows = "".join(f"u{i},a{i % 3},{'x' if i % 2 else i}\n" for i in range(40))
    findings = Findings()
    Path("e.csv").write_text("user,item,rating\n" + rows)
    log = read_interactions(settings_of("e.csv", value="rating"), findings)
    assert (len(log.interactions), log.total) == (20, 40)
    told = [str(fault) for some in findings.samples.values() for fault in some]
    assert len(told) == 6
    assert told[0].startswith("e.csv, line 3: not a rating: 'x'")
    assert told[5] == "e.csv, line 13: not a rating: here and in 14 more rows below"


def test_the_manifest_and_the_real_movielens():
    assets = load_manifest("headstart_recsys")
    assert {"ml-100k", "item-text-minilm"} <= set(assets)
    if not is_present(find_asset("ml-100k", ("headstart_recsys",))):
        pytest.skip("ml-100k is not in the cache (headstart fetch ml-100k)")
    log, findings = read("asset:ml-100k")
    # The counts that GroupLens gives in its README.
    assert (len(log.interactions), log.total) == (100_000, 100_000)
    assert (len(log.user_ids), len(log.item_ids)) == (943, 1682)
    assert np.bincount(log.interactions.users).min() == 20
    assert set(np.unique(log.interactions.values)) == {1.0, 2.0, 3.0, 4.0, 5.0}
    assert log.unit == "seconds"
    assert events(log)[0] == ("196", "242", 3.0, 881250949)
    settings = settings_of("asset:ml-100k")
    found = read_catalogue(settings, log.item_ids, findings)
    assert found.titles[log.item_ids.index("1")] == "Toy Story"
    assert len(found.categories) == 19
    assert odd(findings) == []
