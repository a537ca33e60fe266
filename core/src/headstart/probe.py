"""What is known from before the training, kept in the run folder until its end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.numpy import load_file
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import save_file

from headstart.run_folder import read_json, write_json

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

TENSORS, VALUES = "before.safetensors", "before.json"
SCORES, METRICS = "untouched.safetensors", "untouched.json"


def write_probe(folder: Path, values: Mapping[str, Any]) -> None:
    """Keep what :meth:`headstart.heads.Head.probe` gave before the first step."""
    tensors = {
        key: value.detach().cpu().contiguous()
        for key, value in values.items()
        if isinstance(value, torch.Tensor)
    }
    rest = {key: value for key, value in values.items() if key not in tensors}
    if tensors:
        # Copies: two of them may be views of one parameter.
        save_file({k: v.clone() for k, v in tensors.items()}, folder / TENSORS)
    if rest:
        write_json(folder / VALUES, rest)


def read_probe(folder: Path) -> dict[str, Any]:
    """What was kept, tensors as NumPy arrays; empty when there is nothing."""
    tensors, values = folder / TENSORS, folder / VALUES
    found: dict[str, Any] = load_file(tensors) if tensors.exists() else {}
    return found | (read_json(values) if values.exists() else {})


def as_arrays(values: Mapping[str, Any]) -> dict[str, Any]:
    """A probe as :func:`read_probe` gives it."""
    return {
        key: value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else value
        for key, value in values.items()
    }


def write_untouched(
    folder: Path, metrics: Mapping[str, float], scores: Mapping[str, Any]
) -> None:
    """Keep the test of the model before the first step: metrics, scores by sample."""
    if scores:
        arrays = {key: np.ascontiguousarray(value) for key, value in scores.items()}
        save_arrays(arrays, folder / SCORES)
    # Last: where it is, the other one is whole.
    write_json(folder / METRICS, dict(metrics))


def read_untouched(folder: Path) -> tuple[dict[str, float], dict[str, Any]] | None:
    """Metrics and scores by sample that were kept; ``None`` when there was no test."""
    if not (folder / METRICS).exists():
        return None
    scores = load_file(folder / SCORES) if (folder / SCORES).exists() else {}
    return read_json(folder / METRICS), scores
