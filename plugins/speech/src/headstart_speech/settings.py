"""Settings of the speech plugin's backbones, heads and data; torch-free."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from headstart.settings import BackboneSettings, DataSettings, HeadSettings, Share

# --- backbones ------------------------------------------------------------------------

Span = Annotated[int, Field(ge=1)]


class SpeechBackboneSettings(BackboneSettings):
    """What all backbones of this plugin have in common."""

    config: dict[str, Any] = Field(default_factory=dict)
    """transformers configuration (sizes, activations); with ``weights = "none"`` what
    it leaves out is transformers' default. Otherwise the configuration comes with the
    weights, and these keys override it."""
    dropout: Share | None = None
    """Hidden, attention and activation dropout; ``None`` keeps the configuration's."""
    mask_time: Share = 0.05
    """In training, share of frames that would be masked if spans did not overlap
    (SpecAugment; ``mask_time_prob`` of transformers)."""
    mask_time_length: Span = 10
    """Frames of a masked span; shorter clips are not masked."""
    mask_features: Share = 0.0
    """In training, share of channels that would be masked if spans did not overlap
    (``mask_feature_prob`` of transformers)."""
    mask_features_length: Span = 10
    """Channels of a masked span."""


class WaveformSettings(SpeechBackboneSettings):
    """``[backbone]`` of wav2vec 2.0, HuBERT and WavLM."""

    normalize: bool | None = None
    """Bring each clip to zero mean and unit variance; ``None`` goes by the
    ``preprocessor_config.json`` of the weights, and does it where there is none."""


class WhisperSettings(SpeechBackboneSettings):
    """``[backbone]`` of a Whisper encoder."""

    pad_to_30s: bool = False
    """Let the encoder also see the silence up to 30 s, as in its own training; slower,
    and the same work for a clip of any length."""


# --- end of backbones -----------------------------------------------------------------

# --- data -----------------------------------------------------------------------------

Size = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Seconds = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
Speed = Annotated[float, Field(ge=0.5, le=2.0)]


class AudioSettings(DataSettings):
    """What all data modules of this plugin have in common: clips and their checks."""

    path: str | tuple[str, ...] = ""
    """Manifest (CSV, TSV, JSONL), folder (LibriSpeech, Common Voice, audio files) or
    ``asset:NAME``; several are read together. Split at random unless it has splits, or
    ``validation_path`` and ``test_path`` are given."""
    validation_path: str = ""
    """As ``path``, for the validation split."""
    test_path: str = ""
    """As ``path``, for the test split."""
    validation_size: Size = 0.1
    """Share of the training clips (below 1) or their number, without a path."""
    test_size: Size = 0.2
    """Share of all clips (below 1) or their number, without a path."""
    train_size: Annotated[int, Field(ge=1)] | None = None
    """Train on only so many clips, a seeded sample; ``None`` takes all."""
    format: Literal["auto", "manifest", "common-voice", "librispeech", "folder"] = (
        "auto"
    )
    """How ``path`` is laid out; ``auto`` looks at it."""
    audio: str = "path"
    """Column of the audio file; relative paths start at the manifest's folder. Where
    there is no ``path``, the column that is called ``audio_filepath`` (NeMo),
    ``file_name`` (Hugging Face's audio folders) or ``wav`` (SpeechBrain) is taken."""
    id: str = ""
    """Column of the clip's identity; empty takes ``id`` where there is one, else the
    file's name, or the manifest's name and line."""
    speaker: str = ""
    """Column of the speaker; empty takes ``speaker`` where there is one, else
    ``spk_id``."""
    start: str = ""
    """Column of where the clip begins in its file, in seconds; empty takes ``start``
    where there is one, and of NeMo's manifests ``offset``."""
    end: str = ""
    """Column of where it ends, in seconds; empty takes ``end`` where there is one, and
    of NeMo's manifests with an ``offset`` the ``duration`` behind it."""
    rate: str = ""
    """Column of the sampling rate that the file should have, in Hz; empty takes
    ``rate`` where there is one."""
    delimiter: str = ""
    """Field separator of a manifest; empty goes by the file's ending."""
    encoding: str = "utf-8"
    """Of manifests and transcripts."""
    shortest: Seconds = 0.1
    """Seconds that a clip must have."""
    longest: Seconds = 30.0
    """Seconds that a clip may have; longer inputs of predictions are split into such
    pieces at silences."""
    short: Literal["stop", "skip"] = "stop"
    """What to do about shorter clips: they are bad samples, or left out and counted."""
    long: Literal["stop", "skip", "split"] = "stop"
    """What to do about longer clips: they are bad samples, left out and counted, or,
    without transcripts, split at silences."""
    listen: bool = True
    """Decode every file before training, to find silence, clipping and broken ends;
    otherwise headers are read alone."""
    silence: Annotated[float, Field(le=0.0)] = -60.0
    """Loudness in dB of full scale that a clip must reach somewhere."""
    clipping: Share = 0.01
    """Largest share of samples at full scale."""
    speed: tuple[Speed, ...] = ()
    """Augmentation: factors of which each training batch is played at one, e.g.
    ``[0.9, 1.0, 1.1]``."""
    noise: tuple[float, float] | None = None
    """Augmentation: signal-to-noise ratio, in dB from-to, at which white noise is
    added."""
    volume: Size = 0.0
    """Augmentation: largest change of loudness up or down, in dB."""
    cache_gb: Size = 2.0
    """Memory for decoded clips, in GB; what is beyond it is read again each time."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.shortest >= self.longest:
            raise ValueError("shortest: must be below longest")
        if self.noise is not None and self.noise[0] > self.noise[1]:
            raise ValueError("noise: give the lower ratio first")
        return self


class UtteranceSettings(AudioSettings):
    """``[data]``: clips with what is said in them."""

    kind: Literal["transcription"] = "transcription"
    """The target is the clip's transcript, character by character."""
    split_by: Literal["text", "speaker"] = "text"
    """What is never in two splits: a sentence, or a speaker."""
    text: str = "text"
    """Column of the transcript. Where there is no ``text``, the column that is called
    ``transcription`` (Hugging Face's audio folders) or ``wrd`` (SpeechBrain) is
    taken."""
    case: Literal["lower", "upper", "keep"] = "lower"
    """Letters of transcripts."""
    punctuation: Literal["remove", "keep"] = "remove"
    """Punctuation and symbols; apostrophes inside words stay."""
    digits: Literal["keep", "remove", "skip"] = "keep"
    """Digits say nothing about how they are spoken: keep them as characters, remove
    them, or leave such clips out."""
    unicode: Literal["NFC", "NFKC", "NFKD"] = "NFKC"
    """Unicode normalisation of transcripts."""
    accents: Literal["keep", "strip"] = "keep"
    """Accents of letters."""
    vocabulary: str = ""
    """The characters in one text, e.g. ``"abcdefghijklmnopqrstuvwxyz'"``; empty takes
    those of the transcripts. The space between words is always one."""
    outside: Literal["stop", "remove", "skip"] = "stop"
    """What to do about characters outside ``vocabulary``: the clip is a bad sample, it
    goes without them, or it is left out; both counted."""
    alphabets: Literal["one", "any"] = "one"
    """Whether a transcript in another alphabet than most is a bad sample; a word of
    several alphabets always is."""


