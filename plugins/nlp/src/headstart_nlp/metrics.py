"""Metrics for texts: torchmetrics, by kind of task.

The head's outputs are known to be valid, so torchmetrics does not validate them: that
would wait for the device at every batch.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch
from torchmetrics import MeanAbsoluteError, MeanSquaredError, SpearmanCorrCoef
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

from headstart.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

OF_KIND = {
    "single-label": ("accuracy", "macro-f1", "mcc", "auroc"),
    "multi-label": ("macro-f1", "auroc", "exact-match"),
    "regression": ("mean-absolute-error", "root-mean-squared-error", "spearman"),
}


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
    """Share of texts with the right label."""
    _check("accuracy", task)
    return MulticlassAccuracy(len(task["labels"]), average="micro", validate_args=False)


def macro_f1(task: Mapping[str, Any]) -> Metric:
    """Mean of the labels' F1; a label neither there nor predicted does not count."""
    _check("macro-f1", task)
    if task["kind"] == "multi-label":
        return MultilabelF1Score(
            len(task["labels"]), average="macro", validate_args=False
        )
    return MulticlassF1Score(len(task["labels"]), average="macro", validate_args=False)


def mcc(task: Mapping[str, Any]) -> Metric:
    """Matthews correlation coefficient, -1 to 1; 0 is no better than chance."""
    _check("mcc", task)
    return MatthewsCorrelation(len(task["labels"]), validate_args=False)


def auroc(task: Mapping[str, Any]) -> Metric:
    """Area under the ROC curve, mean over the labels."""
    _check("auroc", task)
    return MacroAUROC()


def exact_match(task: Mapping[str, Any]) -> Metric:
    """Share of texts whose labels are all right."""
    _check("exact-match", task)
    return MultilabelExactMatch(len(task["labels"]), validate_args=False)


def mean_absolute_error(task: Mapping[str, Any]) -> Metric:
    """Mean distance from the true value, in the data's unit."""
    _check("mean-absolute-error", task)
    return MeanAbsoluteError()


def root_mean_squared_error(task: Mapping[str, Any]) -> Metric:
    """Root of the mean squared distance from the true value, in the data's unit."""
    _check("root-mean-squared-error", task)
    return MeanSquaredError(squared=False)


def spearman(task: Mapping[str, Any]) -> Metric:
    """Spearman's rank correlation with the true values."""
    _check("spearman", task)
    with warnings.catch_warnings():
        # It says that it keeps every value; a rank correlation has to.
        warnings.simplefilter("ignore", UserWarning)
        return SpearmanCorrCoef()


def sample_outputs(task: Mapping[str, Any], batch_size: int) -> dict[str, Any]:
    """Outputs as this task's head gives them, for tests; seeded, not all right."""
    generator = torch.Generator().manual_seed(batch_size)
    rows = torch.arange(batch_size)
    if task["kind"] == "regression":
        noise = torch.randn(batch_size, generator=generator)
        return {"prediction": rows + noise, "target": rows.float()}
    classes = len(task["labels"])
    logits = torch.randn(batch_size, classes, generator=generator)
    if task["kind"] == "single-label":
        probabilities = logits.softmax(-1)
        return {
            "probabilities": probabilities,
            "prediction": probabilities.argmax(-1),
            "target": rows % classes,
        }
    probabilities = logits.sigmoid()
    return {
        "probabilities": probabilities,
        "prediction": (probabilities >= 0.5).long(),
        "target": (rows[:, None] + torch.arange(classes)) % 2,
    }


def _check(name: str, task: Mapping[str, Any]) -> None:
    kind = task["kind"]
    if name not in OF_KIND[kind]:
        raise UserError(
            f"the metric {name!r} does not measure {kind} tasks",
            where="metrics.names",
            fix=f"choose from {', '.join(OF_KIND[kind])}",
        )
