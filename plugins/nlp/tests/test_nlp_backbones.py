"""Every family of encoders against transformers' own forward pass, at every cut."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load, save
from transformers import AutoConfig, AutoModel

from headstart.errors import UserError
from headstart.specs import resolve
from headstart_nlp import register_backbones
from headstart_nlp.backbones import (
    build_encoder,
    reference_encoder,
    sample_tokens,
)
from headstart_nlp.settings import EncoderSettings

if TYPE_CHECKING:
    from pathlib import Path

    from headstart.stages import Backbone, State

BERT = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 40,
}
ROBERTA = {**BERT, "pad_token_id": 1}
CONFIGS: dict[str, dict[str, Any]] = {
    "bert": {"model_type": "bert", **BERT},
    "distilbert": {
        "model_type": "distilbert",
        "vocab_size": 64,
        "dim": 32,
        "hidden_dim": 48,
        "n_layers": 3,
        "n_heads": 4,
        "max_position_embeddings": 40,
    },
    "roberta": {"model_type": "roberta", **ROBERTA, "type_vocab_size": 1},
    "xlm-roberta": {"model_type": "xlm-roberta", **ROBERTA, "type_vocab_size": 1},
    "camembert": {"model_type": "camembert", **ROBERTA, "type_vocab_size": 1},
    "electra": {"model_type": "electra", **BERT, "embedding_size": 32},
    "electra-projected": {"model_type": "electra", **BERT, "embedding_size": 16},
    "modernbert": {
        "model_type": "modernbert",
        **BERT,
        "num_hidden_layers": 4,
        "layer_types": ["full_attention", "sliding_attention"] * 2,
        "local_attention": 4,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "cls_token_id": 1,
        "eos_token_id": 2,
        "sep_token_id": 2,
    },
}
families = pytest.mark.parametrize("family", CONFIGS)


def build(family: str, **settings: Any) -> Backbone:
    torch.manual_seed(0)
    given = EncoderSettings(name="nlp/encoder", config=CONFIGS[family], **settings)
    backbone = build_encoder(given, None, {})
    # Fresh normalisations and biases are all 1 and 0, and would hide a wrong place.
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return backbone.eval()


def upstream(backbone: Backbone, **changes: Any) -> Any:
    """transformers' model as a user would make it, with the same parameters."""
    config = AutoConfig.for_model(**{**(backbone.config or {}), **changes})
    model = AutoModel.from_config(config)
    if getattr(model, "pooler", None) is not None:
        model.pooler = None
    model.load_state_dict(backbone.upstream_state_dict(), strict=True)
    return model.eval()


def upstream_hidden(model: Any, state: State) -> torch.Tensor:
    names = ["input_ids", "attention_mask"]
    if getattr(model.config, "type_vocab_size", 0) > 1:
        names.append("token_type_ids")
    with torch.no_grad():
        return model(**{name: state[name] for name in names}).last_hidden_state


@families
def test_whole_equals_transformers(family: str) -> None:
    backbone = build(family)
    state = sample_tokens(backbone)
    assert state["attention_mask"].sum(1).tolist() == [12, 3, 9, 6]
    with torch.no_grad():
        ours = backbone(state)["hidden"]
    theirs = upstream_hidden(upstream(backbone), state)
    assert ours.shape == (4, 12, 32)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
    reference = reference_encoder(backbone, state)["hidden"]
    torch.testing.assert_close(ours, reference, atol=1e-6, rtol=1e-5)


@families
def test_full_batch_equals_transformers(family: str) -> None:
    """Without padding, where transformers drops its mask."""
    backbone = build(family)
    state = sample_tokens(backbone)
    state["attention_mask"] = torch.ones_like(state["attention_mask"])
    state["input_ids"] = state["input_ids"].clamp(min=5)
    with torch.no_grad():
        ours = backbone(state)["hidden"]
    theirs = upstream_hidden(upstream(backbone), state)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


@families
def test_every_cut_is_exact(family: str) -> None:
    backbone = build(family)
    state = sample_tokens(backbone)
    with torch.no_grad():
        whole = backbone(state)["hidden"]
        for cut in range(len(backbone.stages) + 1):
            # Only tensors survive a cache.
            stored = load(save(dict(backbone.run(state, 0, cut))))
            assert torch.equal(backbone.run(stored, cut)["hidden"], whole), cut
    assert "hidden" not in state


