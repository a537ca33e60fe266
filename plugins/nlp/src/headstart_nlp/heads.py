"""Heads that read one vector per text: classification and regression."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headstart.classification import MultiLabelHead, SingleLabelHead
from headstart.errors import DataError, UserError
from headstart.heads import Head

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from headstart.report.parts import Evaluation, Section
    from headstart.specs import Feature
    from headstart.stages import State
    from headstart_nlp.settings import (
        ClassifierSettings,
        RegressorSettings,
        TextHeadSettings,
    )


class MeanPooling(nn.Module):
    """The mean over a text's tokens."""

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        tokens = hidden.masked_fill(~mask[..., None], 0.0)
        total = tokens.sum(1, dtype=torch.float32)
        return (total / mask.sum(1, keepdim=True).clamp(min=1)).to(hidden.dtype)


class FirstTokenPooling(nn.Module):
    """The first token's vector, which BERT's families train to stand for the text."""

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        return hidden[:, 0]


class AttentionPooling(nn.Module):
    """A mean weighted by how well each token answers a learned query."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        # All tokens weigh the same at first: training starts from the plain mean.
        self.query = nn.Parameter(torch.zeros(channels))

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        tokens = hidden.masked_fill(~mask[..., None], 0.0)
        # Products and sums in float32, not matmul: autocast would make it bf16.
        scores = (tokens * self.query.float()).sum(-1) / math.sqrt(tokens.shape[-1])
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        weights = scores.softmax(-1)
        return (tokens * weights[..., None]).sum(1).to(hidden.dtype)


class TextHead(Head):
    """Pools a text's tokens into one vector and maps it to ``logits``.

    Args:
        settings: Pooling, depth, width and dropout.
        feature: What to pool, (batch, tokens, channels); ``attention_mask`` (batch,
            tokens) says which tokens are there.
        outputs: Values per text.
    """

    def __init__(
        self, settings: TextHeadSettings, feature: Feature, outputs: int
    ) -> None:
        super().__init__()
        # The core calls factories with features of known width.
        channels = cast("int", feature.channels)
        self.feature = feature.name
        self.pooling: nn.Module
        self.learned_pooling = settings.pooling == "attention"
        if settings.pooling == "attention":
            self.pooling = AttentionPooling(channels)
        else:
            self.pooling = {"mean": MeanPooling, "cls": FirstTokenPooling}[
                settings.pooling
            ]()
        width = settings.width or channels
        steps: list[nn.Module] = [nn.Dropout(settings.dropout)]
        for _ in range(settings.layers - 1):
            steps += [
                nn.Linear(channels, width),
                nn.GELU(),
                nn.Dropout(settings.dropout),
            ]
            channels = width
        self.layers = nn.Sequential(*steps, nn.Linear(channels, outputs))

    @property
    def reduction(self) -> str:
        return "" if self.learned_pooling else type(self.pooling).__name__

    def reduce(self, state: State) -> State:
        """Pool to ``pooled`` (batch, channels), unless the pooling is learned."""
        if self.learned_pooling:
            return state
        kept = {key: state[key] for key in ("labels",) if key in state}
        return {**kept, "pooled": self._pool(state)}

    def forward(self, state: State) -> State:
        """Add ``logits``, (batch, outputs) float32."""
        pooled = self._pool(state) if self.learned_pooling else state["pooled"]
        return {**state, "logits": self.layers(pooled).float()}

    def _pool(self, state: State) -> Tensor:
        pooled: Tensor = self.pooling(
            state[self.feature], state["attention_mask"].bool()
        )
        return pooled


class Classifier(SingleLabelHead, TextHead):
    """One label per text."""

    def __init__(
        self, settings: ClassifierSettings, feature: Feature, task: Mapping[str, Any]
    ) -> None:
        super().__init__(settings, feature, len(task["labels"]))
        self.set_labels(settings, task)

    def report(self, evaluation: Evaluation) -> Sequence[Section]:
        from headstart.report import sections

        return [
            sections.confusion_matrix(evaluation),
            sections.per_label(evaluation),
            sections.calibration(evaluation),
            sections.most_wrong(evaluation),
            sections.most_unsure(evaluation),
        ]


class MultiLabel(MultiLabelHead, TextHead):
    """Any number of labels per text."""

    def __init__(
        self, settings: ClassifierSettings, feature: Feature, task: Mapping[str, Any]
    ) -> None:
        super().__init__(settings, feature, len(task["labels"]))
        self.set_labels(settings, task)

    def report(self, evaluation: Evaluation) -> Sequence[Section]:
        from headstart.report import sections

        return [
            sections.per_label(evaluation),
            sections.most_wrong(evaluation),
            sections.most_unsure(evaluation),
        ]


class Regressor(TextHead):
    """One number per text.

    The loss is the mean squared error of standardised values (mean 0 and standard
    deviation 1 in train), so that learning rates fit whatever the unit is; outputs
    are in the data's own unit.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, settings: RegressorSettings, feature: Feature, mean: float, std: float
    ) -> None:
        super().__init__(settings, feature, 1)
        self.register_buffer("mean", torch.tensor(float(mean)))
        self.register_buffer("std", torch.tensor(float(std)))

    def loss(self, state: State) -> Tensor:
        targets = (state["labels"].float() - self.mean) / self.std
        return F.mse_loss(state["logits"].squeeze(-1), targets)

    def weight(self, batch: State) -> Tensor:
        """Samples in the batch."""
        labels = batch["labels"]
        return torch.full((), float(len(labels)), device=labels.device)

    def outputs(self, state: State) -> dict[str, Any]:
        """``prediction`` and ``target``, (batch), in the data's unit."""
        outputs = {
            "prediction": state["logits"].squeeze(-1) * self.std + self.mean,
        }
        if "labels" in state:
            outputs["target"] = state["labels"].float()
        return outputs

    def decode(self, outputs: dict[str, Any]) -> list[dict[str, Any]]:
        """``value`` in the data's unit."""
        return [{"value": value} for value in outputs["prediction"].tolist()]

    def report(self, evaluation: Evaluation) -> Sequence[Section]:
        from headstart.report import sections

        return [sections.predicted_against_true(evaluation)]


