"""Stages of SASRec, self-attentive sequential recommendation.

Kang & McAuley 2018: a causal transformer over a user's most recent items, whose output
at each place is matched with the vector of the item that comes next. The blocks are
the paper's, ``x + dropout(g(norm(x)))``; each reads ``sequence``, item codes padded
with -1 on the left, and ``hidden``.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from headstart.stages import Backbone, State


TORCH_NAMES = tuple(
    (f"{ours}{end}", f"{theirs}{separator}{end}")
    for ours, theirs, separator in (
        ("attention_norm.", "norm1.", ""),
        ("project_in.", "self_attn.in_proj", "_"),
        ("project_out.", "self_attn.out_proj.", ""),
        ("norm.", "norm2.", ""),
        ("inner.", "linear1.", ""),
        ("outer.", "linear2.", ""),
    )
    for end in ("weight", "bias")
)
"""What a block's parameters are called in ``torch.nn.TransformerEncoderLayer``."""


class SequenceEmbedding(nn.Module):
    """Items and their places, counted from the last one, as vectors.

    Args:
        length: Most places that a sequence has.
        channels: Width of a vector.
        std: Standard deviation of the places' vectors at the start.
        dropout: Share of numbers left out in training.
    """

    def __init__(self, length: int, channels: int, std: float, dropout: float) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.randn(length, channels) * std)
        self.dropout = nn.Dropout(dropout)

    def forward(self, state: State) -> State:
        sequence, table = state["sequence"], state["item_table"]
        known = (sequence >= 0)[..., None]
        hidden = F.embedding(sequence.clamp(min=0), table) * math.sqrt(table.shape[1])
        hidden = hidden + self.positions[len(self.positions) - sequence.shape[1] :]
        return {**state, "hidden": self.dropout(hidden) * known}


class Block(nn.Module):
    """Causal self-attention, then a layer that sees each place by itself.

    Args:
        channels: Width of a vector, and of the hidden layer.
        heads: Attention heads; they divide ``channels``.
        dropout: Share of activations and attention left out in training.
    """

    def __init__(self, channels: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.share = dropout
        self.attention_norm = nn.LayerNorm(channels)
        self.project_in = nn.Linear(channels, 3 * channels)
        self.project_out = nn.Linear(channels, channels)
        self.norm = nn.LayerNorm(channels)
        self.inner = nn.Linear(channels, channels)
        self.outer = nn.Linear(channels, channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, state: State) -> State:
        hidden, mask = state["hidden"], visible(state["sequence"])[:, None]
        hidden = hidden + self.dropout(self._attend(self.attention_norm(hidden), mask))
        inner = self.dropout(F.relu(self.inner(self.norm(hidden))))
        return {**state, "hidden": hidden + self.dropout(self.outer(inner))}

    def _attend(self, hidden: Tensor, mask: Tensor) -> Tensor:
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.project_in(hidden).chunk(3, dim=-1)
        )
        share = self.share if self.training else 0.0
        mixed = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=share
        )
        projected: Tensor = self.project_out(mixed.transpose(1, 2).flatten(-2))
        return projected


class SequenceNorm(nn.Module):
    """The normalisation after the last block."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, state: State) -> State:
        return {**state, "hidden": self.norm(state["hidden"])}


def visible(sequence: Tensor) -> Tensor:
    """Which places attention may read from each place, (batch, length, length) bool.

    Those before it that hold an item, and itself: of no place at all, a softmax is not
    a number.
    """
    length = sequence.shape[1]
    own = torch.eye(length, dtype=torch.bool, device=sequence.device)
    return (sequence >= 0)[:, None, :].expand(-1, length, -1).tril() | own


def reference_sequential(backbone: Backbone, state: State) -> dict[str, Tensor]:
    """``hidden`` from torch's own transformer layers with the same parameters."""
    hidden = backbone.run(state, 0, backbone.index("embedding") + 1)["hidden"]
    unread = ~visible(state["sequence"])
    for block in backbone.stages.values():
        if not isinstance(block, Block):
            continue
        channels = hidden.shape[-1]
        layer = nn.TransformerEncoderLayer(
            channels, block.heads, channels, 0.0, batch_first=True, norm_first=True
        ).to(hidden)
        own = block.state_dict()
        layer.load_state_dict({theirs: own[ours] for ours, theirs in TORCH_NAMES})
        # In training mode: the fast path for evaluation takes no mask of this shape.
        mask = unread.repeat_interleave(block.heads, dim=0)
        hidden = layer.train()(hidden, src_mask=mask)
    norm = backbone.stages["norm"]
    assert isinstance(norm, SequenceNorm)
    return {"hidden": norm.norm(hidden)}
