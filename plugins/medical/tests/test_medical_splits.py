"""Splits and folds: whole patients, shares of every class, chance from the seed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from headstart.data import Findings
from headstart.errors import DataError
from headstart_medical.cases import Case, Look
from headstart_medical.data_settings import VolumeSettings
from headstart_medical.splits import split_cases


def case(name, patient="", target=None, split=None, content="", person=""):
    look = Look((4, 4, 4), np.eye(4), digests=(content or name,), person=person)
    return Case(
        name, (Path(name),), patient=patient or name, target=target, where=name,
        split=split, look=look,
    )  # fmt: skip


def apart(cases, seed=0, findings=None, **given):
    settings = VolumeSettings(name="x", **given)
    parts = split_cases(cases, settings, seed, findings or Findings())
    return {split: {c.id for c in found} for split, found in parts.items()}


def test_patients_are_whole():
    cases = [case(f"p{i}-{j}", f"p{i}") for i in range(12) for j in range(1 + i % 4)]
    owner = {c.id: c.patient for c in cases}
    for seed in range(8):
        parts = apart(cases, seed, test_size=0.25, validation_size=2)
        people = {split: {owner[n] for n in ids} for split, ids in parts.items()}
        assert [len(people[s]) for s in ("train", "validation", "test")] == [7, 2, 3]
        assert not people["train"] & people["test"]
        assert not people["validation"] & (people["train"] | people["test"])
        assert set().union(*parts.values()) == set(owner)


def test_equal_content_and_equal_persons_stay_together():
    cases = [case(f"c{i}") for i in range(20)]
    cases[3] = case("c3", content="c11")
    cases[5], cases[17] = case("c5", person="x"), case("c17", person="x")
    cases[11] = case("c11", person="x")  # c3, c11, c5, c17 are one
    for seed in range(10):
        parts = apart(cases, seed, test_size=0.3, validation_size=0.3)
        homes = [s for s, ids in parts.items() for c in ("c3", "c5", "c11", "c17")
                 if c in ids]  # fmt: skip
        assert len(set(homes)) == 1


def test_each_split_has_its_share_of_a_rare_class():
    cases = [case(f"c{i}", target="ill" if i % 5 == 0 else "well") for i in range(50)]
    target = {c.id: c.target for c in cases}
    for seed in range(10):
        parts = apart(cases, seed, test_size=10, validation_size=10)
        for split, count in (("test", 10), ("validation", 10), ("train", 30)):
            counts = Counter(target[name] for name in parts[split])
            assert sum(counts.values()) == count
            assert abs(counts["ill"] - count / 5) <= 1


def test_chance_comes_from_the_seed_alone():
    cases = [case(f"c{i}") for i in range(30)]
    np.random.seed(1)
    one = apart(cases, 5)
    np.random.seed(2)
    assert apart(cases, 5) == one
    assert apart(cases, 6) != one


def test_the_test_split_does_not_depend_on_validation():
    cases = [case(f"c{i}") for i in range(30)]
    sizes = [apart(cases, validation_size=n)["test"] for n in (1, 5, 9)]
    assert sizes[0] == sizes[1] == sizes[2]


def test_folds_test_everybody_once():
    cases = [case(f"p{i}-{j}", f"p{i}") for i in range(11) for j in range(2)]
    tested = Counter()
    for fold in range(4):
        parts = apart(cases, folds=4, fold=fold)
        tested.update(parts["test"])
        assert len({name.split("-")[0] for name in parts["test"]}) in (2, 3)
        assert not parts["train"] & (parts["test"] | parts["validation"])
        assert parts["validation"]
    assert set(tested.values()) == {1}
    assert len(tested) == 22


def test_as_many_folds_as_patients_leave_one_out():
    cases = [case(f"c{i}") for i in range(4)]
    left = [apart(cases, folds=4, fold=i, validation_size=1)["test"] for i in range(4)]
    assert sorted(map(sorted, left)) == [[f"c{i}"] for i in range(4)]


def test_given_splits_stay():
    given = [case("a", split="train"), case("b", split="test"), case("c"),
             case("d", split="validation")]  # fmt: skip
    assert apart(given) == {"train": {"a", "c"}, "validation": {"d"}, "test": {"b"}}
    parts = apart([case("t", split="test"), *(case(f"c{i}") for i in range(10))])
    assert parts["test"] == {"t"}
    assert len(parts["validation"]) == 2


@pytest.mark.parametrize(
    ("count", "given", "wanted"),
    [
        (3, {"folds": 4}, "4 folds of 3 patients"),
        (1, {}, "1 patient leaves nothing"),
        (2, {"test_size": 1}, "validation_size: 0.2 of 1 patient leaves nothing"),
        (9, {"test_size": 0}, "leaves the test split empty"),
        (9, {"test_size": 9}, "9 of 9 patients leaves nothing to train on"),
    ],
)
def test_too_few_patients(count, given, wanted):
    with pytest.raises(DataError, match=wanted):
        apart([case(f"c{i}") for i in range(count)], **given)


def test_cases_that_count_as_one_patient_are_told():
    cases = [case(f"c{i}", person="x") for i in range(9)]
    with pytest.raises(DataError, match="1 patient leaves nothing") as caught:
        apart(cases)
    assert "of 9 cases those of a patient count as one" in str(caught.value)
    with pytest.raises(DataError) as caught:
        apart([case("a")])
    assert "count as one" not in str(caught.value)


def test_folds_of_data_with_a_test_split():
    with pytest.raises(DataError, match="test split of its own"):
        apart([case("a", split="test"), case("b"), case("c")], folds=2)


def test_a_class_that_is_never_learned_is_told():
    findings = Findings()
    cases = [case("a", target="ill", split="test"), case("d", split="validation")]
    cases += [case("b", target="well", split="train")]
    apart(cases, findings=findings)
    assert [w.what for w in findings.warnings] == [
        "no case of train has 'ill', and test does"
    ]
