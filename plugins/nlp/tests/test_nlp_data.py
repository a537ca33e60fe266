"""The data module: formats, splits, tokens, batches, augmentation, baselines."""

from __future__ import annotations

import csv
import gzip
import json
import pickle
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from headstart import assets
from headstart.batch_order import epoch_batches
from headstart.errors import DataError
from headstart_nlp.augment import drop_tokens, swap_words
from headstart_nlp.data import TextTable
from headstart_nlp.settings import TableSettings
from headstart_nlp.splits import shares, take_out
from headstart_nlp.tiny import tiny_table

ROWS = [
    {"text": text, "label": label}
    for i in range(10)
    for text, label in (
        (f"the film is very good {'a ' * i}", "yes"),
        (f"the plot was quite dull {'the ' * i}", "no"),
    )
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_table(tmp_path_factory.mktemp("tiny"))


def opened(tiny, path="", seed=0, preprocessing=None, **settings):
    given = {**tiny, **({"path": str(path)} if path else {}), **settings}
    table = TextTable(TableSettings(**given), seed)
    table.load()
    table.prepare(preprocessing or {})
    return table


def written(path, rows=ROWS, **options):
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), **options)
        writer.writeheader()
        writer.writerows(rows)
    return path


def texts(table, split):
    return [sample["text"] for sample in table.samples(split)]


def everything(table):
    return [
        s["id"]
        for split in ("train", "validation", "test")
        for s in table.samples(split)
    ]


def test_the_tiny_table_is_split_in_exact_proportions(tiny):
    table = opened(tiny)
    assert table.describe()["classes"] == {
        # 40 rows, half of each class: a fifth is 8, a tenth of 32 is 3.
        "train": {"negative": 14, "positive": 15},
        "validation": {"negative": 2, "positive": 1},
        "test": {"negative": 4, "positive": 4},
    }
    assert table.task == {
        "kind": "single-label",
        "labels": ["negative", "positive"],
        "counts": [14, 15],
    }
    assert len(set(everything(table))) == 40


def _jsonl(path):
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))


def _parquet(path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(ROWS), path)


def _zipped(path):
    with gzip.open(path, "wt", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows(row.values() for row in ROWS)


def _folder(path):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list(ROWS).save_to_disk(str(path))


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("rows.tsv", lambda path: written(path, delimiter="\t")),
        ("rows.jsonl", _jsonl),
        ("rows.parquet", _parquet),
        ("rows.csv.gz", _zipped),
        ("rows", _folder),
    ],
)
def test_every_format_gives_what_csv_gives(tiny, tmp_path, name, write):
    plain = opened(tiny, written(tmp_path / "plain.csv"))
    write(tmp_path / name)
    other = opened(tiny, tmp_path / name)
    assert other.fingerprint() == plain.fingerprint()
    assert sorted(texts(plain, "train"))[0].startswith("the film is very good")


def test_a_datasets_folder_brings_its_splits_and_class_names(tiny, tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["n", "y"]),
        }
    )
    parts = {
        split: datasets.Dataset.from_list(
            [{"text": f"{split} {i}", "label": i % 2} for i in range(count)], features
        )
        for split, count in (("train", 8), ("validation", 4), ("test", 6))
    }
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "saved"))
    table = opened(tiny, tmp_path / "saved")
    assert table.task["labels"] == ["n", "y"]
    assert texts(table, "test") == [f"test {i}" for i in range(6)]
    assert [s["label"] for s in table.samples("validation")] == [0, 1, 0, 1]
    assert "test split" not in table.describe()


