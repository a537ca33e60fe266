"""Every family of networks against its library, at every cut, and files of weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision import models
from torchvision.models import detection, segmentation
from torchvision.ops import FrozenBatchNorm2d

from headstart.errors import UserError
from headstart.specs import resolve
from headstart.weights.sources import Weights
from headstart.weights.transfer import load_weights
from headstart_vision import catalogue
from headstart_vision.backbones import (
    build_cnn,
    normalised,
    reference_cnn,
    sample_pixels,
    upstream_model,
)
from headstart_vision.efficientnet_lite import EfficientNetLite, SameConv2d
from headstart_vision.settings import CnnSettings, TimmSettings

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from headstart.stages import Backbone, State

SPECS = {spec.name: spec for spec in catalogue.backbone_specs()}
specs = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)


def enliven(module: nn.Module) -> None:
    """Give fresh normalisations other values than 1 and 0, which hide a wrong place."""
    generator = torch.Generator().manual_seed(1)
    for name, tensor in module.state_dict(keep_vars=True).items():
        if not tensor.is_floating_point() or tensor.ndim > 1:
            continue
        with torch.no_grad():
            noise = torch.rand(tensor.shape, generator=generator)
            tensor.copy_(noise + 0.5 if name.endswith(("weight", "var")) else noise)


def tiny(name: str, **settings: Any) -> Backbone:
    torch.manual_seed(0)
    spec = SPECS[name]
    values = {"name": name, **spec.tiny, **settings}
    backbone = resolve(spec.factory)(resolve(spec.settings)(**values), None, {})
    enliven(backbone)
    return backbone.eval()


def resnet(**settings: Any) -> Backbone:
    return tiny("vision/resnet", **settings)


def save(tensors: Mapping[str, torch.Tensor], path: Path) -> Weights:
    save_file({k: v.clone().contiguous() for k, v in tensors.items()}, path)
    return Weights("file:test", None, (path,))


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Relative to the map's largest value: deep in a random network maps are small."""
    scale = float(theirs.abs().max())
    assert scale > 0
    torch.testing.assert_close(ours / scale, theirs / scale, rtol=1e-5, atol=1e-5)


# Parity


@specs
def test_maps_equal_the_library(spec: Any) -> None:
    if not spec.reference:
        pytest.skip("compared with timm below")
    if spec.name == "vision/timm":
        pytest.importorskip("timm")
    backbone = tiny(spec.name)
    state = sample_pixels(backbone)
    with torch.no_grad():
        ours = backbone(state)
    theirs = resolve(spec.reference)(backbone, state)
    assert set(theirs) == set(backbone.features)
    for name, expected in theirs.items():
        close(ours[name], expected)


@specs
def test_every_cut_is_exact(spec: Any) -> None:
    if spec.name == "vision/timm":
        pytest.importorskip("timm")
    backbone = tiny(spec.name)
    state = sample_pixels(backbone)
    last = next(reversed(backbone.features))
    with torch.no_grad():
        whole = backbone(state)
        for cut in range(1, len(backbone.stages)):
            middle = backbone.run(state, 0, cut)
            # One map, and neither images nor their sizes, is what the rest needs.
            source = backbone.stage_names[cut - 1]
            rest = backbone.run({source: middle[source]}, cut)
            assert torch.equal(rest[last], whole[last]), cut
    assert set(state) == {"pixels", "image_sizes", "original_sizes"}


def test_lite0_equals_timms() -> None:
    """The same network with the same tensors, TensorFlow's padding included."""
    timm = pytest.importorskip("timm")
    ours = EfficientNetLite()
    enliven(ours)
    theirs = timm.create_model("tf_efficientnet_lite0", num_classes=0).eval()
    wanted = {k: v for k, v in theirs.state_dict().items() if "classifier" not in k}
    # Both list their layers in the order in which they run.
    tensors = list(ours.state_dict().values())
    assert [t.shape for t in tensors] == [t.shape for t in wanted.values()]
    theirs.load_state_dict(dict(zip(wanted, tensors, strict=True)), strict=False)
    ours.eval()
    for shape in ((64, 64), (75, 50)):
        images = torch.randn(2, 3, *shape)
        with torch.no_grad():
            features = ours.stem(images)
            for block in ours.blocks:
                features = block(features)
            close(ours.last(features), theirs.forward_features(images))