def build_classifier(
    settings: ClassifierSettings,
    features: Mapping[str, Feature],
    task: Mapping[str, Any],
) -> Classifier:
    """The head ``nlp/classifier``.

    Raises:
        UserError: Class weights that do not fit.
    """
    return Classifier(settings, _tokens(features), task)


def build_multi_label(
    settings: ClassifierSettings,
    features: Mapping[str, Feature],
    task: Mapping[str, Any],
) -> MultiLabel:
    """The head ``nlp/multi-label``; raises as :func:`build_classifier`."""
    return MultiLabel(settings, _tokens(features), task)


def build_regressor(
    settings: RegressorSettings,
    features: Mapping[str, Feature],
    task: Mapping[str, Any],
) -> Regressor:
    """The head ``nlp/regressor``.

    Raises:
        DataError: All targets are the same.
    """
    if not task["std"] > 0:
        raise DataError(
            f"all values to predict in train are {task['mean']}",
            where="data.label",
            why="there is nothing to learn from them",
            fix="check that data.label names the right column",
        )
    return Regressor(settings, _tokens(features), task["mean"], task["std"])


def sample_values(task: Mapping[str, Any], batch_size: int) -> State:
    """Valid targets of a regression, for tests."""
    rows = torch.arange(batch_size)
    return {"labels": task["mean"] + task["std"] * (rows % 3 - 1).float()}


def _tokens(features: Mapping[str, Feature]) -> Feature:
    found = [feature for feature in features.values() if feature.kind == "tokens"]
    if not found:
        raise UserError(
            "the backbone leaves no tokens in the state",
            where="head.name",
            why=f"it leaves {', '.join(features) or 'nothing'}",
            fix="choose a backbone for texts, e.g. nlp/encoder",
        )
    return found[0]
