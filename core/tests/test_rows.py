"""Tables whose rows belong to named things, aligned by id."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

import headstart
from headstart.errors import UserError
from headstart.specs import Feature
from headstart.stages import Backbone, State
from headstart.weights.sources import SourceContext, Weights, resolve_weights
from headstart.weights.transfer import load_weights

if TYPE_CHECKING:
    from headstart.plugins import Registry

OURS = ("b", "new", "a", "other")


class Table(nn.Module):
    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((rows, width), 9.0))

    def forward(self, state: State) -> State:
        return {**state, "table": self.weight}


def backbone(width: int = 2, **options: Any) -> Backbone:
    return Backbone(
        {"goods": Table(len(OURS), width)},
        features=[Feature("table", "table", width)],
        upstream={"stages.goods.weight": "item_factors"},
        rows={"stages.goods.weight": OURS},
        **options,
    )


class Given(Weights):
    """Weights that were read already."""

    def tensors(self) -> dict[str, Tensor]:
        return {"item_factors": torch.tensor([[1.0, 10], [2, 20], [3, 30]])}

    @property
    def sha256(self) -> str:  # type: ignore[override]
        return "0" * 64


def given(*ids: str) -> Weights:
    rows = {"item_factors": ids} if ids else {}
    return Given("given:", None, (Path("there"),), rows=rows)


def test_rows_are_matched_by_id_and_new_ones_start_at_the_mean() -> None:
    model = backbone()
    report = load_weights(model, given("a", "gone", "b"))
    expected = [[3.0, 30], [2, 20], [1, 10], [2, 20]]
    assert model.state_dict()["stages.goods.weight"].tolist() == expected
    (table,) = report.rows
    assert (table.table, table.matched, table.new, table.dropped) == (
        "item_factors",
        2,
        2,
        1,
    )
    assert report.to_dict()["rows"][0]["started"] == "at the mean of the matched"
    assert any("2 matched by id, 2 new" in line for line in report.lines())


def test_a_backbone_may_start_new_rows_otherwise() -> None:
    class Own(Backbone):
        def start_rows(self, name: str, matched: Tensor) -> str:
            assert (name, matched.tolist()) == (
                "stages.goods.weight",
                [True, False, True, False],
            )
            self.stages["goods"].weight[~matched] = 7.0
            return "at seven"

    model = Own(
        {"goods": Table(len(OURS), 2)},
        features=(),
        upstream={"stages.goods.weight": "item_factors"},
        rows={"stages.goods.weight": OURS},
    )
    assert load_weights(model, given("a", "gone", "b")).rows[0].started == "at seven"
    assert model.state_dict()["stages.goods.weight"][1].tolist() == [7.0, 7.0]


@pytest.mark.parametrize(
    ("ids", "width", "words"),
    [
        ((), 2, "nobody knows what the rows of 'item_factors' belong to"),
        (("a", "b"), 2, "has 3 rows and 2 ids"),
        (("a", "b", "c"), 5, r"have the shape \(2,\), not \(5,\)"),
        (("x", "y", "z"), 2, "none of the 3 rows .* know 'x', 'y', 'z'"),
    ],
)
def test_tables_that_cannot_be_aligned(
    ids: tuple[str, ...], width: int, words: str
) -> None:
    model = backbone(width)
    with pytest.raises(UserError) as caught:
        load_weights(model, given(*ids))
    (fault,) = caught.value.faults
    text = f"{fault.what} {fault.why}"
    assert re.search(words, text), text
    assert (model.state_dict()["stages.goods.weight"] == 9).all(), "half loaded"


def test_what_weights_need_not_have() -> None:
    model = Backbone(
        {"goods": Table(4, 2), "users": Table(3, 2)},
        features=(),
        upstream={
            "stages.goods.weight": "item_factors",
            "stages.users.weight": "user_factors",
        },
        rows={"stages.goods.weight": OURS},
        optional=("user_*",),
    )
    report = load_weights(model, given("a", "b", "c"))
    assert dict(report.reinitialised) == {
        "user_factors": "not in the weights, which need not be"
    }
    model.optional = ()
    with pytest.raises(UserError, match="'user_factors' is not in the weights"):
        load_weights(model, given("a", "b", "c"))


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_run_is_a_weights_source(
    registry: Registry, tmp_path: Path, ema: float
) -> None:
    first = headstart.run(
        "toy/ring",
        {"train.epochs": 1, "data.count": 60, "train.ema": ema},
        folder=tmp_path / "first",
    )
    weights = resolve_weights(f"run:{first.folder}", SourceContext(registry))
    kept = weights.tensors()
    second = headstart.run(
        "toy/ring",
        {
            "backbone.weights": f"run:{first.folder}",
            "data.count": 60,
            "strategy.name": "none",
        },
        folder=tmp_path / "second",
    )
    prefix = "module." if ema else ""
    loaded = resolve_weights(f"run:{second.folder}", SourceContext(registry)).tensors()
    names = [name for name in loaded if name.startswith("backbone.")]
    assert names
    for name in names:
        assert torch.equal(loaded[name], kept[prefix + name]), name
    transfer = (second.folder / "transfer.json").read_text()
    assert "that run's own head" in transfer
    assert second.summary["steps"] == 0


def test_no_run_to_take_weights_from(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="this is not a run folder"):
        resolve_weights(f"run:{tmp_path}", SourceContext(registry))
