"""Settings of the medical plugin's backbones, data and heads; torch-free.

What a network's settings leave open comes from the weights' ``config.json``, else it is
the network's default.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from headstart.errors import nearest
from headstart.settings import BackboneSettings

Positive = Annotated[int, Field(ge=1)]
Dropout = Annotated[float, Field(ge=0.0, lt=1.0)]
Extents = Annotated[tuple[Positive, ...], Field(min_length=1)]
# Of each level: one number for all axes, or one an axis.
Axes = tuple[Positive, Positive, Positive]
Levels = Annotated[tuple[Positive | Axes, ...], Field(min_length=3)]


# Backbones


class DeepBrainSettings(BackboneSettings):
    """``[backbone]`` of deepbrain's 3D U-Net."""

    widths: tuple[Positive, Positive, Positive] | None = None
    """Channels of the levels; the packaged weights have (8, 16, 32)."""
    dropout: Dropout | None = None
    """After each level; ``None`` takes deepbrain's 0.3."""


class UNetSettings(BackboneSettings):
    """``[backbone]`` of MONAI's U-Net."""

    channels: Annotated[tuple[Positive, ...], Field(min_length=2)] | None = None
    """Channels of the levels; ``None`` takes (16, 32, 64, 128, 256)."""
    strides: Extents | None = None
    """From each level to the one below it; ``None`` takes 2 throughout."""
    num_res_units: Annotated[int, Field(ge=0)] | None = None
    """Convolutions in each residual unit; 0 has plain ones; ``None`` takes 2."""
    out_channels: Positive | None = None
    """Channels of its output, which the head turns into classes; ``None`` takes the
    weights' classes, else the first of ``channels``."""
    dropout: Dropout | None = None
    """After each convolution; ``None`` takes 0."""


class SegResNetSettings(BackboneSettings):
    """``[backbone]`` of MONAI's SegResNet (Myronenko 2018), without its VAE."""

    init_filters: Positive | None = None
    """Channels of the first level, doubled from level to level, a multiple of 8;
    ``None`` takes 16."""
    blocks_down: Annotated[tuple[Positive, ...], Field(min_length=2)] | None = None
    """Residual blocks of each level of the encoder; ``None`` takes (1, 2, 2, 4)."""
    blocks_up: Extents | None = None
    """Residual blocks of each level of the decoder, deepest first; ``None`` takes 1
    throughout."""
    dropout_prob: Dropout | None = None
    """After the first convolution; ``None`` takes 0."""


class DynUNetSettings(BackboneSettings):
    """``[backbone]`` of MONAI's DynUNet, nnU-Net's network (Isensee et al. 2021)."""

    strides: Levels | None = None
    """Into each level, the first one's own included, for all axes or for each; ``None``
    plans them, and ``kernel_size``, from the data's patch and spacing as nnU-Net
    does."""
    kernel_size: Levels | None = None
    """Of each level's convolutions; ``None`` takes what was planned, else 3."""
    filters: Annotated[tuple[Positive, ...], Field(min_length=3)] | None = None
    """Channels of the levels; ``None`` takes 32, doubled to at most 320."""
    res_block: bool | None = None
    """Whether blocks are residual; ``None``: they are not."""
    dropout: Dropout | None = None
    """In each block; ``None`` takes 0."""


class SwinUnetrSettings(BackboneSettings):
    """``[backbone]`` of MONAI's SwinUNETR (Hatamizadeh et al. 2022; needs einops)."""

    feature_size: Annotated[int, Field(ge=12, multiple_of=12)] | None = None
    """Channels of the first level, a multiple of 12; ``None`` takes 24."""
    depths: tuple[Positive, Positive, Positive, Positive] | None = None
    """Transformer blocks of each level; ``None`` takes 2 throughout."""
    num_heads: tuple[Positive, Positive, Positive, Positive] | None = None
    """Attention heads of each level; ``None`` takes (3, 6, 12, 24)."""
    window_size: Positive | None = None
    """Side of the windows of attention; ``None`` takes 7."""
    use_v2: bool | None = None
    """Whether each level begins with a convolution (SwinUNETR-V2); ``None``: no."""
    drop_rate: Dropout | None = None
    """In the transformer; ``None`` takes 0."""


