"""A tiny table of made-up reviews, and a tokenizer that knows its words."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

_GOOD = ("good", "great", "fine", "warm", "funny", "fresh", "strong", "lovely")
_BAD = ("bad", "poor", "dull", "cold", "stale", "weak", "awful", "boring")
_PLAIN = (
    "a",
    "the",
    "film",
    "plot",
    "cast",
    "end",
    "was",
    "is",
    "very",
    "quite",
    "and",
)


def tiny_table(folder: Path) -> dict[str, Any]:
    """Forty short made-up reviews and a tokenizer of 64 ids, for tests.

    Returns:
        Settings of ``[data]`` that read them.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    generator = np.random.default_rng(0)
    path = folder / "reviews.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for i in range(40):
            kind, label = ((_GOOD, "positive"), (_BAD, "negative"))[i % 2]
            words = [*generator.choice(_PLAIN, 2 + i % 7), *generator.choice(kind, 2)]
            writer.writerow([" ".join(words), label])
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [*special, *_GOOD, *_BAD, *_PLAIN]
    words += [f"[unused{i}]" for i in range(64 - len(words))]
    tokenizer = Tokenizer(
        models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]")
    )
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    roles = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **dict(zip(roles, special, strict=True)),
    ).save_pretrained(folder / "tokenizer")
    return {
        "name": "nlp/table",
        "path": str(path),
        "tokenizer": str(folder / "tokenizer"),
        "max_length": 16,
    }
