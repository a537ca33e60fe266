"""Matching by hand, and sections of the report: what they say and what they draw."""

from __future__ import annotations

import base64
import io
import json
import re
import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from headstart.report.parts import Evaluation, Section
from headstart_vision.annotations import rle
from headstart_vision.drawing import class_colours
from headstart_vision.matching import confusion_pairs, match
from headstart_vision.metrics import sample_outputs
from headstart_vision.sections import (
    classification_sections,
    detection_sections,
    segmentation_sections,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

SVG = "{http://www.w3.org/2000/svg}"
LABELS = ["cat", "<script>dog", "bird"]


def objects(*rows: tuple[int, list[float]], **extra: list[Any]) -> dict[str, Any]:
    return {
        "boxes": np.array([box for _, box in rows], dtype=np.float32).reshape(-1, 4),
        "labels": np.array([label for label, _ in rows], dtype=np.int64),
        **{key: np.array(value) for key, value in extra.items()},
    }


def found(*rows: tuple[int, list[float], float]) -> dict[str, Any]:
    scores = np.array([score for *_, score in rows], dtype=np.float32)
    return objects(*((label, box) for label, box, _ in rows)) | {"scores": scores}


# Matching


TARGET = objects(
    (1, [0, 0, 10, 10]),
    (2, [20, 0, 30, 10]),
    (1, [40, 0, 50, 10]),
    (3, [0, 50, 100, 100]),
    crowd=[False, False, False, True],
)
PREDICTION = found(
    (1, [0, 0, 10, 8], 0.8),  # IoU .8 with the first, but it is taken
    (1, [0, 0, 10, 10], 0.9),
    (1, [20, 0, 30, 9], 0.7),  # on the second, whose class is another
    (1, [45, 0, 55, 10], 0.6),  # IoU 1/3 with the third
    (2, [70, 0, 80, 10], 0.95),  # on nothing
    (3, [10, 60, 20, 70], 0.99),  # inside the crowd
    (3, [41, 0, 57, 10], 0.55),  # IoU 9/17 with the third, of another class
    (2, [5, 5, 15, 15], 0.5),  # IoU 1/7 with the first, of another class
    (2, [0, 0, 10, 10], 0.49),
)


def test_every_detection_has_its_kind() -> None:
    matches = match(PREDICTION, TARGET)
    assert dict(zip(matches.detections.tolist(), matches.kinds, strict=True)) == {
        1: "right",
        0: "duplicate",
        2: "wrong class",
        3: "poor localisation",
        4: "background",
        6: "wrong class",
        7: "wrong class and poor localisation",
    }
    assert matches.detections.tolist() == [4, 1, 0, 2, 3, 6, 7]
    assert matches.objects.tolist() == [0, 1, 2]
    assert matches.missed.tolist() == [1, 2]
    # Six false detections; both missed objects were taken for another class.
    assert matches.errors == 6


def test_confusion_counts_every_object_and_every_false_detection_once() -> None:
    matches = match(PREDICTION, TARGET)
    outputs = {"prediction": [PREDICTION], "target": [TARGET]}
    pairs = zip(*confusion_pairs([matches], outputs, background=3), strict=True)
    assert sorted((int(t), int(p)) for t, p in pairs) == [
        (0, 0),
        (0, 2),
        (1, 0),
        (3, 0),
        (3, 0),
        (3, 1),
        (3, 1),
    ]
    nothing = match(found(), TARGET)
    outputs = {"prediction": [found()], "target": [TARGET]}
    pairs = zip(*confusion_pairs([nothing], outputs, background=3), strict=True)
    assert sorted(pairs) == [(0, 3), (0, 3), (1, 3)]
    assert nothing.errors == 3


def test_the_surer_detection_chooses_first() -> None:
    target = objects((1, [0, 0, 10, 10]), crowd=[False])
    close, surer = (1, [0, 0, 10, 10], 0.6), (1, [0, 0, 10, 7], 0.7)
    matches = match(found(close, surer), target)
    assert dict(zip(matches.detections.tolist(), matches.kinds, strict=True)) == {
        1: "right",
        0: "duplicate",
    }


def test_masks_decide_where_there_are_any() -> None:
    """The boxes are equal, the masks are two halves."""
    left, right = np.zeros((10, 10), np.uint8), np.zeros((10, 10), np.uint8)
    left[:, :5], right[:, 5:] = 1, 1
    box = [0, 0, 10, 10]
    target = objects((1, box), crowd=[False]) | {"masks": [rle.from_mask(left)]}
    prediction = found((1, box, 0.9)) | {"masks": [rle.from_mask(right)]}
    assert match(prediction, target).kinds == ("background",)
    del prediction["masks"]
    assert match(prediction, target).kinds == ("right",)


# Sections


def picture(path: Path, width: int = 64, height: int = 48, seed: int = 0) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3))
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    return path


