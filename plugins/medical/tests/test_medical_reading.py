"""Volumes from files: the same voxels and the same place, whatever the format."""

from __future__ import annotations

import logging
import warnings

import nibabel
import nrrd
import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileMetaDataset
from pydicom.sequence import Sequence as Items

from headstart_medical.reading import (
    VolumeError,
    read_images,
    read_mask,
    read_volume,
)

# 2 x 3 x 4 mm, x to the left, tilted a little: (4, 5, 6) voxels.
AFFINE = np.array(
    [
        [-2.0, 0.0, 0.4, 90.0],
        [0.0, 3.0, 0.0, -126.0],
        [0.0, 0.3, 4.0, -72.0],
        [0, 0, 0, 1],
    ]
)
NAME, ID = "Doe^Jane", "HOSPITAL-4711"


def values(seed=0, shape=(4, 5, 6)):
    return np.random.default_rng(seed).integers(-500, 900, shape).astype(np.int16)


def save(path, array, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, affine), path)
    return path


def write_series(folder, array, affine, *, slope=1, intercept=0, shuffle=True, **tags):
    """One file a slice, as scanners do: LPS millimetres, rows and columns."""
    folder.mkdir(parents=True, exist_ok=True)
    lps = np.diag([-1, -1, 1, 1]) @ affine
    x, y = lps[:3, 0], lps[:3, 1]
    spacing = np.linalg.norm(x), np.linalg.norm(y)
    series = tags.pop("SeriesInstanceUID", "1.2.3.4")
    order = list(range(array.shape[2]))
    if shuffle:
        np.random.default_rng(7).shuffle(order)
    for place, k in enumerate(order):
        data = pydicom.Dataset()
        data.file_meta = FileMetaDataset()
        data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        data.SOPClassUID = pydicom.uid.CTImageStorage
        data.SOPInstanceUID = f"{series}.{k + 1}"
        data.SeriesInstanceUID = series
        data.Modality, data.PatientName, data.PatientID = "CT", NAME, ID
        data.SeriesDescription = f"head of {NAME}"
        data.InstanceNumber = k + 1
        data.ImagePositionPatient = [float(v) for v in (lps @ [0, 0, k, 1])[:3]]
        data.ImageOrientationPatient = [*(x / spacing[0]), *(y / spacing[1])]
        data.PixelSpacing = [spacing[1], spacing[0]]
        data.Columns, data.Rows = array.shape[:2]
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated = data.BitsStored = 16
        data.HighBit, data.PixelRepresentation = 15, 1
        data.RescaleSlope, data.RescaleIntercept = slope, intercept
        data.PixelData = np.ascontiguousarray(array[:, :, k].T).tobytes()
        for name, value in tags.items():
            setattr(data, name, value)
        pydicom.dcmwrite(folder / f"{place:03d}.dcm", data, enforce_file_format=True)
    return folder


# Upright in LPS, as DICOM planes are at right angles; the step may be tilted.
UPRIGHT = np.array(
    [
        [-2.0, 0.0, 0.0, 90.0],
        [0.0, -3.0, 0.6, 126.0],
        [0.0, 0.0, 4.0, -72.0],
        [0, 0, 0, 1],
    ]
)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_nifti_keeps_voxels_and_affine(tmp_path, ending):
    volume = read_volume(save(tmp_path / f"a{ending}", values()))
    assert np.array_equal(volume.array, values())
    assert np.allclose(volume.affine, AFFINE)
    assert volume.facts == {"format": "NIfTI", "oriented": True}
    assert volume.spacing == pytest.approx((2.0, np.hypot(3, 0.3), np.hypot(4, 0.4)))


