"""Rows and files of predictions: pieces joined, subtitles that can be read."""

from __future__ import annotations

import itertools
import json
import re
from typing import TYPE_CHECKING, Any

import pytest

from headstart_speech.predictions import joined, write_predictions
from headstart_speech.subtitles import srt, tsv, vtt

if TYPE_CHECKING:
    from pathlib import Path


def word(text: str, start: float, end: float) -> dict[str, Any]:
    return {"word": text, "start": start, "end": end, "score": 0.9}


def name(sample: dict[str, Any]) -> str:
    return sample["input"]


SAMPLES = [
    {"input": "talk.wav", "piece": 0, "start": 0.0, "seconds": 20.0},
    {"input": "talk.wav", "piece": 1, "start": 20.0, "seconds": 15.5},
    {"input": "talk.wav", "piece": 2, "start": 35.5, "seconds": 4.5},
    {"input": "other/talk.wav", "seconds": 3.0},
]
PREDICTIONS = [
    {"text": "good morning", "words": [word("good", 1, 1.4), word("morning", 1.5, 2)]},
    {"text": "", "words": []},
    {"text": "bye", "words": [word("bye", 0.5, 1.0)]},
    {"text": "once more"},
]


def test_pieces_become_one_row_with_times_of_the_whole() -> None:
    talk, other = joined(SAMPLES, PREDICTIONS, name)
    assert talk["input"] == "talk.wav"
    assert talk["text"] == "good morning bye"
    assert talk["seconds"] == 40.0
    assert [(s["start"], s["end"], s["text"]) for s in talk["segments"]] == [
        (1.0, 2.0, "good morning"),
        (36.0, 36.5, "bye"),
    ]
    assert talk["segments"][1]["words"] == [word("bye", 36.0, 36.5)]
    assert other["segments"] == [{"start": 0.0, "end": 3.0, "text": "once more"}]


def test_rows_come_as_soon_as_an_input_is_whole() -> None:
    asked = []

    def predictions():
        for number, found in enumerate(PREDICTIONS):
            asked.append(number)
            yield found

    rows = joined(SAMPLES, predictions(), name)
    assert asked == []
    next(rows)
    assert asked == [0, 1, 2, 3]


def test_no_word_ends_behind_the_sound() -> None:
    """Whisper's last frame reaches up to 10 ms beyond it."""
    sample = {"input": "a.wav", "start": 20.0, "seconds": 0.01}
    found = {"text": "a", "words": [word("a", 0.0, 0.02)]}
    (row,) = joined([sample], [found], name)
    (segment,) = row["segments"]
    assert segment["end"] == segment["words"][0]["end"] == row["seconds"] == 20.01


def test_two_inputs_of_one_name_stay_apart() -> None:
    rows = list(joined([SAMPLES[3]] * 2, [{"text": "a"}, {"text": "b"}], name))
    assert [row["text"] for row in rows] == ["a", "b"]


@pytest.mark.parametrize(
    ("wanted", "keys"),
    [
        ("text", ["input", "text"]),
        *((form, ["input", form]) for form in ("srt", "vtt", "tsv")),
    ],
)
def test_rows_have_the_format_that_is_wanted(wanted: str, keys: list[str]) -> None:
    predictions = [{**found, "format": wanted} for found in PREDICTIONS]
    assert [list(row) for row in joined(SAMPLES, predictions, name)] == [keys] * 2


def test_each_input_has_its_files(tmp_path: Path) -> None:
    files = write_predictions(tmp_path, SAMPLES, PREDICTIONS, name)
    endings = (".txt", ".json", ".srt", ".vtt", ".tsv")
    names = [f"{name}{ending}" for name in ("talk", "talk-2") for ending in endings]
    assert [path.name for path in files] == names
    assert (tmp_path / "talk.txt").read_text() == "good morning\nbye\n"
    row = json.loads((tmp_path / "talk.json").read_text())
    assert row == next(joined(SAMPLES, PREDICTIONS, name))
    assert (tmp_path / "talk.srt").read_text() == (
        "1\n00:00:01,000 --> 00:00:02,000\ngood morning\n\n"
        "2\n00:00:36,000 --> 00:00:37,000\nbye\n"
    )
    lines = (tmp_path / "predictions.jsonl").read_text().splitlines()
    assert json.loads(lines[1])["files"]["srt"] == "talk-2.srt"


