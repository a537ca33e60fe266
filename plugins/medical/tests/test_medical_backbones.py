"""Every network against its library, files of weights, and what cannot be built."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch
from monai.networks import nets
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from torchvision import models

from headstart.errors import UserError
from headstart.specs import resolve
from headstart.testing.parts import tiny_backbone
from headstart.weights.sources import Weights
from headstart.weights.transfer import load_weights
from headstart_medical import catalogue
from headstart_medical.backbones import sample_volume
from headstart_medical.settings import SLICE_NETWORKS, SlicesSettings
from headstart_medical.unets import plan_levels

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from headstart.stages import Backbone
    from headstart.weights.transfer_report import TransferReport

SPECS = {spec.name: spec for spec in catalogue.backbone_specs()}
TWO = {"channels": ["T1", "FLAIR"]}


def build(
    name: str,
    folder: Path | None = None,
    task: Mapping[str, Any] = TWO,
    **settings: Any,
) -> Backbone:
    spec = SPECS[f"medical/{name}"]
    own = {"name": spec.name, "weights": "none", **settings}
    backbone: Backbone = resolve(spec.factory)(
        resolve(spec.settings)(**own), folder, task
    )
    return backbone.eval()


def tiny(name: str, task: Mapping[str, Any] = TWO, **settings: Any) -> Backbone:
    torch.manual_seed(0)
    spec = SPECS[f"medical/{name}"]
    task = {"patch": spec.sample_task["patch"], **task}
    return build(name, None, task, **{**spec.tiny, **settings})


def enliven(module: nn.Module) -> None:
    """Give fresh normalisations other values than 1 and 0, which hide a wrong place."""
    generator = torch.Generator().manual_seed(1)
    for name, tensor in module.state_dict(keep_vars=True).items():
        if tensor.is_floating_point() and tensor.ndim < 2:
            noise = torch.rand(tensor.shape, generator=generator)
            lifted = noise + 0.5 if name.endswith(("weight", "var")) else noise
            tensor.detach().copy_(lifted)


def load(
    backbone: Backbone, tensors: Mapping[str, torch.Tensor], folder: Path
) -> TransferReport:
    path = folder / "model.safetensors"
    save_file({k: v.clone().contiguous() for k, v in tensors.items()}, path)
    return load_weights(backbone, Weights("file:test", None, (path,)))


# Parity: a network of MONAI's own, its file, and its last layer on our features


Case = tuple[str, type[nn.Module], tuple[int, int, int], dict[str, Any]]
CASES: dict[str, Case] = {
    "unet-residual": (
        "unet",
        nets.UNet,
        (12, 8, 8),
        {"channels": [4, 6, 8], "strides": [2, 2], "num_res_units": 2},
    ),
    "unet-plain": (
        "unet",
        nets.UNet,
        (12, 8, 8),
        {
            "channels": [4, 6, 8, 8],
            "strides": [2, 2, 1],
            "norm": "batch",
            "act": "relu",
            "dropout": 0.1,
        },
    ),
    "segresnet": ("segresnet", nets.SegResNet, (16, 8, 8), {"init_filters": 8}),
    "segresnet-deconv": (
        "segresnet",
        nets.SegResNet,
        (8, 8, 8),
        {
            "blocks_down": [1, 2],
            "blocks_up": [1],
            "dropout_prob": 0.2,
            "upsample_mode": "deconv",
        },
    ),
    "dynunet-residual": (
        "dynunet",
        nets.DynUNet,
        (16, 16, 8),
        {
            "kernel_size": [[3, 3, 1], 3, 3, 3],
            "strides": [1, [2, 2, 1], 2, 2],
            "upsample_kernel_size": [[2, 2, 1], 2, 2],
            "filters": [4, 6, 8, 8],
            "res_block": True,
            "deep_supervision": True,
            "deep_supr_num": 2,
        },
    ),
    "swin-unetr": (
        "swin-unetr",
        nets.SwinUNETR,
        (64, 32, 32),
        {"feature_size": 12, "depths": [2, 1, 1, 1], "window_size": 4},
    ),
    "swin-unetr-v2": (
        "swin-unetr",
        nets.SwinUNETR,
        (64, 32, 32),
        {
            "feature_size": 12,
            "depths": [1, 1, 1, 1],
            "window_size": 4,
            "use_v2": True,
            "normalize": False,
        },
    ),
    "unetr": (
        "unetr",
        nets.UNETR,
        (32, 16, 16),
        {
            "img_size": [32, 16, 16],
            "feature_size": 4,
            "hidden_size": 12,
            "mlp_dim": 16,
            "num_heads": 2,
        },
    ),
}


def monai(case: str) -> nn.Module:
    _, kind, _, arguments = CASES[case]
    torch.manual_seed(0)
    model = kind(spatial_dims=3, in_channels=2, out_channels=3, **arguments)
    enliven(model)
    return model.eval()


@pytest.mark.parametrize("case", CASES)
def test_monai_file_and_its_last_layer_give_its_logits(
    case: str, tmp_path: Path
) -> None:
    name, _, sides, arguments = CASES[case]
    model = monai(case)
    config = {
        "network": type(model).__name__,
        "spatial_dims": 3,
        "in_channels": 2,
        "out_channels": 3,
        **arguments,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    backbone = build(name, tmp_path)
    report = load(backbone, model.state_dict(), tmp_path)
    assert report.loaded == len(backbone.state_dict())
    assert not report.fitted
    image = torch.randn(2, 2, *sides, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        state = backbone({"image": image})
        expected = model(image)
        prefix = catalogue.NETWORKS[f"medical/{name}"].output
        last = model.get_submodule(prefix.rstrip(".")) if prefix else nn.Identity()
        torch.testing.assert_close(last(state["decoded"]), expected)
    for feature in backbone.features.values():
        assert state[feature.name].shape[1] == feature.channels
    longest = max(feature.stride for feature in backbone.features.values())
    assert state["bottom"].shape[2] == sides[0] // longest
    # Skips do not outlive the level that reads them.
    assert set(state) == {"image", *backbone.features}


@pytest.mark.parametrize("name", [n.partition("/")[2] for n in SPECS])
def test_specs_declare_what_is_built(name: str) -> None:
    spec = SPECS[f"medical/{name}"]
    backbone = tiny(name)
    assert backbone.stage_names == spec.stages
    built = [(f.name, f.stride, f.stage) for f in backbone.features.values()]
    assert built == [(f.name, f.stride, f.stage) for f in spec.features]
    image = sample_volume(backbone)["image"]
    assert list(image.shape) == [2, 2, *spec.sample_task["patch"]]


@pytest.mark.parametrize("name", ["densenet121", "resnet"])
def test_encoders_read_slices(name: str) -> None:
    spec = SPECS[f"medical/{name}"]
    backbone = tiny(name, {**TWO, "dimensions": 2})
    enliven(backbone)
    state = sample_volume(backbone)
    with torch.no_grad():
        ours = backbone(state)
        theirs = resolve(spec.reference)(backbone, state)
    assert set(theirs) == set(backbone.features)
    for key, expected in theirs.items():
        torch.testing.assert_close(ours[key], expected)
        assert backbone.features[key].kind == "map"


@pytest.mark.parametrize(
    "settings",
    [
        {"shortcut_type": "A", "no_max_pool": True},
        {"depth": 50, "bias_downsample": True, "conv1_t_stride": 1},
    ],
)
def test_variants_of_resnet(settings: dict[str, Any]) -> None:
    backbone = tiny("resnet", {**TWO, "dimensions": 3}, **settings)
    enliven(backbone)
    image = torch.randn(2, 2, 32, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = backbone({"image": image})
        reference = resolve(SPECS["medical/resnet"].reference)
        theirs = reference(backbone, {"image": image})
    for key, expected in theirs.items():
        torch.testing.assert_close(ours[key], expected)
        sides = [side // backbone.features[key].stride for side in (32, 16, 16)]
        assert [*expected.shape[2:]] == sides


# deepbrain: a walk through the graph with its own definitions


def graph_convolution(x: torch.Tensor, tensors: Any, name: str) -> torch.Tensor:
    weight, bias = tensors[f"{name}.weight"], tensors[f"{name}.bias"]
    padded = F.pad(x, (1,) * 6)
    d, h, w = x.shape[2:]
    out = bias.view(1, -1, 1, 1, 1).expand(len(x), -1, d, h, w).clone()
    for i in range(3):
        for j in range(3):
            for k in range(3):
                part = padded[:, :, i : i + d, j : j + h, k : k + w]
                out += torch.einsum("nc...,oc->no...", part, weight[:, :, i, j, k])
    return out.clamp(min=0)


def graph_upsampling(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """TensorFlow's conv3d_transpose, SAME, stride 2: the first 2n of 2n + 1."""
    d, h, w = x.shape[2:]
    out = x.new_zeros(len(x), weight.shape[1], 2 * d + 1, 2 * h + 1, 2 * w + 1)
    for i in range(3):
        for j in range(3):
            for k in range(3):
                part = torch.einsum("nc...,co->no...", x, weight[:, :, i, j, k])
                ends = (i + 2 * d - 1, j + 2 * h - 1, k + 2 * w - 1)
                out[:, :, i : ends[0] : 2, j : ends[1] : 2, k : ends[2] : 2] += part
    return out[:, :, :-1, :-1, :-1]


