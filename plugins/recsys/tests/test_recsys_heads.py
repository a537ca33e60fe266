"""The ranking head: losses, evaluation and predictions; by hand and by loops."""

from __future__ import annotations

import json
import math
import sys
import types
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from headstart.errors import UserError
from headstart.model import Model
from headstart.report.parts import Evaluation
from headstart.specs import Feature
from headstart.stages import Backbone
from headstart_recsys.heads import build_ranking, sample_targets
from headstart_recsys.options import RankingOptions
from headstart_recsys.settings import RankingSettings

ITEMS, WIDTH = 9, 4
TASK: dict[str, Any] = {
    "kind": "ranking",
    "items": [f"i{n}" for n in range(ITEMS)],
    "users": [f"u{n}" for n in range(6)],
    "counts": [5, 1, 4, 2, 6, 1, 3, 0, 0],
    "titles": [],
    "cold": [7, 8],
    "categories": {},
    "text": {},
    "mask_seen": True,
    "candidates": "all",
}
VECTOR = {
    "item_table": Feature("item_table", "table", WIDTH),
    "query": Feature("query", "vector", WIDTH),
}
TOKENS = {
    "item_table": Feature("item_table", "table", WIDTH),
    "hidden": Feature("hidden", "tokens", WIDTH),
}


def build(features: Any = VECTOR, task: Any = TASK, **settings: Any) -> Any:
    given = RankingSettings(name="recsys/ranking", scale=1.3, **settings)
    head = build_ranking(given, features, task)
    if head.bias is not None:
        with torch.no_grad():
            head.bias.copy_(torch.linspace(-0.5, 0.7, ITEMS))
    return head


def events(count: int = 6) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {
        "query": torch.randn(count, WIDTH, generator=generator),
        "item_table": torch.randn(ITEMS, WIDTH, generator=generator),
        "user": torch.tensor([0, 1, 0, 2, 3, 4])[:count],
        "item": torch.tensor([4, 0, 2, 4, 6, 3])[:count],
        "weight": torch.tensor([1.0, 2.0, 0.5, 1.0, 3.0, 1.0])[:count],
        # The first samples of two rows are their own item.
        "negatives": torch.tensor([[4, 1], [7, 2], [2, 3], [0, 8], [5, 5], [1, 6]])[
            :count
        ],
    }


def users() -> dict[str, torch.Tensor]:
    given = events(4)
    return {
        "query": given["query"],
        "item_table": given["item_table"],
        "user": torch.tensor([2, -1, 0, -1]),
        "history": torch.tensor([[0, 1, 2], [3, -1, -1], [4, 5, -1], [-1, -1, -1]]),
        "held_out": torch.tensor([[4, 7, -1], [8, -1, -1], [5, 6, 0], [-1, -1, -1]]),
        "cold_user": torch.tensor([False, True, False, True]),
    }


def run(head: Any, state: dict[str, Any]) -> dict[str, Any]:
    """A head as the model runs it."""
    found: dict[str, Any] = head(head.reduce(state))
    return found


def all_scores(state: dict[str, torch.Tensor], bias: bool = True) -> np.ndarray:
    scores = 1.3 * state["query"].double().numpy() @ state["item_table"].numpy().T
    return scores + np.linspace(-0.5, 0.7, ITEMS) if bias else scores


@pytest.mark.parametrize("bias", [True, False])
def test_bpr_of_a_batch_by_loops(bias: bool) -> None:
    head, state = build(loss="bpr", bias=bias).train(), events()
    scores, total = all_scores(state, bias), 0.0
    for row in range(6):
        item = int(state["item"][row])
        rest = [n for n in state["negatives"][row].tolist() if n != item]
        gaps = [math.log1p(math.exp(scores[row, n] - scores[row, item])) for n in rest]
        total += float(state["weight"][row]) * sum(gaps) / len(rest)
    assert head.loss(run(head, state)).item() == pytest.approx(total / 8.5, rel=1e-5)
    assert head.weight(state).item() == 8.5


