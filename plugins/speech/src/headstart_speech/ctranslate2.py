"""Whisper from CTranslate2's format, as weights under transformers' names.

The format is that of faster-whisper's models. Layers that CTranslate2 fuses (query,
key and value) are taken apart; nothing is transposed. Source:
https://github.com/OpenNMT/CTranslate2, ``converters/transformers.py`` of its package.
"""

from __future__ import annotations

import json
import re
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np

from headstart.errors import Fault, UserError
from headstart.files import write_text
from headstart.weights.conversion import TENSORS, converted_once, one_file
from headstart.weights.sources import Weights
from headstart.weights.tensors import files_sha256
from headstart_speech.audio_faults import expanded
from headstart_speech.model_bin import SCALE, ModelBin, read_model_bin

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from headstart.weights.sources import SourceContext

    Arrays = dict[str, NDArray[np.float32]]

MODEL = "model.bin"
TOKENIZER = "tokenizer.json"
SPEC = "WhisperSpec"
GELU = 3
"""CTranslate2's number of the activation that Whisper has."""
FIXED = {
    "decoder/activation": GELU,
    "decoder/alibi": 0,
    "decoder/pre_norm": 1,
    "decoder/scale_embeddings": 0,
    "decoder/start_from_zero_embedding": 0,
    "encoder/activation": GELU,
    "encoder/pre_norm": 1,
}
"""Settings that transformers' Whisper has no choice of; files need not state them."""
RATE = 16_000
HOP = 160
END, START = "<|endoftext|>", "<|startoftranscript|>"


def resolve_ctranslate2(reference: str, context: SourceContext) -> Weights:
    """A Whisper model of CTranslate2 as weights in float32, converted on first use.

    The parameters are those of the file: 8-bit ones have lost what 8 bits lose. The
    folder has what transformers' ``save_pretrained`` writes of the whole model, and
    the tokenizer where one lies beside the file.

    Args:
        reference: ``asset:NAME``, a file, or a folder with a ``model.bin``.
        context: Its registry knows the assets.

    Raises:
        UserError: There is no such file, it is damaged or holds another model, or the
            cache cannot be written.
    """
    inside = expanded(reference) / MODEL
    found = str(inside) if inside.is_file() else reference
    path, licence = one_file("ctranslate2", found, ".bin", context)
    tokenizer = path.with_name(TOKENIZER)
    sources = [path, *([tokenizer] if tokenizer.is_file() else [])]

    def write(folder: Path) -> None:
        if context.progress:
            context.progress(0, 0, f"converting {path.name}")
        _convert(sources, folder)

    folder = converted_once(f"{files_sha256(sources)}-ctranslate2", write, path.name)
    return Weights(
        f"ctranslate2:{reference}", folder, (folder / TENSORS,), licence=licence
    )


def _convert(sources: list[Path], folder: Path) -> None:
    from safetensors.numpy import save_file

    tokens = _special_tokens(sources[1]) if sources[1:] else {}
    tensors, config = whisper(read_model_bin(sources[0]), tokens)
    preprocessor = {
        "feature_extractor_type": "WhisperFeatureExtractor",
        "feature_size": config["num_mel_bins"],
        "sampling_rate": RATE,
        "hop_length": HOP,
        "n_fft": 400,
        # The second convolution halves the frames.
        "chunk_length": config["max_source_positions"] * 2 * HOP // RATE,
        "padding_value": 0.0,
        "return_attention_mask": False,
    }
    save_file(tensors, folder / TENSORS, metadata={"format": "pt"})
    write_text(folder / "config.json", json.dumps(config, indent=1))
    write_text(folder / "preprocessor_config.json", json.dumps(preprocessor, indent=1))
    for tokenizer in sources[1:]:
        shutil.copyfile(tokenizer, folder / TOKENIZER)


def _special_tokens(tokenizer: Path) -> dict[str, int]:
    """Numbers of the tokens that a tokenizer adds to its vocabulary.

    Raises:
        UserError: This is no tokenizer.
    """
    try:
        added = json.loads(tokenizer.read_text(encoding="utf-8"))["added_tokens"]
        return {str(token["content"]): int(token["id"]) for token in added}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            "this is no tokenizer",
            where=str(tokenizer),
            why=f"{type(error).__name__}: {error}",
            fix="fetch it again, or remove it: only the decoder needs it",
        ) from None


