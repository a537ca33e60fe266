"""Data modules: batches from columns, histories, negatives, inputs."""

from __future__ import annotations

import json
import pickle
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from headstart.data import Columns
from headstart.errors import DataError
from headstart_recsys.data import InteractionData, SequenceData
from headstart_recsys.samples import Ragged, joined
from headstart_recsys.sampling import EventSampler
from headstart_recsys.sequences import Windows
from headstart_recsys.settings import InteractionSettings, SequenceSettings
from headstart_recsys.tiny import tiny_interactions, tiny_sequences

if TYPE_CHECKING:
    from pathlib import Path

SPLITS = ("train", "validation", "test")


def interactions(folder: Path, **values: Any) -> InteractionData:
    given = {**tiny_interactions(folder), **values}
    data = InteractionData(InteractionSettings(**given), 0)
    data.load()
    return data


def sequences(folder: Path, **values: Any) -> SequenceData:
    given = {**tiny_sequences(folder), **values}
    data = SequenceData(SequenceSettings(**given), 0)
    data.load()
    return data


def written(folder: Path, rows: list[tuple[str, str, int]], **values: Any) -> Any:
    """A data module of such a table."""
    lines = ["user,item,time", *(f"{u},{i},{t}" for u, i, t in rows)]
    (folder / "events.csv").write_text("\n".join(lines))
    kind, module = InteractionSettings, InteractionData
    if "length" in values:
        kind, module = SequenceSettings, SequenceData
    given = {"name": "recsys", "path": str(folder / "events.csv"), "time": "time"}
    data = module(kind(**{**given, **values}), 0)
    data.load()
    return data


def ids(data: InteractionData, codes: Any) -> list[str]:
    return [data.item_ids[code] for code in codes if code >= 0]


def log_of(folder: Path) -> list[tuple[str, str, int]]:
    """The tiny table, read by other means."""
    lines = (folder / "ratings.csv").read_text().split()[1:]
    rows = [line.split(",") for line in lines]
    return [(user, item, int(time)) for user, item, _, time in rows]


@pytest.mark.parametrize("make", [interactions, sequences])
def test_columns_equal_collated_samples(make: Any, tmp_path: Path) -> None:
    data = make(tmp_path, earlier=0.3)
    for split in SPLITS:
        samples = data.samples(split)
        assert isinstance(samples, Columns)
        copy = pickle.loads(pickle.dumps(samples))
        for indices in (np.arange(len(samples)), np.array([7, 2, 2])):
            taken = copy.take(indices)
            expected = data.collate([samples[int(i)] for i in indices])
            assert taken.keys() == expected.keys()
            for key, value in taken.items():
                assert value.dtype == expected[key].dtype, key
                assert torch.equal(value, expected[key]), key


@pytest.mark.parametrize("make", [interactions, sequences])
def test_ids_are_unique_over_splits(make: Any, tmp_path: Path) -> None:
    data = make(tmp_path)
    found = [sample["id"] for split in SPLITS for sample in data.samples(split)]
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_users_have_what_was_before_and_find_what_was_after(
    split: str, tmp_path: Path
) -> None:
    data = interactions(tmp_path, earlier=0.4)
    log = log_of(tmp_path)
    times = sorted(time for *_, time in log)
    cuts = {"validation": times[-184], "test": times[-105], "end": times[-1] + 1}
    start, stop = cuts[split], cuts["test" if split == "validation" else "end"]
    users = data.samples(split)
    expected = {user for user, _, time in log if start <= time < stop}
    assert {sample["name"] for sample in users} == expected
    for sample in users:
        mine = sorted((t, i) for user, i, t in log if user == sample["name"])
        assert ids(data, sample["history"]) == [i for t, i in mine if t < start]
        assert ids(data, sample["held_out"]) == [
            i for t, i in mine if start <= t < stop
        ]
        trained = any(t < cuts["validation"] for t, _ in mine)
        assert sample["cold_user"] is not trained
        name = data.task["users"][sample["user"]] if trained else None
        assert name == (sample["name"] if trained else None)


