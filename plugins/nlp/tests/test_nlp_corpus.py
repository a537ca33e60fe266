"""The data module ``nlp/corpus``: documents, splits, tokens, probes, bad input."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from headstart.errors import DataError
from headstart_nlp.corpus import Corpus
from headstart_nlp.settings import CorpusSettings
from headstart_nlp.tiny import tiny_corpus, tiny_table

SPLITS = ("train", "validation", "test")
END = 1
TEXTS = [f"the film was {'very ' * i}good" for i in range(1, 31)]


def documents(data):
    """How many each split has."""
    described = data.describe()
    return {split: described[split] for split in ("train", "validation", "test")}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_corpus(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def tokenizer(tiny):
    return AutoTokenizer.from_pretrained(tiny["tokenizer"])


def loaded(tiny, path="", seed=0, **settings):
    given = {**tiny, **({"path": str(path)} if path else {}), **settings}
    corpus = Corpus(CorpusSettings(**given), seed)
    corpus.load()
    return corpus


def opened(tiny, path="", seed=0, preprocessing=None, **settings):
    corpus = loaded(tiny, path, seed, **settings)
    corpus.prepare(preprocessing or {})
    return corpus


def faults(tiny, path="", preprocessing=None, **settings):
    with pytest.raises(DataError) as caught:
        opened(tiny, path, preprocessing=preprocessing, **settings)
    return caught.value.faults


def tokens(corpus, split):
    """The documents of a split as lists of ids."""
    return [
        ids.tolist()
        for sample in corpus.samples(split)
        for ids, _ in sample["documents"]
    ]


def everything(corpus):
    return sorted(ids for split in SPLITS for ids in tokens(corpus, split))


def encoded(tokenizer, texts, end=(END,)):
    return sorted([*tokenizer(text)["input_ids"], *end] for text in texts)


def lines(path, texts=TEXTS, between="\n"):
    path.write_text(between.join(texts), encoding="utf-8")
    return path


def test_paragraphs_lines_and_whole_files_are_documents(tiny, tokenizer, tmp_path):
    path = tmp_path / "texts.txt"
    blocks = [f"{text}\n  {text}" for text in TEXTS]
    path.write_bytes("\r\n \r\n".join(blocks).replace("\n", "\r\n").encode())
    paragraphs = opened(tiny, path, max_length=80)
    assert everything(paragraphs) == encoded(tokenizer, blocks)
    by_line = opened(tiny, path, documents="line", max_length=80)
    assert everything(by_line) == encoded(tokenizer, TEXTS * 2)
    for number, text in enumerate(TEXTS[:4]):
        lines(tmp_path / f"{number}.md", [text, "", text])
    path.unlink()
    whole = opened(
        tiny, tmp_path, documents="file", max_length=80, test_size=1, validation_size=1
    )
    assert everything(whole) == encoded(tokenizer, [f"{t} {t}" for t in TEXTS[:4]])
    ids = [sample["id"] for name in SPLITS[1:] for sample in whole.samples(name)]
    assert set(ids) < {"0.md", "1.md", "2.md", "3.md"}


def test_a_folder_is_read_with_all_below_it(tiny, tokenizer, tmp_path):
    (tmp_path / "deep").mkdir()
    lines(tmp_path / "one.txt", TEXTS[:15], "\n\n")
    lines(tmp_path / "deep" / "two.md", TEXTS[15:], "\n\n")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    corpus = opened(tiny, tmp_path, max_length=40)
    assert everything(corpus) == encoded(tokenizer, TEXTS)


def test_tables_have_a_column_of_texts(tiny, tokenizer, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"review": text, "stars": i} for i, text in enumerate(TEXTS)]
    as_json = tmp_path / "texts.jsonl"
    as_json.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "texts.parquet")
    for name, delimiter in (("texts.csv", ","), ("texts.tsv", "\t")):
        with (tmp_path / name).open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, ["review", "stars"], delimiter=delimiter)
            writer.writeheader()
            writer.writerows(rows)
    for name in ("texts.jsonl", "texts.parquet", "texts.csv", "texts.tsv"):
        corpus = opened(tiny, tmp_path / name, text="review", max_length=40)
        assert everything(corpus) == encoded(tokenizer, TEXTS), name


def test_splits_are_seeded_and_the_test_split_does_not_depend_on_rows(tiny):
    few, all_ = opened(tiny, rows=20), opened(tiny)
    assert tokens(few, "test") == tokens(all_, "test")
    assert documents(all_) == {"train": 51, "validation": 3, "test": 6}
    # A twentieth of 20 is 1.
    assert documents(few) == {"train": 19, "validation": 1, "test": 6}
    assert tokens(opened(tiny, seed=1), "test") != tokens(all_, "test")


def test_identical_documents_stay_in_one_split(tiny, tmp_path):
    copies = [text for text in TEXTS for _ in range(3)]
    copies[::2] = [text.upper() for text in copies[::2]]
    corpus = loaded(tiny, lines(tmp_path / "a.txt", copies, "\n\n"), test_size=0.3)
    seen = {split: {d.key for d in corpus._documents[split]} for split in SPLITS}
    assert sum(map(len, seen.values())) == len(set.union(*seen.values())) == 30
    assert corpus.findings.warnings == []


def test_the_same_document_in_given_splits_is_a_warning(tiny, tmp_path):
    train = lines(tmp_path / "train.txt", TEXTS, "\n\n")
    test = lines(tmp_path / "test.txt", [*TEXTS[:2], "the end"], "\n\n")
    corpus = loaded(tiny, train, test_path=str(test))
    (warning,) = corpus.findings.warnings
    assert warning.what.startswith(("1 documents", "2 documents"))
    assert "of test are also in train" in warning.what
    assert warning.where.startswith(str(test))


def test_training_samples_are_packs_and_no_document_is_lost(tiny):
    packed, single = opened(tiny), opened(tiny, packing=False)
    assert sorted(tokens(packed, "train")) == sorted(tokens(single, "train"))
    assert len(packed.samples("train")) < len(single.samples("train")) == 51
    assert packed.sizes("train").max() <= 24
    sizes = packed.sizes("train")
    assert sizes.tolist() == [
        sum(len(ids) for ids, _ in s["documents"]) for s in packed.samples("train")
    ]
    assert packed.describe()["packing waste"] == pytest.approx(
        1 - sizes.sum() / (24 * len(sizes))
    )
    for split in SPLITS[1:]:
        assert all(len(s["documents"]) == 1 for s in packed.samples(split))
        assert tokens(packed, split) == tokens(single, split)


def test_a_batch_has_labels_to_the_end_of_text_and_needs_no_padding_token(tiny):
    corpus = opened(tiny)
    assert corpus.tokenizer.pad_token_id is None
    samples = sorted(corpus.samples("test"), key=lambda s: len(s["documents"][0][0]))
    short, long = samples[0], samples[-1]
    batch = corpus.collate([short, long])
    size = len(short["documents"][0][0])
    assert batch["input_ids"][0, :size].tolist() == short["documents"][0][0].tolist()
    assert batch["labels"][0, 1:size].tolist() == batch["input_ids"][0, 1:size].tolist()
    assert batch["labels"][0, size - 1] == END
    assert (batch["labels"][0, size:] == corpus.padding["labels"]).all()
    assert (batch["segments"][0, size:] == 0).all()
    assert (batch["segments"][0, :size] == 1).all()


def test_a_tokenizer_that_ends_texts_itself_does_not_end_them_twice(tiny, tmp_path):
    from tokenizers import Tokenizer, processors

    folder = tmp_path / "tokenizer"
    tokenizer = AutoTokenizer.from_pretrained(tiny["tokenizer"])
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<unk> $A <end>", special_tokens=[("<unk>", 0), ("<end>", END)]
    )
    tokenizer.save_pretrained(folder)
    assert (
        Tokenizer.from_file(str(folder / "tokenizer.json")).encode("the").ids[-1] == 1
    )
    for end_of_text, last in ((True, [END]), (False, [])):
        corpus = opened(tiny, tokenizer=str(folder), end_of_text=end_of_text)
        (prompt,) = corpus.from_inputs(["the film"])
        assert prompt["documents"][0][0].tolist() == [0, *_ids(tiny, "the film")]
        text = corpus.text(np.array(tokens(corpus, "test")[0]))
        assert tokens(corpus, "test")[0] == [0, *_ids(tiny, text), *last]


def _ids(tiny, text):
    return AutoTokenizer.from_pretrained(tiny["tokenizer"])(text)["input_ids"]


def test_long_documents_are_read_in_parts_and_counted(tiny, tokenizer, tmp_path):
    long = f"the film was {'very ' * 40}good"
    path = lines(tmp_path / "a.txt", [*TEXTS[:19], long], "\n\n")
    corpus = opened(tiny, path, max_length=24, preprocessing={"max_positions": 64})
    assert corpus.describe()["divided documents"] == 1
    (warning,) = corpus.findings.warnings
    assert warning.what == "1 of 20 documents (5%) are read in parts"
    assert "at most 64" in warning.fix
    parts = [
        ids.tolist()
        for split in SPLITS
        for sample in corpus.samples(split)
        for ids, _ in sample["documents"]
        if not (ids[0] == tokenizer("the")["input_ids"][0] and ids[-1] == END)
    ]
    whole = [*tokenizer(long)["input_ids"], END]
    # 45 tokens: 24, and what is left with the last of these before it.
    assert sorted(parts, key=len, reverse=True)[0] == whole[:24]
    assert whole[23:] in parts


def test_a_document_with_nothing_to_predict_is_left_out(tiny, tmp_path):
    path = lines(tmp_path / "a.txt", [*TEXTS, "good", "bad"], "\n\n")
    corpus = opened(tiny, path, end_of_text=False, max_length=40)
    assert sum(documents(corpus).values()) == 30
    assert "2 of 32 documents are left out" in corpus.findings.warnings[0].what
    assert min(map(len, everything(corpus))) > 1
    kept = opened(tiny, path, max_length=40)
    assert sum(documents(kept).values()) == 32


def test_probes_begin_held_out_documents(tiny, tokenizer):
    corpus = opened(tiny, prompts=3)
    probe = corpus.task["probe"]
    held_out = {corpus.show(sample)["text"] for sample in corpus.samples("test")}
    assert len(probe["prompts"]) == 3
    for prompt in probe["prompts"]:
        assert f"{prompt['text']} {prompt['reference']}" in held_out
        assert prompt["ids"] == tokenizer(prompt["text"])["input_ids"]
        assert 1 <= len(prompt["text"].split()) <= 8
    assert probe["general"] == {"name": "", "documents": []}
    assert json.loads(json.dumps(corpus.task)) == corpus.task
    assert corpus.task["probe"] == opened(tiny, prompts=3).task["probe"]
    assert opened(tiny, prompts=0).task["probe"]["prompts"] == []


def test_text_without_spaces_begins_with_some_of_its_characters(tiny):
    from headstart_nlp.documents import Document

    corpus = opened(tiny)
    prompt = corpus.prompt(Document("a", "ab" * 50, "there"))
    assert prompt["text"] == "ab" * 8
    assert prompt["reference"] == "ab" * 42


def test_general_text_is_read_beside_the_corpus(tiny, tokenizer, tmp_path):
    general = lines(tmp_path / "general.txt", ["the end is fine"] * 3, "\n\n")
    corpus = opened(tiny, general=str(general))
    document = tokenizer("the end is fine")["input_ids"]
    assert corpus.task["probe"]["general"] == {
        "name": "general.txt",
        "documents": [document] * 3,
    }
    many = lines(general, [f"the end is fine {'a ' * i}" for i in range(210)], "\n\n")
    found = opened(tiny, general=str(many)).task["probe"]["general"]["documents"]
    assert len(found) == 200
    assert max(map(len, found)) == 24
    (fault,) = faults(tiny, general=str(tmp_path / "generel.txt"))
    assert "data.general names it" in fault.why
    assert "general.txt" in fault.fix


def test_predictions_need_neither_data_nor_another_task(tiny, tokenizer):
    corpus = Corpus(CorpusSettings(**{**tiny, "path": "gone.txt"}), 0)
    task = {"kind": "text", "probe": {"prompts": ["kept"], "general": {}}}
    corpus.task = json.loads(json.dumps(task))
    corpus.prepare({"max_positions": 64})
    assert corpus.task == task
    one, two = corpus.from_inputs(["the film was", {"text": "a plot", "id": "mine"}])
    assert one["documents"][0][0].tolist() == tokenizer("the film was")["input_ids"]
    assert [corpus.input_name(s) for s in (one, two)] == ["the film was", "a plot"]
    assert two["id"] == "mine"
    assert (corpus.collate([one, two])["labels"] == -100).all()


def test_prompts_that_cannot_be_continued(tiny):
    corpus = Corpus(CorpusSettings(**tiny), 0)
    corpus.prepare({"max_positions": 32})
    assert len(corpus.from_inputs(["very " * 31])) == 1
    with pytest.raises(DataError) as caught:
        corpus.from_inputs(["the film", "very " * 32, "very " * 40])
    assert [fault.where for fault in caught.value.faults] == ["input 2", "input 3"]
    assert "32 tokens, 1 too many" in caught.value.faults[0].what
    assert "40 tokens, 9 too many" in caught.value.faults[1].what
    with pytest.raises(DataError) as caught:
        corpus.from_inputs(["", {"txt": "a"}, 7])
    assert [fault.where for fault in caught.value.faults] == [
        "input 1",
        "input 2",
        "input 3",
    ]


def test_the_fingerprint_is_of_what_is_learned(tiny, tmp_path):
    first = opened(tiny).fingerprint()
    assert first == opened(tiny, prompts=1).fingerprint()
    for change in (
        {"max_length": 30},
        {"packing": False},
        {"end_of_text": False},
        {"seed": 1},
        {"rows": 30},
    ):
        assert opened(tiny, **change).fingerprint() != first, change
    text = Path(tiny["path"]).read_text(encoding="utf-8")
    changed = tmp_path / "texts.txt"
    changed.write_text(text[: text.rindex(" ")] + " a", encoding="utf-8")
    assert opened(tiny, changed).fingerprint() != first


def test_empty_documents_and_duplicate_ids_are_named_together(tiny, tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [{"text": text, "id": i} for i, text in enumerate(TEXTS)]
    rows[3]["text"], rows[5]["text"], rows[7]["id"] = "  ", None, 2
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    found = faults(tiny, path, id="id")
    assert [(fault.where, fault.what) for fault in found] == [
        (f"{path}, line 4", "empty text"),
        (f"{path}, line 6", "empty text"),
        (f"{path}, line 8", "duplicate id: '2'"),
    ]
    rest = opened(tiny, path, id="id", bad="skip", bad_cap=0.1, max_length=40)
    assert sum(documents(rest).values()) == 27
    assert len(rest.findings.left_out) == 3


def test_mixed_encodings_are_found_file_by_file_and_line_by_line(tiny, tmp_path):
    for name, bad in (
        ("a.txt", {7: "sch\xf6n"}),
        ("b.txt", {}),
        ("c.txt", {1: "\xe9"}),
    ):
        raw = [bad.get(i, text).encode("latin-1") for i, text in enumerate(TEXTS, 1)]
        (tmp_path / name).write_bytes(b"\n\n".join(raw))
    (tmp_path / "d.txt").write_text("", encoding="utf-8")
    (tmp_path / "e.txt").write_bytes("\n".join(TEXTS).encode("utf-16"))
    first, second, empty, wide = faults(tiny, tmp_path, max_length=40)
    assert first.where == f"{tmp_path / 'a.txt'}, line 13"
    assert "bad utf-8: byte 0xf6" in first.what
    assert "'sch\xf6n'" in first.fix
    assert second.where == f"{tmp_path / 'c.txt'}, line 1"
    assert empty.where == str(tmp_path / "d.txt")
    assert (wide.where, wide.what) == (
        str(tmp_path / "e.txt"),
        "this is not UTF-8 text",
    )


def test_a_bad_byte_is_found_on_its_own_line_of_a_document(tiny, tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"the film\nwas good\nand sch\xf6n\n")
    (fault,) = faults(tiny, path)
    assert fault.where == f"{path}, line 3"


def test_binary_files_are_no_text(tiny, tmp_path):
    path = tmp_path / "a.txt"
    values = np.random.default_rng(0).integers(1, 256, 5000, dtype=np.uint8)
    path.write_bytes(values.tobytes())
    (fault,) = faults(tiny, path)
    assert (fault.what, fault.where) == ("this is not text", str(path))


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("texts.tx", None, "did you mean 'texts.txt'?"),
        ("empty.txt", b" \n", "the file is empty"),
        ("texts.docx", b"PK", "is not known by its ending"),
        ("texts.csv", b"txt,b\nthe film,1\n", "there is no column 'text'"),
    ],
)
def test_files_that_cannot_be_read(tiny, tmp_path, name, content, expected):
    lines(tmp_path / "texts.txt")
    if content is not None:
        (tmp_path / name).write_bytes(content)
    (fault,) = faults(tiny, tmp_path / name)
    assert expected in str(fault)


def test_a_folder_without_text_says_what_it_has(tiny, tmp_path):
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    (fault,) = faults(tiny, tmp_path)
    assert "picture.png" in fault.why


def test_too_few_documents_for_three_splits(tiny, tmp_path):
    path = lines(tmp_path / "a.txt", TEXTS[:2], "\n\n")
    (fault,) = faults(tiny, path)
    assert fault.where == "data.test_size"
    same = lines(tmp_path / "b.txt", [TEXTS[0]] * 20, "\n\n")
    (fault,) = faults(tiny, same)
    assert fault.why == "identical documents stay together"


def test_settings_that_the_model_or_its_tokenizer_cannot_serve(tiny, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny["tokenizer"])
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path / "endless")
    endless = str(tmp_path / "endless")
    long, end = faults(tiny, tokenizer=endless, preprocessing={"max_positions": 16})
    assert (long.where, long.fix) == ("data.max_length", "data.max_length=16")
    assert "data.end_of_text=false" in end.fix
    corpus = opened(tiny, tokenizer=endless, end_of_text=False)
    assert all(END not in ids for ids in everything(corpus))
    # What the model says serves as well.
    known = opened(tiny, tokenizer=endless, preprocessing={"eos_token_id": 40})
    assert all(ids[-1] == 40 for ids in everything(known))


def test_a_tokenizer_with_a_padding_token_pads_with_it(tmp_path):
    table = tiny_table(tmp_path)
    lines(tmp_path / "a.txt", TEXTS, "\n\n")
    settings = {"name": "nlp/corpus", "tokenizer": table["tokenizer"]}
    corpus = opened(
        settings,
        tmp_path / "a.txt",
        max_length=40,
        preprocessing={"eos_token_id": 3, "pad_token_id": 9},
    )
    assert corpus.tokenizer.pad_token_id == 0
    short, *_, long = sorted(
        corpus.samples("test"), key=lambda s: len(s["documents"][0][0])
    )
    assert corpus.collate([short, long])["input_ids"][0, -1] == 0


def test_an_asset_says_how_it_is_read(tiny, tmp_path, monkeypatch):
    from headstart import assets
    from headstart.assets import find_asset

    asset = find_asset("movie-snippets", ("headstart_nlp",))
    rows = [f"{i}\t{i % 3}\t{text} it's \"so" for i, text in enumerate(TEXTS)]
    lines(tmp_path / asset.files[0].path, rows)
    monkeypatch.setattr(assets, "fetch", lambda asset: tmp_path)
    corpus = loaded(tiny, "asset:movie-snippets", test_size=5)
    assert corpus.settings.columns == ("id", "score", "text")
    assert corpus.settings.test_size == 5
    contents = {d.content for split in SPLITS for d in corpus._documents[split]}
    assert contents == {f"{text} it's \"so" for text in TEXTS}
    general = loaded(tiny, general="asset:movie-snippets")
    assert len(general._general) == 30
    general.prepare({})
    assert general.task["probe"]["general"]["name"] == "movie-snippets"
