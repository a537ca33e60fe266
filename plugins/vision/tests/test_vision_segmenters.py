"""Segmentation heads against torchvision's assembled networks, and by hand."""

from __future__ import annotations

import copy
import sys
import types
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import mobilenet_v3_small, resnet18
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.segmentation import (
    LRASPP,
    DeepLabV3_ResNet50_Weights,
)
from torchvision.models.segmentation.deeplabv3 import DeepLabHead, DeepLabV3
from torchvision.models.segmentation.fcn import FCN, FCNHead

from headstart.errors import UserError
from headstart.report.parts import Evaluation
from headstart.specs import Feature
from headstart_vision.segmenters import (
    build_deeplab,
    build_fcn,
    build_lraspp,
    sample_targets,
)
from headstart_vision.settings import (
    DeepLabSettings,
    FcnSettings,
    SegmenterSettings,
)

LABELS = ["background", "cat", "dog"]
TASK = {"kind": "semantic", "labels": LABELS, "counts": [3, 2, 1]}
RESNET = {
    "layer1": (64, 4),
    "layer2": (128, 8),
    "layer3": (256, 16),
    "layer4": (512, 32),
}
MOBILE = {"0": (16, 2), "1": (16, 4), "3": (24, 8), "8": (48, 16), "12": (576, 32)}
BUILD = {
    "deeplab": (build_deeplab, DeepLabSettings),
    "fcn": (build_fcn, FcnSettings),
    "lraspp": (build_lraspp, SegmenterSettings),
}


def maps(channels: dict[str, tuple[int, int]]) -> dict[str, Feature]:
    return {
        name: Feature(name, "map", width, stride=stride, stage=name)
        for name, (width, stride) in channels.items()
    }


SMALL = maps(
    {"layer1": (4, 4), "layer2": (6, 8), "layer3": (8, 16), "layer4": (12, 32)}
)


def build(kind: str, given: Any = SMALL, task: Any = TASK, **settings: Any) -> Any:
    torch.manual_seed(0)
    factory, model = BUILD[kind]
    return factory(model(name=f"vision/{kind}", **settings), given, task)


def run_head(head: Any, state: Any) -> Any:
    """A head as the model runs it."""
    return head(head.reduce(state))


def small_state(rows: int = 2) -> dict[str, Any]:
    """The maps that ``SMALL`` describes, of images of 64x96."""
    generator = torch.Generator().manual_seed(1)
    return {
        f.name: torch.randn(
            rows, f.channels or 0, 64 // f.stride, 96 // f.stride, generator=generator
        )
        for f in SMALL.values()
    }


def with_mask(state: dict[str, Any], classes: int = 3) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(2)
    rows = len(next(iter(state.values())))
    mask = torch.randint(0, classes, (rows, 64, 96), generator=generator)
    mask[0, :10] = 255
    mask[1:, 40:] = 255
    return {**state, "mask": mask}


def reference_loss(outputs: dict[str, torch.Tensor], mask: torch.Tensor) -> Any:
    """torchvision's criterion of its training reference for segmentation."""
    losses = {
        name: F.cross_entropy(logits, mask, ignore_index=255)
        for name, logits in outputs.items()
    }
    if len(losses) == 1:
        return losses["out"]
    return losses["out"] + 0.5 * losses["aux"]


def assembled(kind: str, network: str, auxiliary: bool) -> tuple[nn.Module, Any]:
    """torchvision's network of that kind, and the head on the same maps."""
    torch.manual_seed(3)
    if network == "resnet18":
        body, described, names = resnet18(), RESNET, ["layer3", "layer4"]
    else:
        body, described, names = mobilenet_v3_small().features, MOBILE, ["8", "12"]
    early, late = names
    width = described[late][0]
    aux = FCNHead(described[early][0], 3) if auxiliary else None
    if kind == "lraspp":
        low = "layer2" if network == "resnet18" else "3"
        taken = {low: "low", late: "high"}
        backbone = IntermediateLayerGetter(body, taken)
        whole: nn.Module = LRASPP(backbone, described[low][0], width, 3)
        return whole, build("lraspp", maps(described))
    taken = {early: "aux", late: "out"} if auxiliary else {late: "out"}
    backbone = IntermediateLayerGetter(body, taken)
    settings = {"auxiliary": 0.5} if auxiliary else {}
    head = build(kind, maps(described), **settings)
    if kind == "deeplab":
        return DeepLabV3(backbone, DeepLabHead(width, 3), aux), head
    return FCN(backbone, FCNHead(width, 3), aux), head