def evaluation(
    outputs: Mapping[str, Any],
    shown: Callable[[int], dict[str, Any]],
    kind: str,
    rows: int = 3,
    labels: list[str] | None = None,
) -> Evaluation:
    task = {"kind": kind, "labels": labels or LABELS}
    return Evaluation("test", {}, outputs, task, shown, rows)


def detected(rows: int = 3, **changes: Any) -> Evaluation:
    """One image of 48 x 64 with three objects, one with none, one all right."""
    simple = objects((3, [0, 0, 32, 48]), crowd=[False])
    outputs = {
        "prediction": [
            PREDICTION,
            found((2, [1, 1, 9, 9], 0.7)),
            found((3, [0, 0, 32, 48], 1.0)),
        ],
        "target": [TARGET, objects(crowd=[]), simple],
        "size": np.array([[100, 100], [48, 64], [48, 64]]),
    }
    names = ['a"><b>.png', "empty", "right"]
    return evaluation(
        {**outputs, **changes}, lambda i: {"image": names[i]}, "boxes", rows
    )


def by_title(found_sections: list[Section]) -> dict[str, Section]:
    # As the report reads them back.
    texts = [json.dumps(section.to_dict()) for section in found_sections]
    sections = [Section.from_dict(json.loads(text)) for text in texts]
    for section in sections:
        for figure in section.figures:
            assert figure.alt
            ET.fromstring(re.sub(r"xlink:", "", figure.svg))
    return {section.title: section for section in sections}


def drawn(figure: Any) -> ET.Element:
    return ET.fromstring(figure.svg)


def texts(figure: Any) -> list[str]:
    return [element.text or "" for element in drawn(figure).iter(f"{SVG}text")]


def test_detection_sections() -> None:
    sections = by_title(detection_sections(detected()))
    assert list(sections) == [
        "Average precision by class",
        "Precision and recall",
        "Confusion matrix",
        "What is wrong",
        "Predictions beside the truth",
        "Worst images",
    ]
    rows = sections["Average precision by class"].tables[0].rows
    # The bird: one of one found by a box that fits exactly.
    assert rows[2][0] == "bird" and rows[2][4] == 1
    assert [row[4] for row in rows] == [2, 1, 1]
    kinds = dict(row[:2] for row in sections["What is wrong"].tables[0].rows)
    assert kinds == {
        "background": 2,
        "wrong class": 2,
        "poor localisation": 1,
        "wrong class and poor localisation": 1,
        "duplicate": 1,
    }
    assert "9 detections" in sections["What is wrong"].text
    assert "2 of 4 objects have no right" in sections["What is wrong"].text
    matrix = sections["Confusion matrix"].figures[0]
    assert "background" in matrix.svg and "background" in matrix.alt


def test_worst_images_come_first_and_right_ones_not_at_all() -> None:
    sections = by_title(detection_sections(detected()))
    captions = [figure.caption for figure in sections["Worst images"].figures]
    assert captions == [
        'a"><b>.png: 1 of 3 objects found; false: 1 background, 2 wrong class, '
        "1 poor localisation, 1 wrong class and poor localisation, 1 duplicate; "
        "1 scored below 0.5 not drawn.",
        "empty: no object; false: 1 background.",
    ]
    beside = sections["Predictions beside the truth"].figures
    assert [figure.caption[:5] for figure in beside] == ['a"><b', "right", "empty"]


