"""EfficientNet-Lite0: EfficientNet b0 with ReLU6, without squeeze and excitation.

From TensorFlow's release of the EfficientNet-Lite family (2020), which no version of
torchvision has; the names of its tensors are those of the PyTorch port.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import nn
from torchvision.ops import StochasticDepth

if TYPE_CHECKING:
    from torch import Tensor

# Tan and Le 2019, table 1: expansion, kernel, stride, channels in and out, blocks.
EFFICIENTNET_B0 = (
    (1, 3, 1, 32, 16, 1),
    (6, 3, 2, 16, 24, 2),
    (6, 5, 2, 24, 40, 2),
    (6, 3, 2, 40, 80, 3),
    (6, 5, 1, 80, 112, 3),
    (6, 5, 2, 112, 192, 4),
    (6, 3, 1, 192, 320, 1),
)
# Blocks up to each stage's end: the last one of each stride.
_ENDS = {"stem": 1, "layer1": 3, "layer2": 5, "layer3": 11, "layer4": 16}
_NAMES = {
    "expand.0": "_expand_conv",
    "expand.1": "_bn0",
    "depthwise.0": "_depthwise_conv",
    "depthwise.1": "_bn1",
    "project.0": "_project_conv",
    "project.1": "_bn2",
}
_norm = partial(nn.BatchNorm2d, eps=1e-3, momentum=0.01)


class SameConv2d(nn.Conv2d):
    """A convolution with TensorFlow's ``SAME`` padding.

    The output has ``ceil(length / stride)`` positions; of an odd amount of padding the
    larger half is at the end, which torch's symmetric padding cannot say.
    """

    def forward(self, input: Tensor) -> Tensor:
        padding: list[int] = []
        # F.pad starts at the last dimension.
        for axis in (1, 0):
            length, step = input.shape[2 + axis], self.stride[axis]
            reach = (-(-length // step) - 1) * step + self.kernel_size[axis]
            missing = max(reach - length, 0)
            padding += [missing // 2, missing - missing // 2]
        padded = F.pad(input, padding)
        output: Tensor = self._conv_forward(padded, self.weight, self.bias)
        return output


def _unit(
    inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    conv = SameConv2d(inputs, outputs, kernel, stride, groups=groups, bias=False)
    return nn.Sequential(conv, _norm(outputs), nn.ReLU6(inplace=True))


class LiteBlock(nn.Module):
    """Expansion, depthwise convolution, linear projection, and a skip where it fits.

    Args:
        inputs: Channels.
        outputs: Channels.
        kernel: Of the depthwise convolution.
        stride: Of the depthwise convolution.
        expansion: Channels between, as a multiple of ``inputs``.
        drop: Probability that training leaves the block out for a sample.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int,
        expansion: int,
        drop: float,
    ) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.expand = _unit(inputs, hidden, 1) if expansion > 1 else nn.Identity()
        self.depthwise = _unit(hidden, hidden, kernel, stride, groups=hidden)
        self.project = _unit(hidden, outputs, 1)[:2]
        self.skips = stride == 1 and inputs == outputs
        self.drop = StochasticDepth(drop, "row")

    def forward(self, features: Tensor) -> Tensor:
        result: Tensor = self.project(self.depthwise(self.expand(features)))
        return features + self.drop(result) if self.skips else result


class EfficientNetLite(nn.Module):
    """The layers of EfficientNet-Lite0 before its pooling.

    Args:
        width: Factor on the channels of the blocks; stem and top stay as they are.
    """

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        self.stem = _unit(3, 32, 3, 2)
        count = sum(row[-1] for row in EFFICIENTNET_B0)
        blocks: list[LiteBlock] = []
        channels = 32
        for expansion, kernel, stride, _, full, repeats in EFFICIENTNET_B0:
            outputs = max(8, int(full * width + 4) // 8 * 8)
            for step in [stride] + [1] * (repeats - 1):
                drop = 0.2 * len(blocks) / count
                blocks.append(
                    LiteBlock(channels, outputs, kernel, step, expansion, drop)
                )
                channels = outputs
        self.blocks = nn.ModuleList(blocks)
        self.last = _unit(channels, 1280, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def stages(self) -> dict[str, dict[str, tuple[nn.Module, dict[str, str]]]]:
        """The modules of each stage by our names.

        Returns:
            For each stage and module: the module, and prefixes of its tensors' names
            with what they are in the files.
        """
        norm = {"0.": "_conv_stem.", "1.": "_bn0."}
        stages: dict[str, dict[str, tuple[nn.Module, dict[str, str]]]]
        stages = {"stem": {"conv": (self.stem, norm)}}
        start = 0
        for stage, end in _ENDS.items():
            part = stages.setdefault(stage, {})
            for i in range(start, end):
                names = {f"{ours}.": f"_blocks.{i}.{n}." for ours, n in _NAMES.items()}
                part[str(i - start)] = (self.blocks[i], names)
            start = end
        stages["last"] = {"0": (self.last, {"0.": "_conv_head.", "1.": "_bn1."})}
        return stages