def test_without_the_datasets_library_the_extra_is_named(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    (tmp_path / "dataset_dict.json").write_text("{}")
    with pytest.raises(DataError, match=r"headstart-nlp\[datasets\]"):
        opened(tiny, tmp_path)


def test_quotes_encodings_marks_and_header_less_files(tiny, tmp_path):
    lines = '"a ""good"" café, warm";yes\n'.encode("cp1252")
    lines += b"".join(
        f"film {i};{'yes' if i % 2 else 'no'}\n".encode() for i in range(19)
    )
    (tmp_path / "a.csv").write_bytes(lines)
    settings = {"columns": ("text", "label"), "delimiter": ";", "encoding": "cp1252"}
    found = opened(tiny, tmp_path / "a.csv", **settings)
    every = [
        t for split in ("train", "validation", "test") for t in texts(found, split)
    ]
    assert 'a "good" café, warm' in every
    marked = tmp_path / "b.csv"
    marked.write_text("\ufeff" + written(tmp_path / "c.csv").read_text())
    same = opened(tiny, tmp_path / "c.csv")
    assert opened(tiny, marked).fingerprint() == same.fingerprint()
    tabs = tmp_path / "d.tsv"
    tabs.write_text("".join(f'"film {i}\t{"yn"[i % 2]}\n' for i in range(12)))
    plain = opened(tiny, tabs, columns=("text", "label"), quoting=False, test_size=3)
    assert all(t.startswith('"film') for t in texts(plain, "train"))


def test_splits_are_a_function_of_data_and_seed(tiny, tmp_path):
    path = written(tmp_path / "rows.csv")
    assert everything(opened(tiny, path)) == everything(opened(tiny, path))
    assert everything(opened(tiny, path)) != everything(opened(tiny, path, seed=1))


def test_fewer_rows_are_measured_on_the_same_test_split(tiny, tmp_path):
    path = written(tmp_path / "rows.csv")
    full, few = opened(tiny, path), opened(tiny, path, rows=8)
    assert texts(few, "test") == texts(full, "test")
    assert len(few.samples("train")) + len(few.samples("validation")) == 8
    kept = texts(few, "train") + texts(few, "validation")
    assert not set(kept) & set(texts(few, "test"))


def test_files_are_splits_as_they_are(tiny, tmp_path):
    train = written(tmp_path / "train.csv")
    other = written(
        tmp_path / "other.csv", [{"text": f"end {i}", "label": "no"} for i in range(3)]
    )
    table = opened(tiny, train, test_path=str(other), validation_path=str(other))
    assert len(table.samples("train")) == len(ROWS)
    assert (
        texts(table, "test")
        == texts(table, "validation")
        == ["end 0", "end 1", "end 2"]
    )


def test_shares_by_largest_remainder_within_limits():
    # 10 of 60/30/10: exactly 6, 3, 1. 7 of them: 4.2, 2.1, .7 -> 4, 2, 1.
    sizes = np.array([60, 30, 10])
    assert shares(sizes, sizes, 10).tolist() == [6, 3, 1]
    assert shares(sizes, sizes, 7).tolist() == [4, 2, 1]
    # The last has room for none: its share goes to the others.
    assert shares(sizes, np.array([60, 30, 0]), 9).tolist() == [6, 3, 0]


def test_identical_texts_are_taken_together_and_every_class_keeps_two():
    groups = [f"text {i // 3}" for i in range(90)] + ["x", "y", "z"]
    strata = ["a"] * 90 + ["b"] * 3
    taken = take_out(strata, groups, 31, np.random.default_rng(0))
    by_group = {
        g: {bool(t) for t, h in zip(taken, groups, strict=True) if h == g}
        for g in groups
    }
    assert all(len(sides) == 1 for sides in by_group.values())
    assert taken[:90].sum() == 30
    assert taken[90:].sum() == 1


def test_the_same_text_never_lies_on_both_sides_of_a_random_split(tiny, tmp_path):
    rows = [
        {
            "text": ("The  Film ", "the film ")[i % 2] + str(i // 2),
            "label": "ab"[i // 2 % 2],
        }
        for i in range(40)
    ]
    table = opened(tiny, written(tmp_path / "rows.csv", rows))
    sides = [
        {" ".join(t.casefold().split()) for t in texts(table, split)}
        for split in ("train", "validation", "test")
    ]
    assert sum(map(len, sides)) == 20
    assert not table.findings.warnings
    assert "identical texts in one split" in table.describe()["test split"]


def test_tokens_and_padding_are_the_tokenizers_own(tiny):
    table = opened(tiny)
    tokenizer = AutoTokenizer.from_pretrained(tiny["tokenizer"])
    samples = list(table.samples("train"))[:5]
    batch = table.collate(samples)
    expected = tokenizer(
        [s["text"] for s in samples], padding=True, return_tensors="pt"
    )
    assert batch["input_ids"].equal(expected["input_ids"])
    assert batch["attention_mask"].equal(expected["attention_mask"])
    assert set(batch) == {"input_ids", "attention_mask", "labels"}
    labels = [table.task["labels"].index(table.show(s)["label"]) for s in samples]
    assert batch["labels"].equal(torch.tensor(labels))
    assert not expected["input_ids"][0].equal(expected["input_ids"][1])


def test_pairs_have_token_types(tiny, tmp_path):
    rows = [{**row, "other": "a good end"} for row in ROWS]
    table = opened(
        tiny, written(tmp_path / "pairs.csv", rows), pair="other", max_length=32
    )
    samples = list(table.samples("train"))[:4]
    batch = table.collate(samples)
    tokenizer = AutoTokenizer.from_pretrained(tiny["tokenizer"])
    expected = tokenizer(
        [s["text"] for s in samples],
        ["a good end"] * 4,
        padding=True,
        return_tensors="pt",
    )
    for key in ("input_ids", "token_type_ids", "attention_mask"):
        assert batch[key].equal(expected[key])
    assert batch["token_type_ids"].max() == 1
    (given,) = table.from_inputs([{"text": samples[0]["text"], "other": "a good end"}])
    assert given["input_ids"].tolist() == samples[0]["input_ids"].tolist()


def test_sizes_are_token_counts_and_group_batches(tiny):
    table = opened(tiny)
    sizes = table.sizes("train")
    assert sizes.dtype == np.int64
    batch = table.collate(table.samples("train"))
    assert batch["attention_mask"].sum(1).tolist() == sizes.tolist()
    order = epoch_batches(len(sizes), 8, seed=0, epoch=0, sizes=sizes)
    assert sorted(np.concatenate(order).tolist()) == list(range(len(sizes)))


def test_cut_texts_are_counted_and_warned_of(tiny, tmp_path):
    path = written(tmp_path / "rows.csv")
    table = opened(tiny, path, max_length=8)
    # [CLS] + five words + i more + [SEP]: beyond 8 tokens from i = 2 on, 8 of 10.
    assert table.describe()["cut"] == pytest.approx(0.8)
    (warning,) = table.findings.warnings
    assert "16 of 20 texts (80%) are cut" in warning.what
    assert table.sizes("train").max() == 8
    assert not opened(tiny, path, max_length=32).findings.warnings


def test_several_labels(tiny, tmp_path):
    rows = [
        {
            "text": f"film {i}",
            "label": ("red, blue", "blue", "", "green,red,red")[i % 4],
        }
        for i in range(24)
    ]
    table = opened(tiny, written(tmp_path / "m.csv", rows), kind="multi-label")
    assert table.task["labels"] == ["blue", "green", "red"]
    samples = [
        s for split in ("train", "validation", "test") for s in table.samples(split)
    ]
    by_text = {s["text"]: s["label"].tolist() for s in samples}
    assert [by_text[f"film {i}"] for i in range(4)] == [
        [1, 0, 1], [1, 0, 0], [0, 0, 0], [0, 1, 1]
    ]  # fmt: skip
    batch = table.collate(samples[:3])
    assert batch["labels"].dtype == torch.float32
    assert batch["labels"].shape == (3, 3)
    train = Counter(
        n for s in table.samples("train") for n in table.show(s)["label"].split(", ")
    )
    assert table.task["counts"] == [train["blue"], train["green"], train["red"]]
    assert [b.outputs["probabilities"].shape[1] for b in table.baselines()] == [3, 3]


def test_numbers(tiny, tmp_path):
    rows = [{"text": f"film {i}", "label": i / 2} for i in range(40)]
    table = opened(tiny, written(tmp_path / "r.csv", rows), kind="regression")
    values = [float(s["label"]) for s in table.samples("train")]
    assert table.task["mean"] == pytest.approx(np.mean(values))
    assert table.task["std"] == pytest.approx(np.std(values))
    # Stratified by tenths of the range: the 8 test rows come from 8 tenths.
    tenths = [int(float(s["label"]) // 2) for s in table.samples("test")]
    assert len(set(tenths)) == 8
    assert table.collate(table.samples("test"))["labels"].dtype == torch.float32
    mean, ridge = table.baselines()
    assert mean.outputs["prediction"].tolist() == pytest.approx(
        [table.task["mean"]] * 8
    )
    assert ridge.outputs["target"].tolist() == [
        float(s["label"]) for s in table.samples("test")
    ]


def test_classes_of_numbers_come_in_their_order(tiny, tmp_path):
    rows = [{"text": f"film {i}", "label": (10, 2, 1)[i % 3]} for i in range(30)]
    path = written(tmp_path / "r.csv", rows)
    assert opened(tiny, path).task["labels"] == ["1", "2", "10"]
    named = opened(tiny, path, labels=("10", "1", "2"))
    assert named.task["labels"] == ["10", "1", "2"]
    binned = opened(tiny, path, bins={"many": (5, 20), "one": (0.5, 1)})
    assert binned.task["labels"] == ["one", "many"]
    assert binned.describe()["outside bins"] == 10
    assert len(everything(binned)) == 20


def test_token_dropout_spares_special_tokens_and_padding(tiny):
    table = opened(tiny, token_dropout=0.5)
    batch = table.collate(table.samples("train"))
    changed = table.augment(batch, torch.Generator().manual_seed(3))["input_ids"]
    again = table.augment(batch, torch.Generator().manual_seed(3))["input_ids"]
    assert changed.equal(again)
    ids = batch["input_ids"]
    special = ids <= 4
    assert changed[special].equal(ids[special])
    moved = changed != ids
    assert (changed[moved] == 4).all()
    assert 0.3 < moved.sum() / (~special).sum() < 0.7
    everything = drop_tokens(
        ids, batch["attention_mask"], share=1.0, mask_id=4, special_ids=(2, 3),
        generator=torch.Generator(),
    )  # fmt: skip
    assert (everything[~special] == 4).all()
    assert (everything[batch["attention_mask"] == 0] == 0).all()


def test_word_swap_moves_whole_words_and_only_to_a_neighbour():
    #        CLS  a   b   b   c   d   SEP  e   f   SEP PAD
    ids = [[2, 10, 11, 12, 13, 14, 3, 15, 16, 3, 0]]
    words = [[-1, 0, 1, 1, 2, 3, -1, 0, 1, -1, -1]]
    # Swaps of places (1,2)(3,4) and (6,7)…: the first text's words are places 1 to 4,
    # the second's 6 and 7; pairs begin at odd places or at even ones.
    odd = [2, 11, 12, 10, 14, 13, 3, 15, 16, 3, 0]
    even = [2, 10, 13, 11, 12, 14, 3, 16, 15, 3, 0]
    found = set()
    for seed in range(8):
        generator = torch.Generator().manual_seed(seed)
        swapped = swap_words(
            torch.tensor(ids), torch.tensor(words), share=1.0, generator=generator
        )
        found.add(tuple(swapped[0].tolist()))
    assert found == {tuple(odd), tuple(even)}
    same = swap_words(
        torch.tensor(ids), torch.tensor(words), share=0.0, generator=torch.Generator()
    )
    assert same.tolist() == ids


def test_word_swap_of_a_table(tiny, tmp_path):
    rows = [{**row, "other": "a good end is very fine"} for row in ROWS]
    path = written(tmp_path / "pairs.csv", rows)
    table = opened(tiny, path, pair="other", word_swap=0.5, max_length=32)
    assert table.augments
    batch = table.collate(table.samples("train"))
    changed = table.augment(batch, torch.Generator().manual_seed(0))
    assert "word_ids" not in changed
    assert not changed["input_ids"].equal(batch["input_ids"])
    types = batch["token_type_ids"] + 2 * batch["attention_mask"]
    for row, (one, two) in enumerate(
        zip(batch["input_ids"], changed["input_ids"], strict=True)
    ):
        for kind in (2, 3):
            inside = types[row] == kind
            assert sorted(one[inside].tolist()) == sorted(two[inside].tolist())
    assert "word_ids" not in table.collate(table.samples("test"))


def test_augmentation_is_off_by_default(tiny):
    table = opened(tiny)
    assert not table.augments
    batch = table.collate(table.samples("train"))
    unchanged = table.augment(batch, torch.Generator())
    assert unchanged["input_ids"].equal(batch["input_ids"])


def test_inputs_become_samples_without_loading_the_data(tiny):
    table = TextTable(TableSettings(**{**tiny, "path": "gone.csv"}), 0)
    table.prepare({})
    samples = table.from_inputs(["a good film", {"id": 7, "text": "a bad film"}])
    assert [s["id"] for s in samples] == ["1", "7"]
    assert "labels" not in table.collate(samples)
    assert table.show(samples[1]) == {"id": "7", "text": "a bad film"}
    with pytest.raises(DataError) as caught:
        table.from_inputs(["fine", " ", 5])
    assert [f.where for f in caught.value.faults] == ["input 2", "input 3"]


def test_show_shortens(tiny, tmp_path):
    rows = [{"text": f"{i} " + "long " * 100, "label": "ab"[i % 2]} for i in range(12)]
    table = opened(tiny, written(tmp_path / "long.csv", rows))
    shown = table.show(table.samples("test")[0])
    assert len(shown["text"]) == 200
    assert shown["text"].endswith("…")
    assert shown["label"] in ("a", "b")


def test_the_fingerprint_follows_what_changes_a_batch(tiny, tmp_path):
    path = written(tmp_path / "rows.csv")
    first = opened(tiny, path).fingerprint()
    assert opened(tiny, path, workers=2).fingerprint() == first
    others = [
        opened(tiny, path, max_length=12),
        opened(tiny, path, token_dropout=0.1),
        opened(tiny, path, word_swap=0.1),
        opened(tiny, path, seed=1),
        opened(
            tiny, written(tmp_path / "b.csv", [*ROWS[:-1], {**ROWS[-1], "text": "end"}])
        ),
        opened(
            tiny,
            written(tmp_path / "c.csv", [*ROWS[:-1], {**ROWS[-1], "label": "yes"}]),
        ),
    ]
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        content = (Path(tiny["tokenizer"]) / name).read_text()
        (folder / name).write_text(content.replace('"quite"', '"rather"'))
    others.append(opened({**tiny, "tokenizer": str(folder)}, path))
    prints = [first, *(table.fingerprint() for table in others)]
    assert len(set(prints)) == len(prints)


def test_baselines_of_classes(tiny, tmp_path):
    rows = [{**row, "text": f"{row['text']} {i}"} for i, row in enumerate(ROWS * 3)]
    rows += [
        {"text": f"the film is very good again {i}", "label": "yes"} for i in range(20)
    ]
    table = opened(tiny, written(tmp_path / "rows.csv", rows), max_length=24)
    majority, linear = table.baselines()
    target = torch.tensor([int(s["label"]) for s in table.samples("test")])
    assert (majority.name, linear.name) == (
        "majority class",
        "tf-idf + logistic regression",
    )
    assert majority.outputs["prediction"].tolist() == [1] * len(target)
    counts = torch.tensor(table.task["counts"], dtype=torch.float32)
    frequencies = counts / counts.sum()
    assert majority.outputs["probabilities"][0].tolist() == pytest.approx(
        frequencies.tolist()
    )
    for baseline in (majority, linear):
        assert baseline.outputs["target"].equal(target)
        sums = baseline.outputs["probabilities"].sum(1)
        assert sums.tolist() == pytest.approx([1.0] * len(target))
    assert linear.outputs["prediction"].equal(target)


def test_collation_can_be_sent_to_workers(tiny):
    table = opened(tiny)
    collate = pickle.loads(pickle.dumps(table.collate))
    samples = table.samples("test")
    for key, value in table.collate(samples).items():
        assert collate(samples)[key].equal(value)


SNIPPETS = [
    ("1", "2.0", "a 'good' film"),
    ("2", "0.5", "left out: not beyond the bound"),
    ("3", "-0.5", "left out too"),
    ("4", "-0.518518518519", '"dull'),
    ("5", "0.518518518519", "fine é"),
    ("6", "-4", "awful"),
    ("7", "3", "great"),
    ("8", "-1", "weak"),
    ("9", "1", "warm"),
    ("10", "-2", "stale"),
]


@pytest.fixture
def snippets(tmp_path, monkeypatch):
    asset = assets.load_manifest("headstart_nlp")["movie-snippets"]
    lines = "\r\n".join("\t".join(row) for row in SNIPPETS)
    (tmp_path / asset.files[0].path).write_bytes(lines.encode())
    monkeypatch.setattr(assets, "fetch", lambda asset: tmp_path)
    return {"path": "asset:movie-snippets", "test_size": 2}


def test_an_asset_says_how_it_is_read(tiny, snippets):
    table = opened(tiny, **snippets)
    assert table.task["labels"] == ["negative", "positive"]
    assert sorted(everything(table), key=int) == [
        "1",
        "4",
        "5",
        "6",
        "7",
        "8",
        "9",
        "10",
    ]
    assert table.describe()["outside bins"] == 2
    every = [
        t for split in ("train", "validation", "test") for t in texts(table, split)
    ]
    assert {"fine é", '"dull', "a 'good' film"} <= set(every)


def test_a_resolved_recipe_reads_an_asset_alike(tiny, snippets):
    first = opened(tiny, **snippets)
    again = opened(first.settings.model_dump(mode="json"))
    assert again.settings.path == "asset:movie-snippets"
    assert again.fingerprint() == first.fingerprint()


def test_a_user_can_go_back_to_a_default(tiny, snippets):
    table = opened(tiny, **{**snippets, "test_size": 0.2})
    assert table.settings.test_size == 0.2


def test_paths_in_settings_do_not_depend_on_the_folder(tiny, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "rows.csv")
    assert opened(tiny, "rows.csv").settings.path == str(tmp_path / "rows.csv")


def test_the_users_settings_come_before_the_assets(tiny, snippets):
    bins = {"low": (-4.0, 0.0), "high": (0.1, 4.0)}
    assert opened(tiny, **snippets, bins=bins).task["labels"] == ["low", "high"]
