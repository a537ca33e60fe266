"""Points inside and outside a ring."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from headstart.data import Baseline, DataModule

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from headstart.data import Sample, Split
    from headstart.stages import State
    from headstart.testing.toy.settings import RingSettings

LABELS = ["inside", "outside"]


class Ring(DataModule):
    """Classify points of the plane by their distance from the middle."""

    settings: RingSettings
    size_unit = "points"

    def __init__(self, settings: RingSettings, seed: int) -> None:
        super().__init__(settings, seed)
        self._splits: dict[str, list[Sample]] = {}

    def load(self) -> None:
        points = np.random.default_rng(self.seed).normal(size=(self.settings.count, 2))
        labels = (np.hypot(*points.T) > 1.18).astype(int)
        samples = [
            {"id": f"point {i}", "point": point, "label": int(label)}
            for i, (point, label) in enumerate(zip(points, labels, strict=True))
        ]
        fifth = self.settings.count // 5
        self._splits = {
            "test": samples[:fifth],
            "validation": samples[fifth : 2 * fifth],
            "train": samples[2 * fifth :],
        }
        counts = np.bincount([s["label"] for s in self._splits["train"]], minlength=2)
        self.task = {
            "kind": "single-label",
            "labels": LABELS,
            "counts": counts.tolist(),
        }

    def samples(self, split: Split) -> Sequence[Sample]:
        return self._splits[split]

    def sizes(self, split: Split) -> np.ndarray:
        return np.ones(len(self._splits[split]), dtype=np.int64)

    def collate(self, samples: Sequence[Sample]) -> State:
        points = np.stack([sample["point"] for sample in samples])
        batch: State = {"points": torch.from_numpy(points).float()}
        if "label" in samples[0]:
            batch["labels"] = torch.tensor([sample["label"] for sample in samples])
        return batch

    @property
    def augments(self) -> bool:
        return self.settings.noise > 0

    def augment(self, batch: State, generator: torch.Generator) -> State:
        points = batch["points"]
        noise = torch.randn(points.shape, generator=generator, device=points.device)
        return {**batch, "points": points + self.settings.noise * noise}

    def from_inputs(self, inputs: Sequence[Any]) -> Sequence[Sample]:
        """``"0.5,-1"`` each."""
        return [
            {"id": text, "point": np.array([float(part) for part in text.split(",")])}
            for text in inputs
        ]

    def show(self, sample: Sample) -> dict[str, Any]:
        point = " ".join(f"{value:.2f}" for value in sample["point"])
        return {"id": sample["id"], "point": point, "label": LABELS[sample["label"]]}

    def fingerprint(self) -> str:
        parts = (self.settings.model_dump_json(), str(self.seed))
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def baselines(self) -> Iterator[Baseline]:
        targets = np.array([sample["label"] for sample in self._splits["test"]])
        most = int(np.argmax(self.task["counts"]))
        yield Baseline(
            "majority class",
            {"prediction": np.full_like(targets, most), "target": targets},
        )

    def describe(self) -> dict[str, Any]:
        return {name: len(samples) for name, samples in self._splits.items()}


def tiny_ring(folder: Path) -> dict[str, Any]:
    """Settings of a small ring; it needs no files."""
    return {"name": "toy/ring", "count": 60}
