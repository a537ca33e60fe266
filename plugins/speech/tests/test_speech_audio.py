"""Audio files: headers, pieces and what is said about broken ones."""

from __future__ import annotations

import struct
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import soundfile

from headstart_speech import audio, sounds
from headstart_speech.audio import AudioError

RATE = 8000


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def tone(seconds=1.0, rate=RATE, height=0.5):
    times = np.arange(round(seconds * rate)) / rate
    return (height * np.sin(2 * np.pi * 200 * times)).astype(np.float32)


def save(name, samples, rate=RATE, **kinds):
    soundfile.write(name, samples, rate, **kinds)
    return name


def fault(name):
    with pytest.raises(AudioError) as caught:
        audio.look(name)
    (found,) = caught.value.faults
    return found


@pytest.mark.parametrize(
    ("name", "kind", "tolerance"),
    [
        ("a.wav", "PCM_U8", 1 / 128),
        ("a.wav", "PCM_16", 1e-4),
        ("a.wav", "PCM_24", 1e-6),
        ("a.wav", "FLOAT", 0),
        ("a.wav", "ULAW", 0.02),
        ("a.flac", "PCM_16", 1e-4),
    ],
)
def test_every_encoding_gives_the_same_samples(name, kind, tolerance):
    samples = tone()
    facts = audio.look(save(name, samples, subtype=kind))
    assert (facts.rate, facts.channels, facts.frames) == (RATE, 1, RATE)
    assert facts.encoding == kind
    got = audio.read(facts)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, samples, atol=tolerance)


@pytest.mark.parametrize("name", ["a.mp3", "a.ogg"])
def test_lossy_files_are_as_long_as_their_header_says(name):
    facts = audio.look(save(name, tone(1.0, 16000), 16000))
    whole = audio.read(facts)
    assert whole.shape == (facts.frames,)
    assert facts.seconds == pytest.approx(1.0, abs=0.2)
    assert np.abs(whole).max() > 0.4
    # A tone makes frames of MP3 borrow from others: pieces must be decoded with those.
    np.testing.assert_allclose(
        audio.read(facts, 9000, 9500), whole[9000:9500], atol=1e-5
    )
    found = np.concatenate(list(audio.blocks(facts, size=1600)))
    np.testing.assert_allclose(found, whole, atol=1e-5)


def test_an_mp3_is_read_through_without_a_jump(capfd):
    loud = np.random.default_rng(0).normal(0, 0.1, 5 * 16000)
    quiet = np.where(np.arange(len(loud)) % 4000 < 2000, loud, 0.01 * loud)
    facts = audio.look(save("a.mp3", quiet, 16000))
    whole = audio.read(facts)
    found = np.concatenate(list(audio.blocks(facts, size=777)))
    np.testing.assert_allclose(found, whole, atol=1e-5)
    # The decoder complains of each place that it jumped to.
    assert capfd.readouterr().err == ""


def test_stereo_becomes_the_mean_of_its_channels():
    left, right = tone(), np.linspace(-0.5, 0.5, RATE, dtype=np.float32)
    facts = audio.look(save("a.wav", np.stack([left, right], 1), subtype="FLOAT"))
    assert facts.channels == 2
    np.testing.assert_allclose(audio.read(facts), (left + right) / 2, atol=1e-7)


def test_a_piece_is_the_slice_of_the_whole():
    samples = tone(3.0)
    facts = audio.look(save("a.wav", samples, subtype="FLOAT"))
    np.testing.assert_array_equal(audio.read(facts, 1234, 9876), samples[1234:9876])
    found = list(audio.blocks(facts, 1000, 20_001, size=3000))
    assert [len(block) for block in found] == [3000] * 6 + [1001]
    np.testing.assert_array_equal(np.concatenate(found), samples[1000:20_001])


def test_a_missing_file_names_the_nearest():
    save("hello.wav", tone())
    found = fault("helo.wav")
    assert found.what == "there is no such file"
    assert "hello.wav" in found.fix
    assert "no folder" in fault("nowhere/a.wav").why


def test_what_is_no_audio_is_told_apart(tmp_path):
    (tmp_path / "empty.wav").write_bytes(b"")
    assert "0 bytes" in fault("empty.wav").what
    (tmp_path / "folder.wav").mkdir()
    assert "folder" in fault("folder.wav").what
    (tmp_path / "page.wav").write_text("<!DOCTYPE html><html>not found</html>")
    assert "web page" in fault("page.wav").why
    (tmp_path / "lfs.wav").write_text("version https://git-lfs.github.com/spec/v1\n")
    assert "git lfs pull" in fault("lfs.wav").fix
    (tmp_path / "note.wav").write_text("the recording of monday is lost")
    assert "'the recording of monday" in fault("note.wav").why
    (tmp_path / "noise.wav").write_bytes(bytes(range(256)) * 8)
    assert fault("noise.wav").what == "this is not audio, in spite of its ending .wav"


