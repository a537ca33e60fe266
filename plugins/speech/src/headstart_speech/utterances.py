"""The data module ``speech/utterances``: clips with what is said in them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch

from headstart.errors import Fault
from headstart_speech import predictions as files
from headstart_speech.baselines import baselines
from headstart_speech.checks import RATE, frames_needed, unalignable
from headstart_speech.data import AudioModule
from headstart_speech.transcripts import vocabulary_of
from headstart_speech.vocabulary import Vocabulary, task_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from headstart.data import Baseline, Sample
    from headstart.stages import State
    from headstart_speech.clips import Clip
    from headstart_speech.settings import UtteranceSettings

PADDING = -1
"""Behind the end of a transcript."""


class Utterances(AudioModule):
    """Clips with transcripts, character by character."""

    settings: UtteranceSettings
    identity: ClassVar[tuple[str, ...]] = ("vocabulary",)
    padding: ClassVar[Mapping[str, float]] = {"labels": PADDING}

    def make_task(self) -> dict[str, Any]:
        """The vocabulary, and how transcripts are normalised."""
        parts = {str(split): clips for split, clips in self.clips.items()}
        self._vocabulary = vocabulary_of(parts, self.settings, self.findings)
        return task_of(self.settings, self._vocabulary, RATE)

    def trained_settings(self) -> UtteranceSettings:
        """With the model's characters, and texts normalised as it was trained."""
        self._vocabulary = Vocabulary(self.task["vocabulary"])
        text = dict(self.task["text"])
        if self.settings.digits == "skip":
            text["digits"] = "skip"
        known = "".join(self._vocabulary.symbols[2:])
        return self.settings.model_copy(update={**text, "vocabulary": known})

    def sample(self, clip: Clip) -> Sample:
        labels = self._vocabulary.encode(clip.normal or "")
        return {**super().sample(clip), "labels": labels}

    def check_frames(self, clips: Sequence[Clip]) -> None:
        """Transcripts that CTC cannot align with their clips."""
        upsample = self.asked.get("upsample", 1)
        for clip, fault in unalignable(clips, self._layers, RATE, upsample):
            self.findings.sample(*clip.where, fault)
        fastest = max(self.settings.speed, default=1.0)
        if fastest <= 1:
            return
        trained = {clip.id for clip in self.clips["train"]}
        sped = [
            clip
            for clip in clips
            if clip.id in trained
            and self.frame_count(int(clip.samples(RATE) / fastest)) * upsample
            < frames_needed(clip.normal or "")
        ]
        if sped:
            what = f"{len(sped)} of {len(trained)} clips are too fast to be made faster"
            why = f"at {fastest:g} times their speed CTC cannot align them, and they "
            why += f"count for nothing then; e.g. {sped[0].place}"
            fault = Fault(what, "data.speed", why, "lower the largest data.speed")
            self.findings.warnings.append(fault)

    def collate(self, samples: Sequence[Sample]) -> State:
        """As :meth:`.AudioModule.collate`, and the transcripts where they are known.

        Returns:
            Also ``labels`` int64 (batch, characters), indices into the vocabulary, -1
            behind the end.
        """
        batch = super().collate(samples)
        if "labels" in samples[0]:
            batch["labels"] = torch.nn.utils.rnn.pad_sequence(
                [torch.from_numpy(sample["labels"]) for sample in samples],
                batch_first=True,
                padding_value=PADDING,
            )
        return batch

    def show(self, sample: Sample) -> dict[str, Any]:
        """As :meth:`.AudioModule.show`, and the transcript."""
        shown = super().show(sample)
        clip: Clip = sample["clip"]
        return shown if clip.normal is None else {**shown, "text": clip.normal}

    def join(
        self, samples: Sequence[Sample], predictions: Iterable[dict[str, Any]]
    ) -> Iterator[dict[str, Any]]:
        """One row a file, however many pieces it was heard in."""
        yield from files.joined(samples, predictions, self.input_name)

    def write_predictions(
        self,
        folder: Path,
        samples: Sequence[Sample],
        predictions: Iterable[dict[str, Any]],
    ) -> list[Path]:
        """Each file's transcript; see :func:`.predictions.write_predictions`."""
        return files.write_predictions(folder, samples, predictions, self.input_name)

    def baselines(self) -> Iterator[Baseline]:
        """Saying nothing, and always the same."""
        texts = (
            [clip.normal or "" for clip in self.clips[split]]
            for split in ("train", "test")
        )
        yield from baselines(*texts)

    def describe(self) -> dict[str, Any]:
        """As :meth:`.AudioModule.describe`, and the characters."""
        # In front an apostrophe would look like a quote that is not closed.
        listed = sorted(self.task["vocabulary"][2:], key=lambda c: c == "'")
        characters = "".join(listed)
        named = f"{len(characters)} and the space: {characters}"
        return {**super().describe(), "characters": named}
