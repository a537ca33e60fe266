"""Tiny data sets for tests: every letter is a tone, written as WAV."""

from __future__ import annotations

import csv
import itertools
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

RATE = 8000
LETTER_SECONDS = 0.08
TONES = {"a": 300.0, "b": 500.0, "c": 800.0, "d": 1300.0}
"""Pitch of each letter in Hz; between words it is quiet."""


def tiny_utterances(folder: Path, clips: int = 30) -> dict[str, Any]:
    """Clips of two words each, no sentence twice, and a manifest of them.

    Returns:
        Settings of ``[data]`` that read them.
    """
    words = [*map("".join, itertools.permutations(TONES, 2))]
    with (folder / "clips.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "text", "speaker"])
        for i in range(clips):
            second = (i // len(words) + i + 1) % len(words)
            # Every third one has a letter more, so that lengths differ.
            text = f"{words[i % len(words)]} {words[second]}{'abcd'[i % 4] * (i % 3)}"
            write(folder / f"clip{i:02d}.wav", tones(text, seed=i))
            writer.writerow([f"clip{i:02d}.wav", text, f"speaker {i % 3}"])
    return {"name": "speech/utterances", "path": str(folder / "clips.csv")}


def tiny_unlabelled(folder: Path, clips: int = 20) -> dict[str, Any]:
    """Clips of random letters, without transcripts.

    Returns:
        Settings of ``[data]`` that read them.
    """
    generator = np.random.default_rng(0)
    for i in range(clips):
        text = "".join(generator.choice([*TONES], size=6 + i % 4))
        write(folder / f"clip{i:02d}.wav", tones(text, seed=i))
    return {
        "name": "speech/unlabelled",
        "path": str(folder),
        "mask_length": 4,
        "negatives": 8,
    }


def tones(text: str, seed: int = 0, rate: int = RATE) -> np.ndarray:
    """What a text sounds like, float64 (samples,), with a little noise."""
    generator = np.random.default_rng(seed)
    time = np.arange(round(LETTER_SECONDS * rate)) / rate
    # Faded in and out, so that no letter clicks.
    shape = 0.4 * np.hanning(len(time))
    sound = [
        shape * np.sin(2 * np.pi * TONES[c] * time) if c in TONES else 0 * time
        for c in text
    ]
    return np.concatenate(sound) + generator.normal(0, 0.003, len(text) * len(time))


def write(path: Path, sound: np.ndarray, rate: int = RATE) -> None:
    """Write a WAV file of 16 bits."""
    import soundfile

    soundfile.write(str(path), sound, rate, subtype="PCM_16")
