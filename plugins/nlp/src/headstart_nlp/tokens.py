"""Texts to token ids, and ids of several texts to one padded array."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from headstart.errors import Fault

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from headstart.data import Findings
    from headstart_nlp.settings import LanguageDataSettings, TableSettings

CHUNK = 4096
"""Texts per call of the tokenizer: bounds what its verbose results take in memory."""


def load_tokenizer(
    settings: TableSettings | LanguageDataSettings,
    preprocessing: Mapping[str, Any],
    findings: Findings,
) -> Any:
    """The fast tokenizer of a folder, cutting and padding on the right.

    Args:
        settings: ``tokenizer`` names a folder, or is empty.
        preprocessing: The backbone's ``tokenizer`` folder, and ``max_positions`` and
            ``vocab_size`` where it has them.
        findings: Takes the faults.

    Returns:
        ``None`` where there is no tokenizer to use.
    """
    limit = preprocessing.get("max_positions")
    if limit and settings.max_length > limit:
        what = f"{settings.max_length} tokens are more than the backbone has positions"
        why = f"it was built for at most {limit}"
        findings.fatal.append(
            Fault(what, "data.max_length", why, f"data.max_length={limit}")
        )
    name = settings.tokenizer or str(preprocessing.get("tokenizer") or "")
    if not name:
        what, where = "there is no tokenizer", "data.tokenizer"
        why = "the weights came without one, and texts need one to become token ids"
        fix = "name a folder that has tokenizer.json: data.tokenizer=FOLDER"
        findings.fatal.append(Fault(what, where, why, fix))
        return None
    folder = Path(name).expanduser()
    fix = "name a folder that has tokenizer.json (a tokenizer's `save_pretrained`)"
    if not folder.is_dir():
        why = "data.tokenizer or the weights name it"
        fault = Fault("the tokenizer's folder does not exist", str(folder), why, fix)
        findings.fatal.append(fault)
        return None
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the library lets its parsers' own errors through
        why = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        fault = Fault("the tokenizer cannot be loaded", str(folder), why, fix)
        findings.fatal.append(fault)
        return None
    if not tokenizer.is_fast:
        why = "it has no tokenizer.json and cannot be converted"
        findings.fatal.append(Fault("the tokenizer is slow", str(folder), why, fix))
        return None
    vocabulary = preprocessing.get("vocab_size")
    if vocabulary and len(tokenizer) > vocabulary:
        what = f"the tokenizer has {len(tokenizer)} tokens, the backbone {vocabulary}"
        why, fix = "larger ids have no embedding", "use the tokenizer of these weights"
        findings.fatal.append(Fault(what, str(folder), why, fix))
    tokenizer.padding_side = tokenizer.truncation_side = "right"
    return tokenizer


def tokenizer_hash(tokenizer: Any) -> str:
    """Hash of everything that decides a tokenizer's ids."""
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    specials = sorted(tokenizer.special_tokens_map.items())
    content = f"{tokenizer.backend_tokenizer.to_str()}{specials}"
    return hashlib.sha256(content.encode("utf-8")).hexdigest()


def encode(
    tokenizer: Any,
    texts: Sequence[str],
    pairs: Sequence[str],
    max_length: int,
    *,
    words: bool = False,
) -> tuple[list[dict[str, np.ndarray]], int]:
    """Token ids of each text, special tokens included, cut at ``max_length``.

    Args:
        tokenizer: A fast tokenizer.
        texts: Texts.
        pairs: Second texts; empty for none.
        max_length: Most tokens per sample.
        words: Also give ``word_ids``: the number of each token's word in its text, -1
            for special tokens.

    Returns:
        Arrays of int32 by state key, and how many samples were cut.
        ``token_type_ids`` are there only with pairs, for tokenizers that have them.
    """
    samples: list[dict[str, np.ndarray]] = []
    cut = 0
    types = bool(pairs) and "token_type_ids" in tokenizer.model_input_names
    for start in range(0, len(texts), CHUNK):
        stop = start + CHUNK
        batch = tokenizer(
            list(texts[start:stop]),
            list(pairs[start:stop]) if pairs else None,
            truncation=True,
            max_length=max_length,
        )
        for encoding in batch.encodings:
            sample = {"input_ids": np.array(encoding.ids, dtype=np.int32)}
            if types:
                sample["token_type_ids"] = np.array(encoding.type_ids, dtype=np.int32)
            if words:
                found = [-1 if word is None else word for word in encoding.word_ids]
                sample["word_ids"] = np.array(found, dtype=np.int32)
            samples.append(sample)
            cut += bool(encoding.overflowing)
    return samples, cut


def encode_whole(
    tokenizer: Any, texts: Sequence[str], end: int | None
) -> list[np.ndarray]:
    """Token ids of each text, of any length, int32.

    Args:
        tokenizer: A fast tokenizer; what it puts before a text is put there.
        texts: Texts.
        end: A token that is taken away where the tokenizer puts it behind a text.
    """
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    found = []
    for start in range(0, len(texts), CHUNK):
        for encoding in backend.encode_batch_fast(list(texts[start : start + CHUNK])):
            ids = np.array(encoding.ids, dtype=np.int32)
            found.append(ids[:-1] if len(ids) and ids[-1] == end else ids)
    return found


def pad(rows: Sequence[np.ndarray], value: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of different lengths as one array, padded on the right.

    Returns:
        Array (rows, longest) int64, and the mask of what is not padding, int64.
    """
    lengths = np.array([len(row) for row in rows])
    mask = np.arange(lengths.max())[None, :] < lengths[:, None]
    padded = np.full(mask.shape, value, dtype=np.int64)
    padded[mask] = np.concatenate(rows)
    return padded, mask.astype(np.int64)
