"""The head of pretraining: fill in what was masked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from headstart.heads import Head
from headstart_medical.heads import decoded
from headstart_medical.sliding import Windows, check_window, enlarged

if TYPE_CHECKING:
    from collections.abc import Mapping

    from headstart.model import Model
    from headstart.specs import Feature
    from headstart.stages import State
    from headstart_medical.head_settings import ReconstructionSettings

_BATCH = ("target", "hidden", "extent")


class ReconstructionHead(Head):
    """A 1x1x1 convolution from the decoder's features to the channels of the volume.

    Only hidden voxels count, as in SimMIM (Xie et al. 2022): copying what is seen
    teaches nothing. The loss is a mean over patches, of each over what is hidden.

    Args:
        settings: Loss and windows.
        feature: What to read, (batch, channels, depth, height, width).
        task: Of kind ``reconstruction``.
    """

    cacheable: ClassVar[bool] = False

    def __init__(
        self,
        settings: ReconstructionSettings,
        feature: Feature,
        task: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self.squared = settings.loss == "l2"
        self.windows = Windows.of(settings, task["patch"])
        self.feature = feature.name
        self.reads = (feature.name,)
        self.channels = len(task["channels"])
        # The core calls factories with features of known width.
        self.conv = nn.Conv3d(cast("int", feature.channels), self.channels, 1)

    @property
    def reduction(self) -> str:
        return f"feature {self.feature}"

    def reduce(self, state: State) -> State:
        """Leave out all but the feature that it reads, and the target."""
        return {key: state[key] for key in (*self.reads, *_BATCH) if key in state}

    def forward(self, state: State) -> State:
        """Add ``reconstruction``, (batch, channels, depth, height, width) float32."""
        values = self.conv(state[self.feature]).float()
        if "target" in state:
            values = enlarged(values, state["target"].shape[2:])
        return {**state, "reconstruction": values}

    def loss(self, state: State) -> Tensor:
        return self._by_row(*_error(state, squared=self.squared)).mean()

    def weight(self, batch: State) -> Tensor:
        """Patches in the batch, whose parts may not be hidden yet."""
        rows: Tensor = batch["target"] if "target" in batch else batch["image"]
        return torch.full((), float(len(rows)), device=rows.device)

    def _by_row(self, error: Tensor, hidden: Tensor) -> Tensor:
        """The mean of each row's hidden voxels, (batch,)."""
        count = hidden.flatten(1).sum(1) * self.channels
        return error.flatten(1).sum(1) / count.clamp(min=1)

    def infer(self, model: Model, batch: State) -> State:
        """Windows over volumes that are larger than one; a smaller batch at once."""
        image: Tensor = batch["image"]
        if "extent" not in batch and all(
            side <= most
            for side, most in zip(image.shape[2:], self.windows.size, strict=True)
        ):
            return super().infer(model, batch)

        def network(windows: Tensor) -> Tensor:
            state = model(model.prefix({"image": windows}))
            return enlarged(state["reconstruction"], windows.shape[2:])

        filled = torch.zeros_like(image, dtype=torch.float32)
        for row, inside in enumerate(_insides(batch, image)):
            volume = image[row][inside]
            filled[row][inside] = self.windows(network, volume, self.channels)
        kept = {key: batch[key] for key in _BATCH if key in batch}
        return {**kept, "reconstruction": filled}

    def outputs(self, state: State) -> dict[str, Any]:
        """Per row ``error``, the mean absolute one of hidden voxels, (batch,).

        And ``blank``, that of the mean of what is seen: a guess that knows nothing of
        anatomy. Without a target ``reconstruction``: float16 arrays (channels, x, y,
        z).
        """
        if "target" not in state:
            rows = state["reconstruction"].half().cpu().numpy()
            insides = _insides(state, state["reconstruction"])
            cut = [row[inside] for row, inside in zip(rows, insides, strict=True)]
            return {"reconstruction": cut}
        error, hidden = _error(state)
        target = state["target"].float()
        seen = torch.zeros_like(state["hidden"])
        for row, inside in enumerate(_insides(state, seen)):
            seen[row][inside] = ~state["hidden"][row][inside]
        total = (target * seen).flatten(2).sum(2)
        mean = total / seen.flatten(2).sum(2).clamp(min=1)
        blank = (target - mean[..., None, None, None]).abs() * hidden
        return {
            "error": self._by_row(error, hidden),
            "blank": self._by_row(blank, hidden),
        }

    def decode(self, outputs: dict[str, Any]) -> list[dict[str, Any]]:
        """``error``; of what was only filled in, its ``mean``."""
        if "error" in outputs:
            return [{"error": round(float(error), 6)} for error in outputs["error"]]
        return [
            {"mean": round(float(np.asarray(row, dtype=np.float32).mean()), 6)}
            for row in outputs["reconstruction"]
        ]


def build_reconstruction(
    settings: ReconstructionSettings,
    features: Mapping[str, Feature],
    task: Mapping[str, Any],
) -> ReconstructionHead:
    """The head ``medical/reconstruction``; reads as the segmentation head does.

    Raises:
        UserError: The backbone gives no volume, or cannot read such windows.
    """
    check_window(settings, task["patch"], features.values())
    return ReconstructionHead(settings, decoded(features), task)


def sample_volumes(task: Mapping[str, Any], batch_size: int) -> State:
    """Valid targets for tests: ramps of 16x16x16, of which a corner is hidden."""
    ramp = torch.linspace(-1, 1, 16).repeat(
        batch_size, len(task["channels"]), 16, 16, 1
    )
    hidden = torch.zeros(batch_size, 1, 16, 16, 16, dtype=torch.bool)
    hidden[:, :, :8, :6, 4:] = True
    return {"target": ramp, "hidden": hidden}


def _insides(state: State, rows: Tensor) -> list[tuple[slice, ...]]:
    """Where each row (channels, depth, height, width) is no padding."""
    whole = [list(rows.shape[2:])] * len(rows)
    extents = state["extent"].tolist() if "extent" in state else whole
    return [(slice(None), *map(slice, extent)) for extent in extents]


def _error(state: State, *, squared: bool = False) -> tuple[Tensor, Tensor]:
    """The difference of hidden voxels, 0 elsewhere, and which are hidden."""
    hidden = state["hidden"]
    difference = state["reconstruction"] - state["target"].float()
    error = difference.square() if squared else difference.abs()
    return error * hidden, hidden
