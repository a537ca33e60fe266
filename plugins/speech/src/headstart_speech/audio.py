"""Audio files: what their headers say, and pieces of them as mono samples.

soundfile reads WAV, FLAC, OGG, MP3, AIFF and a few more. Other formats (M4A, WebM, WMA)
are read by torchcodec, the extra ``headstart-speech[codecs]``.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from headstart.errors import DataError, Fault, nearest

if TYPE_CHECKING:
    from collections.abc import Iterator

ENDINGS = frozenset(
    ".wav .flac .ogg .oga .opus .mp3 .aif .aiff .aifc .au .w64 .caf .sph "
    ".m4a .mp4 .aac .wma .webm .mka .amr .3gp".split()
)
"""Endings of the files that are taken for audio in a folder."""
BLOCK_SECONDS = 10.0
"""Seconds that are decoded at a time where a file is read through."""
SLACK_SECONDS = 0.1
"""Seconds by which formats that estimate their length may be shorter than they say."""
ESTIMATED = frozenset({"MPEG", "MP3", "OGG", "torchcodec"})
_PREROLL = {"MPEG": 16_384, "MP3": 16_384}
"""Samples that a decoder must have read before what it gives is right: a frame of MP3
borrows bits from those before it, and is silent where they were jumped over."""


class AudioError(DataError):
    """An audio file that cannot be used; one fault."""


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


def shown(path: str | Path) -> str:
    """A path as people in the present folder write it."""
    here, path = Path.cwd(), Path(path)
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def look(path: str | Path) -> AudioFile:
    """Read a file's header.

    Raises:
        AudioError: It is missing, empty, cut off, without samples, or not audio.
    """
    import soundfile

    path = Path(path)
    _check_file(path)
    _check_riff(path)
    try:
        info = soundfile.info(str(path))
    except (soundfile.LibsndfileError, OSError) as error:
        if (kind := _container(path)) is not None:
            return _look_codec(path, kind)
        raise _not_audio(path, str(error)) from error
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

        def seekable(self) -> bool:
            return False

    try:
        return Onward(str(file.path))
    except (soundfile.LibsndfileError, OSError) as error:
        raise _broken(file, str(error)) from error


def _next(file: AudioFile, source: Any, start: int, count: int) -> np.ndarray:
    import soundfile

    try:
        before = 0
        if source.tell() != start:
            before = min(start, _PREROLL.get(file.format, 0))
            source.seek(start - before)
        read = source.read(before + count, dtype="float32", always_2d=True)
        found: np.ndarray = read[before:]
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
    estimated = file.format in ESTIMATED and stop == file.frames
    if estimated and lacking <= SLACK_SECONDS * file.rate:
        return np.pad(found, (0, lacking))
    there = (start + len(found)) / file.rate
    raise _cut_off(file.path, file.seconds, there)


def _with_sound(facts: AudioFile) -> AudioFile:
    if facts.frames > 0:
        return facts
    raise AudioError(
        "there is no sound in it: 0 samples",
        where=shown(facts.path),
        why=f"the {facts.format} header is all there is",
        fix="record or export it again",
    )


def _check_file(path: Path) -> None:
    where = shown(path)
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise AudioError(missing(path)) from None
    except OSError as error:
        raise AudioError("cannot be read", where=where, why=str(error)) from error
    if path.is_dir():
        raise AudioError("this is a folder, not an audio file", where=where)
    if not size:
        fix = "copy or download it again"
        raise AudioError("the file is empty: 0 bytes", where=where, fix=fix)
    if not os.access(path, os.R_OK):
        why = "you may not read it"
        raise AudioError("cannot be read", where=where, why=why)


def missing(path: Path, key: str = "") -> Fault:
    """There is no such file or folder: where it would be, and what is called alike."""
    what = "there is no such file or folder" if key else "there is no such file"
    why, fix = f"{key} names it" if key else "", "give the path of an existing one"
    try:
        names = [p.name for p in path.parent.iterdir() if not p.name.startswith(".")]
    except OSError:
        return Fault(what, shown(path), f"there is no folder {shown(path.parent)}", fix)
    near = nearest(path.name, names)
    return Fault(what, shown(path), why, near if near.startswith("did") else fix)


def _check_riff(path: Path) -> None:
    """A WAV file whose header promises more than there is.

    libsndfile would read what is left and say nothing.
    """
    with path.open("rb") as file:
        head = file.read(12)
        if head[:4] != b"RIFF" or head[8:] != b"WAVE":
            return
        bytes_a_second = 0
        while len(chunk := file.read(8)) == 8:
            name, size = chunk[:4], struct.unpack("<I", chunk[4:])[0]
            if name == b"data":
                break
            if name == b"fmt ":
                format_ = file.read(size)
                if len(format_) >= 12:
                    bytes_a_second = struct.unpack("<I", format_[8:12])[0]
                file.seek(size % 2, os.SEEK_CUR)
            else:
                file.seek(size + size % 2, os.SEEK_CUR)
        else:
            raise AudioError(
                "the file is cut off: it has no samples",
                where=shown(path),
                why="the header of the WAV file is all there is",
                fix="copy or download it again",
            )
        there = path.stat().st_size - file.tell()
    # Programs that write to a pipe do not know the size and put the largest.
    if size < 0x7FFFF000 and there < size:
        rate = bytes_a_second or 1
        raise _cut_off(path, size / rate, there / rate)


def _cut_off(path: Path, said: float, there: float) -> AudioError:
    return AudioError(
        f"the file is cut off: {there:.2f} of {said:.2f} seconds are there",
        where=shown(path),
        why="its header promises more than can be read",
        fix="copy or download it again",
    )


def _broken(file: AudioFile, why: str) -> AudioError:
    fix = "copy or download it again, or write it anew from the original"
    return AudioError("cannot be decoded", where=shown(file.path), why=why, fix=fix)


_TEXTS = (
    (b"version https://git-lfs", "a pointer of Git LFS", "run `git lfs pull`"),
    (b"<!doctype", "a web page", "download the file itself"),
    (b"<html", "a web page", "download the file itself"),
    (b"<?xml", "XML", "give the audio file that it speaks of"),
    (b"{", "JSON", "give the audio file itself"),
    (b"pk\x03\x04", "a ZIP archive", "unpack it"),
    (b"\x1f\x8b", "gzip-compressed", "unpack it"),
)


def _not_audio(path: Path, why: str) -> AudioError:
    with path.open("rb") as file:
        head = file.read(64)
    bare = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    fix = "give a WAV, FLAC, OGG or MP3 file"
    for start, kind, mend in _TEXTS:
        if bare.startswith(start):
            why, fix = f"its content is {kind}", mend
            break
    else:
        if head.isascii() and head.decode("ascii").replace("\n", " ").isprintable():
            why = f"its content is text: {head[:30].decode('ascii')!r}"
    ending = path.suffix.lower()
    named = f", in spite of its ending {ending}" if ending in ENDINGS else ""
    return AudioError(f"this is not audio{named}", where=shown(path), why=why, fix=fix)


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
        raise _not_audio(path, _line(error)) from error


def _line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0]


def _look_codec(path: Path, kind: str) -> AudioFile:
    facts = _decoder(path, kind).metadata
    rate = int(facts.sample_rate)
    frames = round(float(facts.duration_seconds_from_header or 0) * rate)
    channels = int(facts.num_channels or 1)
    return _with_sound(AudioFile(path, rate, channels, frames, "torchcodec", kind))


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
