"""Weights by torchvision's and timm's names, over HTTP and the hub on 127.0.0.1."""

from __future__ import annotations

import hashlib
import json
import pickle
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import softmax
from torchvision import models
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights
from torchvision.transforms import v2

from headstart import assets
from headstart.errors import UserError
from headstart.testing.hub import HubServer
from headstart.weights.sources import SourceContext, Weights
from headstart.weights.transfer import load_weights
from headstart_vision import weights as source
from headstart_vision.backbones import build_cnn
from headstart_vision.efficientnet_lite import EfficientNetLite
from headstart_vision.settings import CnnSettings, TimmSettings
from headstart_vision.weights import resolve_torchvision, weight_names

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NAME = "ResNet18_Weights.IMAGENET1K_V1"
DETECTOR = "FasterRCNN_ResNet50_FPN_Weights.COCO_V1"
REGISTRY: Any = None
CONTEXT = SourceContext(REGISTRY)


class Server:
    """Serves files from memory, and breaks off in the middle when told to."""

    def __init__(self) -> None:
        self.pages: dict[str, bytes] = {}
        self.cuts: list[int] = []
        self.starts: list[int] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = server.pages[self.path]
                asked = self.headers.get("Range", "bytes=0-")
                start = int(asked.removeprefix("bytes=").rstrip("-"))
                server.starts.append(start)
                self.send_response(206 if start else 200)
                self.send_header("ETag", '"one"')
                self.send_header("Content-Length", str(len(body) - start))
                if start:
                    span = f"bytes {start}-{len(body) - 1}/{len(body)}"
                    self.send_header("Content-Range", span)
                self.end_headers()
                stop = server.cuts.pop(0) if server.cuts else len(body)
                self.wfile.write(body[start:stop])

            def log_message(self, *_: object) -> None: ...

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(
            target=self.http.serve_forever, args=(0.01,), daemon=True
        ).start()

    def offer(self, stem: str, content: bytes, digest: str = "") -> str:
        """Serve a file under a name that states its hash, as torchvision's do."""
        digest = digest or hashlib.sha256(content).hexdigest()
        path = f"/models/{stem}-{digest[:8]}.pth"
        self.pages[path] = content
        return self.url + path


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


@pytest.fixture
def server(running: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HEADSTART_OFFLINE", raising=False)
    monkeypatch.setattr("headstart.fetch.http.WAITS", (0.0, 0.0))
    running.pages, running.cuts, running.starts = {}, [], []
    return running


def point(monkeypatch: pytest.MonkeyPatch, name: str, url: str) -> None:
    """Let torchvision's entry name another address."""
    model, entry = weight_names()[name]
    moved = replace(entry.value, url=url)
    there = SimpleNamespace(url=url, meta=moved.meta, transforms=moved.transforms)
    known = {**weight_names(), name: (model, _Named(there, str(entry)))}
    monkeypatch.setattr(source, "weight_names", lambda: known)


class _Named:
    def __init__(self, entry: Any, name: str) -> None:
        self.entry, self.name = entry, name

    def __getattr__(self, key: str) -> Any:
        return getattr(self.entry, key)

    def __str__(self) -> str:
        return self.name


def saved(tensors: dict[str, torch.Tensor], path: Path) -> bytes:
    torch.save(tensors, path)
    return path.read_bytes()


TENSORS = {"conv1.weight": torch.arange(6.0).view(2, 3), "fc.bias": torch.ones(2)}


def test_weights_are_fetched_once_and_described(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = server.offer("resnet18", saved(TENSORS, tmp_path / "m.pth"))
    point(monkeypatch, NAME, url)
    told: list[int] = []
    context = SourceContext(REGISTRY, lambda done, total, label: told.append(done))
    found = resolve_torchvision(NAME, context)
    tensors = found.tensors()
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[k], v) for k, v in TENSORS.items())
    assert told and "BSD-3-Clause" in found.licence
    assert (
        found.classes[281:283] == ("tabby", "tiger cat") and len(found.classes) == 1000
    )
    assert found.folder is not None
    config = json.loads((found.folder / "config.json").read_text())
    assert config["architecture"] == "resnet18"
    assert config["categories"] == list(found.classes)
    assert config["preprocessing"] == {
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "size": 224,
        "resize": 256,
        "interpolation": "bilinear",
        "antialias": True,
        "stride": 32,
    }
    # From the cache, and with the network forbidden.
    monkeypatch.setenv("HEADSTART_OFFLINE", "1")
    again = resolve_torchvision(NAME, CONTEXT)
    assert again == found and server.starts == [0]