@pytest.mark.parametrize("network", ["resnet18", "mobilenet_v3_small"])
@pytest.mark.parametrize(
    ("kind", "auxiliary"),
    [("deeplab", False), ("deeplab", True), ("fcn", True), ("lraspp", False)],
)
def test_equals_the_assembled_network_of_torchvision(
    kind: str, auxiliary: bool, network: str
) -> None:
    """The same logits, loss and gradients, dropout and BatchNorm in training too."""
    whole, head = assembled(kind, network, auxiliary)
    decoders = {
        name: tensor
        for name, tensor in whole.state_dict().items()
        if not name.startswith("backbone.")
    }
    # Names are torchvision's, as `upstream` says.
    assert all(ours == theirs for ours, theirs in head.upstream.items())
    assert {k.split(".")[0] + "." for k in decoders} == set(head.upstream)
    head.load_state_dict(decoders, strict=True)
    images = torch.rand(2, 3, 64, 96)
    names = {v: k for k, v in whole.backbone.return_layers.items()}
    with_masks = with_mask({"pixels": images})
    for mode in (False, True):
        whole.train(mode), head.train(mode)
        # The maps as the network computes them, its statistics left alone.
        found = copy.deepcopy(whole.backbone)(images)
        state = {names[key]: value.detach() for key, value in found.items()}
        torch.manual_seed(4)
        expected = whole(images)
        torch.manual_seed(4)
        ours = run_head(head, {**state, "mask": with_masks["mask"]})
        torch.testing.assert_close(ours["logits"], expected["out"])
        if auxiliary:
            torch.testing.assert_close(ours["auxiliary_logits"], expected["aux"])
        loss, theirs = head.loss(ours), reference_loss(expected, with_masks["mask"])
        torch.testing.assert_close(loss, theirs)
    loss.backward()
    theirs.backward()
    gradients = {n: p.grad for n, p in whole.named_parameters() if p.grad is not None}
    for name, parameter in head.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], msg=name)
    for name, value in head.state_dict().items():
        torch.testing.assert_close(value, whole.state_dict()[name], msg=name)


@pytest.mark.parametrize(
    ("kind", "settings", "reads"),
    [
        ("deeplab", {}, ("layer4",)),
        ("deeplab", {"auxiliary": 0.5}, ("layer3", "layer4")),
        ("deeplab", {"features": ["layer3"]}, ("layer3",)),
        ("fcn", {"features": ["layer3"], "auxiliary": 0.5}, ("layer2", "layer3")),
        (
            "fcn",
            {"features": ["layer1", "layer4"], "auxiliary": 1},
            ("layer1", "layer4"),
        ),
        ("lraspp", {}, ("layer2", "layer4")),
        ("lraspp", {"features": ["layer1", "layer3"]}, ("layer1", "layer3")),
    ],
)
def test_reads_the_maps_it_says_and_no_other(
    kind: str, settings: dict[str, Any], reads: tuple[str, ...]
) -> None:
    head = build(kind, channels=8, **settings).eval()
    assert head.reads == reads
    state = with_mask(small_state())
    sizes = torch.tensor([[64, 96]] * 2)
    state |= {"image_sizes": sizes, "original_sizes": sizes}
    reduced = head.reduce(state)
    assert set(reduced) == {*reads, "mask", "image_sizes", "original_sizes"}
    assert head(reduced)["logits"].shape == (2, 3, 64, 96)
    assert "logits" not in reduced
    assert all(name in head.reduction for name in reads)