def test_nifti_scaling_units_and_a_missing_orientation(tmp_path):
    image = nibabel.Nifti1Image(values(), np.diag([0.002, 0.003, 0.004, 1]))
    image.header.set_xyzt_units("meter")
    image.header.set_slope_inter(0.5, 10)
    nibabel.save(image, tmp_path / "a.nii")
    raw = np.asarray(nibabel.load(tmp_path / "a.nii").dataobj)
    volume = read_volume(tmp_path / "a.nii")
    assert volume.spacing == pytest.approx((2.0, 3.0, 4.0), rel=1e-5)
    assert np.allclose(volume.array, raw)
    bare = nibabel.Nifti1Image(values(), None)
    bare.header["sform_code"] = bare.header["qform_code"] = 0
    nibabel.save(bare, tmp_path / "b.nii")
    assert read_volume(tmp_path / "b.nii").facts["oriented"] is False


@pytest.mark.parametrize(
    ("space", "signs"),
    [
        ("left-posterior-superior", (-1, -1, 1)),
        ("right-anterior-superior", (1, 1, 1)),
        ("left-anterior-superior", (-1, 1, 1)),
    ],
)
def test_nrrd_is_where_nifti_is(tmp_path, space, signs):
    turned = np.diag([*signs, 1]) @ AFFINE
    header = {
        "space": space,
        "space directions": turned[:3, :3].T,
        "space origin": turned[:3, 3],
        "DICOM_0010_0010_PatientName": NAME,
    }
    nrrd.write(str(tmp_path / "a.nrrd"), values(), header)
    volume = read_volume(tmp_path / "a.nrrd")
    assert np.array_equal(volume.array, values())
    assert np.allclose(volume.affine, AFFINE)
    assert volume.facts == {"format": "NRRD", "oriented": True}


def test_nrrd_channels_go_behind(tmp_path):
    both = np.stack([values(0), values(1)])
    header = {
        "space": "right-anterior-superior",
        "kinds": ["vector", "domain", "domain", "domain"],
        "space directions": np.vstack([[np.nan] * 3, AFFINE[:3, :3].T]),
        "space origin": AFFINE[:3, 3],
    }
    nrrd.write(str(tmp_path / "a.nrrd"), both, header)
    volume = read_images([tmp_path / "a.nrrd"], 2)
    assert np.array_equal(volume.array, both)
    assert np.allclose(volume.affine, AFFINE)


def test_nrrd_spaces_in_any_case_and_kinds_of_axes(tmp_path):
    header = {"space": "Left-Posterior-Superior", "space directions": np.eye(3)}
    nrrd.write(
        str(tmp_path / "a.nrrd"), values(), {**header, "space origin": [1, 2, 3]}
    )
    volume = read_volume(tmp_path / "a.nrrd")
    assert volume.affine[:3, 3].tolist() == [-1, -2, 3]
    assert volume.affine.diagonal().tolist() == [-1, -1, 1, 1]
    assert volume.facts["oriented"]
    both = np.stack([values(0), values(1)], -1)
    nrrd.write(str(tmp_path / "b.nrrd"), both, {"kinds": ["domain"] * 3 + ["list"]})
    assert np.array_equal(read_volume(tmp_path / "b.nrrd").array, both)


def test_nrrd_in_other_units(tmp_path):
    header = {
        "space": "right-anterior-superior",
        "space directions": np.diag([0.1, 0.2, 0.3]),
        "space origin": [1, 2, 3],
        "space units": ["cm", "cm", "cm"],
    }
    nrrd.write(str(tmp_path / "a.nrrd"), values(), header)
    volume = read_volume(tmp_path / "a.nrrd")
    assert volume.spacing == pytest.approx((1, 2, 3))
    assert volume.affine[:3, 3].tolist() == [10, 20, 30]


def test_nothing_of_a_damaged_nrrd_header_is_told(tmp_path):
    head = "NRRD0004\ntype: uchar\ndimension: 3\nsizes: 2 2 2\n"
    for lines in (f"NRRD{NAME}\n", f"{head}{NAME}\n\n", f"{head}spacings: {NAME}\n\n"):
        (tmp_path / "a.nrrd").write_text(lines)
        with pytest.raises(VolumeError, match="header is damaged") as caught:
            read_volume(tmp_path / "a.nrrd")
        assert "Doe" not in str(caught.value)


