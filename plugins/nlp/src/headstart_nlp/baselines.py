"""What simple methods without transfer reach on a task of texts.

The most frequent answer, and a linear model on tf-idf of words and word pairs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from headstart.data import Baseline

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from headstart_nlp.checks import Rows

INVERSE_PENALTY = 10.0
"""Chosen on validation: the default of 1 costs two points on short texts, and a
baseline should be as good as it simply can be."""


def baselines(
    kind: str,
    train: tuple[Sequence[str], np.ndarray],
    test: tuple[Sequence[str], np.ndarray],
    classes: int = 0,
) -> Iterator[Baseline]:
    """Both baselines of a task.

    Args:
        kind: ``single-label``, ``multi-label`` or ``regression``.
        train: Texts and targets: class indices (rows,), 0/1 (rows, classes), or
            numbers (rows,).
        test: The same of the test split.
        classes: Number of classes.
    """
    texts, targets = train
    test_texts, truth = test
    rows = len(test_texts)
    if kind == "regression":
        mean = np.full(rows, targets.mean())
        yield Baseline("mean of train", _numbers(mean, truth))
        predicted = _ridge(texts, targets, test_texts)
        yield Baseline("tf-idf + ridge regression", _numbers(predicted, truth))
        return
    shares = targets.mean(0)
    if kind == "single-label":
        shares = np.bincount(targets, minlength=classes) / len(targets)
    result = _classes if kind == "single-label" else _labels
    yield Baseline("majority class", result(np.tile(shares, (rows, 1)), truth))
    probabilities = _logistic(texts, targets, test_texts, classes)
    yield Baseline("tf-idf + logistic regression", result(probabilities, truth))


def _classes(probabilities: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    return {
        "probabilities": torch.from_numpy(probabilities).float(),
        "prediction": torch.from_numpy(probabilities.argmax(1)),
        "target": torch.from_numpy(truth),
    }


def _labels(probabilities: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    return {
        "probabilities": torch.from_numpy(probabilities).float(),
        "prediction": torch.from_numpy((probabilities >= 0.5).astype(np.int64)),
        "target": torch.from_numpy(truth),
    }


def _numbers(predicted: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    return {
        "prediction": torch.from_numpy(predicted).float(),
        "target": torch.from_numpy(truth),
    }


def _tf_idf(texts: Sequence[str], test_texts: Sequence[str]) -> tuple[Any, Any]:
    from sklearn.feature_extraction.text import TfidfVectorizer

    # The default pattern drops words of one letter, "I" and "a" among them.
    vectorizer = TfidfVectorizer(
        ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\b\w+\b"
    )
    return vectorizer.fit_transform(texts), vectorizer.transform(test_texts)


def _logistic(
    texts: Sequence[str],
    targets: np.ndarray,
    test_texts: Sequence[str],
    classes: int,
) -> np.ndarray:
    """Probabilities (rows, classes); one against the rest for several labels."""
    from sklearn.linear_model import LogisticRegression

    known, unknown = _tf_idf(texts, test_texts)
    if targets.ndim == 1:
        found = np.zeros((len(test_texts), classes))
        model = LogisticRegression(C=INVERSE_PENALTY, max_iter=1000).fit(known, targets)
        found[:, model.classes_] = model.predict_proba(unknown)
        return found
    columns = []
    for label in targets.T:
        if label.min() == label.max():  # nothing to tell apart
            columns.append(np.full(len(test_texts), float(label[0])))
            continue
        model = LogisticRegression(C=INVERSE_PENALTY, max_iter=1000).fit(known, label)
        columns.append(model.predict_proba(unknown)[:, 1])
    return np.stack(columns, axis=1)


def _ridge(
    texts: Sequence[str], targets: np.ndarray, test_texts: Sequence[str]
) -> np.ndarray:
    from sklearn.linear_model import Ridge

    known, unknown = _tf_idf(texts, test_texts)
    predicted: np.ndarray = Ridge().fit(known, targets).predict(unknown)
    return predicted


def joined(rows: Rows) -> list[str]:
    """Texts, each with its second one behind it."""
    if not rows.pairs:
        return rows.texts
    return [" ".join(both) for both in zip(rows.texts, rows.pairs, strict=True)]
