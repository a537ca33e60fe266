"""Layers of a transcription head: what they do with frames behind a clip's end is not
seen inside of it."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Doubling(nn.Module):
    """Two frames of each; at first both are the frame itself."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, 2 * channels)
        with torch.no_grad():
            self.linear.weight.copy_(torch.eye(channels).repeat(2, 1))
            self.linear.bias.zero_()

    def forward(self, hidden: Tensor) -> Tensor:
        """(clips, frames, channels) to (clips, 2 frames, channels)."""
        clips, frames, channels = hidden.shape
        pairs: Tensor = self.linear(hidden)
        return pairs.reshape(clips, 2 * frames, channels)


class BiLSTM(nn.Module):
    """A recurrent layer in both directions, half of the width each.

    The second one reads each clip from its own end: packing would have to wait for the
    device to learn the lengths.
    """

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.onward = nn.LSTM(width, width // 2, batch_first=True)
        self.reverse = nn.LSTM(width, width // 2, batch_first=True)

    def forward(self, hidden: Tensor, frames: Tensor) -> Tensor:
        """(clips, frames, width); ``frames`` (clips,) says how many count."""
        hidden = self.dropout(hidden)
        time = torch.arange(hidden.shape[1], device=hidden.device)
        back = (frames[:, None] - 1 - time).clamp(min=0)[..., None]
        onward, _ = self.onward(hidden)
        backward, _ = self.reverse(hidden.gather(1, back.expand_as(hidden)))
        backward = backward.gather(1, back.expand_as(backward))
        return torch.cat([onward, backward], dim=-1)


class Convolution(nn.Module):
    """A convolution over nine frames, added to what it reads."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        self.convolution = nn.Conv1d(width, width, 9, padding=4)

    def forward(self, hidden: Tensor, frames: Tensor) -> Tensor:
        """(clips, frames, width); ``frames`` (clips,) says how many count."""
        inner = self.dropout(self.norm(hidden))
        inner = inner.masked_fill(_behind(inner, frames)[..., None], 0.0)
        inner = self.convolution(inner.transpose(1, 2)).transpose(1, 2)
        return hidden + nn.functional.gelu(inner)


class Attention(nn.Module):
    """A Transformer layer that normalises first."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(
            width,
            nhead=4,
            dim_feedforward=4 * width,
            dropout=dropout,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )

    def forward(self, hidden: Tensor, frames: Tensor) -> Tensor:
        """(clips, frames, width); ``frames`` (clips,) says how many count."""
        behind = _behind(hidden, frames.clamp(min=1))
        attended: Tensor = self.layer(hidden, src_key_padding_mask=behind)
        return attended


LAYERS = {"bilstm": BiLSTM, "conv": Convolution, "transformer": Attention}


def _behind(hidden: Tensor, frames: Tensor) -> Tensor:
    time = torch.arange(hidden.shape[1], device=hidden.device)
    return time >= frames[:, None]
