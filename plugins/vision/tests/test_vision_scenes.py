"""Composited scenes: exact targets, honest splits, and IDX files without trust."""

from __future__ import annotations

import dataclasses
import gzip
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from headstart.errors import DataError
from headstart_vision import compose
from headstart_vision.garments import NAMES
from headstart_vision.idx import read_idx
from headstart_vision.scenes import SceneData
from headstart_vision.settings import SceneSettings
from headstart_vision.tiny_scenes import tiny_scenes, write_idx

SPLITS = ("train", "validation", "test")
LIMIT = 10_000_000


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_scenes(tmp_path_factory.mktemp("tiny") / "data")


@pytest.fixture
def own(tmp_path):
    """Files that a test may change."""
    return tiny_scenes(tmp_path / "data")


def opened(tiny, seed=0, **settings):
    data = SceneData(SceneSettings(**{**tiny, **settings}), seed)
    data.load()
    data.prepare({})
    return data


def faults(settings, **more):
    with pytest.raises(DataError) as caught:
        opened(settings, **more)
    return str(caught.value)


def scenes(data, split="train"):
    return [sample["scene"] for sample in data.samples(split)]


def test_masks_boxes_and_classes_agree(tiny):
    """Each kind of target against the instance masks, pixel by pixel."""
    given = {"train": 30, "most": 6}
    instances = opened(tiny, kind="instances", **given)
    batch = instances.collate(instances.samples("train"))
    semantic = opened(tiny, kind="semantic", **given)
    classes = semantic.collate(semantic.samples("train"))
    boxes = opened(tiny, kind="boxes", **given)
    plain = boxes.collate(boxes.samples("train"))
    assert set(plain) == set(batch) - {"masks"}
    assert all(torch.equal(plain[key], batch[key]) for key in plain)
    assert torch.equal(plain["pixels"], classes["pixels"])
    assert batch["masks"].sum(1).max() == 1, "a pixel belongs to two objects"
    expected = torch.zeros_like(classes["mask"])
    for i, labels in enumerate(batch["box_labels"].tolist()):
        for j, label in enumerate(labels):
            mask = batch["masks"][i, j]
            assert bool(mask.any()) is bool(label)
            if label:
                rows, columns = torch.nonzero(mask, as_tuple=True)
                corners = [columns.min(), rows.min(), columns.max(), rows.max()]
                corners = [int(c) + (k > 1) for k, c in enumerate(corners)]
                assert batch["boxes"][i, j].tolist() == corners
                expected[i][mask.bool()] = label
            else:
                assert batch["boxes"][i, j].tolist() == [0, 0, 0, 0]
    assert torch.equal(classes["mask"], expected)
    assert semantic.task["labels"] == ["background", *NAMES]
    assert batch["box_labels"].max() > 6


def test_boxes_lie_on_what_was_painted(tiny):
    """Against the same scene without its object: the pixels that changed."""
    data = opened(tiny, train=60, most=1)
    checked = 0
    for scene in scenes(data):
        if not scene.objects:
            continue
        (thing,) = scene.objects
        painted, owner = compose.render(scene, LIMIT)
        bare, nothing = compose.render(dataclasses.replace(scene, objects=()), LIMIT)
        assert not nothing.any()
        change = np.abs(painted.astype(int) - bare).max(2)
        # What the soft edge covers by less than a half is no part of the mask.
        left, top, right, bottom = compose.extent(change > 0)
        x0, y0, x1, y1 = thing.box
        assert left <= x0 and top <= y0 and right >= x1 and bottom >= y1
        assert max(x0 - left, y0 - top, right - x1, bottom - y1) <= 3
        assert (change[owner > 0] > 0).mean() > 0.9
        checked += 1
    assert checked > 30


def test_no_object_is_hidden_by_more_than_half(tiny):
    data = opened(tiny, train=60, most=8)
    hidden = []
    for scene in scenes(data):
        _, owner = compose.render(scene, LIMIT)
        for number, thing in enumerate(scene.objects, start=1):
            alone = dataclasses.replace(scene, objects=(thing,))
            full = (compose.render(alone, LIMIT)[1] > 0).sum()
            hidden.append(1 - (owner == number).sum() / full)
    assert max(hidden) <= 0.5
    assert max(hidden) > 0.2, "objects never overlap"