def test_only_the_wanted_format_is_written(tmp_path: Path) -> None:
    wanted = [{**found, "format": "srt"} for found in PREDICTIONS]
    files = write_predictions(tmp_path, SAMPLES, wanted, name)
    assert [path.name for path in files] == ["talk.srt", "talk-2.srt"]
    assert not list(tmp_path.glob("*.txt"))


def test_of_many_inputs_the_table_is_named(tmp_path: Path) -> None:
    samples = [{"input": f"{k}.wav", "seconds": 1.0} for k in range(20)]
    files = write_predictions(tmp_path, samples, [{"text": "a"}] * 20, name)
    assert files == [tmp_path / "predictions.jsonl"]
    assert (tmp_path / "19.srt").exists()


@pytest.mark.parametrize(
    ("given", "written"),
    [
        ("../../etc/passwd.wav", "passwd"),
        ("ça va?.mp3", "ça-va"),
        ("C:\\a b.wav", "C-a-b"),
        ("...", "clip"),
        ("CON.wav", "clip-CON"),
        ("é" * 300 + ".wav", "é" * 60),
    ],
)
def test_names_of_files_are_safe(tmp_path: Path, given: str, written: str) -> None:
    sample = {"input": given, "seconds": 1.0}
    wanted = [{"text": "a", "format": "text"}]
    (path,) = write_predictions(tmp_path, [sample], wanted, name)
    assert path == tmp_path / f"{written}.txt"


def cues(text: str) -> list[tuple[float, float, list[str]]]:
    """SRT read back: seconds from, to, and lines."""
    found = []
    for number, block in enumerate(text.strip().split("\n\n"), start=1):
        head, times, *lines = block.split("\n")
        assert head == str(number)
        parts = re.fullmatch(
            r"(\d\d):(\d\d):(\d\d),(\d{3}) --> (\d\d):(\d\d):(\d\d),(\d{3})", times
        )
        h, m, s, f, *end = map(int, parts.groups())
        begin = 3600 * h + 60 * m + s + f / 1000
        stop = 3600 * end[0] + 60 * end[1] + end[2] + end[3] / 1000
        found.append((begin, stop, lines))
    return found


def hour() -> list[dict[str, Any]]:
    """An hour of words of different lengths, with times of their own."""
    words = [
        word("w" * (1 + k % 13), 0.5 * k, 0.5 * k + 0.1 + 0.3 * (k % 2))
        for k in range(7200)
    ]
    text = " ".join(w["word"] for w in words)
    return [{"start": 0.0, "end": 3600.0, "text": text, "words": words}]


@pytest.mark.parametrize("timed", [True, False])
def test_cues_can_be_read(timed: bool) -> None:
    segments = hour()
    if not timed:
        segments = [{k: v for k, v in segments[0].items() if k != "words"}]
    found = cues(srt(segments))
    said = " ".join(" ".join(lines) for _, _, lines in found)
    assert said == segments[0]["text"]
    assert all(len(lines) <= 2 for _, _, lines in found)
    assert max(len(line) for _, _, lines in found for line in lines) <= 42
    assert all(0 < stop - begin <= 7.0005 for begin, stop, _ in found)
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(found))
    assert found[-1][1] > 3590


def test_a_long_pause_begins_a_new_cue() -> None:
    words = [word("a", 0, 0.2), word("b", 0.4, 0.6), word("c", 3.0, 3.2)]
    found = cues(srt([{"start": 0, "end": 4, "text": "a b c", "words": words}]))
    # Short ones stay for a second.
    assert found == [(0.0, 1.0, ["a b"]), (3.0, 4.0, ["c"])]


