"""Low-rank adapters (LoRA) beside the linear layers of any backbone, through peft.

peft puts an adapter beside a layer in place, so stages, cuts and caches are what they
were; what the adapter is beside never trains again (``Backbone.fixed``). The adapter of
a run opens in peft, and one that peft wrote can be where a run starts.
"""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.nn.modules.conv import _ConvNd

from headstart.errors import Fault, UserError, nearest
from headstart.weights.tensors import read_tensors

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from headstart.settings import LoraSettings
    from headstart.stages import Backbone

ALL_LINEAR = "all-linear"
CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
"""What peft puts before the upstream library's names."""

# What an adapter of peft's may have that is no plain LoRA, and what it is then.
_FOREIGN = {
    "rank_pattern": "ranks of their own for some layers",
    "alpha_pattern": "scales of their own for some layers",
    "modules_to_save": "whole layers beside the adapters",
    "layers_to_transform": "a choice of layers by number",
    "layer_replication": "repeated layers",
    "target_parameters": "adapters on bare parameters",
    "trainable_token_indices": "trained tokens",
    "use_qalora": "QALoRA",
    "lora_bias": "biases of its own",
}


def attach(backbone: Backbone, settings: LoraSettings) -> None:
    """Put adapters into a backbone that has its weights; they change nothing yet.

    Call :func:`load` afterwards to start from another adapter's values.

    Raises:
        UserError: A target or a stage that does not exist (all of them), or peft is
            not installed.
    """
    peft = _peft()
    chosen = _chosen(backbone, settings)
    config = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=[name.removeprefix("stages.") for name in chosen],
        use_dora=settings.dora,
        use_rslora=settings.rslora,
    )
    with warnings.catch_warnings():
        # Conv1D keeps its weights transposed; peft sees it and says so for each.
        warnings.simplefilter("ignore")
        peft.inject_adapter_in_model(config, backbone.stages)
    backbone.adapted = tuple(chosen)


def describe(backbone: Backbone, settings: LoraSettings) -> str:
    """The adapters of a backbone in words."""
    count = sum(p.numel() for n, p in backbone.named_parameters() if ".lora_" in n)
    kind = "DoRA" if settings.dora else "rsLoRA" if settings.rslora else "LoRA"
    start = f", from {settings.adapter}" if settings.adapter else ""
    return (
        f"{kind} of rank {settings.rank} (alpha {settings.alpha:g}) on "
        f"{len(backbone.adapted)} layers of {len(backbone.adapted_stages)} stages, "
        f"{count:,} parameters{start}"
    )


def merge(backbone: Backbone) -> None:
    """Fold the adapters into the layers they are beside, as if those had trained."""
    for name in backbone.adapted:
        layer: Any = backbone.get_submodule(name)
        layer.merge(safe_merge=True)
        parent, _, child = name.rpartition(".")
        setattr(backbone.get_submodule(parent), child, layer.get_base_layer())
    backbone.adapted = ()


def save(
    backbone: Backbone, settings: LoraSettings, folder: Path, reference: str
) -> None:
    """Write the adapters as peft does, under the upstream library's names.

    Args:
        backbone: With adapters.
        settings: Those that they were attached with.
        folder: Gets ``adapter_config.json`` and ``adapter_model.safetensors``.
        reference: Of the weights that they belong to.
    """
    from safetensors.torch import save_file

    peft = _peft()
    name, _, revision = base_name(reference).partition("@")
    config = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        # Whole names: an upstream model may have more layers with the same endings.
        target_modules=[_upstream(backbone, module) for module in backbone.adapted],
        use_dora=settings.dora,
        use_rslora=settings.rslora,
        base_model_name_or_path=name,
        revision=revision or None,
        inference_mode=True,
    )
    config.save_pretrained(folder)
    tensors = {
        PREFIX + backbone.upstream_name(f"stages.{key}"): value.contiguous()
        for key, value in peft.get_peft_model_state_dict(backbone.stages).items()
    }
    save_file(tensors, folder / TENSORS, metadata={"format": "pt"})


