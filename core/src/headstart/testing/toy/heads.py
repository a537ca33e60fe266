"""The toy classifier."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from headstart.heads import Head

if TYPE_CHECKING:
    from collections.abc import Mapping

    from headstart.settings import HeadSettings
    from headstart.specs import Feature
    from headstart.stages import State


class Classifier(Head):
    def __init__(self, width: int, labels: list[str]) -> None:
        super().__init__()
        self.labels = labels
        self.linear = nn.Linear(width, len(labels))

    def forward(self, state: State) -> State:
        return {**state, "logits": self.linear(state["hidden"])}

    def loss(self, state: State) -> Tensor:
        return functional.cross_entropy(state["logits"].float(), state["labels"])

    def weight(self, batch: State) -> Tensor:
        labels: Tensor = batch["labels"]
        return torch.full((), float(len(labels)), device=labels.device)

    def outputs(self, state: State) -> dict[str, Any]:
        probabilities = state["logits"].float().softmax(-1)
        rows = {
            "probabilities": probabilities,
            "prediction": probabilities.argmax(-1),
        }
        return rows | ({"target": state["labels"]} if "labels" in state else {})

    def decode(self, outputs: dict[str, Any]) -> list[dict[str, Any]]:
        return [
            {"label": self.labels[row], "probability": float(scores[row])}
            for row, scores in zip(
                outputs["prediction"].tolist(), outputs["probabilities"], strict=True
            )
        ]


def build_classifier(
    settings: HeadSettings, features: Mapping[str, Feature], task: Mapping[str, Any]
) -> Classifier:
    """A linear classifier on ``hidden``."""
    width = features["hidden"].channels
    assert width is not None
    return Classifier(width, list(task["labels"]))


def sample_labels(task: Mapping[str, Any], batch_size: int) -> State:
    """Labels that occur in turn."""
    return {"labels": torch.arange(batch_size) % len(task["labels"])}