def test_small_voxels_are_no_fault(tmp_path):
    path = save(tmp_path / "a.nii", values(), np.diag([5e-4, 5e-4, 5e-4, 1]))
    assert read_volume(path).spacing == pytest.approx([5e-4] * 3)
    flat = np.diag([1.0, 1, 1, 1])
    flat[:3, 1] = 1, 1e-7, 0
    with pytest.raises(VolumeError, match="no inverse"):
        read_volume(save(tmp_path / "b.nii", values(), flat))


def test_channels_as_itk_writes_them(tmp_path):
    both = np.stack([values(0), values(1)], -1)
    volume = read_images([save(tmp_path / "a.nii", both[:, :, :, None])], 2)
    assert np.array_equal(volume.array, np.moveaxis(both, -1, 0))


def test_nrrd_with_voxels_elsewhere_is_refused(tmp_path):
    (tmp_path / "secret").write_bytes(bytes(8))
    (tmp_path / "a.nrrd").write_text(
        "NRRD0004\ntype: uchar\ndimension: 3\nsizes: 2 2 2\nencoding: raw\n"
        "data file: secret\n\n"
    )
    with pytest.raises(VolumeError, match="elsewhere"):
        read_volume(tmp_path / "a.nrrd")


def test_dicom_is_where_nifti_is(tmp_path):
    """Slices in any order; a tilted gantry shears the affine; Hounsfield units."""
    folder = write_series(tmp_path / "ct", values(), UPRIGHT, slope=2, intercept=-1024)
    (folder / "notes.txt").write_text("not a slice")
    volume = read_volume(folder)
    assert np.allclose(volume.affine, UPRIGHT)
    assert np.array_equal(volume.array, values().astype(np.float32) * 2 - 1024)
    assert volume.facts == {
        "format": "DICOM", "oriented": True, "modality": "ct", "slices": 6,
    }  # fmt: skip


def test_dicom_whole_numbers_stay_whole(tmp_path):
    volume = read_volume(write_series(tmp_path / "a", values(), UPRIGHT, intercept=-5))
    assert volume.array.dtype == np.int32
    assert np.array_equal(volume.array, values() - 5)


@pytest.mark.slow  # importing all of MONAI
def test_dicom_equals_monai(tmp_path):
    from monai.data import PydicomReader

    folder = write_series(tmp_path / "a", values(), UPRIGHT, intercept=-5)
    reader = PydicomReader(swap_ij=True, affine_lps_to_ras=True)
    array, meta = reader.get_data(reader.read(str(folder)))
    volume = read_volume(folder)
    assert np.array_equal(volume.array, array)
    assert np.allclose(volume.affine, np.asarray(meta["affine"]))


def test_dicom_of_many_frames(tmp_path):
    """An enhanced object: one file, positions in sequences."""
    one = write_series(tmp_path / "one", values()[:, :, :1], UPRIGHT) / "000.dcm"
    data = pydicom.dcmread(one)
    lps = np.diag([-1, -1, 1, 1]) @ UPRIGHT
    shared, frames = pydicom.Dataset(), []
    shared.PlaneOrientationSequence = Items([pydicom.Dataset()])
    shared.PlaneOrientationSequence[
        0
    ].ImageOrientationPatient = data.ImageOrientationPatient
    shared.PixelMeasuresSequence = Items([pydicom.Dataset()])
    shared.PixelMeasuresSequence[0].PixelSpacing = data.PixelSpacing
    order = [3, 0, 5, 1, 2, 4]
    for k in order:
        frame, plane = pydicom.Dataset(), pydicom.Dataset()
        plane.ImagePositionPatient = [float(v) for v in (lps @ [0, 0, k, 1])[:3]]
        frame.PlanePositionSequence = Items([plane])
        frames.append(frame)
    del data.ImagePositionPatient, data.ImageOrientationPatient, data.PixelSpacing
    data.SharedFunctionalGroupsSequence = Items([shared])
    data.PerFrameFunctionalGroupsSequence = Items(frames)
    data.NumberOfFrames = 6
    data.PixelData = b"".join(
        np.ascontiguousarray(values()[:, :, k].T).tobytes() for k in order
    )
    (tmp_path / "all").mkdir()
    pydicom.dcmwrite(tmp_path / "all" / "a.dcm", data, enforce_file_format=True)
    volume = read_volume(tmp_path / "all")
    assert np.allclose(volume.affine, UPRIGHT)
    assert np.array_equal(volume.array, values())


