"""The data module ``vision/images``: folders, CSV and IDX files to batches."""

from __future__ import annotations

import gzip
import json
import pickle
import struct
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from headstart.errors import DataError
from headstart_vision import resizing
from headstart_vision.baselines import baselines
from headstart_vision.data import ImageClassification
from headstart_vision.settings import ClassificationSettings
from headstart_vision.tiny_classification import tiny_classification

SPLITS = ("train", "validation", "test")
PREPROCESSING = {"mean": [0.5] * 3, "std": [0.2] * 3, "size": 32, "resize": 40}


def picture(seed, shape=(24, 20, 3)):
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, shape, dtype=np.uint8)


def write(folder, names, first=0):
    """An image of its own under each name."""
    for seed, name in enumerate(names, start=first):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(seed)).save(path)


@pytest.fixture
def opened(tmp_path, monkeypatch):
    """Load data of the test's folder by relative names, as a user in it does."""
    monkeypatch.chdir(tmp_path)

    def open_(path="images", seed=0, **settings):
        given = {"name": "vision/images", "path": path, **settings}
        data = ImageClassification(ClassificationSettings(**given), seed)
        data.load()
        data.prepare(PREPROCESSING)
        return data

    return open_


def faults(opened, *args, **settings):
    """The faults as one line each."""
    with pytest.raises(DataError) as caught:
        opened(*args, **settings)
    assert caught.value.exit_code == 3
    faults_ = caught.value.faults
    return [" | ".join(map(str.strip, str(fault).splitlines())) for fault in faults_]


def ids(data, split):
    return [sample["id"] for sample in data.samples(split)]


# Folders


def test_tiny_folder(tmp_path):
    settings = tiny_classification(tmp_path)
    data = ImageClassification(ClassificationSettings(**settings), 0)
    data.load()
    data.prepare(PREPROCESSING)
    assert data.task["labels"] == ["blue", "green", "red"]
    assert [len(data.samples(split)) for split in SPLITS] == [22, 2, 6]
    assert sum(data.task["counts"]) == 22 and not data.findings.warnings
    for split in SPLITS:
        for sample in data.samples(split):
            label = data.task["labels"][sample["label"]]
            assert Path(sample["path"]).parent.name == label
    assert Counter(s["label"] for s in data.samples("test")) == {0: 2, 1: 2, 2: 2}
    batch = data.collate(data.samples("test"))
    assert batch["pixels"].shape == (6, 3, 64, 64)
    assert batch["pixels"].dtype == torch.uint8
    assert batch["labels"].dtype == torch.int64
    json.dumps([data.task, data.describe(), data.show(data.samples("test")[0])])


def test_pixels_are_the_resized_file(opened, tmp_path):
    write(tmp_path / "images", [f"{c}/{i}.png" for c in "ab" for i in range(6)])
    data = opened()
    sample = data.samples("test")[0]
    raw = torch.from_numpy(np.array(Image.open(sample["path"]))).permute(2, 0, 1)
    assert torch.equal(data.picture(0), raw)
    assert torch.equal(data.picture(sample), raw)
    expected = resizing.resize_crop(raw, PREPROCESSING)
    assert torch.equal(data.collate([sample])["pixels"][0], expected)


def test_official_splits(opened, tmp_path):
    names = [
        f"{s}/{c}/x{i}.png"
        for s in ("train", "val", "test")
        for c in "ab"
        for i in "qrst"
    ]
    write(tmp_path / "images", names)
    data = opened()
    folders = {"train": "train", "validation": "val", "test": "test"}
    for split, folder in folders.items():
        assert len(ids(data, split)) == 8
        assert all(identity.startswith(f"{folder}/") for identity in ids(data, split))


