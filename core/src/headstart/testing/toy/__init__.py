"""The smallest plugin that is a plugin: points in the plane and a tiny network.

The core's own tests run on it, and it shows every file that a plugin has. Add it with
``load_plugins().add(toy, "toy")``; it is no installed plugin.
"""

from __future__ import annotations

from headstart.hookspecs import HOOK_API as HOOK_API
from headstart.hookspecs import hookimpl
from headstart.specs import (
    BackboneSpec,
    DataSpec,
    Feature,
    HeadSpec,
    MetricSpec,
    RecipeSource,
)

HERE = "headstart.testing.toy"
TASK = {"kind": "single-label", "labels": ["inside", "outside"], "counts": [5, 7]}


@hookimpl
def register_backbones() -> list[BackboneSpec]:
    return [
        BackboneSpec(
            name="toy/network",
            summary="three small layers with batch normalisation and dropout",
            factory=f"{HERE}.backbones:build_network",
            settings=f"{HERE}.settings:NetworkSettings",
            weights="none",
            inputs=("points",),
            features=(Feature("hidden", "vector", 8),),
            stages=("first", "second", "third"),
            sample=f"{HERE}.backbones:sample_points",
            reference=f"{HERE}.backbones:reference_network",
            tiny={"weights": "none"},
        )
    ]


@hookimpl
def register_heads() -> list[HeadSpec]:
    return [
        HeadSpec(
            name="toy/classifier",
            summary="one linear layer",
            factory=f"{HERE}.heads:build_classifier",
            settings="headstart.settings:HeadSettings",
            needs=("vector",),
            targets=("labels",),
            kinds=("single-label",),
            metrics=("accuracy",),
            sample=f"{HERE}.heads:sample_labels",
            sample_task=TASK,
        )
    ]


@hookimpl
def register_data() -> list[DataSpec]:
    return [
        DataSpec(
            name="toy/ring",
            summary="points inside and outside a ring",
            factory=f"{HERE}.data:Ring",
            settings=f"{HERE}.settings:RingSettings",
            yields=("points", "labels"),
            tiny=f"{HERE}.data:tiny_ring",
        )
    ]


@hookimpl
def register_metrics() -> list[MetricSpec]:
    return [
        MetricSpec(
            name="toy/accuracy",
            summary="share of right predictions",
            factory=f"{HERE}.metrics:build_accuracy",
            inputs=("prediction", "target"),
            kinds=("single-label",),
            goal="max",
            sample=f"{HERE}.metrics:sample_outputs",
            sample_task=TASK,
        )
    ]


@hookimpl
def register_recipes() -> list[RecipeSource]:
    return [RecipeSource("toy/ring", HERE, "recipes/ring.toml")]