def test_dicom_is_uncompressed(tmp_path):
    folder = write_series(tmp_path / "a", values(), UPRIGHT)
    for file in folder.iterdir():
        data = pydicom.dcmread(file)
        data.compress(pydicom.uid.RLELossless)
        data.save_as(file)
    assert np.array_equal(read_volume(folder).array, values())


def test_dicom_of_unsigned_and_of_twelve_bits(tmp_path):
    for name, bits, signed in [("a", 12, 1), ("b", 16, 0)]:
        array = values() if signed else values() + np.int32(40_000)
        folder = write_series(
            tmp_path / name, array.astype(np.int16 if signed else np.uint16), UPRIGHT,
            BitsStored=bits, HighBit=bits - 1, PixelRepresentation=signed,
        )  # fmt: skip
        assert np.array_equal(read_volume(folder).array, array)


def test_dicom_slopes_of_each_slice(tmp_path):
    """PET scales every slice by itself."""
    folder = write_series(tmp_path / "a", values(), UPRIGHT, shuffle=False)
    for k, file in enumerate(sorted(folder.iterdir())):
        data = pydicom.dcmread(file)
        data.RescaleSlope = 0.5 * (k + 1)
        data.save_as(file)
    expected = values() * (0.5 * np.arange(1, 7))
    assert np.allclose(read_volume(folder).array, expected)


def test_dicom_of_directions_that_differ_in_the_last_digit(tmp_path):
    """A rounded digit may fall to either side; the plane is the same."""
    folder = write_series(tmp_path / "a", values(), UPRIGHT)
    for k, file in enumerate(sorted(folder.iterdir())):
        data = pydicom.dcmread(file)
        data.ImageOrientationPatient[2] = 0.0005 + (-1) ** k * 1e-6
        data.save_as(file)
    assert read_volume(folder).array.shape == (4, 5, 6)


def test_a_single_slice_is_as_thick_as_it_says(tmp_path):
    one = values()[:, :, :1]
    folder = write_series(tmp_path / "a", one, UPRIGHT, SliceThickness=7)
    assert read_volume(folder).spacing == pytest.approx((2, np.hypot(3, 0.0), 7))
    # Of an enhanced object it is in a sequence.
    data = pydicom.dcmread(folder / "000.dcm")
    shared, measures = pydicom.Dataset(), pydicom.Dataset()
    measures.PixelSpacing, measures.SliceThickness = data.PixelSpacing, 5
    shared.PixelMeasuresSequence = Items([measures])
    data.SharedFunctionalGroupsSequence = Items([shared])
    data.PerFrameFunctionalGroupsSequence = Items([pydicom.Dataset()])
    del data.SliceThickness, data.PixelSpacing
    data.save_as(folder / "000.dcm")
    assert read_volume(folder).spacing[2] == pytest.approx(5)


@pytest.mark.parametrize("name", ["ANONYMIZED", "anon42", "0", "Unknown", "no name"])
def test_an_id_that_everybody_has_is_nobodys(tmp_path, name):
    folder = write_series(tmp_path / "a", values(), UPRIGHT, PatientID=name)
    assert read_volume(folder).person == ""


def test_odd_tags_are_not_repeated(tmp_path, capfd):
    """pydicom would warn of a value that its tag cannot have, and say it."""
    folder = write_series(tmp_path / "a", values(), UPRIGHT, Modality="Doe jane")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert read_volume(folder).facts["modality"] == "other"
    assert not [str(w.message) for w in told if "Doe" in str(w.message)]
    assert "Doe" not in str(capfd.readouterr())


