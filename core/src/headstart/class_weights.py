"""Class weights, for heads whose classes are not equally frequent."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from headstart.errors import Fault, UserError, nearest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor


def class_weights(
    setting: str | Mapping[str, float], labels: Sequence[str], counts: Sequence[int]
) -> Tensor | None:
    """A weight per label, (labels); ``None`` when all weigh the same.

    Args:
        setting: ``none``, ``balanced``, or weights by label, 1 where not named.
            ``balanced`` gives a label of n samples the mean label's number over n.
        labels: The labels in order.
        counts: How often each is in train.

    Raises:
        UserError: A weight of no label, or one that is not above 0; names them all.
    """
    if setting == "none":
        return None
    if isinstance(setting, str):
        average = sum(counts) / len(counts)
        return torch.tensor([average / max(count, 1) for count in counts])
    faults = []
    for name, weight in setting.items():
        where = f"head.class_weights.{name}"
        if name not in labels:
            fix = nearest(name, labels)
            faults.append(Fault(f"no label is called {name!r}", where, fix=fix))
        if not 0 < weight < math.inf:
            fix = "give a number above 0"
            faults.append(Fault(f"the weight of {name!r} is {weight}", where, fix=fix))
    if faults:
        raise UserError(*faults)
    return torch.tensor([float(setting.get(label, 1.0)) for label in labels])
