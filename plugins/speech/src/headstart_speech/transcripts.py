"""What transcripts must be: said in characters of the vocabulary and one alphabet."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from headstart.errors import Fault
from headstart_speech import vocabulary
from headstart_speech.text import (
    alphabets,
    has_digits,
    mixed_word,
    normalise,
    options_of,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from headstart.data import Findings
    from headstart_speech.clips import Clip
    from headstart_speech.settings import UtteranceSettings
    from headstart_speech.vocabulary import Vocabulary

RARE = 3
"""A character that so few training transcripts have is hardly learned."""


def check_transcripts(
    clips: Sequence[Clip],
    settings: UtteranceSettings,
    findings: Findings,
    skipped: dict[str, list[Clip]],
) -> list[Clip]:
    """Normalise every transcript; fills ``normal``.

    Args:
        clips: Each with its text.
        settings: The normalisation, the vocabulary, and what to do about others.
        findings: Takes the faults.
        skipped: Takes the clips that are left out, by reason.

    Returns:
        The clips that are not left out; those with faults are among them.
    """
    options = options_of(settings)
    known, _ = vocabulary.given(settings)
    kept: list[Clip] = []
    digits: list[Clip] = []
    removed: Counter[str] = Counter()
    for clip in clips:
        clip.normal = normalise(clip.text or "", options)
        fault = _empty(clip)
        if fault is None and has_digits(clip.text or ""):
            if settings.digits == "skip":
                reason = "digits say nothing about how they are spoken"
                skipped.setdefault(reason, []).append(clip)
                continue
            digits.append(clip)
        strange = known.outside(clip.normal) if known and fault is None else []
        if strange and settings.outside == "skip":
            reason = "characters outside data.vocabulary"
            skipped.setdefault(reason, []).append(clip)
            continue
        if strange and settings.outside == "remove":
            removed.update(strange)
            _remove(clip, strange)
            fault = _empty(clip)
        elif strange:
            fault = _outside(clip, strange)
        if fault is None and (word := mixed_word(clip.normal)):
            fault = _mixed(clip, word)
        if fault is not None:
            findings.sample(*clip.where, fault)
        kept.append(clip)
    if settings.alphabets == "one":
        _check_alphabet(kept, findings)
    _warn(digits, removed, len(clips), findings)
    return kept


def vocabulary_of(
    parts: Mapping[str, Sequence[Clip]],
    settings: UtteranceSettings,
    findings: Findings,
) -> Vocabulary:
    """The vocabulary that is given, else that of the transcripts of all splits.

    A character of the test split that train lacks is thus part of the task and counts
    as an error; a warning names such characters and rare ones.

    Args:
        parts: Checked clips by split.
        settings: ``vocabulary``.
        findings: Takes the warning.
    """
    known, _ = vocabulary.given(settings)
    texts = {split: [c.normal or "" for c in clips] for split, clips in parts.items()}
    if known is None:
        known = vocabulary.build(text for found in texts.values() for text in found)
    counts = Counter(c for text in texts.get("train", []) for c in set(text))
    characters = [c for c in known.symbols[2:] if counts[c] < RARE]
    if texts.get("train") and characters:
        never = [c for c in characters if not counts[c]]
        few = [c for c in characters if counts[c]]
        why = []
        if never:
            why.append(f"none has {vocabulary.shown(never)}")
        if few:
            why.append(f"fewer than {RARE} have {vocabulary.shown(few)}")
        named = (
            "1 character is"
            if len(characters) == 1
            else f"{len(characters)} characters are"
        )
        what = f"{named} in hardly any training transcript"
        fix = "give more of them, or leave them out with data.vocabulary and "
        fix += 'data.outside="remove"'
        fault = Fault(what, "data.vocabulary", "; ".join(why), fix)
        findings.warnings.append(fault)
    return known


def _empty(clip: Clip) -> Fault | None:
    if clip.normal:
        return None
    written = (clip.text or "").strip()
    if clip.text is None:
        fix = "put it into a .txt file beside the audio, or remove the audio"
        return Fault("no transcript", clip.place, fix=fix)
    if not written:
        fix = "write what is said, or remove the clip"
        return Fault("the transcript is empty", clip.place, fix=fix)
    why = f"nothing is left of {written[:40]!r}: data.punctuation, data.digits"
    why += ", data.outside"
    fix = "write it in words, or remove the clip"
    return Fault("the transcript is empty after normalisation", clip.place, why, fix)


def _outside(clip: Clip, strange: Sequence[str]) -> Fault:
    return Fault(
        f"characters outside the vocabulary: {vocabulary.shown(strange)}",
        where=clip.place,
        why=f"the transcript is {(clip.normal or '')[:60]!r}",
        fix='data.outside="remove" goes without them, "skip" without the clip; '
        "before a training they can be added to data.vocabulary",
    )


def _remove(clip: Clip, strange: Sequence[str]) -> None:
    left = (clip.normal or "").translate(dict.fromkeys(map(ord, strange)))
    clip.normal = " ".join(left.split())


def _mixed(clip: Clip, word: str) -> Fault:
    found = alphabets(word)
    few = min(found, key=lambda name: (found[name], name))
    letters = [c for c in word if alphabets(c).keys() == {few}]
    return Fault(
        f"a word of several alphabets: {word!r}",
        where=clip.place,
        why=f"{few.title()} in it: {vocabulary.shown(dict.fromkeys(letters))}",
        fix="type it anew: look-alike letters are characters of their own",
    )


def _check_alphabet(clips: Sequence[Clip], findings: Findings) -> None:
    """Transcripts in another alphabet than most letters are in."""
    found = [(clip, alphabets(clip.normal or "")) for clip in clips]
    total: Counter[str] = Counter()
    for _, letters in found:
        total.update(letters)
    if len(total) < 2:
        return
    main, most = total.most_common(1)[0]
    for clip, letters in found:
        strange = {name: n for name, n in letters.items() if name != main}
        if not strange or clip.where in findings.samples:
            continue
        names = ", ".join(name.title() for name in sorted(strange))
        share = most / total.total()
        what = f"another alphabet than the other transcripts: {names}"
        why = f"{share:.1%} of all letters are {main.title()}; this one is "
        why += repr((clip.normal or "")[:60])
        fix = 'transliterate or remove it, or data.alphabets="any"'
        findings.sample(*clip.where, Fault(what, clip.place, why, fix))


def _warn(
    digits: Sequence[Clip], removed: Counter[str], total: int, findings: Findings
) -> None:
    if digits:
        first = digits[0]
        what = f"{len(digits)} of {total} transcripts have digits"
        said = (first.text or "")[:60]
        why = f"they are spoken as words; e.g. {first.place}: {said!r}"
        fix = 'write numbers as words, or leave such clips out: data.digits="skip"'
        findings.warnings.append(Fault(what, "data.digits", why, fix))
    if removed:
        counted = ", ".join(
            f"{vocabulary.shown([c])} in {n}" for c, n in removed.most_common(12)
        )
        what = f"{len(removed)} characters are removed from transcripts"
        why = f"data.vocabulary does not have them: {counted}"
        findings.warnings.append(Fault(what, "data.outside", why))
