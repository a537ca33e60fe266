"""The data module ``speech/unlabelled``: clips to pretrain on, by what is hidden."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from headstart.errors import Fault
from headstart_speech.checks import RATE
from headstart_speech.data import AudioModule
from headstart_speech.masks import drawn_masks, fixed_masks

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from headstart.data import Sample
    from headstart.stages import State
    from headstart_speech.clips import Clip
    from headstart_speech.settings import UnlabelledSettings


class Unlabelled(AudioModule):
    """Clips without transcripts; of each batch some frames are hidden."""

    settings: UnlabelledSettings
    identity: ClassVar[tuple[str, ...]] = ()
    shapes_batch = ("mask_probability", "mask_length", "negatives")

    def make_task(self) -> dict[str, Any]:
        return {"kind": self.settings.kind, "rate": RATE}

    def check_frames(self, clips: Sequence[Clip]) -> None:
        """Clips of which nothing can be hidden."""
        length = self.settings.mask_length
        few = [c for c in clips if self.frame_count(c.samples(RATE)) < length]
        if few:
            what = f"of {len(few)} of {len(clips)} clips nothing is learned"
            why = f"they are shorter than a hidden span, {length} frames; "
            why += f"e.g. {few[0].place}"
            fix = "leave them out with data.shortest, or lower data.mask_length"
            self.findings.warnings.append(Fault(what, "data.mask_length", why, fix))

    def collate(self, samples: Sequence[Sample]) -> State:
        """As :meth:`.AudioModule.collate`, and what is hidden of each clip.

        Returns:
            Also ``masked`` bool (batch, frames), and ``negatives`` int64 (batch,
            frames, distractors), which depend on the clip alone; see
            :mod:`headstart_speech.masks`.
        """
        batch = super().collate(samples)
        ids = [sample["id"] for sample in samples]
        masked, negatives = fixed_masks(ids, batch["frames"], **self._hiding)
        return {**batch, "masked": masked, "negatives": negatives}

    @property
    def augments(self) -> bool:
        """In training, other frames are hidden each time."""
        return True

    def augment(self, batch: State, generator: torch.Generator) -> State:
        """Speed, volume, noise, then new masks."""
        batch = super().augment(batch, generator)
        # Asking the device for the largest of ``frames`` would wait for it.
        width = self.frame_count(batch["waveform"].shape[1])
        masked, negatives = drawn_masks(
            batch["frames"], width, generator=generator, **self._hiding
        )
        return {**batch, "masked": masked, "negatives": negatives}

    @property
    def _hiding(self) -> dict[str, Any]:
        return {
            "probability": self.settings.mask_probability,
            "length": self.settings.mask_length,
            "negatives": self.settings.negatives,
        }
