"""BERT-family encoders of transformers, cut into stages.

The blocks are transformers' own modules; what its models do between them (attention
masks, rotary positions) is done per stage from ``attention_mask``, so that a slice of
stages runs from ``hidden`` and ``attention_mask`` alone.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from headstart.errors import UserError
from headstart.specs import Feature
from headstart.stages import Backbone
from headstart_nlp.configs import (
    CAUSAL_TYPES,
    CONFIG,
    new_model,
    read_config,
    tokenizer_files,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from transformers import PreTrainedConfig

    from headstart.stages import State
    from headstart_nlp.settings import EncoderSettings

# Tensors of pretraining and task heads, and of poolers, as hub files name them.
HEAD_TENSORS = (
    "pooler.*",
    "cls.*",
    "classifier.*",
    "pre_classifier.*",
    "qa_outputs.*",
    "lm_head.*",
    "vocab_*",
    "discriminator_predictions.*",
    "generator_predictions.*",
    "generator_lm_head.*",
    "head.*",
    "decoder.*",
    "*.position_ids",
    "*.token_type_ids",
)


@dataclass(frozen=True)
class Family:
    """Where a family's upstream model keeps what.

    Attributes:
        layers: Path of its list of layers.
        wrapper: Prefix of the encoder inside models with a head.
        dropouts: Configuration keys of the encoder's dropout rates.
        pooler: Whether the constructor takes ``add_pooling_layer``.
    """

    layers: str
    wrapper: str
    dropouts: tuple[str, ...]
    pooler: bool = False


_BERT_DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob")
_ROBERTA = Family("encoder.layer", "roberta.", _BERT_DROPOUTS, pooler=True)

FAMILIES = {
    "bert": Family("encoder.layer", "bert.", _BERT_DROPOUTS, pooler=True),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
    "electra": Family("encoder.layer", "electra.", _BERT_DROPOUTS),
    "distilbert": Family(
        "transformer.layer", "distilbert.", ("dropout", "attention_dropout")
    ),
    "modernbert": Family(
        "layers",
        "model.",
        ("embedding_dropout", "mlp_dropout", "attention_dropout"),
    ),
}


class Embeddings(nn.Module):
    """Tokens to vectors.

    Reads ``input_ids`` and, where the model has token types, ``token_type_ids``.
    """

    def __init__(
        self, block: nn.Module, projection: nn.Module | None, token_types: bool
    ) -> None:
        super().__init__()
        self.block = block
        self.projection = projection
        self.token_types = token_types

    def forward(self, state: State) -> State:
        inputs = {"input_ids": state["input_ids"]}
        if self.token_types and "token_type_ids" in state:
            inputs["token_type_ids"] = state["token_type_ids"]
        hidden = self.block(**inputs)
        if self.projection is not None:
            hidden = self.projection(hidden)
        return {**state, "hidden": hidden}


class Layer(nn.Module):
    """A transformer layer with absolute positions."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, state: State) -> State:
        mask = token_mask(state["attention_mask"])
        return {**state, "hidden": self.block(state["hidden"], attention_mask=mask)}


class RotaryLayer(nn.Module):
    """A transformer layer with rotary positions, global or local.

    Args:
        block: The layer.
        rotary: Computes the cosines and sines; holds buffers only, not saved.
        kind: ``full_attention`` or ``sliding_attention``.
        window: Furthest token that a local layer sees, on each side.
    """

    def __init__(
        self, block: nn.Module, rotary: nn.Module, kind: str, window: int
    ) -> None:
        super().__init__()
        self.block = block
        self.rotary = rotary
        self.kind = kind
        self.window = window if kind == "sliding_attention" else None

    def forward(self, state: State) -> State:
        hidden = state["hidden"]
        positions = torch.arange(hidden.shape[1], device=hidden.device)
        mask = token_mask(state["attention_mask"])
        if self.window is not None:
            distance = (positions[:, None] - positions[None, :]).abs()
            mask = mask & (distance <= self.window)
        hidden = self.block(
            hidden,
            attention_mask=mask,
            position_embeddings=self.rotary(hidden, positions[None], self.kind),
        )
        return {**state, "hidden": hidden}


