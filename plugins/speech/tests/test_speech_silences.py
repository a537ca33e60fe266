"""Long audio is cut where it is quietest, in bounded memory."""

from __future__ import annotations

import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
import soundfile

from headstart_speech import audio
from headstart_speech.silences import pieces, split_points

RATE = 8000


def speech(*parts):
    """Noise and pauses: positive seconds are loud, negative ones silent."""
    rng = np.random.default_rng(0)
    return np.concatenate(
        [
            rng.normal(0, 0.2 if part > 0 else 0, round(abs(part) * RATE))
            for part in parts
        ]
    )


def cut(path, samples, longest, start=0):
    soundfile.write(path, samples, RATE)
    facts = audio.look(path)
    return pieces(facts, start, facts.frames, longest)


def test_a_short_stretch_stays_whole(tmp_path):
    assert cut(tmp_path / "a.wav", speech(2.0), 2.0) == [(0, 16000)]


def test_cuts_are_in_the_pauses(tmp_path):
    found = cut(tmp_path / "a.wav", speech(4, -0.6, 5, -0.6, 4, -0.6, 3), 6.0)
    seconds = [stop / RATE for _, stop in found[:-1]]
    # Only the first pause is within reach of the first piece, and so on.
    for second, (low, high) in zip(
        seconds, [(4, 4.6), (9.6, 10.2), (14.2, 14.8)], strict=True
    ):
        assert low < second < high


def test_a_pause_beats_a_gap_inside_a_word(tmp_path):
    found = cut(tmp_path / "a.wav", speech(3.2, -0.5, 1.6, -0.06, 3.0), 6.0)
    assert len(found) == 2
    assert 3.2 < found[0][1] / RATE < 3.7


@pytest.mark.parametrize("total", [6.01, 6.5, 11.99, 12.01, 31.3])
def test_pieces_are_whole_and_short_enough(tmp_path, total):
    found = cut(tmp_path / "a.wav", speech(total), 6.0, start=123)
    assert found[0][0] == 123
    assert found[-1][1] == round(total * RATE)
    assert all(one[1] == two[0] for one, two in pairwise(found))
    lengths = [(stop - start) / RATE for start, stop in found]
    assert max(lengths) <= 6.0
    # No crumb is left at the end.
    assert min(lengths) >= 6.0 / 4 - 0.02 - 123 / RATE


def test_pure_silence_is_cut_as_late_as_it_goes():
    assert split_points(np.zeros(250), 100) == [100, 200]


def test_windows_of_an_odd_rate_do_not_make_pieces_too_long(tmp_path):
    rate = 12345
    soundfile.write(tmp_path / "a.wav", np.full(10 * rate, 0.1), rate)
    facts = audio.look(tmp_path / "a.wav")
    found = pieces(facts, 0, facts.frames, 1.0)
    assert max(stop - start for start, stop in found) <= rate


def test_an_hour_needs_little_memory(tmp_path):
    path = tmp_path / "hour.wav"
    minute = (speech(29, -1, 29, -1) * 32768).astype(np.int16)
    with soundfile.SoundFile(path, "w", RATE, 1, "PCM_16") as file:
        for _ in range(60):
            file.write(minute)
    facts = audio.look(path)
    tracemalloc.start()
    found = pieces(facts, 0, facts.frames, 31.0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30e6  # the samples alone would be 115 MB
    assert len(found) == 120
    # The middle of the pause that ends each half minute.
    assert all((stop / RATE) % 30 > 29 for _, stop in found[:-1])
