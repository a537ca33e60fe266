"""Bad clips: each fault with file and row, all together, before training."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile

from headstart.data import Findings
from headstart.errors import DataError
from headstart_speech import checks, sources, transcripts
from headstart_speech.settings import UnlabelledSettings, UtteranceSettings

RATE = 8000


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def noise(seconds=1.0, rate=RATE, height=0.1, seed=0):
    samples = np.random.default_rng(seed).normal(0, height, round(seconds * rate))
    return np.clip(samples, -1, 1)


def save(name, samples=None, rate=RATE, **kinds):
    soundfile.write(name, noise() if samples is None else samples, rate, **kinds)


def manifest(rows, header="path,text"):
    with open("clips.csv", "w", encoding="utf-8") as file:
        file.write("\n".join([header, *rows]) + "\n")


def checked(kind=UtteranceSettings, path="clips.csv", factor=1, **given):
    settings = kind(name="x", path=path, **given)
    findings = Findings()
    findings.fatal += checks.check_settings(settings)
    clips = sources.read_all(settings, findings)
    return checks.check_clips(clips, settings, findings, factor), settings, findings


def told(*args, **given):
    """What is said of each row."""
    _, _, findings = checked(*args, **given)
    assert not findings.fatal
    return {
        row: " | ".join(str(fault) for fault in faults)
        for (_, row), faults in findings.samples.items()
    }


def settled(*args, **given):
    clips, settings, findings = checked(*args, **given)
    return checks.settle(clips, settings, findings), findings


def test_good_clips_have_no_fault():
    for i in range(3):
        save(f"{i}.wav", noise(seed=i))
    manifest([f"{i}.wav,Hello you" for i in range(3)])
    clips, findings = settled()
    assert [clip.normal for clip in clips] == ["hello you"] * 3
    assert clips[0].facts.rate == RATE
    assert clips[0].seconds == 1.0
    assert clips[0].samples(16000) == 16000
    assert len(clips[0].read()) == RATE
    assert not findings.warnings


def test_every_fault_of_a_file_has_its_row(tmp_path):
    save("good.wav")
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "page.wav").write_text("<html>")
    (tmp_path / "cut.wav").write_bytes((tmp_path / "good.wav").read_bytes()[:4044])
    save("silent.wav", np.zeros(RATE))
    save("quiet.wav", noise(height=1e-4))
    loud = np.clip(noise(height=2.0), -1, 1)
    save("clipped.wav", loud)
    save("short.wav", noise(0.05))
    save("long.wav", noise(40.0))
    broken = noise().astype(np.float32)
    broken[5] = np.inf
    save("broken.wav", broken, subtype="FLOAT")
    names = "good missing empty page cut silent quiet clipped short long broken".split()
    manifest([f"{name}.wav,a" for name in names])
    found = told()
    assert found.keys() == set(range(3, 13))
    for row, part in enumerate(
        [
            "there is no such file",
            "0 bytes",
            "web page",
            "cut off: 0.25 of 1.00 seconds",
            "silence: every sample is 0",
            "silence: its loudest 20 ms",
            "clipped: ",
            "too short: 0.050 s",
            "too long: 40.0 s",
            "broken samples",
        ],
        start=3,
    ):
        assert f"clips.csv, line {row} ({names[row - 2]}.wav): " in found[row]
        assert part in found[row]


def test_the_share_of_clipped_samples_decides():
    samples = noise()
    samples[:200] = 1.0
    save("a.wav", samples)
    manifest(["a.wav,a"])
    assert "clipped: 2.5% of its samples" in told()[2]
    assert not told(clipping=0.03)


def test_what_the_manifest_states_is_held_against_the_file():
    save("a.wav")
    manifest(
        ["a.wav,a,16000,,", "a.wav,a,8000,0.5,1.01", "a.wav,a,,0.5,2", "a.wav,a,,1.5,"],
        "path,text,rate,start,end",
    )
    found = told()
    assert "the file has 8000 samples a second, not 16000" in found[2]
    assert 3 not in found  # rounding of the end
    assert "not inside its file" in found[4]
    assert "not inside its file" in found[5]
    # Nothing else is said of what is not there.
    assert "\n- " not in found[5]
    assert "frames are needed" not in found[5]
    assert "clips.csv, line 5 (a.wav, from 1.50 s)" in found[5]


def test_of_many_missing_files_a_few_are_guessed(monkeypatch):
    save("good.wav")
    manifest(["good.wav,a", *(f"good{i}.wav,a" for i in range(30))])
    looked = []
    missing = checks.missing
    monkeypatch.setattr(
        checks, "missing", lambda path: looked.append(path) or missing(path)
    )
    found = told()
    assert len(found) == 30
    assert all("there is no such file" in text for text in found.values())
    assert "did you mean 'good.wav'?" in found[3]
    assert len(looked) == 20


def test_every_fault_of_a_transcript_has_its_row():
    save("a.wav")
    rows = ["", "?!", "abc", "abcé", "aaaaaaaaaa" * 3, "p\u0430b", "абв"]
    manifest([f"a.wav,{text}" for text in ["cab", *rows]])
    found = told(vocabulary="abcpабв")
    assert "the transcript is empty" in found[3]
    assert "empty after normalisation" in found[4]
    assert 5 not in found
    assert "outside the vocabulary: 'é' (U+00E9)" in found[6]
    # 30 characters with 29 blanks between; 8,000 samples at 8 kHz give 49 frames.
    assert "59 frames are needed, 49 are there" in found[7]
    assert "a word of several alphabets: 'p\u0430b'" in found[8]
    assert "another alphabet than the other transcripts: Cyrillic" in found[9]
    assert 9 not in told(vocabulary="abcpабв", alphabets="any")
    # What is outside the vocabulary is not told twice.
    outside = told(vocabulary="abcp")[9]
    assert "outside the vocabulary" in outside
    assert "another alphabet" not in outside


def test_a_clip_tells_all_that_is_wrong_with_it():
    save("a.wav", np.zeros(RATE))
    manifest(["a.wav,", "a.wav,ok"])
    assert "silence" in told()[2]
    assert "transcript is empty" in told()[2]


def test_ctc_needs_a_frame_for_each_character_and_a_blank_between_equal_ones():
    assert checks.frames_needed("") == 0
    assert checks.frames_needed("abc") == 3
    assert checks.frames_needed("aab bb") == 6 + 2
    save("a.wav", noise(0.25))  # 4,000 samples at 16 kHz: 12 frames
    manifest(["a.wav,abcdefghijkl", "a.wav,abcdefghijklm", "a.wav,abcdefghijj"])
    found = told()
    assert 2 not in found
    assert "13 frames are needed, 12 are there" in found[3]
    assert 4 not in found
    clips, _, _ = checked()
    alone = [clip for clip in clips if clip.where[1] == 3]
    # With two frames of each there is room, if the head makes them.
    assert "head.upsample=2" in found[3]
    assert 3 not in told(factor=2)
    manifest([f"a.wav,{'abcde' * 5}"])
    assert "25 frames are needed, 24 are there" in told(factor=2)[2]
    assert "upsample" not in told()[2]
    coarse = [*checks.LAYERS, (2, 2, 0)]
    ((_, fault),) = checks.unalignable(alone, coarse, 16000)
    assert "6 are there" in fault.what
    assert not checks.unalignable(alone, coarse, 16000, frames_per_frame=4)


def test_duplicate_ids_and_bad_rows_count_among_all():
    for i in range(4):
        save(f"{i}.wav", noise(seed=i))
    manifest([f"{i}.wav,word,{min(i, 2)}" for i in range(4)], "path,text,id")
    with pytest.raises(DataError, match="duplicate id: '2'") as caught:
        settled()
    assert len(caught.value.faults) == 1
    clips, findings = settled(bad="skip", bad_cap=0.25)
    assert [clip.id for clip in clips] == ["0", "1", "2"]
    assert len(findings.left_out) == 1
    with pytest.raises(DataError, match="1 of 4 samples are bad"):
        settled(bad="skip", bad_cap=0.2)


def test_an_hour_in_a_training_set_is_refused_skipped_or_split():
    rate = 1000
    minute = np.tile(np.append(noise(2.0, rate), np.zeros(rate)), 20)
    save("hour.wav", np.tile(minute, 60), rate)
    save("a.wav")
    manifest(["hour.wav,a", "a.wav,b"])
    with pytest.raises(DataError, match="too long: 60 min"):
        settled()
    clips, findings = settled(long="skip")
    assert [clip.id for clip in clips] == ["a"]
    assert "1 of 2 clips are left out: longer than data.longest" in str(
        findings.warnings[0]
    )
    with pytest.raises(DataError, match="with a transcript cannot be split"):
        settled(long="split")
    with pytest.raises(DataError, match=r'data\.long="split" cuts it'):
        settled(UnlabelledSettings, long="stop")
    clips, findings = settled(UnlabelledSettings)
    assert sum(clip.seconds for clip in clips) == pytest.approx(3601)
    assert max(clip.seconds for clip in clips) <= 15.6
    assert [clip.id for clip in clips[:2]] == ["hour#0", "hour#1"]
    assert clips[-1].id == "a"
    # Cuts lie in the pauses, the third second of every three.
    assert all(clip.stop % 3 > 2 for clip in clips[:-2])


def test_silent_pieces_of_a_long_clip_are_left_out():
    samples = np.concatenate([noise(3.0), np.zeros(9 * RATE), noise(3.0)])
    save("a.wav", samples)
    clips, findings = settled(UnlabelledSettings, path=".", longest=3.0)
    assert sum(clip.seconds for clip in clips) < 12
    assert "a silent piece of a longer one" in findings.warnings[0].what


def test_headers_alone_when_nobody_listens():
    save("silent.wav", np.zeros(RATE))
    manifest(["silent.wav,a"])
    clips, _ = settled(listen=False)
    assert clips[0].facts is not None
    assert clips[0].sound is None


def test_digits_are_told_skipped_or_removed():
    save("a.wav")
    manifest(["a.wav,press 1", "a.wav,press"])
    clips, findings = settled()
    assert [clip.normal for clip in clips] == ["press 1", "press"]
    assert findings.warnings[0].what == "1 of 2 transcripts have digits"
    clips, findings = settled(digits="skip")
    assert [clip.normal for clip in clips] == ["press"]
    assert "1 of 2 clips are left out: digits" in findings.warnings[0].what
    clips, _ = settled(digits="remove")
    assert [clip.normal for clip in clips] == ["press", "press"]
    manifest(["a.wav,1", "a.wav,press 1"])
    _, _, findings = checked(digits="remove")
    assert findings.warnings[0].what == "1 of 2 transcripts have digits"
    assert "empty after normalisation" in told(digits="remove")[2]


def test_characters_outside_the_vocabulary_are_removed_or_skipped():
    save("a.wav")
    manifest(["a.wav,né a", "a.wav,na"])
    clips, findings = settled(vocabulary="na", outside="remove")
    assert [clip.normal for clip in clips] == ["n a", "na"]
    assert "'é' (U+00E9) in 1" in findings.warnings[0].why
    clips, findings = settled(vocabulary="na", outside="skip")
    assert [clip.normal for clip in clips] == ["na"]
    assert "outside data.vocabulary" in findings.warnings[0].what


def test_the_same_recording_with_two_transcripts_is_told():
    save("a.wav")
    save("b.flac", soundfile.read("a.wav", dtype="int16")[0])
    manifest(["a.wav,yes", "b.flac,no"])
    _, findings = settled()
    assert "1 recording is there twice" in findings.warnings[0].what


def test_a_clip_that_is_left_out_is_no_twin():
    save("a.wav")
    manifest(["a.wav,yes,8000", "a.wav,no,16000"], "path,text,rate")
    clips, findings = settled(bad="skip", bad_cap=0.5)
    assert [clip.normal for clip in clips] == ["yes"]
    assert not any("twice" in fault.what for fault in findings.warnings)


def test_faults_come_in_the_order_of_the_rows():
    for i in range(5):
        save(f"{i}.wav", noise(seed=i))
    save("1.wav", np.zeros(RATE))
    manifest(
        ["0.wav,,a", "1.wav,word,b", "gone.wav,word,c", "3.wav,word,d", "4.wav,word,d"],
        "path,text,id",
    )
    with pytest.raises(DataError) as caught:
        settled()
    lines = [fault.where.split()[2].rstrip(",") for fault in caught.value.faults]
    assert lines == ["2", "3", "4", "6"]


def test_a_folder_tells_files_without_a_transcript(tmp_path):
    save("a.wav")
    save("b.wav", noise(seed=1))
    (tmp_path / "a.txt").write_text("yes")
    with pytest.raises(DataError, match=r"b\.wav: no transcript"):
        settled(path=".")


def test_settings_that_cannot_work():
    settings = UtteranceSettings(name="x", path="x", test_size=1.5, vocabulary="aa")
    assert [fault.where for fault in checks.check_settings(settings)] == [
        "data.test_size",
        "data.vocabulary",
    ]
    for name in ("test_size", "longest", "cache_gb", "volume"):
        with pytest.raises(ValueError, match="finite"):
            UtteranceSettings(name="x", **{name: float("inf")})
    with pytest.raises(ValueError, match="shortest"):
        UtteranceSettings(name="x", shortest=3.0, longest=2.0)
    with pytest.raises(ValueError, match="lower ratio"):
        UtteranceSettings(name="x", noise=(20.0, 10.0))


def test_the_vocabulary_names_characters_that_train_lacks():
    for i in range(4):
        save(f"{i}.wav", noise(seed=i))
    manifest(["0.wav,ab", "1.wav,ab", "2.wav,abc", "3.wav,abd"])
    clips, settings, findings = checked()
    parts = {"train": clips[:3], "validation": [], "test": clips[3:]}
    known = transcripts.vocabulary_of(parts, settings, findings)
    assert known.symbols == ("<blank>", " ", "a", "b", "c", "d")
    (warning,) = findings.warnings
    assert warning.why == "none has 'd'; fewer than 3 have 'c'"