def test_lraspp_takes_the_fine_map_nearest_to_stride_8() -> None:
    def low(*strides: int) -> str:
        given = maps({f"m{i}": (4, stride) for i, stride in enumerate(strides)})
        return str(build("lraspp", given).reads[0])

    assert low(2, 4, 8, 8, 16, 32) == "m2"
    assert low(2, 4, 16, 32) == "m1"
    assert low(16, 32, 32) == "m0"
    with pytest.raises(UserError, match="one size"):
        low(8, 8)


@pytest.mark.parametrize(
    ("kind", "settings", "texts"),
    [
        (
            "deeplab",
            {"features": ["layer9"]},
            ["no map 'layer9'", "did you mean"],
        ),
        (
            "deeplab",
            {"features": ["layer3", "layer4"]},
            ["2 maps are named", "reads 1", "layer4 (stride 32)"],
        ),
        ("lraspp", {"features": ["layer3"]}, ["1 maps are named", "reads 2"]),
        ("lraspp", {"features": ["layer4", "layer2"]}, ['["layer2", "layer4"]']),
        ("fcn", {"features": ["layer1"], "auxiliary": 0.5}, ["before 'layer1'"]),
    ],
)
def test_maps_that_do_not_fit_are_refused(
    kind: str, settings: dict[str, Any], texts: list[str]
) -> None:
    with pytest.raises(UserError) as caught:
        build(kind, **settings)
    for text in texts:
        assert text in str(caught.value)


def test_all_wrong_maps_are_told_together() -> None:
    with pytest.raises(UserError) as caught:
        build("lraspp", features=["layr2", "x", "layer4"])
    assert len(caught.value.faults) == 3
    assert "did you mean 'layer2'?" in str(caught.value)


def test_wrong_tasks_are_refused() -> None:
    many = {**TASK, "labels": [str(i) for i in range(256)]}
    with pytest.raises(UserError, match="256 classes"):
        build("fcn", task=many)
    with pytest.raises(UserError, match="hidden"):
        build("fcn", {"hidden": Feature("hidden", "tokens", 8)})


def test_width_and_rates() -> None:
    head = build("deeplab", channels=10, rates=(2, 3))
    aspp = head.classifier[0]
    assert [conv[0].dilation for conv in aspp.convs[1:-1]] == [(2, 2), (3, 3)]
    assert aspp.project[0].out_channels == 10
    assert tuple(head.classifier[4].weight.shape) == (3, 10, 1, 1)
    assert build("deeplab").classifier[4].in_channels == 256
    assert build("fcn", channels=5).classifier[4].in_channels == 5
    assert build("fcn").classifier[4].in_channels == 12 // 4
    assert build("lraspp").classifier.high_classifier.in_channels == 128
    assert build("lraspp", channels=9).classifier.high_classifier.in_channels == 9


@pytest.mark.parametrize("kind", ["deeplab", "fcn"])
def test_narrow_decoders_are_torchvisions_layer_by_layer(kind: str) -> None:
    """At torchvision's own width the two ways to build a decoder are one."""
    own = build(kind).eval()
    width = own.classifier[4].in_channels
    narrow = build(kind, channels=width).eval()
    narrow.load_state_dict(own.state_dict(), strict=True)
    state = small_state()
    torch.testing.assert_close(
        run_head(narrow, state)["logits"], run_head(own, state)["logits"]
    )


