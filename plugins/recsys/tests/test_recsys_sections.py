"""Sections of a recommender's report: what they say, by hand, and what they draw."""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ET
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from scipy.spatial import procrustes

from headstart.report import plots
from headstart.report.page import write_report
from headstart.report.parts import Evaluation, Section
from headstart_recsys.sections import maps, sections
from headstart_recsys.sections.items import Items
from headstart_recsys.sections.vectors import nearest, rotation, unit

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def drawn() -> None:
    """For tests that look at figures; the others do not wait for them."""


@pytest.fixture(autouse=True)
def quick(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr(plots, "render", lambda paint, **size: "<svg></svg>")


COUNTS = [50, 50, 40, 30, 20, 10, 5, 3, 2, 0]
ITEMS = [f"i{k}" for k in range(10)]
TITLES = ["Alpha", "Beta", "Gamma <b>", "", *(f"Film {k}" for k in range(4, 10))]
# Three users: two known, one new; the item i9 is new.
TOP = np.array([[0, 1, 9, 5], [2, 0, 3, 1], [1, 0, 2, -1]])
HITS = np.array([[True, False, True, False], [False] * 4, [False, True, False, False]])
HELD_OUT = [np.array([0, 9, 4]), np.array([9, 6]), np.array([0])]


def task(**changes: Any) -> dict[str, Any]:
    return {
        "kind": "ranking",
        "items": ITEMS,
        "users": ["u0", "u1"],
        "counts": COUNTS,
        "titles": TITLES,
        "cold": [9],
        "categories": {
            "names": ["Drama", "Comedy", "War"],
            "rows": [[0], [0, 1], [1], [], [0], [0], [1], [1], [1], [0]],
        },
        "mask_seen": True,
        "candidates": "all",
    } | changes


def outputs(**changes: Any) -> dict[str, Any]:
    return {
        "user": np.array([0, 1, -1]),
        "top": TOP,
        "scores": -np.sort(np.random.default_rng(0).random(TOP.shape)),
        "hits": HITS,
        "relevant": np.array([3, 2, 1]),
        "held_out": HELD_OUT,
        "cold_user": np.array([False, False, True]),
        "known": np.array([2, 1, 0]),
        "cold_top": np.array([[9], [9], [9]]),
        "cold_hits": np.array([[True], [True], [False]]),
        "cold_relevant": np.array([1, 1, 0]),
    } | changes


def tables(seed: int = 0, width: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Vectors before training, and the same turned with one item moved."""
    generator = np.random.default_rng(seed)
    before = generator.normal(size=(10, width)).astype(np.float32)
    turn = np.linalg.qr(generator.normal(size=(width, width)))[0]
    after = (before @ turn).astype(np.float32) * 3
    after[5] = -after[5]
    return before, after


def evaluation(
    rows: int = 3, probes: bool = True, **changes: Any
) -> tuple[Evaluation, dict[str, Section]]:
    before, after = tables()
    shown = [
        {"user": "u0", "history": ["i1", "i5", "unheard-of"]},
        {"user": "u1", "history": ["i1"]},
        {"user": "u9", "history": []},
    ]
    made = Evaluation(
        split="test",
        metrics={},
        outputs=outputs(),
        task=task(),
        samples=shown,
        rows=rows,
        before={"item_table": before} if probes else {},
        after={"item_table": after} if probes else {},
    )
    made = replace(made, **changes)
    return made, {section.title: section for section in sections(made)}


def test_all_sections_in_a_page(drawn: None, tmp_path: Path) -> None:
    made, found = evaluation()
    assert list(found) == [
        "Results by popularity",
        "Known and new users and items",
        "Sample recommendations",
        "Items that moved most",
        "Neighbours of well-known items",
        "Map of the items",
    ]
    (tmp_path / "recipe.toml").write_text('name = "recsys/test"\n')
    kept = json.dumps([section.to_dict() for section in sections(made)])
    (tmp_path / "sections.json").write_text(kept)
    page = write_report(tmp_path).read_text(encoding="utf-8")
    for title in found:
        assert title in page
    assert "Gamma &lt;b&gt;" in page and "Gamma <b>" not in page


def test_groups_have_about_equally_many_events() -> None:
    groups = Items.of(task()).groups
    # 210 events; those of a count belong where their middle falls: 50 / 210 is in the
    # second fifth, 120 / 210 in the third, 155 in the fourth, 180 and more in the last.
    assert [(g.name, g.members.tolist()) for g in groups] == [
        ("50", [0, 1]),
        ("40", [2]),
        ("30", [3]),
        ("2 to 20", [4, 5, 6, 7, 8]),
        ("none", [9]),
    ]
    assert [g.name for g in Items.of(task(counts=[0] * 10)).groups] == ["none"]
    assert [g.name for g in Items.of(task(counts=[1] * 10)).groups] == ["1"]


def test_results_by_popularity_by_hand() -> None:
    section = evaluation()[1]["Results by popularity"]
    # Held out: 0, 9, 4, 9, 6, 0; listed 11 items; found 0 twice and 9 once.
    expected: tuple[Any, ...] = (
        ("50", 2, 2, 1.0, pytest.approx(2 / 6), pytest.approx(6 / 11)),
        ("40", 1, 0, None, 0.0, pytest.approx(2 / 11)),
        ("30", 1, 0, None, 0.0, pytest.approx(1 / 11)),
        ("2 to 20", 5, 2, 0.0, pytest.approx(2 / 6), pytest.approx(1 / 11)),
        ("none", 1, 2, 0.5, pytest.approx(2 / 6), pytest.approx(1 / 11)),
    )
    assert section.tables[0].rows == expected
    assert section.tables[0].columns[3] == "recall@4"
    assert len(section.figures) == 2
    assert "50: 33% of held-out, 55% of recommended" in section.figures[0].alt


def test_only_so_many_of_a_list_count() -> None:
    top = np.tile(np.arange(30), (1, 1))
    made = outputs(
        user=np.array([0]),
        top=top,
        hits=top == 25,
        relevant=np.array([1]),
        held_out=[np.array([25])],
        cold_user=np.array([False]),
        known=np.array([0]),
    )
    given = task(items=[str(k) for k in range(30)], counts=[1] * 30, titles=[], cold=[])
    given["categories"] = {}
    found = evaluation(outputs=made, task=given, probes=False)[1]
    rows = found["Results by popularity"].tables[0].rows
    assert rows == (("1", 30, 1, 0.0, 1.0, 1.0),)


def test_padded_held_out_items_are_the_same() -> None:
    padded = np.full((3, 4), -1)
    for row, codes in enumerate(HELD_OUT):
        padded[row, : len(codes)] = codes
    assert sections(evaluation()[0]) == sections(
        evaluation(outputs=outputs(held_out=padded))[0]
    )


def test_known_and_new_by_hand() -> None:
    section = evaluation()[1]["Known and new users and items"]
    rows = {row[0]: row[1:] for row in section.tables[0].rows}
    assert section.tables[0].columns[3] == "recall@4"
    best = [1.0, 1 / math.log2(3), 1 / math.log2(4)]
    first = (1 + 1 / math.log2(4)) / sum(best)
    last = 1 / math.log2(3)
    # 10 candidates without the 2, 1 and 0 that a user had.
    chance = [4 / 8, 4 / 9, 4 / 10]
    expected: dict[str, tuple[int, float | None, float, float]] = {
        "every user": (3, (first + last) / 3, (2 / 3 + 0 + 1) / 3, sum(chance) / 3),
        "known users": (2, first / 2, 1 / 3, sum(chance[:2]) / 2),
        "new users (no training event)": (1, last, 1.0, chance[2]),
        # Of 0 and 4 one, of 6 none, of 0 all.
        "known items, among all": (3, None, 0.5, sum(chance) / 3),
        "new items, among all": (2, None, 0.5, sum(chance[:2]) / 2),
        "new items, among new ones alone": (2, 1.0, 1.0, 1.0),
    }
    assert list(rows) == list(expected)
    for name, (users, ndcg, recall, luck) in expected.items():
        wanted = (users, ndcg if ndcg is None else pytest.approx(ndcg))
        assert rows[name][:2] == wanted, name
        assert rows[name][2] == pytest.approx(recall), name
        assert rows[name][3] is None, "three users have no interval worth printing"
        assert rows[name][4] == pytest.approx(luck), name
    assert "1 of 10 items are new" in section.text


def test_an_interval_from_enough_users() -> None:
    many = {
        key: np.concatenate([value] * 10) if isinstance(value, np.ndarray) else value
        for key, value in outputs().items()
    }
    made = outputs(**many | {"held_out": HELD_OUT * 10})
    found = evaluation(outputs=made, samples=lambda i: {})[1]
    row = found["Known and new users and items"].tables[0].rows[0]
    values = np.array([2 / 3, 0, 1] * 10)
    error = 1.96 * values.std(ddof=1) / math.sqrt(30)
    low, high = values.mean() - error, values.mean() + error
    assert row[4] == f"{low:.3f} to {high:.3f}"


def test_only_new_items_are_candidates() -> None:
    made = outputs(
        top=np.full((3, 1), 9),
        hits=np.array([[True], [True], [False]]),
        relevant=np.array([1, 1, 0]),
        held_out=[np.array([9]), np.array([9]), np.array([], dtype=np.int64)],
    )
    found = evaluation(outputs=made, task=task(candidates="cold"))[1]
    rows = {r[0]: r for r in found["Known and new users and items"].tables[0].rows}
    assert "known items, among all" not in rows
    assert "new users (no training event)" not in rows
    assert rows["every user"][5] == 1.0


def test_nothing_new_no_section() -> None:
    known = outputs(cold_user=np.zeros(3, dtype=bool))
    for key in ("cold_top", "cold_hits", "cold_relevant"):
        del known[key]
    found = evaluation(outputs=known, task=task(cold=[]))[1]
    assert "Known and new users and items" not in found
    # New users alone.
    found = evaluation(outputs=outputs(), task=task(cold=[]))[1]
    names = [r[0] for r in found["Known and new users and items"].tables[0].rows]
    assert names == ["every user", "known users", "new users (no training event)"]


def test_samples_show_what_was_had_taken_and_recommended() -> None:
    table = evaluation()[1]["Sample recommendations"].tables[0]
    assert table.columns == ("user", "had", "took later", "recommended")
    assert table.rows == (
        (
            "u0",
            "Beta; Film 5; unheard-of",
            "✓ Alpha; ✓ Film 9; Film 4",
            "✓ Alpha; Beta; ✓ Film 9; Film 5",
        ),
        ("u1", "Beta", "Film 6; Film 9", "Gamma <b>; Alpha; i3; Beta"),
        ("u9", "nothing known", "✓ Alpha", "Beta; ✓ Alpha; Gamma <b>"),
    )
    assert "67% of the users have a ✓" in table.caption


def test_samples_without_a_history_or_a_name() -> None:
    table = evaluation(samples=lambda i: {})[1]["Sample recommendations"].tables[0]
    assert table.columns == ("user", "took later", "recommended")
    assert [row[0] for row in table.rows] == ["u0", "u1", "new"]


def test_samples_are_spread_over_users_with_something_to_find() -> None:
    made = outputs(relevant=np.array([3, 0, 1]))
    for wanted in (2, 3):
        found = evaluation(rows=wanted, outputs=made)[1]
        rows = found["Sample recommendations"].tables[0].rows
        assert [row[0] for row in rows] == ["u0", "u9"]
    assert "Sample recommendations" not in evaluation(rows=0)[1]


def test_long_titles_and_many_later_items_are_cut() -> None:
    made = outputs(held_out=[np.arange(10), *HELD_OUT[1:]])
    titles = ["A" * 60, *TITLES[1:]]
    found = evaluation(outputs=made, task=task(titles=titles))[1]
    later = str(found["Sample recommendations"].tables[0].rows[0][2])
    assert later.startswith("✓ " + "A" * 39 + "…; ✓ Film 9; Beta")
    assert later.endswith("; 2 more") and later.count(";") == 8


# Vectors


def test_rotation_is_that_of_scipy() -> None:
    generator = np.random.default_rng(1)
    source, target = generator.normal(size=(2, 20, 5))
    turn = rotation(source, target)
    assert turn @ turn.T == pytest.approx(np.eye(5), abs=1e-12)
    # SciPy centres and scales as well; without either, its residual is this one's.
    source, target = (m - m.mean(axis=0) for m in (source, target))
    source, target = (m / np.linalg.norm(m) for m in (source, target))
    scaled = np.linalg.svd(source.T @ target)[1].sum()
    left = ((target - scaled * source @ rotation(source, target)) ** 2).sum()
    assert left == pytest.approx(procrustes(target, source)[2])


def test_the_item_that_moved_comes_first_and_a_rotation_is_no_move() -> None:
    before, _ = tables(width=3)
    before = np.concatenate([before] * 4)
    before += 1e-4 * np.random.default_rng(4).normal(size=before.shape)
    turn = np.linalg.qr(np.random.default_rng(2).normal(size=(3, 3)))[0]
    after = 2 * before @ turn.astype(np.float32)
    after[5] = -after[5]
    many = task(
        items=[f"i{k}" for k in range(40)],
        titles=[],
        counts=COUNTS * 4,
        categories={},
        cold=[],
    )
    probes: dict[str, Any] = {
        "before": {"item_table": before},
        "after": {"item_table": after},
    }
    section = evaluation(task=many, **probes)[1]["Items that moved most"]
    all_items = section.tables[-1]
    assert all_items.rows[0][:2] == ("i5", 10)
    turned = [float(row[2] or 0) for row in all_items.rows]
    assert turned[0] > 1.5 and max(turned[1:]) < 0.2
    # i5 was near its three copies, which stayed.
    assert sorted(str(all_items.rows[0][3]).split("; ")) == ["i15", "i25", "i35"]
    assert "i15" not in str(all_items.rows[0][4])
    well_known = section.tables[0]
    assert "4 items with the most training events" in well_known.caption
    best = {row[0] for row in well_known.rows}
    assert best <= {"i0", "i1", "i10", "i11", "i20"}
    # No item is in both tables.
    assert "other items" in all_items.caption
    assert not best & {row[0] for row in all_items.rows}


def test_vectors_that_items_shared_at_the_start_have_no_neighbours_there() -> None:
    before, after = tables()
    # The weights did not know these three: they start from the mean of the others.
    before[[1, 6, 8]] = before[[0, 2, 3]].mean(axis=0)
    probes: dict[str, Any] = {
        "before": {"item_table": before},
        "after": {"item_table": after},
    }
    found = evaluation(rows=12, **probes)[1]
    moved = {
        row[0]: row for t in found["Items that moved most"].tables for row in t.rows
    }
    near = {
        row[0]: row for row in found["Neighbours of well-known items"].tables[0].rows
    }
    assert "shared with others" in str(moved["Beta"][3])
    assert "shared with others" in str(near["Beta"][1]) and near["Beta"][3] is None
    assert "shared" not in str(near["Alpha"][1]) and "of 5" in str(near["Alpha"][3])
    assert "; " in str(near["Beta"][2])
    # Nine items have a neighbour; i9 is not among the best known.
    assert "the 6 best-known items" in found["Neighbours of well-known items"].text


def test_items_without_a_vector_have_not_moved() -> None:
    before, after = tables()
    before[4], after[6, 1] = 0, np.nan
    probes: dict[str, Any] = {
        "before": {"item_table": before},
        "after": {"item_table": after},
    }
    found = evaluation(rows=12, **probes)[1]
    names = [row[0] for row in found["Items that moved most"].tables[0].rows]
    assert len(names) == 8 and "Film 4" not in names and "Film 6" not in names
    near = json.dumps(found["Neighbours of well-known items"].tables[0].rows)
    assert '"Film 4' not in near and "; Film 4" not in near
    assert "of 8 items" in found["Items that moved most"].text


def test_frozen_vectors_say_so(drawn: None) -> None:
    _, after = tables()
    probe = {"item_table": after}
    found = evaluation(before=probe, after=probe)[1]
    assert found["Items that moved most"].tables == ()
    assert "as they were" in found["Items that moved most"].text
    near = found["Neighbours of well-known items"]
    assert near.tables[0].columns == ("item", "neighbours") and "frozen" in near.text
    assert "before training" not in found["Map of the items"].figures[0].svg


def test_nearest_in_blocks_is_nearest_by_sorting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table, known = unit(np.random.default_rng(3).normal(size=(30, 6)))
    known[[4, 7]] = False
    cosine = table @ table.T
    np.fill_diagonal(cosine, -np.inf)
    cosine[:, ~known] = -np.inf
    expected = np.argsort(-cosine, axis=1)[:, :5]
    monkeypatch.setattr("headstart_recsys.sections.vectors.BLOCK", 60)
    assert (nearest(table, known, np.arange(30), 5) == expected).all()
    few = np.zeros(30, dtype=bool)
    few[:3] = True
    assert nearest(table, few, np.arange(3), 5).shape == (3, 2)


def test_neighbours_before_and_after() -> None:
    angle = np.deg2rad([0, 10, 25, 180, 200, 225, 90, 91, 93, 300])
    after = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    before = after.copy()
    # Before, the best known item was where the others of the far side are.
    before[0] = after[3] + 0.01
    probes: dict[str, Any] = {
        "before": {"item_table": before},
        "after": {"item_table": after},
    }
    section = evaluation(**probes)[1]["Neighbours of well-known items"]
    assert section.tables[0].columns == (
        "item",
        "before training",
        "after training",
        "same",
    )
    row = section.tables[0].rows[0]
    assert row[0] == "Alpha"
    assert str(row[1]).startswith("i3; Film 4; Film 5")
    assert str(row[2]).startswith("Beta; Gamma <b>; Film 9")
    same = set(str(row[1]).split("; ")) & set(str(row[2]).split("; "))
    assert row[3] == f"{len(same)} of 5"


def text_of(svg: str) -> list[str]:
    return [
        "".join(element.itertext()).strip()
        for element in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")
    ]


def test_the_map_names_categories_items_and_both_sides(drawn: None) -> None:
    figure = evaluation()[1]["Map of the items"].figures[0]
    said = text_of(figure.svg)
    for wanted in ("Drama", "Comedy", "other or none", "Alpha"):
        assert wanted in said
    assert "War" not in said, "no item of the map has it first"
    assert said.count("before training") == said.count("after training") == 1
    assert said.count("Alpha") == 2 and figure.wide
    assert figure.svg == evaluation()[1]["Map of the items"].figures[0].svg


def test_the_map_does_not_depend_on_the_signs_of_its_axes(
    drawn: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = evaluation()[1]["Map of the items"].figures[0].svg
    svd = np.linalg.svd

    def flipped(matrix: np.ndarray, **options: Any) -> Any:
        left, values, right = svd(matrix, **options)
        return -left, values, -right

    monkeypatch.setattr(np.linalg, "svd", flipped)
    assert evaluation()[1]["Map of the items"].figures[0].svg == expected


def test_names_on_the_map_do_not_touch() -> None:
    place = np.array([[0.1, 0.5], [0.12, 0.51], [0.99, 0.2], [0.5, 0.9], [0.1, 0.1]])
    names = ["first", "too near", "too far to the right", "apart", "below"]
    assert maps.labelled([place], names) == [0, 3, 4]
    # It must fit on both sides.
    other = place + np.array([maps.GAP, 0])
    other[4] = other[3]
    assert maps.labelled([place, other], names) == [0, 3]
    grid = np.stack(np.meshgrid([0.1, 0.5], np.linspace(0, 1, 12)), -1).reshape(-1, 2)
    assert maps.labelled([grid], ["a"] * 24) == list(range(maps.LABELS))


def test_the_map_has_rings_for_new_items() -> None:
    text = evaluation()[1]["Map of the items"].text
    assert "9 best-known items and 1 new ones (rings)" in text
    assert "rings" not in evaluation(task=task(cold=[]))[1]["Map of the items"].text


def test_without_titles_categories_and_probes(drawn: None) -> None:
    found = evaluation(task=task(titles=[], categories={}))[1]
    assert found["Neighbours of well-known items"].tables[0].rows[0][0] == "i0"
    said = text_of(found["Map of the items"].figures[0].svg)
    assert "i0" in said and "other or none" not in said
    assert "category" not in found["Map of the items"].text
    found = evaluation(probes=False)[1]
    assert list(found)[-1] == "Sample recommendations"
    _, after = tables()
    found = evaluation(before={}, after={"item_table": after})[1]
    assert "Items that moved most" not in found
    assert "before training" not in found["Map of the items"].figures[0].svg
    # A probe of something else, and one of other items.
    found = evaluation(before={"x": after}, after={"item_table": after[:4]})[1]
    assert "Map of the items" not in found


def test_nothing_trained_on() -> None:
    found = evaluation(task=task(counts=[0] * 10, cold=list(range(10))))[1]
    rows = found["Results by popularity"].tables[0].rows
    assert [row[0] for row in rows] == ["none"]
    assert "Neighbours of well-known items" not in found
    assert "0 best-known items and 10 new" in found["Map of the items"].text