class UnetrSettings(BackboneSettings):
    """``[backbone]`` of MONAI's UNETR (Hatamizadeh et al. 2021; needs einops)."""

    img_size: Axes | None = None
    """The only size that it reads, multiples of 16; ``None`` takes the data's patch.
    Weights of another size have their position embedding interpolated."""
    feature_size: Positive | None = None
    """Channels of the decoder's last level; ``None`` takes 16."""
    hidden_size: Positive | None = None
    """Width of the transformer; ``None`` takes 768."""
    mlp_dim: Positive | None = None
    """Width inside its feed-forward layers; ``None`` takes 3072."""
    num_heads: Positive | None = None
    """Attention heads; ``None`` takes 12."""
    dropout_rate: Dropout | None = None
    """In the transformer; ``None`` takes 0."""


class EncoderSettings(BackboneSettings):
    """What the networks for classification have in common."""

    dimensions: Literal[2, 3] | None = None
    """Whether it reads slices or volumes; ``None`` takes what the data has. 2D weights
    are inflated where it reads volumes."""


class DenseNetSettings(EncoderSettings):
    """``[backbone]`` of MONAI's DenseNet (Huang et al. 2017)."""

    init_features: Positive | None = None
    """Channels of the first convolution; ``None`` takes 64."""
    growth_rate: Positive | None = None
    """Channels that each layer adds; ``None`` takes 32."""
    block_config: tuple[Positive, Positive, Positive, Positive] | None = None
    """Layers of each block; ``None`` takes DenseNet121's (6, 12, 24, 16)."""
    dropout_prob: Dropout | None = None
    """After each layer; ``None`` takes 0."""


class ResNetSettings(EncoderSettings):
    """``[backbone]`` of MONAI's ResNet; in 2D it is torchvision's network."""

    depth: Literal[10, 18, 34, 50] | None = None
    """How many layers it has; ``None`` takes what the weights are for, else 18."""
    block_inplanes: tuple[Positive, Positive, Positive, Positive] | None = None
    """Channels of the levels; ``None`` takes (64, 128, 256, 512)."""
    conv1_t_stride: Positive | None = None
    """Stride of the first convolution; ``None`` takes 2."""
    no_max_pool: bool | None = None
    """Leave out the pooling behind it; ``None``: it stays."""
    shortcut_type: Literal["A", "B"] | None = None
    """Whether shortcuts to wider levels are padded (A) or convolutions (B, which
    ``None`` takes)."""
    bias_downsample: bool | None = None
    """Whether those convolutions have a bias, as MONAI's functions ``resnet18`` and
    so on give them; ``None``: none, as in torchvision."""


SLICE_NETWORKS = (
    "mobilenet_v2",
    "resnet18",
    "resnet34",
    "resnet50",
    "densenet121",
    "efficientnet_b0",
    "convnext_tiny",
)


class SlicesSettings(BackboneSettings):
    """``[backbone]`` of a 2D network of torchvision, applied slice by slice."""

    architecture: str = ""
    """torchvision's name of the network; empty takes what the weights are for, else
    ``mobilenet_v2``. The others have no default weights."""
    width: Annotated[float, Field(gt=0.0)] | None = None
    """Factor on the channels of ``mobilenet_v2``; weights exist for 1.0 alone."""

    @model_validator(mode="after")
    def _known(self) -> SlicesSettings:
        if self.architecture and self.architecture not in SLICE_NETWORKS:
            hint = nearest(self.architecture, SLICE_NETWORKS)
            raise ValueError(f"there is no network {self.architecture!r}; {hint}")
        if self.architecture not in ("", SLICE_NETWORKS[0]) and not self.weights:
            raise ValueError(
                f"say which weights {self.architecture!r} starts from: "
                'backbone.weights = "file:PATH", or "none"'
            )
        return self
