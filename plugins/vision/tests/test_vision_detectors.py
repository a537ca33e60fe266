"""Detectors against torchvision's own, assembled with the same parameters."""

from __future__ import annotations

import copy
import json
from collections import OrderedDict
from functools import cache, partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from pycocotools import mask as coco
from safetensors.torch import save_file
from torch import nn
from torchvision.models import detection, resnet18
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection.anchor_utils import (
    AnchorGenerator,
    DefaultBoxGenerator,
)
from torchvision.models.detection.faster_rcnn import (
    FasterRCNN,
    FastRCNNConvFCHead,
    FastRCNNPredictor,
)
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import (
    MaskRCNN,
    MaskRCNNHeads,
    MaskRCNNPredictor,
)
from torchvision.models.detection.retinanet import RetinaNet, RetinaNetHead
from torchvision.models.detection.rpn import RPNHead
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.ssdlite import SSDLiteHead, _extra_block
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from headstart.errors import UserError
from headstart.specs import Feature
from headstart.stages import Backbone, State
from headstart.testing.parts import same
from headstart.weights.sources import Weights
from headstart.weights.transfer import load_weights
from headstart_vision.detectors import (
    build_faster_rcnn,
    build_mask_rcnn,
    sample_targets,
)
from headstart_vision.old_names import current_name
from headstart_vision.pyramid import FullPrecisionAnchors
from headstart_vision.settings import (
    BoxHeadSettings,
    DetectorSettings,
    RegionSettings,
)
from headstart_vision.single_stage import build_retinanet, build_ssdlite

if TYPE_CHECKING:
    from pathlib import Path

LABELS = ["person", "bottle", "kiln"]
BOXES = {"kind": "boxes", "labels": LABELS, "counts": [5, 5, 5]}
INSTANCES = {**BOXES, "kind": "instances"}
FEATURES = {
    "stem": Feature("stem", "map", 64, 2, "stem"),
    **{
        f"layer{i}": Feature(f"layer{i}", "map", 32 * 2**i, 2 ** (i + 1), f"layer{i}")
        for i in (1, 2, 3, 4)
    },
}
SIDE, WIDTH = 64, 64
# Two images fill the batch, two are padded.
SIZES = torch.tensor([[64, 64], [48, 64], [64, 64], [48, 64]])
BUILD = {
    "faster": (build_faster_rcnn, BOXES),
    "mask": (build_mask_rcnn, INSTANCES),
    "retinanet": (build_retinanet, BOXES),
    "ssdlite": (build_ssdlite, BOXES),
}
KINDS = [
    ("faster", "v1"),
    ("faster", "v2"),
    ("mask", "v1"),
    ("mask", "v2"),
    ("retinanet", "v1"),
    ("retinanet", "v2"),
    ("ssdlite", "v1"),
]
SETTINGS: dict[str, Any] = {
    "faster": RegionSettings,
    "mask": RegionSettings,
    "retinanet": DetectorSettings,
    "ssdlite": BoxHeadSettings,
}
kinds = pytest.mark.parametrize(("kind", "design"), KINDS)


def build(kind: str, design: str = "v1", **settings: Any) -> Any:
    """A head with parameters that find something: not all near nought."""
    factory, task = BUILD[kind]
    common = {"name": f"vision/{kind}", "detections": 7, "score_threshold": 0.02}
    torch.manual_seed(3)
    if kind == "ssdlite":
        head = factory(BoxHeadSettings(**{**common, **settings}), FEATURES, task)
    else:
        values = {**common, "design": design, "channels": WIDTH, **settings}
        head = factory(SETTINGS[kind](**values), FEATURES, task)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
        if kind == "retinanet":
            # It starts with all scores at 0.01.
            head.detector.head.classification_head.cls_logits.bias.zero_()
    return head


@cache
def body() -> nn.Module:
    torch.manual_seed(0)
    layers = {f"layer{i}": f"layer{i}" for i in (1, 2, 3, 4)}
    return IntermediateLayerGetter(resnet18(weights=None), layers).eval()


