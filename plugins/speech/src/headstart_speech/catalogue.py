"""The networks of this plugin and what their specs say; torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from headstart.specs import BackboneSpec, Feature

if TYPE_CHECKING:
    from collections.abc import Mapping

STRIDE = 320
"""Samples of a frame, 20 ms, in every published network."""

_TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "conv_dim": [16] * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
_TINY_WHISPER = {
    "d_model": 32,
    "encoder_layers": 2,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "max_source_positions": 200,
}

TINY: dict[str, dict[str, Any]] = {
    "speech/wav2vec2": {"weights": "none", "config": _TINY},
    "speech/hubert": {"weights": "none", "config": _TINY},
    "speech/wavlm": {
        "weights": "none",
        "config": {**_TINY, "num_buckets": 16, "max_bucket_distance": 12},
    },
    "speech/whisper": {"weights": "none", "config": _TINY_WHISPER},
    "speech/whisper-tiny-en": {
        "weights": "none",
        "config": {**_TINY_WHISPER, "encoder_layers": 4},
    },
}
"""Settings of variants with the published geometry that build in milliseconds."""


def backbone_specs() -> list[BackboneSpec]:
    """The specs, in the order of lists."""
    return [
        _whisper(
            "whisper-tiny-en",
            "encoder of Whisper tiny.en, English: 4 layers x 384, 7.6 M parameters",
            weights="ctranslate2:asset:whisper-tiny-en",
            width=384,
            layers=4,
            licence="MIT",
        ),
        _whisper("whisper", "encoder of any Whisper, from hub, folder or CTranslate2"),
        _waveform(
            "wav2vec2",
            "wav2vec 2.0 from hub, folder, torchaudio or a run of speech/pretrain",
            weights="hf:facebook/wav2vec2-base",
            licence="Apache-2.0",
        ),
        _waveform(
            "hubert",
            "HuBERT from hub, folder or torchaudio",
            weights="hf:facebook/hubert-base-ls960",
            licence="Apache-2.0",
        ),
        _waveform(
            "wavlm",
            "WavLM from hub, folder or torchaudio",
            weights="hf:microsoft/wavlm-base",
        ),
    ]


def _whisper(
    name: str,
    summary: str,
    weights: str = "",
    width: int | None = None,
    layers: int = 0,
    licence: str = "",
) -> BackboneSpec:
    return BackboneSpec(
        factory="headstart_speech.whisper:build_whisper",
        settings="headstart_speech.settings:WhisperSettings",
        reference="headstart_speech.whisper:reference_whisper",
        features=(Feature("hidden", "tokens", width, stride=STRIDE),),
        stages=("features", "projection", *(f"layer{i}" for i in range(layers)), "norm")
        if layers
        else (),
        **_common(name, summary, weights, licence),
    )


def _waveform(name: str, summary: str, weights: str, licence: str = "") -> BackboneSpec:
    # HuBERT does not tell what its convolutions hear.
    heard = Feature("quantizable", "tokens", stride=STRIDE, stage="projection")
    more = () if name == "hubert" else (heard,)
    return BackboneSpec(
        factory=f"headstart_speech.backbones:build_{name}",
        settings="headstart_speech.settings:WaveformSettings",
        reference="headstart_speech.backbones:reference_wav2vec2",
        features=(Feature("hidden", "tokens", stride=STRIDE), *more),
        **_common(name, summary, weights, licence),
    )


def _common(name: str, summary: str, weights: str, licence: str) -> Mapping[str, Any]:
    return {
        "name": f"speech/{name}",
        "summary": summary,
        "weights": weights,
        "licence": licence,
        "inputs": ("waveform", "lengths"),
        "sample": "headstart_speech.backbones:sample_audio",
        "tiny": TINY[f"speech/{name}"],
    }
