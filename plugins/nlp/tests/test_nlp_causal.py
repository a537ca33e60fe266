"""Every family of causal language models against transformers' own, packed and cut."""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load, save, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from headstart.adapters import attach
from headstart.errors import UserError
from headstart.model import Model
from headstart.settings import LoraSettings
from headstart.testing.parts import no_head
from headstart.weights.sources import Weights
from headstart.weights.transfer import load_weights
from headstart_nlp.backbones import build_encoder
from headstart_nlp.causal import (
    FAMILIES,
    CausalLM,
    build_causal,
    document_mask,
    reference_causal,
    sample_language,
)
from headstart_nlp.configs import CAUSAL_TYPES
from headstart_nlp.settings import CausalSettings, EncoderSettings

if TYPE_CHECKING:
    from pathlib import Path

    from headstart.stages import State

LLAMA = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "gpt2": {
        "model_type": "gpt2",
        "vocab_size": 64,
        "n_embd": 32,
        "n_layer": 3,
        "n_head": 4,
        "n_positions": 40,
        "bos_token_id": 2,
        "eos_token_id": 2,
    },
    "gpt_neox": {
        "model_type": "gpt_neox",
        **{k: v for k, v in LLAMA.items() if k != "num_key_value_heads"},
    },
    "llama": {"model_type": "llama", **LLAMA},
    "llama-tied": {"model_type": "llama", **LLAMA, "tie_word_embeddings": True},
    "mistral": {"model_type": "mistral", **LLAMA, "sliding_window": 3},
    "qwen2": {
        "model_type": "qwen2",
        **LLAMA,
        "use_sliding_window": True,
        "sliding_window": 3,
        "max_window_layers": 1,
    },
    "qwen3": {"model_type": "qwen3", **LLAMA, "head_dim": 8},
    "smollm3": {"model_type": "smollm3", **LLAMA, "no_rope_layer_interval": 2},
}
TIED = ("gpt2", "llama-tied", "smollm3")
families = pytest.mark.parametrize("family", CONFIGS)


def build(family: str, **settings: Any) -> CausalLM:
    torch.manual_seed(0)
    given = CausalSettings(name="nlp/causal", config=CONFIGS[family], **settings)
    backbone = build_causal(given, None, {})
    # Fresh normalisations and biases are all 1 and 0, and would hide a wrong place.
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return backbone.eval()


def upstream(backbone: CausalLM, **changes: Any) -> Any:
    """transformers' model as a user would make it, with the same parameters."""
    config = AutoConfig.for_model(**{**(backbone.config or {}), **changes})
    model = AutoModelForCausalLM.from_config(config)
    model.load_state_dict(backbone.upstream_state_dict(), strict=True)
    return model.eval()


def documents(state: State) -> list[tuple[int, torch.Tensor]]:
    """Row and places of each document."""
    return [
        (row, segments == segment)
        for row, segments in enumerate(state["segments"])
        for segment in range(1, int(segments.max()) + 1)
    ]


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=1e-5)


def write(tensors: dict[str, torch.Tensor], folder: Path) -> Weights:
    path = folder / "model.safetensors"
    save_file({name: t.clone().contiguous() for name, t in tensors.items()}, path)
    return Weights("file:test", None, (path,))


def test_every_family_is_tried() -> None:
    assert {config["model_type"] for config in CONFIGS.values()} == set(FAMILIES)
    assert sorted(FAMILIES) == sorted(CAUSAL_TYPES)


@pytest.mark.parametrize("kind", FAMILIES)
def test_encoders_say_who_can_cut_it(kind: str) -> None:
    settings = EncoderSettings(name="nlp/encoder", config={"model_type": kind})
    with pytest.raises(UserError, match=r'backbone.name = "nlp/causal" can'):
        build_encoder(settings, None, {})


