"""Sections of the report: what they say, and that views are upright."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np
import pytest

from headstart.report.parts import Evaluation, Section
from headstart_medical import charts, metrics, sections, views
from headstart_medical.sections import classification_sections, segmentation_sections

if TYPE_CHECKING:
    from pathlib import Path

TASK = {"kind": "volume-segmentation", "labels": ["background", "tumour"]}


def ball(shape: tuple[int, int, int], middle: tuple[int, int, int], radius: float):
    axes = np.stack(np.mgrid[tuple(slice(n) for n in shape)])
    distance = np.linalg.norm(axes - np.reshape(middle, (3, 1, 1, 1)), axis=0)
    return (distance <= radius).astype(np.uint8)


def evaluation(folder: Path, rows: int = 12) -> Evaluation:
    """Three cases of two patients: half right, wholly right, missed."""
    truth = ball((40, 36, 20), (26, 12, 10), 4)
    half = truth.copy()
    half[:26] = 0
    image = np.where(ball((40, 36, 20), (20, 18, 10), 15) > 0, 60, 0) + 90 * truth
    path = folder / "a.nii.gz"
    affine = np.diag([2.0, 2.0, 2.5, 1.0])
    nib.Nifti1Image(image.astype(np.int16), affine).to_filename(path)
    return Evaluation(
        split="test",
        metrics={},
        outputs={
            "prediction": [half, truth, np.zeros_like(truth)],
            "target": [truth] * 3,
            "spacing": np.array([[2.0, 2.0, 2.5]] * 3, dtype=np.float32),
        },
        task=TASK,
        samples=[
            {"case": "a1", "patient": "a", "image": str(path)},
            {"case": "a2", "patient": "a", "image": str(path)},
            {"case": "b1", "patient": "b", "image": str(folder / "gone.nii.gz")},
        ],
        rows=rows,
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Section]:
    found = segmentation_sections(evaluation(tmp_path_factory.mktemp("cases")))
    return {section.title: section for section in found}


def test_cases_come_worst_first(made: dict[str, Section]) -> None:
    (table,) = made["Cases, worst first"].tables
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    assert [row["case"] for row in rows] == ["b1", "a1", "a2"]
    assert [row["lesions found"] for row in rows] == ["0 of 1", "1 of 1", "1 of 1"]
    assert rows[0]["Dice"] == 0 and rows[2]["Dice"] == 1
    assert rows[0]["true ml"] == pytest.approx(2.57)  # 257 voxels of 10 mm³
    assert rows[0]["predicted ml"] == 0


def test_classes_have_means_and_the_convention_is_stated(
    made: dict[str, Section],
) -> None:
    section = made["Results by class"]
    ((label, cases, mean, median, *_),) = section.tables[0].rows
    rows = made["Cases, worst first"].tables[0].rows
    dices = [row[2] for row in rows]
    assert (label, cases) == ("tumour", 3)
    assert mean == pytest.approx(np.mean(dices)) and median == dices[1]
    assert "Where neither truth nor prediction" in section.text


def test_intervals_are_over_patients(made: dict[str, Section]) -> None:
    section = made["Intervals over patients"]
    name, value, low, high = section.tables[0].rows[0]
    dices = dict(row[::2][:2] for row in made["Cases, worst first"].tables[0].rows)
    # The draws are of a alone, of b alone, or of both.
    both = (dices["a1"] + dices["a2"]) / 2
    assert (name, low) == ("Dice", 0)
    assert value == pytest.approx(sum(dices.values()) / 3)
    assert high == pytest.approx(both)
    assert "2 patients are few" in section.text
    assert section.tables[0].caption.startswith("3 cases of 2 patients")


def test_views_are_drawn_even_where_the_volume_is_gone(
    made: dict[str, Section],
) -> None:
    figures = made["Truth and prediction"].figures
    assert len(figures) == 3 and all(f.svg.startswith("<svg") for f in figures)
    assert figures[0].caption.startswith("b1: Dice 0.000")
    assert "cannot be read" in figures[0].caption
    assert "cannot be read" not in figures[1].caption
    for colour in (views.TRUTH, views.FOUND):
        assert colour.lower() in figures[1].svg.lower()


def test_boxplots_are_there(made: dict[str, Section]) -> None:
    figures = made["Cases, worst first"].figures
    assert ["Dice" in f.caption for f in figures] == [True, False]


def test_rows_limit_the_table_and_the_views(tmp_path: Path) -> None:
    found = {s.title: s for s in segmentation_sections(evaluation(tmp_path, rows=2))}
    assert len(found["Cases, worst first"].tables[0].rows) == 2
    section = found["Truth and prediction"]
    assert [f.caption[:2] for f in section.figures] == ["b1", "a2"]
    assert "2 of 3 cases, from the worst to the best" in section.text
    none = [s.title for s in segmentation_sections(evaluation(tmp_path, rows=0))]
    assert "Truth and prediction" not in none


def test_views_stop_before_the_page_is_too_heavy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sections, "HEAVIEST", 1)
    found = {s.title: s for s in segmentation_sections(evaluation(tmp_path))}
    section = found["Truth and prediction"]
    assert [f.caption[:2] for f in section.figures] == ["b1"]
    assert "1 of 3 cases" in section.text


def test_paths_stay_out_of_the_tables(made: dict[str, Section]) -> None:
    cells = [
        str(cell)
        for section in made.values()
        for table in section.tables
        for row in table.rows
        for cell in row
    ]
    assert not any(".nii.gz" in cell for cell in cells)


def test_a_view_does_not_depend_on_how_the_file_is_stored() -> None:
    truth = ball((24, 20, 16), (6, 5, 4), 3)
    found = ball((24, 20, 16), (8, 5, 4), 3)
    image = np.random.default_rng(0).normal(size=truth.shape)
    affine = np.diag([2.0, 2.5, 3.0, 1.0])
    upright = views.three_views(views.Case(image, truth, found, affine), TASK["labels"])
    # To the left, to the back; and stored from slice to slice first.
    orientation = np.array([[1, -1], [2, -1], [0, 1]])
    turned = [nib.apply_orientation(a, orientation) for a in (image, truth, found)]
    other = affine @ nib.orientations.inv_ornt_aff(orientation, truth.shape)
    assert views.three_views(views.Case(*turned, other), TASK["labels"]) == upright


def test_the_right_is_on_the_left_and_the_front_on_top(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One bright voxel at the right, front and top, as drawn on the axes."""
    drawn: list[tuple[np.ndarray, Any]] = []
    axes = painted(monkeypatch, views)
    image = np.zeros((5, 6, 7))
    truth = np.zeros(image.shape, dtype=np.uint8)
    image[4, 5, 6] = truth[4, 5, 6] = 1
    image[0, 0, 0] = 0.2
    views.three_views(views.Case(image, truth, truth, np.eye(4)), TASK["labels"])
    drawn.extend((np.asarray(i.get_array()), i.get_extent()) for i in axes.images)
    corners = [np.argwhere(ground == 255).tolist() for ground, _ in drawn]
    # Rows go up, columns to the right of the page.
    assert corners == [[[5, 0]], [[6, 0]], [[6, 0]]]
    heights = [top - bottom for _, (_, _, bottom, top) in drawn]
    assert heights == pytest.approx([heights[0]] * 3)
    # The prediction's outline and the truth's, around the voxel at the top left.
    for view, (ground, (left, right, bottom, top)) in enumerate(drawn):
        rows, columns = ground.shape
        ends = [left, left + (right - left) / columns, top - (top - bottom) / rows, top]
        for line in axes.lines[2 * view : 2 * view + 2]:
            x, y = (np.asarray(part, dtype=float) for part in line.get_data())
            found = [np.nanmin(x), np.nanmax(x), np.nanmin(y), np.nanmax(y)]
            assert found == pytest.approx(ends)