@families
def test_later_stages_need_hidden_and_mask_alone(family: str) -> None:
    backbone = build(family)
    state = sample_tokens(backbone)
    with torch.no_grad():
        whole = backbone(state)["hidden"]
        at = backbone.run(state, 0, 2)
        few = {key: at[key] for key in ("hidden", "attention_mask")}
        assert torch.equal(backbone.run(few, 2)["hidden"], whole)


@families
def test_what_padding_holds_changes_nothing(family: str) -> None:
    backbone = build(family)
    state = sample_tokens(backbone)
    mask = state["attention_mask"].bool()
    other = {**state, "input_ids": state["input_ids"].masked_fill(~mask, 33)}
    with torch.no_grad():
        one, two = backbone(state)["hidden"], backbone(other)["hidden"]
        alone = {key: value[1:2, :3] for key, value in state.items()}
        short = backbone(alone)["hidden"]
    assert not torch.equal(one[~mask], two[~mask])
    torch.testing.assert_close(one[mask], two[mask])
    torch.testing.assert_close(one[1:2, :3], short, atol=1e-6, rtol=1e-5)


@families
def test_gradient_reaches_every_parameter(family: str) -> None:
    backbone = build(family).train()
    state = sample_tokens(backbone)
    mask = state["attention_mask"].bool()
    hidden = backbone(state)["hidden"]
    (hidden[mask] * torch.randn_like(hidden[mask])).sum().backward()
    for name, parameter in backbone.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        # A key's bias moves all of a query's scores alike: softmax takes it out.
        if not name.endswith(("key.bias", "k_lin.bias")):
            assert parameter.grad.abs().max() > 0, name


@families
def test_dropout_is_on_in_training_and_off_in_evaluation(family: str) -> None:
    backbone = build(family, dropout=0.5)
    state = sample_tokens(backbone)
    with torch.no_grad():
        assert torch.equal(backbone(state)["hidden"], backbone(state)["hidden"])
        backbone.train()
        for stage in ("embeddings", "layer1"):
            at = backbone.index(stage)
            before = backbone.run(state, 0, at)
            one = backbone.run(before, at, at + 1)["hidden"]
            two = backbone.run(before, at, at + 1)["hidden"]
            assert not torch.equal(one, two), stage
        still = build(family, dropout=0.0).train()
        assert torch.equal(still(state)["hidden"], still(state)["hidden"])


@families
def test_keep_drops_the_last_layers(family: str) -> None:
    backbone = build(family)
    state = sample_tokens(backbone)
    layers = {"layer_types": CONFIGS[family].get("layer_types", [])[:2]}
    backbone.keep(3)
    expected = ("embeddings", "layer0", "layer1")
    trailing = ("norm",) if family == "modernbert" else ()
    assert backbone.stage_names == expected + trailing
    depth = "n_layers" if family == "distilbert" else "num_hidden_layers"
    changes = {depth: 2, **(layers if family == "modernbert" else {})}
    model = upstream(backbone, **changes)
    with torch.no_grad():
        ours = backbone(state)["hidden"]
    theirs = upstream_hidden(model, state)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
    reference = reference_encoder(backbone, state)["hidden"]
    torch.testing.assert_close(ours, reference, atol=1e-6, rtol=1e-5)


@families
def test_bf16_autocast_is_close_and_every_cut_is_exact(family: str) -> None:
    backbone = build(family)
    state = sample_tokens(backbone)
    mask = state["attention_mask"].bool()
    with torch.no_grad():
        exact = backbone(state)["hidden"]
        with torch.autocast("cpu", torch.bfloat16):
            whole = backbone(state)["hidden"]
            for cut in range(1, len(backbone.stages)):
                half = backbone.run(state, 0, cut)
                assert torch.equal(backbone.run(half, cut)["hidden"], whole)
    error = (whole.float() - exact)[mask].abs().mean() / exact[mask].abs().mean()
    assert 0 < error < 0.05


@families
def test_settings_survive_a_run_folder(family: str, tmp_path: Path) -> None:
    backbone = build(family, dropout=0.3)
    (tmp_path / "config.json").write_text(json.dumps(backbone.config))
    again = build_encoder(EncoderSettings(name="nlp/encoder"), tmp_path, {}).eval()
    again.load_state_dict(backbone.state_dict())
    state = sample_tokens(backbone)
    assert again.config == backbone.config
    with torch.no_grad():
        assert torch.equal(again(state)["hidden"], backbone(state)["hidden"])


