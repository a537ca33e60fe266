"""What clips must be: every file heard once, every transcript read, all faults told.

A fault of one clip goes to ``findings.samples``, and ``data.bad`` decides about it;
what concerns the whole is fatal, or a warning.
"""

from __future__ import annotations

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from headstart.errors import Fault
from headstart_speech import audio, silences, sounds, vocabulary
from headstart_speech.audio_faults import AudioError, MissingError, missing
from headstart_speech.geometry import frame_counts
from headstart_speech.settings import UnlabelledSettings, UtteranceSettings
from headstart_speech.transcripts import check_transcripts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from headstart.data import Findings
    from headstart_speech.clips import Clip
    from headstart_speech.geometry import Layers
    from headstart_speech.settings import AudioSettings

RATE = 16_000
LAYERS: Layers = (
    (10, 5, 0),
    (3, 2, 0),
    (3, 2, 0),
    (3, 2, 0),
    (3, 2, 0),
    (2, 2, 0),
    (2, 2, 0),
)
"""wav2vec 2.0's convolutions, 50 frames a second: what clips are held to before the
backbone is known."""
END_SLACK = 0.05
"""Seconds by which a clip's end may lie behind its file's: rounding."""
_GUESSES = 20
"""Missing files of which it is said what is called alike: each looks at a folder."""
_THREADS = 4
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def check_settings(settings: AudioSettings) -> list[Fault]:
    """Faults of the settings that need no data to be seen."""
    faults = []
    for name in ("validation_size", "test_size"):
        size = getattr(settings, name)
        if size > 1 and size != int(size):
            what = f"{size} is neither a share below 1 nor a whole number of clips"
            faults.append(Fault(what, where=f"data.{name}", fix=f"e.g. {int(size)}"))
    if isinstance(settings, UtteranceSettings):
        faults += vocabulary.given(settings)[1]
        if settings.long == "split":
            what = "clips with a transcript cannot be split"
            why = "nobody knows which words are in which piece"
            fix = 'data.long="skip", or a manifest with start and end of each sentence'
            faults.append(Fault(what, "data.long", why, fix))
    return faults


def check_clips(
    clips: Sequence[Clip],
    settings: AudioSettings,
    findings: Findings,
    upsample: int = 1,
) -> list[Clip]:
    """Look at every file and transcript; fills ``facts``, ``sound`` and ``normal``.

    Args:
        clips: As a data set lists them.
        settings: The recipe's ``[data]``.
        findings: Takes faults by clip, and warnings about clips that are left out by
            ``data.short``, ``data.long``, ``data.digits`` or ``data.outside``.
        upsample: How many frames the head makes of each.

    Returns:
        The clips that are not left out so; long ones in pieces, with ``data.long`` =
        ``split``. Those with faults are among them.
    """
    skipped: dict[str, list[Clip]] = {}
    _look(clips, findings)
    kept: list[Clip] = []
    for clip in clips:
        if clip.facts is None or not _placed(clip, findings):
            # Of a stretch that is not there nothing more can be said.
            clip.facts = None
            kept.append(clip)
        elif reason := _length(clip, settings, findings):
            skipped.setdefault(reason, []).append(clip)
        else:
            kept.append(clip)
    if isinstance(settings, UtteranceSettings):
        kept = check_transcripts(kept, settings, findings, skipped)
    kept = _in_pieces(kept, settings, findings)
    if settings.listen:
        kept = _hear(kept, settings, findings, skipped)
    if isinstance(settings, UtteranceSettings):
        whole = [clip for clip in kept if clip.facts and clip.normal]
        for clip, fault in unalignable(whole, LAYERS, RATE, upsample):
            findings.sample(*clip.where, fault)
        _warn_twins(kept, findings)
    for reason, left in skipped.items():
        names = ", ".join(clip.place for clip in left[:3])
        what = f"{len(left)} of {len(clips)} clips are left out: {reason}"
        why = f"{names}{' …' * (len(left) > 3)}"
        findings.warnings.append(Fault(what, "data.path", why))
    return kept


def settle(
    clips: Sequence[Clip],
    settings: AudioSettings,
    findings: Findings,
    total: int | None = None,
) -> list[Clip]:
    """The clips that are used, by the recipe's policy for bad samples.

    Args:
        clips: Checked ones.
        settings: ``bad`` and ``bad_cap``.
        findings: What was found in them.
        total: Samples of which these are some; ``None``: they are all.

    Raises:
        DataError: As :meth:`headstart.data.Findings.settle`, or no clip is left.
    """
    # Each check goes through all clips; people go through the file.
    findings.samples = dict(sorted(findings.samples.items()))
    places = {clip.where for clip in clips} | findings.samples.keys()
    if not places and not findings.fatal:
        findings.fatal.append(Fault("no clip is left", "data.path"))
    bad = findings.settle(settings, total or len(places))
    return [clip for clip in clips if clip.where not in bad]


