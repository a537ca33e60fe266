"""A pretrained head beside the backbone in one file: what of it goes into ours."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from headstart.errors import UserError
from headstart.heads import Head
from headstart.model import Model
from headstart.specs import Feature
from headstart.stages import Backbone, State
from headstart.weights.sources import Weights
from headstart.weights.transfer import load_weights

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from headstart.weights.transfer_report import TransferReport


class Write(nn.Module):
    """A stage that reads one entry and writes another."""

    def __init__(self, reads: str, writes: str) -> None:
        super().__init__()
        self.names = (reads, writes)
        self.dense = nn.Linear(4, 4)

    def forward(self, state: State) -> State:
        reads, writes = self.names
        return {**state, writes: self.dense(state[reads])}


class Detector(Head):
    """A neck without classes, a classifier with a row each, background first."""

    def __init__(self, labels: Sequence[str], width: int = 4) -> None:
        super().__init__()
        self.labels = tuple(labels)
        self.neck = nn.Linear(4, width)
        self.classes = nn.Linear(width, 1 + len(labels))
        self.upstream = {"neck.": "rpn.", "classes.": "roi.predictor."}

    def adapt_classes(
        self, name: str, theirs: Tensor, ours: Tensor, classes: Sequence[str]
    ) -> Tensor | None:
        if not name.startswith("classes."):
            return None
        value = ours.clone()
        for row, label in enumerate(("__background__", *self.labels)):
            if label in classes and theirs.shape[1:] == ours.shape[1:]:
                value[row] = theirs[classes.index(label)]
        return value

    def forward(self, state: State) -> State:
        return {**state, "logits": self.classes(self.neck(state["c"]))}

    def loss(self, state: State) -> Tensor:
        return state["logits"].mean()

    def weight(self, batch: State) -> Tensor:
        return torch.ones(())

    def outputs(self, state: State) -> dict[str, Any]:
        return {"logits": state["logits"]}

    def decode(self, outputs: dict[str, Any]) -> list[dict[str, Any]]:
        return []


def backbone() -> Backbone:
    names = ("x", "a", "b", "c")
    return Backbone(
        {to: Write(at, to) for at, to in itertools.pairwise(names)},
        features=[Feature(name, "vector", 4, stage=name) for name in names[1:]],
        upstream={f"stages.{n}.dense.": f"body.{n}." for n in names[1:]},
        ignored=("rpn.*", "roi.*"),
        consumed=("x",),
    )


def published(folder: Path) -> Weights:
    """A detector of three classes, as its authors would publish it."""
    torch.manual_seed(7)
    tensors = backbone().upstream_state_dict()
    tensors |= {"rpn.weight": torch.randn(4, 4), "rpn.bias": torch.randn(4)}
    tensors |= {"roi.predictor.weight": torch.randn(4, 4)}
    tensors |= {"roi.predictor.bias": torch.randn(4), "rpn.other": torch.randn(2)}
    save_file(
        {k: v.detach().clone() for k, v in tensors.items()}, folder / "w.safetensors"
    )
    weights = Weights("file:w", None, (folder / "w.safetensors",))
    return replace(weights, classes=("__background__", "cat", "dog", "cow"))


def loaded(
    head: Detector, weights: Weights, labels: Sequence[str]
) -> tuple[TransferReport, dict[str, Tensor]]:
    report = load_weights(backbone(), weights, head=head, labels=labels)
    return report, weights.tensors()


def test_rows_of_known_classes_are_kept_and_others_stay_new(tmp_path: Path) -> None:
    head = Detector(["dog", "horse", "cat"])
    before = head.classes.weight.detach().clone()
    report, theirs = loaded(head, published(tmp_path), head.labels)
    predictor = theirs["roi.predictor.weight"]
    assert torch.equal(head.neck.weight, theirs["rpn.weight"])
    assert torch.equal(head.classes.weight[0], predictor[0])
    assert torch.equal(head.classes.weight[1], predictor[2])
    assert torch.equal(head.classes.weight[2], before[2])
    assert torch.equal(head.classes.weight[3], predictor[1])
    assert report.classes_kept == ("dog", "cat")
    assert report.classes_new == ("horse",)
    assert set(report.head_loaded) == {
        "neck.weight",
        "neck.bias",
        "classes.weight",
        "classes.bias",
    }
    assert ("rpn.other", "the head has no such part") in report.skipped
    assert "  classes        kept: dog, cat; new: horse" in report.lines()


def test_a_part_of_another_shape_stays_new_and_is_named(tmp_path: Path) -> None:
    head = Detector(["dog"], width=5)
    before = {k: v.clone() for k, v in head.state_dict().items()}
    report, _ = loaded(head, published(tmp_path), head.labels)
    assert all(
        torch.equal(value, before[name])
        for name, value in head.state_dict().items()
        if name not in report.head_loaded
    )
    why = dict(report.skipped)["rpn.weight"]
    assert why == "the head wants another shape: (4, 4), not (5, 4)"


def test_another_kind_of_head_under_our_names_is_no_misfit(tmp_path: Path) -> None:
    tensors = backbone().upstream_state_dict()
    tensors |= {"rpn.weight": torch.ones(9, 9), "rpn.scale": torch.ones(9)}
    save_file(
        {k: v.detach().clone() for k, v in tensors.items()}, tmp_path / "w.safetensors"
    )
    weights = Weights("file:w", None, (tmp_path / "w.safetensors",))
    report, _ = loaded(Detector(["dog"]), weights, ["dog"])
    assert report.skipped == (
        ("rpn.weight", "pretraining head"),
        ("rpn.scale", "pretraining head"),
    )
    assert not report.head_loaded


def test_damaged_values_of_a_head_load_nothing(tmp_path: Path) -> None:
    weights = published(tmp_path)
    tensors = {k: v.clone() for k, v in weights.tensors().items()}
    tensors["rpn.bias"][0] = float("nan")
    save_file(tensors, tmp_path / "w.safetensors")
    head = Detector(["dog"])
    before = {k: v.clone() for k, v in head.state_dict().items()}
    with pytest.raises(UserError, match=r"'rpn\.bias' has 1 values of 4"):
        loaded(head, weights, head.labels)
    assert all(torch.equal(v, before[k]) for k, v in head.state_dict().items())


def test_features_that_nobody_reads_do_not_pass_the_freeze_point() -> None:
    """A cache would hold them for every sample."""
    head = Detector(["dog"])
    model = Model(backbone(), head)
    for reads, kept in ((("c",), {"b"}), (("a", "c"), {"a", "b"}), ((), {"a", "b"})):
        head.reads = reads
        model.train_stages(frozenset({"c"}))
        state = model.prefix({"x": torch.ones(2, 4), "size": torch.ones(2)})
        assert set(state) == {*kept, "size"}
        assert model(state)["logits"].shape == (2, 2)