def test_token_types_are_read_where_the_model_has_them() -> None:
    backbone = build("bert")
    state = sample_tokens(backbone)
    without = {key: v for key, v in state.items() if key != "token_type_ids"}
    zeros = {**state, "token_type_ids": torch.zeros_like(state["input_ids"])}
    with torch.no_grad():
        typed = backbone(state)["hidden"]
        assert not torch.equal(typed, backbone(zeros)["hidden"])
        assert torch.equal(backbone(without)["hidden"], backbone(zeros)["hidden"])
        roberta = build("roberta")
        a, b = roberta(state)["hidden"], roberta(without)["hidden"]
    assert torch.equal(a, b)


def test_local_layers_see_their_window_only() -> None:
    """A token beyond the window changes a global layer's result, not a local one's."""
    backbone = build("modernbert")
    hidden = torch.randn(1, 12, 32)
    far = hidden.clone()
    far[0, 11] += 1.0
    mask = torch.ones(1, 12, dtype=torch.long)
    changed = {}
    with torch.no_grad():
        for stage in ("layer0", "layer1"):
            run = backbone.stages[stage]
            one = run({"hidden": hidden, "attention_mask": mask})["hidden"]
            two = run({"hidden": far, "attention_mask": mask})["hidden"]
            changed[stage] = (one != two).any(-1)[0].tolist()
    assert changed["layer0"] == [True] * 12
    # local_attention is the whole window: 2 tokens on each side.
    assert changed["layer1"] == [False] * 9 + [True] * 3


def test_configuration_of_a_folder_and_its_tokenizer(tmp_path: Path) -> None:
    config = {**CONFIGS["roberta"], "torch_dtype": "float16", "architectures": ["X"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    for name in ("vocab.json", "merges.txt", "model.safetensors", "notes.txt"):
        (tmp_path / name).write_text("")
    settings = EncoderSettings(
        name="nlp/encoder", config={"hidden_act": "relu"}, dropout=0.25
    )
    backbone = build_encoder(settings, tmp_path, {})
    assert {p.dtype for p in backbone.parameters()} == {torch.float32}
    assert backbone.config is not None
    assert backbone.config["hidden_act"] == "relu"
    assert backbone.config["hidden_dropout_prob"] == 0.25
    assert backbone.config["attention_probs_dropout_prob"] == 0.25
    assert sorted(f.name for f in backbone.files) == ["merges.txt", "vocab.json"]
    assert backbone.preprocessing == {
        "tokenizer": str(tmp_path),
        "max_positions": 38,
        "pad_token_id": 1,
        "vocab_size": CONFIGS["roberta"]["vocab_size"],
    }
    assert backbone.features["hidden"].channels == 32


def test_longest_input_fits_max_positions() -> None:
    for family in CONFIGS:
        backbone = build(family)
        length = backbone.preprocessing["max_positions"]
        ids = torch.full((1, length), 7)
        state = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        with torch.no_grad():
            assert backbone(state)["hidden"].shape == (1, length, 32)
    assert build("bert").preprocessing["max_positions"] == 40


def test_bare_tokenizer_is_not_claimed(tmp_path: Path) -> None:
    assert build("bert").preprocessing["tokenizer"] == ""
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS["bert"]))
    backbone = build_encoder(EncoderSettings(name="nlp/encoder"), tmp_path, {})
    assert backbone.preprocessing["tokenizer"] == ""


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({}, "no model_type"),
        ({"model_type": "gpt2"}, "'gpt2' is no encoder"),
        ({"model_type": "robrta"}, "did you mean 'roberta'?"),
        ({"model_type": "bert", "hiden_size": 32}, "did you mean 'hidden_size'?"),
        ({"model_type": "bert", "hidden_size": 30}, "refuses"),
        ({"model_type": "bert", "hidden_size": "wide"}, "refuses"),
        ({"model_type": "bert", "is_decoder": True}, "is a decoder"),
    ],
)
def test_configurations_that_cannot_work(config: dict[str, Any], text: str) -> None:
    settings = EncoderSettings(name="nlp/encoder", config=config)
    with pytest.raises(UserError, match=text.replace("?", r"\?")):
        build_encoder(settings, None, {})


