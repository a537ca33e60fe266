"""Networks of timm, cut where its own feature extraction leaves a map; an extra."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from headstart.errors import PluginError, UserError, nearest
from headstart.specs import Feature
from headstart.stages import Backbone
from headstart.weights.hub import fetch_model
from headstart.weights.sources import Weights
from headstart_vision import catalogue
from headstart_vision.backbones import Blocks, Stem, normalised, read_config

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from headstart.stages import State
    from headstart.weights.sources import SourceContext
    from headstart_vision.settings import TimmSettings


def build_timm(
    settings: TimmSettings, folder: Path | None, task: Mapping[str, Any]
) -> Backbone:
    """A network of timm with random parameters, cut into stages.

    There is a stage for each map of timm's ``features_only``, named by its stride:
    ``stem`` for 2, ``layer1`` for 4 and so on.

    Args:
        settings: ``architecture``; empty takes that of ``folder``.
        folder: May hold ``config.json``, as timm's models on the hub have it.

    Raises:
        PluginError: timm is not installed.
        UserError: There is no such network, or it is no sequence of stages.
    """
    timm = import_timm()
    found = read_config(folder)
    theirs = str(found.get("architecture", ""))
    name = settings.architecture.partition(".")[0] or theirs
    if theirs and theirs != name:
        raise UserError(
            f"the weights are for {theirs!r}, the recipe asks for {name!r}",
            where="backbone.architecture",
            fix=f'choose one: backbone.architecture = "{theirs}", or other weights',
        )
    if not timm.is_model(name):
        raise UserError(
            f"timm has no network {name!r}" if name else "which network is not said",
            where="backbone.architecture",
            fix=nearest(name, timm.list_models()),
        )
    infos = _feature_infos(timm, name)
    model = timm.create_model(name)
    everything = list(model.state_dict())
    preprocessing = _preprocessing(found.get("pretrained_cfg") or model.pretrained_cfg)
    stages: dict[str, nn.Module] = {}
    features: list[Feature] = []
    upstream: dict[str, str] = {}
    source = ""
    for info, part in zip(infos, _cut(model, name, infos), strict=True):
        stride = int(info["reduction"])
        stage = _stage_name(stride, stages)
        block = nn.Sequential(
            OrderedDict((str(i), module) for i, module in enumerate(part.values()))
        )
        for i, path in enumerate(part):
            upstream[f"stages.{stage}.block.{i}."] = f"{path}."
        features.append(Feature(stage, "map", int(info["num_chs"]), stride, stage))
        stages[stage] = (
            Blocks(stage, source, block)
            if source
            else Stem(stage, block, preprocessing["mean"], preprocessing["std"])
        )
        source = stage
    backbone = Backbone(
        stages,
        features=features,
        upstream=upstream,
        preprocessing={**preprocessing, "stride": features[-1].stride},
        consumed=("pixels",),
        config={**found, "architecture": name},
    )
    own = set(backbone.upstream_state_dict())
    backbone.ignored = tuple(key for key in everything if key not in own)
    return backbone


def import_timm() -> Any:
    """timm, which is an optional extra.

    Raises:
        PluginError: It is not installed.
    """
    try:
        import timm
    except ImportError as error:
        raise PluginError(
            "timm is not installed",
            where="vision/timm",
            why=str(error),
            fix='pip install "headstart-vision[timm]"',
        ) from error
    return timm


def _feature_infos(timm: Any, name: str) -> list[dict[str, Any]]:
    """What timm's own feature extraction leaves: module, channels and stride.

    Raises:
        UserError: It does not run the network's modules one after another.
    """
    why = "it has no feature maps"
    try:
        extractor = timm.create_model(name, features_only=True)
    except (RuntimeError, AssertionError, AttributeError, TypeError) as error:
        why = str(error).strip() or why
    else:
        kind = type(extractor).__name__
        layout = str(getattr(extractor, "output_fmt", "NCHW")).rpartition(".")[2]
        sequential = ("FeatureListNet", "EfficientNetFeatures", "MobileNetV3Features")
        if kind in sequential and layout == "NCHW":
            infos: list[dict[str, Any]] = extractor.feature_info.get_dicts()
            return infos
        why = f"timm extracts its features with {kind}, channels in {layout} order"
    raise UserError(
        f"timm's network {name!r} is no plain sequence of convolutional stages",
        where="backbone.architecture",
        why=why,
        fix="choose e.g. resnet50, convnext_tiny, regnety_016, efficientnet_b0",
    )


def _cut(
    model: nn.Module, name: str, infos: list[dict[str, Any]]
) -> list[dict[str, nn.Module]]:
    """The modules up to each feature, by path, in the order in which timm runs them."""
    ends = [info["module"] for info in infos]
    modules: dict[str, nn.Module] = {}
    for path, child in model.named_children():
        if any(end.startswith(f"{path}.") for end in ends):
            modules |= {f"{path}.{key}": m for key, m in child.named_children()}
        else:
            modules[path] = child
    missing = [end for end in ends if end not in modules]
    if missing:
        raise UserError(
            f"timm's network {name!r} has no module {missing[0]!r} to cut at",
            where="backbone.architecture",
        )
    parts: list[dict[str, nn.Module]] = [{}]
    for path, module in modules.items():
        parts[-1][path] = module
        if path == ends[len(parts) - 1]:
            if len(parts) == len(ends):
                break
            parts.append({})
    return parts


def _stage_name(stride: int, taken: dict[str, nn.Module]) -> str:
    level = int(math.log2(stride)) - 1
    name = f"layer{level}" if level > 0 else ("stem" if level == 0 else "pixel")
    return f"{name}_{len(taken)}" if name in taken else name


def _preprocessing(config: dict[str, Any]) -> dict[str, Any]:
    """What timm's configuration of pretrained weights says about images."""
    size = int(config.get("input_size", (3, 224, 224))[-1])
    found = {
        **catalogue.IMAGENET,
        "size": size,
        "resize": math.floor(size / float(config.get("crop_pct", 0.875))),
    }
    for key in ("mean", "std"):
        if key in config:
            found[key] = [float(value) for value in config[key]]
    if config.get("interpolation") in ("bilinear", "bicubic"):
        found["interpolation"] = config["interpolation"]
    return found


