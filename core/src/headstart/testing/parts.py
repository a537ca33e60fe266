"""Tiny parts of a plugin, and what the tests of the suite ask about them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
import torch

from headstart.fit import reads
from headstart.model import Model
from headstart.optim import build_optimizer
from headstart.plugins import Registry, load_plugins
from headstart.settings import StrategySettings, TrainSettings
from headstart.specs import resolve
from headstart.strategy import make_plan

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import ModuleType

    from headstart.heads import Head
    from headstart.specs import BackboneSpec, HeadSpec
    from headstart.stages import Backbone, State


def tiny_backbone(spec: BackboneSpec, seed: int = 0) -> Backbone:
    """The spec's tiny variant with random parameters."""
    torch.manual_seed(seed)
    settings = resolve(spec.settings)(name=spec.name, **spec.tiny)
    backbone: Backbone = resolve(spec.factory)(settings, None, spec.sample_task)
    return backbone


def pair_task(backbone_spec: BackboneSpec, head_spec: HeadSpec) -> dict[str, Any]:
    """The head's task; where the backbone's size depends on the data, with its own."""
    return {**head_spec.sample_task, **backbone_spec.sample_task}


def tiny_head(
    spec: HeadSpec, backbone: Backbone, task: Mapping[str, Any] | None = None
) -> Head:
    settings = resolve(spec.settings)(name=spec.name, **spec.tiny)
    factory = resolve(spec.factory)
    head: Head = factory(settings, backbone.features, task or spec.sample_task)
    return head


def tiny_model(pair: tuple[BackboneSpec, HeadSpec], seed: int = 0) -> Model:
    """A backbone and a head that fit, in their tiny variants."""
    backbone = tiny_backbone(pair[0], seed)
    return Model(backbone, tiny_head(pair[1], backbone, pair_task(*pair)))


def batch_length(state: Mapping[str, Any]) -> int:
    return next(len(v) for v in state.values() if isinstance(v, torch.Tensor))


def sample_batch(backbone_spec: BackboneSpec, head_spec: HeadSpec) -> State:
    """Inputs and targets of one batch."""
    inputs: State = resolve(backbone_spec.sample)(tiny_backbone(backbone_spec))
    task = pair_task(backbone_spec, head_spec)
    targets = resolve(head_spec.sample)(task, batch_length(inputs))
    return {**inputs, **targets}


def same(left: Any, right: Any) -> bool:
    """Bit-identical, through nested values."""
    if isinstance(left, torch.Tensor):
        return bool(left.dtype == right.dtype and torch.equal(left, right))
    if isinstance(left, np.ndarray):
        return bool(left.dtype == right.dtype and np.array_equal(left, right))
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(
            same(left[k], right[k]) for k in left
        )
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


def requires_gradient(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return value.requires_grad
    if isinstance(value, dict):
        return any(map(requires_gradient, value.values()))
    return isinstance(value, (list, tuple)) and any(map(requires_gradient, value))


def no_head() -> Head:
    """In place of a head where only the backbone is on trial."""
    return cast("Head", torch.nn.Module())


def backward(loss: torch.Tensor) -> None:
    loss.backward()  # type: ignore[no-untyped-call]


def cuts(spec: BackboneSpec) -> list[int]:
    """Every freeze point that leaves a stage to train."""
    return list(range(len(tiny_backbone(spec).stages)))


def training(
    spec: BackboneSpec, cut: int
) -> tuple[Model, torch.optim.Optimizer, State]:
    """A tiny backbone frozen up to a stage, its optimizer and a batch."""
    backbone = tiny_backbone(spec)
    model = Model(backbone, no_head()).train()
    names = backbone.stage_names
    model.train_stages(frozenset(names[cut:]))
    plan = make_plan(StrategySettings(), names, 10)
    optimizer = build_optimizer(model, TrainSettings(), plan, 1e-2)
    return model, optimizer, resolve(spec.sample)(backbone)


def feature_loss(model: Model, state: State) -> torch.Tensor:
    """Some loss that every feature takes part in."""
    state = model.backbone.run(state, model.freeze_point)
    terms = [
        (state[name].float() - 0.5).square().mean() for name in model.backbone.features
    ]
    return torch.stack(terms).sum()


class OwnParts:
    """What a plugin registers, for the classes of tests that make up the suite."""

    plugin: ClassVar[ModuleType]
    name: ClassVar[str]

    @classmethod
    def registry(cls) -> Registry:
        registry = load_plugins()
        info = registry.add(cls.plugin, cls.name)
        assert info.status == "loaded", info.cause
        return registry

    @classmethod
    def _own(cls, kind: str) -> list[Any]:
        specs = getattr(cls.registry(), kind)
        return [s for n, s in sorted(specs.items()) if n.startswith(f"{cls.name}/")]

    @classmethod
    def _pairs(cls) -> list[tuple[BackboneSpec, HeadSpec]]:
        """Every head with every backbone of this plugin whose features it reads."""
        return [
            (backbone, head)
            for head in cls._own("heads")
            for backbone in cls._own("backbones")
            if reads(head, backbone)
        ]
