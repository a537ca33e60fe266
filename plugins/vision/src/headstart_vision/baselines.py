"""What simple methods without transfer reach on a task of images with labels.

The most frequent answer, and logistic regression on the grey values of small images.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from headstart.data import Baseline
from headstart_vision import images

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from headstart.data import Sample
    from headstart_vision.classification import ImageClassification

SIDE = 32
"""Larger images are made so small."""
ROWS = 5_000
"""Most training images of the linear model, a seeded sample; enough for a baseline."""
FITS = 100_000
"""Most training images times labels, where each label has a model of its own."""
FILES = 20_000
"""With more test images in files, reading them takes longer than the figure is worth:
there is no linear model then."""
ITERATIONS = 300


def baselines(data: ImageClassification) -> Iterator[Baseline]:
    """Both baselines of a loaded data module.

    Their outputs: ``prediction`` (samples,) int64, or 0/1 (samples, labels);
    ``probabilities`` (samples, labels) float32; ``target`` as the data has it.
    """
    train, test = data.targets("train"), data.targets("test")
    shares = train.mean(0)
    if train.ndim == 1:
        counts = np.bincount(train, minlength=len(data.task["labels"]))
        shares = counts / len(train)
    yield Baseline("majority class", _outputs(np.tile(shares, (len(test), 1)), test))
    samples = data.samples("test")
    if len(samples) > FILES and "path" in samples[0]:
        return
    rows = min(len(train), ROWS if train.ndim == 1 else FITS // train.shape[1])
    chosen = np.sort(np.random.default_rng(data.seed).permutation(len(train))[:rows])
    known = data.samples("train")
    side = min(SIDE, max(max(item.size) for item in data.items["train"]))
    seen = _pixels(data, [known[i] for i in chosen.tolist()], side)
    unseen = _pixels(data, samples, side)
    probabilities = _logistic(seen, train[chosen], unseen, len(data.task["labels"]))
    name = "raw pixels + logistic regression"
    if rows < len(train):
        name += f" on {rows:,} images"
    yield Baseline(name, _outputs(probabilities, test))


def _outputs(probabilities: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    single = truth.ndim == 1
    found = probabilities.argmax(1) if single else (probabilities >= 0.5).astype(int)
    return {
        "probabilities": torch.from_numpy(probabilities).float(),
        "prediction": torch.from_numpy(found),
        "target": torch.from_numpy(truth),
    }


def _pixels(
    data: ImageClassification, samples: Sequence[Sample], side: int
) -> np.ndarray:
    """Grey values from 0 to 1, float32 (samples, side x side)."""
    from torchvision.transforms.v2 import functional as F

    def grey(sample: Sample) -> np.ndarray:
        picture = F.rgb_to_grayscale(data.picture(sample))
        small: torch.Tensor = F.resize(picture, [side, side], antialias=True)
        return small.flatten().numpy()

    found = images.in_threads(grey, samples, "reading images for a baseline")
    return np.stack(found).astype(np.float32) / 255


def _logistic(
    seen: np.ndarray, targets: np.ndarray, unseen: np.ndarray, classes: int
) -> np.ndarray:
    """Probabilities (samples, classes); one against the rest for several labels."""
    from sklearn.linear_model import LogisticRegression

    def fit(labels: np.ndarray) -> Any:
        with warnings.catch_warnings():
            # Where it stops short of the optimum, it is as good a baseline.
            warnings.filterwarnings("ignore", message="lbfgs failed to converge")
            return LogisticRegression(max_iter=ITERATIONS).fit(seen, labels)

    found = np.zeros((len(unseen), classes))
    if targets.ndim == 1:
        model = fit(targets)
        found[:, model.classes_] = model.predict_proba(unseen)
        return found
    for column, label in enumerate(targets.T):
        if label.min() == label.max():  # nothing to tell apart
            found[:, column] = label[0]
        else:
            found[:, column] = fit(label).predict_proba(unseen)[:, 1]
    return found