def test_deepbrain_is_the_graph() -> None:
    backbone = tiny("deepbrain-unet").double()
    tensors = backbone.upstream_state_dict()
    image = sample_volume(backbone)["image"].double()
    x, skips = image, []
    with torch.no_grad():
        for level in range(3):
            x = graph_convolution(x, tensors, f"level{level}.conv1")
            x = graph_convolution(x, tensors, f"level{level}.conv2")
            skips.append(x)
            n, c, d, h, w = x.shape
            cells = x.view(n, c, d // 2, 2, h // 2, 2, w // 2, 2)
            x = cells.amax((3, 5, 7))
        bottom = x
        for level in (2, 1, 0):
            x = graph_upsampling(x, tensors[f"up{level}.up.weight"])
            x = torch.cat([x, skips[level]], 1)
            x = graph_convolution(x, tensors, f"up{level}.conv")
        state = backbone({"image": image})
    torch.testing.assert_close(state["bottom"], bottom)
    torch.testing.assert_close(state["decoded"], x)
    assert state["decoded"].abs().max() > 0


def test_deepbrain_has_the_size_of_the_graph() -> None:
    backbone = build("deepbrain-unet", task={"channels": ["T1"]})
    # 171,465 with the last layer's eight weights and bias.
    assert sum(p.numel() for p in backbone.parameters()) == 171_465 - 9
    assert backbone.preprocessing["intensity"] == "max"


# torchvision


@pytest.mark.parametrize(
    ("name", "architecture", "last"),
    [
        ("resnet", "resnet18", "layer4"),
        ("resnet", "resnet50", "layer4"),
        ("densenet121", "densenet121", "features"),
    ],
)
def test_torchvisions_files_load_into_2d_encoders(
    name: str, architecture: str, last: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = models.get_model(architecture, weights=None, num_classes=2).eval()
    (tmp_path / "config.json").write_text(json.dumps({"architecture": architecture}))
    task = {"channels": ["r", "g", "b"], "dimensions": 2}
    backbone = build(name, tmp_path, task)
    report = load(backbone, model.state_dict(), tmp_path)
    assert report.loaded == len(backbone.state_dict())
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    found: list[torch.Tensor] = []
    watched = model.get_submodule(last)
    watched.register_forward_hook(lambda _m, _i, out: found.append(out.clone()))
    with torch.no_grad():
        model(image)
        ours = backbone({"image": image})["encoded"]
    expected = found[0].relu()
    scale = expected.abs().max()
    torch.testing.assert_close(ours / scale, expected / scale, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "architecture",
    # Those between are cut where resnet18 is.
    [name for name in SLICE_NETWORKS if name not in ("resnet34", "resnet50")],
)
def test_slices_are_read_one_by_one(architecture: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = models.get_model(architecture, weights=None, num_classes=2).eval()
    backbone = build(
        "slices", task={"channels": ["r", "g", "b"]}, architecture=architecture
    )
    report = load(backbone, model.state_dict(), tmp_path)
    assert report.loaded == len(backbone.state_dict())
    volume = torch.randn(2, 3, 64, 32, 2, generator=torch.Generator().manual_seed(0))
    body = getattr(model, "features", None) or nn.Sequential(*[*model.children()][:-2])
    with torch.no_grad():
        state = backbone({"image": volume})
        slices = [body(volume[..., number]) for number in range(2)]
    expected = torch.stack(slices, dim=-1)
    if architecture == "densenet121":
        expected = expected.relu()
    scale = expected.abs().max()
    ours = state["encoded"] / scale
    torch.testing.assert_close(ours, expected / scale, rtol=1e-4, atol=1e-5)
    for feature in backbone.features.values():
        sides = (64 // feature.stride, 32 // feature.stride, 2)
        assert state[feature.name].shape == (2, feature.channels, *sides)


# Configuration and files


@pytest.mark.parametrize("name", ["unet", "dynunet", "unetr", "resnet", "slices"])
def test_run_folder_opens_without_its_weights(name: str, tmp_path: Path) -> None:
    task = {**TWO, "patch": [48, 32, 16], "spacing": [1, 1, 3], "dimensions": 3}
    backbone = tiny(name, task)
    (tmp_path / "config.json").write_text(json.dumps(backbone.config))
    again = build(name, tmp_path, task)
    assert again.config == backbone.config
    assert again.features == backbone.features
    again.load_state_dict(backbone.state_dict())


def test_names_of_parallel_training_and_dropped_levels(tmp_path: Path) -> None:
    model = monai("dynunet-residual")
    tensors = {f"module.{k}": v for k, v in model.state_dict().items()}
    assert any("skip_layers" in key for key in tensors)
    arguments = CASES["dynunet-residual"][3]
    keys = ("kernel_size", "strides", "filters", "res_block")
    backbone = build("dynunet", **{key: arguments[key] for key in keys})
    backbone.keep(4)
    report = load(backbone, tensors, tmp_path)
    assert report.loaded == len(backbone.state_dict())
    assert set(backbone.features) == {"bottom"}
    why = dict(report.skipped)
    assert why["module.upsamples.0.transp_conv.conv.weight"].startswith("stage dropped")
    assert why["module.output_block.conv.conv.weight"] == "pretraining head"


@pytest.mark.parametrize("name", ["unet", "segresnet", "swin-unetr", "unetr"])
def test_shortened_networks_take_whole_files(name: str, tmp_path: Path) -> None:
    whole, short = tiny(name), tiny(name)
    short.keep(4)
    report = load(short, whole.upstream_state_dict(), tmp_path)
    assert report.loaded == len(short.state_dict())
    assert len(report.skipped) == len(whole.state_dict()) - report.loaded


def test_plan_of_nnunet() -> None:
    strides, kernels = plan_levels([96, 96, 96], [1.0, 1.0, 1.0])
    assert strides == [[1] * 3] + [[2] * 3] * 4
    assert kernels == [[3] * 3] * 5
    # Thick slices: within the slice until voxels are at most twice as long as wide.
    strides, kernels = plan_levels([128, 128, 24], [0.78125, 0.78125, 6.5])
    assert strides == [[1] * 3] + [[2, 2, 1]] * 3 + [[2] * 3] * 2
    assert kernels == [[3, 3, 1]] * 3 + [[3] * 3] * 3
    strides, _ = plan_levels([40, 24, 64], [1.0, 1.0, 1.0])
    assert strides == [[1] * 3, [2] * 3, [2] * 3, [2, 1, 2], [1, 1, 2]]
    # Nine voxels have no half.
    strides, _ = plan_levels([36, 32, 32], [1.0, 1.0, 1.0])
    assert strides == [[1] * 3, [2] * 3, [2] * 3, [1, 2, 2]]
    with pytest.raises(UserError, match="cannot be halved twice"):
        plan_levels([8, 8, 8], [1.0, 1.0, 1.0])


# What cannot be


def test_image_that_strides_do_not_divide() -> None:
    backbone = tiny("segresnet")
    with pytest.raises(UserError, match="multiples of 8x8x8") as caught:
        backbone({"image": torch.zeros(1, 2, 20, 16, 9)})
    assert caught.value.faults[0].fix == "data.patch = [24, 16, 16]"
    with pytest.raises(UserError, match="reads 32x16x16 alone"):
        tiny("unetr", img_size=[32, 16, 16])({"image": torch.zeros(1, 2, 16, 16, 16)})


@pytest.mark.parametrize(
    ("name", "config", "settings", "text"),
    [
        ("unet", {"network": "SegResNet"}, {}, 'backbone.name = "medical/segresnet"'),
        ("unet", {"network": "Evil"}, {}, "weights are for the network 'Evil'"),
        (
            "segresnet",
            {"network": "SegResNet", "init_filters": 16, "blocks_down": [1, 2]},
            {"init_filters": 32, "blocks_down": [1, 1]},
            "2 faults",
        ),
        ("segresnet", {"network": "SegResNet", "init_filter": 8}, {}, "'init_filters'"),
        ("segresnet", {"network": "SegResNet", "act": "nought"}, {}, "cannot be built"),
        (
            "segresnet",
            {"network": "SegResNet", "channel_names": ["flair", "t1"]},
            {},
            "in the weights' order",
        ),
        ("segresnet", None, {"blocks_up": [1]}, "give 3 numbers"),
        ("dynunet", None, {"strides": [2, 2, 2]}, "strides start with 1"),
        ("unetr", None, {}, "it is not known"),
        ("unetr", None, {"img_size": [30, 64, 96]}, r"choose \[32, 64, 96\]"),
        (
            "resnet",
            {"architecture": "resnet50"},
            {"depth": 18},
            "not for a ResNet of 18",
        ),
        (
            "slices",
            {"architecture": "resnet18"},
            {"architecture": "resnet34"},
            "for 'r",
        ),
        ("slices", None, {"architecture": "resnet18", "width": 0.5}, "has one width"),
    ],
)
def test_faults(
    name: str,
    config: dict[str, Any] | None,
    settings: dict[str, Any],
    text: str,
    tmp_path: Path,
) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=text):
        build(name, tmp_path, **settings)


def test_data_of_other_dimensions() -> None:
    with pytest.raises(UserError, match="the data has 2 dimensions, the network 3"):
        tiny("resnet", {**TWO, "dimensions": 2}, dimensions=3)


def test_settings_of_slices() -> None:
    with pytest.raises(ValueError, match="did you mean 'resnet18'"):
        SlicesSettings(name="medical/slices", architecture="resnet-18")
    with pytest.raises(ValueError, match="which weights 'resnet18' starts from"):
        SlicesSettings(name="medical/slices", architecture="resnet18")
    default = SlicesSettings(name="medical/slices", architecture="mobilenet_v2")
    assert default.weights == ""


def test_catalogue_imports_no_torch() -> None:
    code = (
        "import sys, headstart_medical.catalogue as c, headstart_medical.settings;"
        "c.backbone_specs(); sys.exit(bool({'torch', 'monai'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, env=os.environ)
    assert done.returncode == 0


def test_a_slice_is_a_volume_of_one():
    spec = next(s for s in catalogue.backbone_specs() if s.name == "medical/slices")
    backbone = tiny_backbone(spec).eval()
    image = resolve(spec.sample)(backbone)["image"][..., :1]
    with torch.no_grad():
        volume = backbone({"image": image})["encoded"]
        alone = backbone({"image": image[..., 0]})["encoded"]
    assert torch.equal(alone, volume)
