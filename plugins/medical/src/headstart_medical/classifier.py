"""The head that gives a scan a label: a volume, a slice, or a stack of slices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn

from headstart.classification import SingleLabelHead
from headstart.errors import UserError, nearest
from headstart_medical.calibration import fit_temperature, scaled

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from headstart.report.parts import Evaluation, Section
    from headstart.specs import Feature
    from headstart.stages import State
    from headstart_medical.head_settings import ClassifierSettings

SPACE = {"volume": (2, 3, 4), "map": (2, 3), "vector": ()}
"""The spatial axes of a feature, by its kind."""


class SliceAttention(nn.Module):
    """Gated attention over slices (Ilse et al. 2018): (batch, channels, slices) to
    (batch, channels)."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.content = nn.Linear(channels, width)
        self.gate = nn.Linear(channels, width)
        self.score = nn.Linear(width, 1, bias=False)

    def forward(self, slices: Tensor) -> Tensor:
        values = slices.transpose(1, 2)
        scores = self.score(self.content(values).tanh() * self.gate(values).sigmoid())
        pooled: Tensor = (values * scores.softmax(1)).sum(1)
        return pooled


class ScanClassifier(SingleLabelHead):
    """Pools a feature over space and maps it to ``logits``.

    Probabilities are divided by a temperature before they are compared, once it has
    been fitted to the validation split (:mod:`headstart_medical.calibration`).

    Args:
        settings: Pooling, dropout and loss.
        feature: What to read: a volume, a map or a vector.
        task: Of kind ``single-label``.
    """

    def __init__(
        self, settings: ClassifierSettings, feature: Feature, task: Mapping[str, Any]
    ) -> None:
        super().__init__()
        # The core calls factories with features of known width.
        channels = cast("int", feature.channels)
        self.set_labels(settings, task)
        self.reads = (feature.name,)
        self.pooling = settings.pooling
        self.space = SPACE[feature.kind]
        self.attention: SliceAttention | None = None
        if self.pooling == "attention":
            self.attention = SliceAttention(channels, settings.attention_width)
        self.dropout = nn.Dropout(settings.dropout)
        self.linear = nn.Linear(channels, len(self.labels))

    @property
    def reduction(self) -> str:
        return f"{self.pooling} of {self.reads[0]}"

    def reduce(self, state: State) -> State:
        """Pool to ``pooled``, (batch, channels), with attention (…, slices).

        All but the labels is left out.
        """
        feature: Tensor = state[self.reads[0]]
        kept = {key: state[key] for key in ("labels",) if key in state}
        if self.attention is not None:
            return {**kept, "pooled": feature.mean(self.space[:-1])}
        if not self.space:
            return {**kept, "pooled": feature}
        pool = feature.amax if self.pooling == "max" else feature.mean
        return {**kept, "pooled": pool(self.space)}

    def forward(self, state: State) -> State:
        """Add ``logits``, (batch, labels) float32."""
        pooled = state["pooled"]
        if self.attention is not None:
            pooled = self.attention(pooled)
        return {**state, "logits": self.linear(self.dropout(pooled)).float()}

    def probabilities(self, logits: Tensor) -> Tensor:
        """Calibrated, once the training is over."""
        return scaled(logits, self.calibration.get("temperature", 1.0))

    def calibrate(self, outputs: Mapping[str, Any]) -> dict[str, float]:
        """``temperature``, where the validation split has something to say about it."""
        found = fit_temperature(outputs["probabilities"], outputs["target"])
        return {} if found is None else {"temperature": round(found, 4)}

    def report(self, evaluation: Evaluation) -> Sequence[Section]:
        from headstart_medical.sections import classification_sections

        sections: Sequence[Section] = classification_sections(evaluation)
        return sections


def build_classifier(
    settings: ClassifierSettings,
    features: Mapping[str, Feature],
    task: Mapping[str, Any],
) -> ScanClassifier:
    """The head ``medical/classifier``.

    Raises:
        UserError: Nothing to read, or not what was asked for; attention over what has
            no slices; class weights that do not fit.
    """
    feature = _chosen(settings.feature, features)
    if settings.pooling == "attention" and feature.kind != "volume":
        raise UserError(
            f"attention goes over slices, and {feature.name!r} is a {feature.kind}",
            where="head.pooling",
            fix='head.pooling = "mean", or a backbone that gives a volume '
            "(medical/slices)",
        )
    return ScanClassifier(settings, feature, task)


def _chosen(name: str, features: Mapping[str, Feature]) -> Feature:
    """The feature of that name, else the last one that can be pooled."""
    known = {key: value for key, value in features.items() if value.kind in SPACE}
    if not known:
        raise UserError(
            "the backbone leaves no volumes, maps or vectors in the state",
            where="head.name",
            why=f"it leaves {', '.join(features) or 'nothing'}",
            fix="choose a backbone for scans, e.g. medical/densenet121",
        )
    if not name:
        return list(known.values())[-1]
    if name not in known:
        raise UserError(
            f"the backbone has no feature {name!r}",
            where="head.feature",
            why=f"it gives {', '.join(known)}",
            fix=nearest(name, known),
        )
    return known[name]
