"""Predictions as files: COCO's JSON and annotated images, masks, tables of labels."""

from __future__ import annotations

import csv
import json
import os
import re
from functools import partial
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np
from PIL import Image

from headstart.errors import DataError, Fault
from headstart_vision import images, matching
from headstart_vision.annotations import rle
from headstart_vision.drawing import (
    IGNORED,
    class_colours,
    draw_classes,
    draw_detections,
    palette,
)
from headstart_vision.pictures import CHECKED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    Pairs = Iterable[tuple[Mapping[str, Any], PurePath, Mapping[str, Any]]]
    """Samples, the names of their PNGs, and their predictions."""

JSON_FILE = "predictions.json"
CSV_FILE = "predictions.csv"
MASKS, ANNOTATED = "masks", "annotated"


def write_predictions(
    folder: Path,
    samples: Sequence[Mapping[str, Any]],
    predictions: Iterable[Mapping[str, Any]],
    task: Mapping[str, Any],
    *,
    score: float = matching.SCORE,
) -> list[Path]:
    """Write predictions, one image after the other.

    - Detection: ``predictions.json`` in COCO's format (categories from 1 on; each
      annotation has its ``score``), and ``annotated/NAME.png``, each image with what
      was found drawn on it.
    - Semantic: ``masks/NAME.png``, with a palette, whose values are the places of the
      task's labels (255: nothing); ``annotated/NAME.png``; ``predictions.json``.
    - Classification: ``predictions.json`` and ``predictions.csv``.

    A name is the image's own below the inputs' common folder.

    Args:
        folder: An empty one.
        samples: What ``from_inputs`` gave: ``path`` or ``array``, and ``id``.
        predictions: What the head's ``decode`` gives for each, in the same order; read
            one at a time.
        task: ``kind`` and ``labels``.
        score: Detections below it are in the JSON file, but not drawn.

    Returns:
        The tables, and the folders of images.

    Raises:
        DataError: An image cannot be read any more.
    """
    write: Callable[[Path, Pairs, Mapping[str, Any]], None] = _write_labels
    if task["kind"] in ("boxes", "instances"):
        write = partial(_write_detections, score=score)
    elif task["kind"] == "semantic":
        write = _write_classes
    write(folder, zip(samples, output_names(samples), predictions, strict=True), task)
    names = (JSON_FILE, CSV_FILE, MASKS, ANNOTATED)
    return [folder / name for name in names if (folder / name).exists()]


def output_names(samples: Sequence[Mapping[str, Any]]) -> list[PurePath]:
    """A PNG's name for each sample, no two alike.

    It is the input's path below the inputs' common folder; of those that would share a
    name, the later ones get a number.
    """
    paths = [Path(s["path"]).absolute() for s in samples if "path" in s]
    root = Path(os.path.commonpath([p.parent for p in paths])) if paths else Path()
    taken: set[str] = set()
    names: list[PurePath] = []
    for sample in samples:
        if "path" in sample:
            name = PurePath(Path(sample["path"]).absolute().relative_to(root))
        else:
            name = PurePath(
                re.sub(r"[^\w.-]+", "-", sample["id"]).strip(".-") or "image"
            )
        first = place = name.with_suffix(".png")
        number = 1
        # As a file system compares names that takes upper for lower case.
        while str(place).casefold() in taken:
            number += 1
            place = first.with_name(f"{first.stem}-{number}.png")
        taken.add(str(place).casefold())
        names.append(place)
    return names


def _write_detections(
    folder: Path, pairs: Pairs, task: Mapping[str, Any], score: float
) -> None:
    labels = [str(label) for label in task["labels"]]
    places = {label: place for place, label in enumerate(labels, start=1)}
    entries: list[dict[str, Any]] = []
    count = 0
    with (folder / JSON_FILE).open("w", encoding="utf-8") as file:
        # Annotations go out one by one: there may be millions.
        file.write('{"annotations": [')
        for sample, name, prediction in pairs:
            picture = _picture(sample)
            entry = _entry(len(entries) + 1, sample, picture)
            drawn = ANNOTATED / name
            entries.append({**entry, "annotated": drawn.as_posix()})
            for one in prediction["detections"]:
                count += 1
                file.write(",\n" if count > 1 else "\n")
                row = _annotation(one, count, entry["id"], places)
                json.dump(row, file, ensure_ascii=False)
            sure = [d for d in prediction["detections"] if d["score"] >= score]
            _save(draw_detections(picture, sure, labels), folder / drawn)
        categories = [{"id": i, "name": label} for label, i in places.items()]
        file.write("\n],\n")
        _write_rest(file, {"images": entries, "categories": categories})


