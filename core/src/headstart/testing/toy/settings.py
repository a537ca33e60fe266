"""Settings of the toy plugin; torch-free."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from headstart.settings import BackboneSettings, DataSettings


class NetworkSettings(BackboneSettings):
    """``[backbone]`` of the toy network."""

    width: Annotated[int, Field(ge=1)] = 8
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1


class RingSettings(DataSettings):
    """``[data]`` of the ring."""

    kind: Literal["single-label"] = "single-label"
    count: Annotated[int, Field(ge=10)] = 240
    """Points in all; a fifth each go to validation and test."""
    noise: Annotated[float, Field(ge=0)] = 0.0
    """Augmentation: spread of noise added to training points."""
