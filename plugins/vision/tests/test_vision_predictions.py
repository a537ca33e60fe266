"""Predictions as files: COCO's JSON, annotated images, masks and tables."""

from __future__ import annotations

import contextlib
import csv
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from headstart.errors import DataError
from headstart_vision import predictions as files_of
from headstart_vision.annotations import rle
from headstart_vision.drawing import class_colours, ink_on, palette, rgb, tag

if TYPE_CHECKING:
    from collections.abc import Iterator

BOXES = {"kind": "boxes", "labels": ["cat", "dog"]}
INSTANCES = {**BOXES, "kind": "instances"}
PIXELS = {"kind": "semantic", "labels": ["background", "road", "sky"]}
SINGLE = {"kind": "single-label", "labels": ["cat", "dog"]}
MULTI = {"kind": "multi-label", "labels": ["cat", "dog"]}
GREY = (90, 90, 90)


def image(path: Path, width: int = 80, height: int = 60) -> dict[str, Any]:
    """A grey image, as a sample."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), GREY).save(path)
    return {"id": str(path), "path": str(path)}


def detection(label: str = "dog", score: float = 0.9, **extra: Any) -> dict[str, Any]:
    return {"label": label, "score": score, "box": [20.0, 30.0, 60.5, 50.0], **extra}


def write_predictions(folder: Path, *arguments: Any, **more: Any) -> list[Path]:
    """Into a new folder, as the core gives one."""
    folder.mkdir(parents=True)
    return files_of.write_predictions(folder, *arguments, **more)


def files(folder: Path) -> set[str]:
    paths = folder.rglob("*") if folder.exists() else ()
    return {path.relative_to(folder).as_posix() for path in paths if path.is_file()}


def test_detections_are_a_coco_file(tmp_path: Path) -> None:
    samples = [image(tmp_path / "in" / name) for name in ("a.png", "b.png")]
    predictions = [
        {"detections": [detection(), detection("cat", 0.25)]},
        {"detections": []},
    ]
    made = write_predictions(tmp_path / "out", samples, predictions, BOXES)
    out = tmp_path / "out"
    assert made == [out / "predictions.json", out / "annotated"]
    assert files(out) == {"predictions.json", "annotated/a.png", "annotated/b.png"}
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(tmp_path / "out" / "predictions.json"))
        results = coco.loadRes(list(coco.anns.values()))
    assert [coco.imgs[i]["file_name"] for i in (1, 2)] == [s["path"] for s in samples]
    assert (coco.imgs[1]["width"], coco.imgs[1]["height"]) == (80, 60)
    assert {c["id"]: c["name"] for c in coco.cats.values()} == {1: "cat", 2: "dog"}
    assert len(results.anns) == 2
    first = coco.anns[1]
    assert first["bbox"] == [20.0, 30.0, 40.5, 20.0] and first["area"] == 810.0
    assert (first["image_id"], first["category_id"], first["score"]) == (1, 2, 0.9)


def test_masks_are_rle_and_drawn(tmp_path: Path) -> None:
    mask = np.zeros((60, 80), dtype=np.uint8)
    mask[35:45, 30:50] = 1
    found = [{"detections": [detection(mask=rle.from_mask(mask))]}]
    write_predictions(tmp_path / "out", [image(tmp_path / "a.png")], found, INSTANCES)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(tmp_path / "out" / "predictions.json"))
    assert (coco.annToMask(coco.anns[1]) == mask).all()
    assert coco.anns[1]["area"] == 200
    pixels = np.array(Image.open(tmp_path / "out" / "annotated" / "a.png"))
    # Half grey, half the colour of the second class.
    expected = [
        (g + c) // 2 for g, c in zip(GREY, rgb(class_colours(2)[1]), strict=True)
    ]
    assert pixels[40, 40].tolist() == expected
    assert pixels[46, 40].tolist() == list(GREY)


def test_boxes_are_drawn_from_a_score_on(tmp_path: Path) -> None:
    samples = [image(tmp_path / f"{name}.png") for name in "ab"]
    found = [{"detections": [detection()]}, {"detections": [detection(score=0.4)]}]
    write_predictions(tmp_path / "out", samples, found, BOXES)
    pixels = np.array(Image.open(tmp_path / "out" / "annotated" / "a.png"))
    colour = list(rgb(class_colours(2)[1]))
    assert pixels[50, 40].tolist() == colour and pixels[40, 20].tolist() == colour
    assert pixels[40, 40].tolist() == list(GREY)
    # The tag stands on top of the box, in the same colour.
    assert pixels[26, 22].tolist() == colour
    write_predictions(tmp_path / "low", samples[1:], found[1:], BOXES, score=0.3)
    assert not (
        np.array(Image.open(tmp_path / "low" / "annotated" / "b.png")) == GREY[0]
    ).all()


def test_same_names_do_not_overwrite_each_other(tmp_path: Path) -> None:
    root = tmp_path / "in"
    names = ["a/x.jpg", "b/x.jpg", "a/x.png", "a/X.bmp", "a/x-2.png"]
    samples = [image(root / name) for name in names]
    samples.append({"id": "input 6", "array": np.full((30, 40, 3), 90, np.uint8)})
    samples.append({"id": "../input 6", "array": np.full((30, 40), 90, np.uint8)})
    write_predictions(tmp_path / "out", samples, [{"detections": []}] * 7, BOXES)
    written = json.loads((tmp_path / "out" / "predictions.json").read_text())["images"]
    assert [entry["annotated"] for entry in written] == [
        "annotated/a/x.png",
        "annotated/b/x.png",
        "annotated/a/x-2.png",
        "annotated/a/X-3.png",
        "annotated/a/x-2-2.png",
        "annotated/input-6.png",
        "annotated/input-6-2.png",
    ]
    assert {entry["annotated"] for entry in written} < files(tmp_path / "out")
    assert written[5]["file_name"] == "input 6" and written[5]["width"] == 40


def test_an_image_that_vanished_is_named(tmp_path: Path) -> None:
    sample = image(tmp_path / "a.png")
    Path(sample["path"]).unlink()
    with pytest.raises(DataError, match=r"a\.png"):
        write_predictions(tmp_path / "out", [sample], [{"detections": []}], BOXES)


def test_predictions_are_taken_one_at_a_time(tmp_path: Path) -> None:
    samples = [image(tmp_path / f"{name}.png") for name in "abc"]
    out = tmp_path / "out"
    drawn: list[list[str]] = []

    def predictions() -> Iterator[dict[str, Any]]:
        for _ in samples:
            drawn.append(sorted(path.name for path in out.glob("*/*.png")))
            yield {"detections": [detection()]}

    write_predictions(out, samples, predictions(), BOXES)
    assert drawn == [[], ["a.png"], ["a.png", "b.png"]]


def test_turned_photos_are_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "a.jpg"
    Image.new("RGB", (80, 60), GREY).save(path, exif=exif)
    sample = {"id": "a", "path": str(path)}
    write_predictions(tmp_path / "out", [sample], [{"detections": []}], BOXES)
    entry = json.loads((tmp_path / "out" / "predictions.json").read_text())["images"][0]
    assert (entry["width"], entry["height"]) == (60, 80)
    assert Image.open(tmp_path / "out" / "annotated" / "a.png").size == (60, 80)


def test_semantic_masks_and_overlays(tmp_path: Path) -> None:
    road, sky = np.zeros((2, 60, 80), dtype=np.uint8)
    road[40:] = 1
    sky[:30, 40:] = 1
    nothing = 1 - np.maximum(road, sky)
    nothing[30:40] = 0
    prediction = {
        "classes": {"background": 0.25, "road": 0.33, "sky": 0.25},
        "masks": {
            name: rle.from_mask(mask)
            for name, mask in (("background", nothing), ("road", road), ("sky", sky))
        },
    }
    out = tmp_path / "out"
    write_predictions(out, [image(tmp_path / "a.jpg")], [prediction], PIXELS)
    assert files(out) == {"predictions.json", "masks/a.png", "annotated/a.png"}
    mask = Image.open(out / "masks" / "a.png")
    assert mask.mode == "P"
    values = np.array(mask)
    assert values[50, 5] == 1 and values[5, 70] == 2 and values[5, 5] == 0
    assert values[35, 5] == 255
    shown = np.array(mask.convert("RGB"))
    assert shown[50, 5].tolist() == list(rgb(class_colours(3)[1]))
    assert shown[5, 5].tolist() == [0, 0, 0]
    overlay = np.array(Image.open(out / "annotated" / "a.png"))
    source = np.array(Image.open(tmp_path / "a.jpg"))
    # Below the legend: the background and what has no class stay as they are.
    assert (overlay[35, :] == source[35, :]).all()
    colour = np.array(rgb(class_colours(3)[1]))
    assert overlay[55, 70].tolist() == ((source[55, 70] + colour) // 2).tolist()
    entry = json.loads((out / "predictions.json").read_text())["images"][0]
    assert entry["classes"] == prediction["classes"]
    assert entry["mask"] == "masks/a.png"


def test_labels_as_tables(tmp_path: Path) -> None:
    samples = [image(tmp_path / f"{name}.png") for name in "ab"]
    predictions = [
        {
            "label": "dog",
            "probability": 0.75,
            "probabilities": {"dog": 0.75, "cat": 0.25},
        },
        {"label": "cat", "probability": 0.5, "probabilities": {"cat": 0.5, "dog": 0.5}},
    ]
    out = tmp_path / "out"
    write_predictions(out, samples, predictions, SINGLE)
    assert files(out) == {"predictions.json", "predictions.csv"}
    with (out / "predictions.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["image", "label", "probability"],
            [samples[0]["path"], "dog", "0.75"],
            [samples[1]["path"], "cat", "0.5"],
        ]
    written = json.loads((out / "predictions.json").read_text())
    assert written["labels"] == ["cat", "dog"]
    assert written["images"][0] == {
        "id": 1,
        "file_name": samples[0]["path"],
        **predictions[0],
    }


def test_several_labels_as_tables(tmp_path: Path) -> None:
    predictions = [
        {"labels": ["cat", "dog"], "probabilities": {"cat": 0.75, "dog": 0.5}},
        {"labels": [], "probabilities": {"cat": 0.25, "dog": 0.1}},
    ]
    samples = [image(tmp_path / f"{name}.png") for name in "ab"]
    write_predictions(tmp_path / "out", samples, predictions, MULTI)
    with (tmp_path / "out" / "predictions.csv").open(newline="") as file:
        rows = [row[1:] for row in csv.reader(file)]
    assert rows == [
        ["labels", "cat", "dog"],
        ["cat;dog", "0.75", "0.5"],
        ["", "0.25", "0.1"],
    ]


def test_text_reads_on_every_class_colour() -> None:
    colours = class_colours(60)
    assert len(set(colours)) == 60
    for colour in colours:
        light = []
        for one in (colour, ink_on(colour)):
            parts = [v / 255 for v in rgb(one)]
            linear = [
                v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4
                for v in parts
            ]
            light.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
        # WCAG asks for 4.5 to 1 in running text.
        assert (max(light) + 0.05) / (min(light) + 0.05) >= 4.5
    assert len(palette(60)) == 768


def test_tags() -> None:
    assert tag("size 0.5", 0.934) == "size 0.5 .93"
    assert tag("cat", 0.999) == "cat 1.00"
    assert tag("a\nb") == "a b"
    assert len(tag("long " * 20)) == 24
