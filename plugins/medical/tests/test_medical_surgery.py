"""Weights for other input channels, dimensions, sizes and classes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F
from torchvision import models

from headstart.errors import UserError
from headstart.specs import resolve
from headstart.weights.sources import Weights
from headstart.weights.transfer import load_weights
from headstart_medical import catalogue
from headstart_medical.surgery import fit_channels, inflate, resize_positions

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from headstart.stages import Backbone
    from headstart.weights.transfer_report import TransferReport

SPECS = {spec.name: spec for spec in catalogue.backbone_specs()}


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def build(
    name: str, channels: list[str], folder: Path | None = None, **settings: Any
) -> Backbone:
    torch.manual_seed(0)
    spec = SPECS[f"medical/{name}"]
    values = {"name": spec.name, "weights": "none", **spec.tiny, **settings}
    task = {**spec.sample_task, "channels": channels}
    backbone: Backbone = resolve(spec.factory)(
        resolve(spec.settings)(**values), folder, task
    )
    return backbone.eval()


def load(
    backbone: Backbone, tensors: Mapping[str, torch.Tensor], folder: Path
) -> TransferReport:
    path = folder / "model.safetensors"
    save_file({k: v.clone().contiguous() for k, v in tensors.items()}, path)
    return load_weights(backbone, Weights("file:test", None, (path,)))


# Input channels


def test_one_channel_answers_as_copies_of_it() -> None:
    theirs, image = random(5, 3, 3, 3), random(2, 1, 8, 8)
    ours, words = fit_channels(theirs, 1)
    expected = F.conv2d(image.expand(-1, 3, -1, -1), theirs)
    torch.testing.assert_close(F.conv2d(image, ours), expected)
    assert words == "1 input channel from 3: their sum"


@pytest.mark.parametrize(("theirs", "ours"), [(3, 2), (2, 5), (1, 4)])
def test_equal_channels_answer_alike(theirs: int, ours: int) -> None:
    # Kernels alike, so that which of them is taken does not matter.
    kernel = random(5, 1, 3, 3).expand(-1, theirs, -1, -1)
    image = random(2, 1, 8, 8)
    fitted, words = fit_channels(kernel, ours)
    expected = F.conv2d(image.expand(-1, theirs, -1, -1), kernel)
    result = F.conv2d(image.expand(-1, ours, -1, -1), fitted)
    torch.testing.assert_close(result, expected)
    assert f"{ours} input channels from {theirs}" in words


def test_more_channels_take_theirs_in_turn() -> None:
    theirs = torch.tensor([[1.0, 10.0]]).view(1, 2, 1, 1)
    ours, _ = fit_channels(theirs, 3)
    torch.testing.assert_close(ours.flatten(), torch.tensor([1.0, 10.0, 1.0]) * 2 / 3)


def test_channels_are_found_by_name() -> None:
    theirs = torch.tensor([[1.0, 2.0, 3.0, 4.0]]).view(1, 4, 1, 1, 1)
    names = ["T1c", "T1", "T2", "FLAIR"]
    ours, words = fit_channels(theirs, 3, ["flair", "ADC", "t1"], names)
    assert ours.flatten().tolist() == [4.0, 0.0, 2.0]
    assert words == ("3 input channels from 4: flair, t1 by name, ADC new (at zero)")
    one, _ = fit_channels(theirs, 1, ["T2"], names)
    assert one.flatten().tolist() == [3.0]
    # No name is known: as without names.
    total, _ = fit_channels(theirs, 1, ["PET"], names)
    assert total.flatten().tolist() == [10.0]


@pytest.mark.parametrize("name", [n.partition("/")[2] for n in SPECS])
def test_file_for_three_channels_loads_into_one(name: str, tmp_path: Path) -> None:
    three = build(name, ["a", "b", "c"])
    one = build(name, ["x"])
    tensors = three.upstream_state_dict()
    report = load(one, tensors, tmp_path)
    assert report.loaded == len(tensors)
    assert report.fitted
    assert {how for _, how in report.fitted} == {"1 input channel from 3: their sum"}
    # The whole network sees one channel as copies of it.
    stride = SPECS[f"medical/{name}"].sample_task["patch"]
    image = random(1, 1, *stride)
    with torch.no_grad():
        few = one({"image": image})
        many = three({"image": image.expand(-1, 3, -1, -1, -1)})
    for feature in one.features:
        torch.testing.assert_close(few[feature], many[feature], rtol=1e-3, atol=1e-4)
    assert f"fitted         {len(report.fitted)} tensor" in "\n".join(report.lines())


def test_names_come_with_the_weights(tmp_path: Path) -> None:
    theirs = build("segresnet", ["T1c", "T1", "T2", "FLAIR"])
    (tmp_path / "config.json").write_text(json.dumps(theirs.config))
    ours = build("segresnet", ["T2", "CT"], tmp_path)
    tensors = theirs.upstream_state_dict()
    load(ours, tensors, tmp_path)
    kernel = ours.upstream_state_dict()["convInit.conv.weight"]
    assert torch.equal(kernel[:, 0], tensors["convInit.conv.weight"][:, 2])
    assert not kernel[:, 1].any()


# 2D to 3D


@pytest.mark.parametrize("side", [1, 3])
def test_inflated_kernel_on_equal_slices(side: int) -> None:
    theirs, image = random(4, 2, side, side), random(1, 2, 8, 8)
    ours, words = inflate(theirs, side)
    volume = image.unsqueeze(-1).expand(-1, -1, -1, -1, 5)
    result = F.conv3d(volume, ours)
    expected = F.conv2d(image, theirs).unsqueeze(-1).expand_as(result)
    torch.testing.assert_close(result, expected)
    assert words.startswith("a 3D kernel from 2D")


def test_inflated_transposed_kernel_on_equal_slices() -> None:
    theirs, image = random(2, 4, 2, 2), random(1, 2, 5, 5)
    ours, _ = inflate(theirs, 2, stride=2)
    volume = image.unsqueeze(-1).expand(-1, -1, -1, -1, 3)
    result = F.conv_transpose3d(volume, ours, stride=2)
    expected = F.conv_transpose2d(image, theirs, stride=2).unsqueeze(-1)
    torch.testing.assert_close(result, expected.expand_as(result))


def test_image_networks_file_loads_into_volumes(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = models.resnet18(weights=None, num_classes=2)
    settings = {"depth": 18, "block_inplanes": [64, 128, 256, 512]}
    backbone = build("resnet", ["T1"], **settings)
    report = load(backbone, model.state_dict(), tmp_path)
    assert report.loaded == len(backbone.state_dict())
    ours, theirs = backbone.upstream_state_dict(), model.state_dict()
    kernels = [k for k, v in ours.items() if v.ndim == 5]
    assert sorted(name for name, _ in report.fitted) == sorted(kernels)
    for name in kernels:
        expected = (
            theirs[name].sum(1, keepdim=True)
            if name == "conv1.weight"
            else (theirs[name])
        )
        torch.testing.assert_close(ours[name].sum(-1), expected)
        assert torch.equal(ours[name][..., 0], ours[name][..., -1])
    how = dict(report.fitted)["conv1.weight"]
    assert how == (
        "a 3D kernel from 2D: 7 times itself, divided by 7; "
        "1 input channel from 3: their sum"
    )


def test_2d_unet_becomes_3d(tmp_path: Path) -> None:
    """Its transposed convolutions are found by their module."""
    from monai.networks.nets import UNet

    settings: dict[str, Any] = {"channels": [4, 6, 8], "strides": [2, 2]}
    torch.manual_seed(1)
    model = UNet(2, 1, 3, **settings, num_res_units=0)
    config = {"network": "UNet", "out_channels": 3, "spatial_dims": 2, **settings}
    (tmp_path / "config.json").write_text(json.dumps(config))
    spec = SPECS["medical/unet"]
    own = resolve(spec.settings)(name=spec.name, weights="none")
    backbone = resolve(spec.factory)(own, tmp_path, {"channels": ["T1"]})
    load(backbone, model.state_dict(), tmp_path)
    ours, theirs = backbone.upstream_state_dict(), model.state_dict()
    # Of three repetitions an output of stride 2 meets one or two, 1.5 in the mean.
    up, down = "model.2.conv.weight", "model.0.conv.weight"
    torch.testing.assert_close(ours[up][..., 0] * 1.5, theirs[up])
    torch.testing.assert_close(ours[down][..., 0] * 3, theirs[down])


# Positions


def test_positions_keep_a_ramp() -> None:
    ramp = torch.arange(4.0).view(4, 1, 1).expand(4, 4, 4).reshape(1, 64, 1)
    fitted = resize_positions(ramp, (8, 4, 4))
    assert fitted is not None
    resized = fitted[0].view(8, 4, 4)
    # Half-pixel centres: 0.25 + 0.5 n - 0.5, cut at the ends.
    expected = torch.tensor([0.0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.0])
    torch.testing.assert_close(resized[:, 2, 1], expected)
    assert fitted[1] == "positions of 8x4x4 from 4x4x4: trilinear"
    same = resize_positions(ramp, (4, 4, 4))
    assert same is not None and torch.equal(same[0], ramp)
    assert resize_positions(torch.zeros(1, 6, 2), (2, 2, 2)) is None
    assert resize_positions(torch.zeros(1, 6, 2), (2, 2, 2), (3, 2, 1)) is not None


def test_unetr_for_another_size(tmp_path: Path) -> None:
    theirs = build("unetr", ["T1"], img_size=[32, 16, 16])
    (tmp_path / "config.json").write_text(json.dumps(theirs.config))
    ours = build("unetr", ["T1"], tmp_path, img_size=[32, 32, 16])
    tensors = theirs.upstream_state_dict()
    report = load(ours, tensors, tmp_path)
    name = "vit.patch_embedding.position_embeddings"
    assert report.fitted == ((name, "positions of 2x2x1 from 2x1x1: trilinear"),)
    grid = ours.upstream_state_dict()[name].view(2, 2, 12)
    for column in range(2):
        torch.testing.assert_close(grid[:, column], tensors[name][0])


# Classes


def test_unet_for_other_classes(tmp_path: Path) -> None:
    theirs = build("unet", ["T1"], out_channels=2)
    same = build("unet", ["T1"], out_channels=2)
    assert not load(same, theirs.upstream_state_dict(), tmp_path).fitted
    ours = build("unet", ["T1"], out_channels=5)
    report = load(ours, theirs.upstream_state_dict(), tmp_path)
    assert {name.split(".")[1] for name, _ in report.fitted} == {"2"}
    assert all("starts anew" in how for _, how in report.fitted)
    assert report.loaded == len(ours.state_dict())


def test_what_no_surgery_mends(tmp_path: Path) -> None:
    ours = build("segresnet", ["T1"])
    before = {k: v.clone() for k, v in ours.state_dict().items()}
    tensors = dict(build("segresnet", ["T1", "T2"]).upstream_state_dict())
    name = "down_layers.1.0.conv.weight"
    # Other input channels, but not of the image.
    tensors[name] = torch.zeros(16, 4, 3, 3, 3)
    with pytest.raises(UserError, match=f"{name}' has another shape") as caught:
        load(ours, tensors, tmp_path)
    assert len(caught.value.faults) == 1
    assert all(torch.equal(v, before[k]) for k, v in ours.state_dict().items())
