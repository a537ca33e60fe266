"""Learning-rate schedules as pure functions of the step."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headstart.settings import TrainSettings
    from headstart.strategy import Plan


FLOOR = 0.05
"""What is left of the learning rate at the end of ``tri-stage``."""


def learning_rate_factor(settings: TrainSettings, plan: Plan, step: int) -> float:
    """Factor on every base learning rate at an optimizer step, 0 < factor <= 1.

    Rises linearly over the warm-up, then falls to just above 0 at the phase's last
    step (``linear``, ``cosine``; Loshchilov and Hutter 2017), stays, or is held and
    falls exponentially to 5 % (``tri-stage``; Park et al. 2019, SpecAugment; wav2vec
    2.0 is fine-tuned with it). No step is spent at learning rate 0.
    """
    start, end = plan.phase(step)
    length, position = end - start, step - start
    warmup = math.ceil(settings.warmup * length)
    if position < warmup:
        return (position + 1) / (warmup + 1)
    left = (length - position) / max(length - warmup, 1)
    match settings.schedule:
        case "linear":
            return left
        case "cosine":
            return 0.5 * (1 + math.cos(math.pi * (1 - left)))
        case "tri-stage":
            held = min(warmup + math.ceil(settings.hold * length), length - 1)
            falling = max(position - held, 0) / max(length - 1 - held, 1)
            return float(FLOOR**falling)
        case _:
            return 1.0
