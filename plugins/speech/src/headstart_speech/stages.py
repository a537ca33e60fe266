"""Stages of speech encoders, around transformers' own modules.

What its models do between modules (masks of frames, normalisation, relative positions)
is done per stage from ``lengths``, so that a slice of stages runs from the state alone.
Nothing behind a clip's end influences what is inside: a clip has the same features in
every batch.
"""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.models.wavlm.modeling_wavlm import WavLMAttention

from headstart_speech.geometry import frame_counts

if TYPE_CHECKING:
    from headstart.stages import State
    from headstart_speech.geometry import Layers
    from headstart_speech.masking import SpecAugment


def frame_mask(lengths: Tensor, width: int) -> Tensor:
    """Which positions are inside a clip, (batch, width) bool."""
    return torch.arange(width, device=lengths.device) < lengths[:, None]


class WaveformFeatures(nn.Module):
    """Waveform to features by strided convolutions; ``lengths`` become frames.

    Args:
        block: The convolutions of transformers' model.
        layers: Their geometry.
        normalize: Bring each clip to zero mean and unit variance first.
    """

    def __init__(self, block: Any, layers: Layers, normalize: bool) -> None:
        super().__init__()
        self.block = block
        self.layers = layers
        self.normalize = normalize

    def forward(self, state: State) -> State:
        lengths = state["lengths"]
        inside = frame_mask(lengths, state["waveform"].shape[1])
        waveform = state["waveform"].masked_fill(~inside, 0.0)
        if self.normalize:
            waveform = normalized(waveform, inside)
        hidden = waveform[:, None]
        for i, layer in enumerate(self.block.conv_layers):
            if isinstance(getattr(layer, "layer_norm", None), nn.GroupNorm):
                frames = frame_counts(lengths, self.layers[: i + 1])
                hidden = channel_norm(layer.conv(hidden), frames, layer.layer_norm)
                hidden = layer.activation(hidden)
            else:
                hidden = layer(hidden)
        frames = frame_counts(lengths, self.layers)
        return {**state, "hidden": hidden.transpose(1, 2), "lengths": frames}

    def extra_repr(self) -> str:
        return f"normalize={self.normalize}"


def normalized(waveform: Tensor, inside: Tensor) -> Tensor:
    """Each clip with zero mean and unit variance, as transformers' feature extractor.

    Args:
        waveform: (batch, samples), zeros behind a clip's end.
        inside: Which samples are the clip's, (batch, samples) bool.
    """
    count = inside.sum(dim=1, keepdim=True).clamp(min=1)
    mean = waveform.sum(dim=1, keepdim=True) / count
    centred = (waveform - mean).masked_fill(~inside, 0.0)
    variance = centred.square().sum(dim=1, keepdim=True) / count
    return centred * (variance + 1e-7).rsqrt()


def channel_norm(hidden: Tensor, frames: Tensor, norm: nn.GroupNorm) -> Tensor:
    """Group normalisation, one channel a group, over a clip's own frames.

    Args:
        hidden: (batch, channels, frames).
        frames: Of each clip, (batch,).
        norm: Its scale, shift and epsilon.
    """
    with torch.autocast(hidden.device.type, enabled=False):
        values = hidden.float()
        own = frame_mask(frames, values.shape[2]) / frames.clamp(min=1)[:, None]
        # Products with the mask read the values once and keep nothing of their size.
        mean = values @ own[..., None]
        centred = values - mean
        variance = centred.square() @ own[..., None]
        scale = (variance + norm.eps).rsqrt() * norm.weight[:, None]
        return torch.addcmul(norm.bias[:, None], centred, scale).to(hidden.dtype)


class Projection(nn.Module):
    """Features to the width of the layers, masked, with convolutional positions.

    Where the state has ``masked`` (pretraining), these frames are hidden. Where the
    block gives the normalised features from before, they are left as ``quantizable``.

    Args:
        block: Normalisation, linear layer and dropout.
        position: The convolution over time.
        norm: What normalises before the first layer, if anything does.
        dropout: Comes last.
        mask_embedding: What a masked frame becomes, (channels,).
        augment: Draws masks in training.
    """

    def __init__(
        self,
        block: nn.Module,
        position: Any,
        norm: nn.Module | None,
        dropout: nn.Module,
        mask_embedding: nn.Parameter,
        augment: SpecAugment,
    ) -> None:
        super().__init__()
        self.block = block
        self.position = position
        self.norm = norm
        self.dropout = dropout
        self.mask_embedding = mask_embedding
        self.augment = augment

    def forward(self, state: State) -> State:
        lengths, masked = state["lengths"], state.get("masked")
        projected = self.block(state["hidden"])
        left = {}
        if isinstance(projected, tuple):
            projected, quantizable = projected
            left["quantizable"] = quantizable
        hidden = self.augment(projected, lengths, self.mask_embedding, masked)
        outside = ~frame_mask(lengths, hidden.shape[1])[..., None]
        hidden = hidden.masked_fill(outside, 0.0)
        hidden = hidden + self._positions(hidden, outside)
        if self.norm is not None:
            hidden = self.norm(hidden)
        return {**state, **left, "hidden": self.dropout(hidden)}

    def _positions(self, hidden: Tensor, outside: Tensor) -> Tensor:
        norm = getattr(self.position, "batch_norm", None)
        if norm is None:
            positions: Tensor = self.position(hidden)
            return positions
        # A few HuBERTs normalise over the batch. Padding would count, so the pretrained
        # statistics hold in training too.
        hidden = functional.batch_norm(
            hidden.transpose(1, 2),
            norm.running_mean,
            norm.running_var,
            norm.weight,
            norm.bias,
            eps=norm.eps,
        ).masked_fill(outside.transpose(1, 2), 0.0)
        hidden = self.position.padding(self.position.conv(hidden))
        activated: Tensor = self.position.activation(hidden)
        return activated.transpose(1, 2)


