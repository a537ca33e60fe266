"""Recommenders as stages: the stage contract, alignment by id, fold-in, SASRec."""

from __future__ import annotations

import json
import math
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from implicit.cpu.als import AlternatingLeastSquares
from safetensors.torch import save_file
from scipy.sparse import csr_matrix
from sklearn.linear_model import Ridge
from torch import nn

from headstart.errors import UserError
from headstart.hookspecs import HOOK_API, hookimpl
from headstart.specs import BackboneSpec, Feature
from headstart.testing.backbone_tests import BackboneTests
from headstart.weights.sources import Weights
from headstart.weights.transfer import load_weights
from headstart_recsys import folding
from headstart_recsys.backbones import (
    TableBackbone,
    build_matrix_factorisation,
    build_sequential,
    build_two_tower,
    sample_sequences,
    sample_users,
)
from headstart_recsys.folding import fit_ridge, fold_in, sum_rows
from headstart_recsys.sequential import visible
from headstart_recsys.settings import (
    FactorSettings,
    SequentialSettings,
    TwoTowerSettings,
)

if TYPE_CHECKING:
    from pathlib import Path

ITEMS, USERS, FACTORS, TEXT = 12, 6, 8, 5
TASK: dict[str, Any] = {
    "kind": "ranking",
    "items": [f"i{n}" for n in range(ITEMS)],
    "users": [f"u{n}" for n in range(USERS)],
    "counts": [3] * 10 + [0, 0],
    "titles": [],
    "cold": [10, 11],
    "categories": {
        "names": ["drama", "comedy", "war"],
        "rows": [[0, 1], [2], [], *([[1]] * 7), [0, 2], [0, 2]],
    },
    "text": {"width": TEXT},
    "mask_seen": True,
    "candidates": "all",
    "sequence_length": 7,
}

HERE = "headstart_recsys.backbones"
TABLES = {"item_table": "table", "query": "vector"}
SEQUENCES = {"item_table": "table", "hidden": "tokens"}
FACTOR_MODEL = (f"{HERE}:build_matrix_factorisation", "FactorSettings", TABLES)
TOWERS = (f"{HERE}:build_two_tower", "TwoTowerSettings", TABLES)
SASREC = (f"{HERE}:build_sequential", "SequentialSettings", SEQUENCES)
VARIANTS: dict[str, tuple[tuple[str, str, dict[str, str]], dict[str, Any]]] = {
    "factors": (FACTOR_MODEL, {}),
    "factors-delta": (FACTOR_MODEL, {"delta": True}),
    "factors-all": (FACTOR_MODEL, {"text": True, "delta": True, "delta_rank": 2}),
    "towers": (TOWERS, {"text": True}),
    "towers-content": (TOWERS, {"item_ids": False, "user_ids": False}),
    "towers-ids": (TOWERS, {"history": False}),
    "sasrec": (SASREC, {}),
    "sasrec-text": (SASREC, {"text": True, "layers": 1}),
}


@hookimpl
def register_backbones() -> list[BackboneSpec]:
    """The backbones with each of their options."""
    return [
        BackboneSpec(
            name=f"parts/{name}",
            summary=name,
            factory=factory,
            settings=f"headstart_recsys.settings:{settings}",
            weights="none",
            inputs=("sequence",) if features is SEQUENCES else ("user",),
            features=tuple(Feature(n, k) for n, k in features.items()),  # type: ignore[arg-type]
            sample=f"{HERE}:sample_"
            + ("sequences" if features is SEQUENCES else "users"),
            reference="headstart_recsys.sequential:reference_sequential"
            if features is SEQUENCES
            else "",
            tiny={"weights": "none", "factors": FACTORS, **options},
            sample_task=TASK,
        )
        for name, ((factory, settings, features), options) in VARIANTS.items()
    ]


PARTS = ModuleType("recsys_parts")
PARTS.HOOK_API = HOOK_API
PARTS.register_backbones = register_backbones


