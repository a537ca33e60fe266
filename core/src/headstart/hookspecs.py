"""The hooks that a plugin may implement, all of them. A plugin is a module.

Every hook returns a list, so that what it registers is typed, testable and
attributable to the plugin. None of them may import torch or a domain's library.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headstart.specs import (
        BackboneSpec,
        DataSpec,
        HeadSpec,
        MetricSpec,
        RecipeSource,
        WeightSourceSpec,
    )

HOOK_API = "1.0"
PROJECT = "headstart"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def register_backbones() -> Sequence[BackboneSpec]:  # type: ignore[empty-body]
    """Pretrained networks, cut into stages."""


@hookspec
def register_heads() -> Sequence[HeadSpec]:  # type: ignore[empty-body]
    """What turns features into losses and predictions."""


@hookspec
def register_data() -> Sequence[DataSpec]:  # type: ignore[empty-body]
    """Data modules: splits, collation, augmentation, checks."""


@hookspec
def register_metrics() -> Sequence[MetricSpec]:  # type: ignore[empty-body]
    """Metrics over a head's outputs."""


@hookspec
def register_recipes() -> Sequence[RecipeSource]:  # type: ignore[empty-body]
    """Packaged TOML recipes."""


@hookspec
def register_weight_sources() -> Sequence[WeightSourceSpec]:  # type: ignore[empty-body]
    """Schemes of weights references, e.g. ``torchvision:``."""


@hookspec
def make_callbacks(recipe: Any) -> Sequence[Any]:  # type: ignore[empty-body]
    """Objects that live for one run (see ``headstart.callbacks.Callback``)."""
