"""Metrics of medical images: by case on the original grid, and of classification.

A segmentation metric is a mean over cases of the mean over foreground classes; the
conventions for empty masks are those of :mod:`headstart_medical.measures`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from scipy.stats import rankdata

from headstart_medical.measures import (
    INPUTS,
    as_array,
    lesions,
    mean_known,
    overlap,
    surfaces,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from headstart_medical.measures import Measure

    Metric = TypeVar("Metric")
    Factory = Callable[[Mapping[str, Any]], Metric]
    Score = Callable[[np.ndarray, np.ndarray], np.ndarray]
    Scores = Callable[[Mapping[str, Any], Mapping[str, Any]], np.ndarray]

SPECIFICITY = 0.95


class CaseMean:
    """Mean over cases of a score of each; cases whose score is NaN do not count.

    Args:
        score: Of one case, from its prediction, its truth and its spacing.
    """

    def __init__(self, score: Callable[..., float]) -> None:
        self.score = score
        self.values: list[float] = []

    def update(self, *outputs: Sequence[Any]) -> None:
        """Add cases: masks (x, y, z) of each, the true ones, spacing (cases, 3)."""
        self.values += [self.score(*case) for case in zip(*outputs, strict=True)]

    def compute(self) -> float:
        """The mean; NaN where no case counts."""
        return mean_known(self.values)

    def reset(self) -> None:
        """Forget all cases."""
        self.values = []


class OfAll:
    """A score of all samples together, from probabilities and true classes.

    Args:
        score: From (samples, classes) and (samples,) to a number.
    """

    def __init__(self, score: Callable[[np.ndarray, np.ndarray], float]) -> None:
        self.score = score
        self.reset()

    def update(self, probabilities: Any, target: Any) -> None:
        """Add samples: float (batch, classes), int (batch,)."""
        self.probabilities.append(as_array(probabilities))
        self.target.append(as_array(target))

    def compute(self) -> float:
        """The score."""
        return self.score(
            np.concatenate(self.probabilities), np.concatenate(self.target)
        )

    def reset(self) -> None:
        """Forget all samples."""
        self.probabilities: list[np.ndarray] = []
        self.target: list[np.ndarray] = []


class Ratio:
    """A sum as a part of another."""

    def __init__(self) -> None:
        self.reset()

    def update(self, above: Any, below: Any) -> None:
        """Add samples, (batch,) each."""
        self.sums += [as_array(part).sum(dtype=float) for part in (above, below)]

    def compute(self) -> float:
        """The ratio; NaN where there is nothing to divide by."""
        above, below = self.sums
        return float(above / below) if below else float("nan")

    def reset(self) -> None:
        """Forget all samples."""
        self.sums = np.zeros(2)


def area_under_curve(scores: np.ndarray, positive: np.ndarray) -> float:
    """Area under the ROC curve, ties counted half (Mann and Whitney 1947).

    Args:
        scores: (samples,), higher says positive.
        positive: Whether it is, bool (samples,).

    Returns:
        NaN where all or none are.
    """
    hits = int(positive.sum())
    misses = len(positive) - hits
    if not (hits and misses):
        return float("nan")
    ranks = rankdata(scores)[positive].sum()
    return float((ranks - hits * (hits + 1) / 2) / (hits * misses))


def sensitivity_at(
    scores: np.ndarray, positive: np.ndarray, specificity: float = SPECIFICITY
) -> float:
    """Highest sensitivity of a threshold whose specificity is at least so high.

    The threshold is chosen on these samples, as the ROC curve has it.

    Args:
        scores: (samples,), higher says positive.
        positive: Whether it is, bool (samples,).
        specificity: Share of the others that must stay below the threshold.

    Returns:
        NaN where all or none are positive.
    """
    others = np.sort(scores[~positive])
    if not (len(others) and positive.any()):
        return float("nan")
    # So many of the others may be called positive; the next one may not.
    allowed = int(np.floor((1 - specificity) * len(others) + 1e-9))
    bound = others[len(others) - 1 - allowed]
    return float((scores[positive] > bound).mean())


def mean_auroc(probabilities: np.ndarray, target: np.ndarray) -> float:
    """Mean over classes of the area under the curve of each against the rest."""
    columns = enumerate(probabilities.T)
    return mean_known([area_under_curve(p, target == k) for k, p in columns])


def mean_sensitivity(probabilities: np.ndarray, target: np.ndarray) -> float:
    """Of two classes that of the second, of more the mean of each against the rest."""
    first = 1 if probabilities.shape[1] == 2 else 0
    columns = list(enumerate(probabilities.T))[first:]
    return mean_known([sensitivity_at(p, target == k) for k, p in columns])


def brier_by_sample(probabilities: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Half the squared distance from what is true, (samples,), 0 to 1 (Brier 1950).

    Halved, so that of two classes it is the usual squared error of one of them.
    """
    true = np.arange(probabilities.shape[1]) == target[:, None]
    halves: np.ndarray = ((probabilities - true) ** 2).sum(1) / 2
    return halves