def test_same_padding_is_larger_at_the_end() -> None:
    conv = SameConv2d(1, 1, 3, 2, bias=False)
    with torch.no_grad():
        conv.weight.fill_(1.0)
        row = torch.arange(1.0, 5.0).expand(1, 1, 4, 4)
        # Windows of three columns from 0 and 2: 1+2+3 and 3+4 beside one of padding;
        # the same for rows: three of them, then two.
        expected = torch.tensor([[18.0, 21.0], [12.0, 14.0]])
        assert torch.equal(conv(row)[0, 0], expected)


@pytest.mark.parametrize("name", ["vision/efficientnet", "vision/convnext"])
def test_stochastic_depth_is_upstreams(name: str) -> None:
    backbone = tiny(name)
    config = backbone.config or {}
    model = upstream_model(config["architecture"], config["width"])

    def rates(module: nn.Module) -> list[float]:
        return [m.p for m in module.modules() if type(m).__name__ == "StochasticDepth"]

    assert rates(backbone) == rates(model) and max(rates(model)) > 0


# What the first stage does to images


def test_stem_normalises_bytes_and_fractions_alike() -> None:
    backbone = resnet()
    state = sample_pixels(backbone)
    fractions = {**state, "pixels": state["pixels"] / 255}
    with torch.no_grad():
        assert torch.equal(backbone(state)["stem"], backbone(fractions)["stem"])


def test_padding_is_zero_after_normalisation() -> None:
    backbone = resnet()
    state = sample_pixels(backbone)
    seen: list[torch.Tensor] = []
    stem = backbone.stages["stem"]
    stem.block.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    garbage = state["pixels"].clone()
    garbage[1::2, :, 48:] = 200
    with torch.no_grad():
        stem({**state, "pixels": garbage})
        stem({"pixels": state["pixels"]})
    padded, whole = seen
    assert not padded[1::2, :, 48:].any()
    # A black pixel of an image is not padding: (0 - .485) / .229 in red.
    torch.testing.assert_close(whole[1, 0, 50, 0].item(), -0.485 / 0.229)
    assert torch.equal(padded[0], whole[0])


def test_canvas_is_the_size_of_the_batch() -> None:
    backbone = resnet()
    with torch.no_grad():
        state = backbone({"pixels": torch.zeros(2, 3, 64, 96, dtype=torch.uint8)})
    assert state["canvas"].tolist() == [[64, 96], [64, 96]]
    assert backbone.consumed == ("pixels",)


def test_mean_and_deviation_are_not_saved() -> None:
    assert not [k for k in resnet().state_dict() if k.endswith((".mean", ".std"))]


# Specs and shapes


