"""Whole pretrained detectors and segmenters of torchvision, from the file to results.

Random parameters under torchvision's file names, served on 127.0.0.1, go through
``assemble`` with a recipe that shares some class names with COCO's.
"""

from __future__ import annotations

import hashlib
import re
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.models import detection, resnet50, segmentation
from torchvision.models.detection._utils import overwrite_eps
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.ops import FrozenBatchNorm2d

import headstart_vision
from headstart.assembly import assemble
from headstart.errors import UserError
from headstart.plugins import Registry
from headstart.recipe import build_recipe
from headstart_vision import weights as source
from headstart_vision.weights import weight_names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

LABELS = ["person", "kiln", "dog"]
NEVER = -1e4
"""A bias that no other score comes near: what it belongs to is never found."""
SIZES = [(64, 96), (96, 64), (64, 64), (64, 96), (64, 64), (96, 64)]


@pytest.fixture
def registry() -> Registry:
    made = Registry()
    assert made.add(headstart_vision, "vision").status == "loaded"
    return made


@pytest.fixture
def publish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str, dict[str, torch.Tensor]], str]]:
    """Serve tensors in the place of torchvision's; gives what a recipe says."""
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HEADSTART_OFFLINE", raising=False)
    folder = tmp_path / "models"
    folder.mkdir()

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(Handler, directory=str(folder))
    )
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()

    def offer(name: str, tensors: dict[str, torch.Tensor]) -> str:
        model, entry = weight_names()[name]
        draft = folder / "draft"
        torch.save(tensors, draft)
        with draft.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        path = draft.rename(folder / f"{model}_coco-{digest[:8]}.pth")
        url = f"http://127.0.0.1:{server.server_port}/{path.name}"
        known = {**weight_names(), name: (model, _Moved(entry, url))}
        monkeypatch.setattr(source, "weight_names", lambda: known)
        return f"torchvision:{name}"

    yield offer
    server.shutdown()
    server.server_close()