def test_a_truncated_wav_says_how_much_is_there(tmp_path):
    whole = (tmp_path / save("a.wav", tone(2.0))).read_bytes()
    (tmp_path / "cut.wav").write_bytes(whole[: 44 + RATE])
    assert fault("cut.wav").what == (
        "the file is cut off: 0.50 of 2.00 seconds are there"
    )
    (tmp_path / "head.wav").write_bytes(whole[:36])
    assert "no samples" in fault("head.wav").what


def test_a_wav_from_a_pipe_has_no_size_and_is_whole(tmp_path):
    whole = bytearray((tmp_path / save("a.wav", tone(1.0))).read_bytes())
    assert whole[36:40] == b"data"
    whole[40:44] = struct.pack("<I", 0xFFFFFFFF)
    (tmp_path / "pipe.wav").write_bytes(whole)
    assert audio.look("pipe.wav").frames == RATE


def test_a_truncated_flac_is_found_when_it_is_read(tmp_path):
    noise = np.random.default_rng(0).normal(0, 0.1, 40_000)
    whole = (tmp_path / save("a.flac", noise)).read_bytes()
    (tmp_path / "cut.flac").write_bytes(whole[: len(whole) // 2])
    facts = audio.look("cut.flac")
    with pytest.raises(AudioError, match=r"cut off|cannot be decoded"):
        sounds.hear(facts, 0, facts.frames)


def test_a_wav_without_samples():
    assert "0 samples" in fault(save("a.wav", np.zeros(0))).what


def test_hear_measures_loudness_and_clipping():
    samples = np.concatenate([np.zeros(RATE), tone(1.0, height=0.25)])
    samples[:800] = 1.0
    facts = audio.look(save("a.wav", samples))
    sound = sounds.hear(facts, 0, facts.frames)
    assert sound.peak == pytest.approx(1.0, abs=1e-4)
    assert sound.clipped == pytest.approx(800 / len(samples))
    assert sounds.hear(facts, RATE, 2 * RATE).loudest == pytest.approx(
        0.25 / np.sqrt(2), rel=1e-3
    )
    assert sounds.decibels(0.1) == pytest.approx(-20)


def test_the_digest_does_not_depend_on_the_format():
    samples = (tone(12.0) * 32768).astype(np.int16)
    one, other = (audio.look(save(n, samples)) for n in ("a.wav", "b.flac"))
    assert (
        sounds.hear(one, 0, one.frames).digest
        == sounds.hear(other, 0, other.frames).digest
        != sounds.hear(one, 0, one.frames - 1).digest
    )


def test_samples_that_are_no_numbers_or_on_another_scale():
    broken = tone()
    broken[77] = np.nan
    facts = audio.look(save("nan.wav", broken, subtype="FLOAT"))
    with pytest.raises(AudioError, match="no number"):
        sounds.hear(facts, 0, facts.frames)
    facts = audio.look(save("big.wav", tone() * 32768, subtype="FLOAT"))
    with pytest.raises(AudioError, match="full scale is 1"):
        sounds.hear(facts, 0, facts.frames)


MPEG4 = b"\x00\x00\x00\x18ftypM4A \x00\x00\x02\x00isomiso2" + bytes(64)


def test_other_formats_need_the_extra(tmp_path, monkeypatch):
    (tmp_path / "a.m4a").write_bytes(MPEG4)
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    found = fault("a.m4a")
    assert found.what == "MPEG-4 is not read by soundfile"
    assert "headstart-speech[codecs]" in found.fix


def test_other_formats_are_read_by_torchcodec(tmp_path, monkeypatch):
    class Decoder:
        metadata = SimpleNamespace(
            sample_rate=RATE, duration_seconds_from_header=1.01, num_channels=2
        )

        def __init__(self, path, num_channels):
            assert num_channels == 1

        def get_samples_played_in_range(self, start, stop):
            part = tone()[round(start * RATE) : round(stop * RATE)]
            return SimpleNamespace(data=[SimpleNamespace(numpy=lambda: part)])

    module = ModuleType("torchcodec.decoders")
    module.AudioDecoder = Decoder
    monkeypatch.setitem(sys.modules, "torchcodec", ModuleType("torchcodec"))
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", module)
    (tmp_path / "a.m4a").write_bytes(MPEG4)
    facts = audio.look("a.m4a")
    assert (facts.format, facts.frames, facts.channels) == ("torchcodec", 8080, 2)
    np.testing.assert_array_equal(audio.read(facts, 100, 300), tone()[100:300])
    # The header's estimate is a little long: silence fills it up.
    whole = np.concatenate(list(audio.blocks(facts, size=3000)))
    np.testing.assert_array_equal(whole, np.append(tone(), np.zeros(80)))