def test_official_test_split_and_random_validation(opened, tmp_path):
    write(
        tmp_path / "images",
        [f"{s}/{c}/{i}.png" for s in ("train", "test") for c in "ab" for i in range(9)],
    )
    data = opened(validation_size=4)
    assert all(identity.startswith("test/") for identity in ids(data, "test"))
    assert len(ids(data, "validation")) == 4 and len(ids(data, "train")) == 14
    assert "test split" not in data.describe()
    assert "stratified" in data.describe()["validation split"]


def test_splits_in_other_folders(opened, tmp_path):
    for first, split in enumerate(SPLITS):
        write(
            tmp_path / split,
            [f"{c}/{i}.png" for c in "ab" for i in range(3)],
            first * 50,
        )
    data = opened("train", validation_path="validation", test_path="test")
    for split in SPLITS:
        assert len(ids(data, split)) == 6
        assert all(split in Path(s["path"]).parts for s in data.samples(split))
    everything = [identity for split in SPLITS for identity in ids(data, split)]
    assert len(set(everything)) == len(everything)
    # A run folder's recipe works from everywhere.
    assert data.settings.test_path == str(tmp_path / "test")


def test_class_may_be_called_train(opened, tmp_path):
    write(
        tmp_path / "images",
        [f"{c}/{i}.png" for c in ("train", "plane") for i in range(9)],
    )
    assert opened().task["labels"] == ["plane", "train"]


def test_class_folders_may_be_nested(opened, tmp_path):
    write(tmp_path / "images", [f"{c}/deep/{i}.png" for c in "ab" for i in range(9)])
    assert opened().task["labels"] == ["a", "b"]


def test_hidden_and_other_files(opened, tmp_path):
    write(tmp_path / "images", [f"{c}/{i}.png" for c in "ab" for i in range(9)])
    write(tmp_path / "images", ["a/.b.png", ".cache/x.png", "__MACOSX/y.png"], 90)
    (tmp_path / "images" / "a" / "notes.txt").write_text("x")
    (tmp_path / "images" / "c").mkdir()
    data = opened()
    assert sum(len(ids(data, split)) for split in SPLITS) == 18
    other, empty = (str(fault) for fault in data.findings.warnings)
    assert "1 files are no images by their ending: .txt (1)" in other
    assert "no image in: c" in empty


def test_numbers_as_classes_are_in_order(opened, tmp_path):
    write(tmp_path / "images", [f"{c}/{i}.png" for c in (2, 10, 1) for i in range(5)])
    assert opened().task["labels"] == ["1", "2", "10"]


# Random splits


def test_groups_of_a_pattern_stay_together(opened, tmp_path):
    write(
        tmp_path / "images",
        [f"{c}/p{p}_{i}x.png" for c in "ab" for p in range(10) for i in range(3)],
    )
    data = opened(group=r"/(p\d)_", validation_size=0.2)
    where = {}
    for split in SPLITS:
        for identity in ids(data, split):
            where.setdefault(identity.split("/")[1][:2], set()).add(split)
    assert len(where) == 10 and all(len(found) == 1 for found in where.values())
    assert "60 images in 10 groups" in data.describe()["test split"]


def test_near_duplicates_stay_together(opened, tmp_path):
    names = [
        f"{c}/v{chr(97 + v)}_{i}.png"
        for c in "abcd"
        for v in range(8)
        for i in range(3)
    ]
    write(tmp_path / "images", names)
    data = opened()
    where = {}
    for split in SPLITS:
        for identity in ids(data, split):
            where.setdefault(identity[:4], set()).add(split)
    assert len(where) == 32 and all(len(found) == 1 for found in where.values())
    torn = opened(near_duplicates=False)
    splits_of_frames = {}
    for split in SPLITS:
        for identity in ids(torn, split):
            splits_of_frames.setdefault(identity[:4], set()).add(split)
    assert any(len(found) > 1 for found in splits_of_frames.values())