class TestContract(BackboneTests):
    plugin = PARTS
    name = "parts"

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "backbone_spec" in metafunc.fixturenames:
            specs = type(self)._own("backbones")
            ids = [spec.name for spec in specs]
            metafunc.parametrize("backbone_spec", specs, ids=ids)


def factor_model(task: dict[str, Any] = TASK, **options: Any) -> TableBackbone:
    torch.manual_seed(0)
    settings = FactorSettings(name="x", **{"factors": FACTORS, **options})
    return build_matrix_factorisation(settings, None, task)


def towers(task: dict[str, Any] = TASK, **options: Any) -> TableBackbone:
    torch.manual_seed(0)
    settings = TwoTowerSettings(name="x", **{"factors": FACTORS, **options})
    return build_two_tower(settings, None, task)


def sasrec(task: dict[str, Any] = TASK, **options: Any) -> TableBackbone:
    torch.manual_seed(0)
    settings = SequentialSettings(name="x", **{"factors": FACTORS, **options})
    return build_sequential(settings, None, task)


def padded(lists: list[list[int]]) -> torch.Tensor:
    width = max(map(len, lists))
    return torch.tensor([row + [-1] * (width - len(row)) for row in lists])


def items_file(
    folder: Path, ids: list[str], values: torch.Tensor, **more: torch.Tensor
) -> Weights:
    """Weights that hold item vectors, and whatever else is given."""
    path = folder / "model.safetensors"
    save_file({"item_factors": values, **more}, path)
    rows = {"item_factors": tuple(ids), "item_text": tuple(TASK["items"])}
    return Weights("embeddings:test", None, (path,), rows=rows)


# Fold-in


@pytest.fixture(name="lists")
def _lists() -> list[list[int]]:
    generator = np.random.default_rng(0)
    sizes = [4, 1, 9, 0, 6]
    return [generator.choice(40, size, replace=False).tolist() for size in sizes]


def implicit_model(alpha: float) -> AlternatingLeastSquares:
    model = AlternatingLeastSquares(
        factors=FACTORS, regularization=0.3, alpha=alpha, num_threads=1
    )
    model.item_factors = (
        np.random.default_rng(1).normal(size=(40, FACTORS)).astype(np.float32)
    )
    return model


def as_matrix(lists: list[list[int]], values: list[list[float]]) -> csr_matrix:
    rows = [row for row, items in enumerate(lists) for _ in items]
    flat = [item for items in lists for item in items]
    data = np.array([v for row in values for v in row], dtype=np.float32)
    return csr_matrix((data, (rows, flat)), shape=(len(lists), 40))


def test_fold_in_is_implicits_recalculation_of_a_user(lists: list[list[int]]) -> None:
    model = implicit_model(alpha=1.0)
    ones = [[1.0] * len(row) for row in lists]
    expected = model.recalculate_user(np.arange(5), as_matrix(lists, ones))
    ours = fold_in(torch.from_numpy(model.item_factors), padded(lists), 0.3)
    np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-4, atol=1e-5)
    assert ours[3].eq(0).all()


@pytest.mark.parametrize("gathered", [1, 2 * 9 * FACTORS, 1 << 25])
def test_fold_in_with_confidence_is_implicits(
    lists: list[list[int]], gathered: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folding, "GATHERED", gathered)
    model = implicit_model(alpha=20.0)
    generator = np.random.default_rng(2)
    values = [generator.uniform(0.1, 3, len(row)).tolist() for row in lists]
    values[0][0] = -1.5  # disliked
    expected = model.recalculate_user(np.arange(5), as_matrix(lists, values))
    confidence = torch.zeros(padded(lists).shape)
    for row, some in enumerate(values):
        confidence[row, : len(some)] = 20 * torch.tensor(some)
    table = torch.from_numpy(model.item_factors)
    ours = fold_in(table, padded(lists), 0.3, confidence)
    np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-3, atol=1e-4)


def test_fold_in_is_as_exact_in_bf16(lists: list[list[int]]) -> None:
    table = torch.from_numpy(implicit_model(1.0).item_factors)
    confidence = torch.full(padded(lists).shape, 3.0)
    expected = fold_in(table, padded(lists), 0.3, confidence)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fold_in(table, padded(lists), 0.3, confidence), expected)


