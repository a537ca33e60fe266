"""Transcripts as they are learned: normalisation by named options, and alphabets."""

from __future__ import annotations

import unicodedata
from collections import Counter
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from headstart_speech.settings import UtteranceSettings

APOSTROPHES = "'\u2019\u2018\u02bc\u02b9\u0060\u00b4\uff07"
"""What is written for an apostrophe; inside words all of them are the first."""


def options_of(settings: UtteranceSettings) -> dict[str, str]:
    """The options of :func:`normalise`, JSON-ready: ``task["text"]``."""
    return {
        "case": settings.case,
        "punctuation": settings.punctuation,
        "digits": "remove" if settings.digits == "remove" else "keep",
        "unicode": settings.unicode,
        "accents": settings.accents,
    }


def normalise(text: str, options: Mapping[str, Any]) -> str:
    """A transcript as it is learned and measured.

    In this order: Unicode, case, accents, punctuation, digits, spaces. White space is
    one space between words, control characters go.

    Args:
        text: As it was written.
        options: ``unicode`` NFC, NFKC or NFKD; ``case`` lower, upper or keep;
            ``accents`` keep or strip; ``punctuation`` remove (also symbols; an
            apostrophe between two letters stays, as ``'``) or keep; ``digits`` keep or
            remove.
    """
    form = options["unicode"]
    if options["punctuation"] == "remove":
        # Compatibility forms of free-standing accents begin with a space.
        text = text.translate(_TYPEWRITER)
    text = unicodedata.normalize(form, text)
    if options["case"] != "keep":
        text = text.lower() if options["case"] == "lower" else text.upper()
    if options["accents"] == "strip":
        bare = unicodedata.normalize("NFD", text)
        # Marks of other writing systems are vowels, not accents.
        text = "".join(c for c in bare if not "\u0300" <= c <= "\u036f")
    # Case and accents can leave sequences that are not in the normal form.
    text = unicodedata.normalize(form, text)
    keep_digits = options["digits"] == "keep"
    if options["punctuation"] == "remove":
        text = _without_punctuation(text, digits=keep_digits)
    else:
        text = "".join(
            c
            for c in text
            if (kind := _kind(c)) in "lps" or (kind == "d" and keep_digits)
        )
    return " ".join(text.split())


def has_digits(text: str) -> bool:
    """Whether a transcript leaves open how it is spoken."""
    return any(_kind(c) == "d" for c in text)


def alphabets(text: str) -> Counter[str]:
    """Letters of a text by alphabet, e.g. ``{"LATIN": 12}``.

    The writing systems that Japanese, Chinese and Korean texts mix count as one, CJK.
    """
    return Counter(found for c in text if (found := _alphabet(c)))


def mixed_word(text: str) -> str | None:
    """The first word with letters of several alphabets, as look-alikes leave it.

    Letters that are written without spaces between words stand beside any others.
    """
    words = text.split()
    return next((w for w in words if len(alphabets(w).keys() - _NO_SPACES) > 1), None)


_TYPEWRITER = {ord(c): "'" for c in APOSTROPHES}


def _without_punctuation(text: str, *, digits: bool) -> str:
    kept = []
    for i, c in enumerate(text):
        kind = _kind(c)
        if kind == "l" or (kind == "d" and digits):
            kept.append(c)
        elif c == "'" and _letter_at(text, i - 1) and _letter_at(text, i + 1):
            kept.append(c)
        elif kind != "c":
            kept.append(" ")
    return "".join(kept)


def _letter_at(text: str, i: int) -> bool:
    return 0 <= i < len(text) and _kind(text[i]) == "l"


@lru_cache(maxsize=65536)
def _kind(c: str) -> str:
    """``l`` letter or mark, ``d`` digit, ``s`` space, ``c`` control, ``p`` the rest."""
    category = unicodedata.category(c)
    if category == "Me" or unicodedata.name(c, "").startswith("VARIATION SELECTOR"):
        # They say how an emoji or a keycap looks.
        return "c"
    if category[0] in "LM":
        return "l"
    if category in ("Nd", "No"):
        return "d"
    if c.isspace():
        return "s"
    return "c" if category[0] == "C" else "l" if category == "Nl" else "p"


_NO_SPACES = frozenset({"CJK", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN"})
_TOGETHER = ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "BOPOMOFO", "IDEOGRAPHIC")


@lru_cache(maxsize=65536)
def _alphabet(c: str) -> str:
    if unicodedata.category(c)[0] != "L":
        return ""
    # The compatibility form names its letter: FULLWIDTH LATIN …, MICRO SIGN.
    plain = unicodedata.normalize("NFKC", c)[0]
    first = unicodedata.name(plain, "").split(" ")[0].split("-")[0]
    if unicodedata.category(plain) == "Lm" and first == "MODIFIER":
        return ""
    return "CJK" if first in _TOGETHER else first
