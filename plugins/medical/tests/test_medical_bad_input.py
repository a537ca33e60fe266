"""Bad cases: each fault is told with file and case, all together."""

from __future__ import annotations

import gzip
import json
import shutil

import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileMetaDataset

from headstart.data import Findings
from headstart.errors import DataError
from headstart_medical.cases import list_cases
from headstart_medical.checks import check_cases, check_patch
from headstart_medical.data_settings import ScanSettings, VolumeSettings
from headstart_medical.splits import split_cases

AFFINE = np.diag([-0.8, 0.8, 6.5, 1.0])
SHAPE = (10, 12, 8)
LABELS = ("background", "tumour")


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def save(path, array, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, affine), path)


def scan(seed, shape=SHAPE):
    return np.random.default_rng(seed).normal(100, 20, shape).astype(np.float32)


def mask(shape=SHAPE):
    array = np.zeros(shape, np.uint8)
    array[2:5, 3:6, 1:4] = 1
    return array


@pytest.fixture
def root(tmp_path):
    """Three cases without a fault."""
    for i in range(3):
        save(tmp_path / f"images/p{i}.nii.gz", scan(i))
        save(tmp_path / f"labels/p{i}.nii.gz", mask())
    return tmp_path


def looked(path=".", settings=VolumeSettings, **given):
    given = {"labels": LABELS, **given} if settings is VolumeSettings else given
    chosen = settings(name="x", path=str(path), **given)
    findings = Findings()
    found = list_cases(chosen, findings)
    check_cases(found, chosen, findings)
    return found, chosen, findings


def faults(*args, **given):
    """The faults as one line each."""
    found, settings, findings = looked(*args, **given)
    with pytest.raises(DataError) as caught:
        findings.settle(settings, len(found.cases))
    return [" | ".join(str(fault).splitlines()) for fault in caught.value.faults]


def test_good_cases_have_no_fault(root):
    found, settings, findings = looked()
    assert findings.settle(settings, 3) == set()
    assert not findings.warnings
    look = found.cases[0].look
    assert look.shape == SHAPE
    assert look.counts == (10 * 12 * 8 - 27, 27)
    assert look.canonical == (SHAPE, pytest.approx((0.8, 0.8, 6.5)))


def of_label(change):
    def done(root):
        save(root / "labels/p1.nii.gz", *change())

    return done


def of_image(change):
    def done(root):
        save(root / "images/p1.nii.gz", *change())

    return done


def shifted(x=0.0, y=0.0, z=0.0):
    affine = AFFINE.copy()
    affine[:3, 3] = x, y, z
    return affine


def with_value(value):
    array = scan(1)
    array[0, 0, :2] = value
    return array


def with_affine(rows):
    """Three rows of four numbers written over those of the header."""

    def done(root):
        path = root / "images/p1.nii.gz"
        raw = bytearray(gzip.decompress(path.read_bytes()))
        raw[280:328] = np.array(rows, "<f4").tobytes()
        path.write_bytes(gzip.compress(bytes(raw)))

    return done


def cut(root):
    path = root / "images/p1.nii.gz"
    path.write_bytes(path.read_bytes()[:-600])


def garbage(root):
    (root / "images/p1.nii.gz").write_bytes(gzip.compress(b"no volume" * 100))


