"""torchaudio's bundles as weights: the same model in torchaudio, transformers, here."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torchaudio import models, pipelines
from torchaudio.models.wav2vec2.utils import import_huggingface_model
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCTC,
    HubertConfig,
    HubertModel,
    Wav2Vec2Config,
    Wav2Vec2ForCTC,
    Wav2Vec2Model,
    WavLMConfig,
    WavLMModel,
)

from headstart.errors import UserError
from headstart.plugins import Registry
from headstart.testing.hub import HubServer
from headstart.weights.sources import SourceContext, resolve_hub
from headstart.weights.transfer import load_weights
from headstart_speech import torchaudio_source
from headstart_speech.backbones import (
    build_hubert,
    build_wav2vec2,
    build_wavlm,
    sample_audio,
)
from headstart_speech.settings import WaveformSettings
from headstart_speech.torchaudio_source import resolve_torchaudio

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from headstart.stages import Backbone
    from headstart.weights.sources import Weights

CONTEXT = SourceContext(Registry())
BUILDS = {"wav2vec2": build_wav2vec2, "hubert": build_hubert, "wavlm": build_wavlm}
KINDS = {
    "wav2vec2": (Wav2Vec2Config, Wav2Vec2Model),
    "hubert": (HubertConfig, HubertModel),
    "wavlm": (WavLMConfig, WavLMModel),
}
# Unlike any default, so that what is left out of a configuration shows.
SIZES = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "conv_dim": [12, 14, 16],
    "conv_kernel": [10, 3, 2],
    "conv_stride": [5, 4, 2],
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
}
BUCKETS = {"num_buckets": 16, "max_bucket_distance": 20}
# What torchaudio calls the same.
PARAMS = {
    "extractor_conv_layer_config": [(12, 10, 5), (14, 3, 4), (16, 2, 2)],
    "encoder_embed_dim": 24,
    "encoder_projection_dropout": 0.03,
    "encoder_pos_conv_kernel": 8,
    "encoder_pos_conv_groups": 4,
    "encoder_num_layers": 2,
    "encoder_num_heads": 3,
    "encoder_attention_dropout": 0.04,
    "encoder_ff_interm_features": 40,
    "encoder_ff_interm_dropout": 0.05,
    "encoder_dropout": 0.06,
    "encoder_layer_drop": 0.07,
    "aux_num_out": None,
}


def original(kind: str, large: bool, **more: Any) -> Any:
    """transformers' model, of the base or of the large design, every tensor random."""
    torch.manual_seed(0)
    config, model = KINDS[kind]
    built = model(
        config(
            **SIZES,
            **(BUCKETS if kind == "wavlm" else {}),
            feat_extract_norm="layer" if large else "group",
            do_stable_layer_norm=large,
            conv_bias=large,
            **more,
        )
    ).eval()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return built