def test_copies_stay_together_and_are_told(opened, tmp_path):
    write(tmp_path / "images", [f"{c}/{i}.png" for c in "ab" for i in range(20)])
    for i in range(20):
        source = tmp_path / "images" / "a" / f"{i}.png"
        (tmp_path / "images" / "a" / f"{100 + i}.png").write_bytes(source.read_bytes())
    data = opened()
    for split in SPLITS:
        found = {int(i[2:-4]) for i in ids(data, split) if i.startswith("a/")}
        assert {i % 100 for i in found if i >= 100} == {i for i in found if i < 100}
    (warning,) = data.findings.warnings
    assert "20 images are in train more than once" in str(warning)


def test_few_labels_in_all(opened, tmp_path):
    names = [f"{c}/{i}.png" for c in "abc" for i in range(40)]
    write(tmp_path / "images", names)
    full, few = opened(), opened(rows=30, validation_size=0.2)
    assert ids(few, "test") == ids(full, "test")
    assert len(ids(few, "train")) == 24 and len(ids(few, "validation")) == 6
    counts = Counter(
        s["label"] for p in ("train", "validation") for s in few.samples(p)
    )
    assert counts == {0: 10, 1: 10, 2: 10}
    assert few.task["counts"] == [8, 8, 8]
    kept = set(ids(few, "train")) | set(ids(few, "validation"))
    assert kept <= set(ids(full, "train")) | set(ids(full, "validation"))
    other = opened(rows=30, validation_size=0.2, seed=1)
    assert set(ids(other, "train")) != set(ids(few, "train"))


def test_fewer_rows_keep_the_given_validation(opened, tmp_path):
    for first, split in enumerate(SPLITS):
        write(
            tmp_path / split,
            [f"{c}/{i}.png" for c in "ab" for i in range(8)],
            first * 50,
        )
    data = opened("train", validation_path="validation", test_path="test", rows=6)
    assert [len(ids(data, split)) for split in SPLITS] == [6, 16, 16]


# CSV


def table(folder, rows, name="labels.csv", header="image,label"):
    path = folder / name
    path.write_text("\n".join([header, *rows]) + "\n", "utf-8")
    return name


def test_csv_of_paths_and_labels(opened, tmp_path):
    names = [f"photos/{i}.png" for i in range(20)]
    write(tmp_path / "sub", names)
    rows = [f"{name},{'ab'[i % 2]}" for i, name in enumerate(names)]
    data = opened(table(tmp_path, rows, "sub/labels.csv"))
    for split in SPLITS:
        for sample in data.samples(split):
            assert sample["label"] == int(Path(sample["path"]).stem) % 2
    assert ids(data, "test")[0].startswith("photos/")


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
def test_csv_with_other_names_and_separators(opened, tmp_path, delimiter):
    write(tmp_path, [f"{i}.png" for i in range(12)])
    rows = [delimiter.join([f"{i}.png", "1,5", "ab"[i % 2]]) for i in range(12)]
    header = delimiter.join(["file", "weight", "class"])
    data = opened(table(tmp_path, rows, header=header), image="file", label="class")
    assert data.task["labels"] == ["a", "b"]


def test_csv_with_groups(opened, tmp_path):
    write(tmp_path, [f"{i}.png" for i in range(40)])
    rows = [f"{i}.png,{'ab'[i % 2]},plant {i // 4}" for i in range(40)]
    data = opened(table(tmp_path, rows, header="image,label,plant"), group="plant")
    where = {}
    for split in SPLITS:
        for identity in ids(data, split):
            where.setdefault(int(identity[:-4]) // 4, set()).add(split)
    assert len(where) == 10 and all(len(found) == 1 for found in where.values())


def test_several_labels(opened, tmp_path):
    write(tmp_path, [f"{i}.png" for i in range(20)])
    labels = ["sun|sea", "sea", "", "sun | sun"]
    rows = [f"{i}.png,{labels[i % 4]}" for i in range(20)]
    data = opened(table(tmp_path, rows), kind="multi-label", separator="|")
    assert data.task["kind"] == "multi-label"
    assert data.task["labels"] == ["sea", "sun"]
    expected = [[1, 1], [1, 0], [0, 0], [0, 1]]
    for split in SPLITS:
        batch = data.collate(data.samples(split))
        assert batch["labels"].dtype == torch.float32
        assert batch["labels"].tolist() == [
            expected[int(identity[:-4]) % 4] for identity in ids(data, split)
        ]
    shown = {data.show(s)["label"] for s in data.samples("train")}
    assert shown == {"sea, sun", "sea", "", "sun"}


# IDX


def idx(path, array):
    head = (
        b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    )
    raw = head + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)


