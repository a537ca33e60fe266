"""Whisper from CTranslate2's format: read byte by byte, the same model afterwards."""

from __future__ import annotations

import json
import random
import re
import struct
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)
from transformers.models.whisper.modeling_whisper import sinusoids

from headstart import assets
from headstart.assets import load_manifest
from headstart.errors import UserError
from headstart.plugins import PluginInfo, Registry
from headstart.weights.sources import SourceContext
from headstart.weights.transfer import load_weights
from headstart_speech.backbones import sample_audio
from headstart_speech.ctranslate2 import resolve_ctranslate2
from headstart_speech.model_bin import read_model_bin
from headstart_speech.settings import WhisperSettings
from headstart_speech.whisper import build_whisper, reference_whisper

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

SIZES = {
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 20,
    "num_mel_bins": 80,
    "max_source_positions": 50,
    "max_target_positions": 12,
    "vocab_size": 30,
}
TOKENS = {"<|endoftext|>": 27, "<|startoftranscript|>": 28}
SPECIAL = {
    "bos_token_id": 27,
    "eos_token_id": 27,
    "pad_token_id": 27,
    "decoder_start_token_id": 28,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
}
Variables = dict[str, tuple[int, np.ndarray]]


def tiny(tied: bool = True, seed: int = 0) -> WhisperForConditionalGeneration:
    torch.manual_seed(seed)
    config = WhisperConfig(**SIZES, **SPECIAL, tie_word_embeddings=tied)
    model = WhisperForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # As 16 bits hold it; normalisations start as ones and zeros.
            parameter.add_(0.1 * torch.randn(parameter.shape)).copy_(parameter.half())
    return model


def variables(model: WhisperForConditionalGeneration) -> dict[str, np.ndarray]:
    """The model's tensors as CTranslate2's converter names and joins them."""
    theirs = {name: value.numpy() for name, value in model.state_dict().items()}
    found: dict[str, np.ndarray] = {}

    def linear(name: str, *sources: str) -> None:
        weights = [theirs[f"{source}.weight"] for source in sources]
        # Keys have no bias in Whisper.
        biases = [
            theirs.get(f"{source}.bias", np.zeros(len(weight), np.float32))
            for source, weight in zip(sources, weights, strict=True)
        ]
        found[f"{name}/weight"] = np.concatenate(weights)
        found[f"{name}/bias"] = np.concatenate(biases)

    def norm(name: str, source: str) -> None:
        found[f"{name}/gamma"] = theirs[f"{source}.weight"]
        found[f"{name}/beta"] = theirs[f"{source}.bias"]

    linear("encoder/conv1", "model.encoder.conv1")
    linear("encoder/conv2", "model.encoder.conv2")
    for side in ("encoder", "decoder"):
        positions = theirs[f"model.{side}.embed_positions.weight"]
        found[f"{side}/position_encodings/encodings"] = positions
        norm(f"{side}/layer_norm", f"model.{side}.layer_norm")
        for i in range(SIZES[f"{side}_layers"]):
            a, b = f"{side}/layer_{i}", f"model.{side}.layers.{i}"
            linear(
                f"{a}/self_attention/linear_0",
                f"{b}.self_attn.q_proj",
                f"{b}.self_attn.k_proj",
                f"{b}.self_attn.v_proj",
            )
            linear(f"{a}/self_attention/linear_1", f"{b}.self_attn.out_proj")
            norm(f"{a}/self_attention/layer_norm", f"{b}.self_attn_layer_norm")
            if side == "decoder":
                cross = f"{b}.encoder_attn"
                linear(f"{a}/attention/linear_0", f"{cross}.q_proj")
                linear(f"{a}/attention/linear_1", f"{cross}.k_proj", f"{cross}.v_proj")
                linear(f"{a}/attention/linear_2", f"{cross}.out_proj")
                norm(f"{a}/attention/layer_norm", f"{b}.encoder_attn_layer_norm")
            linear(f"{a}/ffn/linear_0", f"{b}.fc1")
            linear(f"{a}/ffn/linear_1", f"{b}.fc2")
            norm(f"{a}/ffn/layer_norm", f"{b}.final_layer_norm")
    found["decoder/embeddings/weight"] = theirs["model.decoder.embed_tokens.weight"]
    if not model.config.tie_word_embeddings:
        found["decoder/projection/weight"] = theirs["proj_out.weight"]
    return found


