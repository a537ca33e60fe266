"""Splits: no sentence or speaker in two, given ones kept, warnings about leaks."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from headstart.data import Findings
from headstart.errors import DataError
from headstart_speech.clips import Clip
from headstart_speech.settings import UnlabelledSettings, UtteranceSettings
from headstart_speech.sounds import Sound
from headstart_speech.splits import split_clips


def clip(i, text=None, speaker="ann", split=None, digest=None):
    sound = Sound(0.5, 0.1, 0.0, digest or f"{i}")
    text = f"sentence {i}" if text is None else text
    found = Clip(f"{i}", Path(f"{i}.wav"), text=text, speaker=speaker, split=split)
    found.normal, found.sound, found.where = text, sound, ("c.csv", i)
    return found


def split(clips, kind=UtteranceSettings, seed=0, **given):
    findings = Findings()
    settings = kind(name="x", path="x", **given)
    return split_clips(clips, settings, seed, findings), findings


def ids(parts):
    return {name: {c.id for c in clips} for name, clips in parts.items()}


def test_sizes_and_every_clip_once():
    parts, _ = split([clip(i) for i in range(50)], test_size=10, validation_size=0.1)
    assert {k: len(v) for k, v in parts.items()} == {
        "train": 36,
        "validation": 4,
        "test": 10,
    }
    counts = Counter(c.id for clips in parts.values() for c in clips)
    assert set(counts.values()) == {1}
    assert len(counts) == 50


@pytest.mark.parametrize("seed", range(5))
def test_no_sentence_is_in_two_splits(seed):
    clips = [clip(i, f"sentence {i % 17}") for i in range(60)]
    parts, findings = split(clips, seed=seed)
    texts = [{c.normal for c in found} for found in parts.values()]
    assert not texts[0] & texts[1]
    assert not texts[0] & texts[2]
    assert not texts[1] & texts[2]
    assert not any("say what" in w.what for w in findings.warnings)


def test_the_test_split_does_not_depend_on_the_other_sizes():
    clips = [clip(i) for i in range(40)]
    base, _ = split(clips)
    fewer, _ = split(clips, train_size=5, validation_size=2)
    more, _ = split(clips, train_size=9, validation_size=2)
    assert ids(base)["test"] == ids(fewer)["test"]
    assert len(fewer["train"]) == 5
    assert ids(fewer)["train"] < ids(more)["train"]
    assert ids(fewer)["validation"] == ids(more)["validation"]
    other, _ = split(clips, seed=1)
    assert ids(base)["test"] != ids(other)["test"]


def test_by_speaker():
    clips = [clip(i, speaker=f"s{i % 7}") for i in range(70)]
    parts, findings = split(clips, split_by="speaker", test_size=10, validation_size=10)
    speakers = [{c.speaker for c in found} for found in parts.values()]
    assert [len(s) for s in speakers] == [5, 1, 1]
    assert len(set().union(*speakers)) == 7
    assert not findings.warnings


def test_a_speaker_with_more_clips_than_asked_is_taken_all_the_same():
    clips = [clip(i, speaker="ann" if i < 30 else f"s{i % 2}") for i in range(50)]
    parts, _ = split(clips, split_by="speaker", test_size=2, validation_size=2)
    assert {c.speaker for c in parts["train"]} == {"ann"}
    assert {len(parts["test"]), len(parts["validation"])} == {10}


def test_by_speaker_needs_speakers():
    with pytest.raises(DataError, match="no speaker is known of 10 of 10"):
        split([clip(i, speaker=None) for i in range(10)], split_by="speaker")
    with pytest.raises(DataError, match="all are of one speaker"):
        split([clip(i) for i in range(10)], split_by="speaker")


def test_repeated_speakers_are_stated():
    _, findings = split([clip(i) for i in range(20)])
    assert findings.warnings[0].what == "the speaker of test is in train too: ann"
    clips = [clip(i, speaker=f"s{i % 3}") for i in range(60)]
    _, findings = split(clips)
    assert findings.warnings[0].what.startswith("all 3 speakers of test are in train")


def test_given_splits_are_kept_and_leaks_told():
    clips = [clip(i, split="train") for i in range(8)]
    clips += [clip(8, "sentence 0", split="test"), clip(9, split="test", digest="1")]
    clips += [clip(10, split="validation")]
    parts, findings = split(clips)
    assert ids(parts)["test"] == {"8", "9"}
    assert ids(parts)["validation"] == {"10"}
    assert [w.what for w in findings.warnings] == [
        "1 of 2 clips of test say what one of train says",
        "1 of 2 clips of test are in train too",
        "the speaker of test is in train too: ann",
    ]
    without, findings = split(clips[:-1], validation_size=2)
    assert ids(without)["test"] == {"8", "9"}
    assert len(without["validation"]) == 2


def test_a_given_test_split_may_share_the_speakers_that_were_to_be_apart():
    clips = [clip(i, speaker=f"s{i}", split="train") for i in range(8)]
    held = [clip(8, speaker="s3", split="test"), clip(9, speaker="z", split="test")]
    held.append(clip(10, speaker="y", split="validation"))
    _, findings = split([*clips, *held], split_by="speaker")
    (warning,) = findings.warnings
    assert warning.what == "one speaker of test is in train too: s3"
    assert "the test split is given" in warning.fix


def test_files_of_unlabelled_clips_stay_together():
    clips = [clip(i, "") for i in range(40)]
    for i, one in enumerate(clips):
        one.path, one.normal = Path(f"{i // 4}.wav"), None
    parts, _ = split(clips, kind=UnlabelledSettings, test_size=8, validation_size=4)
    files = [{c.path for c in found} for found in parts.values()]
    assert [len(f) for f in files] == [7, 1, 2]
    assert len(set().union(*files)) == 10


def test_empty_splits_are_refused():
    clips = [clip(i) for i in range(10)]
    with pytest.raises(DataError, match="leaves nothing to train on"):
        split(clips, test_size=10)
    with pytest.raises(DataError, match="leaves the validation split empty"):
        split(clips, validation_size=0)
    with pytest.raises(DataError, match="all are of one sentence"):
        split([clip(i, "yes") for i in range(10)])


def test_a_test_split_alone_is_measured_on():
    parts, _ = split([clip(i, split="test") for i in range(3)])
    assert {k: len(v) for k, v in parts.items()} == {
        "train": 0,
        "validation": 0,
        "test": 3,
    }