# name of the case: what is done, what one of the faults must have.
CASES = {
    "label of another shape": (
        of_label(lambda: (mask((10, 12, 7)),)),
        ["images/p1.nii.gz (p1.nii.gz): image and label of different shape: "
         "10 x 12 x 8 and 10 x 12 x 7"],
    ),
    "label of another spacing": (
        of_label(lambda: (mask(), np.diag([-0.8, 0.8, 6.0, 1]))),
        ["image and label of different spacing: z 6.5 and 6 mm (0.5 mm apart)",
         "up to 3.5 mm (0.54 voxels) at a corner"],
    ),
    "label elsewhere": (
        of_label(lambda: (mask(), shifted(x=4.0))),
        ["image and label of different affine: up to 4 mm (5 voxels) apart",
         "data.tolerance is 0.01 voxels", "copy the header"],
    ),
    "label turned": (
        of_label(lambda: (mask(), np.diag([0.8, 0.8, 6.5, 1]))),
        ["image and label of different affine: up to 14.4 mm",
         "axes run to LAS and RAS"],
    ),
    "label values": (
        of_label(lambda: (mask() * 3,)),
        ["p1.nii.gz: label values that are not in the list: 3",
         "the list has 0, 1", "data.values"],
    ),
    "label with halves": (
        of_label(lambda: (mask() * np.float32(0.5),)),
        ["label values that are not in the list: 0.5"],
    ),
    "label with NaN": (
        of_label(lambda: (mask() * np.float32(np.nan),)),
        ["label values that are not in the list: nan"],
    ),
    "empty label": (
        of_label(lambda: (mask() * 0,)),
        ["an empty label: no voxel of any class but the first",
         "should have tumour", "data.empty=true"],
    ),
    "NaN": (
        of_image(lambda: (with_value(np.nan),)),
        ["images/p1.nii.gz: values that are no numbers: 2 voxels (0.2%)"],
    ),
    "infinite": (
        of_image(lambda: (with_value(np.inf),)),
        ["images/p1.nii.gz: values that are no numbers: 2 voxels"],
    ),
    "constant": (
        of_image(lambda: (np.full(SHAPE, 7, np.uint8),)),
        ["images/p1.nii.gz: a constant volume: every voxel is 7"],
    ),
    "4D": (
        of_image(lambda: (np.stack([scan(1), scan(2)], -1),)),
        ["images/p1.nii.gz: 4D where 3D is expected: 10 x 12 x 8 x 2",
         "data.channels"],
    ),
    "2D": (
        of_image(lambda: (scan(1)[:, :, 0],)),
        ["images/p1.nii.gz: no volume: 2 dimensions"],
    ),
    "singular affine": (
        with_affine(np.diag([1, 1, 0, 1])[:3]),
        ["images/p1.nii.gz: its affine has no inverse", "header with spacing"],
    ),
    "affine of NaN": (
        with_affine(np.full((3, 4), np.nan)),
        ["images/p1.nii.gz: its affine has no inverse"],
    ),
    "colours": (
        of_image(lambda: (np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")]),)),
        ["images/p1.nii.gz: values that are no grey"],
    ),
    "gzip cut short": (cut, ["images/p1.nii.gz: the file is cut short"]),
    "no volume inside": (garbage, ["images/p1.nii.gz: the volume is damaged"]),
    "empty file": (
        lambda root: (root / "images/p1.nii.gz").write_bytes(b""),
        ["images/p1.nii.gz: the file is empty"],
    ),
    "no label": (
        lambda root: (root / "labels/p1.nii.gz").unlink(),
        ["images/p1.nii.gz: no label"],
    ),
    "label without a volume": (
        lambda root: (root / "images/p1.nii.gz").unlink(),
        ["labels/p1.nii.gz: a label without a volume", "data.label"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_bad_case(root, name):
    spoil, wanted = CASES[name]
    spoil(root)
    found = faults()
    assert len(found) == 1
    for text in wanted:
        assert text in found[0]


def test_all_faults_at_once_and_skipped_when_asked(root):
    cut(root)
    save(root / "labels/p2.nii.gz", mask() * 5)
    assert len(faults()) == 2
    found, settings, findings = looked(bad="skip", bad_cap=0.7)
    bad = findings.settle(settings, 3)
    assert [case.id for case in found.cases if case.place not in bad] == ["p0"]
    assert len(findings.left_out) == 2


def test_within_the_tolerance(root):
    save(root / "labels/p1.nii.gz", mask(), shifted(x=0.004))
    _, settings, findings = looked()
    assert findings.settle(settings, 3) == set()
    assert "different affine" in faults(tolerance=0.001)[0]


def test_empty_labels_may_be_good(root):
    save(root / "labels/p1.nii.gz", mask() * 0)
    found, settings, findings = looked(empty=True)
    assert findings.settle(settings, 3) == set()
    assert found.cases[1].look.counts[1] == 0


def test_more_classes_than_a_mask_has_room_for(root):
    (text,) = faults(labels=tuple(map(str, range(128))))
    assert "data.labels: 128 classes where at most 127 have room" in text


def test_a_class_whose_value_is_not_known(root):
    found = faults(ignore=1)
    assert "data.ignore: 1 is the value of class 'tumour', too" in found[0]
    # nnU-Net has it among its labels.
    labels = {"background": 0, "tumour": 1, "ignore": 2}
    training = [
        {"image": f"images/p{i}.nii.gz", "label": f"labels/p{i}.nii.gz"}
        for i in range(3)
    ]
    content = json.dumps({"labels": labels, "training": training})
    (root / "dataset.json").write_text(content)
    save(root / "labels/p1.nii.gz", mask() * 2)
    found, settings, findings = looked(labels=(), ignore=2, empty=True)
    assert findings.settle(settings, 3) == set()
    assert found.labels == {"background": 0, "tumour": 1}
    assert found.cases[1].look.counts == (10 * 12 * 8 - 27, 0)


def test_labels_of_two_kinds(tmp_path):
    """Which of them is meant nobody knows; the first by name was taken."""
    save(tmp_path / "p0_image.nii.gz", scan(0))
    for name in ("edema", "label"):
        save(tmp_path / f"p0_{name}.nii.gz", mask())
    (text,) = faults(labels=("background", "edema"))
    assert "a label of all classes, and labels of single ones" in text
    assert "p0_edema.nii.gz, p0_label.nii.gz" in text


def test_a_folder_that_cannot_be_opened(root, monkeypatch):
    """Its cases must not be missing without a word."""
    from headstart_medical import paths

    real = paths.os.scandir

    def closed(place):
        if str(place).endswith("labels"):
            raise PermissionError(13, "Permission denied", str(place))
        return real(place)

    monkeypatch.setattr(paths.os, "scandir", closed)
    with pytest.raises(DataError, match="labels: the folder cannot be opened"):
        looked()


def test_classes_without_names(root):
    (text,) = faults(labels=())
    assert "data.labels: the classes have no names" in text
    assert "the values 0, 1" in text


def test_a_missing_modality(tmp_path):
    for i in range(2):
        for name in ("T1", "FLAIR"):
            save(tmp_path / f"p{i}/{name}.nii.gz", scan(i))
        save(tmp_path / f"p{i}/seg.nii.gz", mask())
    (tmp_path / "p1/FLAIR.nii.gz").unlink()
    (text,) = faults(channels=("T1", "FLAIR"))
    assert "(p1): no volume of channel 'FLAIR': a missing modality" in text


def test_channels_on_different_grids(tmp_path):
    save(tmp_path / "p0/T1.nii.gz", scan(0))
    save(tmp_path / "p0/T2.nii.gz", scan(1), shifted(z=13.0))
    save(tmp_path / "p0/seg.nii.gz", mask())
    (text,) = faults(channels=("T1", "T2"))
    assert "T2.nii.gz): channels of different affine: up to 13 mm (2 voxels)" in text


def test_files_that_do_not_say_where_they_lie(root):
    image = nibabel.Nifti1Image(scan(1), None)
    image.header["sform_code"] = image.header["qform_code"] = 0
    nibabel.save(image, root / "images/p1.nii.gz")
    affine = nibabel.load(root / "images/p1.nii.gz").affine
    save(root / "labels/p1.nii.gz", mask(), affine)
    _, _, findings = looked()
    (warning,) = findings.warnings
    assert warning.what == "no orientation in the header of 1 file"
    assert "p1.nii.gz" in warning.why


def test_smaller_than_the_patch(root):
    found, settings, findings = looked(patch=(10, 12, 16))
    check_patch(found.cases, settings.patch, None, settings, findings)
    texts = [str(f) for fs in findings.samples.values() for f in fs]
    assert len(texts) == 3
    assert "a volume smaller than the patch: z 8 of 16 voxels" in texts[0]
    # 8 slices of 6.5 mm are 26 of 2 mm; 10 and 12 of 0.8 mm are 4 and 5.
    findings.samples.clear()
    check_patch(found.cases, (4, 5, 26), (2.0, 2.0, 2.0), settings, findings)
    assert not findings.samples
    padding = settings.model_copy(update={"small": "pad"})
    check_patch(found.cases, (10, 12, 16), None, padding, findings)
    assert not findings.samples
    assert "3 volumes are smaller than the patch" in findings.warnings[0].what


# Listings


def test_faults_of_a_table(root):
    (root / "a.csv").write_text(
        "image,label,patient\n"
        "images/p0.nii.gz,labels/p0.nii.gz,\n"
        "images/P1.nii.gz,labels/p1.nii.gz,b\n"
        "images/p2.nii.gz,labels/p2.nii.gz,c,d\n"
    )
    found = faults("a.csv")
    assert any("a.csv, line 2: no patient" in text for text in found)
    assert any(
        "a.csv, line 3: images/P1.nii.gz: there is no such file" in text
        and "did you mean 'p1.nii.gz'?" in text
        for text in found
    )
    assert any("a.csv, line 4: 4 fields where the header has 3" in t for t in found)


def test_columns_that_are_not_there(root):
    (root / "a.csv").write_text("Image,label\nimages/p0.nii.gz,labels/p0.nii.gz\n")
    (text,) = faults("a.csv")
    assert "there is no column 'image' (data.image)" in text
    assert "did you mean 'Image'?" in text
    (root / "b.csv").write_text("image,label\n")
    assert "no cases in this table" in faults("b.csv")[0]


def test_faults_of_json(root):
    (root / "dataset.json").write_text("{")
    assert "dataset.json: not valid JSON" in faults()[0]
    training = [{"image": "images/p0.nii.gz", "label": "labels/p9.nii.gz"}, {"x": 1}]
    (root / "dataset.json").write_text(json.dumps({"training": training}))
    found = faults()
    assert any("training[0]: labels/p9.nii.gz: there is no such" in t for t in found)
    assert any("training[1]: no case" in text for text in found)


def test_paths_and_ids(root):
    found = faults("nothing")
    assert "there is no such file or folder" in found[0]
    assert "data.path names it" in found[0]
    (root / "void").mkdir()
    assert "no cases found" in faults("void")[0]
    (root / "a.csv").write_text(
        "id,image,label\n"
        "x,images/p0.nii.gz,labels/p0.nii.gz\nx,images/p1.nii.gz,labels/p1.nii.gz\n"
    )
    assert any("2 cases are called 'x'" in text for text in faults("a.csv"))
    assert "two volumes for one case" in _twice(root)


def _twice(root):
    shutil.copy(root / "images/p0.nii.gz", root / "images/p0.nii")
    return faults()[0]


def test_classes_of_cases(tmp_path):
    for i, folder in enumerate(("ill", "well", "wel")):
        save(tmp_path / folder / f"{i}.nii.gz", scan(i))
    (text,) = faults(settings=ScanSettings, labels=("ill", "well"))
    assert "wel/2.nii.gz: unknown class: 'wel'" in text
    assert "did you mean 'well'?" in text
    shutil.rmtree("well")
    shutil.rmtree("wel")
    assert "one class only: every case is 'ill'" in faults(settings=ScanSettings)[0]
    save(tmp_path / "flat" / "a.nii.gz", scan(1))
    assert "a.nii.gz: no class" in faults("flat", settings=ScanSettings)[0]


def test_patterns_of_patients(root):
    assert "is no regular expression" in faults(patient="(p")[0]
    assert "no patient in 3 of 3 cases" in faults(patient="(q.)")[0]
    assert "is no pattern, and there are no columns" in faults(patient="who")[0]


# Leaks


def given_splits(root, rows):
    lines = ["image,label,patient,split"]
    lines += [f"{i},labels/p0.nii.gz,{who},{split}" for i, who, split in rows]
    (root / "a.csv").write_text("\n".join(lines))


def test_a_patient_in_two_splits(root):
    rows = [("images/p0.nii.gz", "anna", "train"), ("images/p1.nii.gz", "anna", "test")]
    given_splits(root, [*rows, ("images/p2.nii.gz", "ben", "validation")])
    (text,) = faults("a.csv")
    assert "1 patient is in two splits" in text
    assert "anna: a.csv, line 2 (train), a.csv, line 3 (test)" in text


def test_a_patient_whose_first_case_has_their_name(root):
    """A case's id may be that of its patient; that says nothing against them."""
    (root / "a.csv").write_text(
        "id,image,label,patient,split\n"
        "anna,images/p0.nii.gz,labels/p0.nii.gz,anna,train\n"
        "anna-2,images/p1.nii.gz,labels/p1.nii.gz,anna,test\n"
        "ben,images/p2.nii.gz,labels/p2.nii.gz,ben,validation\n"
    )
    (text,) = faults("a.csv")
    assert "anna: a.csv, line 2 (train), a.csv, line 3 (test)" in text


def test_a_volume_in_two_splits_by_content(root):
    """Another name, another file format and another order of the axes."""
    turned = np.ascontiguousarray(scan(0)[::-1].transpose(1, 0, 2))
    affine = np.array([[0, 0.8, 0, -7.2], [0.8, 0, 0, 0], [0, 0, 6.5, 0], [0, 0, 0, 1]])
    save(root / "copy.nii", turned, affine)
    save(root / "labels/p0.nii.gz", mask())
    rows = [("copy.nii", "ben", "test"), ("images/p0.nii.gz", "anna", "train")]
    given_splits(root, [*rows, ("images/p2.nii.gz", "cleo", "validation")])
    save(root / "labels/p0.nii.gz", mask())
    texts = [text for text in faults("a.csv") if "label" not in text.split("|")[0]]
    assert any(
        "a.csv, line 3: the same volume in train and test" in text
        and "a.csv, line 2 has the same voxels" in text
        for text in texts
    )


def test_copies_on_one_side_are_a_warning(root):
    shutil.copy(root / "images/p0.nii.gz", root / "images/p1.nii.gz")
    _, settings, findings = looked()
    assert findings.settle(settings, 3) == set()
    assert "1 volume is there more than once" in findings.warnings[0].what


# DICOM

NAME, ID = "Doe^Jane", "HOSPITAL-4711"


def write_slices(folder, places, *, series="1.2.3", patient=ID, seed=0, size=(6, 5)):
    """Axial slices at some heights in millimetres; their order by file name."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    for number, place in enumerate(places):
        data = pydicom.Dataset()
        data.file_meta = FileMetaDataset()
        data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        data.SOPClassUID = pydicom.uid.MRImageStorage
        data.SOPInstanceUID = f"{series}.{seed}.{number + 1}"
        data.SeriesInstanceUID = series
        data.Modality, data.PatientName, data.PatientID = "MR", NAME, patient
        data.ImagePositionPatient = [0.0, 0.0, float(place)]
        data.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        data.PixelSpacing = [1.0, 1.0]
        data.Columns, data.Rows = size
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated = data.BitsStored = 16
        data.HighBit, data.PixelRepresentation = 15, 0
        data.PixelData = generator.integers(0, 99, size, dtype=np.uint16).tobytes()
        file = folder / f"{series}-{seed}-{number:03d}.dcm"
        pydicom.dcmwrite(file, data, enforce_file_format=True)


def without(folder, tag):
    for file in folder.iterdir():
        data = pydicom.dcmread(file)
        delattr(data, tag)
        data.save_as(file)


def no_directions(folder):
    for file in folder.iterdir():
        data = pydicom.dcmread(file)
        data.ImageOrientationPatient = [0.0] * 6
        data.save_as(file)


def beside(folder):
    """One slice shifted within its plane, by 4 mm."""
    file = sorted(folder.iterdir())[2]
    data = pydicom.dcmread(file)
    data.ImagePositionPatient[0] = 4.0
    data.save_as(file)


def remove_pixels(folder):
    for file in folder.iterdir():
        data = pydicom.dcmread(file)
        del data.PixelData
        data.save_as(file)


SERIES = {
    "missing slices": (
        lambda folder: write_slices(folder, [0, 5, 10, 25, 30, 35]),
        ["p/dicom: missing slices: 2, in 1 gap ",
         "15.00 mm from 1.2.3-0-002.dcm to 1.2.3-0-003.dcm",
         "slices are 5.00 mm apart"],
    ),
    "duplicate slices": (
        lambda folder: write_slices(folder, [0, 5, 10, 10, 15]),
        ["p/dicom: duplicate slices: 1 more than there are places",
         "1.2.3-0-002.dcm and 1.2.3-0-003.dcm, both at 10.00 mm"],
    ),
    "mixed series": (
        lambda folder: (
            write_slices(folder, [0, 5, 10]),
            write_slices(folder, [0, 5], series="1.2.4"),
        ),
        ["p/dicom: 2 DICOM series in one folder",
         "3 files such as 1.2.3-0-000.dcm; 2 files such as 1.2.4-0-000.dcm"],
    ),
    "several patients": (
        lambda folder: (
            write_slices(folder, [0, 5, 10]),
            write_slices(folder, [15], patient="other", seed=1),
        ),
        ["p/dicom: files of several patients in one DICOM series"],
    ),
    "another size": (
        lambda folder: (
            write_slices(folder, [0, 5, 10]),
            write_slices(folder, [15], size=(8, 8), seed=1),
        ),
        ["1 of 4 slices have another plane, spacing or size", "1.2.3-1-000.dcm"],
    ),
    "uneven": (
        lambda folder: write_slices(folder, [0, 5, 10, 15, 17]),
        ["slices that are not evenly apart", "from 2.00 to 5.00 mm"],
    ),
    "not on one line": (
        lambda folder: (write_slices(folder, [0, 5, 10, 15]), beside(folder)),
        ["slices that are not on one line", "up to 4.00 mm beside it"],
    ),
    "no pixels": (
        lambda folder: (write_slices(folder, [0, 5]), remove_pixels(folder)),
        ["no DICOM images in this folder", "2 DICOM files without pixels"],
    ),
    "no rows": (
        lambda folder: (write_slices(folder, [0, 5]), without(folder, "Rows")),
        ["a tag that cannot be read: 1.2.3-0-000.dcm", "AttributeError"],
    ),
    "no directions": (
        lambda folder: (write_slices(folder, [0, 5]), no_directions(folder)),
        ["rows and columns that are not at right angles: 1.2.3-0-000.dcm"],
    ),
    "not decoded": (
        lambda folder: (write_slices(folder, [0, 5]), without(folder, "BitsAllocated")),
        ["pixels that cannot be decoded: 1.2.3-0-000.dcm"],
    ),
    "no DICOM": (
        lambda folder: (write_slices(folder, [0]),
                        (folder / "b.dcm").write_bytes(b"nothing" * 40)),
        ["not a DICOM file, or damaged: b.dcm"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SERIES)
def test_bad_series(tmp_path, name):
    spoil, wanted = SERIES[name]
    spoil(tmp_path / "p" / "dicom")
    found = faults(kind="reconstruction")
    assert len(found) == 1
    for text in wanted:
        assert text in found[0]
    assert "Doe" not in found[0]
    assert "4711" not in found[0]


def test_whatever_a_series_does_is_told(tmp_path, monkeypatch):
    """No trace, and no words of an error that may hold values of tags."""
    from headstart_medical import dicom

    write_slices(tmp_path / "p", [0, 5])

    def fail(*_):
        raise KeyError(NAME)

    monkeypatch.setattr(dicom, "_ordered", fail)
    (text,) = faults(kind="reconstruction")
    assert "p: a DICOM series that cannot be read | " in text
    assert "KeyError" in text and "Doe" not in text


def test_channels_of_two_people(tmp_path):
    write_slices(tmp_path / "p1/T1", [0, 5], seed=1)
    write_slices(tmp_path / "p1/T2", [0, 5], seed=2, patient="another")
    (text,) = faults(kind="reconstruction", channels=("T1", "T2"))
    assert "p1: channels of different patients" in text
    assert "4711" not in text


def test_the_same_person_in_two_splits_by_dicom(tmp_path):
    """Found by the patient id of the headers, which is told to nobody."""
    write_slices(tmp_path / "train/a", [0, 5, 10], series="1.1", seed=1)
    write_slices(tmp_path / "test/b", [0, 5, 10], series="1.2", seed=2)
    (text,) = faults(kind="reconstruction")
    assert "1 patient is in two splits by the patient id of their DICOM" in text
    assert "test/b (test)" in text
    assert "train/a (train)" in text
    assert "Doe" not in text
    assert "4711" not in text


def test_another_modality_than_stated(tmp_path):
    write_slices(tmp_path / "a", [0, 5, 10])
    _, _, findings = looked(kind="reconstruction", modality="ct")
    assert "another modality than ct" in findings.warnings[0].what
    found, _, _ = looked(kind="reconstruction")
    assert found.modality == "mri"


def test_one_id_for_everybody(tmp_path):
    """As a user has it: folders of DICOM series with masks, from an anonymiser."""
    for i in range(5):
        write_slices(tmp_path / f"case{i}/dicom", range(0, 25, 5), seed=i)
        array = np.zeros((6, 5, 5), np.uint8)
        array[2, 2, 2] = 1
        affine = np.diag([-1.0, -1.0, 5.0, 1.0])
        save(tmp_path / f"case{i}/mask.nii.gz", array, affine)
    one, settings, findings = looked()
    (warning,) = findings.warnings
    assert warning.what == "5 cases are one patient by their DICOM headers"
    assert "4711" not in str(warning)
    with pytest.raises(DataError, match="5 cases are one patient by their DICOM"):
        split_cases(one.cases, settings, 0, Findings())
    several, settings, findings = looked(patient="(case[0-9]+)")
    (warning,) = findings.warnings
    assert warning.what == "5 cases of one DICOM patient id are 5 patients"
    assert "4711" not in str(warning)
    parts = split_cases(several.cases, settings, 0, Findings())
    assert [len(part) for part in parts.values()] == [3, 1, 1]


# What is wrong with how the data is read, not with a case


def test_channels_that_no_case_has_are_told_once(root):
    (text,) = faults(channels=("T1", "FLAIR"))
    assert "data.path: each of 3 cases: 1 channel where 2 are expected" in text
    assert "fix: name in data.channels those alone that each case has" in text


def test_what_is_wrong_with_some_is_told_of_each(root):
    save(root / "labels/p0.nii.gz", mask() * 3)
    save(root / "labels/p1.nii.gz", mask() * 3)
    assert len(faults()) == 2
    save(root / "labels/p2.nii.gz", mask() * 3)
    (text,) = faults()
    assert "each of 3 cases: label values that are not in the list: 3" in text


def test_a_path_that_is_not_there_is_all_that_is_told():
    (text,) = faults("nothing", labels=())
    assert "there is no such file or folder" in text


def test_a_word_for_labels_that_no_file_has(root):
    _, _, findings = looked(label="lables")
    (warning,) = findings.warnings
    assert warning.what == "no file or folder is called 'lables' (data.label)"
    assert warning.fix == "did you mean 'labels'?"
    assert not looked(label="labels")[2].warnings
    (root / "a.csv").write_text("image,label\nimages/p0.nii.gz,labels/p0.nii.gz\n")
    (text,) = faults("a.csv", label="seg")
    assert "there is no column 'seg' (data.label)" in text


def test_far_apart_is_told_in_whole_numbers(root):
    save(root / "labels/p1.nii.gz", mask(), shifted(x=100.0))
    assert "up to 100 mm (125 voxels) apart" in faults()[0]
    save(root / "labels/p1.nii.gz", mask(), shifted(x=1600.0))
    assert "up to 1,600 mm (2,000 voxels) apart" in faults()[0]