def stored(arrays: Mapping[str, np.ndarray]) -> Variables:
    """In 16 bits, with the settings that go along."""
    settings = {"activation": 3, "pre_norm": 1, "scale_embeddings": 0, "alibi": 0}
    found: Variables = {
        f"decoder/{name}": (1, np.array(value, "<i1"))
        for name, value in settings.items()
    }
    found["decoder/alignment_layer"] = (2, np.array(-1, "<i2"))
    for side in ("encoder", "decoder"):
        heads = SIZES[f"{side}_attention_heads"]
        found[f"{side}/num_heads"] = (2, np.array(heads, "<i2"))
    return found | {name: (4, a.astype("<f2")) for name, a in arrays.items()}


TIED = {"decoder/projection/weight": "decoder/embeddings/weight"}


def text(value: str) -> bytes:
    return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"


def write(
    path: Path,
    contents: Variables,
    aliases: Mapping[str, str] = TIED,
    version: int = 6,
    spec: str = "WhisperSpec",
) -> Path:
    out = struct.pack("<I", version) + text(spec)
    out += struct.pack("<II", 3, len(contents))
    for name, (kind, array) in contents.items():
        out += text(name) + struct.pack("<B", array.ndim)
        out += struct.pack(f"<{array.ndim}I", *array.shape)
        out += struct.pack("<BI", kind, array.nbytes) + array.tobytes()
    out += struct.pack("<I", len(aliases))
    out += b"".join(text(a) + text(b) for a, b in aliases.items())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(out)
    return path


def write_tokenizer(path: Path) -> None:
    added = [{"id": number, "content": token} for token, number in TOKENS.items()]
    path.write_text(json.dumps({"version": "1.0", "added_tokens": added}))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def context() -> SourceContext:
    return SourceContext(Registry())


@pytest.fixture(scope="module")
def model() -> WhisperForConditionalGeneration:
    return tiny()


@pytest.fixture
def file(tmp_path: Path, model: WhisperForConditionalGeneration) -> Path:
    return write(tmp_path / "whisper" / "model.bin", stored(variables(model)))


def test_transformers_reads_the_folder_as_the_model_it_was(file, model, cache, context):
    write_tokenizer(file.with_name("tokenizer.json"))
    weights = resolve_ctranslate2(str(file), context)
    assert weights.reference == f"ctranslate2:{file}"
    theirs, report = WhisperForConditionalGeneration.from_pretrained(
        weights.folder, output_loading_info=True
    )
    assert not any(report.values())
    config = theirs.config.to_dict()
    expected = SIZES | {key: SPECIAL[key] for key in list(SPECIAL)[:4]}
    assert {key: config[key] for key in expected} == expected
    mel = torch.randn(2, 80, 100, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[28, 3, 5], [28, 1, 0]])
    with torch.no_grad():
        ours = theirs.eval()(input_features=mel, decoder_input_ids=ids).logits
        original = model(input_features=mel, decoder_input_ids=ids).logits
    torch.testing.assert_close(ours, original, rtol=0, atol=0)
    assert (weights.folder / "tokenizer.json").read_bytes() == (
        file.with_name("tokenizer.json").read_bytes()
    )
    extractor = WhisperFeatureExtractor.from_pretrained(weights.folder)
    # 50 positions of 20 ms.
    assert (extractor.feature_size, extractor.n_samples) == (80, 16_000)


def test_the_backbone_is_the_files_encoder(file, model, cache, context):
    weights = resolve_ctranslate2(str(file.parent), context)
    backbone = build_whisper(WhisperSettings(name="x"), weights.folder, {}).eval()
    report = load_weights(backbone, weights)
    assert not report.reinitialised
    assert all(name.startswith("model.decoder.") for name, _ in report.skipped)
    theirs = model.model.encoder.state_dict()
    ours = backbone.upstream_state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    state = sample_audio(backbone)
    torch.testing.assert_close(
        backbone(state)["hidden"],
        reference_whisper(backbone, state)["hidden"],
        atol=1e-5,
        rtol=1e-4,
    )


def as_float32(name: str, array: np.ndarray) -> Variables:
    return {name: (0, array.astype("<f4"))}


def as_bfloat16(name: str, array: np.ndarray) -> Variables:
    return {name: (5, (array.astype("<f4").view("<u4") >> 16).astype("<u2"))}


def as_int8(name: str, array: np.ndarray) -> Variables:
    scale = 127 / np.abs(array).max(axis=1)
    rounded = np.rint(array * scale[:, None]).astype("<i1")
    return {name: (1, rounded), f"{name}_scale": (0, scale.astype("<f4"))}