def test_truth_and_detections_are_drawn_to_scale() -> None:
    right = detection_sections(detected())[4].figures[1]
    truth, prediction = drawn(right).findall(f"{SVG}g")[:2]
    boxes = []
    for panel in (truth, prediction):
        frames = [r for r in panel.iter(f"{SVG}rect") if r.get("fill") == "none"]
        # A halo and the line itself.
        assert len(frames) == 2
        assert frames[1].get("stroke") == class_colours(3)[2]
        boxes.append([frames[1].get(k) for k in ("x", "y", "width", "height")])
        assert (frames[1].get("stroke-dasharray") is None) == (panel is prediction)
    # 64 pixels are 300 wide: half of that, and the whole height of 225.
    assert boxes == [["0.0", "0.0", "150.0", "225.0"]] * 2
    assert texts(right) == ["no picture", "truth", "bird", "predicted", "bird 1.00"]


def test_names_are_escaped_and_missed_objects_are_marked() -> None:
    worst = detection_sections(detected())[5].figures[0]
    assert "<script>" not in worst.svg and "&lt;script&gt;" in worst.svg
    assert "<script>dog (missed)" in texts(worst)
    assert "bird (crowd)" in texts(worst)
    # What scored .49 is not drawn.
    assert not any(text.endswith(".49") for text in texts(worst))


def test_instances_have_masks_and_their_precision() -> None:
    outputs = sample_outputs({"kind": "instances", "labels": LABELS}, 6)
    arrays = {
        key: [
            {k: v if k == "masks" else v.numpy() for k, v in one.items()}
            for one in outputs[key]
        ]
        for key in ("prediction", "target")
    }
    arrays["size"] = outputs["size"].numpy()
    shown = evaluation(arrays, lambda i: {"image": f"{i}.png"}, "instances")
    sections = by_title(detection_sections(shown))
    table = sections["Average precision by class"].tables[0]
    assert table.columns[3:5] == ("mask AP", "mask AP at .5")
    figure = sections["Predictions beside the truth"].figures[0]
    truth = drawn(figure).findall(f"{SVG}g")[0]
    overlay = truth.find(f"{SVG}image")
    assert overlay is not None
    data = base64.b64decode(str(overlay.get("href")).partition(",")[2])
    pixels = np.array(Image.open(io.BytesIO(data)).convert("RGBA"))
    masks = [rle.to_mask(mask) for mask in arrays["target"][0]["masks"]]
    assert ((pixels[..., 3] > 0) == np.any(masks, axis=0)).all()
    colour = bytes.fromhex(class_colours(3)[arrays["target"][0]["labels"][0] - 1][1:])
    assert tuple(pixels[np.any(masks, axis=0)][0][:3]) == tuple(colour)


def test_pictures_come_from_files_or_thumbnails(tmp_path: Path) -> None:
    wide = picture(tmp_path / "wide.png", 640, 480)
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), "red").save(buffer, "PNG")
    uri = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    shown = [
        {"image": "wide.png", "path": str(wide)},
        {"image": "small", "thumbnail": uri},
        {"image": "broken.png", "path": str(broken)},
    ]
    sections = detection_sections(
        evaluation(detected().outputs, shown.__getitem__, "boxes")
    )
    hrefs = {}
    for figure in sections[4].figures:
        name = figure.caption.partition(":")[0]
        image = drawn(figure).find(f"{SVG}defs//{SVG}image")
        hrefs[name] = image if image is None else str(image.get("href"))
    assert hrefs["small"] == uri and hrefs["broken.png"] is None
    small = Image.open(io.BytesIO(base64.b64decode(hrefs["wide.png"].split(",")[1])))
    assert small.size == (320, 240)


def test_what_is_no_picture_stays_out_of_the_page() -> None:
    shown = {"image": "x", "thumbnail": 'data:image/svg+xml,"/><script>1</script>'}
    sections = detection_sections(
        evaluation(detected().outputs, lambda i: shown, "boxes")
    )
    for section in sections:
        assert not any("script>1" in figure.svg for figure in section.figures)


