"""Decoding: greedy by hand, and beam search with and without a language model."""

from __future__ import annotations

import itertools
import sys
from typing import TYPE_CHECKING

import pytest
import torch

import headstart_speech
from headstart.errors import UserError
from headstart.predict_options import check_options
from headstart.specs import Feature
from headstart_speech import decoding
from headstart_speech.decoding import BeamSearch, _names, greedy, spelled
from headstart_speech.heads import build_ctc
from headstart_speech.options import TranscribeOptions
from headstart_speech.settings import CTCSettings

if TYPE_CHECKING:
    from pathlib import Path

VOCABULARY = ["<blank>", " ", "a", "b", "c", "t"]
UNSURE = "c[ab]t"
"""A word of which the second character is likelier an a, by little."""


def emission(text: str) -> torch.Tensor:
    """(1, frames, classes): one frame a character, ``[xy]`` x a bit likelier than y."""
    rows = []
    while text:
        row = torch.full((len(VOCABULARY),), -6.0)
        if text[0] == "[":
            row[VOCABULARY.index(text[1])], row[VOCABULARY.index(text[2])] = 0.3, 0.0
            text = text[4:]
        else:
            row[VOCABULARY.index(text[0]) if text[0] != "_" else 0] = 3.0
            text = text[1:]
        rows.append(row)
    return torch.stack(rows).log_softmax(-1)[None]


def arpa(path: Path, unigrams: dict[str, float]) -> str:
    """A model of bigrams that has one, since KenLM reads no smaller one."""
    lines = "".join(f"{score}\t{unit}\t0\n" for unit, score in unigrams.items())
    path.write_text(
        f"\\data\\\nngram 1={len(unigrams) + 3}\nngram 2=1\n\n"
        f"\\1-grams:\n-9\t<unk>\t0\n-9\t<s>\t0\n-1\t</s>\n{lines}\n"
        f"\\2-grams:\n-3\t<s> </s>\n\n\\end\\\n"
    )
    return str(path)


def heard(search: BeamSearch, text: str) -> str:
    clip = emission(text)
    return spelled(search(clip, [clip.shape[1]])[0], VOCABULARY)


def beam(**options: object) -> BeamSearch:
    options = {"decoder": "beam", **options}
    return BeamSearch(TranscribeOptions.model_validate(options), VOCABULARY)


def test_greedy_removes_repeats_then_blanks() -> None:
    log_probs = torch.nn.functional.one_hot(
        torch.tensor([[2, 2, 0, 2, 3, 3, 1, 0, 4], [0, 0, 0, 5, 5, 5, 5, 5, 5]]), 6
    ).float()
    assert greedy(log_probs, [9, 3]) == [[2, 2, 3, 1, 4], []]
    assert greedy(log_probs, [3, 4]) == [[2], [5]]


def test_a_weight_of_nothing_is_told() -> None:
    spec = headstart_speech.register_heads()[0]
    with pytest.raises(UserError) as caught:
        check_options(spec, {"decoder": "beam", "lm_weight": 2.0, "word_score": 1.0})
    told = str(caught.value)
    assert "name one with --lm" in told and "add --words, or --lm" in told
    check_options(spec, {"decoder": "beam", "lm": "a", "lm_weight": 2.0})
    check_options(spec, {"decoder": "beam", "words": "a", "word_score": 2.0})


def test_a_home_that_does_not_exist_is_told() -> None:
    with pytest.raises(UserError, match="~nobody-1/x' cannot be read"):
        beam(words="~nobody-1/x")


def test_text_has_single_spaces_between_words() -> None:
    assert spelled([1, 2, 1, 1, 3, 1, -1], VOCABULARY) == "a b"


def test_beam_without_a_language_model_sums_over_paths() -> None:
    # The likeliest path says nothing; three others, together .40, say "a".
    one = torch.tensor([0.4, 0.01, 0.35, 0.08, 0.08, 0.08]).log()
    log_probs = one.repeat(2, 1)[None]
    assert greedy(log_probs, [2]) == [[]]
    assert beam()(log_probs, [2]) == [[2]]
    assert beam(beam_size=1)(log_probs, [2]) == [[]]
    assert heard(beam(), "ca t") == "ca t"


