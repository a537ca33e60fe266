"""Audio files: what their headers say, and pieces of them as mono samples.

soundfile reads WAV, FLAC, OGG, MP3, AIFF and a few more. Other formats (M4A, WebM, WMA)
are read by torchcodec, the extra ``headstart-speech[codecs]``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from headstart_speech.audio_faults import (
    AudioError,
    check_file,
    check_riff,
    cut_off,
    not_audio,
    shown,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["AudioError", "AudioFile", "blocks", "look", "read", "shown"]

BLOCK_SECONDS = 10.0
"""Seconds that are decoded at a time where a file is read through."""
SLACK_SECONDS = 0.1
"""Seconds by which formats that estimate their length may be shorter than they say."""
ESTIMATED = frozenset({"MPEG", "MP3", "OGG", "torchcodec"})
_PREROLL = {"MPEG": 16_384, "MP3": 16_384}
"""Samples that a decoder must have read before what it gives is right: a frame of MP3
borrows bits from those before it, and is silent where they were jumped over."""
_UNKNOWN = 2**62
"""libsndfile gives more samples than this where the header does not say how many."""


@dataclass(frozen=True)
class AudioFile:
    """What the header of an audio file says.

    Attributes:
        path: The file.
        rate: Samples a second, of each channel.
        channels: How many; they are averaged when the file is read.
        frames: Samples of each channel.
        format: Container, e.g. ``WAV`` or ``FLAC``; ``torchcodec`` for what that reads.
        encoding: How samples are stored, e.g. ``PCM_16``.
    """

    path: Path
    rate: int
    channels: int
    frames: int
    format: str
    encoding: str = ""

    @property
    def seconds(self) -> float:
        return self.frames / self.rate


def look(path: str | Path, *, guess: bool = True) -> AudioFile:
    """Read a file's header.

    Args:
        path: The file.
        guess: Of a missing file, say what is called alike, which takes a while where
            its folder is large.

    Raises:
        MissingError: There is no such file.
        AudioError: It is empty, cut off, without samples, or not audio.
    """
    import soundfile

    path = Path(path)
    check_file(path, guess=guess)
    check_riff(path)
    try:
        info = soundfile.info(str(path))
    except (soundfile.LibsndfileError, OSError) as error:
        if (kind := _container(path)) is not None:
            return _look_codec(path, kind)
        raise not_audio(path, str(error)) from error
    facts = AudioFile(
        path, info.samplerate, info.channels, info.frames, info.format, info.subtype
    )
    return _with_sound(facts)


def read(file: AudioFile, start: int = 0, stop: int | None = None) -> np.ndarray:
    """A piece of a file, its channels averaged.

    Args:
        file: What :func:`look` found.
        start: First sample, at the file's own rate.
        stop: The one behind the last; ``None`` reads to the end.

    Returns:
        float32 (samples,), full scale at -1 and 1, ``stop - start`` long.

    Raises:
        AudioError: The file ends before, or cannot be decoded.
    """
    stop = file.frames if stop is None else stop
    if file.format == "torchcodec":
        return _filled(file, _decode(file, start, stop), start, stop)
    with _opened(file) as source:
        return _filled(file, _next(file, source, start, stop - start), start, stop)


def blocks(
    file: AudioFile,
    start: int = 0,
    stop: int | None = None,
    size: int | None = None,
) -> Iterator[np.ndarray]:
    """A piece of a file, one block after another: memory for one block alone.

    Args:
        file: What :func:`look` found.
        start: First sample, at the file's own rate.
        stop: The one behind the last; ``None`` reads to the end.
        size: Samples of a block; ``None`` takes ten seconds.

    Yields:
        As :func:`read`.

    Raises:
        AudioError: As :func:`read`.
    """
    stop = file.frames if stop is None else stop
    size = size or max(1, round(BLOCK_SECONDS * file.rate))
    if file.format == "torchcodec":
        for first in range(start, stop, size):
            yield read(file, first, min(first + size, stop))
        return
    with _opened(file) as source:
        for first in range(start, stop, size):
            last = min(first + size, stop)
            found = _next(file, source, first, last - first)
            yield _filled(file, found, first, last)


def _opened(file: AudioFile) -> Any:
    import soundfile

    class Onward(soundfile.SoundFile):
        """soundfile jumps to where it is after every read, and the MP3 decoder then
        complains on the terminal about each frame that it lacks bits of."""

        place = 0

        def seekable(self) -> bool:
            return False

        @property
        def jumps(self) -> bool:
            return bool(super().seekable())

    try:
        return Onward(str(file.path))
    except (soundfile.LibsndfileError, OSError) as error:
        raise _broken(file, str(error)) from error


def _next(file: AudioFile, source: Any, start: int, count: int) -> np.ndarray:
    import soundfile

    # Behind an estimated end there is nothing to jump to.
    near = 0 <= start - source.place <= SLACK_SECONDS * file.rate
    try:
        if source.jumps and not near:
            source.place = start - min(start, _PREROLL.get(file.format, 0))
            source.seek(source.place)
        # Some telephone formats (GSM) can only be read from their beginning.
        while source.place < start:
            step = min(start - source.place, round(BLOCK_SECONDS * file.rate))
            if not (there := len(source.read(step, dtype="float32"))):
                break
            source.place += there
        found: np.ndarray = source.read(count, dtype="float32", always_2d=True)
        source.place += len(found)
    except (soundfile.LibsndfileError, OSError) as error:
        raise _broken(file, str(error)) from error
    return _mono(found)


def _mono(found: np.ndarray) -> np.ndarray:
    """(samples, channels) to (samples,)."""
    if found.shape[1] == 1:
        return np.ascontiguousarray(found[:, 0])
    mono: np.ndarray = found.mean(axis=1, dtype=np.float32)
    return mono


def _filled(file: AudioFile, found: np.ndarray, start: int, stop: int) -> np.ndarray:
    """Exactly as long as asked; what lacks little at an estimated end is silent."""
    lacking = stop - start - len(found)
    if lacking <= 0:
        return found[: stop - start]
    end = start + len(found)
    short = file.frames - end
    if file.format in ESTIMATED and short <= SLACK_SECONDS * file.rate:
        return np.pad(found, (0, lacking))
    raise cut_off(file.path, file.seconds, end / file.rate)


def _with_sound(facts: AudioFile) -> AudioFile:
    if 0 < facts.frames < _UNKNOWN:
        return facts
    if facts.frames:
        raise AudioError(
            "its header does not say how long it is",
            where=shown(facts.path),
            why="it was written to a stream that could not go back to its header",
            fix="convert it, e.g. `ffmpeg -i FILE NEW.flac`",
        )
    raise AudioError(
        "there is no sound in it: 0 samples",
        where=shown(facts.path),
        why=f"the {facts.format} header is all there is",
        fix="record or export it again",
    )


def _broken(file: AudioFile, why: str) -> AudioError:
    fix = "copy or download it again, or write it anew from the original"
    return AudioError("cannot be decoded", where=shown(file.path), why=why, fix=fix)


def _container(path: Path) -> str | None:
    """What torchcodec reads and soundfile does not, by the first bytes."""
    with path.open("rb") as file:
        head = file.read(16)
    if head[4:8] == b"ftyp":
        return "MPEG-4"
    starts = {
        b"\x1aE\xdf\xa3": "Matroska or WebM",
        b"0&\xb2u": "Windows Media",
        b"#!AMR": "AMR",
        b"\xff\xf1": "AAC",
        b"\xff\xf9": "AAC",
        b"OggS": "Ogg",
    }
    return next(
        (kind for start, kind in starts.items() if head.startswith(start)), None
    )


def _decoder(path: Path, kind: str) -> Any:
    try:
        from torchcodec.decoders import AudioDecoder
    except (ImportError, OSError, RuntimeError) as error:
        raise AudioError(
            f"{kind} is not read by soundfile",
            where=shown(path),
            why=f"torchcodec, which reads it, does not load: {_line(error)}",
            fix="pip install 'headstart-speech[codecs]', or convert it to WAV or FLAC",
        ) from error
    try:
        return AudioDecoder(str(path), num_channels=1)
    except (RuntimeError, ValueError) as error:
        raise not_audio(path, _line(error)) from error


def _line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0]


def _look_codec(path: Path, kind: str) -> AudioFile:
    facts = _decoder(path, kind).metadata
    if not facts.sample_rate:
        raise not_audio(path, "it does not say how many samples a second has")
    rate, seconds = int(facts.sample_rate), facts.duration_seconds_from_header
    # What a browser records does not say how long it is.
    frames = _UNKNOWN if seconds is None else round(float(seconds) * rate)
    channels = int(facts.num_channels or 1)
    facts = AudioFile(path, rate, channels, frames, "torchcodec", kind)
    return _with_sound(facts)


def _decode(file: AudioFile, start: int, stop: int) -> np.ndarray:
    decoder = _decoder(file.path, file.encoding)
    try:
        found = decoder.get_samples_played_in_range(
            start / file.rate, min(stop / file.rate, file.seconds)
        )
    except (RuntimeError, ValueError) as error:
        raise _broken(file, _line(error)) from error
    mono: np.ndarray = found.data[0].numpy().astype(np.float32, copy=False)
    return mono
