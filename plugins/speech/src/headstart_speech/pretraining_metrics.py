"""Metrics of wav2vec 2.0's pretraining: whether it learns, and from how many codes."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from headstart_speech.metrics import Ratio

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


class CodebookPerplexity:
    """Codes in use over all hidden frames of a split; see :func:`code_perplexity`.

    Not a mean over clips or batches: few clips cannot use many codes. What is kept is
    how often each code came, however many frames there are.
    """

    def __init__(self) -> None:
        self.reset()

    def update(self, codes: Sequence[Any]) -> None:
        """Add a batch: the codes of each clip, integers (frames, groups)."""
        for clip in codes:
            for group, column in enumerate(np.asarray(clip).T):
                there, times = np.unique(column, return_counts=True)
                self.counts[group].update(dict(zip(there, times, strict=True)))

    def compute(self) -> float:
        """Summed over groups; not a number where nothing is hidden."""
        parts = []
        for counter in self.counts.values():
            counts = torch.tensor([*counter.values()], dtype=torch.float64)
            parts.append(float(code_perplexity(counts / counts.sum())))
        return sum(parts) if any(self.counts.values()) else float("nan")

    def reset(self) -> None:
        """Forget all clips."""
        self.counts: defaultdict[int, Counter[int]] = defaultdict(Counter)


def frames_told(right: Any, masked: Any) -> np.ndarray:
    """Frames told and frames hidden of each clip, float64 (clips, 2).

    Args:
        right: Hidden frames that were told from the distractors, (clips,).
        masked: Hidden frames, (clips,).
    """
    pair = [torch.as_tensor(part).cpu().double() for part in (right, masked)]
    return torch.stack(pair, dim=1).numpy()


def contrastive_accuracy(task: Mapping[str, Any]) -> Ratio:
    """How often the content of a hidden frame is found among the distractors."""
    return Ratio(frames_told)


def codebook_perplexity(task: Mapping[str, Any]) -> CodebookPerplexity:
    """How many codes the quantiser uses, summed over its groups."""
    return CodebookPerplexity()


def contrastive_accuracy_scores(
    task: Mapping[str, Any], outputs: Mapping[str, Any]
) -> np.ndarray:
    """Each clip's frames told and frames hidden, (clips, 2).

    Not a number where nothing is hidden.
    """
    found = frames_told(outputs["right"], outputs["masked"])
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