class Norm(nn.Module):
    """The normalisation after the last layer."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, state: State) -> State:
        return {**state, "hidden": self.block(state["hidden"])}


def token_mask(attention_mask: Tensor) -> Tensor:
    """Which keys attention may read, (batch, 1, 1, tokens) bool, true for tokens.

    torch's attention spreads it over heads and queries. It is used for batches
    without padding too: finding out would wait for the device in every layer.
    """
    return attention_mask[:, None, None, :].bool()


def build_encoder(
    settings: EncoderSettings, folder: Path | None, task: Mapping[str, Any]
) -> Backbone:
    """A BERT-family encoder with random parameters, cut into stages.

    The stages are ``embeddings``, ``layer0`` … and, where the model has one, a final
    ``norm``. Each writes ``hidden``, (batch, tokens, channels).

    Args:
        settings: ``config`` overrides the folder's configuration, or is all of it.
        folder: Holds ``config.json`` and the tokenizer's files.

    Raises:
        UserError: No configuration, one of another family, or one that transformers
            refuses.
    """
    config = encoder_config(settings, folder)
    family = FAMILIES[config.model_type]
    model = _upstream(config)
    positions = config.max_position_embeddings
    if hasattr(model.embeddings, "padding_idx"):
        # RoBERTa counts positions from the one after the padding token's id.
        positions -= config.pad_token_id + 1
    files = tokenizer_files(folder)
    stages, upstream = _cut(model, family)
    return Backbone(
        stages,
        features=(Feature("hidden", "tokens", config.hidden_size),),
        upstream=upstream,
        ignored=HEAD_TENSORS,
        preprocessing={
            "tokenizer": str(folder) if files else "",
            "max_positions": positions,
            "pad_token_id": config.pad_token_id,
            "vocab_size": config.vocab_size,
        },
        files=files,
        consumed=("input_ids", "token_type_ids"),
        trailing=("norm",) if "norm" in stages else (),
        wrappers=(family.wrapper,),
        # Files converted from TensorFlow still name a normalisation's tensors so.
        renames=((".gamma", ".weight"), (".beta", ".bias")),
        config=config.to_dict(),
    )


def encoder_config(settings: EncoderSettings, folder: Path | None) -> PreTrainedConfig:
    """The folder's configuration with the recipe's changes.

    Raises:
        UserError: As :func:`build_encoder`.
    """
    config = read_config(
        settings,
        folder,
        dropouts={kind: family.dropouts for kind, family in FAMILIES.items()},
        kind="encoder",
        example="bert",
        elsewhere=dict.fromkeys(CAUSAL_TYPES, "nlp/causal"),
    )
    if getattr(config, "is_decoder", False):
        raise UserError(
            "this model is a decoder: its tokens see only those before them",
            where=str(folder / CONFIG) if folder else "backbone.config",
            fix="choose an encoder, or set backbone.config.is_decoder = false",
        )
    return config


def _upstream(config: PreTrainedConfig) -> Any:
    """transformers' own model, without a pooler, in float32."""
    extra = {"add_pooling_layer": False} if FAMILIES[config.model_type].pooler else {}
    return new_model(AutoModel.from_config, config, **extra)


def _cut(model: Any, family: Family) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """The model's modules as stages, and our prefixes of names to its own."""
    config = model.config
    stages: dict[str, nn.Module] = {
        "embeddings": Embeddings(
            model.embeddings,
            getattr(model, "embeddings_project", None),
            token_types=getattr(config, "type_vocab_size", 0) > 1,
        )
    }
    upstream = {
        "stages.embeddings.block.": "embeddings.",
        "stages.embeddings.projection.": "embeddings_project.",
    }
    rotary = getattr(model, "rotary_emb", None)
    for i, block in enumerate(model.get_submodule(family.layers)):
        stages[f"layer{i}"] = (
            Layer(block)
            if rotary is None
            else RotaryLayer(
                block,
                copy.deepcopy(rotary),
                config.layer_types[i],
                config.sliding_window,
            )
        )
        upstream[f"stages.layer{i}.block."] = f"{family.layers}.{i}."
    if hasattr(model, "final_norm"):
        stages["norm"] = Norm(model.final_norm)
        upstream["stages.norm.block."] = "final_norm."
    return stages, upstream


def sample_tokens(backbone: Backbone) -> State:
    """A batch of four texts of different lengths for tests, right-padded."""
    config: Mapping[str, Any] = backbone.config or {}
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([12, 3, 9, 6])
    mask = (torch.arange(12)[None, :] < lengths[:, None]).long()
    # Ids below 5 are the special tokens of the tiny configurations.
    ids = torch.randint(5, config["vocab_size"], mask.shape, generator=generator)
    pad = config.get("pad_token_id") or 0
    types = (torch.arange(12)[None, :] >= lengths[:, None] // 2).long() * mask
    return {
        "input_ids": ids * mask + pad * (1 - mask),
        "attention_mask": mask,
        "token_type_ids": types,
    }


def reference_encoder(backbone: Backbone, state: State) -> dict[str, Tensor]:
    """The features from transformers' own model with the same parameters.

    Dropped stages are dropped there too. Runs without dropout and gradients.
    """
    config = AutoConfig.for_model(**(backbone.config or {}))
    model = _upstream(config)
    family = FAMILIES[config.model_type]
    kept = sum(name.startswith("layer") for name in backbone.stage_names)
    del model.get_submodule(family.layers)[kept:]
    model.load_state_dict(backbone.upstream_state_dict())
    example = next(iter(backbone.parameters()))
    model.to(device=example.device, dtype=example.dtype).eval()
    names = ["input_ids", "attention_mask"]
    if getattr(config, "type_vocab_size", 0) > 1:
        names.append("token_type_ids")
    with torch.no_grad():
        output = model(**{name: state[name] for name in names if name in state})
    return {"hidden": output.last_hidden_state}
