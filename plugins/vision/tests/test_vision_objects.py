"""Boxes and masks of objects: three formats, their layouts, and batches."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from headstart_vision.annotations import rle
from headstart_vision.objects import ObjectData, resized, shape_ranks
from headstart_vision.settings import ObjectSettings
from headstart_vision.tiny_objects import COLOURS, rectangles, tiny_objects

NAMES = list(COLOURS)
WIDTH, HEIGHT = 64, 48


def opened(path, seed=0, preprocessing=None, **settings):
    given = {"name": "vision/objects", "path": str(path), **settings}
    data = ObjectData(ObjectSettings(**given), seed)
    data.load()
    data.prepare(preprocessing or {})
    return data


def everything(data):
    return [s for split in ("train", "validation", "test") for s in data.samples(split)]


def scenes(count=12):
    for i, (pixels, placed) in zip(range(count), rectangles(), strict=False):
        yield f"scene{chr(ord('a') + i)}", pixels, placed


def coco(images, annotations, categories=None, **more):
    listed = [{"id": i, "name": name} for i, name in enumerate(NAMES, start=1)]
    return {
        "images": images,
        "annotations": annotations,
        "categories": listed if categories is None else categories,
        **more,
    }


def write_coco(file, parts, images="", prefix=""):
    """A COCO file and its images, in a folder relative to the file."""
    listed, found = [], []
    folder = file.parent / images
    folder.mkdir(parents=True, exist_ok=True)
    file.parent.mkdir(parents=True, exist_ok=True)
    for number, (name, pixels, placed) in enumerate(parts, start=10):
        Image.fromarray(pixels).save(folder / f"{name}.png")
        entry = {"id": number, "file_name": f"{prefix}{name}.png"}
        listed.append({**entry, "width": WIDTH, "height": HEIGHT})
        for label, (x1, y1, x2, y2) in placed:
            found.append(
                {
                    "id": len(found) + 1,
                    "image_id": number,
                    "category_id": NAMES.index(label) + 1,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "segmentation": [[x1, y1, x2, y1, x2, y2, x1, y2]],
                }
            )
    file.write_text(json.dumps(coco(listed, found)))


def write_voc(folder, parts, images):
    folder.mkdir(parents=True, exist_ok=True)
    images.mkdir(parents=True, exist_ok=True)
    for name, pixels, placed in parts:
        Image.fromarray(pixels).save(images / f"{name}.png")
        objects = "".join(
            f"<object><name>{label}</name><difficult>0</difficult><bndbox>"
            f"<xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin>"
            f"<xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>\n"
            for label, (x1, y1, x2, y2) in placed
        )
        (folder / f"{name}.xml").write_text(
            f"<annotation><filename>{name}.png</filename><size><width>{WIDTH}</width>"
            f"<height>{HEIGHT}</height><depth>3</depth></size>\n{objects}</annotation>"
        )


def write_yolo(images, labels, parts, outlines=False):
    images.mkdir(parents=True, exist_ok=True)
    labels.mkdir(parents=True, exist_ok=True)
    for name, pixels, placed in parts:
        Image.fromarray(pixels).save(images / f"{name}.png")
        lines = []
        for label, (x1, y1, x2, y2) in placed:
            values = [(x1 + x2) / 2 / WIDTH, (y1 + y2) / 2 / HEIGHT]
            values += [(x2 - x1) / WIDTH, (y2 - y1) / HEIGHT]
            if outlines:
                corners = [(x1, y1), (x2, y1), (x2, y2), (x1, y2)]
                values = [v for x, y in corners for v in (x / WIDTH, y / HEIGHT)]
            lines.append(" ".join(map(repr, [NAMES.index(label), *values])))
        (labels / f"{name}.txt").write_text("\n".join(lines))


@pytest.mark.parametrize("outlines", [False, True])
def test_three_formats_of_one_scene_are_equal(tmp_path, outlines):
    write_coco(tmp_path / "coco" / "a.json", scenes(), "images")
    write_voc(tmp_path / "voc" / "Annotations", scenes(), tmp_path / "voc/JPEGImages")
    yolo = tmp_path / "yolo"
    write_yolo(yolo / "images", yolo / "labels", scenes(), outlines)
    (yolo / "data.yaml").write_text("names: [red, blue]\nnc: 2\n")
    # VOC knows no order of classes but the alphabet's.
    found = [opened(tmp_path / n, labels=NAMES) for n in ("coco", "voc", "yolo")]
    by_name = [{Path(s["path"]).stem: s for s in everything(data)} for data in found]
    for name, _, placed in scenes():
        boxes = np.array([box for _, box in placed], np.float32)
        labels = [NAMES.index(label) + 1 for label, _ in placed]
        for samples in by_name:
            np.testing.assert_allclose(samples[name]["boxes"], boxes, atol=1e-4)
            assert samples[name]["box_labels"].tolist() == labels
            assert not samples[name]["crowd"].any()
    assert found[0].task == found[1].task == found[2].task
    assert found[0].task["labels"] == NAMES


def roboflow_coco(root):
    for split, count in (("train", 6), ("valid", 3), ("test", 2)):
        write_coco(root / split / "_annotations.coco.json", scenes(count))


def official_coco(root):
    for split, count in (("train2017", 6), ("val2017", 3), ("test2017", 2)):
        file = root / "annotations" / f"instances_{split}.json"
        write_coco(file, scenes(count), f"../{split}")
        (file.parent / f"captions_{split}.json").write_text('{"images": []}')


def coco_in_one_folder(root):
    for split, count in (("train", 6), ("val", 3), ("test", 2)):
        write_coco(root / f"{split}.json", scenes(count), f"images/{split}", "")


def coco_with_paths(root):
    for split, count in (("train", 6), ("val", 3), ("test", 2)):
        write_coco(root / f"{split}.json", scenes(count), f"{split}", f"{split}/")


def roboflow_voc(root):
    for split, count in (("train", 6), ("valid", 3), ("test", 2)):
        write_voc(root / split, scenes(count), root / split)


def official_voc(root):
    write_voc(root / "Annotations", scenes(11), root / "JPEGImages")
    names = [name for name, _, _ in scenes(11)]
    lists = root / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    for split, part in (("train", names[:6]), ("val", names[6:9]), ("test", names[9:])):
        (lists / f"{split}.txt").write_text("".join(f"{name}\n" for name in part))


def ultralytics(root):
    for split, count in (("train", 6), ("val", 3), ("test", 2)):
        write_yolo(root / "images" / split, root / "labels" / split, scenes(count))
    names = "names:\n  0: red\n  1: blue\n"
    places = "train: images/train\nval: images/val\ntest: images/test\n"
    (root / "data.yaml").write_text(f"path: {root}\n{places}{names}")


def ultralytics_without_yaml(root):
    ultralytics(root)
    (root / "data.yaml").unlink()
    (root / "classes.txt").write_text("red\nblue\n")


def ultralytics_lists(root):
    ultralytics(root)
    for split in ("train", "val", "test"):
        files = sorted((root / "images" / split).iterdir())
        (root / f"{split}.txt").write_text(
            "".join(f"./images/{split}/{file.name}\n" for file in files)
        )
    places = "train: train.txt\nval: val.txt\ntest: test.txt\n"
    (root / "data.yaml").write_text(f"{places}names: [red, blue]\n")


def roboflow_yolo(root):
    for split, count in (("train", 6), ("valid", 3), ("test", 2)):
        write_yolo(root / split / "images", root / split / "labels", scenes(count))
    # One folder too high, as Roboflow writes it.
    places = "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n"
    (root / "data.yaml").write_text(f"{places}nc: 2\nnames: ['red', 'blue']\n")


LAYOUTS = [
    roboflow_coco,
    official_coco,
    coco_in_one_folder,
    coco_with_paths,
    roboflow_voc,
    official_voc,
    ultralytics,
    ultralytics_without_yaml,
    ultralytics_lists,
    roboflow_yolo,
]


@pytest.mark.parametrize("write", LAYOUTS, ids=[f.__name__ for f in LAYOUTS])
def test_layouts_of_splits(write, tmp_path, monkeypatch):
    write(tmp_path)
    # The scenes of splits are the same on purpose here: only the layout is on trial.
    monkeypatch.setattr("headstart_vision.leaks.check_content", lambda *_: None)
    data = opened(tmp_path, labels=NAMES)
    counts = {s: len(data.samples(s)) for s in ("train", "validation", "test")}
    assert counts == {"train": 6, "validation": 3, "test": 2}
    wanted = [placed for _, _, placed in scenes(6)]
    for sample, placed in zip(data.samples("train"), wanted, strict=True):
        boxes = [box for _, box in placed]
        np.testing.assert_allclose(sample["boxes"], boxes, atol=1e-4)
    assert not any("listed nowhere" in str(w) for w in data.findings.warnings)


def test_files_of_splits_by_path(tmp_path):
    parts = list(scenes(12))
    for name, part in (("a", parts[:6]), ("b", parts[6:9]), ("c", parts[9:])):
        write_coco(tmp_path / name / "x.json", part)
    data = opened(
        tmp_path / "a" / "x.json",
        validation_path=str(tmp_path / "b"),
        test_path=str(tmp_path / "c" / "x.json"),
    )
    found = [len(data.samples(s)) for s in ("train", "validation", "test")]
    assert found == [6, 3, 3]


def test_random_split_is_seeded_and_keeps_groups(tmp_path):
    parts = [(f"p{i % 4}/s{n[-1]}", px, b) for i, (n, px, b) in enumerate(scenes(12))]
    for i in range(4):
        (tmp_path / "images" / f"p{i}").mkdir(parents=True)
    write_coco(tmp_path / "a.json", parts, "images")

    def groups(data, split):
        return {sample["id"].split("/")[-2] for sample in data.samples(split)}

    data = opened(tmp_path, group=r"/(p\d)/", test_size=3, validation_size=3)
    sides = [groups(data, split) for split in ("train", "validation", "test")]
    assert set.union(*sides) == {"p0", "p1", "p2", "p3"}
    assert sum(map(len, sides)) == 4
    again = opened(tmp_path, group=r"/(p\d)/", test_size=3, validation_size=3)
    assert again.fingerprint() == data.fingerprint()


# Masks


def test_polygons_are_pycocotools():
    from pycocotools import mask as reference

    generator = np.random.default_rng(0)
    for _ in range(50):
        count = generator.integers(3, 9)
        parts = [generator.uniform(-5, 70, 2 * count).tolist() for _ in range(2)]
        expected = reference.merge(reference.frPyObjects(parts, 48, 64))
        found = rle.from_polygons(parts, 48, 64)
        assert found["counts"] == expected["counts"].decode()
        assert rle.fault(found, (48, 64)) is None
        np.testing.assert_array_equal(rle.to_mask(found), reference.decode(expected))


def test_run_lengths_are_pycocotools():
    from pycocotools import mask as reference

    generator = np.random.default_rng(0)
    for share in (0.0, 0.02, 0.5, 0.98, 1.0):
        mask = (generator.random((48, 64)) < share).astype(np.uint8)
        expected = reference.encode(np.asfortranarray(mask))
        found = rle.from_mask(mask)
        assert found == {"size": [48, 64], "counts": expected["counts"].decode()}
        np.testing.assert_array_equal(rle.to_mask(found), mask)
        flat = mask.flatten(order="F")
        borders = np.flatnonzero(np.diff(flat, prepend=0)).tolist()
        counts = np.diff([0, *borders, flat.size]).tolist()
        plain = {"size": [48, 64], "counts": counts}
        assert rle.fault(plain, (48, 64)) is None
        assert rle.compressed(plain) == found
        assert rle.fault(found, (48, 64)) is None


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"size": [4, 5], "counts": [3, 4]}, "of 7 pixels, its size is 5 x 4 = 20"),
        ({"size": [4, 5], "counts": [3, -1, 18]}, "cannot be read"),
        ({"size": [4, 5], "counts": [3, 2.5, 14.5]}, "cannot be read"),
        ({"size": [4, 5], "counts": "zzz"}, "cannot be read"),
        ({"size": [4, 5], "counts": "34"}, "of 7 pixels"),
        ({"size": [4, 5], "counts": ""}, "of 0 pixels"),
        ({"size": [4, 5], "counts": "o" * 40 + "1"}, "cannot be read"),
        ({"size": [4, 5], "counts": None}, "cannot be read"),
        ({"size": [4], "counts": "34="}, "no [height, width]"),
        ({"counts": "34="}, "without 'size'"),
        ({"size": [5, 4], "counts": "34="}, "4 x 5, not 5 x 4"),
    ],
)
def test_broken_run_lengths_are_told(bad, message):
    assert message in rle.fault(bad, (4, 5))


def test_instances_from_polygons_and_both_kinds_of_run_lengths(tmp_path):
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[10:20, 30:50] = 1
    flat = np.diff(mask.flatten(order="F"), prepend=0, append=0)
    plain = np.diff([0, *np.flatnonzero(flat), mask.size]).tolist()
    outlines = [
        [[30, 10, 50, 10, 50, 20, 30, 20]],
        {"size": [HEIGHT, WIDTH], "counts": plain},
        rle.from_mask(mask),
    ]
    images, annotations = [], []
    for i in range(5):
        Image.fromarray(pixels + i).save(tmp_path / f"{'abcde'[i]}.png")
        images.append({"id": i, "file_name": f"{'abcde'[i]}.png"})
        annotations += [
            {"id": 3 * i + j, "image_id": i, "category_id": 1, "iscrowd": int(j == 2),
             "bbox": [30, 10, 20, 10], "segmentation": outline}
            for j, outline in enumerate(outlines)
        ]  # fmt: skip
    (tmp_path / "a.json").write_text(json.dumps(coco(images, annotations)))
    data = opened(tmp_path, kind="instances", test_size=1, validation_size=1)
    batch = data.collate(list(data.samples("train")))
    assert batch["masks"].dtype == torch.uint8
    assert batch["masks"].shape == (3, 3, 64, 64)
    expected = torch.zeros(64, 64, dtype=torch.uint8)
    expected[10:20, 30:50] = 1
    assert (batch["masks"] == expected).all()
    assert batch["crowd"].tolist() == [[False, False, True]] * 3


def test_outlines_in_yolo_lines_are_masks(tmp_path):
    write_yolo(tmp_path / "images", tmp_path / "labels", scenes(), outlines=True)
    (tmp_path / "data.yaml").write_text("names: [red, blue]")
    data = opened(tmp_path, kind="instances")
    wanted = {name: placed for name, _, placed in scenes()}
    for sample in data.samples("train"):
        masks = data.collate([sample])["masks"][0]
        placed = wanted[Path(sample["path"]).stem]
        for mask, (_, (x1, y1, x2, y2)) in zip(masks, placed, strict=True):
            expected = torch.zeros_like(mask)
            expected[y1:y2, x1:x2] = 1
            assert torch.equal(mask, expected)


# Batches


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_objects(tmp_path_factory.mktemp("tiny"))


def test_batch_is_as_the_contract_says(tiny):
    data = opened(**{k: v for k, v in tiny.items() if k != "name"})
    samples = sorted(data.samples("train"), key=lambda s: len(s["boxes"]))
    one, two = samples[0], samples[-1]
    batch = data.collate([one, two])
    assert batch["pixels"].shape == (2, 3, 64, 64)
    assert batch["pixels"].dtype == torch.uint8
    with Image.open(one["path"]) as image:
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    assert torch.equal(batch["pixels"][0, :, :48], pixels)
    assert not batch["pixels"][:, :, 48:].any()
    assert batch["image_sizes"].tolist() == [[48, 64]] * 2
    assert batch["original_sizes"].tolist() == [[48, 64]] * 2
    assert batch["boxes"].dtype == torch.float32
    assert batch["boxes"].shape == (2, 2, 4)
    assert batch["box_labels"][0].tolist() == [int(one["box_labels"][0]), 0]
    assert (batch["box_labels"][1] > 0).all()
    assert not batch["boxes"][0, 1].any()
    assert not batch["masks"][0, 1].any()
    for i, sample in enumerate((one, two)):
        for j, box in enumerate(sample["boxes"].astype(int)):
            x1, y1, x2, y2 = box
            colour = COLOURS[NAMES[sample["box_labels"][j] - 1]]
            inside = batch["pixels"][i, :, y1:y2, x1:x2]
            assert (inside == torch.tensor(colour)[:, None, None]).all()
            assert batch["masks"][i, j].sum() == (x2 - x1) * (y2 - y1)


def test_an_image_without_objects_has_one_empty_place(tmp_path):
    empty = ("none", np.zeros((48, 64, 3), np.uint8), [])
    write_coco(tmp_path / "a.json", [*scenes(9), empty])
    data = opened(tmp_path, kind="instances")
    sample = next(s for s in everything(data) if s["path"].endswith("none.png"))
    batch = data.collate([sample])
    assert batch["boxes"].tolist() == [[[0, 0, 0, 0]]]
    assert batch["box_labels"].tolist() == [[0]]
    assert batch["crowd"].tolist() == [[False]]
    assert batch["masks"].shape == (1, 1, 64, 64)
    assert not batch["masks"].any()
    assert sum(data.describe()["images without objects"].values()) == 1
    assert data.show(sample)["objects"] == "none"
    (warning,) = data.findings.warnings
    assert warning.what == "1 of 10 images have no object: none.png"


SHAPES = [(48, 64), (64, 48), (30, 31), (427, 640), (640, 427), (33, 200), (100, 100)]


@pytest.mark.parametrize("size", [32, 40, 97])
def test_resizing_is_torchvisions(tmp_path, size):
    generator = np.random.default_rng(0)
    images, annotations, boxes = [], [], {}
    for i, (height, width) in enumerate(SHAPES):
        pixels = generator.integers(0, 255, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{'abcdefg'[i]}.png")
        images.append({"id": i, "file_name": f"{'abcdefg'[i]}.png"})
        x1, y1, w, h = width / 5, height / 4, width / 2, height / 3
        boxes[f"{'abcdefg'[i]}.png"] = [x1, y1, x1 + w, y1 + h]
        outline = [[x1, y1, x1 + w, y1, x1 + w, y1 + h, x1, y1 + h]]
        entry = {"id": i, "image_id": i, "category_id": 1}
        annotations.append({**entry, "bbox": [x1, y1, w, h], "segmentation": outline})
    (tmp_path / "a.json").write_text(json.dumps(coco(images, annotations)))
    data = opened(tmp_path, kind="instances", size=size, max_size=150)
    theirs = GeneralizedRCNNTransform(size, 150, [0.0] * 3, [1.0] * 3).eval()
    for sample in everything(data):
        batch = data.collate([sample])
        height, width = batch["original_sizes"][0].tolist()
        name = Path(sample["path"]).name
        box = torch.tensor([boxes[name]])
        outline = [sample["outlines"][0][0]]
        mask = torch.from_numpy(rle.to_mask(rle.from_polygons(outline, height, width)))
        target = {"boxes": box, "masks": mask[None]}
        image = data.picture(sample).float() / 255
        expected, (found,) = theirs([image], [target])
        assert batch["image_sizes"].tolist() == [list(expected.image_sizes[0])]
        assert batch["pixels"].shape == expected.tensors.shape
        pixels = batch["pixels"].float() / 255
        # Ours have 8 bits.
        torch.testing.assert_close(pixels, expected.tensors, rtol=0, atol=1.01 / 255)
        torch.testing.assert_close(batch["boxes"][0], found["boxes"])
        rows, columns = expected.image_sizes[0]
        ours = batch["masks"][0, 0, :rows, :columns]
        assert torch.equal(ours, found["masks"][0])


def test_without_size_images_stay():
    assert resized((427, 640), None, 100) == (427, 640)


def test_sizes_group_like_shapes(tmp_path, tiny):
    assert (
        opened(**{k: v for k, v in tiny.items() if k != "name"}).sizes("train") is None
    )
    shapes = [(600, 800), (800, 600), (600, 801), (800, 600), (1200, 1600), (60, 80)]
    ranks = shape_ranks(shapes)
    assert ranks[1] == ranks[3]
    assert len(set(ranks.tolist())) == 5
    order = [shapes[i] for i in np.argsort(ranks, kind="stable")]
    # By pixels; of about equal ones, portrait before landscape.
    assert order[0] == (60, 80)
    assert order[1:3] == [(800, 600)] * 2
    assert order[-1] == (1200, 1600)
    assert np.abs(ranks / [h * w for h, w in shapes] - 1).max() < 0.11


def test_boxes_are_of_the_upright_image(tmp_path):
    upright = np.zeros((48, 64, 3), np.uint8)
    upright[10:20, 30:50] = (0, 255, 0)
    exif = Image.Exif()
    exif[0x0112] = 6
    for i in range(8):
        # A viewer turns by 90 degrees clockwise; stored is the opposite.
        stored = Image.fromarray(np.rot90(upright + i).copy())
        stored.save(tmp_path / f"{'abcdefgh'[i]}.png", exif=exif)
    images = [{"id": i, "file_name": f"{'abcdefgh'[i]}.png", "width": 64, "height": 48}
              for i in range(8)]  # fmt: skip
    annotations = [{"id": i, "image_id": i, "category_id": 1, "bbox": [30, 10, 20, 10]}
                   for i in range(8)]  # fmt: skip
    (tmp_path / "a.json").write_text(json.dumps(coco(images, annotations)))
    data = opened(tmp_path)
    batch = data.collate([data.samples("train")[0]])
    assert batch["original_sizes"].tolist() == [[48, 64]]
    assert (batch["pixels"][0, 1, 10:20, 30:50] >= 250).all()
    assert (batch["pixels"][0, 1, :48].float() > 100).sum() == 200


def test_crowd_and_difficult(tmp_path):
    write_voc(tmp_path / "Annotations", scenes(), tmp_path / "images")
    for file in (tmp_path / "Annotations").iterdir():
        text = file.read_text()
        file.write_text(text.replace("<difficult>0", "<difficult>1", 1))
    data = opened(tmp_path)
    for sample in everything(data):
        assert sample["crowd"].tolist() == [True, False][: len(sample["crowd"])]
    assert data.describe()["crowd or difficult objects"] == 12


def test_collate_reaches_workers_and_predicts(tiny, tmp_path):
    data = opened(**{k: v for k, v in tiny.items() if k != "name"})
    collate = pickle.loads(pickle.dumps(data.collate))
    sample = pickle.loads(pickle.dumps(data.samples("train")))[0]
    batch = collate([sample])
    assert all(torch.equal(batch[k], v) for k, v in data.collate([sample]).items())
    inputs = data.from_inputs([sample["path"], str(Path(tiny["path"]) / "images")])
    assert len(inputs) == 25
    bare = data.collate(inputs[:2])
    assert set(bare) == {"pixels", "image_sizes", "original_sizes"}


def test_augmentation_moves_what_belongs_together(tiny):
    given = {k: v for k, v in tiny.items() if k != "name"}
    data = opened(**given, augmentation="light")
    assert data.augments
    assert not opened(**given).augments
    batch = data.collate(list(data.samples("train"))[:4])
    changed = data.augment(batch, torch.Generator().manual_seed(0))
    assert not torch.equal(changed["pixels"], batch["pixels"])
    for i, j in (changed["box_labels"] > 0).nonzero().tolist():
        rows, columns = changed["masks"][i, j].nonzero(as_tuple=True)
        edges = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        expected = torch.stack(edges).float()
        torch.testing.assert_close(changed["boxes"][i, j], expected, rtol=0, atol=1.5)


def test_description_counts_objects(tiny):
    data = opened(**{k: v for k, v in tiny.items() if k != "name"})
    described = data.describe()
    train = [n for s in data.samples("train") for n in s["box_labels"].tolist()]
    expected = {name: train.count(i) for i, name in enumerate(NAMES, start=1)}
    assert described["objects"]["train"] == expected
    assert data.task == {"kind": "instances", "labels": NAMES,
                         "counts": list(expected.values())}  # fmt: skip
    shown = data.show(next(s for s in everything(data) if len(s["boxes"]) == 2))
    assert shown["objects"] == "1 x red, 1 x blue"


def test_fingerprint_follows_annotations_and_not_the_place(tiny, tmp_path):
    given = {k: v for k, v in tiny.items() if k not in ("name", "path")}
    before = opened(tiny["path"], **given).fingerprint()
    copy = tmp_path / "copy"
    shutil.copytree(tiny["path"], copy)
    assert opened(copy, **given).fingerprint() == before
    content = json.loads((copy / "annotations.json").read_text())
    content["annotations"][0]["bbox"][0] += 0.25
    (copy / "annotations.json").write_text(json.dumps(content))
    assert opened(copy, **given).fingerprint() != before


# Classes and their numbers


def numbered(folder, numbers, categories=None, **settings):
    """A COCO file with an object an image, four of each number."""
    folder.mkdir(exist_ok=True)
    images, annotations = [], []
    for i, number in enumerate(numbers * 4):
        pixels = np.full((48, 64, 3), i, np.uint8)
        Image.fromarray(pixels).save(folder / f"{'abcdefghijkl'[i]}.png")
        images.append({"id": i, "file_name": f"{'abcdefghijkl'[i]}.png"})
        annotations.append({"id": i, "image_id": i, "category_id": number,
                            "bbox": [1, 1, 9, 9]})  # fmt: skip
    content = coco(images, annotations, categories)
    (folder / "a.json").write_text(json.dumps(content))
    data = opened(folder, **settings)
    found = {
        Path(s["path"]).stem: data.task["labels"][s["box_labels"][0] - 1]
        for s in everything(data)
    }
    return data, [found["abcdefgh"[i]] for i in range(len(numbers))]


def listed(*pairs):
    return [{"id": number, "name": name} for number, name in pairs]


def test_arbitrary_category_ids_go_by_name(tmp_path):
    categories = listed((90, "toothbrush"), (1, "person"), (13, "stop sign"))
    data, found = numbered(tmp_path, [13, 90, 1], categories)
    assert found == ["stop sign", "toothbrush", "person"]
    assert data.task["labels"] == ["person", "stop sign", "toothbrush"]
    assert not data.findings.warnings


def test_given_labels_are_the_order(tmp_path):
    data, found = numbered(tmp_path, [1, 2], labels=("blue", "red"))
    assert data.task["labels"] == ["blue", "red"]
    assert found == ["red", "blue"]


@pytest.mark.parametrize("base", ["0", "1"])
def test_without_categories_the_user_says_the_base(tmp_path, base):
    first = int(base)
    _, found = numbered(
        tmp_path, [first, first + 1], [], labels=("cat", "dog"), label_base=base
    )
    assert found == ["cat", "dog"]


def test_categories_from_zero_are_read_as_listed_and_told(tmp_path):
    categories = listed((0, "cat"), (1, "dog"))
    data, found = numbered(tmp_path, [1, 0], categories)
    assert found == ["dog", "cat"]
    (warning,) = data.findings.warnings
    assert "category ids start at 0 ('cat')" in warning.what
    assert "data.label_base" in warning.fix
    data, again = numbered(tmp_path, [1, 0], categories, label_base="0")
    assert again == found
    assert not data.findings.warnings


def test_a_first_class_that_nobody_has_is_told(tmp_path):
    categories = listed((0, "cat"), (1, "dog"), (2, "cow"))
    data, found = numbered(tmp_path, [1, 2], categories)
    assert found == ["dog", "cow"]
    told = [str(w) for w in data.findings.warnings]
    assert any("class number 0 ('cat') is never used" in t for t in told)
    # The user's word moves them, and that is told, too.
    data, found = numbered(tmp_path, [1, 2], categories, label_base="1")
    assert found == ["cat", "dog"]
    assert any(
        "1 'cat', 2 'dog', 3 'cow'" in str(w) and "from 1 on" in str(w)
        for w in data.findings.warnings
    )


@pytest.mark.parametrize("base", ["", "0", "1"])
def test_base_of_yolo_numbers(tmp_path, base):
    write_yolo(tmp_path / "images", tmp_path / "labels", scenes())
    (tmp_path / "classes.txt").write_text("red\nblue\n")
    if base == "1":
        for file in (tmp_path / "labels").iterdir():
            lines = [line.split() for line in file.read_text().splitlines()]
            rows = [[str(int(n) + 1), *rest] for n, *rest in lines]
            file.write_text("\n".join(" ".join(row) for row in rows))
    data = opened(tmp_path, label_base=base)
    wanted = {name: placed for name, _, placed in scenes()}
    for sample in everything(data):
        placed = wanted[Path(sample["path"]).stem]
        assert [data.task["labels"][i - 1] for i in sample["box_labels"]] == [
            label for label, _ in placed
        ]


def test_many_annotations_in_one_file(tmp_path, monkeypatch):
    """Each entry is looked at once: a file of 100,000 is read in seconds."""
    count = 20_000
    images = [{"id": i, "file_name": f"{i}.png", "width": 8, "height": 8}
              for i in range(count)]  # fmt: skip
    annotations = [{"id": i, "image_id": count - 1 - i // 2, "category_id": 1,
                    "bbox": [0, 0, 4, 4]} for i in range(2 * count)]  # fmt: skip
    file = tmp_path / "a.json"
    file.write_text(json.dumps(coco(images, annotations)))
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "0.png").touch()
    from headstart.data import Findings
    from headstart_vision.annotations import coco as reader

    stats = []
    real = Path.is_file
    monkeypatch.setattr(Path, "is_file", lambda self: stats.append(1) or real(self))
    findings = Findings()
    found = reader.read(file, "a.json", [tmp_path, tmp_path / "images"], findings)
    assert len(found.images) == count
    assert all(len(image.objects) == 2 for image in found.images)
    assert found.images[0].path == tmp_path / "images" / "0.png"
    assert found.images[-1].objects[0].ref == "annotation 0"
    assert not findings.samples
    assert len(stats) <= 200, "looks for images in each folder by a few samples alone"