def right_by_sample(probabilities: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Whether the likeliest class is the right one, float64 (samples,)."""
    right: np.ndarray = (probabilities.argmax(1) == target).astype(float)
    return right


def case_score(name: str, values: np.ndarray) -> float:
    """One number for a case, from those of its foreground classes."""
    return float(values.sum()) if name == "false-lesions" else mean_known(values)


def _of_cases(name: str, measure: Measure) -> tuple[Factory[CaseMean], Scores]:
    """A metric of masks, and each case's share in it."""

    def factory(task: Mapping[str, Any]) -> CaseMean:
        classes = len(task["labels"])

        def score(found: Any, true: Any, spacing: Any) -> float:
            return case_score(name, measure(found, true, spacing, classes)[name])

        return CaseMean(score)

    def scores(task: Mapping[str, Any], outputs: Mapping[str, Any]) -> np.ndarray:
        metric = factory(task)
        metric.update(*(outputs[key] for key in INPUTS))
        return np.array(metric.values)

    return factory, scores


def _of_samples(share: Score) -> tuple[Factory[OfAll], Scores]:
    """A metric of probabilities that is a mean over samples, and each one's share."""

    def factory(task: Mapping[str, Any]) -> OfAll:
        return OfAll(lambda found, target: float(share(found, target).mean()))

    def scores(task: Mapping[str, Any], outputs: Mapping[str, Any]) -> np.ndarray:
        return share(*(as_array(outputs[key]) for key in ("probabilities", "target")))

    return factory, scores


dice, dice_scores = _of_cases("dice", overlap)
volume_error, volume_error_scores = _of_cases("volume-error", overlap)
relative_volume_error, relative_volume_error_scores = _of_cases(
    "relative-volume-error", overlap
)
hd95, hd95_scores = _of_cases("hd95", surfaces)
asd, asd_scores = _of_cases("asd", surfaces)
lesion_f1, lesion_f1_scores = _of_cases("lesion-f1", lesions)
lesion_recall, lesion_recall_scores = _of_cases("lesion-recall", lesions)
false_lesions, false_lesions_scores = _of_cases("false-lesions", lesions)
brier, brier_scores = _of_samples(brier_by_sample)
accuracy, accuracy_scores = _of_samples(right_by_sample)


def auroc(task: Mapping[str, Any]) -> OfAll:
    """Area under the ROC curve, mean over the labels, each against the rest."""
    return OfAll(mean_auroc)


def sensitivity_at_95(task: Mapping[str, Any]) -> OfAll:
    """Sensitivity at a specificity of at least .95; of two labels the second counts."""
    return OfAll(mean_sensitivity)


def reconstruction_error(task: Mapping[str, Any]) -> CaseMean:
    """Mean absolute error of what was hidden, in the network's units of intensity."""
    return CaseMean(float)


def reconstruction_error_scores(
    task: Mapping[str, Any], outputs: Mapping[str, Any]
) -> np.ndarray:
    """Each sample's error."""
    return as_array(outputs["error"]).astype(float)


def relative_error(task: Mapping[str, Any]) -> Ratio:
    """That error as a part of the one of a blank: 1 is no better than the mean."""
    return Ratio()


def relative_error_scores(
    task: Mapping[str, Any], outputs: Mapping[str, Any]
) -> np.ndarray:
    """Each sample's error and its blank's, (samples, 2)."""
    pair = [as_array(outputs[key]).astype(float) for key in ("error", "blank")]
    return np.stack(pair, axis=1)


def sample_outputs(task: Mapping[str, Any], batch_size: int) -> dict[str, Any]:
    """Outputs as this task's head gives them, for tests; seeded, not all right.

    Of segmentation: one case in four has nothing to find, in another nothing is found.
    """
    generator = torch.Generator().manual_seed(batch_size)
    labels = len(task.get("labels", ()))
    if task["kind"] == "single-label":
        logits = torch.randn(batch_size, labels, generator=generator)
        probabilities = logits.softmax(-1)
        return {
            "probabilities": probabilities,
            "prediction": probabilities.argmax(-1),
            "target": torch.arange(batch_size) % labels,
        }
    if task["kind"] == "reconstruction":
        blank = 0.5 + torch.rand(batch_size, generator=generator)
        return {"error": blank * torch.linspace(0.2, 1.1, batch_size), "blank": blank}
    outputs: dict[str, Any] = {"prediction": [], "target": []}
    for index in range(batch_size):
        true = np.zeros((12, 10 + index % 2, 8), dtype=np.uint8)
        found = true.copy()
        for value in range(1, labels):
            left, shift = (
                2 + 3 * (value - 1),
                int(torch.randint(3, (), generator=generator)),
            )
            if index % 4 != 3:
                true[left : left + 3, 2:6, 2:5] = value
            if index % 4 != 2:
                found[left : left + 3, 2 + shift : 6 + shift, 3:6] = value
        outputs["target"].append(true)
        outputs["prediction"].append(found)
    sides = torch.tensor([1.0, 0.8, 2.5]).repeat(batch_size, 1)
    return {**outputs, "spacing": sides}
