"""What a user passes to ``predict``: audio files and folders of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from headstart.errors import DataError, Fault
from headstart_speech import audio
from headstart_speech.audio_faults import expanded
from headstart_speech.clips import Clip
from headstart_speech.folders import audio_files
from headstart_speech.silences import pieces

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from headstart.data import Sample

FIX = "give audio files, or folders with some"


def input_samples(
    inputs: Sequence[Any], longest: float, shortest: float
) -> list[Sample]:
    """Samples of audio files; long ones in pieces, cut where it is quiet.

    Args:
        inputs: Paths of files, and of folders, which are searched with all below them.
        longest: Seconds that a piece may have.
        shortest: Seconds that a file must have.

    Returns:
        Each with ``id``, ``input`` (what its file is called), ``clip``, ``seconds``,
        ``start`` (where in the file it begins, in seconds) and ``piece`` (its number
        in the file, from 0 on); pieces of a file one after another.

    Raises:
        DataError: Inputs that cannot be heard; names them all.
    """
    samples: list[Sample] = []
    faults: list[Fault] = []
    for number, given in enumerate(inputs, start=1):
        for found in _files(given, f"input {number}"):
            if isinstance(found, Fault):
                faults.append(found)
                continue
            try:
                samples += _samples(found, longest, shortest)
            except audio.AudioError as error:
                faults += error.faults
    if faults:
        raise DataError(*faults)
    if not samples:
        raise DataError("nothing to listen to", fix=FIX)
    return samples


def _files(given: Any, where: str) -> Iterator[Path | Fault]:
    if not isinstance(given, (str, Path)):
        what = f"a {type(given).__name__} is no path of an audio file"
        yield Fault(what, where, fix=FIX)
        return
    path = expanded(given)
    if not path.is_dir():
        yield path
        return
    files = audio_files(path)
    if not files:
        why = "no name in it ends as one's does, such as .wav or .flac"
        yield Fault("no audio file in this folder", audio.shown(path), why, FIX)
    yield from files


def _samples(path: Path, longest: float, shortest: float) -> Iterator[Sample]:
    facts, name = audio.look(path), str(path)
    if facts.seconds < shortest:
        raise audio.AudioError(
            f"too short: {facts.seconds:.3f} s",
            where=audio.shown(path),
            why=f"the model hears nothing in less than {shortest:.3f} s",
            fix="leave it out",
        )
    found = pieces(facts, 0, facts.frames, longest)
    for number, (first, last) in enumerate(found):
        start, stop = first / facts.rate, last / facts.rate
        identity = f"{name}#{number}" if len(found) > 1 else name
        yield {
            "id": identity,
            "input": name,
            "clip": Clip(identity, path, start, stop, facts=facts),
            "seconds": stop - start,
            "start": start,
            "piece": number,
        }
