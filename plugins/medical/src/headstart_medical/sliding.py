"""Windows that slide over a whole volume, blended where they overlap.

MONAI's ``sliding_window_inference`` does the sliding. What has to be in memory at once
is the network's work on a few windows, and one volume per class with one for the
weights, which go to main memory where the GPU has no room for them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Literal, cast

import torch
import torch.nn.functional as F
from monai.inferers.utils import sliding_window_inference

from headstart.errors import UserError
from headstart_medical.stages import by

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from torch import Tensor

    from headstart.specs import Feature
    from headstart_medical.head_settings import WindowSettings

AXES = {"x": 2, "y": 3, "z": 4}
"""Of the patient's right, front and top: dimension of a batch of volumes."""
ROOM = 0.5
"""Share of a GPU's free memory that volumes may take."""


@dataclass(frozen=True)
class Windows:
    """How a network that knows patches sees a volume.

    Attributes:
        size: Voxels of a window; a smaller volume is padded on both sides with the
            darkest value of each channel, as patches of the training are.
        overlap: Share of a window's side that the next one covers again.
        batch: Windows in one forward pass.
        stitch: Where the volume is put together.
        flips: Axes along which each window is also seen mirrored; every combination
            counts, and the mean of the logits is taken, as in nnU-Net.
    """

    size: tuple[int, int, int]
    overlap: float = 0.25
    batch: int = 1
    stitch: Literal["auto", "device", "cpu"] = "auto"
    flips: tuple[str, ...] = ()

    @classmethod
    def of(cls, settings: WindowSettings, patch: Sequence[int]) -> Windows:
        """As settings have it; windows are as large as the patches of the training."""
        i, j, k = settings.window or patch
        return cls(
            (int(i), int(j), int(k)),
            settings.overlap,
            settings.window_batch,
            settings.stitch,
            settings.flips,
        )

    def __call__(
        self, network: Callable[[Tensor], Tensor], volume: Tensor, channels: int
    ) -> Tensor:
        """The network's output for a volume, windows weighted by a Gaussian.

        Args:
            network: (windows, inputs, depth, height, width) to (windows, channels, …)
                of the same size.
            volume: (inputs, depth, height, width).
            channels: Of the output.

        Returns:
            float32 (channels, depth, height, width).
        """
        device = self.stitch_device(volume.device, channels * volume[0].numel())
        volume, inside = self._padded(volume.float())
        blended = sliding_window_inference(
            volume.unsqueeze(0),
            self.size,
            self.batch,
            lambda windows: self.mirrored(network, windows),
            overlap=self.overlap,
            mode="gaussian",
            sw_device=volume.device,
            device=device,
        )
        # Of a network that gives one tensor.
        i, j, k = inside
        return cast("Tensor", blended)[0][:, i, j, k]

    def mirrored(self, network: Callable[[Tensor], Tensor], windows: Tensor) -> Tensor:
        """The mean over all mirror images, each turned back."""
        axes = sorted({AXES[name] for name in self.flips})
        total = network(windows).float()
        for count in range(1, len(axes) + 1):
            for chosen in combinations(axes, count):
                total = total + network(windows.flip(chosen)).float().flip(chosen)
        return total / (1 << len(axes))

    def _padded(self, volume: Tensor) -> tuple[Tensor, tuple[slice, ...]]:
        """A volume with room for a window, and where in it the volume is."""
        inside, margins = [], []
        for side, least in zip(volume.shape[1:], self.size, strict=True):
            before = max(least - side, 0) // 2
            inside.append(slice(before, before + side))
            margins.append((before, max(least - side, 0) - before))
        if any(after for _, after in margins):
            darkest = volume.amin((1, 2, 3)).view(-1, 1, 1, 1)
            sides = [margin for pair in reversed(margins) for margin in pair]
            padded = F.pad(volume, sides)
            there = F.pad(torch.ones_like(volume[:1]), sides) > 0
            volume = torch.where(there, padded, darkest)
        return volume, tuple(inside)

    def stitch_device(self, device: torch.device, values: int) -> torch.device:
        """Where a volume of so many values is put together.

        Args:
            device: The network's.
            values: Voxels times channels.
        """
        if self.stitch == "cpu":
            return torch.device("cpu")
        if self.stitch == "device" or device.type != "cuda":
            return device
        # Twice: where windows add up, and what is made of it.
        needed = 2 * 4 * values
        free, _ = torch.cuda.mem_get_info(device)
        return device if needed <= ROOM * free else torch.device("cpu")


def check_window(
    settings: WindowSettings, patch: Sequence[int], features: Iterable[Feature]
) -> None:
    """Refuse windows that a network cannot halve as often as the patches.

    Before the training, not after it when the first volume is looked at.

    Args:
        settings: May have a window.
        patch: What the network can read.
        features: All of the network's, with their strides.

    Raises:
        UserError: A side is no multiple of the stride.
    """
    if settings.window is None:
        return
    stride = max(feature.stride for feature in features)
    # Along an axis that is halved less often the patch may say so.
    steps = [math.gcd(stride, side) for side in patch]
    if any(side % step for side, step in zip(settings.window, steps, strict=True)):
        fitting = [
            -(-side // step) * step
            for side, step in zip(settings.window, steps, strict=True)
        ]
        raise UserError(
            f"the network cannot read windows of {by(settings.window)} voxels",
            where="head.window",
            why=f"{by(steps)} must divide them",
            fix=f"head.window = {fitting}",
        )


def enlarged(values: Tensor, size: Sequence[int]) -> Tensor:
    """(batch, channels, depth, height, width) at another size, trilinear."""
    if tuple(values.shape[2:]) == tuple(size):
        return values
    return F.interpolate(values, list(size), mode="trilinear", align_corners=False)
