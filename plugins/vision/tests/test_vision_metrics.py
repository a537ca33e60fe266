"""Metrics against pycocotools and NumPy; those of labels are the core's."""

from __future__ import annotations

import contextlib
import io
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from sklearn import metrics as sk

from headstart_vision import metrics, register_metrics
from headstart_vision.average_precision import per_class_ap
from headstart_vision.metrics import pixel_counts, sample_outputs

BOXES = {"kind": "boxes", "labels": ["cat", "dog", "bird"], "counts": [4, 4, 4]}
INSTANCES = {**BOXES, "kind": "instances"}
PIXELS = {"kind": "semantic", "labels": ["background", "a", "b"], "counts": [1, 1, 1]}
TASKS = (BOXES, INSTANCES, PIXELS)
NAMES = {
    kind: [s.name.partition("/")[2] for s in register_metrics() if kind in s.kinds]
    for kind in ("boxes", "instances", "semantic")
}


def factory(name: str) -> Any:
    return getattr(metrics, name.replace("-", "_"))


def _pair(outputs: dict[str, Any]) -> tuple[Any, Any]:
    return outputs["prediction"], outputs["target"]


def measured(
    name: str, task: dict[str, Any], outputs: dict[str, Any], cuts: Any = (0, 7, None)
) -> float:
    """The value after unequal batches."""
    metric = factory(name)(task)
    for start, stop in itertools.pairwise(cuts):
        metric.update(*(values[start:stop] for values in _pair(outputs)))
    return float(metric.compute())


# Detection


def scenes(images: int = 50) -> dict[str, Any]:
    """Objects of all sizes, crowds, images without objects or without detections.

    Scores are rounded, so that some are equal; some boxes are found twice, some
    labels are wrong; one image has more than 100 detections of one class.
    """
    generator = np.random.default_rng(7)
    outputs: dict[str, Any] = {"prediction": [], "target": [], "size": []}
    for index in range(images):
        count = 0 if index % 10 == 3 else int(generator.integers(1, 9))
        side = generator.choice([4.0, 20.0, 50.0, 130.0], (count, 1))
        side = side * generator.uniform(0.7, 1.5, (count, 2))
        corner = generator.uniform(0, 1, (count, 2)) * (np.array([200, 160]) - side)
        corner = corner.clip(0)
        boxes = np.concatenate([corner, (corner + side).clip(max=[200, 160])], axis=1)
        labels = generator.integers(1, 4, count)
        crowd = generator.random(count) < 0.15
        false = 140 if index == 5 else int(generator.integers(0, 12))
        false_corner = generator.uniform(0, 120, (false, 2))
        found = np.concatenate(
            [
                boxes + generator.normal(0, 2.5, boxes.shape),
                boxes + generator.normal(0, 6, boxes.shape),
                np.concatenate([false_corner, false_corner + 35], axis=1),
            ]
        ).clip(0, [200, 160, 200, 160])
        found[:, 2:] = np.maximum(found[:, 2:], found[:, :2] + 1)
        wrong = generator.random(2 * count) < 0.2
        found_labels = np.concatenate([labels, labels])
        found_labels = np.where(wrong, found_labels % 3 + 1, found_labels)
        more = (
            np.ones(false, dtype=int) if index == 5 else generator.integers(1, 4, false)
        )
        found_labels = np.concatenate([found_labels, more])
        keep = 0 if index % 10 == 8 else len(found)
        outputs["prediction"].append(
            {
                "boxes": found[:keep].astype(np.float32),
                "scores": generator.random(keep).round(2).astype(np.float32),
                "labels": found_labels[:keep],
                "masks": [ellipse(box) for box in found[:keep]],
            }
        )
        outputs["target"].append(
            {
                "boxes": boxes.astype(np.float32),
                "labels": labels,
                "crowd": crowd,
                "masks": [ellipse(box) for box in boxes],
            }
        )
        outputs["size"].append([160, 200])
    return outputs


def ellipse(box: np.ndarray) -> dict[str, Any]:
    y, x = np.mgrid[:160, :200] + 0.5
    (left, top), (right, bottom) = box[:2], box[2:]
    inside = ((2 * x - left - right) / (right - left)) ** 2 + (
        (2 * y - top - bottom) / (bottom - top)
    ) ** 2 <= 1
    encoded = coco_mask.encode(np.asfortranarray(inside.astype(np.uint8)))
    return {"size": [160, 200], "counts": encoded["counts"].decode()}