def fashion(folder, train=60, test=20, ending=".gz"):
    """Files as Fashion-MNIST has them: 28 x 28, the class in the brightness."""
    folder.mkdir()
    for seed, (role, count) in enumerate((("train", train), ("t10k", test))):
        labels = np.arange(count) % 3
        noise = np.random.default_rng(seed).integers(0, 60, (count, 28, 28))
        idx(
            folder / f"{role}-images-idx3-ubyte{ending}",
            noise + labels[:, None, None] * 80,
        )
        idx(folder / f"{role}-labels-idx1-ubyte{ending}", labels)
    return str(folder.name)


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_idx_files(opened, tmp_path, ending):
    path = fashion(tmp_path / "fashion", ending=ending)
    data = opened(path, labels=("shirt", "shoe", "bag"), validation_size=6)
    assert [len(ids(data, split)) for split in SPLITS] == [54, 6, 20]
    assert data.task["labels"] == ["shirt", "shoe", "bag"]
    # The official test images are the test split, in their order.
    assert [s["label"] for s in data.samples("test")] == [i % 3 for i in range(20)]
    noise = np.random.default_rng(1).integers(0, 60, (20, 28, 28))
    expected = torch.from_numpy(noise[4] + 80).expand(3, -1, -1)
    assert torch.equal(data.picture(4).long(), expected)
    batch = data.collate(data.samples("test")[:2])
    assert batch["pixels"].shape == (2, 3, 32, 32)
    shown = data.show(data.samples("test")[4])
    assert shown["label"] == "shoe" and shown["image"] == "test/5"
    assert shown["thumbnail"].startswith("data:image/jpeg;base64,")


def test_idx_without_names_of_classes(opened, tmp_path):
    assert opened(fashion(tmp_path / "f")).task["labels"] == ["0", "1", "2"]


def test_one_idx_file_and_its_labels(opened, tmp_path):
    folder = fashion(tmp_path / "f")
    data = opened(f"{folder}/train-images-idx3-ubyte.gz")
    assert sum(len(ids(data, split)) for split in SPLITS) == 60
    images_ = f"{folder}/t10k-images-idx3-ubyte.gz"
    again = opened(f"{folder}/train-images-idx3-ubyte.gz", test_path=images_)
    assert len(ids(again, "test")) == 20


def test_idx_files_that_do_not_belong_together(opened, tmp_path):
    folder = Path(fashion(tmp_path / "f", ending=""))
    idx(folder / "t10k-labels-idx1-ubyte", np.zeros(19))
    (folder / "train-labels-idx1-ubyte").unlink()
    found = faults(opened, "f")
    assert len(found) == 2
    assert any("20 images and 19 labels" in fault for fault in found)
    assert any("no file of labels for train-images-idx3-ubyte" in f for f in found)