def whisper(
    model: ModelBin, tokens: Mapping[str, int] | None = None
) -> tuple[Arrays, dict[str, Any]]:
    """A Whisper model's tensors as transformers names them, and its configuration.

    Args:
        model: As :func:`~.model_bin.read_model_bin` reads it.
        tokens: Numbers of special tokens, for the decoder; may be empty.

    Returns:
        Tensors of ``WhisperForConditionalGeneration`` in float32, a tied output matrix
        left out, and the content of its ``config.json``.

    Raises:
        UserError: It is another model, or its tensors do not fit together; all faults.
    """
    if model.spec != SPEC:
        raise UserError(
            f"this is a CTranslate2 model of {model.spec!r}",
            where=model.where,
            why=f"only Whisper, {SPEC!r}, has an encoder of speech that is read",
        )
    depths = {side: _depth(model, side) for side in ("encoder", "decoder")}
    names = dict(_names(depths))
    stored = {
        name
        for name in (*model.variables, *model.aliases)
        if model.variables[model.aliases.get(name, name)].ndim
        and name.removesuffix(SCALE) not in model.variables.keys() - {name}
    }
    faults = [Fault(f"has no {n!r}", model.where) for n in names if n not in stored]
    faults += [
        Fault(f"has {n!r}, which Whisper has not", model.where)
        for n in sorted(stored - names.keys())
    ]
    faults += [
        Fault(f"states {name} = {model.variables[name]}, not {value}", model.where)
        for name, value in FIXED.items()
        if name in model.variables and model.variables[name].tolist() != value
    ]
    if faults:
        raise UserError(*faults)
    tensors: Arrays = {}
    for theirs, ours in names.items():
        values = model.values(theirs)
        if len(values) % len(ours):
            faults.append(
                Fault(f"{theirs!r} cannot be cut in {len(ours)} parts", model.where)
            )
            continue
        for name, part in zip(ours, np.split(values, len(ours)), strict=True):
            if not name.endswith("k_proj.bias"):
                tensors[name] = np.ascontiguousarray(part)
            elif part.any():
                faults.append(
                    Fault(f"{theirs!r} has a bias of keys, Whisper none", model.where)
                )
    embeddings = tensors["model.decoder.embed_tokens.weight"]
    if np.array_equal(tensors["proj_out.weight"], embeddings):
        del tensors["proj_out.weight"]
    if faults:
        raise UserError(*faults)
    config = _config(model, tensors, depths, tokens or {})
    _check(model, tensors, config)
    return tensors, config


def _depth(model: ModelBin, side: str) -> int:
    layers = [re.match(rf"{side}/layer_(\d+)/", name) for name in model.variables]
    return max(1, len({layer[1] for layer in layers if layer}))