class Layer(nn.Module):
    """A transformer layer that reads the frames inside each clip."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, state: State) -> State:
        hidden = state["hidden"]
        mask = frame_mask(state["lengths"], hidden.shape[1])[:, None, None]
        return {**state, "hidden": self.block(hidden, attention_mask=mask)}


class RelativeLayer(nn.Module):
    """A transformer layer of WavLM, with gated relative positions.

    The first layer owns the bias of each distance and leaves it in the state as
    ``distances``, (batch, buckets, heads), the same for every clip; the others read it.
    """

    def __init__(self, block: Any) -> None:
        super().__init__()
        block.attention = RelativeAttention(block.attention)
        self.block = block

    def forward(self, state: State) -> State:
        hidden = state["hidden"]
        attention: RelativeAttention = self.block.attention
        if attention.rel_attn_embed is not None:
            buckets = torch.arange(attention.num_buckets, device=hidden.device)
            distances = attention.rel_attn_embed(buckets).expand(len(hidden), -1, -1)
        else:
            distances = state["distances"]
        mask = frame_mask(state["lengths"], hidden.shape[1])[:, None, None]
        hidden, _ = self.block(
            hidden,
            attention_mask=mask,
            position_bias=attention.bias(distances[0], hidden.shape[1]),
        )
        return {**state, "hidden": hidden, "distances": distances}


class RelativeAttention(nn.Module):
    """WavLM's attention by torch's fused one.

    transformers' own takes the linear layers' parameters past the layers, where
    adapters of these have no effect, and keeps all attention weights.

    Args:
        attention: Whose modules it takes over.
    """

    def __init__(self, attention: WavLMAttention) -> None:
        super().__init__()
        self.num_heads = attention.num_heads
        self.head_dim = attention.head_dim
        self.dropout = attention.dropout
        self.num_buckets = attention.num_buckets
        # All that the method reads.
        sizes: Any = SimpleNamespace(
            num_buckets=attention.num_buckets, max_distance=attention.max_distance
        )
        self.buckets_of = partial(WavLMAttention._relative_positions_bucket, sizes)
        self.q_proj = attention.q_proj
        self.k_proj = attention.k_proj
        self.v_proj = attention.v_proj
        self.out_proj = attention.out_proj
        self.gru_rel_pos_linear = attention.gru_rel_pos_linear
        self.gru_rel_pos_const = attention.gru_rel_pos_const
        self.rel_attn_embed = getattr(attention, "rel_attn_embed", None)

    def bias(self, distances: Tensor, frames: int) -> Tensor:
        """What relative positions add to the scores, (heads, frames, frames).

        Args:
            distances: Bias of each bucket of distances, (buckets, heads).
            frames: Queries, and keys.
        """
        place = torch.arange(frames, device=distances.device)
        span = torch.arange(1 - frames, frames, device=distances.device)
        values = distances[self.buckets_of(span)].T
        return values[:, place[None, :] - place[:, None] + frames - 1]

    def forward(
        self,
        hidden: Tensor,
        attention_mask: Tensor,
        position_bias: Tensor,
        **_: Any,
    ) -> tuple[Tensor, None, Tensor]:
        """As the upstream method; ``attention_mask`` is true for keys to read."""
        shape = (*hidden.shape[:-1], self.num_heads, self.head_dim)
        gates = self.gru_rel_pos_linear(hidden.view(shape).transpose(1, 2))
        a, b = gates.unflatten(-1, (2, 4)).sum(-1).sigmoid().chunk(2, dim=-1)
        gate = a * (b * self.gru_rel_pos_const - 1.0) + 2.0
        query, key, value = (
            linear(hidden).view(shape).transpose(1, 2)
            for linear in (self.q_proj, self.k_proj, self.v_proj)
        )
        scores = (gate * position_bias).masked_fill(~attention_mask, -torch.inf)
        attended = functional.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=scores.to(query.dtype),
            dropout_p=self.dropout if self.training else 0.0,
        )
        mixed: Tensor = self.out_proj(attended.transpose(1, 2).flatten(2))
        return mixed, None, position_bias


class Norm(nn.Module):
    """The normalisation after the last layer."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, state: State) -> State:
        return {**state, "hidden": self.block(state["hidden"])}
