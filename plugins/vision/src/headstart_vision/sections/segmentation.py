"""Sections of the report for semantic segmentation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from headstart.report import plots, sections
from headstart.report.parts import Evaluation, Figure, Section, Table
from headstart_vision import pictures
from headstart_vision.drawing import class_colours, is_background
from headstart_vision.metrics import (
    IGNORED,
    dice_score,
    intersection_over_union,
    pixel_counts,
)
from headstart_vision.pictures import Panel
from headstart_vision.sections.gallery import gallery, name_of, shortened, spread

if TYPE_CHECKING:
    from collections.abc import Callable

UNLABELLED = "#E0E0E0"


def segmentation_sections(evaluation: Evaluation) -> list[Section]:
    """Sections for semantic segmentation.

    Reads ``prediction`` and ``target``, lists of masks (height, width).
    """
    outputs, task = evaluation.outputs, evaluation.task
    counts = pixel_counts(outputs, task)
    images = [
        pixel_counts({k: [outputs[k][i]] for k in ("prediction", "target")}, task)
        for i in range(len(outputs["target"]))
    ]
    means = np.array([_mean_iou(one) for one in images])
    labelled = [i for i in range(len(images)) if np.isfinite(means[i])]
    worst = sorted((i for i in labelled if means[i] < 1), key=lambda i: means[i])

    def draw(index: int) -> Figure:
        return _segmentation_figure(evaluation, index, images[index])

    return [
        _pixel_table(evaluation, counts),
        _pixel_confusion(evaluation, counts),
        *gallery(
            evaluation,
            "Predictions beside the truth",
            f"Images of the {evaluation.split} split at equal distances.",
            spread(labelled, len(images), evaluation.rows),
            draw,
        ),
        *gallery(
            evaluation,
            "Worst images",
            "The images with the lowest mean IoU over the classes that are on them.",
            worst,
            draw,
            empty=f"On no image of the {evaluation.split} split is anything wrong.",
        ),
    ]


def _pixel_table(evaluation: Evaluation, counts: np.ndarray) -> Section:
    labels = evaluation.task["labels"]
    right = np.diag(counts)
    scores = (
        _per_class(intersection_over_union, counts),
        _per_class(dice_score, counts),
        _divided(right, counts.sum(axis=0)),
        _divided(right, counts.sum(axis=1)),
    )
    total = max(int(counts.sum()), 1)
    rows = tuple(
        (
            str(label),
            *(None if np.isnan(score[k]) else float(score[k]) for score in scores),
            f"{counts[k].sum() / total:.1%}",
        )
        for k, label in enumerate(labels)
    )
    table = Table(
        ("label", "IoU", "Dice", "precision", "recall", "share of pixels"),
        rows,
        caption=f"{evaluation.split.capitalize()} split, over the pixels of all images "
        f"together: {int(counts.sum()):,} labelled ones.",
    )
    return Section("IoU by class", tables=(table,))


def _pixel_confusion(evaluation: Evaluation, counts: np.ndarray) -> Section:
    labels = [str(name) for name in evaluation.task["labels"]]
    share = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    title = "Pixel confusion"
    if len(labels) <= sections.LARGEST_MATRIX:
        figure = Figure(
            plots.matrix(np.rint(share).astype(int), labels),
            caption=f"Percent of each true class's pixels, {evaluation.split} split.",
            alt=f"Confusion of the pixels of {len(labels)} classes",
            wide=len(labels) > 10,
        )
        return Section(title, figures=(figure,))
    wrong = share.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[: sections.LARGEST_MATRIX]
    pairs = (divmod(int(k), len(labels)) for k in order)
    rows = tuple(
        (labels[i], labels[j], f"{wrong[i, j]:.1f}%") for i, j in pairs if wrong[i, j]
    )
    table = Table(
        ("true", "predicted", "share of true class"),
        rows,
        caption=f"The most confused pairs of classes, {evaluation.split} split.",
    )
    text = f"{len(labels)} classes are too many for a picture."
    return Section(title, text, tables=(table,))


def _segmentation_figure(
    evaluation: Evaluation, index: int, counts: np.ndarray
) -> Figure:
    """An image twice, under its true and its predicted classes."""
    labels = [str(name) for name in evaluation.task["labels"]]
    colours = class_colours(len(labels))
    shown = evaluation.shown(index)
    name = name_of(shown, index)
    true = np.asarray(evaluation.outputs["target"][index])
    said = np.asarray(evaluation.outputs["prediction"][index])
    there = [
        k
        for k in np.union1d(np.unique(true), np.unique(said)).astype(int).tolist()
        if k < len(labels) and not is_background(labels, k)
    ]
    panels = []
    legend = {labels[k]: colours[k] for k in there}
    for title, mask in (("truth", true), ("predicted", said)):
        layers = [(mask == k, colours[k]) for k in there if (mask == k).any()]
        if (mask == IGNORED).any():
            layers.append((mask == IGNORED, UNLABELLED))
            legend["not labelled"] = UNLABELLED
        panels.append(Panel(title, overlay=pictures.overlay(layers, mask.shape)))
    ious = _per_class(intersection_over_union, counts)
    order = sorted(
        (k for k in range(len(labels)) if ious[k] < 1), key=lambda k: ious[k]
    )
    mean = _mean_iou(counts)
    text = "no labelled pixel" if np.isnan(mean) else f"mean IoU {mean:.3f}"
    if order:
        lowest = ", ".join(f"{labels[k]} {ious[k]:.2f}" for k in order[:3])
        text += f"; lowest: {lowest}"
    return Figure(
        pictures.beside(pictures.photo(shown), true.shape, panels, legend),
        caption=f"{name}: {text}.",
        alt=shortened(f"{name} under its true and predicted classes; {text}"),
    )


def _per_class(score: Callable[[Any], Any], counts: np.ndarray) -> np.ndarray:
    values: np.ndarray = score(torch.from_numpy(counts).double()).numpy()
    return values


def _mean_iou(counts: np.ndarray) -> float:
    """Over the classes of one image; not a number without a labelled pixel."""
    ious = _per_class(intersection_over_union, counts)
    return float(np.nanmean(ious)) if np.isfinite(ious).any() else float("nan")


def _divided(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.where(whole > 0, part / np.maximum(whole, 1), np.nan)
