"""Predictions as NIfTI and tables, and the baselines beside them."""

from __future__ import annotations

import csv
import json
import struct
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np
import pytest
import torch

from headstart_medical import baselines, metrics, run_lengths
from headstart_medical.predictions import (
    output_names,
    segmentation_rows,
    write_predictions,
)

if TYPE_CHECKING:
    from pathlib import Path

TASK = {
    "kind": "volume-segmentation",
    "labels": ["background", "core", "rim"],
    "counts": [900, 10, 90],
}
# Neither upright nor of equal sides.
AFFINE = np.array(
    [
        [-0.8, 0.05, 0.0, 90.25],
        [0.04, 1.0, 0.3, -126.5],
        [0.0, -0.2, 2.5, -72.75],
        [0, 0, 0, 1],
    ]
)
SHAPE = (9, 8, 7)


def scan(path: Path) -> Path:
    """A scan whose free text names the patient."""
    image = nib.Nifti1Image(np.ones(SHAPE, dtype=np.int16), AFFINE)
    image.set_sform(AFFINE, 2)
    image.header["descrip"] = b"DOE^JANE 1970-01-01"
    image.header["db_name"] = b"DOE^JANE"
    image.to_filename(path)
    return path


def mask() -> np.ndarray:
    """Two parts of class 1, one of class 2."""
    values = np.zeros(SHAPE, dtype=np.uint8)
    values[1:3, 1:3, 1:3] = 1
    values[6, 6, 6] = 1
    values[4:6, 2:5, 2:4] = 2
    return values


def rows(**options: Any) -> list[dict[str, Any]]:
    likely = np.linspace(0, 1, mask().size, dtype=np.float16).reshape(SHAPE)
    outputs = {
        "prediction": [mask()],
        "spacing": torch.tensor([[0.8, 1.0, 2.5]]),
        "confidence": [likely],
    }
    made = segmentation_rows(outputs, TASK["labels"], **options)
    # As a program that reads standard output has them.
    return json.loads(json.dumps(made))


@pytest.mark.parametrize("shape", [(3, 4, 5), (1, 1, 1), (2, 0, 3)])
def test_run_lengths_give_the_mask_back(shape: tuple[int, int, int]) -> None:
    values = np.random.default_rng(0).integers(0, 3, shape).astype(np.uint8)
    runs = json.loads(json.dumps(run_lengths.encode(np.asfortranarray(values))))
    np.testing.assert_array_equal(run_lengths.decode(runs), values)


def test_rows_have_volumes_and_numbers_of_lesions() -> None:
    (row,) = rows()
    # 9 and 12 voxels of 2 mm³.
    assert row["millilitres"] == {"core": 0.018, "rim": 0.024}
    assert row["lesions"] == {"core": 2, "rim": 1}
    assert "probability" not in row


def test_masks_lie_on_the_grid_of_the_scan(tmp_path: Path) -> None:
    source = scan(tmp_path / "scan.nii.gz")
    (tmp_path / "out").mkdir()
    files = write_predictions(tmp_path / "out", ["scan.nii.gz"], [source], rows(), TASK)
    assert files == [tmp_path / "out/predictions.csv", tmp_path / "out/masks"]
    made, given = nib.load(tmp_path / "out/masks/scan.nii.gz"), nib.load(source)
    np.testing.assert_array_equal(made.affine, given.affine)
    assert made.header["sform_code"] == 2
    assert made.header["qform_code"] > 0, "some viewers read the qform alone"
    assert made.header.get_xyzt_units()[0] == "mm"
    assert made.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asarray(made.dataobj), mask())


def written(path: Path, source: Path) -> Any:
    """The header of the mask for a scan."""
    path.mkdir()
    write_predictions(path, ["scan"], [source], rows(), TASK)
    return nib.load(path / "masks/scan.nii.gz").header