def test_sample_is_packed_and_padded() -> None:
    state = sample_language(build("llama"))
    assert state["segments"].tolist() == [
        [1, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3],
        [1] * 12,
        [1, 1, 1, 1, 1, 1, 2, 2, 2, 0, 0, 0],
        [1, 2, 2, 3, 3, 3, 3, 0, 0, 0, 0, 0],
    ]
    assert state["positions"][0].tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 0, 1, 2]
    assert {tensor.dtype for tensor in state.values()} == {torch.int64}


@families
def test_packed_documents_equal_transformers_one_by_one(family: str) -> None:
    backbone = build(family)
    state = sample_language(backbone)
    model = upstream(backbone)
    with torch.no_grad():
        ours = backbone(state)["logits"]
        assert ours.shape == (4, 12, 64)
        for row, at in documents(state):
            theirs = model(input_ids=state["input_ids"][row, at][None]).logits[0]
            close(ours[row, at], theirs)
    reference = reference_causal(backbone, state)["logits"]
    close(ours, reference)
    padding = state["segments"] == 0
    assert torch.equal(ours[padding], reference[padding])
    assert not torch.equal(ours, reference)


@families
def test_every_cut_is_exact(family: str) -> None:
    backbone = build(family)
    state = sample_language(backbone)
    with torch.no_grad():
        whole = backbone(state)["logits"]
        for cut in range(len(backbone.stages) + 1):
            # Only tensors survive a cache, and what the first stage consumes does not.
            stored = load(save(dict(backbone.run(state, 0, cut))))
            if cut:
                stored = {k: v for k, v in stored.items() if k not in backbone.consumed}
            assert torch.equal(backbone.run(stored, cut)["logits"], whole), cut
    assert "hidden" not in state


@families
def test_no_document_reads_another(family: str) -> None:
    backbone = build(family)
    state = sample_language(backbone)
    with torch.no_grad():
        one = backbone(state)["logits"]
        for row, at in [*documents(state), (2, state["segments"][2] == 0)]:
            ids = state["input_ids"].clone()
            ids[row, at] = (ids[row, at] + 7) % 64
            two = backbone({**state, "input_ids": ids})["logits"]
            changed = (one != two).any(-1)
            expected = torch.zeros_like(changed)
            expected[row, at] = True
            assert torch.equal(changed, expected)


@families
def test_tokens_read_what_is_before_them_alone(family: str) -> None:
    backbone = build(family)
    state = sample_language(backbone)
    ids = state["input_ids"].clone()
    ids[1, 8] = (ids[1, 8] + 7) % 64
    with torch.no_grad():
        one = backbone(state)["logits"]
        two = backbone({**state, "input_ids": ids})["logits"]
    changed = (one != two).any(-1)
    assert changed[1].tolist() == [False] * 8 + [True] * 4
    assert not changed[[0, 2, 3]].any()


def test_mask_by_hand() -> None:
    segments = torch.tensor([[1, 1, 1, 2, 0]])
    x, _ = True, False
    assert document_mask(segments).int().tolist() == [
        [
            [
                [x, _, _, _, _],
                [x, x, _, _, _],
                [x, x, x, _, _],
                [_, _, _, x, _],
                [_, _, _, _, x],
            ]
        ]
    ]
    assert document_mask(segments, 2)[0, 0, 2].tolist() == [_, x, x, _, _]


def test_windows_are_in_the_layers_that_have_them() -> None:
    def windows(family: str) -> list[int | None]:
        stages: Any = build(family).stages
        return [stages[f"layer{i}"].window for i in range(3)]

    assert windows("mistral") == [3, 3, 3]
    assert windows("qwen2") == [None, 3, 3]
    assert windows("qwen3") == windows("llama") == [None, None, None]


@families
def test_gradient_reaches_every_parameter(family: str) -> None:
    backbone = build(family).train()
    state = sample_language(backbone)
    logits = backbone(state)["logits"][state["segments"] > 0]
    (logits * torch.randn_like(logits)).sum().backward()
    for name, parameter in backbone.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        # A key's bias moves all of a query's scores alike: softmax takes it out.
        if not name.endswith("k_proj.bias"):
            assert parameter.grad.abs().max() > 0, name


