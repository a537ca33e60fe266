"""The head that turns frames into text: connectionist temporal classification."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from headstart.errors import Fault, UserError
from headstart.heads import Head
from headstart_speech.alignment import align, best_path, timed_words
from headstart_speech.ctc import ctc_losses
from headstart_speech.decoding import BeamSearch, greedy, spelled
from headstart_speech.layers import LAYERS, Doubling
from headstart_speech.options import TranscribeOptions
from headstart_speech.predictions import SUBTITLES
from headstart_speech.vocabulary import common_names

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from headstart.report.parts import Evaluation, Section
    from headstart.specs import Feature
    from headstart.stages import State
    from headstart_speech.settings import CTCSettings

SILENT, WRONG = 0.98, 0.95
"""Above this share of blank frames and this error rate nothing is said."""
CROWDED = 2.0
"""Frames per character below which clips are too short for their transcripts."""
MANY_CHARACTERS = 200


class CTCHead(Head):
    """Characters and blanks frame by frame, trained without knowing when each is said.

    The loss is the sum of the clips' negative log-likelihoods divided by the batch's
    frames, so that a long clip counts as much as its length. A clip with more
    characters than frames can say has no likelihood: it adds nothing but its frames,
    and is counted.

    Args:
        settings: Layers, dropout, frames.
        feature: What to read, (clips, frames, channels).
        vocabulary: The classes, the blank first.
        rate: Samples in a second, of which the feature has a frame every ``stride``.
    """

    seen: Tensor

    def __init__(
        self,
        settings: CTCSettings,
        feature: Feature,
        vocabulary: Sequence[str],
        rate: int,
    ) -> None:
        super().__init__()
        # The core calls factories with features of known width.
        channels = cast("int", feature.channels)
        self.feature = feature.name
        self.reads = (feature.name,)
        # Behind layers of ours a pretrained one would read what it has never seen.
        self.upstream = {} if settings.layers else {"linear.": "lm_head."}
        self.vocabulary = tuple(vocabulary)
        self.factor = settings.upsample
        self.seconds = feature.stride / rate / settings.upsample
        self.doubling = Doubling(channels) if settings.upsample > 1 else None
        width = settings.width if settings.layers else channels
        self.entrance = (
            nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, width))
            if settings.layers
            else None
        )
        layer = LAYERS[settings.layer]
        self.layers = nn.ModuleList(
            layer(width, settings.dropout) for _ in range(settings.layers)
        )
        self.dropout = nn.Dropout(settings.dropout)
        self.linear = nn.Linear(width, len(vocabulary))
        with torch.no_grad():
            # Against as many others of equal chance.
            odds = settings.blank_start / (1 - settings.blank_start)
            self.linear.bias.zero_()[0] = math.log(odds * (len(vocabulary) - 1))
        # Of the clips trained on since the last validation: how many, how many could
        # not be aligned, frames, characters. A buffer, since reading a tensor at every
        # step would wait for the device.
        self.register_buffer("seen", torch.zeros(4), persistent=False)
        self._silent = False
        self._beam: tuple[TranscribeOptions, BeamSearch] | None = None

    def reduce(self, state: State) -> State:
        """What the head reads: the feature, ``frames`` and ``labels``."""
        wanted = (self.feature, "frames", "labels")
        return {key: state[key] for key in wanted if key in state}

    def forward(self, state: State) -> State:
        """Add ``log_probs`` (clips, frames, classes) float32 and ``heard``, (clips,).

        ``heard`` is how many of these frames count: those of the batch's ``frames``,
        times ``upsample``; without ``frames`` all. With ``labels`` also ``nll``,
        (clips,), in nats.
        """
        hidden = state[self.feature]
        if self.doubling is not None:
            hidden = self.doubling(hidden)
        clips, length, _ = hidden.shape
        heard = torch.full((clips,), length, device=hidden.device)
        if "frames" in state:
            heard = (state["frames"] * self.factor).clamp(max=length)
        if self.entrance is not None:
            hidden = self.entrance(hidden)
        for layer in self.layers:
            hidden = layer(hidden, heard)
        logits = self.linear(self.dropout(hidden))
        log_probs = logits.float().log_softmax(-1)
        state = {**state, "log_probs": log_probs, "heard": heard}
        if "labels" in state:
            with torch.autocast(log_probs.device.type, enabled=False):
                state["nll"] = ctc_losses(log_probs, state["labels"], heard)
        return state

    def loss(self, state: State) -> Tensor:
        """Nats per frame of the batch, over all clips that can be aligned."""
        losses: Tensor = state["nll"]
        frames = state["frames"]
        lost = torch.isinf(losses)
        if self.training:
            characters = (state["labels"] >= 0).sum()
            count = torch.full_like(characters, len(losses))
            parts = [count, lost.sum(), state["heard"].sum(), characters]
            self.seen += torch.stack(parts).to(self.seen)
        total: Tensor = losses.masked_fill(lost, 0.0).sum() / frames.sum().clamp(min=1)
        return total

    def weight(self, batch: State) -> Tensor:
        """Frames in the batch."""
        frames: Tensor = batch["frames"]
        return frames.sum().float()

    def outputs(self, state: State) -> dict[str, Any]:
        """One row a clip.

        ``prediction`` is text; ``words`` have their times, see
        :func:`headstart_speech.alignment.timed_words`; ``blank`` is the share of blank
        frames among ``frames``. With labels also ``target``, text, and ``nll`` in
        nats, infinite where a transcript needs more frames than there are.
        """
        log_probs = state["log_probs"].detach()
        heard = state["heard"]
        time = torch.arange(log_probs.shape[1], device=log_probs.device)
        silent = (log_probs.argmax(-1) == 0) & (time < heard[:, None])
        outputs: dict[str, Any] = {
            **self._said(log_probs.cpu(), heard.tolist()),
            "blank": silent.sum(1) / heard.clamp(min=1),
            "frames": heard,
        }
        if "labels" in state:
            outputs["target"] = [
                spelled(row, self.vocabulary) for row in state["labels"].tolist()
            ]
            outputs["nll"] = state["nll"].detach()
        return outputs

    def decode(self, outputs: dict[str, Any]) -> list[dict[str, Any]]:
        """``text``; unless options say otherwise ``words`` with their times.

        With options also ``format``, the one that was asked for.
        """
        asked = self.options
        if not isinstance(asked, TranscribeOptions):
            asked = None
        timed = asked is None or asked.format in SUBTITLES
        timed = timed or (asked is not None and asked.timestamps)
        rows = []
        for text, words in zip(outputs["prediction"], outputs["words"], strict=True):
            row: dict[str, Any] = {"text": text}
            if timed:
                row["words"] = words
            if asked is not None:
                row["format"] = asked.format
            rows.append(row)
        return rows

    def adapt_classes(
        self, name: str, theirs: Tensor, ours: Tensor, classes: Sequence[str]
    ) -> Tensor | None:
        """The rows of characters that both know, whatever their case.

        The blank is also called ``<pad>``, and the space ``|``.
        """
        if name not in {"linear.weight", "linear.bias"}:
            return None
        if theirs.shape[1:] != ours.shape[1:]:
            return None
        adapted = ours.clone()
        # Rows behind those of the file of characters are tokens that were added.
        if len(theirs) >= len(classes):
            for row, other in enumerate(_same_characters(self.vocabulary, classes)):
                if other is not None:
                    adapted[row] = theirs[other].to(adapted)
        return adapted

    def diagnose(self, metrics: Mapping[str, float]) -> Sequence[Fault]:
        """Tell of clips that cannot be learned, and of a model that says nothing.

        Every CTC model says only blanks at first, so that is told from the second
        time on.

        Args:
            metrics: Of a validation, by short name.
        """
        clips, lost, frames, characters = self.seen.tolist()
        self.seen.zero_()
        faults = []
        if lost:
            faults.append(
                Fault(
                    f"{lost:,.0f} of {clips:,.0f} clips were too short for their "
                    "transcripts and taught nothing",
                    where="training",
                    why="CTC needs a frame for each character, and one more between "
                    "two that are the same; faster playing leaves fewer frames",
                    fix="head.upsample = 2, or leave out speeds above 1 (data.speed)",
                )
            )
        silent = metrics.get("blank-ratio", 0.0) > SILENT
        silent = silent and metrics.get("cer", metrics.get("wer", 1.0)) > WRONG
        before, self._silent = self._silent, silent
        if silent and (before or not math.isfinite(metrics.get("loss", 0.0))):
            per_character = frames / characters if characters else None
            faults.append(self._collapse(metrics, lost / max(clips, 1), per_character))
        return faults

    def report(self, evaluation: Evaluation) -> Sequence[Section]:
        from headstart_speech.sections import transcription_sections

        return transcription_sections(evaluation)

    def _collapse(
        self, metrics: Mapping[str, float], lost: float, per_character: float | None
    ) -> Fault:
        """The likeliest cause of blanks alone, from what is known."""
        what = (
            f"the model says nothing: {metrics['blank-ratio']:.1%} of the frames of "
            "the clips are blank"
        )
        where = "predictions"
        if not math.isfinite(metrics.get("loss", 0.0)):
            why = "the loss is not a finite number: the learning rate is too high"
            return Fault(what, where, why, "lower train.learning_rate")
        if lost > 0.1 or (per_character is not None and per_character < CROWDED):
            frames = f"{per_character:.1f} frames" if per_character else "few frames"
            why = (
                f"the clips are too short for their transcripts: {frames} for each "
                "character"
            )
            fix = (
                "check that transcripts belong to their clips (data.text, start, end), "
                "or head.upsample = 2"
            )
            return Fault(what, where, why, fix)
        if len(self.vocabulary) > MANY_CHARACTERS:
            why = (
                f"the vocabulary has {len(self.vocabulary)} characters, of which most "
                "are rare"
            )
            fix = "set data.case, punctuation, digits and accents, or data.vocabulary"
            return Fault(what, where, why, fix)
        why = (
            "every CTC model does so at first; one that stays so has a learning rate "
            "that is too high (the loss jumps) or too low (it stands)"
        )
        fix = (
            "try train.learning_rate three times lower, a longer train.warmup, or a "
            "higher train.head_learning_rate"
        )
        return Fault(what, where, why, fix)

    def _said(self, log_probs: Tensor, heard: Sequence[int]) -> dict[str, Any]:
        """``prediction`` and ``words`` by the decoder that was asked for."""
        asked = self.options
        clips = [clip[:n] for clip, n in zip(log_probs, heard, strict=True)]
        if isinstance(asked, TranscribeOptions) and asked.decoder == "beam":
            if self._beam is None or self._beam[0] is not asked:
                self._beam = (asked, BeamSearch(asked, self.vocabulary))
            labels = self._beam[1](log_probs, heard)
            spans = [align(c, said) for c, said in zip(clips, labels, strict=True)]
        else:
            labels = greedy(log_probs, heard)
            # No path is likelier, so none that says the same is.
            spans = [best_path(clip) for clip in clips]
        return {
            "prediction": [spelled(said, self.vocabulary) for said in labels],
            "words": [timed_words(s, self.vocabulary, self.seconds) for s in spans],
        }


def build_ctc(
    settings: CTCSettings, features: Mapping[str, Feature], task: Mapping[str, Any]
) -> CTCHead:
    """The head ``speech/ctc``.

    Raises:
        UserError: The task is of another kind, or the backbone leaves no frames.
    """
    if task["kind"] != "transcription":
        raise UserError(
            f"the head 'speech/ctc' is for transcription, the data's kind is "
            f"{task['kind']!r}",
            where="head.name",
            fix='head.name = "speech/contrastive", or data with transcripts',
        )
    found = [feature for feature in features.values() if feature.kind == "tokens"]
    if not found:
        raise UserError(
            "the backbone leaves no frames in the state",
            where="head.name",
            why=f"it leaves {', '.join(features) or 'nothing'}",
            fix="choose a backbone for speech, e.g. speech/wav2vec2",
        )
    return CTCHead(settings, found[0], task["vocabulary"], task["rate"])


def sample_targets(task: Mapping[str, Any], batch_size: int) -> State:
    """Valid targets for tests: two characters or one, in three frames or four."""
    rows = torch.arange(batch_size)
    characters = len(task["vocabulary"]) - 1
    labels = torch.stack([rows, rows + 1], dim=1) % characters + 1
    labels[1::2, 1] = -1
    return {"labels": labels, "frames": 3 + rows % 2}


def _same_characters(ours: Sequence[str], theirs: Sequence[str]) -> list[int | None]:
    """For each of our classes, which of theirs is the same."""
    named = common_names(theirs)
    place = {name: row for row, name in reversed(list(enumerate(named)))}
    folded = [name.casefold() for name in named]
    wanted = [name.casefold() for name in ours]
    found: list[int | None] = []
    for name, fold in zip(ours, wanted, strict=True):
        row = place.get(name)
        if row is None and folded.count(fold) == 1 == wanted.count(fold):
            row = folded.index(fold)
        found.append(row)
    return found
