"""Whole runs of the vision plugin, as its users start them."""

from __future__ import annotations

import json

import pytest

import headstart
from headstart.plugins import load_plugins
from headstart.recipe import load_recipe
from headstart_vision.tiny_classification import tiny_classification
from headstart_vision.tiny_masks import tiny_masks
from headstart_vision.tiny_objects import tiny_objects

QUICK = {
    "backbone.weights": "none",
    "backbone.width": 0.25,
    "train.max_steps": 2,
    "train.batch_size": 4,
    "report.scratch_control": False,
}
OWN = {
    "classify": (tiny_classification, {"data.size": 64}),
    "detect": (tiny_objects, {"data.kind": "boxes"}),
    "instance": (tiny_objects, {}),
    "segment": (tiny_masks, {}),
}
FILES = {
    "classify": {"predictions.json", "predictions.csv"},
    "detect": {"predictions.json", "annotated"},
    "instance": {"predictions.json", "annotated"},
    "segment": {"predictions.json", "annotated", "masks"},
}


@pytest.mark.parametrize("name", OWN)
def test_every_recipe_runs_whole_on_data_of_ones_own(name, tmp_path):
    tiny, settings = OWN[name]
    (tmp_path / "own").mkdir()
    data = {f"data.{key}": value for key, value in tiny(tmp_path / "own").items()}
    overrides = {**QUICK, **data, **settings}
    run = headstart.run(f"vision/{name}", overrides, folder=tmp_path / "run")
    assert run.summary["status"] == "done"
    assert set(run.recipe().metrics.names) <= set(run.metrics)
    photo = next((tmp_path / "own").glob("**/*.png"))
    written = run.predict_into(tmp_path / "out", [photo])
    assert {path.name for path in written} == FILES[name]
    assert all(path.exists() for path in written)
    about = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [entry["file_name"] for entry in about["images"]] == [photo.as_posix()]
    for entry in about["images"]:
        assert name == "classify" or (tmp_path / "out" / entry["annotated"]).is_file()


@pytest.mark.parametrize("name", ["detect", "instance", "segment"])
def test_recipes_say_nothing_about_data_of_ones_own(name):
    """Classes of the scenes are none of a user's: no mask's 0 becomes a garment."""
    data = "vision/masks" if name == "segment" else "vision/objects"
    overrides = {"data.name": data, "data.path": "photos"}
    recipe = load_recipe(f"vision/{name}", overrides, registry=load_plugins())
    assert recipe.data.labels == ()
    given = recipe.data.model_fields_set
    assert given <= {"name", "path", "kind", "augmentation"}


def test_own_pictures_are_not_sampled_as_fashion_mnist_is():
    overrides = {"data.path": "photos"}
    recipe = load_recipe("vision/classify", overrides, registry=load_plugins())
    assert recipe.data.rows is None


@pytest.mark.parametrize(
    ("recipe", "head", "more"),
    [
        ("vision/detect", "vision/retinanet", {"head.anchor_sizes": []}),
        ("vision/detect", "vision/ssdlite", {}),
        ("vision/segment", "vision/fcn", {}),
        ("vision/segment", "vision/lraspp", {}),
    ],
)
def test_heads_of_a_recipe_can_be_exchanged(recipe, head, more):
    overrides = {"head.name": head, **more}
    assert load_recipe(recipe, overrides, registry=load_plugins()).head.name == head
