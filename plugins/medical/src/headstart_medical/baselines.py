"""What simple methods without transfer reach on segmentation and classification."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy import ndimage, stats

from headstart.data import Baseline
from headstart_medical.measures import lesions_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

SKULL = 15.0
"""mm; so far below the surface of a head its brain begins, roughly."""
BINS = 256
PERCENTILES = (1, 5, 25, 50, 75, 95, 99)
ITERATIONS = 1000


def segmentation_baselines(
    cases: Iterable[tuple[np.ndarray, np.ndarray, Sequence[float]]],
    task: Mapping[str, Any],
) -> Iterator[Baseline]:
    """Everything background; and the largest bright part, found by thresholds.

    Args:
        cases: Of the test split in order, each on its original grid: the first channel
            (x, y, z), the true mask uint8 (x, y, z), the spacing in mm (3,).
        task: ``labels``, and ``counts`` of their voxels: the bright part is said to be
            of the foreground class that has most.
    """
    counts = task.get("counts", ())[1:]
    value = 1 + int(np.argmax(counts)) if len(counts) else 1
    target, bright, spacings = [], [], []
    for image, truth, spacing in cases:
        target.append(truth)
        bright.append(bright_part(image, spacing).astype(np.uint8) * value)
        spacings.append([float(side) for side in spacing])
    shared = {"target": target, "spacing": torch.tensor(spacings)}
    nothing = [np.zeros_like(mask) for mask in bright]
    yield Baseline("everything background", {"prediction": nothing, **shared})
    name = f"largest bright part (Otsu), as {task['labels'][value]}"
    yield Baseline(name, {"prediction": bright, **shared})


def bright_part(image: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """The largest bright component deep inside a body, bool (x, y, z).

    The body is what is above Otsu's threshold (1979), its largest component without
    holes; a second threshold parts what lies deeper than the skull.
    """
    image = np.nan_to_num(np.asarray(image, dtype=np.float32))
    body = _largest(image > otsu(image))
    # Slice by slice: the cuts at both ends of a scan are open.
    for index in range(body.shape[-1]):
        body[..., index] = ndimage.binary_fill_holes(body[..., index])
    if not body.any():
        return body
    depth = ndimage.distance_transform_edt(body, sampling=spacing)
    inside = depth > min(SKULL, float(depth.max()) / 2)
    return _largest(inside & (image > otsu(image[inside])))


def otsu(values: np.ndarray) -> float:
    """The threshold that parts values into two groups as different as can be.

    Nothing is above that of equal values.
    """
    counts, edges = np.histogram(values, BINS)
    filled = np.flatnonzero(counts)
    if len(filled) < 2:
        return float(values.max())
    middles = (edges[:-1] + edges[1:]) / 2
    # Between the first and the last bin that hold something both groups do.
    places = np.arange(filled[0], filled[-1])
    below, sums = np.cumsum(counts), np.cumsum(counts * middles)
    above = below[-1] - below[places]
    means = sums[places] / below[places], (sums[-1] - sums[places]) / above
    apart = below[places] * above * (means[0] - means[1]) ** 2
    return float(edges[1 + places[apart.argmax()]])


def _largest(mask: np.ndarray) -> np.ndarray:
    numbered, count = lesions_of(mask)
    if not count:
        return mask
    largest: np.ndarray = numbered == np.bincount(numbered[mask]).argmax()
    return largest


def classification_baselines(
    train: Iterable[np.ndarray],
    train_labels: Sequence[int] | np.ndarray,
    test: Iterable[np.ndarray],
    test_labels: Sequence[int] | np.ndarray,
    task: Mapping[str, Any],
) -> Iterator[Baseline]:
    """The most frequent label; and logistic regression on statistics of intensity.

    Args:
        train: Volumes or slices of the training split, (channels, ...), in order.
        train_labels: Their class indices.
        test: The same of the test split.
        test_labels: Their class indices.
        task: ``labels``.

    Nothing where there is no training split.
    """
    if not len(train_labels):
        return
    known, truth = np.asarray(train_labels), np.asarray(test_labels)
    counts = np.bincount(known, minlength=len(task["labels"]))
    shares = np.tile(counts / len(known), (len(truth), 1))
    yield Baseline("majority class", _outputs(shares, truth))
    if np.count_nonzero(counts) > 1:
        seen, unseen = (np.stack([*map(statistics, some)]) for some in (train, test))
        found = np.zeros(shares.shape)
        columns, probabilities = _logistic(seen, known, unseen)
        found[:, columns] = probabilities
        name = "intensity statistics + logistic regression"
        yield Baseline(name, _outputs(found, truth))


def statistics(image: np.ndarray) -> np.ndarray:
    """Mean, deviation, skewness and percentiles of each channel, (channels * 10,)."""
    rows = np.nan_to_num(np.asarray(image, dtype=np.float64)).reshape(len(image), -1)
    with warnings.catch_warnings():
        # Of a constant channel there is none; it counts 0.
        warnings.simplefilter("ignore", RuntimeWarning)
        skew = np.nan_to_num(stats.skew(rows, axis=1))
    parts = (rows.mean(1), rows.std(1), skew, *np.percentile(rows, PERCENTILES, axis=1))
    return np.stack(parts, axis=1).ravel()


def _logistic(
    seen: np.ndarray, labels: np.ndarray, unseen: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Classes that were seen, and their probabilities (samples, classes seen)."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=ITERATIONS))
    with warnings.catch_warnings():
        # Where it stops short of the optimum, it is as good a baseline.
        warnings.filterwarnings("ignore", message="lbfgs failed to converge")
        model.fit(seen, labels)
    return model.classes_, model.predict_proba(unseen)


def _outputs(probabilities: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    return {
        "probabilities": torch.from_numpy(probabilities).float(),
        "prediction": torch.from_numpy(probabilities.argmax(1)),
        "target": torch.from_numpy(truth),
    }
