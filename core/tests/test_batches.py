"""The order of samples: a function of its arguments, and hardly any padding."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from headstart.batch_order import epoch_batches, evaluation_batches, prediction_batches
from headstart.batches import BatchParts, epoch_length
from headstart.data import DataModule
from headstart.distributed import World
from headstart.errors import DataError, UserError
from headstart.testing.toy.data import Ring
from headstart.training_setup import plan_training

if TYPE_CHECKING:
    from collections.abc import Callable

SKEWED = np.random.default_rng(0).lognormal(3, 0.6, 4000).astype(np.int64) + 1


def padding_waste(batches: list[np.ndarray]) -> float:
    used = sum(int(SKEWED[batch].sum()) for batch in batches)
    padded = sum(int(SKEWED[batch].max()) * len(batch) for batch in batches)
    return 1 - used / padded


@pytest.mark.parametrize("sizes", [None, SKEWED[:103]])
def test_an_epoch_has_every_sample_once(sizes: np.ndarray | None) -> None:
    batches = epoch_batches(103, 10, seed=1, epoch=2, sizes=sizes)
    assert sorted(np.concatenate(batches)) == list(range(103))
    assert sorted(len(batch) for batch in batches) == [3] + [10] * 10


@pytest.mark.parametrize("sizes", [None, SKEWED])
def test_an_epoch_is_a_function_of_seed_and_epoch(sizes: np.ndarray | None) -> None:
    def order(seed: int, epoch: int) -> list[list[int]]:
        batches = epoch_batches(4000, 32, seed=seed, epoch=epoch, sizes=sizes)
        return [batch.tolist() for batch in batches]

    first = order(3, 1)
    np.random.default_rng().random()
    order(9, 9)
    assert order(3, 1) == first
    assert order(3, 2) != first
    assert order(4, 1) != first
    # Neither the sum nor the product of the two is what counts.
    assert order(1, 3) != first


def test_grouping_by_size_leaves_little_padding() -> None:
    plain = epoch_batches(4000, 32, seed=0, epoch=0)
    grouped = epoch_batches(4000, 32, seed=0, epoch=0, sizes=SKEWED)
    assert padding_waste(plain) > 0.5
    assert padding_waste(grouped) < 0.08


def test_grouped_batches_still_mix() -> None:
    def partners(epoch: int) -> set[int]:
        batches = epoch_batches(4000, 32, seed=0, epoch=epoch, sizes=SKEWED)
        return set(next(batch for batch in batches if 7 in batch))

    assert len(partners(0) & partners(1)) < 16
    # Nor do the batches come sorted by size.
    batches = epoch_batches(4000, 32, seed=0, epoch=0, sizes=SKEWED)
    means = np.array([SKEWED[batch].mean() for batch in batches])
    assert 0.3 < (np.diff(means) > 0).mean() < 0.7


def test_evaluation_takes_the_longest_first() -> None:
    sizes = np.array([3, 9, 1, 9, 4])
    batches = evaluation_batches(5, 2, sizes)
    assert [batch.tolist() for batch in batches] == [[1, 3], [4, 0], [2]]
    assert [b.tolist() for b in evaluation_batches(5, 2)] == [[0, 1], [2, 3], [4]]


TOTAL = int(SKEWED.max() * 4)


def test_batches_by_total() -> None:
    batches = epoch_batches(4000, 500, seed=0, epoch=1, sizes=SKEWED, total=TOTAL)
    assert sorted(np.concatenate(batches).tolist()) == list(range(4000))
    padded = [len(batch) * int(SKEWED[batch].max()) for batch in batches]
    # The largest takes at most the total, and most batches are nearly full.
    assert max(padded) <= TOTAL
    assert np.median(padded) > 0.8 * TOTAL
    assert padding_waste(batches) < 0.1
    assert max(map(len, batches)) <= 500


def test_every_epoch_has_as_many_batches_by_total() -> None:
    def made(epoch: int) -> list[np.ndarray]:
        return epoch_batches(4000, 500, seed=0, epoch=epoch, sizes=SKEWED, total=TOTAL)

    assert len({len(made(epoch)) for epoch in range(20)}) == 1
    # And others in them, not in order of size.
    partners = [set(next(b for b in made(epoch) if 7 in b)) for epoch in (0, 1)]
    assert partners[0] != partners[1]
    rising = np.diff([SKEWED[batch].mean() for batch in made(0)]) > 0
    assert 0.3 < rising.mean() < 0.7


def test_a_sample_beyond_the_total_is_a_batch_of_its_own() -> None:
    sizes = np.array([50, 3, 3, 60])
    batches = epoch_batches(4, 10, seed=0, epoch=0, sizes=sizes, total=10)
    assert sorted(sorted(batch.tolist()) for batch in batches) == [[0], [1, 2], [3]]


def test_evaluation_by_total_takes_the_longest_first() -> None:
    sizes = np.array([3, 9, 1, 9, 4, 1])
    batches = evaluation_batches(6, 3, sizes, total=18)
    assert [batch.tolist() for batch in batches] == [[1, 3], [4, 0, 2], [5]]


def test_predictions_keep_their_order_and_take_no_more_than_the_total() -> None:
    sizes = np.array([3, 9, 1, 9, 4, 1])
    batches = prediction_batches(6, 3, sizes, 12)
    assert [batch.tolist() for batch in batches] == [[0], [1], [2], [3], [4, 5]]
    plain = [[0, 1, 2], [3, 4, 5]]
    for known, total in ((None, 12), (sizes, None)):
        batches = prediction_batches(6, 3, known, total)
        assert [batch.tolist() for batch in batches] == plain


class Numbers:
    """Data whose batch is the list of its samples."""

    settings = SimpleNamespace(workers=0)

    def in_steps(self, total: float | None) -> int | None:
        return None if total is None else int(total)

    def samples(self, split: str) -> list[int]:
        return list(range(100))

    def sizes(self, split: str) -> np.ndarray:
        return SKEWED[:100]

    def collate(self, samples: list[int]) -> dict[str, Any]:
        return {"numbers": samples}


@pytest.fixture
def batch_parts(
    toy_parts: Callable[..., Any],
) -> Callable[[dict[str, Any]], BatchParts]:
    def build(overrides: dict[str, Any]) -> BatchParts:
        recipe, _, _ = toy_parts({"train.batch_size": 12, **overrides})
        return BatchParts(Numbers(), recipe, World())  # type: ignore[arg-type]

    return build


def test_batches_resume_from_a_position(
    batch_parts: Callable[[dict[str, Any]], BatchParts],
) -> None:
    def numbers(start: int) -> list[Any]:
        steps = batch_parts({}).steps(epoch=2, start=start)
        return [[state["numbers"] for _, state in parts] for parts in steps]

    whole = numbers(0)
    assert len(whole) == 9
    for start in (1, 5, 8):
        assert numbers(start) == whole[start:]


def test_parts_are_the_batch_cut_up(
    batch_parts: Callable[[dict[str, Any]], BatchParts],
) -> None:
    whole = list(batch_parts({}).steps(0, 0))
    cut = list(batch_parts({"train.accumulate": 5}).steps(0, 0))
    for ((_, one),), parts in zip(whole, cut, strict=True):
        assert len(parts) == min(5, len(one["numbers"]))
        assert [n for _, part in parts for n in part["numbers"]] == one["numbers"]


def test_padding_and_samples_are_counted(
    batch_parts: Callable[[dict[str, Any]], BatchParts],
) -> None:
    for grouped in (True, False):
        batches = batch_parts({"train.group_by_size": grouped})
        seen = []
        for ((_, part),) in batches.steps(0, 0):
            seen.append(np.array(part["numbers"]))
            batches.took_step()
        assert batches.padding_waste == pytest.approx(padding_waste(seen))
        assert batches.count == 100
        assert batches.used == SKEWED[:100].sum()


def test_parts_by_total(
    batch_parts: Callable[[dict[str, Any]], BatchParts],
) -> None:
    total = 2.0 * int(SKEWED[:100].max())
    batches = batch_parts({"train.batch_total": total, "train.batch_size": 90})
    for epoch in (0, 1):
        steps = list(batches.steps(epoch, 0))
        assert len(steps) == batches.steps_per_epoch
        seen = [np.array(part["numbers"]) for ((_, part),) in steps]
        assert sorted(np.concatenate(seen).tolist()) == list(range(100))
        assert all(len(b) * int(SKEWED[b].max()) <= total for b in seen)
    largest = batches.largest()
    most = max(len(b) * int(SKEWED[b].max()) for b in seen)
    assert len(largest) * int(SKEWED[largest].max()) == most


def test_data_without_sizes_has_no_total(toy_parts: Callable[..., Any]) -> None:
    # Whatever its unit: some have sizes in evaluation alone.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ring, "sizes", lambda self, split: None)
        with pytest.raises(DataError, match=r"train\.batch_total: .*how large"):
            toy_parts({"train.batch_total": 8})
    # Sizes need no unit of their own.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ring, "size_unit", DataModule.size_unit)
        recipe, assembly, plan = toy_parts({"train.batch_total": 8, "train.epochs": 1})
    samples = len(assembly.data.samples("train"))
    assert plan.total == epoch_length(assembly.data, recipe.train) == samples / 8


def test_an_amount_in_steps_of_the_data() -> None:
    data = SimpleNamespace(size_steps=16_000)
    found = [DataModule.in_steps(data, total) for total in (None, 2.5, 1e-9)]  # type: ignore[arg-type]
    assert found == [None, 40_000, 1]


def test_a_total_and_no_grouping_contradict(toy_parts: Callable[..., Any]) -> None:
    """Steps were counted by one and batches made by the other: training hung."""
    changes = {"train.batch_total": 8, "train.group_by_size": False}
    with pytest.raises(UserError, match=r"train: batch_total: .*group_by_size"):
        toy_parts(changes)


def test_ranks_share_batches_by_total_whatever_their_number(
    toy_parts: Callable[..., Any],
) -> None:
    changes = {"train.batch_total": 8, "train.batch_size": 16}
    recipe, assembly, _ = toy_parts(changes)
    assert plan_training(recipe, assembly, World(0, 3)).total
    found = []
    for rank in range(3):
        batches = BatchParts(assembly.data, recipe, World(rank, 3))
        steps = list(batches.steps(1, 2))
        assert len(steps) == batches.steps_per_epoch - 2
        found.append([p.samples for step in steps for p, _ in step if p.counts])
    seen = np.sort(np.concatenate([samples for rank in found for samples in rank]))
    whole = BatchParts(assembly.data, recipe, World())._batches(1)[2:]
    assert seen.tolist() == sorted(np.concatenate(whole).tolist())


@pytest.mark.parametrize(
    ("sizes", "total", "expected"),
    [
        # The last one would be alone, and takes one of the batch before.
        ([4, 4, 4, 4], 12, [2, 2]),
        # So does one in the middle: beside 60 there is no room for it.
        ([30, 30, 30, 50, 60], 110, [2, 2, 1]),
        # Where it would be too much, or leave another one alone, it does not.
        ([4, 4, 4, 7], 13, [3, 1]),
        ([4, 4, 4], 8, [2, 1]),
    ],
)
def test_a_single_sample_takes_another_where_there_is_room(
    sizes: list[int], total: int, expected: list[int]
) -> None:
    known = np.array(sizes)
    for epoch in range(5):
        batches = epoch_batches(
            len(known), 9, seed=0, epoch=epoch, sizes=known, total=total
        )
        assert sorted(map(len, batches), reverse=True) == expected
        assert sorted(np.concatenate(batches).tolist()) == [*range(len(known))]
        # Sizes are rounded up by 10 % at most.
        assert all(len(b) == 1 or len(b) * known[b].max() <= total for b in batches)


def test_small_whole_sizes_fill_the_total() -> None:
    """Steps of 10 % of 3 are below 1: rounded up, 4 counted as 5 and 7 as 8."""
    sizes = np.repeat([3, 4, 7], 20)
    batches = epoch_batches(60, 60, seed=0, epoch=0, sizes=sizes, total=28)
    full = sorted(len(b) for b in batches)
    # 9 of 3 twice; 2 of 3 with 5 of 4; 7 of 4 twice; one of 4 with 3 of 7; 4 of 7 three
    # times; of the last 5, one would be alone.
    assert full == [2, 3, 4, 4, 4, 4, 7, 7, 7, 9, 9]


@pytest.mark.parametrize("sizes", [None, np.arange(33)])
def test_no_batch_is_a_single_sample(sizes: np.ndarray | None) -> None:
    """BatchNorm cannot train on one; the number of steps stays the same."""
    batches = epoch_batches(33, 8, seed=0, epoch=0, sizes=sizes)
    assert sorted(map(len, batches)) == [4, 5, 8, 8, 8]
    assert sorted(np.concatenate(batches).tolist()) == list(range(33))
    assert [len(b) for b in epoch_batches(1, 8, seed=0, epoch=0)] == [1]