def completed(settings: LoraSettings, reference: str) -> LoraSettings:
    """The settings with what the adapter says that they start from, if there is one.

    Args:
        settings: As the recipe has them.
        reference: Of the weights that the adapter will be put on.

    Raises:
        UserError: There is no such adapter, it is no plain LoRA, it belongs to another
            model, or the recipe contradicts it.
    """
    if not settings.adapter:
        return settings
    folder = Path(settings.adapter).expanduser().absolute()
    config = _read_config(folder)
    targets = config.get("target_modules")
    if not isinstance(targets, list):
        names = {key.partition(".lora_")[0] for key in _read(folder)}
        targets = sorted(name.removeprefix(PREFIX) for name in names)
    theirs: dict[str, Any] = {
        "rank": config.get("r"),
        "alpha": config.get("lora_alpha"),
        "targets": tuple(sorted(targets)),
        "dora": bool(config.get("use_dora")),
        "rslora": bool(config.get("use_rslora")),
    }
    faults = [
        Fault(
            f"{key} is {getattr(settings, key)!r}, the adapter's is {value!r}",
            where=f"strategy.lora.{key}",
            why="an adapter's values fit the shape that it was trained in alone",
            fix=f"leave {key} away: the adapter says it",
        )
        for key, value in theirs.items()
        if key in settings.model_fields_set and getattr(settings, key) != value
    ]
    base, given = str(config.get("base_model_name_or_path") or ""), settings.base
    own = base_name(reference).partition("@")[0]
    if base and base not in (given, own, reference):
        faults.append(
            Fault(
                f"the adapter belongs to {base!r}, backbone.weights is {reference!r}",
                where=str(folder),
                why="on another model its updates mean nothing",
                fix=f'backbone.weights = "hf:{base}", or strategy.lora.base = "{base}" '
                "if these weights are that model under another name",
            )
        )
    if faults:
        raise UserError(*faults)
    return settings.model_copy(update={**theirs, "adapter": str(folder)})


def load(backbone: Backbone, settings: LoraSettings) -> None:
    """Copy the values of the adapter that the settings start from.

    Args:
        backbone: With adapters by :func:`attach`.
        settings: By :func:`completed`.

    Raises:
        UserError: Its layers are not those of this backbone, in name or shape.
    """
    folder = Path(settings.adapter)
    tensors = {_bare(name, backbone): value for name, value in _read(folder).items()}
    ours = _peft().get_peft_model_state_dict(backbone.stages)
    named = {backbone.upstream_name(f"stages.{key}"): key for key in ours}
    faults = _misfits(tensors, {name: ours[key] for name, key in named.items()})
    if faults:
        raise UserError(*(Fault(what, str(folder), fix=fix) for what, fix in faults))
    values = {named[name]: value for name, value in tensors.items()}
    _peft().set_peft_model_state_dict(backbone.stages, values)


def base_name(reference: str) -> str:
    """What peft calls a model that we have by reference."""
    return reference.removeprefix("hf:")


def _chosen(backbone: Backbone, settings: LoraSettings) -> list[str]:
    """Our names of the layers that get an adapter."""
    names = backbone.stage_names
    faults = [
        Fault(
            f"there is no stage {stage!r}",
            where="strategy.lora.stages",
            why=f"this backbone has {', '.join(names)}",
            fix=nearest(stage, names),
        )
        for stage in settings.stages
        if stage not in names
    ]
    stages = settings.stages or [n for n in names if n not in backbone.trailing]
    linear = {
        f"stages.{stage}.{name}"
        for stage in stages
        if stage in names
        for name, module in backbone.stages[stage].named_modules()
        # Not its subclasses: some are read past by the module that they are in.
        if type(module) is nn.Linear or type(module).__name__ == "Conv1D"
    }
    if not linear and not faults:
        faults.append(
            _no_linear_layer([m for n in stages for m in backbone.stages[n].modules()])
        )
    chosen: set[str] = set()
    for target in settings.targets:
        found = {n for n in linear if _is(target, n, _upstream(backbone, n))}
        chosen |= found
        if not found and not faults:
            endings = sorted({name.rpartition(".")[2] for name in linear})
            faults.append(
                Fault(
                    f"no linear layer is called {target!r}",
                    where="strategy.lora.targets",
                    why=f"there are {', '.join(endings)}",
                    fix=nearest(target, [*endings, ALL_LINEAR]),
                )
            )
    if faults:
        raise UserError(*faults)
    return [name for name, _ in backbone.named_modules() if name in chosen]


