"""The toy plugin for the core's tests: registered, assembled, ready to train."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from headstart.assembly import assemble
from headstart.clock import Clock
from headstart.plugins import load_plugins
from headstart.recipe import load_recipe
from headstart.testing import toy
from headstart.training_setup import make_trainer, plan_training

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from headstart.assembly import Assembly
    from headstart.callbacks import Callback
    from headstart.plugins import Registry
    from headstart.recipe import Recipe
    from headstart.strategy import Plan
    from headstart.trainer import Trainer


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Tensors of a few numbers: threads would only wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture
def registry() -> Iterator[Registry]:
    """All plugins and the toy, also for what calls ``load_plugins`` itself."""
    loaded = load_plugins()
    assert loaded.add(toy, "toy").status == "loaded"
    yield loaded
    load_plugins.cache_clear()


@pytest.fixture
def toy_parts(
    registry: Registry,
) -> Callable[[Mapping[str, Any]], tuple[Recipe, Assembly, Plan]]:
    """The recipe ``toy/ring`` with overrides, its model and data, and its plan."""

    def build(overrides: Mapping[str, Any]) -> tuple[Recipe, Assembly, Plan]:
        recipe = load_recipe("toy/ring", overrides, registry=registry)
        assembly = assemble(recipe, registry)
        return recipe, assembly, plan_training(recipe, assembly)

    return build


@pytest.fixture
def toy_trainer(toy_parts: Callable[..., Any]) -> Callable[..., Trainer]:
    """A trainer for the toy recipe with overrides."""

    def build(
        overrides: Mapping[str, Any],
        callbacks: Sequence[Callback] = (),
        checkpoints: Path | None = None,
    ) -> Trainer:
        recipe, assembly, plan = toy_parts(overrides)
        clock = Clock(assembly.execution.device)
        return make_trainer(recipe, assembly, plan, clock, callbacks, checkpoints)

    return build
