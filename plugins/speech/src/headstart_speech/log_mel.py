"""Whisper's log-mel spectrogram, on the batch and on its device."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.audio_utils import mel_filter_bank

RATE = 16_000
"""Samples a second."""
WINDOW = 400
"""Samples of a spectrum."""
HOP = 160
"""Samples from one spectrum to the next."""
SILENCE = 3 * HOP
"""Zeros behind the longest clip; a window that sees its last sample must not see more
than these before the batch ends."""


class LogMel(nn.Module):
    """Log-mel spectrogram as ``WhisperFeatureExtractor`` of transformers computes it.

    Each clip is scaled by its own loudest bin and sees silence behind its end, as if it
    were padded to the longest length that the encoder takes; only frames that are asked
    for are computed.

    Args:
        bins: Mel bins.
        longest: Samples that the encoder takes at most.
    """

    filters: Tensor
    window: Tensor

    def __init__(self, bins: int, longest: int) -> None:
        super().__init__()
        self.longest = longest
        filters = mel_filter_bank(
            num_frequency_bins=1 + WINDOW // 2,
            num_mel_filters=bins,
            min_frequency=0.0,
            max_frequency=RATE / 2,
            sampling_rate=RATE,
            norm="slaney",
            mel_scale="slaney",
        )
        bank = torch.from_numpy(filters).float().T.contiguous()
        self.register_buffer("filters", bank, persistent=False)
        self.register_buffer("window", torch.hann_window(WINDOW), persistent=False)

    def forward(self, waveform: Tensor, frames: int) -> Tensor:
        """The first frames of each clip.

        Args:
            waveform: (batch, samples) in -1..1, zeros behind a clip's end.
            frames: How many; at most one more than whole hops in ``waveform``.

        Returns:
            (batch, bins, frames) float32, also under autocast: a quiet bin's power is
            below what 16 bits tell apart.
        """
        with torch.autocast(waveform.device.type, enabled=False):
            room = self.longest - waveform.shape[1]
            padded = nn.functional.pad(waveform.float(), (0, min(SILENCE, room)))
            spectrum = torch.stft(
                padded, WINDOW, HOP, window=self.window, return_complex=True
            )
            power = spectrum[..., :-1].abs().square()
            log = (self.filters @ power).clamp(min=1e-10).log10()
            floor = log.amax(dim=(1, 2), keepdim=True) - 8.0
            return (log[..., :frames].maximum(floor) + 4.0) / 4.0

    def extra_repr(self) -> str:
        return f"bins={len(self.filters)}, longest={self.longest}"
