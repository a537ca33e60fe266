"""Random splits: groups whole, shares kept, chance from the seed alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from headstart.data import Findings
from headstart_vision import leaks, splits
from headstart_vision.items import Item
from headstart_vision.settings import ClassificationSettings

SETTINGS = ClassificationSettings(name="vision/images")


def items(names, **fields):
    return [
        Item(name, path=f"/data/{name}", digest=f"d{i}", **fields)
        for i, name in enumerate(names)
    ]


def grouped(listed, strata=None, **settings):
    """Ids by group, and the warnings."""
    findings = Findings()
    strata = strata or [""] * len(listed)
    numbers = splits.unite(
        listed, strata, SETTINGS.model_copy(update=settings), findings
    )
    groups = [
        {item.id for item, n in zip(listed, numbers, strict=True) if n == number}
        for number in range(max(numbers) + 1)
    ]
    return groups, findings.warnings


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("a/frame_001.png", "a/frame_002.png"),
        ("frame1.jpg", "frame20.jpg"),
        ("cat.jpg", "cat (1).jpg"),
        ("cat.jpg", "cat copy.jpg"),
        ("cat.jpg", "Copy of cat.jpg"),
        ("cat copy.jpg", "cat copy 2.jpg"),
        ("cat - Kopie.jpg", "cat - Kopie (3).jpg"),
        ("12.jpg", "12 (1).jpg"),
        ("cat.jpg", "cat.png"),
        ("IMG-20260101-WA1.jpg", "IMG-20260101-WA2.jpg"),
    ],
)
def test_names_that_are_nearly_the_same(one, other):
    assert splits.stem(one) == splits.stem(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("a/frame_001.png", "b/frame_001.png"),
        ("video1_003.jpg", "video2_003.jpg"),
        ("001.png", "002.png"),
        ("12_01.png", "12_02.png"),
        ("cat.jpg", "dog.jpg"),
        ("photocopy.jpg", "photo.jpg"),
    ],
)
def test_names_that_are_not(one, other):
    assert splits.stem(one) != splits.stem(other)


def test_names_content_and_groups_unite_in_chains():
    names = ["a_1.png", "a_2.png", "b.png", "c.png", "d.png", *"efghijklmnopqrstuvw"]
    listed = items(names)
    listed[2].digest = listed[1].digest  # b is a copy of a_2
    listed[3].group = listed[2].group = "patient"
    groups, warnings = grouped(listed)
    assert groups[0] == {"a_1.png", "a_2.png", "b.png", "c.png"}
    assert all(len(group) == 1 for group in groups[1:]) and not warnings


def test_names_may_be_left_out():
    groups, _ = grouped(items(["a_1.png", "a_2.png", "b.png"]), near_duplicates=False)
    assert len(groups) == 3


def test_plain_numbering_is_no_group_and_is_told():
    names = [f"img_{i:04d}.png" for i in range(40)]
    frames = [f"scene_{i}.png" for i in range(4)]
    groups, warnings = grouped(items([*names, *frames, *map(str, range(9))]))
    assert Counter(len(group) for group in groups) == {1: 49, 4: 1}
    (warning,) = warnings
    assert "40 files" in warning.what and "img… (40)" in warning.why
    assert "data.group" in warning.fix and warning.where == "data.near_duplicates"


def test_numbering_by_class_is_no_group_either():
    # As ImageNet and many others have it; each is only a tenth of all samples.
    names = [f"{c}/n{c}x_{i}.png" for c in "abcdefghij" for i in range(20)]
    strata = [name[0] for name in names]
    groups, warnings = grouped(items(names), strata)
    assert len(groups) == 200 and "200 files" in warnings[0].what
    # In one folder, with the class in a table.
    names = [f"n{c}x_{i}.png" for c in "abcdefghij" for i in range(20)]
    groups, warnings = grouped(items(names), [name[1] for name in names])
    assert len(groups) == 200 and warnings


def test_frames_of_several_videos_are_groups():
    names = [
        f"{c}/video{v}_{i:02d}.png" for c in "abc" for v in range(4) for i in range(9)
    ]
    groups, warnings = grouped(items(names), [name[0] for name in names])
    assert [len(group) for group in groups] == [9] * 12 and not warnings


def test_a_few_copies_are_a_group_however_small_the_data():
    groups, warnings = grouped(items(["cat.png", "cat (1).png", "dog.png"]))
    assert sorted(map(len, groups)) == [1, 2] and not warnings


def take(strata, groups, count, seed=0, keep=2):
    generator = np.random.default_rng(seed)
    return splits.take_out(strata, np.array(groups), count, generator, keep)


def test_single_samples_are_taken_in_exact_proportion():
    strata = ["a"] * 60 + ["b"] * 30 + ["c"] * 10
    taken = take(strata, range(100), 20)
    assert Counter(s for s, t in zip(strata, taken, strict=True) if t) == {
        "a": 12,
        "b": 6,
        "c": 2,
    }


def test_groups_are_never_torn_and_shares_nearly_kept():
    generator = np.random.default_rng(1)
    groups = np.sort(generator.integers(0, 60, 400))
    strata = [f"{g % 4}" if i % 7 else "4" for i, g in enumerate(groups)]
    for seed in range(5):
        taken = take(strata, groups, 80, seed)
        for group in set(groups.tolist()):
            assert len(set(taken[groups == group].tolist())) == 1
        assert abs(taken.sum() - 80) <= 12
        for stratum in "0123":
            inside = np.array(strata) == stratum
            assert abs(taken[inside].mean() - 0.2) < 0.12


def test_splits_are_a_function_of_the_seed():
    strata, groups = ["a", "b"] * 50, np.arange(100) // 2
    again = take(strata, groups, 20, seed=3)
    assert (take(strata, groups, 20, seed=3) == again).all()
    assert (take(strata, groups, 20, seed=4) != again).any()


def test_each_class_keeps_some():
    strata = ["a"] * 50 + ["b"] * 2 + ["c"] * 3
    taken = take(strata, range(55), 50)
    left = Counter(s for s, t in zip(strata, taken, strict=True) if not t)
    assert left["b"] == 2 and left["c"] == 2 and left["a"] >= 2


def test_groups_larger_than_the_share():
    # Three videos of 30, and a tenth is asked for: the nearest is one of them.
    assert take([""] * 90, np.arange(90) // 30, 9).sum() == 30
    # One video alone cannot be split.
    assert not take([""] * 90, [0] * 90, 9).any()


def test_shares_are_exact_and_within_limits():
    found = splits.shares(np.array([50, 30, 20]), np.array([48, 28, 1]), 40)
    assert found.sum() == 40 and found[2] == 1 and found[0] > found[1]


# Splits that came as files


def test_same_content_in_two_splits():
    parts = {"train": items(["a.png", "b.png"]), "test": items(["x.png"])}
    parts["test"][0].digest = parts["train"][1].digest
    findings = Findings()
    leaks.check_content(parts, findings)
    ((place, (fault,)),) = findings.samples.items()
    assert place == ("/data/b.png", 0)  # train gives way, what is measured stays
    assert "/data/b.png" in fault.where and "/data/x.png" in fault.why
    assert "train and test" in fault.what


def test_same_content_in_one_split_is_a_warning():
    listed = items(["a.png", "b.png", "c.png"], target="cat")
    listed[1].digest = listed[0].digest
    findings = Findings()
    leaks.check_content({"train": listed}, findings)
    assert not findings.samples
    (warning,) = findings.warnings
    assert "1 images" in warning.what and "/data/a.png and /data/b.png" in warning.why
    listed[1] = replace(listed[1], target="dog")
    findings = Findings()
    leaks.check_content({"train": listed}, findings)
    assert "different targets: 1" in findings.warnings[1].what


def test_unreadable_files_are_no_copies_of_each_other():
    listed = items(["a.png", "b.png"])
    for item in listed:
        item.digest = ""
    findings = Findings()
    leaks.check_content({"train": listed[:1], "test": listed[1:]}, findings)
    assert not findings.samples and not findings.warnings
    assert len(grouped(listed)[0]) == 2


def test_group_in_two_splits():
    parts = {
        "train": items(["a.png"], group="p1") + items(["b.png"], group="p2"),
        "validation": items(["v.png"], group="p3"),
        "test": items(["x.png"], group="p2"),
    }
    findings = Findings()
    leaks.check_groups(parts, findings)
    (fault,) = findings.fatal
    assert "1 groups" in fault.what
    assert "'p2': /data/x.png (test) and /data/b.png (train)" in fault.why
