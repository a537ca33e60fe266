"""Simulated lesions: inside the brain, seeded, real patients in the test alone."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np
import pytest

from headstart.errors import DataError
from headstart_medical.data_settings import LesionSettings, LesionSliceSettings
from headstart_medical.lesions import simulate
from headstart_medical.simulated import Lesions, LesionSlices
from headstart_medical.tiny import tiny_lesion_slices, tiny_lesions, tiny_scans

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))


def settings(**changes: Any) -> LesionSettings:
    values = {"name": "medical/simulated-lesions", "radius": (4.0, 6.0), "most": 2}
    return LesionSettings(**{**values, **changes})  # type: ignore[arg-type]


def head() -> tuple[np.ndarray, np.ndarray]:
    """A noisy brain in dark air, and where it is."""
    inside = np.zeros((40, 44, 36), dtype=bool)
    inside[8:32, 8:36, 6:30] = True
    noise = np.random.default_rng(0).normal(0, 4, inside.shape)
    return np.where(inside, 100 + noise, 0).astype(np.float32), inside


def lesions(folder: Path, seed: int = 0, **changes: Any) -> Lesions:
    folder.mkdir()
    data = Lesions(LesionSettings(**{**tiny_lesions(folder), **changes}), seed)
    data.load()
    data.prepare({"stride": 8})
    return data


def test_lesions_are_inside_and_change_what_they_cover() -> None:
    volume, inside = head()
    before = volume.copy()
    thin = settings(slice_thickness=(0.1, 0.2))
    for seed in range(6):
        painted, mask = simulate(
            volume, inside, np.ones(3), thin, np.random.default_rng(seed)
        )
        assert mask.any() and not (mask & ~inside).any()
        assert np.array_equal(volume, before), "the volume given stays as it is"
        changed = np.abs(painted - volume)
        # A deviation of the brain is 4: a lesion's mean change is beyond its noise.
        assert changed[mask].mean() > 1.5
        assert changed[mask].mean() > 3 * changed[inside & ~mask].mean()
        assert painted.dtype == np.float32 and np.isfinite(painted).all()


def test_sizes_are_in_millimetres() -> None:
    volume, inside = head()
    inside[:] = True
    one = settings(radius=(5.0, 5.0001), most=1)
    volumes = []
    for spacing in (np.ones(3), np.array([1.0, 1.0, 4.0])):
        found = [
            simulate(volume, inside, spacing, one, np.random.default_rng(s))[1].sum()
            for s in range(12)
        ]
        volumes.append(float(np.median(found)) * spacing.prod())
    ball = 4 / 3 * np.pi * 5**3
    assert volumes == pytest.approx([ball, ball], rel=0.5)


def test_slices_become_thick_along_the_last_axis() -> None:
    volume, inside = head()
    thick = settings(slice_thickness=(6.0, 6.001))
    painted, _ = simulate(volume, inside, np.ones(3), thick, np.random.default_rng(0))
    inner = painted[10:30, 10:34, 10:26]
    steps = [np.abs(np.diff(inner, axis=axis)).mean() for axis in range(3)]
    assert steps[2] < 0.5 * min(steps[:2])


def test_one_seed_one_volume() -> None:
    volume, inside = head()
    made = [
        simulate(volume, inside, np.ones(3), settings(), np.random.default_rng(seed))
        for seed in (1, 1, 2)
    ]
    assert np.array_equal(made[0][0], made[1][0])
    assert np.array_equal(made[0][1], made[1][1])
    assert not np.array_equal(made[0][1], made[2][1])


def test_nowhere_to_paint_is_an_error() -> None:
    volume, inside = head()
    with pytest.raises(ValueError, match="no voxel"):
        rng = np.random.default_rng(0)
        simulate(volume, inside & False, np.ones(3), settings(), rng)


def test_train_is_simulated_and_test_is_real(tmp_path: Path) -> None:
    data = lesions(tmp_path / "d")
    assert [len(data.entries[s]) for s in ("train", "validation", "test")] == [4, 1, 2]
    assert all("simulated" in e.id for e in data.entries["train"])
    assert all(e.variant is None for e in data.entries["test"])
    described = data.describe()
    assert "simulated" in described["train"] and "simulated" in described["validation"]
    assert "all real" in described["test"]
    for entry in data.entries["test"]:
        label = nib.load(entry.case.labels[0]).get_fdata()
        assert np.array_equal(data.prepared(entry)["truth"], label)
    masks = [data.prepared(entry)["mask"] for entry in data.entries["train"]]
    assert all(mask.any() for mask in masks)
    assert not np.array_equal(masks[0], masks[1]), "each variant has its own"
    entry = data.entries["validation"][0]
    truth = data.prepared(entry)["truth"]
    brain = nib.load(data.label_files(entry.case)[0]).get_fdata() > 0
    assert truth.any() and not (truth.astype(bool) & ~brain).any()
    assert data.task["labels"] == ["background", "lesion"]
    counted = sum(int((data.raw(e)[1] == 1).sum()) for e in data.entries["train"])
    assert data.task["counts"][1] == counted, "two variants of each, all counted"
    batch = data.collate(list(data.samples("validation")))
    assert {"truth", "mask", "extent"} <= set(batch)


def test_a_share_of_the_training_volumes_is_stripped(tmp_path: Path) -> None:
    plain = lesions(tmp_path / "plain", variants=4)
    data = lesions(tmp_path / "half", variants=4, stripped=0.5)
    dark = []
    for entry, before in zip(
        data.entries["train"], plain.entries["train"], strict=True
    ):
        image, mask = data.raw(entry)
        inside = nib.load(data.label_files(entry.case)[0]).get_fdata() > 0
        original, same = plain.raw(before)
        assert np.array_equal(mask, same)
        assert np.array_equal(image[0][inside], original[0][inside])
        assert original[0][~inside].any()
        dark.append(not image[0][~inside].any())
    assert dark == [False, True] * (len(dark) // 2)
    # What is measured keeps its skull, and other training data is other data.
    (entry,) = data.entries["validation"]
    (before,) = plain.entries["validation"]
    assert np.array_equal(data.raw(entry)[0], plain.raw(before)[0])
    assert data.fingerprint() != plain.fingerprint()


def test_the_seed_decides(tmp_path: Path) -> None:
    made = [lesions(tmp_path / str(i), seed) for i, seed in enumerate((0, 0, 1))]
    images = [data.prepared(data.entries["train"][0])["image"] for data in made]
    assert np.array_equal(images[0], images[1])
    assert not np.array_equal(images[0], images[2])
    prints = [data.fingerprint() for data in made]
    assert prints[0] == prints[1] != prints[2]


def test_folds_train_on_the_other_patients(tmp_path: Path) -> None:
    tested = []
    for fold in range(2):
        data = lesions(tmp_path / str(fold), folds=2, fold=fold)
        (test,) = data.entries["test"]
        tested.append(test.case.patient)
        real = [e for e in data.entries["train"] if e.variant is None]
        assert len(real) == 1 and real[0].case.patient != test.case.patient
        assert len(data.entries["train"]) == 5
        assert data.prepared(real[0])["mask"].any()
    assert len(set(tested)) == 2
    with pytest.raises(DataError, match="leaves one patient out"):
        lesions(tmp_path / "3", folds=3)


def test_folds_keep_equal_volumes_together(tmp_path: Path) -> None:
    """A copy under another name would be trained on and tested on."""
    folder = tmp_path / "d"
    folder.mkdir()
    values = tiny_lesions(folder)
    first = sorted((folder / "real").iterdir())[0]
    shutil.copytree(first, folder / "real" / "case9")
    for fold in range(2):
        data = Lesions(LesionSettings(**{**values, "folds": 2, "fold": fold}), 0)
        data.load()
        homes = {
            split
            for split in ("train", "test")
            for entry in data.entries[split]
            if entry.case.id in (f"test/{first.name}", "test/case9")
        }
        assert len(homes) == 1
    with pytest.raises(DataError, match="3 folds of 2 real patients"):
        Lesions(LesionSettings(**{**values, "folds": 3}), 0).load()


def test_healthy_volumes_are_never_the_test(tmp_path: Path) -> None:
    """Their label is the brain, which nobody wants to be found as a lesion."""
    with pytest.raises(DataError, match="no real patients") as caught:
        lesions(tmp_path / "d", test_path="")
    assert "data.test_path" in str(caught.value)


def test_a_label_that_does_not_fit_is_told_before_training(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    folder.mkdir()
    values = tiny_lesions(folder)
    label = next((folder / "other").glob("*/label.nii.gz"))
    image = nib.load(label)
    nib.save(image.slicer[:-2], label)
    with pytest.raises(DataError, match="different shape"):
        Lesions(LesionSettings(**values), 0).load()
    nothing = np.zeros(image.shape, dtype=np.uint8)
    nib.save(nib.Nifti1Image(nothing, image.affine), label)
    with pytest.raises(DataError, match="where a lesion may be"):
        Lesions(LesionSettings(**values), 0).load()


def test_without_a_label_lesions_are_in_the_foreground(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    folder.mkdir()
    values = tiny_lesions(folder)
    for label in (folder / "healthy").glob("*/label.nii.gz"):
        label.unlink()
    data = Lesions(LesionSettings(**values), 0)
    data.load()
    data.prepare({"stride": 8})
    entry = data.entries["train"][0]
    image = nib.load(entry.case.images[0]).get_fdata()
    mask = data.raw(entry)[1]
    assert mask is not None and mask.any()
    assert (image[mask > 0] > image.mean()).all()


def test_slices_with_and_without_lesions(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    folder.mkdir()
    data = LesionSlices(LesionSliceSettings(**tiny_lesion_slices(folder)), 0)
    data.load()
    data.prepare({})
    assert data.task["labels"] == ["without lesion", "with lesion"]
    assert min(data.task["counts"]) > 0
    entry = data.entries["train"][0]
    mask = data.raw(entry)[1]
    assert mask is not None
    labels = [s["label"] for s in data.samples("train") if data.entry(s) is entry]
    assert labels == mask.any((0, 1)).astype(int).tolist()


def test_data_that_is_there_to_be_learned_is_not_painted_over(tmp_path: Path) -> None:
    """Class folders, and a data set that names the classes of its masks."""
    scans = tmp_path / "scans"
    scans.mkdir()
    made = tiny_scans(scans)
    for number in range(5):  # those are the heads of tiny_lesions
        next(scans.glob(f"*/case{number}.nii.gz")).unlink()
    data = tiny_lesion_slices(tmp_path)
    given = LesionSliceSettings(**{**data, "path": made["path"]})
    with pytest.raises(
        DataError, match="classes of its own: healthy, tumour"
    ) as caught:
        LesionSlices(given, 0).load()
    assert "data.name=medical/scans data.shape=[64,64,64]" in str(caught.value)
    cases = sorted((tmp_path / "healthy").iterdir())
    training = [
        {
            "id": c.name,
            "image": f"{c.name}/image.nii.gz",
            "label": f"{c.name}/label.nii.gz",
        }
        for c in cases
    ]
    listing = {"labels": {"0": "background", "1": "tumour"}, "training": training}
    (tmp_path / "healthy/dataset.json").write_text(json.dumps(listing))
    for kind, settings, instead in (
        (Lesions, LesionSettings, "data.name=medical/volumes learns"),
        (LesionSlices, LesionSliceSettings, "data.name=medical/scans data.slices=true"),
    ):
        own = tmp_path / settings.__name__
        own.mkdir()
        tiny = tiny_lesions if kind is Lesions else tiny_lesion_slices
        values = {**tiny(own), "path": str(tmp_path / "healthy")}
        with pytest.raises(DataError, match="classes of its own: tumour") as caught:
            kind(settings(**values), 0).load()
        assert instead in str(caught.value)
        kind(settings(**values, above=0.0), 0).load()


def test_labels_that_may_be_lesions_are_told(tmp_path: Path) -> None:
    data = lesions(tmp_path / "d")
    (warning,) = data.findings.warnings
    assert warning.what.endswith("into volumes that have labels: 3 volumes")
    assert "data.name=medical/volumes learns the labels" in warning.fix
    assert not lesions(tmp_path / "said", above=0.0).findings.warnings


def test_slices_have_a_shape_without_being_told_one(tmp_path: Path) -> None:
    values = tiny_lesion_slices(tmp_path)
    del values["shape"]
    data = LesionSlices(LesionSliceSettings(**values), 0)
    data.load()
    assert data.task["shape"] == [128, 128]