def as_int16(name: str, array: np.ndarray) -> Variables:
    scale = np.array(32767 / np.abs(array).max(), "<f4")
    rounded = np.rint(array * scale).astype("<i2")
    return {name: (2, rounded), f"{name}_scale": (0, scale)}


@pytest.mark.parametrize(
    ("pack", "error"),
    [
        (as_float32, 0.0),
        # Eight bits of mantissa, cut; half a step of 127, and of 32,767.
        (as_bfloat16, 2**-7),
        (as_int8, 0.501 / 127),
        (as_int16, 0.501 / 32767),
    ],
)
def test_every_type_of_matrix_is_read(
    tmp_path, model, pack: Callable[..., Variables], error: float
):
    arrays = variables(model)
    contents = stored(arrays)
    matrices = [n for n in arrays if n.endswith("/weight") and arrays[n].ndim == 2]
    for name in matrices:
        contents = {k: v for k, v in contents.items() if k != name}
        contents |= pack(name, arrays[name])
    found = read_model_bin(write(tmp_path / "model.bin", contents))
    assert (found.spec, found.revision) == ("WhisperSpec", 3)
    for name, array in arrays.items():
        values = found.values(name)
        assert values.dtype == np.float32
        allowed = error * np.abs(array).max() if name in matrices else 0.0
        np.testing.assert_allclose(values, array, rtol=0, atol=allowed)
    np.testing.assert_array_equal(
        found.values("decoder/projection/weight"),
        found.values("decoder/embeddings/weight"),
    )


def test_quantised_models_convert(tmp_path, model, cache, context):
    contents = stored(variables(model))
    name = "encoder/layer_0/ffn/linear_0/weight"
    packed = as_int8(name, contents.pop(name)[1].astype(np.float32))
    path = write(tmp_path / "model.bin", contents | packed)
    tensors = resolve_ctranslate2(str(path), context).tensors()
    rows, scale = packed[name][1], packed[f"{name}_scale"][1]
    np.testing.assert_allclose(
        tensors["model.encoder.layers.0.fc1.weight"].numpy(),
        [row / s for row, s in zip(rows.astype(np.float32), scale, strict=True)],
        rtol=1e-6,
    )


def test_an_output_matrix_of_its_own_is_kept(tmp_path, cache, context):
    untied = tiny(tied=False)
    path = write(tmp_path / "model.bin", stored(variables(untied)), {})
    weights = resolve_ctranslate2(str(path), context)
    assert torch.equal(weights.tensors()["proj_out.weight"], untied.proj_out.weight)
    config = json.loads((weights.folder / "config.json").read_text())
    assert config["tie_word_embeddings"] is False
    # Which number ends a text, nobody said.
    assert config["eos_token_id"] is None


def test_a_file_is_converted_once(file, cache, context):
    told: list[str] = []
    context = SourceContext(
        context.registry, lambda done, total, label: told.append(label)
    )
    weights = resolve_ctranslate2(str(file), context)
    [tensors] = weights.files
    before = tensors.stat().st_mtime_ns
    assert resolve_ctranslate2(str(file), context).files == weights.files
    assert tensors.stat().st_mtime_ns == before
    assert told == ["converting model.bin"]
    # Another model is another folder, and so is a tokenizer that came later.
    write(file, stored(variables(tiny(seed=1))))
    other = resolve_ctranslate2(str(file), context)
    assert other.files != weights.files
    write_tokenizer(file.with_name("tokenizer.json"))
    assert resolve_ctranslate2(str(file), context).files != other.files


