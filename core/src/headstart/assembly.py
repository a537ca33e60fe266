"""From a recipe to a model on a device and its data: fetch, build, load, check."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from headstart import adapters
from headstart.errors import UserError
from headstart.execution import Execution, choose_execution
from headstart.model import HEAD, Model
from headstart.specs import resolve
from headstart.weights.sources import SourceContext, Weights, resolve_weights
from headstart.weights.transfer import load_weights
from headstart.weights.transfer_report import StageTransfer, TransferReport

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from headstart.data import DataModule
    from headstart.fetch.http import Progress
    from headstart.heads import Head
    from headstart.plugins import Registry
    from headstart.recipe import Recipe
    from headstart.settings import StrategySettings
    from headstart.stages import Backbone
    from headstart.strategy import Plan


@dataclass(frozen=True)
class Assembly:
    """Everything that a recipe names, built and fitting.

    Attributes:
        transfer: What was loaded into the backbone; ``None`` from a run folder.
    """

    model: Model
    data: DataModule
    weights: Weights
    transfer: TransferReport | None
    execution: Execution


def build_backbone(
    recipe: Recipe, folder: Path | None, task: Mapping[str, Any]
) -> Backbone:
    """The architecture of ``[backbone]``, shortened as asked, parameters random."""
    factory = resolve(recipe.backbone_spec.factory)
    backbone: Backbone = factory(recipe.backbone, folder, task)
    if recipe.backbone.keep is not None:
        backbone.keep(recipe.backbone.keep)
    return backbone


def complete_strategy(recipe: Recipe) -> StrategySettings:
    """The strategy with what an adapter that it starts from says itself.

    Raises:
        UserError: There is no such adapter, or it does not fit the recipe.
    """
    strategy = recipe.strategy
    if strategy.name != "lora":
        return strategy
    lora = adapters.completed(strategy.lora, recipe.backbone.weights)
    return strategy.model_copy(update={"lora": lora})


def adapt(recipe: Recipe, backbone: Backbone) -> None:
    """Put the adapters that the strategy asks for into a backbone with its weights."""
    if recipe.strategy.name == "lora":
        adapters.attach(backbone, recipe.strategy.lora)


def build_data(recipe: Recipe) -> DataModule:
    """The data module of ``[data]``, neither loaded nor prepared."""
    data: DataModule = resolve(recipe.data_spec.factory)(recipe.data, recipe.train.seed)
    data.asked = recipe.head.asks()
    return data


def build_head(recipe: Recipe, backbone: Backbone, task: Mapping[str, Any]) -> Head:
    """The head of ``[head]`` for the backbone's features and the data's task."""
    head: Head = resolve(recipe.head_spec.factory)(recipe.head, backbone.features, task)
    return head


def assemble(
    recipe: Recipe,
    registry: Registry,
    progress: Progress | None = None,
    architecture: Path | None = None,
) -> Assembly:
    """Fetch, build, read the data, and load the weights.

    Args:
        recipe: Checked.
        registry: Knows the weights sources.
        progress: Told about transfers.
        architecture: A run's own folder of configuration and vocabulary, to go on
            from a checkpoint; then no weights are fetched.

    Raises:
        HeadstartError: Whatever does not fit, before anything is written.
    """
    execution = choose_execution(recipe.train)
    if not recipe.backbone.weights:
        raise UserError(
            f"the backbone {recipe.backbone.name!r} needs to be told its weights",
            where="backbone.weights",
            fix='e.g. "hf:google-bert/bert-base-uncased@REVISION", "file:FOLDER", or '
            '"none" with the architecture in backbone.config',
        )
    # First the data: a fault in it should not cost a download of weights.
    data = build_data(recipe)
    data.load()
    if architecture is None:
        context = SourceContext(registry, progress, data)
        weights = resolve_weights(recipe.backbone.weights, context)
    else:
        weights = Weights(recipe.backbone.weights, architecture, ())
    torch.manual_seed(recipe.train.seed)
    backbone = build_backbone(recipe, weights.folder, data.task)
    data.prepare(backbone.preprocessing)
    if recipe.strategy.name == "scratch":
        weights = replace(weights, files=())
    head = build_head(recipe, backbone, data.task)
    if architecture is None:
        transfer = load_weights(
            backbone,
            weights,
            allow=recipe.backbone.allow,
            head=head,
            labels=data.task.get("labels") or data.task.get("vocabulary", ()),
        )
    else:
        transfer = TransferReport(weights.reference, resumed=True)
    adapt(recipe, backbone)
    if backbone.adapted:
        lora = recipe.strategy.lora
        transfer = replace(transfer, adapters=adapters.describe(backbone, lora))
        if lora.adapter and architecture is None:
            adapters.load(backbone, lora)
    model = execution.place(Model(backbone, head))
    return Assembly(model, data, weights, transfer, execution)


def complete_transfer(assembly: Assembly, plan: Plan) -> TransferReport:
    """The transfer report with the head's parameters and what trains at the start."""
    model = assembly.model
    assert assembly.transfer is not None
    start, fixed = plan.trainable(0), model.backbone.fixed
    counts = {name: [0, 0] for name in (*model.backbone.stages, HEAD)}
    # By name once: a tied parameter counts where it is first.
    for name, parameter in model.named_parameters():
        count = counts[model.part_of(name)]
        count[0] += parameter.numel()
        if name.removeprefix("backbone.") in fixed:
            count[1] += parameter.numel()
    stages = tuple(
        StageTransfer(
            name,
            number,
            trainable_at_start=name == HEAD or name in start,
            learning_rate_factor=plan.factors.get(name, 1.0),
            fixed=fixed_number,
        )
        for name, (number, fixed_number) in counts.items()
    )
    new = tuple(
        f"head.{name}"
        for name, _ in model.head.named_parameters()
        if name not in assembly.transfer.head_loaded
    )
    return replace(assembly.transfer, new=new, stages=stages)
