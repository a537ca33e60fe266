"""wav2vec 2.0, HuBERT and WavLM against transformers' models."""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    AutoConfig,
    AutoModel,
    HubertForCTC,
    Wav2Vec2ForCTC,
    Wav2Vec2ForPreTraining,
    WavLMForCTC,
)

from headstart.errors import UserError
from headstart.weights.sources import Weights
from headstart.weights.transfer import load_weights
from headstart_speech import backbones
from headstart_speech.backbones import sample_audio
from headstart_speech.catalogue import TINY
from headstart_speech.settings import WaveformSettings
from headstart_speech.stages import channel_norm

if TYPE_CHECKING:
    from pathlib import Path

    from headstart.stages import Backbone, State

STABLE = {
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "conv_bias": True,
}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "wav2vec2": ("wav2vec2", {}),
    "wav2vec2-stable": ("wav2vec2", STABLE),
    "wav2vec2-layer": ("wav2vec2", {"feat_extract_norm": "layer"}),
    "wav2vec2-language-adapters": ("wav2vec2", {**STABLE, "adapter_attn_dim": 4}),
    "hubert": ("hubert", {}),
    "hubert-stable": ("hubert", STABLE),
    "hubert-plain": ("hubert", {"feat_proj_layer_norm": False}),
    "hubert-batch-norm": ("hubert", {"conv_pos_batch_norm": True}),
    "wavlm": ("wavlm", {}),
    "wavlm-stable": ("wavlm", STABLE),
}


def build(
    family: str,
    folder: Path | None = None,
    config: dict[str, Any] | None = None,
    **more: Any,
) -> Backbone:
    name = f"speech/{family}"
    given = TINY[name]["config"] | (config or {}) if folder is None else config or {}
    settings = WaveformSettings(name=name, weights="none", config=given, **more)
    factory = getattr(backbones, f"build_{family}")
    built: Backbone = factory(settings, folder, {})
    return built


@pytest.fixture(params=VARIANTS)
def backbone(request: pytest.FixtureRequest) -> Backbone:
    torch.manual_seed(0)
    family, config = VARIANTS[request.param]
    built = build(family, config=config)
    for name, tensor in built.state_dict().items():
        # Values at which normalisations do something.
        if name.endswith(("running_mean", "norm.bias")):
            tensor.normal_(std=0.5)
        if name.endswith(("running_var", "norm.weight", "gru_rel_pos_const")):
            tensor.uniform_(0.5, 2.0)
    return built.eval()


def upstream_model(backbone: Backbone) -> Any:
    config = AutoConfig.for_model(**backbone.config)
    attention = "eager" if config.model_type == "wavlm" else "sdpa"
    model = AutoModel.from_config(config, attn_implementation=attention)
    model.load_state_dict(backbone.upstream_state_dict())
    return model.eval()


def clip(state: State, row: int) -> torch.Tensor:
    """A clip of a batch as the models take it: alone, zero mean, unit variance."""
    waveform = state["waveform"][row : row + 1, : state["lengths"][row]]
    deviation = (waveform.var(correction=0) + 1e-7).sqrt()
    return (waveform - waveform.mean()) / deviation


@torch.no_grad()
def test_every_stage_equals_upstream(backbone: Backbone) -> None:
    model = upstream_model(backbone)
    sample = sample_audio(backbone)
    for row in range(3):
        theirs = model(clip(sample, row), output_hidden_states=True)
        layers = list(theirs.hidden_states)
        if "norm" in backbone.stages:
            layers.append(theirs.last_hidden_state)
            # The last of their list is normalised in some releases.
            layers[-2] = None
        features = model.feature_extractor(clip(sample, row)).transpose(1, 2)
        state = dict(sample)
        for stage, expected in zip(
            backbone.stages.values(), [features, *layers], strict=True
        ):
            state = stage(state)
            if expected is not None:
                own = state["hidden"][row, : expected.shape[1]]
                torch.testing.assert_close(own, expected[0], rtol=1e-5, atol=2e-5)
        assert expected.shape[1] == state["lengths"][row] == sample["frames"][row]


