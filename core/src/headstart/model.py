"""A model: backbone stages and a head, and which of them are frozen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from headstart.errors import PluginError, UserError
from headstart.strategy import freeze_point

if TYPE_CHECKING:
    from headstart.heads import Head
    from headstart.stages import Backbone, State

HEAD = "head"
"""What the head is called where stages are listed."""


class Model(nn.Module):
    """Backbone and head; frozen stages stay frozen whatever calls ``train()``.

    ``prefix`` runs the stages up to the freeze point without gradients; ``forward``
    runs the rest and the head. Training is ``model(model.prefix(batch))``; a cached
    prefix, or a distributed wrapper around ``forward``, fits between the two.

    Attributes:
        trainable: The stages that train.
        gradient_checkpointing: Whether training computes each stage a second time in
            the backward pass, instead of keeping what is inside it.
    """

    def __init__(self, backbone: Backbone, head: Head) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.trainable: frozenset[str] = frozenset(backbone.stage_names)
        self.gradient_checkpointing = False

    @property
    def freeze_point(self) -> int:
        """How many leading stages are frozen."""
        return freeze_point(self.backbone.stage_names, self.trainable)

    def part_of(self, parameter: str) -> str:
        """The stage a parameter belongs to by name, or ``head``.

        Raises:
            PluginError: It belongs to neither.
        """
        match parameter.split("."):
            case ["head", *_]:
                return HEAD
            case ["backbone", "stages", stage, *_]:
                return stage
        raise PluginError(
            f"the parameter {parameter!r} belongs to no stage",
            why="what belongs to no stage can neither be frozen nor cached",
            fix="make it part of one of the backbone's stages",
        )

    def train_stages(self, stages: frozenset[str]) -> None:
        """Choose the stages that train; all others are frozen.

        Raises:
            UserError: A parameter is shared by a frozen and a training part.
        """
        fixed = self.backbone.fixed
        self._refuse_shared(stages, fixed)
        self.trainable = stages
        for name, parameter in self.backbone.named_parameters():
            trains = self.part_of(f"backbone.{name}") in stages and name not in fixed
            parameter.requires_grad_(trains)
            if not trains:
                parameter.grad = None
        self.train(self.training)

    def train(self, mode: bool = True) -> Model:
        super().train(mode)
        for name, stage in self.backbone.stages.items():
            if name not in self.trainable:
                stage.eval()
        for name in self.backbone.adapted_stages:
            for module in self.backbone.stages[name].modules():
                # What an adapter is beside stays as it is, its statistics included.
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def prefix(self, state: State) -> State:
        """What the freeze point makes constant, without gradients.

        The frozen stages before it, and, when all are frozen, the head's reduction.
        """
        stop = self.freeze_point
        if stop == 0:
            return state
        with torch.no_grad():
            state = self.backbone.run(state, 0, stop)
            for key in (*self.backbone.consumed, *self._unread(stop)):
                state.pop(key, None)
            if stop == len(self.backbone.stages):
                state = self.head.reduce(state)
        return state

    def _unread(self, stop: int) -> list[str]:
        """Features of frozen stages that neither the head nor a later stage reads.

        A stage reads what the one before it wrote, and inputs.
        """
        reads = getattr(self.head, "reads", ())
        earlier = self.backbone.stage_names[: stop - 1]
        return [
            name
            for name, feature in self.backbone.features.items()
            if reads and name not in reads and feature.stage in earlier
        ]

    def forward(self, state: State) -> State:
        """The stages from the freeze point on, and the head; takes a prefix."""
        start = self.freeze_point
        if start < len(self.backbone.stages):
            recompute = self.gradient_checkpointing and self.training
            state = self.backbone.run(state, start, recompute=recompute)
            state = self.head.reduce(state)
        result: State = self.head(state)
        return result

    def constant(self, stages: frozenset[str]) -> frozenset[str]:
        """Names in the state of what stays as it is while these stages train."""
        fixed = self.backbone.fixed
        return frozenset(
            name
            for name in self.state_dict()
            if (part := self.part_of(name)) != HEAD
            and (part not in stages or name.removeprefix("backbone.") in fixed)
        )

    def counts(self) -> dict[str, Any]:
        """Parameters in all, frozen, and training."""
        total = sum(p.numel() for p in self.parameters())
        trainable = sum(p.numel() for p in self.parameters() if p.requires_grad)
        return {"total": total, "frozen": total - trainable, "trainable": trainable}

    def _refuse_shared(self, stages: frozenset[str], fixed: frozenset[str]) -> None:
        owners: dict[int, tuple[str, bool]] = {}
        for name, parameter in self.named_parameters(remove_duplicate=False):
            part = self.part_of(name)
            trains = part == HEAD or part in stages
            trains = trains and name.removeprefix("backbone.") not in fixed
            first, first_trains = owners.setdefault(id(parameter), (part, trains))
            if trains != first_trains:
                raise UserError(
                    f"{first!r} and {part!r} share the parameter {name!r}, and only "
                    "one of them is frozen",
                    where="strategy",
                    why="a tied weight cannot both stay as it is and train",
                    fix=f"freeze or train {first!r} and {part!r} together (surgical "
                    "names stages, lora leaves all of them as they are), or untie them "
                    "in the backbone's settings where it has one for that",
                )
