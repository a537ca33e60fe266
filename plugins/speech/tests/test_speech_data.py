"""Clips as batches: waveforms, frames, transcripts, masks, and inputs to predict."""

from __future__ import annotations

import itertools
import json
import math
import pickle
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import soundfile
import torch
import torchaudio

from headstart.errors import DataError
from headstart_speech import audio
from headstart_speech.baselines import baselines
from headstart_speech.clips import Clip
from headstart_speech.settings import UnlabelledSettings, UtteranceSettings
from headstart_speech.tiny import tiny_unlabelled, tiny_utterances, tones, write
from headstart_speech.unlabelled import Unlabelled
from headstart_speech.utterances import Utterances
from headstart_speech.waveforms import Waveforms, stacked

if TYPE_CHECKING:
    from pathlib import Path

GEOMETRY = {"rate": 16000, "layers": [[400, 320, 0]], "longest": None}
"""One frame every 20 ms, of 25 ms each."""


def utterances(folder: Path, geometry: Any = GEOMETRY, **settings: Any) -> Utterances:
    values = {**tiny_utterances(folder), **settings}
    data = Utterances(UtteranceSettings(**values), seed=0)
    data.load()
    data.prepare(geometry)
    return data


def unlabelled(folder: Path, geometry: Any = GEOMETRY, **settings: Any) -> Unlabelled:
    values = {**tiny_unlabelled(folder), **settings}
    data = Unlabelled(UnlabelledSettings(**values), seed=0)
    data.load()
    data.prepare(geometry)
    return data


def clip(path: Path, sound: np.ndarray, rate: int = 8000, **options: Any) -> Clip:
    soundfile.write(str(path), sound, rate, **options)
    return Clip(path.stem, path, facts=audio.look(path))


def test_a_batch_is_the_files_sound_at_one_rate(tmp_path: Path) -> None:
    data = utterances(tmp_path)
    samples = list(data.samples("train"))[:5]
    batch = data.collate(samples)
    assert batch["waveform"].dtype == torch.float32
    for row, sample in enumerate(samples):
        raw, rate = soundfile.read(str(sample["clip"].path), dtype="float32")
        expected = torchaudio.functional.resample(torch.from_numpy(raw), rate, 16000)
        own = int(batch["lengths"][row])
        assert own == len(expected)
        # 16 bits are kept: off by half a step, and by what float32 rounds.
        off = (batch["waveform"][row, :own] - expected).abs().max()
        assert off <= 0.5 / 32768 + 1e-7
        assert not batch["waveform"][row, own:].any()
        assert batch["frames"][row] == (own - 400) // 320 + 1


def test_labels_are_the_transcripts_characters(tmp_path: Path) -> None:
    data = utterances(tmp_path)
    assert data.task == {
        "kind": "transcription",
        "vocabulary": ["<blank>", " ", "a", "b", "c", "d"],
        "text": {
            "case": "lower",
            "punctuation": "remove",
            "digits": "keep",
            "unicode": "NFKC",
            "accents": "keep",
        },
        "rate": 16000,
    }
    samples = list(data.samples("train"))
    labels = data.collate(samples)["labels"]
    assert labels.shape == (len(samples), 7)
    for row, sample in zip(labels, samples, strict=True):
        text = sample["clip"].text
        assert [" abcd"[i - 1] for i in row.tolist() if i > 0] == list(text)
        assert (row[len(text) :] == -1).all()


def test_sizes_are_samples_at_16_khz(tmp_path: Path) -> None:
    data = utterances(tmp_path)
    for split in ("train", "validation", "test"):
        lengths = data.collate(list(data.samples(split)))["lengths"]
        assert data.sizes(split).tolist() == lengths.tolist()
        assert data.sizes(split).dtype == np.int64


def test_clips_of_all_rates_and_formats_in_one_batch(tmp_path: Path) -> None:
    rates = {"a": 8000, "b": 16000, "c": 44100, "d": 48000}
    clips = []
    for name, rate in rates.items():
        sound = tones("abc", seed=3, rate=rate)
        subtype = "PCM_24" if name == "d" else "PCM_16"
        clips.append(clip(tmp_path / f"{name}.wav", sound, rate, subtype=subtype))
    store = Waveforms(10**9, 16000)
    waveform, lengths = stacked([store.get(one) for one in clips])
    assert lengths.tolist() == [3840] * 4
    # The letters are the same, the noise is another.
    for row in waveform[1:]:
        distance = (row - waveform[0]).square().mean().sqrt()
        assert distance < 0.05 * waveform[0].square().mean().sqrt()


