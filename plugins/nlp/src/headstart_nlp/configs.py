"""Configurations of transformers' models: a folder's, with the recipe's changes."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig

from headstart.errors import Fault, UserError, nearest
from headstart.weights.configuration import read_configuration

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from transformers import PreTrainedConfig

    from headstart_nlp.settings import CausalSettings, EncoderSettings

CONFIG = "config.json"

# Here, not beside their families, since encoders name them and they name encoders.
CAUSAL_TYPES = ("gpt2", "gpt_neox", "llama", "mistral", "qwen2", "qwen3", "smollm3")

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "tokenizer.model",
)


def tokenizer_files(folder: Path | None) -> list[Path]:
    """The files of a tokenizer that a folder has."""
    files = [folder / name for name in TOKENIZER_FILES] if folder else []
    return [file for file in files if file.is_file()]


def read_config(
    settings: EncoderSettings | CausalSettings,
    folder: Path | None,
    *,
    dropouts: Mapping[str, Sequence[str]],
    kind: str,
    example: str,
    elsewhere: Mapping[str, str] | None = None,
) -> PreTrainedConfig:
    """A folder's ``config.json`` with the recipe's changes.

    Args:
        settings: ``config`` overrides the folder's configuration, or is all of it;
            ``dropout`` overrides both.
        folder: Holds ``config.json``; ``None``: there is no folder.
        dropouts: The model types that will do, with their keys of dropout rates.
        kind: What such a model is, in one word: ``encoder``.
        example: One of the model types.
        elsewhere: Model types of other backbones, and what those are called.

    Raises:
        UserError: No configuration, one of another model type, unknown keys, or one
            that transformers refuses.
    """
    found: dict[str, Any] = {}
    where = "backbone.config"
    if folder is not None:
        where = str(folder / CONFIG)
        found = read_configuration(folder / CONFIG)
    merged = {**found, **settings.config}
    model_type = merged.pop("model_type", None)
    if model_type is None:
        raise UserError(
            f"there is no model_type, so the {kind}'s architecture is unknown",
            where=where,
            fix="give backbone.weights (a folder or a repository with a config.json), "
            f'or backbone.config with model_type, e.g. "{example}", for random weights',
        )
    if model_type not in dropouts:
        other = (elsewhere or {}).get(model_type)
        raise UserError(
            f"the model type {model_type!r} is no {kind} that headstart-nlp can cut",
            where=where,
            fix=f'backbone.name = "{other}" can'
            if other
            else nearest(str(model_type), dropouts),
        )
    blank = AutoConfig.for_model(model_type)
    known = {"model_type", *blank.to_dict(), *blank.attribute_map, *found}
    unknown = [key for key in settings.config if key not in known]
    if unknown:
        raise UserError(
            *(
                Fault(
                    f"{model_type!r} has no configuration key {key!r}",
                    where=f"backbone.config.{key}",
                    fix=nearest(key, known),
                )
                for key in unknown
            )
        )
    if settings.dropout is not None:
        merged |= dict.fromkeys(dropouts[model_type], settings.dropout)
    try:
        return type(blank).from_dict(merged)
    except (TypeError, ValueError, StrictDataclassError) as error:
        raise _refused(error, where) from error


def new_model(
    build: Callable[..., Any], config: PreTrainedConfig, **settings: Any
) -> Any:
    """transformers' own model with random parameters, in float32.

    Args:
        build: ``from_config`` of one of its auto classes.
        config: Left as it is.
        settings: More arguments.

    Raises:
        UserError: transformers refuses the configuration.
    """
    # from_config writes to what it is given.
    config = copy.deepcopy(config)
    try:
        return build(
            config, attn_implementation="sdpa", dtype=torch.float32, **settings
        )
    except (ValueError, StrictDataclassError) as error:
        raise _refused(error, "backbone.config") from error


def _refused(error: Exception, where: str) -> UserError:
    reason = " ".join(str(error).split())
    return UserError("transformers refuses this configuration", where=where, why=reason)
