"""The head of pretraining: wav2vec 2.0's objective (Baevski et al. 2020).

Behind the layers, each hidden frame must be told from distractors by what the
convolutions heard there, quantised. The loss, its parts and the names of the parameters
are those of transformers' ``Wav2Vec2ForPreTraining``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from headstart.errors import Fault, UserError
from headstart.heads import Head
from headstart_speech.masks import distractors, hidden_spans
from headstart_speech.pretraining_metrics import code_perplexity

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from headstart.specs import Feature
    from headstart.stages import State
    from headstart_speech.settings import ContrastiveSettings

QUANTIZABLE = "quantizable"
"""The feature that is quantised: normalised output of the convolutions, never masked,
(batch, frames, channels)."""

COLLAPSED = 0.01
"""Share of the codes beyond one a group below which a codebook is of no use."""

SAMPLE_FRAMES = (12, 3, 8)
"""Of the clips that backbones are tested with."""

_READS = ("hidden", QUANTIZABLE, "frames", "masked", "negatives")


class Quantizer(nn.Module):
    """One of ``codes`` vectors in each of ``groups``, set side by side.

    Parameters and results are those of transformers' Wav2Vec2GumbelVectorQuantizer,
    which does not tell the codes, and multiplies every frame with the whole codebook
    before it adds up: 1.3 GB for 80 s of speech at the published sizes.

    Args:
        channels: Of what is quantised.
        groups: Codebooks.
        codes: Vectors in each.
        width: Of the result; a multiple of ``groups``.
    """

    def __init__(self, channels: int, groups: int, codes: int, width: int) -> None:
        super().__init__()
        self.groups, self.codes = groups, codes
        self.codevectors = nn.Parameter(
            torch.empty(1, groups * codes, width // groups).uniform_()
        )
        self.weight_proj = nn.Linear(channels, groups * codes)
        nn.init.normal_(self.weight_proj.weight)
        nn.init.zeros_(self.weight_proj.bias)

    def forward(
        self, features: Tensor, temperature: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Quantise; while training by chance, straight through (Jang et al. 2017).

        Args:
            features: (batch, frames, channels).
            temperature: Of the Gumbel softmax, a scalar that is not read.

        Returns:
            The vectors (batch, frames, width), which code of each group they are made
            of (batch, frames, groups) int64, and the codes' probabilities without
            chance (batch, frames, groups, codes) float32.
        """
        logits = self.weight_proj(features).float()
        logits = logits.unflatten(-1, (self.groups, self.codes))
        if self.training:
            # The temperature is a tensor, so that its decay waits for no device.
            chosen = functional.gumbel_softmax(
                logits,
                temperature,  # type: ignore[arg-type]
                hard=True,
            )
            codes = chosen.argmax(-1)
        else:
            codes = logits.argmax(-1)
            chosen = functional.one_hot(codes, self.codes).to(logits.dtype)
        book = self.codevectors.view(self.groups, self.codes, -1)
        vectors = torch.einsum("bfgc,gcw->bfgw", chosen, book).flatten(2)
        return vectors, codes, logits.softmax(-1)