def pycocotools_evaluation(outputs: dict[str, Any], kind: str) -> COCOeval:
    """The reference, from data laid out by hand."""
    truth = {
        "info": {},
        "images": [
            {"id": i + 1, "height": 160, "width": 200}
            for i in range(len(outputs["target"]))
        ],
        "categories": [{"id": c, "name": str(c)} for c in (1, 2, 3)],
        "annotations": [],
    }
    results = []
    for image, (found, true) in enumerate(
        zip(outputs["prediction"], outputs["target"], strict=True), start=1
    ):
        for rows, target, extra in (
            (truth["annotations"], true, "crowd"),
            (results, found, "scores"),
        ):
            for k, box in enumerate(target["boxes"].astype(float).tolist()):
                left, top, right, bottom = box
                row = {
                    "image_id": image,
                    "category_id": int(target["labels"][k]),
                    "bbox": [left, top, right - left, bottom - top],
                    "area": (right - left) * (bottom - top),
                }
                if kind == "segm":
                    row["segmentation"] = dict(target["masks"][k])
                    row["area"] = float(coco_mask.area(target["masks"][k]))
                if extra == "crowd":
                    row |= {"id": len(rows) + 1, "iscrowd": int(target["crowd"][k])}
                else:
                    row["score"] = float(target["scores"][k])
                rows.append(row)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(results), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


@pytest.fixture(scope="module")
def outputs() -> dict[str, Any]:
    return scenes()


@pytest.fixture(scope="module")
def references(outputs: dict[str, Any]) -> dict[str, COCOeval]:
    return {kind: pycocotools_evaluation(outputs, kind) for kind in ("bbox", "segm")}


@pytest.mark.parametrize(
    ("name", "kind", "place"),
    [
        ("map", "bbox", 0),
        ("map-50", "bbox", 1),
        ("map-75", "bbox", 2),
        ("mask-map", "segm", 0),
        ("mask-map-50", "segm", 1),
    ],
)
def test_detection_equals_pycocotools(
    outputs: dict[str, Any],
    references: dict[str, COCOeval],
    name: str,
    kind: str,
    place: int,
) -> None:
    expected = references[kind].stats[place]
    assert 0.05 < expected < 0.95
    value = measured(name, INSTANCES, outputs, (0, 4, 5, 30, None))
    assert value == pytest.approx(expected, abs=1e-6)


def test_precision_by_class_equals_pycocotools(
    outputs: dict[str, Any], references: dict[str, COCOeval]
) -> None:
    for kind, reference in references.items():
        precision = reference.eval["precision"][:, :, :, 0, -1]
        rows = per_class_ap(outputs, INSTANCES, kind)
        assert [row.label for row in rows] == INSTANCES["labels"]
        for k, row in enumerate(rows):
            assert row.ap == pytest.approx(precision[:, :, k].mean(), abs=1e-6)
            assert row.ap_50 == pytest.approx(precision[0, :, k].mean(), abs=1e-6)
            assert row.ap_75 == pytest.approx(precision[5, :, k].mean(), abs=1e-6)
            assert row.precision == pytest.approx(precision[0, :, k], abs=1e-6)


def image(*objects: tuple[int, list[float]], **extra: list[Any]) -> dict[str, Any]:
    boxes = torch.tensor([box for _, box in objects]).reshape(-1, 4)
    labels = torch.tensor([label for label, _ in objects], dtype=torch.long)
    rest = {key: torch.tensor(value) for key, value in extra.items()}
    return {"boxes": boxes, "labels": labels, **rest}


def test_a_recall_of_exactly_three_fifths_is_reached() -> None:
    """By hand: 3 of 5 objects are found, so 61 of 101 recalls have precision 1."""
    squares = [(1, [20.0 * i, 0.0, 20.0 * i + 10, 10.0]) for i in range(5)]
    metric = metrics.map_50(BOXES)
    metric.update(
        [image(*squares[:3], scores=[0.9, 0.8, 0.7])],
        [image(*squares, crowd=[False] * 5)],
    )
    assert float(metric.compute()) == pytest.approx(61 / 101, abs=1e-6)


