"""From feature maps and a batch to what torchvision's detectors take."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeVar, cast, overload

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import FeaturePyramidNetwork

from headstart.errors import Fault, UserError, nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from headstart.specs import Feature
    from headstart.stages import State

T = TypeVar("T")
Target = dict[str, Tensor]
RATIOS = (0.5, 1.0, 2.0)


class FullPrecisionAnchors(AnchorGenerator):  # type: ignore[misc]
    """Anchors in float32, whatever the maps are in.

    torchvision makes them in the maps' type, and bf16 has no odd number above 256.
    """

    def set_cell_anchors(self, dtype: torch.dtype, device: torch.device) -> None:
        super().set_cell_anchors(torch.float32, device)


class Later(Sequence[T]):
    """A sequence of known length whose entries are made when the first is looked at.

    What is on a GPU can be read after all work that was queued before it. torchvision
    waits for the GPU in its first NMS; sizes and targets that are read no earlier
    cost no second wait.
    """

    def __init__(self, length: int, make: Callable[[], list[T]]) -> None:
        self._length = length
        self._make = make

    @cached_property
    def _entries(self) -> list[T]:
        return self._make()

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        return self._entries[index]


class Images(ImageList):  # type: ignore[misc]
    """A batch as torchvision's detectors take it, without its pixels.

    Attributes:
        tensors: Has the batch's height and width, and no memory.
        image_sizes: Height and width of each image.
        targets: ``boxes``, ``labels`` and, where there are any, ``masks`` of the
            objects of each image that can be learned from; ``None`` without targets.
    """

    def __init__(self, state: State, finest: Tensor, stride: int) -> None:
        canvas = [side * stride for side in finest.shape[-2:]]
        count = len(finest)
        super().__init__(
            torch.empty(canvas, device="meta"), Later(count, self._read_sizes)
        )
        self._state = state
        self.targets: Later[Target] | None = None
        if "boxes" in state:
            self.targets = Later(count, self._read_targets)

    @cached_property
    def _learnable(self) -> Tensor:
        """Which objects can be learned from, (batch, objects)."""
        boxes: Tensor = self._state["boxes"]
        labels: Tensor = self._state["box_labels"]
        # A box that a crop left without a side is none; nor is one with a NaN.
        learnable = (labels > 0) & (boxes[..., 2:] > boxes[..., :2]).all(-1)
        crowd = self._state.get("crowd")
        return learnable if crowd is None else learnable & ~crowd

    @cached_property
    def _rows(self) -> list[list[int]]:
        """Height, width and number of objects of each image; waits for the device."""
        rows: Tensor = self._state["image_sizes"]
        if self.targets is not None:
            rows = torch.cat([rows, self._learnable.sum(1, keepdim=True)], 1)
        return rows.tolist()

    def _read_sizes(self) -> list[tuple[int, int]]:
        return [(height, width) for height, width, *_ in self._rows]

    def _read_targets(self) -> list[Target]:
        # Those to learn from first, by an index: a mask would wait for the device.
        order = (~self._learnable).to(torch.uint8).argsort(dim=1, stable=True)
        names = {"boxes": "boxes", "box_labels": "labels", "masks": "masks"}
        return [
            {
                theirs: self._state[ours][row][order[row, :count]]
                for ours, theirs in names.items()
                if ours in self._state
            }
            for row, (*_, count) in enumerate(self._rows)
        ]


def choose_maps(
    named: Sequence[str], features: Mapping[str, Feature], finest: int
) -> list[Feature]:
    """The maps that a detector reads, fine to coarse.

    Args:
        named: The recipe's choice; empty takes the last map of each stride.
        features: What the backbone leaves in the state.
        finest: The least stride of those that are taken by themselves.

    Raises:
        UserError: There is no such map; there are none; coarse comes before fine.
    """
    maps = {name: f for name, f in features.items() if f.kind == "map"}
    if not named:
        by_stride = {f.stride: f for f in maps.values() if f.stride >= finest}
        chosen = [by_stride[stride] for stride in sorted(by_stride)]
        if not chosen:
            raise UserError(
                f"the backbone leaves no map of stride {finest} or more",
                where="head.name",
                why=f"it leaves {_listed(maps) or 'no map at all'}",
                fix="choose a backbone for images; `headstart list backbones` names "
                "them",
            )
        return chosen
    faults = [
        Fault(
            f"the backbone leaves no map {name!r}",
            where="head.features",
            why=f"it leaves {_listed(maps) or 'no map at all'}",
            fix=nearest(name, maps),
        )
        for name in named
        if name not in maps
    ]
    if faults:
        raise UserError(*faults)
    chosen = [maps[name] for name in named]
    if any(fine.stride > coarse.stride for fine, coarse in pairwise(chosen)):
        order = sorted(named, key=lambda name: maps[name].stride)
        raise UserError(
            "a coarse map comes before a finer one",
            where="head.features",
            why=f"the strides are {_listed({n: maps[n] for n in named})}",
            fix=f"head.features = {order}",
        )
    return chosen


def check_doubling(maps: Sequence[Feature]) -> None:
    """Refuse maps between which a region of interest would find none.

    torchvision's RoI pooling counts its levels by doublings of the stride.

    Raises:
        UserError: A stride is neither the one before it nor twice that.
    """
    for fine, coarse in pairwise(maps):
        if coarse.stride not in (fine.stride, 2 * fine.stride):
            raise UserError(
                f"between {fine.name!r} (stride {fine.stride}) and {coarse.name!r} "
                f"(stride {coarse.stride}) the pyramid has a gap",
                where="head.features",
                why="each level must be as fine as the one before it, or half as fine",
                fix=f"name a map of stride {2 * fine.stride} between them, or leave "
                "one of them out",
            )


def make_anchors(
    given: Sequence[int | Sequence[int]],
    strides: Sequence[int],
    *,
    times: int,
    octaves: int = 1,
) -> FullPrecisionAnchors:
    """Anchors of three shapes for each level of a pyramid.

    Args:
        given: The recipe's side or sides for each level; may be empty.
        strides: Of the levels.
        times: The side by default, in strides.
        octaves: Anchors in place of a single side: they divide the step to twice that
            side evenly.

    Raises:
        UserError: Sides for another number of levels, or not equally many on each.
    """
    sizes = given or [times * stride for stride in strides]
    rows = [
        tuple(int(size * 2 ** (step / octaves)) for step in range(octaves))
        if isinstance(size, int)
        else tuple(size)
        for size in sizes
    ]
    if len(rows) != len(strides):
        raise UserError(
            f"anchor sizes for {len(rows)} levels, the pyramid has {len(strides)}",
            where="head.anchor_sizes",
            why=f"their strides are {', '.join(map(str, strides))}",
            fix=f"head.anchor_sizes = {[times * stride for stride in strides]}, or [] "
            "for these",
        )
    if len({len(row) for row in rows}) > 1 or not rows[0]:
        raise UserError(
            "the levels of the pyramid have different numbers of anchor sizes",
            where="head.anchor_sizes",
            why="one convolution predicts for all levels",
            fix="give every level equally many, at least one",
        )
    return FullPrecisionAnchors(tuple(rows), (RATIOS,) * len(rows))


def make_pyramid(
    maps: Sequence[Feature], width: int, coarser: nn.Module, norm: Any = None
) -> nn.Module:
    """torchvision's pyramid over the maps, with levels that ``coarser`` adds."""
    channels = [cast("int", feature.channels) for feature in maps]
    pyramid: Any = FeaturePyramidNetwork(channels, width, coarser, norm)
    pyramid.out_channels = width
    return cast("nn.Module", pyramid)


def stand_ins(maps: Sequence[Tensor]) -> list[Tensor]:
    """Tensors of the maps' shapes in float32, without memory."""
    return [m.new_empty((), dtype=torch.float32).expand(m.shape) for m in maps]


def to_float32(module: Any, inputs: Any, output: Any) -> Any:
    """A forward hook: what leaves a layer under autocast goes on in float32.

    Boxes are coordinates in pixels; torchvision decodes them in the type of the
    layer's output.
    """
    if isinstance(output, Tensor):
        return output.float()
    return type(output)(to_float32(module, inputs, entry) for entry in output)


def _listed(maps: Mapping[str, Feature]) -> str:
    return ", ".join(f"{name} ({f.stride})" for name, f in maps.items())