def test_a_clip_does_not_depend_on_its_batch(tmp_path: Path) -> None:
    for number, data in enumerate((utterances, unlabelled)):
        (tmp_path / str(number)).mkdir()
        module = data(tmp_path / str(number))
        samples = list(module.samples("train"))[:4]
        together = module.collate(samples)
        for row, sample in enumerate(samples):
            alone = module.collate([sample])
            for key, values in alone.items():
                own = tuple(slice(size) for size in values.shape[1:])
                torch.testing.assert_close(together[key][row][own], values[0])


def test_memory_is_kept_within_its_limit(tmp_path: Path) -> None:
    clips = [
        clip(tmp_path / f"{i}.wav", np.full(1000, 0.1 * i), rate=8000) for i in range(3)
    ]
    store = Waveforms(4500, 8000)
    for _ in range(2):
        for i, one in enumerate(clips):
            found = store.get(one)
            assert found.dtype == np.int16
            assert np.abs(found / 32768 - 0.1 * i).max() <= 1 / 32768
    assert store.held == 4000
    assert store.read == 4, "two are kept, the third is read again"


def test_kept_or_not_a_clip_is_the_same(tmp_path: Path) -> None:
    # More than 16 bits, and beyond full scale: what is kept has neither.
    sound = np.array([0.1234567891, -1.5, 1.5, 0.0] * 200)
    one = clip(tmp_path / "a.wav", sound, subtype="FLOAT")
    kept = Waveforms(10**6, 8000)
    kept.get(one)
    assert np.array_equal(kept.get(one), Waveforms(0, 8000).get(one))
    assert kept.get(one)[:4].tolist() == [4045, -32768, 32767, 0]


def test_clips_are_resampled_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = utterances(tmp_path)
    samples = list(data.samples("train"))[:3]
    first = data.collate(samples)
    monkeypatch.setattr("headstart_speech.waveforms.resampled", None)
    again = data.collate(samples[::-1])
    assert torch.equal(again["waveform"].flip(0), first["waveform"])


def test_workers_get_the_settings_not_the_memory(tmp_path: Path) -> None:
    data = utterances(tmp_path)
    samples = list(data.samples("train"))[:3]
    expected = data.collate(samples)
    copied = pickle.loads(pickle.dumps(data))
    assert (data.waveforms.held > 0, copied.waveforms.held) == (True, 0)
    for key, values in copied.collate(samples).items():
        assert torch.equal(values, expected[key])


def test_clips_are_read_before_workers_start(tmp_path: Path) -> None:
    data = utterances(tmp_path, workers=1)
    assert data.waveforms.read == 30
    data.collate(list(data.samples("train")))
    assert data.waveforms.read == 30


def test_reading_ahead_ends_where_memory_does(tmp_path: Path) -> None:
    # Three clips of 0.56 s fit and a little more, which no clip fills.
    room = (3 * 0.56 + 0.3) * 16000 * 2 / 1e9
    data = utterances(tmp_path, workers=1, cache_gb=room)
    assert 3 <= data.waveforms.read <= 5
    assert 0 < data.waveforms.held <= room * 1e9