def unalignable(
    clips: Iterable[Clip], layers: Layers, rate: int, frames_per_frame: int = 1
) -> list[tuple[Clip, Fault]]:
    """Clips whose transcript has more characters than CTC can place on their frames.

    Each character takes a frame, and a blank lies between two equal ones.

    Args:
        clips: Checked ones.
        layers: The backbone's convolutions.
        rate: Samples a second of what it reads.
        frames_per_frame: How many frames the head makes of one of the backbone's.
    """
    clips = list(clips)
    samples = np.array([clip.samples(rate) for clip in clips], dtype=np.int64)
    frames = frame_counts(samples, layers) * frames_per_frame
    found = []
    for clip, there in zip(clips, frames.tolist(), strict=True):
        needed = frames_needed(clip.normal or "")
        if needed <= there:
            continue
        what = (
            f"the transcript is longer than the clip allows: {needed} frames are "
            f"needed, {there} are there"
        )
        why = f"{clip.seconds:.2f} s for {(clip.normal or '')[:60]!r}"
        fix = "check that the transcript is this clip's, and that the clip is whole"
        if needed <= 2 * there and frames_per_frame == 1:
            fix += "; of fast speech head.upsample=2 makes two frames of each"
        found.append((clip, Fault(what, clip.place, why, fix)))
    return found


def frames_needed(text: str) -> int:
    """Frames on which CTC can place a text."""
    repeats = sum(a == b for a, b in pairwise(text))
    return len(text) + repeats


def _look(clips: Sequence[Clip], findings: Findings) -> None:
    """Read the header of every file, each once."""
    paths = list(dict.fromkeys(clip.path for clip in clips))

    def look(path: object) -> audio.AudioFile | AudioError:
        try:
            return audio.look(str(path), guess=False)
        except AudioError as error:
            return error

    found = dict(zip(paths, in_threads(look, paths, "reading headers"), strict=True))
    guesses = _GUESSES
    for clip in clips:
        seen = found[clip.path]
        if isinstance(seen, AudioError):
            (fault,) = seen.faults
            if isinstance(seen, MissingError) and guesses:
                guesses -= 1
                fault = missing(clip.path)
            findings.sample(*clip.where, replace(fault, where=clip.place))
        else:
            clip.facts = seen


def _placed(clip: Clip, findings: Findings) -> bool:
    """Whether it is inside its file, whose rate is held against the manifest's too."""
    assert clip.facts is not None
    total = clip.facts.seconds
    if clip.rate is not None and clip.rate != clip.facts.rate:
        what = f"the file has {clip.facts.rate} samples a second, not {clip.rate}"
        why = "the manifest states another rate"
        fix = "correct the manifest, or find out which of both is wrong"
        findings.sample(*clip.where, Fault(what, clip.place, why, fix))
    if max(clip.start or 0.0, (clip.stop or 0.0) - END_SLACK) < total:
        return True
    first, last = clip.start or 0.0, clip.stop if clip.stop is not None else total
    what = f"the clip from {first:g} s to {last:g} s is not inside its file"
    fix = "start and end are seconds from the file's beginning"
    fault = Fault(what, clip.place, f"the file has {total:.2f} s", fix)
    findings.sample(*clip.where, fault)
    return False


def _length(clip: Clip, settings: AudioSettings, findings: Findings) -> str:
    """Why it is left out for its length; empty where it is not."""
    seconds = clip.seconds
    if seconds < settings.shortest:
        if settings.short == "skip":
            return f"shorter than data.shortest, {settings.shortest:g} s"
        what = f"the clip is too short: {seconds:.3f} s"
        why = f"data.shortest is {settings.shortest:g} s"
        fix = 'remove it, or data.short="skip"'
        findings.sample(*clip.where, Fault(what, clip.place, why, fix))
    if seconds > settings.longest and settings.long != "split":
        if settings.long == "skip":
            return f"longer than data.longest, {settings.longest:g} s"
        long = f"{seconds:.1f} s" if seconds < 300 else f"{seconds / 60:.0f} min"
        what = f"the clip is too long: {long}"
        why = f"data.longest is {settings.longest:g} s"
        fix = 'give start and end of each sentence, or data.long="skip"'
        if isinstance(settings, UnlabelledSettings):
            fix = 'data.long="split" cuts it at silences, "skip" leaves it out'
        findings.sample(*clip.where, Fault(what, clip.place, why, fix))
    return ""