class UnlabelledSettings(AudioSettings):
    """``[data]``: clips without transcripts, to pretrain on."""

    kind: Literal["unlabelled-audio"] = "unlabelled-audio"
    """The target is what is hidden of the clip itself."""
    split_by: Literal["file", "speaker"] = "file"
    """What is never in two splits: a file, or a speaker."""
    longest: Seconds = 15.6
    """Seconds that a clip may have (250,000 samples, as wav2vec 2.0 was trained)."""
    long: Literal["stop", "skip", "split"] = "split"
    """What to do about longer clips: they are bad samples, left out and counted, or
    split at silences."""
    mask_probability: Share = 0.65
    """Share of frames that would be hidden if spans did not overlap."""
    mask_length: Annotated[int, Field(ge=1)] = 10
    """Frames of a hidden span."""
    negatives: Annotated[int, Field(ge=1)] = 100
    """Distractors among which the hidden content of a frame is to be found."""


# --- end of data ----------------------------------------------------------------------

# --- head of pretraining --------------------------------------------------------------


class ContrastiveSettings(HeadSettings):
    """``[head]`` of pretraining: wav2vec 2.0's codebook and loss, at its sizes."""

    groups: Annotated[int, Field(ge=1)] = 2
    """Codebooks, from each of which a frame takes a code."""
    codes: Annotated[int, Field(ge=2)] = 320
    """Codes in each of them."""
    code_width: Annotated[int, Field(ge=1)] = 256
    """Width of a frame's codes side by side; a multiple of ``groups``."""
    width: Annotated[int, Field(ge=1)] = 256
    """Width in which hidden frames and codes are compared."""
    temperature: Annotated[float, Field(gt=0.0)] = 0.1
    """What cosines are divided by."""
    diversity: Annotated[float, Field(ge=0.0)] = 0.1
    """Weight of the loss that asks for all codes to be used."""
    gumbel_start: Annotated[float, Field(gt=0.0)] = 2.0
    """Temperature of the Gumbel softmax that chooses codes, in the first pass."""
    gumbel_end: Annotated[float, Field(gt=0.0)] = 0.5
    """The least that it becomes."""
    gumbel_decay: Annotated[float, Field(gt=0.0, le=1.0)] = 0.999995
    """What it is multiplied by after each training pass; 0.999995 suits hundreds of
    thousands, a run of 10,000 takes about 0.9999."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Of what is quantised."""

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if self.code_width % self.groups:
            raise ValueError(f"code_width: give a multiple of groups ({self.groups})")
        if self.gumbel_end > self.gumbel_start:
            raise ValueError("gumbel_end: must not be above gumbel_start")
        return self


# --- end of the head of pretraining ---------------------------------------------------

# --- head of transcription ------------------------------------------------------------


class CTCSettings(HeadSettings):
    """``[head]`` of transcription: characters frame by frame, and blanks."""

    layers: Annotated[int, Field(ge=0)] = 0
    """Layers between the backbone and the characters; with a frozen backbone they are
    all that can learn how sounds follow each other."""
    layer: Literal["bilstm", "conv", "transformer"] = "bilstm"
    """What these layers are: recurrent in both directions, convolutions over nine
    frames, or self-attention."""
    width: Annotated[int, Field(ge=8)] = 256
    """Their width, a multiple of 8."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    """Before each layer and before the characters."""
    upsample: Literal[1, 2] = 1
    """2 makes two frames of each, for speech with more characters than frames."""
    blank_start: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.6
    """Probability of a blank in every frame at the start. Most frames of speech are
    blank; a head that has to learn so first says nothing else for a while."""

    def asks(self) -> dict[str, Any]:
        return {"upsample": self.upsample}

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if self.width % 8:
            raise ValueError("width: must be a multiple of 8")
        return self


# --- end of the head of transcription -------------------------------------------------
