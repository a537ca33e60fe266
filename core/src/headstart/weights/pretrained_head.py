"""A pretrained head: which of its tensors, and rows of classes, go into ours."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from headstart.errors import Fault

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from headstart.heads import Head


class PretrainedHead:
    """The tensors of a pretrained head that go into ours.

    Attributes:
        names: Of the source's tensors that belong to the head.
        values: New values by our name.
        skipped: Source's tensors that do not go into ours, and why.
        faults: Tensors that are damaged.
        kept: Our classes that the pretrained head knows.
        new: The others.
    """

    def __init__(
        self,
        head: Head | None,
        theirs: Mapping[str, Tensor],
        classes: Sequence[str],
        labels: Sequence[str],
    ) -> None:
        self.names: set[str] = set()
        self.values: dict[str, Tensor] = {}
        self.skipped: list[tuple[str, str]] = []
        self.faults: list[Fault] = []
        self.kept: tuple[str, ...] = ()
        self.new: tuple[str, ...] = ()
        upstream: Mapping[str, str] = getattr(head, "upstream", {})
        if head is None or not upstream:
            return
        self._ours = head.state_dict(keep_vars=True)
        by_class = False
        for name, ours in self._ours.items():
            prefix = max(
                (p for p in upstream if name.startswith(p)), key=len, default=""
            )
            raw = upstream.get(prefix, "") + name[len(prefix) :]
            if not prefix or raw not in theirs:
                continue
            self.names.add(raw)
            tensor = theirs[raw]
            if fault := misfit(raw, tensor, ours):
                self.faults.append(fault)
                continue
            value = head.adapt_classes(name, tensor, ours.detach(), classes)
            by_class = by_class or value is not None
            value = tensor if value is None else value
            if value.shape == ours.shape:
                self.values[name] = value
            else:
                shapes = f"{tuple(tensor.shape)}, not {tuple(ours.shape)}"
                self.skipped.append((raw, f"the head wants another shape: {shapes}"))
        # What the file holds of the same modules beside that (another design's).
        roots = tuple(upstream.values()) if self.names else ()
        for raw in theirs:
            if raw.startswith(roots) and raw not in self.names and roots:
                self.names.add(raw)
                self.skipped.append((raw, "the head has no such part"))
        if not self.values:
            # Nothing of it is ours: another kind of head, under names like ours.
            self.skipped = [(raw, "pretraining head") for raw, _ in self.skipped]
        if by_class:
            self.kept = tuple(label for label in labels if label in classes)
            self.new = tuple(label for label in labels if label not in classes)

    def copy(self) -> None:
        with torch.no_grad():
            for name, value in self.values.items():
                self._ours[name].copy_(value)


def misfit(name: str, tensor: Tensor, ours: Tensor) -> Fault | None:
    """Why a tensor cannot be used whatever its shape is."""
    if tensor.is_floating_point() != ours.is_floating_point():
        kinds = [str(t.dtype).removeprefix("torch.") for t in (tensor, ours)]
        return Fault(
            f"{name!r} is {kinds[0]} in the weights, {kinds[1]} in the model",
            fix="quantised weights cannot be loaded; use the original ones",
        )
    if not tensor.is_floating_point():
        return None
    # As cast, since a cast to a smaller type can overflow.
    cast = tensor.to(ours.dtype)
    if isinstance(ours, nn.Parameter):
        bad = cast.numel() - int(torch.isfinite(cast).sum())
    else:
        # Masks that are added to attention scores are buffers with infinities.
        bad = int(torch.isnan(cast).sum())
    if bad:
        return Fault(
            f"{name!r} has {bad} values of {cast.numel()} that are NaN or infinite",
            fix="the weights are damaged; get others",
        )
    return None