@pytest.mark.parametrize(
    ("kind", "settings"),
    [("deeplab", {}), ("deeplab", {"auxiliary": 0.4}), ("lraspp", {})],
)
def test_parts_of_a_batch_average_to_the_whole(
    kind: str, settings: dict[str, Any]
) -> None:
    head = build(kind, channels=8, **settings).eval()
    whole = with_mask(small_state(3))
    parts = [{k: v[i:j] for k, v in whole.items()} for i, j in ((0, 1), (1, 3))]
    weights = torch.stack([head.weight(part) for part in parts])
    losses = torch.stack([head.loss(run_head(head, part)) for part in parts])
    assert weights.tolist() == [54 * 96, 2 * 40 * 96]
    torch.testing.assert_close(
        (losses * weights).sum() / weights.sum(), head.loss(run_head(head, whole))
    )
    assert head.weight({"mask": whole["mask"]}) == weights.sum()


def test_a_batch_without_labelled_pixels_has_no_loss() -> None:
    head = build("fcn", auxiliary=0.5)
    state = {**small_state(), "mask": torch.full((2, 64, 96), 255)}
    loss = head.loss(run_head(head, state))
    loss.backward()
    assert loss == 0
    assert head.weight(state) == 0
    assert all((p.grad == 0).all() for p in head.parameters())


def test_a_single_image_trains() -> None:
    """ASPP's pooled vector then goes by the running statistics, and moves none."""
    head = build("deeplab", channels=8).train()
    pooled = head.classifier[0].convs[-1][2]
    with torch.no_grad():
        pooled.running_mean.fill_(0.5)
    before = copy.deepcopy(pooled.state_dict())
    head.loss(run_head(head, with_mask(small_state(1)))).backward()
    after = pooled.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert head.classifier[1].weight.grad.abs().max() > 0
    vector = torch.randn(1, 8, 1, 1)
    torch.testing.assert_close(pooled(vector), (vector - 0.5) / (1 + pooled.eps) ** 0.5)
    run_head(head, small_state(2))
    assert not torch.equal(pooled.running_mean, before["running_mean"])


@pytest.mark.parametrize("kind", ["deeplab", "fcn", "lraspp"])
def test_gradient_reaches_every_parameter(kind: str) -> None:
    settings = {} if kind == "lraspp" else {"auxiliary": 0.5}
    head = build(kind, channels=8, **settings).train()
    head.loss(run_head(head, with_mask(small_state(3)))).backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_without_a_mask_there_is_only_a_prediction() -> None:
    head = build("fcn", auxiliary=0.5).eval()
    state = run_head(head, small_state())
    assert "auxiliary_logits" not in state
    assert set(head.outputs(state)) == {"prediction", "size"}


def sized_state() -> dict[str, Any]:
    """Logits of 20 classes of two images; the second was made smaller, and padded."""
    generator = torch.Generator().manual_seed(5)
    mask = torch.randint(0, 20, (2, 64, 96), generator=generator)
    mask[1, 32:] = 255
    mask[1, :, 64:] = 255
    return {
        "logits": torch.randn(2, 20, 64, 96, generator=generator),
        "mask": mask,
        "image_sizes": torch.tensor([[64, 96], [32, 64]]),
        "original_sizes": torch.tensor([[64, 96], [80, 160]]),
    }


def many_classes() -> Any:
    task = {**TASK, "labels": [f"class {i}" for i in range(20)]}
    return build("fcn", task=task)


def test_outputs_are_at_the_original_size() -> None:
    state = sized_state()
    outputs = many_classes().outputs(state)
    first, second = outputs["prediction"]
    assert first.dtype == second.dtype == torch.uint8
    assert torch.equal(first, state["logits"][0].argmax(0))
    resized = F.interpolate(
        state["logits"][1:, :, :32, :64], size=(80, 160), mode="bilinear"
    )
    assert torch.equal(second, resized[0].argmax(0))
    assert torch.equal(outputs["target"][0], state["mask"][0])
    # Pixel centres: original row r lies at (r + .5) * 32 / 80 of the mask.
    rows = ((np.arange(80) + 0.5) * 32 / 80).astype(int)
    columns = ((np.arange(160) + 0.5) * 64 / 160).astype(int)
    expected = state["mask"][1].numpy()[rows][:, columns]
    assert outputs["target"][1].dtype == torch.uint8
    np.testing.assert_array_equal(outputs["target"][1].numpy(), expected)
    assert outputs["size"].tolist() == [[64, 96], [80, 160]]