class ContrastiveHead(Head):
    """Tells what a hidden frame is from what other frames are.

    The loss is a mean over hidden frames, to which training adds how far the batch is
    from using all codes alike; that is no mean over frames, so of a batch in parts each
    part adds its own, and evaluation leaves it out.

    Distractors of the same codes as the frame itself do not count, as in the published
    training. A frame all of whose distractors are such costs nothing there and is
    counted as right; here as wrong, so that a collapsed codebook does not look like
    success.

    Args:
        settings: Codebook, temperatures and the weight of diversity.
        hidden: What the last layer gives, (batch, frames, channels).
        quantizable: What is to be quantised, of the same frames.

    Attributes:
        updates: Training passes so far, on which the temperature of the Gumbel softmax
            depends; saved, so that a resumed run goes on with it.
    """

    updates: Tensor

    def __init__(
        self, settings: ContrastiveSettings, hidden: Feature, quantizable: Feature
    ) -> None:
        super().__init__()
        self.settings = settings
        self.reads = ("hidden", QUANTIZABLE)
        self.upstream = {
            f"{name}.": f"{name}." for name in ("quantizer", "project_q", "project_hid")
        }
        self.dropout = nn.Dropout(settings.dropout)
        # The core calls factories with features of known width.
        self.quantizer = Quantizer(
            cast("int", quantizable.channels),
            settings.groups,
            settings.codes,
            settings.code_width,
        )
        self.project_q = nn.Linear(settings.code_width, settings.width)
        self.project_hid = nn.Linear(cast("int", hidden.channels), settings.width)
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))

    @property
    def gumbel_temperature(self) -> Tensor:
        """Of the pass to come, a scalar on the device."""
        settings = self.settings
        decayed = settings.gumbel_start * settings.gumbel_decay**self.updates
        return decayed.clamp(min=settings.gumbel_end)

    def reduce(self, state: State) -> State:
        """Leave out all but what the loss reads."""
        return {key: state[key] for key in _READS if key in state}

    def forward(self, state: State) -> State:
        """Add ``codes``, int64 (batch, frames, groups), and, where frames are hidden:

        ``nll``, (batch, frames), the cost of each hidden frame, 0 elsewhere;
        ``logits``, (batch, frames, frames), how much each frame is taken for each, of
        which only ``candidates`` count, float32 numbers of times; in training
        ``perplexity``, a scalar.
        """
        features = self.dropout(state[QUANTIZABLE])
        vectors, codes, shares = self.quantizer(features, self.gumbel_temperature)
        found = {**state, "codes": codes}
        if "masked" not in state:
            return found
        masked = state["masked"]
        if self.training:
            self.updates += 1
            used = (shares * masked[:, :, None, None]).sum((0, 1))
            found["perplexity"] = code_perplexity(used / masked.sum().clamp(min=1))
        logits = self._similarity(
            self.project_hid(state["hidden"]), self.project_q(vectors)
        )
        candidates = _candidates(state["negatives"], codes)
        # A distractor that was drawn twice counts twice. Sums over all frames in place
        # of those drawn: less memory, and gradients that no order of additions changes.
        scores = logits + candidates.log()
        nll = scores.logsumexp(2) - logits.diagonal(dim1=1, dim2=2)
        return {
            **found,
            "logits": logits,
            "candidates": candidates,
            "nll": nll.where(masked, 0.0),
        }

    def _similarity(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Cosine over temperature of all pairs of frames in a clip, in float32."""
        with torch.autocast(predicted.device.type, enabled=False):
            left = functional.normalize(predicted.float(), dim=-1, eps=1e-8)
            right = functional.normalize(target.float(), dim=-1, eps=1e-8)
            return left @ right.mT / self.settings.temperature

    def loss(self, state: State) -> Tensor:
        total = state["nll"].sum() / state["masked"].sum().clamp(min=1)
        if "perplexity" in state:
            codes = self.settings.groups * self.settings.codes
            unused = (codes - state["perplexity"]) / codes
            total = total + self.settings.diversity * unused
        return cast("Tensor", total)

    def weight(self, batch: State) -> Tensor:
        """Hidden frames."""
        return cast("Tensor", batch["masked"].sum().float())

    def outputs(self, state: State) -> dict[str, Any]:
        """Per clip ``codes``, an int32 array (frames, groups) of its hidden frames.

        And ``masked``, how many these are, ``right``, how many of them were told from
        all distractors, both int64 (batch,), and ``nll``, their summed cost (batch,).
        Where nothing was to be hidden, only ``codes``, of all frames.
        """
        codes = state["codes"].int().cpu().numpy()
        if "masked" not in state:
            ends = (
                state["frames"].tolist() if "frames" in state else [None] * len(codes)
            )
            return {"codes": [row[:end] for row, end in zip(codes, ends, strict=True)]}
        masked, logits = state["masked"], state["logits"]
        itself = torch.eye(logits.shape[1], dtype=torch.bool, device=logits.device)
        unasked = (state["candidates"] == 0) | itself
        rival = logits.masked_fill(unasked, -torch.inf).amax(2)
        right = logits.diagonal(dim1=1, dim2=2) > rival
        right &= masked & rival.isfinite()
        inside = masked.cpu().numpy()
        return {
            "codes": [row[at] for row, at in zip(codes, inside, strict=True)],
            "masked": masked.sum(1),
            "right": right.sum(1),
            "nll": state["nll"].sum(1),
        }

    def decode(self, outputs: dict[str, Any]) -> list[dict[str, Any]]:
        """``codes``, a row a frame; of hidden frames also ``accuracy`` and ``loss``."""
        rows: list[dict[str, Any]] = [
            {"codes": clip.tolist()} for clip in outputs["codes"]
        ]
        if "masked" in outputs:
            for place, row in enumerate(rows):
                count = max(int(outputs["masked"][place]), 1)
                row["accuracy"] = round(int(outputs["right"][place]) / count, 4)
                row["loss"] = round(float(outputs["nll"][place]) / count, 4)
        return rows

    def diagnose(self, metrics: Mapping[str, float]) -> Sequence[Fault]:
        """Whether the codebook has collapsed."""
        settings = self.settings
        groups, total = settings.groups, settings.groups * settings.codes
        used = metrics.get("codebook-perplexity", float(total))
        if not used - groups < COLLAPSED * (total - groups):
            return ()
        if settings.diversity:
            cause = "lower train.learning_rate, or raise head.diversity from "
            cause += f"{settings.diversity:g}"
        else:
            cause = "set head.diversity: it is 0, so that nothing asks for other codes"
        return (
            Fault(
                f"the codebook has collapsed: {used:.1f} codes of {total} are in use",
                where="speech/contrastive",
                why="nearly all frames have the same codes, so that there is nothing "
                "to tell apart: a low loss then means nothing",
                fix=f"{cause}; more seconds in a batch (train.batch_total) help, too",
            ),
        )


def _candidates(negatives: Tensor, codes: Tensor) -> Tensor:
    """How often each frame is an answer to choose from, (batch, frames, frames).

    Itself once; of the distractors those with other codes.
    """
    batch, frames, _ = negatives.shape
    drawn = torch.zeros(batch, frames, frames, device=negatives.device)
    drawn.scatter_add_(
        2, negatives, torch.ones((), device=drawn.device).expand_as(negatives)
    )
    same = (codes[:, :, None] == codes[:, None]).all(-1)
    itself = torch.eye(frames, dtype=torch.bool, device=drawn.device)
    return drawn.masked_fill(same, 0.0).masked_fill(itself, 1.0)


def build_contrastive(
    settings: ContrastiveSettings,
    features: Mapping[str, Feature],
    task: Mapping[str, Any],
) -> ContrastiveHead:
    """The head ``speech/contrastive``.

    Raises:
        UserError: The backbone has nothing to quantise.
    """
    if QUANTIZABLE not in features:
        raise UserError(
            f"the head {settings.name!r} does not fit this backbone",
            where="backbone.name",
            why="wav2vec 2.0's pretraining quantises what convolutions hear of the "
            f"waveform ({QUANTIZABLE!r}); the backbone gives {', '.join(features)}",
            fix='backbone.name = "speech/wav2vec2"',
        )
    return ContrastiveHead(settings, features["hidden"], features[QUANTIZABLE])


def sample_masks(task: Mapping[str, Any], batch_size: int) -> State:
    """Valid targets for tests: spans of two frames in clips of ``SAMPLE_FRAMES``."""
    generator = torch.Generator().manual_seed(batch_size)
    frames = torch.tensor([SAMPLE_FRAMES[i % 3] for i in range(batch_size)])
    masked = hidden_spans(
        frames, max(SAMPLE_FRAMES), probability=0.6, length=2, generator=generator
    )
    return {"masked": masked, "negatives": distractors(masked, frames, 5, generator)}
