"""What ``headstart predict`` takes for language models beside the prompts."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from headstart.settings import PredictOptions


class GenerationOptions(PredictOptions):
    """How a text goes on, and where it ends."""

    max_tokens: Annotated[int, Field(ge=1)] = 128
    """Generate at most so many tokens; fewer where the model's context ends before."""
    temperature: Annotated[float, Field(ge=0.0)] | None = None
    """0 always takes the likeliest token; the higher, the more is left to chance.
    Unless given, 0.8 where a text is continued and 0 where a prompt is answered."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 0.95
    """Choose among the likeliest tokens that together have this probability."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """Choose among so many of the likeliest tokens; 0 among all."""
    repetition_penalty: Annotated[float, Field(gt=0.0)] = 1.0
    """Above 1 makes tokens that were there before less likely."""
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Texts at which generation stops; they are not part of the result."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of the choices; a prompt's text depends on it alone, not on its batch."""
    samples: Annotated[int, Field(ge=1)] = 1
    """Texts per prompt."""