def _names(depths: Mapping[str, int]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Names of the file's tensors, and those of ours that stand in each, row by row."""
    for theirs, ours in _modules(depths):
        norm = theirs.endswith("norm")
        for part, kind in (("weight", "gamma"), ("bias", "beta")):
            stored = f"{theirs}/{kind if norm else part}"
            yield stored, tuple(f"{name}.{part}" for name in ours)
    for side in depths:
        theirs = f"{side}/position_encodings/encodings"
        yield theirs, (f"model.{side}.embed_positions.weight",)
    yield "decoder/embeddings/weight", ("model.decoder.embed_tokens.weight",)
    yield "decoder/projection/weight", ("proj_out.weight",)


def _modules(depths: Mapping[str, int]) -> Iterator[tuple[str, tuple[str, ...]]]:
    for conv in ("conv1", "conv2"):
        yield f"encoder/{conv}", (f"model.encoder.{conv}",)
    for side, depth in depths.items():
        yield f"{side}/layer_norm", (f"model.{side}.layer_norm",)
        for i in range(depth):
            theirs, ours = f"{side}/layer_{i}", f"model.{side}.layers.{i}"
            own = f"{ours}.self_attn"
            attention = f"{theirs}/self_attention"
            yield f"{attention}/linear_0", tuple(f"{own}.{x}_proj" for x in "qkv")
            yield f"{attention}/linear_1", (f"{own}.out_proj",)
            yield f"{attention}/layer_norm", (f"{own}_layer_norm",)
            if side == "decoder":
                cross = f"{ours}.encoder_attn"
                attention = f"{theirs}/attention"
                yield f"{attention}/linear_0", (f"{cross}.q_proj",)
                yield f"{attention}/linear_1", tuple(f"{cross}.{x}_proj" for x in "kv")
                yield f"{attention}/linear_2", (f"{cross}.out_proj",)
                yield f"{attention}/layer_norm", (f"{cross}_layer_norm",)
            yield f"{theirs}/ffn/linear_0", (f"{ours}.fc1",)
            yield f"{theirs}/ffn/linear_1", (f"{ours}.fc2",)
            yield f"{theirs}/ffn/layer_norm", (f"{ours}.final_layer_norm",)


def _config(
    model: ModelBin,
    tensors: Mapping[str, NDArray[np.float32]],
    depths: Mapping[str, int],
    tokens: Mapping[str, int],
) -> dict[str, Any]:
    """The configuration that tensors of these shapes have.

    Raises:
        UserError: A convolution is none, or a number of heads is not stated.
    """
    convolution = tensors["model.encoder.conv1.weight"]
    heads = {side: model.variables.get(f"{side}/num_heads") for side in depths}
    counts = {
        side: int(value.item())
        for side, value in heads.items()
        if value is not None and value.size == 1 and value.dtype.kind == "i"
    }
    if convolution.ndim != 3 or len(counts) < len(depths):
        raise UserError(
            "the sizes of this Whisper are not clear",
            where=model.where,
            why=f"its first convolution has the shape {convolution.shape}"
            if convolution.ndim != 3
            else "it does not state the number of attention heads",
            fix="convert the model again with a current ct2-transformers-converter",
        )
    return {
        "model_type": "whisper",
        "architectures": ["WhisperForConditionalGeneration"],
        "dtype": "float32",
        "d_model": convolution.shape[0],
        "num_mel_bins": convolution.shape[1],
        **{f"{side}_layers": depth for side, depth in depths.items()},
        **{f"{side}_attention_heads": counts[side] for side in depths},
        **{
            f"{side}_ffn_dim": len(tensors[f"model.{side}.layers.0.fc1.bias"])
            for side in depths
        },
        "max_source_positions": len(tensors["model.encoder.embed_positions.weight"]),
        "max_target_positions": len(tensors["model.decoder.embed_positions.weight"]),
        "vocab_size": len(tensors["model.decoder.embed_tokens.weight"]),
        "tie_word_embeddings": "proj_out.weight" not in tensors,
        "bos_token_id": tokens.get(END),
        "eos_token_id": tokens.get(END),
        "pad_token_id": tokens.get(END),
        # transformers lets this one not be empty.
        **({"decoder_start_token_id": tokens[START]} if START in tokens else {}),
    }


def _check(
    model: ModelBin,
    tensors: Mapping[str, NDArray[np.float32]],
    config: Mapping[str, Any],
) -> None:
    """Hold the shapes against transformers' own model of that configuration.

    Raises:
        UserError: Some differ, or no model has that configuration.
    """
    import torch
    from huggingface_hub.errors import StrictDataclassError
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    try:
        with torch.device("meta"):
            theirs = WhisperForConditionalGeneration(
                WhisperConfig.from_dict(dict(config))
            )
    except (
        ValueError,
        TypeError,
        ArithmeticError,
        AssertionError,
        StrictDataclassError,
    ) as error:
        raise UserError(
            "no Whisper has these sizes",
            where=model.where,
            why=" ".join(str(error).split()),
            fix="fetch it again, or convert the model again",
        ) from error
    expected = theirs.state_dict()
    faults = [
        Fault(
            f"{name!r} has the shape {values.shape}, {tuple(expected[name].shape)} "
            "expected",
            model.where,
        )
        for name, values in tensors.items()
        if values.shape != tuple(expected[name].shape)
    ]
    if faults:
        raise UserError(*faults)
