"""The text classifier as one writes it without us, for the plain loop and the peers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional
from transformers import AutoModel
from transformers.utils import logging

if TYPE_CHECKING:
    from headstart.assembly import Assembly


class PeerClassifier(nn.Module):
    """transformers' BertModel, the mean over tokens, a linear layer.

    Args:
        assembly: Its encoder's files are loaded, and its head is copied, so that all
            start from the same numbers.
        dropout: Before the linear layer; the encoder keeps its own.
        trained_layers: The last layers that train, ``None`` for everything.
        frozen_eval: Hold what is frozen in evaluation mode, whoever calls ``train()``.
            Loops leave it in training mode unless one sees to it.
    """

    def __init__(
        self,
        assembly: Assembly,
        *,
        dropout: float,
        trained_layers: int | None = None,
        frozen_eval: bool = False,
    ) -> None:
        super().__init__()
        # What it says of tensors that it leaves out is known.
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        self.encoder = AutoModel.from_pretrained(
            str(assembly.weights.folder), add_pooling_layer=False, local_files_only=True
        )
        ours = assembly.model.head.layers[-1]
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(ours.in_features, ours.out_features)
        self.linear.load_state_dict(ours.state_dict())
        self.frozen: list[nn.Module] = []
        if trained_layers is not None:
            layers = list(self.encoder.encoder.layer)
            self.frozen = [
                self.encoder.embeddings,
                *layers[: len(layers) - trained_layers],
            ]
        for module in self.frozen:
            module.requires_grad_(False)
        self.frozen_eval = frozen_eval

    def train(self, mode: bool = True) -> PeerClassifier:
        super().train(mode)
        if self.frozen_eval:
            for module in self.frozen:
                module.eval()
        return self

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        labels: torch.Tensor,
    ) -> dict[str, Any]:
        hidden = self.encoder(
            input_ids=input_ids, attention_mask=attention_mask
        ).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        pooled = (hidden * mask).sum(1) / mask.sum(1)
        logits = self.linear(self.dropout(pooled))
        return {"loss": functional.cross_entropy(logits, labels), "logits": logits}
