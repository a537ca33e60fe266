"""Causal language models of transformers (GPT-2, Llama, Qwen …), cut into stages.

The blocks are transformers' own modules. What its models do between them is done per
stage: which token may see which from ``segments``, rotary positions from ``positions``.
So several documents share a row and none sees another (Krell et al. 2021, arXiv
2107.02027), and a slice of stages runs from ``hidden`` and these two alone.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from headstart.specs import Feature
from headstart.stages import Backbone
from headstart.weights.configuration import read_configuration
from headstart_nlp.backbones import FAMILIES as ENCODERS
from headstart_nlp.backbones import Norm
from headstart_nlp.configs import new_model, read_config, tokenizer_files

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from transformers import PreTrainedConfig, PreTrainedModel

    from headstart.stages import State
    from headstart_nlp.settings import CausalSettings

GENERATION = "generation_config.json"

# Buffers of masks and rotary frequencies, which older releases of transformers saved.
OLD_BUFFERS = (
    "*.attn.bias",
    "*.attn.masked_bias",
    "*.attention.bias",
    "*.attention.masked_bias",
    "*rotary_emb.inv_freq",
)


@dataclass(frozen=True)
class Family:
    """Where a family's upstream model keeps what.

    Attributes:
        body: The model inside the one with the output matrix.
        tokens: Its token embeddings.
        layers: Its list of layers.
        norm: Its last normalisation.
        dropouts: Configuration keys of dropout rates.
        positions: Its position embeddings; empty where positions are rotary.
        dropout: Its dropout after the embeddings, if any.
    """

    body: str
    tokens: str
    layers: str
    norm: str
    dropouts: tuple[str, ...]
    positions: str = ""
    dropout: str = ""


_LLAMA = Family("model", "embed_tokens", "layers", "norm", ("attention_dropout",))

FAMILIES = {
    "gpt2": Family(
        "transformer",
        "wte",
        "h",
        "ln_f",
        ("resid_pdrop", "embd_pdrop", "attn_pdrop"),
        positions="wpe",
        dropout="drop",
    ),
    "gpt_neox": Family(
        "gpt_neox",
        "embed_in",
        "layers",
        "final_layer_norm",
        ("attention_dropout", "hidden_dropout"),
        dropout="emb_dropout",
    ),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "smollm3": _LLAMA,
}


class Embeddings(nn.Module):
    """Tokens, and positions where the model learns them, to vectors.

    Reads ``input_ids`` and ``positions``.
    """

    def __init__(
        self, block: nn.Module, positions: nn.Module | None, dropout: nn.Module | None
    ) -> None:
        super().__init__()
        self.block = block
        self.positions = positions
        self.dropout = dropout

    def forward(self, state: State) -> State:
        hidden = self.block(state["input_ids"])
        if self.positions is not None:
            hidden = hidden + self.positions(state["positions"])
        if self.dropout is not None:
            hidden = self.dropout(hidden)
        return {**state, "hidden": hidden}


class Layer(nn.Module):
    """A transformer layer whose tokens see their own document, up to themselves.

    Args:
        block: The layer.
        rotary: Computes the cosines and sines of ``positions``; holds buffers only,
            not saved. ``None``: the embeddings hold the positions.
        window: How many tokens a token sees at most, itself among them.
    """

    def __init__(
        self, block: nn.Module, rotary: nn.Module | None, window: int | None
    ) -> None:
        super().__init__()
        self.block = block
        self.rotary = rotary
        self.window = window

    def forward(self, state: State) -> State:
        hidden = state["hidden"]
        inputs: dict[str, Any] = {}
        if self.rotary is not None:
            inputs["position_embeddings"] = self.rotary(hidden, state["positions"])
        mask = document_mask(state["segments"], self.window)
        return {**state, "hidden": self.block(hidden, attention_mask=mask, **inputs)}


class Output(nn.Module):
    """The output matrix: a score for every token of the vocabulary to come next."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, state: State) -> State:
        return {**state, "logits": self.block(state["hidden"])}


