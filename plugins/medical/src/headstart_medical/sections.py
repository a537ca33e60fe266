"""Sections of the report for segmented and for classified cases."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from headstart.report import sections
from headstart.report.parts import Cell, Evaluation, Figure, Section, Table
from headstart.report.verdict import number
from headstart_medical.bootstrap import RESAMPLES, over_patients
from headstart_medical.charts import FEWEST, boxes, roc_curves
from headstart_medical.measures import by_class, mean_known
from headstart_medical.metrics import (
    brier_by_sample,
    case_score,
    mean_auroc,
    mean_sensitivity,
    right_by_sample,
)
from headstart_medical.reading import VolumeError, read_volume
from headstart_medical.views import Case, three_views

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    Statistic = Callable[[np.ndarray], float]

MOST_VIEWS = 6
HEAVIEST = 1_500_000
"""Characters of the figures of all views together."""
FEW_PATIENTS = 10
"""With fewer, an interval over patients is a rough guess."""
PICTURES = ("image", "thumbnail")
HEADERS = {
    "dice": "Dice",
    "hd95": "HD95 (mm)",
    "asd": "surface distance (mm)",
    "volume-error": "volume error (ml)",
    "relative-volume-error": "relative volume error",
    "lesion-f1": "lesion F1",
    "lesion-recall": "lesion recall",
    "false-lesions": "false lesions",
}
CONVENTION = (
    "Each case is measured on its own grid. Where neither truth nor prediction has a "
    "class, Dice and lesion F1 are 1 and distances do not count; where only one has "
    "it, Dice and lesion F1 are 0 and distances are the volume's diagonal. A lesion is "
    "a connected part, and found when a tenth of it is covered; a predicted one is "
    "false when less than a tenth of it is true."
)


def segmentation_sections(evaluation: Evaluation) -> list[Section]:
    """Sections for cases with a class per voxel.

    Reads ``prediction``, ``target`` and ``spacing``; of a sample as it is shown
    ``case``, ``patient`` and ``image``, the path of its first volume.
    """
    found = by_class(evaluation.outputs, evaluation.task)
    count = len(evaluation.outputs["target"])
    scores = {
        name: np.array([case_score(name, values) for values in found[name]])
        for name in HEADERS
    }
    statistics: dict[str, Statistic] = {
        HEADERS[name]: partial(_mean_of, values) for name, values in scores.items()
    }
    # What cannot be measured is worse than what can.
    worst = np.argsort(np.nan_to_num(scores["dice"], nan=-1.0), kind="stable").tolist()
    return [
        _classes(evaluation, found),
        _intervals(evaluation, statistics, count),
        _cases(evaluation, found, scores, worst),
        *_views(evaluation, scores, worst),
    ]


def classification_sections(evaluation: Evaluation) -> list[Section]:
    """Sections for cases or slices with one label each.

    Reads ``probabilities``, ``prediction`` and ``target``; of a sample as it is shown
    ``case`` and ``patient``.
    """
    shown = replace(evaluation, samples=lambda i: _printed(evaluation.shown(i)))
    probabilities = np.asarray(evaluation.outputs["probabilities"], dtype=float)
    target = np.asarray(evaluation.outputs["target"]).astype(int)
    labels = [str(label) for label in evaluation.task["labels"]]

    def statistic(score: Callable[..., Any]) -> Statistic:
        return lambda rows: float(np.mean(score(probabilities[rows], target[rows])))

    statistics = {
        "AUROC": statistic(mean_auroc),
        "sensitivity at specificity .95": statistic(mean_sensitivity),
        "Brier score": statistic(brier_by_sample),
        "accuracy": statistic(right_by_sample),
    }
    curves = Figure(
        roc_curves(probabilities, target, labels),
        caption="Sensitivity against 1 − specificity; the grey line is a specificity "
        f"of .95, {evaluation.split} split.",
        alt="ROC curves",
    )
    return [
        _intervals(evaluation, statistics, len(target)),
        sections.confusion_matrix(shown),
        sections.per_label(shown),
        Section("ROC curve", figures=(curves,)),
        sections.calibration(shown),
        sections.most_wrong(shown),
        sections.most_unsure(shown),
    ]


def _mean_of(values: np.ndarray, rows: np.ndarray) -> float:
    return mean_known(values[rows])


def _patients(evaluation: Evaluation, count: int) -> list[str]:
    """Whose each sample is; without a patient each is one of its own."""
    found = []
    for index in range(count):
        shown = evaluation.shown(index)
        found.append(str(shown.get("patient") or shown.get("case", index)))
    return found


def _intervals(
    evaluation: Evaluation, statistics: Mapping[str, Statistic], count: int
) -> Section:
    patients = _patients(evaluation, count)
    many = len(set(patients))
    rows = np.arange(count)
    found = over_patients(statistics, patients)
    table = Table(
        ("metric", "value", "from", "to"),
        tuple(
            (name, _known(statistic(rows)), *(found[name] or (None, None)))
            for name, statistic in statistics.items()
        ),
        caption=f"{count:,} cases of {many:,} patients, {evaluation.split} split.",
    )
    if many < 2:
        text = "All cases are of one patient: nothing can be said about others."
    else:
        text = f"95 % intervals over {RESAMPLES:,} draws of the patients, with all "
        text += "cases of each."
        if many < FEW_PATIENTS:
            text += f" {many} patients are few: the true intervals are wider."
    return Section("Intervals over patients", text, tables=(table,))


def _classes(evaluation: Evaluation, found: Mapping[str, np.ndarray]) -> Section:
    labels = [str(label) for label in evaluation.task["labels"][1:]]
    rows: list[tuple[Cell, ...]] = []
    for k, label in enumerate(labels):
        there = int((found["true-ml"][:, k] > 0).sum())
        means = [_known(mean_known(found[name][:, k])) for name in HEADERS]
        median = _known(float(np.median(found["dice"][:, k])))
        rows.append((label, there, means[0], median, *means[1:]))
    first, *others = HEADERS.values()
    table = Table(
        ("class", "cases with it", f"{first}, mean", f"{first}, median", *others),
        tuple(rows),
        caption=f"Means over {len(found['dice']):,} cases, {evaluation.split} split.",
    )
    return Section("Results by class", CONVENTION, tables=(table,))


def _cases(
    evaluation: Evaluation,
    found: Mapping[str, np.ndarray],
    scores: Mapping[str, np.ndarray],
    worst: Sequence[int],
) -> Section:
    labels = [str(label) for label in evaluation.task["labels"][1:]]
    columns = ("case", "patient", "Dice", "HD95 (mm)", "surface distance (mm)",
               "true ml", "predicted ml", "lesions found", "false lesions")  # fmt: skip
    rows: list[tuple[Cell, ...]] = []
    for index in worst[: max(evaluation.rows, 1)]:
        shown = evaluation.shown(index)
        hits, lesions = (
            int(found[name][index].sum()) for name in ("found-lesions", "true-lesions")
        )
        rows.append(
            (
                _name(shown, index),
                str(shown.get("patient", "")),
                *(_known(scores[name][index]) for name in ("dice", "hd95", "asd")),
                float(found["true-ml"][index].sum()),
                float(found["found-ml"][index].sum()),
                f"{hits} of {lesions}",
                int(scores["false-lesions"][index]),
            )
        )
    table = Table(
        columns,
        tuple(rows),
        caption=f"{len(rows)} of {len(worst):,} cases, {evaluation.split} split.",
    )
    few = len(worst) < FEWEST
    figures = tuple(
        Figure(
            boxes({label: found[key][:, k] for k, label in enumerate(labels)}, title),
            caption=f"{title}: a dot is a case"
            + ("." if few else "; the box holds the middle half, its line the median."),
            alt=f"Boxplot of {title} by class",
        )
        for key, title in (("dice", "Dice"), ("hd95", "HD95 (mm)"))
        if np.isfinite(found[key]).any()
    )
    title = "Cases, worst first"
    return Section(title, tables=(table,), figures=figures)


def _views(
    evaluation: Evaluation, scores: Mapping[str, np.ndarray], worst: Sequence[int]
) -> list[Section]:
    most = min(evaluation.rows, MOST_VIEWS, len(worst))
    if most < 1:
        return []
    places = np.unique(np.linspace(0, len(worst) - 1, most).round().astype(int))
    figures: list[Figure] = []
    for index in (worst[place] for place in places):
        figure = _view(evaluation, scores, index)
        if figures and sum(len(f.svg) for f in (*figures, figure)) > HEAVIEST:
            break
        figures.append(figure)
    text = "Slices through the largest true lesion, and below them a closer look. The "
    text += "patient's right is on the left."
    if len(figures) < len(worst):
        text += f" {len(figures)} of {len(worst):,} cases, from the worst to the best."
    title = "Truth and prediction"
    return [Section(title, text, figures=tuple(figures))]


def _view(
    evaluation: Evaluation, scores: Mapping[str, np.ndarray], index: int
) -> Figure:
    outputs, shown = evaluation.outputs, evaluation.shown(index)
    truth, found = (np.asarray(outputs[k][index]) for k in ("target", "prediction"))
    image, affine = _image(shown, truth.shape)
    if affine is None:
        affine = np.diag([*np.asarray(outputs["spacing"][index], dtype=float), 1.0])
    labels = [str(label) for label in evaluation.task["labels"]]
    name = _name(shown, index)
    caption = f"{name}: Dice {number(_known(scores['dice'][index]))}"
    if not np.isnan(scores["hd95"][index]):
        caption += f", HD95 {number(float(scores['hd95'][index]))} mm"
    caption += "." if image is not None else "; the volume cannot be read any more."
    return Figure(
        three_views(Case(image, truth, found, affine), labels),
        caption=caption,
        alt=f"Three views of {name} with the outlines of truth and prediction",
        wide=True,
    )


def _image(
    shown: Mapping[str, Any], shape: tuple[int, ...]
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """The first volume of a case and its affine, where they fit the mask."""
    try:
        volume = read_volume(Path(str(shown["image"])))
    except (KeyError, VolumeError):
        return None, None
    image = volume.array[..., 0] if volume.array.ndim == 4 else volume.array
    return (image, volume.affine) if image.shape == shape else (None, None)


def _printed(shown: Mapping[str, Any]) -> dict[str, Any]:
    """A sample without its picture, for tables."""
    return {key: value for key, value in shown.items() if key not in PICTURES}


def _name(shown: Mapping[str, Any], index: int) -> str:
    return str(shown.get("case", f"case {index}"))


def _known(value: float) -> float | None:
    """Tables show what is not a number as a dash."""
    return None if np.isnan(value) else float(value)
