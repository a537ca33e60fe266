"""The toy network as stages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from headstart.specs import Feature
from headstart.stages import Backbone

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from headstart.stages import State
    from headstart.testing.toy.settings import NetworkSettings


class Layer(nn.Module):
    """Linear, batch normalisation, ReLU, dropout."""

    def __init__(self, source: str, inputs: int, outputs: int, dropout: float) -> None:
        super().__init__()
        self.source = source
        self.linear = nn.Linear(inputs, outputs)
        self.norm = nn.BatchNorm1d(outputs)
        self.dropout = nn.Dropout(dropout)

    def forward(self, state: State) -> State:
        hidden = torch.relu(self.norm(self.linear(state[self.source])))
        return {**state, "hidden": self.dropout(hidden)}


def build_network(
    settings: NetworkSettings, folder: Path | None, task: Mapping[str, Any]
) -> Backbone:
    """Three layers; ``points`` (batch, 2) to ``hidden`` (batch, width)."""
    width, dropout = settings.width, settings.dropout
    return Backbone(
        {
            "first": Layer("points", 2, width, dropout),
            "second": Layer("hidden", width, width, dropout),
            "third": Layer("hidden", width, width, dropout),
        },
        features=[Feature("hidden", "vector", width)],
        consumed=("points",),
        upstream={
            "stages.first.": "0.",
            "stages.second.": "1.",
            "stages.third.": "2.",
        },
    )


def sample_points(backbone: Backbone) -> State:
    """Five points, always the same."""
    return {"points": torch.linspace(-1, 1, 10).reshape(5, 2)}


def reference_network(backbone: Backbone, state: State) -> dict[str, Tensor]:
    """The same network written as one ``nn.Sequential``, in evaluation mode."""
    layers: list[nn.Module] = []
    for stage in backbone.stages.values():
        assert isinstance(stage, Layer)
        layers += [stage.linear, stage.norm, nn.ReLU()]
    return {"hidden": nn.Sequential(*layers).eval()(state["points"])}
