"""Heads that read one vector per image: classification."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headstart.class_weights import class_weights
from headstart.errors import UserError
from headstart.heads import Head

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from headstart.report.parts import Evaluation, Section
    from headstart.specs import Feature
    from headstart.stages import State
    from headstart_vision.settings import ImageHeadSettings

HEADS = {
    "single-label": "vision/classifier",
    "multi-label": "vision/multi-label",
    "boxes": "vision/faster-rcnn",
    "instances": "vision/mask-rcnn",
    "semantic": "vision/deeplab",
}
SHOWN = 5


class ImageHead(Head):
    """Pools an image's last map into one vector and maps it to ``logits``.

    Args:
        settings: Pooling, depth, width and dropout.
        feature: What to read, (batch, channels, height, width) or (batch, channels).
        labels: What the logits stand for, in order.
    """

    def __init__(
        self, settings: ImageHeadSettings, feature: Feature, labels: Sequence[str]
    ) -> None:
        super().__init__()
        # The core calls factories with features of known width.
        channels = cast("int", feature.channels)
        width = settings.width or channels
        self.labels = tuple(labels)
        self.label_smoothing = settings.label_smoothing
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
        self.layers = nn.Sequential(*steps, nn.Linear(channels, len(labels)))

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

    def weight(self, batch: State) -> Tensor:
        """Samples in the batch."""
        labels = batch["labels"]
        return torch.full((), float(len(labels)), device=labels.device)

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


class Classifier(ImageHead):
    """One label per image.

    The loss is cross entropy; with class weights its unit is a sample's class weight.
    Labels that mixup or CutMix mixed come as shares, (batch, labels): they count as
    so many parts of a sample of each class, in the loss and in its unit.
    """

    class_weights: Tensor | None

    def __init__(
        self, settings: ImageHeadSettings, feature: Feature, task: Mapping[str, Any]
    ) -> None:
        super().__init__(settings, feature, task["labels"])
        weights = class_weights(settings.class_weights, task["labels"], task["counts"])
        self.register_buffer("class_weights", weights, persistent=False)

    def loss(self, state: State) -> Tensor:
        labels = state["labels"]
        if not labels.is_floating_point():
            return F.cross_entropy(
                state["logits"],
                labels,
                weight=self.class_weights,
                label_smoothing=self.label_smoothing,
            )
        # torch's mean over shares divides by samples, not by their class weights.
        total = F.cross_entropy(
            state["logits"],
            labels.float(),
            weight=self.class_weights,
            label_smoothing=self.label_smoothing,
            reduction="sum",
        )
        return total / self.weight(state)

    def weight(self, batch: State) -> Tensor:
        """Samples in the batch, or the sum of their class weights."""
        if self.class_weights is None:
            return super().weight(batch)
        labels: Tensor = batch["labels"]
        weights = self.class_weights.to(labels.device)
        if labels.is_floating_point():
            return (labels.float() * weights).sum()
        return weights[labels].sum()

    def outputs(self, state: State) -> dict[str, Any]:
        """``probabilities`` (batch, classes), ``prediction`` and ``target`` (batch).

        The target of mixed labels is the label with the largest share.
        """
        probabilities = state["logits"].softmax(-1)
        outputs = {
            "probabilities": probabilities,
            "prediction": probabilities.argmax(-1),
        }
        if "labels" in state:
            labels = state["labels"]
            mixed = labels.is_floating_point()
            outputs["target"] = labels.argmax(-1) if mixed else labels
        return outputs

    def decode(self, outputs: dict[str, Any]) -> list[dict[str, Any]]:
        """``label``, its ``probability``, and the five highest ``probabilities``."""
        return [
            {
                "label": self.labels[prediction],
                "probability": round(probabilities[prediction], 6),
                "probabilities": dict(
                    sorted(
                        _by_label(self.labels, probabilities).items(),
                        key=lambda entry: -entry[1],
                    )[:SHOWN]
                ),
            }
            for probabilities, prediction in zip(
                outputs["probabilities"].tolist(),
                outputs["prediction"].tolist(),
                strict=True,
            )
        ]


class MultiLabel(ImageHead):
    """Any number of labels per image.

    The loss is the mean binary cross entropy over images and labels; class weights
    multiply what a label that is there contributes.
    """

    positive_weights: Tensor | None

    def __init__(
        self, settings: ImageHeadSettings, feature: Feature, task: Mapping[str, Any]
    ) -> None:
        super().__init__(settings, feature, task["labels"])
        weights = class_weights(settings.class_weights, task["labels"], task["counts"])
        self.register_buffer("positive_weights", weights, persistent=False)

    def loss(self, state: State) -> Tensor:
        targets = state["labels"].float()
        # Towards one half, as cross entropy smooths towards equal classes.
        targets = targets * (1 - self.label_smoothing) + self.label_smoothing / 2
        return F.binary_cross_entropy_with_logits(
            state["logits"], targets, pos_weight=self.positive_weights
        )

    def outputs(self, state: State) -> dict[str, Any]:
        """``probabilities``, and ``prediction`` and ``target`` of 0 and 1.

        All (batch, labels); a label is predicted from a probability of .5 on.
        """
        probabilities = state["logits"].sigmoid()
        outputs = {
            "probabilities": probabilities,
            "prediction": (probabilities >= 0.5).long(),
        }
        if "labels" in state:
            outputs["target"] = (state["labels"] >= 0.5).long()
        return outputs

    def decode(self, outputs: dict[str, Any]) -> list[dict[str, Any]]:
        """``labels`` that are there, and the ``probabilities`` of all."""
        return [
            {
                "labels": [
                    label
                    for label, there in zip(self.labels, prediction, strict=True)
                    if there
                ],
                "probabilities": _by_label(self.labels, probabilities),
            }
            for probabilities, prediction in zip(
                outputs["probabilities"].tolist(),
                outputs["prediction"].tolist(),
                strict=True,
            )
        ]


def build_classifier(
    settings: ImageHeadSettings,
    features: Mapping[str, Feature],
    task: Mapping[str, Any],
) -> Classifier:
    """The head ``vision/classifier``.

    Raises:
        UserError: The task is of another kind; nothing to read; class weights that
            do not fit.
    """
    check_kind("single-label", settings.name, task)
    return Classifier(settings, _last(features), task)


def build_multi_label(
    settings: ImageHeadSettings,
    features: Mapping[str, Feature],
    task: Mapping[str, Any],
) -> MultiLabel:
    """The head ``vision/multi-label``; raises as :func:`build_classifier`."""
    check_kind("multi-label", settings.name, task)
    return MultiLabel(settings, _last(features), task)


def sample_targets(task: Mapping[str, Any], batch_size: int) -> State:
    """Valid targets for tests; every label occurs when the batch is large enough."""
    rows, labels = torch.arange(batch_size), len(task["labels"])
    if task["kind"] == "single-label":
        return {"labels": rows % labels}
    return {"labels": ((rows[:, None] + torch.arange(labels)) % 2).float()}


def check_kind(kind: str, head: str, task: Mapping[str, Any]) -> None:
    """Refuse a task of another kind than the head's.

    Raises:
        UserError: Names a head for this kind of task.
    """
    given = task["kind"]
    if given == kind:
        return
    right = HEADS.get(given)
    raise UserError(
        f"the head {head!r} is for {kind} tasks, the data's kind is {given!r}",
        where="head.name",
        fix=f'head.name = "{right}"' if right else f'data.kind = "{kind}"',
    )


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


def _by_label(labels: Sequence[str], values: Sequence[float]) -> dict[str, float]:
    return {label: round(value, 6) for label, value in zip(labels, values, strict=True)}