def painted(monkeypatch: pytest.MonkeyPatch, module: Any) -> Any:
    """The axes that a module draws on."""
    from matplotlib.figure import Figure

    axes = Figure().add_subplot()

    def paint(draw: Any, **_: Any) -> str:
        draw(axes)
        return ""

    monkeypatch.setattr(module, "render", paint)
    return axes


def test_few_values_are_dots_without_a_box(monkeypatch: pytest.MonkeyPatch) -> None:
    axes = painted(monkeypatch, charts)
    four = np.array([0.1, 0.2, 0.3, 0.4, np.nan])
    charts.boxes({"few": four, "enough": np.append(four, 0.5)}, "Dice")
    assert len(axes.patches) == 1
    assert [len(dots.get_offsets()) for dots in axes.collections] == [4, 5]


def test_equal_scores_are_one_step_of_the_curve() -> None:
    scores, positive = np.array([0.5, 0.5, 0.2]), np.array([True, False, True])
    assert charts._roc(scores, positive) == ([0, 1, 1], [0, 0.5, 1])


def test_an_outline_runs_along_the_edges_of_voxels() -> None:
    mask = np.zeros((4, 3), dtype=bool)
    mask[1:3, 1] = True
    x, y = views._outline(mask)
    lines = np.stack([x, y], 1).reshape(-1, 3, 2)[:, :2]
    assert sorted(lines.tolist()) == [
        [[1, 1], [1, 2]],
        [[1, 1], [3, 1]],
        [[1, 2], [3, 2]],
        [[3, 1], [3, 2]],
    ]


