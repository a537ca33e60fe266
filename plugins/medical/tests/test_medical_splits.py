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
from headstart_medical.patients import check_leaks, join, name_patients, unite
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
    assert "9 cases are one patient by their DICOM headers" in str(caught.value)
    assert "data.patient names them otherwise" in str(caught.value)
    with pytest.raises(DataError, match="of 3 cases those of a patient count as one"):
        apart([case(f"c{i}", "anna") for i in range(3)])
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


# Anonymisers write one patient id for everybody


def told(name, patient="", person="x"):
    made = case(name, person=person)
    made.patient = patient
    return made


def named(cases, **given):
    """Cases after their listing was looked through, and its findings."""
    findings = Findings()
    name_patients(cases, VolumeSettings(name="x", **given), findings)
    return cases, findings


def test_who_is_named_is_no_patient_of_a_header():
    names = [f"case{i}/dicom" for i in range(9)]
    by_pattern, _ = named([told(n) for n in names], patient="(case[0-9]+)")
    by_column, _ = named([told(n, f"p{i}") for i, n in enumerate(names)])
    for cases in by_pattern, by_column:
        assert unite(cases).tolist() == [*range(9)]
        assert len(apart(cases)["test"]) == 2
        findings = Findings()
        check_leaks(cases, findings)
        # It may be a name that is misspelt.
        (warning,) = findings.warnings
        assert warning.what == "9 cases of one DICOM patient id are 9 patients"
        assert not findings.fatal
    # Equal content stays together, whoever says what.
    copies = [case("case0", content="a"), case("case1", content="a")]
    cases, _ = named(copies, patient="(case[0-9]+)")
    assert unite(cases).tolist() == [0, 0]


def test_one_case_that_nobody_names_leaves_the_header_to_decide():
    cases, _ = named([told("a", "p1"), told("b", "p2"), told("c")])
    assert unite(cases).tolist() == [0, 0, 0]
    for each, split in zip(cases, ("train", "train", "test"), strict=True):
        each.split = split
    findings = Findings()
    check_leaks(cases, findings)
    (fault,) = findings.fatal
    assert "by the patient id of their DICOM headers" in fault.what


def test_who_is_one_by_headers_alone_is_told_and_measured_as_one():
    people = [*"xxyy", "z"]
    cases, findings = named([told(f"c{i}", person=p) for i, p in enumerate(people)])
    check_leaks(cases, findings)
    (warning,) = findings.warnings
    assert warning.what == "4 cases are 2 patients by their DICOM headers"
    assert "data.patient names them otherwise" in warning.fix
    join(cases)
    assert [c.patient for c in cases] == ["c0", "c0", "c2", "c2", "c4"]
    with pytest.raises(DataError, match="4 folds of 3 patients") as caught:
        apart(
            named([told(f"c{i}", person=p) for i, p in enumerate(people)])[0], folds=4
        )
    assert "4 cases are 2 patients by their DICOM headers" in str(caught.value)