def test_warp_of_a_batch_by_loops() -> None:
    head, state = build(loss="warp").train(), events()
    scores, total = all_scores(state), 0.0
    for row in range(6):
        item, trials = int(state["item"][row]), 0
        for sample in state["negatives"][row].tolist():
            if sample == item:
                continue
            trials += 1
            hinge = 1 - scores[row, item] + scores[row, sample]
            if hinge > 0:
                weight = sum(1 / i for i in range(1, (ITEMS - 1) // trials + 1))
                total += float(state["weight"][row]) * weight * hinge
                break
    assert total > 0
    assert head.loss(run(head, state)).item() == pytest.approx(total / 8.5, rel=1e-5)


def softmax_by_loops(
    state: dict[str, torch.Tensor], block: int | None, popular: bool = False
) -> float:
    """Sampled softmax of rows that are cut into blocks of equal size."""
    scores = all_scores(state)
    shares = np.array(TASK["counts"]) / sum(TASK["counts"])
    drawn = 2 * (shares if popular else np.array([1 / 7] * 7 + [0] * 2))
    total = 0.0
    for members in np.array_split(range(6), math.ceil(6 / (block or 6))):
        expected = drawn if block is None else (len(members) - 1) * shares + drawn
        for row in members:
            item = int(state["item"][row])
            pool = [n for n in state["negatives"][row].tolist() if n != item]
            if block is not None:
                pool += [
                    int(state["item"][other])
                    for other in members
                    if state["item"][other] != item
                    and state["user"][other] != state["user"][row]
                ]
            own = math.exp(scores[row, item])
            rest = sum(math.exp(scores[row, n]) / expected[n] for n in pool)
            total += float(state["weight"][row]) * math.log((own + rest) / own)
    return total / 8.5


@pytest.mark.parametrize("block", [None, 1000, 4])
@pytest.mark.parametrize("sampling", ["uniform", "popularity"])
def test_sampled_softmax_of_a_batch_by_loops(block: int | None, sampling: str) -> None:
    state = events()
    # What is cold is never drawn.
    state["negatives"][state["negatives"] >= 7] = 1
    head = build(
        task={**TASK, "negative_sampling": sampling},
        in_batch=block is not None,
        in_batch_block=block or 1,
    ).train()
    expected = softmax_by_loops(state, block, sampling == "popularity")
    assert head.loss(run(head, state)).item() == pytest.approx(expected, rel=1e-5)


def test_all_items_as_samples_give_the_full_softmax() -> None:
    """Of uniform samples, each item once; with their gradients."""
    head = build(task={**TASK, "cold": []}, in_batch=False).train()
    state = events()
    state["negatives"] = torch.arange(ITEMS).repeat(6, 1)
    tables = [state["item_table"].clone().requires_grad_() for _ in range(2)]
    loss = head.loss(run(head, {**state, "item_table": tables[0]}))
    loss.backward()
    logits = 1.3 * state["query"] @ tables[1].T + head.bias.detach()
    losses = torch.nn.functional.cross_entropy(logits, state["item"], reduction="none")
    full = (losses * state["weight"]).sum() / 8.5
    full.backward()
    assert loss.item() == pytest.approx(full.item(), rel=1e-5)
    torch.testing.assert_close(tables[0].grad, tables[1].grad)


def test_without_sampled_items() -> None:
    state = events()
    del state["negatives"]
    head = build().train()
    assert head.loss(run(head, state)) > 0
    for settings in ({"loss": "bpr"}, {"loss": "warp"}, {"in_batch": False}):
        with pytest.raises(UserError, match=r"data\.negatives"):
            run(build(**settings).train(), state)


@pytest.mark.parametrize("loss", ["softmax", "bpr", "warp"])
def test_sequences_train_at_every_place(loss: str) -> None:
    """As so many events; padding neither counts nor moves anything."""
    generator = torch.Generator().manual_seed(5)
    hidden = torch.randn(3, 2, WIDTH, generator=generator)
    positives = torch.tensor([[-1, 4], [2, 6], [0, 3]])
    negatives = torch.tensor([[[-1, -1], [1, 5]], [[3, 0], [5, 1]], [[2, 6], [1, 1]]])
    table = events()["item_table"]
    tokens = {
        "item_table": table,
        "hidden": hidden.requires_grad_(),
        "positives": positives,
        "negatives": negatives,
    }
    head = build(TOKENS, loss=loss).train()
    got = head.loss(run(head, tokens))
    got.backward()
    flat = {
        "item_table": table,
        "query": hidden.detach().flatten(0, 1)[1:],
        "user": torch.tensor([0, 1, 1, 2, 2]),
        "item": positives.flatten()[1:],
        "negatives": negatives.flatten(0, 1)[1:],
    }
    twin = build(loss=loss).train()
    assert got.item() == pytest.approx(twin.loss(run(twin, flat)).item(), rel=1e-5)
    assert head.weight(tokens).item() == 5
    assert hidden.grad is not None
    assert hidden.grad[0, 0].tolist() == [0] * WIDTH
    assert (hidden.grad.flatten(0, 1)[1:].abs().sum(1) > 0).any()


@pytest.mark.parametrize("loss", ["softmax", "bpr", "warp"])
def test_gradient_reaches_every_parameter(loss: str) -> None:
    head = build(loss=loss).train()
    head.loss(run(head, events())).backward()
    names = {name for name, p in head.named_parameters() if p.grad.abs().sum() > 0}
    assert names == {"log_scale", "bias"}
    fixed = build(loss=loss, train_scale=False, bias=False)
    assert list(fixed.named_parameters()) == []
    assert "log_scale" in fixed.state_dict()


@pytest.mark.parametrize("mask_seen", [True, False])
@pytest.mark.parametrize("candidates", ["all", "cold"])
def test_evaluation_by_loops(mask_seen: bool, candidates: str) -> None:
    task = {**TASK, "mask_seen": mask_seen, "candidates": candidates}
    head, state = build(task=task, depth=5, user_block=3).eval(), users()
    result = run(head, state)
    outputs = head.outputs(result)
    scores, total, count = all_scores(state), 0.0, 0
    ranked = [7, 8] if candidates == "cold" else list(range(ITEMS))
    for row in range(4):
        seen = state["history"][row].tolist() if mask_seen else []
        wanted = [i for i in state["held_out"][row].tolist() if i >= 0]
        for prefix, some in (("", ranked), ("cold_", [7, 8])):
            order = sorted(set(some) - set(seen), key=lambda i: -scores[row, i])
            width = min(5, len(some))
            top = (order + [-1] * width)[:width]
            assert outputs[f"{prefix}top"][row].tolist() == top
            hits = [i in wanted for i in top]
            assert outputs[f"{prefix}hits"][row].tolist() == hits
            relevant = len(set(wanted) & set(order))
            assert outputs[f"{prefix}relevant"][row] == relevant
        order = sorted(set(ranked) - set(seen))
        for item in set(wanted) & set(ranked):
            pool = scores[row, sorted({*order, item})]
            total += np.log(np.exp(pool).sum()) - scores[row, item]
            count += 1
        assert outputs["held_out"][row].tolist() == wanted
    assert outputs["user"].tolist() == [2, -1, 0, -1]
    assert outputs["known"].tolist() == [3, 1, 2, 0]
    assert outputs["cold_user"].tolist() == [False, True, False, True]
    assert head.weight(state).item() == count
    assert head.loss(result).item() == pytest.approx(total / count, rel=1e-5)


def test_evaluation_is_kept_from_training() -> None:
    """With both kinds of target the mode decides; without a choice the batch does."""
    both = {**events(4), **users()}
    head = build()
    trained, evaluated = (
        (head.loss(run(head.train(mode), both)).item(), head.weight(both).item())
        for mode in (True, False)
    )
    alone = run(head, users())
    assert evaluated == (pytest.approx(head.loss(alone).item()), 6)
    assert trained[1] == 4.5 and trained[0] != evaluated[0]
    plain = run(head.eval(), events())
    training = run(head.train(), events())
    assert head.loss(plain).item() == pytest.approx(head.loss(training).item())
    assert not head.loss(alone).requires_grad


def test_parts_of_an_evaluation_average_to_the_whole() -> None:
    head, whole = build().eval(), users()
    parts = [
        {k: v if k == "item_table" else v[i:j] for k, v in whole.items()}
        for i, j in ((0, 1), (1, 4))
    ]
    weights = [head.weight(part).item() for part in parts]
    losses = [head.loss(run(head, part)).item() for part in parts]
    mean = np.average(losses, weights=weights)
    assert head.loss(run(head, whole)).item() == pytest.approx(mean, rel=1e-5)
    assert sum(weights) == head.weight(whole).item()


def test_sequences_are_ranked_from_their_last_place() -> None:
    state = users()
    hidden = torch.randn(4, 3, WIDTH)
    hidden[:, -1] = state.pop("query")
    tokens = build(TOKENS).eval()
    got = tokens.outputs(run(tokens, {**state, "hidden": hidden}))
    plain = build().eval()
    expected = plain.outputs(run(plain, users()))
    assert torch.equal(got["top"], expected["top"])


def test_depth_follows_the_metrics_and_the_catalogue() -> None:
    outputs = build().eval().outputs(run(build().eval(), users()))
    assert outputs["top"].shape == (4, ITEMS)
    task = {**TASK, "cold": []}
    head = build(task=task).eval()
    assert not [k for k in head.outputs(run(head, users())) if k.startswith("cold_t")]


def test_predictions_have_titles_and_reasons() -> None:
    task = {**TASK, "titles": [f"Film {n}" for n in range(ITEMS)]}
    head = build(task=task).eval()
    state = users()
    del state["held_out"], state["cold_user"]
    head.options = RankingOptions(k=3)
    outputs = head.outputs(run(head, state))
    assert set(outputs) == {"user", "top", "scores", "known"}
    assert outputs["top"].shape == (4, 3)
    rows = head.decode(outputs)
    json.dumps(rows)
    assert head.decode({k: v.numpy() for k, v in outputs.items()}) == rows
    assert [row["user"] for row in rows] == ["u2", None, "u0", None]
    scores = all_scores(state)[0]
    best = max(range(3, ITEMS), key=lambda i: scores[i])
    first = rows[0]["items"][0]
    assert (first["id"], first["title"]) == (f"i{best}", f"Film {best}")
    assert first["score"] == pytest.approx(scores[best], abs=1e-5)
    assert "reason" not in rows[0]
    assert "ranked from 1 item " in rows[1]["reason"]
    assert "no item is known" in rows[3]["reason"]
    head.options = RankingOptions(k=20)
    lengths = [len(r["items"]) for r in head.decode(head.outputs(run(head, state)))]
    assert lengths == [6, 8, 7, 9]
    head.options = None
    assert head.outputs(run(head, state))["top"].shape == (4, ITEMS)
    assert build().decode(outputs)[0]["items"][0]["title"] == ""


def test_options_are_inputs() -> None:
    options = RankingOptions(user=("42", "7"), like=("50", "181"), all=True)
    assert list(options.inputs()) == [
        {"user": "42"},
        {"user": "7"},
        {"like": ["50", "181"]},
        {"all": True},
    ]
    assert list(RankingOptions().inputs()) == []
    with pytest.raises(ValidationError):
        RankingOptions(k=0)


class Items(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(ITEMS, WIDTH))

    def forward(self, state: dict[str, Any]) -> dict[str, Any]:
        return {**state, "item_table": self.weight}


class Delta(torch.nn.Module):
    def forward(self, state: dict[str, Any]) -> dict[str, Any]:
        return {**state, "item_table": state["item_table"] + 1}


class Users(torch.nn.Module):
    def forward(self, state: dict[str, Any]) -> dict[str, Any]:
        return {**state, "query": state["user"][:, None].float()}


def test_probe_is_a_copy_of_the_items_vectors() -> None:
    stages = {"item": Items(), "delta": Delta(), "user": Users()}
    backbone = Backbone(stages, features=VECTOR.values(), upstream={})
    model = Model(backbone, build()).train()
    before = model.head.probe(model)
    assert model.training
    weight = stages["item"].weight
    expected = weight.detach() + 1
    assert torch.equal(before["item_table"], expected)
    with torch.no_grad():
        weight.zero_()
    assert torch.equal(before["item_table"], expected)
    assert not before["item_table"].requires_grad
    assert torch.equal(model.head.probe(model)["item_table"], torch.ones(ITEMS, WIDTH))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match="ranks items"):
        build(task={**TASK, "kind": "single-label"})
    for features in ({}, {"query": VECTOR["query"]}, {"item_table": VECTOR["query"]}):
        with pytest.raises(UserError, match="item_table and query or hidden"):
            build(features)
    with pytest.raises(UserError, match="nothing to rank"):
        build(task={**TASK, "candidates": "cold", "cold": []})


def test_report_is_that_of_the_sections(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in: Any = types.ModuleType("headstart_recsys.sections")
    stand_in.sections = lambda evaluation: [evaluation.split]
    monkeypatch.setitem(sys.modules, "headstart_recsys.sections", stand_in)
    assert build().report(Evaluation("test", {}, {}, TASK, [])) == ["test"]


@pytest.mark.parametrize("loss", ["softmax", "bpr", "warp"])
def test_sample_targets_train_and_evaluate(loss: str) -> None:
    torch.manual_seed(0)
    table = torch.randn(ITEMS, WIDTH)
    sequential = {**TASK, "sequence_length": 3}
    for task, features, shape in (
        (TASK, VECTOR, (5, WIDTH)),
        (sequential, TOKENS, (5, 3, WIDTH)),
    ):
        name = "hidden" if features is TOKENS else "query"
        state = {"item_table": table, name: torch.randn(shape)}
        state.update(sample_targets(task, 5))
        head = build(features, task, loss=loss)
        for mode in (True, False):
            head.train(mode)
            assert head.loss(run(head, state)).isfinite()
        assert head.weight(state).item() == 8
        assert len(head.outputs(run(head, state))["held_out"]) == 5


def test_nothing_waits_for_the_device() -> None:
    """On the meta device, where no value can be read."""
    for features, loss in ((VECTOR, "softmax"), (VECTOR, "bpr"), (VECTOR, "warp")):
        head = build(features, loss=loss).train().to("meta")
        state = {key: value.to("meta") for key, value in events().items()}
        assert head.loss(run(head, state)).shape == ()
        assert head.weight(state).shape == ()
