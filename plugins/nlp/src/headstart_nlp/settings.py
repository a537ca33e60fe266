"""Settings of the nlp plugin's backbones, heads and data; torch-free."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from headstart.settings import (
    BackboneSettings,
    ClassificationSettings,
    DataSettings,
    HeadSettings,
    Share,
)

Size = Annotated[float, Field(ge=0.0)]


class EncoderSettings(BackboneSettings):
    """``[backbone]`` of a BERT-family encoder."""

    config: dict[str, Any] = Field(default_factory=dict)
    """transformers configuration (``model_type`` and sizes) for ``weights = "none"``;
    otherwise the configuration comes with the weights, and these keys override it."""
    dropout: Share | None = None
    """Hidden and attention dropout; ``None`` keeps the configuration's."""


class CausalSettings(BackboneSettings):
    """``[backbone]`` of a causal language model (GPT-2, Llama, Qwen …)."""

    config: dict[str, Any] = Field(default_factory=dict)
    """transformers configuration (``model_type`` and sizes) for ``weights = "none"``;
    otherwise the configuration comes with the weights, and these keys override it."""
    dropout: Share | None = None
    """Hidden and attention dropout; ``None`` keeps the configuration's."""
    untie: bool = False
    """Give the output matrix parameters of its own where the weights tie it to the
    embeddings, so that one may be frozen while the other trains."""


class TextHeadSettings(HeadSettings):
    """``[head]`` of all heads that read one vector per text."""

    pooling: Literal["mean", "cls", "attention"] = "mean"
    """How the vectors of a text's tokens become one."""
    layers: Annotated[int, Field(ge=1)] = 1
    """Linear layers; more than one puts GELU and dropout between them."""
    width: Annotated[int, Field(ge=1)] | None = None
    """Width of the hidden layers; ``None`` takes the backbone's."""
    dropout: Share = 0.1
    """Before each linear layer."""


class ClassifierSettings(TextHeadSettings, ClassificationSettings):
    """``[head]`` of single- and multi-label classification."""


class RegressorSettings(TextHeadSettings):
    """``[head]`` of regression; trained on standardised targets."""


class LanguageModelSettings(HeadSettings):
    """``[head]`` of causal language modelling; it has no parameters."""

    label_smoothing: Share = 0.0
    """Share of the target that is spread over the vocabulary, in training only."""


class TableSettings(DataSettings):
    """``[data]``: texts in CSV, TSV, JSONL, Parquet or a ``datasets`` folder."""

    path: str = ""
    """File or ``datasets`` folder with the samples, or ``asset:NAME``; split at random
    unless ``validation_path`` and ``test_path`` are given."""
    validation_path: str = ""
    """File with the validation split."""
    test_path: str = ""
    """File with the test split."""
    validation_size: Size = 0.1
    """Share of the training rows (below 1) or number of rows, without a file."""
    test_size: Size = 0.2
    """Share of all rows (below 1) or number of rows, without a file."""
    kind: Literal["single-label", "multi-label", "regression"] = "single-label"
    """What the label column holds: a class, several, or a number."""
    text: str = "text"
    """Column of the text."""
    pair: str = ""
    """Column of a second text (question and answer, premise and hypothesis)."""
    label: str = "label"
    """Column of the label; for ``multi-label`` a separated string or a list."""
    id: str = ""
    """Column of the sample's identity; empty takes file and row."""
    separator: str = ","
    """Between the labels of one row, for ``multi-label``."""
    labels: tuple[str, ...] = ()
    """The classes in order; empty takes those found in train, sorted."""
    bins: dict[str, tuple[float, float]] = Field(default_factory=dict)
    """Classes as ranges of a numeric label column, both ends included; rows in no
    range are left out and counted."""
    columns: tuple[str, ...] = ()
    """Column names of a file without a header row."""
    delimiter: str = ""
    """Field separator; empty goes by the file's ending."""
    quoting: bool = True
    """Whether fields may be quoted."""
    encoding: str = "utf-8"
    """Of CSV, TSV and JSONL files."""
    rows: Annotated[int, Field(ge=1)] | None = None
    """Use only so many rows, a seeded sample; ``None`` uses all."""
    max_length: Annotated[int, Field(ge=2)] = 128
    """Tokens per text, special ones included; longer texts are cut and counted."""
    token_dropout: Share = 0.0
    """Augmentation: share of tokens replaced by the mask token, in training only."""
    word_swap: Share = 0.0
    """Augmentation: share of neighbouring words that change places, in training."""
    tokenizer: str = ""
    """Folder of a tokenizer; empty takes the one that came with the weights."""