def test_rows_are_summed_without_padding() -> None:
    table = torch.arange(8.0).reshape(4, 2)
    sums = sum_rows(table, torch.tensor([[3, 0, -1], [-1, -1, -1], [2, 2, 1]]))
    assert sums.tolist() == [[6, 8], [0, 0], [10, 13]]


def test_ridge_takes_the_penalty_with_the_least_error_on_rows_left_out() -> None:
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(18, 10)) + 2
    targets = inputs[:, :3] + generator.normal(size=(18, 3)) * 2 + 5
    fitted = fit_ridge(torch.from_numpy(inputs), torch.from_numpy(targets))

    def left_out(penalty: float) -> float:
        errors = []
        for row in range(18):
            rest = np.arange(18) != row
            model = Ridge(penalty).fit(inputs[rest], targets[rest])
            errors.append(model.predict(inputs[[row]])[0] - targets[row])
        return float(np.square(errors).mean())

    # The grid has steps of a factor of the square root of 10.
    near = [left_out(fitted.penalty * factor) for factor in (10**-0.5, 1, 10**0.5)]
    assert min(near) == near[1]
    theirs = Ridge(fitted.penalty).fit(inputs, targets).predict(inputs)
    ours = fitted(torch.from_numpy(inputs)).numpy()
    np.testing.assert_allclose(ours, theirs, rtol=1e-9)


# Matrix factorisation


def test_users_are_rows_or_solved_or_the_mean() -> None:
    backbone = factor_model(ridge=0.7)
    table = backbone.stages["item"].weight.detach().numpy()
    users = backbone.stages["user"].weight.detach().numpy()
    state = {
        "user": torch.tensor([4, -1, -1]),
        "history": torch.tensor([[1, 2], [5, 3], [-1, -1]]),
    }
    query = backbone.run(state)["query"].detach().numpy()
    np.testing.assert_array_equal(query[0], users[4])
    solved = np.linalg.solve(
        table.T @ table + 0.7 * np.eye(FACTORS), table[5] + table[3]
    )
    solved *= np.linalg.norm(users, axis=1).mean() / np.linalg.norm(solved)
    np.testing.assert_allclose(query[1], solved, rtol=1e-4)
    np.testing.assert_allclose(query[2], users.mean(axis=0), rtol=1e-5)
    alone = backbone.run({"user": torch.tensor([4])})["query"].detach().numpy()
    np.testing.assert_array_equal(alone[0], users[4])


def test_items_are_the_sum_of_table_text_and_delta() -> None:
    backbone = factor_model(text=True, delta=True, delta_rank=2)
    assert backbone.stage_names == ("item", "text", "delta", "user")
    state = sample_users(backbone)
    plain = backbone.stages["item"].weight
    backbone.set_text(torch.randn(ITEMS, TEXT))
    assert torch.equal(backbone.run(state)["item_table"], plain)
    text, delta = backbone.stages["text"], backbone.stages["delta"]
    with torch.no_grad():
        text.projection.weight.normal_()
        delta.weight.normal_()
    expected = plain + text.vectors @ text.projection.weight.T
    expected = expected + delta.weight @ delta.expand.weight.T
    torch.testing.assert_close(backbone.run(state)["item_table"], expected)
    assert delta.weight.shape == (ITEMS, 2)
    whole = factor_model(delta=True).stages["delta"]
    assert whole.weight.shape == (ITEMS, FACTORS) and not whole.weight.any()


def test_items_that_nothing_is_known_of_start_neutral() -> None:
    for backbone in (factor_model(), towers(), sasrec()):
        weight = backbone.stages["item"].weight
        assert not weight[10:].any()
        assert weight[:10].any(dim=1).all()


# Alignment by id


