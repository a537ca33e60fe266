"""Metrics of values: torchmetrics."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch
from torchmetrics import MeanAbsoluteError, MeanSquaredError, SpearmanCorrCoef

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torchmetrics.metric import Metric


def mean_absolute_error(task: Mapping[str, Any]) -> Metric:
    """Mean distance from the true value, in the data's unit."""
    return MeanAbsoluteError()


def root_mean_squared_error(task: Mapping[str, Any]) -> Metric:
    """Root of the mean squared distance from the true value, in the data's unit."""
    return MeanSquaredError(squared=False)


def spearman(task: Mapping[str, Any]) -> Metric:
    """Spearman's rank correlation with the true values."""
    with warnings.catch_warnings():
        # It says that it keeps every value; a rank correlation has to.
        warnings.simplefilter("ignore", UserWarning)
        return SpearmanCorrCoef()


def sample_outputs(task: Mapping[str, Any], batch_size: int) -> dict[str, Any]:
    """Outputs as a regression gives them, for tests; seeded, not all right."""
    generator = torch.Generator().manual_seed(batch_size)
    rows = torch.arange(batch_size)
    noise = torch.randn(batch_size, generator=generator)
    return {"prediction": rows + noise, "target": rows.float()}
