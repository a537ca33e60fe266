"""Whisper's encoder against transformers' feature extractor and model."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, WhisperFeatureExtractor
from transformers import WhisperForConditionalGeneration as FullWhisper
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from headstart.errors import UserError
from headstart.weights.sources import Weights
from headstart.weights.transfer import load_weights
from headstart_speech.backbones import sample_audio
from headstart_speech.catalogue import TINY
from headstart_speech.log_mel import LogMel
from headstart_speech.settings import WhisperSettings
from headstart_speech.whisper import build_whisper

if TYPE_CHECKING:
    from pathlib import Path

    from headstart.stages import Backbone, State

LONGEST = 200 * 320
"""Samples that the tiny encoder takes."""


def build(config: dict[str, Any] | None = None, **more: Any) -> Backbone:
    torch.manual_seed(0)
    given = TINY["speech/whisper"]["config"] | (config or {})
    settings = WhisperSettings(
        name="speech/whisper", weights="none", config=given, **more
    )
    return build_whisper(settings, None, {}).eval()


def noise(*lengths: int) -> State:
    torch.manual_seed(3)
    waveform = 0.1 * torch.randn(len(lengths), max(lengths))
    known = torch.tensor(lengths)
    inside = torch.arange(max(lengths)) < known[:, None]
    return {"waveform": waveform * inside, "lengths": known}


def log_mel(waveform: torch.Tensor, **more: Any) -> torch.Tensor:
    """What transformers extracts from one clip that is padded to the longest."""
    extractor = WhisperFeatureExtractor()
    more = {"max_length": LONGEST, "sampling_rate": 16_000, **more}
    features = extractor(waveform.numpy(), return_tensors="pt", **more)
    return features.input_features


def upstream_model(backbone: Backbone, positions: int) -> Any:
    config = copy.deepcopy(AutoConfig.for_model(**backbone.config))
    config.max_source_positions = positions
    model = WhisperEncoder(config)
    tensors = dict(backbone.upstream_state_dict())
    tensors["embed_positions.weight"] = tensors["embed_positions.weight"][:positions]
    model.load_state_dict(tensors)
    return model.eval()


@pytest.mark.parametrize("length", [4000, 16_000, 63_700, 63_999, 64_000])
def test_the_spectrum_is_transformers(length: int) -> None:
    waveform = noise(length)["waveform"]
    frames = length // 160
    ours = LogMel(80, LONGEST)(waveform, frames)
    expected = log_mel(waveform[0])[..., :frames]
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("length", [1600, LONGEST])
def test_a_click_at_the_end_sets_the_scale(length: int) -> None:
    waveform = 1e-4 * noise(length)["waveform"]
    waveform[0, -1] = 1.0
    frames = length // 160
    ours = LogMel(80, LONGEST)(waveform, frames)
    expected = log_mel(waveform[0])[..., :frames]
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)


def test_the_spectrum_is_exact_under_autocast() -> None:
    waveform = noise(4000)["waveform"]
    mel = LogMel(80, LONGEST)
    with torch.autocast("cpu", torch.bfloat16):
        low = mel(waveform, 25)
    assert low.dtype == torch.float32 and torch.equal(low, mel(waveform, 25))


@torch.no_grad()
@pytest.mark.parametrize("lengths", [(3920, 1040, 2640), (LONGEST, 63_900, 500)])
def test_every_stage_equals_upstream(lengths: tuple[int, ...]) -> None:
    backbone = build()
    sample = noise(*lengths)
    for row, length in enumerate(lengths):
        frames = -(-(length // 160) // 2)
        mel = log_mel(sample["waveform"][row, :length])[..., : 2 * frames]
        model = upstream_model(backbone, frames)
        theirs = model(mel, output_hidden_states=True)
        state = dict(sample)
        for name, stage in backbone.stages.items():
            state = stage(state)
            own = state["hidden"][row, :frames]
            if name == "projection":
                expected = theirs.hidden_states[0]
            elif name == "layer0":
                expected = theirs.hidden_states[1]
            elif name == "norm":
                expected = theirs.last_hidden_state
            else:
                continue
            torch.testing.assert_close(own, expected[0], rtol=1e-4, atol=1e-4)
        assert state["lengths"][row] == frames


@torch.no_grad()
def test_padded_to_30_seconds_is_as_it_was_trained() -> None:
    backbone = build(pad_to_30s=True)
    sample = noise(3920, 1040)
    state = backbone.run(sample)
    assert state["lengths"].tolist() == [200, 200]
    for row, length in enumerate((3920, 1040)):
        mel = log_mel(sample["waveform"][row, :length])
        expected = upstream_model(backbone, 200)(mel).last_hidden_state
        torch.testing.assert_close(
            state["hidden"][row], expected[0], rtol=1e-4, atol=1e-4
        )


@torch.no_grad()
@pytest.mark.parametrize("lengths", [(3920, 1040, 2640), (LONGEST, 63_700, 63_810)])
def test_a_clip_is_the_same_in_every_batch(lengths: tuple[int, ...]) -> None:
    backbone = build()
    sample = noise(*lengths)
    whole = backbone.run(sample)["hidden"]
    dirty = {**sample, "waveform": sample["waveform"].clone()}
    behind = torch.arange(max(lengths)) >= sample["lengths"][:, None]
    dirty["waveform"][behind] = 0.7
    garbage = backbone.run(dirty)["hidden"]
    for row, length in enumerate(lengths):
        alone = {key: value[row : row + 1] for key, value in sample.items()}
        alone["waveform"] = alone["waveform"][:, :length]
        own = backbone.run(alone)["hidden"][0]
        torch.testing.assert_close(whole[row, : len(own)], own, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(garbage[row, : len(own)], own, rtol=1e-4, atol=1e-5)


def test_masks_are_drawn_in_training_alone() -> None:
    backbone = build(mask_time=1.0, mask_time_length=1)
    sample = sample_audio(backbone)
    quiet = backbone.run(sample, 0, 2)["hidden"]
    # All of every clip is masked, so the positions alone remain.
    table = backbone.stages["projection"].embed_positions
    hidden = backbone.train().run(sample, 0, 2)["hidden"]
    for row, frames in enumerate(sample["frames"].tolist()):
        assert torch.equal(hidden[row, :frames], table[:frames])
    assert torch.equal(backbone.eval().run(sample, 0, 2)["hidden"], quiet)


def test_positions_do_not_train() -> None:
    backbone = build()
    assert not [n for n, _ in backbone.named_parameters() if "positions" in n]
    fresh = WhisperEncoder(AutoConfig.for_model(**backbone.config))
    fresh_table = fresh.embed_positions.weight
    torch.testing.assert_close(
        backbone.stages["projection"].embed_positions, fresh_table.detach()
    )


@pytest.mark.parametrize("bare", [True, False])
def test_published_names(bare: bool, tmp_path: Path) -> None:
    backbone = build()
    torch.manual_seed(1)
    config = {**backbone.config, "decoder_layers": 1, "decoder_attention_heads": 4}
    config |= {"decoder_ffn_dim": 8, "vocab_size": 20, "pad_token_id": 0}
    published = FullWhisper(AutoConfig.for_model(**config))
    holder = published.model if bare else published
    tensors = {k: v.clone() for k, v in holder.state_dict().items()}
    tensors.pop("proj_out.weight", None)
    save_file(tensors, tmp_path / "model.safetensors")
    weights = Weights("file:test", None, (tmp_path / "model.safetensors",))
    report = load_weights(backbone, weights)
    assert report.loaded == len(backbone.state_dict())
    theirs = published.model.encoder.state_dict()
    ours = backbone.upstream_state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_longer_clip_is_refused() -> None:
    with pytest.raises(UserError, match=r"4\.00 s.*too long"):
        build().run(noise(LONGEST + 1))


def test_geometry_is_told() -> None:
    preprocessing = build().preprocessing
    assert preprocessing["shortest"] == 160
    assert preprocessing["stride"] == 320
    assert preprocessing["longest"] == LONGEST
    assert build({"max_source_positions": 1500}).preprocessing["longest"] == 480_000


def test_another_family_is_refused() -> None:
    with pytest.raises(UserError, match="speech/wavlm"):
        build({"model_type": "wavlm"})