@families
def test_dropout_is_on_in_training_and_off_in_evaluation(family: str) -> None:
    backbone = build(family, dropout=0.5)
    state = sample_language(backbone)
    stages = ["layer1"]
    if family in ("gpt2", "gpt_neox"):
        stages.append("embeddings")
    with torch.no_grad():
        assert torch.equal(backbone(state)["logits"], backbone(state)["logits"])
        backbone.train()
        for stage in stages:
            at = backbone.index(stage)
            before = backbone.run(state, 0, at)
            one = backbone.run(before, at, at + 1)["hidden"]
            two = backbone.run(before, at, at + 1)["hidden"]
            assert not torch.equal(one, two), stage
        still = build(family, dropout=0.0).train()
        assert torch.equal(still(state)["logits"], still(state)["logits"])


@families
def test_bf16_autocast_is_close_and_every_cut_is_exact(family: str) -> None:
    backbone = build(family)
    state = sample_language(backbone)
    with torch.no_grad():
        exact = backbone(state)["logits"]
        with torch.autocast("cpu", torch.bfloat16):
            whole = backbone(state)["logits"]
            for cut in range(1, len(backbone.stages)):
                half = backbone.run(state, 0, cut)
                assert torch.equal(backbone.run(half, cut)["logits"], whole)
    error = (whole.float() - exact).abs().mean() / exact.abs().mean()
    assert 0 < error < 0.05


@families
def test_keep_drops_the_last_layers(family: str, tmp_path: Path) -> None:
    whole = build(family)
    backbone = build(family)
    backbone.keep(3)
    expected = ("embeddings", "layer0", "layer1", "norm", "output")
    assert backbone.stage_names == expected
    assert set(backbone.features) == {"logits"}
    state = sample_language(backbone)
    ours = backbone(state)["logits"]
    close(ours, reference_causal(backbone, state)["logits"])
    ids = state["input_ids"][1:2]
    with torch.no_grad():
        close(ours[1:2], backbone.language_model()(ids).logits)
        assert not torch.allclose(ours, whole(state)["logits"], atol=1e-2)
    report = load_weights(backbone, write(whole.upstream_state_dict(), tmp_path))
    assert {why for _, why in report.skipped} == {"stage dropped by backbone.keep"}


@families
def test_settings_survive_a_run_folder(family: str, tmp_path: Path) -> None:
    backbone = build(family, dropout=0.3, untie=True)
    (tmp_path / "config.json").write_text(json.dumps(backbone.config))
    again = build_causal(CausalSettings(name="nlp/causal"), tmp_path, {}).eval()
    again.load_state_dict(backbone.state_dict())
    state = sample_language(backbone)
    assert again.config == backbone.config
    with torch.no_grad():
        assert torch.equal(again(state)["logits"], backbone(state)["logits"])


@pytest.mark.parametrize("family", TIED)
def test_freeze_point_between_tied_stages_is_refused(family: str) -> None:
    backbone = build(family)
    names = backbone.stage_names
    stages: Any = backbone.stages
    assert stages["output"].block.weight is stages["embeddings"].block.weight
    model = Model(backbone, no_head())
    for cut in range(1, len(names)):
        with pytest.raises(UserError, match="share the parameter") as caught:
            model.train_stages(frozenset(names[cut:]))
        assert "untie" in str(caught.value)
    model.train_stages(frozenset(names))
    model.train_stages(frozenset())


@pytest.mark.parametrize("family", TIED)
def test_untied_output_starts_as_a_copy(family: str, tmp_path: Path) -> None:
    tied = build(family)
    tensors = tied.upstream_state_dict()
    del tensors["lm_head.weight"]
    backbone = build(family, untie=True)
    load_weights(backbone, write(tensors, tmp_path))
    stages: Any = backbone.stages
    one, two = stages["output"].block.weight, stages["embeddings"].block.weight
    assert one is not two
    assert torch.equal(one, two)
    model = Model(backbone, no_head()).eval()
    model.train_stages(frozenset(backbone.stage_names[1:]))
    state = sample_language(backbone)
    with torch.no_grad():
        close(backbone(state)["logits"], tied(state)["logits"])
        one.mul_(-1.0)
        close(backbone(state)["logits"], reference_causal(backbone, state)["logits"])


