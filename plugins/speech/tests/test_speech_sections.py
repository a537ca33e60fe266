"""Sections of the report: what they say about clips whose answers are known."""

from __future__ import annotations

import json
import re
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import soundfile

from headstart.report.parts import Evaluation, Section
from headstart_speech import sections
from headstart_speech.charts import compared_texts, spoken
from headstart_speech.differences import aligned
from headstart_speech.sections import transcription_sections

if TYPE_CHECKING:
    from pathlib import Path

RATE = 8000
TASK = {
    "kind": "transcription",
    "vocabulary": ["<blank>", " ", *"abcdefghijklmnopqrstuvwxyz"],
    "text": {"case": "lower", "punctuation": "remove", "unicode": "NFKC"},
    "rate": 16000,
}
SAID = ["one two", "three", "four five six", "seven", "", *["eight nine"] * 7]
HEARD = ["one too", "three", "four six", "heaven ten", "", *["eight nine"] * 7]


def evaluation(folder: Path, **changes: Any) -> Evaluation:
    """Twelve clips: a substituted word, a deleted one, one wrong with an inserted."""
    path = folder / "talk.wav"
    times = np.arange(3 * RATE) / RATE
    tone = 0.5 * np.sin(2 * np.pi * 500 * times) * (times % 1 < 0.5)
    soundfile.write(path, tone, RATE)
    shown = [
        {
            "clip": f"c{i}",
            "seconds": 1.0 + i / 10,
            "speaker": "ann" if i < 3 else "bob",
            "path": str(path),
            "start": 0.5,
            "stop": 2.0,
        }
        for i in range(12)
    ]
    words = [
        [
            {"word": w, "start": 0.3 * k, "end": 0.3 * k + 0.2, "score": 1.0}
            for k, w in enumerate(heard.split())
        ]
        for heard in HEARD
    ]
    outputs = {
        "target": SAID,
        "prediction": HEARD,
        "blank": np.full(12, 0.6, dtype=np.float32),
        "frames": np.arange(50, 62),
        "words": words,
    }
    values = {"outputs": outputs, "samples": shown, "rows": 12, **changes}
    return Evaluation(split="test", metrics={}, task=TASK, **values)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Section]:
    found = transcription_sections(evaluation(tmp_path_factory.mktemp("clips")))
    return {section.title: section for section in found}


def rows(section: Section) -> list[dict[str, Any]]:
    (table,) = section.tables
    return [dict(zip(table.columns, row, strict=True)) for row in table.rows]


def test_errors_are_counted_by_kind(made: dict[str, Section]) -> None:
    words, _ = rows(made["Errors"])
    # 21 words: too, heaven; five; ten.
    assert words == {
        "of": "words",
        "said": 21,
        "correct": 18,
        "substituted": 2,
        "deleted": 1,
        "inserted": 1,
        "error rate": pytest.approx(4 / 21),
    }
    text = made["Errors"].text
    assert "in lower case, without punctuation" in text
    assert "9 of 12 clips are right to the letter" in text
    assert "nothing in 60.0% of the frames" in text and "collapsed" not in text
    assert "12 clips of 2 speakers" in made["Errors"].tables[0].caption


def test_utterances_come_worst_first(made: dict[str, Section]) -> None:
    table = rows(made["Utterances, worst first"])
    assert [row["clip"] for row in table[:3]] == ["c3", "c0", "c2"]
    assert len(table) == 12
    assert table[0]["WER"] == 2.0
    assert [row["speaker"] for row in table[:3]] == ["bob", "ann", "ann"]
    assert table[0][
        "said, with [said → recognised]"
    ] == "[seven → heaven] [∅ → ten]" or (
        "[seven → ten]" in table[0]["said, with [said → recognised]"]
    )
    assert table[2]["said, with [said → recognised]"] == "four [five → ∅] six"
    silent = next(row for row in table if row["clip"] == "c4")
    assert silent["WER"] is None


def test_of_very_many_utterances_the_worst_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sections, "MOST_UTTERANCES", 5)
    found = {s.title: s for s in transcription_sections(evaluation(tmp_path))}
    (table,) = found["Utterances, worst first"].tables
    assert [row[0] for row in table.rows[:3]] == ["c3", "c0", "c2"]
    assert len(table.rows) == 5
    assert table.caption.endswith("The worst 5 of 12 clips.")


def test_differences_are_drawn_and_told(made: dict[str, Section]) -> None:
    section = made["Worst utterances"]
    (figure,) = section.figures
    assert figure.caption.startswith("3 of 3 clips with an error")
    assert "one [two → too]" in figure.alt
    # Substituted words are orange, and what is missing is marked without colour too.
    assert re.search(r'fill: #d55e00[^>]*"[^>]*>two<', figure.svg.lower())
    assert "····" in figure.svg


