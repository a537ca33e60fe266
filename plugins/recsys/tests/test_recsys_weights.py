"""The sources of embeddings: files, implicit's models, text vectors."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from implicit.cpu.als import AlternatingLeastSquares
from implicit.cpu.bpr import BayesianPersonalizedRanking
from implicit.cpu.lmf import LogisticMatrixFactorization
from safetensors.numpy import save_file
from scipy import sparse
from torch import nn

from headstart.data import Findings
from headstart.errors import DataError, UserError
from headstart.stages import Backbone
from headstart.weights.sources import SourceContext
from headstart.weights.transfer import load_weights
from headstart_recsys import weights
from headstart_recsys.columns import Interactions
from headstart_recsys.factors import continue_als, train_als
from headstart_recsys.settings import InteractionSettings
from headstart_recsys.weights import (
    resolve_embeddings,
    resolve_implicit,
    resolve_text,
)

ITEMS = ["i0", "i1", "i2", "i3", "i4"]
USERS = ["u0", "u1", "u2"]
VECTORS = np.arange(1, 11, dtype=np.float32).reshape(5, 2)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))


class Data:
    """As much of a data module as sources see: i4 has no event, u2 none early on."""

    def __init__(self, earlier: bool = True, **settings: Any) -> None:
        self.settings = InteractionSettings(name="recsys/interactions", **settings)
        self.findings = Findings()
        self.item_ids, self.user_ids = ITEMS, USERS
        self.text_vectors: np.ndarray | None = None
        self._earlier = earlier

    def interactions(self, part: str) -> Interactions:
        users, items, values = {
            "earlier": ([0, 0, 1, 1], [0, 1, 1, 2], [1, 5, 1, 1]),
            "train": ([0, 1, 2], [3, 3, 2], [1, 1, 1]),
        }[part]
        count = len(users) if part == "train" or self._earlier else 0
        return Interactions(
            np.array(users[:count], dtype=np.int32),
            np.array(items[:count], dtype=np.int32),
            np.array(values[:count], dtype=np.float32),
        )


def context(data: Any = None) -> SourceContext:
    return SourceContext(None, None, data)  # type: ignore[arg-type]


def read(path: Path, data: Any = None) -> Any:
    return resolve_embeddings(str(path), context(data))


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        (AlternatingLeastSquares, {}),
        (BayesianPersonalizedRanking, {"num_threads": 1}),
        (LogisticMatrixFactorization, {"num_threads": 1}),
    ],
)
def test_models_that_implicit_saved(tmp_path: Path, kind: Any, more: Any) -> None:
    likes = sparse.csr_matrix(
        np.array([[1, 1, 0, 1, 1], [0, 1, 1, 0, 1], [1, 0, 1, 1, 0]], dtype=np.float32)
    )
    model = kind(factors=2, iterations=2, random_state=0, **more)
    model.fit(likes, show_progress=False)
    path = tmp_path / "model.npz"
    model.save(str(path))
    (tmp_path / "model.items.txt").write_text("\n".join(ITEMS) + "\n")
    (tmp_path / "model.users.txt").write_text("\r\n".join(USERS))
    found = read(path)
    assert found.rows == {"item_factors": tuple(ITEMS), "user_factors": tuple(USERS)}
    tensors = found.tensors()
    np.testing.assert_array_equal(tensors["item_factors"], model.item_factors[:, :2])
    np.testing.assert_array_equal(tensors["user_factors"], model.user_factors[:, :2])
    assert all(f.suffix == ".safetensors" for f in found.files)
    assert read(path).sha256 == found.sha256
    assert found.folder is not None
    config = json.loads((found.folder / "config.json").read_text())
    assert config == {"factors": 2}


def test_ids_from_inside(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    np.savez(
        tmp_path / "a.npz", item_factors=VECTORS, item_ids=np.array([7, 5, 3, 2, 1])
    )
    save_file(
        {"item_factors": VECTORS.astype(np.float16)},
        tmp_path / "a.safetensors",
        metadata={"item_ids": json.dumps(["7", "5", 3, 2, "1"])},
    )
    table = {"item": [7.0, 5.0, 3.0, 2.0, 1.0], "vector": VECTORS.tolist()}
    parquet.write_table(pa.table(table), tmp_path / "a.parquet")
    for name in ("a.npz", "a.safetensors", "a.parquet"):
        found = read(tmp_path / name)
        assert found.rows == {"item_factors": ("7", "5", "3", "2", "1")}, name
        np.testing.assert_array_equal(found.tensors()["item_factors"], VECTORS)


def test_a_users_parquet(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    table = {"user_id": USERS, "vector": VECTORS[:3].tolist()}
    parquet.write_table(pa.table(table), tmp_path / "u.parquet")
    assert read(tmp_path / "u.parquet").rows == {"user_factors": tuple(USERS)}


def test_all_faults_of_a_file_at_once(tmp_path: Path) -> None:
    bad = VECTORS.copy()
    bad[1, 0] = np.nan
    bad[3] = 0
    np.savez(
        tmp_path / "bad.npz",
        item_factors=bad,
        item_ids=np.array(["a", "b", "a", "d"]),
        user_factors=np.ones((2, 3), dtype=np.float32),
        user_ids=np.array(["u", ""]),
    )
    with pytest.raises(DataError) as caught:
        read(tmp_path / "bad.npz")
    told = {(fault.where, fault.what) for fault in caught.value.faults}
    assert told == {
        (
            "bad.npz: user_factors",
            "has vectors of width 3, bad.npz: item_factors of 2",
        ),
        ("bad.npz: item_ids", "there are 4 ids of 5 rows"),
        ("bad.npz: item_ids[2]", "the id 'a' is there twice, first at [0]"),
        (
            "bad.npz: item_factors[1]",
            "holds NaN or infinite numbers (id 'b')",
        ),
        ("bad.npz: item_factors[3]", "holds zeros alone (id 'd')"),
        ("bad.npz: user_ids[1]", "has no id"),
    }


def test_lists_of_another_length(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    lists = [[1.0, 2.0], [1.0], None, [3.0, None], [5.0, 6.0]]
    table = pa.table({"item_id": ITEMS, "vector": lists})
    parquet.write_table(table, tmp_path / "v.parquet")
    with pytest.raises(DataError) as caught:
        read(tmp_path / "v.parquet")
    assert {(fault.where, fault.what) for fault in caught.value.faults} == {
        ("v.parquet: vector[1]", "has 1 numbers, most have 2"),
        ("v.parquet: vector[2]", "has no vector"),
        ("v.parquet: vector[3]", "holds NaN or infinite numbers (id 'i3')"),
    }


def test_bad_rows_can_be_left_out(tmp_path: Path) -> None:
    bad = VECTORS.copy()
    bad[3] = 0
    np.savez(tmp_path / "bad.npz", item_factors=bad, item_ids=np.array(ITEMS))
    data = Data(bad="skip", bad_cap=0.5)
    found = read(tmp_path / "bad.npz", data)
    assert found.rows == {"item_factors": ("i0", "i1", "i2", "i4")}
    np.testing.assert_array_equal(
        found.tensors()["item_factors"], VECTORS[[0, 1, 2, 4]]
    )
    (left,) = data.findings.left_out
    assert left.where == "bad.npz: item_factors[3]"
    with pytest.raises(DataError, match=r"at most 5\.0%"):
        read(tmp_path / "bad.npz", Data(bad="skip"))


def test_no_ids_at_all(tmp_path: Path) -> None:
    np.savez(tmp_path / "m.npz", item_factors=VECTORS, user_factors=VECTORS[:3])
    with pytest.raises(DataError) as caught:
        read(tmp_path / "m.npz")
    assert [fault.where for fault in caught.value.faults] == [
        "m.npz: item_factors",
        "m.npz: user_factors",
    ]
    assert "m.items.txt" in caught.value.faults[0].fix
    # Without the users' ids the items' vectors serve all the same.
    (tmp_path / "m.items.txt").write_text("\n".join(ITEMS))
    data = Data()
    assert set(read(tmp_path / "m.npz", data).rows) == {"item_factors"}
    assert "not used" in data.findings.warnings[0].what


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    flag = tmp_path / "ran"

    class Harmful:
        def __reduce__(self) -> Any:
            return Path.touch, (flag,)

    objects = np.array([Harmful()], dtype=object)
    np.savez(tmp_path / "p.npz", item_factors=VECTORS, item_ids=objects)
    with pytest.raises(DataError, match="cannot be read"):
        read(tmp_path / "p.npz")
    (tmp_path / "p.npy").write_bytes(pickle.dumps(Harmful()))
    with pytest.raises(DataError, match="cannot be read"):
        read(tmp_path / "p.npy")
    assert not flag.exists()


@pytest.mark.parametrize(
    ("name", "write", "match"),
    [
        ("gone.npz", None, "did you mean 'gone.npy'"),
        ("v.csv", b"", r"ends in \.npz, \.npy"),
        ("v.safetensors", b"12345678{}", "cannot be read"),
        ("v.npz", b"PK", "cannot be read"),
        ("v.parquet", b"PAR1", "cannot be read"),
    ],
)
def test_files_that_are_none(
    tmp_path: Path, name: str, write: bytes | None, match: str
) -> None:
    (tmp_path / "gone.npy").touch()
    if write is not None:
        (tmp_path / name).write_bytes(write)
    with pytest.raises(DataError, match=match):
        read(tmp_path / name)


def test_users_of_elsewhere_are_left_out(tmp_path: Path) -> None:
    file = tmp_path / "v.npz"
    arrays = {"item_factors": VECTORS, "item_ids": np.array(ITEMS)}
    np.savez(file, **arrays, user_factors=VECTORS[:2], user_ids=np.array(["x", "u1"]))
    assert set(read(file, Data()).rows) == {"item_factors", "user_factors"}
    np.savez(file, **arrays, user_factors=VECTORS[:2], user_ids=np.array(["x", "y"]))
    data = Data()
    assert set(read(file, data).rows) == {"item_factors"}
    assert "none of its users" in data.findings.warnings[0].what


def test_item_ids_are_translated(tmp_path: Path) -> None:
    # "i0" of theirs is not in the map: it must not become our "i0".
    theirs = np.array(["i0", "t1", "t2", "t3", "t4"])
    np.savez(tmp_path / "v.npz", item_factors=VECTORS, item_ids=theirs)
    table = tmp_path / "map.csv"
    table.write_text("theirs,ours\nt1,i4\nt3,i2\nt4,gone\n")
    data = Data(map_ids=str(table))
    found = read(tmp_path / "v.npz", data).rows["item_factors"]
    assert [identity for identity in found if identity in ITEMS] == ["i4", "i2"]
    assert (found[1], found[3]) == ("i4", "i2")
    (warning,) = data.findings.warnings
    assert "1 items of the map are none that the data knows: 'gone'" in warning.what


def test_a_map_that_does_not_match(tmp_path: Path) -> None:
    np.savez(tmp_path / "v.npz", item_factors=VECTORS, item_ids=np.array(ITEMS))
    table = tmp_path / "map.csv"
    for text, parts in {
        "theirs,ours\na,b\n": ("one that the embeddings know", "that the data knows"),
        "theirs,ours\ni0,i1\ni0,i1\n,i2\n": (
            "theirs 'i0' is there twice, first in line 2",
            "ours 'i1' is there twice",
            "'theirs' is empty",
        ),
        "old,ours\n": ("has no column 'theirs'",),
    }.items():
        table.write_text(text)
        with pytest.raises(DataError) as caught:
            read(tmp_path / "v.npz", Data(map_ids=str(table)))
        assert all(part in str(caught.value) for part in parts)


def test_implicit_learns_from_the_earlier_part(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = Data()
    found = resolve_implicit("als?factors=2&iterations=3&seed=5", context(data))
    likes = np.zeros((3, 5), dtype=np.float32)
    likes[[0, 0, 1, 1], [0, 1, 1, 2]] = 1
    expected = train_als(sparse.csr_matrix(likes), factors=2, iterations=3, seed=5)
    # No row for what has no event: i3, i4 and u2.
    assert found.rows == {
        "item_factors": ("i0", "i1", "i2"),
        "user_factors": ("u0", "u1"),
    }
    tensors = found.tensors()
    np.testing.assert_array_equal(tensors["item_factors"], expected.items[:3])
    np.testing.assert_array_equal(tensors["user_factors"], expected.users[:2])
    monkeypatch.setattr(weights, "_learned", lambda *a: pytest.fail("learned twice"))
    again = resolve_implicit("als?factors=2&iterations=3&seed=5", context(data))
    assert again.files == found.files


def test_implicit_takes_what_there_is() -> None:
    later = resolve_implicit("als?factors=2", context(Data(earlier=False)))
    assert later.rows["item_factors"] == ("i2", "i3")
    plain = resolve_implicit("als?factors=2", context(Data()))
    weighted = resolve_implicit("als?factors=2", context(Data(values="weights")))
    assert plain.sha256 != weighted.sha256


@pytest.mark.parametrize("name", ["bpr", "lmf"])
def test_other_models_of_implicit(name: str) -> None:
    found = resolve_implicit(f"{name}?factors=3&iterations=2", context(Data()))
    assert tuple(found.tensors()["item_factors"].shape) == (3, 3)
    assert tuple(found.tensors()["user_factors"].shape) == (2, 3)


def test_implicit_goes_on_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "v.npz"
    ids = np.array(["i4", "i1", "gone", "i0"])
    np.savez(file, item_factors=VECTORS[:4] / 10, item_ids=ids)
    data = Data()
    found = resolve_implicit(f"als?iterations=1&start={file}", context(data))
    likes = np.zeros((3, 5), dtype=np.float32)
    likes[[0, 0, 1, 1], [0, 1, 1, 2]] = 1
    first = np.zeros((5, 2), dtype=np.float32)
    first[[4, 1, 0]] = VECTORS[[0, 1, 3]] / 10
    expected = continue_als(sparse.csr_matrix(likes), first, iterations=1)
    # i4 has no event but is known, i2 the other way round, i3 neither.
    assert found.rows["item_factors"] == ("i0", "i1", "i2", "i4")
    items = found.tensors()["item_factors"]
    np.testing.assert_array_equal(items[:3], expected.items[:3])
    np.testing.assert_array_equal(items[3], first[4])
    with pytest.raises(UserError, match="have the width 2, not 8"):
        resolve_implicit(f"als?factors=8&start={file}", context(data))


@pytest.mark.parametrize(
    ("reference", "match"),
    [
        ("alsx", "did you mean 'als'"),
        ("als?factor=3", "did you mean 'factors'"),
        ("als?factors=x", "factors: .* not 'x'"),
        ("als?iterations=0", "iterations: .* not '0'"),
        ("als?start=nowhere.npz", "no such file"),
    ],
)
def test_references_that_are_wrong(reference: str, match: str) -> None:
    with pytest.raises((UserError, DataError), match=match):
        resolve_implicit(reference, context(Data()))


def test_implicit_needs_interactions() -> None:
    with pytest.raises(UserError, match="there are none"):
        resolve_implicit("als", context(SimpleNamespace()))


def test_text_vectors_come_along(tmp_path: Path) -> None:
    text = np.ones((5, 3), dtype=np.float32)
    np.savez(tmp_path / "v.npz", item_factors=VECTORS[:2], item_ids=["i1", "x"])
    for more, length in (({}, 3**0.5), ({"match_norms": True}, None)):
        data = Data(**more)
        data.text_vectors = text
        found = read(tmp_path / "v.npz", data)
        assert found.rows == {
            "item_factors": ("i1", "x"),
            "item_text": tuple(ITEMS),
        }
        lengths = found.tensors()["item_text"].norm(dim=1)
        wanted = length or np.linalg.norm(VECTORS[:2], axis=1).mean()
        np.testing.assert_allclose(lengths, wanted, rtol=1e-6)
    learned = resolve_implicit("als?factors=2", context(data))
    assert learned.rows["item_text"] == tuple(ITEMS)


def test_text_alone() -> None:
    data = Data()
    with pytest.raises(UserError, match=r"set data\.text"):
        resolve_text("", context(data))
    data.text_vectors = VECTORS
    found = resolve_text("", context(data))
    assert found.rows == {"item_text": tuple(ITEMS)}
    np.testing.assert_array_equal(found.tensors()["item_text"], VECTORS)
    with pytest.raises(UserError, match="nothing may follow"):
        resolve_text("x.npy", context(data))


def test_rows_reach_a_backbone_by_their_ids(tmp_path: Path) -> None:
    np.savez(tmp_path / "v.npz", item_factors=VECTORS[:3], item_ids=["i3", "x", "i1"])
    data = Data()
    data.text_vectors = VECTORS + 100
    stages = {
        "item": nn.Embedding(5, 2),
        "text": nn.Embedding(5, 2),
    }
    names = {"stages.item.weight": "item_factors", "stages.text.weight": "item_text"}
    backbone = Backbone(
        stages,
        features=(),
        upstream=names,
        rows=dict.fromkeys(names, ITEMS),
    )
    report = load_weights(backbone, read(tmp_path / "v.npz", data))
    items, text = (backbone.state_dict()[name].numpy() for name in names)
    mean = VECTORS[[0, 2]].mean(0)
    expected = [mean, VECTORS[2], mean, VECTORS[0], mean]
    np.testing.assert_array_equal(items, expected)
    np.testing.assert_array_equal(text, data.text_vectors)
    counts = [(table.matched, table.new, table.dropped) for table in report.rows]
    assert counts == [(2, 3, 1), (5, 0, 0)]
