"""Metrics of medical images: by case on the original grid, and of classification.

A segmentation metric is a mean over cases of the mean over foreground classes; the
conventions for empty masks are those of :mod:`headstart_medical.measures`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.stats import rankdata

from headstart.errors import UserError
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

    Score = Callable[[np.ndarray, np.ndarray], np.ndarray]

SPECIFICITY = 0.95

_MEASURES = {
    "dice": overlap,
    "hd95": surfaces,
    "asd": surfaces,
    "volume-error": overlap,
    "relative-volume-error": overlap,
    "lesion-f1": lesions,
    "lesion-recall": lesions,
    "false-lesions": lesions,
}
OF_KIND = {
    "volume-segmentation": tuple(_MEASURES),
    "single-label": ("auroc", "sensitivity-at-95", "brier", "accuracy"),
    "reconstruction": ("reconstruction-error", "relative-error"),
}


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


def dice(task: Mapping[str, Any]) -> CaseMean:
    """Overlap: twice what both have, as a part of what either has."""
    return _case_mean("dice", task)


def hd95(task: Mapping[str, Any]) -> CaseMean:
    """Hausdorff distance between the surfaces, 95th percentile, mm."""
    return _case_mean("hd95", task)


def asd(task: Mapping[str, Any]) -> CaseMean:
    """Average symmetric distance between the surfaces, mm."""
    return _case_mean("asd", task)


def volume_error(task: Mapping[str, Any]) -> CaseMean:
    """How much the volume is off, ml."""
    return _case_mean("volume-error", task)


def relative_volume_error(task: Mapping[str, Any]) -> CaseMean:
    """How much the volume is off, as a part of the true one."""
    return _case_mean("relative-volume-error", task)


def lesion_f1(task: Mapping[str, Any]) -> CaseMean:
    """F1 of whole lesions, not of voxels."""
    return _case_mean("lesion-f1", task)


def lesion_recall(task: Mapping[str, Any]) -> CaseMean:
    """Share of the true lesions that are found."""
    return _case_mean("lesion-recall", task)


def false_lesions(task: Mapping[str, Any]) -> CaseMean:
    """Predicted lesions that are none, per case: their sum over the classes."""
    return _case_mean("false-lesions", task)


def auroc(task: Mapping[str, Any]) -> OfAll:
    """Area under the ROC curve, mean over the labels, each against the rest."""
    _check("auroc", task)
    return OfAll(mean_auroc)


def sensitivity_at_95(task: Mapping[str, Any]) -> OfAll:
    """Sensitivity at a specificity of at least .95; of two labels the second counts."""
    _check("sensitivity-at-95", task)
    return OfAll(mean_sensitivity)


def brier(task: Mapping[str, Any]) -> OfAll:
    """Brier score: how far probabilities are from what is true, 0 to 1."""
    _check("brier", task)
    return OfAll(
        lambda probabilities, target: _mean(brier_by_sample, probabilities, target)
    )


def accuracy(task: Mapping[str, Any]) -> OfAll:
    """Share of samples with the right label."""
    _check("accuracy", task)
    return OfAll(
        lambda probabilities, target: _mean(right_by_sample, probabilities, target)
    )


def reconstruction_error(task: Mapping[str, Any]) -> CaseMean:
    """Mean absolute error of what was hidden, in the network's units of intensity."""
    _check("reconstruction-error", task)
    return CaseMean(float)


def relative_error(task: Mapping[str, Any]) -> Ratio:
    """That error as a part of the one of a blank: 1 is no better than the mean."""
    _check("relative-error", task)
    return Ratio()


def right_by_sample(probabilities: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Whether the likeliest class is the right one, float64 (samples,)."""
    right: np.ndarray = (probabilities.argmax(1) == target).astype(float)
    return right


def dice_scores(task: Mapping[str, Any], outputs: Mapping[str, Any]) -> np.ndarray:
    """Each case's Dice."""
    return _scores("dice", task, outputs)


def hd95_scores(task: Mapping[str, Any], outputs: Mapping[str, Any]) -> np.ndarray:
    """Each case's 95th percentile of the distances, mm."""
    return _scores("hd95", task, outputs)


def asd_scores(task: Mapping[str, Any], outputs: Mapping[str, Any]) -> np.ndarray:
    """Each case's mean distance, mm."""
    return _scores("asd", task, outputs)


def volume_error_scores(
    task: Mapping[str, Any], outputs: Mapping[str, Any]
) -> np.ndarray:
    """Each case's error, ml."""
    return _scores("volume-error", task, outputs)


def relative_volume_error_scores(
    task: Mapping[str, Any], outputs: Mapping[str, Any]
) -> np.ndarray:
    """Each case's error as a part of its true volume."""
    return _scores("relative-volume-error", task, outputs)


def lesion_f1_scores(task: Mapping[str, Any], outputs: Mapping[str, Any]) -> np.ndarray:
    """Each case's F1 of lesions."""
    return _scores("lesion-f1", task, outputs)


def lesion_recall_scores(
    task: Mapping[str, Any], outputs: Mapping[str, Any]
) -> np.ndarray:
    """Each case's share of lesions that are found."""
    return _scores("lesion-recall", task, outputs)


def false_lesions_scores(
    task: Mapping[str, Any], outputs: Mapping[str, Any]
) -> np.ndarray:
    """Each case's number of false lesions."""
    return _scores("false-lesions", task, outputs)


def brier_scores(task: Mapping[str, Any], outputs: Mapping[str, Any]) -> np.ndarray:
    """Each sample's part of the Brier score."""
    return brier_by_sample(*_classified(outputs))


def accuracy_scores(task: Mapping[str, Any], outputs: Mapping[str, Any]) -> np.ndarray:
    """1 for each sample that is right, else 0."""
    return right_by_sample(*_classified(outputs))


def reconstruction_error_scores(
    task: Mapping[str, Any], outputs: Mapping[str, Any]
) -> np.ndarray:
    """Each sample's error."""
    return as_array(outputs["error"]).astype(float)


def relative_error_scores(
    task: Mapping[str, Any], outputs: Mapping[str, Any]
) -> np.ndarray:
    """Each sample's error and its blank's, (samples, 2)."""
    pair = [as_array(outputs[key]).astype(float) for key in ("error", "blank")]
    return np.stack(pair, axis=1)


def case_score(name: str, values: np.ndarray) -> float:
    """One number for a case, from those of its foreground classes."""
    return float(values.sum()) if name == "false-lesions" else mean_known(values)


def _case_mean(name: str, task: Mapping[str, Any]) -> CaseMean:
    _check(name, task)
    measure, classes = _MEASURES[name], len(task["labels"])

    def score(found: Any, true: Any, spacing: Any) -> float:
        return case_score(name, measure(found, true, spacing, classes)[name])

    return CaseMean(score)


def _scores(
    name: str, task: Mapping[str, Any], outputs: Mapping[str, Any]
) -> np.ndarray:
    metric = _case_mean(name, task)
    metric.update(*(outputs[key] for key in INPUTS))
    return np.array(metric.values)


def _classified(outputs: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    return as_array(outputs["probabilities"]), as_array(outputs["target"])


def _mean(score: Score, probabilities: np.ndarray, target: np.ndarray) -> float:
    return float(score(probabilities, target).mean())


def _check(name: str, task: Mapping[str, Any]) -> None:
    kind = task["kind"]
    if name not in OF_KIND.get(kind, ()):
        known = ", ".join(OF_KIND.get(kind, ())) or "loss"
        raise UserError(
            f"the metric {name!r} does not measure {kind} tasks",
            where="metrics.names",
            fix=f"choose from {known}",
        )


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