class _Moved:
    """torchvision's entry with another address."""

    def __init__(self, entry: Any, url: str) -> None:
        self.entry, self.url = entry, url

    def __getattr__(self, key: str) -> Any:
        return getattr(self.entry, key)

    def __str__(self) -> str:
        return str(self.entry)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six noisy images, a YOLO file and a mask for each: all have every class."""
    chance = np.random.default_rng(0)
    root = tmp_path / "data"
    for name in ("images", "labels", "masks"):
        (root / name).mkdir(parents=True)
    for i, (height, width) in enumerate(SIZES):
        stem = "abcdef"[i] * 3
        pixels = chance.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "images" / f"{stem}.png")
        rows = [f"{k} 0.5 0.5 0.{3 + k} 0.{3 + i}" for k in range(len(LABELS))]
        (root / "labels" / f"{stem}.txt").write_text("\n".join(rows) + "\n")
        mask = chance.integers(0, 3, (height, width), dtype=np.uint8)
        Image.fromarray(mask).save(root / "masks" / f"{stem}.png")
    (root / "classes.txt").write_text("\n".join(LABELS) + "\n")
    return root


def assembled(registry: Registry, **tables: dict[str, Any]) -> Any:
    tables["data"] = {"validation_size": 1, "test_size": 2, **tables["data"]}
    recipe = build_recipe(tables, {}, origin="test", registry=registry)
    return assemble(recipe, registry)


def batch(data: Any) -> tuple[dict[str, Any], list[torch.Tensor]]:
    """All images as the data gives them, and as torchvision takes them."""
    samples = [s for n in ("train", "validation", "test") for s in data.samples(n)]
    pictures = [data.picture(sample) / 255 for sample in samples]
    return data.collate(samples), pictures


def mobilenet() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    # Its own limits are those of a small model; ours are Faster R-CNN's.
    model = detection.fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None,
        weights_backbone=None,
        min_size=64,
        max_size=1333,
        rpn_pre_nms_top_n_test=1000,
        rpn_post_nms_top_n_test=1000,
        rpn_score_thresh=0.0,
    )
    return model, model.state_dict()


def resnet() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """As torchvision builds it for these weights, its file with names of old."""
    body = resnet50(weights=None, norm_layer=FrozenBatchNorm2d)
    for name, module in body.named_modules():
        if name.endswith("bn3"):
            # Or random residuals double the maps sixteen times.
            module.weight.fill_(0.2)
    model = detection.FasterRCNN(
        _resnet_fpn_extractor(body, 3), 91, min_size=64, max_size=1333
    )
    overwrite_eps(model, 0.0)
    pairs = (
        (r"(fpn\.\w+_blocks\.\d)\.0\.", r"\1."),
        (r"rpn\.head\.conv\.0\.0\.", "rpn.head.conv."),
    )
    tensors = model.state_dict()
    for new, old in pairs:
        tensors = {re.sub(new, old, name): t for name, t in tensors.items()}
    return model, tensors


@pytest.mark.parametrize(
    ("build", "name", "backbone", "head"),
    [
        (
            mobilenet,
            "FasterRCNN_MobileNet_V3_Large_320_FPN_Weights.COCO_V1",
            "vision/mobilenet-v3",
            {
                "features": ["layer4_first", "last"],
                "anchor_sizes": [[32, 64, 128, 256, 512]] * 3,
            },
        ),
        (resnet, "FasterRCNN_ResNet50_FPN_Weights.COCO_V1", "vision/resnet", {}),
    ],
)
def test_a_whole_detector_goes_on_where_torchvision_left_it(
    build: Any,
    name: str,
    backbone: str,
    head: dict[str, Any],
    registry: Registry,
    publish: Any,
    folder: Path,
) -> None:
    torch.manual_seed(0)
    model, tensors = build()
    categories = weight_names()[name][1].meta["categories"]
    kept = [0, categories.index("person"), categories.index("dog")]
    with torch.no_grad():
        # The scores of classes that we have not would take part in the softmax.
        bias = model.roi_heads.box_predictor.cls_score.bias
        bias[[i for i in range(91) if i not in kept]] = NEVER
    reference = publish(name, tensors)
    found = assembled(
        registry,
        backbone={"name": backbone, "weights": reference, "norm": "frozen"},
        head={"name": "vision/faster-rcnn", **head},
        data={"name": "vision/objects", "path": str(folder)},
    )
    report = found.transfer
    ours = found.model.head.state_dict()
    assert set(report.head_loaded) == set(ours)
    assert report.loaded == len(found.model.backbone.state_dict())
    assert (report.classes_kept, report.classes_new) == (("person", "dog"), ("kiln",))
    assert not report.reinitialised
    assert {why for _, why in report.skipped} <= {"pretraining head"}
    assert f"  head           {len(ours)} tensors loaded" in report.lines()
    assert "  classes        kept: person, dog; new: kiln" in report.lines()

    with torch.no_grad():
        ours["detector.roi_heads.box_predictor.cls_score.bias"][2] = NEVER
        state, pictures = batch(found.data)
        found.model.eval()
        predicted = found.model.head.outputs(found.model(found.model.prefix(state)))
        expected = model.eval()(pictures)
    for mine, theirs in zip(predicted["prediction"], expected, strict=True):
        named = [LABELS[label - 1] for label in mine["labels"].tolist()]
        assert named == [categories[label] for label in theirs["labels"].tolist()]
        assert set(named) == {"person", "dog"}
        torch.testing.assert_close(mine["scores"], theirs["scores"])
        torch.testing.assert_close(mine["boxes"], theirs["boxes"], rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize(
    ("model", "name", "backbone", "head"),
    [
        (
            "deeplabv3_resnet50",
            "DeepLabV3_ResNet50_Weights.COCO_WITH_VOC_LABELS_V1",
            "vision/resnet",
            "vision/deeplab",
        ),
        (
            "lraspp_mobilenet_v3_large",
            "LRASPP_MobileNet_V3_Large_Weights.COCO_WITH_VOC_LABELS_V1",
            "vision/mobilenet-v3",
            "vision/lraspp",
        ),
    ],
)
def test_a_whole_segmenter_goes_on_where_torchvision_left_it(
    model: str,
    name: str,
    backbone: str,
    head: str,
    registry: Registry,
    publish: Any,
    folder: Path,
) -> None:
    torch.manual_seed(0)
    deeplab = model.startswith("deeplab")
    auxiliary = {"aux_loss": True} if deeplab else {}
    network = getattr(segmentation, model)(
        weights=None, weights_backbone=None, **auxiliary
    ).eval()
    categories = weight_names()[name][1].meta["categories"]
    reference = publish(name, network.state_dict())
    found = assembled(
        registry,
        backbone={"name": backbone, "weights": reference},
        head={"name": head},
        data={
            "name": "vision/masks",
            "path": str(folder),
            "labels": ["background", "kiln", "dog"],
        },
    )
    report = found.transfer
    ours = found.model.head.state_dict()
    assert set(report.head_loaded) == set(ours)
    assert report.loaded == len(found.model.backbone.state_dict())
    # The auxiliary decoder is left over: this head has none.
    second = [k for k in network.state_dict() if k.startswith("aux_classifier.")]
    assert bool(second) is deeplab
    assert dict(report.skipped) == dict.fromkeys(second, "pretraining head")
    assert report.classes_kept == ("background", "dog")
    assert report.classes_new == ("kiln",)
    state, pictures = batch(found.data)
    # Padding is none of torchvision's business: one shape at a time.
    square = [i for i, p in enumerate(pictures) if p.shape[-2:] == (64, 64)]
    state = {key: value[square] for key, value in state.items()}
    state["pixels"] = state["pixels"][..., :64, :64]
    state["mask"] = state["mask"][..., :64, :64]
    mean, std = (
        torch.tensor(found.model.backbone.preprocessing[key]).view(3, 1, 1)
        for key in ("mean", "std")
    )
    with torch.no_grad():
        found.model.eval()
        logits = found.model(found.model.prefix(state))["logits"]
        images = torch.stack([(pictures[i] - mean) / std for i in square])
        expected = network(images)["out"]
    rows = [0, categories.index("dog")]
    torch.testing.assert_close(
        logits[:, [0, 2]], expected[:, rows], rtol=1e-4, atol=1e-4
    )


def test_a_detector_that_no_backbone_here_is_cut_for(
    registry: Registry, publish: Any, folder: Path
) -> None:
    """torchvision's SSDLite has a MobileNetV3 with a narrower tail of its own."""
    name = "SSDLite320_MobileNet_V3_Large_Weights.COCO_V1"
    network = detection.ssdlite320_mobilenet_v3_large(
        weights=None, weights_backbone=None
    )
    reference = publish(name, network.state_dict())
    with pytest.raises(UserError) as error:
        assembled(
            registry,
            backbone={"name": "vision/mobilenet-v3", "weights": reference},
            head={"name": "vision/ssdlite"},
            data={"name": "vision/objects", "path": str(folder)},
        )
    (fault,) = error.value.faults
    assert "a MobileNetV3 of its own" in fault.what
    assert "MobileNet_V3_Large_Weights.IMAGENET1K_V2" in fault.fix
    assert not list(folder.parent.glob("cache/**/*.pth")), "it was fetched for nothing"
