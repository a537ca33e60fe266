"""Text vectors: from files, from an encoder, whitened, matched in length."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from headstart.data import Findings
from headstart.errors import DataError, UserError
from headstart_recsys import text
from headstart_recsys.settings import InteractionSettings
from headstart_recsys.text import (
    encode_items,
    item_vectors,
    match_norms,
    read_text_vectors,
    whiten,
)

if TYPE_CHECKING:
    from pathlib import Path

TITLES = ["blue river", "old red house on a blue hill", "house", "river red hill old"]
IDS = ["a", "b", "c", "d"]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    """A tiny random BERT with a tokenizer that knows the titles' words."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path / "encoder"
    special = ["[PAD]", "[UNK]"]
    words = [*special, *sorted({word for t in TITLES for word in t.split()})]
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=16,
    )
    transformers.BertModel(config).save_pretrained(folder)
    return folder


def settings(**more: Any) -> InteractionSettings:
    return InteractionSettings(name="recsys/interactions", **more)


def test_encoding_is_the_mean_of_a_texts_own_tokens(encoder: Path) -> None:
    import transformers

    model = transformers.BertModel.from_pretrained(encoder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(encoder)
    found = encode_items([*TITLES, ""], f"file:{encoder}")
    for title, vector in zip(TITLES, found, strict=False):
        # One text alone has no padding.
        inputs = tokenizer(title, return_tensors="pt")
        with torch.no_grad():
            mean = model(**inputs).last_hidden_state[0].mean(0).numpy()
        expected = mean / np.linalg.norm(mean)
        np.testing.assert_allclose(vector, expected, atol=1e-5)
    assert not found[4].any()


def test_encoding_is_done_once(encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = encode_items(TITLES, str(encoder))
    calls: list[Any] = []
    real = text._encode
    monkeypatch.setattr(text, "_encode", lambda *a: calls.append(a) or real(*a))
    np.testing.assert_array_equal(encode_items(TITLES, str(encoder)), first)
    assert not calls
    other = encode_items(TITLES[::-1], str(encoder))
    assert len(calls) == 1
    np.testing.assert_allclose(other[::-1], first, atol=1e-5)


def test_no_transformers_is_told(
    encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"headstart-recsys\[text\]"):
        encode_items(TITLES, str(encoder))


def test_no_encoder_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no file of tensors"):
        encode_items(TITLES, f"file:{tmp_path}")


def test_whitening() -> None:
    generator = np.random.default_rng(0)
    mixing = generator.normal(size=(5, 5))
    vectors = (generator.normal(size=(200, 5)) @ mixing + 3).astype(np.float32)
    vectors[7] = 0
    found = whiten(vectors)
    known = np.delete(found, 7, axis=0)
    np.testing.assert_allclose(known.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(known.T @ known / 199, np.eye(5), atol=1e-3)
    assert not found[7].any()


def test_whitening_what_lies_in_a_plane() -> None:
    generator = np.random.default_rng(0)
    flat = np.zeros((50, 3), dtype=np.float32)
    flat[:, :2] = generator.normal(size=(50, 2)) * [1, 30] + 1
    found = whiten(flat)
    np.testing.assert_allclose(found.T @ found / 50, np.diag([1, 1, 0]), atol=1e-3)


def test_matching_norms() -> None:
    vectors = np.array([[3, 4], [0, 10], [0, 0]], dtype=np.float32)
    reference = np.array([[1, 0, 0], [0, 2, 0]], dtype=np.float32)
    # Mean lengths 7.5 and 1.5.
    expected = np.array([[0.6, 0.8], [0, 2], [0, 0]])
    np.testing.assert_allclose(match_norms(vectors, reference), expected, atol=1e-6)


def test_vectors_of_a_file_in_the_order_of_the_items(tmp_path: Path) -> None:
    path = tmp_path / "titles.npy"
    np.save(path, np.arange(1, 9, dtype=np.float64).reshape(4, 2))
    (tmp_path / "titles.items.txt").write_text("d\nx\nb\na\n")
    findings = Findings()
    found = read_text_vectors(path, IDS, settings(bad_cap=0.5), findings)
    np.testing.assert_array_equal(found, [[7, 8], [5, 6], [0, 0], [1, 2]])
    (warning,) = findings.warnings
    assert "3 of 4 items are in titles.npy; not 'c'" in warning.what
    with pytest.raises(DataError, match=r"only 3 of 4 items are in titles\.npy"):
        read_text_vectors(path, IDS)


def test_parquet_of_vectors(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    rows = pa.table({"item_id": [4, 2], "vector": [[1.0, 2.0], [3.0, 4.0]]})
    parquet.write_table(rows, tmp_path / "v.parquet")
    found = read_text_vectors(tmp_path / "v.parquet", ["2", "4"])
    np.testing.assert_array_equal(found, [[3, 4], [1, 2]])


def test_what_the_data_asks_for(encoder: Path) -> None:
    catalogue: Any = SimpleNamespace(titles=[*TITLES[:3], "  "])
    assert item_vectors(settings(), catalogue, IDS) is None
    findings = Findings()
    chosen = settings(text=str(encoder), bad_cap=0.3)
    found = item_vectors(chosen, catalogue, IDS, findings=findings)
    assert found is not None
    np.testing.assert_array_equal(found, encode_items([*TITLES[:3], ""], str(encoder)))
    (warning,) = findings.warnings
    assert "3 of 4 items have a title; not 'd'" in warning.what
    white = item_vectors(
        settings(text=str(encoder), bad_cap=0.3, whiten=True), catalogue, IDS
    )
    np.testing.assert_array_equal(white, whiten(found))


def test_missing_titles_stop(encoder: Path) -> None:
    catalogue: Any = SimpleNamespace(titles=[TITLES[0], "", "", TITLES[3]])
    with pytest.raises(
        DataError, match=r"only 2 of 4 items have a title; not 'b', 'c'"
    ):
        item_vectors(settings(text=str(encoder)), catalogue, IDS)
    nobody: Any = SimpleNamespace(titles=[])
    with pytest.raises(DataError, match="only 0 of 4 items have a title"):
        item_vectors(settings(text=str(encoder)), nobody, IDS)