@pytest.mark.parametrize("family", TIED)
def test_tied_output_need_not_be_in_the_weights(family: str, tmp_path: Path) -> None:
    tied = build(family)
    tensors = tied.upstream_state_dict()
    del tensors["lm_head.weight"]
    fresh = build_causal(CausalSettings(name="x", config=CONFIGS[family]), None, {})
    load_weights(fresh.eval(), write(tensors, tmp_path))
    state = sample_language(tied)
    with torch.no_grad():
        assert torch.equal(fresh(state)["logits"], tied(state)["logits"])


def test_names_of_published_gpt2_files(tmp_path: Path) -> None:
    """The hub's files of GPT-2 have bare names and the masks of an old release."""
    backbone = build("gpt2")
    tensors = {
        name.removeprefix("transformer."): value
        for name, value in backbone.upstream_state_dict().items()
        if name != "lm_head.weight"
    }
    assert {"wte.weight", "wpe.weight", "h.0.attn.c_attn.bias"} < set(tensors)
    for i in range(3):
        tensors[f"h.{i}.attn.bias"] = torch.ones(1, 1, 40, 40).tril()
        tensors[f"h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
    fresh = build_causal(CausalSettings(name="x", config=CONFIGS["gpt2"]), None, {})
    report = load_weights(fresh.eval(), write(tensors, tmp_path))
    assert report.loaded == len(tensors) - 6
    assert len(report.skipped) == 6
    state = sample_language(backbone)
    with torch.no_grad():
        assert torch.equal(fresh(state)["logits"], backbone(state)["logits"])


@families
def test_files_without_the_wrapper_load(family: str, tmp_path: Path) -> None:
    backbone = build(family)
    (wrapper,) = backbone.wrappers
    tensors = {
        name.removeprefix(wrapper): value
        for name, value in backbone.upstream_state_dict().items()
    }
    fresh = build_causal(CausalSettings(name="x", config=CONFIGS[family]), None, {})
    load_weights(fresh, write(tensors, tmp_path))
    for name, value in fresh.state_dict().items():
        assert torch.equal(value, backbone.state_dict()[name]), name


def test_names_of_published_pythia_files(tmp_path: Path) -> None:
    backbone = build("gpt_neox")
    tensors = backbone.upstream_state_dict()
    output = next(n for n in tensors if n in ("lm_head.weight", "embed_out.weight"))
    tensors["embed_out.weight"] = tensors.pop(output)
    for i in range(3):
        at = f"gpt_neox.layers.{i}.attention"
        tensors[f"{at}.bias"] = torch.ones(1, 1, 40, 40).tril()
        tensors[f"{at}.masked_bias"] = torch.tensor(-1e9)
        tensors[f"{at}.rotary_emb.inv_freq"] = torch.ones(4)
    fresh = build_causal(CausalSettings(name="x", config=CONFIGS["gpt_neox"]), None, {})
    report = load_weights(fresh, write(tensors, tmp_path))
    assert len(report.skipped) == 9
    for name, value in fresh.state_dict().items():
        assert torch.equal(value, backbone.state_dict()[name]), name


@families
def test_language_model_is_made_of_our_modules(family: str) -> None:
    backbone = build(family)
    model: Any = backbone.language_model()
    assert set(model.parameters()) == set(backbone.parameters())
    held = {tensor.device.type for tensor in (*model.parameters(), *model.buffers())}
    assert held == {"cpu"}
    assert not any(module.training for module in model.modules())
    # It is no part of the backbone.
    assert not any("language_model" in name for name, _ in backbone.named_modules())
    assert all(name.startswith("stages.") for name in backbone.state_dict())


@families
def test_language_model_generates_what_transformers_does(family: str) -> None:
    backbone = build(family)
    prompt = sample_language(backbone)["input_ids"][1:2, :5]
    settings: Any = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None}
    settings["pad_token_id"] = 0
    expected = upstream(backbone).generate(prompt, **settings)
    ours: Any = backbone.language_model()
    assert torch.equal(ours.generate(prompt, **settings), expected)
    assert expected.shape == (1, 17)
    twin: Any = copy.deepcopy(backbone)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(torch.randn_like(parameter))
    assert set(twin.language_model().parameters()) == set(twin.parameters())
    assert torch.equal(twin.language_model().generate(prompt, **settings), expected)


