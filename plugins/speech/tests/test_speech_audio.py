"""Audio files: headers, pieces and what is said about broken ones."""

from __future__ import annotations

import os
import struct
import sys
from dataclasses import replace
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


@pytest.mark.parametrize(
    ("kind", "options"),
    [("WAV", {"subtype": "GSM610"}), ("AU", {"subtype": "G721_32"})],
)
def test_telephone_formats_can_only_be_read_onward(kind, options):
    facts = audio.look(save("a.x", tone(25.0), format=kind, **options))
    whole = audio.read(facts)
    assert np.abs(whole[:200_000] - tone(25.0)).mean() < 0.05
    # Also where a piece begins behind more than is read at a time.
    np.testing.assert_array_equal(
        audio.read(facts, 170_001, 180_000), whole[170_001:180_000]
    )
    found = np.concatenate(list(audio.blocks(facts, 500, 199_000, size=7777)))
    np.testing.assert_array_equal(found, whole[500:199_000])


@pytest.mark.parametrize("size", [None, 1000, 7999])
def test_what_lacks_at_an_estimated_end_is_silent_in_blocks_of_any_size(size):
    facts = audio.look(save("a.ogg", tone(1.0), RATE))
    longer = replace(facts, frames=facts.frames + 700)
    whole = audio.read(facts)
    expected = np.append(whole, np.zeros(700, np.float32))
    found = np.concatenate(list(audio.blocks(longer, size=size)))
    np.testing.assert_array_equal(found, expected)
    # A clip that ends a little before an end that is not there.
    last = longer.frames - 100
    np.testing.assert_array_equal(
        audio.read(longer, 100, last), expected[100:last], strict=True
    )
    with pytest.raises(AudioError, match="cut off"):
        audio.read(replace(facts, frames=facts.frames + 900))
    exact = audio.look(save("a.wav", tone(1.0)))
    with pytest.raises(AudioError, match="cut off"):
        audio.read(replace(exact, frames=exact.frames + 1))


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
    # The same recording in another format is meant, whatever else is alike.
    for i in range(5):
        save(f"hullo{i}.wav", tone(0.1))
    save("hullo.flac", tone(0.1))
    assert fault("hullo.mp3").fix == "did you mean 'hullo.flac'?"
    assert "put / between folders" in fault("there\\hello.wav").fix
    with pytest.raises(AudioError) as caught:
        audio.look("helo.wav", guess=False)
    assert not caught.value.faults[0].fix


def test_names_that_cannot_be_read_or_told():
    assert fault("a\0.wav").why == "embedded null byte"
    assert fault("x" * 300).why == "File name too long"
    name = save(os.fsdecode(b"caf\xe9.wav").encode("utf-8", "surrogateescape"), tone())
    found = fault(os.fsdecode(name))
    assert found.what == "the file's name is not UTF-8"
    assert str(found).encode()


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


def test_a_recording_that_was_not_stopped_has_no_size_either(tmp_path):
    whole = bytearray((tmp_path / save("a.wav", tone(1.0))).read_bytes())
    whole[40:44] = bytes(4)
    (tmp_path / "open.wav").write_bytes(whole)
    found = fault("open.wav")
    assert found.what == "the header says that there are no samples"
    assert found.why.startswith("16,000 bytes follow it")


def test_a_flac_from_a_pipe_does_not_say_how_long_it_is(tmp_path):
    whole = bytearray((tmp_path / save("a.flac", tone(1.0))).read_bytes())
    # The lowest 36 bits of the stream's description are the number of samples.
    whole[21] &= 0xF0
    whole[22:26] = bytes(4)
    (tmp_path / "pipe.flac").write_bytes(whole)
    assert fault("pipe.flac").what == "its header does not say how long it is"


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


@pytest.mark.parametrize("kind", ["PCM_U8", "PCM_16", "PCM_24", "ULAW", "ALAW"])
def test_every_encoding_has_its_own_full_scale(kind):
    samples = np.clip(tone(height=2.0), -1, 1)
    facts = audio.look(save("a.wav", samples, subtype=kind))
    assert sounds.hear(facts, 0, facts.frames).clipped == pytest.approx(2 / 3, abs=0.05)
    facts = audio.look(save("b.wav", tone(height=0.9), subtype=kind))
    assert sounds.hear(facts, 0, facts.frames).clipped == 0


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
    Decoder.metadata.duration_seconds_from_header = None
    assert fault("a.m4a").what == "its header does not say how long it is"
    Decoder.metadata.sample_rate = None
    assert fault("a.m4a").what == "this is not audio, in spite of its ending .m4a"
    # The header's estimate is a little long: silence fills it up.
    whole = np.concatenate(list(audio.blocks(facts, size=3000)))
    np.testing.assert_array_equal(whole, np.append(tone(), np.zeros(80)))
