"""wav2vec 2.0, HuBERT and WavLM of transformers, cut into stages.

LayerDrop, which leaves out whole layers at random in training, is not done: which
parameters train is a function of the strategy and the step alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, Wav2Vec2FeatureExtractor

from headstart.errors import UserError
from headstart.specs import Feature
from headstart.stages import Backbone
from headstart_speech.configs import (
    CONFIG,
    extractor_file,
    new_model,
    read_config,
    read_extractor,
    read_vocabulary,
    vocabulary_file,
)
from headstart_speech.geometry import frame_counts, shortest_clip, total_stride
from headstart_speech.masking import SpecAugment
from headstart_speech.stages import (
    Layer,
    Norm,
    Projection,
    RelativeLayer,
    WaveformFeatures,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from transformers import PreTrainedConfig

    from headstart.stages import State
    from headstart_speech.settings import WaveformSettings

RATE = 16_000
"""Samples a second that all published models of these kinds take."""

# Tensors of pretraining and task heads, as hub files name them.
HEAD_TENSORS = (
    "quantizer.*",
    "project_q.*",
    "project_hid.*",
    "lm_head.*",
    "projector.*",
    "classifier.*",
    "layer_weights",
    "feature_extractor_x.*",
    "tdnn.*",
    "objective.*",
    "dropout_features.*",
)

# Since torch 2, weight normalisation keeps its two parts under other names.
WEIGHT_NORM = (
    (".weight_g", ".parametrizations.weight.original0"),
    (".weight_v", ".parametrizations.weight.original1"),
)

DROPOUTS = ("hidden_dropout", "attention_dropout", "activation_dropout")


@dataclass(frozen=True)
class Family:
    """How the families differ.

    Attributes:
        wrapper: Prefix of the encoder inside models with a head.
        attention: Which of transformers' attentions its modules are built with.
        layer: The stage around a transformer layer.
        quantizable: Whether it tells what convolutions hear, for pretraining.
    """

    wrapper: str
    attention: str = "sdpa"
    layer: type[nn.Module] = Layer
    quantizable: bool = True


FAMILIES = {
    "wav2vec2": Family("wav2vec2."),
    "hubert": Family("hubert.", quantizable=False),
    "wavlm": Family("wavlm.", attention="eager", layer=RelativeLayer),
}


def build_wav2vec2(
    settings: WaveformSettings, folder: Path | None, task: Mapping[str, Any]
) -> Backbone:
    """A wav2vec 2.0 encoder (Baevski et al. 2020) with random parameters.

    The stages are ``features``, ``projection``, ``layer0`` … and, where the model
    normalises last, ``norm``. Each writes ``hidden``, (batch, frames, channels);
    ``features`` makes ``lengths`` frames.

    Args:
        settings: ``config`` overrides the folder's configuration.
        folder: Holds ``config.json`` and, perhaps, ``preprocessor_config.json``.
        task: Not read.

    Raises:
        UserError: A configuration of another family, or one that transformers refuses.
    """
    return _build("wav2vec2", settings, folder)


def build_hubert(
    settings: WaveformSettings, folder: Path | None, task: Mapping[str, Any]
) -> Backbone:
    """A HuBERT encoder (Hsu et al. 2021); see :func:`build_wav2vec2`."""
    return _build("hubert", settings, folder)


def build_wavlm(
    settings: WaveformSettings, folder: Path | None, task: Mapping[str, Any]
) -> Backbone:
    """A WavLM encoder (Chen et al. 2022); see :func:`build_wav2vec2`."""
    return _build("wavlm", settings, folder)


def _build(
    model_type: str, settings: WaveformSettings, folder: Path | None
) -> Backbone:
    family = FAMILIES[model_type]
    config = read_config(settings, folder, model_type, DROPOUTS)
    _refuse_adapter(config, folder)
    file = extractor_file(folder)
    extractor = read_extractor(file)
    normalize = settings.normalize
    if normalize is None:
        # A run writes down what it was trained with.
        default = extractor.get("do_normalize", True)
        normalize = bool(getattr(config, "do_normalize", default))
    geometry = zip(config.conv_kernel, config.conv_stride, strict=True)
    layers = [[int(kernel), int(stride), 0] for kernel, stride in geometry]
    stages, upstream = _cut(_upstream(config), family, settings, layers, normalize)
    stride = total_stride(layers)
    features = [Feature("hidden", "tokens", config.hidden_size, stride)]
    if family.quantizable:
        width = config.conv_dim[-1]
        features.append(Feature("quantizable", "tokens", width, stride, "projection"))
    return Backbone(
        stages,
        features=features,
        upstream=upstream,
        ignored=HEAD_TENSORS,
        preprocessing={
            "rate": extractor.get("sampling_rate", RATE),
            "layers": layers,
            "shortest": shortest_clip(layers),
            "stride": stride,
            "longest": None,
        },
        files=(file,) if file else (),
        consumed=("waveform",),
        trailing=("norm",) if "norm" in stages else (),
        wrappers=(family.wrapper,),
        renames=WEIGHT_NORM,
        # Models that were never meant to be masked have none.
        optional=("masked_spec_embed",),
        config={**config.to_dict(), "do_normalize": normalize},
        classes=read_vocabulary(vocabulary_file(folder)),
    )


def _refuse_adapter(config: PreTrainedConfig, folder: Path | None) -> None:
    if getattr(config, "add_adapter", False):
        raise UserError(
            "this model has an adapter behind its last layer (add_adapter)",
            where=str(folder / CONFIG) if folder else "backbone.config.add_adapter",
            why="its convolutions make one frame of eight, too few for the characters "
            "of a transcript",
            fix="backbone.config.add_adapter = false and "
            'backbone.allow = ["adapter.*"] leave it out',
        )


def _upstream(config: PreTrainedConfig) -> Any:
    """transformers' own model, in float32."""
    attention = FAMILIES[config.model_type].attention
    return new_model(AutoModel.from_config, config, attn_implementation=attention)