def test_tiny_data_has_something_for_every_metric(tmp_path: Path) -> None:
    data = interactions(tmp_path)
    for split in ("validation", "test"):
        users = data.samples(split)
        cold = np.isin(users.held_out.flat, data.task["cold"])
        assert {bool(s["cold_user"]) for s in users} == {True, False}
        assert cold.any()
        assert not cold.all()
    assert len(data.task["cold"]) == 6
    assert {"i30", "i31"} <= set(ids(data, data.task["cold"]))
    assert data.task["categories"]["names"] == [
        "blue",
        "green",
        "large",
        "red",
        "small",
    ]
    json.dumps([data.task, data.describe()])


def test_counts_are_of_what_the_trainer_sees(tmp_path: Path) -> None:
    data = interactions(tmp_path, earlier=0.5)
    samples = data.samples("train")
    expected = np.bincount([s["item"] for s in samples], minlength=32)
    assert data.task["counts"] == expected.tolist()
    earlier = data.interactions("earlier")
    known = set(earlier.items.tolist()) | {s["item"] for s in samples}
    assert data.task["cold"] == [i for i in range(32) if i not in known]
    assert {data.user_ids[u] for u in earlier.users} <= set(data.task["users"])


def test_matrices_hold_all_that_was_before(tmp_path: Path) -> None:
    data = interactions(tmp_path, earlier=0.3)
    for split in ("validation", "test"):
        matrix = data.train_matrix(split).toarray()
        assert matrix.shape == (40, 32)
        users = data.samples(split)
        for sample in users:
            row = matrix[data.user_ids.index(sample["name"])]
            assert set(np.flatnonzero(row)) == set(sample["history"])
    before = data.fingerprint()
    matrix = data.train_matrix("test")
    matrix.data[:] = 5
    matrix.indices[:] = 0
    assert data.fingerprint() == before


def test_held_out_histories_are_given_and_never_trained_on(tmp_path: Path) -> None:
    data = interactions(tmp_path, split="user-holdout", time="")
    trained = {data.user_ids[s["user"]] for s in data.samples("train")}
    for split in ("validation", "test"):
        for sample in data.samples(split):
            assert sample["name"] not in trained
            assert sample["cold_user"]
            assert len(sample["history"])
    known = data.train_matrix("validation").getnnz(axis=1)
    names = {name for name, n in zip(data.user_ids, known, strict=True) if n}
    assert names == trained == set(data.task["users"])


def test_weights_count_and_ratings_do_not(tmp_path: Path) -> None:
    weighted = interactions(tmp_path / "", values="weights").samples("train")
    values = {s["weight"] for s in weighted}
    assert values == {1.0, 2.0, 3.0, 4.0, 5.0}
    batch = weighted.take(np.arange(5))
    assert batch["weight"].dtype == torch.float32
    plain = InteractionData(InteractionSettings(**_settings(tmp_path)), 0)
    plain.load()
    assert {s["weight"] for s in plain.samples("train")} == {1.0}
    assert set(plain.train_matrix("test").data) == {1.0}


def _settings(folder: Path) -> dict[str, Any]:
    return {
        "name": "recsys/interactions",
        "path": str(folder / "ratings.csv"),
        "value": "rating",
        "time": "time",
    }


def test_cold_items_alone_are_to_be_found(tmp_path: Path) -> None:
    data = interactions(tmp_path, cold_items=0.3, candidates="cold")
    cold = set(data.task["cold"])
    seen = [set(), set()]
    for split, found in zip(("validation", "test"), seen, strict=True):
        for sample in data.samples(split):
            assert len(sample["held_out"])
            found |= set(sample["held_out"].tolist())
    assert seen[0] | seen[1] <= cold
    assert not {s["item"] for s in data.samples("train")} & cold
    assert data.describe()["their events left out"] > 0


def test_cold_candidates_need_cold_items(tmp_path: Path) -> None:
    rows = [(f"u{t % 2}", f"i{t % 4}", 1_000_000_000 + t) for t in range(4)]
    rows += [(f"u{t}", f"i{t % 2}", 1_000_001_000 + t) for t in range(2, 10)]
    with pytest.raises(DataError, match="every item has a training event"):
        written(tmp_path, rows, candidates="cold", test_size=0.2, validation_size=0.2)


