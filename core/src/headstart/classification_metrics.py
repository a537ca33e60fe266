"""Metrics of labels: torchmetrics, which plugins with such heads depend on.

What heads give is known to be valid, so torchmetrics does not validate it: that would
wait for the device at every batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
    MultilabelExactMatch,
    MultilabelF1Score,
)
from torchmetrics.functional.classification import binary_auroc
from torchmetrics.metric import Metric
from torchmetrics.utilities import dim_zero_cat

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor


class MatthewsCorrelation(MulticlassConfusionMatrix):
    """Correlation of predicted and true classes (Gorodkin 2004), from their counts.

    0 when all predictions, or all targets, are of one class: there is nothing to
    correlate. torchmetrics' own gives a constant prediction on unbalanced data
    nearly 1.
    """

    def compute(self) -> Tensor:
        counts = self.confmat.double()
        true, predicted, total = counts.sum(1), counts.sum(0), counts.sum()
        agreement = counts.trace() * total - true @ predicted
        spread = (total**2 - true @ true) * (total**2 - predicted @ predicted)
        return torch.where(spread > 0, agreement / spread.clamp(min=1).sqrt(), 0.0)


class MacroAUROC(Metric):
    """Mean over classes of the area under the ROC curve, each class against the rest.

    Classes that are in all or in none of the samples have no curve and are left out
    (torchmetrics' own multi-class AUROC counts them as 0); not a number when no class
    is left. With two classes it is the usual binary AUROC.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    probabilities: list[Tensor]
    target: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("probabilities", [], dist_reduce_fx="cat")
        self.add_state("target", [], dist_reduce_fx="cat")

    def update(self, probabilities: Tensor, target: Tensor) -> None:
        """Add a batch.

        Args:
            probabilities: (batch, classes).
            target: Class indices (batch), or 0 and 1 (batch, classes).
        """
        self.probabilities.append(probabilities.detach())
        self.target.append(target.detach())

    def compute(self) -> Tensor:
        """The mean, a scalar."""
        probabilities = dim_zero_cat(self.probabilities)
        target = dim_zero_cat(self.target)
        classes = probabilities.shape[1]
        if target.ndim == 1:
            target = target[:, None] == torch.arange(classes, device=target.device)
        positives = target.bool().sum(0)
        areas = [
            binary_auroc(probabilities[:, i], target[:, i].long(), validate_args=False)
            for i in range(classes)
            if 0 < positives[i] < len(target)
        ]
        if not areas:
            return torch.tensor(torch.nan, device=target.device)
        return torch.stack(areas).mean()


def accuracy(task: Mapping[str, Any]) -> Metric:
    """Share of samples with the right label; reads ``prediction`` and ``target``."""
    return MulticlassAccuracy(len(task["labels"]), average="micro", validate_args=False)


def top_5(task: Mapping[str, Any]) -> Metric:
    """Share of samples whose label is among the five likeliest.

    Reads ``probabilities`` and ``target``. With five classes or fewer it is always 1.
    """
    classes = len(task["labels"])
    return MulticlassAccuracy(
        classes, average="micro", top_k=min(5, classes), validate_args=False
    )


def macro_f1(task: Mapping[str, Any]) -> Metric:
    """Mean of the labels' F1; reads ``prediction`` and ``target``.

    Of single labels, one that is neither there nor predicted does not count.
    """
    kind = MultilabelF1Score if task["kind"] == "multi-label" else MulticlassF1Score
    return kind(len(task["labels"]), average="macro", validate_args=False)


def mcc(task: Mapping[str, Any]) -> Metric:
    """Matthews correlation coefficient, -1 to 1; 0 is no better than chance.

    Reads ``prediction`` and ``target``.
    """
    return MatthewsCorrelation(len(task["labels"]), validate_args=False)


def auroc(task: Mapping[str, Any]) -> Metric:
    """Area under the ROC curve, mean over the labels.

    Reads ``probabilities`` and ``target``.
    """
    return MacroAUROC()


def exact_match(task: Mapping[str, Any]) -> Metric:
    """Share of samples whose labels are all right; reads ``prediction``, ``target``."""
    return MultilabelExactMatch(len(task["labels"]), validate_args=False)