def _annotation(
    one: Mapping[str, Any], number: int, image: int, places: Mapping[str, int]
) -> dict[str, Any]:
    left, top, right, bottom = one["box"]
    wide, high = right - left, bottom - top
    row = {
        "id": number,
        "image_id": image,
        "category_id": places[one["label"]],
        "bbox": [round(value, 2) for value in (left, top, wide, high)],
        "area": round(wide * high, 2),
        "iscrowd": 0,
        "score": one["score"],
    }
    if "mask" in one:
        row["segmentation"] = one["mask"]
        row["area"] = int(rle.to_mask(one["mask"]).sum())
    return row


def _write_classes(folder: Path, pairs: Pairs, task: Mapping[str, Any]) -> None:
    labels = [str(label) for label in task["labels"]]
    colours = class_colours(len(labels))
    entries: list[dict[str, Any]] = []
    for sample, name, prediction in pairs:
        picture = _picture(sample)
        mask = np.full((picture.height, picture.width), IGNORED, dtype=np.uint8)
        for label, runs in prediction["masks"].items():
            mask[rle.to_mask(runs) > 0] = labels.index(label)
        coded = Image.fromarray(mask)
        coded.putpalette(palette(len(labels), labels))
        _save(coded, folder / MASKS / name)
        entry = _entry(len(entries) + 1, sample, picture)
        entry["mask"] = (MASKS / name).as_posix()
        _save(draw_classes(picture, mask, labels), folder / ANNOTATED / name)
        entry["annotated"] = (ANNOTATED / name).as_posix()
        entries.append({**entry, "classes": dict(prediction["classes"])})
    categories = [
        {"id": value, "name": label, "colour": colours[value]}
        for value, label in enumerate(labels)
    ]
    with (folder / JSON_FILE).open("w", encoding="utf-8") as file:
        file.write("{")
        _write_rest(file, {"images": entries, "categories": categories})


def _write_labels(folder: Path, pairs: Pairs, task: Mapping[str, Any]) -> None:
    labels = [str(label) for label in task["labels"]]
    several = task["kind"] == "multi-label"
    columns = ["image", "labels", *labels] if several else ["image", "label"]
    columns += [] if several else ["probability"]
    with (
        (folder / JSON_FILE).open("w", encoding="utf-8") as file,
        (folder / CSV_FILE).open("w", encoding="utf-8", newline="") as table,
    ):
        writer = csv.writer(table)
        writer.writerow(columns)
        file.write('{"images": [')
        for number, (sample, _, prediction) in enumerate(pairs, start=1):
            title = _title(sample)
            row = {"id": number, "file_name": title, **prediction}
            file.write(",\n" if number > 1 else "\n")
            json.dump(row, file, ensure_ascii=False)
            if several:
                given = prediction["probabilities"]
                said = ";".join(prediction["labels"])
                writer.writerow([title, said, *(given.get(k, "") for k in labels)])
            else:
                writer.writerow([title, prediction["label"], prediction["probability"]])
        file.write("\n],\n")
        _write_rest(file, {"labels": labels})


def _entry(
    number: int, sample: Mapping[str, Any], picture: Image.Image
) -> dict[str, Any]:
    """An image as COCO lists it."""
    return {
        "id": number,
        "file_name": _title(sample),
        "width": picture.width,
        "height": picture.height,
    }


def _title(sample: Mapping[str, Any]) -> str:
    return Path(sample["path"]).as_posix() if "path" in sample else str(sample["id"])


def _picture(sample: Mapping[str, Any]) -> Image.Image:
    """The image in RGB, upright.

    Raises:
        DataError: It cannot be read any more.
    """
    try:
        if "array" in sample:
            pixels = images.from_array(sample["array"])
        else:
            pixels = images.decode(sample["path"], CHECKED)
    except images.ImageError as error:
        fault = Fault(error.what, _title(sample), error.why, error.fix)
        raise DataError(fault) from None
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


def _save(picture: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Pillow's default of 6 takes three times as long for a tenth of the size.
    picture.save(path, "PNG", compress_level=3)


def _write_rest(file: TextIO, values: Mapping[str, Any]) -> None:
    """The last entries of a JSON object, and its end."""
    text = ",\n".join(
        f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}"
        for key, value in values.items()
    )
    file.write(text + "}\n")
