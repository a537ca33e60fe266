"""Clips: what a data set says about each piece of audio, and what was found out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from headstart_speech import audio
from headstart_speech.resampling import ratio, scaled

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from headstart.data import Split
    from headstart_speech.audio import AudioFile
    from headstart_speech.sounds import Sound


@dataclass
class Clip:
    """A piece of audio, with what is said in it where that is known.

    Attributes:
        id: Unique in the data set.
        path: The audio file.
        start: Where it begins in the file, in seconds; ``None``: at its beginning.
        stop: Where it ends, in seconds; ``None``: at its end.
        text: The transcript as it was written; ``None`` without one.
        speaker: Who speaks, where that is known.
        where: File and row that name it: the key of faults in ``findings``.
        rate: Sampling rate that the manifest states, in Hz.
        split: Where the data set itself puts it.
        facts: The file's header; filled by :func:`.checks.check_clips`.
        sound: What decoding it showed; filled there with ``data.listen``.
        normal: The transcript as it is learned (normalised); filled there.
    """

    id: str
    path: Path
    start: float | None = None
    stop: float | None = None
    text: str | None = None
    speaker: str | None = None
    where: tuple[str, int] = ("", 0)
    rate: int | None = None
    split: Split | None = None
    facts: AudioFile | None = None
    sound: Sound | None = None
    normal: str | None = None

    @property
    def place(self) -> str:
        """What leads a reader of faults to it."""
        file, row = self.where
        name = audio.shown(self.path)
        if self.start:
            name += f", from {self.start:.2f} s"
        return f"{file}, line {row} ({name})" if row else name

    @property
    def span(self) -> tuple[int, int]:
        """First sample and the one behind the last, at the file's own rate."""
        assert self.facts is not None, "check_clips has not run"
        rate, total = self.facts.rate, self.facts.frames
        first = 0 if self.start is None else min(round(self.start * rate), total)
        last = total if self.stop is None else min(round(self.stop * rate), total)
        return first, last

    @property
    def seconds(self) -> float:
        assert self.facts is not None, "check_clips has not run"
        first, last = self.span
        return (last - first) / self.facts.rate

    def samples(self, rate: int) -> int:
        """How many samples it has after resampling."""
        assert self.facts is not None, "check_clips has not run"
        first, last = self.span
        return scaled(last - first, ratio(self.facts.rate, rate))

    def read(self) -> np.ndarray:
        """Mono float32 (samples,) in -1..1 at the file's own rate.

        Raises:
            AudioError: The file has changed or cannot be decoded.
        """
        assert self.facts is not None, "check_clips has not run"
        return audio.read(self.facts, *self.span)
