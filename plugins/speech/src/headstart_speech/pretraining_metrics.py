"""Metrics of wav2vec 2.0's pretraining: whether it learns, and from how many codes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torchmetrics.metric import Metric
from torchmetrics.utilities.data import dim_zero_cat

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

_LEAST = 1e-12  # Keeps the slope of the logarithm finite where a code is never used.


def code_perplexity(shares: Tensor) -> Tensor:
    """How many codes are in use, as if all of them were used equally often.

    The exponential of the entropy of each group, summed over groups, as fairseq and
    transformers state it: from ``groups`` (one code each) to ``groups * codes``.

    Args:
        shares: Of each code in its group, (groups, codes), rows that sum to 1.

    Returns:
        A scalar.
    """
    entropy = -(shares * shares.clamp(min=_LEAST).log()).sum(-1)
    return entropy.exp().sum()


class ContrastiveAccuracy(Metric):
    """Share of hidden frames whose content was told from the distractors.

    Summed in float64: a float32 sum over millions of frames stops growing.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    right: Tensor
    masked: Tensor

    def __init__(self) -> None:
        super().__init__()
        zero = torch.zeros((), dtype=torch.float64)
        self.add_state("right", zero, dist_reduce_fx="sum")
        self.add_state("masked", zero.clone(), dist_reduce_fx="sum")

    def update(self, right: Tensor, masked: Tensor) -> None:
        """Add a batch: of each clip the frames told and the frames hidden, (batch,)."""
        self.right += right.double().sum()
        self.masked += masked.double().sum()

    def compute(self) -> Tensor:
        """A scalar; not a number where nothing is hidden."""
        return self.right / self.masked


class CodebookPerplexity(Metric):
    """Codes in use over all hidden frames of a split; see :func:`code_perplexity`.

    Not a mean over clips or batches: few clips cannot use many codes.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    codes: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("codes", [], dist_reduce_fx="cat")

    def update(self, codes: Sequence[Any]) -> None:
        """Add a batch: the codes of each clip, integers (frames, groups)."""
        self.codes += [torch.as_tensor(clip).long() for clip in codes]

    def compute(self) -> Tensor:
        """A scalar; not a number where nothing is hidden."""
        chosen = dim_zero_cat(self.codes) if self.codes else torch.empty(0, 1)
        if not len(chosen):
            return torch.tensor(torch.nan)
        counts = (torch.bincount(group) for group in chosen.T)
        parts = [code_perplexity(count.double() / len(chosen)) for count in counts]
        return torch.stack(parts).sum()


def contrastive_accuracy(task: Mapping[str, Any]) -> Metric:
    """How often the content of a hidden frame is found among the distractors."""
    return ContrastiveAccuracy()


def codebook_perplexity(task: Mapping[str, Any]) -> Metric:
    """How many codes the quantiser uses, summed over its groups."""
    return CodebookPerplexity()


def contrastive_accuracy_scores(
    task: Mapping[str, Any], outputs: Mapping[str, Any]
) -> np.ndarray:
    """Each clip's frames told and frames hidden, (clips, 2).

    Not a number where nothing is hidden.
    """
    pair = [np.asarray(outputs[name], dtype=np.float64) for name in ("right", "masked")]
    found = np.stack(pair, axis=1)
    found[found[:, 1] == 0] = np.nan
    return found


def sample_pretraining_outputs(
    task: Mapping[str, Any], batch_size: int
) -> dict[str, Any]:
    """Outputs as the head gives them, for tests: of one clip nothing is hidden."""
    generator = torch.Generator().manual_seed(batch_size)
    masked = torch.arange(batch_size) * 5 % 7
    right = (masked - torch.arange(batch_size) % 3).clamp(min=0)
    codes = [
        torch.randint(4, (count, 2), generator=generator).int().numpy()
        for count in masked.tolist()
    ]
    return {"right": right, "masked": masked, "codes": codes}
