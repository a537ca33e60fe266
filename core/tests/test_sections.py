"""Sections and intervals: their numbers against plain references."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose

from headstart.errors import PluginError
from headstart.report import plots, sections
from headstart.report.intervals import gains, interval, intervals, mean_interval
from headstart.report.parts import Evaluation
from headstart.specs import MetricSpec

LABELS = ["bad", "fair", "good"]


def evaluation(
    seed: int = 0, count: int = 200, classes: int = 3, **more: Any
) -> Evaluation:
    rng = np.random.default_rng(seed)
    target = rng.integers(0, classes, count)
    logits = rng.normal(size=(count, classes))
    logits[np.arange(count), target] += 1.0
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    prediction = probabilities.argmax(axis=1)
    labels = LABELS if classes == 3 else [f"c{i}" for i in range(classes)]
    return Evaluation(
        split="test",
        metrics={"accuracy": float((prediction == target).mean())},
        outputs={
            "target": target,
            "prediction": prediction,
            "probabilities": probabilities,
        },
        task={"labels": labels},
        samples=[
            {"id": i, "text": f"text {i}", "label": labels[target[i]]}
            for i in range(count)
        ],
        **more,
    )


def picked(target: Any, probabilities: Any, **more: Any) -> Evaluation:
    rows = np.asarray(probabilities)
    outputs = {"target": np.asarray(target), "probabilities": rows}
    samples = [{"text": f"t{i}"} for i in range(len(rows))]
    return Evaluation("test", {}, outputs, {"labels": LABELS}, samples, **more)


def test_per_label_equals_scikit_learn() -> None:
    reference = pytest.importorskip("sklearn.metrics")
    given = evaluation()
    [table] = sections.per_label(given).tables
    expected = reference.precision_recall_fscore_support(
        given.outputs["target"], given.outputs["prediction"]
    )
    assert [row[0] for row in table.rows] == LABELS
    assert_allclose(np.array([row[1:] for row in table.rows], float).T, expected)


def test_per_label_of_several_labels_equals_scikit_learn() -> None:
    reference = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(1)
    outputs = {
        "target": rng.integers(0, 2, (100, 3)),
        "prediction": rng.integers(0, 2, (100, 3)),
    }
    outputs["prediction"][:, 2] = 0  # a label that is never said
    given = Evaluation("test", {}, outputs, {"labels": LABELS}, [])
    [table] = sections.per_label(given).tables
    expected = reference.precision_recall_fscore_support(
        outputs["target"], outputs["prediction"], zero_division=0
    )
    assert_allclose(np.array([row[1:] for row in table.rows], float).T, expected)


def test_confusion_matrix_equals_scikit_learn() -> None:
    reference = pytest.importorskip("sklearn.metrics")
    given = evaluation()
    [figure] = sections.confusion_matrix(given).figures
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", figure.svg)
    counts = [int(text) for text in texts if text.isdigit()]
    expected = reference.confusion_matrix(
        given.outputs["target"], given.outputs["prediction"]
    )
    assert counts == expected.ravel().tolist()
    assert set(LABELS) <= set(texts)


def test_many_classes_give_the_most_confused_pairs() -> None:
    reference = pytest.importorskip("sklearn.metrics")
    given = evaluation(count=600, classes=21)
    section = sections.confusion_matrix(given)
    assert section.figures == ()
    [table] = section.tables
    counts = reference.confusion_matrix(
        given.outputs["target"], given.outputs["prediction"]
    )
    for true, predicted, count, share in table.rows:
        row, column = int(str(true)[1:]), int(str(predicted)[1:])
        assert row != column
        assert count == counts[row, column]
        assert share == pytest.approx(count / counts[row].sum())
    off = np.sort((counts - np.diag(np.diag(counts))).ravel())[::-1]
    assert [row[2] for row in table.rows] == off[:20].tolist()
    assert f"of {(off > 0).sum()} pairs" in table.caption


def test_labels_with_markup_and_dollars_stay_text() -> None:
    outputs = {"target": np.array([0, 1]), "prediction": np.array([0, 1])}
    given = Evaluation("test", {}, outputs, {"labels": ["<script>", "$x_1$"]}, [])
    [figure] = sections.confusion_matrix(given).figures
    assert "<script>" not in figure.svg
    assert ">&lt;script&gt;</text>" in figure.svg
    assert ">$x_1$</text>" in figure.svg


def test_most_wrong_takes_the_surest_mistakes_first() -> None:
    given = picked(
        [0, 0, 1, 2, 2],
        [
            [0.2, 0.5, 0.3],  # wrong, .5
            [0.9, 0.1, 0.0],  # right
            [0.8, 0.1, 0.1],  # wrong, .8
            [0.1, 0.6, 0.3],  # wrong, .6
            [0.0, 0.0, 1.0],  # right
        ],
        rows=2,
    )
    [table] = sections.most_wrong(given).tables
    assert table.columns == ("text", "true", "predicted", "probability")
    assert table.rows == (("t2", "fair", "bad", 0.8), ("t3", "good", "fair", 0.6))
    assert table.caption == "2 of 3 wrong samples, test split."


def test_most_wrong_says_when_nothing_is() -> None:
    section = sections.most_wrong(picked([0], [[0.9, 0.1, 0.0]]))
    assert section.tables == ()
    assert "No sample" in section.text


def test_most_unsure_takes_the_smallest_margin_first() -> None:
    given = picked(
        [0, 1, 2],
        [[0.7, 0.2, 0.1], [0.45, 0.1, 0.45], [0.3, 0.2, 0.5]],
        rows=2,
    )
    [table] = sections.most_unsure(given).tables
    assert [row[0] for row in table.rows] == ["t1", "t2"]
    first = dict(zip(table.columns, table.rows[0], strict=True))
    assert (first["true"], first["predicted"]) == ("fair", "bad")
    assert (first["runner-up"], first["margin"]) == ("good", 0.0)


def test_wrong_and_unsure_with_several_labels() -> None:
    given = picked(
        [[1, 0, 0], [0, 0, 1], [1, 1, 0]],
        [[0.9, 0.95, 0.1], [0.1, 0.2, 0.9], [0.03, 0.9, 0.48]],
    )
    [wrong] = sections.most_wrong(given).tables
    assert wrong.columns == ("text", "label", "true", "probability")
    assert wrong.rows == (("t2", "bad", "yes", 0.03), ("t0", "fair", "no", 0.95))
    [unsure] = sections.most_unsure(given).tables
    assert unsure.rows[0] == ("t2", "good", "no", 0.48)


def test_samples_are_shown_once_and_short() -> None:
    given = evaluation(rows=5)
    [table] = sections.most_unsure(given).tables
    assert "label" not in table.columns  # the same as "true"
    assert table.columns[:2] == ("id", "text")
    assert len(table.rows) == 5
    long = Evaluation(
        "test", {}, given.outputs, given.task, lambda i: {"text": "x" * 5000}, rows=1
    )
    [table] = sections.most_unsure(long).tables
    assert len(str(table.rows[0][0])) == 400


def test_calibration_error_by_hand() -> None:
    # Bins (.5, .6] and (.9, 1]: |.55 - .5| and |.95 - 1|, two of four samples each.
    given = picked(
        [0, 1, 0, 0],
        [[0.55, 0.45, 0.0], [0.55, 0.45, 0.0], [0.95, 0.05, 0.0], [0.95, 0.05, 0.0]],
    )
    assert "error 0.050;" in sections.calibration(given).text


def test_predicted_against_true_equals_scikit_learn() -> None:
    reference = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(2)
    target = rng.normal(size=80)
    prediction = 0.5 * target + rng.normal(size=80)
    given = Evaluation(
        "test",
        {},
        {"target": target, "prediction": prediction[:, None]},
        {},
        [{"id": i} for i in range(80)],
        rows=3,
    )
    section = sections.predicted_against_true(given)
    values = dict(section.tables[0].rows)
    expected = {
        "mean (bias)": np.mean(prediction - target),
        "mean absolute error": reference.mean_absolute_error(target, prediction),
        "root mean squared error": reference.root_mean_squared_error(
            target, prediction
        ),
        "median absolute error": reference.median_absolute_error(target, prediction),
        "coefficient of determination R²": reference.r2_score(target, prediction),
    }
    for name, value in expected.items():
        assert values[name] == pytest.approx(value), name
    worst = np.argsort(-np.abs(prediction - target))[:3]
    assert [row[0] for row in section.tables[1].rows] == worst.tolist()


def test_missing_output_is_named() -> None:
    given = Evaluation("test", {}, {"targets": [0]}, {}, [])
    with pytest.raises(PluginError, match="no 'target'") as raised:
        sections.confusion_matrix(given)
    assert "did you mean 'targets'?" in str(raised.value)


def test_interval_of_an_accuracy() -> None:
    # Wilson's score interval worked out for 8 right of 10.
    low, high = interval([True] * 8 + [False] * 2)
    assert (low, high) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert interval([True] * 5)[1] == pytest.approx(1.0)
    assert interval([False] * 5)[0] == pytest.approx(0.0)


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(3)
    drawn = rng.random((2000, 60)) < 0.9
    bounds = np.array([interval(row) for row in drawn])
    covered = ((bounds[:, 0] <= 0.9) & (0.9 <= bounds[:, 1])).mean()
    assert 0.93 <= covered <= 0.98


def test_intervals_only_of_means_over_samples() -> None:
    given = evaluation()
    correct = given.outputs["target"] == given.outputs["prediction"]
    assert intervals(given) == {"accuracy": list(interval(correct))}
    macro = Evaluation("test", {"accuracy": 0.123}, given.outputs, given.task, [])
    assert intervals(macro) == {}


def test_interval_of_several_labels_is_that_of_whole_samples() -> None:
    rng = np.random.default_rng(5)
    target, prediction = rng.integers(0, 2, (2, 60, 2))
    right = (target == prediction).all(axis=1)
    metrics = {"exact-match": float(right.mean()), "accuracy": 0.5}
    outputs = {"target": target, "prediction": prediction}
    given = Evaluation("test", metrics, outputs, {}, [])
    assert intervals(given) == {"exact-match": list(interval(right))}


def test_gains_are_paired_and_positive_when_better() -> None:
    target = np.arange(100) % 2
    theirs = target.copy()
    theirs[:30] = 1 - theirs[:30]
    ours = target.copy()
    ours[:10] = 1 - ours[:10]

    def result(prediction: np.ndarray) -> Evaluation:
        accuracy = float((prediction == target).mean())
        outputs = {"target": target, "prediction": prediction}
        return Evaluation("test", {"accuracy": accuracy}, outputs, {}, [])

    low, high = gains(result(ours), result(theirs))["accuracy"]
    half = 1.959964 * np.sqrt(0.2 * 0.8 * 100 / 99 / 100)
    assert (low, high) == pytest.approx((0.2 - half, 0.2 + half))
    assert gains(result(theirs), result(ours))["accuracy"][1] == pytest.approx(-low)


def test_gains_of_an_error_turn_its_sign() -> None:
    target = np.linspace(0, 1, 50)
    noise = np.random.default_rng(4).normal(size=50)

    def result(prediction: np.ndarray) -> Evaluation:
        error = float(np.abs(prediction - target).mean())
        outputs = {"target": target, "prediction": prediction}
        return Evaluation("test", {"mean-absolute-error": error}, outputs, {}, [])

    ours, theirs = result(target + 0.1 * noise), result(target + noise)
    assert gains(ours, theirs)["mean-absolute-error"][0] > 0


def documents(nll: Any, tokens: Any) -> Evaluation:
    """A language model's result on documents of several lengths."""
    spec = MetricSpec(
        name="toy/perplexity",
        summary="",
        factory="",
        inputs=("nll", "tokens"),
        kinds=("text",),
        goal="min",
        sample="",
        sample_task={},
        scores="given",
        link="exp",
    )
    value = float(np.exp(np.sum(nll) / np.sum(tokens)))
    return Evaluation(
        "test",
        {"perplexity": value},
        {},
        {},
        [],
        scores={"perplexity": np.stack([nll, tokens], axis=1)},
        specs={"perplexity": spec},
    )