def test_outputs_of_a_batch_without_sizes() -> None:
    state = {"logits": sized_state()["logits"]}
    outputs = many_classes().outputs(state)
    assert [tuple(p.shape) for p in outputs["prediction"]] == [(64, 96)] * 2
    assert outputs["size"].tolist() == [[64, 96]] * 2


def test_decode_gives_shares_and_masks() -> None:
    head = build("fcn")
    prediction = np.zeros((4, 10), np.uint8)
    prediction[1:3, 2:5] = 2
    (row,) = head.decode({"prediction": [prediction]})
    assert row["classes"] == {"background": 0.85, "dog": 0.15}
    pycocotools = pytest.importorskip("pycocotools.mask")
    assert row["masks"]["dog"]["size"] == [4, 10]
    assert isinstance(row["masks"]["dog"]["counts"], str)
    np.testing.assert_array_equal(
        pycocotools.decode(row["masks"]["dog"]), prediction == 2
    )
    assert head.decode({"prediction": [torch.from_numpy(prediction)]}) == [row]


def test_rows_of_known_classes_are_taken() -> None:
    """From torchvision's VOC classes: its background and cat, not our own tulip."""
    voc = DeepLabV3_ResNet50_Weights.COCO_WITH_VOC_LABELS_V1.meta["categories"]
    # As the weights' source calls it.
    voc = ["background", *voc[1:]]
    task = {**TASK, "labels": ["background", "tulip", "cat"]}
    for kind, settings, layers in (
        ("deeplab", {"auxiliary": 0.5}, ["classifier.4", "aux_classifier.4"]),
        ("lraspp", {}, ["classifier.low_classifier", "classifier.high_classifier"]),
    ):
        head = build(kind, task=task, channels=8, **settings)
        names = {f"{layer}.{end}" for layer in layers for end in ("weight", "bias")}
        parameters = dict(head.named_parameters())
        for name, ours in parameters.items():
            theirs = torch.randn(21, *ours.shape[1:])
            adapted = head.adapt_classes(name, theirs, ours, voc)
            if name not in names:
                assert adapted is None, name
                continue
            expected = [theirs[0], ours[1], theirs[voc.index("cat")]]
            assert torch.equal(adapted, torch.stack(expected)), name
            assert not adapted.requires_grad
        assert names <= set(parameters)
        # Of another width, or not a row per class: no class can be taken over.
        ours = parameters[f"{layers[0]}.weight"]
        for shape in ((21, 99, 1, 1), (20, *ours.shape[1:])):
            name = f"{layers[0]}.weight"
            assert head.adapt_classes(name, torch.zeros(shape), ours, voc) is None


@pytest.mark.parametrize("kind", ["deeplab", "lraspp"])
def test_report_is_that_of_the_sections(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in: Any = types.ModuleType("headstart_vision.sections")
    stand_in.segmentation_sections = lambda evaluation: [evaluation.split]
    monkeypatch.setitem(sys.modules, "headstart_vision.sections", stand_in)
    report = build(kind, channels=8).report(Evaluation("test", {}, {}, TASK, []))
    assert report == ["test"]


def test_logits_are_float32_under_autocast() -> None:
    head = build("deeplab", channels=8).eval()
    with torch.autocast("cpu", torch.bfloat16):
        state = run_head(head, with_mask(small_state()))
        loss = head.loss(state)
    assert state["logits"].dtype == loss.dtype == torch.float32


def test_sample_targets_fit_images_of_two_sizes() -> None:
    mask = sample_targets(TASK, 4)["mask"]
    assert mask.shape == (4, 64, 64) and mask.dtype == torch.int64
    assert set(mask[0].unique().tolist()) == {0, 1, 2}
    assert (mask[1, 48:] == 255).all() and (mask[1, :48] != 255).all()
