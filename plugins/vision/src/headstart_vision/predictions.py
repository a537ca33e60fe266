"""Predictions as files: COCO's JSON and annotated images, masks, tables of labels."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import tempfile
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np
from PIL import Image

from headstart.errors import DataError, Fault, UserError
from headstart_vision import images, matching
from headstart_vision.annotations import rle
from headstart_vision.drawing import (
    IGNORED,
    class_colours,
    draw_classes,
    draw_detections,
    draw_tags,
    palette,
    tag,
)
from headstart_vision.pictures import CHECKED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    Progress = Callable[[int, int], None]
    """Told how many of how many images are done."""
    Pairs = Iterable[tuple[Mapping[str, Any], PurePath, Mapping[str, Any]]]
    """Samples, the names of their PNGs, and their predictions."""

JSON_FILE = "predictions.json"
CSV_FILE = "predictions.csv"
MASKS, OVERLAYS = "masks", "overlays"
STAGING = ".predictions-"


def write_predictions(
    folder: Path,
    samples: Sequence[Mapping[str, Any]],
    predictions: Iterable[Mapping[str, Any]],
    task: Mapping[str, Any],
    progress: Progress | None = None,
    *,
    annotate: bool | None = None,
    score: float = matching.SCORE,
) -> list[Path]:
    """Write predictions, one image after the other, all or nothing.

    Everything is made in a hidden folder and moved out of it at the end. Only files of
    earlier predictions are replaced, and never an input.

    - Detection: ``predictions.json`` in COCO's format (categories from 1 on; each
      annotation has its ``score``), and each image with what was found drawn on it,
      under the image's own name below the inputs' common folder, as PNG.
    - Semantic: ``masks/NAME.png``, with a palette, whose values are the places of the
      task's labels (255: nothing); ``overlays/NAME.png``; ``predictions.json``.
    - Classification: ``predictions.json`` and ``predictions.csv``; annotated images
      only when asked for.

    Args:
        folder: Where to: a new or empty folder, or one with earlier predictions.
        samples: What ``from_inputs`` gave: ``path`` or ``array``, and ``id``.
        predictions: What the head's ``decode`` gives for each, in the same order; read
            one at a time.
        task: ``kind`` and ``labels``.
        progress: Told after each image.
        annotate: Whether images are drawn; by default for all but classification.
        score: Detections below it are in the JSON file, but not drawn.

    Returns:
        The files, in order.

    Raises:
        UserError: ``folder`` holds other things, or cannot be written.
        DataError: An image cannot be read any more.
    """
    folder = Path(folder)
    if annotate is None:
        annotate = task["kind"] not in ("single-label", "multi-label")
    write: Callable[[Path, Pairs, Mapping[str, Any], bool], None] = _write_labels
    if task["kind"] in ("boxes", "instances"):
        write = partial(_write_detections, score=score)
    elif task["kind"] == "semantic":
        write = _write_classes
    _refuse_others(folder)
    names = output_names(samples, folder)
    pairs = _told(zip(samples, names, predictions, strict=True), len(names), progress)
    try:
        with _staging(folder) as fresh:
            write(fresh, pairs, task, annotate)
            made = sorted(p.relative_to(fresh) for p in fresh.rglob("*") if p.is_file())
            for name in made:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                os.replace(fresh / name, folder / name)
    except OSError as error:
        raise UserError(
            "the predictions cannot be written",
            where=str(folder),
            why=str(error),
            fix="make room or choose another folder",
        ) from error
    return [folder / name for name in made]


def output_names(samples: Sequence[Mapping[str, Any]], folder: Path) -> list[PurePath]:
    """A PNG's name for each sample, no two alike and none an input's own file.

    It is the input's path below the inputs' common folder; of those that would share a
    name, the later ones get a number.
    """
    paths = [Path(s["path"]).absolute() for s in samples if "path" in s]
    root = Path(os.path.commonpath([p.parent for p in paths])) if paths else Path()
    inputs = {_folded(path) for path in paths}
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
        while _folded(place) in taken or any(
            _folded(folder.absolute() / kind / place) in inputs
            for kind in ("", MASKS, OVERLAYS)
        ):
            number += 1
            place = first.with_name(f"{first.stem}-{number}.png")
        taken.add(_folded(place))
        names.append(place)
    return names


def _folded(path: PurePath) -> str:
    """A path as a file system compares it that takes upper for lower case."""
    return str(path).casefold()


def _write_detections(
    folder: Path, pairs: Pairs, task: Mapping[str, Any], annotate: bool, score: float
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
            entries.append(
                {**entry, "annotated": name.as_posix()} if annotate else entry
            )
            for one in prediction["detections"]:
                count += 1
                file.write(",\n" if count > 1 else "\n")
                row = _annotation(one, count, entry["id"], places)
                json.dump(row, file, ensure_ascii=False)
            if annotate:
                sure = [d for d in prediction["detections"] if d["score"] >= score]
                _save(draw_detections(picture, sure, labels), folder / name)
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


def _write_classes(
    folder: Path, pairs: Pairs, task: Mapping[str, Any], annotate: bool
) -> None:
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
        if annotate:
            _save(draw_classes(picture, mask, labels), folder / OVERLAYS / name)
            entry["annotated"] = (OVERLAYS / name).as_posix()
        entries.append({**entry, "classes": dict(prediction["classes"])})
    categories = [
        {"id": value, "name": label, "colour": colours[value]}
        for value, label in enumerate(labels)
    ]
    with (folder / JSON_FILE).open("w", encoding="utf-8") as file:
        file.write("{")
        _write_rest(file, {"images": entries, "categories": categories})


def _write_labels(
    folder: Path, pairs: Pairs, task: Mapping[str, Any], annotate: bool
) -> None:
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
        for number, (sample, name, prediction) in enumerate(pairs, start=1):
            title = _title(sample)
            row = {"id": number, "file_name": title, **prediction}
            if annotate:
                row["annotated"] = name.as_posix()
                _save(_labelled(_picture(sample), prediction, labels), folder / name)
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


def _labelled(
    picture: Image.Image, prediction: Mapping[str, Any], labels: Sequence[str]
) -> Image.Image:
    """A copy with its labels and their probabilities in the corner."""
    colours = dict(zip(labels, class_colours(len(labels)), strict=True))
    said = prediction.get("labels", [prediction.get("label")])
    given = prediction["probabilities"]
    return draw_tags(picture, [(tag(k, given[k]), colours[k]) for k in said])


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


def _told(pairs: Iterator[Any], total: int, progress: Progress | None) -> Iterator[Any]:
    for done, pair in enumerate(pairs, start=1):
        yield pair
        if progress:
            progress(done, total)


def _refuse_others(folder: Path) -> None:
    """Predictions must not be mixed with, or replace, what is not theirs."""
    if not folder.is_dir() or (folder / JSON_FILE).exists():
        return
    if any(not path.name.startswith(STAGING) for path in folder.iterdir()):
        raise UserError(
            "the folder for the predictions holds other files",
            where=str(folder),
            why="some of them might be replaced",
            fix="choose a new folder",
        )


@contextmanager
def _staging(folder: Path) -> Iterator[Path]:
    """A fresh folder on the same disk, gone afterwards."""
    new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=STAGING, dir=folder))
    try:
        yield fresh
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        if new and not any(folder.iterdir()):
            folder.rmdir()
