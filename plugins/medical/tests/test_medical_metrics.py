"""Metrics by case against MONAI, scikit-learn and counts by hand."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
import torch
from monai.metrics import (
    compute_average_surface_distance,
    compute_dice,
    compute_hausdorff_distance,
    compute_roc_auc,
)
from sklearn.metrics import brier_score_loss, roc_curve

from headstart_medical import measures, metrics, register_metrics
from headstart_medical.bootstrap import over_patients

TASK = {"kind": "volume-segmentation", "labels": ["background", "core", "rim"]}
ONE = {"kind": "volume-segmentation", "labels": ["background", "tumour"]}
LABELS = {"kind": "single-label", "labels": ["without", "with"]}
SPACING = (0.8, 1.0, 2.5)
OF_MASKS = [
    spec.name.partition("/")[2]
    for spec in register_metrics()
    if spec.inputs == measures.INPUTS
]


def blank(*boxes: tuple[int, int], shape: tuple[int, int, int] = (20, 6, 5)):
    """A mask that is 1 from one slice to another along x, 4 x 3 voxels across."""
    mask = np.zeros(shape, dtype=np.uint8)
    for start, stop in boxes:
        mask[start:stop, 1:5, 1:4] = 1
    return mask


def noisy_masks(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two smooth random masks of three classes that overlap in part."""
    from scipy import ndimage

    rng = np.random.default_rng(seed)
    shared = rng.normal(size=(24, 20, 16))
    masks = []
    for _ in range(2):
        field = ndimage.gaussian_filter(shared + rng.normal(size=shared.shape), 2)
        masks.append(np.digitize(field, np.quantile(field, (0.8, 0.93))))
    return masks[0].astype(np.uint8), masks[1].astype(np.uint8)


def one_hot(mask: np.ndarray) -> torch.Tensor:
    return torch.stack([torch.from_numpy(mask == k) for k in range(3)])[None]


@pytest.mark.parametrize("seed", range(3))
def test_overlap_and_distances_are_monais(seed: int) -> None:
    found, true = noisy_masks(seed)
    pair = one_hot(found).float(), one_hot(true).float()
    ours = {
        **measures.overlap(found, true, SPACING, 3),
        **measures.surfaces(found, true, SPACING, 3),
    }
    theirs = {
        "dice": compute_dice(*pair, include_background=False),
        "hd95": compute_hausdorff_distance(*pair, percentile=95, spacing=SPACING),
        "asd": compute_average_surface_distance(*pair, symmetric=True, spacing=SPACING),
    }
    for name, expected in theirs.items():
        np.testing.assert_allclose(ours[name], expected[0].numpy(), rtol=1e-5)


def slow_distances(mask: np.ndarray, other: np.ndarray) -> list[np.ndarray]:
    """From each surface voxel of one to the nearest of the other, both ways, mm."""
    points = []
    for one in (mask, other):
        padded = np.pad(one, 1)
        inner = np.ones_like(one)
        for axis in range(3):
            for step in (-1, 1):
                inner &= np.roll(padded, step, axis)[1:-1, 1:-1, 1:-1]
        points.append(np.argwhere(one & ~inner) * SPACING)
    between = np.linalg.norm(points[0][:, None] - points[1][None], axis=-1)
    return [between.min(1), between.min(0)]


@pytest.mark.parametrize("shape", [(9, 7, 6), (8, 1, 5), (1, 1, 9)])
def test_distances_are_those_of_all_pairs_of_voxels(shape: tuple[int, ...]) -> None:
    # Masks touch the borders of the volume, which then are surfaces.
    rng = np.random.default_rng(3)
    found, true = (rng.random(shape) < share for share in (0.3, 0.7))
    masks = found.astype(np.uint8), true.astype(np.uint8)
    said = measures.surfaces(*masks, SPACING, 2)
    sides = slow_distances(found, true)
    far = max(np.quantile(side, 0.95) for side in sides)
    assert said["hd95"] == pytest.approx([far], rel=1e-5)
    assert said["asd"] == pytest.approx([np.concatenate(sides).mean()], rel=1e-5)


