"""What transcribing without listening reaches: nothing said, and always the same."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from headstart.data import Baseline
from headstart_speech.differences import compared

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

LONGEST_NAME = 40


def baselines(train: Sequence[str], test: Sequence[str]) -> Iterator[Baseline]:
    """Empty transcripts; and for every clip the most frequent one of training.

    Args:
        train: Normalised transcripts of the training split.
        test: Those of the test split, in order.
    """
    yield _constant("empty transcript", "", test)
    counts = Counter(filter(None, map(compared, train)))
    if counts:
        # Of equally frequent ones the shortest, then the first: it costs least.
        text = min(counts, key=lambda one: (-counts[one], len(one), one))
        cut = text if len(text) <= LONGEST_NAME else text[: LONGEST_NAME - 1] + "…"
        yield _constant(f"always “{cut}”", text, test)


def _constant(name: str, text: str, test: Sequence[str]) -> Baseline:
    """The outputs of a head that says the same of every clip.

    It has one frame a clip, blank where it says nothing.
    """
    outputs = {
        "prediction": [text] * len(test),
        "target": list(test),
        "blank": np.full(len(test), float(not text)),
        "frames": np.ones(len(test), dtype=np.int64),
    }
    return Baseline(name, outputs)
