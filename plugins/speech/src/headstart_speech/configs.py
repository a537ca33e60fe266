"""Configurations of speech models: a folder's, with the recipe's changes."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig

from headstart.errors import Fault, UserError, nearest
from headstart.weights.configuration import read_configuration
from headstart_speech.vocabulary import characters

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from transformers import PreTrainedConfig

    from headstart_speech.settings import SpeechBackboneSettings

CONFIG = "config.json"
EXTRACTORS = ("preprocessor_config.json", "processor_config.json")
"""Where a feature extractor's settings are; the second name since transformers 5."""

CUT_BY = {
    "wav2vec2": "speech/wav2vec2",
    "hubert": "speech/hubert",
    "wavlm": "speech/wavlm",
    "whisper": "speech/whisper",
}
"""The backbone that takes a model type."""


def read_config(
    settings: SpeechBackboneSettings,
    folder: Path | None,
    model_type: str,
    dropouts: Sequence[str],
) -> PreTrainedConfig:
    """A folder's ``config.json`` with the recipe's changes.

    Args:
        settings: ``config`` overrides the folder's configuration; ``dropout`` both.
        folder: Holds ``config.json``; ``None``: what the recipe leaves out is
            transformers' default.
        model_type: The only one that will do.
        dropouts: Configuration keys of dropout rates.

    Raises:
        UserError: No file, one of another model type, unknown keys, or a configuration
            that transformers refuses.
    """
    where = str(folder / CONFIG) if folder else "backbone.config"
    found = read_configuration(folder / CONFIG) if folder else {}
    merged = {**found, **settings.config}
    given = merged.pop("model_type", model_type)
    if given != model_type:
        other = CUT_BY.get(str(given))
        raise UserError(
            f"this is a {given!r} model, and {settings.name!r} cuts {model_type!r}",
            where=where,
            fix=f'backbone.name = "{other}"'
            if other
            else f"this plugin has {', '.join(CUT_BY.values())}",
        )
    blank = AutoConfig.for_model(model_type)
    known = {"model_type", *blank.to_dict(), *blank.attribute_map, *found}
    if unknown := [key for key in settings.config if key not in known]:
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
        merged |= dict.fromkeys(dropouts, settings.dropout)
    try:
        return type(blank).from_dict(merged)
    except (TypeError, ValueError, StrictDataclassError) as error:
        raise _refused(error, where) from error


def vocabulary_file(folder: Path | None) -> Path | None:
    """The file with the characters of a pretrained CTC layer, if there is one."""
    file = folder / "vocab.json" if folder else None
    return file if file and file.is_file() else None


def read_vocabulary(file: Path | None) -> tuple[str, ...]:
    """The characters by row, as ours are called.

    None without a file, and of several languages', whose layers are apart.
    """
    rows = read_configuration(file) if file else {}
    if not all(isinstance(row, int) for row in rows.values()):
        return ()
    names = sorted(rows, key=rows.__getitem__)
    whole = [rows[name] for name in names] == list(range(len(rows)))
    return characters(names) if whole else ()


def extractor_file(folder: Path | None) -> Path | None:
    """The file with the feature extractor's settings that a folder has, if any."""
    files = [folder / name for name in EXTRACTORS] if folder else []
    return next((file for file in files if file.is_file()), None)


def read_extractor(file: Path | None) -> dict[str, Any]:
    """The feature extractor's settings; none without a file.

    Raises:
        UserError: The file holds none, or one of the wrong type.
    """
    if file is None:
        return {}
    whole = read_configuration(file)
    found: dict[str, Any] = whole.get("feature_extractor", whole)
    kinds = {"do_normalize": bool, "sampling_rate": int}
    faults = [
        Fault(
            f"{key} is {found[key]!r}",
            where=str(file),
            fix=f"it must be {'true or false' if kind is bool else 'a whole number'}",
        )
        for key, kind in kinds.items()
        if key in found and type(found[key]) is not kind
    ]
    if faults:
        raise UserError(*faults)
    return found


def new_model(
    build: Callable[..., Any], config: PreTrainedConfig, **settings: Any
) -> Any:
    """transformers' own model with random parameters, in float32.

    Args:
        build: ``from_config`` of a class of models.
        config: Left as it is.
        settings: More arguments.

    Raises:
        UserError: transformers refuses the configuration.
    """
    # from_config writes to what it is given.
    config = copy.deepcopy(config)
    try:
        return build(config, dtype=torch.float32, **settings)
    except (ValueError, StrictDataclassError) as error:
        raise _refused(error, "backbone.config") from error


def _refused(error: Exception, where: str) -> UserError:
    reason = " ".join(str(error).split())
    return UserError("transformers refuses this configuration", where=where, why=reason)