@pytest.mark.parametrize("name", catalogue.NETWORKS)
def test_catalogue_states_real_channels_and_strides(name: str) -> None:
    network = catalogue.NETWORKS[name]
    family = catalogue.FAMILIES[network.family]
    with torch.device("meta"):
        settings = CnnSettings(name=family.name, architecture=name, weights="none")
        backbone = build_cnn(settings, None, {}).eval()
        pixels = torch.empty(1, 3, 96, 64)
        with torch.no_grad():
            state = backbone({"pixels": pixels})
    assert backbone.stage_names == family.stages
    for stage, channels, stride in zip(
        family.stages, network.channels, family.strides, strict=True
    ):
        assert state[stage].shape == (1, channels, 96 // stride, 64 // stride), stage
    for feature in backbone.features.values():
        size = state[feature.name].shape
        assert size == (1, feature.channels, 96 // feature.stride, 64 // feature.stride)


@specs
def test_specs_declare_what_is_built(spec: Any) -> None:
    if spec.name == "vision/timm":
        pytest.importorskip("timm")
    backbone = tiny(spec.name)
    assert {f.name for f in spec.features} == set(backbone.features)
    for declared in spec.features:
        built = backbone.features[declared.name]
        assert (declared.stride, declared.stage) == (built.stride, built.stage)
    if spec.stages:
        assert spec.stages == backbone.stage_names


def test_default_weights_follow_the_architecture() -> None:
    settings = CnnSettings(name="vision/resnet", architecture="resnet18")
    assert settings.weights == "torchvision:ResNet18_Weights.IMAGENET1K_V1"
    given = CnnSettings(name="vision/resnet", architecture="resnet18", weights="none")
    assert given.weights == "none"
    assert CnnSettings(name="vision/resnet").weights == ""
    assert TimmSettings(name="vision/timm", architecture="x").weights == "timm:x"


def test_catalogue_imports_no_torch() -> None:
    code = (
        "import sys, headstart_vision.catalogue as c, headstart_vision.settings;"
        "c.backbone_specs(); c.weight_sources(); sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, env=os.environ)
    assert done.returncode == 0


def test_default_weights_exist() -> None:
    for name, network in catalogue.NETWORKS.items():
        scheme, _, rest = network.weights.partition(":")
        if scheme == "torchvision":
            entry = models.get_weight(rest)
            assert entry in models.get_model_weights(name), name


# Settings


@pytest.mark.parametrize(
    ("name", "architecture", "text"),
    [
        ("vision/resnet", "resnet51", "did you mean 'resnet50'"),
        ("vision/resnet", "convnext_tiny", "backbone 'vision/convnext'"),
    ],
)
def test_unknown_architectures(name: str, architecture: str, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        CnnSettings(name=name, architecture=architecture)


@pytest.mark.parametrize(
    ("values", "where"),
    [
        ({"architecture": "resnet18", "output_stride": 8}, "backbone.output_stride"),
        ({"architecture": "resnet50", "width": 0.5}, "backbone.width"),
    ],
)
def test_what_a_network_cannot_be(values: dict[str, Any], where: str) -> None:
    with pytest.raises(UserError) as caught:
        build_cnn(CnnSettings(name="vision/resnet", weights="none", **values), None, {})
    assert caught.value.faults[0].where == where


def test_configuration_comes_from_the_weights(tmp_path: Path) -> None:
    config = {
        "architecture": "resnet18",
        "preprocessing": {"mean": [0.5] * 3, "size": 320},
        "categories": ["cat", "dog"],
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    backbone = build_cnn(CnnSettings(name="vision/resnet"), tmp_path, {})
    assert backbone.config is not None
    assert backbone.config["architecture"] == "resnet18"
    assert backbone.config["categories"] == ["cat", "dog"]
    assert backbone.preprocessing["size"] == 320
    assert backbone.preprocessing["std"] == [0.229, 0.224, 0.225]
    assert backbone.stages["stem"].mean.flatten().tolist() == [0.5] * 3
    # A run folder keeps the same file.
    (tmp_path / "config.json").write_text(json.dumps(backbone.config))
    again = build_cnn(CnnSettings(name="vision/resnet"), tmp_path, {})
    assert again.config == backbone.config


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architecture": "resnet18"}')
    with pytest.raises(UserError, match="'resnet18', the recipe asks for 'resnet34'"):
        build_cnn(
            CnnSettings(name="vision/resnet", architecture="resnet34"), tmp_path, {}
        )
    with pytest.raises(UserError, match=r'backbone\.name = "vision/resnet"'):
        build_cnn(CnnSettings(name="vision/convnext"), tmp_path, {})
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="no JSON"):
        build_cnn(CnnSettings(name="vision/resnet"), tmp_path, {})


@pytest.mark.parametrize(
    ("architecture", "stride", "width"),
    [("resnet50", 8, 1.0), ("resnet50", 16, 1.0), ("mobilenet_v3_small", 16, 0.25)],
)
def test_dilated_maps(architecture: str, stride: int, width: float) -> None:
    name = catalogue.backbone_of(architecture)
    backbone = tiny(name, architecture=architecture, output_stride=stride, width=width)
    state = sample_pixels(backbone)
    with torch.no_grad():
        ours = backbone(state)
    last = next(reversed(backbone.features))
    assert backbone.features[last].stride == stride
    assert ours[last].shape[-1] == 64 // stride
    for map_name, expected in reference_cnn(backbone, state).items():
        close(ours[map_name], expected)


# Frozen BatchNorm


@pytest.mark.parametrize("name", ["vision/resnet", "vision/mobilenet-v3"])
def test_frozen_norm_is_batch_norm_that_does_not_move(name: str) -> None:
    batch, frozen = tiny(name), tiny(name, norm="frozen")
    frozen.load_state_dict(batch.state_dict())
    state = sample_pixels(batch)
    with torch.no_grad():
        expected = batch(state)
        before = {k: v.clone() for k, v in frozen.state_dict().items()}
        ours = frozen.train()(state)
    for feature in batch.features:
        close(ours[feature], expected[feature])
    assert not [m for m in frozen.modules() if isinstance(m, nn.BatchNorm2d)]
    norms = [m for m in frozen.modules() if isinstance(m, FrozenBatchNorm2d)]
    assert norms and not [p for m in norms for p in m.parameters()]
    assert all(torch.equal(v, before[k]) for k, v in frozen.state_dict().items())


# Files of weights


def loads(backbone: Backbone, tensors: Mapping[str, Any], path: Path) -> State:
    """Load a file and compare: every tensor of the backbone came from it."""
    report = load_weights(backbone, save(tensors, path))
    counters = [n for n, _ in report.reinitialised]
    assert all(n.endswith("num_batches_tracked") for n in counters)
    assert report.loaded + len(counters) == len(backbone.state_dict())
    backbone.eval()
    state = sample_pixels(backbone)
    with torch.no_grad():
        return {"images": state, **backbone(state)}


@pytest.mark.parametrize("norm", ["batch", "frozen"])
def test_classifiers_file_loads(norm: str, tmp_path: Path) -> None:
    model = models.resnet18(num_classes=7)
    enliven(model)
    backbone = resnet(architecture="resnet18", norm=norm)
    loads(backbone, model.state_dict(), tmp_path / "m.safetensors")
    ours = backbone.upstream_state_dict()
    for name, tensor in model.state_dict().items():
        counter = name.endswith("num_batches_tracked")
        if not name.startswith("fc.") and not (counter and norm == "frozen"):
            assert torch.equal(ours[name], tensor), name


@pytest.mark.parametrize("norm", ["batch", "frozen"])
def test_detectors_file_loads(norm: str, tmp_path: Path) -> None:
    """As torchvision's COCO files: frozen norms, so without counters of batches."""
    model = detection.fasterrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=3
    )
    body = model.backbone.body
    backbone = resnet(architecture="resnet50", norm=norm)
    tensors = {
        k: v for k, v in model.state_dict().items() if "num_batches_tracked" not in k
    }
    assert any(k.startswith("backbone.body.layer4") for k in tensors)
    state = loads(backbone, tensors, tmp_path / "m.safetensors")
    images = state["images"]
    with torch.no_grad():
        maps = body.eval()(normalised(images, backbone.preprocessing))
    for key, stage in zip("0123", backbone.stage_names[1:], strict=True):
        close(state[stage], maps[key])


def test_mobile_detectors_file_loads(tmp_path: Path) -> None:
    """Its backbone's names lack ``features``; its pyramid reads two special maps."""
    model = detection.fasterrcnn_mobilenet_v3_large_fpn(
        weights=None, weights_backbone=None, num_classes=3
    )
    # As the torchvision: source says of these weights.
    config = {"architecture": "mobilenet_v3_large", "norm_eps": 1e-5}
    (tmp_path / "config.json").write_text(json.dumps(config))
    settings = CnnSettings(name="vision/mobilenet-v3", norm="frozen")
    backbone = build_cnn(settings, tmp_path, {})
    state = loads(backbone, model.state_dict(), tmp_path / "m.safetensors")
    with torch.no_grad():
        body = model.backbone.body.eval()
        maps = body(normalised(state["images"], backbone.preprocessing))
    close(state["layer4_first"], maps["0"])
    close(state["last"], maps["1"])


def test_segmenters_file_loads(tmp_path: Path) -> None:
    model = segmentation.lraspp_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=3
    )
    backbone = tiny(
        "vision/mobilenet-v3",
        architecture="mobilenet_v3_large",
        width=1.0,
        output_stride=16,
    )
    state = loads(backbone, model.state_dict(), tmp_path / "m.safetensors")
    with torch.no_grad():
        body = model.backbone.eval()
        maps = body(normalised(state["images"], backbone.preprocessing))
    close(state["layer2_first"], maps["low"])
    close(state["last"], maps["high"])


def test_file_of_another_network_is_refused(tmp_path: Path) -> None:
    weights = save(models.resnet18().state_dict(), tmp_path / "m.safetensors")
    with pytest.raises(UserError):
        load_weights(resnet(architecture="resnet34"), weights)


def test_shortened_backbone_takes_the_whole_file(tmp_path: Path) -> None:
    backbone = tiny("vision/mobilenet-v2")
    weights = save(backbone.upstream_state_dict(), tmp_path / "m.safetensors")
    short = tiny("vision/mobilenet-v2")
    short.keep(3)
    report = load_weights(short, weights)
    assert report.loaded == len(short.state_dict())
    state = sample_pixels(short)
    with torch.no_grad():
        ours = short(state)
    for name, expected in reference_cnn(short, state).items():
        close(ours[name], expected)
    assert set(short.features) == {"stem", "layer1", "layer2"}


# timm


def test_timm_families() -> None:
    pytest.importorskip("timm")
    for name, features in {
        "test_convnext": ["layer1", "layer2", "layer3", "layer4"],
        "test_efficientnet": ["stem", "layer1", "layer2", "layer3", "layer4"],
    }.items():
        backbone = tiny("vision/timm", architecture=name)
        assert list(backbone.features) == features
        state = sample_pixels(backbone)
        theirs = resolve(SPECS["vision/timm"].reference)(backbone, state)
        with torch.no_grad():
            ours = backbone(state)
        assert list(theirs) == features
        for key, expected in theirs.items():
            close(ours[key], expected)


def test_timm_whole_models_file_loads(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    model = timm.create_model("test_efficientnet", num_classes=4)
    backbone = tiny("vision/timm", architecture="test_efficientnet")
    loads(backbone, model.state_dict(), tmp_path / "m.safetensors")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("test_vit", "no plain sequence"),
        ("resnt18", "did you mean 'resnet18'"),
        ("", "is not said"),
    ],
)
def test_timm_networks_that_cannot_be_cut(name: str, text: str) -> None:
    pytest.importorskip("timm")
    with pytest.raises(UserError, match=text):
        tiny("vision/timm", architecture=name)


def test_timm_configuration_of_the_hub(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    config = {
        "architecture": "test_resnet",
        "pretrained_cfg": {
            "mean": [0.1, 0.2, 0.3],
            "std": [0.5, 0.5, 0.5],
            "input_size": [3, 160, 160],
            "crop_pct": 0.8,
            "interpolation": "bicubic",
        },
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    from headstart_vision.timm_source import build_timm

    backbone = build_timm(TimmSettings(name="vision/timm"), tmp_path, {})
    assert backbone.preprocessing == {
        "mean": [0.1, 0.2, 0.3],
        "std": [0.5, 0.5, 0.5],
        "size": 160,
        "resize": 200,
        "interpolation": "bicubic",
        "antialias": True,
        "stride": 32,
    }
    with pytest.raises(UserError, match="recipe asks for 'resnet18'"):
        build_timm(
            TimmSettings(name="vision/timm", architecture="resnet18"), tmp_path, {}
        )


def test_without_timm_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from headstart.errors import PluginError

    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(PluginError, match=r"headstart-vision\[timm\]"):
        tiny("vision/timm")