def pixels() -> torch.Tensor:
    values = torch.rand(4, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    values[1, :, 48:] = 0
    values[3, :, 48:] = 0
    return values


def batch(kind: str, *, targets: bool = True, same_size: bool = False) -> Any:
    """What reaches a head: maps of all stages, sizes, targets."""
    images = pixels()
    with torch.no_grad():
        state = dict(body()(images))
    sizes = SIZES.clone()
    if same_size:
        sizes[:, 0] = 64
    state |= {"image_sizes": sizes, "original_sizes": sizes.clone()}
    if targets:
        state |= sample_targets(BUILD[kind][1], 4)
    return state


def reference_targets(state: Any, first: int = 1) -> list[dict[str, torch.Tensor]]:
    """The objects by hand, as torchvision wants them: no padding and no crowds."""
    rows = []
    for row in range(4):
        keep = [
            i
            for i, label in enumerate(state["box_labels"][row].tolist())
            if label > 0 and not state["crowd"][row, i]
        ]
        height, width = state["image_sizes"][row].tolist()
        target = {
            "boxes": state["boxes"][row][keep],
            "labels": state["box_labels"][row][keep] + (first - 1),
        }
        if "masks" in state:
            target["masks"] = state["masks"][row][keep][:, :height, :width]
        rows.append(target)
    return rows


class Assembled(nn.Module):
    """torchvision's backbones of detectors: a body, and levels over its maps."""

    def __init__(self, levels: nn.Module, first: int) -> None:
        super().__init__()
        self.body = body()
        self.out_channels = WIDTH
        self.layers = [f"layer{i}" for i in range(first, 5)]
        if isinstance(levels, nn.ModuleList):
            self.extra = levels
        else:
            self.fpn = levels

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        maps = self.body(images)
        found = OrderedDict((str(i), maps[name]) for i, name in enumerate(self.layers))
        if hasattr(self, "fpn"):
            return self.fpn(found)
        for block in self.extra:
            found[str(len(found))] = block(next(reversed(found.values())))
        return found


def reference(kind: str, design: str, head: Any) -> Any:
    """torchvision's own assembly, with the head's parameters."""
    v2 = design == "v2"
    shared = {"image_mean": [0.0] * 3, "image_std": [1.0] * 3, "_skip_resize": True}
    limits = {"score_thresh": 0.02, "detections_per_img": 7}
    sides = {"min_size": SIDE, "max_size": SIDE}
    if kind in ("faster", "mask"):
        norm = nn.BatchNorm2d if v2 else None
        fpn = FeaturePyramidNetwork(
            [64, 128, 256, 512], WIDTH, LastLevelMaxPool(), norm
        )
        parts: dict[str, Any] = {f"box_{k}": v for k, v in limits.items()}
        if v2:
            parts["rpn_head"] = RPNHead(WIDTH, 3, conv_depth=2)
            parts["box_head"] = FastRCNNConvFCHead(
                (WIDTH, 7, 7), [WIDTH] * 4, [1024], norm_layer=norm
            )
        if kind == "mask":
            parts["mask_head"] = MaskRCNNHeads(WIDTH, [WIDTH] * 4, 1, norm)
            parts["mask_predictor"] = MaskRCNNPredictor(WIDTH, WIDTH, 4)
        model = (MaskRCNN if kind == "mask" else FasterRCNN)(
            Assembled(fpn, 1),
            box_predictor=FastRCNNPredictor(1024, 4),
            **parts,
            **shared,
            **sides,
        )
    elif kind == "retinanet":
        coarser = LastLevelP6P7(512 if v2 else WIDTH, WIDTH)
        norm = partial(nn.GroupNorm, 32) if v2 else None
        own = RetinaNetHead(WIDTH, 9, 3, norm_layer=norm)
        if v2:
            own.regression_head._loss_type = "giou"
        fpn = FeaturePyramidNetwork([128, 256, 512], WIDTH, coarser)
        model = RetinaNet(Assembled(fpn, 2), 3, head=own, **shared, **sides, **limits)
    else:
        channels = [128, 256, 512, 512, 256, 256]
        norm = partial(nn.BatchNorm2d, eps=0.001, momentum=0.03)
        extra = nn.ModuleList(
            _extra_block(*pair, norm) for pair in pairwise(channels[2:])
        )
        boxes = DefaultBoxGenerator([[2, 3]] * 6, min_ratio=0.2, max_ratio=0.95)
        own = SSDLiteHead(channels, [6] * 6, 4, norm)
        model = SSD(
            Assembled(extra, 2),
            boxes,
            (SIDE, SIDE),
            4,
            head=own,
            nms_thresh=0.5,
            topk_candidates=300,
            **shared,
            **limits,
        )
    names = upstream_names(head)
    tensors = {names[k]: v.clone() for k, v in head.state_dict().items()}
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    assert not unexpected
    assert all(name.startswith("backbone.body.") for name in missing)
    return model


def upstream_names(head: Any) -> dict[str, str]:
    """Names of the head's tensors in torchvision's files."""
    names = {}
    for name in head.state_dict():
        prefix = max((p for p in head.upstream if name.startswith(p)), key=len)
        names[name] = head.upstream[prefix] + name.removeprefix(prefix)
    return names


def train_mode(model: Any) -> Any:
    model.train()
    model.backbone.body.eval()
    return model


def run(head: Any, state: Any) -> Any:
    """A head as the model runs it."""
    return head(head.reduce(state))


def images_of(state: Any) -> list[torch.Tensor]:
    """The images of the batch without their padding."""
    sizes = state["image_sizes"].tolist()
    return [image[:, :h, :w] for image, (h, w) in zip(pixels(), sizes, strict=True)]


def first_label(kind: str) -> int:
    """torchvision's number of our first class: RetinaNet's has no background."""
    return 0 if kind == "retinanet" else 1


# Against torchvision


@kinds
def test_losses_equal_torchvision(kind: str, design: str) -> None:
    head = build(kind, design).train()
    model = reference(kind, design, head).train()
    model.backbone.body.eval()
    # SSD resizes to one size; the others pad.
    state = batch(kind, same_size=kind == "ssdlite")
    assert (state["box_labels"] == 0).all(1).any(), "an image without an object"
    assert state["crowd"].any()
    targets = reference_targets(state, first_label(kind))
    torch.manual_seed(7)
    expected = model(images_of(state), targets)
    torch.manual_seed(7)
    result = run(head, state)
    assert "detections" not in result
    torch.testing.assert_close(result["losses"], expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(head.loss(result), sum(expected.values()))


@kinds
def test_detections_equal_torchvision(kind: str, design: str) -> None:
    head = build(kind, design).eval()
    model = reference(kind, design, head).eval()
    state = batch(kind, targets=False, same_size=kind == "ssdlite")
    with torch.no_grad():
        expected = model(images_of(state))
        result = run(head, state)
    assert "losses" not in result
    found = head.outputs(result)["prediction"]
    assert sum(len(each["boxes"]) for each in found) > 7
    for ours, theirs in zip(found, expected, strict=True):
        for name in ("boxes", "scores"):
            torch.testing.assert_close(ours[name], theirs[name], rtol=1e-5, atol=1e-5)
        assert torch.equal(ours["labels"], theirs["labels"] + 1 - first_label(kind))
        assert ("masks" in ours) == (kind == "mask")
        for rle, mask in zip(
            ours.get("masks", ()), theirs.get("masks", ()), strict=True
        ):
            assert np.array_equal(coco.decode(rle), mask[0].numpy() > 0.5)


@pytest.mark.parametrize("kind", BUILD)
def test_losses_in_evaluation_are_those_of_training_with_one_seed(kind: str) -> None:
    head = build(kind).eval()
    state = batch(kind, same_size=kind == "ssdlite")
    model = reference(kind, "v1", head).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    torch.manual_seed(0)
    expected = model(images_of(state), reference_targets(state, first_label(kind)))
    with torch.no_grad():
        losses = run(head, state)["losses"]
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-5)


@kinds
def test_evaluation_is_repeatable_and_leaves_no_trace(kind: str, design: str) -> None:
    head = build(kind, design).eval()
    state, before = batch(kind), copy.deepcopy(head.state_dict())
    given = copy.deepcopy(state)
    values = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        generator = torch.get_rng_state()
        with torch.no_grad():
            result = run(head, state)
        assert torch.equal(torch.get_rng_state(), generator)
        values.append((head.loss(result), head.outputs(result)["prediction"]))
    assert torch.equal(values[0][0], values[1][0])
    assert same(values[0][1], values[1][1])
    assert not any(module.training for module in head.modules())
    after = head.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert same(state, given)


def test_a_failing_loss_leaves_evaluation_as_it_was() -> None:
    head, state = build("faster").eval(), batch("faster")
    state["box_labels"] = state["box_labels"].float()
    with pytest.raises(TypeError):
        run(head, state)
    assert not any(module.training for module in head.modules())


# What reaches the parameters


@kinds
@pytest.mark.parametrize("empty", [False, True])
def test_every_parameter_gets_a_gradient(kind: str, design: str, empty: bool) -> None:
    head, state = build(kind, design).train(), batch(kind)
    if empty:
        state["box_labels"] = torch.zeros_like(state["box_labels"])
    loss = head.loss(run(head, state))
    assert loss.ndim == 0 and torch.isfinite(loss)
    loss.backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    for name, buffer in head.named_buffers():
        assert torch.isfinite(buffer.float()).all(), name


@kinds
def test_one_image_with_a_coarsest_map_of_one_position(kind: str, design: str) -> None:
    """A part of a batch: BatchNorm has a single value there."""
    head = build(kind, design).train()
    state = batch(kind)
    part = {
        name: value[:1, :, : value.shape[2] // 2, : value.shape[3] // 2]
        if name.startswith("layer")
        else value[:1]
        for name, value in state.items()
    }
    part["image_sizes"] = torch.tensor([[32, 32]])
    if kind == "mask":
        part["masks"] = part["masks"][..., :32, :32]
    assert torch.isfinite(head.loss(run(head, part)))


@pytest.mark.parametrize("kind", BUILD)
def test_boxes_without_a_side_are_left_out(kind: str) -> None:
    head, state = build(kind).train(), batch(kind)
    torch.manual_seed(5)
    expected = head.loss(run(head, state))
    more = dict(state)
    bad = torch.tensor(
        [
            [10.0, 10, 10, 30],
            [20.0, 30, 40, 20],
            [float("nan"), 1, 5, 5],
            [0, 0, 0, 0],
        ]
    )
    # First in line, so that what comes after must move up.
    more["boxes"] = torch.cat([bad.expand(4, 4, 4), state["boxes"]], 1)
    ones = torch.ones(4, 4, dtype=torch.int64)
    more["box_labels"] = torch.cat([ones, state["box_labels"]], 1)
    more["crowd"] = torch.cat([torch.zeros(4, 4, dtype=torch.bool), state["crowd"]], 1)
    if kind == "mask":
        junk = torch.ones(4, 4, SIDE, SIDE, dtype=torch.uint8)
        more["masks"] = torch.cat([junk, state["masks"]], 1)
    torch.manual_seed(5)
    assert torch.equal(head.loss(run(head, more)), expected)


def test_retinanet_parts_average_exactly() -> None:
    head, state = build("retinanet").eval(), batch("retinanet")
    with torch.no_grad():
        whole = head.loss(run(head, state))
        parts = [
            head.loss(run(head, {k: v[cut] for k, v in state.items()}))
            * head.weight({k: v[cut] for k, v in state.items()})
            for cut in (slice(0, 1), slice(1, 4))
        ]
    assert head.weight(state) == 4
    torch.testing.assert_close(sum(parts) / 4, whole)


def test_pooling_does_not_depend_on_the_first_batch() -> None:
    """torchvision guesses strides from the first sizes it sees: 64 / 40 fools it."""
    head, state = build("faster").eval(), batch("faster", targets=False)
    fresh = copy.deepcopy(head)
    small = {**state, "image_sizes": torch.full((4, 2), 40)}
    with torch.no_grad():
        run(head, small)
        first, second = (h.outputs(run(h, state))["prediction"] for h in (head, fresh))
    assert same(first, second)
    assert head.detector.roi_heads.box_roi_pool.scales == [1 / 4, 1 / 8, 1 / 16, 1 / 32]


@pytest.mark.parametrize("kind", BUILD)
def test_training_reads_the_device_once(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    head, state = build(kind).train(), batch(kind)
    reads = []
    tolist = torch.Tensor.tolist

    def counted(self: torch.Tensor) -> Any:
        reads.append(tuple(self.shape))
        return tolist(self)

    monkeypatch.setattr(torch.Tensor, "tolist", counted)
    run(head, state)
    # Height, width and number of objects of four images, together.
    assert reads == [(4, 3)]


# Precision


@pytest.mark.parametrize("kind", BUILD)
def test_boxes_keep_their_precision_in_bf16(kind: str) -> None:
    head, state = build(kind), batch(kind)
    # Far from 0 bf16 has whole pixels at best; the maps are wide enough for that.
    for name in [n for n in state if n.startswith("layer")]:
        state[name] = state[name].repeat(1, 1, 8, 8)
    state["image_sizes"] = torch.full((4, 2), 512)
    state["original_sizes"] = state["image_sizes"]
    if kind == "mask":
        state["masks"] = state["masks"].repeat(1, 1, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.isfinite(head.loss(run(head.train(), state)))
        with torch.no_grad():
            result = run(head.eval(), state)
    assert torch.isfinite(head.loss(result))
    boxes = torch.cat([each["boxes"] for each in head.outputs(result)["prediction"]])
    assert boxes.dtype == torch.float32
    assert not torch.equal(boxes, boxes.bfloat16().float())


def test_anchors_of_bf16_maps_are_those_of_float32() -> None:
    sizes, ratios = ((100,), (200,)), ((0.5, 1.0, 2.0),) * 2
    images = ImageList(torch.empty(640, 480, device="meta"), [(640, 480)])
    maps = [torch.zeros(1, 1, 80, 60), torch.zeros(1, 1, 40, 30)]
    expected = AnchorGenerator(sizes, ratios)(images, maps)
    ours = FullPrecisionAnchors(sizes, ratios)(images, [m.bfloat16() for m in maps])
    assert torch.equal(ours[0], expected[0])


# Outputs


def test_outputs_are_in_pixels_of_the_original_images() -> None:
    head, state = build("mask").eval(), batch("mask")
    with torch.no_grad():
        same = run(head, state)
        # Twice as high and three times as wide: 48 x 64 was 96 x 192.
        larger = {**same, "original_sizes": state["image_sizes"] * torch.tensor([2, 3])}
    before, after = head.outputs(same), head.outputs(larger)
    assert set(after) == {"prediction", "target", "size"}
    factors = torch.tensor([3.0, 2, 3, 2])
    for row, (h, w) in enumerate((SIZES * torch.tensor([2, 3])).tolist()):
        for key in ("prediction", "target"):
            expected = before[key][row]["boxes"] * factors
            torch.testing.assert_close(after[key][row]["boxes"], expected)
            masks = after[key][row]["masks"]
            assert len(masks) == len(expected)
            for rle, box in zip(masks, expected.tolist(), strict=True):
                assert rle["size"] == [h, w]
                x, y, width, height = coco.toBbox({**rle}).tolist()
                # Pasting widens a mask by half a cell of its 28.
                if width * height > 0:
                    assert x >= box[0] - 12 and x + width <= box[2] + 12
                    assert y >= box[1] - 12 and y + height <= box[3] + 12
    theirs = head.detector.transform.postprocess(
        [dict(each) for each in same["detections"]],
        SIZES.tolist(),
        (SIZES * torch.tensor([2, 3])).tolist(),
    )
    for ours, each in zip(after["prediction"], theirs, strict=True):
        torch.testing.assert_close(ours["boxes"], each["boxes"])
        for rle, mask in zip(ours["masks"], each["masks"], strict=True):
            assert np.array_equal(coco.decode(rle), mask[0].numpy() > 0.5)


def test_targets_are_those_of_the_batch() -> None:
    head, state = build("mask").eval(), batch("mask")
    with torch.no_grad():
        outputs = head.outputs(run(head, state))
    # Rows 1 and 3 have a crowd, row 2 has nothing; labels go round from the row on.
    assert [t["labels"].tolist() for t in outputs["target"]] == [
        [1, 2, 3],
        [2, 3, 1],
        [],
        [1, 2, 3],
    ]
    assert [t["crowd"].tolist() for t in outputs["target"]] == [
        [False, False, False],
        [False, False, True],
        [],
        [False, False, True],
    ]
    boxes = [[4, 4, 40, 36], [28, 10, 62, 46], [2, 20, 30, 44]]
    assert outputs["target"][3]["boxes"].tolist() == boxes
    for rle, (x1, y1, x2, y2) in zip(outputs["target"][3]["masks"], boxes, strict=True):
        expected = np.zeros((48, 64), np.uint8)
        expected[y1:y2, x1:x2] = 1
        assert np.array_equal(coco.decode(rle), expected)
    assert torch.equal(outputs["size"], SIZES)


def test_large_images_are_pasted_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    head, state = build("mask").eval(), batch("mask", targets=False)
    with torch.no_grad():
        result = run(head, state)
    whole = head.outputs(result)["prediction"]
    monkeypatch.setattr("headstart_vision.detections.TOGETHER", 2 * SIDE * SIDE)
    pieces = head.outputs(result)["prediction"]
    assert len(whole[0]["masks"]) > 2
    assert [p["masks"] for p in pieces] == [p["masks"] for p in whole]


@pytest.mark.parametrize("array", [torch.tensor, np.array])
def test_decode_names_rounds_and_sorts(array: Any) -> None:
    rle = {"size": [2, 2], "counts": "04"}
    prediction = {
        "boxes": array([[1.234567, 2, 3, 4], [5.0, 6, 7, 8]]),
        "scores": array([0.25, 0.87654321]),
        "labels": array([3, 1]),
    }
    outputs = {"prediction": [prediction, {**prediction, "masks": [rle, rle]}]}
    plain, masked = build("mask").decode(outputs)
    assert plain == {
        "detections": [
            {"label": "person", "score": 0.8765, "box": [5.0, 6.0, 7.0, 8.0]},
            {"label": "kiln", "score": 0.25, "box": [1.23, 2.0, 3.0, 4.0]},
        ]
    }
    assert masked["detections"][0]["mask"] == rle
    json.dumps([plain, masked])


def test_nothing_found_is_an_empty_list() -> None:
    head = build("mask", score_threshold=1.0).eval()
    with torch.no_grad():
        outputs = head.outputs(run(head, batch("mask", targets=False)))
    assert [len(p["boxes"]) for p in outputs["prediction"]] == [0] * 4
    assert head.decode(outputs) == [{"detections": []}] * 4


@pytest.mark.parametrize("kind", BUILD)
def test_reduction_keeps_what_is_read(kind: str) -> None:
    head, state = build(kind), batch(kind)
    finest = 1 if kind in ("faster", "mask") else 2
    reads = tuple(f"layer{i}" for i in range(finest, 5))
    assert head.reads == reads
    kept = head.reduce({**state, "pixels": pixels(), "stem": torch.zeros(4, 1, 1, 1)})
    assert set(kept) == set(state) - ({"layer1"} - set(reads))
    assert all(kept[name] is state[name] for name in kept)
    assert head.reduction != build(kind, features=reads[1:]).reduction


# What does not fit


@pytest.mark.parametrize(
    ("kind", "settings", "words"),
    [
        ("faster", {"features": ("layer2", "lajer3")}, ["lajer3", "layer3"]),
        ("faster", {"features": ("layer4", "layer2")}, ["layer2', 'layer4"]),
        ("faster", {"features": ("layer1", "layer3")}, ["gap", "stride 8"]),
        ("faster", {"anchor_sizes": (8, 16)}, ["2 levels", "has 5", "8, 16, 32"]),
        (
            "faster",
            {"features": ("layer4",), "anchor_sizes": (8, (16, 20))},
            ["equally many"],
        ),
        ("retinanet", {"design": "v2", "channels": 80}, ["80 channels", "32"]),
        ("retinanet", {"design": "v2", "channels": 32}, ["32 channels"]),
        ("ssdlite", {"features": ("layer9",)}, ["layer9"]),
    ],
)
def test_settings_that_do_not_fit(kind: str, settings: Any, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        build(kind, **settings)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("kind", BUILD)
def test_a_backbone_without_maps_is_refused(kind: str) -> None:
    factory, task = BUILD[kind]
    settings = SETTINGS[kind](name=f"vision/{kind}")
    with pytest.raises(UserError, match="no map"):
        factory(settings, {"pooled": Feature("pooled", "vector", 8)}, task)


def test_the_last_map_of_each_stride_is_read() -> None:
    features = {
        **FEATURES,
        "late": Feature("late", "map", 96, 32, "late"),
        "pooled": Feature("pooled", "vector", 96),
    }
    settings = RegionSettings(name="vision/faster-rcnn", channels=8)
    head = build_faster_rcnn(settings, features, BOXES)
    assert head.reads == ("layer1", "layer2", "layer3", "late")


# Files of whole pretrained detectors

WHOLE = {
    "fasterrcnn_resnet50_fpn": ("faster", "v1", {}),
    "fasterrcnn_resnet50_fpn_v2": ("faster", "v2", {}),
    "maskrcnn_resnet50_fpn": ("mask", "v1", {}),
    "maskrcnn_resnet50_fpn_v2": ("mask", "v2", {}),
    "retinanet_resnet50_fpn": ("retinanet", "v1", {}),
    "retinanet_resnet50_fpn_v2": ("retinanet", "v2", {}),
    "fasterrcnn_mobilenet_v3_large_fpn": (
        "faster",
        "v1",
        {
            "features": ("c4", "c5"),
            "anchor_sizes": ((32, 64, 128, 256, 512),) * 3,
        },
    ),
    "ssdlite320_mobilenet_v3_large": ("ssdlite", "v1", {"features": ("e4", "d5")}),
}
DEEP = {
    f"layer{i}": Feature(f"layer{i}", "map", 128 * 2**i, 2 ** (i + 1), f"layer{i}")
    for i in (1, 2, 3, 4)
}
MOBILE = {
    "c4": Feature("c4", "map", 160, 32, "c4"),
    "c5": Feature("c5", "map", 960, 32, "c5"),
    "e4": Feature("e4", "map", 672, 16, "e4"),
    "d5": Feature("d5", "map", 480, 32, "d5"),
}


@pytest.mark.parametrize("name", WHOLE)
def test_every_tensor_of_a_whole_file_has_its_place(name: str) -> None:
    kind, design, settings = WHOLE[name]
    factory, task = BUILD[kind]
    coco_task = {**task, "labels": [f"class {i}" for i in range(90)]}
    values = {"name": f"vision/{kind}", **settings}
    if kind != "ssdlite":
        values["design"] = design
    made = SETTINGS[kind]
    with torch.device("meta"):
        theirs = getattr(detection, name)(weights=None, weights_backbone=None)
        features = DEEP if "resnet50" in name else MOBILE
        head = factory(made(**values), features, coco_task)
    names = upstream_names(head)
    ours = {names[k]: tuple(v.shape) for k, v in head.state_dict().items()}
    file = {
        k: tuple(v.shape)
        for k, v in theirs.state_dict().items()
        if not k.startswith(("backbone.body.", "backbone.features."))
    }
    # RetinaNet's file has a row for the background, which nothing ever is.
    by_class = {
        k: shape for k, shape in file.items() if kind == "retinanet" and "cls_l" in k
    }
    assert {k: s for k, s in ours.items() if k not in by_class} == {
        k: s for k, s in file.items() if k not in by_class
    }
    for k, shape in by_class.items():
        assert shape == (9 * 91, *ours[k][1:]) and ours[k][0] == 9 * 90


CLASSES = ["__background__", "person", "N/A", "kiln", "N/A", "car"]


@pytest.mark.parametrize("kind", BUILD)
def test_a_whole_file_loads_with_a_head_swap(kind: str, tmp_path: Path) -> None:
    """Rows of classes land where names match, all else as it is in the file."""
    factory, task = BUILD[kind]
    theirs_task = {**task, "labels": CLASSES[1:]}
    settings: Any = {"name": f"vision/{kind}"}
    if kind != "ssdlite":
        settings |= {"channels": WIDTH}
    made = SETTINGS[kind](**settings)
    torch.manual_seed(11)
    source = factory(made, FEATURES, theirs_task)
    for parameter in source.parameters():
        nn.init.normal_(parameter)
    tensors = {upstream_names(source)[k]: v for k, v in source.state_dict().items()}
    classes = CLASSES
    if kind == "retinanet":
        # torchvision's file counts a background that our own head has no row for.
        layer = "head.classification_head.cls_logits"
        for end in ("weight", "bias"):
            rows = tensors[f"{layer}.{end}"].unflatten(0, (9, 5))
            blank = torch.zeros_like(rows[:, :1])
            tensors[f"{layer}.{end}"] = torch.cat([blank, rows], 1).flatten(0, 1)
    stage = Body()
    tensors |= {f"backbone.body.{k}": v for k, v in stage.body.state_dict().items()}
    path = tmp_path / "model.safetensors"
    save_file({k: v.clone().contiguous() for k, v in tensors.items()}, path)
    backbone = Backbone(
        {"body": Body()},
        features=list(FEATURES.values()),
        upstream={"stages.body.body.": "backbone.body."},
    )
    head = factory(made, FEATURES, task)
    before = {k: v.clone() for k, v in head.state_dict().items()}
    weights = Weights("torchvision:X", None, (path,), classes=tuple(classes))
    report = load_weights(backbone, weights, head=head, labels=LABELS)
    assert report.classes_kept == ("person", "kiln")
    assert report.classes_new == ("bottle",)
    assert not report.skipped and not report.reinitialised
    after, given = head.state_dict(), source.state_dict()
    assert set(report.head_loaded) == set(after)
    swapped = 0
    for name, value in after.items():
        if value.shape == given[name].shape:
            assert torch.equal(value, given[name]), name
            continue
        swapped += 1
        background = int(kind != "retinanet")
        groups = {"retinanet": 9, "ssdlite": 6}.get(kind, 1)
        width = 4 if "bbox_pred" in name else 1
        ours, old, theirs = (
            t.unflatten(0, (groups, -1, width))
            for t in (value, before[name], given[name])
        )
        if background:
            assert torch.equal(ours[:, 0], theirs[:, 0])
        # Ours: person, bottle, kiln; theirs: person, N/A, kiln, N/A, car.
        assert torch.equal(ours[:, background], theirs[:, background])
        assert torch.equal(ours[:, background + 1], old[:, background + 1])
        assert torch.equal(ours[:, background + 2], theirs[:, background + 2])
    assert swapped == {"faster": 4, "mask": 6, "retinanet": 2, "ssdlite": 12}[kind]


class Body(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = copy.deepcopy(body())

    def forward(self, state: State) -> State:
        return {**state, **self.body(state["pixels"])}


def old_name(name: str) -> str:
    """A name as files from before version 0.13 have it."""
    parts = name.split(".")
    if "inner_blocks" in parts or "layer_blocks" in parts:
        return ".".join(parts[:4] + parts[5:])
    if name.startswith("rpn.head.conv."):
        return f"rpn.head.conv.{parts[-1]}"
    if parts[:2] in (["head", "classification_head"], ["head", "regression_head"]):
        if parts[2] == "conv":
            return ".".join([*parts[:3], str(2 * int(parts[3])), parts[-1]])
    if name.startswith("roi_heads.mask_head."):
        return f"roi_heads.mask_head.mask_fcn{int(parts[2]) + 1}.{parts[-1]}"
    return name


@pytest.mark.parametrize("name", ["maskrcnn_resnet50_fpn", "retinanet_resnet50_fpn"])
def test_old_names_become_todays(name: str) -> None:
    with torch.device("meta"):
        model = getattr(detection, name)(weights=None, weights_backbone=None)
    tensors = dict(model.state_dict())
    old = {old_name(k): v for k, v in tensors.items()}
    assert len(set(old) - set(tensors)) > 8
    # torchvision itself takes these for old names of the same tensors.
    model.load_state_dict(old, strict=True, assign=True)
    assert [current_name(k) for k in old] == list(tensors)
    assert [current_name(k) for k in tensors] == list(tensors)
