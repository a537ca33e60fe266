"""Accuracy, written out: what a metric is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor


class Accuracy:
    """Share of right predictions."""

    def __init__(self) -> None:
        self.right = self.count = 0

    def update(self, prediction: Tensor, target: Tensor) -> None:
        self.right += int((prediction == target).sum())
        self.count += len(target)

    def compute(self) -> float:
        return self.right / self.count

    def reset(self) -> None:
        self.right = self.count = 0


def build_accuracy(task: Mapping[str, Any]) -> Accuracy:
    return Accuracy()


def sample_outputs(task: Mapping[str, Any], batch_size: int) -> dict[str, Tensor]:
    """Predictions of which some are right."""
    target = torch.arange(batch_size) % 2
    return {"prediction": torch.arange(batch_size) % 3 % 2, "target": target}