def test_rates_by_length_and_speaker(made: dict[str, Section]) -> None:
    short, long = rows(made["Errors by length"])
    assert (short["seconds"], short["clips"], short["words said"]) == ("1 to 1.5", 6, 9)
    assert short["WER"] == pytest.approx(4 / 9)
    assert long["WER"] == 0
    assert made["Errors by length"].figures[0].svg.startswith("<svg")
    speakers = {row["speaker"]: row["WER"] for row in rows(made["Errors by speaker"])}
    assert speakers == {"ann": pytest.approx(2 / 6), "bob": pytest.approx(2 / 15)}


def test_confused_characters_have_their_share(made: dict[str, Section]) -> None:
    table = {(r["said"], r["recognised"]): r for r in rows(made["Confused characters"])}
    # two → too: one of the two w in "one two" and none else.
    found = table["w", "o"]
    assert (found["times"], found["share of said"]) == (1, 1.0)
    assert table["∅", "␣ (space)"]["share of said"] is None


def test_clips_are_drawn_with_their_words(made: dict[str, Section]) -> None:
    figures = made["Clips"].figures
    assert len(figures) == 4
    worst = figures[0]
    assert worst.caption.startswith("c3, 1.300 s: WER 2.000")
    assert "Said “seven”, recognised “heaven ten”." in worst.caption
    assert all(f">{w}<" in worst.svg for w in ("heaven", "ten", "kHz"))


def test_only_the_clips_own_part_of_its_file_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from headstart_speech import audio

    given = evaluation(tmp_path)
    spans = []

    def read(file: Any, start: int, stop: int) -> np.ndarray:
        spans.append((start, stop))
        return np.ones(stop - start, dtype=np.float32)

    monkeypatch.setattr(audio, "read", read)
    sections.transcription_sections(given)
    assert set(spans) == {(RATE // 2, 2 * RATE)}


def test_clips_whose_sound_is_gone_are_not_drawn(tmp_path: Path) -> None:
    shown = [{"clip": f"c{i}", "path": str(tmp_path / "no.wav")} for i in range(12)]
    found = transcription_sections(evaluation(tmp_path, samples=shown))
    titles = [section.title for section in found]
    assert "Clips" not in titles and "Errors by speaker" not in titles
    # Without seconds, length is what is said.
    (length,) = (s for s in found if s.title == "Errors by length")
    assert length.tables[0].columns[0] == "words"


def test_one_speaker_and_a_collapse_are_stated(tmp_path: Path) -> None:
    outputs = {
        "target": ["one two"],
        "prediction": [""],
        "blank": np.ones(1),
        "frames": np.array([50]),
    }
    shown = [{"clip": "c", "seconds": 1.0, "speaker": "ann"}]
    found = transcription_sections(
        evaluation(tmp_path, outputs=outputs, samples=shown, rows=0)
    )
    assert [s.title for s in found] == [
        "Errors",
        "Utterances, worst first",
        "Confused characters",
    ]
    assert "It has collapsed" in found[0].text
    assert "one speaker, which say nothing" in found[0].tables[0].caption
    assert "speaker" not in found[1].tables[0].columns


def test_no_error_has_no_section_of_errors(tmp_path: Path) -> None:
    outputs = {"target": SAID, "prediction": SAID}
    titles = [
        s.title for s in transcription_sections(evaluation(tmp_path, outputs=outputs))
    ]
    assert "Worst utterances" not in titles and "Confused characters" not in titles
    assert "Clips" in titles


def test_sections_are_json_and_without_markup(made: dict[str, Section]) -> None:
    for section in made.values():
        json.dumps(section.to_dict(), allow_nan=False)
        assert "<" not in section.text


def test_letters_that_our_font_lacks_are_drawn_quietly() -> None:
    (pieces,) = aligned(["字 <b>"], ["字 &"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        svg = compared_texts([("c", pieces)])
    assert "字" in svg and "&lt;b&gt;" in svg and "<b>" not in svg


def test_long_texts_go_on_on_a_new_line() -> None:
    (pieces,) = aligned(["word " * 60], ["word " * 60])
    svg = compared_texts([("c", pieces)])
    assert svg.count(">said<") == 4
    assert svg.count(">word<") == 120


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
def test_a_tone_is_dark_at_its_pitch(rate: int) -> None:
    from headstart_speech.charts import _spectrogram

    times = np.arange(rate) / rate
    power, top = _spectrogram(np.sin(2 * np.pi * 1000 * times), rate)
    row = int(power.mean(1).argmax())
    assert row / (len(power) - 1) * top == pytest.approx(1000, abs=40)
    assert top == pytest.approx(min(8000, rate / 2), abs=40)
    assert power.max() == 0


@pytest.mark.parametrize("samples", [1, 100, 24000])
def test_clips_of_any_length_can_be_drawn(samples: int) -> None:
    svg = spoken(np.zeros(samples, dtype=np.float32), 16000)
    assert svg.startswith("<svg")
