"""The stage contract: a backbone is an ordered list of named stages.

A stage maps a running batch to a running batch, ``State -> State``. Running a slice
of the list is all that feature extraction, layer retraining, gradual unfreezing,
removing layers and the frozen-prefix cache need.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from headstart.errors import UserError, nearest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from headstart.specs import Feature

State: TypeAlias = dict[str, Any]


def moves_statistics(stage: nn.Module) -> bool:
    """Whether a pass moves running statistics; a second one would move them twice."""
    return any(
        isinstance(module, nn.modules.batchnorm._NormBase)
        and module.training
        and module.track_running_stats
        for module in stage.modules()
    )


class Backbone(nn.Module):
    """A pretrained network as an ordered list of named stages.

    A stage is a module whose ``forward(state)`` returns a new state and leaves the
    one it was given untouched: ``return {**state, "hidden": hidden}``. What a stage
    does depends on its input and its parameters alone, not on other stages' modules,
    so that a slice can run by itself.

    Args:
        stages: The stages in order, by name.
        features: What the stages leave in the state, channels known.
        upstream: Prefixes of our parameter names to prefixes of the upstream
            library's, e.g. ``{"stages.layer0.block.": "encoder.layer.0."}``.
        ignored: Glob patterns of upstream tensors that are no part of a backbone
            (pretraining heads, poolers).
        preprocessing: What the data module must know to prepare inputs (tokenizer
            folder, image mean, sampling rate); values that JSON can hold, and paths.
        files: Small files (configuration, vocabulary) that a run folder keeps, so
            that it opens without the weights it came from.
        trailing: Names of stages that stay when later stages are dropped (a final
            normalisation).
        wrappers: Prefixes under which a weights file may hold the whole backbone,
            e.g. ``bert.`` in a file of a model with its pretraining head; removed
            from the names that carry one.
        renames: Old and new endings of tensor names in weights files, e.g.
            ``((".gamma", ".weight"),)``.
        consumed: Entries of the batch that only the first stage reads (pixels, token
            ids); behind a frozen first stage they are neither kept nor cached.
        config: The upstream library's configuration, JSON-ready; a run folder keeps
            it as ``config.json``.
        rows: Parameters and buffers that are tables, by our names: what each row
            belongs to. Weights that know it of theirs are aligned by it.
        optional: Glob patterns of upstream names that weights need not have.
        copies: Upstream names that weights may leave out, because they start as copies
            of other ones: ``{"lm_head.weight": "model.embed_tokens.weight"}``.
        classes: Names of the classes of a pretrained head that comes with the weights,
            in the order of its rows, where the weights' source does not know them.

    Attributes:
        adapted: Where low-rank adapters are, by our names of the modules; see
            :mod:`headstart.adapters`.
    """

    def __init__(
        self,
        stages: Mapping[str, nn.Module],
        *,
        features: Sequence[Feature],
        upstream: Mapping[str, str],
        ignored: Sequence[str] = (),
        preprocessing: Mapping[str, Any] | None = None,
        files: Sequence[Path] = (),
        trailing: Sequence[str] = (),
        wrappers: Sequence[str] = (),
        renames: Sequence[tuple[str, str]] = (),
        consumed: Sequence[str] = (),
        config: Mapping[str, Any] | None = None,
        rows: Mapping[str, Sequence[str]] | None = None,
        optional: Sequence[str] = (),
        copies: Mapping[str, str] | None = None,
        classes: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.stages = nn.ModuleDict(dict(stages))
        self.features = {feature.name: feature for feature in features}
        self.upstream = dict(upstream)
        self.ignored = tuple(ignored)
        self.preprocessing = dict(preprocessing or {})
        self.files = tuple(files)
        self.trailing = tuple(trailing)
        self.wrappers = tuple(wrappers)
        self.renames = tuple(renames)
        self.config = dict(config) if config is not None else None
        self.consumed = tuple(consumed)
        self.rows = dict(rows or {})
        self.optional = tuple(optional)
        self.copies = dict(copies or {})
        self.classes = tuple(classes)
        self.adapted: tuple[str, ...] = ()
        self.dropped: tuple[str, ...] = ()

    @property
    def stage_names(self) -> tuple[str, ...]:
        return tuple(self.stages)

    def run(
        self,
        state: State,
        start: int = 0,
        stop: int | None = None,
        *,
        recompute: bool = False,
    ) -> State:
        """Run the stages ``start`` to ``stop`` (not included) on a running batch.

        Args:
            state: The batch.
            start: First stage.
            stop: The one after the last; ``None`` runs all.
            recompute: Keep what goes from stage to stage alone, and compute each one
                again in the backward pass (gradient checkpointing, Chen et al. 2016),
                with the same dropout. Gradients are the same to the last bit.
        """
        for stage in list(self.stages.values())[start:stop]:
            if recompute and torch.is_grad_enabled() and not moves_statistics(stage):
                state = checkpoint(stage, state, use_reentrant=False)
            else:
                state = stage(state)
        return state

    def forward(self, state: State) -> State:
        return self.run(state)

    def index(self, stage: str) -> int:
        """Position of a stage.

        Raises:
            UserError: There is no such stage; names the nearest.
        """
        try:
            return self.stage_names.index(stage)
        except ValueError:
            raise UserError(
                f"there is no stage {stage!r}",
                why=f"this backbone has {', '.join(self.stage_names)}",
                fix=nearest(stage, self.stage_names),
            ) from None

    def keep(self, count: int) -> None:
        """Drop all stages after the first ``count``, but for the trailing ones.

        Raises:
            UserError: There are not so many stages.
        """
        droppable = [name for name in self.stages if name not in self.trailing]
        if not 1 <= count <= len(droppable):
            raise UserError(
                f"cannot keep {count} stages of {len(droppable)}",
                where="backbone.keep",
                fix=f"choose 1 to {len(droppable)}: {', '.join(droppable)}",
            )
        gone = droppable[count:]
        for name in gone:
            del self.stages[name]
        self.dropped = tuple(gone)
        self.features = {
            name: feature
            for name, feature in self.features.items()
            if feature.stage not in gone
        }

    def fit_tensor(
        self, name: str, theirs: Tensor, ours: Tensor
    ) -> tuple[Tensor, str] | None:
        """A pretrained tensor of another shape, made to fit; by default none is.

        Args:
            name: The upstream library's name.
            theirs: The pretrained tensor.
            ours: Our parameter or buffer, with its present values.

        Returns:
            A tensor of our shape, and how it came about in words ("1 input channel
            from 3: their sum"); ``None`` where the difference is a mistake.
        """
        return None

    def start_rows(self, name: str, matched: Tensor) -> str:
        """Fill the rows of a table that weights did not know, in place.

        Args:
            name: Our name of the table.
            matched: Which rows came with the weights, (rows,), not all of them.

        Returns:
            How they start, in words. By default: at the mean of the others, which
            favours nobody.
        """
        table = self.state_dict()[name]
        table[~matched] = table[matched].mean(dim=0)
        return "at the mean of the matched"

    @property
    def fixed(self) -> frozenset[str]:
        """Parameters that never train: in adapted stages, all but the adapters'."""
        stages = tuple(f"stages.{stage}." for stage in self.adapted_stages)
        return frozenset(
            name
            for name, _ in self.named_parameters(remove_duplicate=False)
            if name.startswith(stages) and ".lora_" not in name
        )

    @property
    def adapted_stages(self) -> tuple[str, ...]:
        """The stages that have adapters, in order."""
        found = {module.split(".")[1] for module in self.adapted}
        return tuple(name for name in self.stages if name in found)

    def upstream_name(self, parameter: str) -> str:
        """The upstream library's name of one of our parameters or buffers."""
        best = max(
            (ours for ours in self.upstream if parameter.startswith(ours)),
            key=len,
            default="",
        )
        return self.upstream.get(best, "") + parameter[len(best) :]

    def upstream_state_dict(self) -> dict[str, Any]:
        """Our parameters and buffers under the upstream library's names."""
        return {self.upstream_name(k): v for k, v in self.state_dict().items()}
