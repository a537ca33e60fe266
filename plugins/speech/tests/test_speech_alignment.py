"""Word times: of an emission made by hand, and of the likeliest path."""

from __future__ import annotations

import pytest
import torch

from headstart_speech.alignment import align, best_path, timed_words

VOCABULARY = ["<blank>", " ", "a", "b", "c"]


def emission(path: list[int], scale: float = 4.0) -> torch.Tensor:
    """(frames, classes): each frame's class is far likelier than the others."""
    logits = torch.nn.functional.one_hot(torch.tensor(path), 5).float() * scale
    return logits.log_softmax(-1)


def test_words_of_a_made_emission_have_their_times() -> None:
    path = [0, 2, 2, 0, 3, 1, 1, 0, 4, 0, 4, 0]
    spans = align(emission(path), [2, 3, 1, 4, 4])
    places = [(span.token, span.start, span.end) for span in spans]
    assert places == [(2, 1, 3), (3, 4, 5), (1, 5, 7), (4, 8, 9), (4, 10, 11)]
    words = timed_words(spans, VOCABULARY, 0.02)
    sure = float(emission([2])[0, 2].exp())
    assert words == [
        {
            "word": "ab",
            "start": 0.02,
            "end": 0.1,
            "score": pytest.approx(sure, abs=1e-4),
        },
        {
            "word": "cc",
            "start": 0.16,
            "end": 0.22,
            "score": pytest.approx(sure, abs=1e-4),
        },
    ]


def test_alignment_says_the_labels_even_where_others_are_likelier() -> None:
    # What sounds like b is known to be an a; its place is found all the same.
    words = timed_words(align(emission([0, 0, 3, 0, 0]), [2]), VOCABULARY, 1.0)
    (word,) = words
    assert word["word"] == "a" and word["score"] < 0.1
    spans = align(emission([2, 0, 3, 0, 4]), [2, 1, 4])
    assert [VOCABULARY[span.token] for span in spans] == ["a", " ", "c"]
    assert (spans[0].start, spans[-1].end) == (0, 5)


def test_best_path_is_the_alignment_of_what_it_says() -> None:
    log_probs = torch.randn(60, 5, generator=torch.Generator().manual_seed(4))
    log_probs = (2 * log_probs).log_softmax(-1)
    spans = best_path(log_probs)
    labels = [span.token for span in spans]
    assert len(labels) > 20
    forced = align(log_probs, labels)
    assert [(s.token, s.start, s.end) for s in forced] == [
        (s.token, s.start, s.end) for s in spans
    ]


def test_too_few_frames_give_no_times() -> None:
    assert align(emission([2, 3]), [2, 3, 4]) == []
    assert align(emission([2, 2]), [2, 2]) == []
    assert align(emission([2, 0, 2]), [2, 2]) != []
    assert align(emission([2]), []) == []
    assert timed_words([], VOCABULARY, 0.02) == []


def test_spaces_alone_are_no_words() -> None:
    spans = best_path(emission([1, 0, 1, 2, 1]))
    assert [w["word"] for w in timed_words(spans, VOCABULARY, 0.02)] == ["a"]


def test_languages_without_spaces_are_one_word() -> None:
    words = timed_words(best_path(emission([2, 3, 0, 4])), ["<blank>", *"wxyz"], 0.5)
    assert [(w["word"], w["start"], w["end"]) for w in words] == [("xyz", 0.0, 2.0)]