def reference_timm(backbone: Backbone, state: State) -> dict[str, Tensor]:
    """The maps of timm's own ``features_only`` network with the same parameters."""
    import torch

    config = backbone.config or {}
    timm = import_timm()
    model = timm.create_model(config["architecture"], features_only=True).eval()
    known = model.state_dict()
    # timm flattens sequences: `stages.0.` is `stages_0.` there.
    tensors = {
        key if key in known else key.replace(".", "_", 1): value
        for key, value in backbone.upstream_state_dict().items()
    }
    model.load_state_dict({**known, **tensors})
    with torch.no_grad():
        maps = model(normalised(state, backbone.preprocessing))
    return dict(zip(backbone.features, maps, strict=False))


def resolve_timm(reference: str, context: SourceContext) -> Weights:
    """A pretrained network of timm, from where timm keeps it on the hub.

    Args:
        reference: timm's name, e.g. ``resnet18.a1_in1k`` or ``resnet18``, with an
            optional ``@REVISION``.
        context: Not needed; the hub's client shows its own progress.

    Raises:
        PluginError: timm is not installed.
        UserError: There are no such weights, or they cannot be had.
    """
    timm = import_timm()
    name, at, revision = reference.partition("@")
    config = None
    if timm.is_model(name.partition(".")[0]):
        try:
            config = timm.get_pretrained_cfg(name)
        except (RuntimeError, ValueError):
            config = None
    if config is None or not config.hf_hub_id:
        raise UserError(
            f"timm has no weights {name!r} on the hub",
            where=f"timm:{reference}",
            fix=nearest(name, timm.list_pretrained()),
        )
    repo = config.hf_hub_id
    if repo.endswith("/"):
        repo += f"{config.architecture}.{config.tag}" if config.tag else name
    found = fetch_model(f"{repo}{at}{revision}")
    return Weights(
        f"timm:{reference}",
        found.folder,
        found.files,
        found.commit,
        found.licence or str(config.license or ""),
    )
