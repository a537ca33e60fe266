"""Sections of the report for images with one label each, or with several."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from headstart.report import sections
from headstart.report.parts import Cell, Evaluation, Figure, Section, Table
from headstart_vision import pictures
from headstart_vision.sections.gallery import name_of, printed, shortened

if TYPE_CHECKING:
    from collections.abc import Sequence

SIDE = 128
"""Longest side of a thumbnail in pixels."""


def classification_sections(evaluation: Evaluation) -> list[Section]:
    """Sections for images with one label each, or with several.

    Reads ``target``, ``prediction`` and ``probabilities``; see
    :mod:`headstart.report.sections`.
    """
    plain = replace(evaluation, samples=lambda i: printed(evaluation.shown(i)))
    worst = _worst_classified(evaluation)
    if np.asarray(evaluation.outputs["target"]).ndim == 2:
        return [
            sections.per_label(plain),
            *worst,
            sections.most_unsure(plain),
        ]
    return [
        sections.confusion_matrix(plain),
        sections.per_label(plain),
        sections.calibration(plain),
        *worst,
        sections.most_unsure(plain),
    ]


def _worst_classified(evaluation: Evaluation) -> list[Section]:
    """Thumbnails of the images with the highest loss, and the same as a table."""
    probabilities = np.asarray(evaluation.outputs["probabilities"], dtype=float)
    target = np.asarray(evaluation.outputs["target"]).astype(int)
    prediction = np.asarray(evaluation.outputs["prediction"]).astype(int)
    labels = [str(name) for name in evaluation.task["labels"]]
    several = target.ndim == 2
    if several:
        right = np.where(target == 1, probabilities, 1 - probabilities)
        losses = -np.log(right.clip(1e-12)).mean(axis=1)
        wrong = (prediction != target).any(axis=1)
    else:
        losses = -np.log(probabilities[np.arange(len(target)), target].clip(1e-12))
        wrong = prediction != target
    order = np.argsort(-losses, kind="stable")[: evaluation.rows].tolist()
    if not order:
        return []
    thumbnails, names, lines = [], [], []
    rows: list[tuple[Cell, ...]] = []
    for i in order:
        shown = evaluation.shown(i)
        thumbnails.append(pictures.photo(shown, SIDE))
        names.append(name_of(shown, i))
        true, said = (_label(values[i], labels) for values in (target, prediction))
        loss = float(losses[i])
        if several:
            lines.append((f"true: {true}", f"said: {said}", f"loss {loss:.2f}"))
            rows.append((names[-1], true, said, loss))
        else:
            shares = _shares(probabilities[i], target[i])
            lines.append((true, f"said: {said}", shares))
            highest = float(probabilities[i].max())
            rows.append((names[-1], true, said, highest, loss))
    columns = ["image", "true", "predicted", "loss"]
    if not several:
        columns.insert(3, "probability")
    figure = Figure(
        pictures.grid(thumbnails, lines, names),
        caption="The true label first, then what the model said"
        + ("." if several else ", and the probabilities of the two."),
        alt=shortened(
            "; ".join(f"{row[0]}: true {row[1]}, predicted {row[2]}" for row in rows)
        ),
    )
    table = Table(
        tuple(columns), tuple(rows), caption=f"{evaluation.split.capitalize()} split."
    )
    text = f"The images with the highest loss; {int(wrong.sum()):,} of {len(target):,} "
    text += "are wrong. Some may be labelled wrongly."
    return [Section("Worst images", text, tables=(table,), figures=(figure,))]


def _label(value: Any, labels: Sequence[str]) -> str:
    if np.ndim(value):
        return ", ".join(labels[k] for k in np.flatnonzero(value).tolist()) or "none"
    return labels[int(value)]


def _shares(probabilities: np.ndarray, target: int) -> str:
    top, true = probabilities.max(), probabilities[target]
    return f"{true:.3f} against {top:.3f}" if top > true else f"{true:.3f}"