def test_a_report_with_many_noisy_photos_stays_small(tmp_path: Path) -> None:
    count = 90
    paths = [picture(tmp_path / f"{i}.png", 320, 320, i) for i in range(count)]
    outputs = {
        "prediction": [PREDICTION] * count,
        "target": [TARGET] * count,
        "size": np.array([[320, 320]] * count),
    }
    shown = evaluation(
        outputs,
        lambda i: {"image": paths[i].name, "path": str(paths[i])},
        "boxes",
        count,
    )
    sections = by_title(detection_sections(shown))
    assert len(json.dumps([s.to_dict() for s in sections.values()])) < 3_000_000
    worst = sections["Worst images"]
    assert 5 < len(worst.figures) < count
    assert f"{len(worst.figures)} of {count}" in worst.text


def test_nothing_found_and_nothing_to_find() -> None:
    outputs = {
        "prediction": [found(), found()],
        "target": [objects(crowd=[]), objects((1, [0, 0, 5, 5]), crowd=[False])],
        "size": np.array([[48, 64]] * 2),
    }
    shown = evaluation(outputs, lambda i: {"image": str(i)}, "boxes")
    sections = by_title(detection_sections(shown))
    assert [
        row[1] for row in sections["Average precision by class"].tables[0].rows
    ] == [
        0.0,
        None,
        None,
    ]
    outputs = {key: values[:1] for key, values in outputs.items()}
    shown = evaluation(outputs, lambda i: {"image": str(i)}, "boxes")
    sections = by_title(detection_sections(shown))
    assert sections["Worst images"].text.startswith("On no image of the test split")
    assert sections["Worst images"].figures == ()
    assert sections["Precision and recall"].figures == ()


def test_no_rows_no_pictures() -> None:
    titles = [section.title for section in detection_sections(detected(rows=0))]
    assert "Worst images" not in titles and "Confusion matrix" in titles


def test_many_classes_have_a_table_of_confusions() -> None:
    labels = [f"class {i}" for i in range(30)]
    outputs = detected().outputs
    shown = evaluation(outputs, lambda i: {"image": "x"}, "boxes", labels=labels)
    section = by_title(detection_sections(shown))["Confusion matrix"]
    assert section.figures == ()
    # Two on the first image, one on the empty one.
    assert ("background", "class 1", 3) in [row[:3] for row in section.tables[0].rows]
    assert section.tables[0].columns[2] == "objects"


# Classification


def classified(rows: int = 2) -> Evaluation:
    outputs = {
        "probabilities": np.array(
            [[0.9, 0.05, 0.05], [0.6, 0.3, 0.1], [0.98, 0.01, 0.01], [0.2, 0.3, 0.5]]
        ),
        "prediction": np.array([0, 0, 0, 2]),
        "target": np.array([0, 1, 2, 2]),
    }
    shown = [
        {"image": f"{name}.png", "thumbnail": "data:image/png;base64,AAAA"}
        for name in "abcd"
    ]
    return evaluation(outputs, shown.__getitem__, "single-label", rows)


def test_classification_sections() -> None:
    sections = by_title(classification_sections(classified()))
    assert list(sections) == [
        "Confusion matrix",
        "Results by label",
        "Calibration",
        "Worst images",
        "Most unsure",
    ]
    worst = sections["Worst images"]
    assert worst.tables[0].columns == (
        "image",
        "true",
        "predicted",
        "probability",
        "loss",
    )
    assert [row[:4] for row in worst.tables[0].rows] == [
        ("c.png", "bird", "cat", 0.98),
        ("b.png", "<script>dog", "cat", 0.6),
    ]
    assert [row[4] for row in worst.tables[0].rows] == pytest.approx(
        [-np.log(0.01), -np.log(0.3)]
    )
    assert "2 of 4 are wrong" in worst.text
    assert "bird" in texts(worst.figures[0]) and "said: cat" in texts(worst.figures[0])
    assert "<script>" not in worst.figures[0].svg