def test_asset_says_how_it_is_read(opened, tmp_path, monkeypatch):
    from headstart import assets

    fashion(tmp_path / "fashion")
    table_ = {"labels": ["shirt", "shoe", "bag"], "file": "fashion"}
    file = assets.AssetFile("fashion/x", "0" * 64, 1, ("https://127.0.0.1/x",))
    asset = assets.Asset(
        "garments", "headstart_vision", "", "MIT", (file,), read=table_
    )
    monkeypatch.setattr(assets, "find_asset", lambda name, packages: asset)
    monkeypatch.setattr(assets, "fetch", lambda found: tmp_path)
    data = opened("asset:garments")
    assert data.task["labels"] == ["shirt", "shoe", "bag"]
    assert data.settings.labels == ("shirt", "shoe", "bag")
    # What the recipe says itself goes before.
    other = opened("asset:garments", labels=("a", "b", "c"))
    assert other.task["labels"] == ["a", "b", "c"]


# Bad input


def test_all_faults_of_a_folder_together(opened, tmp_path):
    folder = tmp_path / "images"
    write(folder, [f"{c}/{i}.png" for c in "ab" for i in range(9)])
    write(folder, ["once/1.png", "stray.png"], 50)
    (folder / "a" / "empty.png").touch()
    raw = (folder / "a" / "1.png").read_bytes()
    (folder / "a" / "cut.png").write_bytes(raw[: len(raw) // 2])
    (folder / "b" / "text.jpg").write_text("not at all")
    Image.new("L", (101, 100)).save(folder / "b" / "huge.png")
    found = faults(opened, max_pixels=10_000)
    for text in (
        "images/a/empty.png: the file is empty",
        "images/a/cut.png: the image is cut short",
        "images/b/text.jpg: not an image",
        "images/b/huge.png: too large: 101 x 100 pixels",
        "images/stray.png: label missing",
        "images/once/1.png: a class with one image: 'once'",
    ):
        assert sum(text in fault for fault in found) == 1, text
    assert len(found) == 6


def test_all_faults_of_a_table_together(opened, tmp_path):
    write(tmp_path, [f"{i}.png" for i in range(12)])
    rows = [f"{i}.png,{'ab'[i % 2]}" for i in range(10)]
    rows += ["10.jpg,a", "11.png,", ",b", "0.png,a", "11.png,a,b", "9.png"]
    found = faults(opened, table(tmp_path, rows))
    for text in (
        "labels.csv, line 12: 10.jpg: there is no such image",
        "labels.csv, line 13: 11.png: label missing",
        "labels.csv, line 14: image missing",
        "labels.csv, line 15: 0.png: an image listed twice | why: line 2 has it",
        "labels.csv, line 16: too many fields: 3 of 2",
        "labels.csv, line 17: too few fields: 1 of 2",
    ):
        assert sum(text in fault for fault in found) == 1, text
    assert any("did you mean '10.png'?" in fault for fault in found)
    assert len(found) == 6


def test_skipped_samples_are_listed(opened, tmp_path):
    folder = tmp_path / "images"
    write(folder, [f"{c}/{i}.png" for c in "ab" for i in range(20)])
    (folder / "a" / "3.png").write_bytes(b"")
    data = opened(bad="skip")
    assert sum(len(ids(data, split)) for split in SPLITS) == 39
    assert "images/a/3.png" in str(data.findings.left_out[0])
    assert len(faults(opened, bad="skip", bad_cap=0.01)) == 2


def test_same_image_in_two_splits(opened, tmp_path):
    for first, split in enumerate(("train", "test")):
        write(
            tmp_path / "images" / split,
            [f"{c}/{i}.png" for c in "ab" for i in range(9)],
            first * 50,
        )
    copied = tmp_path / "images" / "test" / "b" / "4.png"
    (tmp_path / "images" / "train" / "a" / "8.png").write_bytes(copied.read_bytes())
    (fault,) = faults(opened)
    assert "images/train/a/8.png: the same image in train and test" in fault
    assert "images/test/b/4.png has the same content" in fault
    kept = opened(bad="skip", bad_cap=0.1)
    assert len(ids(kept, "test")) == 18  # what is measured stays


def test_group_in_two_splits(opened, tmp_path):
    for first, split in enumerate(("train", "test")):
        write(
            tmp_path / "images" / split,
            [f"{c}/p{first + i}_.png" for c in "ab" for i in range(3)],
            first * 50,
        )
    (fault,) = faults(opened, group=r"(p\d)_")
    assert "2 groups are in two splits" in fault and "'p1'" in fault and "'p2'" in fault


CASES = {
    "no path": ({"path": ""}, "data.path is empty"),
    "missing path": ({"path": "image"}, "did you mean 'images'?"),
    "unknown format": ({"path": "x.json"}, "the format of 'x.json' is not known"),
    "empty folder": ({"path": "none"}, "no images found"),
    "no classes": ({"path": "images/a"}, "no class folders: 9 images lie in one"),
    "unknown label": (
        {"labels": ("a", "bb")},
        "unknown label: 'b' | why: data.labels does not have it",
    ),
    "label named twice": ({"labels": ("a", "b", "a")}, "named twice: a"),
    "several labels of a folder": (
        {"kind": "multi-label"},
        "class folders cannot give several labels",
    ),
    "bad pattern": ({"group": "(p"}, "no pattern that names a group"),
    "pattern without group": ({"group": r"\(p"}, "no group in parentheses"),
    "pattern that fits nothing": (
        {"group": "(zebra)"},
        "18 of 18 images are in no group",
    ),
    "half an image": ({"test_size": 1.5}, "neither a share below 1 nor a whole number"),
    "all for test": ({"test_size": 18}, "leaves nothing to train on"),
    "none for validation": (
        {"validation_size": 0},
        "leaves the validation split empty",
    ),
    "one group": ({"group": "/([0-9])*"}, "in no group"),
}


@pytest.mark.parametrize(("settings", "text"), CASES.values(), ids=CASES)
def test_faults_of_settings(opened, tmp_path, settings, text):
    write(tmp_path / "images", [f"{c}/q{i}.png" for c in "ab" for i in range(9)])
    (tmp_path / "x.json").write_text("{}")
    (tmp_path / "none").mkdir()
    assert any(text in fault for fault in faults(opened, **settings))


def test_folder_with_one_class(opened, tmp_path):
    write(tmp_path / "images", [f"cats/{i}.png" for i in range(9)])
    (fault,) = faults(opened)
    assert "one class only: every image is 'cats'" in fault


def test_everything_in_one_group(opened, tmp_path):
    write(tmp_path / "images", [f"{c}/{i}_video.png" for c in "ab" for i in range(9)])
    (fault,) = faults(opened, group="(video)")
    assert "no image can be taken for test from 18" in fault
    assert "the largest has 18 images" in fault


def test_label_that_train_does_not_have(opened, tmp_path):
    write(
        tmp_path / "images",
        [f"{s}/{c}/{i}.png" for s in ("train", "test") for c in "ab" for i in range(6)],
    )
    write(tmp_path / "images", ["test/cc/1.png"], 90)
    (fault,) = faults(opened)
    assert "images/test/cc/1.png: label not seen in train: 'cc' (test)" in fault


def test_labels_that_are_alike_or_missing_are_warnings(opened, tmp_path):
    write(
        tmp_path / "images",
        [f"{c}/{i}.png" for c in ("Cat", "cat", "dog") for i in range(5)],
    )
    data = opened(labels=("Cat", "cat", "dog", "emu"))
    alike, missing = (str(warning) for warning in data.findings.warnings)
    assert "'Cat' (5 images), 'cat' (5 images)" in alike
    assert "no image of class 'emu' in train" in missing


TABLES = {
    "column misspelt": ("img,label", ["did you mean 'img'?", "data.image"]),
    "no column": ("a,b", ["there is no column 'image'", "no column 'label'"]),
    "column twice": ("image,label,label", ["column 'label' is there 2 times"]),
}


@pytest.mark.parametrize(("header", "texts"), TABLES.values(), ids=TABLES)
def test_columns(opened, tmp_path, header, texts):
    write(tmp_path, [f"{i}.png" for i in range(4)])
    name = table(tmp_path, ["0.png,a"], header=header)
    found = " ".join(faults(opened, name))
    assert all(text in found for text in texts) and "labels.csv, header" in found


def test_group_column_misspelt(opened, tmp_path):
    name = table(tmp_path, ["0.png,a,1"], header="image,label,plant")
    (fault,) = faults(opened, name, group="plan")
    assert "no column 'plan' (data.group)" in fault and "'plant'" in fault


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "the file is empty"),
        (b"image,label\n", "there is no row below it"),
        (b"image,label\na.png,caf\xe9\n", "labels.csv, line 2: this is not UTF-8"),
        ("image,label\n".encode("utf-16"), "NUL bytes"),
        (b'image,label\na.png,"b\n', "labels.csv, line 2: not a row"),
    ],
)
def test_unreadable_tables(opened, tmp_path, content, text):
    (tmp_path / "labels.csv").write_bytes(content)
    (fault,) = faults(opened, "labels.csv")
    assert text in fault