def drawn_documents(rng: Any, count: int) -> tuple[Any, Any, Any]:
    """Summed losses of two models, alike by document, and numbers of tokens."""
    tokens = rng.integers(5, 200, count)
    difficulty = rng.normal(3.2, 0.5, count)
    # Short documents are harder, so a mean over documents would be another number.
    difficulty += 20 / tokens
    theirs = difficulty + rng.normal(0.4, 0.1, count)
    return difficulty * tokens, theirs * tokens, tokens


def test_perplexity_has_the_interval_of_a_bootstrap_over_documents() -> None:
    rng = np.random.default_rng(0)
    nll, other, tokens = drawn_documents(rng, 300)
    ours, theirs = documents(nll, tokens), documents(other, tokens)
    picks = rng.integers(0, 300, (4000, 300))
    length = tokens[picks].sum(axis=1)
    one, two = (np.exp(x[picks].sum(axis=1) / length) for x in (nll, other))
    low, high = intervals(ours)["perplexity"]
    value = ours.metrics["perplexity"]
    assert low < value < high
    assert low * high == pytest.approx(value**2)
    assert (low, high) == pytest.approx(np.quantile(one, [0.025, 0.975]), rel=0.01)
    gain = gains(ours, theirs)["perplexity"]
    assert sum(gain) / 2 == pytest.approx(theirs.metrics["perplexity"] - value)
    assert gain == pytest.approx(np.quantile(two - one, [0.025, 0.975]), rel=0.03)
    # Paired: narrower than what two samples of documents would give.
    apart = two - rng.permutation(one)
    low, high = np.quantile(apart, [0.025, 0.975])
    assert gain[1] - gain[0] < (high - low) / 2
    assert gains(theirs, ours)["perplexity"] == pytest.approx([-gain[1], -gain[0]])


