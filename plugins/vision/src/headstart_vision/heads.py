"""Heads that read one vector per image: classification."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headstart.classification import MultiLabelHead, SingleLabelHead
from headstart.errors import UserError
from headstart.heads import Head

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from headstart.report.parts import Evaluation, Section
    from headstart.specs import Feature
    from headstart.stages import State
    from headstart_vision.settings import ImageHeadSettings

SHOWN = 5


class ImageHead(Head):
    """Pools an image's last map into one vector and maps it to ``logits``.

    Args:
        settings: Pooling, depth, width and dropout.
        feature: What to read, (batch, channels, height, width) or (batch, channels).
        labels: How many logits there are.
    """

    def __init__(
        self, settings: ImageHeadSettings, feature: Feature, labels: int
    ) -> None:
        super().__init__()
        # The core calls factories with features of known width.
        channels = cast("int", feature.channels)
        width = settings.width or channels
        self.reads = (feature.name,)
        self.pooling = settings.pooling if feature.kind == "map" else "none"
        self.grid = settings.grid
        if self.pooling != "none":
            channels *= self.grid**2
        if self.pooling == "mean-max":
            channels *= 2
        steps: list[nn.Module] = [nn.Dropout(settings.dropout)]
        for _ in range(settings.layers - 1):
            steps += [
                nn.Linear(channels, width),
                nn.ReLU(),
                nn.Dropout(settings.dropout),
            ]
            channels = width
        self.layers = nn.Sequential(*steps, nn.Linear(channels, labels))

    @property
    def reduction(self) -> str:
        return f"{self.pooling} of {self.reads[0]} in {self.grid} x {self.grid}"

    def reduce(self, state: State) -> State:
        """Pool to ``pooled`` (batch, channels); all but the labels is left out."""
        kept = {key: state[key] for key in ("labels",) if key in state}
        return {**kept, "pooled": self._pool(state[self.reads[0]])}

    def forward(self, state: State) -> State:
        """Add ``logits``, (batch, labels) float32."""
        return {**state, "logits": self.layers(state["pooled"]).float()}

    def _pool(self, feature: Tensor) -> Tensor:
        """(batch, channels, height, width) to (batch, channels x cells)."""
        if self.pooling == "none":
            return feature
        if self.grid == 1:
            mean, most = (feature.mean, feature.amax)
            pools = {"mean": lambda: mean((-2, -1)), "max": lambda: most((-2, -1))}
        else:
            pools = {
                "mean": lambda: F.adaptive_avg_pool2d(feature, self.grid).flatten(1),
                "max": lambda: F.adaptive_max_pool2d(feature, self.grid).flatten(1),
            }
        return torch.cat([pools[kind]() for kind in self.pooling.split("-")], 1)

    def report(self, evaluation: Evaluation) -> Sequence[Section]:
        from headstart_vision.sections import classification_sections

        sections: Sequence[Section] = classification_sections(evaluation)
        return sections


class Classifier(SingleLabelHead, ImageHead):
    """One label per image, of mixup and CutMix also shares of labels."""

    shown = SHOWN

    def __init__(
        self, settings: ImageHeadSettings, feature: Feature, task: Mapping[str, Any]
    ) -> None:
        super().__init__(settings, feature, len(task["labels"]))
        self.set_labels(settings, task)


class MultiLabel(MultiLabelHead, ImageHead):
    """Any number of labels per image."""

    def __init__(
        self, settings: ImageHeadSettings, feature: Feature, task: Mapping[str, Any]
    ) -> None:
        super().__init__(settings, feature, len(task["labels"]))
        self.set_labels(settings, task)


def build_classifier(
    settings: ImageHeadSettings,
    features: Mapping[str, Feature],
    task: Mapping[str, Any],
) -> Classifier:
    """The head ``vision/classifier``.

    Raises:
        UserError: Nothing to read; class weights that do not fit.
    """
    return Classifier(settings, _last(features), task)


def build_multi_label(
    settings: ImageHeadSettings,
    features: Mapping[str, Feature],
    task: Mapping[str, Any],
) -> MultiLabel:
    """The head ``vision/multi-label``; raises as :func:`build_classifier`."""
    return MultiLabel(settings, _last(features), task)


def _last(features: Mapping[str, Feature]) -> Feature:
    """The deepest map; of a backbone without maps its last vector."""
    for kind in ("map", "vector"):
        found = [feature for feature in features.values() if feature.kind == kind]
        if found:
            return found[-1]
    raise UserError(
        "the backbone leaves neither maps nor vectors in the state",
        where="head.name",
        why=f"it leaves {', '.join(features) or 'nothing'}",
        fix="choose a backbone for images; `headstart list backbones` names them",
    )
