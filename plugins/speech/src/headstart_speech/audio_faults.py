"""What is wrong with an audio file that is missing, cut off, or something else."""

from __future__ import annotations

import os
import struct
from pathlib import Path

from headstart.errors import DataError, Fault, nearest

ENDINGS = frozenset(
    ".wav .flac .ogg .oga .opus .mp3 .aif .aiff .aifc .au .w64 .caf .sph "
    ".m4a .mp4 .aac .wma .webm .mka .amr .3gp".split()
)
"""Endings of the files that are taken for audio in a folder."""
_MANY_NAMES = 1000
"""Of a larger folder, only so many are compared with the name of a missing file."""


class AudioError(DataError):
    """An audio file that cannot be used; one fault."""


class MissingError(AudioError):
    """There is no such file."""


def shown(path: str | Path) -> str:
    """A path as people in the present folder write it."""
    here, path = Path.cwd(), Path(path)
    text = str(path.relative_to(here) if path.is_relative_to(here) else path)
    # A name that is no UTF-8 could not be printed.
    return text.encode("utf-8", "backslashreplace").decode()


def expanded(path: str | Path) -> Path:
    """A path with the home folder for ``~``, where that is what it means."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def exists(path: Path) -> bool:
    """Whether there is such a file or folder, whatever was written for its name."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def check_file(path: Path, *, guess: bool) -> None:
    """Refuse what cannot be a file with sound, by name and size alone.

    Args:
        path: The file.
        guess: As :func:`.audio.look`.

    Raises:
        MissingError: There is no such file.
        AudioError: It is a folder, empty, may not be read, or has an unusable name.
    """
    where = shown(path)
    try:
        size = path.stat().st_size
        str(path).encode()
    except FileNotFoundError:
        fault = missing(path) if guess else Fault("there is no such file", where)
        raise MissingError(fault) from None
    except UnicodeEncodeError as error:
        fix = "rename the file"
        what = "the file's name is not UTF-8"
        raise AudioError(what, where=where, fix=fix) from error
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise AudioError("cannot be read", where=where, why=why) from error
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
    except (OSError, ValueError):
        return Fault(what, shown(path), f"there is no folder {shown(path.parent)}", fix)
    if "\\" in path.name:
        fix = "put / between folders: \\ is part of a name here"
        return Fault(what, shown(path), why, fix)
    stem = f"{path.stem.casefold()}."
    same = [name for name in names if name.casefold().startswith(stem)]
    near = nearest(path.name, same or sorted(names)[:_MANY_NAMES])
    return Fault(what, shown(path), why, near if near.startswith("did") else fix)


def check_riff(path: Path) -> None:
    """Refuse a WAV file whose header promises more than there is.

    libsndfile would read what is left and say nothing.

    Raises:
        AudioError: So much is there, of so much.
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
    if not size and there:
        raise AudioError(
            "the header says that there are no samples",
            where=shown(path),
            why=f"{there:,} bytes follow it, as where a recording was not stopped",
            fix="`ffmpeg -i FILE NEW.wav` may save it",
        )
    # Programs that write to a pipe do not know the size and put the largest.
    if size < 0x7FFFF000 and there < size:
        rate = bytes_a_second or 1
        raise cut_off(path, size / rate, there / rate)


def cut_off(path: Path, said: float, there: float) -> AudioError:
    """Of a file that should have so many seconds, and has fewer."""
    return AudioError(
        f"the file is cut off: {there:.2f} of {said:.2f} seconds are there",
        where=shown(path),
        why="its header promises more than can be read",
        fix="copy or download it again",
    )


_TEXTS = (
    (b"version https://git-lfs", "a pointer of Git LFS", "run `git lfs pull`"),
    (b"<!doctype", "a web page", "download the file itself"),
    (b"<html", "a web page", "download the file itself"),
    (b"<?xml", "XML", "give the audio file that it speaks of"),
    (b"{", "JSON", "give the audio file itself"),
    (b"pk\x03\x04", "a ZIP archive", "unpack it"),
    (b"\x1f\x8b", "gzip-compressed", "unpack it"),
)


def not_audio(path: Path, why: str) -> AudioError:
    """Of a file that nothing can decode; what it looks like goes before ``why``."""
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
