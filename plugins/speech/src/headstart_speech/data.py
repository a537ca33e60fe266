"""What all data modules share: clips, their splits, the batch, its augmentation."""

from __future__ import annotations

import hashlib
import json
import math
from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch.nn.functional as F

from headstart.data import DataModule
from headstart.errors import DataError, Fault
from headstart_speech import augment
from headstart_speech.audio_faults import AudioError
from headstart_speech.checks import RATE, check_clips, check_settings, settle
from headstart_speech.geometry import frame_counts, shortest_clip
from headstart_speech.inputs import input_samples
from headstart_speech.sources import completed, read_all, read_split
from headstart_speech.splits import SPLITS, split_clips
from headstart_speech.waveforms import Waveforms, stacked

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

    from headstart.data import Sample, Split
    from headstart.stages import State
    from headstart_speech.clips import Clip
    from headstart_speech.geometry import Counts, Layers
    from headstart_speech.settings import UnlabelledSettings, UtteranceSettings

WIDTH_STEP = 2 * RATE
AUGMENTATION = ("speed", "noise", "volume")


class AudioModule(DataModule):
    """Clips of speech at one sampling rate, with the frames that a backbone makes."""

    settings: UtteranceSettings | UnlabelledSettings
    size_unit = "seconds"
    size_steps = RATE
    shapes_batch: ClassVar[tuple[str, ...]] = ()
    """Further settings that change a batch."""

    def __init__(
        self, settings: UtteranceSettings | UnlabelledSettings, seed: int
    ) -> None:
        super().__init__(settings, seed)
        self.clips: dict[Split, list[Clip]] = {}
        """The clips of each split, filled by :meth:`load`."""
        self.waveforms = Waveforms(int(settings.cache_gb * 1e9), RATE)
        self._samples: dict[Split, list[Sample]] = {}
        self._layers: Layers = ()
        self._read = 0

    # What a subclass says

    @abstractmethod
    def make_task(self) -> dict[str, Any]:
        """What the head must know, once the clips are split."""

    def trained_settings(self) -> UtteranceSettings | UnlabelledSettings:
        """The settings as the ``task`` of a trained model fixes them."""
        return self.settings

    def check_frames(self, clips: Sequence[Clip]) -> None:
        """Faults and warnings of clips that the backbone takes, in ``findings``."""

    # The contract of DataModule

    def load(self) -> None:
        """Read, check and split."""
        self.settings = settings = completed(self.settings)
        self._check_settings()
        clips = self._checked(read_all(settings, self.findings), settings)
        self.clips = split_clips(clips, settings, self.seed, self.findings)
        self.task = self.make_task()
        self._make_samples()

    def load_split(self, split: Split) -> bool:
        """Read and check the clips of ``data.test_path`` or ``validation_path`` alone.

        Their transcripts are those that the ``task`` of the trained model can say.
        """
        self.settings = completed(self.settings)
        listed = read_split(self.settings, split, self.findings)
        if listed is None:
            return False
        self._check_settings()
        clips = self._checked(listed, self.trained_settings())
        self.clips = {**{name: [] for name in SPLITS}, split: clips}
        self._make_samples()
        return True

    def prepare(self, preprocessing: Mapping[str, Any]) -> None:
        """Find out how many frames clips have, and refuse those that do not fit.

        Args:
            preprocessing: ``layers``, the backbone's convolutions over time (kernel,
                stride, padding); ``rate``; ``longest``, samples that it takes or
                ``None``.
        """
        super().prepare(preprocessing)
        rate = preprocessing.get("rate", RATE)
        if "layers" not in preprocessing or rate != RATE:
            raise DataError(
                "these clips and the backbone do not fit",
                where="backbone.name",
                why=f"it hears {rate} samples a second, the data gives {RATE}"
                if rate != RATE
                else "it does not say how many frames it makes of a clip",
                fix="choose one of this plugin: `headstart list backbones`",
            )
        self._layers = [tuple(layer) for layer in preprocessing["layers"]]
        if not self.clips:
            return
        self._check_frames()
        if self.settings.workers:
            self._read_ahead()

    def samples(self, split: Split) -> Sequence[Sample]:
        return self._samples[split]

    def sample(self, clip: Clip) -> Sample:
        """A clip as a sample."""
        return {"id": clip.id, "clip": clip}

    def sizes(self, split: Split) -> np.ndarray:
        """Samples of each clip at 16 kHz, int64."""
        return np.array([c.samples(RATE) for c in self.clips[split]], dtype=np.int64)

    def collate(self, samples: Sequence[Sample]) -> State:
        """Read, resample and pad to the longest clip.

        Returns:
            ``waveform`` float32 (batch, samples) in -1..1, zeros behind each end;
            ``lengths`` int64 (batch), samples; ``frames`` int64 (batch), what the
            backbone makes of them.
        """
        sounds = [self._sound(s["clip"], keep="piece" not in s) for s in samples]
        waveform, lengths = stacked(sounds)
        if "piece" in samples[0]:
            waveform = self._widened(waveform)
        frames = self.frame_count(lengths)
        return {"waveform": waveform, "lengths": lengths, "frames": frames}

    @property
    def augments(self) -> bool:
        settings = self.settings
        return bool(settings.speed or settings.noise or settings.volume)

    def augment(self, batch: State, generator: torch.Generator) -> State:
        """Speed, volume, then noise, as far as the recipe asks for them."""
        settings = self.settings
        waveform, lengths = batch["waveform"], batch["lengths"]
        if settings.speed:
            most = self.preprocessing.get("longest") or math.inf
            waveform, lengths = augment.change_speed(
                waveform,
                lengths,
                settings.speed,
                generator,
                limits=(shortest_clip(self._layers), most),
            )
        if settings.volume:
            gains = (-settings.volume, settings.volume)
            waveform = augment.change_volume(waveform, gains, generator)
        if settings.noise:
            waveform = augment.add_white_noise(
                waveform, lengths, settings.noise, generator
            )
        frames = self.frame_count(lengths)
        return {**batch, "waveform": waveform, "lengths": lengths, "frames": frames}

    def from_inputs(self, inputs: Sequence[Any]) -> Sequence[Sample]:
        """Samples of audio files and folders; see :func:`.inputs.input_samples`.

        Raises:
            DataError: Inputs that cannot be heard, by :meth:`leave_out`.
        """
        longest = self.settings.longest
        if most := self.preprocessing.get("longest"):
            longest = min(longest, most / RATE)
        shortest = shortest_clip(self._layers) / RATE
        listen = self.skipped is not None
        samples, faults = input_samples(inputs, longest, shortest, listen=listen)
        self.leave_out(faults, len(samples))
        return samples

    def input_sizes(self, samples: Sequence[Sample]) -> np.ndarray:
        return np.array([s["clip"].samples(RATE) for s in samples], dtype=np.int64)

    def input_name(self, sample: Sample) -> str:
        return str(sample.get("input", sample["id"]))

    def show(self, sample: Sample) -> dict[str, Any]:
        """The clip, where its sound is (in seconds of the file), and who speaks."""
        clip: Clip = sample["clip"]
        assert clip.facts is not None
        first, last = clip.span
        shown = {
            "clip": clip.id,
            "seconds": round(clip.seconds, 3),
            "speaker": clip.speaker,
            "path": str(clip.path),
            "start": first / clip.facts.rate,
            "stop": last / clip.facts.rate,
        }
        return {key: value for key, value in shown.items() if value is not None}

    def fingerprint(self) -> str:
        """sha256 over what the clips sound like, the splits, and the batch's making."""
        names = (*AUGMENTATION, *self.shapes_batch)
        settings = {name: getattr(self.settings, name) for name in names}
        longest = self.preprocessing.get("longest")
        head = [settings, self.task, self._layers, longest]
        digest = hashlib.sha256(json.dumps(head).encode())
        files: dict[Any, str] = {}
        for split in SPLITS:
            for clip in self.clips.get(split, ()):
                known = clip.sound.digest if clip.sound else _digest(clip, files)
                rate = clip.facts.rate if clip.facts else None
                line = [split, clip.id, clip.normal, clip.span, rate, known]
                digest.update(json.dumps(line).encode())
        return digest.hexdigest()

    def describe(self) -> dict[str, Any]:
        """Hours, clips and speakers of each split, and the longest clip."""
        described: dict[str, Any] = {}
        every = [clip for split in SPLITS for clip in self.clips[split]]
        for split, clips in self.clips.items():
            text = f"{len(clips)} clips, {duration(sum(c.seconds for c in clips))}"
            if speakers := {c.speaker for c in clips if c.speaker}:
                text += f", {len(speakers)} speaker{'s' * (len(speakers) != 1)}"
            described[split] = text
        described["longest clip"] = f"{max(c.seconds for c in every):.1f} s"
        rates = sorted({c.facts.rate for c in every if c.facts})
        described["recorded at"] = ", ".join(f"{rate / 1000:g} kHz" for rate in rates)
        return described

    # What is behind it

    def _check_settings(self) -> None:
        faults = check_settings(self.settings)
        if faults:
            # What such settings would make of the clips is noise.
            raise DataError(*faults)

    def _checked(
        self,
        listed: Sequence[Clip],
        settings: UtteranceSettings | UnlabelledSettings,
    ) -> list[Clip]:
        """The clips that are good, by ``data.bad``."""
        findings = self.findings
        upsample = self.asked.get("upsample", 1)
        clips = check_clips(listed, settings, findings, upsample)
        self._read = len({clip.where for clip in clips} | findings.samples.keys())
        return settle(clips, settings, findings)

    def frame_count(self, samples: Counts) -> Counts:
        """Frames that the backbone makes of clips of so many samples at 16 kHz."""
        return frame_counts(samples, self._layers)

    def _read_ahead(self) -> None:
        """Read what fits into memory: processes that are forked later share it."""
        for split in SPLITS:
            for clip in self.clips[split]:
                held = self.waveforms.held
                self._sound(clip)
                if self.waveforms.held == held:
                    return

    def _make_samples(self) -> None:
        self._samples = {s: [self.sample(c) for c in self.clips[s]] for s in SPLITS}

    def _widened(self, waveform: torch.Tensor) -> torch.Tensor:
        """Zeros up to the next two seconds, as far as the backbone goes.

        For each width that it meets a network keeps its plans, and the pieces of an
        hour have hundreds: with few widths an hour takes the memory of a minute.
        """
        width = waveform.shape[1]
        wanted = -(-width // WIDTH_STEP) * WIDTH_STEP
        wanted = min(wanted, self.preprocessing.get("longest") or wanted)
        return F.pad(waveform, (0, max(wanted - width, 0)))

    def _sound(self, clip: Clip, *, keep: bool = True) -> np.ndarray:
        try:
            return self.waveforms.get(clip, keep=keep)
        except AudioError as error:
            (fault,) = error.faults
            fix = "it was good when it was checked; run `headstart check`"
            where = clip.place or fault.where
            raise DataError(Fault(fault.what, where, fault.why, fix)) from error

    def _check_frames(self) -> None:
        """Clips that the backbone cannot take, or not with their transcripts."""
        every = [clip for split in SPLITS for clip in self.clips[split]]
        fitting = []
        for clip in every:
            fault = self._unfit(clip)
            if fault is None:
                fitting.append(clip)
            else:
                self.findings.sample(*clip.where, fault)
        self.check_frames(fitting)
        # Faults are counted from the beginning, and so are clips: `data.train_size`
        # makes none of the others worse.
        kept = settle(every, self.settings, self.findings, self._read)
        good = {clip.id for clip in kept}
        for split, clips in self.clips.items():
            self.clips[split] = [clip for clip in clips if clip.id in good]
            if clips and not self.clips[split]:
                what = f"no clip is left for the {split} split"
                raise DataError(what, where="data.path", fix="give more clips")
        self._make_samples()

    def _unfit(self, clip: Clip) -> Fault | None:
        """Why the backbone does not take a clip."""
        length, longest = clip.samples(RATE), self.preprocessing.get("longest")
        if length < shortest_clip(self._layers):
            least = shortest_clip(self._layers) / RATE
            what = f"too short for this backbone: {clip.seconds:.3f} s"
            why = f"it makes no frame of less than {least:.3f} s"
            fix = f"data.shortest={least:.3f} with data.short=skip leaves it out"
            return Fault(what, clip.place, why, fix)
        if longest is not None and length > longest:
            most = longest / RATE
            what = f"too long for this backbone: {clip.seconds:.2f} s"
            fix = f"data.longest={most:g} with data.long=skip leaves it out"
            return Fault(what, clip.place, f"it takes at most {most:g} s", fix)
        return None


def duration(seconds: float) -> str:
    """``1.2 h``, ``25.5 min`` or ``8.0 s``."""
    if seconds >= 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.1f} s"


def _digest(clip: Clip, files: dict[Any, str]) -> str:
    """Hash of a clip's file where it was not listened to; each file is read once."""
    if clip.path not in files:
        with clip.path.open("rb") as file:
            files[clip.path] = hashlib.file_digest(file, "sha256").hexdigest()
    return files[clip.path]
