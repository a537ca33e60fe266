"""Weights by the names of torchaudio's bundles, e.g. WAV2VEC2_BASE.

torchaudio imports transformers' wav2vec 2.0, HuBERT and WavLM tensor by tensor
(``torchaudio.models.wav2vec2.utils.import_huggingface_model``); here its files go the
other way. One thing differs afterwards: where clips are normalised, torchaudio adds
1e-5 to their variance and transformers 1e-7.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from headstart.errors import Fault, UserError, nearest
from headstart.files import write_text
from headstart.weights.conversion import TENSORS, converted_once, one_file
from headstart.weights.published import cache_place, published_file
from headstart.weights.sources import Weights
from headstart.weights.tensors import SUFFIXES, file_sha256, read_tensors
from headstart_speech.vocabulary import characters

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

    from headstart.fetch.http import Progress
    from headstart.weights.sources import SourceContext

SERVER = "https://download.pytorch.org/torchaudio/models/"
BLANK = "<pad>"
"""What transformers' vocabularies call CTC's blank."""
CLASSES = {"wav2vec2": "Wav2Vec2", "hubert": "Hubert", "wavlm": "WavLM"}
"""What transformers' classes of a model type start with."""
PREFIXES = {
    "encoder.feature_projection.": "feature_projection.",
    "encoder.transformer.": "encoder.",
    "feature_extractor.": "feature_extractor.",
}
NORMS = {"weight_g": "original0", "weight_v": "original1"}
"""Parts of a weight norm in files of torch before 2.1, and since."""
CONFIG = {
    "encoder_embed_dim": "hidden_size",
    "encoder_projection_dropout": "feat_proj_dropout",
    "encoder_pos_conv_kernel": "num_conv_pos_embeddings",
    "encoder_pos_conv_groups": "num_conv_pos_embedding_groups",
    "encoder_num_layers": "num_hidden_layers",
    "encoder_num_heads": "num_attention_heads",
    "encoder_num_buckets": "num_buckets",
    "encoder_max_distance": "max_bucket_distance",
    "encoder_attention_dropout": "attention_dropout",
    "encoder_ff_interm_features": "intermediate_size",
    "encoder_ff_interm_dropout": "activation_dropout",
    "encoder_dropout": "hidden_dropout",
    "encoder_layer_norm_first": "do_stable_layer_norm",
    "encoder_layer_drop": "layerdrop",
    "extractor_conv_bias": "conv_bias",
}
"""Arguments of torchaudio's models that transformers' configurations have too."""


def resolve_torchaudio(reference: str, context: SourceContext) -> Weights:
    """A bundle's weights under transformers' names, from its server or from a file.

    The server's file is kept in the cache. torchaudio publishes no hashes, so what
    vouches for it is the encrypted connection, and that each tensor has the name and
    shape that torchaudio's own model wants. The pickle is read by the core, with
    ``weights_only`` and once. A bundle's CTC layer comes along, its classes in the
    order of its rows, ``<pad>`` for the blank.

    Args:
        reference: ``NAME`` in ``torchaudio.pipelines``, or ``FILE#NAME`` for a file at
            hand (also ``asset:…#NAME``).
        context: Its progress is told about the transfer.

    Raises:
        UserError: There is no such bundle, its file cannot be had, it is another
            model's, or the cache cannot be written.
    """
    file, _, name = reference.rpartition("#")
    if not file and name.endswith(SUFFIXES):
        raise UserError(
            "which bundle the file belongs to is not said",
            where=f"torchaudio:{reference}",
            fix=f"add its name: torchaudio:{reference}#WAV2VEC2_BASE",
        )
    bundle = _find(name)
    if file:
        path, licence = one_file("torchaudio", file, ".pth", context)
    else:
        path, licence = _fetched(name, bundle, context.progress), ""

    def write(folder: Path) -> None:
        from safetensors.torch import save_file

        tensors = _transformers(_own(read_tensors((path,)), bundle, path), name, bundle)
        save_file(tensors, folder / TENSORS, metadata={"format": "pt"})
        for file_name, content in _configs(name, bundle).items():
            write_text(folder / file_name, json.dumps(content, indent=1))

    folder = converted_once(f"{file_sha256(path)}-torchaudio-{name}", write, path.name)
    return Weights(
        f"torchaudio:{reference}",
        folder,
        (folder / TENSORS,),
        licence=licence or _licence(bundle),
        classes=_classes(bundle),
    )


def _find(name: str) -> Any:
    """A bundle of torchaudio that is a wav2vec 2.0, a HuBERT or a WavLM.

    Raises:
        UserError: There is none of that name.
    """
    from torchaudio import pipelines

    known = {
        key: bundle
        for key, bundle in vars(pipelines).items()
        if isinstance(bundle, pipelines.Wav2Vec2Bundle)
    }
    if name not in known:
        raise UserError(
            f"torchaudio has no bundle {name!r} of a speech encoder",
            where=f"torchaudio:{name}",
            fix=nearest(name, known),
        )
    return known[name]