def document_mask(segments: Tensor, window: int | None = None) -> Tensor:
    """Which keys a query may read, (batch, 1, queries, keys) bool.

    Those of its own segment, not after it and in the window. Padding reads padding, so
    that no row of attention is empty. It is used for rows of one document too: finding
    out would wait for the device in every layer.
    """
    places = torch.arange(segments.shape[1], device=segments.device)
    distance = places[:, None] - places[None, :]
    seen = distance >= 0
    if window is not None:
        seen = seen & (distance < window)
    return ((segments[:, :, None] == segments[:, None, :]) & seen)[:, None]


class CausalLM(Backbone):
    """A causal language model as stages; the last one writes ``logits``."""

    def language_model(self) -> PreTrainedModel:
        """transformers' own model around the modules of our stages, for ``generate``.

        Made anew at each call, from the modules as they are: adapters beside their
        layers are in it, and dropped stages are not. In evaluation mode, and so are
        our stages after the call.
        """
        config = _kept_config(self)
        family = FAMILIES[config.model_type]
        with torch.device("meta"):
            model = new_model(AutoModelForCausalLM.from_config, config)
        body = getattr(model, family.body)
        stages: Mapping[str, Any] = dict(self.stages.items())
        first = stages["embeddings"]
        setattr(body, family.tokens, first.block)
        if family.positions:
            setattr(body, family.positions, first.positions)
        if family.dropout:
            setattr(body, family.dropout, first.dropout)
        layers = [stages[name] for name in _layers(self)]
        setattr(body, family.layers, nn.ModuleList(layer.block for layer in layers))
        if layers[0].rotary is not None:
            body.rotary_emb = layers[0].rotary
        setattr(body, family.norm, stages["norm"].block)
        model.set_output_embeddings(stages["output"].block)
        result: PreTrainedModel = model.eval()
        return result


def build_causal(
    settings: CausalSettings, folder: Path | None, task: Mapping[str, Any]
) -> CausalLM:
    """A causal language model with random parameters, cut into stages.

    The stages are ``embeddings``, ``layer0`` …, ``norm`` and ``output``. All but the
    last write ``hidden``, (batch, tokens, channels); ``output`` writes ``logits``,
    (batch, tokens, vocabulary). Where the configuration ties the output matrix to the
    embeddings, both stages hold one parameter, unless ``settings.untie``.

    Args:
        settings: ``config`` overrides the folder's configuration, or is all of it.
        folder: Holds ``config.json`` and the tokenizer's files.
        task: Not read: the vocabulary is the weights'.

    Raises:
        UserError: No configuration, one of another family, or one that transformers
            refuses.
    """
    config = read_config(
        settings,
        folder,
        dropouts={kind: family.dropouts for kind, family in FAMILIES.items()},
        kind="causal language model",
        example="llama",
        elsewhere=dict.fromkeys(ENCODERS, "nlp/encoder"),
    )
    end = _first(config.eos_token_id)
    if folder is not None and (folder / GENERATION).is_file():
        # Chat models end a turn by other tokens than a document, and say so only here.
        stops = read_configuration(folder / GENERATION).get("eos_token_id")
        config.eos_token_id = config.eos_token_id if stops is None else stops
    if settings.untie:
        config.tie_word_embeddings = False
    family = FAMILIES[config.model_type]
    model = new_model(AutoModelForCausalLM.from_config, config)
    stages, upstream = _cut(model, family)
    output = upstream["stages.output.block."]
    tokens = upstream["stages.embeddings.block."]
    files = tokenizer_files(folder)
    return CausalLM(
        stages,
        features=(Feature("logits", "logits", config.vocab_size, stage="output"),),
        upstream=upstream,
        ignored=OLD_BUFFERS,
        preprocessing={
            "tokenizer": str(folder) if files else "",
            "max_positions": config.max_position_embeddings,
            "vocab_size": config.vocab_size,
            "pad_token_id": config.pad_token_id,
            "eos_token_id": end,
        },
        files=files,
        consumed=("input_ids", "positions") if family.positions else ("input_ids",),
        trailing=("norm", "output"),
        wrappers=(f"{family.body}.",),
        # GPT-NeoX files have another name for it.
        renames=(("embed_out.weight", f"{output}weight"),),
        config=config.to_dict(),
        copies={f"{output}weight": f"{tokens}weight"} if settings.untie else None,
    )


