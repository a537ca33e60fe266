"""Settings of the medical plugin's heads; torch-free."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from headstart.settings import ClassificationSettings, HeadSettings

Positive = Annotated[int, Field(ge=1)]
Dropout = Annotated[float, Field(ge=0.0, lt=1.0)]


class WindowSettings(HeadSettings):
    """``[head]`` of a network that learns from patches and then sees whole volumes."""

    window: tuple[Positive, Positive, Positive] | None = None
    """Voxels of the window that slides over a volume; ``None`` takes the patch that
    the network was trained on."""
    overlap: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.25
    """Share of a window's side that the next window covers again."""
    window_batch: Positive = 1
    """Windows in one forward pass."""
    stitch: Literal["auto", "device", "cpu"] = "auto"
    """Where the volume is put together; ``auto`` takes main memory when the GPU has no
    room for it."""
    flips: tuple[Literal["x", "y", "z"], ...] = ()
    """Test-time augmentation: axes along which each window is also seen mirrored, in
    every combination; three axes take eight times as long."""


class SegmentationSettings(WindowSettings):
    """``[head]`` of segmentation: a class for every voxel."""

    loss: Literal["dice-ce", "dice-focal"] = "dice-ce"
    """Dice with cross entropy, or with the focal loss."""
    background: bool = False
    """Whether Dice and focal loss count the background as a class."""
    deep_supervision: Annotated[int, Field(ge=0, le=4)] = 0
    """Coarser levels of the decoder that learn the mask as well, each with half the
    weight of the one before; the backbone must give them (``up1``, ``up2`` …)."""
    components: Literal["all", "largest"] = "all"
    """Which connected components of a class a prediction keeps."""
    smallest_ml: Annotated[float, Field(ge=0.0)] = 0.0
    """Connected components below so many millilitres are left out of a prediction."""


class ReconstructionSettings(WindowSettings):
    """``[head]`` of pretraining: what is behind the masked parts of a volume."""

    loss: Literal["l1", "l2"] = "l1"
    """Of a hidden voxel: absolute or squared difference."""


class ClassifierSettings(ClassificationSettings):
    """``[head]`` of classification: pooled features to labels."""

    feature: str = ""
    """What to read; empty takes the backbone's last volume, map or vector."""
    pooling: Literal["mean", "max", "attention"] = "mean"
    """Over space. ``attention`` is for slices: each slice's mean, weighted by how much
    it has to say (Ilse et al. 2018)."""
    attention_width: Positive = 64
    """Hidden units of the attention."""
    dropout: Dropout = 0.2
    """Before the linear layer."""
