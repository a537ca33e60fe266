"""Whisper's encoder (Radford et al. 2022), cut into stages."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder, sinusoids

from headstart.errors import UserError
from headstart.specs import Feature
from headstart.stages import Backbone
from headstart_speech.configs import extractor_file, new_model, read_config
from headstart_speech.geometry import frame_counts, shortest_clip, total_stride
from headstart_speech.log_mel import HOP, RATE, LogMel
from headstart_speech.masking import SpecAugment
from headstart_speech.stages import Layer, Norm, frame_mask

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from headstart.stages import State
    from headstart_speech.settings import WhisperSettings

# The decoder, which has no part in an encoder with another head.
HEAD_TENSORS = (
    "model.decoder.*",
    "decoder.*",
    "proj_out.*",
    "projector.*",
    "classifier.*",
    "layer_weights",
)

DROPOUTS = ("dropout", "attention_dropout", "activation_dropout")

LAYERS = [[400, HOP, 120], [3, 1, 1], [3, 2, 1]]
"""The spectra, as many as there are whole hops, and the two convolutions."""


class WhisperFeatures(nn.Module):
    """Waveform to log-mel spectra to features; ``lengths`` become frames.

    Args:
        mel: The spectra.
        conv1: The first convolution.
        conv2: The second one, of stride 2.
        whole: Pad each clip to the longest that the encoder takes.
    """

    def __init__(
        self, mel: LogMel, conv1: nn.Module, conv2: nn.Module, whole: bool
    ) -> None:
        super().__init__()
        self.mel = mel
        self.conv1 = conv1
        self.conv2 = conv2
        self.whole = whole

    def forward(self, state: State) -> State:
        lengths, longest = state["lengths"], self.mel.longest
        samples = state["waveform"].shape[1]
        if samples > longest:
            raise UserError(
                f"a clip of {samples / RATE:.2f} s is too long for Whisper's encoder",
                why=f"it has positions for {longest / RATE:g} s",
                fix=f"data.longest = {longest / RATE:g} and data.long say what happens "
                "to longer ones",
            )
        waveform = state["waveform"].masked_fill(~frame_mask(lengths, samples), 0.0)
        if self.whole:
            waveform = functional.pad(waveform, (0, longest - samples))
            lengths = torch.full_like(lengths, longest)
        frames = frame_counts(lengths, LAYERS)
        spectra = 2 * frame_counts(waveform.shape[1], LAYERS)
        # The first convolution sees zeros behind a clip's last spectrum, as if it were
        # alone; the second one does not look there.
        inside = frame_mask(2 * frames, spectra)[:, None]
        hidden = self.mel(waveform, spectra).masked_fill(~inside, 0.0)
        hidden = functional.gelu(self.conv1(hidden))
        hidden = functional.gelu(self.conv2(hidden))
        return {**state, "hidden": hidden.transpose(1, 2), "lengths": frames}

    def extra_repr(self) -> str:
        return f"whole={self.whole}"


class Positions(nn.Module):
    """Masks in training, and the sines of each frame's position."""

    embed_positions: Tensor
    nothing: Tensor

    def __init__(self, table: Tensor, augment: SpecAugment, dropout: float) -> None:
        super().__init__()
        self.register_buffer("embed_positions", table)
        self.register_buffer("nothing", torch.zeros(()), persistent=False)
        self.augment = augment
        self.dropout = nn.Dropout(dropout)

    def forward(self, state: State) -> State:
        hidden = state["hidden"]
        masked = state.get("masked")
        hidden = self.augment(hidden, state["lengths"], self.nothing, masked)
        hidden = hidden + self.embed_positions[: hidden.shape[1]]
        return {**state, "hidden": self.dropout(hidden)}


