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
    from collections.abc import Sequence

    from headstart.data import Sample

FIX = "give audio files, or folders with some"


def input_samples(
    inputs: Sequence[Any], longest: float, shortest: float, *, listen: bool
) -> tuple[list[Sample], list[Fault]]:
    """Samples of audio files; long ones in pieces, cut where it is quiet.

    Args:
        inputs: Paths of files, and of folders, which are searched with all below them.
        longest: Seconds that a piece may have.
        shortest: Seconds that a file must have.
        listen: Decode every file, to find those that are broken inside.

    Returns:
        Samples, and what is wrong with inputs that cannot be heard. Each sample has
        ``id``, ``input`` (what its file is called), ``clip``, ``seconds``, ``start``
        (where in the file it begins, in seconds) and ``piece`` (its number in the file,
        from 0 on); pieces of a file come one after another.
    """
    samples: list[Sample] = []
    faults: list[Fault] = []
    for number, given in enumerate(inputs, start=1):
        try:
            files = _files(given, f"input {number}")
        except DataError as error:
            faults += error.faults
            continue
        for path in files:
            try:
                samples += _samples(path, longest, shortest, listen=listen)
            except audio.AudioError as error:
                faults += error.faults
    if not samples and not faults:
        faults.append(Fault("nothing to listen to", fix=FIX))
    return samples, faults


def _files(given: Any, where: str) -> list[Path]:
    if not isinstance(given, (str, Path)):
        what = f"a {type(given).__name__} is no path of an audio file"
        raise DataError(what, where=where, fix=FIX)
    path = expanded(given)
    if not path.is_dir():
        return [path]
    files = audio_files(path)
    if not files:
        what, where = "no audio file in this folder", audio.shown(path)
        why = "no name in it ends as one's does, such as .wav or .flac"
        raise DataError(what, where=where, why=why, fix=FIX)
    return files


def _samples(
    path: Path, longest: float, shortest: float, *, listen: bool
) -> list[Sample]:
    facts, name = audio.look(path), str(path)
    if facts.seconds < shortest:
        raise audio.AudioError(
            f"too short: {facts.seconds:.3f} s",
            where=audio.shown(path),
            why=f"the model hears nothing in less than {shortest:.3f} s",
            fix="leave it out",
        )
    found = pieces(facts, 0, facts.frames, longest)
    if listen and len(found) == 1:
        # What was cut into pieces has been decoded for that.
        audio.read(facts, 0, facts.frames)
    samples = []
    for number, (first, last) in enumerate(found):
        start, stop = first / facts.rate, last / facts.rate
        identity = f"{name}#{number}" if len(found) > 1 else name
        samples.append(
            {
                "id": identity,
                "input": name,
                "clip": Clip(identity, path, start, stop, facts=facts),
                "seconds": stop - start,
                "start": start,
                "piece": number,
            }
        )
    return samples
