"""hf:facebook/wav2vec2-base as it is published, a tiny one, from a hub on 127.0.0.1."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save_file
from transformers import Wav2Vec2Config, Wav2Vec2ForCTC, Wav2Vec2ForPreTraining

from headstart.errors import UserError
from headstart.plugins import Registry
from headstart.testing.hub import HubServer
from headstart.weights.sources import SourceContext, resolve_hub
from headstart.weights.transfer import load_weights
from headstart_speech.backbones import build_wav2vec2, reference_wav2vec2, sample_audio
from headstart_speech.heads import build_ctc
from headstart_speech.settings import CTCSettings, WaveformSettings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

REPO = "facebook/wav2vec2-base"
CONTEXT = SourceContext(Registry())
# Written before torch 2.1: the two parts of a weight norm under their old names.
OLD = {
    "parametrizations.weight.original0": "weight_g",
    "parametrizations.weight.original1": "weight_v",
}
CONFIG = {
    "architectures": ["Wav2Vec2ForPreTraining"],
    "model_type": "wav2vec2",
    # Keys of the published file that transformers has long forgotten.
    "gradient_checkpointing": True,
    "freeze_feat_extract_train": True,
    "no_mask_channel_overlap": False,
    "transformers_version": "4.7.0.dev0",
    "mask_time_prob": 0.05,
    "mask_feature_prob": 0.0,
    "feat_extract_norm": "group",
    "do_stable_layer_norm": False,
    "conv_bias": False,
    "conv_dim": [16] * 7,
    "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
    "conv_stride": [5, 2, 2, 2, 2, 2, 2],
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "codevector_dim": 8,
    "num_codevectors_per_group": 6,
    "num_codevector_groups": 2,
    "proj_codevector_dim": 8,
    "vocab_size": 32,
}
PREPROCESSOR = {
    "do_normalize": True,
    "feature_size": 1,
    "padding_side": "right",
    "padding_value": 0.0,
    "sampling_rate": 16000,
}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    for name in ("HF_HUB_CACHE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    with HubServer() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        yield server


def published(folder: Path, kind: str) -> dict[str, torch.Tensor]:
    """The repository's files; returns transformers' own tensors of the encoder."""
    torch.manual_seed(0)
    # As transformers reads it: with defaults, without what it forgot.
    model = Wav2Vec2ForPreTraining(Wav2Vec2Config.from_dict(dict(CONFIG)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    folder.mkdir()
    tensors = {}
    for name, value in model.state_dict().items():
        module, dot, part = name.partition(".conv.parametrizations.")
        old = f"{module}.conv.{OLD['parametrizations.' + part]}" if dot else name
        tensors[old] = value
    assert sum("weight_g" in name or "weight_v" in name for name in tensors) == 2
    if kind == "pickle":
        torch.save(tensors, folder / "pytorch_model.bin")
    else:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Wav2Vec2\n")
    return dict(model.wav2vec2.state_dict())


@pytest.mark.parametrize("kind", ["pickle", "safetensors"])
def test_the_default_weights_load_as_they_are_published(
    kind: str, hub: HubServer, tmp_path: Path
) -> None:
    expected = published(tmp_path / "repo", kind)
    commit = hub.publish(REPO, tmp_path / "repo")
    weights = resolve_hub(REPO, CONTEXT)
    assert (weights.revision, weights.licence) == (commit, "apache-2.0")
    settings = WaveformSettings(name="speech/wav2vec2", weights=f"hf:{REPO}")
    backbone = build_wav2vec2(settings, weights.folder, {}).eval()
    report = load_weights(backbone, weights)
    # Every tensor of the encoder, the embedding of masked frames too.
    assert not report.reinitialised
    ours = backbone.upstream_state_dict()
    assert ours.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in ours.items())
    # What belongs to pretraining stays out, and is told.
    skipped = {name.split(".")[0] for name, _ in report.skipped}
    assert skipped == {"quantizer", "project_q", "project_hid"}
    assert backbone.preprocessing["rate"] == 16_000
    state = sample_audio(backbone)
    torch.testing.assert_close(
        backbone(state)["hidden"],
        reference_wav2vec2(backbone, state)["hidden"],
        atol=1e-5,
        rtol=1e-4,
    )


def test_clips_are_normalised_as_the_repository_says(
    hub: HubServer, tmp_path: Path
) -> None:
    published(tmp_path / "repo", "safetensors")
    hub.publish(REPO, tmp_path / "repo")
    file = tmp_path / "repo" / "preprocessor_config.json"
    file.write_text(json.dumps(PREPROCESSOR | {"do_normalize": False}))
    hub.publish(REPO, tmp_path / "repo", branch="raw")
    for revision, same in (("main", True), ("raw", False)):
        weights = resolve_hub(f"{REPO}@{revision}", CONTEXT)
        settings = WaveformSettings(name="speech/wav2vec2")
        backbone = build_wav2vec2(settings, weights.folder, {}).eval()
        load_weights(backbone, weights)
        state = sample_audio(backbone)
        # Normalisation makes a clip's loudness and offset disappear.
        louder = {**state, "waveform": 0.5 * state["waveform"]}
        hidden = [backbone(dict(s))["hidden"][0] for s in (state, louder)]
        assert torch.allclose(*hidden, atol=1e-4) == same


def test_a_lost_tensor_is_named_before_anything_is_copied(
    hub: HubServer, tmp_path: Path
) -> None:
    published(tmp_path / "repo", "pickle")
    path = tmp_path / "repo" / "pytorch_model.bin"
    tensors = torch.load(path, weights_only=True)
    lost = "wav2vec2.encoder.layers.1.attention.k_proj.weight"
    del tensors[lost]
    torch.save(tensors, path)
    hub.publish(REPO, tmp_path / "repo")
    weights = resolve_hub(REPO, CONTEXT)
    backbone = build_wav2vec2(WaveformSettings(name="x"), weights.folder, {})
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    with pytest.raises(UserError, match=r"layers\.1\.attention\.k_proj\.weight"):
        load_weights(backbone, weights)
    after = backbone.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_a_published_recogniser_brings_the_rows_of_its_characters(
    hub: HubServer, tmp_path: Path
) -> None:
    """Its letters are capitals, its space is a bar, its blank is the padding."""
    torch.manual_seed(0)
    rows = {"<pad>": 0, "<s>": 1, "|": 2, "E": 3, "T": 4, "'": 5}
    config = Wav2Vec2Config.from_dict({**CONFIG, "vocab_size": len(rows)})
    model = Wav2Vec2ForCTC(config)
    folder = tmp_path / "repo"
    model.save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps(rows))
    hub.publish(REPO, folder)
    weights = resolve_hub(REPO, CONTEXT)
    settings = WaveformSettings(name="speech/wav2vec2", weights=f"hf:{REPO}")
    backbone = build_wav2vec2(settings, weights.folder, {})
    vocabulary = ["<blank>", " ", "e", "t", "x"]
    task = {"kind": "transcription", "vocabulary": vocabulary, "rate": 16_000}
    head = build_ctc(CTCSettings(name="speech/ctc"), backbone.features, task)
    new = head.linear.weight[4].detach().clone()
    report = load_weights(backbone, weights, head=head, labels=vocabulary)
    taken = torch.stack([model.lm_head.weight[row] for row in (0, 2, 3, 4)])
    assert torch.equal(head.linear.weight[:4], taken)
    assert torch.equal(head.linear.weight[4], new)
    assert (report.classes_kept, report.classes_new) == (
        ("<blank>", " ", "e", "t"),
        ("x",),
    )