def test_speed_changes_lengths_and_frames_together(tmp_path: Path) -> None:
    data = utterances(tmp_path, speed=[0.8])
    assert data.augments
    batch = data.collate(list(data.samples("train"))[:4])
    found = data.augment(batch, torch.Generator().manual_seed(0))
    expected = [math.ceil(n * 5 / 4) for n in batch["lengths"].tolist()]
    assert found["lengths"].tolist() == expected
    assert found["frames"].tolist() == [(n - 400) // 320 + 1 for n in expected]
    assert found["waveform"].shape[1] == max(expected)
    assert torch.equal(found["labels"], batch["labels"])


def test_no_clip_becomes_longer_than_the_backbone_takes(tmp_path: Path) -> None:
    longest = int(utterances(tmp_path).sizes("train").max())
    for spare, changed in ((5 / 4, True), (6 / 5, False)):
        geometry = {**GEOMETRY, "longest": math.ceil(longest * spare)}
        data = utterances(tmp_path, geometry, speed=[0.8])
        batch = data.collate(list(data.samples("train")))
        found = data.augment(batch, torch.Generator().manual_seed(0))
        same = torch.equal(found["lengths"], batch["lengths"])
        assert same is not changed


def test_all_augmentations_leave_room_behind_the_end_silent(tmp_path: Path) -> None:
    data = utterances(tmp_path, speed=[0.9, 1.1], noise=[3, 9], volume=6)
    batch = data.collate(list(data.samples("train")))
    for seed in range(4):
        found = data.augment(batch, torch.Generator().manual_seed(seed))
        place = torch.arange(found["waveform"].shape[1])
        behind = place >= found["lengths"][:, None]
        assert not found["waveform"][behind].any()
        assert found["waveform"].abs().max() <= 1


def test_nothing_augments_unless_asked(tmp_path: Path) -> None:
    data = utterances(tmp_path)
    assert not data.augments


def test_pretraining_draws_masks_anew_in_training(tmp_path: Path) -> None:
    data = unlabelled(tmp_path, speed=[0.8])
    assert data.task == {"kind": "unlabelled-audio", "rate": 16000}
    batch = data.collate(list(data.samples("train"))[:4])
    frames = int(batch["frames"].max())
    assert batch["masked"].shape == (4, frames)
    assert batch["negatives"].shape == (4, frames, 8)
    again = data.collate(list(data.samples("train"))[:4])
    assert torch.equal(batch["masked"], again["masked"]), "evaluation is repeatable"
    first, same, other = (
        data.augment(batch, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    wider = int(first["frames"].max())
    assert wider > frames
    assert first["masked"].shape == (4, wider)
    assert first["negatives"].shape == (4, wider, 8)
    assert torch.equal(first["masked"], same["masked"])
    assert torch.equal(first["negatives"], same["negatives"])
    assert not torch.equal(first["masked"], other["masked"])


def test_transcripts_that_ctc_cannot_align_are_refused(tmp_path: Path) -> None:
    # Frames of 100 ms every 80 ms: one a letter, so one too few for two words.
    layers = {**GEOMETRY, "layers": [[1600, 1280, 0]]}
    with pytest.raises(DataError) as caught:
        utterances(tmp_path, layers)
    faults = caught.value.faults
    # Of all three splits together.
    assert len(faults) == 30
    assert "5 frames are needed, 4 are there" in str(faults[0])
    assert "clips.csv" in faults[0].where


def test_clips_beyond_the_backbone_are_refused(tmp_path: Path) -> None:
    short = {**GEOMETRY, "layers": [[16000, 320, 0]]}
    with pytest.raises(DataError, match="no frame of less than 1"):
        unlabelled(tmp_path, short)
    long = {**GEOMETRY, "longest": 8000}
    with pytest.raises(DataError, match=r"at most 0\.5 s"):
        unlabelled(tmp_path, long)


def test_bad_clips_are_skipped_when_asked(tmp_path: Path) -> None:
    # Of six to nine letters, nine take 0.72 s.
    long = {**GEOMETRY, "longest": 11000}
    data = unlabelled(tmp_path, long, bad="skip", bad_cap=0.5)
    assert sum(len(data.samples(s)) for s in ("train", "validation", "test")) == 15
    assert len(data.findings.left_out) == 5
    assert max(data.sizes("train")) <= 11000


def test_what_was_skipped_is_a_share_of_all_that_was_read(tmp_path: Path) -> None:
    values = tiny_utterances(tmp_path, clips=60)
    for number in (3, 4, 5):
        write(tmp_path / f"clip{number:02d}.wav", np.zeros(4000))
    settings = UtteranceSettings(**values, bad="skip", train_size=1, test_size=2)
    settings = settings.model_copy(update={"validation_size": 2.0})
    data = Utterances(settings, seed=0)
    data.load()
    # Three of five would be too many; they are three of sixty.
    data.prepare(GEOMETRY)
    assert len(data.findings.left_out) == 3
    assert len(data.samples("train")) == 1


def test_another_rate_than_the_backbones_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="hears 8000 samples"):
        utterances(tmp_path, {**GEOMETRY, "rate": 8000})
    with pytest.raises(DataError, match="how many frames"):
        utterances(tmp_path, {})


def told(data: Any, where: str) -> list[str]:
    return [str(fault) for fault in data.findings.warnings if fault.where == where]


def test_fast_speech_is_told_when_it_is_to_be_made_faster(tmp_path: Path) -> None:
    # Two frames a letter; at twice the speed one, too few for a letter twice.
    layers = {**GEOMETRY, "layers": [[640, 640, 0]]}
    assert not told(utterances(tmp_path, layers), "data.speed")
    data = utterances(tmp_path, layers, speed=[1.0, 2.0])
    texts = [sample["clip"].text for sample in data.samples("train")]
    twice = sum(any(a == b for a, b in itertools.pairwise(text)) for text in texts)
    (warning,) = told(data, "data.speed")
    assert f"{twice} of {len(texts)} clips are too fast" in warning
    assert "at 2 times" in warning


def test_clips_of_which_nothing_can_be_hidden_are_told(tmp_path: Path) -> None:
    # Letters of 80 ms, six to nine of them: 23 to 35 frames.
    assert not told(unlabelled(tmp_path, mask_length=23), "data.mask_length")
    (warning,) = told(unlabelled(tmp_path, mask_length=24), "data.mask_length")
    assert "5 of 20 clips" in warning


def test_fingerprint_follows_sound_text_and_settings(tmp_path: Path) -> None:
    found = set()
    for name, changes in (
        ("same", {}),
        ("again", {}),
        ("speed", {"speed": [0.9]}),
        ("case", {"case": "upper"}),
        ("sizes", {"test_size": 0.3}),
    ):
        (tmp_path / name).mkdir()
        found.add(utterances(tmp_path / name, **changes).fingerprint())
    assert len(found) == 4, "the place of the files does not count"
    folder = tmp_path / "sound"
    folder.mkdir()
    values = tiny_utterances(folder)
    write(folder / "clip03.wav", tones("abc da", seed=9))
    data = Utterances(UtteranceSettings(**values), seed=0)
    data.load()
    data.prepare(GEOMETRY)
    assert data.fingerprint() not in found


def test_the_same_samples_at_another_rate_are_another_sound(tmp_path: Path) -> None:
    found = []
    for rate in (8000, 16000):
        folder = tmp_path / str(rate)
        folder.mkdir()
        values = tiny_utterances(folder)
        for path in folder.glob("*.wav"):
            sound, _ = soundfile.read(str(path), dtype="int16")
            soundfile.write(str(path), sound, rate)
        data = Utterances(UtteranceSettings(**values), seed=0)
        data.load()
        data.prepare({**GEOMETRY, "layers": [[400, 160, 0]]})
        found.append(data.fingerprint())
    assert found[0] != found[1]


def test_without_listening_the_files_count(tmp_path: Path) -> None:
    found = []
    for name in ("a", "b", "c"):
        folder = tmp_path / name
        folder.mkdir()
        values = tiny_utterances(folder)
        if name == "c":
            sound, rate = soundfile.read(str(folder / "clip07.wav"))
            write(folder / "clip07.wav", sound * 0.5, rate)
        data = Utterances(UtteranceSettings(**values, listen=False), seed=0)
        data.load()
        data.prepare(GEOMETRY)
        found.append(data.fingerprint())
    assert found[0] == found[1] != found[2]


def test_what_people_see(tmp_path: Path) -> None:
    data = utterances(tmp_path)
    sample = data.samples("train")[0]
    shown = data.show(sample)
    assert shown["text"] == sample["clip"].text
    assert shown["speaker"].startswith("speaker ")
    assert shown["seconds"] == round(0.08 * len(shown["text"]), 3)
    assert (shown["start"], shown["stop"]) == (0.0, shown["seconds"])
    described = data.describe()
    json.dumps([shown, described])
    assert described["characters"] == "4 and the space: abcd"
    # In front it would look like a quote that is not closed.
    data.task["vocabulary"] = ["<blank>", " ", "'", "1", "é"]
    assert data.describe()["characters"] == "3 and the space: 1é'"
    assert described["recorded at"] == "8 kHz"
    assert "3 speakers" in described["train"]


def test_baselines_say_nothing_and_always_the_same(tmp_path: Path) -> None:
    data = utterances(tmp_path)
    _, often = baselines(["three", "six", "ten", "six"], ["x", "y"])
    assert often.outputs["prediction"] == ["six", "six"]
    _, short = baselines(["three", "ten", "six"], ["x"])
    assert short.outputs["prediction"] == ["six"]
    silent, frequent = data.baselines()
    assert silent.outputs["prediction"] == [""] * len(data.samples("test"))
    assert len(set(frequent.outputs["prediction"])) == 1
    expected = [sample["clip"].text for sample in data.samples("test")]
    assert frequent.outputs["target"] == expected


def test_inputs_are_files_and_folders(tmp_path: Path) -> None:
    data = utterances(tmp_path)
    (tmp_path / "more" / "deep").mkdir(parents=True)
    write(tmp_path / "more" / "b.wav", tones("ab"))
    write(tmp_path / "more" / "deep" / "a.flac", tones("abc"))
    samples = data.from_inputs([str(tmp_path / "clip05.wav"), tmp_path / "more"])
    names = [data.input_name(sample) for sample in samples]
    assert [name.split("/")[-1] for name in names] == ["clip05.wav", "b.wav", "a.flac"]
    batch = data.collate(samples)
    assert set(batch) == {"waveform", "lengths", "frames"}, "there are no labels"
    assert batch["lengths"][1:].tolist() == [2560, 3840]
    assert data.waveforms.held == 0, "inputs are heard once"
    json.dumps(data.show(samples[0]))


def test_pieces_have_few_widths(tmp_path: Path) -> None:
    """Networks keep plans for each width: an hour would fill the memory with them."""
    data = utterances(tmp_path, {**GEOMETRY, "longest": 3 * 16000})
    write(tmp_path / "short.wav", tones("abc"))
    write(tmp_path / "longer.wav", tones("ab" * 15))
    samples = data.from_inputs([tmp_path / "short.wav", tmp_path / "longer.wav"])
    batches = [data.collate([sample]) for sample in samples]
    # Two seconds, and what the backbone takes at most.
    assert [batch["waveform"].shape[1] for batch in batches] == [32000, 48000]
    assert [int(batch["lengths"]) for batch in batches] == [3840, 38400]
    assert not batches[0]["waveform"][0, 3840:].any()
    trained = data.collate(list(data.samples("train"))[:1])
    assert trained["waveform"].shape[1] == int(trained["lengths"])


def test_long_inputs_come_in_pieces_and_end_as_one_row(tmp_path: Path) -> None:
    data = utterances(tmp_path, longest=2.0)
    text = "abcd abcd abcd  bcda bcda bcda    cdab cdab cdab    dabc dabc"
    write(tmp_path / "long.wav", tones(text))
    write(tmp_path / "short.wav", tones("ab"))
    samples = data.from_inputs([tmp_path / "long.wav", tmp_path / "short.wav"])
    *pieces, short = samples
    assert len(pieces) > 2
    assert [sample["piece"] for sample in pieces] == list(range(len(pieces)))
    assert short["piece"] == 0
    assert all(sample["seconds"] <= 2.0 for sample in pieces)
    ends = [0.0, *(sample["start"] + sample["seconds"] for sample in pieces)]
    assert [s["start"] for s in pieces] == pytest.approx(ends[:-1])
    assert ends[-1] == pytest.approx(0.08 * len(text))
    # No sound is lost: the pieces' lengths are the file's, but for rounding up.
    lengths = data.collate(pieces)["lengths"]
    assert int(lengths.sum()) == len(text) * 1280
    predictions = [{"text": f"part {i}"} for i in range(len(samples))]
    first, second = data.join(samples, predictions)
    said = " ".join(f"part {i}" for i in range(len(pieces)))
    assert (first["text"], second["text"]) == (said, f"part {len(pieces)}")
    folder = tmp_path / "out"
    folder.mkdir()
    written = data.write_predictions(folder, samples, predictions)
    assert {path.stem for path in written} >= {"long", "short"}


def test_inputs_are_no_longer_than_the_backbone_takes(tmp_path: Path) -> None:
    data = utterances(tmp_path, {**GEOMETRY, "longest": 16000})
    write(tmp_path / "long.wav", tones("abcd " * 8))
    samples = data.from_inputs([tmp_path / "long.wav"])
    assert data.collate(samples)["lengths"].max() <= 16000


def test_bad_inputs_are_told_together(tmp_path: Path) -> None:
    data = utterances(tmp_path)
    (tmp_path / "text.wav").write_text("hello")
    (tmp_path / "none").mkdir()
    write(tmp_path / "short.wav", tones("a")[:100])
    names = ("text.wav", "none", "short.wav", "clip99.wav")
    with pytest.raises(DataError) as caught:
        data.from_inputs([*(str(tmp_path / name) for name in names), 3])
    faults = [str(fault) for fault in caught.value.faults]
    assert len(faults) == 5
    for name, fault in zip((*names, "input 5"), faults, strict=True):
        assert name in fault
    assert "nothing in less than 0.025 s" in faults[2]


def test_bad_inputs_are_left_out_where_that_is_asked_for(tmp_path: Path) -> None:
    data = utterances(tmp_path)
    # The header is good, and what follows is not: found before the prediction begins.
    write(tmp_path / "whole.flac", tones("abcd" * 20))
    raw = (tmp_path / "whole.flac").read_bytes()
    (tmp_path / "broken.flac").write_bytes(raw[: len(raw) // 2])
    names = ("clip01.wav", "nothing.wav", "broken.flac", "clip02.wav")
    paths = [tmp_path / name for name in names]
    data.skipped = []
    samples = data.from_inputs(paths)
    kept = [data.input_name(sample) for sample in samples]
    assert kept == [str(paths[0]), str(paths[3])]
    told = [str(fault) for fault in data.skipped]
    assert len(told) == 2
    assert "nothing.wav" in told[0] and "broken.flac" in told[1]
    with pytest.raises(DataError, match=r"nothing\.wav"):
        data.from_inputs([paths[1]])


def test_one_split_is_read_without_the_others(tmp_path: Path) -> None:
    values = tiny_utterances(tmp_path)
    new = tmp_path / "new"
    new.mkdir()
    write(new / "one.wav", tones("bad cab"))
    manifest = new / "clips.csv"
    manifest.write_text("path,text\none.wav,CAB bad!\n")
    values |= {"path": str(tmp_path / "gone.csv"), "test_path": str(manifest)}
    task = {"kind": "transcription", "vocabulary": ["<blank>", " ", "d", "c", "b", "a"]}
    text = {"case": "lower", "punctuation": "remove", "digits": "keep"}
    task["text"] = {**text, "unicode": "NFKC", "accents": "keep"}

    def module(**settings: Any) -> Utterances:
        data = Utterances(UtteranceSettings(**{**values, **settings}), seed=0)
        data.task = task
        return data

    data = module()
    assert data.load_split("test")
    data.prepare(GEOMETRY)
    assert data.sizes("test").tolist() == [7 * 1280]
    batch = data.collate(data.samples("test"))
    # By the rows of the model that was trained.
    assert batch["labels"].tolist() == [[3, 5, 4, 1, 4, 5, 2]]
    assert not module().load_split("validation"), "it has no file of its own"
    manifest.write_text("path,text\none.wav,bed\n")
    with pytest.raises(DataError, match="outside the vocabulary: 'e'"):
        module().load_split("test")
    kept = module(outside="remove")
    assert kept.load_split("test")
    assert kept.samples("test")[0]["labels"].tolist() == [4, 2]


def test_a_file_that_changed_is_told_with_its_row(tmp_path: Path) -> None:
    data = utterances(tmp_path)
    sample = data.samples("train")[0]
    sample["clip"].path.write_bytes(b"RIFF")
    with pytest.raises(DataError, match=r"clips\.csv, line \d+"):
        data.collate([sample])