def test_a_sheared_voxel_is_as_large_as_its_box() -> None:
    # Slices 5 mm apart, each moved by 2 mm against the one below.
    tilted = np.array([[1, 0, 0, 7], [0, 0.5, 2, 8], [0, 0, 5, 9], [0, 0, 0, 1.0]])
    np.testing.assert_allclose(measures.box_sides(tilted), [1, 0.5, 5])
    turned = tilted[[2, 0, 1, 3]]
    assert measures.box_sides(turned).prod() == pytest.approx(2.5)
    straight = np.array([[0, -0.8, 0, 1], [0.6, 0, -2, 2], [0.8, 0, 1.5, 3], [0] * 4])
    np.testing.assert_allclose(measures.box_sides(straight), [1, 0.8, 2.5])


def test_volumes_are_millilitres_of_the_original_spacing() -> None:
    # 3 x 12 and 6 x 12 voxels of 2 mm³.
    found = measures.overlap(blank((2, 5)), blank((2, 8)), SPACING, 2)
    assert found["true-ml"] == pytest.approx([0.144])
    assert found["found-ml"] == pytest.approx([0.072])
    assert found["volume-error"] == pytest.approx([0.072])
    assert found["relative-volume-error"] == pytest.approx([0.5])


def scores(found: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """All segmentation metrics of one case."""
    outputs = {"prediction": [found], "target": [true], "spacing": [SPACING]}
    values = {}
    for name in OF_MASKS:
        metric = getattr(metrics, name.replace("-", "_"))(ONE)
        metric.update(*(outputs[key] for key in measures.INPUTS))
        values[name] = metric.compute()
    return values


def test_where_both_are_empty_dice_is_1_and_distances_do_not_count() -> None:
    found = scores(blank(), blank())
    assert found["dice"] == found["lesion-f1"] == 1
    assert found["volume-error"] == found["false-lesions"] == 0
    for name in ("hd95", "asd", "lesion-recall", "relative-volume-error"):
        assert np.isnan(found[name]), name


@pytest.mark.parametrize("empty", ["prediction", "target"])
def test_where_one_is_empty_dice_is_0_and_distances_are_the_diagonal(
    empty: str,
) -> None:
    pair = [blank((2, 5)), blank()]
    found = scores(*(pair if empty == "target" else pair[::-1]))
    diagonal = np.sqrt((20 * 0.8) ** 2 + (6 * 1.0) ** 2 + (5 * 2.5) ** 2)
    assert found["dice"] == found["lesion-f1"] == 0
    assert found["hd95"] == found["asd"] == pytest.approx(diagonal)
    assert found["false-lesions"] == (empty == "target")
    if empty == "target":
        assert np.isnan(found["relative-volume-error"])
        assert np.isnan(found["lesion-recall"])
    else:
        assert found["relative-volume-error"] == 1
        assert found["lesion-recall"] == 0


def test_cases_that_do_not_count_leave_the_mean() -> None:
    metric = metrics.hd95(ONE)
    metric.update([blank(), blank((2, 4))], [blank(), blank((2, 6))], [SPACING] * 2)
    # Two slices of .8 mm are missing at one end.
    assert metric.compute() == pytest.approx(1.6)
    metric.reset()
    assert np.isnan(metric.compute())


def test_lesions_are_found_when_a_tenth_is_covered() -> None:
    # True: 10 slices, 10 slices, 2 slices. Of the first a tenth is covered, of the
    # second less; the third is missed. One prediction lies on nothing.
    shape = (60, 6, 5)
    true = blank((0, 10), (12, 22), (24, 26), shape=shape)
    found = blank((0, 1), (40, 44), shape=shape)
    found[12, 1, 1] = 1
    said = measures.lesions(found, true, SPACING, 2)
    assert {name: value.tolist() for name, value in said.items()} == {
        "true-lesions": [3],
        "found-lesions": [1],
        "false-lesions": [1],
        "lesion-recall": [pytest.approx(1 / 3)],
        # Of three predicted lesions two lie on the truth.
        "lesion-f1": [pytest.approx(2 * (1 / 3) * (2 / 3) / (1 / 3 + 2 / 3))],
    }


def test_a_prediction_of_everything_finds_no_lesion_for_free() -> None:
    true = blank((2, 4), shape=(60, 6, 5))
    said = measures.lesions(np.ones_like(true), true, SPACING, 2)
    assert said["lesion-recall"] == 1
    assert said["false-lesions"] == 1 and said["lesion-f1"] == 0


def test_voxels_that_touch_by_a_corner_are_one_lesion() -> None:
    mask = np.zeros((4, 4, 4), dtype=bool)
    mask[0, 0, 0] = mask[1, 1, 1] = mask[3, 3, 3] = True
    assert measures.lesions_of(mask)[1] == 2


def test_unknown_voxels_do_not_count() -> None:
    true = blank((2, 6))
    true[10:14] = 255
    found = blank((2, 6), (10, 14))
    assert scores(found, true) == pytest.approx(
        scores(blank((2, 6)), blank((2, 6))), nan_ok=True
    )


def test_masks_of_different_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(20, 6, 5\).*\(21, 6, 5\)"):
        measures.overlap(blank(), blank(shape=(21, 6, 5)), SPACING, 2)


def test_what_was_measured_is_kept_for_a_while(monkeypatch) -> None:
    monkeypatch.setattr(measures, "MOST_KEPT", 2)
    measure = measures._once(lambda *_: {})
    true = blank((2, 8))
    first = measure(blank((2, 5)), true, SPACING, 2)
    # From another rank it comes as float32.
    assert measure(blank((2, 5)), true, torch.tensor(SPACING), 2) is first
    for stop in (6, 7):
        measure(blank((2, stop)), true, SPACING, 2)
    assert measure(blank((2, 5)), true, SPACING, 2) is not first


def test_a_changed_mask_is_measured_anew() -> None:
    found = blank((2, 5))
    before = measures.overlap(found, blank((2, 5)), SPACING, 2)["dice"]
    found[:] = 0
    assert measures.overlap(found, blank((2, 5)), SPACING, 2)["dice"] == 0 != before


@pytest.mark.parametrize("name", OF_MASKS)
def test_scores_by_case_make_the_metric(name: str) -> None:
    outputs = metrics.sample_outputs(TASK, 8)
    key = name.replace("-", "_")
    metric = getattr(metrics, key)(TASK)
    metric.update(*(outputs[k] for k in measures.INPUTS))
    made = getattr(metrics, f"{key}_scores")(TASK, outputs)
    assert made.shape == (8,)
    assert metric.compute() == pytest.approx(np.nanmean(made))


def test_false_lesions_are_added_up_over_the_classes() -> None:
    found = np.where(blank((2, 4)) + 2 * blank((8, 10)) > 0, 1, 0).astype(np.uint8)
    found[8:10][found[8:10] > 0] = 2
    metric = metrics.false_lesions(TASK)
    metric.update([found], [blank()], [SPACING])
    assert metric.compute() == 2


def drawn(seed: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities with ties, and classes they say something about."""
    rng = np.random.default_rng(seed)
    target = rng.integers(classes, size=200)
    logits = rng.normal(size=(200, classes)) + 1.5 * np.eye(classes)[target]
    probabilities = np.exp(logits.round(1))
    return probabilities / probabilities.sum(1, keepdims=True), target


@pytest.mark.parametrize("classes", [2, 3])
def test_auroc_is_monais(classes: int) -> None:
    probabilities, target = drawn(0, classes)
    expected = compute_roc_auc(
        torch.from_numpy(probabilities), torch.eye(classes)[target], average="macro"
    )
    assert metrics.mean_auroc(probabilities, target) == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(3))
def test_sensitivity_is_the_roc_curves_at_the_specificity(seed: int) -> None:
    probabilities, target = drawn(seed, 2)
    false, true, _ = roc_curve(target, probabilities[:, 1], drop_intermediate=False)
    metric = metrics.sensitivity_at_95(LABELS)
    metric.update(torch.from_numpy(probabilities), torch.from_numpy(target))
    assert metric.compute() == pytest.approx(true[false <= 0.05].max())


def test_a_tenth_of_ten_is_one() -> None:
    # 1 - .9 is a little less than a tenth.
    scores = np.append(np.arange(10.0), [8.5, 20.0])
    positive = np.arange(12) >= 10
    assert metrics.sensitivity_at(scores, positive, 0.9) == 1
    assert metrics.sensitivity_at(scores[1:], positive[1:], 0.9) == 0.5


def test_brier_score_is_scikit_learns() -> None:
    probabilities, target = drawn(0, 2)
    metric = metrics.brier(LABELS)
    metric.update(probabilities[:90], target[:90])
    metric.update(probabilities[90:], target[90:])
    expected = brier_score_loss(target, probabilities[:, 1])
    assert metric.compute() == pytest.approx(expected)


def test_accuracy_counts_what_is_right() -> None:
    metric = metrics.accuracy(LABELS)
    rows = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
    metric.update(rows, torch.tensor([0, 1, 1]))
    assert metric.compute() == pytest.approx(2 / 3)


def test_one_class_alone_has_no_curve() -> None:
    for make in (metrics.auroc, metrics.sensitivity_at_95):
        metric = make(LABELS)
        metric.update(torch.tensor([[0.4, 0.6]]), torch.tensor([1]))
        assert np.isnan(metric.compute())


def test_reconstruction_is_measured_against_a_blank() -> None:
    task = {"kind": "reconstruction"}
    outputs = {"error": torch.tensor([1.0, 2.0]), "blank": torch.tensor([2.0, 2.0])}
    error, relative = metrics.reconstruction_error(task), metrics.relative_error(task)
    error.update(outputs["error"])
    relative.update(outputs["error"], outputs["blank"])
    assert (error.compute(), relative.compute()) == (1.5, 0.75)
    assert metrics.relative_error_scores(task, outputs).tolist() == [[1, 2], [2, 2]]


def test_intervals_draw_whole_patients() -> None:
    values = np.array([0.0, 0.0, 0.0, 0.0, 1.0])
    patients = ["a", "a", "a", "a", "b"]
    mean = {"mean": lambda rows: float(values[rows].mean())}
    (bounds,) = over_patients(mean, patients).values()
    # Both draws are of one patient in a quarter of the cases each.
    assert bounds == (0.0, 1.0)
    assert over_patients(mean, patients) == over_patients(mean, patients)
    assert over_patients(mean, ["a"] * 5) == {"mean": None}


def test_interval_of_a_mean_is_about_two_standard_errors() -> None:
    values = np.random.default_rng(1).normal(size=400)
    mean = {"mean": lambda rows: float(values[rows].mean())}
    low, high = over_patients(mean, [str(i) for i in range(400)])["mean"]
    half = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - half, abs=0.008)
    assert high == pytest.approx(values.mean() + half, abs=0.008)


def test_draws_are_not_kept() -> None:
    drawn = []

    def first(rows: np.ndarray) -> float:
        # Of many slices, two thousand draws would fill the memory.
        assert sum(draw() is not None for draw in drawn) < 3
        drawn.append(weakref.ref(rows))
        return float(rows[0])

    over_patients({"first": first}, ["a", "b", "c"], resamples=50)
    assert len(drawn) == 50


def test_a_statistic_without_value_in_most_draws_has_no_interval() -> None:
    never = {"never": lambda _: float("nan")}
    assert over_patients(never, ["a", "b"]) == {"never": None}
    # A quarter of the draws has the second patient alone.
    rare = {"rare": lambda rows: 1.0 if (rows == 1).all() else float("nan")}
    assert over_patients(rare, ["a", "b"]) == {"rare": None}


def test_masks_may_be_tensors() -> None:
    found, true = blank((2, 5)), blank((2, 8))
    masks = torch.from_numpy(found), torch.from_numpy(true)
    said = measures.overlap(*masks, torch.tensor(SPACING), 2)
    assert said["dice"] == pytest.approx([2 / 3])