def test_viewers_of_either_form_see_mask_and_scan_in_one_place(tmp_path: Path) -> None:
    # Registered to an atlas: the sform leads there, the qform to the scanner.
    scanner = np.diag([0.8, 1.0, 2.5, 1.0])
    scanner[:3, 3] = 4, 5, 6
    image = nib.Nifti1Image(np.ones(SHAPE, dtype=np.int16), AFFINE)
    image.set_sform(AFFINE, 4)
    image.set_qform(scanner, 1)
    source = tmp_path / "SCAN.NII"
    image.to_filename(source)
    header = written(tmp_path / "both", source)
    np.testing.assert_allclose(header.get_sform(), AFFINE, atol=1e-5)
    np.testing.assert_allclose(header.get_qform(), scanner, atol=1e-5)
    assert (header["sform_code"], header["qform_code"]) == (4, 1)
    # A quaternion that is none: what other tools write is taken all the same.
    damaged = bytearray(source.read_bytes())
    struct.pack_into("<f", damaged, 256, 3.0)
    source.write_bytes(damaged)
    header = written(tmp_path / "sform", source)
    np.testing.assert_allclose(header.get_sform(), AFFINE, atol=1e-5)
    assert (header["sform_code"], header["qform_code"]) == (4, 4)


def test_a_scan_that_is_nowhere_has_a_mask_that_is_nowhere(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.ones(SHAPE, dtype=np.int16), None)
    image.header.set_zooms((0.8, 1.0, 2.5))
    image.to_filename(source := tmp_path / "scan.nii")
    header = written(tmp_path / "out", source)
    assert (header["sform_code"], header["qform_code"]) == (0, 0)
    np.testing.assert_array_equal(
        header.get_best_affine(), nib.load(source).header.get_best_affine()
    )


def test_nothing_of_a_header_names_the_patient(tmp_path: Path) -> None:
    source = scan(tmp_path / "scan.nii")
    (tmp_path / "out").mkdir()
    made = rows(probabilities=True)
    write_predictions(tmp_path / "out", ["scan"], [source], made, TASK)
    assert b"DOE" in source.read_bytes()
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(files) == 4
    for path in files:
        raw = path.read_bytes()
        if path.suffix == ".gz":
            image = nib.load(path)
            raw = image.header.binaryblock
            assert image.header["descrip"].item().startswith(b"Not a medical device")
        assert b"DOE" not in raw


def test_probabilities_are_kept_when_asked_for(tmp_path: Path) -> None:
    source = scan(tmp_path / "scan.nii.gz")
    (tmp_path / "out").mkdir()
    made = rows(probabilities=True)
    files = write_predictions(tmp_path / "out", ["scan.nii.gz"], [source], made, TASK)
    assert files[-1] == tmp_path / "out/probabilities"
    found = nib.load(files[-1] / "scan.nii.gz")
    expected = np.linspace(0, 1, mask().size).reshape(SHAPE)
    np.testing.assert_allclose(found.get_fdata(), expected, atol=0.004)
    np.testing.assert_array_equal(found.affine, nib.load(source).affine)


def test_the_table_names_inputs_masks_and_volumes(tmp_path: Path) -> None:
    source = scan(tmp_path / "scan.nii.gz")
    (tmp_path / "out").mkdir()
    names = ["a/scan.nii.gz", "b/SCAN.nii.gz"]
    write_predictions(tmp_path / "out", names, [source] * 2, rows() * 2, TASK)
    with (tmp_path / "out/predictions.csv").open(encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    assert table[0] == {
        "input": "a/scan.nii.gz",
        "mask": "masks/scan.nii.gz",
        "core ml": "0.018",
        "core lesions": "2",
        "rim ml": "0.024",
        "rim lesions": "1",
    }
    assert (tmp_path / "out" / table[1]["mask"]).exists()
    assert table[1]["mask"] == "masks/SCAN-2.nii.gz"
    told = (tmp_path / "out/README.txt").read_text(encoding="utf-8")
    assert "Not a medical device" in told and "2 rim" in told


def test_names_stay_inside_the_folder_and_apart() -> None:
    given = ["../../etc/x.nii.gz", "x.NRRD", "dicom folder/", "..", "x"]
    found = output_names(given)
    assert found[:3] == ["x", "x-2", "dicom-folder"]
    assert len({name.casefold() for name in found}) == len(given)
    assert not any("/" in name or name.startswith(".") or not name for name in found)


def test_labels_are_written_as_a_table(tmp_path: Path) -> None:
    task = {"kind": "single-label", "labels": ["without", "with"]}
    shares = {"without": 0.25, "with": 0.75}
    made = [{"label": "with", "probability": 0.75, "probabilities": shares}]
    files = write_predictions(tmp_path, ["scan"], ["nowhere.nii"], made, task)
    assert files == [tmp_path / "predictions.csv"]
    assert files[0].read_text(encoding="utf-8").splitlines() == [
        "input,label,probability,without,with",
        "scan,with,0.75,0.25,0.75",
    ]


def test_otsus_threshold_leaves_least_variance_within_the_groups() -> None:
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(20, 5, 3000), rng.normal(60, 12, 900)])

    def within(threshold: float) -> float:
        groups = values[values <= threshold], values[values > threshold]
        return sum(len(group) * group.var() for group in groups)

    width = np.ptp(values) / baselines.BINS
    tried = np.arange(values.min() + width, values.max() - width, width)
    least = min(map(within, tried))
    assert within(baselines.otsu(values)) == pytest.approx(least, rel=1e-3)


