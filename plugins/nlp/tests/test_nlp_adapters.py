"""LoRA on this plugin's transformers: runs whose results transformers and peft open."""

from __future__ import annotations

import copy
import json

import peft
import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from headstart.fine_tuning import run
from headstart.plugins import load_plugins
from headstart_nlp.causal import sample_language
from headstart_nlp.tiny import tiny_corpus, tiny_table

LORA = {
    "strategy.name": "lora",
    "strategy.lora.rank": 2,
    "train.max_steps": 3,
    "train.batch_size": 4,
    # Large steps: a merged model that forgot its adapters is another one at once.
    "train.learning_rate": 0.1,
}


def overrides(section, values):
    return {f"{section}.{key}": value for key, value in values.items()}


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """A small BERT with adapters, trained to classify."""
    folder = tmp_path_factory.mktemp("texts")
    spec = load_plugins().backbone("nlp/encoder")
    settings = {
        "backbone.name": spec.name,
        **overrides("backbone", spec.tiny),
        **overrides("data", tiny_table(folder)),
        **LORA,
    }
    return run("nlp/classify", settings, folder=folder / "run")


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def language(request, tmp_path_factory):
    """A small causal language model with adapters, trained to continue."""
    folder = tmp_path_factory.mktemp("language")
    spec = load_plugins().backbone("nlp/causal")
    tiny = copy.deepcopy(dict(spec.tiny))
    if request.param == "gpt2":
        tiny["config"] = {
            "model_type": "gpt2",
            "vocab_size": 64,
            "n_embd": 16,
            "n_layer": 2,
            "n_head": 2,
            "n_positions": 64,
            "bos_token_id": 1,
            "eos_token_id": 2,
        }
    settings = {
        "backbone.name": spec.name,
        **overrides("backbone", tiny),
        **overrides("data", tiny_corpus(folder)),
        "data.general": "",
        **LORA,
    }
    return run("nlp/generate", settings, folder=folder / "run")


def opened(done):
    """The kept model, anew."""
    done._model = None
    return done._open(done.recipe()).eval()


def one_document(backbone):
    """A row without padding for models that know nothing of packing."""
    state = sample_language(backbone)
    ids = state["input_ids"][:1]
    return {
        "input_ids": ids,
        "positions": torch.arange(ids.shape[1])[None],
        "segments": torch.ones_like(ids),
    }


def test_language_model_adapters_open_in_peft(language, tmp_path):
    backbone = opened(language).backbone
    state = one_document(backbone)
    with torch.no_grad():
        expected = backbone(state)["logits"]
        plain = backbone.language_model()
        changed = plain(input_ids=state["input_ids"]).logits
    torch.testing.assert_close(changed, expected)
    folder = language.export(tmp_path / "adapter")
    merged = language.export(tmp_path / "merged", merge=True)
    base = AutoModelForCausalLM.from_pretrained(merged)
    with torch.no_grad():
        whole = base(input_ids=state["input_ids"]).logits
    torch.testing.assert_close(whole, expected, rtol=1e-4, atol=1e-5)
    # The base that the adapters belong to: the same model without them.
    bare = opened(language).backbone
    weights = {
        bare.upstream_name(name.replace(".base_layer", "")): value
        for name, value in bare.state_dict().items()
        if ".lora_" not in name
    }
    base.load_state_dict(weights)
    adapted = peft.PeftModel.from_pretrained(base, folder).eval()
    with torch.no_grad():
        theirs = adapted(input_ids=state["input_ids"]).logits
    torch.testing.assert_close(theirs, expected, rtol=1e-4, atol=1e-5)


def test_merged_language_model_is_a_plain_folder(language, tmp_path):
    folder = language.export(tmp_path / "plain", merge=True)
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "model.safetensors"} <= names
    assert "adapter_config.json" not in names
    about = json.loads((folder / "headstart.json").read_text())
    assert about["adapters"] == "merged"
    assert about["metrics"] == language.metrics
    again = {
        "backbone.name": "nlp/causal",
        "backbone.weights": f"file:{folder}",
        "strategy.name": "none",
        **overrides("data", language.recipe().data.model_dump(exclude={"name"})),
    }
    untouched = run("nlp/generate", again, folder=tmp_path / "again")
    assert untouched.metrics == pytest.approx(language.metrics, rel=1e-4)


def test_run_with_adapters_is_a_source_of_weights(language, tmp_path, monkeypatch):
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))
    again = {
        "backbone.name": "nlp/causal",
        "backbone.weights": f"run:{language.folder}",
        "strategy.name": "none",
        **overrides("data", language.recipe().data.model_dump(exclude={"name"})),
    }
    untouched = run("nlp/generate", again, folder=tmp_path / "again")
    assert untouched.metrics == pytest.approx(language.metrics, rel=1e-4)


def test_encoder_with_adapters_opens_in_transformers_and_peft(texts, tmp_path):
    model = opened(texts)
    tokens = torch.randint(5, 60, (2, 9))
    state = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    with torch.no_grad():
        expected = model.backbone(state)["hidden"]
    folder = texts.export(tmp_path / "plain", merge=True)
    assert (folder / "head.safetensors").is_file()
    plain = AutoModel.from_pretrained(folder, add_pooling_layer=False).eval()
    with torch.no_grad():
        hidden = plain(**state).last_hidden_state
    torch.testing.assert_close(hidden, expected, rtol=1e-4, atol=1e-5)
    texts.export(tmp_path / "adapter")
    bare = opened(texts).backbone
    plain.load_state_dict(
        {
            bare.upstream_name(name.replace(".base_layer", "")): value
            for name, value in bare.state_dict().items()
            if ".lora_" not in name
        }
    )
    adapted = peft.PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
    with torch.no_grad():
        theirs = adapted(**state).last_hidden_state
    torch.testing.assert_close(theirs, expected, rtol=1e-4, atol=1e-5)


def test_adapters_of_an_encoder_and_its_head_predict_the_same_again(texts):
    inputs = ["good film", "bad film"]
    first = texts.predict(inputs)
    texts._model = None
    assert texts.predict(inputs) == first
    assert texts.evaluate() == pytest.approx(texts.metrics)


def test_exported_tokenizer_is_the_runs_own(language, tmp_path):
    folder = language.export(tmp_path / "plain", merge=True)
    settings = language.recipe().data
    theirs = AutoTokenizer.from_pretrained(settings.tokenizer)
    assert AutoTokenizer.from_pretrained(folder)("a b c") == theirs("a b c")