def test_all_unknown_keys_are_named_together() -> None:
    config = {"model_type": "bert", "hiden_size": 32, "layres": 2}
    with pytest.raises(UserError) as caught:
        build_encoder(EncoderSettings(name="nlp/encoder", config=config), None, {})
    assert [f.where for f in caught.value.faults] == [
        "backbone.config.hiden_size",
        "backbone.config.layres",
    ]


def test_folders_that_cannot_work(tmp_path: Path) -> None:
    settings = EncoderSettings(name="nlp/encoder")
    with pytest.raises(UserError, match=r"no config\.json") as caught:
        build_encoder(settings, tmp_path, {})
    assert str(tmp_path) in str(caught.value)
    (tmp_path / "config.json").write_text('{"model_type": "bert"')
    with pytest.raises(UserError, match="no JSON"):
        build_encoder(settings, tmp_path, {})
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(UserError, match="no configuration"):
        build_encoder(settings, tmp_path, {})


def test_names_of_hub_files_are_covered() -> None:
    """Stripped, renamed and ignored, a pretraining model's names are our names."""
    from fnmatch import fnmatch

    from transformers import (
        BertForPreTraining,
        DistilBertForMaskedLM,
        ElectraForPreTraining,
        ModernBertForMaskedLM,
        RobertaForMaskedLM,
    )

    models = {
        "bert": BertForPreTraining,
        "distilbert": DistilBertForMaskedLM,
        "electra-projected": ElectraForPreTraining,
        "modernbert": ModernBertForMaskedLM,
        "roberta": RobertaForMaskedLM,
    }
    for family, model in models.items():
        backbone = build(family)
        (wrapper,) = backbone.wrappers
        assert backbone.config is not None
        whole = model(AutoConfig.for_model(**backbone.config))
        names = {name.removeprefix(wrapper) for name in whole.state_dict()}
        left = {n for n in names if not any(fnmatch(n, p) for p in backbone.ignored)}
        assert left == set(backbone.upstream_state_dict()), family


def test_old_normalisation_names_are_renamed() -> None:
    backbone = build("bert")
    names = {"embeddings.LayerNorm.gamma", "encoder.layer.0.output.LayerNorm.beta"}
    for old, new in backbone.renames:
        names = {n.removesuffix(old) + new if n.endswith(old) else n for n in names}
    assert names == {
        "embeddings.LayerNorm.weight",
        "encoder.layer.0.output.LayerNorm.bias",
    }
    assert names <= set(backbone.upstream_state_dict())


@pytest.mark.parametrize("spec", register_backbones(), ids=lambda spec: spec.name)
def test_specs_say_what_their_tiny_variants_are(spec: Any) -> None:
    settings = resolve(spec.settings)(name=spec.name, **spec.tiny)
    backbone = resolve(spec.factory)(settings, None, {}).eval()
    state = resolve(spec.sample)(backbone)
    assert set(spec.inputs) <= set(state)
    if spec.stages:
        assert backbone.stage_names == spec.stages
    (feature,) = spec.features
    built = backbone.features[feature.name]
    with torch.no_grad():
        ours = backbone(state)[feature.name]
    assert ours.shape[-1] == built.channels
    theirs = resolve(spec.reference)(backbone, state)[feature.name]
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


def test_minilm_is_declared_as_it_is() -> None:
    """The sizes that its published config.json states."""
    sizes = {"num_hidden_layers": 6, "hidden_size": 384, "num_attention_heads": 12}
    config = {**CONFIGS["bert"], **sizes, "intermediate_size": 1536}
    settings = EncoderSettings(name="nlp/encoder", config=config)
    backbone = build_encoder(settings, None, {})
    (spec,) = (s for s in register_backbones() if s.name == "nlp/minilm-l6")
    assert backbone.stage_names == spec.stages
    assert backbone.features["hidden"].channels == spec.features[0].channels


def test_stages_share_no_modules() -> None:
    """Each can be frozen, moved or dropped by itself; rotary buffers are not saved."""
    backbone = build("modernbert")
    modules = [m for stage in backbone.stages.values() for m in stage.modules()]
    assert len(modules) == len(set(modules))
    assert not any("rotary" in key for key in backbone.state_dict())