def head() -> tuple[np.ndarray, np.ndarray]:
    """A grey ball with a bright rim (the skull) and a bright spot inside."""
    grid = np.stack(np.mgrid[:48, :48, :48])
    radius = np.linalg.norm(grid - 24, axis=0)
    spot = (
        np.linalg.norm(grid - np.array([24, 30, 20])[:, None, None, None], axis=0) < 4
    )
    image = np.where(radius < 20, 50.0, 0.0)
    image[(radius >= 18) & (radius < 21)] = 200
    image[spot] = 160
    return image, spot.astype(np.uint8)


def test_the_bright_part_is_the_spot_and_not_the_skull() -> None:
    image, spot = head()
    np.testing.assert_array_equal(baselines.bright_part(image, (4, 4, 4)), spot)


@pytest.mark.parametrize("image", [np.zeros((6, 6, 6)), np.full((6, 6, 6), np.nan)])
def test_a_volume_without_contrast_has_no_bright_part(image: np.ndarray) -> None:
    assert not baselines.bright_part(image, (1, 1, 1)).any()


def test_segmentation_baselines_are_measured_like_a_model() -> None:
    image, spot = head()
    cases = [(image, 2 * spot, (4.0, 4.0, 4.0))]
    nothing, bright = baselines.segmentation_baselines(cases, TASK)
    assert nothing.name == "everything background"
    assert bright.name.endswith("as rim"), "the foreground class with most voxels"
    # Of class "core" there is nothing, and nothing is said: 1.
    assert metrics.dice_scores(TASK, nothing.outputs).tolist() == [0.5]
    assert metrics.dice_scores(TASK, bright.outputs).tolist() == [1]


def test_classification_baselines_learn_from_intensity() -> None:
    rng = np.random.default_rng(0)
    task = {"kind": "single-label", "labels": ["without", "with"]}

    def volumes(labels: list[int]) -> list[np.ndarray]:
        return [rng.normal(3 * label, 1, (2, 4, 4, 4)) for label in labels]

    known, truth = [0, 0, 0, 1, 1] * 4, [0, 1, 1]
    majority, linear = baselines.classification_baselines(
        volumes(known), known, volumes(truth), truth, task
    )
    assert majority.outputs["prediction"].tolist() == [0, 0, 0]
    np.testing.assert_allclose(majority.outputs["probabilities"][0], [0.6, 0.4])
    assert linear.outputs["prediction"].tolist() == truth


def test_one_label_alone_leaves_the_majority() -> None:
    volume = np.zeros((1, 2, 2, 2))
    task = {"kind": "single-label", "labels": ["without", "with"]}
    found = baselines.classification_baselines([volume], [1], [volume], [0], task)
    assert [one.name for one in found] == ["majority class"]


def test_statistics_are_by_channel() -> None:
    image = np.stack([np.full((3, 3, 3), 7.0), np.arange(27.0).reshape(3, 3, 3)])
    found = baselines.statistics(image).reshape(2, 10)
    assert found[0].tolist() == [7, 0, 0] + [7] * 7
    # Mean, skewness and median of 0 to 26.
    assert found[1, [0, 2, 6]] == pytest.approx([13, 0, 13])
