"""Tiny data of made-up reviews, and tokenizers that know their words."""

from __future__ import annotations

import csv
import json
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


def tiny_corpus(folder: Path) -> dict[str, Any]:
    """Sixty short made-up texts and a tokenizer of 64 ids, for tests.

    Returns:
        Settings of ``[data]`` that read them.
    """
    generator = np.random.default_rng(0)
    words = (*_GOOD, *_BAD, *_PLAIN)
    path = folder / "texts.txt"
    texts = [" ".join(generator.choice(words, 4 + i % 9)) for i in range(60)]
    path.write_text("\n\n".join(texts), encoding="utf-8")
    return {
        "name": "nlp/corpus",
        "path": str(path),
        "tokenizer": str(tiny_language_tokenizer(folder / "tokenizer")),
        "max_length": 24,
    }


def tiny_conversations(folder: Path) -> dict[str, Any]:
    """Sixty short made-up conversations, some of two responses, for tests.

    Returns:
        Settings of ``[data]`` that read them.
    """
    generator = np.random.default_rng(0)
    path = folder / "talks.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for i in range(60):
            messages = []
            for _ in range(1 + i % 3 // 2):
                kind = (_GOOD, _BAD)[generator.integers(2)]
                asked = [*generator.choice(_PLAIN, 2 + i % 4), generator.choice(kind)]
                messages.append({"role": "user", "content": " ".join(asked)})
                messages.append({"role": "assistant", "content": f"very {kind[0]}"})
            file.write(json.dumps({"messages": messages}) + "\n")
    template = (
        "{% for m in messages %}"
        "{{ '<unused1> ' if m['role'] == 'assistant' else '<unused0> ' }}"
        "{{ m['content'] }} <end> {% endfor %}"
        "{% if add_generation_prompt %}<unused1> {% endif %}"
    )
    return {
        "name": "nlp/conversations",
        "path": str(path),
        "tokenizer": str(tiny_language_tokenizer(folder / "tokenizer", template)),
        "max_length": 32,
    }


def tiny_language_tokenizer(folder: Path, chat_template: str | None = None) -> Path:
    """A tokenizer of 64 ids, one a word, with an end of text and no padding token.

    Returns:
        The folder.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "<end>", *_GOOD, *_BAD, *_PLAIN]
    words += [f"<unused{i}>" for i in range(64 - len(words))]
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    loaded = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<end>"
    )
    if chat_template:
        loaded.chat_template = chat_template
    loaded.save_pretrained(folder)
    return folder