def test_item_vectors_are_aligned_by_id(tmp_path: Path) -> None:
    backbone = factor_model()
    theirs = torch.randn(4, FACTORS)
    weights = items_file(tmp_path, ["i7", "gone", "i2", "i0"], theirs)
    users = backbone.stages["user"].weight.clone()
    report = load_weights(backbone, weights)
    table = backbone.stages["item"].weight
    assert torch.equal(table[[7, 2, 0]], theirs[[0, 2, 3]])
    new = [row for row in range(ITEMS) if row not in (0, 2, 7)]
    mean = theirs[[0, 2, 3]].mean(dim=0)
    torch.testing.assert_close(table[new], mean.expand(len(new), -1))
    assert torch.equal(backbone.stages["user"].weight, users)
    (rows,) = report.rows
    assert (rows.matched, rows.new, rows.dropped) == (3, 9, 1)
    assert rows.started == "mean of the matched rows"


@pytest.mark.parametrize("build", [factor_model, towers, sasrec])
def test_new_items_start_from_their_text(build: Any, tmp_path: Path) -> None:
    backbone = build(text=True)
    generator = torch.Generator().manual_seed(0)
    text = torch.randn(ITEMS, TEXT, generator=generator)
    # Their vectors are a linear map of their text, which the new rows must then follow.
    map_ = torch.randn(TEXT, FACTORS, generator=generator)
    offset = torch.randn(FACTORS, generator=generator)
    truth = text @ map_ + offset
    text[11] = 0  # no title
    known = [*range(9)]
    weights = items_file(
        tmp_path, [f"i{n}" for n in known], truth[known].contiguous(), item_text=text
    )
    report = load_weights(backbone, weights)
    table = backbone.stages["item"].weight
    assert torch.equal(table[known], truth[known])
    torch.testing.assert_close(table[[9, 10]], truth[[9, 10]], rtol=1e-2, atol=2e-2)
    torch.testing.assert_close(table[11], truth[known].mean(dim=0))
    started = {rows.table: rows.started for rows in report.rows}["item_factors"]
    assert "ridge regression on 9 matched rows; 1 without text" in started
    assert torch.equal(backbone.get_buffer(backbone.text), text)


def test_text_of_data_may_come_to_a_backbone_that_reads_none(tmp_path: Path) -> None:
    backbone = factor_model()
    text = {"item_text": torch.randn(ITEMS, TEXT)}
    weights = items_file(tmp_path, ["i1"], torch.randn(1, FACTORS), **text)
    report = load_weights(backbone, weights)
    assert [name for name, _ in report.skipped] == ["item_text"]


def test_tables_of_a_factor_model_fit_the_other_models(tmp_path: Path) -> None:
    values = torch.randn(ITEMS, FACTORS)
    users = torch.randn(USERS, FACTORS)
    weights = items_file(tmp_path, TASK["items"], values, user_factors=users)
    weights.rows["user_factors"] = tuple(TASK["users"])  # type: ignore[index]
    two, sequential = towers(), sasrec()
    load_weights(two, weights)
    load_weights(sequential, weights)
    assert torch.equal(sequential.stages["item"].weight, values)
    # A tower starts as the sum of its parts, and content starts as zero.
    known = {"user": torch.tensor([3, 1]), "history": torch.full((2, 4), -1)}
    state = two.run(known)
    assert torch.equal(state["item_table"], values)
    assert torch.equal(state["query"], users[[3, 1]])


def test_rows_without_any_value_to_start_from() -> None:
    backbone = factor_model(text=True, delta=True)
    backbone.stages["delta"].weight.data.fill_(1.0)
    matched = torch.arange(ITEMS) < 4
    assert backbone.start_rows("stages.delta.weight", matched) == "zeros"
    expected = [[1.0] * FACTORS] * 4 + [[0.0] * FACTORS] * 8
    assert backbone.stages["delta"].weight.tolist() == expected
    before = backbone.stages["user"].weight.clone()
    how = backbone.start_rows("stages.user.weight", torch.zeros(USERS, dtype=bool))
    assert how.startswith("at random")
    assert torch.equal(backbone.stages["user"].weight, before)


# Two towers


