"""What all backbones of this plugin have in common: configuration, surgery, samples."""

from __future__ import annotations

import inspect
import json
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import torch
from monai.networks import nets
from torch import nn

from headstart.errors import Fault, UserError, nearest
from headstart.settings import BackboneSettings
from headstart.stages import Backbone
from headstart_medical import catalogue, surgery

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from headstart.specs import Feature
    from headstart.stages import State

# What settings may change without the weights' consent: nothing is lost, or the
# surgery mends it.
FREE = frozenset(
    ("out_channels", "img_size", "dropout", "dropout_prob", "drop_rate", "dropout_rate")
)
# What MONAI raises for arguments that cannot be.
FAILURES = (
    ArithmeticError,
    AssertionError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
# What the data and the plugin decide, whatever a configuration says.
DECIDED = frozenset(
    (
        "network",
        "in_channels",
        "n_input_channels",
        "spatial_dims",
        "channel_names",
        "pretrained",
        "progress",
        "use_checkpoint",
        "save_attn",
    )
)


class MedicalBackbone(Backbone):
    """A network cut into stages that takes weights for other inputs than its own.

    Args:
        stages: By name, in order.
        features: What they leave in the state.
        upstream: Prefixes of our names to the upstream library's.
        network: The upstream library's class.
        arguments: Those it was built with, JSON-ready.
        channels: Names of the input channels.
        their_channels: Of the weights', where they are known.
        entry: Glob patterns of the upstream names of kernels that read the image.
        anew: Of tensors whose shape follows the number of classes: they keep their
            random values where the weights have another one.
        origin: The upstream module whose output each feature is, for references.
        options: Of :class:`headstart.stages.Backbone`.
    """

    def __init__(
        self,
        stages: Mapping[str, nn.Module],
        *,
        features: Sequence[Feature],
        upstream: Mapping[str, str],
        network: str,
        arguments: Mapping[str, Any],
        channels: Sequence[str],
        their_channels: Sequence[str] = (),
        entry: Sequence[str] = (),
        anew: Sequence[str] = (),
        origin: Mapping[str, str] | None = None,
        **options: Any,
    ) -> None:
        backbone = catalogue.NETWORKS.get(catalogue.backbone_of(network))
        output = backbone.output if backbone else ""
        ignored = [f"{prefix}*" for prefix in (catalogue.HEADS_OWN, output) if prefix]
        config = {"network": network, **arguments, "channel_names": list(channels)}
        super().__init__(
            stages,
            features=features,
            upstream=upstream,
            ignored=(*ignored, *options.pop("ignored", ())),
            consumed=("image",),
            config=options.pop("config", config),
            wrappers=("module.",),
            **options,
        )
        self.channels = tuple(channels)
        self.their_channels = tuple(their_channels)
        self.entry = tuple(entry)
        self.anew = tuple(anew)
        self.origin = dict(origin or {})

    def fit_tensor(
        self, name: str, theirs: Tensor, ours: Tensor
    ) -> tuple[Tensor, str] | None:
        """Inflate 2D kernels, and let a first one read our input channels."""
        words = []
        if theirs.ndim == 4 and ours.ndim == 5:
            theirs, how = surgery.inflate(theirs, ours.shape[-1], self._stride(name))
            words.append(how)
        reads_image = any(fnmatchcase(name, pattern) for pattern in self.entry)
        others = [side for side in range(ours.ndim) if side != 1]
        if reads_image and _sides(theirs, others) == _sides(ours, others):
            if theirs.shape[1] != ours.shape[1]:
                theirs, how = surgery.fit_channels(
                    theirs, ours.shape[1], self.channels, self.their_channels
                )
                words.append(how)
        if theirs.shape == ours.shape:
            return theirs, "; ".join(words)
        if any(fnmatchcase(name, pattern) for pattern in self.anew):
            shapes = f"{tuple(theirs.shape)} in the weights, {tuple(ours.shape)} here"
            return ours.detach().clone(), f"starts anew, for other classes: {shapes}"
        return None

    def _stride(self, name: str) -> int | None:
        """The last stride of a transposed convolution; ``None`` of anything else."""
        for path, module in self.named_modules():
            if isinstance(module, nn.ConvTranspose3d):
                if self.upstream_name(f"{path}.weight") == name:
                    return int(module.stride[-1])
        return None


def _sides(tensor: Tensor, axes: Sequence[int]) -> list[int]:
    return [tensor.shape[axis] for axis in axes if axis < tensor.ndim]


class Configuration:
    """What a network is built from: settings, the weights' file, the data.

    Args:
        settings: What they leave open comes from the weights.
        folder: May hold ``config.json``: ``network``, the name of its class in the
            upstream library, that class' arguments, and maybe ``channel_names``, those
            of the weights' input channels.
        task: Names our channels.
        network: The class that is to be built.
        aliases: Other names that files may call it by.

    Attributes:
        found: The weights' arguments; empty when they bring none.
        chosen: What the recipe asks for.
        channels: Names of our input channels.
        their_channels: Names of the weights', if they are known.

    Raises:
        UserError: The weights are for another network, or not what the recipe asks
            for; all differences together.
    """

    def __init__(
        self,
        settings: BackboneSettings,
        folder: Path | None,
        task: Mapping[str, Any],
        network: str,
        aliases: Sequence[str] = (),
    ) -> None:
        raw = read_config(folder)
        self.raw = raw
        self.network = network
        theirs = str(raw.get("network", network))
        if theirs not in (network, *aliases):
            other = catalogue.backbone_of(theirs)
            raise UserError(
                f"the weights are for the network {theirs!r}, the recipe asks for "
                f"{network!r}",
                where="backbone.name",
                fix=f'backbone.name = "{other}"' if other else "choose other weights",
            )
        # A configuration without that name is another kind of file.
        self.found: dict[str, Any] = (
            {k: v for k, v in raw.items() if k not in DECIDED}
            if "network" in raw
            else {}
        )
        self.chosen = chosen(settings)
        self.channels = [str(name) for name in task.get("channels") or ("image",)]
        self.their_channels = [str(name) for name in raw.get("channel_names", ())]
        faults = [
            Fault(
                f"the weights have {key} = {json.dumps(self.found[key])}, the recipe "
                f"asks for {json.dumps(value)}",
                f"backbone.{key}",
                fix="leave it out, or choose other weights",
            )
            for key, value in self.chosen.items()
            if key not in FREE and key in self.found and self.found[key] != value
        ]
        faults += self._order()
        if faults:
            raise UserError(*faults)

    def _order(self) -> list[Fault]:
        ours, theirs = (
            [name.casefold() for name in names]
            for names in (self.channels, self.their_channels)
        )
        if ours == theirs or sorted(ours) != sorted(theirs):
            return []
        return [
            Fault(
                f"the data's channels are {', '.join(self.channels)}, the weights' "
                f"are {', '.join(self.their_channels)}",
                "data",
                "the first convolution would read one for the other",
                "list the data's channels in the weights' order",
            )
        ]

    def arguments(self, **defaults: Any) -> dict[str, Any]:
        """The arguments of the class but for input and output, JSON-ready.

        What the weights say, else our defaults; over both what the recipe asks for.
        """
        return {**(self.found or defaults), **self.chosen}


def chosen(settings: BackboneSettings) -> dict[str, Any]:
    """A network's own settings as far as they were given, JSON-ready."""
    common = {*BackboneSettings.model_fields, "dimensions", "depth", "architecture"}
    given = settings.model_dump(mode="json", exclude=common, exclude_none=True)
    return {key: value for key, value in given.items() if value != ""}


def read_config(folder: Path | None) -> dict[str, Any]:
    """What ``config.json`` beside the weights says; empty when there is none.

    Raises:
        UserError: It is no JSON object.
    """
    if folder is None or not (folder / "config.json").is_file():
        return {}
    path = folder / "config.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"this is no JSON: {error}", where=str(path)) from error
    if not isinstance(found, dict):
        raise UserError("this JSON holds no configuration", where=str(path))
    return found


def construct(network: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    """A network of the upstream library.

    Raises:
        UserError: There is no such argument, or its value cannot be.
    """
    known = set(inspect.signature(network).parameters)
    if unknown := sorted(set(arguments) - known):
        raise UserError(
            *(
                Fault(
                    f"{network.__name__} has no argument {name!r}",
                    "config.json of the weights",
                    fix=nearest(name, known),
                )
                for name in unknown
            )
        )
    try:
        return network(**arguments)
    except FAILURES as error:
        raise UserError(
            f"{network.__name__} cannot be built: {str(error).strip()}",
            where="backbone",
            why=f"its arguments are {json.dumps(dict(arguments))}",
        ) from error
    except ImportError as error:
        raise UserError(
            f"{network.__name__} needs a package that is not there: {error}",
            where="backbone.name",
            fix="pip install einops",
        ) from error


def sample_volume(backbone: Backbone) -> State:
    """Two images for tests, twice as long as the network's stride and as wide."""
    assert backbone.config is not None
    config = backbone.config
    channels = len(config["channel_names"])
    dimensions = int(config.get("spatial_dims", 3))
    stride = max(feature.stride for feature in backbone.features.values())
    sides = config.get("img_size", [2 * stride, stride, stride][:dimensions])
    generator = torch.Generator().manual_seed(0)
    return {"image": torch.randn(2, channels, *sides, generator=generator)}


def reference_volume(backbone: Backbone, state: State) -> dict[str, Tensor]:
    """The features as they are inside MONAI's own network while it runs as a whole."""
    assert isinstance(backbone, MedicalBackbone) and backbone.config is not None
    config = dict(backbone.config)
    del config["channel_names"]
    network = getattr(nets, config.pop("network"))
    if "out_channels" in inspect.signature(network).parameters:
        config.setdefault("out_channels", 2)
    model: nn.Module = network(**config).train(backbone.training)
    missing, unexpected = model.load_state_dict(
        backbone.upstream_state_dict(), strict=False
    )
    dropped = (*backbone.ignored, "skip_layers.*")
    lost = [n for n in missing if not any(fnmatchcase(n, p) for p in dropped)]
    assert not lost and not unexpected, (lost, unexpected)
    found: dict[str, Tensor] = {}
    for feature, path in backbone.origin.items():
        if feature in backbone.features:
            _keep_output(model.get_submodule(path), feature, found)
    model(state["image"])
    return found


def _keep_output(module: nn.Module, name: str, found: dict[str, Tensor]) -> None:
    def keep(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        found[name] = output.clone()

    module.register_forward_hook(keep)
