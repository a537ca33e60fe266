"""A test split that is read alone, and pictures that are left out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from headstart.errors import DataError
from headstart_vision.data import ImageClassification
from headstart_vision.masks import MaskData
from headstart_vision.objects import ObjectData
from headstart_vision.settings import (
    ClassificationSettings,
    MaskSettings,
    ObjectSettings,
)
from headstart_vision.tiny_masks import tiny_masks
from headstart_vision.tiny_objects import tiny_objects

PREPROCESSING = {"mean": [0.5] * 3, "std": [0.2] * 3, "size": 32, "resize": 40}


def picture(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 20, 3), np.uint8)
    Image.fromarray(pixels).save(path)


def loaded(kind, settings):
    data = kind(settings, 0)
    data.load()
    data.prepare(PREPROCESSING)
    return data


def alone(kind, settings, task):
    data = kind(settings, 0)
    data.task = json.loads(json.dumps(task))
    assert data.load_split("test")
    data.prepare(PREPROCESSING)
    return data


def same(one, other):
    """The same test split, with the same targets."""
    ours, theirs = one.samples("test"), other.samples("test")
    assert [s["id"] for s in ours] == [s["id"] for s in theirs]
    batch, expected = one.collate(ours), other.collate(theirs)
    assert set(batch) == set(expected)
    assert all(torch.equal(batch[name], expected[name]) for name in batch)


@pytest.fixture
def folders(tmp_path):
    for number in range(12):
        picture(tmp_path / "all" / "abc"[number % 3] / f"{number}.png", number)
    # Of the three classes the new data has the last one alone.
    for number in range(2):
        picture(tmp_path / "new" / "c" / f"{number}.png", 20 + number)
    return ClassificationSettings(
        name="vision/images",
        path=str(tmp_path / "all"),
        test_path=str(tmp_path / "new"),
        validation_size=3,
    )


def test_images_without_their_training_data(folders):
    whole = loaded(ImageClassification, folders)
    shutil.rmtree(folders.path)
    data = alone(ImageClassification, folders, whole.task)
    same(data, whole)
    assert data.collate(data.samples("test"))["labels"].tolist() == [2, 2]
    assert data.task == whole.task


def test_a_class_that_was_not_trained_is_a_fault(folders):
    whole = loaded(ImageClassification, folders)
    picture(Path(folders.test_path) / "d" / "7.png", 30)
    with pytest.raises(DataError) as caught:
        alone(ImageClassification, folders, whole.task)
    (fault,) = caught.value.faults
    assert fault.what == "unknown label: 'd'"
    assert fault.why == "the run was trained without it"


def test_a_damaged_new_image_is_told(folders):
    whole = loaded(ImageClassification, folders)
    (Path(folders.test_path) / "c" / "9.png").write_bytes(b"\x89PNG")
    with pytest.raises(DataError, match=r"new/c/9\.png"):
        alone(ImageClassification, folders, whole.task)


def test_a_split_without_files_needs_all(folders):
    data = ImageClassification(folders, 0)
    data.task = {"labels": ["a", "b", "c"]}
    assert not data.load_split("validation") and not data.load_split("train")


@pytest.mark.parametrize(
    ("kind", "settings", "make"),
    [
        (ObjectData, ObjectSettings, tiny_objects),
        (MaskData, MaskSettings, tiny_masks),
    ],
)
def test_annotated_images_without_their_training_data(tmp_path, kind, settings, make):
    tiny = make(tmp_path)
    whole = loaded(kind, settings(**tiny))
    moved = {**tiny, "test_path": tiny["path"], "path": str(tmp_path / "gone")}
    data = alone(kind, settings(**moved), whole.task)
    names = [sample["id"] for sample in data.samples("test")]
    every = [
        s for split in ("train", "validation", "test") for s in whole.samples(split)
    ]
    assert sorted(names) == sorted(f"test/{sample['id']}" for sample in every)
    expected = {f"test/{sample['id']}": sample for sample in every}
    for sample in data.samples("test"):
        ours = data.collate([sample])
        theirs = whole.collate([expected[sample["id"]]])
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert data.sizes("test") is None or len(data.sizes("test")) == len(names)


def test_a_damaged_picture_of_a_folder_is_left_out(folders):
    folder = Path(folders.path) / "a"
    names = sorted(path.name for path in folder.iterdir())
    cut = folder / names[1]
    cut.write_bytes(cut.read_bytes()[:60])
    data = ImageClassification(folders, 0)
    data.prepare(PREPROCESSING)
    data.skipped = []
    samples = data.from_inputs([str(folder), "gone.png"])
    assert [Path(s["path"]).name for s in samples] == [names[0], *names[2:]]
    assert {fault.where for fault in data.skipped} == {str(cut), "gone.png"}
    assert len(data.collate(samples)["pixels"]) == 3
    with pytest.raises(DataError):
        data.from_inputs([str(cut), "gone.png"])