def test_cut_download_goes_on_where_it_was(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = saved({"w": torch.randn(400, 400)}, tmp_path / "m.pth")
    point(monkeypatch, NAME, server.offer("resnet18", content))
    server.cuts = [300_000]
    found = resolve_torchvision(NAME, CONTEXT)
    assert found.files[0].read_bytes() == content
    assert server.starts == [0, 300_000]


def test_wrong_hash_is_deleted(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = saved(TENSORS, tmp_path / "m.pth")
    url = server.offer("resnet18", content, digest="0123abcd")
    point(monkeypatch, NAME, url)
    with pytest.raises(UserError, match="wrong hash and was deleted") as caught:
        resolve_torchvision(NAME, CONTEXT)
    assert hashlib.sha256(content).hexdigest() in str(caught.value)
    folder = tmp_path / "cache" / "torchvision" / NAME
    assert not list(folder.glob("*.pth*")) and not (folder / "config.json").exists()


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (type(self.path).touch, (self.path,))


@pytest.mark.parametrize("name", [NAME, DETECTOR])
def test_malicious_pickle_is_refused(
    name: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = tmp_path / "done"
    torch.save({"w": torch.ones(1), "x": Malicious(done)}, tmp_path / "m.pth")
    content = (tmp_path / "m.pth").read_bytes()
    point(monkeypatch, name, server.offer("resnet18", content))
    with pytest.raises(UserError, match="is refused"):
        resolve_torchvision(name, CONTEXT).tensors()
    point(monkeypatch, name, server.offer("other", pickle.dumps(Malicious(done))))
    with pytest.raises(UserError, match="is refused"):
        resolve_torchvision(name, CONTEXT).tensors()
    assert not done.exists()


def test_detectors_tensors_get_their_present_names(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = {
        "backbone.body.conv1.weight": torch.ones(2),
        "backbone.fpn.inner_blocks.0.weight": torch.ones(3),
        "rpn.head.conv.bias": torch.ones(4),
    }
    content = saved(old, tmp_path / "m.pth")
    point(monkeypatch, DETECTOR, server.offer("fasterrcnn", content))
    for _ in range(2):
        found = resolve_torchvision(DETECTOR, CONTEXT)
        assert {k: len(v) for k, v in found.tensors().items()} == {
            "backbone.body.conv1.weight": 2,
            "backbone.fpn.inner_blocks.0.0.weight": 3,
            "rpn.head.conv.0.0.bias": 4,
        }
    assert found.classes[:3] == ("__background__", "person", "bicycle")
    assert found.folder is not None
    config = json.loads((found.folder / "config.json").read_text())
    # torchvision's own builder sets the epsilon of these weights' norms to 0.
    assert (config["architecture"], config["norm_eps"]) == ("resnet50", 0.0)
    settings = CnnSettings(name="vision/resnet", norm="frozen")
    backbone = build_cnn(settings, found.folder, {})
    assert {m.eps for m in backbone.modules() if hasattr(m, "eps")} == {0.0}


def test_forbidden_network(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADSTART_OFFLINE", "1")
    with pytest.raises(UserError, match="network is forbidden"):
        resolve_torchvision(NAME, CONTEXT)


def test_server_out_of_reach(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    point(monkeypatch, NAME, "http://127.0.0.1:9/resnet18-01234567.pth")
    with pytest.raises(UserError, match="cannot be fetched") as caught:
        resolve_torchvision(NAME, CONTEXT)
    assert "run it again" in caught.value.faults[0].fix


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("ResNet50_Weights.IMAGENET1K_V3", "choose ResNet50_Weights.DEFAULT or"),
        ("ResNet50_Weight.IMAGENET1K_V1", "did you mean 'ResNet50_Weights.IMAGENET"),
        ("resnet50", "did you mean|known:"),
    ],
)
def test_unknown_names(name: str, hint: str) -> None:
    with pytest.raises(UserError, match=hint):
        resolve_torchvision(name, CONTEXT)


def test_names_are_torchvisions() -> None:
    names = weight_names()
    assert names["ResNet50_Weights.DEFAULT"][1] is models.ResNet50_Weights.DEFAULT
    model, entry = names[DETECTOR]
    assert model == "fasterrcnn_resnet50_fpn"
    assert entry is FasterRCNN_ResNet50_FPN_Weights.COCO_V1
    assert not [n for n in names if "Quantized" in n or "Raft" in n]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("EfficientNet_B4_Weights.IMAGENET1K_V1", (380, 384, "bicubic")),
        ("ResNet50_Weights.IMAGENET1K_V2", (224, 232, "bilinear")),
        ("DeepLabV3_ResNet50_Weights.DEFAULT", (520, 520, "bilinear")),
    ],
)
def test_preprocessing_is_the_presets(
    name: str, expected: tuple[int, int, str]
) -> None:
    _, entry = weight_names()[name]
    found = source.preprocessing(entry.transforms())
    assert (found["size"], found["resize"], found["interpolation"]) == expected


@pytest.mark.parametrize(
    ("name", "architecture", "stride"),
    [
        ("DeepLabV3_ResNet101_Weights.DEFAULT", "resnet101", 8),
        ("LRASPP_MobileNet_V3_Large_Weights.DEFAULT", "mobilenet_v3_large", 16),
        ("MaskRCNN_ResNet50_FPN_V2_Weights.DEFAULT", "resnet50", None),
        ("Wide_ResNet50_2_Weights.DEFAULT", "wide_resnet50_2", None),
    ],
)
def test_backbone_inside_is_known(
    name: str, architecture: str, stride: int | None
) -> None:
    config = source._config(*weight_names()[name])
    assert config["architecture"] == architecture
    assert config.get("output_stride") == stride


# timm


def test_timm_weights_come_from_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timm = pytest.importorskip("timm")
    from safetensors.torch import save_file

    from headstart_vision.timm_source import build_timm, resolve_timm

    model = timm.create_model("test_resnet", num_classes=5)
    folder = tmp_path / "repo"
    folder.mkdir()
    save_file(model.state_dict(), folder / "model.safetensors")
    config = {"architecture": "test_resnet", "pretrained_cfg": {"mean": [0.1] * 3}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    with HubServer() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        commit = hub.publish("timm/test_resnet.r160_in1k", folder)
        found = resolve_timm("test_resnet", CONTEXT)
        assert (found.revision, found.licence) == (commit, "apache-2.0")
        assert resolve_timm(f"test_resnet@{commit}", CONTEXT).files
    backbone = build_timm(TimmSettings(name="vision/timm"), found.folder, {})
    report = load_weights(backbone, found)
    assert report.loaded == len(backbone.state_dict())
    assert {name for name, _ in report.skipped} == {"fc.weight", "fc.bias"}
    ours = backbone.upstream_state_dict()
    theirs = model.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert backbone.preprocessing["mean"] == [0.1] * 3


def test_timm_names_that_do_not_exist() -> None:
    pytest.importorskip("timm")
    from headstart_vision.timm_source import resolve_timm

    with pytest.raises(UserError, match="did you mean"):
        resolve_timm("resnet18.a1_in2k", CONTEXT)
    with pytest.raises(UserError, match="no weights"):
        resolve_timm("resnte18", CONTEXT)


# The real assets


def asset(name: str) -> Path:
    found = assets.find_asset(name, ["headstart_vision"])
    try:
        return assets.fetch(found)
    except assets.AssetError as error:
        pytest.skip(f"{name} cannot be had here: {error.faults[0].what}")


def cat() -> torch.Tensor:
    """The middle of the cat at 224 pixels, as bytes (1, 3, 224, 224).

    So the recorded confidences were measured; the weights' own presets cut more off.
    """
    image = Image.open(asset("photos") / "chelsea.png").convert("RGB")
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    pixels = v2.functional.resize(pixels, [224], antialias=True)
    return v2.functional.center_crop(pixels, [224, 224])[None]


EGYPTIAN_CAT = 285


def confidence(name: str, prefix: str) -> tuple[float, int]:
    """Run the stages and the file's own classifier on the cat."""
    architecture = name.replace("-", "_")
    backbone = build_cnn(CnnSettings(name=f"vision/{name}"), None, {}).eval()
    folder = asset(name)
    (path,) = folder.glob("*.pth")
    weights = Weights(f"asset:{name}", folder, (path,))
    report = load_weights(backbone, weights)
    assert report.loaded == len(backbone.state_dict()), architecture
    assert len(report.skipped) == 2
    with torch.no_grad():
        state = backbone({"pixels": cat()})
        pooled = state["last"].mean((2, 3))
        tensors = weights.tensors()
        logits = pooled @ tensors[f"{prefix}.weight"].T + tensors[f"{prefix}.bias"]
    chances = softmax(logits[0], dim=0)
    return float(chances[EGYPTIAN_CAT]), int(chances.argmax())


@pytest.mark.network
def test_mobilenet_v2_knows_the_cat() -> None:
    chance, best = confidence("mobilenet-v2", "classifier.1")
    assert best == EGYPTIAN_CAT
    assert chance == pytest.approx(0.787, abs=0.01)


@pytest.mark.network
def test_efficientnet_lite0_knows_the_cat() -> None:
    chance, best = confidence("efficientnet-lite0", "_fc")
    assert best == EGYPTIAN_CAT
    assert chance == pytest.approx(0.385, abs=0.01)


@pytest.mark.network
def test_photos_are_colour_photographs() -> None:
    folder = asset("photos")
    found = assets.find_asset("photos", ["headstart_vision"])
    assert len(found.files) >= 6
    for file in found.files:
        image = Image.open(folder / file.path)
        assert image.mode == "RGB" and min(image.size) >= 224
        pixels = np.asarray(image).astype(int)
        assert np.abs(pixels[..., 0] - pixels[..., 2]).mean() > 1, file.path


@pytest.mark.network
def test_fashion_mnist_is_whole() -> None:
    from headstart_vision.idx import read_idx

    folder = asset("fashion-mnist")
    read = assets.find_asset("fashion-mnist", ["headstart_vision"]).read
    for split, count in (("train", 60_000), ("t10k", 10_000)):
        images = read_idx(folder / f"{split}-images-idx3-ubyte.gz")
        labels = read_idx(folder / f"{split}-labels-idx1-ubyte.gz")
        assert images.shape == (count, 28, 28)
        assert np.bincount(labels).tolist() == [count // 10] * len(read["labels"])


def test_lite0_names_its_tensors_as_the_file_does() -> None:
    """Names and shapes of the published file, without having it."""
    backbone = build_cnn(CnnSettings(name="vision/efficientnet-lite0"), None, {})
    names = backbone.upstream_state_dict()
    # 49 convolutions, each with a normalisation of five tensors; _fc is the head's,
    # 1,281,000 of the 4,652,008 parameters that the network is published with.
    assert len(names) == 49 * 6
    assert names["_conv_stem.weight"].shape == (32, 3, 3, 3)
    assert names["_blocks.0._depthwise_conv.weight"].shape == (32, 1, 3, 3)
    assert "_blocks.0._expand_conv.weight" not in names
    assert names["_blocks.8._expand_conv.weight"].shape == (480, 80, 1, 1)
    assert names["_blocks.15._bn2.running_var"].shape == (320,)
    assert names["_conv_head.weight"].shape == (1280, 320, 1, 1)
    assert names["_bn1.num_batches_tracked"].shape == ()
    assert (
        sum(p.numel() for p in EfficientNetLite().parameters()) == 4_652_008 - 1_281_000
    )