def test_filters_keep_titles_with_their_items(tmp_path: Path) -> None:
    data = interactions(tmp_path, positive_from=4, min_item_events=13)
    removed = [name for name in data.describe() if name.startswith("left out: ")]
    assert len(removed) == 2
    assert 2 < len(data.item_ids) < 32
    for name, title in zip(data.item_ids, data.task["titles"], strict=True):
        assert title.endswith(f" thing {name[1:]}")


def test_fingerprint_depends_on_data_and_not_on_paths(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    one, same = interactions(tmp_path / "a"), interactions(tmp_path / "b")
    assert one.fingerprint() == same.fingerprint()
    assert interactions(tmp_path / "a", negatives=3).fingerprint() != one.fingerprint()
    file = tmp_path / "b" / "ratings.csv"
    file.write_text(file.read_text().replace(",i3,", ",i33,", 1))
    changed = InteractionData(same.settings, 0)
    changed.load()
    assert changed.fingerprint() != one.fingerprint()


# Sequences


def test_every_event_is_predicted_once_from_those_before(tmp_path: Path) -> None:
    data = sequences(tmp_path, length=4)
    predicted: dict[int, list[int]] = {}
    batch = data.samples("train").take(np.arange(len(data.samples("train"))))
    train = data.interactions("train")
    orders = {u: train.items[train.users == u].tolist() for u in np.unique(train.users)}
    for user, sequence, positives in zip(
        batch["user"].tolist(),
        batch["sequence"].tolist(),
        batch["positives"].tolist(),
        strict=True,
    ):
        order = orders[user]
        for place, item in enumerate(positives):
            if item < 0:
                continue
            predicted.setdefault(user, []).append(item)
            at = order.index(item)
            before = order[max(0, at - place - 1) : at]
            kept = [i for i in sequence[: place + 1] if i >= 0]
            assert kept == before
    assert {u: sorted(v) for u, v in predicted.items()} == {
        u: sorted(o[1:]) for u, o in orders.items() if len(o) > 1
    }


def test_earlier_events_are_context_and_never_predicted() -> None:
    before = Ragged(np.array([1, 2, 3]), np.array([0]), np.array([3]))
    train = Ragged(np.array([4, 5, 6]), np.array([0]), np.array([3]))
    windows = Windows(before, train, 2, ["u"])
    batch = windows.take(np.arange(2))
    assert batch["sequence"].tolist() == [[4, 5], [2, 3]]
    assert batch["positives"].tolist() == [[5, 6], [-1, 4]]


def test_sequences_end_with_the_most_recent_item(tmp_path: Path) -> None:
    data = sequences(tmp_path, earlier=0.3)
    assert data.task["sequence_length"] == 8
    users = data.samples("test")
    batch = users.take(np.arange(len(users)))
    for row, sample in zip(batch["sequence"].tolist(), users, strict=True):
        recent = sample["history"][-8:].tolist()
        assert row == [-1] * (8 - len(recent)) + recent


def test_joined_rows_by_hand() -> None:
    one = Ragged(np.arange(10), np.array([0, 3, 3]), np.array([3, 3, 8]))
    two = Ragged(np.arange(20, 30), np.array([5, 0, 1]), np.array([7, 0, 2]))
    assert joined([one, two]).tolist() == [
        [0, 1, 2, 25, 26, -1],
        [-1] * 6,
        [3, 4, 5, 6, 7, 21],
    ]
    last = joined([one, two], 3, left=True)
    assert last.tolist() == [[2, 25, 26], [-1] * 3, [6, 7, 21]]
    assert joined([one, two], 7, left=True)[0].tolist() == [-1, -1, 0, 1, 2, 25, 26]
    assert joined([one], 2)[2].tolist() == [6, 7]
    even = one.only(np.arange(10) % 2 == 0)
    assert [even.row(i).tolist() for i in range(3)] == [[0, 2], [], [4, 6]]


# Negatives


def test_negatives_are_what_the_user_does_not_have(tmp_path: Path) -> None:
    data = interactions(tmp_path, earlier=0.3, negatives=50)
    samples = data.samples("train")
    batch = samples.take(np.arange(len(samples)))
    negatives = data.augment(batch, torch.Generator().manual_seed(0))["negatives"]
    assert negatives.shape == (len(samples), 50)
    matrix = data.train_matrix("validation").toarray()
    own = matrix[batch["user"][:, None], negatives] > 0
    # Half of the pairs are events; four redraws leave 0.5 ** 5 of them at most.
    assert own.mean() < 0.04
    assert not set(negatives.unique().tolist()) & set(data.task["cold"])
    assert len(negatives.unique()) == 26


def test_training_histories_are_the_users_without_what_is_to_be_found(
    tmp_path: Path,
) -> None:
    data = interactions(tmp_path, earlier=0.3, history=40, negatives=0)
    batch = data.samples("train").take(np.arange(len(data.samples("train"))))
    found = data.augment(batch, torch.Generator().manual_seed(0))["history"]
    assert found.shape == (len(batch["item"]), 40)
    matrix = data.train_matrix("validation").toarray() > 0
    for user, item, row in zip(
        batch["user"].tolist(), batch["item"].tolist(), found.tolist(), strict=True
    ):
        own = set(np.flatnonzero(matrix[user]).tolist()) - {item}
        assert set(row) - {-1} <= own
        if len(own) > 1:
            # Of so many draws at least two are different.
            assert len(set(row) - {-1}) > 1


def test_negatives_of_sequences_are_their_users(tmp_path: Path) -> None:
    data = sequences(tmp_path, negatives=3)
    batch = data.samples("train").take(np.arange(20))
    negatives = data.augment(batch, torch.Generator().manual_seed(0))["negatives"]
    assert negatives.shape == (20, 8, 3)
    matrix = data.train_matrix("validation").toarray()
    assert (matrix[batch["user"][:, None, None], negatives] > 0).mean() < 0.05


@pytest.mark.parametrize("filtered", [True, False])
def test_what_is_known_is_found_exactly(filtered: bool) -> None:
    generator = np.random.default_rng(0)
    pairs = generator.permutation(5000 * 300)[:40_000]
    sampler = EventSampler(
        (pairs // 300).astype(np.int32), (pairs % 300).astype(np.int32), 300
    )
    keys = torch.from_numpy(generator.integers(0, 5000 * 300, 20_000))
    keys[:5000] = torch.from_numpy(pairs[:5000])
    expected = np.isin(keys.numpy(), pairs)
    if filtered:
        found = np.zeros(len(keys), dtype=bool)
        found[sampler._found(keys)] = True
    else:
        found = sampler._known(keys).numpy()
    assert (found == expected).all()


def test_filter_keeps_most_lookups_away() -> None:
    pairs = np.random.default_rng(0).permutation(10_000 * 1000)[:100_000]
    sampler = EventSampler(
        (pairs // 1000).astype(np.int32), (pairs % 1000).astype(np.int32), 1000
    )
    asked = 0
    known = sampler._known

    def counting(keys: torch.Tensor) -> torch.Tensor:
        nonlocal asked
        asked += len(keys)
        return known(keys)

    sampler._known = counting  # type: ignore[method-assign]
    keys = torch.arange(10_000 * 1000)[::100]
    found = sampler._found(keys)
    assert len(found) <= asked < 0.1 * len(keys)


def test_negatives_by_popularity_follow_the_counts() -> None:
    empty = np.zeros(0, dtype=np.int32)
    sampler = EventSampler(empty, empty, 4, np.array([1, 0, 6, 3]))
    drawn = sampler.draw(
        torch.zeros(20_000, dtype=torch.int64),
        (20_000, 1),
        torch.Generator().manual_seed(0),
    )
    shares = torch.bincount(drawn.flatten(), minlength=4) / 20_000
    assert shares.tolist() == pytest.approx([0.1, 0.0, 0.6, 0.3], abs=0.015)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_negatives_on_a_gpu_are_what_the_user_does_not_have(tmp_path: Path) -> None:
    data = interactions(tmp_path, negatives=50)
    samples = data.samples("train")
    batch = samples.take(np.arange(len(samples)))
    moved = {key: value.cuda() for key, value in batch.items()}
    generator = torch.Generator("cuda").manual_seed(0)
    negatives = data.augment(moved, generator)["negatives"]
    assert negatives.is_cuda
    matrix = data.train_matrix("validation").toarray()
    assert (matrix[batch["user"][:, None], negatives.cpu()] > 0).mean() < 0.04


# Inputs of predict


def _for_predictions(data: InteractionData) -> InteractionData:
    """As in a run that is opened again: the task is known, nothing is loaded."""
    again = type(data)(data.settings, 0)
    again.task = json.loads(json.dumps(data.task))
    return again


def test_users_are_known_by_all_they_have(tmp_path: Path) -> None:
    data = sequences(tmp_path)
    again = _for_predictions(data)
    log = log_of(tmp_path)
    users = again.from_inputs(["u3", {"user": "u39"}, "nobody"])
    assert [again.input_name(s) for s in users] == ["u3", "u39", "nobody"]
    for sample in users:
        mine = sorted((t, i) for u, i, t in log if u == sample["name"])
        assert ids(data, sample["history"]) == [i for _, i in mine]
    assert [s["cold_user"] for s in users] == [False, True, True]
    assert data.task["users"][users[0]["user"]] == "u3"
    batch = users.take(np.arange(3))
    assert "held_out" not in batch
    assert batch["sequence"].shape == (3, 8)
    assert batch["sequence"][2].tolist() == [-1] * 8


def test_histories_are_in_the_codes_of_the_run(tmp_path: Path) -> None:
    data = interactions(tmp_path)
    again = _for_predictions(data)
    file = tmp_path / "ratings.csv"
    head, *rows = file.read_text().split()
    # Other codes, and an item that the run does not know.
    file.write_text("\n".join([head, "u3,new,5,1600000000", *rows[::-1]]))
    (sample,) = again.from_inputs(["u3"])
    mine = sorted((t, i) for u, i, t in log_of(tmp_path) if u == "u3" and i != "new")
    assert ids(data, sample["history"]) == [i for _, i in mine]


def test_a_list_of_items_is_somebody_new(tmp_path: Path) -> None:
    data = interactions(tmp_path)
    again = _for_predictions(data)
    (tmp_path / "ratings.csv").unlink()
    (sample,) = again.from_inputs([{"like": ["i4", "i2", "i4"]}])
    assert ids(data, sample["history"]) == ["i4", "i2"]
    assert sample["user"] == -1
    with pytest.raises(DataError) as error:
        again.from_inputs([{"like": ["i4", "i77"]}, {"like": []}, 3.5])
    assert len(error.value.faults) == 3
    assert "unknown item 'i77'" in str(error.value)
    with pytest.raises(DataError, match="what users have cannot be read"):
        again.from_inputs(["u3"])


def test_without_masking_users_need_no_history(tmp_path: Path) -> None:
    data = interactions(tmp_path, mask_seen=False)
    again = _for_predictions(data)
    (tmp_path / "ratings.csv").unlink()
    (sample,) = again.from_inputs(["u3"])
    assert data.task["users"][sample["user"]] == "u3"
    assert not len(sample["history"])


def test_all_users_and_files_of_users(tmp_path: Path) -> None:
    again = _for_predictions(interactions(tmp_path))
    everyone = again.from_inputs([{"all": True}])
    assert [s["name"] for s in everyone] == again.task["users"]
    (tmp_path / "some.txt").write_text("u3\n\nu5\n")
    (tmp_path / "some.csv").write_text("age,user\n30,u7\n")
    found = again.from_inputs([str(tmp_path / "some.txt"), str(tmp_path / "some.csv")])
    assert [s["name"] for s in found] == ["u3", "u5", "u7"]


def test_recommendations_as_parquet(tmp_path: Path) -> None:
    again = _for_predictions(interactions(tmp_path))
    samples = again.from_inputs(["u3", "nobody"])
    items = [
        {"id": "i1", "title": "One", "score": 2.0},
        {"id": "i2", "title": "", "score": 1.5},
    ]
    found = [{"user": "u3", "items": items}, {"user": None, "items": [], "reason": "?"}]
    (path,) = again.write_predictions(tmp_path, samples, iter(found))
    assert pq.read_table(path).to_pylist() == [
        {"user": "u3", "rank": 1, "item": "i1", "title": "One", "score": 2.0}
        | {"reason": None},
        {"user": "u3", "rank": 2, "item": "i2", "title": "", "score": 1.5}
        | {"reason": None},
    ]