def test_nothing_of_a_patient_leaves_a_header(tmp_path, caplog, capfd):
    folder = write_series(tmp_path / "a", values(), UPRIGHT)
    with warnings.catch_warnings(record=True) as told, caplog.at_level(logging.DEBUG):
        warnings.simplefilter("always")
        volume = read_volume(folder)
    seen = repr(volume) + repr(volume.facts) + volume.person + caplog.text
    seen += "".join(str(warning.message) for warning in told) + str(capfd.readouterr())
    assert "Doe" not in seen
    assert "4711" not in seen
    same = read_volume(write_series(tmp_path / "b", values(1), UPRIGHT))
    other = write_series(tmp_path / "c", values(2), UPRIGHT, PatientID="another")
    assert volume.person == same.person != read_volume(other).person


def test_faults_of_a_series_do_not_name_the_patient(tmp_path):
    odd = write_series(tmp_path / "a", values(), UPRIGHT) / "002.dcm"
    raw = odd.read_bytes()
    odd.write_bytes(raw.replace(b"ImagePos", b"ImagePos")[: len(raw) - 40])
    with pytest.raises(VolumeError) as caught:
        read_volume(tmp_path / "a")
    assert "002.dcm" in str(caught.value)
    assert "Doe" not in str(caught.value) + caught.value.why + caught.value.fix


def test_channels_from_several_files_and_from_one(tmp_path):
    paths = [save(tmp_path / f"{i}.nii.gz", values(i)) for i in range(3)]
    volume = read_images(paths, 3)
    assert volume.array.dtype == np.float32
    assert volume.array.shape == (3, 4, 5, 6)
    whole = np.stack([values(i) for i in range(3)], -1)
    single = read_images([save(tmp_path / "all.nii.gz", whole)], 3)
    assert np.array_equal(single.array, volume.array)
    with pytest.raises(VolumeError, match="3 channels where 2"):
        read_images([tmp_path / "all.nii.gz"], 2)
    with pytest.raises(VolumeError, match="4D where 3D"):
        read_images([tmp_path / "all.nii.gz"], 1)


def test_a_trailing_dimension_of_one_is_none(tmp_path):
    path = save(tmp_path / "a.nii", values()[..., None])
    assert read_volume(path).array.shape == (4, 5, 6)


def test_masks_become_class_indices(tmp_path):
    raw = np.zeros((4, 5, 6), np.uint8)
    raw[0], raw[1], raw[2] = 4, 2, 255
    path = save(tmp_path / "a.nii", raw)
    mask = read_mask([path], [0, 2, 4], ignore=255).array
    assert mask.dtype == np.int16
    assert [int(mask[i, 0, 0]) for i in range(4)] == [2, 1, -1, 0]
    with pytest.raises(VolumeError, match="not in the list: 4, 255"):
        read_mask([path], [0, 2])


def test_one_file_a_class(tmp_path):
    first, second = np.zeros((2, 4, 5, 6), np.uint8)
    first[:3], second[2:] = 1, 200
    paths = [save(tmp_path / f"{i}.nii", a) for i, a in enumerate((first, second))]
    mask = read_mask(paths, [0, 1, 2]).array
    assert [int(mask[i, 0, 0]) for i in range(4)] == [1, 1, 2, 2]
    assert not read_mask(paths, [0, 1, 2], above=200).array.any(axis=(1, 2))[3]
    grey = save(tmp_path / "grey.nii", values())
    inside = read_mask([grey], [0, 1], above=127).array
    assert np.array_equal(inside == 1, values() > 127)
    with pytest.raises(VolumeError, match="not in the list"):
        read_mask([paths[0], grey], [0, 1, 2])
    with pytest.raises(VolumeError, match="2 label files for 2 classes"):
        read_mask(paths, [0, 1])
