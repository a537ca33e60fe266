"""When every word was said, from what a CTC model gives frame by frame."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torchaudio.functional import forced_align, merge_tokens

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor
    from torchaudio.functional._alignment import TokenSpan

BLANK = 0


def best_path(log_probs: Tensor) -> list[TokenSpan]:
    """The characters of the likeliest path of all.

    Args:
        log_probs: (frames, classes) float32 on the CPU.
    """
    scores, path = log_probs.max(-1)
    spans: list[TokenSpan] = merge_tokens(path, scores, BLANK)
    return spans


def align(log_probs: Tensor, labels: Sequence[int]) -> list[TokenSpan]:
    """The characters of the likeliest path that says these labels.

    Args:
        log_probs: (frames, classes) float32 on the CPU.
        labels: Classes, none of them the blank.

    Returns:
        One span a label; none where there are too few frames to say them.
    """
    repeats = sum(a == b for a, b in pairwise(labels))
    if not labels or len(log_probs) < len(labels) + repeats:
        return []
    targets = torch.tensor([list(labels)])
    paths, scores = forced_align(log_probs[None].contiguous(), targets, blank=BLANK)
    spans: list[TokenSpan] = merge_tokens(paths[0], scores[0], BLANK)
    return spans


def timed_words(
    spans: Sequence[TokenSpan], vocabulary: Sequence[str], seconds: float
) -> list[dict[str, Any]]:
    """Words with their times.

    Args:
        spans: Characters in order, in frames.
        vocabulary: The classes; a space parts words.
        seconds: Between two frames.

    Returns:
        Each with ``word``, ``start`` and ``end`` in seconds, and ``score``, the
        geometric mean of the probabilities of its characters' frames.
    """
    words: list[list[TokenSpan]] = [[]]
    for span in spans:
        if vocabulary[span.token] == " ":
            words.append([])
        else:
            words[-1].append(span)
    return [_word(word, vocabulary, seconds) for word in words if word]


def _word(
    spans: Sequence[TokenSpan], vocabulary: Sequence[str], seconds: float
) -> dict[str, Any]:
    frames = sum(len(span) for span in spans)
    score = sum(span.score * len(span) for span in spans) / frames
    return {
        "word": "".join(vocabulary[span.token] for span in spans),
        "start": round(spans[0].start * seconds, 3),
        "end": round(spans[-1].end * seconds, 3),
        "score": round(math.exp(score), 4),
    }
