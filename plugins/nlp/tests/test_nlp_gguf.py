"""GGUF files as weights: converted once, whole or not at all."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter, dequantize, quantize
from safetensors.torch import load_file
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoModelForCausalLM, AutoTokenizer

from headstart import assets
from headstart.assets import Asset, AssetFile, load_manifest
from headstart.errors import UserError
from headstart.plugins import PluginInfo, Registry
from headstart.weights.sources import SourceContext
from headstart.weights.transfer import load_weights
from headstart_nlp.causal import CausalLM, build_causal, sample_language
from headstart_nlp.gguf import resolve_gguf
from headstart_nlp.settings import CausalSettings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CHAT = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 48,
    "rms_norm_eps": 1e-5,
}
ALPHABET = sorted(ByteLevel.alphabet())
TOKENS = ["<unk>", "<s>", "</s>", *ALPHABET, "ab"]
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def context() -> SourceContext:
    return SourceContext(Registry())


def tied_llama() -> CausalLM:
    torch.manual_seed(0)
    config = {"model_type": "llama", "vocab_size": len(TOKENS), **SIZES}
    config |= {"tie_word_embeddings": True, "eos_token_id": 2, "bos_token_id": 1}
    return build_causal(CausalSettings(name="x", config=config), None, {}).eval()


def gguf_name(name: str) -> str:
    name = name.replace("model.layers.", "blk.")
    for ours, theirs in NAMES.items():
        name = name.replace(ours, theirs)
    return name


def interleaved(matrix: np.ndarray, heads: int) -> np.ndarray:
    """A query's or key's rows as GGUF orders them: rotated pairs side by side."""
    rows = matrix.reshape(heads, 2, -1, matrix.shape[1])
    return np.ascontiguousarray(rows.swapaxes(1, 2).reshape(matrix.shape))


def write_gguf(path: Path, backbone: CausalLM) -> None:
    """The model in a GGUF file, one matrix of it in 4 bits, which it then has too."""
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(48)
    writer.add_block_count(2)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_dimension_count(8)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_merges(["a b"])
    writer.add_token_types([3, 3, 3, *([1] * (len(TOKENS) - 3))])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(CHAT)
    kind = GGMLQuantizationType.Q4_1
    for name, tensor in backbone.upstream_state_dict().items():
        if name == "lm_head.weight":
            continue
        values = tensor.numpy()
        if name == "model.layers.1.mlp.down_proj.weight":
            packed = quantize(values, kind)
            rounded = dequantize(packed, kind)
            assert np.abs(rounded - values).max() > 1e-5
            tensor.copy_(torch.from_numpy(rounded))
            writer.add_tensor(gguf_name(name), packed, raw_dtype=kind)
            continue
        for part, heads in (("q_proj", 4), ("k_proj", 2)):
            if part in name:
                values = interleaved(values, heads)
        writer.add_tensor(gguf_name(name), values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def model(tmp_path: Path) -> tuple[Path, CausalLM]:
    path = tmp_path / "tiny.gguf"
    backbone = tied_llama()
    write_gguf(path, backbone)
    return path, backbone


def test_file_becomes_a_folder_of_transformers(
    model: tuple[Path, CausalLM], context: SourceContext
) -> None:
    path, original = model
    weights = resolve_gguf(str(path), context)
    assert weights.reference == f"gguf:{path}"
    assert weights.folder is not None
    config = json.loads((weights.folder / "config.json").read_text())
    assert config["model_type"] == "llama"
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["dtype"] == "float32"
    assert "quantization_config" not in config
    (tensors,) = weights.files
    # The tied output matrix is written once.
    stored = load_file(tensors)
    assert set(stored) == set(original.upstream_state_dict()) - {"lm_head.weight"}
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32}
    backbone = build_causal(CausalSettings(name="x"), weights.folder, {}).eval()
    report = load_weights(backbone, weights)
    assert not report.skipped and not report.reinitialised
    state = sample_language(backbone)
    with torch.no_grad():
        ours, expected = backbone(state)["logits"], original(state)["logits"]
    torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-5)
    theirs: Any = AutoModelForCausalLM.from_pretrained(weights.folder)
    with torch.no_grad():
        logits = theirs(state["input_ids"][1:2]).logits
    torch.testing.assert_close(ours[1:2], logits, atol=1e-6, rtol=1e-5)


def test_tokenizer_and_template_come_along(
    model: tuple[Path, CausalLM], context: SourceContext
) -> None:
    folder = resolve_gguf(str(model[0]), context).folder
    assert folder is not None
    backbone = build_causal(CausalSettings(name="x"), folder, {})
    kept = {file.name for file in backbone.files}
    assert {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"} <= kept
    assert backbone.preprocessing["eos_token_id"] == 2
    assert backbone.preprocessing["max_positions"] == 48
    tokenizer: Any = AutoTokenizer.from_pretrained(backbone.preprocessing["tokenizer"])
    assert tokenizer.eos_token_id == 2
    ids = tokenizer("cab", add_special_tokens=False)["input_ids"]
    assert [TOKENS[i] for i in ids] == ["c", "ab"]
    said = [{"role": "user", "content": "cab"}]
    assert tokenizer.apply_chat_template(said, tokenize=False) == "cab"


def test_conversion_happens_once(
    model: tuple[Path, CausalLM],
    context: SourceContext,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[str] = []

    def progress(done: int, total: int, label: str) -> None:
        told.append(label)

    context = SourceContext(context.registry, progress)
    first = resolve_gguf(str(model[0]), context)
    (tensors,) = first.files
    before = tensors.stat().st_mtime_ns
    assert resolve_gguf(str(model[0]), context) == first
    assert tensors.stat().st_mtime_ns == before
    assert told == ["converting tiny.gguf"]
    assert [path.name for path in (cache / "converted").iterdir()] == [
        tensors.parent.name
    ]
    # Another release may read the same file in another way.
    monkeypatch.setattr("headstart_nlp.gguf.version", lambda name: "0")
    assert resolve_gguf(str(model[0]), context).folder != first.folder


def test_damaged_conversion_is_made_anew(
    model: tuple[Path, CausalLM], context: SourceContext
) -> None:
    (tensors,) = resolve_gguf(str(model[0]), context).files
    whole = tensors.read_bytes()
    tensors.write_bytes(whole[: len(whole) // 2])
    resolve_gguf(str(model[0]), context)
    assert tensors.read_bytes() == whole


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def cut_in_header(data: bytes) -> bytes:
    return data[:40]


def not_gguf(data: bytes) -> bytes:
    return b"PK\x03\x04" + data[4:]


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (cut, "truncated or damaged"),
        (cut_in_header, "truncated or damaged"),
        (not_gguf, "no GGUF file"),
    ],
)
def test_damaged_files_are_refused(
    model: tuple[Path, CausalLM],
    context: SourceContext,
    cache: Path,
    damage: Callable[[bytes], bytes],
    text: str,
) -> None:
    path = model[0]
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=text) as caught:
        resolve_gguf(str(path), context)
    assert caught.value.faults[0].where == str(path)
    assert not (cache / "converted").exists()


def test_unknown_architecture_leaves_nothing_behind(
    tmp_path: Path, context: SourceContext, cache: Path
) -> None:
    path = tmp_path / "odd.gguf"
    writer = GGUFWriter(path, "perceptron")
    writer.add_tensor("weight", np.zeros((4, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UserError, match="cannot read this GGUF file") as caught:
        resolve_gguf(str(path), context)
    assert "perceptron" in str(caught.value)
    assert list((cache / "converted").iterdir()) == []


def test_names_that_lead_nowhere(
    model: tuple[Path, CausalLM], context: SourceContext
) -> None:
    path = model[0]
    with pytest.raises(UserError, match=r"did you mean 'tiny\.gguf'"):
        resolve_gguf(str(path.with_name("tinny.gguf")), context)
    with pytest.raises(UserError, match="this is a folder") as caught:
        resolve_gguf(str(path.parent), context)
    assert caught.value.faults[0].fix == f"name the file: gguf:{path}"


def test_asset_with_a_gguf_file(
    model: tuple[Path, CausalLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = model[0]
    registry = Registry()
    registry.plugins.append(
        PluginInfo("nlp", "headstart-nlp", "0", "loaded", package="headstart_nlp")
    )
    known = {"tiny": ("tiny.gguf",), "words": ("vocab.txt",)}

    def find(name: str, packages: list[str]) -> Asset:
        assert packages == ["headstart_nlp"]
        files = tuple(
            AssetFile(path=file, sha256="0" * 64, size=1, sources=("deb:nothing#x",))
            for file in known[name]
        )
        return Asset(name, "headstart_nlp", "A model", "Apache-2.0", files)

    monkeypatch.setattr(assets, "find_asset", find)
    monkeypatch.setattr(assets, "fetch", lambda asset, progress: path.parent)
    weights = resolve_gguf("asset:tiny", SourceContext(registry))
    assert weights.licence == "Apache-2.0"
    assert weights.sha256 == resolve_gguf(str(path), SourceContext(registry)).sha256
    with pytest.raises(UserError, match=r"has 0 \.gguf files") as caught:
        resolve_gguf("asset:words", SourceContext(registry))
    assert caught.value.faults[0].fix == 'backbone.weights = "asset:words"'


def test_the_default_model_is_an_asset() -> None:
    asset = load_manifest("headstart_nlp")["smollm2-135m-instruct-q4"]
    (file,) = asset.files
    assert file.path.endswith(".gguf")
    assert asset.licence == "Apache-2.0"