def test_tables_hold_no_pictures() -> None:
    for section in classification_sections(classified()):
        for table in section.tables:
            assert "data:" not in json.dumps(table.rows)
            assert "thumbnail" not in table.columns


def test_several_labels() -> None:
    outputs = {
        "probabilities": np.array([[0.9, 0.9, 0.1], [0.9, 0.1, 0.1]]),
        "prediction": np.array([[1, 1, 0], [1, 0, 0]]),
        "target": np.array([[1, 0, 0], [1, 0, 0]]),
    }
    shown = evaluation(
        outputs, lambda i: {"image": f"{i}"}, "multi-label", labels=list("abc")
    )
    sections = by_title(classification_sections(shown))
    assert list(sections) == ["Results by label", "Worst images", "Most unsure"]
    first = sections["Worst images"].tables[0].rows[0]
    assert first[:3] == ("0", "a", "a, b")
    # Mean over the labels: .9 is right, .9 wrong, .1 right.
    expected = -(np.log(0.9) + np.log(0.1) + np.log(0.9)) / 3
    assert first[3] == pytest.approx(expected)


# Semantic segmentation


def segmented(rows: int = 3) -> Evaluation:
    """Two images of different sizes; the second has two wrong pixels."""
    first = np.zeros((4, 6), dtype=np.uint8)
    first[:, 3:] = 1
    second = np.full((6, 4), 1, dtype=np.uint8)
    second[0] = 255
    wrong = second.copy()
    wrong[0], wrong[1, :2] = 0, 0
    outputs = {
        "target": [first, second],
        "prediction": [first.copy(), wrong],
        "size": np.array([[4, 6], [6, 4]]),
    }
    labels = ["background", "cat & co", "bird"]
    return evaluation(
        outputs, lambda i: {"image": f"{i}.png"}, "semantic", rows, labels
    )


def test_segmentation_sections() -> None:
    sections = by_title(segmentation_sections(segmented()))
    assert list(sections) == [
        "IoU by class",
        "Pixel confusion",
        "Predictions beside the truth",
        "Worst images",
    ]
    rows = sections["IoU by class"].tables[0].rows
    # Background: 12 right, 2 too many. Cat: 30 right, 2 of 32 missed.
    assert rows[0] == (
        "background",
        pytest.approx(12 / 14),
        pytest.approx(24 / 26),
        pytest.approx(12 / 14),
        1.0,
        "27.3%",
    )
    assert rows[1] == (
        "cat & co",
        pytest.approx(30 / 32),
        pytest.approx(60 / 62),
        1.0,
        pytest.approx(30 / 32),
        "72.7%",
    )
    assert rows[2][:5] == ("bird", None, None, None, None)
    worst = sections["Worst images"].figures
    # Only the second image has an error: cat 18 of 20, background 0 of 2.
    assert [figure.caption for figure in worst] == [
        "1.png: mean IoU 0.450; lowest: background 0.00, cat & co 0.90."
    ]
    assert len(sections["Predictions beside the truth"].figures) == 2


def test_overlays_show_classes_but_not_the_background() -> None:
    figure = segmentation_sections(segmented())[3].figures[0]
    panels = drawn(figure).findall(f"{SVG}g")
    shown = []
    for panel in panels[:2]:
        image = panel.find(f"{SVG}image")
        assert image is not None
        data = base64.b64decode(str(image.get("href")).partition(",")[2])
        shown.append(np.array(Image.open(io.BytesIO(data)).convert("RGBA")))
    # In the truth all is a cat or not labelled; the background is left clear.
    assert (shown[0][..., 3] > 0).all()
    assert (
        (shown[1][..., 3] == 0) == (segmented().outputs["prediction"][1] == 0)
    ).all()
    assert tuple(shown[1][3, 3, :3]) == tuple(bytes.fromhex(class_colours(3)[1][1:]))
    assert [text for text in texts(figure) if text != "no picture"] == [
        "truth",
        "predicted",
        "cat & co",
        "not labelled",
    ]