def test_counts_and_sizes_of_objects(tiny):
    data = opened(tiny, train=200, most=4)
    counts = [len(scene.objects) for scene in scenes(data)]
    assert set(counts) == {0, 1, 2, 3, 4}
    assert data.describe()["without objects"]["train"] == counts.count(0)
    assert sum(data.task["counts"]) == sum(counts)
    assert sum(data.describe()["objects"]["train"].values()) == sum(counts)
    longest = [max(t.place[2:]) for s in scenes(data) for t in s.objects]
    # 1/8 to 2/5 of 64 pixels.
    assert min(longest) == 8 and max(longest) in (25, 26)


def test_a_scene_without_objects_has_one_empty_place(tiny):
    data = opened(tiny, train=80, kind="instances")
    empty = [s for s in data.samples("train") if not s["scene"].objects]
    batch = data.collate(empty[:2])
    assert batch["boxes"].shape == (len(empty[:2]), 1, 4)
    assert not batch["box_labels"].any() and not batch["masks"].any()


def test_a_scene_is_a_function_of_seed_split_and_number(tiny):
    few, many = opened(tiny, train=3), opened(tiny, train=8, validation=9)
    first = few.collate(few.samples("train"))
    again = many.collate(many.samples("train")[:3])
    assert all(torch.equal(first[key], again[key]) for key in first)
    other = opened(tiny, seed=1)
    assert not torch.equal(
        first["pixels"], other.collate(other.samples("train")[:3])["pixels"]
    )
    pixels = [many.picture(0, split) for split in SPLITS]
    assert not torch.equal(pixels[0], pixels[1])
    assert not torch.equal(pixels[1], pixels[2])
    alone = many.collate(many.samples("train")[1:2])["pixels"][0]
    assert torch.equal(alone, many.picture(1, "train"))


def test_splits_share_neither_photographs_nor_garments(tiny):
    data = opened(tiny, train=60, validation=60, test=60)
    official = read_idx_bytes(tiny, "train"), read_idx_bytes(tiny, "t10k")
    photos, garments = {}, {}
    for split in SPLITS:
        photos[split] = {s.backdrop.photo for s in scenes(data, split)}
        photos[split] |= {
            p.source.photo for s in scenes(data, split) for p in s.patches
        }
        garments[split] = {
            t.garment.tobytes() for s in scenes(data, split) for t in s.objects
        }
    for one, other in (SPLITS[:2], SPLITS[1:], SPLITS[::2]):
        assert not photos[one] & photos[other]
        assert not garments[one] & garments[other]
    assert len(photos["test"]) == 2 and len(photos["validation"]) == 1
    assert garments["train"] | garments["validation"] <= official[0]
    assert garments["test"] <= official[1]


def read_idx_bytes(tiny, part):
    (path,) = Path(tiny["objects"]).glob(f"{part}-images*")
    return {
        picture[np.ix_(picture.any(1), picture.any(0))].tobytes()
        for picture in read_idx(path)
    }


def test_padding_up_to_the_stride(tiny):
    for kind in ("instances", "semantic"):
        data = opened(tiny, kind=kind, size=40)
        batch = data.collate(data.samples("train")[:2])
        assert batch["pixels"].shape == (2, 3, 64, 64)
        assert batch["pixels"].dtype == torch.uint8
        assert batch["image_sizes"].tolist() == [[40, 40]] * 2
        assert batch["original_sizes"].tolist() == [[40, 40]] * 2
        assert not batch["pixels"][..., 40:, :].any()
        assert not batch["pixels"][..., 40:].any()
        assert batch["pixels"][..., :40, :40].any()
        if kind == "semantic":
            assert (batch["mask"][:, 40:] == 255).all()
            assert (batch["mask"][:, :40, :40] < 255).all()
            assert data.padding == {"mask": 255}
        else:
            assert batch["masks"].shape[-2:] == (64, 64)
            assert not batch["masks"][..., 40:, :].any()


def test_chosen_classes_alone_in_their_order(tiny):
    data = opened(tiny, labels=("Bag", "Trouser"), train=40, kind="semantic")
    assert data.task["labels"] == ["background", "Bag", "Trouser"]
    assert {t.label for s in scenes(data) for t in s.objects} == {0, 1}
    # The tiny garments' sides tell their class: 24 x 10 of a bag, 10 x 24 of trousers.
    for scene in scenes(data):
        for thing in scene.objects:
            assert thing.garment.shape == ((24, 10), (10, 24))[thing.label]
    counts = [
        sum(t.label == n for s in scenes(data) for t in s.objects) for n in (0, 1)
    ]
    assert data.task["counts"] == [40, *counts] and min(counts) > 0


