"""Resampling of batches, and random changes to them."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
import torchaudio

from headstart_speech.augment import add_white_noise, change_speed, change_volume
from headstart_speech.resampling import ratio, resampled, scaled

RATE = 16000


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tone(samples: int, hertz: float, rate: int = RATE) -> torch.Tensor:
    return 0.5 * torch.sin(2 * math.pi * hertz / rate * torch.arange(samples))


def padded(*clips: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    lengths = torch.tensor([len(clip) for clip in clips])
    return torch.nn.utils.rnn.pad_sequence(list(clips), batch_first=True), lengths


def loudest_hertz(clip: torch.Tensor, rate: int = RATE) -> float:
    spectrum = torch.fft.rfft(clip * torch.hann_window(len(clip))).abs()
    return spectrum.argmax().item() * rate / len(clip)


@pytest.mark.parametrize("rate", [8000, 11025, 44100, 48000])
def test_resampling_is_torchaudios(rate: int) -> None:
    clip = torch.randn(3001, generator=generator()) * 0.1
    found, lengths = resampled(clip[None], torch.tensor([3001]), ratio(rate, RATE))
    expected = torchaudio.functional.resample(clip, rate, RATE)
    assert lengths.tolist() == [math.ceil(3001 * RATE / rate)] == [len(expected)]
    torch.testing.assert_close(found[0], expected)


def test_resampling_does_not_depend_on_the_batch() -> None:
    clips = [torch.randn(n, generator=generator(n)) for n in (900, 411, 640)]
    together, lengths = resampled(*padded(*clips), ratio(22050, RATE))
    for row, clip in zip(range(3), clips, strict=True):
        alone, length = resampled(
            clip[None], lengths.new_tensor([len(clip)]), ratio(22050, RATE)
        )
        own = int(lengths[row])
        assert own == length.item()
        torch.testing.assert_close(together[row, :own], alone[0])
        assert not together[row, own:].any(), "zeros behind the end"


def test_length_is_exact_where_float32_is_not() -> None:
    # 18,900,001 samples at 44.1 kHz end in a fraction that float32 cannot hold.
    assert scaled(18_900_001, ratio(44100, RATE)) == 6_857_144
    assert scaled(torch.tensor([441, 442]), ratio(44100, RATE)).tolist() == [160, 161]
    clip = torch.zeros(1, 1_323_001)
    found, lengths = resampled(clip, torch.tensor([1_323_001]), ratio(44100, RATE))
    assert found.shape[1] == lengths.item() == 480_001


def test_odd_rates_need_no_giant_filter() -> None:
    factor = ratio(11127, RATE)
    assert factor.denominator <= 1000
    assert float(factor) == pytest.approx(RATE / 11127, rel=1e-6)


@pytest.mark.parametrize("speed", [0.9, 1.1])
def test_speed_changes_length_and_pitch(speed: float) -> None:
    batch = padded(tone(8000, 1000), tone(6001, 440))
    found, lengths = change_speed(*batch, [speed], generator())
    factor = Fraction(10, 9) if speed < 1 else Fraction(10, 11)
    assert lengths.tolist() == [math.ceil(8000 * factor), math.ceil(6001 * factor)]
    assert found.shape == (2, lengths.max())
    for row, (own, hertz) in enumerate(zip(lengths.tolist(), (1000, 440), strict=True)):
        assert loudest_hertz(found[row, :own]) == pytest.approx(hertz * speed, abs=5)
        assert not found[row, own:].any()


def test_speed_is_one_of_the_given() -> None:
    batch = padded(tone(1000, 300))
    widths = [
        change_speed(*batch, [0.5, 1.0, 2.0], generator(seed))[0].shape[1]
        for seed in range(60)
    ]
    assert {width: widths.count(width) > 8 for width in widths} == {
        500: True,
        1000: True,
        2000: True,
    }


def test_speed_stays_within_what_the_backbone_takes() -> None:
    batch = padded(tone(1000, 300))
    assert change_speed(*batch, [0.9], generator(), limits=(1, 1111))[0] is batch[0]
    assert (
        change_speed(*batch, [0.9], generator(), limits=(1, 1112))[0].shape[1] == 1112
    )
    assert change_speed(*batch, [2.0], generator(), limits=(501, 1e9))[0] is batch[0]


def test_noise_has_the_asked_power() -> None:
    waveform, lengths = padded(tone(20_000, 500), tone(12_000, 300) * 0.1)
    found = add_white_noise(waveform, lengths, (10.0, 10.0), generator())
    for row, own in enumerate(lengths.tolist()):
        noise = found[row, :own] - waveform[row, :own]
        power = waveform[row, :own].square().sum() / noise.square().sum()
        assert 10 * math.log10(power) == pytest.approx(10, abs=0.05)
        assert not found[row, own:].any()


def test_noise_is_between_its_limits() -> None:
    waveform, lengths = padded(*[tone(2000, 500)] * 50)
    noise = add_white_noise(waveform, lengths, (0.0, 30.0), generator()) - waveform
    ratios = 10 * torch.log10(waveform.square().sum(1) / noise.square().sum(1))
    assert -0.5 < ratios.min() < 5
    assert 25 < ratios.max() < 30.5


def test_silence_stays_silence() -> None:
    waveform = torch.zeros(1, 400)
    found = add_white_noise(waveform, torch.tensor([400]), (5.0, 9.0), generator())
    assert torch.equal(found, waveform)


def test_volume_is_changed_by_so_many_decibels() -> None:
    waveform = tone(2000, 500).repeat(50, 1) * 0.2
    found = change_volume(waveform, (-6.0, 6.0), generator())
    gains = 20 * torch.log10(found.abs().amax(1) / waveform.abs().amax(1))
    assert -6 <= gains.min() < -4
    assert 4 < gains.max() <= 6.0001
    assert change_volume(waveform * 10, (6.0, 6.0), generator()).abs().max() == 1


def test_changes_leave_what_they_are_given() -> None:
    waveform, lengths = padded(tone(900, 500), tone(500, 700))
    untouched = waveform.clone()
    change_speed(waveform, lengths, [0.9], generator())
    add_white_noise(waveform, lengths, (5.0, 5.0), generator())
    change_volume(waveform, (6.0, 6.0), generator())
    assert torch.equal(waveform, untouched)
