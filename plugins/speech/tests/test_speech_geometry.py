"""Frames of clips, against convolutions that run."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from headstart_speech.geometry import frame_counts, shortest_clip, total_stride

WAV2VEC2 = [
    [kernel, stride, 0]
    for kernel, stride in zip(
        (10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2), strict=True
    )
]
PADDED = [[3, 1, 1], [3, 2, 1]]


def frames_that_come_out(samples: int, layers: list[list[int]]) -> int:
    network = nn.Sequential(*(nn.Conv1d(1, 1, k, s, p) for k, s, p in layers))
    return int(network(torch.zeros(1, 1, samples)).shape[-1])


@pytest.mark.parametrize("samples", [400, 719, 720, 721, 16_000, 16_079, 16_080])
def test_as_many_frames_as_the_convolutions_give(samples: int) -> None:
    assert frame_counts(samples, WAV2VEC2) == frames_that_come_out(samples, WAV2VEC2)


@pytest.mark.parametrize("samples", [1, 2, 3, 99, 100])
def test_padding_counts(samples: int) -> None:
    assert frame_counts(samples, PADDED) == frames_that_come_out(samples, PADDED)


def test_known_numbers() -> None:
    # 20 ms a frame after the first 25 ms, as the wav2vec 2.0 paper says.
    assert frame_counts(16_000, WAV2VEC2) == 49
    assert total_stride(WAV2VEC2) == 320
    assert shortest_clip(WAV2VEC2) == 400


def test_too_short_has_none() -> None:
    assert [frame_counts(n, WAV2VEC2) for n in (0, 1, 10, 399)] == [0, 0, 0, 0]
    # Padding as wide as a kernel is no sound.
    assert frame_counts(0, [[400, 160, 200]]) == 0


def test_the_shortest_clip_has_one_frame() -> None:
    for layers in (WAV2VEC2, PADDED, [[400, 160, 120], *PADDED]):
        shortest = shortest_clip(layers)
        assert frame_counts(shortest, layers) == 1
        assert frame_counts(shortest - 1, layers) == 0


def test_arrays_and_tensors_as_integers() -> None:
    samples = [0, 399, 400, 5000, 16_000]
    expected = [frame_counts(n, WAV2VEC2) for n in samples]
    array = frame_counts(np.array(samples, dtype=np.int64), WAV2VEC2)
    tensor = frame_counts(torch.tensor(samples), WAV2VEC2)
    assert array.dtype == np.int64 and array.tolist() == expected
    assert tensor.dtype == torch.int64 and tensor.tolist() == expected
