"""Temperature scaling: probabilities that mean what they say (Guo et al. 2017)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from torch import Tensor

COLDEST, HOTTEST = 1e-3, 10.0


def scaled(logits: Tensor, temperature: float) -> Tensor:
    """Probabilities of logits (…, classes): softmax after division."""
    return (logits / temperature).softmax(-1)


def fit_temperature(probabilities: ArrayLike, target: ArrayLike) -> float | None:
    """The temperature at which the targets are likeliest.

    Args:
        probabilities: (samples, classes), at temperature 1.
        target: (samples,) class numbers.

    Returns:
        Above 1 where the probabilities were too sure of themselves; .001 to 10.
        ``None`` where there is nothing to learn from: no sample, or none that is
        wrong, for then the likelihood grows for ever as the temperature falls; or
        probabilities that are no numbers.
    """
    given = np.asarray(probabilities, dtype=np.float64)
    right = torch.as_tensor(np.asarray(target), dtype=torch.long)
    if not len(given) or bool((given.argmax(1) == right.numpy()).all()):
        return None
    # Softmax does not mind that logits are known but for a constant.
    logits = torch.as_tensor(given).clamp(min=1e-12).log()
    logarithm = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [logarithm], max_iter=100, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(logits * torch.exp(-logarithm), right)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.enable_grad():
        optimizer.step(closure)  # type: ignore[no-untyped-call]
    fitted = float(logarithm.detach().exp())
    return None if math.isnan(fitted) else min(max(fitted, COLDEST), HOTTEST)