# Fingerprint, workers, inputs, augmentation, baselines


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "images", [f"{c}/{i}.png" for c in "ab" for i in range(9)])
    return tmp_path / "images"


def test_fingerprint_changes_with_a_files_content(opened, folder):
    before = opened().fingerprint()
    assert opened().fingerprint() == before
    path = folder / "a" / "4.png"
    Image.fromarray(picture(77)).save(path)
    assert opened().fingerprint() != before


def test_fingerprint_changes_with_what_changes_a_sample(opened, folder):
    data = opened()
    before = data.fingerprint()
    data.prepare({**PREPROCESSING, "resize": 48})
    assert data.fingerprint() != before
    seen = {before, opened(size=48).fingerprint(), opened(seed=1).fingerprint()}
    seen |= {
        opened(augmentation="light").fingerprint(),
        opened(mixup=0.2).fingerprint(),
    }
    assert len(seen) == 5
    assert opened(workers=1).fingerprint() == before
    # Nor does it matter where the folder is.
    folder.rename(folder.with_name("moved"))
    assert opened("moved").fingerprint() == before


def test_batches_from_a_worker_process(opened, folder):
    data = opened()
    samples = data.samples("train")
    here = data.collate(samples)
    again = pickle.loads(pickle.dumps(data.collate))(
        pickle.loads(pickle.dumps(samples))
    )
    loader = DataLoader(samples, len(samples), collate_fn=data.collate, num_workers=1)
    (there,) = loader
    for batch in (again, there):
        assert torch.equal(batch["pixels"], here["pixels"])
        assert torch.equal(batch["labels"], here["labels"])


