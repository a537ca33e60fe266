"""What ``headstart predict`` takes beside the recordings; torch-free."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from headstart.settings import PredictOptions


class TranscribeOptions(PredictOptions):
    """How recordings become text, and how it is written."""

    format: Literal["text", "json", "srt", "vtt", "tsv"] = "text"
    """Plain text, JSON with segments and words, or subtitles: SRT, WebVTT, or a table
    with start and end in milliseconds; of one recording text and subtitles are printed
    as they are."""
    timestamps: bool = True
    """Give each word's start and end in JSON; subtitles always have their times."""
    decoder: Literal["greedy", "beam"] = "greedy"
    """The likeliest character of every frame, or a beam search over whole texts."""
    beam_size: Annotated[int, Field(ge=1)] = 50
    """``beam``: texts that are followed at a time."""
    lm: str = ""
    """``beam``: a language model, an ARPA file or KenLM's binary file. One of words
    lets only its words be said."""
    words: str = ""
    """``beam``: a text file (a list of words, or transcripts); nothing but its words is
    said. A binary language model of words needs it."""
    lm_weight: float = 1.0
    """``beam``: what the language model counts against the sound."""
    word_score: float = 0.0
    """``beam``: added for each word; above 0 makes more and shorter words. Without a
    list of words it does nothing."""

    @field_validator("beam_size", "lm", "words", "lm_weight", "word_score")
    @classmethod
    def _heeded(cls, value: Any, info: ValidationInfo) -> Any:
        given = value != cls.model_fields[str(info.field_name)].default
        if given and info.data.get("decoder") == "greedy":
            raise ValueError("the greedy decoder has no use for it: add --decoder beam")
        if given and info.field_name == "lm_weight" and not info.data.get("lm"):
            raise ValueError("it weighs a language model: name one with --lm")
        if (
            given
            and info.field_name == "word_score"
            and not (info.data.get("lm") or info.data.get("words"))
        ):
            raise ValueError("it scores listed words: add --words, or --lm")
        return value

    def bare(self) -> str:
        return "" if self.format == "json" else self.format
