"""The characters of a task: built from transcripts or given, saved with the task."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from headstart.errors import Fault
from headstart_speech.text import normalise, options_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from headstart_speech.settings import UtteranceSettings

BLANK = "<blank>"
"""CTC's symbol for nothing new; index 0."""
BLANK_NAMES = ("<pad>", "<blank>", "[pad]", "<ctc_blank>")
SPACE = " "


class Vocabulary:
    """Characters by index and back.

    Args:
        symbols: ``task["vocabulary"]``: the blank, the space, then characters.
    """

    def __init__(self, symbols: Sequence[str]) -> None:
        self.symbols = tuple(symbols)
        self._index = {symbol: i for i, symbol in enumerate(self.symbols)}

    def __len__(self) -> int:
        return len(self.symbols)

    def outside(self, text: str) -> list[str]:
        """The characters of a text that are not in it, each once, sorted."""
        return sorted({c for c in text if c not in self._index})

    def encode(self, text: str) -> np.ndarray:
        """Index of each character of a normalised text, int64 (characters,).

        Raises:
            KeyError: A character is not in it.
        """
        return np.array([self._index[c] for c in text], dtype=np.int64)

    def decode(self, indices: Iterable[int]) -> str:
        """The text of some indices; blanks and padding (-1) say nothing.

        Repeated indices stay: collapsing them is CTC's business.
        """
        return "".join(self.symbols[i] for i in map(int, indices) if i > 0)


def characters(names: Sequence[str]) -> tuple[str, ...]:
    """Classes of a pretrained CTC layer as ours are called, in their order.

    Letters are in capitals in most of the published English ones; ours are lower case
    unless asked for otherwise.
    """
    named = common_names(names)
    lower = tuple(name.lower() for name in named)
    return lower if len(set(lower)) == len(named) else named


def common_names(names: Sequence[str]) -> tuple[str, ...]:
    """Classes of a pretrained CTC layer, blank and space by one name each."""
    found = []
    for row, name in enumerate(names):
        # torchaudio's bundles call the blank "-", which is always their first class.
        if name.casefold() in BLANK_NAMES or (name == "-" and row == 0):
            found.append(BLANK)
        else:
            found.append(SPACE if name in {"|", "▁"} else name)
    return tuple(found)


def build(texts: Iterable[str]) -> Vocabulary:
    """The vocabulary of normalised texts: blank, space, then characters, sorted."""
    characters = set().union(*map(set, texts)) - {SPACE}
    return Vocabulary([BLANK, SPACE, *sorted(characters)])


def given(settings: UtteranceSettings) -> tuple[Vocabulary | None, list[Fault]]:
    """The vocabulary that ``data.vocabulary`` lists, and what is wrong with it."""
    listed = [c for c in settings.vocabulary if c != SPACE]
    if not settings.vocabulary:
        return None, []
    faults = []
    where = "data.vocabulary"
    if twice := sorted(c for c, count in Counter(listed).items() if count > 1):
        what = f"listed twice: {shown(twice)}"
        faults.append(Fault(what, where, fix="list each character once"))
    options = options_of(settings)
    lost = [c for c in dict.fromkeys(listed) if c not in normalise(f"a{c}a", options)]
    if lost:
        why = ", ".join(f"data.{name}={value!r}" for name, value in options.items())
        fix = "list the characters as the normalisation leaves them"
        what = f"no transcript can have {shown(lost)}"
        faults.append(Fault(what, where, f"with {why}", fix))
    if not listed:
        what = "it lists no characters"
        faults.append(Fault(what, where, fix='data.vocabulary="" takes those found'))
    return Vocabulary([BLANK, SPACE, *dict.fromkeys(listed)]), faults


def task_of(
    settings: UtteranceSettings, vocabulary: Vocabulary, rate: int
) -> dict[str, Any]:
    """What the head must know, JSON-ready.

    Args:
        settings: How transcripts are normalised.
        vocabulary: In the order of the head's outputs.
        rate: Samples a second of what the backbone reads.
    """
    return {
        "kind": settings.kind,
        "vocabulary": list(vocabulary.symbols),
        "text": options_of(settings),
        "rate": rate,
    }


def shown(characters: Iterable[str]) -> str:
    """Characters as people can tell them apart: ``'é' (U+00E9)``."""
    found = list(characters)
    names = [f"{c!r} (U+{ord(c):04X})" if not c.isascii() else repr(c) for c in found]
    more = f" and {len(names) - 12} more" if len(names) > 12 else ""
    return ", ".join(names[:12]) + more
