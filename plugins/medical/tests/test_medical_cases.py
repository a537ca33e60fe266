"""Listings: every usual layout gives the same cases."""

from __future__ import annotations

import json

import nibabel
import numpy as np
import pytest

from headstart.data import Findings
from headstart_medical import cases as listing_of
from headstart_medical.cases import list_cases
from headstart_medical.checks import check_cases
from headstart_medical.data_settings import ScanSettings, VolumeSettings


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def touch(root, *names):
    """Small valid volumes, each of its own content."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        seed = sum(map(ord, name))
        array = np.random.default_rng(seed).integers(0, 2, (3, 3, 3)).astype(np.uint8)
        nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), path)


def listed(path=".", settings=VolumeSettings, **given):
    findings = Findings()
    found = list_cases(settings(name="x", path=str(path), **given), findings)
    return found, findings


def as_names(found):
    """Names of the files of each case, by id."""
    return {
        case.id: ([p.name for p in case.images], [p.name for p in case.labels])
        for case in found.cases
    }


LABELS = ("background", "tumour")
LAYOUTS = {
    "a folder a case": ["{}/image.nii.gz", "{}/label.nii.gz"],
    "all in one folder": ["{}_image.nii.gz", "{}_label.nii.gz"],
    "a mask beside a scan": ["{}.nii.gz", "{}_seg.nii"],
    "a folder a kind": ["images/{}.nii.gz", "labels/{}.nii.gz"],
    "kinds in names and folders": ["img/{}_image.nii.gz", "masks/{}_mask.nii.gz"],
    "nnU-Net": ["imagesTr/{}_0000.nii.gz", "labelsTr/{}.nii.gz"],
    "words at the start": ["image_{}.nii.gz", "segmentation-{}.nii.gz"],
    "names repeated": ["{0}/{0}_scan.nii.gz", "{0}/{0}_seg.nii.gz"],
    "any name alone in its folder": ["{}/ct.nii.gz", "{}/seg.nii.gz"],
    "a file a class": ["{}/scan.nii.gz", "{}/segmentations/tumour.nii.gz"],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_folders(tmp_path, layout):
    names = [p.format(case) for case in ("p1", "p2") for p in LAYOUTS[layout]]
    touch(tmp_path, *names)
    found, findings = listed(labels=LABELS)
    assert not findings.fatal
    assert not findings.samples
    assert len(found.cases) == 2
    for case, name in zip(found.cases, ("p1", "p2"), strict=True):
        assert case.id.split("/")[0] == name
        image, label = (tmp_path / p.format(name) for p in LAYOUTS[layout])
        assert case.images == (image,)
        assert case.labels == (label,)
        assert case.patient == case.id
    assert found.labels == {"background": 0, "tumour": 1}


def test_channels_by_name_and_by_number(tmp_path):
    touch(
        tmp_path / "a", *(f"p1/p1_{n}.nii.gz" for n in ("t1", "t1ce", "FLAIR", "seg"))
    )
    found, findings = listed("a", channels=("T1", "T1ce", "flair"), labels=LABELS)
    assert not findings.fatal
    files = ["p1_t1.nii.gz", "p1_t1ce.nii.gz", "p1_FLAIR.nii.gz"]
    assert as_names(found) == {"p1": (files, ["p1_seg.nii.gz"])}
    touch(tmp_path / "b", *(f"imagesTr/p1_000{i}.nii.gz" for i in (1, 0)))
    touch(tmp_path / "b", "labelsTr/p1.nii.gz")
    found, _ = listed("b", labels=LABELS)
    assert len(found.channels) == 2
    assert as_names(found)["p1"][0] == ["p1_0000.nii.gz", "p1_0001.nii.gz"]


def test_numbers_of_cases_are_no_channels(tmp_path):
    touch(tmp_path, *(f"images/p_{i:04d}.nii.gz" for i in (1, 2)))
    touch(tmp_path, *(f"labels/p_{i:04d}.nii.gz" for i in (1, 2)))
    found, findings = listed(labels=LABELS)
    assert not findings.fatal
    assert [case.id for case in found.cases] == ["p_0001", "p_0002"]


def test_a_file_a_class_names_the_classes(tmp_path):
    touch(tmp_path, "p1/ct.nii.gz")
    touch(tmp_path, *(f"p1/segmentations/{n}.nii.gz" for n in ("liver", "kidney")))
    found, _ = listed()
    assert found.labels == {"background": 0, "kidney": 1, "liver": 2}
    assert as_names(found)["p1/ct"][1] == ["kidney.nii.gz", "liver.nii.gz"]
    found, _ = listed(labels=("background", "liver", "kidney"))
    assert as_names(found)["p1/ct"][1] == ["liver.nii.gz", "kidney.nii.gz"]


@pytest.mark.parametrize("root", ["vol", "images", "scans"])
@pytest.mark.parametrize(
    "names",
    [
        ("a/image.nii.gz", "a/label.nii.gz", "b/image.nii.gz", "b/label.nii.gz"),
        ("a.nii.gz", "a_seg.nii.gz", "b.nii.gz", "b_seg.nii.gz"),
    ],
)
def test_a_root_called_like_a_folder_of_images(tmp_path, root, names):
    touch(tmp_path / root, *names)
    cases = listed(tmp_path / root, labels=LABELS)[0].cases
    assert [len(case.images) for case in cases] == [1, 1]
    assert [len(case.labels) for case in cases] == [1, 1]


def test_splits_by_folder(tmp_path):
    for split in ("train", "val", "test"):
        touch(tmp_path, f"{split}/p/image.nii.gz", f"{split}/p/label.nii.gz")
    found, findings = listed(labels=LABELS)
    assert not findings.fatal
    assert {case.id: case.split for case in found.cases} == {
        "test/p": "test", "train/p": "train", "val/p": "validation",
    }  # fmt: skip


def test_paths_of_splits_make_ids_distinct(tmp_path):
    for folder in ("a", "b"):
        touch(tmp_path, f"{folder}/p/image.nii.gz", f"{folder}/p/label.nii.gz")
    found, findings = listed("a", test_path="b", labels=LABELS)
    assert not findings.fatal
    assert [(c.id, c.split) for c in found.cases] == [("p", None), ("test/p", "test")]


def test_class_folders(tmp_path):
    touch(tmp_path, "tumour/p1.nii.gz", "healthy/p2.nii.gz", "healthy/p3.nii.gz")
    found, findings = listed(settings=ScanSettings)
    assert not findings.fatal
    targets = {case.id: case.target for case in found.cases}
    assert targets == {
        "tumour/p1": "tumour", "healthy/p2": "healthy", "healthy/p3": "healthy",
    }  # fmt: skip
    check_cases(found, ScanSettings(name="x", path="."), findings)
    assert found.labels == {"healthy": 0, "tumour": 1}
    assert not findings.samples


def test_unlabelled_volumes_for_pretraining(tmp_path):
    touch(tmp_path, "imagesTr/a.nii.gz", "labelsTr/a.nii.gz", "imagesTs/b.nii.gz")
    found, findings = listed(kind="reconstruction")
    assert [(case.id, case.split) for case in found.cases] == [("a", None), ("b", None)]
    found, findings = listed(labels=LABELS)
    assert [case.id for case in found.cases] == ["a"]
    assert "not used: 1 case of imagesTs" in findings.warnings[0].what


def test_decathlon(tmp_path):
    touch(tmp_path, "imagesTr/a.nii.gz", "labelsTr/a.nii.gz", "imagesTs/b.nii.gz")
    content = {
        "modality": {"0": "FLAIR", "1": "T1w"},
        "labels": {"0": "background", "1": "edema", "2": "tumour"},
        "training": [{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}],
        "test": ["./imagesTs/b.nii.gz"],
    }
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    found, findings = listed()
    assert not findings.fatal
    assert as_names(found) == {"a": (["a.nii.gz"], ["a.nii.gz"])}
    assert found.channels == ("FLAIR", "T1w")
    assert found.labels == {"background": 0, "edema": 1, "tumour": 2}
    assert found.modality == "mri"
    assert "not used: 1 case of its test list" in findings.warnings[0].what
    found, _ = listed(kind="reconstruction")
    assert [case.id for case in found.cases] == ["a", "b"]


def test_nnunet_json_lists_no_files(tmp_path):
    touch(tmp_path, *(f"imagesTr/a_000{i}.nii.gz" for i in (0, 1)), "labelsTr/a.nii.gz")
    content = {
        "channel_names": {"0": "CT", "1": "PET"},
        "labels": {"background": 0, "tumour": 5},
        "numTraining": 1,
    }
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    found, _ = listed()
    assert found.channels == ("CT", "PET")
    assert found.labels == {"background": 0, "tumour": 5}
    assert as_names(found)["a"] == (["a_0000.nii.gz", "a_0001.nii.gz"], ["a.nii.gz"])


def test_links_that_lead_back_are_not_followed_again(tmp_path):
    touch(tmp_path / "d", "p1/image.nii.gz", "p2/image.nii.gz")
    (tmp_path / "d/p1/back").symlink_to(tmp_path / "d")
    touch(tmp_path, "elsewhere/image.nii.gz")
    (tmp_path / "d/p3").symlink_to(tmp_path / "elsewhere")
    found, _ = listed("d", kind="reconstruction")
    assert [case.id for case in found.cases] == ["p1", "p2", "p3"]


def test_words_are_found_behind_letters_that_grow_in_lower_case(tmp_path):
    touch(tmp_path, "Fuß1.nii", "Fuß1_seg.nii", "Fuß2.nii", "Fuß2_seg.nii")
    found, findings = listed(labels=LABELS)
    assert not findings.fatal
    assert as_names(found)["Fuß1"] == (["Fuß1.nii"], ["Fuß1_seg.nii"])


def test_sessions_of_a_subject_beside_patients_with_names(tmp_path, monkeypatch):
    """A list that names its patients must not hide whose the others are."""
    from headstart import assets

    monkeypatch.setattr(assets, "fetch", lambda asset: tmp_path)
    touch(tmp_path / "bids", "sub-1/ses-1/T1.nii.gz", "sub-1/ses-2/T1.nii.gz")
    found, _ = listed("bids", channels=("T1",), test_path="asset:brain-tumours")
    patients = [case.patient for case in found.cases]
    assert patients[:2] == ["sub-1", "sub-1"]
    assert len(set(patients)) == len(patients) - 1
    assert found.named


def test_csv(tmp_path):
    touch(tmp_path, *(f"v/{n}.nii.gz" for n in ("1a", "1b", "1m", "2a", "2b", "2m")))
    (tmp_path / "cases.csv").write_text(
        "T1;T2;mask;who;split\n"
        "v/1a.nii.gz;v/1b.nii.gz;v/1m.nii.gz;anna;train\n"
        "\n"
        "v\\2a.nii.gz;v/2b.nii.gz;v/2m.nii.gz;ben;test\n"
    )
    found, findings = listed(
        "cases.csv", channels=("T1", "T2"), label="mask", patient="who", labels=LABELS
    )
    assert not findings.fatal
    assert not findings.samples
    assert as_names(found) == {
        "v/1a": (["1a.nii.gz", "1b.nii.gz"], ["1m.nii.gz"]),
        "v/2a": (["2a.nii.gz", "2b.nii.gz"], ["2m.nii.gz"]),
    }
    assert [(c.patient, c.split) for c in found.cases] == [
        ("anna", "train"), ("ben", "test"),
    ]  # fmt: skip
    assert found.cases[1].where == "cases.csv, line 4"


def test_csv_of_classes_and_of_a_file_a_class(tmp_path):
    touch(tmp_path, "1.nii.gz", "2.nii.gz", "k.nii.gz", "l.nii.gz")
    (tmp_path / "a.csv").write_text("image,label\n1.nii.gz,ill\n2.nii.gz,well\n")
    found, _ = listed("a.csv", settings=ScanSettings)
    assert [case.target for case in found.cases] == ["ill", "well"]
    (tmp_path / "b.csv").write_text("image,kidney,liver\n1.nii.gz,k.nii.gz,l.nii.gz\n")
    found, _ = listed("b.csv", labels=("background", "liver", "kidney"))
    assert as_names(found) == {"1": (["1.nii.gz"], ["l.nii.gz", "k.nii.gz"])}


def test_assets_say_how_they_are_read(tmp_path, monkeypatch):
    from headstart import assets

    monkeypatch.setattr(assets, "fetch", lambda asset: tmp_path)
    found, findings = listed("asset:colin27,asset:mni152", labels=())
    assert not findings.fatal
    colin, mni = found.cases
    assert (colin.id, colin.above) == ("colin27", 0)
    assert colin.images == (tmp_path / "ch2.nii.gz",)
    assert (mni.above, len(mni.labels)) == (127, 2)
    assert found.channels == ("T1",)
    assert found.modality == "mri"


@pytest.mark.parametrize(
    ("pattern", "ids", "patients"),
    [
        (r"(p\d+)_", ("p1_a", "p1_b", "p2_a"), ("p1", "p1", "p2")),
        ("", ("sub-01_a", "sub-01_b", "sub-02_a"), ("sub-01", "sub-01", "sub-02")),
        ("", ("x1", "x2"), ("x1", "x2")),
    ],
)
def test_patients_by_name(tmp_path, pattern, ids, patients):
    touch(tmp_path, *(f"images/{name}.nii" for name in ids))
    found, findings = listed(patient=pattern, kind="reconstruction")
    assert not findings.fatal
    assert tuple(case.patient for case in found.cases) == patients
    assert found.named == (ids[0] != "x1")


def test_relative_paths_are_completed(tmp_path):
    (tmp_path / "a").mkdir()
    settings = VolumeSettings(name="x", path="a", test_path="asset:colin27")
    assert listing_of.completed(settings) == {
        "path": str(tmp_path / "a"), "test_path": "asset:colin27",
    }  # fmt: skip
