"""Whether backbone, head, data and metrics fit each other, from their specs alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headstart.errors import Fault
from headstart.specs import short_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from headstart.plugins import Registry
    from headstart.specs import BackboneSpec, DataSpec, HeadSpec, MetricSpec


def fit_faults(
    backbone: BackboneSpec | None,
    head: HeadSpec | None,
    data: DataSpec | None,
    kind: str,
    registry: Registry,
) -> list[Fault]:
    """Pieces that do not fit each other, and which would.

    A piece (or the kind of the data's targets) that is not known is ``None`` (or
    empty); the others are compared all the same.
    ``where`` of each fault is the recipe key to change.
    """
    faults: list[Fault] = []
    if backbone and head:
        faults += _features(backbone, head, registry)
    if backbone and data:
        faults += _inputs(backbone, data, registry)
    if head and data:
        faults += _targets(head, data, registry)
    if head and kind:
        faults += _kind(head, kind, registry)
    return faults


def _features(
    backbone: BackboneSpec, head: HeadSpec, registry: Registry
) -> Iterator[Fault]:
    if reads(head, backbone):
        return
    kinds = {feature.kind for feature in backbone.features}
    fitting = (h.name for h in registry.heads.values() if reads(h, backbone))
    yield Fault(
        f"the head {head.name!r} does not fit the backbone {backbone.name!r}",
        "head.name",
        f"the head reads {' or '.join(head.needs)}, the backbone gives "
        f"{', '.join(sorted(kinds))}",
        _choose("head", fitting),
    )


def reads(head: HeadSpec, backbone: BackboneSpec) -> bool:
    """Whether a backbone gives a feature that a head reads, by kind or by name."""
    given = {word for f in backbone.features for word in (f.kind, f.name)}
    return bool(given & set(head.needs))


def _inputs(
    backbone: BackboneSpec, data: DataSpec, registry: Registry
) -> Iterator[Fault]:
    inputs = set(backbone.inputs)
    missing = sorted(inputs - set(data.yields))
    if not missing:
        return
    fitting = (d.name for d in registry.data.values() if inputs <= set(d.yields))
    yield Fault(
        f"the data {data.name!r} does not fit the backbone {backbone.name!r}",
        "data.name",
        f"the backbone reads {', '.join(missing)}, the data yields "
        f"{', '.join(data.yields)}",
        _choose("data", fitting),
    )


def _targets(head: HeadSpec, data: DataSpec, registry: Registry) -> Iterator[Fault]:
    targets = set(head.targets)
    missing = sorted(targets - set(data.yields))
    if not missing:
        return
    fitting = (d.name for d in registry.data.values() if targets <= set(d.yields))
    yield Fault(
        f"the data {data.name!r} does not fit the head {head.name!r}",
        "data.name",
        f"the head learns from {', '.join(missing)}, which the data lacks",
        _choose("data", fitting),
    )


def _kind(head: HeadSpec, kind: str, registry: Registry) -> Iterator[Fault]:
    if kind in head.kinds:
        return
    fitting = (h.name for h in registry.heads.values() if kind in h.kinds)
    yield Fault(
        f"the head {head.name!r} does not serve {kind!r} data",
        "head.name",
        f"it serves {', '.join(head.kinds)}; data.kind is {kind!r}",
        _choose("head", fitting),
    )


def metric_faults(
    metrics: Sequence[MetricSpec], kind: str, registry: Registry
) -> Iterator[Fault]:
    """Metrics that do not measure this kind of data, and which would."""
    for metric in metrics:
        if kind in metric.kinds:
            continue
        plugin = metric.name.partition("/")[0]
        fitting = (
            short_name(m.name)
            for m in registry.metrics.values()
            if kind in m.kinds and m.name.startswith(f"{plugin}/")
        )
        yield Fault(
            f"the metric {metric.name!r} does not measure {kind!r} data",
            "metrics.names",
            f"it measures {', '.join(metric.kinds)}; data.kind is {kind!r}",
            _choose("metric", fitting),
        )


def _choose(noun: str, names: Iterable[str]) -> str:
    found = ", ".join(sorted(names))
    return f"{noun} that fits: {found}" if found else f"no installed {noun} fits"
