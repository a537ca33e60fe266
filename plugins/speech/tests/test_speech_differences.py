"""Alignments of texts, by hand."""

from __future__ import annotations

from headstart_speech.differences import (
    Piece,
    aligned,
    counted,
    errors_and_units,
    marked,
)


def test_every_word_is_correct_substituted_inserted_or_deleted() -> None:
    (pieces,) = aligned(["the cat sat on it too"], ["the mat sat it too now"])
    assert pieces == [
        Piece("correct", "the", "the"),
        Piece("substituted", "cat", "mat"),
        Piece("correct", "sat", "sat"),
        Piece("deleted", "on", ""),
        Piece("correct", "it", "it"),
        Piece("correct", "too", "too"),
        Piece("inserted", "", "now"),
    ]
    assert errors_and_units(pieces) == (3, 6)
    assert marked(pieces) == "the [cat → mat] sat [on → ∅] it too [∅ → now]"


def test_characters_count_the_space_between_words() -> None:
    (pieces,) = aligned(["a b"], ["ab"], "characters")
    assert [(p.kind, p.reference) for p in pieces] == [
        ("correct", "a"),
        ("deleted", " "),
        ("correct", "b"),
    ]


def test_neighbours_are_pieces_of_their_own() -> None:
    (pieces,) = aligned(["a b c"], ["x y z"])
    assert [(p.reference, p.hypothesis) for p in pieces] == [
        ("a", "x"),
        ("b", "y"),
        ("c", "z"),
    ]


def test_spaces_at_the_ends_and_doubled_ones_are_no_difference() -> None:
    for unit in ("words", "characters"):
        (pieces,) = aligned(["  a   b "], ["a b"], unit)
        assert errors_and_units(pieces)[0] == 0


def test_nothing_said_and_nothing_recognised() -> None:
    inserted, deleted, silent = aligned(["", "a b", ""], ["a b", "", ""])
    assert counted(inserted) == {"inserted": 2}
    assert counted(deleted) == {"deleted": 2}
    assert [errors_and_units(p) for p in (inserted, deleted, silent)] == [
        (2, 0),
        (2, 2),
        (0, 0),
    ]
