"""Normalisation of transcripts by named options, alphabets, and vocabularies."""

from __future__ import annotations

import pytest

from headstart_speech import vocabulary
from headstart_speech.settings import UtteranceSettings
from headstart_speech.text import (
    alphabets,
    has_digits,
    mixed_word,
    normalise,
    options_of,
)
from headstart_speech.vocabulary import Vocabulary


def settings(**given):
    return UtteranceSettings(name="speech/utterances", path="x", **given)


def normal(text, **given):
    return normalise(text, options_of(settings(**given)))


@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        ("  Hello,\n World! ", {}, "hello world"),
        ("Hello, World!", {"case": "upper"}, "HELLO WORLD"),
        ("Hello, World!", {"case": "keep", "punctuation": "keep"}, "Hello, World!"),
        ("Straße", {"case": "upper"}, "STRASSE"),
        # Apostrophes stay inside words alone, and are one character.
        ("L’agent dit: ‘oui’, rock 'n' roll", {}, "l'agent dit oui rock n roll"),
        ("it`s aujourd´hui", {}, "it's aujourd'hui"),
        ("rendez-vous", {}, "rendez vous"),
        ("soft\u00adhyphen zero\u200bwidth", {}, "softhyphen zerowidth"),
        ("10 % de 5€", {}, "10 de 5"),
        ("press 1 now", {"digits": "remove"}, "press now"),
        ("press 1, now", {"digits": "remove", "punctuation": "keep"}, "press , now"),
        ("ﬁne №5", {}, "fine no5"),
        ("ﬁne", {"unicode": "NFC"}, "ﬁne"),
        ("e\u0301te\u0301", {}, "été"),
        ("été", {"unicode": "NFKD"}, "e\u0301te\u0301"),
        ("été à Noël", {"accents": "strip"}, "ete a noel"),
        ("가각", {"accents": "strip"}, "가각"),
        # Vowel signs are no accents.
        ("हिन्दी में", {"accents": "strip"}, "हिन्दी में"),
        ("?!… — «»", {}, ""),
        # What emoji and keycaps look like is not said.
        ("hi ❤\ufe0f you 1\ufe0f\u20e3", {}, "hi you 1"),
        ("❤\ufe0f!", {"punctuation": "keep"}, "❤!"),
    ],
)
def test_normalise(text, options, expected):
    assert normal(text, **options) == expected


@pytest.mark.parametrize("unicode", ["NFC", "NFKC", "NFKD"])
def test_normalise_twice_is_once(unicode):
    for text in ("İstanbul ǅ ﬃ", "L’été — 5½ ´a", "ΣΊΣΥΦΟΣ", "가각"):
        once = normal(text, unicode=unicode)
        assert normal(once, unicode=unicode) == once


def test_clips_with_digits_are_skipped_not_changed():
    assert options_of(settings(digits="skip"))["digits"] == "keep"
    assert has_digits("press 2")
    assert has_digits("½ past")
    assert not has_digits("two")


def test_alphabets():
    assert alphabets("ab, вг д 12'") == {"LATIN": 2, "CYRILLIC": 3}
    assert set(alphabets("日本語カタカナひらがな")) == {"CJK"}
    assert mixed_word("pay p\u0430y") == "p\u0430y"
    assert mixed_word("asterisk это станция") is None
    assert mixed_word("カメラを買う") is None
    # Written without spaces, other letters are beside them.
    assert mixed_word("私はJohnです Tシャツ PC방 ร้านCD") is None
    assert mixed_word("私はp\u0430yです") == "私はp\u0430yです"


def test_a_built_vocabulary_is_sorted_behind_blank_and_space():
    found = vocabulary.build(["ba c", "éa"])
    assert found.symbols == ("<blank>", " ", "a", "b", "c", "é")


def test_encode_and_decode():
    known = Vocabulary(["<blank>", " ", "a", "b"])
    assert known.encode("ab a").tolist() == [2, 3, 1, 2]
    assert known.decode([2, 0, 3, 1, 2, -1, -1]) == "ab a"
    assert known.outside("abc dé") == ["c", "d", "é"]
    with pytest.raises(KeyError):
        known.encode("c")


def test_a_given_vocabulary_keeps_its_order():
    known, faults = vocabulary.given(settings(vocabulary="ba' "))
    assert known is not None
    assert known.symbols == ("<blank>", " ", "b", "a", "'")
    assert not faults


def test_faults_of_a_given_vocabulary():
    _, faults = vocabulary.given(settings(vocabulary="aabA,"))
    assert [fault.what for fault in faults] == [
        "listed twice: 'a'",
        "no transcript can have 'A', ','",
    ]


def test_the_task_is_what_the_head_needs():
    known = Vocabulary(["<blank>", " ", "a"])
    assert vocabulary.task_of(settings(case="upper"), known, 16000) == {
        "kind": "transcription",
        "vocabulary": ["<blank>", " ", "a"],
        "text": {
            "case": "upper",
            "punctuation": "remove",
            "digits": "keep",
            "unicode": "NFKC",
            "accents": "keep",
        },
        "rate": 16000,
    }