def test_every_word_of_it_says_composited(tiny):
    data = opened(tiny)
    described, task = data.describe(), data.task
    json.dumps([described, task])
    assert "composited" in described["scenes"] and "composited" in task["scenes"]
    shown = data.show(data.samples("test")[0])
    assert "composited" in shown["image"]
    assert shown["thumbnail"].startswith("data:image/jpeg;base64,")
    names = [NAMES[t.label] for t in scenes(data, "test")[0].objects]
    assert shown["objects"] == (", ".join(names) or "none")


def test_fingerprint_follows_content(own, tmp_path):
    first = opened(own).fingerprint()
    moved = tmp_path / "elsewhere"
    shutil.copytree(own["backgrounds"], moved)
    assert opened(own, backgrounds=str(moved), workers=2).fingerprint() == first
    for change in ({"seed": 1}, {"size": 32}, {"kind": "instances"}, {"train": 9}):
        assert opened(own, **change).fingerprint() != first, change
    photo = moved / "road.png"
    with Image.open(photo) as image:
        brighter = image.point(lambda value: min(value + 1, 255))
    brighter.save(photo)
    assert opened(own, backgrounds=str(moved)).fingerprint() != first


def test_collate_reaches_worker_processes(tiny):
    data = opened(tiny, kind="instances")
    samples = data.samples("train")
    sent = pickle.dumps((data.collate, samples[:2]))
    collate, received = pickle.loads(sent)
    ours, theirs = data.collate(samples[:2]), collate(received)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize("kind", ["boxes", "instances", "semantic"])
def test_augmentation_moves_the_targets_of_each_kind(tiny, kind):
    data = opened(tiny, kind=kind, augmentation="strong")
    batch = data.collate(data.samples("train"))
    assert data.augments and not opened(tiny, kind=kind).augments
    new = data.augment(batch, torch.Generator().manual_seed(0))
    target = {"boxes": "boxes", "instances": "masks", "semantic": "mask"}[kind]
    for key in ("pixels", target):
        assert not torch.equal(new[key], batch[key])
    assert set(new) == set(batch)


def test_photographs_of_a_user_are_resized_and_no_more(tiny, tmp_path):
    data = opened(tiny)
    Image.new("RGB", (400, 100), (9, 99, 200)).save(tmp_path / "wide.png")
    tall = np.full((96, 64, 3), 50, np.uint8)
    samples = data.from_inputs([tmp_path / "wide.png", tall])
    batch = data.collate(samples)
    assert set(batch) == {"pixels", "image_sizes", "original_sizes"}
    assert batch["original_sizes"].tolist() == [[100, 400], [96, 64]]
    # The shorter side would be 64; the longer one is at most 128.
    assert batch["image_sizes"].tolist() == [[32, 128], [96, 64]]
    assert batch["pixels"].shape == (2, 3, 96, 128)
    assert batch["pixels"][0, :, 16, 60].tolist() == [9, 99, 200]
    assert (batch["pixels"][1, :, :96, :64] == 50).all()
    assert "composited" not in json.dumps([data.show(s) for s in samples])


# Bad input


def test_all_missing_files_are_named(own, tmp_path):
    text = faults(own, objects=str(tmp_path / "datta"), backgrounds=str(tmp_path / "x"))
    assert "data.objects" in text and "data.backgrounds" in text
    for name in ("train-labels-idx1-ubyte", "t10k-images-idx3-ubyte"):
        (Path(own["objects"]) / f"{name}.gz").unlink()
    text = faults(own)
    assert "train-labels-idx1-ubyte" in text and "t10k-images-idx3-ubyte" in text


def test_too_few_photographs(own, tmp_path):
    folder = tmp_path / "few"
    shutil.copytree(own["backgrounds"], folder)
    (folder / "beach.png").unlink()
    shutil.copy(folder / "road.png", folder / "square.png")
    assert "3 different photographs are too few" in faults(own, backgrounds=str(folder))