def spoken(text: str, gaps: dict[str, float]) -> list[dict[str, Any]]:
    """Words of 0.3 s, 0.05 s apart, but for the gaps behind some of them."""
    words, time = [], 0.0
    for said in text.split():
        words.append(word(said, round(time, 2), round(time + 0.3, 2)))
        time += 0.3 + gaps.get(said, 0.05)
    return [{"start": 0.0, "end": time, "text": text, "words": words}]


def test_a_cue_ends_where_speech_pauses() -> None:
    """85 characters would reach into the middle of the second sentence."""
    first = "the person you are calling is not available"
    second = "please leave your message and then press the pound key"
    found = cues(srt(spoken(f"{first} {second}", {"available": 0.5})))
    assert [lines for *_, lines in found] == [
        ["the person you are", "calling is not available"],
        ["please leave your message", "and then press the pound key"],
    ]


def test_lines_are_parted_at_a_pause_too() -> None:
    text = "one two three four five six seven eight nine ten"
    (found,) = cues(srt(spoken(text, {"four": 0.4})))
    assert found[2] == ["one two three four", "five six seven eight nine ten"]


def test_a_full_stop_ends_a_cue_where_no_gap_is_longer() -> None:
    first = "one two three four five six seven."
    second = "eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
    found = cues(srt(spoken(f"{first} {second}", {})))
    assert [" ".join(lines) for *_, lines in found] == [first, second]


def test_no_cue_is_a_crumb() -> None:
    """17 words would fit into the first one, and leave three."""
    found = cues(srt(spoken("abcd " * 20, {})))
    assert [len(" ".join(lines).split()) for *_, lines in found] == [10, 10]


def test_webvtt_and_a_table_have_the_cues_of_srt() -> None:
    words = [word("<a>", 0, 0.2), word("&b", 0.4, 2.0), word("-->", 3661.5, 3663)]
    segments = [{"start": 0, "end": 3663, "text": "", "words": words}]
    assert vtt(segments) == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:02.000\n&lt;a&gt; &amp;b\n\n"
        "01:01:01.500 --> 01:01:03.000\n--&gt;\n"
    )
    assert tsv(segments) == (
        "start\tend\ttext\n0\t2000\t<a> &b\n3661500\t3663000\t-->\n"
    )
    assert srt(segments).endswith("01:01:01,500 --> 01:01:03,000\n->\n")
    assert (vtt([]), tsv([])) == ("WEBVTT\n", "start\tend\ttext\n")
    # Two lines are one field.
    long = "one two three four five six seven eight nine ten"
    assert tsv(spoken(long, {})).splitlines()[1].split("\t")[2] == long


def test_text_without_spaces_is_cut_and_timed_by_length() -> None:
    found = cues(srt([{"start": 10.0, "end": 22.0, "text": "字" * 126}]))
    assert [lines for *_, lines in found] == [["字" * 42], ["字" * 42], ["字" * 42]]
    assert [begin for begin, *_ in found] == [10.0, 14.0, 18.0]


def test_words_at_one_time_do_not_overlap() -> None:
    words = [word("x" * 40, 1.0, 1.0) for _ in range(6)]
    found = cues(srt([{"start": 1, "end": 1, "text": "", "words": words}]))
    assert len(found) == 3
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(found))
    assert all(begin < stop for begin, stop, _ in found)


def test_a_cue_goes_when_the_next_one_comes() -> None:
    words = [word("x" * 42, 0.1 * k, 0.1 * k + 0.1) for k in range(3)]
    found = cues(srt([{"start": 0, "end": 1, "text": "", "words": words}]))
    assert [(begin, stop) for begin, stop, _ in found] == [(0.0, 0.2), (0.2, 1.2)]


def test_a_drawn_out_word_does_not_stay() -> None:
    words = [word("oh", 1.0, 11.0), word("no", 20.0, 20.5)]
    found = cues(srt([{"start": 0, "end": 30, "text": "oh no", "words": words}]))
    assert found == [(1.0, 8.0, ["oh"]), (20.0, 21.0, ["no"])]


def test_silence_has_no_cue() -> None:
    assert srt([]) == ""
    (row,) = joined([SAMPLES[3]], [{"text": "", "format": "srt"}], name)
    assert row["srt"] == ""