def test_a_small_lesion_gets_a_closer_look() -> None:
    truth = ball((64, 64, 40), (40, 20, 22), 2)
    near = views.three_views(
        views.Case(None, truth, truth, np.diag([3, 3, 4, 1.0])), TASK["labels"]
    )
    far = views.three_views(views.Case(None, truth, truth, np.eye(4)), TASK["labels"])
    # A window is 40 mm, too much of a volume of 64 x 64 x 40 mm.
    assert (near.count("<image"), far.count("<image")) == (6, 3)


def test_the_point_is_inside_the_largest_lesion_of_the_truth() -> None:
    # A ring: its centre of mass lies outside.
    ring = ball((30, 30, 9), (15, 15, 4), 12) - ball((30, 30, 9), (15, 15, 4), 9)
    truth = ring | ball((30, 30, 9), (15, 15, 4), 1)
    case = views.Case(None, truth, np.zeros_like(truth), np.eye(4))
    point, _ = views._largest_lesion(case, np.ones(3))
    assert ring[tuple(point)] == 1
    # Two: the first is smaller, and of the second the middle is taken.
    truth = ball((30, 30, 9), (3, 3, 4), 1) | ball((30, 30, 9), (20, 18, 4), 4)
    case = views.Case(None, truth, np.zeros_like(truth), np.eye(4))
    point, size = views._largest_lesion(case, np.array([1.0, 1.0, 2.0]))
    assert point.tolist() == [20, 18, 4] and size == 2 * 9


def test_classified_cases_have_intervals_and_curves() -> None:
    task = {"kind": "single-label", "labels": ["without", "with"]}
    outputs = {k: v.numpy() for k, v in metrics.sample_outputs(task, 12).items()}
    shown = [
        {"case": f"s{i}", "patient": f"p{i // 4}", "image": "x.nii.gz"}
        for i in range(12)
    ]
    found = classification_sections(Evaluation("test", {}, outputs, task, shown))
    by_title = {section.title: section for section in found}
    table = by_title["Intervals over patients"].tables[0]
    values = {row[0]: row[1] for row in table.rows}
    right = (outputs["prediction"] == outputs["target"]).mean()
    assert values["accuracy"] == pytest.approx(right)
    assert table.caption.startswith("12 cases of 3 patients")
    area = values["AUROC"]
    assert re.search(rf">with {area:.2f}<", by_title["ROC curve"].figures[0].svg)
    assert "image" not in by_title["Most unsure"].tables[0].columns