@pytest.mark.parametrize("family", ["gpt2", "llama-tied"])
def test_language_model_has_the_adapters(family: str) -> None:
    backbone = build(family)
    attach(backbone, LoraSettings(rank=2, targets=("all-linear",)))
    state = sample_language(backbone)
    with torch.no_grad():
        plain = backbone(state)["logits"]
        for name, parameter in backbone.named_parameters():
            if "lora_B" in name:
                parameter.add_(torch.randn_like(parameter))
        adapted = backbone(state)["logits"]
        assert not torch.allclose(adapted, plain, atol=1e-2)
        model: Any = backbone.language_model()
        close(adapted[1:2], model(state["input_ids"][1:2]).logits)


def test_what_a_folder_says(tmp_path: Path) -> None:
    config = {**CONFIGS["llama"], "torch_dtype": "float16", "eos_token_id": [2, 3]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2, 3, 4]}')
    for name in ("tokenizer.json", "chat_template.jinja", "notes.txt"):
        (tmp_path / name).write_text("")
    settings = CausalSettings(name="x", config={"hidden_act": "gelu"}, dropout=0.25)
    backbone = build_causal(settings, tmp_path, {})
    assert {p.dtype for p in backbone.parameters()} == {torch.float32}
    assert backbone.config is not None
    assert backbone.config["hidden_act"] == "gelu"
    assert backbone.config["attention_dropout"] == 0.25
    names = {file.name for file in backbone.files}
    assert names == {"tokenizer.json", "chat_template.jinja"}
    assert backbone.preprocessing == {
        "tokenizer": str(tmp_path),
        "max_positions": 40,
        "vocab_size": 64,
        "pad_token_id": 0,
        "eos_token_id": 2,
    }
    # What ends a turn of a chat is known after the run has its own folder, too.
    generation: Any = backbone.language_model().generation_config
    assert generation.eos_token_id == [2, 3, 4]
    assert backbone.features["logits"].channels == 64


def test_gpt2_has_neither_padding_nor_a_folder() -> None:
    assert build("gpt2").preprocessing == {
        "tokenizer": "",
        "max_positions": 40,
        "vocab_size": 64,
        "pad_token_id": None,
        "eos_token_id": 2,
    }


@families
def test_longest_input_fits_max_positions(family: str) -> None:
    backbone = build(family)
    length = backbone.preprocessing["max_positions"]
    state = {
        "input_ids": torch.full((1, length), 7),
        "positions": torch.arange(length)[None],
        "segments": torch.ones(1, length, dtype=torch.long),
    }
    with torch.no_grad():
        assert backbone(state)["logits"].shape == (1, length, 64)


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({}, "no model_type"),
        ({"model_type": "bert"}, r'backbone.name = "nlp/encoder" can'),
        ({"model_type": "lama"}, r"did you mean 'llama'\?"),
        ({"model_type": "llama", "hiden_size": 32}, r"did you mean 'hidden_size'\?"),
        ({"model_type": "llama", "hidden_size": "wide"}, "refuses"),
        ({"model_type": "gpt2", "n_embd": 30}, "refuses"),
    ],
)
def test_configurations_that_cannot_work(config: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError, match=text):
        build_causal(CausalSettings(name="nlp/causal", config=config), None, {})


def test_stages_share_no_modules() -> None:
    """Each can be frozen, moved or dropped by itself; rotary buffers are not saved."""
    for family in ("gpt2", "llama"):
        backbone = build(family)
        modules = [m for stage in backbone.stages.values() for m in stage.modules()]
        assert len(modules) == len(set(modules))
        assert not any("rotary" in key for key in backbone.state_dict())
