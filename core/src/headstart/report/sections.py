"""Parts of a report that several kinds of task share, made from an evaluation.

A head returns them from :meth:`headstart.heads.Head.report`. They read the outputs
``target``, ``prediction`` and ``probabilities`` and the task's ``labels``; a head whose
outputs have other names passes ``dataclasses.replace(evaluation, outputs={...})``.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from headstart.errors import PluginError, nearest
from headstart.report import plots
from headstart.report.parts import Evaluation, Figure, Section, Table
from headstart.report.verdict import counted, number

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

LARGEST_MATRIX = 20
CALIBRATION_BINS = 10
LONGEST_TEXT = 400


def _output(evaluation: Evaluation, key: str) -> np.ndarray:
    try:
        return np.asarray(evaluation.outputs[key])
    except KeyError:
        raise PluginError(
            f"the head's outputs have no {key!r}",
            where="Head.report",
            fix=nearest(key, evaluation.outputs),
        ) from None


def _labels(evaluation: Evaluation, count: int) -> list[str]:
    """Class names; numbers where the task has none."""
    names = [str(name) for name in evaluation.task.get("labels", ())]
    return names if len(names) >= count else [str(i) for i in range(count)]


def _classes(evaluation: Evaluation) -> tuple[np.ndarray, np.ndarray, list[str]]:
    target = _output(evaluation, "target").astype(int)
    prediction = _output(evaluation, "prediction").astype(int)
    count = int(max(target.max(initial=-1), prediction.max(initial=-1))) + 1
    return target, prediction, _labels(evaluation, count)


def _counts(target: np.ndarray, prediction: np.ndarray, size: int) -> np.ndarray:
    flat = np.bincount(target * size + prediction, minlength=size * size)
    return flat.reshape(size, size)


def confusion_matrix(evaluation: Evaluation) -> Section:
    """Which class is taken for which; the most confused pairs when classes are many.

    Reads ``target`` and ``prediction``, class indices (samples,).
    """
    target, prediction, labels = _classes(evaluation)
    counts = _counts(target, prediction, len(labels))
    title = "Confusion matrix"
    if len(labels) <= LARGEST_MATRIX:
        figure = Figure(
            plots.matrix(counts, labels),
            caption=f"Samples of the {evaluation.split} split. The shade is the share "
            "of the true class (the row).",
            alt=f"Confusion matrix over {len(labels)} classes",
            wide=len(labels) > 10,
        )
        return Section(title, figures=(figure,))
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:LARGEST_MATRIX]
    rows = tuple(
        (labels[i], labels[j], int(wrong[i, j]), float(wrong[i, j] / counts[i].sum()))
        for i, j in (divmod(int(k), len(labels)) for k in order)
        if wrong[i, j]
    )
    pairs = int((wrong > 0).sum())
    table = Table(
        ("true", "predicted", "samples", "share of true class"),
        rows,
        caption=f"The {len(rows)} most confused of {pairs} pairs of classes, "
        f"{evaluation.split} split.",
    )
    return Section(
        title, f"{len(labels)} classes are too many for a picture.", tables=(table,)
    )


def per_label(evaluation: Evaluation) -> Section:
    """Precision, recall and F1 of each label, and how many samples have it.

    Reads ``target`` and ``prediction``: class indices (samples,), or for several
    labels at a time 0 and 1, (samples, labels). What is divided by nothing counts 0.
    """
    target = _output(evaluation, "target")
    if target.ndim == 2:
        has = target.astype(bool)
        said = _output(evaluation, "prediction").astype(bool)
        labels = _labels(evaluation, target.shape[1])
        right, said_count = (has & said).sum(axis=0), said.sum(axis=0)
        support = has.sum(axis=0)
    else:
        target, prediction, labels = _classes(evaluation)
        counts = _counts(target, prediction, len(labels))
        right, said_count = np.diag(counts), counts.sum(axis=0)
        support = counts.sum(axis=1)
    precision = right / np.maximum(said_count, 1)
    recall = right / np.maximum(support, 1)
    f1 = 2 * right / np.maximum(said_count + support, 1)
    rows = tuple(
        (name, float(precision[i]), float(recall[i]), float(f1[i]), int(support[i]))
        for i, name in enumerate(labels)
    )
    table = Table(
        ("label", "precision", "recall", "F1", "samples"),
        rows,
        caption=f"{evaluation.split} split".capitalize() + ".",
    )
    return Section("Results by label", tables=(table,))


def most_wrong(evaluation: Evaluation) -> Section:
    """Samples with the highest probability on a wrong answer: look here for bad labels.

    Reads ``target`` and ``probabilities``: (samples,) and (samples, classes), or both
    (samples, labels) for several labels at a time.
    """
    title = "Most wrong"
    probabilities, target, labels = _probabilities(evaluation)
    every = np.arange(len(target))
    if target.ndim == 2:
        misses = np.abs(probabilities - target)
        label = misses.argmax(axis=1)
        miss = misses[every, label]
        bad = miss > 0.5
        columns = _one_label(probabilities, target, labels, label)
    else:
        top = probabilities.argmax(axis=1)
        miss = probabilities[every, top]
        bad = top != target
        columns = {
            "true": [labels[k] for k in target],
            "predicted": [labels[k] for k in top],
            "probability": miss,
        }
    order = np.argsort(-miss, kind="stable")
    order = order[bad[order]]
    if len(order) == 0:
        return Section(title, f"No sample of the {evaluation.split} split is wrong.")
    table = _sample_table(
        evaluation, order, columns, f"of {counted(len(order), 'wrong sample')}"
    )
    return Section(
        title,
        "The samples on which the model was surest of a wrong answer. Some may be "
        "labelled wrongly.",
        tables=(table,),
    )


def most_unsure(evaluation: Evaluation) -> Section:
    """Samples whose two likeliest answers are closest: where more labels help most.

    Reads what :func:`most_wrong` reads.
    """
    probabilities, target, labels = _probabilities(evaluation)
    every = np.arange(len(target))
    if target.ndim == 2:
        distance = np.abs(probabilities - 0.5)
        label = distance.argmin(axis=1)
        margin = 2 * distance[every, label]
        columns = _one_label(probabilities, target, labels, label)
    else:
        ranked = np.argsort(-probabilities, axis=1, kind="stable")
        first, second = ranked[:, 0], ranked[:, min(1, ranked.shape[1] - 1)]
        margin = probabilities[every, first] - probabilities[every, second]
        columns = {
            "true": [labels[k] for k in target],
            "predicted": [labels[k] for k in first],
            "probability": probabilities[every, first],
            "runner-up": [labels[k] for k in second],
            "margin": margin,
        }
    order = np.argsort(margin, kind="stable")
    table = _sample_table(
        evaluation, order, columns, f"of {counted(len(order), 'sample')}"
    )
    return Section(
        "Most unsure",
        "The samples on which the model hesitated most.",
        tables=(table,),
    )


def _probabilities(evaluation: Evaluation) -> tuple[np.ndarray, np.ndarray, list[str]]:
    probabilities = _output(evaluation, "probabilities").astype(float)
    target = _output(evaluation, "target").astype(int)
    return probabilities, target, _labels(evaluation, probabilities.shape[1])


def _one_label(
    probabilities: np.ndarray, target: np.ndarray, labels: list[str], which: np.ndarray
) -> dict[str, Sequence[Any] | np.ndarray]:
    """Columns about one label of each sample; ``which`` is its index, (samples,)."""
    return {
        "label": [labels[k] for k in which],
        "true": ["yes" if target[i, k] else "no" for i, k in enumerate(which)],
        "probability": probabilities[np.arange(len(which)), which],
    }


def _sample_table(
    evaluation: Evaluation,
    order: np.ndarray,
    columns: Mapping[str, Sequence[Any] | np.ndarray],
    whole: str,
) -> Table:
    """The first samples of an order as people see them, with columns of results."""
    order = order[: evaluation.rows]
    shown = [evaluation.shown(int(i)) for i in order]
    results = {name: [values[i] for i in order] for name, values in columns.items()}
    names = list(dict.fromkeys(name for sample in shown for name in sample))
    # What the sample calls its label is our column "true" once more.
    names = [
        name
        for name in names
        if name not in results
        and [str(sample.get(name)) for sample in shown] != results.get("true")
    ]
    rows = tuple(
        (
            *(_cell(sample.get(name)) for name in names),
            *(_cell(values[k]) for values in results.values()),
        )
        for k, sample in enumerate(shown)
    )
    return Table(
        (*names, *results),
        rows,
        caption=f"{len(rows)} {whole}, {evaluation.split} split.",
    )


def _cell(value: Any) -> str | int | float | bool | None:
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, int | float):
        return value
    text = value if isinstance(value, str) else str(value)
    return text if len(text) <= LONGEST_TEXT else text[: LONGEST_TEXT - 1] + "…"


def calibration(evaluation: Evaluation) -> Section:
    """Whether a probability means what it says, with the expected calibration error.

    Ten bins of equal width over the predicted class's probability; ECE is the mean
    distance of accuracy from confidence, weighted by samples (Naeini et al. 2015; Guo
    et al. 2017). Reads ``target`` (samples,) and ``probabilities`` (samples, classes).
    """
    probabilities, target, _ = _probabilities(evaluation)
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == target
    # Bins are open below and closed above, as in the paper.
    place = np.ceil(confidence * CALIBRATION_BINS).astype(int) - 1
    place = np.clip(place, 0, CALIBRATION_BINS - 1)
    count = np.bincount(place, minlength=CALIBRATION_BINS)
    used = count > 0
    total = np.bincount(place, weights=confidence, minlength=CALIBRATION_BINS)
    right = np.bincount(place, weights=correct, minlength=CALIBRATION_BINS)
    mean, accuracy = total[used] / count[used], right[used] / count[used]
    share = count[used] / max(len(target), 1)
    error = float((share * np.abs(mean - accuracy)).sum())
    sure = confidence.mean() > correct.mean()
    side = "surer than it should be" if sure else "less sure than it could be"
    figure = Figure(
        plots.reliability(mean, accuracy, share),
        caption="Dots on the line are well calibrated; a dot's area is the share of "
        f"samples in its bin, {evaluation.split} split.",
        alt="Reliability diagram",
    )
    return Section(
        "Calibration",
        f"Expected calibration error {number(error)}; mean confidence "
        f"{number(float(confidence.mean()))}, accuracy "
        f"{number(float(correct.mean()))}: the model is {side}.",
        figures=(figure,),
    )


def predicted_against_true(evaluation: Evaluation) -> Section:
    """Predicted against true values, the residuals, and the largest errors.

    Reads ``target`` and ``prediction``, (samples,) or (samples, 1), in the unit of the
    target.
    """
    target = _output(evaluation, "target").astype(float).reshape(-1)
    prediction = _output(evaluation, "prediction").astype(float).reshape(-1)
    residual = prediction - target
    spread = float(((target - target.mean()) ** 2).sum())
    explained = 1 - float((residual**2).sum()) / spread if spread else math.nan
    summary = Table(
        ("residuals (predicted − true)", "value"),
        (
            ("mean (bias)", float(residual.mean())),
            ("standard deviation", float(residual.std())),
            ("mean absolute error", float(np.abs(residual).mean())),
            ("root mean squared error", float(np.sqrt((residual**2).mean()))),
            ("median absolute error", float(np.median(np.abs(residual)))),
            ("coefficient of determination R²", explained),
        ),
    )
    figure = Figure(
        plots.scatter(target, prediction),
        caption=f"Each dot is a sample of the {evaluation.split} split.",
        alt="Predicted against true values",
    )
    largest = _sample_table(
        evaluation,
        np.argsort(-np.abs(residual), kind="stable"),
        {"true": target, "predicted": prediction, "error": residual},
        f"largest errors of {counted(len(target), 'sample')}",
    )
    return Section(
        "Predicted against true", tables=(summary, largest), figures=(figure,)
    )