def _in_pieces(
    clips: list[Clip],
    settings: AudioSettings,
    findings: Findings,
) -> list[Clip]:
    if settings.long != "split" or isinstance(settings, UtteranceSettings):
        return clips

    def cut(clip: Clip) -> list[Clip] | Fault:
        if clip.facts is None or clip.where in findings.samples:
            return [clip]
        if clip.seconds <= settings.longest:
            return [clip]
        rate = clip.facts.rate
        try:
            found = silences.pieces(clip.facts, *clip.span, settings.longest)
        except AudioError as error:
            return replace(error.faults[0], where=clip.place)
        return [
            replace(clip, id=f"{clip.id}#{i}", start=first / rate, stop=last / rate)
            for i, (first, last) in enumerate(found)
        ]

    kept = []
    for clip, found in zip(clips, in_threads(cut, clips, "splitting"), strict=True):
        if isinstance(found, Fault):
            findings.sample(*clip.where, found)
            continue
        kept += found
    return kept


def _hear(
    clips: list[Clip],
    settings: AudioSettings,
    findings: Findings,
    skipped: dict[str, list[Clip]],
) -> list[Clip]:
    """Decode every clip; silent pieces of a longer one are left out."""
    parts = Counter(clip.where for clip in clips)

    def hear(clip: Clip) -> sounds.Sound | Fault | None:
        if clip.facts is None or clip.span[0] >= clip.span[1]:
            return None
        try:
            return sounds.hear(clip.facts, *clip.span)
        except AudioError as error:
            return replace(error.faults[0], where=clip.place)

    kept = []
    for clip, heard in zip(clips, in_threads(hear, clips, "listening"), strict=True):
        if isinstance(heard, Fault):
            findings.sample(*clip.where, heard)
        elif heard is not None:
            clip.sound = heard
            if parts[clip.where] > 1 and _silent(heard, settings):
                reason = (
                    f"a silent piece of a longer one, below {settings.silence:g} dB"
                )
                skipped.setdefault(reason, []).append(clip)
                continue
            for fault in _sound_faults(clip, heard, settings):
                findings.sample(*clip.where, fault)
        kept.append(clip)
    return kept


def _silent(sound: sounds.Sound, settings: AudioSettings) -> bool:
    return sound.loudest < 10 ** (settings.silence / 20)


def _sound_faults(
    clip: Clip, sound: sounds.Sound, settings: AudioSettings
) -> list[Fault]:
    assert clip.facts is not None
    faults = []
    loudest = sounds.decibels(sound.loudest)
    if _silent(sound, settings):
        what = f"silence: its loudest 20 ms have {loudest:.0f} dB of full scale"
        if sound.peak == 0:
            what = "silence: every sample is 0"
        why = f"data.silence is {settings.silence:g} dB"
        if clip.facts.channels > 1 and sound.peak == 0:
            why += f"; its {clip.facts.channels} channels may cancel each other"
        fix = "record it again, or remove it"
        faults.append(Fault(what, clip.place, why, fix))
    if sound.clipped > settings.clipping:
        what = f"clipped: {sound.clipped:.1%} of its samples are at full scale"
        why = f"data.clipping is {settings.clipping:.1%}"
        fix = "record it less loud; data.clipping=1 takes it as it is"
        faults.append(Fault(what, clip.place, why, fix))
    return faults


def _warn_twins(clips: Sequence[Clip], findings: Findings) -> None:
    """The same recording with two transcripts: one of them is wrong."""
    clips = [clip for clip in clips if clip.where not in findings.samples]
    seen: dict[str, Clip] = {}
    twins = []
    for clip in clips:
        if clip.sound is None or clip.normal is None:
            continue
        other = seen.setdefault(clip.sound.digest, clip)
        if other.normal != clip.normal:
            twins.append((clip, other))
    if twins:
        clip, other = twins[0]
        named = "1 recording is" if len(twins) == 1 else f"{len(twins)} recordings are"
        what = f"{named} there twice with other transcripts"
        why = f"{clip.place}: {clip.normal!r}; {other.place}: {other.normal!r}"
        findings.warnings.append(Fault(what, "data.path", why, "keep the right ones"))


def in_threads(
    work: Callable[[_Item], _Result], items: Sequence[_Item], name: str
) -> list[_Result]:
    """In order; decoding does not hold Python's lock. A bar on a terminal."""
    from rich.progress import track

    from headstart.console import Screen

    screen = Screen(stderr=True)
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
        return list(
            track(
                pool.map(work, items),
                name,
                len(items),
                console=screen,
                transient=True,
                disable=not screen.is_terminal or len(items) < 100,
            )
        )
