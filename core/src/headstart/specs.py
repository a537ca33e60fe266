"""What a plugin registers: frozen descriptions that import neither torch nor a domain.

A spec points at code as ``"package.module:attribute"``, resolved on use, and carries
what can be checked before anything is downloaded.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from headstart.errors import PluginError, nearest

if TYPE_CHECKING:
    from collections.abc import Mapping

FeatureKind = Literal["tokens", "logits", "map", "volume", "vector", "table"]
Goal = Literal["max", "min", "none"]
Link = Literal["identity", "exp"]


@dataclass(frozen=True)
class Feature:
    """An entry that a backbone leaves in the state.

    Attributes:
        name: Key in the state.
        kind: ``tokens`` (batch, time, channels), ``logits`` (batch, time, vocabulary)
            for the token that comes next, ``map`` (batch, channels, height,
            width), ``volume`` (batch, channels, depth, height, width), ``vector``
            (batch, channels), ``table`` (rows, channels).
        channels: Width; ``None`` while it depends on the weights' configuration.
        stride: Input positions per feature position.
        stage: The stage that writes it; empty when every stage rewrites it.
    """

    name: str
    kind: FeatureKind
    channels: int | None = None
    stride: int = 1
    stage: str = ""


@dataclass(frozen=True)
class BackboneSpec:
    """A pretrained network that can be cut into stages.

    Attributes:
        name: ``plugin/name``.
        summary: One line for lists.
        factory: Code, called as ``factory(settings, folder, task) -> Backbone``; builds
            the architecture without loading parameters. ``folder`` holds the
            configuration files that came with the weights, or is ``None``; ``task``
            is what the data module found out, for networks whose size depends on the
            data (rows of tables, input channels).
        settings: Code, the pydantic model of ``[backbone]`` beyond the core's keys.
        weights: Default weights reference, e.g. ``asset:minilm-l6``.
        inputs: State keys that the first stage reads.
        features: What it leaves in the state.
        stages: Stage names; empty while they depend on the weights' configuration.
        licence: Licence of the default weights.
        tiny: Settings of a variant that builds in milliseconds without a download.
        sample_task: A task as the data module would give it, for tests.
        sample: Code, ``sample(backbone) -> State``: a small valid batch for tests.
        reference: Code, ``reference(backbone, state) -> dict[str, Tensor]``: the same
            features from the upstream library, with the same parameters.
    """

    name: str
    summary: str
    factory: str
    settings: str
    weights: str
    inputs: tuple[str, ...]
    features: tuple[Feature, ...]
    sample: str
    stages: tuple[str, ...] = ()
    licence: str = ""
    tiny: Mapping[str, Any] = field(default_factory=dict)
    sample_task: Mapping[str, Any] = field(default_factory=dict)
    reference: str = ""


@dataclass(frozen=True)
class HeadSpec:
    """What turns features into losses and predictions.

    Attributes:
        name: ``plugin/name``.
        summary: One line for lists.
        factory: Code, called as ``factory(settings, features, task) -> Head``;
            ``features`` maps names to :class:`Feature` with known channels, ``task``
            is what the data module found out (labels and the like).
        settings: Code, the pydantic model of ``[head]``.
        needs: Kinds of feature it can read, best first; or names of features, where a
            kind says too little.
        targets: State keys that it reads from the data for its loss.
        kinds: Kinds of task it serves, as ``data.kind`` names them.
        metrics: Short names of the metrics used when the recipe names none.
        tiny: Settings of a small variant.
        sample_task: A task as the data module would give it, for tests.
        sample: Code, ``sample(task, batch_size) -> State``: valid targets for tests.
        options: Code, a :class:`headstart.settings.PredictOptions`: what
            ``headstart predict`` takes beside the inputs; empty: nothing.
    """

    name: str
    summary: str
    factory: str
    settings: str
    needs: tuple[str, ...]
    targets: tuple[str, ...]
    kinds: tuple[str, ...]
    metrics: tuple[str, ...]
    sample: str
    sample_task: Mapping[str, Any]
    tiny: Mapping[str, Any] = field(default_factory=dict)
    options: str = ""


@dataclass(frozen=True)
class DataSpec:
    """Where samples come from, and how they become batches.

    Attributes:
        name: ``plugin/name``.
        summary: One line for lists.
        factory: Code, called as ``factory(settings, seed) -> DataModule``.
        settings: Code, the pydantic model of ``[data]``.
        yields: State keys of a collated batch.
        licence: Licence of the default data.
        tiny: Code, ``tiny(folder) -> dict``: writes a few samples into ``folder`` and
            returns the settings that read them, for tests.
    """

    name: str
    summary: str
    factory: str
    settings: str
    yields: tuple[str, ...]
    tiny: str
    licence: str = ""


@dataclass(frozen=True)
class MetricSpec:
    """Anything with ``update``, ``compute`` and ``reset``; torchmetrics fits as it is.

    Attributes:
        name: ``plugin/name``; recipes and logs use the part after the slash.
        summary: One line for lists.
        factory: Code, called as ``factory(task) -> metric``.
        inputs: Keys of the head's outputs, passed to ``update`` in this order.
        kinds: Kinds of task that it measures, as ``data.kind`` names them.
        goal: Whether more or less is better; ``none`` of what is only watched.
        sample: Code, ``sample(task, batch_size) -> dict``: outputs to try it on.
        sample_task: A task for tests.
        scores: Code, called as ``scores(task, outputs) -> np.ndarray``: of a metric
            that is a mean over samples, each sample's share in it (NaN: does not
            count), from which intervals and paired gains are computed. Of a ratio of
            sums, each sample's share in both: (samples, 2).
        link: What makes the metric of that mean or ratio: perplexity is ``exp`` of the
            loss per token.
    """

    name: str
    summary: str
    factory: str
    inputs: tuple[str, ...]
    kinds: tuple[str, ...]
    goal: Goal
    sample: str
    sample_task: Mapping[str, Any]
    scores: str = ""
    link: Link = "identity"


@dataclass(frozen=True)
class RecipeSource:
    """A packaged recipe: ``plugin/name`` and the TOML file inside the package."""

    name: str
    package: str
    path: str


@dataclass(frozen=True)
class WeightSourceSpec:
    """A scheme of weights references (``asset:``, ``hf:`` …).

    Attributes:
        scheme: What stands before the colon.
        summary: One line for lists.
        resolver: Code, called as ``resolver(rest, context) -> Weights``; ``rest`` is
            what follows the colon, ``context`` a
            :class:`headstart.weights.sources.SourceContext`.
        bare: Whether the scheme says enough with nothing after the colon.
    """

    scheme: str
    summary: str
    resolver: str
    bare: bool = False


def label_metrics(plugin: str, samples: str) -> list[MetricSpec]:
    """What heads are measured by that give labels.

    Their code needs torchmetrics: a plugin that registers these depends on
    ``headstart[classification]``.

    Args:
        plugin: Whose they are.
        samples: What gets a label, in the plural: ``texts``.
    """
    predicted, likely = ("prediction", "target"), ("probabilities", "target")
    single, multi = ("single-label",), ("multi-label",)
    labels, counts = ["no", "yes", "maybe"], [5, 3, 2]
    return [
        MetricSpec(
            name=f"{plugin}/{name}",
            summary=summary,
            factory=f"headstart.classification_metrics:{name.replace('-', '_')}",
            inputs=inputs,
            kinds=kinds,
            goal="max",
            sample="headstart.classification:sample_label_outputs",
            sample_task={"kind": kinds[0], "labels": labels, "counts": counts},
        )
        for name, summary, inputs, kinds in (
            ("accuracy", f"share of {samples} with the right label", predicted, single),
            (
                "top-5",
                f"share of {samples} whose label is among the five likeliest",
                likely,
                single,
            ),
            ("macro-f1", "mean of the labels' F1", predicted, (*single, *multi)),
            ("mcc", "Matthews correlation coefficient", predicted, single),
            (
                "auroc",
                "area under the ROC curve, mean over the labels",
                likely,
                (*single, *multi),
            ),
            (
                "exact-match",
                f"share of {samples} whose labels are all right",
                predicted,
                multi,
            ),
        )
    ]


def short_name(name: str) -> str:
    """``accuracy`` of ``nlp/accuracy``: how recipes and logs call it."""
    return name.rpartition("/")[2]


def resolve(target: str) -> Any:
    """Import what a spec points at.

    Raises:
        PluginError: The module cannot be imported or has no such attribute.
    """
    module_name, _, attribute = target.partition(":")
    try:
        module = import_module(module_name)
    except ImportError as error:
        raise PluginError(
            f"cannot import {module_name!r}",
            where=target,
            why=f"{type(error).__name__}: {error}",
            fix="install what is missing; see `headstart plugins -v`",
        ) from error
    try:
        return getattr(module, attribute)
    except AttributeError:
        raise PluginError(
            f"{module_name!r} has no {attribute!r}",
            where=target,
            fix=nearest(attribute, dir(module)),
        ) from None
