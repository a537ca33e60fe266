"""Whole runs of the medical plugin, as its users start them."""

from __future__ import annotations

import csv
import gzip
import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel
import numpy as np
import pydicom
import pytest
import torch
from click.testing import CliRunner
from pydicom.dataset import FileMetaDataset

import headstart
from headstart.callbacks import Callback
from headstart.checkpoint import open_checkpoint
from headstart.cli import commands
from headstart.errors import DataError, HeadstartError
from headstart_medical.reading import read_volume
from headstart_medical.tiny import (
    PATCH,
    SIDES,
    SPACING,
    tiny_lesion_slices,
    tiny_lesions,
    tiny_scans,
    tiny_volumes,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from click.testing import Result

# Nobody else's bytes look like these by chance.
NAME, NUMBER, BORN = "Quxfeldt^Wilhelmina", "HOSPITAL-4711-0815", "19310229"
SERIES = "1.2.826.0.1.99887766"
SECRETS = ("quxfeldt", "wilhelmina", "hospital-4711", BORN, SERIES)
GEOMETRY = ("spacing", "patch", "patches_per_case", "margin", "block")
QUICK = {
    "backbone.weights": "none",
    "train.max_steps": 2,
    "train.batch_size": 2,
    "report.scratch_control": False,
}
DEEPBRAIN = {"backbone.widths": [2, 3, 4]}
SEGRESNET = {
    "backbone.name": "medical/segresnet",
    "backbone.init_filters": 8,
    "backbone.blocks_down": [1, 1, 1, 1],
}
DYNUNET = {
    "backbone.name": "medical/dynunet",
    "backbone.filters": [4, 4, 6],
    "backbone.strides": [1, 2, 2],
    "head.deep_supervision": 1,
}
# Trains for real: a bright ball is easy to see.
LEARNS = {
    "backbone.widths": [4, 6, 8],
    "train.max_steps": 40,
    "train.epochs": 20,
    "train.evaluate_every": 10,
    "train.batch_size": 4,
    "train.learning_rate": 1e-2,
    "train.schedule": "constant",
    "train.warmup": 0.0,
    "data.augmentation": "none",
}


class Watch(Callback):
    """What a run tells, and which volumes are in which split."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.cases: dict[str, list[str]] = {}

    def on_assembled(
        self, recipe: Any, assembly: Any, transfer: Any, total_steps: int
    ) -> None:
        for split, entries in assembly.data.entries.items():
            self.cases[split] = [entry.id for entry in entries]

    def on_message(self, text: str) -> None:
        self.messages.append(text)


class Killed(BaseException):
    """No handler of ours may see it, as none sees SIGKILL."""


class KillAt(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, step: int) -> None:
        if step == self.step:
            raise Killed


def settings_of(data: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    given = {f"data.{key}": value for key, value in data.items()}
    return {**QUICK, **given, **changes}


def start(
    recipe: str,
    data: dict[str, Any],
    folder: Path,
    watch: Callback | None = None,
    **changes: Any,
) -> headstart.Run:
    overrides = settings_of(data, changes)
    callbacks = [watch] if watch else []
    return headstart.run(recipe, overrides, folder=folder, callbacks=callbacks)


def command(*words: Any) -> Result:
    return CliRunner().invoke(commands, [str(word) for word in words])


def told(result: Result) -> str:
    """All that the screen shows, and the error that the console script would."""
    return result.output + (str(result.exception) if result.exception else "")


def titles(run: headstart.Run) -> set[str]:
    page = (run.folder / "report.html").read_text("utf-8")
    return set(re.findall(r"<h2[^>]*>([^<]*)</h2>", page))


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "predictions.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def without_grid(data: dict[str, Any]) -> dict[str, Any]:
    """For networks that read whole volumes of one shape."""
    kept = {key: value for key, value in data.items() if key not in GEOMETRY}
    return {**kept, "shape": list(PATCH)}


@pytest.fixture(scope="module", autouse=True)
def _here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEADSTART_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return tiny_volumes(tmp_path_factory.mktemp("volumes"))


@pytest.fixture(scope="module")
def learned(
    volumes: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[headstart.Run, Watch]:
    """A small network that has learned to find balls, with its scratch control."""
    watch = Watch()
    folder = tmp_path_factory.mktemp("runs") / "learned"
    more = {**LEARNS, "report.scratch_control": True}
    return start("medical/tumour-segmentation", volumes, folder, watch, **more), watch


@pytest.fixture(scope="module")
def pretrained(
    volumes: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> headstart.Run:
    folder = tmp_path_factory.mktemp("runs") / "pretrained"
    own = {"validation_path": "", "test_path": ""}
    unlabelled = {**volumes, **own, "kind": "reconstruction"}
    return start("medical/pretrain", unlabelled, folder, **SEGRESNET)


@pytest.fixture(scope="module")
def classified(tmp_path_factory: pytest.TempPathFactory) -> headstart.Run:
    data = tiny_scans(tmp_path_factory.mktemp("scans"))
    folder = tmp_path_factory.mktemp("runs") / "classified"
    more = {"backbone.width": 0.25, "data.validation_size": 0.4}
    return start("medical/classify", data, folder, **more)


# Scans to predict for: a bright ball in a body, wherever its grid lies


def ball_on(
    affine: np.ndarray, shape: Sequence[int], seed: int = 3
) -> tuple[np.ndarray, np.ndarray]:
    """A volume like those of ``tiny_volumes``, and where its ball is."""
    places = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    world = places @ affine[:3, :3].T + affine[:3, 3]
    middle = (np.array(shape) - 1) / 2 @ affine[:3, :3].T + affine[:3, 3]
    body = (((world - middle) / (9.2, 8.3, 11.0)) ** 2).sum(-1) < 1
    ball = ((world - middle - (1.0, -1.0, 2.0)) ** 2).sum(-1) < 4.0**2
    noise = np.random.default_rng(seed).normal(0, 5, shape)
    return (100 + noise) * body + 60 * ball, ball


def turned(degrees: float, spacing: Sequence[float], origin: Sequence[float]) -> Any:
    """The affine of a grid that is turned about the third axis and the first one."""
    angle = np.radians(degrees)
    c, s = np.cos(angle), np.sin(angle)
    about_z = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    affine = np.eye(4)
    affine[:3, :3] = about_z @ about_x @ np.diag(spacing)
    affine[:3, 3] = origin
    return affine


STRAIGHT = np.diag([*SPACING, 1.0])
OBLIQUE = turned(20, (0.9, 1.1, 1.4), (-31.5, 12.25, 7.0))
FLIPPED = OBLIQUE @ np.diag([-1.0, 1.0, 1.0, 1.0])
AXIAL = turned(8, (1.0, 1.2, 1.5), (4.0, -9.0, 30.5))
OBLIQUE_SHAPE = (24, 22, 21)


def write_scan(path: Path, affine: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """A NIfTI file whose free text names the patient; returns where its ball is."""
    values, ball = ball_on(affine, shape)
    image = nibabel.Nifti1Image(values.astype(np.float32), affine)
    image.set_sform(affine, 1)
    image.header["descrip"] = f"{NAME} {BORN}".encode()
    image.header["db_name"] = NAME[:17].encode()
    image.to_filename(path)
    return ball


def write_series(folder: Path, values: np.ndarray, affine: np.ndarray) -> None:
    """A DICOM series whose headers name the patient wherever they can."""
    folder.mkdir(parents=True)
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    for k in range(values.shape[2]):
        data = pydicom.Dataset()
        data.file_meta = FileMetaDataset()
        data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        data.SOPClassUID = pydicom.uid.MRImageStorage
        data.SOPInstanceUID, data.SeriesInstanceUID = f"{SERIES}.{k + 1}", SERIES
        data.Modality, data.InstanceNumber = "MR", k + 1
        data.PatientName, data.PatientID = NAME, f"{NUMBER}-{folder.parent.name}"
        data.PatientBirthDate, data.ReferringPhysicianName = BORN, NAME
        data.PatientComments = data.SeriesDescription = f"head of {NAME}"
        data.ImagePositionPatient = [float(v) for v in (lps @ [0, 0, k, 1])[:3]]
        data.ImageOrientationPatient = [
            round(float(v), 12)
            for v in (*(lps[:3, 0] / spacing[0]), *(lps[:3, 1] / spacing[1]))
        ]
        data.PixelSpacing = [float(spacing[1]), float(spacing[0])]
        data.Columns, data.Rows = values.shape[:2]
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated = data.BitsStored = 16
        data.HighBit, data.PixelRepresentation = 15, 1
        stored = np.rint(values[:, :, k].T).astype("<i2")
        data.PixelData = np.ascontiguousarray(stored).tobytes()
        pydicom.dcmwrite(folder / f"{k:03d}.dcm", data, enforce_file_format=True)


def assert_mask(path: Path, affine: np.ndarray, ball: np.ndarray) -> float:
    """It lies where its scan does and covers the ball; returns its millilitres."""
    image = nibabel.load(path)
    np.testing.assert_allclose(image.affine, affine, atol=1e-4)
    np.testing.assert_allclose(image.get_qform(), affine, atol=1e-3)
    found = np.asarray(image.dataobj)
    assert found.dtype == np.uint8
    assert found.shape == ball.shape
    assert set(np.unique(found)) == {0, 1}
    dice = 2 * ((found == 1) & ball).sum() / ((found == 1).sum() + ball.sum())
    assert dice > 0.75
    return float((found == 1).sum() * abs(np.linalg.det(affine[:3, :3])) / 1000)


# Recipes


def test_tumours_are_segmented_and_reported(
    learned: tuple[headstart.Run, Watch],
) -> None:
    run, watch = learned
    summary = run.summary
    assert summary["status"] == "done"
    assert set(run.recipe().metrics.names) <= set(run.metrics)
    assert run.metrics["dice"] > 0.8
    assert set(summary["intervals"]) >= {"dice", "hd95", "volume-error"}
    assert [len(watch.cases[s]) for s in ("train", "validation", "test")] == [6, 2, 2]
    # At equal steps, measured on the same cases.
    assert summary["scratch"]["steps"] == summary["steps"] == 40
    assert set(summary["scratch"]["metrics"]) == set(run.metrics)
    baselines = {entry["name"]: entry["metrics"] for entry in summary["baselines"]}
    assert baselines["everything background"]["dice"] == 0
    assert any("Otsu" in name for name in baselines)
    assert titles(run) >= {
        "Results by class",
        "Intervals over patients",
        "Cases, worst first",
        "Truth and prediction",
    }
    page = (run.folder / "report.html").read_text("utf-8")
    assert all(case in page for case in watch.cases["test"])
    assert "from scratch" in page


def test_memory_is_estimated_before_the_first_step(
    learned: tuple[headstart.Run, Watch],
) -> None:
    run, watch = learned
    memory = run.summary["memory"]
    assert memory["parts"]["weights"] == 4 * run.summary["parameters"]["total"]
    assert memory["estimated_bytes"] >= sum(memory["parts"].values())
    assert any(text.startswith("memory: about") for text in watch.messages)
    described = json.loads((run.folder / "data.json").read_text())["description"]
    # 4 bytes an image's voxel, 1 the mask's, and 1 the truth's of 4 measured volumes.
    needed = (10 * 5 + 4) * np.prod(SIDES) / 1e9
    assert described["cached volumes"].startswith(f"about {needed:.2f} GB of the 4 GB")


@pytest.mark.parametrize("name", ["tumour-segmentation", "classify"])
def test_simulated_lesions_are_called_so_and_patients_kept_for_the_test(
    name: str, tmp_path: Path
) -> None:
    (tmp_path / "own").mkdir()
    tiny = tiny_lesions if name == "tumour-segmentation" else tiny_lesion_slices
    small = DEEPBRAIN if name == "tumour-segmentation" else {"backbone.width": 0.25}
    watch = Watch()
    data = tiny(tmp_path / "own")
    run = start(f"medical/{name}", data, tmp_path / "run", watch, **small)
    assert run.summary["status"] == "done"
    assert all("simulated" in case for case in watch.cases["train"])
    assert all("simulated" in case for case in watch.cases["validation"])
    assert watch.cases["test"]
    assert not any("simulated" in case for case in watch.cases["test"])
    described = json.loads((run.folder / "data.json").read_text())["description"]
    assert "simulated" in described["train"]
    assert "real" in described["test"]
    assert "simulated" in (run.folder / "report.html").read_text("utf-8")
    # Elsewhere, where the healthy volumes are not, it is the same on the patients.
    gone = {"data.path": str(tmp_path / "nowhere")}
    assert run.evaluate("test", gone) == pytest.approx(run.metrics)


def test_new_patients_are_measured_without_the_training_data(
    volumes: dict[str, Any], learned: tuple[headstart.Run, Watch], tmp_path: Path
) -> None:
    run, watch = learned
    for case in watch.cases["test"]:
        for path in Path(volumes["path"]).rglob(f"{case}*"):
            target = tmp_path / "new" / path.relative_to(volumes["path"])
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(path)
    told: list[str] = []
    elsewhere = {
        "data.path": str(tmp_path / "nowhere"),
        "data.test_path": str(tmp_path / "new"),
    }
    found = run.evaluate("test", elsewhere, told.append)
    assert found == pytest.approx(run.metrics)
    assert "is not checked" in told[0]
    with pytest.raises(HeadstartError, match="other labels"):
        run.evaluate("test", {**elsewhere, "data.labels": ["background", "cyst"]})


def test_brains_are_extracted_without_training(
    volumes: dict[str, Any], tmp_path: Path
) -> None:
    """All heads are tested on, or some, and nothing is learned from the others."""
    own = without_grid(volumes)
    tested = {**own, "path": "", "test_path": own["path"]}
    for data, counts in (tested, [0, 0, 10]), ({**own, "test_path": ""}, [6, 2, 2]):
        watch = Watch()
        folder = tmp_path / f"run{counts[0]}"
        run = start("medical/brain-extraction", data, folder, watch, **DEEPBRAIN)
        assert [len(entries) for entries in watch.cases.values()] == counts
        assert (run.summary["status"], run.summary["steps"]) == ("done", 0)
        assert set(run.recipe().metrics.names) <= set(run.metrics)
        assert {"Results by class", "Truth and prediction"} <= titles(run)


def decathlon(folder: Path, source: Path) -> dict[str, Any]:
    """The cases of ``tiny_volumes`` as the Medical Segmentation Decathlon has them."""
    entries = []
    for kind in ("imagesTr", "labelsTr"):
        (folder / kind).mkdir(parents=True)
    for case in sorted(source.iterdir()):
        name = f"{case.name}.nii.gz"
        shutil.copy(case / "image.nii.gz", folder / "imagesTr" / name)
        shutil.copy(case / "label.nii.gz", folder / "labelsTr" / name)
        entry = {"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"}
        entries.append(entry)
    listing = {
        "name": "balls",
        "modality": {"0": "T1"},
        "labels": {"0": "background", "1": "ball"},
        "training": entries,
        "test": ["./imagesTs/case99.nii.gz"],
    }
    (folder / "dataset.json").write_text(json.dumps(listing))
    return {"path": str(folder / "dataset.json")}


def test_folds_of_a_decathlon_set_with_deep_supervision(
    volumes: dict[str, Any], tmp_path: Path
) -> None:
    listed = decathlon(tmp_path / "task", Path(volumes["path"]))
    # What dataset.json says, the recipe need not say.
    said = {"path", "labels", "modality"}
    data = {key: value for key, value in volumes.items() if key not in said}
    data |= {**listed, "folds": 2, "spacing": [1.0, 1.0, 1.5]}
    watches = [Watch(), Watch()]
    done = headstart.cross_validate(
        "medical/tumour-segmentation",
        settings_of(data, {**DYNUNET, "report.baselines": False}),
        folder=tmp_path / "folds",
        callbacks=lambda fold: [watches[fold]],
    )
    tested = []
    for run, watch in zip(done.runs, watches, strict=True):
        task = json.loads((run.folder / "task.json").read_text())
        assert (task["labels"], task["modality"]) == (["background", "ball"], "mri")
        assert task["channels"] == ["T1"]
        assert not {*watch.cases["test"]} & {*watch.cases["train"]}
        tested += watch.cases["test"]
    assert sorted(tested) == [f"case{i}" for i in range(10)]
    # The coarse level has a layer of its own, that learned.
    kept = open_checkpoint(run.folder / "checkpoints")[0].kept_model()
    heads = [key for key in kept if key.startswith("head.") and key.endswith("weight")]
    assert len(heads) == 2
    page = (run.folder / "report.html").read_text("utf-8")
    # It is not even there, which does not matter.
    assert "not used: 1 case of its test list" in page


def test_a_killed_run_goes_on_as_if_nothing_had_happened(
    volumes: dict[str, Any], tmp_path: Path
) -> None:
    more = {
        **DEEPBRAIN,
        "train.max_steps": 4,
        "train.checkpoint_every": 1,
        "data.augmentation": "strong",
        "report.baselines": False,
    }
    recipe = "medical/tumour-segmentation"
    whole = start(recipe, volumes, tmp_path / "whole", **more)
    with pytest.raises(Killed):
        start(recipe, volumes, tmp_path / "killed", KillAt(3), **more)
    assert not headstart.Run(tmp_path / "killed").metrics
    watch = Watch()
    resumed = headstart.resume(tmp_path / "killed", callbacks=[watch])
    assert any("going on from step-" in text for text in watch.messages)
    assert resumed.metrics == whole.metrics
    weights = [
        open_checkpoint(run.folder / "checkpoints")[0].kept_model()
        for run in (whole, resumed)
    ]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


# Predictions


def test_masks_lie_on_the_grid_of_their_scan(
    learned: tuple[headstart.Run, Watch], tmp_path: Path
) -> None:
    grids = {
        "straight": (STRAIGHT, SIDES),
        "oblique": (OBLIQUE, OBLIQUE_SHAPE),
        "flipped": (FLIPPED, OBLIQUE_SHAPE),
    }
    balls = {
        name: write_scan(tmp_path / f"{name}.nii.gz", *grid)
        for name, grid in grids.items()
    }
    scans = [tmp_path / f"{name}.nii.gz" for name in grids]
    written = learned[0].predict_into(tmp_path / "found", scans)
    assert written == [tmp_path / "found" / n for n in ("predictions.csv", "masks")]
    rows = table(tmp_path / "found")
    assert [row["input"] for row in rows] == [str(scan) for scan in scans]
    for (name, (affine, _)), row in zip(grids.items(), rows, strict=True):
        assert row["mask"] == f"masks/{name}.nii.gz"
        found = assert_mask(tmp_path / "found" / row["mask"], affine, balls[name])
        assert float(row["ball ml"]) == pytest.approx(found, rel=1e-3)
        assert int(row["ball lesions"]) >= 1
    notes = (tmp_path / "found" / "README.txt").read_text()
    assert notes.startswith("Not a medical device")
    # As Python has them, and nothing is written.
    (row,) = learned[0].predict([scans[0]])
    assert row["millilitres"]["ball"] == pytest.approx(float(rows[0]["ball ml"]))


def test_the_command_line_predicts_for_files_and_dicom_folders(
    learned: tuple[headstart.Run, Watch], tmp_path: Path
) -> None:
    there = write_scan(tmp_path / "scan.nii.gz", OBLIQUE, OBLIQUE_SHAPE)
    values, ball = ball_on(AXIAL, (21, 20, 17))
    write_series(tmp_path / "dicom_folder", values, AXIAL)
    inputs = (tmp_path / "scan.nii.gz", tmp_path / "dicom_folder")
    found = tmp_path / "found"
    result = command(
        "predict", learned[0].folder, *inputs, "--output", found, "--probabilities"
    )
    assert result.exit_code == 0, told(result)
    assert str(found / "predictions.csv") in result.output
    rows = table(found)
    assert [row["input"] for row in rows] == [str(path) for path in inputs]
    for row, affine, where in zip(rows, (OBLIQUE, AXIAL), (there, ball), strict=True):
        millilitres = assert_mask(found / row["mask"], affine, where)
        assert float(row["ball ml"]) == pytest.approx(millilitres, rel=1e-3)
        likely = nibabel.load(found / row["mask"].replace("masks", "probabilities"))
        np.testing.assert_allclose(likely.affine, affine, atol=1e-4)
        shares = likely.get_fdata()
        assert shares.shape == where.shape
        assert 0 <= shares.min() < 0.1
        assert 0.9 < shares.max() < 1.00001


def test_one_bad_scan_among_several_leaves_nothing_behind(
    learned: tuple[headstart.Run, Watch], tmp_path: Path
) -> None:
    write_scan(tmp_path / "good.nii.gz", STRAIGHT, SIDES)
    whole = (tmp_path / "good.nii.gz").read_bytes()
    (tmp_path / "cut.nii.gz").write_bytes(whole[: len(whole) // 2])
    scans = [tmp_path / name for name in ("good.nii.gz", "cut.nii.gz", "none.nii.gz")]
    result = command(
        "predict", learned[0].folder, *scans, "--output", tmp_path / "found"
    )
    assert result.exit_code != 0
    assert "cut.nii.gz" in told(result)
    assert "none.nii.gz" in told(result)
    assert not (tmp_path / "found").exists()


# Classification


def test_probabilities_are_calibrated_and_stay_so(
    classified: headstart.Run, tmp_path: Path
) -> None:
    assert classified.summary["status"] == "done"
    fitted = json.loads((classified.folder / "calibration.json").read_text())
    assert fitted["temperature"] > 0
    assert {"ROC curve", "Confusion matrix", "Calibration"} <= titles(classified)
    again = headstart.Run(classified.folder)
    assert again.evaluate()["brier"] == classified.metrics["brier"]
    recipe = classified.recipe()
    scans = sorted((tmp_path / recipe.data.path).glob("*/case[12].nii.gz"))
    rows = again.predict(scans)
    again.predict_into(tmp_path / "found", scans)
    for row, line in zip(rows, table(tmp_path / "found"), strict=True):
        shares = row["probabilities"]
        assert sum(shares.values()) == pytest.approx(1, abs=1e-5)
        assert line["label"] == row["label"] == max(shares, key=shares.get)
        assert float(line["tumour"]) == pytest.approx(shares["tumour"])
    # Dividing the logits by twice as much is the root of the odds.
    copy = tmp_path / "copy"
    shutil.copytree(classified.folder, copy)
    twice = {"temperature": 2 * fitted["temperature"]}
    (copy / "calibration.json").write_text(json.dumps(twice))
    for row, other in zip(rows, headstart.Run(copy).predict(scans), strict=True):
        odds, root = (
            found["probabilities"]["tumour"] / found["probabilities"]["healthy"]
            for found in (row, other)
        )
        assert root == pytest.approx(odds**0.5, rel=1e-3)


# Pretraining


def test_what_was_pretrained_is_what_segmentation_starts_from(
    pretrained: headstart.Run, volumes: dict[str, Any], tmp_path: Path
) -> None:
    assert pretrained.summary["status"] == "done"
    assert set(pretrained.recipe().metrics.names) <= set(pretrained.metrics)
    more = {
        "backbone.name": "medical/segresnet",
        "backbone.weights": f"run:{pretrained.folder}",
        "strategy.name": "feature-extraction",
        "report.baselines": False,
    }
    recipe = "medical/tumour-segmentation"
    run = start(recipe, volumes, tmp_path / "run", **more)
    transfer = json.loads((run.folder / "transfer.json").read_text())
    assert transfer["reference"] == f"run:{pretrained.folder}"
    theirs, ours = (
        open_checkpoint(each.folder / "checkpoints")[0].kept_model()
        for each in (pretrained, run)
    )
    backbone = [key for key in ours if key.startswith("backbone.")]
    assert len(backbone) > 20
    # Frozen, so that they are still what they were at the start.
    assert all(torch.equal(ours[key], theirs[key]) for key in backbone)
    fresh = {entry["name"] for entry in transfer["reinitialised"]}
    assert not [name for name in fresh if not name.startswith("conv_final")]


# Patients


def everything(*folders: Path) -> Iterator[tuple[Path, bytes]]:
    """All bytes of all files, unpacked where they are packed, and their names."""
    for folder in folders:
        for path in folder.rglob("*"):
            yield path, str(path.relative_to(folder)).encode()
            if path.is_file():
                content = path.read_bytes()
                yield path, content
                if content[:2] == b"\x1f\x8b":
                    yield path, gzip.decompress(content)


def test_no_patient_of_a_dicom_header_is_ever_told(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))
    for number in range(5):
        case = tmp_path / "own" / f"case{number}"
        values, ball = ball_on(AXIAL, (21, 20, 17), seed=number)
        write_series(case / "dicom", values, AXIAL)
        label = nibabel.Nifti1Image(ball.astype(np.uint8), AXIAL)
        label.header["descrip"] = NAME.encode()
        label.to_filename(case / "label.nii.gz")
    data = {
        "name": "medical/volumes",
        "path": tmp_path / "own",
        "labels": '["background","ball"]',
        "modality": "mri",
        "spacing": "[1.0,1.2,1.5]",
        "cache": "disk",
        "patch": "[16,16,16]",
        "patches_per_case": 1,
    }
    more = {"backbone.widths": "[2,3,4]", "report.scratch_control": "false"}
    overrides = settings_of(data, more)
    words = [f"{key}={value}" for key, value in overrides.items()]
    recipe, folder = "medical/tumour-segmentation", tmp_path / "run"
    result = command("run", recipe, *words, "--folder", folder)
    assert result.exit_code == 0, told(result)
    screen = told(result)
    scans = [tmp_path / "own" / f"case{i}" / "dicom" for i in range(2)]
    write_scan(tmp_path / "scan.nii.gz", STRAIGHT, SIDES)
    found = tmp_path / "found"
    for ways in (("--output", found, "--probabilities"), ("--json",)):
        result = command("predict", folder, *scans, tmp_path / "scan.nii.gz", *ways)
        assert result.exit_code == 0, told(result)
        screen += told(result)
    # Nor what is made of an id to tell patients apart.
    secrets = (*SECRETS, *(read_volume(scan).person for scan in scans))
    assert all(secrets)
    # What is wrong with a series is told without saying whose it is.
    (scans[1] / "003.dcm").unlink()
    (scans[0] / "002.dcm").write_bytes((scans[0] / "002.dcm").read_bytes()[:-60])
    for line in (("predict", folder, *scans), ("check", recipe, *words)):
        result = command(*line)
        assert result.exit_code != 0
        assert "missing slices" in told(result)
        assert "002.dcm" in told(result)
        screen += told(result)
    captured = capfd.readouterr()
    screen += captured.out + captured.err + caplog.text
    assert not [secret for secret in secrets if secret in screen.casefold()]
    given = b"".join(content for _, content in everything(tmp_path / "own"))
    assert all(secret.encode() in given.lower() for secret in SECRETS)
    searched = list(everything(folder, found, tmp_path / "cache"))
    written = {"report.html", "metrics.jsonl", "summary.json", "predictions.csv"}
    assert written | {"masks", "probabilities"} <= {path.name for path, _ in searched}
    assert any(path.suffix == ".safetensors" for path, _ in searched)
    assert not [
        (path, secret)
        for path, content in searched
        for secret in secrets
        if secret.encode() in content.lower()
    ]


# Bad data


def test_all_that_is_wrong_is_told_at_once_and_nothing_is_written(
    tmp_path: Path,
) -> None:
    own = tmp_path / "own"
    own.mkdir()
    data = tiny_volumes(own)

    def change(case: str, kind: str, done: Any) -> None:
        path = own / case / f"{kind}.nii.gz"
        image = nibabel.load(path)
        values, affine = done(np.asarray(image.dataobj).copy(), image.affine.copy())
        nibabel.save(nibabel.Nifti1Image(values, affine), path)

    def shifted(values: np.ndarray, affine: np.ndarray) -> Any:
        affine[0, 3] += 2.5
        return values, affine

    change("case1", "label", lambda values, affine: (values[:-1], affine))
    change("case2", "image", lambda values, affine: (values * np.nan, affine))
    change("case3", "label", lambda values, affine: (values * 7, affine))
    change("case4", "label", shifted)
    change("case5", "label", lambda values, affine: (values * 0, affine))
    cut = own / "case6" / "image.nii.gz"
    cut.write_bytes(cut.read_bytes()[:2000])
    with pytest.raises(DataError) as caught:
        start("medical/tumour-segmentation", data, tmp_path / "run", **DEEPBRAIN)
    text = str(caught.value)
    for case in range(1, 7):
        assert f"case{case}" in text
    assert "case0" not in text
    assert "2.5" in text
    assert "7" in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["own"]