def build_whisper(
    settings: WhisperSettings, folder: Path | None, task: Mapping[str, Any]
) -> Backbone:
    """Whisper's encoder with random parameters.

    The stages are ``features``, ``projection``, ``layer0`` … and ``norm``. Each writes
    ``hidden``, (batch, frames, channels); ``features`` makes ``lengths`` frames. With
    ``pad_to_30s`` every clip has the 1,500 frames of 30 s, and those of a clip are the
    first ``frames``.

    Args:
        settings: ``config`` overrides the folder's configuration.
        folder: Holds ``config.json``.
        task: Not read.

    Raises:
        UserError: A configuration of another family, or one that transformers refuses.
    """
    config = read_config(settings, folder, "whisper", DROPOUTS)
    model: Any = new_model(
        WhisperEncoder._from_config, config, attn_implementation="sdpa"
    )
    longest = config.max_source_positions * total_stride(LAYERS)
    table = sinusoids(config.max_source_positions, config.d_model)
    stages: dict[str, nn.Module] = {
        "features": WhisperFeatures(
            LogMel(config.num_mel_bins, longest),
            model.conv1,
            model.conv2,
            settings.pad_to_30s,
        ),
        "projection": Positions(table, SpecAugment(settings), config.dropout),
    }
    upstream = {
        "stages.features.conv1.": "conv1.",
        "stages.features.conv2.": "conv2.",
        "stages.projection.embed_positions": "embed_positions.weight",
        "stages.norm.block.": "layer_norm.",
    }
    for i, block in enumerate(model.layers):
        stages[f"layer{i}"] = Layer(block)
        upstream[f"stages.layer{i}.block."] = f"layers.{i}."
    stages["norm"] = Norm(model.layer_norm)
    file = extractor_file(folder)
    stride = total_stride(LAYERS)
    return Backbone(
        stages,
        features=(Feature("hidden", "tokens", config.d_model, stride),),
        upstream=upstream,
        ignored=HEAD_TENSORS,
        preprocessing={
            "rate": RATE,
            "layers": LAYERS,
            "shortest": shortest_clip(LAYERS),
            "stride": stride,
            "longest": longest,
        },
        files=(file,) if file else (),
        consumed=("waveform",),
        trailing=("norm",),
        wrappers=("model.encoder.", "encoder."),
        config=config.to_dict(),
    )


def reference_whisper(backbone: Backbone, state: State) -> dict[str, Tensor]:
    """The features from transformers' own encoder, each clip alone.

    The encoder is told that it has as many positions as the clip has frames. Dropped
    stages are dropped there too; frames behind a clip's end are ours. Runs without
    dropout and gradients.
    """
    config = AutoConfig.for_model(**(backbone.config or {}))
    features = backbone.stages["features"]
    assert isinstance(features, WhisperFeatures)
    make: Any = WhisperFeatureExtractor
    extractor = make(feature_size=config.num_mel_bins)
    example = next(iter(backbone.parameters()))
    with torch.no_grad():
        hidden = backbone.run(state)["hidden"].clone()
        for row, length in enumerate(state["lengths"].tolist()):
            frames = frame_counts(
                features.mel.longest if features.whole else length, LAYERS
            )
            model = _upstream(backbone, config, frames).to(example).eval()
            mel = extractor(
                state["waveform"][row, :length].cpu().numpy(),
                sampling_rate=RATE,
                max_length=features.mel.longest,
                return_tensors="pt",
            ).input_features
            alone = model(mel[..., : 2 * frames].to(example)).last_hidden_state[0]
            hidden[row, : len(alone)] = alone
    return {"hidden": hidden}


def _upstream(backbone: Backbone, config: Any, positions: int) -> Any:
    """transformers' encoder with our parameters, for clips of so many frames."""
    config = copy.deepcopy(config)
    config.max_source_positions = positions
    model = new_model(WhisperEncoder._from_config, config, attn_implementation="sdpa")
    kept = sum(name.startswith("layer") for name in backbone.stage_names)
    del model.layers[kept:]
    tensors = backbone.upstream_state_dict()
    tensors["embed_positions.weight"] = tensors["embed_positions.weight"][:positions]
    model.load_state_dict(tensors)
    return model