def test_items_are_their_content() -> None:
    backbone = towers(item_ids=False, text=True)
    text = torch.randn(ITEMS, TEXT)
    text[11] = text[10]
    backbone.set_text(text)
    stage = backbone.stages["item"]
    table = backbone.run(sample_users(backbone))["item_table"]
    categories, projected = stage.categories, text @ stage.projection.weight.T
    torch.testing.assert_close(table[0], categories[:2].mean(dim=0) + projected[0])
    torch.testing.assert_close(table[1], categories[2] + projected[1])
    torch.testing.assert_close(table[2], projected[2])
    # Two items alike are ranked alike, though nobody has had them.
    assert torch.equal(table[10], table[11]) and table[10].any()


def test_users_are_their_history() -> None:
    backbone = towers(user_ids=False)
    state = {
        "user": torch.tensor([2, -1, 0]),
        "history": torch.tensor([[1, 3, -1], [1, 3, -1], [-1, -1, -1]]),
    }
    done = backbone.run(state)
    expected = done["item_table"][[1, 3]].mean(dim=0)
    torch.testing.assert_close(done["query"][0], expected)
    assert torch.equal(done["query"][0], done["query"][1])
    assert not done["query"][2].any()
    users = towers(history=False)
    query = users.run({"user": torch.tensor([2, -1])})["query"]
    weight = users.stages["user"].weight
    torch.testing.assert_close(query, torch.stack([weight[2], weight.mean(dim=0)]))


def test_a_tower_changes_vectors_once_it_is_trained() -> None:
    backbone = towers()
    state = sample_users(backbone)
    before = backbone.run(state)
    tower = backbone.stages["item"].tower
    with torch.no_grad():
        tower.outer.weight.normal_()
    hidden = nn.functional.gelu(
        before["item_table"] @ tower.inner.weight.T + tower.inner.bias
    )
    expected = before["item_table"] + hidden @ tower.outer.weight.T
    torch.testing.assert_close(backbone.run(state)["item_table"], expected)


# SASRec


def plain_sasrec(backbone: TableBackbone, items: list[int]) -> torch.Tensor:
    """SASRec on one sequence without padding, from the paper's equations."""
    own = backbone.state_dict()

    def norm(values: torch.Tensor, name: str) -> torch.Tensor:
        centred = values - values.mean(dim=-1, keepdim=True)
        scaled = centred / (centred.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt()
        return scaled * own[f"{name}.weight"] + own[f"{name}.bias"]

    hidden = own["stages.item.weight"][items] * math.sqrt(FACTORS)
    hidden = hidden + own["stages.embedding.positions"][-len(items) :]
    future = torch.ones(len(items), len(items)).triu(1).bool()
    for layer in range(2):
        prefix = f"stages.layer{layer}"
        attention = nn.MultiheadAttention(FACTORS, 2, batch_first=True)
        attention.load_state_dict(
            {
                "in_proj_weight": own[f"{prefix}.project_in.weight"],
                "in_proj_bias": own[f"{prefix}.project_in.bias"],
                "out_proj.weight": own[f"{prefix}.project_out.weight"],
                "out_proj.bias": own[f"{prefix}.project_out.bias"],
            }
        )
        normed = norm(hidden, f"{prefix}.attention_norm")[None]
        hidden = hidden + attention(normed, normed, normed, attn_mask=future)[0][0]
        inner = norm(hidden, f"{prefix}.norm") @ own[f"{prefix}.inner.weight"].T
        inner = (inner + own[f"{prefix}.inner.bias"]).relu()
        hidden = hidden + inner @ own[f"{prefix}.outer.weight"].T
        hidden = hidden + own[f"{prefix}.outer.bias"]
    return norm(hidden, "stages.norm.norm")


def disturbed(backbone: TableBackbone) -> TableBackbone:
    """With parameters of which none is zero or one."""
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.3)
    return backbone.eval()


def test_sasrec_is_the_papers() -> None:
    backbone = disturbed(sasrec())
    sequences = [[3, 1, 4, 1, 5, 9, 2], [6, 5, 3], [8]]
    batch = torch.tensor([[-1] * (7 - len(row)) + row for row in sequences])
    with torch.no_grad():
        hidden = backbone.run({"sequence": batch})["hidden"]
        for row, items in enumerate(sequences):
            expected = plain_sasrec(backbone, items)
            torch.testing.assert_close(
                hidden[row, -len(items) :], expected, rtol=1e-4, atol=1e-5
            )