@torch.no_grad()
def test_a_clip_is_the_same_in_every_batch(backbone: Backbone) -> None:
    sample = sample_audio(backbone)
    whole = backbone.run(sample)["hidden"]
    dirty = {**sample, "waveform": sample["waveform"].clone()}
    behind = torch.arange(3920) >= sample["lengths"][:, None]
    dirty["waveform"][behind] = 0.7
    garbage = backbone.run(dirty)["hidden"]
    for row in range(3):
        alone = {key: value[row : row + 1] for key, value in sample.items()}
        alone["waveform"] = alone["waveform"][:, : sample["lengths"][row]]
        frames = int(sample["frames"][row])
        own = backbone.run(alone)["hidden"][0]
        assert len(own) == frames
        torch.testing.assert_close(whole[row, :frames], own, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(garbage[row, :frames], own, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_slices_equal_the_whole(backbone: Backbone) -> None:
    sample = sample_audio(backbone)
    whole = backbone.run(sample)["hidden"]
    for cut in range(1, len(backbone.stages)):
        middle = copy.deepcopy(backbone.run(sample, 0, cut))
        del middle["waveform"]
        assert torch.equal(backbone.run(middle, cut)["hidden"], whole)


def test_training_does_not_move_batch_statistics() -> None:
    backbone = build("hubert", config={"conv_pos_batch_norm": True}).train()
    before = {k: v.clone() for k, v in backbone.named_buffers()}
    backbone.run(sample_audio(backbone))
    assert before and all(
        torch.equal(v, before[k]) for k, v in backbone.named_buffers()
    )


@torch.no_grad()
def test_hidden_frames_are_those_of_pretraining() -> None:
    torch.manual_seed(0)
    backbone = build("wav2vec2").eval()
    sample = sample_audio(backbone)
    masked = torch.zeros(3, 12, dtype=torch.bool)
    masked[:, 1] = masked[0, 4:9] = True
    state = backbone.run({**sample, "masked": masked})
    model = upstream_model(backbone)
    for row in range(3):
        frames = int(sample["frames"][row])
        theirs = model(
            clip(sample, row), mask_time_indices=masked[row : row + 1, :frames]
        )
        for name, expected in (
            ("hidden", theirs.last_hidden_state),
            ("quantizable", theirs.extract_features),
        ):
            own = state[name][row, :frames]
            torch.testing.assert_close(own, expected[0], rtol=1e-5, atol=2e-5)


def test_masks_are_drawn_in_training_alone() -> None:
    backbone = build("wav2vec2", mask_time=1.0, mask_time_length=1, dropout=0.0)
    with torch.no_grad():
        backbone.stages["projection"].mask_embedding.fill_(50.0)
    sample = sample_audio(backbone)
    quiet = backbone.eval().run(sample)["hidden"]
    assert torch.equal(backbone.run(sample)["hidden"], quiet)
    assert not torch.allclose(backbone.train().run(sample)["hidden"], quiet, atol=1e-2)


def test_wavlm_drops_attention_in_training_alone() -> None:
    rates = dict.fromkeys(("hidden_dropout", "activation_dropout"), 0.0)
    rates |= {"feat_proj_dropout": 0.0, "attention_dropout": 0.9}
    backbone = build("wavlm", config=rates, mask_time=0.0).eval()
    sample = sample_audio(backbone)
    with torch.no_grad():
        quiet = backbone.run(sample)["hidden"]
        assert torch.equal(backbone.run(sample)["hidden"], quiet)
        assert not torch.allclose(backbone.train().run(sample)["hidden"], quiet)


def test_group_norm_is_exact_under_autocast() -> None:
    norm = torch.nn.GroupNorm(4, 4)
    hidden, frames = 3 + torch.randn(2, 4, 50), torch.tensor([50, 20])
    with torch.autocast("cpu", torch.bfloat16):
        low = channel_norm(hidden, frames, norm)
    assert torch.equal(low, channel_norm(hidden, frames, norm))


def test_every_parameter_has_a_gradient_without_masks() -> None:
    for family in ("wav2vec2", "hubert", "wavlm"):
        backbone = build(family, mask_time=0.0).train()
        backbone.run(sample_audio(backbone))["hidden"].square().mean().backward()
        lacking = [n for n, p in backbone.named_parameters() if p.grad is None]
        assert not lacking


def test_a_frozen_prefix_gives_wavlm_its_distances() -> None:
    backbone = build("wavlm").eval()
    with torch.no_grad():
        state = backbone.run(sample_audio(backbone), 0, 3)
    assert state["distances"].shape == (3, 16, 4)
    assert torch.equal(state["distances"][0], state["distances"][2])


@pytest.mark.parametrize("old_names", [True, False])
@pytest.mark.parametrize(
    ("family", "model", "head"),
    [
        ("wav2vec2", Wav2Vec2ForPreTraining, "quantizer.codevectors"),
        ("wav2vec2", Wav2Vec2ForCTC, "lm_head.weight"),
        ("hubert", HubertForCTC, "lm_head.weight"),
        ("wavlm", WavLMForCTC, "lm_head.weight"),
    ],
)
def test_published_names(
    family: str, model: Any, head: str, old_names: bool, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    backbone = build(family)
    published = model(AutoConfig.for_model(**backbone.config))
    tensors = {k: v.clone() for k, v in published.state_dict().items()}
    if old_names:
        for number, letter in enumerate("gv"):
            prefix = f"{family}.encoder.pos_conv_embed.conv."
            new = f"{prefix}parametrizations.weight.original{number}"
            tensors[f"{prefix}weight_{letter}"] = tensors.pop(new)
    save_file(tensors, tmp_path / "model.safetensors")
    weights = Weights("file:test", None, (tmp_path / "model.safetensors",))
    report = load_weights(backbone, weights)
    assert report.loaded == len(backbone.state_dict())
    assert head in dict(report.skipped)
    bare = getattr(published, family).state_dict()
    ours = backbone.upstream_state_dict()
    assert ours.keys() == bare.keys()
    assert all(torch.equal(ours[name], bare[name]) for name in bare)


def test_weights_need_no_mask_embedding(tmp_path: Path) -> None:
    backbone = build("wav2vec2")
    tensors = backbone.upstream_state_dict()
    del tensors["masked_spec_embed"]
    save_file({k: v.clone() for k, v in tensors.items()}, tmp_path / "m.safetensors")
    weights = Weights("file:test", None, (tmp_path / "m.safetensors",))
    report = load_weights(build("wav2vec2"), weights)
    assert [name for name, _ in report.reinitialised] == ["masked_spec_embed"]


def test_normalisation_goes_by_what_came_with_the_weights(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"model_type": "wav2vec2", **TINY_CONFIG}))

    def normalizes(**settings: Any) -> bool:
        backbone = build("wav2vec2", tmp_path, **settings)
        return bool(backbone.stages["features"].normalize)

    assert normalizes()
    assert not normalizes(normalize=False)
    nested = {"feature_extractor": {"do_normalize": False, "sampling_rate": 8000}}
    (tmp_path / "processor_config.json").write_text(json.dumps(nested))
    assert not normalizes()
    assert normalizes(normalize=True)
    backbone = build("wav2vec2", tmp_path)
    assert backbone.preprocessing["rate"] == 8000
    assert [file.name for file in backbone.files] == ["processor_config.json"]
    # A run's own decision, from its config.json.
    config.write_text(json.dumps(build("wav2vec2", tmp_path, normalize=True).config))
    assert normalizes()


TINY_CONFIG = TINY["speech/wav2vec2"]["config"]


def test_quiet_and_loud_are_the_same_when_normalised() -> None:
    sample = sample_audio(build("wav2vec2"))
    loud = {**sample, "waveform": sample["waveform"] * 3 + 0.1}
    for normalize in (True, False):
        torch.manual_seed(0)
        backbone = build("wav2vec2", config=STABLE, normalize=normalize).eval()
        with torch.no_grad():
            one, other = (backbone.run(s)["hidden"][0] for s in (sample, loud))
        assert torch.allclose(one, other, atol=1e-4) is normalize


def test_geometry_is_told() -> None:
    preprocessing = build("wav2vec2").preprocessing
    assert preprocessing["rate"] == 16_000
    assert preprocessing["layers"][0] == [10, 5, 0]
    assert preprocessing["shortest"] == 400
    assert preprocessing["stride"] == 320
    assert preprocessing["longest"] is None


def test_a_configuration_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"(?s)'hiden_size'.*hidden_size"):
        build("wav2vec2", config={"hiden_size": 32})
    with pytest.raises(UserError, match="add_adapter"):
        build("wav2vec2", config={"add_adapter": True})
    with pytest.raises(UserError, match="transformers refuses"):
        build("wav2vec2", config={"conv_dim": [16, 16]})
    with pytest.raises(UserError, match=r"no config\.json"):
        build("wav2vec2", tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "hubert"}))
    with pytest.raises(UserError, match="speech/hubert"):
        build("wav2vec2", tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"do_normalize": "yes"}')
    with pytest.raises(UserError, match="do_normalize"):
        build("hubert", tmp_path)
