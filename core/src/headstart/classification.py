"""Heads that give labels: what is the same in all domains once there are logits."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from headstart.errors import Fault, UserError, nearest
from headstart.heads import Head

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from headstart.settings import ClassificationSettings
    from headstart.stages import State


class _LabelHead(Head):
    """Labels of samples by ``logits``, (batch, labels) float32, and their weights.

    Attributes:
        labels: What the logits stand for, in order.
        shown: How many probabilities a prediction names, the highest first; ``None``:
            all, in the order of the labels.
    """

    shown: ClassVar[int | None] = None
    class_weights: Tensor | None

    def set_labels(
        self, settings: ClassificationSettings, task: Mapping[str, Any]
    ) -> None:
        """To be called once, behind ``super().__init__``.

        Args:
            settings: Class weights and label smoothing.
            task: ``labels`` in order, and their ``counts`` in train.

        Raises:
            UserError: Class weights that do not fit the labels.
        """
        self.labels = tuple(task["labels"])
        self.label_smoothing = settings.label_smoothing
        weights = class_weights(settings.class_weights, self.labels, task["counts"])
        self.register_buffer("class_weights", weights, persistent=False)

    def weight(self, batch: State) -> Tensor:
        """Samples in the batch."""
        labels = batch["labels"]
        return torch.full((), float(len(labels)), device=labels.device)

    def _rows(self, outputs: Mapping[str, Any]) -> Iterator[tuple[Any, list[float]]]:
        """Prediction and probabilities of each sample."""
        probabilities = outputs["probabilities"].tolist()
        return zip(outputs["prediction"].tolist(), probabilities, strict=True)

    def _by_label(self, probabilities: Sequence[float]) -> dict[str, float]:
        rounded = (round(value, 6) for value in probabilities)
        pairs = list(zip(self.labels, rounded, strict=True))
        if self.shown is not None:
            pairs = sorted(pairs, key=lambda pair: -pair[1])[: self.shown]
        return dict(pairs)


class SingleLabelHead(_LabelHead):
    """One label per sample.

    The loss is cross entropy; with class weights its unit is a sample's class weight.
    Labels that an augmentation mixed come as shares, (batch, labels): they count as so
    many parts of a sample of each class, in the loss and in its unit.
    """

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

    def probabilities(self, logits: Tensor) -> Tensor:
        """(batch, labels), of logits of the same shape."""
        return logits.softmax(-1)

    def outputs(self, state: State) -> dict[str, Any]:
        """``probabilities`` (batch, labels), ``prediction`` and ``target`` (batch).

        The target of mixed labels is the label with the largest share.
        """
        probabilities = self.probabilities(state["logits"])
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
        """``label``, its ``probability``, and the ``probabilities`` of labels."""
        return [
            {
                "label": self.labels[prediction],
                "probability": round(probabilities[prediction], 6),
                "probabilities": self._by_label(probabilities),
            }
            for prediction, probabilities in self._rows(outputs)
        ]


class MultiLabelHead(_LabelHead):
    """Any number of labels per sample.

    The loss is the mean binary cross entropy over samples and labels; class weights
    multiply what a label that is there contributes.
    """

    def loss(self, state: State) -> Tensor:
        targets = state["labels"].float()
        # Towards one half, as cross entropy smooths towards equal classes.
        targets = targets * (1 - self.label_smoothing) + self.label_smoothing / 2
        return F.binary_cross_entropy_with_logits(
            state["logits"], targets, pos_weight=self.class_weights
        )

    def outputs(self, state: State) -> dict[str, Any]:
        """``probabilities``, and ``prediction`` and ``target`` of 0 and 1.

        All (batch, labels); a label is predicted from a probability of .5 on, and of
        mixed labels those are there that have half a share.
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
        """``labels`` that are there, and the ``probabilities`` of labels."""
        return [
            {
                "labels": [
                    label
                    for label, there in zip(self.labels, prediction, strict=True)
                    if there
                ],
                "probabilities": self._by_label(probabilities),
            }
            for prediction, probabilities in self._rows(outputs)
        ]


def class_weights(
    setting: str | Mapping[str, float], labels: Sequence[str], counts: Sequence[int]
) -> Tensor | None:
    """A weight per label, (labels); ``None`` when all weigh the same.

    Args:
        setting: ``none``, ``balanced``, or weights by label, 1 where not named.
            ``balanced`` gives a label of n samples the mean label's number over n.
        labels: The labels in order.
        counts: How often each is in train.

    Raises:
        UserError: A weight of no label, or one that is not above 0; names them all.
    """
    if setting == "none":
        return None
    if isinstance(setting, str):
        average = sum(counts) / len(counts)
        return torch.tensor([average / max(count, 1) for count in counts])
    faults = []
    for name, weight in setting.items():
        where = f"head.class_weights.{name}"
        if name not in labels:
            fix = nearest(name, labels)
            faults.append(Fault(f"no label is called {name!r}", where, fix=fix))
        if not 0 < weight < math.inf:
            fix = "give a number above 0"
            faults.append(Fault(f"the weight of {name!r} is {weight}", where, fix=fix))
    if faults:
        raise UserError(*faults)
    return torch.tensor([float(setting.get(label, 1.0)) for label in labels])


def sample_labels(task: Mapping[str, Any], batch_size: int) -> State:
    """Valid targets for tests; every label occurs when the batch is large enough."""
    rows, labels = torch.arange(batch_size), len(task["labels"])
    if task["kind"] == "single-label":
        return {"labels": rows % labels}
    return {"labels": ((rows[:, None] + torch.arange(labels)) % 2).float()}


def sample_label_outputs(task: Mapping[str, Any], batch_size: int) -> dict[str, Any]:
    """Outputs as such heads give them, for tests; seeded, not all right."""
    generator = torch.Generator().manual_seed(batch_size)
    logits = torch.randn(batch_size, len(task["labels"]), generator=generator)
    target = sample_labels(task, batch_size)["labels"].long()
    if task["kind"] == "single-label":
        prediction = logits.argmax(-1)
        probabilities = logits.softmax(-1)
    else:
        probabilities = logits.sigmoid()
        prediction = (probabilities >= 0.5).long()
    return {"probabilities": probabilities, "prediction": prediction, "target": target}