def test_frames_of_one_video_stay_in_one_split(own, tmp_path):
    folder = tmp_path / "photos"
    shutil.copytree(own["backgrounds"], folder)
    for i in range(4):
        noise = np.random.default_rng(i).integers(0, 256, (64, 64, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"walk_{i}.png")
    for seed in range(8):
        data = opened(own, seed=seed, backgrounds=str(folder), train=40, test=40)
        where = {
            split
            for split in SPLITS
            for photo in data._photos[split]
            if "walk" in photo
        }
        assert len(where) == 1
        assert min(data.describe()["photographs"].values()) >= 1


def test_a_damaged_photograph_stops_or_is_left_out(own, tmp_path):
    folder = tmp_path / "photos"
    shutil.copytree(own["backgrounds"], folder)
    (folder / "torn.png").write_bytes((folder / "road.png").read_bytes()[:200])
    (folder / "empty.jpg").write_bytes(b"")
    text = faults(own, backgrounds=str(folder))
    assert "torn.png" in text and "empty.jpg" in text
    data = opened(own, backgrounds=str(folder), bad="skip", bad_cap=0.5)
    assert len(data.findings.left_out) == 2
    assert sum(data.describe()["photographs"].values()) == 5


def test_a_photograph_that_is_too_large(own):
    assert "max_pixels" in faults(own, max_pixels=1000)


def test_unknown_and_repeated_classes(own):
    text = faults(own, labels=("Bags", "Coat", "Coat"))
    assert "did you mean 'Bag'?" in text and "named twice: Coat" in text


def test_labels_that_do_not_fit(own):
    folder = Path(own["objects"])
    write_idx(folder / "train-labels-idx1-ubyte.gz", np.zeros(7, np.uint8))
    write_idx(folder / "t10k-labels-idx1-ubyte.gz", np.full(100, 10, np.uint8))
    text = faults(own)
    assert "100 images and labels of shape (7,)" in text
    assert "labels reach from 10 to 10" in text


def test_a_class_without_garments(own):
    folder = Path(own["objects"])
    labels = np.arange(100, dtype=np.uint8) % 10
    labels[labels == 3] = 4
    write_idx(folder / "t10k-labels-idx1-ubyte.gz", labels)
    assert "too few of 'Dress': 10 in train, 0 in test" in faults(own)


# IDX


def idx(kind, shape, values):
    sizes = b"".join(n.to_bytes(4, "big") for n in shape)
    return bytes([0, 0, kind, len(shape)]) + sizes + values


@pytest.mark.parametrize("packed", [False, True])
def test_idx_by_hand(tmp_path, packed):
    path = tmp_path / "file"
    files = {
        idx(8, (2, 3), bytes([1, 2, 3, 4, 5, 255])): [[1, 2, 3], [4, 5, 255]],
        idx(9, (2,), b"\x01\xff"): [1, -1],
        idx(0x0B, (2,), b"\x01\x00\xff\xff"): [256, -1],
        idx(0x0C, (1, 1), b"\x00\x01\x00\x00"): [[65536]],
        idx(0x0D, (1,), b"\x3f\x80\x00\x00"): [1.0],
        idx(0x0E, (1,), b"\xbf\xf0\0\0\0\0\0\0"): [-1.0],
        idx(8, (0, 28, 28), b""): [],
    }
    for raw, expected in files.items():
        path.write_bytes(gzip.compress(raw) if packed else raw)
        array = read_idx(path)
        assert array.tolist() == expected
        assert array.dtype.isnative


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", "is no IDX file"),
        (b"\0\0", "is no IDX file"),
        (b"\x89PNG\r\n\x1a\n", "is no IDX file"),
        (idx(7, (1,), b"a"), "is no IDX file"),
        (idx(8, (), b""), "is no IDX file"),
        (idx(8, (2, 2), b"")[:9], "ends inside the header"),
        (idx(8, (2, 2), b"abc"), "declares 4 bytes of values, it has 3"),
        (idx(8, (2, 2), b"abcde"), "has bytes left over"),
        (idx(8, (2**32 - 1, 2**32 - 1), b"abc"), "are not read"),
        (gzip.compress(idx(8, (900,), bytes(range(180)) * 5))[:-20], "cannot be read"),
        (gzip.compress(idx(8, (2,), b"ab"))[:10] + b"\xff" * 20, "cannot be read"),
        (b"\x1f\x8b", "cannot be read"),
    ],
)
def test_idx_that_cannot_be_trusted(tmp_path, raw, says):
    path = tmp_path / "some-idx3-ubyte"
    path.write_bytes(raw)
    with pytest.raises(DataError, match=says) as caught:
        read_idx(path)
    assert str(path) in str(caught.value)


def test_idx_that_would_unpack_to_too_much(tmp_path):
    path = tmp_path / "bomb.gz"
    path.write_bytes(gzip.compress(idx(8, (4, 1000), bytes(4000))))
    with pytest.raises(DataError, match="more than 3,999 bytes"):
        read_idx(path, limit=3999)
    assert read_idx(path, limit=4000).shape == (4, 1000)


def test_idx_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        read_idx(tmp_path / "nothing")