def _no_linear_layer(modules: Sequence[nn.Module]) -> Fault:
    convolve = any(isinstance(module, _ConvNd) for module in modules)
    return Fault(
        f"these stages have {'only convolutions' if convolve else 'no linear layer'}",
        where="strategy.lora",
        why="adapters go beside linear layers",
        fix='train with strategy.name="layer-retraining", "gradual" or "global", or '
        "name stages with linear layers in strategy.lora.stages",
    )


def _is(target: str, ours: str, upstream: str) -> bool:
    names = (ours.partition(".")[2], upstream)
    return target == ALL_LINEAR or any(f".{n}".endswith(f".{target}") for n in names)


def _upstream(backbone: Backbone, module: str) -> str:
    """The upstream library's name of one of our modules."""
    return backbone.upstream_name(f"{module}.").rstrip(".")


def _bare(name: str, backbone: Backbone) -> str:
    """A tensor of an adapter under the bare upstream model's name."""
    name = name.removeprefix(PREFIX)
    wrapper = next((w for w in backbone.wrappers if name.startswith(w)), "")
    known = any(name.startswith(prefix) for prefix in backbone.upstream.values())
    return name if known else name.removeprefix(wrapper)


def _misfits(
    theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor]
) -> list[tuple[str, str]]:
    """What is wrong, and the nearest name, of an adapter's tensors."""
    faults = [
        (f"the adapter's {name!r} has no place here", nearest(name, list(ours)))
        for name in theirs
        if name not in ours
    ]
    faults += [
        (f"the adapter has no {name!r}", nearest(name, list(theirs)))
        for name in ours
        if name not in theirs
    ]
    faults += [
        (
            f"{name!r} is {tuple(value.shape)} in the adapter, "
            f"{tuple(ours[name].shape)} here",
            "use the model that it was trained on",
        )
        for name, value in theirs.items()
        if name in ours and value.shape != ours[name].shape
    ]
    more = len(faults) - 8
    return [*faults[:8], *([(f"and {more} more", "")] if more > 0 else [])]


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            "there is no adapter",
            where=str(folder),
            why=str(error),
            fix="name the folder that peft's save_pretrained or `headstart export` "
            f"wrote, with {CONFIG} and {TENSORS}",
        ) from error
    kind = config.get("peft_type")
    odd = [words for key, words in _FOREIGN.items() if config.get(key)]
    if config.get("bias", "none") != "none":
        odd.append("trained biases")
    if kind != "LORA" or odd:
        raise UserError(
            f"this is no plain LoRA adapter: {', '.join([*odd]) or kind}",
            where=str(path),
            fix="merge it into its model with peft, and start from that",
        )
    return dict(config)


def _read(folder: Path) -> dict[str, Tensor]:
    path = folder / TENSORS
    if not path.is_file():
        raise UserError(
            f"there is no {TENSORS}",
            where=str(folder),
            fix="save the adapter with safe_serialization, which is peft's default",
        )
    return read_tensors((path,))


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise UserError(
            "low-rank adapters need peft",
            where="strategy.name",
            why=f"{type(error).__name__}: {error}",
            fix="pip install 'headstart[lora]'",
        ) from None
    # It warns where a base model has no name of the hub's.
    logging.getLogger("peft").setLevel(logging.ERROR)
    return peft
