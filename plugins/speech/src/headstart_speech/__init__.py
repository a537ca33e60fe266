"""Speech for headstart: sound to text with CTC, and wav2vec 2.0's own pretraining."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from headstart.hookspecs import hookimpl
from headstart.specs import (
    DataSpec,
    HeadSpec,
    MetricSpec,
    RecipeSource,
    WeightSourceSpec,
)
from headstart_speech.catalogue import backbone_specs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from headstart.specs import BackboneSpec

__version__ = "0.1.0"
HOOK_API = "1.0"

_SAID = {
    "kind": "transcription",
    "vocabulary": ["<blank>", " ", "a", "b", "c"],
    "text": {
        "case": "lower",
        "punctuation": "remove",
        "digits": "keep",
        "unicode": "NFKC",
        "accents": "keep",
    },
    "rate": 16_000,
}
_HEARD = {"kind": "unlabelled-audio", "rate": 16_000}


@hookimpl
def register_backbones() -> Sequence[BackboneSpec]:
    return backbone_specs()


@hookimpl
def register_heads() -> Sequence[HeadSpec]:
    return [
        HeadSpec(
            name="speech/ctc",
            summary="the characters of what is said, with the time of each word",
            factory="headstart_speech.heads:build_ctc",
            settings="headstart_speech.settings:CTCSettings",
            needs=("tokens",),
            targets=("labels", "frames"),
            kinds=("transcription",),
            metrics=("wer", "cer", "blank-ratio"),
            sample="headstart_speech.heads:sample_targets",
            sample_task=_SAID,
            options="headstart_speech.options:TranscribeOptions",
        ),
        HeadSpec(
            name="speech/contrastive",
            summary="which code a hidden frame has: wav2vec 2.0's pretraining",
            factory="headstart_speech.contrastive:build_contrastive",
            settings="headstart_speech.settings:ContrastiveSettings",
            needs=("quantizable",),
            targets=("masked", "negatives", "frames"),
            kinds=("unlabelled-audio",),
            metrics=("contrastive-accuracy", "codebook-perplexity"),
            sample="headstart_speech.contrastive:sample_masks",
            sample_task=_HEARD,
            tiny={"codes": 8, "code_width": 8, "width": 8},
        ),
    ]


@hookimpl
def register_data() -> Sequence[DataSpec]:
    return [
        DataSpec(
            name="speech/utterances",
            summary="sounds with transcripts: manifests, LibriSpeech, Common Voice",
            factory="headstart_speech.utterances:Utterances",
            settings="headstart_speech.settings:UtteranceSettings",
            yields=("waveform", "lengths", "frames", "labels"),
            tiny="headstart_speech.tiny:tiny_utterances",
        ),
        DataSpec(
            name="speech/unlabelled",
            summary="folders of sounds to pretrain on",
            factory="headstart_speech.unlabelled:Unlabelled",
            settings="headstart_speech.settings:UnlabelledSettings",
            yields=("waveform", "lengths", "frames", "masked", "negatives"),
            tiny="headstart_speech.tiny:tiny_unlabelled",
        ),
    ]


def _metric(
    name: str,
    summary: str,
    inputs: tuple[str, ...],
    task: Mapping[str, Any] = _SAID,
    module: str = "metrics",
    sample: str = "sample_outputs",
    **varying: Any,
) -> MetricSpec:
    function = f"headstart_speech.{module}:{name.replace('-', '_')}"
    return MetricSpec(
        name=f"speech/{name}",
        summary=summary,
        factory=function,
        inputs=inputs,
        kinds=(task["kind"],),
        sample=f"headstart_speech.{module}:{sample}",
        sample_task=task,
        **{"goal": "min", "scores": f"{function}_scores", **varying},
    )


_PRETRAINING: dict[str, Any] = {
    "task": _HEARD,
    "module": "pretraining_metrics",
    "sample": "sample_pretraining_outputs",
    "goal": "max",
}


@hookimpl
def register_metrics() -> Sequence[MetricSpec]:
    said = ("prediction", "target")
    return [
        _metric("wer", "word errors per word of the references", said),
        _metric("cer", "character errors per character of the references", said),
        _metric(
            "blank-ratio",
            "share of frames that say nothing",
            ("blank", "frames"),
            goal="none",
        ),
        _metric(
            "contrastive-accuracy",
            "share of hidden frames told from distractors",
            ("right", "masked"),
            **_PRETRAINING,
        ),
        _metric(
            "codebook-perplexity",
            "codes in use, as many equally likely ones would be",
            ("codes",),
            **{**_PRETRAINING, "scores": ""},
        ),
    ]


@hookimpl
def register_recipes() -> Sequence[RecipeSource]:
    return [
        RecipeSource(f"speech/{name}", "headstart_speech", f"recipes/{name}.toml")
        for name in ("transcribe", "new-language", "pretrain")
    ]


@hookimpl
def register_weight_sources() -> Sequence[WeightSourceSpec]:
    return [
        WeightSourceSpec(
            "ctranslate2",
            "a Whisper in CTranslate2's format (FILE or asset:NAME)",
            "headstart_speech.ctranslate2:resolve_ctranslate2",
        ),
        WeightSourceSpec(
            "torchaudio",
            "a bundle of torchaudio (WAV2VEC2_BASE), or FILE#NAME of one at hand",
            "headstart_speech.torchaudio_source:resolve_torchaudio",
        ),
    ]
