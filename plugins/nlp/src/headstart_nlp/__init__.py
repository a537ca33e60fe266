"""Text for headstart: encoders and causal language models, classification and text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from headstart.hookspecs import hookimpl
from headstart.specs import (
    BackboneSpec,
    DataSpec,
    Feature,
    HeadSpec,
    MetricSpec,
    RecipeSource,
    WeightSourceSpec,
    label_metrics,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headstart.specs import Goal

__version__ = "0.1.0"
HOOK_API = "1.0"

_SINGLE = {
    "kind": "single-label",
    "labels": ["no", "yes", "maybe"],
    "counts": [5, 3, 2],
}
_MULTI = {"kind": "multi-label", "labels": ["a", "b", "c"], "counts": [5, 3, 2]}
_VALUE = {"kind": "regression", "mean": 3.0, "std": 1.5}
_LANGUAGE = {
    "kind": "text",
    "probe": {"prompts": [], "general": {"name": "", "documents": []}},
}


def _tiny_bert(layers: int, channels: int, heads: int) -> dict[str, Any]:
    """Settings of a BERT that builds in milliseconds."""
    return {
        "weights": "none",
        "config": {
            "model_type": "bert",
            "vocab_size": 64,
            "hidden_size": channels,
            "intermediate_size": 32,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "max_position_embeddings": 64,
        },
    }


def _encoder(**varying: Any) -> BackboneSpec:
    return BackboneSpec(
        factory="headstart_nlp.backbones:build_encoder",
        settings="headstart_nlp.settings:EncoderSettings",
        inputs=("input_ids", "attention_mask"),
        sample="headstart_nlp.backbones:sample_tokens",
        reference="headstart_nlp.backbones:reference_encoder",
        **varying,
    )


def _tiny_llama(layers: int) -> dict[str, Any]:
    """Settings of a causal language model that builds in milliseconds."""
    return {
        "weights": "none",
        "config": {
            "model_type": "llama",
            "vocab_size": 64,
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": layers,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 64,
            # Ours has them apart: tied ones cannot be cut between.
            "tie_word_embeddings": False,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
    }


def _causal(**varying: Any) -> BackboneSpec:
    return BackboneSpec(
        factory="headstart_nlp.causal:build_causal",
        settings="headstart_nlp.settings:CausalSettings",
        inputs=("input_ids", "positions", "segments"),
        sample="headstart_nlp.causal:sample_language",
        reference="headstart_nlp.causal:reference_causal",
        **varying,
    )


@hookimpl
def register_backbones() -> Sequence[BackboneSpec]:
    return [
        _encoder(
            name="nlp/minilm-l6",
            summary="MiniLM, 6 layers x 384, 22.7 M parameters: small and quick",
            weights="asset:minilm-l6",
            features=(Feature("hidden", "tokens", 384),),
            stages=("embeddings", *(f"layer{i}" for i in range(6))),
            licence="Apache-2.0",
            tiny=_tiny_bert(layers=6, channels=32, heads=2),
        ),
        _encoder(
            name="nlp/encoder",
            summary="BERT, DistilBERT, RoBERTa, ELECTRA, ModernBERT from hub or folder",
            weights="",
            features=(Feature("hidden", "tokens"),),
            tiny=_tiny_bert(layers=2, channels=32, heads=2),
        ),
        _causal(
            name="nlp/smollm2-135m",
            summary="SmolLM2-135M-Instruct: Llama, 30 layers x 576, from 4 bits",
            weights="gguf:asset:smollm2-135m-instruct-q4",
            features=(Feature("logits", "logits", 49152),),
            licence="Apache-2.0",
            tiny=_tiny_llama(layers=3),
        ),
        _causal(
            name="nlp/causal",
            summary="GPT-2, Llama, Qwen, Mistral from hub, folder or GGUF file",
            weights="",
            features=(Feature("logits", "logits"),),
            tiny=_tiny_llama(layers=2),
        ),
    ]


def _head(name: str, summary: str, build: str, **varying: Any) -> HeadSpec:
    return HeadSpec(
        name=name,
        summary=summary,
        factory=f"headstart_nlp.heads:{build}",
        needs=("tokens",),
        targets=("labels",),
        **{"sample": "headstart.classification:sample_labels", **varying},
    )


@hookimpl
def register_heads() -> Sequence[HeadSpec]:
    return [
        _head(
            "nlp/classifier",
            "one label per text",
            "build_classifier",
            settings="headstart_nlp.settings:ClassifierSettings",
            kinds=("single-label",),
            metrics=("accuracy", "macro-f1", "mcc", "auroc"),
            sample_task=_SINGLE,
            tiny={"pooling": "attention", "layers": 2, "class_weights": "balanced"},
        ),
        _head(
            "nlp/multi-label",
            "any number of labels per text",
            "build_multi_label",
            settings="headstart_nlp.settings:ClassifierSettings",
            kinds=("multi-label",),
            metrics=("macro-f1", "auroc", "exact-match"),
            sample_task=_MULTI,
        ),
        _head(
            "nlp/regressor",
            "one number per text",
            "build_regressor",
            settings="headstart_nlp.settings:RegressorSettings",
            kinds=("regression",),
            metrics=("mean-absolute-error", "root-mean-squared-error", "spearman"),
            sample="headstart_nlp.heads:sample_values",
            sample_task=_VALUE,
        ),
        HeadSpec(
            name="nlp/language-model",
            summary="the next token; generates text",
            factory="headstart_nlp.language_model:build_language_model",
            settings="headstart_nlp.settings:LanguageModelSettings",
            needs=("logits",),
            targets=("labels",),
            kinds=("text", "conversation"),
            metrics=("perplexity", "token-accuracy"),
            sample="headstart_nlp.language_model:sample_labels",
            sample_task=_LANGUAGE,
            options="headstart_nlp.options:GenerationOptions",
        ),
    ]


def _language_data(**varying: Any) -> DataSpec:
    return DataSpec(yields=("input_ids", "positions", "segments", "labels"), **varying)


@hookimpl
def register_data() -> Sequence[DataSpec]:
    return [
        DataSpec(
            name="nlp/table",
            summary="texts and labels in CSV, TSV, JSONL, Parquet or a datasets folder",
            factory="headstart_nlp.data:TextTable",
            settings="headstart_nlp.settings:TableSettings",
            yields=("input_ids", "attention_mask", "token_type_ids", "labels"),
            tiny="headstart_nlp.tiny:tiny_table",
        ),
        _language_data(
            name="nlp/corpus",
            summary="documents to continue: text files, folders, JSONL, tables",
            factory="headstart_nlp.corpus:Corpus",
            settings="headstart_nlp.settings:CorpusSettings",
            tiny="headstart_nlp.tiny:tiny_corpus",
        ),
        _language_data(
            name="nlp/conversations",
            summary="prompts and responses, or chat messages; responses are learned",
            factory="headstart_nlp.conversations:Conversations",
            settings="headstart_nlp.settings:ConversationSettings",
            tiny="headstart_nlp.tiny:tiny_conversations",
        ),
    ]


def _value_metric(name: str, summary: str, goal: Goal) -> MetricSpec:
    return MetricSpec(
        name=f"nlp/{name}",
        summary=summary,
        factory=f"headstart_nlp.metrics:{name.replace('-', '_')}",
        inputs=("prediction", "target"),
        kinds=("regression",),
        goal=goal,
        sample="headstart_nlp.metrics:sample_outputs",
        sample_task=_VALUE,
    )


def _language_metric(name: str, summary: str, **varying: Any) -> MetricSpec:
    return MetricSpec(
        name=f"nlp/{name}",
        summary=summary,
        factory=f"headstart_nlp.language_metrics:{name.replace('-', '_')}",
        kinds=("text", "conversation"),
        sample="headstart_nlp.language_metrics:sample_language_outputs",
        sample_task=_LANGUAGE,
        scores=f"headstart_nlp.language_metrics:{name.replace('-', '_')}_scores",
        **{"goal": "max", **varying},
    )


@hookimpl
def register_metrics() -> Sequence[MetricSpec]:
    return [
        *label_metrics("nlp", "texts"),
        _value_metric(
            "mean-absolute-error", "mean distance from the true value", "min"
        ),
        _value_metric(
            "root-mean-squared-error",
            "root of the mean squared distance from the true value",
            "min",
        ),
        _value_metric("spearman", "rank correlation with the true values", "max"),
        _language_metric(
            "perplexity",
            "of held-out text: exp of the mean loss of a token",
            inputs=("nll", "tokens"),
            goal="min",
            link="exp",
        ),
        _language_metric(
            "token-accuracy",
            "share of tokens that are the likeliest next one",
            inputs=("right", "tokens"),
        ),
        _language_metric(
            "greedy-match",
            "share of texts or responses that greedy decoding gives word for word",
            inputs=("whole", "tokens"),
        ),
    ]


@hookimpl
def register_recipes() -> Sequence[RecipeSource]:
    return [
        RecipeSource("nlp/sentiment", "headstart_nlp", "recipes/sentiment.toml"),
        RecipeSource("nlp/classify", "headstart_nlp", "recipes/classify.toml"),
        RecipeSource("nlp/generate", "headstart_nlp", "recipes/generate.toml"),
        RecipeSource("nlp/instruct", "headstart_nlp", "recipes/instruct.toml"),
    ]


@hookimpl
def register_weight_sources() -> Sequence[WeightSourceSpec]:
    return [
        WeightSourceSpec(
            "gguf",
            "a GGUF file (FILE or asset:NAME), unpacked to float32",
            "headstart_nlp.gguf:resolve_gguf",
        )
    ]