def test_a_file_cut_anywhere_is_refused(tmp_path, file):
    whole = file.read_bytes()
    path = tmp_path / "cut.bin"
    generator = random.Random(0)
    cuts = [*range(120), len(whole) - 1, *generator.sample(range(len(whole)), 60)]
    for cut in cuts:
        path.write_bytes(whole[:cut])
        with pytest.raises(UserError, match=r"truncated or damaged") as caught:
            read_model_bin(path)
        assert caught.value.faults[0].where == str(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(UserError, match="1 bytes follow the last alias"):
        read_model_bin(path)


def test_a_file_changed_anywhere_never_ends_in_another_error(tmp_path, file):
    whole = file.read_bytes()
    path = tmp_path / "changed.bin"
    generator = random.Random(1)
    # Where names, shapes and sizes are; of the values few are worth a look.
    spots = [m.start() for m in re.finditer(b"encoder|decoder", whole)]
    refused = 0
    for _ in range(400):
        changed = bytearray(whole)
        at = generator.choice(spots) + generator.randrange(-4, 60)
        changed[min(at, len(whole) - 1)] = generator.randrange(256)
        path.write_bytes(changed)
        try:
            found = read_model_bin(path)
            for name in found.variables:
                assert found.variables[name].size
        except UserError:
            refused += 1
    assert refused > 100


def test_sizes_that_overflow_are_no_sizes(tmp_path):
    # 2**94 numbers of four bytes are 0 bytes in 64 bits.
    head = struct.pack("<I", 6) + text("WhisperSpec") + struct.pack("<II", 3, 1)
    overflowing = struct.pack("<B4I", 4, 2**31, 2**31, 2**31, 2)
    many = struct.pack("<B", 255) + struct.pack("<255I", *[1] * 255)
    for shape, size, why in [
        (overflowing, 0, "0 bytes, 79,228,162,514,264,337,593,543,950,336 expected"),
        (struct.pack("<BI", 1, 0), 0, "is empty"),
        (many, 4, "255 dimensions"),
    ]:
        path = tmp_path / "model.bin"
        path.write_bytes(head + text("x") + shape + struct.pack("<BI", 0, size))
        with pytest.raises(UserError, match=why):
            read_model_bin(path)


@pytest.mark.parametrize(
    ("start", "why"),
    [
        (b"PK\x03\x04", "version 67324752"),
        (struct.pack("<I", 5), "version 5, 6 is read"),
    ],
)
def test_other_formats_are_refused(tmp_path, file, start, why):
    path = tmp_path / "model.bin"
    path.write_bytes(start + file.read_bytes()[4:])
    with pytest.raises(UserError, match=why):
        read_model_bin(path)


def without(name: str) -> Callable[[Variables], Variables]:
    return lambda contents: {k: v for k, v in contents.items() if k != name}


def instead(name: str, kind: int, array: Any) -> Callable[[Variables], Variables]:
    return lambda contents: contents | {name: (kind, array)}


FC1 = "encoder/layer_1/ffn/linear_0"
FUSED = "encoder/layer_0/self_attention/linear_0"


@pytest.mark.parametrize(
    ("change", "texts"),
    [
        (without(f"{FC1}/bias"), [f"has no '{FC1}/bias'"]),
        (
            instead("encoder/layer_1/gate", 4, np.ones(3, "<f2")),
            ["has 'encoder/layer_1/gate', which Whisper has not"],
        ),
        # A scalar where a tensor must be is no tensor.
        (instead(f"{FC1}/bias", 4, np.array(1, "<f2")), [f"has no '{FC1}/bias'"]),
        (
            instead(f"{FC1}/bias", 4, np.ones(23, "<f2")),
            ["'model.encoder.layers.1.fc1.bias' has the shape (23,), (24,) expected"],
        ),
        (
            instead(f"{FUSED}/bias", 4, np.ones(48, "<f2")),
            ["a bias of keys"],
        ),
        (instead(f"{FUSED}/bias", 4, np.zeros(47, "<f2")), ["cut in 3 parts"]),
        (instead("decoder/activation", 1, np.array(0, "<i1")), ["activation = 0"]),
        (without("encoder/num_heads"), ["number of attention heads"]),
        (
            instead("encoder/num_heads", 2, np.array(5, "<i2")),
            ["no Whisper has these sizes"],
        ),
        (
            instead("encoder/num_heads", 2, np.array(0, "<i2")),
            ["no Whisper has these sizes"],
        ),
        (
            instead(f"{FC1}/weight", 1, np.ones((24, 16), "<i1")),
            [f"'{FC1}/weight' is int8 of shape (24, 16) and has no scale"],
        ),
        (
            lambda contents: {
                **without(f"{FC1}/bias")(contents),
                "decoder/pre_norm": (1, np.array(0, "<i1")),
            },
            [f"has no '{FC1}/bias'", "decoder/pre_norm = 0, not 1"],
        ),
    ],
)  # fmt: skip
def test_another_models_tensors_are_refused_and_leave_nothing(
    tmp_path, model, cache, context, change, texts
):
    path = write(tmp_path / "model.bin", change(stored(variables(model))))
    with pytest.raises(UserError) as caught:
        resolve_ctranslate2(str(path), context)
    assert all(text in str(caught.value) for text in texts)
    assert all(fault.where == str(path) for fault in caught.value.faults)
    assert list((cache / "converted").iterdir()) == []


def test_another_specification_is_refused(tmp_path, model, cache, context):
    contents = stored(variables(model))
    path = write(tmp_path / "model.bin", contents, spec="Wav2Vec2Spec")
    with pytest.raises(UserError, match="a CTranslate2 model of 'Wav2Vec2Spec'"):
        resolve_ctranslate2(str(path), context)


def test_names_that_contradict_each_other_are_refused(tmp_path, model, file):
    twice = file.read_bytes().replace(b"encoder/conv2/bias", b"encoder/conv1/bias")
    file.write_bytes(twice)
    with pytest.raises(UserError, match="'encoder/conv1/bias' is there twice"):
        read_model_bin(file)
    contents = stored(variables(model))
    for aliases in ({"a": "nothing"}, {f"{FC1}/bias": "encoder/conv1/bias"}):
        path = write(tmp_path / "model.bin", contents, aliases)
        with pytest.raises(UserError, match="contradicts other names"):
            read_model_bin(path)


def test_a_broken_tokenizer_is_said(file, cache, context):
    file.with_name("tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="this is no tokenizer") as caught:
        resolve_ctranslate2(str(file), context)
    assert "remove it" in caught.value.faults[0].fix


def test_what_is_not_there_is_said(file, context):
    with pytest.raises(UserError, match=r"did you mean 'model\.bin'"):
        resolve_ctranslate2(str(file.with_name("modell.bin")), context)
    with pytest.raises(UserError, match="this is a folder"):
        resolve_ctranslate2(str(file.parent.parent), context)


def test_the_file_of_an_asset(file, cache, context, monkeypatch):
    context.registry.plugins.append(
        PluginInfo("speech", "", "0", "loaded", package="headstart_speech")
    )
    monkeypatch.setattr(assets, "fetch", lambda asset, **_: file.parent)
    weights = resolve_ctranslate2("asset:whisper-tiny-en", context)
    assert weights.licence == "MIT"
    assert weights.files == resolve_ctranslate2(str(file), context).files
    with pytest.raises(UserError, match=r"has 0 \.bin files"):
        resolve_ctranslate2("asset:prompts-fr", context)


def test_the_manifest_names_what_readers_look_for():
    manifest = load_manifest("headstart_speech")
    prompts = {name: a for name, a in manifest.items() if name != "whisper-tiny-en"}
    assert set(prompts) == {f"prompts-{x}" for x in ("en", "fr", "es", "it", "ru")}
    for name, asset in prompts.items():
        assert asset.read["format"] == "asterisk"
        assert asset.read["language"] == name.removeprefix("prompts-")
        paths = {found.path for found in asset.files}
        assert {asset.read["audio"], asset.read["transcripts"]} == paths


def test_a_home_that_does_not_exist_is_told(context):
    with pytest.raises(UserError, match="there is no such file"):
        resolve_ctranslate2("~nobody-1/model", context)


# The real asset


def test_whisper_tiny_en_is_whisper(context):
    asset = load_manifest("headstart_speech")["whisper-tiny-en"]
    if not assets.is_present(asset):
        pytest.skip("whisper-tiny-en is not in the cache: headstart assets fetches it")
    weights = resolve_ctranslate2(str(assets.asset_folder(asset)), context)
    config = json.loads((weights.folder / "config.json").read_text())
    # OpenAI's table of sizes, and the vocabulary of the English models.
    assert (config["d_model"], config["encoder_layers"]) == (384, 4)
    assert (config["encoder_attention_heads"], config["vocab_size"]) == (6, 51864)
    assert config["decoder_start_token_id"] == config["eos_token_id"] + 1 == 50257
    backbone = build_whisper(WhisperSettings(name="x"), weights.folder, {}).eval()
    report = load_weights(backbone, weights)
    assert not report.reinitialised
    assert sum(value.numel() for value in backbone.state_dict().values()) == 8_208_384
    positions = load_file(weights.files[0])["model.encoder.embed_positions.weight"]
    torch.testing.assert_close(positions, sinusoids(1500, 384), atol=5e-4, rtol=0)
    state = sample_audio(backbone)
    torch.testing.assert_close(
        backbone(state)["hidden"],
        reference_whisper(backbone, state)["hidden"],
        atol=1e-3,
        rtol=1e-3,
    )
