"""Metrics of transcription: word and character error rate, and the share of blanks.

Texts are compared as the data normalises them (see :func:`normalisation`); the head
spells both from one vocabulary, so that nothing else can differ. An error rate is one
ratio over all clips, not a mean of ratios: a clip counts as much as is said in it. A
clip in which nothing is said adds its errors, and nothing to what they are divided by.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from headstart_speech.differences import aligned, errors_and_units

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    Parts = Callable[..., np.ndarray]


class Ratio:
    """One sum over clips divided by another.

    Args:
        parts: From a batch's outputs to what each clip adds to both, (clips, 2).
    """

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.reset()

    def update(self, *outputs: Any) -> None:
        """Add a batch: outputs of the head, one row a clip."""
        self.sums += self.parts(*outputs).sum(0)

    def compute(self) -> float:
        """The ratio; not a number where there is nothing to divide by."""
        above, below = self.sums
        return float(above / below) if below else float("nan")

    def reset(self) -> None:
        """Forget all clips."""
        self.sums = np.zeros(2)


def word_errors(prediction: Sequence[str], target: Sequence[str]) -> np.ndarray:
    """Wrong words of each clip, and words that were said, float64 (clips, 2)."""
    return _pairs(target, prediction, "words")


def character_errors(prediction: Sequence[str], target: Sequence[str]) -> np.ndarray:
    """The same of characters, spaces between words included, float64 (clips, 2)."""
    return _pairs(target, prediction, "characters")


def blank_frames(blank: Any, frames: Any) -> np.ndarray:
    """Blank frames of each clip, and all of its frames, float64 (clips, 2).

    Args:
        blank: Share of blank frames, (clips,).
        frames: Their number, (clips,).
    """
    share, count = (torch.as_tensor(part).cpu().double() for part in (blank, frames))
    return torch.stack([share * count, count], dim=1).numpy()


def wer(task: Mapping[str, Any]) -> Ratio:
    """Word error rate: substituted, inserted and deleted words by words said."""
    return Ratio(word_errors)


def cer(task: Mapping[str, Any]) -> Ratio:
    """Character error rate: the same of characters, spaces included."""
    return Ratio(character_errors)


def blank_ratio(task: Mapping[str, Any]) -> Ratio:
    """Share of frames in which the model says nothing; near 1 it has collapsed."""
    return Ratio(blank_frames)


def wer_scores(task: Mapping[str, Any], outputs: Mapping[str, Any]) -> np.ndarray:
    """Each clip's share in both sums of the word error rate, (clips, 2)."""
    return word_errors(outputs["prediction"], outputs["target"])


def cer_scores(task: Mapping[str, Any], outputs: Mapping[str, Any]) -> np.ndarray:
    """Each clip's share in both sums of the character error rate, (clips, 2)."""
    return character_errors(outputs["prediction"], outputs["target"])


def blank_ratio_scores(
    task: Mapping[str, Any], outputs: Mapping[str, Any]
) -> np.ndarray:
    """Each clip's blank frames and frames, (clips, 2)."""
    return blank_frames(outputs["blank"], outputs["frames"])


def normalisation(task: Mapping[str, Any]) -> str:
    """How texts are made comparable before they are compared, as a sentence."""
    rules = task.get("text", {})
    said = [
        {"lower": "in lower case", "upper": "in upper case"}.get(rules.get("case"), ""),
        "without punctuation (apostrophes inside words stay)"
        if rules.get("punctuation") == "remove"
        else "",
        "without digits" if rules.get("digits") == "remove" else "",
        "without accents" if rules.get("accents") == "strip" else "",
        f"in Unicode form {rules['unicode']}" if rules.get("unicode") else "",
    ]
    how = ", ".join(part for part in said if part) or "as they are written"
    return (
        f"What was said and what was recognised are compared {how}; more than one "
        "space counts as one. A character is a Unicode code point, the space between "
        "words included."
    )


def sample_outputs(task: Mapping[str, Any], batch_size: int) -> dict[str, Any]:
    """Outputs as the head gives them, for tests: clips are right, wrong or silent."""
    said = ["abba cab", "a cab", "", "bad abba a"]
    heard = ["abba cab", "a bb ab", "b", ""]
    return {
        "prediction": [heard[i % 4] for i in range(batch_size)],
        "target": [said[i % 4] for i in range(batch_size)],
        "blank": torch.linspace(0.5, 1.0, batch_size),
        "frames": 20 + 3 * torch.arange(batch_size),
    }


def _pairs(
    references: Sequence[str], hypotheses: Sequence[str], unit: Any
) -> np.ndarray:
    pairs = [errors_and_units(p) for p in aligned(references, hypotheses, unit)]
    return np.array(pairs, dtype=np.float64).reshape(-1, 2)
