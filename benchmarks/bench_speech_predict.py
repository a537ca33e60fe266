"""Transcribing long recordings: peak memory and speed of ``Run.predict``.

The recording is made of prompts with pauses between them. Each length is predicted in a
process of its own, which opens the run, listens, and gives words with their times.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from common import peak_memory, publish, setting

import headstart
from headstart.assembly import build_data
from headstart.plugins import load_plugins
from headstart.recipe import load_recipe

if TYPE_CHECKING:
    from collections.abc import Iterator

RECIPE = "speech/transcribe"
PAUSE_SECONDS = (0.4, 1.5)


def train(folder: Path, steps: int) -> None:
    """A run that is far from good, but of the size that a good one has."""
    overrides = {
        "strategy.name": "feature-extraction",
        "train.max_steps": steps,
        "train.head_learning_rate": 1e-2,
        "train.schedule": "constant",
        "report.baselines": False,
        "report.scratch_control": False,
    }
    headstart.run(RECIPE, overrides, folder=folder)


def prompts() -> Iterator[tuple[np.ndarray, int]]:
    """Sounds of the recipe's clips and their rate, again and again."""
    recipe = load_recipe(RECIPE, registry=load_plugins())
    data: Any = build_data(recipe)
    data.load()
    while True:
        for clip in data.clips["train"]:
            yield (clip.read() * 32767).astype(np.int16), clip.facts.rate


def write_recording(path: Path, minutes: float) -> None:
    """Prompts with pauses of random lengths, 16 bits; written as they come."""
    import soundfile

    generator = np.random.default_rng(0)
    sounds = prompts()
    sound, rate = next(sounds)
    left = round(minutes * 60 * rate)
    with soundfile.SoundFile(str(path), "w", rate, 1, subtype="PCM_16") as file:
        while left > 0:
            pause = round(generator.uniform(*PAUSE_SECONDS) * rate)
            # Not digital silence: a room has a little noise.
            quiet = generator.normal(0, 10, pause).astype(np.int16)
            piece = np.concatenate([sound, quiet])[:left]
            file.write(piece)
            left -= len(piece)
            sound, _ = next(sounds)


def predict(folder: Path, recording: Path) -> dict[str, float]:
    """In this process: seconds, peak in bytes, and how much was heard."""
    began = time.perf_counter()
    (row,) = headstart.Run(folder).predict([str(recording)], format="json")
    return {
        "seconds": time.perf_counter() - began,
        "bytes": peak_memory(),
        "words": sum(len(part.get("words", ())) for part in row["segments"]),
    }


def apart(folder: Path, recording: Path) -> dict[str, float]:
    """:func:`predict` in a process of its own."""
    command = [sys.executable, __file__, "--predict", str(folder), str(recording)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, nargs="+", default=[10.0, 60.0])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--predict", type=Path, nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.predict:
        print(json.dumps(predict(*arguments.predict)))
        return
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        run, recording = Path(temporary, "run"), Path(temporary, "recording.wav")
        train(run, arguments.steps)
        for minutes in arguments.minutes:
            write_recording(recording, minutes)
            found = apart(run, recording)
            memory = found["bytes"] / 1e9
            first = rows[0]["peak memory, GB"] if rows else memory
            rows.append(
                {
                    "recording, minutes": minutes,
                    "peak memory, GB": memory,
                    "of the first one's": memory / first,
                    "seconds": found["seconds"],
                    "times as fast as speech": minutes * 60 / found["seconds"],
                    "words": int(found["words"]),
                }
            )
    publish(
        "speech_predict",
        f"{RECIPE}: recordings made of prompts and pauses, from file to words with "
        "their times",
        rows,
        setting("headstart-speech", "transformers"),
        goal="an hour takes at most 10 % more memory than 10 minutes",
        remark="Each in a process of its own, interpreter, libraries and opening the "
        f"run included. The run was trained for {arguments.steps} steps, enough to say "
        "some words.",
    )


if __name__ == "__main__":
    main()