def test_detections_without_an_object_anywhere_have_no_precision() -> None:
    nothing = image(crowd=[])
    metric = metrics.map(BOXES)
    metric.update([image((1, [0.0, 0.0, 9.0, 9.0]), scores=[0.5])], [nothing])
    assert math.isnan(float(metric.compute()))
    metric.reset()
    metric.update([image(scores=[])], [image((1, [0.0, 0.0, 9.0, 9.0]), crowd=[False])])
    assert float(metric.compute()) == 0.0


def test_false_masks_on_an_image_without_objects_count() -> None:
    """One right mask, and a surer one where there is nothing: precision one half."""
    square = np.zeros((20, 20), dtype=np.uint8)
    square[:10, :10] = 1
    masks = [metrics.rle.from_mask(square)]
    box = (1, [0.0, 0.0, 10.0, 10.0])
    metric = metrics.mask_map_50(INSTANCES)
    metric.update(
        [
            image(box, scores=[0.6]) | {"masks": masks},
            image(box, scores=[0.9]) | {"masks": masks},
        ],
        [
            image(box, crowd=[False]) | {"masks": masks},
            image(crowd=[]) | {"masks": []},
        ],
    )
    assert float(metric.compute()) == pytest.approx(0.5)


def test_a_class_without_objects_has_no_average_precision() -> None:
    target = image((2, [0.0, 0.0, 9.0, 9.0]), crowd=[False])
    prediction = image((2, [0.0, 0.0, 9.0, 9.0]), scores=[0.4])
    rows = per_class_ap({"prediction": [prediction], "target": [target]}, BOXES)
    assert [(row.objects, row.ap) for row in rows] == [(0, None), (1, 1.0), (0, None)]


# Semantic segmentation


def reference_pixels(outputs: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    target = np.concatenate([np.asarray(mask).ravel() for mask in outputs["target"]])
    found = np.concatenate([np.asarray(mask).ravel() for mask in outputs["prediction"]])
    return target[target != 255], found[target != 255]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("miou", lambda t, p: sk.jaccard_score(t, p, average="macro")),
        ("dice", lambda t, p: sk.f1_score(t, p, average="macro")),
        ("pixel-accuracy", sk.accuracy_score),
    ],
)
def test_pixel_metrics_equal_scikit_learn(name: str, expected: Any) -> None:
    outputs = sample_outputs(PIXELS, 12)
    value = expected(*reference_pixels(outputs))
    assert measured(name, PIXELS, outputs) == pytest.approx(value, abs=1e-6)


def test_a_class_neither_there_nor_predicted_does_not_count() -> None:
    target = np.array([[0, 0, 1, 255]], dtype=np.uint8)
    found = np.array([[0, 1, 1, 2]], dtype=np.uint8)
    for name, expected in (("miou", 1 / 2), ("dice", 2 / 3), ("pixel-accuracy", 2 / 3)):
        metric = factory(name)(PIXELS)
        metric.update([found], [target])
        assert float(metric.compute()) == pytest.approx(expected)
    counts = pixel_counts({"prediction": [found], "target": [target]}, PIXELS)
    assert counts.tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]
    metric = metrics.miou(PIXELS)
    metric.update([np.array([[0, 1, 1, 2]])], [np.array([[0, 0, 1, 0]])])
    # One pixel is taken for the third class: 1 of 3, 1 of 2, 0 of 1.
    assert float(metric.compute()) == pytest.approx((1 / 3 + 1 / 2 + 0) / 3)


# What the core asks of every metric


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task["kind"])
def test_parts_equal_one_pass_and_compute_starts_afresh(task: dict[str, Any]) -> None:
    outputs = sample_outputs(task, 12)
    assert all(len(values) == 12 for values in outputs.values())
    for name in NAMES[task["kind"]]:
        whole = measured(name, task, outputs, (0, 12))
        parts = measured(name, task, outputs, (0, 2, 9, 12))
        assert 0 < whole <= 1
        assert whole < 1, "the samples are all right"
        assert parts == pytest.approx(whole, rel=1e-6), name
        metric = factory(name)(task)
        for _ in range(2):
            metric.update(*_pair(outputs))
            assert float(metric.compute()) == pytest.approx(whole, rel=1e-9)
            metric.reset()