def _cut(
    model: Any,
    family: Family,
    settings: WaveformSettings,
    layers: list[list[int]],
    normalize: bool,
) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """The model's modules as stages, and our prefixes of names to its own."""
    encoder, stable = model.encoder, model.config.do_stable_layer_norm
    embedding = getattr(model, "masked_spec_embed", None)
    if embedding is None:
        embedding = nn.Parameter(torch.empty(model.config.hidden_size).uniform_())
    stages: dict[str, nn.Module] = {
        "features": WaveformFeatures(model.feature_extractor, layers, normalize),
        "projection": Projection(
            model.feature_projection,
            encoder.pos_conv_embed,
            None if stable else encoder.layer_norm,
            encoder.dropout,
            embedding,
            SpecAugment(settings),
        ),
    }
    upstream = {
        "stages.features.block.": "feature_extractor.",
        "stages.projection.block.": "feature_projection.",
        "stages.projection.position.": "encoder.pos_conv_embed.",
        "stages.projection.norm.": "encoder.layer_norm.",
        "stages.projection.mask_embedding": "masked_spec_embed",
    }
    for i, block in enumerate(encoder.layers):
        stages[f"layer{i}"] = family.layer(block)
        upstream[f"stages.layer{i}.block."] = f"encoder.layers.{i}."
    if stable:
        stages["norm"] = Norm(encoder.layer_norm)
        del upstream["stages.projection.norm."]
        upstream["stages.norm.block."] = "encoder.layer_norm."
    return stages, upstream


def sample_audio(backbone: Backbone) -> State:
    """Three clips for tests, of 12, 3 and 8 frames in the published geometries."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([3920, 1040, 2640])
    time = torch.arange(int(lengths.max())) / RATE
    pitch = torch.tensor([220.0, 310.0, 150.0])
    tones = 0.3 * torch.sin(2 * torch.pi * pitch[:, None] * time)
    noise = 0.05 * torch.randn(tones.shape, generator=generator)
    inside = torch.arange(len(time)) < lengths[:, None]
    frames = frame_counts(lengths, backbone.preprocessing["layers"])
    return {"waveform": (tones + noise) * inside, "lengths": lengths, "frames": frames}


def reference_wav2vec2(backbone: Backbone, state: State) -> dict[str, Tensor]:
    """The features from transformers' own model, each clip alone and unpadded.

    Also of HuBERT and WavLM. Dropped stages are dropped there too; frames behind a
    clip's end are ours. Runs without dropout and gradients.
    """
    config = AutoConfig.for_model(**(backbone.config or {}))
    # Without it the model has no embedding of masked frames.
    config.mask_time_prob = 0.05
    model = _upstream(config)
    kept = sum(name.startswith("layer") for name in backbone.stage_names)
    del model.encoder.layers[kept:]
    model.load_state_dict(backbone.upstream_state_dict())
    example = next(iter(backbone.parameters()))
    model.to(device=example.device, dtype=example.dtype).eval()
    make: Any = Wav2Vec2FeatureExtractor
    extractor = make(
        sampling_rate=backbone.preprocessing["rate"], do_normalize=config.do_normalize
    )
    with torch.no_grad():
        ours = backbone.run(state)
        found = {f.name: ours[f.name].clone() for f in backbone.features.values()}
        for row, length in enumerate(state["lengths"].tolist()):
            inputs = extractor(
                state["waveform"][row, :length].cpu().numpy(),
                sampling_rate=extractor.sampling_rate,
                return_tensors="pt",
            ).input_values.to(example)
            alone = model(inputs)
            for name, values in found.items():
                whole = (
                    alone.last_hidden_state
                    if name == "hidden"
                    else (alone.extract_features)
                )
                values[row, : whole.shape[1]] = whole[0]
    return found