def _first(ids: int | list[int] | None) -> int | None:
    return ids[0] if isinstance(ids, list) else ids


def _cut(model: Any, family: Family) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """The model's modules as stages, and our prefixes of names to its own."""
    config, body = model.config, getattr(model, family.body)
    output = model.get_output_embeddings()
    (name,) = (name for name, child in model.named_children() if child is output)
    stages: dict[str, nn.Module] = {
        "embeddings": Embeddings(
            getattr(body, family.tokens),
            getattr(body, family.positions) if family.positions else None,
            getattr(body, family.dropout) if family.dropout else None,
        )
    }
    upstream = {"stages.embeddings.block.": f"{family.body}.{family.tokens}."}
    if family.positions:
        learned = f"{family.body}.{family.positions}."
        upstream["stages.embeddings.positions."] = learned
    rotary = getattr(body, "rotary_emb", None)
    for i, block in enumerate(getattr(body, family.layers)):
        stages[f"layer{i}"] = Layer(block, copy.deepcopy(rotary), _window(config, i))
        upstream[f"stages.layer{i}.block."] = f"{family.body}.{family.layers}.{i}."
    stages["norm"] = Norm(getattr(body, family.norm))
    upstream["stages.norm.block."] = f"{family.body}.{family.norm}."
    stages["output"] = Output(output)
    upstream["stages.output.block."] = f"{name}."
    return stages, upstream


def _window(config: PreTrainedConfig, layer: int) -> int | None:
    window: int | None = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    # Mistral has one kind of layer, and names none.
    local = kinds is None or kinds[layer] == "sliding_attention"
    return window if local else None


def _layers(backbone: Backbone) -> list[str]:
    return [name for name in backbone.stage_names if name.startswith("layer")]


def _kept_config(backbone: Backbone) -> PreTrainedConfig:
    """transformers' configuration of the layers that are still there."""
    config = AutoConfig.for_model(**(backbone.config or {}))
    kept = len(_layers(backbone))
    config.num_hidden_layers = kept
    for each in ("layer_types", "no_rope_layers"):
        if getattr(config, each, None) is not None:
            setattr(config, each, getattr(config, each)[:kept])
    return config


def sample_language(backbone: Backbone) -> State:
    """Four rows of packed documents for tests, right-padded to 12 tokens."""
    config: Mapping[str, Any] = backbone.config or {}
    generator = torch.Generator().manual_seed(0)
    rows = ((5, 4, 3), (12,), (6, 3), (1, 2, 4))
    ids = torch.full((len(rows), 12), _first(config.get("pad_token_id")) or 0)
    positions, segments = torch.zeros_like(ids), torch.zeros_like(ids)
    for row, lengths in enumerate(rows):
        start = 0
        for segment, length in enumerate(lengths, start=1):
            at = slice(start, start + length)
            # Ids below 5 are the special tokens of the tiny configurations.
            ids[row, at] = torch.randint(
                5, config["vocab_size"], (length,), generator=generator
            )
            positions[row, at] = torch.arange(length)
            segments[row, at] = segment
            start += length
    return {"input_ids": ids, "positions": positions, "segments": segments}


def reference_causal(backbone: Backbone, state: State) -> dict[str, Tensor]:
    """The logits from transformers' own model with the same parameters.

    It reads one document at a time, neither packed nor padded. Where the batch is
    padded the logits are ours. Dropped stages are dropped there too. Runs without
    dropout and gradients.
    """
    model = new_model(AutoModelForCausalLM.from_config, _kept_config(backbone))
    model.load_state_dict(backbone.upstream_state_dict())
    example = next(iter(backbone.parameters()))
    model.to(device=example.device, dtype=example.dtype).eval()
    with torch.no_grad():
        logits = backbone.run(state)["logits"].clone()
        for row, segments in enumerate(state["segments"]):
            for segment in segments.unique().tolist():
                if segment:
                    at = segments == segment
                    ids = state["input_ids"][row, at][None]
                    logits[row, at] = model(input_ids=ids, use_cache=False).logits[0]
    return {"logits": logits}