def test_file_that_changed_since_the_check_is_named(opened, folder):
    data = opened()
    sample = data.samples("train")[0]
    Path(sample["path"]).write_bytes(b"")
    with pytest.raises(DataError, match="the file is empty") as caught:
        data.collate([sample])
    assert "images/" in caught.value.faults[0].where


def unloaded():
    data = ImageClassification(ClassificationSettings(name="vision/images"), 0)
    data.prepare(PREPROCESSING)
    return data


def test_inputs_are_files_folders_and_pictures(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    array = picture(3)
    given = ["images/b/7.png", Path("images/a"), array, Image.fromarray(array)]
    data = unloaded()
    samples = data.from_inputs(given)
    names = ["images/b/7.png", *(f"images/a/{i}.png" for i in range(9))]
    assert [s["id"] for s in samples] == [*names, "input 3", "input 4"]
    batch = data.collate(samples)
    assert batch["pixels"].shape == (12, 3, 32, 32) and "labels" not in batch
    assert torch.equal(batch["pixels"][-1], batch["pixels"][-2])
    assert data.show(samples[0]) == {"image": "7.png", "path": "images/b/7.png"}
    assert data.show(samples[-1])["thumbnail"].startswith("data:image/jpeg")


def test_bad_inputs_together(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    Path("bad.jpg").write_text("no")
    Path("none").mkdir()
    with pytest.raises(DataError) as caught:
        unloaded().from_inputs(["images/a/0.png", "bad.jpg", "none", "gone.png", 7])
    found = " ".join(str(fault) for fault in caught.value.faults)
    assert len(caught.value.faults) == 4
    for text in (
        "bad.jpg: not an image",
        "none: no image in this folder",
        "gone.png: there is no such image",
        "input 5: not an image: int",
    ):
        assert text in found
    with pytest.raises(DataError, match="no image to predict for"):
        unloaded().from_inputs([])


def test_augmentation_is_told_and_done(opened, folder):
    plain, mixed = opened(), opened(mixup=0.4)
    batch = plain.collate(plain.samples("train"))
    assert not plain.augments and mixed.augments
    assert opened(augmentation="light").augments and opened(cutmix=1.0).augments
    generator = torch.Generator().manual_seed(0)
    assert plain.augment(batch, generator) is batch
    changed = mixed.augment(batch, generator)
    assert changed["labels"].shape == (len(plain.samples("train")), 2)
    torch.testing.assert_close(
        changed["labels"].sum(1), torch.ones(len(changed["labels"]))
    )


def test_baselines_of_one_label(opened, tmp_path):
    data = opened(fashion(tmp_path / "f", train=120, test=30))
    majority, raw = data.baselines()
    assert [majority.name, raw.name] == [
        "majority class",
        "raw pixels + logistic regression",
    ]
    truth = torch.arange(30) % 3
    for found in (majority, raw):
        outputs = found.outputs
        assert torch.equal(outputs["target"], truth)
        assert outputs["probabilities"].shape == (30, 3)
        assert torch.equal(outputs["probabilities"].argmax(1), outputs["prediction"])
    assert len(majority.outputs["prediction"].unique()) == 1
    # The class is in the brightness, which is what raw pixels show.
    assert torch.equal(raw.outputs["prediction"], truth)


def test_baselines_of_several_labels(opened, tmp_path):
    for i in range(40):
        shade = [20, 90, 160, 230][i % 4]
        noise = picture(i) // 16
        Image.fromarray((noise + shade).clip(0, 255).astype(np.uint8)).save(
            tmp_path / f"{i}.png"
        )
    names = ["", "dim", "bright", "bright|glare"]
    rows = [f"{i}.png,{names[i % 4]}" for i in range(40)]
    data = opened(table(tmp_path, rows), kind="multi-label", separator="|")
    majority, raw = data.baselines()
    truth = torch.from_numpy(data.targets("test"))
    assert truth.shape == (len(data.samples("test")), 3)
    for found in (majority, raw):
        assert torch.equal(found.outputs["target"], truth)
        assert found.outputs["prediction"].shape == truth.shape
    right = (raw.outputs["prediction"] == truth).float().mean()
    assert right > (majority.outputs["prediction"] == truth).float().mean()


def test_baseline_says_when_it_saw_only_some(opened, tmp_path, monkeypatch):
    from headstart_vision import baselines as module

    monkeypatch.setattr(module, "ROWS", 40)
    data = opened(fashion(tmp_path / "f", train=120, test=30))
    assert [b.name for b in baselines(data)][1].endswith("on 40 images")


def test_description_counts(opened, folder):
    Image.fromarray(picture(5, (200, 100, 3))).save(folder / "a" / "large.png")
    described = opened().describe()
    assert [described[split] for split in SPLITS] == [13, 2, 4]
    assert described["pixels"] == {
        "smallest": "20x24",
        "median": "20x24",
        "largest": "100x200",
    }
    counted = sum(sum(described["classes"][split].values()) for split in SPLITS)
    assert counted == 19 and described["classes"]["test"] == {"a": 2, "b": 2}