def test_language_model_of_words_changes_the_answer(tmp_path: Path) -> None:
    clip = f"{UNSURE} a"
    assert heard(beam(), clip) == "cat a"
    lm = arpa(tmp_path / "words.arpa", {"cbt": -0.1, "cat": -5, "a": -0.5})
    assert heard(beam(lm=lm), clip) == "cbt a"
    assert heard(beam(lm=lm, lm_weight=0.0), clip) == "cat a"


def test_language_model_of_characters_changes_the_answer(tmp_path: Path) -> None:
    scores = {"|": -0.5, "a": -5.0, "b": -0.1, "c": -1.0, "t": -1.0}
    lm = arpa(tmp_path / "characters.arpa", scores)
    assert heard(beam(lm=lm), f"{UNSURE} c") == "cbt c"


@pytest.mark.parametrize("space", ["|", "▁", "<space>"])
def test_each_character_has_its_own_score(tmp_path: Path, space: str) -> None:
    """torchaudio's own numbers of a model's characters are those of a hash table."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    scores = {letter: -0.1 - 0.1 * k for k, letter in enumerate(letters)}
    lm = arpa(tmp_path / "characters.arpa", {**scores, space: -3.0})
    vocabulary = ["<blank>", " ", *letters]
    search = BeamSearch(TranscribeOptions(decoder="beam", lm=lm), vocabulary)
    for better, worse in itertools.pairwise(range(2, 28)):
        clip = torch.full((1, 1, 28), -9.0)
        # The worse one is heard, by so little that the model decides.
        clip[0, 0, better], clip[0, 0, worse] = 0.0, 0.05
        assert search(clip.log_softmax(-1), [1]) == [[better]]


@pytest.mark.parametrize("more", [{}, {"Z": -2.0}])
def test_language_model_of_characters_may_be_in_capitals(
    tmp_path: Path, more: dict[str, float]
) -> None:
    scores = {"|": -0.5, "A": -5.0, "B": -0.1, "C": -1.0, "T": -1.0, **more}
    lm = arpa(tmp_path / "characters.arpa", scores)
    assert heard(beam(lm=lm), f"{UNSURE} c") == "cbt c"


def test_language_model_may_know_more_characters_than_are_said(tmp_path: Path) -> None:
    scores = {"|": -0.5, "a": -5.0, "b": -0.1, "c": -1.0, "t": -1.0, "z": -2.0}
    lm = arpa(tmp_path / "characters.arpa", scores)
    assert heard(beam(lm=lm), f"{UNSURE} c") == "cbt c"


def test_no_two_classes_have_one_name(tmp_path: Path) -> None:
    vocabulary = ["<blank>", " ", "a", "A", "i", "ı", "|"]
    assert _names(vocabulary, ["A", "I", "|"]) == [
        *("<blank>", "\ue000", "a", "A", "I", "ı", "|")
    ]
    lm = arpa(tmp_path / "few.arpa", {"A": -1.0, "I": -1.0})
    BeamSearch(TranscribeOptions(decoder="beam", lm=lm), vocabulary)


def test_language_model_without_a_say_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign = arpa(tmp_path / "foreign.arpa", {"д": -1, "а": -1, "|": -1})
    with pytest.raises(UserError, match="none of the model's characters"):
        beam(lm=foreign)
    # One of words whose units cannot be read, as of KenLM's binary files.
    monkeypatch.setattr(decoding, "_unigrams", lambda path: None)
    lm = arpa(tmp_path / "words.arpa", {"cat": -1, "tab": -1})
    with pytest.raises(UserError, match="--words"):
        beam(lm=lm)


def test_language_model_in_capitals_is_spelled_in_our_letters(tmp_path: Path) -> None:
    lm = arpa(tmp_path / "capitals.arpa", {"CBT": -0.1, "CAT": -5, "A": -0.5})
    assert heard(beam(lm=lm), f"{UNSURE} a") == "cbt a"


def test_word_list_alone_limits_what_is_said(tmp_path: Path) -> None:
    words = tmp_path / "words.txt"
    words.write_text("cbt\ntab\n", encoding="utf-8")
    assert heard(beam(words=str(words)), f"{UNSURE} tab") == "cbt tab"


def test_word_score_makes_more_words(tmp_path: Path) -> None:
    words = tmp_path / "words.txt"
    words.write_text("ca t cat\n")
    clip = torch.full((1, 4, 6), -6.0)
    clip[0, [0, 1, 3], [4, 2, 5]] = 3.0
    # Between ca and t perhaps a space, a bit likelier nothing.
    clip[0, 2, [0, 1]] = torch.tensor([0.5, 0.0])
    for score, text in ((0.0, "cat"), (2.0, "ca t")):
        search = beam(words=str(words), word_score=score)
        assert spelled(search(clip.log_softmax(-1), [4])[0], VOCABULARY) == text


def test_words_end_where_spaces_are_heard(tmp_path: Path) -> None:
    lm = arpa(tmp_path / "parts.arpa", {"ca": -0.1, "t": -0.1, "cat": -2.0})
    assert heard(beam(lm=lm), "cat") == "cat"
    assert heard(beam(lm=lm), "ca t") == "ca t"


def test_only_frames_that_count_are_searched() -> None:
    assert spelled(beam()(emission("ca_tb"), [2])[0], VOCABULARY) == "ca"
    assert beam()(emission("ca"), [0]) == [[]]


def test_head_uses_the_decoder_that_is_asked_for(tmp_path: Path) -> None:
    head = build_ctc(
        CTCSettings(name="speech/ctc"),
        {"hidden": Feature("hidden", "tokens", 6, stride=320)},
        {"kind": "transcription", "vocabulary": VOCABULARY, "rate": 16000},
    )
    state = {"log_probs": emission(f"{UNSURE} a"), "heard": torch.tensor([5])}
    assert head.outputs(state)["prediction"] == ["cat a"]
    lm = arpa(tmp_path / "words.arpa", {"cbt": -0.1, "cat": -5, "a": -0.5})
    head.options = TranscribeOptions(decoder="beam", lm=lm)
    outputs = head.outputs(state)
    assert outputs["prediction"] == ["cbt a"]
    words = [(w["word"], w["start"], w["end"]) for w in outputs["words"][0]]
    assert words == [("cbt", 0.0, 0.06), ("a", 0.08, 0.1)]


def test_options_of_the_beam_need_it() -> None:
    spec = next(
        spec for spec in headstart_speech.register_heads() if spec.name == "speech/ctc"
    )
    with pytest.raises(UserError, match=r"(?s)2 faults.*--beam-size.*--lm:.*beam"):
        check_options(spec, {"beam_size": "5", "lm": "words.arpa"})
    assert check_options(spec, {"lm": "", "decoder": "greedy"}) is not None
    assert check_options(spec, {"lm": "words.arpa", "decoder": "beam"}) is not None


def test_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchaudio.models import decoder

    monkeypatch.delitem(decoder.__dict__, "ctc_decoder", raising=False)
    monkeypatch.delattr(decoder, "_ctc_decoder", raising=False)
    monkeypatch.setitem(sys.modules, "torchaudio.models.decoder._ctc_decoder", None)
    with pytest.raises(UserError, match=r"headstart-speech\[beam\]"):
        beam()


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--lm: .*gone\.arpa.* cannot be read"):
        beam(lm=str(tmp_path / "gone.arpa"))
    text = tmp_path / "notes.txt"
    text.write_text("no model\n")
    with pytest.raises(UserError, match="is no language model"):
        beam(lm=str(text))
    foreign = tmp_path / "foreign.txt"
    foreign.write_text("слово\n", encoding="utf-8")
    with pytest.raises(UserError, match="can be spelled"):
        beam(words=str(foreign))
    lm = arpa(tmp_path / "words.arpa", {"cat": -1, "tab": -1})
    with pytest.raises(UserError, match="knows none of the 1 words"):
        beam(lm=lm, words=str(foreign))
    broken = tmp_path / "broken.bin"
    broken.write_bytes(b"mmap lm http://kheafield.com/code format version 5\n\0")
    with pytest.raises(UserError, match="cannot be read"):
        beam(lm=str(broken))
    damaged = tmp_path / "damaged.arpa"
    damaged.write_text("\\data\\\nngram 1=7\n\n\\1-grams:\n-1\tcat\n\\end\\\n")
    with pytest.raises(UserError, match="cannot be read"):
        beam(lm=str(damaged))
