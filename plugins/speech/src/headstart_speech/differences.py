"""Where a recognised text differs from what was said, word by word or by character.

Alignments are those of the smallest number of edits (Levenshtein 1966), from jiwer.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Literal

import jiwer

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Unit = Literal["words", "characters"]
Kind = Literal["correct", "substituted", "inserted", "deleted"]

NOTHING = "∅"
_KINDS: dict[str, Kind] = {
    "equal": "correct",
    "substitute": "substituted",
    "insert": "inserted",
    "delete": "deleted",
}


@dataclass(frozen=True)
class Piece:
    """A word or character of an alignment.

    Attributes:
        kind: What became of it.
        reference: What was said; empty where it is inserted.
        hypothesis: What was recognised; empty where it is deleted.
    """

    kind: Kind
    reference: str
    hypothesis: str


def compared(text: str) -> str:
    """A text as it is compared: no spaces at its ends, single ones inside."""
    return " ".join(text.split())


def aligned(
    references: Sequence[str], hypotheses: Sequence[str], unit: Unit = "words"
) -> list[list[Piece]]:
    """The pieces of each text in order, one for every word or character.

    Args:
        references: What was said, (clips,).
        hypotheses: What was recognised, (clips,).
        unit: What is aligned; of characters the space between words is one.
    """
    process = jiwer.process_words if unit == "words" else jiwer.process_characters
    found = process([*map(compared, references)], [*map(compared, hypotheses)])
    return [
        [
            Piece(_KINDS[chunk.type], said, heard)
            for chunk in chunks
            for said, heard in zip_longest(
                reference[chunk.ref_start_idx : chunk.ref_end_idx],
                hypothesis[chunk.hyp_start_idx : chunk.hyp_end_idx],
                fillvalue="",
            )
        ]
        for reference, hypothesis, chunks in zip(
            found.references, found.hypotheses, found.alignments, strict=True
        )
    ]


def counted(pieces: Iterable[Piece]) -> Counter[Kind]:
    """How many pieces there are of each kind."""
    return Counter(piece.kind for piece in pieces)


def errors_and_units(pieces: Sequence[Piece]) -> tuple[int, int]:
    """Pieces that are wrong, and words or characters that were said."""
    counts = counted(pieces)
    wrong = len(pieces) - counts["correct"]
    return wrong, len(pieces) - counts["inserted"]


def marked(pieces: Iterable[Piece]) -> str:
    """Words as one line of text, what is wrong in brackets: ``[said → recognised]``."""
    return " ".join(
        piece.reference
        if piece.kind == "correct"
        else f"[{piece.reference or NOTHING} → {piece.hypothesis or NOTHING}]"
        for piece in pieces
    )
