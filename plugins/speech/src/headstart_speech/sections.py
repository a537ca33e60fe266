"""Sections of the report for transcribed clips."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from headstart.report.parts import Cell, Evaluation, Figure, Section, Table
from headstart.report.verdict import number
from headstart_speech import audio
from headstart_speech.charts import compared_texts, rates_by_length, spoken
from headstart_speech.differences import (
    NOTHING,
    Piece,
    aligned,
    counted,
    errors_and_units,
    marked,
)
from headstart_speech.metrics import blank_frames, normalisation

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

GROUPS = 6
"""Of clips of similar length, where there are enough of them."""
FEWEST = 5
"""Clips of such a group."""
MOST_UTTERANCES = 1000
"""A page with more rows takes long to open."""
MOST_PAIRS = 20
MOST_SPEAKERS = 30
MOST_DRAWN = 4
LONGEST_DRAWN = 8.0
"""Seconds of a clip that are drawn."""
LONGEST_TEXT = 300
COLLAPSED = 0.98
"""So many blank frames, and the model says next to nothing."""


@dataclass(frozen=True)
class _Clips:
    """The clips of a split, with words and characters aligned."""

    shown: Sequence[Mapping[str, Any]]
    words: Sequence[Sequence[Piece]]
    characters: Sequence[Sequence[Piece]]
    word_pairs: np.ndarray
    """Errors and words said of each clip, (clips, 2)."""
    character_pairs: np.ndarray
    worst: Sequence[int]
    """Worst first."""

    def name(self, index: int) -> str:
        shown = self.shown[index]
        return str(shown.get("clip") or shown.get("id") or f"clip {index}")


def transcription_sections(evaluation: Evaluation) -> list[Section]:
    """Sections for clips whose words are known.

    Reads ``prediction`` and ``target``, texts; ``blank`` and ``frames``; where there
    are some ``words`` of each clip with their times. Of a sample as it is shown
    ``clip``, ``seconds``, ``speaker``, and ``path``, ``start`` and ``stop``, which say
    where its sound is.
    """
    clips = _clips(evaluation)
    found = (
        _errors(evaluation, clips),
        _differences(evaluation, clips),
        _utterances(evaluation, clips),
        _by_length(evaluation, clips),
        _by_speaker(evaluation, clips),
        _confusions(evaluation, clips),
        _drawn(evaluation, clips),
    )
    return [section for section in found if section is not None]


def _clips(evaluation: Evaluation) -> _Clips:
    texts = evaluation.outputs["target"], evaluation.outputs["prediction"]
    words, characters = aligned(*texts), aligned(*texts, "characters")
    pairs = [
        np.array([errors_and_units(p) for p in pieces]).reshape(-1, 2)
        for pieces in (words, characters)
    ]
    shown = [evaluation.shown(index) for index in range(len(words))]
    # Where nothing was said, any word is worse than wrong ones elsewhere.
    ranks = [-p[:, 0] / np.where(p[:, 1] > 0, p[:, 1], 1e-9) for p in pairs]
    worst = np.lexsort((ranks[1], ranks[0])).tolist()
    return _Clips(shown, words, characters, pairs[0], pairs[1], worst)


def _rate(pairs: np.ndarray) -> float | None:
    """Errors by units over some clips; nothing where nothing was said."""
    errors, units = pairs.reshape(-1, 2).sum(0).tolist()
    return errors / units if units else None


def _errors(evaluation: Evaluation, clips: _Clips) -> Section:
    rows: list[tuple[Cell, ...]] = []
    for name, pieces, pairs in (
        ("words", clips.words, clips.word_pairs),
        ("characters", clips.characters, clips.character_pairs),
    ):
        counts = counted(piece for one in pieces for piece in one)
        said = int(pairs[:, 1].sum())
        kinds = [counts[k] for k in ("correct", "substituted", "deleted", "inserted")]
        rows.append((name, said, *kinds, _rate(pairs)))
    perfect = int((clips.character_pairs[:, 0] == 0).sum())
    text = normalisation(evaluation.task)
    text += f" {perfect:,} of {len(clips.words):,} clips are right to the letter."
    if {"blank", "frames"} <= evaluation.outputs.keys():
        pair = blank_frames(evaluation.outputs["blank"], evaluation.outputs["frames"])
        share = _rate(pair) or 0.0
        text += f" The model says nothing in {share:.1%} of the frames."
        if share > COLLAPSED:
            text += " It has collapsed: it has learned that saying nothing is safe."
    table = Table(
        ("of", "said", "correct", "substituted", "deleted", "inserted", "error rate"),
        tuple(rows),
        caption=f"{len(clips.words):,} clips{_voices(clips)}, {evaluation.split} "
        "split.",
    )
    return Section("Errors", text, tables=(table,))


def _voices(clips: _Clips) -> str:
    """Whose voices they are, where that is known."""
    speakers = {str(shown["speaker"]) for shown in clips.shown if shown.get("speaker")}
    if len(speakers) == 1:
        return " of one speaker, which say nothing about other voices"
    return f" of {len(speakers):,} speakers" if speakers else ""


def _differences(evaluation: Evaluation, clips: _Clips) -> Section | None:
    wrong = [i for i in clips.worst if clips.character_pairs[i, 0]]
    drawn = wrong[: evaluation.rows]
    if not drawn:
        return None
    figure = Figure(
        compared_texts([(_headline(clips, i), clips.words[i]) for i in drawn]),
        caption=f"{len(drawn)} of {len(wrong):,} clips with an error. Bold: orange "
        "words were taken for others, blue ones were not said, pink ones not "
        "recognised.",
        alt=" ".join(f"{clips.name(i)}: {marked(clips.words[i])}." for i in drawn),
        wide=True,
    )
    text = "Where a whole clip is wrong its transcript may be: listen to it."
    return Section("Worst utterances", text, figures=(figure,))


def _headline(clips: _Clips, index: int) -> str:
    rates = _rate(clips.word_pairs[index]), _rate(clips.character_pairs[index])
    seconds = clips.shown[index].get("seconds")
    length = "" if seconds is None else f", {number(float(seconds))} s"
    wer, cer = map(number, rates)
    return f"{clips.name(index)}{length}: WER {wer}, CER {cer}"


def _utterances(evaluation: Evaluation, clips: _Clips) -> Section:
    blank = evaluation.outputs.get("blank")
    # One name in every row tells nothing.
    several = len({shown.get("speaker") for shown in clips.shown}) > 1
    count = len(clips.worst)
    rows: list[tuple[Cell, ...]] = []
    for i in clips.worst[:MOST_UTTERANCES]:
        shown = clips.shown[i]
        rows.append(
            (
                clips.name(i),
                *([str(shown.get("speaker") or "")] if several else ()),
                None if shown.get("seconds") is None else float(shown["seconds"]),
                _rate(clips.word_pairs[i]),
                _rate(clips.character_pairs[i]),
                None if blank is None else float(blank[i]),
                _cut(marked(clips.words[i])),
            )
        )
    caption = f"{evaluation.split} split; {NOTHING} is no word.".capitalize()
    if count > len(rows):
        caption += f" The worst {len(rows):,} of {count:,} clips."
    table = Table(
        ("clip", *(["speaker"] if several else ()), "seconds", "WER", "CER",
         "blank ratio", "said, with [said → recognised]"),
        tuple(rows),
        caption,
    )  # fmt: skip
    return Section("Utterances, worst first", tables=(table,))


def _by_length(evaluation: Evaluation, clips: _Clips) -> Section | None:
    count = len(clips.words)
    known = all(shown.get("seconds") is not None for shown in clips.shown)
    unit = "seconds" if known else "words"
    lengths = (
        np.array([float(shown["seconds"]) for shown in clips.shown])
        if known
        else clips.word_pairs[:, 1].astype(float)
    )
    groups = min(GROUPS, count // FEWEST)
    if groups < 2:
        return None
    rows: list[tuple[Cell, ...]] = []
    means: list[float] = []
    for members in np.array_split(np.argsort(lengths, kind="stable"), groups):
        low, high = lengths[members[[0, -1]]].tolist()
        wer, cer = (
            _rate(clips.word_pairs[members]),
            _rate(clips.character_pairs[members]),
        )
        said = int(clips.word_pairs[members, 1].sum())
        rows.append((f"{low:.3g} to {high:.3g}", len(members), said, wer, cer))
        means.append(float(lengths[members].mean()))
    rates = {
        name: [float("nan") if row[k] is None else float(row[k]) for row in rows]  # type: ignore[arg-type]
        for name, k in (("WER", 3), ("CER", 4))
    }
    table = Table(
        (unit, "clips", "words said", "WER", "CER"),
        tuple(rows),
        caption=f"Clips in groups of similar length, {evaluation.split} split.",
    )
    figure = Figure(
        rates_by_length(means, rates, f"mean length in {unit}"),
        caption="A dot is a group of clips of similar length.",
        alt="Error rates by length",
    )
    return Section("Errors by length", tables=(table,), figures=(figure,))


def _by_speaker(evaluation: Evaluation, clips: _Clips) -> Section | None:
    members: dict[str, list[int]] = {}
    for index, shown in enumerate(clips.shown):
        members.setdefault(str(shown.get("speaker") or "unknown"), []).append(index)
    if len(members) < 2:
        return None
    rows = [
        (
            name,
            len(some),
            int(clips.word_pairs[some, 1].sum()),
            _rate(clips.word_pairs[some]),
            _rate(clips.character_pairs[some]),
        )
        for name, some in members.items()
    ]
    rows.sort(key=lambda row: -(row[3] or 0.0))
    kept = tuple(rows[:MOST_SPEAKERS])
    table = Table(
        ("speaker", "clips", "words said", "WER", "CER"),
        kept,
        caption=f"{len(kept)} of {len(rows):,} speakers, worst first, "
        f"{evaluation.split} split.",
    )
    return Section("Errors by speaker", tables=(table,))


def _confusions(evaluation: Evaluation, clips: _Clips) -> Section | None:
    pieces = [piece for one in clips.characters for piece in one]
    said = Counter(piece.reference for piece in pieces)
    wrong = Counter(
        (p.reference, p.hypothesis) for p in pieces if p.kind != "correct"
    ).most_common()
    if not wrong:
        return None
    rows = tuple(
        (
            _visible(one),
            _visible(other),
            count,
            # What was not said has no share of what was.
            count / said[one] if one else None,
        )
        for (one, other), count in wrong[:MOST_PAIRS]
    )
    table = Table(
        ("said", "recognised", "times", "share of said"),
        rows,
        caption=f"The {len(rows)} most frequent of {len(wrong):,} kinds of error, "
        f"{evaluation.split} split; {NOTHING} is no character.",
    )
    return Section("Confused characters", tables=(table,))


def _visible(character: str) -> str:
    return {"": NOTHING, " ": "␣ (space)"}.get(character, character)


def _drawn(evaluation: Evaluation, clips: _Clips) -> Section | None:
    most = min(MOST_DRAWN, evaluation.rows, len(clips.worst))
    places = np.unique(np.linspace(0, len(clips.worst) - 1, max(most, 1)).round())
    figures = []
    for place in places.astype(int)[:most]:
        figure = _clip(evaluation, clips, clips.worst[place])
        if figure is not None:
            figures.append(figure)
    if not figures:
        return None
    text = "Above the waveform, below the spectrogram (darker is louder)"
    text += ", from the worst clip to the best."
    if "words" in evaluation.outputs:
        text += " The words are those recognised, where the model placed them."
    return Section("Clips", text, figures=tuple(figures))


def _clip(evaluation: Evaluation, clips: _Clips, index: int) -> Figure | None:
    """A clip's drawing; nothing where its sound cannot be read any more."""
    sound = _sound(clips.shown[index])
    if sound is None:
        return None
    waveform, rate = sound
    every = evaluation.outputs.get("words")
    words = [w for w in (every[index] if every else ()) if w["start"] < LONGEST_DRAWN]
    texts = (evaluation.outputs[key][index] for key in ("target", "prediction"))
    said, found = map(_cut, texts)
    caption = f"{_headline(clips, index)}. Said “{said}”, recognised “{found}”."
    if len(waveform) > LONGEST_DRAWN * rate:
        caption += f" The first {LONGEST_DRAWN:g} s."
    return Figure(
        spoken(waveform[: int(LONGEST_DRAWN * rate)], rate, words),
        caption=caption,
        alt=f"Waveform and spectrogram of {clips.name(index)}",
        wide=True,
    )


def _sound(shown: Mapping[str, Any]) -> tuple[np.ndarray, int] | None:
    """A clip's samples and their rate, no more of them than are drawn and one."""
    try:
        file = audio.look(str(shown["path"]))
        first = round(float(shown.get("start") or 0.0) * file.rate)
        last = min(file.frames, first + int(LONGEST_DRAWN * file.rate) + 1)
        if shown.get("stop") is not None:
            last = min(last, round(float(shown["stop"]) * file.rate))
        waveform = audio.read(file, first, last)
    except (KeyError, audio.AudioError):
        return None
    return (waveform, file.rate) if len(waveform) else None


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else text[: LONGEST_TEXT - 1] + "…"