def test_no_place_sees_a_later_one() -> None:
    backbone = disturbed(sasrec())
    batch = torch.tensor([[3, 1, 4, 1, 5, 9, 2]])
    changed = batch.clone()
    changed[0, 5] = 7
    with torch.no_grad():
        before, after = (
            backbone.run({"sequence": b})["hidden"][0] for b in (batch, changed)
        )
    assert torch.equal(before[:5], after[:5])
    assert not torch.isclose(before[5:], after[5:]).all(dim=1).any()


def test_attention_reads_items_before_and_a_place_itself() -> None:
    seen = visible(torch.tensor([[-1, 5, 5], [-1, -1, -1]])).int().tolist()
    assert seen[0] == [[1, 0, 0], [0, 1, 0], [0, 1, 1]]
    assert seen[1] == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]


def test_batches_may_be_shorter_than_the_longest_sequence() -> None:
    backbone = disturbed(sasrec())
    with torch.no_grad():
        short = backbone.run({"sequence": torch.tensor([[-1, 6, 5, 3]])})["hidden"]
        whole = backbone.run({"sequence": torch.tensor([[-1] * 4 + [6, 5, 3]])})
    torch.testing.assert_close(short[0, -3:], whole["hidden"][0, -3:])


def test_sequences_without_an_item_train() -> None:
    backbone = sasrec().train()
    sample = sample_sequences(backbone)
    assert (sample["sequence"][3] == -1).all()
    backbone.run(sample)["hidden"].square().sum().backward()
    for parameter in backbone.parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all()


# Settings


def test_width_is_that_of_the_weights_unless_the_recipe_says(tmp_path: Path) -> None:
    backbone = factor_model(factors=24)
    (tmp_path / "config.json").write_text(json.dumps(backbone.config))
    silent = FactorSettings(name="x")
    built = build_matrix_factorisation(silent, tmp_path, TASK)
    assert built.features["query"].channels == 24
    said = FactorSettings(name="x", factors=16)
    built = build_matrix_factorisation(said, tmp_path, TASK)
    assert built.features["query"].channels == 16
    (tmp_path / "config.json").write_text("{}")
    built = build_matrix_factorisation(silent, tmp_path, TASK)
    assert built.features["query"].channels == 64


def without(*keys: str) -> dict[str, Any]:
    return {key: value for key, value in TASK.items() if key not in keys}


@pytest.mark.parametrize(
    ("build", "task", "options", "where"),
    [
        (factor_model, without("text"), {"text": True}, "backbone.text"),
        (towers, without("text"), {"text": True}, "backbone.text"),
        (towers, without("categories"), {"item_ids": False}, "backbone.item_ids"),
        (towers, TASK, {"user_ids": False, "history": False}, "backbone.user_ids"),
        (sasrec, without("sequence_length"), {}, "data.name"),
        (sasrec, TASK, {"attention_heads": 3}, "backbone.attention_heads"),
    ],
)
def test_what_does_not_fit_the_data_is_refused(
    build: Any, task: dict[str, Any], options: dict[str, Any], where: str
) -> None:
    with pytest.raises(UserError) as caught:
        build(task, **options)
    (fault,) = caught.value.faults
    assert fault.where == where and fault.fix


def test_text_of_another_shape_is_refused() -> None:
    with pytest.raises(UserError, match="no text vectors"):
        factor_model().set_text(torch.zeros(ITEMS, TEXT))
    backbone = factor_model(text=True)
    with pytest.raises(UserError, match=r"\(12, 6\), not \(12, 5\)"):
        backbone.set_text(torch.zeros(ITEMS, TEXT + 1))


def test_a_tower_of_histories_wants_them_in_training() -> None:
    with pytest.raises(UserError, match="the batch has none"):
        towers().run({"user": torch.tensor([1])})
