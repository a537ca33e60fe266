"""Semantic masks: palette and grey, splits, batches, and what is refused."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from headstart.errors import DataError
from headstart_vision.masks import MaskData
from headstart_vision.settings import MaskSettings
from headstart_vision.tiny_masks import tiny_masks
from headstart_vision.tiny_objects import rectangles

SHAPE = (48, 64)


def opened(path, seed=0, **settings):
    given = {"name": "vision/masks", "path": str(path), **settings}
    data = MaskData(MaskSettings(**given), seed)
    data.load()
    data.prepare({})
    return data


def faults(path, **settings):
    with pytest.raises(DataError) as caught:
        opened(path, **settings)
    return [" | ".join(str(fault).splitlines()) for fault in caught.value.faults]


def squares(i):
    """A mask with class 1 on the left and class 2 on the right."""
    values = np.zeros(SHAPE, np.uint8)
    values[5 : 15 + i, 5:20] = 1
    values[5 : 15 + i, 40:60] = 2
    return values


def write(root, count=10, images="images", masks="masks", start=0, mask=squares):
    for folder in (images, masks):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for i in range(start, start + count):
        name = "abcdefghijklmnopqrst"[i]
        pixels = np.full((*SHAPE, 3), 10 * i, np.uint8)
        Image.fromarray(pixels).save(root / images / f"{name}.png")
        Image.fromarray(mask(i)).save(root / masks / f"{name}.png")


def everything(data):
    return [s for split in ("train", "validation", "test") for s in data.samples(split)]


def test_palette_indices_and_grey_values_are_the_same_classes(tmp_path):
    write(tmp_path / "grey")
    write(tmp_path / "palette")
    for file in (tmp_path / "palette" / "masks").iterdir():
        with Image.open(file) as grey:
            values = np.array(grey)
        # Colours that say something else than the indices.
        image = Image.fromarray(values)
        image.putpalette([9, 9, 9, 2, 2, 2, 1, 1, 1])
        image.save(file)
        with Image.open(file) as again:
            assert again.mode == "P"
    grey, palette = (opened(tmp_path / name) for name in ("grey", "palette"))
    assert grey.task == palette.task
    assert grey.task["labels"] == ["0", "1", "2"]
    assert grey.fingerprint() == palette.fingerprint()
    for one, two in zip(everything(grey), everything(palette), strict=True):
        masks = [d.collate([s])["mask"] for d, s in ((grey, one), (palette, two))]
        assert torch.equal(*masks)
        expected = squares("abcdefghij".index(Path(one["path"]).stem))
        assert torch.equal(masks[0][0, :48], torch.from_numpy(expected).long())


def test_one_bit_and_sixteen_bit_masks(tmp_path):
    write(tmp_path, mask=lambda i: np.minimum(squares(i), 1))
    for i, file in enumerate(sorted((tmp_path / "masks").iterdir())):
        values = np.minimum(squares(i), 1)
        if i % 2:
            Image.fromarray(values.astype(bool)).save(file)
        else:
            Image.fromarray(values.astype(np.uint16)).save(file)
    data = opened(tmp_path, labels=("none", "thing"))
    for sample in everything(data):
        i = "abcdefghij".index(Path(sample["path"]).stem)
        np.testing.assert_array_equal(data.values(sample), np.minimum(squares(i), 1))


def test_batch_is_padded_with_ignored(tmp_path):
    write(tmp_path)
    generator = np.random.default_rng(0)
    (tmp_path / "images" / "wide.png").unlink(missing_ok=True)
    pixels = generator.integers(0, 255, (40, 100, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "images" / "wide.png")
    values = generator.integers(0, 3, (40, 100), dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "masks" / "wide.png")
    data = opened(tmp_path)
    samples = {Path(s["path"]).stem: s for s in everything(data)}
    batch = data.collate([samples["a"], samples["wide"]])
    assert batch["pixels"].shape == (2, 3, 64, 128)
    assert batch["pixels"].dtype == torch.uint8
    assert batch["mask"].dtype == torch.int64
    assert batch["image_sizes"].tolist() == [[48, 64], [40, 100]]
    assert batch["original_sizes"].tolist() == [[48, 64], [40, 100]]
    expected = torch.full((2, 64, 128), 255)
    expected[0, :48, :64] = torch.from_numpy(squares(0))
    expected[1, :40, :100] = torch.from_numpy(values)
    assert torch.equal(batch["mask"], expected)
    assert data.padding == {"mask": 255}


def test_masks_are_resized_to_the_nearest_value(tmp_path):
    write(tmp_path)
    data = opened(tmp_path, size=24)
    sample = next(s for s in everything(data) if s["path"].endswith("a.png"))
    batch = data.collate([sample])
    assert batch["image_sizes"].tolist() == [[24, 32]]
    assert batch["original_sizes"].tolist() == [[48, 64]]
    expected = torch.from_numpy(squares(0)[::2, ::2]).long()
    assert torch.equal(batch["mask"][0, :24, :32], expected)


def test_ignored_value_of_the_files_becomes_255(tmp_path):
    def mask(i):
        values = squares(i)
        values[:2] = 7
        return values

    write(tmp_path, mask=mask)
    data = opened(tmp_path, ignore=7, labels=("ground", "left", "right"))
    batch = data.collate([data.samples("train")[0]])
    assert (batch["mask"][0, :2] == 255).all()
    assert (batch["mask"][0, 2:48, :64] < 3).all()
    labelled = sum(data.task["counts"])
    assert labelled == len(data.samples("train")) * 46 * 64


@pytest.mark.parametrize("nested", [False, True])
def test_splits_in_folders(tmp_path, nested):
    for split, start, count in (("train", 0, 6), ("val", 6, 3), ("test", 9, 2)):
        images, masks = f"images/{split}", f"masks/{split}"
        if nested:
            images, masks = f"{split}/images", f"{split}/masks"
        write(tmp_path, count, images, masks, start)
    data = opened(tmp_path)
    counts = [len(data.samples(s)) for s in ("train", "validation", "test")]
    assert counts == [6, 3, 2]


def test_majority_class_is_the_baseline(tmp_path):
    data = opened(**{k: v for k, v in tiny_masks(tmp_path).items() if k != "name"})
    (baseline,) = data.baselines()
    assert baseline.name == "majority class (background)"
    count = len(data.samples("test"))
    assert len(baseline.outputs["prediction"]) == count
    for predicted, true in zip(*baseline.outputs.values(), strict=True):
        assert predicted.shape == true.shape == SHAPE
        assert predicted.dtype == np.uint8
        assert not predicted.any()
    # The truth is that of the scenes, by name and not by order.
    by_name = {f"scene{chr(97 + i)}": p for i, (_, p) in enumerate(rectangles())}
    first = Path(data.samples("test")[0]["path"]).stem
    expected = np.zeros(SHAPE, np.uint8)
    for label, (x1, y1, x2, y2) in by_name[first]:
        expected[y1:y2, x1:x2] = ["background", "red", "blue"].index(label)
    np.testing.assert_array_equal(baseline.outputs["target"][0], expected)


def test_workers_predictions_and_people(tmp_path):
    given = {k: v for k, v in tiny_masks(tmp_path).items() if k != "name"}
    data = opened(**given, augmentation="strong")
    sample = data.samples("train")[0]
    batch = pickle.loads(pickle.dumps(data.collate))([sample])
    assert torch.equal(batch["mask"], data.collate([sample])["mask"])
    bare = data.collate(data.from_inputs([sample["path"]]))
    assert set(bare) == {"pixels", "image_sizes", "original_sizes"}
    shown = data.show(sample)["classes"].split(", ")
    assert shown[0] == "background"
    changed = data.augment(batch, torch.Generator().manual_seed(0))
    assert not torch.equal(changed["pixels"], batch["pixels"])
    described = data.describe()
    assert sum(described["pixels by class"]["train"].values()) == pytest.approx(
        1, abs=1e-3
    )


# What is wrong with masks


def change(root, name, values, **save):
    Image.fromarray(values).save(root / "masks" / f"{name}.png", **save)


def test_faults_of_masks_are_all_told(tmp_path):
    write(tmp_path)
    colours = np.zeros((*SHAPE, 3), np.uint8)
    change(tmp_path, "a", colours)
    change(tmp_path, "b", np.zeros((64, 48), np.uint8))
    change(tmp_path, "c", np.zeros((10, 10), np.uint8))
    odd = squares(0)
    odd[0, 0], odd[0, 1] = 9, 4
    change(tmp_path, "d", odd)
    (tmp_path / "masks" / "e.png").unlink()
    (tmp_path / "images" / "f.png").unlink()
    (tmp_path / "masks" / "g.png").write_bytes(b"")
    change(tmp_path, "h", np.full(SHAPE, 255, np.uint8))
    (tmp_path / "masks" / "i.png").unlink()
    Image.fromarray(squares(8)).save(tmp_path / "masks" / "i.jpg")
    whole = (tmp_path / "masks" / "j.png").read_bytes()
    (tmp_path / "masks" / "j.png").write_bytes(whole[: len(whole) // 2])
    found = faults(tmp_path, labels=("ground", "left", "right"))
    expected = [
        ["a.png: a mask of colours (RGB), not of classes", "rgb == colour"],
        ["b.png: a mask of another size than its image", "48 x 64, the image 64 x 48",
         "EXIF"],
        ["c.png: a mask of another size than its image", "10 x 10"],
        ["d.png: values that are no class: 4, 9", "classes are 0 to 2", "data.labels"],
        ["e.png: an image without a mask"],
        ["f.png: a mask without an image"],
        ["g.png: the file is empty"],
        ["h.png: a mask without a labelled pixel", "all are 255"],
        ["i.jpg: a mask as JPEG", "PNG"],
        ["j.png: ", "cut short"],
    ]  # fmt: skip
    assert len(found) == len(expected)
    for parts in expected:
        assert any(all(part in told for part in parts) for told in found), parts


def test_bad_masks_can_be_left_out(tmp_path):
    write(tmp_path)
    change(tmp_path, "a", np.full(SHAPE, 9, np.uint8))
    (tmp_path / "masks" / "e.png").unlink()
    labels = ("ground", "left", "right")
    data = opened(tmp_path, labels=labels, bad="skip", bad_cap=0.2)
    names = {Path(s["path"]).stem for s in everything(data)}
    assert names == set("bcdfghij")
    assert len(data.findings.left_out) == 2


def test_masks_of_0_and_255_teach(tmp_path):
    write(tmp_path, mask=lambda i: np.where(squares(i) > 0, 255, 0).astype(np.uint8))
    (told,) = faults(tmp_path)
    assert "one class only: every pixel is 0, or ignored (255)" in told
    assert "if 255 is a class, give it a number below 255" in told


def test_values_with_gaps_are_a_warning(tmp_path):
    write(tmp_path, mask=lambda i: squares(i) * 38)
    data = opened(tmp_path)
    assert len(data.task["labels"]) == 77
    (warning,) = data.findings.warnings
    assert warning.what == "74 of 77 classes have no pixel"
    assert "0, 38, 76" in warning.why


def test_palettes_of_each_file_are_a_warning(tmp_path):
    write(tmp_path)
    for file, palette in (("a", [0, 0, 0, 9, 0, 0]), ("b", [0, 0, 0, 0, 9, 0])):
        image = Image.fromarray(np.minimum(squares(0), 1))
        image.putpalette(palette)
        image.save(tmp_path / "masks" / f"{file}.png")
    told = [str(w) for w in opened(tmp_path).findings.warnings]
    assert any("value 1 is shown in different colours" in t for t in told)


def test_classes_without_pixels_are_a_warning(tmp_path):
    write(tmp_path)
    data = opened(tmp_path, labels=("ground", "left", "right", "top"))
    assert data.task["counts"][3] == 0
    (warning,) = data.findings.warnings
    assert warning.what == "no pixel of class 'top'"


def test_settings_that_cannot_work(tmp_path):
    write(tmp_path)
    assert "trivial-augment" in faults(tmp_path, augmentation="trivial-augment")[0]
    assert "no pattern" in faults(tmp_path, group="patient")[0]
    assert "no folders 'pictures'" in faults(tmp_path, images="pictures")[0]
    (only,) = (p for p in [tmp_path / "one"])
    write(only, count=1)
    assert any("only one image" in told for told in faults(only))
