"""Whole runs of the recsys plugin, as its users start them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import headstart
from headstart.checkpoint import open_checkpoint
from headstart.errors import UserError
from headstart_recsys.tiny import tiny_interactions, tiny_sequences

if TYPE_CHECKING:
    from pathlib import Path

QUICK: dict[str, Any] = {
    "backbone.factors": 8,
    "train.max_steps": 4,
    "train.batch_size": 32,
    "report.scratch_control": False,
}
FACTORS = "implicit:als?factors=8&iterations=2"


def own(folder: Path, sequences: bool = False) -> dict[str, Any]:
    """Overrides that read tiny data in place of a recipe's."""
    folder.mkdir(exist_ok=True)
    settings = (tiny_sequences if sequences else tiny_interactions)(folder)
    return {f"data.{key}": value for key, value in settings.items()}


@pytest.mark.parametrize("name", ["warm-start", "sequential", "pretrain"])
def test_recipes_run_whole_on_data_of_ones_own(name: str, tmp_path: Path) -> None:
    values = {
        **QUICK,
        **own(tmp_path / "data", name == "sequential"),
        "backbone.weights": FACTORS,
    }
    run = headstart.run(f"recsys/{name}", values, folder=tmp_path / "run")
    assert run.summary["status"] == "done"
    assert run.summary["steps"] == (0 if name == "pretrain" else 4)
    assert set(run.recipe().metrics.names) <= set(run.metrics)
    baselines = {one["name"] for one in run.summary["baselines"]}
    assert {"most popular", "item-kNN", "tuned ALS (implicit)"} <= baselines
    # An encoder over sequences starts at random, and without steps it is the result.
    assert ("untouched model" in baselines) == (name == "warm-start")
    assert "ndcg@10" in run.summary["intervals"]
    found = run.predict(user=["u3"], k=4)
    assert [len(one["items"]) for one in found] == [4]


def test_a_later_period_starts_from_an_earlier_run(tmp_path: Path) -> None:
    """Rows are aligned by id: the later catalogue lacks some items and has new ones."""
    data = own(tmp_path / "data")
    before = {**QUICK, **data, "backbone.weights": FACTORS}
    first = headstart.run("recsys/pretrain", before, folder=tmp_path / "first")
    kept = json.loads((first.folder / "rows.json").read_text())["item_factors"]
    rows = (tmp_path / "data" / "ratings.csv").read_text().splitlines()
    later = [row for row in rows if not row.split(",")[1] == "i0"]
    later += [f"u{user},brand-new,5,1600000{user:03}" for user in range(20)]
    (tmp_path / "data" / "ratings.csv").write_text("\n".join(later) + "\n")
    after = {
        **QUICK,
        **data,
        "backbone.weights": f"run:{first.folder}",
        "strategy.name": "none",
    }
    second = headstart.run("recsys/warm-start", after, folder=tmp_path / "second")
    transfer = json.loads((second.folder / "transfer.json").read_text())
    items = next(t for t in transfer["rows"] if t["table"] == "item_factors")
    # One item is gone, and one has come; what was without events before is matched.
    now = json.loads((second.folder / "rows.json").read_text())["item_factors"]
    assert items["matched"] == len(set(kept) & set(now)) == len(kept) - items["dropped"]
    assert items["new"] == len(set(now) - set(kept)) >= 1
    old, new = (
        open_checkpoint(run.folder / "checkpoints")[0].kept_model()
        for run in (first, second)
    )
    table = "backbone.stages.item.weight"
    for item in ("i1", "i7", "i29"):
        assert np.array_equal(new[table][now.index(item)], old[table][kept.index(item)])
    assert not (new[table][now.index("brand-new")] == old[table]).all(axis=1).any()


def test_recommendations_for_everybody_as_parquet(tmp_path: Path) -> None:
    values = {**QUICK, **own(tmp_path / "data"), "backbone.weights": "none"}
    run = headstart.run("recsys/warm-start", values, folder=tmp_path / "run")
    written = run.predict_into(tmp_path / "out", [], options={"all": True, "k": 3})
    table = pq.read_table(written[0]).to_pydict()
    users = json.loads((run.folder / "task.json").read_text())["users"]
    assert set(table["user"]) == set(users)
    assert len(table["user"]) == 3 * len(users)


def test_another_catalogue_is_not_evaluated_on(tmp_path: Path) -> None:
    values = {**QUICK, **own(tmp_path / "data"), "backbone.weights": "none"}
    run = headstart.run("recsys/warm-start", values, folder=tmp_path / "run")
    path = tmp_path / "data" / "ratings.csv"
    rows = path.read_text().splitlines()
    path.write_text("\n".join(row for row in rows if ",i5," not in row) + "\n")
    with pytest.raises(UserError, match="other items than this run was trained on"):
        run.evaluate(overrides={"data.catalogue_items": False})