class LanguageDataSettings(DataSettings):
    """What corpora and conversations share: splits, packing, what the report shows."""

    path: str = ""
    """File or folder, or ``asset:NAME``; split at random unless ``validation_path``
    and ``test_path`` are given."""
    validation_path: str = ""
    """File or folder with the validation split."""
    test_path: str = ""
    """File or folder with the test split."""
    validation_size: Size = 0.05
    """Share of the training documents (below 1) or their number, without a file."""
    test_size: Size = 0.1
    """Share of all documents (below 1) or their number, without a file."""
    id: str = ""
    """Column of the document's identity; empty takes file and row."""
    columns: tuple[str, ...] = ()
    """Column names of a file without a header row."""
    delimiter: str = ""
    """Field separator; empty goes by the file's ending."""
    quoting: bool = True
    """Whether fields may be quoted."""
    encoding: str = "utf-8"
    """Of text, CSV, TSV and JSONL files."""
    rows: Annotated[int, Field(ge=1)] | None = None
    """Train on only so many documents, a seeded sample; ``None`` takes all."""
    max_length: Annotated[int, Field(ge=8)] = 512
    """Tokens in a row of a batch: several packed documents, or a part of a long one."""
    packing: bool = True
    """Put several documents into a training row; none sees another."""
    tokenizer: str = ""
    """Folder of a tokenizer; empty takes the one that came with the weights."""
    prompts: Annotated[int, Field(ge=0)] = 4
    """Held-out prompts that the report continues before and after the training."""
    general: str = ""
    """General text (file or ``asset:NAME``) on which the report measures what was
    forgotten; empty measures nothing."""


class CorpusSettings(LanguageDataSettings):
    """``[data]``: documents to be continued, in text files, folders or tables."""

    kind: Literal["text"] = "text"
    """Every token of a document is learned."""
    text: str = "text"
    """Column of the text, in tables."""
    documents: Literal["paragraph", "line", "file"] = "paragraph"
    """What a document is in a text file: between blank lines, a line, or all of it."""
    end_of_text: bool = True
    """Learn where a document ends, so that generation stops there."""


class ConversationSettings(LanguageDataSettings):
    """``[data]``: prompts and responses, or whole conversations; only what the
    assistant says is learned."""

    kind: Literal["conversation"] = "conversation"
    """Responses are learned, what they answer is read alone."""
    messages: str = "messages"
    """Column of a list of ``{"role": …, "content": …}``; not used with ``prompt``."""
    prompt: str = ""
    """Column of the prompt, or a text with columns in braces:
    ``"Is this review good or bad?\\n\\n{text}"``."""
    response: str = ""
    """Column of the response, or a text with columns in braces."""
    system: str = ""
    """What the system says before every conversation that does not say it itself."""
    template: Literal["chat", "plain"] = "chat"
    """The model's chat template, or prompt, line break, response."""
    chat_template: str = ""
    """File with a Jinja chat template, in place of the model's own."""
    long: Literal["drop", "cut"] = "drop"
    """What becomes of more than ``max_length`` tokens: left out, or cut at the end."""
    label: str = "label"
    """Column that ``bins`` read."""
    bins: dict[str, tuple[float, float]] = Field(default_factory=dict)
    """Words for ranges of the numeric ``label`` column, both ends included, for use in
    ``response``; rows in no range are left out and counted."""