def bundle(kind: str, large: bool, path: str = "tiny.pth", **more: Any) -> Any:
    params = {
        **PARAMS,
        "extractor_mode": "layer_norm" if large else "group_norm",
        "extractor_conv_bias": large,
        "encoder_layer_norm_first": large,
    }
    if kind == "wavlm":
        params |= {"encoder_num_buckets": 16, "encoder_max_distance": 20}
    name = "WavLM" if kind == "wavlm" else "Wav2Vec2"
    made = pipelines.Wav2Vec2Bundle
    if "_labels" in more:
        made = pipelines.Wav2Vec2ASRBundle
        params["aux_num_out"] = len(more["_labels"]) + 1
    return made(path, params, 16_000, large, name, **more)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    for name in ("HF_HUB_CACHE", "HF_TOKEN", "HEADSTART_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "cache"


def loaded(kind: str, weights: Weights) -> Backbone:
    backbone = BUILDS[kind](WaveformSettings(name="x"), weights.folder, {}).eval()
    report = load_weights(backbone, weights)
    # torchaudio's models have none, since they are not masked.
    assert {name for name, _ in report.reinitialised} <= {"masked_spec_embed"}
    return backbone


def old_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """As torch before 2.1 saved weight norms, and as the published files are."""
    start = "encoder.transformer.pos_conv_embed.conv."
    new = {"weight_g": "original0", "weight_v": "original1"}
    renamed = {f"{start}parametrizations.weight.{v}": start + k for k, v in new.items()}
    assert renamed.keys() <= tensors.keys()
    return {renamed.get(name, name): value for name, value in tensors.items()}


@pytest.mark.parametrize("large", [False, True], ids=["base", "large"])
@pytest.mark.parametrize("kind", KINDS)
def test_one_model_by_three_libraries_and_two_loaders(
    kind: str, large: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = original(kind, large)
    theirs = import_huggingface_model(model).eval()
    name = f"TINY_{kind.upper()}"
    monkeypatch.setattr(pipelines, name, bundle(kind, large), raising=False)
    file = tmp_path / "tiny.pth"
    torch.save(old_names(theirs.state_dict()), file)
    weights = resolve_torchaudio(f"{file}#{name}", CONTEXT)
    # Tensor by tensor what transformers has.
    expected = model.state_dict()
    expected.pop("masked_spec_embed")
    found = weights.tensors()
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in found.items())
    # The same configuration, whoever reads it.
    config = AutoConfig.from_pretrained(weights.folder)
    assert config.model_type == kind
    assert {key: getattr(config, key) for key in SIZES} == SIZES
    rates = ("feat_proj", "attention", "activation", "hidden")
    dropouts = [getattr(config, f"{rate}_dropout") for rate in rates]
    assert [*dropouts, config.layerdrop] == [0.03, 0.04, 0.05, 0.06, 0.07]
    # From a hub, and from torchaudio, into ours.
    model.save_pretrained(tmp_path / "repo")
    preprocessor = {"do_normalize": large, "sampling_rate": 16_000}
    (tmp_path / "repo" / "preprocessor_config.json").write_text(
        json.dumps(preprocessor)
    )
    with HubServer() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        hub.publish("tests/tiny", tmp_path / "repo")
        from_hub = loaded(kind, resolve_hub("tests/tiny", CONTEXT))
    backbone = loaded(kind, weights)
    assert backbone.preprocessing == from_hub.preprocessing
    state = sample_audio(backbone)
    hidden = backbone(state)["hidden"]
    torch.testing.assert_close(from_hub(state)["hidden"], hidden, rtol=0, atol=0)
    # Each clip alone in torchaudio's and transformers' own models.
    read = AutoModel.from_pretrained(weights.folder).eval()
    lengths, frames = state["lengths"].tolist(), state["frames"].tolist()
    for row, (length, count) in enumerate(zip(lengths, frames, strict=True)):
        clip = state["waveform"][row : row + 1, :length]
        if large:
            # torchaudio adds 1e-5 to the variance, transformers and ours 1e-7.
            clip = torch.nn.functional.layer_norm(clip, clip.shape, eps=1e-7)
        with torch.no_grad():
            by_torchaudio, _ = theirs(clip)
            by_transformers = read(clip).last_hidden_state
        assert by_torchaudio.shape[1] == count
        torch.testing.assert_close(by_transformers, by_torchaudio, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(
            hidden[row : row + 1, :count], by_torchaudio, atol=2e-5, rtol=1e-4
        )


def test_a_ctc_layer_comes_along_without_fairseqs_special_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    config = original("wav2vec2", False).config
    config.vocab_size = 4
    model = Wav2Vec2ForCTC(config).eval()
    theirs = import_huggingface_model(model).eval()
    labels = bundle("wav2vec2", False, _labels=("|", "E", "T"))
    monkeypatch.setattr(pipelines, "TINY_ASR", labels, raising=False)
    tensors = theirs.state_dict()
    short, file = tmp_path / "short.pth", tmp_path / "tiny.pth"
    torch.save(tensors, short)
    for name in ("aux.weight", "aux.bias"):
        special = torch.full_like(tensors[name][:3], 9.0)
        tensors[name] = torch.cat([tensors[name][:1], special, tensors[name][1:]])
    torch.save(tensors, file)
    weights = resolve_torchaudio(f"{file}#TINY_ASR", CONTEXT)
    assert weights.classes == ("<blank>", " ", "e", "t")
    found = weights.tensors()
    assert torch.equal(found["lm_head.weight"], model.lm_head.weight)
    assert torch.equal(found["lm_head.bias"], model.lm_head.bias)
    # A file that has lost them already, as torchaudio's model saves it.
    again = resolve_torchaudio(f"{short}#TINY_ASR", CONTEXT).tensors()
    assert all(torch.equal(found[key], value) for key, value in again.items())
    clip = sample_audio(loaded("wav2vec2", weights))["waveform"][:1]
    with torch.no_grad():
        logits = AutoModelForCTC.from_pretrained(weights.folder).eval()(clip).logits
        expected, _ = theirs(clip)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-4)


PUBLISHED = sorted(
    name
    for name, value in vars(pipelines).items()
    if isinstance(value, pipelines.Wav2Vec2Bundle)
)


@pytest.mark.parametrize(
    "name",
    [
        "WAV2VEC2_BASE",
        "WAV2VEC2_ASR_BASE_960H",
        "WAV2VEC2_LARGE_LV60K",
        "VOXPOPULI_ASR_BASE_10K_DE",
        "HUBERT_BASE",
        "HUBERT_ASR_LARGE",
        "WAVLM_BASE",
        "WAVLM_LARGE",
    ],
)
def test_published_bundles_have_the_names_and_shapes_of_transformers(name: str) -> None:
    published = getattr(pipelines, name)
    with torch.device("meta"):
        build = getattr(models, f"{published._model_type.lower()}_model")
        theirs = build(**published._params).state_dict()
        configs = torchaudio_source._configs(name, published)
        config = AutoConfig.for_model(**configs["config.json"])
        ctc = published._params["aux_num_out"] is not None
        model = (AutoModelForCTC if ctc else AutoModel).from_config(config)
    found = torchaudio_source._transformers(theirs, name, published)
    expected = model.state_dict()
    within = f"{model.base_model_prefix}." if ctc else ""
    expected.pop(f"{within}masked_spec_embed")
    assert {key: value.shape for key, value in found.items()} == {
        key: value.shape for key, value in expected.items()
    }
    assert type(model).__name__ == config.architectures[0]
    classes = torchaudio_source._classes(published)
    assert len(classes) == (published._params["aux_num_out"] or 0)


def test_licences_are_those_that_torchaudio_states() -> None:
    stated = {n: torchaudio_source._licence(getattr(pipelines, n)) for n in PUBLISHED}
    assert stated["WAV2VEC2_BASE"] == stated["WAVLM_LARGE"] == "MIT"
    assert stated["MMS_FA"] == "CC-BY-NC 4.0"
    assert stated["VOXPOPULI_ASR_BASE_10K_DE"] == "CC BY-NC 4.0"
    assert set(stated.values()) == {"MIT", "CC BY-NC 4.0", "CC-BY-NC 4.0"}


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of the bundle TINY_HUBERT."""
    model = import_huggingface_model(original("hubert", False))
    monkeypatch.setattr(
        pipelines, "TINY_HUBERT", bundle("hubert", False), raising=False
    )
    folder = tmp_path / "server"
    folder.mkdir()
    torch.save(model.state_dict(), folder / "tiny.pth")
    return folder / "tiny.pth"


def test_a_bundle_is_fetched_once_and_survives_a_cut(
    tiny: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headstart.fetch.http.WAITS", (0.0, 0.0))
    with HubServer() as server:
        server.publish("torchaudio/models", tiny.parent)
        address = f"{server.endpoint}/torchaudio/models/resolve/main/"
        monkeypatch.setattr(torchaudio_source, "SERVER", address)
        server.cut("tiny.pth", after=5000)
        weights = resolve_torchaudio("TINY_HUBERT", CONTEXT)
        assert [r.range for r in server.downloads("tiny.pth")] == ["", "bytes=5000-"]
    # The server is gone.
    again = resolve_torchaudio("TINY_HUBERT", CONTEXT)
    assert again == weights
    assert weights.reference == "torchaudio:TINY_HUBERT"
    at_hand = resolve_torchaudio(f"{tiny}#TINY_HUBERT", CONTEXT)
    assert at_hand.files == weights.files
    # The file as it came, its tensors, and the folder that is used.
    kept = sorted(p.name for p in (cache / "torchaudio" / "TINY_HUBERT").iterdir())
    assert kept == [".lock", "tiny.pth"]


def test_a_bundle_that_cannot_be_fetched(
    tiny: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headstart.fetch.http.WAITS", ())
    with HubServer() as server:
        monkeypatch.setattr(torchaudio_source, "SERVER", f"{server.endpoint}/a/b/c/")
        with pytest.raises(UserError, match="cannot be fetched") as caught:
            resolve_torchaudio("TINY_HUBERT", CONTEXT)
    fault = caught.value.faults[0]
    assert fault.where.endswith("/a/b/c/tiny.pth")
    assert "torchaudio:FILE#TINY_HUBERT" in fault.fix
    monkeypatch.setenv("HEADSTART_OFFLINE", "1")
    with pytest.raises(UserError, match="the network is forbidden") as caught:
        resolve_torchaudio("TINY_HUBERT", CONTEXT)
    assert caught.value.faults[0].where.endswith("TINY_HUBERT/tiny.pth")
    assert not (cache / "converted").exists()


def test_a_file_of_another_bundle_is_refused_with_all_that_differs(
    tiny: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wavlm = bundle("wavlm", False)
    monkeypatch.setattr(pipelines, "TINY_WAVLM", wavlm, raising=False)
    with pytest.raises(UserError) as caught:
        resolve_torchaudio(f"{tiny}#TINY_WAVLM", CONTEXT)
    said = str(caught.value)
    attention = "encoder.transformer.layers.0.attention"
    assert f"has no '{attention}.attention.in_proj_weight'" in said
    assert f"has '{attention}.q_proj.bias', which the model has not" in said
    wide = bundle("hubert", False)
    wide._params["encoder_ff_interm_features"] = 41
    monkeypatch.setattr(pipelines, "TINY_WIDE", wide, raising=False)
    with pytest.raises(UserError) as caught:
        resolve_torchaudio(f"{tiny}#TINY_WIDE", CONTEXT)
    # Weight and bias of the first matrix, weight of the second, of two layers.
    assert len(caught.value.faults) == 6
    assert "(40, 24), (41, 24) expected" in str(caught.value)
    assert list((cache / "converted").glob("*-torchaudio-*")) == []


def test_names_that_do_not_exist(tiny: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'WAV2VEC2_BASE'"):
        resolve_torchaudio("WAV2VEC_BASE", CONTEXT)
    with pytest.raises(UserError, match="no bundle 'HDEMUCS_HIGH_MUSDB'"):
        resolve_torchaudio("HDEMUCS_HIGH_MUSDB", CONTEXT)
    with pytest.raises(UserError, match="is not said") as caught:
        resolve_torchaudio(str(tiny), CONTEXT)
    assert caught.value.faults[0].fix.endswith("tiny.pth#WAV2VEC2_BASE")
    with pytest.raises(UserError, match=r"did you mean 'tiny\.pth'"):
        resolve_torchaudio(f"{tiny.with_name('tny.pth')}#TINY_HUBERT", CONTEXT)


def test_a_pickle_that_asks_for_code_is_refused(tiny: Path) -> None:
    torch.save({"model": print}, tiny)
    with pytest.raises(UserError, match="not a plain pickle of tensors"):
        resolve_torchaudio(f"{tiny}#TINY_HUBERT", CONTEXT)
