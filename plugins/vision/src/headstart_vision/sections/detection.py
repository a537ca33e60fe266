"""Sections of the report for detectors, with masks where predictions have them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from headstart.report import plots, sections
from headstart.report.parts import Evaluation, Figure, Section, Table
from headstart_vision import matching, pictures
from headstart_vision.annotations import rle
from headstart_vision.average_precision import RECALLS, ClassPrecision, per_class_ap
from headstart_vision.drawing import class_colours, tag
from headstart_vision.matching import ERRORS, RIGHT, Matches
from headstart_vision.pictures import Mark, Panel
from headstart_vision.sections.gallery import gallery, name_of, shortened, spread

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from headstart_vision.average_precision import Kind

NAMED_CURVES = 8
"""Up to so many classes each have a colour in the precision-recall curves."""


def detection_sections(evaluation: Evaluation) -> list[Section]:
    """Sections for detectors, with masks where the predictions have them.

    Reads ``prediction``, ``target`` and ``size``, one entry per image.
    """
    predictions, targets = (evaluation.outputs[k] for k in ("prediction", "target"))
    masks = any("masks" in found for found in predictions)
    matches = [
        matching.match(found, true)
        for found, true in zip(predictions, targets, strict=True)
    ]
    count = len(matches)
    objects = [len(one.objects) for one in matches]
    errors = [one.errors for one in matches]
    worst = sorted((i for i in range(count) if errors[i]), key=lambda i: -errors[i])
    return [
        *_precision(evaluation, masks),
        _detection_confusion(evaluation, matches, masks),
        _error_kinds(evaluation, matches, masks),
        *gallery(
            evaluation,
            "Predictions beside the truth",
            f"Images of the {evaluation.split} split at equal distances, those with "
            "objects first.",
            spread([i for i in range(count) if objects[i]], count, evaluation.rows),
            lambda i: _detection_figure(evaluation, i, matches[i]),
        ),
        *gallery(
            evaluation,
            "Worst images",
            "The images with the most missed objects and false detections.",
            worst,
            lambda i: _detection_figure(evaluation, i, matches[i]),
            empty=f"On no image of the {evaluation.split} split is anything wrong.",
        ),
    ]


def _precision(evaluation: Evaluation, masks: bool) -> list[Section]:
    """AP of each class, and the curves of precision over recall."""
    kinds: tuple[Kind, ...] = ("bbox", "segm") if masks else ("bbox",)
    found = {
        kind: per_class_ap(evaluation.outputs, evaluation.task, kind) for kind in kinds
    }
    boxes = found["bbox"]
    columns = ["label", "AP", "AP at .5", "AP at .75", "objects"]
    rows: list[tuple[Any, ...]] = [
        (row.label, row.ap, row.ap_50, row.ap_75, row.objects) for row in boxes
    ]
    if masks:
        columns[1:4] = ["box AP", "box AP at .5", "mask AP", "mask AP at .5"]
        rows = [
            (box.label, box.ap, box.ap_50, mask.ap, mask.ap_50, box.objects)
            for box, mask in zip(boxes, found["segm"], strict=True)
        ]
    table = Table(
        tuple(columns),
        tuple(rows),
        caption=f"{evaluation.split} split".capitalize() + ". Average precision as "
        "COCO has it: mean over IoU .5 to .95; their mean over classes is mAP.",
    )
    curves = _precision_curves(found[kinds[-1]], "masks" if masks else "boxes")
    return [
        Section("Average precision by class", tables=(table,)),
        Section(
            "Precision and recall",
            "How many detections are right, over how many objects are found, while "
            "ever lower scores are let in.",
            figures=curves,
        ),
    ]


def _precision_curves(rows: Sequence[ClassPrecision], what: str) -> tuple[Figure, ...]:
    known = [row for row in rows if row.objects]
    if not known:
        return ()
    many = len(known) > NAMED_CURVES
    mean = np.mean([row.precision for row in known], axis=0)
    series = [
        # A recall that is not reached has precision 0: the line ends there.
        plots.Series(
            "" if many else row.label,
            RECALLS,
            np.where(row.precision > 0, row.precision, np.nan).tolist(),
            colour=6 if many else place,
            faint=many,
        )
        for place, row in enumerate(known)
    ]
    if many:
        series.append(plots.Series("mean", RECALLS, mean.tolist()))
    caption = f"Precision over recall at IoU .5 of {what}, interpolated as in COCO"
    caption += "; pale: each class; strong: their mean." if many else "."
    summary = ", ".join(f"{row.label} {row.ap_50:.2f}" for row in known)
    return (
        Figure(
            plots.curves(series, xlabel="recall", ylabel="precision", stop=1.0),
            caption=caption,
            alt=shortened(f"Precision-recall curves; area under each: {summary}"),
        ),
    )


def _detection_confusion(
    evaluation: Evaluation, matches: Sequence[Matches], masks: bool
) -> Section:
    labels = [str(name) for name in evaluation.task["labels"]]
    true, predicted = matching.confusion_pairs(matches, evaluation.outputs, len(labels))
    section = sections.confusion_matrix(
        replace(
            evaluation,
            outputs={"target": true, "prediction": predicted},
            task={"labels": [*labels, "background"]},
        )
    )
    text = (
        f"Detections from a score of {matching.SCORE:g} on, matched with objects at "
        f"an IoU of {'masks' if masks else 'boxes'} of {matching.FOUND:g}. The row "
        "background holds detections that are on no object, its column objects that "
        "were missed."
    )
    figures = tuple(
        replace(
            figure,
            caption=f"Objects of the {evaluation.split} split. The shade is the share "
            "of the row.",
            alt=f"Confusion matrix over {len(labels)} classes and the background",
        )
        for figure in section.figures
    )
    tables = tuple(
        replace(table, columns=("true", "predicted", "objects", "share of true class"))
        for table in section.tables
    )
    return replace(
        section,
        text=" ".join(part for part in (text, section.text) if part),
        figures=figures,
        tables=tables,
    )


def _error_kinds(
    evaluation: Evaluation, matches: Sequence[Matches], masks: bool
) -> Section:
    kinds = [kind for one in matches for kind in one.kinds]
    false = sum(kind != RIGHT for kind in kinds)
    missed = sum(len(one.missed) for one in matches)
    objects = sum(len(one.objects) for one in matches)
    rows = tuple(
        (kind, kinds.count(kind), _share(kinds.count(kind), false)) for kind in ERRORS
    )
    what = "mask" if masks else "box"
    text = (
        f"Of {len(kinds):,} detections with a score of {matching.SCORE:g} or more, "
        f"{kinds.count(RIGHT):,} are right and {false:,} false; {missed:,} of "
        f"{objects:,} objects have no right detection. Kinds after TIDE (Bolya et al. "
        f"2020), by IoU with the truth's {what}: poor localisation is .1 to .5 with an "
        "object of the class; wrong class is .5 or more with another class; a "
        "duplicate is on an object that a surer detection has; background is below .1 "
        "with every object."
    )
    table = Table(
        ("false detections", "number", "share"),
        rows,
        caption=f"{evaluation.split.capitalize()} split.",
    )
    return Section("What is wrong", text, tables=(table,))


def _detection_figure(evaluation: Evaluation, index: int, matches: Matches) -> Figure:
    """An image twice: the truth, dashed, and the detections with their scores."""
    outputs = evaluation.outputs
    found, true = outputs["prediction"][index], outputs["target"][index]
    size = [int(side) for side in outputs["size"][index]]
    labels = [str(name) for name in evaluation.task["labels"]]
    colours = class_colours(len(labels))
    shown = evaluation.shown(index)
    name = name_of(shown, index)
    theirs = np.asarray(true["labels"], dtype=int) - 1
    crowd = np.asarray(true["crowd"], dtype=bool)
    said = np.asarray(found["labels"], dtype=int) - 1
    scores = np.asarray(found["scores"], dtype=float)
    # The largest objects below, so that none hides another.
    order = sorted(range(len(theirs)), key=lambda k: _area(true["boxes"][k]))
    truth = [
        Mark(
            true["boxes"][k],
            tag(labels[theirs[k]])
            + (" (crowd)" if crowd[k] else " (missed)" if k in matches.missed else ""),
            colours[theirs[k]],
            dashed=True,
        )
        for k in order
    ]
    detected = [
        Mark(found["boxes"][k], tag(labels[said[k]], scores[k]), colours[said[k]])
        for k in matches.detections
    ]
    panels = [
        Panel("truth", truth, _layers(true, order[::-1], theirs, colours, size)),
        Panel(
            "predicted",
            detected,
            _layers(found, matches.detections[::-1], said, colours, size),
        ),
    ]
    spoken = (
        f"{name}; truth: {', '.join(mark.text for mark in truth) or 'no object'}; "
        f"predicted: {', '.join(mark.text for mark in detected) or 'nothing'}"
    )
    return Figure(
        pictures.beside(pictures.photo(shown), size, panels),
        caption=f"{name}: {_judgement(matches, scores)}",
        alt=shortened(spoken),
    )


def _judgement(matches: Matches, scores: np.ndarray) -> str:
    objects = len(matches.objects)
    found = f"{objects - len(matches.missed)} of {objects} objects found"
    parts = [found if objects else "no object"]
    false = [kind for kind in matches.kinds if kind != RIGHT]
    if false:
        kinds = ", ".join(f"{false.count(k)} {k}" for k in ERRORS if k in false)
        parts.append(f"false: {kinds}")
    low = int((scores < matching.SCORE).sum())
    if low:
        parts.append(f"{low} scored below {matching.SCORE:g} not drawn")
    return "; ".join(parts) + "."


def _layers(
    entries: Mapping[str, Any],
    order: Iterable[int],
    numbers: np.ndarray,
    colours: Sequence[str],
    size: Sequence[int],
) -> str:
    if "masks" not in entries:
        return ""
    layers = [
        (rle.to_mask(entries["masks"][k]).astype(bool), colours[numbers[k]])
        for k in order
    ]
    return pictures.overlay(layers, size)


def _area(box: Any) -> float:
    return float((box[2] - box[0]) * (box[3] - box[1]))


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.0%}" if whole else "–"