def test_interval_of_perplexity_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    nll, _, tokens = drawn_documents(rng, 200_000)
    truth = np.exp(nll.sum() / tokens.sum())
    covered = 0
    for start in range(0, 60_000, 60):
        rows = slice(start, start + 60)
        low, high = intervals(documents(nll[rows], tokens[rows]))["perplexity"]
        covered += low <= truth <= high
    assert 925 <= covered <= 970


def test_documents_that_do_not_count_change_no_interval() -> None:
    nll, other, tokens = drawn_documents(np.random.default_rng(2), 40)
    ours, theirs = documents(nll, tokens), documents(other, tokens)

    def longer(given: Evaluation) -> Evaluation:
        rows = np.insert(given.scores["perplexity"], 7, np.nan, axis=0)
        return replace(given, scores={"perplexity": rows})

    [alone] = intervals(ours).values()
    assert intervals(longer(ours))["perplexity"] == pytest.approx(alone)
    paired = gains(longer(ours), longer(theirs))["perplexity"]
    assert paired == pytest.approx(gains(ours, theirs)["perplexity"])


def test_mean_interval_by_hand() -> None:
    # Mean 2, standard error 1 / sqrt(3).
    assert mean_interval([1, 2, 3]) == pytest.approx((0.8684, 3.1316), abs=1e-4)


def test_smoothing_keeps_what_does_not_vary_and_bridges_nothing() -> None:
    assert_allclose(plots.smooth([2.0] * 90), 2.0)
    steps = np.arange(90.0)
    assert_allclose(plots.smooth(steps)[10:80], steps[10:80])
    broken = steps.copy()
    broken[40] = np.nan
    smooth = plots.smooth(broken)
    assert np.isnan(smooth[40])
    assert np.isfinite(np.delete(smooth, 40)).all()


def test_drawing_changes_nothing_global_and_repeats_to_the_byte() -> None:
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    lines = [plots.Series("a", [1, 2, 3], [1e-5, 1e-3, 0.0])]
    drawn = plots.curves(lines, xlabel="step", ylabel="rate", log_y=True, stop=3)
    assert dict(mpl.rcParams) == before
    again = plots.curves(lines, xlabel="step", ylabel="rate", log_y=True, stop=3)
    assert drawn == again
    assert drawn.startswith("<svg")
    assert ">1e-4</text>" in drawn
    assert 'id="figure' not in drawn


def test_drawing_holds_no_date() -> None:
    drawn = plots.curves([plots.Series("a", [1], [1])], xlabel="x", ylabel="y")
    assert "date" not in drawn.lower()