def _fetched(name: str, bundle: Any, progress: Progress | None) -> Path:
    """The bundle's file in the cache, downloaded on first use.

    Raises:
        UserError: It cannot be had, or the cache cannot be written.
    """
    # torchaudio has no public name for a bundle's file.
    stated = str(bundle._path)
    url = stated if "://" in stated else SERVER + stated
    with cache_place(f"torchaudio/{name}") as folder:
        otherwise = f"use hf: or asset:, or a file at hand: torchaudio:FILE#{name}"
        return published_file(url, folder, progress, otherwise)


def _own(tensors: dict[str, Tensor], bundle: Any, path: Path) -> dict[str, Tensor]:
    """A file's tensors as torchaudio's own model of today has them.

    Weight norms are renamed, and the CTC layer loses the rows of fairseq's special
    tokens, which torchaudio drops too.

    Raises:
        UserError: They are not that model's; all that differs is named.
    """
    import torch
    from torchaudio.models import wav2vec2_model, wavlm_model

    build = wavlm_model if bundle._model_type == "WavLM" else wav2vec2_model
    with torch.device("meta"):
        expected = build(**bundle._params).state_dict()
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        module, _, part = name.rpartition(".")
        own = (
            f"{module}.parametrizations.weight.{NORMS[part]}" if part in NORMS else name
        )
        rows = range(len(tensor)) if own.startswith("aux.") else ()
        kept = [row for row in rows if row not in bundle._remove_aux_axis]
        special = own in expected and len(kept) == len(expected[own]) < len(rows)
        found[own] = tensor[kept] if special else tensor
    where, fix = str(path), "name the bundle that the file belongs to, or fetch it anew"
    faults = [
        Fault(f"has no {name!r}", where, fix=nearest(name, found) or fix)
        for name in expected.keys() - found.keys()
    ]
    faults += [
        Fault(f"has {name!r}, which the model has not", where, fix=fix)
        for name in found.keys() - expected.keys()
    ]
    faults += [
        Fault(
            f"{name!r} has the shape {tuple(found[name].shape)}, "
            f"{tuple(expected[name].shape)} expected",
            where,
            fix=fix,
        )
        for name in expected.keys() & found.keys()
        if found[name].shape != expected[name].shape
    ]
    if faults:
        raise UserError(*sorted(faults, key=lambda fault: fault.what))
    return found


def _transformers(
    tensors: Mapping[str, Tensor], name: str, bundle: Any
) -> dict[str, Tensor]:
    """The same tensors under transformers' names; WavLM's attention is taken apart."""
    within = f"{_model_type(name, bundle)}." if _has_head(bundle) else ""
    found: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        if key.startswith("aux."):
            found[f"lm_head.{key.removeprefix('aux.')}"] = tensor
            continue
        old = next(prefix for prefix in PREFIXES if key.startswith(prefix))
        own = within + PREFIXES[old] + key.removeprefix(old)
        # A module of torch inside the one that adds WavLM's positions.
        own = own.replace(".attention.attention.", ".attention.")
        joined = re.fullmatch(r"(.*)\.in_proj_(weight|bias)", own)
        if joined:
            for part, third in zip("qkv", tensor.chunk(3), strict=True):
                found[f"{joined[1]}.{part}_proj.{joined[2]}"] = third.contiguous()
        else:
            found[own] = tensor
    return found


def _configs(name: str, bundle: Any) -> dict[str, dict[str, Any]]:
    """The configuration files that transformers would have beside these weights."""
    params: dict[str, Any] = bundle._params
    model_type = _model_type(name, bundle)
    kind = "ForCTC" if _has_head(bundle) else "Model"
    widths, kernels, strides = zip(*params["extractor_conv_layer_config"], strict=True)
    mode = params["extractor_mode"].removesuffix("_norm")
    config = {
        "model_type": model_type,
        "architectures": [CLASSES[model_type] + kind],
        "dtype": "float32",
        **{theirs: params[own] for own, theirs in CONFIG.items() if own in params},
        "feat_extract_norm": mode,
        "conv_dim": list(widths),
        "conv_kernel": list(kernels),
        "conv_stride": list(strides),
        "pad_token_id": 0,
    }
    if _has_head(bundle):
        config["vocab_size"] = params["aux_num_out"]
    preprocessor = {
        "feature_extractor_type": "Wav2Vec2FeatureExtractor",
        "feature_size": 1,
        "sampling_rate": int(bundle.sample_rate),
        "do_normalize": bool(bundle._normalize_waveform),
        "padding_value": 0.0,
        "return_attention_mask": mode == "layer",
    }
    return {"config.json": config, "preprocessor_config.json": preprocessor}


def _model_type(name: str, bundle: Any) -> str:
    if bundle._model_type == "WavLM":
        return "wavlm"
    # To torchaudio a HuBERT is a wav2vec 2.0, which it is but for its training.
    return "hubert" if "HUBERT" in name.upper() else "wav2vec2"


def _has_head(bundle: Any) -> bool:
    return bundle._params["aux_num_out"] is not None


def _classes(bundle: Any) -> tuple[str, ...]:
    """Characters of the CTC layer's rows, the blank first; empty when it has none."""
    return characters((BLANK, *bundle._labels)) if hasattr(bundle, "_labels") else ()


def _licence(bundle: Any) -> str:
    """As the bundle's documentation states it."""
    text = " ".join((bundle.__doc__ or "").split())
    found = re.search(r"under \[?`?([\w .+-]+?) (?:and|License)", text, re.IGNORECASE)
    return found[1] if found else ""
