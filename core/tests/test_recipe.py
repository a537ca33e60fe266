"""Recipes: what they may say, what overrides change, and how faults are told."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

import pytest
import tomli_w
from pydantic import BaseModel, Field, ValidationError

from headstart.errors import Fault, HeadstartError, PluginError, UserError
from headstart.explain import setting_faults
from headstart.hookspecs import HOOK_API, hookimpl
from headstart.plugins import PluginInfo, Registry
from headstart.recipe import (
    SECTIONS,
    Recipe,
    build_recipe,
    load_recipe,
    parse_overrides,
    read_recipe,
)
from headstart.settings import BackboneSettings, DataSettings, HeadSettings
from headstart.specs import BackboneSpec, DataSpec, Feature, HeadSpec, MetricSpec
from headstart.testing import toy

if TYPE_CHECKING:
    from collections.abc import Sequence

HERE = "other_plugin"


class OpenSettings(BackboneSettings):
    """A backbone whose configuration is any table."""

    config: dict[str, Any] = Field(default_factory=dict)


class FolderSettings(DataSettings):
    """Data with settings of every shape."""

    path: str = ""
    columns: tuple[str, ...] = ()
    bins: dict[str, tuple[float, float]] = Field(default_factory=dict)
    weights: Literal["none", "balanced"] | dict[str, float] = "none"


class MasksSettings(HeadSettings):
    """Nothing beyond the name."""


class Other:
    """A plugin whose pieces fit each other and nothing of the toy."""

    @staticmethod
    @hookimpl
    def register_backbones() -> Sequence[BackboneSpec]:
        return [
            BackboneSpec(
                name="other/images",
                summary="",
                factory="",
                settings=f"{HERE}:OpenSettings",
                weights="none",
                inputs=("pixels",),
                features=(Feature("map", "map", 4),),
                sample="",
            )
        ]

    @staticmethod
    @hookimpl
    def register_heads() -> Sequence[HeadSpec]:
        return [
            HeadSpec(
                name="other/masks",
                summary="",
                factory="",
                settings=f"{HERE}:MasksSettings",
                needs=("map",),
                targets=("masks",),
                kinds=("masks",),
                metrics=("dice",),
                sample="",
                sample_task={},
            )
        ]

    @staticmethod
    @hookimpl
    def register_data() -> Sequence[DataSpec]:
        return [
            DataSpec(
                name="other/folder",
                summary="",
                factory="",
                settings=f"{HERE}:FolderSettings",
                yields=("pixels", "masks"),
                tiny="",
            )
        ]

    @staticmethod
    @hookimpl
    def register_metrics() -> Sequence[MetricSpec]:
        return [MetricSpec("other/dice", "", "", (), ("masks",), "max", "", {})]


KINDS = ("single-label",)
OTHER = {
    "backbone": {"name": "other/images"},
    "head": {"name": "other/masks"},
    "data": {"name": "other/folder"},
}


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> Registry:
    """The toy, the plugin above, and one that failed to load."""
    module = ModuleType(HERE)
    for hook in ("backbones", "heads", "data", "metrics"):
        setattr(module, f"register_{hook}", getattr(Other, f"register_{hook}"))
    module.HOOK_API = HOOK_API  # type: ignore[attr-defined]
    for settings in (OpenSettings, FolderSettings, MasksSettings):
        setattr(module, settings.__name__, settings)
    monkeypatch.setitem(sys.modules, HERE, module)
    registry = Registry()
    for plugin, name in ((toy, "toy"), (module, "other")):
        info = registry.add(plugin, name)
        assert info.status == "loaded", info.cause
    registry.plugins.append(
        PluginInfo("ill", "ill-plugin", "2", "broken", "ImportError: libill.so.7")
    )
    return registry


@pytest.fixture
def toys(known: Registry) -> Any:
    """``toy/ring`` with overrides as the command line gives them."""

    def load(*pairs: str) -> Recipe:
        return load_recipe("toy/ring", parse_overrides(pairs), registry=known)

    return load


@pytest.fixture
def others(known: Registry) -> Any:
    """A recipe of the other plugin, with overrides."""

    def load(*pairs: str) -> Recipe:
        return build_recipe(
            OTHER, parse_overrides(pairs), origin="other.toml", registry=known
        )

    return load


def told(error: pytest.ExceptionInfo[HeadstartError]) -> str:
    (fault,) = error.value.faults
    return str(fault)


# Overrides


@pytest.mark.parametrize(
    ("pair", "value"),
    [
        ("a.b=3", 3),
        ("a.b=0.5", 0.5),
        ("a.b=5e-5", 5e-5),
        ("a.b=true", True),
        ("a.b=[1, 2]", [1, 2]),
        ('a.b=["x", "y"]', ["x", "y"]),
        ("a.b={low = 1, high = 2}", {"low": 1, "high": 2}),
        ('a.b="3"', "3"),
        ("a.b=reviews.csv", "reviews.csv"),
        ("a.b=hf:some/model@main", "hf:some/model@main"),
        ("a.b=x=y", "x=y"),
        ("a.b=", ""),
        ("a.b=1\nc = 2", "1\nc = 2"),
        (" a.b =3", 3),
    ],
)
def test_override_is_toml_else_text(pair: str, value: object) -> None:
    (found,) = parse_overrides([pair]).values()
    assert found == value
    assert type(found) is type(value)


def test_what_is_no_override_is_told_together() -> None:
    with pytest.raises(UserError) as error:
        parse_overrides(["epochs", "=3", "train..epochs=3", "train.epochs=3"])
    assert len(error.value.faults) == 3
    assert "'epochs' is not an override" in str(error.value)


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("2024.10", "2024.10"),
        ("2024-01-31", "2024-01-31"),
        ("true", "true"),
        ("1e5", "1e5"),
        ("007", "007"),
        ("nan", "nan"),
        ('"1e5"', "1e5"),
        ("", ""),
    ],
)
def test_text_setting_takes_what_was_written(others: Any, text: str, path: str) -> None:
    assert others(f"data.path={text}").data.path == path


def test_overrides_reach_their_types(toys: Any, others: Any) -> None:
    recipe = toys(
        "train.epochs=3",
        "train.batch_size=8",
        "train.learning_rate=auto",
        "report.baselines=false",
        "name=mine",
        "summary=2024",
        'metrics.names=["accuracy"]',
        "backbone.width=4",
        "early_stopping.metric=loss",
    )
    assert recipe.train.epochs == 3.0
    assert recipe.train.batch_size == 8
    assert recipe.train.learning_rate == "auto"
    assert recipe.report.baselines is False
    assert (recipe.name, recipe.summary) == ("mine", "2024")
    assert recipe.metrics.names == ("accuracy",)
    assert recipe.backbone.width == 4  # type: ignore[attr-defined]
    data = others('data.columns=["id", "text"]', "data.bins={low = [0, 1.5]}").data
    assert data.columns == ("id", "text")
    assert data.bins == {"low": (0.0, 1.5)}


def test_override_inside_a_table(others: Any) -> None:
    recipe = others(
        "backbone.config={layers = 2}",
        "backbone.config.hidden_size=32",
        "backbone.config.rope.base=10",
    )
    assert recipe.backbone.config == {
        "layers": 2,
        "hidden_size": 32,
        "rope": {"base": 10},
    }


def test_another_piece_leaves_the_keys_of_the_recipes_own_behind(
    toys: Any, known: Registry
) -> None:
    with pytest.raises(HeadstartError) as error:
        toys("data.name=other/folder", "data.noise=0.5")
    # Given for the new piece, this one is a mistake; the recipe's own are not.
    texts = [str(fault) for fault in error.value.faults]
    assert any("data.noise: unknown key" in text for text in texts)
    tables: dict[str, Any] = {
        "backbone": {"name": "toy/network", "width": 4, "widht": 4},
        "head": {"name": "other/masks"},
        "data": {"name": "other/folder"},
    }
    with pytest.raises(HeadstartError) as error:
        build_recipe(
            tables,
            parse_overrides(["backbone.name=other/images"]),
            origin="other.toml",
            registry=known,
        )
    (fault,) = error.value.faults
    assert "backbone.widht: unknown key" in str(fault)


def test_overrides_change_nobody_elses_tables(known: Registry) -> None:
    config = {"layers": 2}
    tables = {**OTHER, "backbone": {"name": "other/images", "config": {"a": 1}}}
    for overrides in (
        {"backbone.config": config, "backbone.config.hidden_size": 32},
        {"backbone.config.a": 2},
    ):
        build_recipe(tables, overrides, origin="x", registry=known)
    assert config == {"layers": 2}
    assert tables["backbone"] == {"name": "other/images", "config": {"a": 1}}


def test_override_from_python_may_be_a_path(known: Registry) -> None:
    overrides = {"data.path": Path("a") / "b.csv"}
    recipe = build_recipe(OTHER, overrides, origin="x", registry=known)
    assert recipe.data.path == str(Path("a/b.csv"))  # type: ignore[attr-defined]


@pytest.mark.parametrize("pair", ["train.epochs.x=3", "train.epochs.x.y=3"])
def test_override_inside_a_value(toys: Any, pair: str) -> None:
    with pytest.raises(UserError) as error:
        toys(pair)
    assert "train.epochs is a value, not a table" in told(error)


# Unknown keys


@pytest.mark.parametrize(
    ("pair", "hint"),
    [
        ("train.epohcs=3", "did you mean 'train.epochs'?"),
        ("epochs=3", "did you mean 'train.epochs'?"),
        ("ephocs=3", "did you mean 'train.epochs'?"),
        ("trian.epochs=3", "did you mean 'train.epochs'?"),
        ("trian.epohcs=3", "did you mean 'train.epochs'?"),
        ("train.width=4", "did you mean 'backbone.width'?"),
        ("noise=1", "did you mean 'data.noise'?"),
        ("train=3", "write train.KEY=value"),
        ("expect.zzz=1", "known: metrics, on, takes"),
        ("zzz.zzz=1", "known: backbone, cache, data,"),
    ],
)
def test_unknown_override_names_the_nearest(toys: Any, pair: str, hint: str) -> None:
    with pytest.raises(UserError) as error:
        toys(pair)
    assert "unknown key" in told(error)
    assert hint in told(error)
    assert "override" in told(error)


def test_unknown_keys_of_a_file_name_the_nearest(known: Registry) -> None:
    tables = {**OTHER, "trian": {"epochs": 1}, "epochs": 2, "head": "other/masks"}
    with pytest.raises(UserError) as error:
        build_recipe(tables, {}, origin="mine.toml", registry=known)
    text = str(error.value)
    assert "mine.toml: unknown key 'trian'\n    fix: did you mean 'train'?" in text
    assert "mine.toml: unknown key 'epochs'\n    fix: did you mean 'train." in text
    assert "mine.toml: head: must be a table\n    fix: write [head]" in text


# Values of the wrong kind, in plain words


@pytest.mark.parametrize(
    ("pair", "what", "more"),
    [
        ("train.epochs=many", "must be a number", 'it is "many"'),
        ("train.epochs=true", "must be a number", "it is true"),
        ("train.max_steps=true", "must be a number", "it is true"),
        ("train.epochs=0", "must be above 0", "it is 0"),
        ("train.batch_size=0", "must be at least 1", "Samples per optimizer step"),
        ("train.batch_size=2.5", "must be a whole number", "it is 2.5"),
        ("train.warmup=1.5", "must be at most 1", "it is 1.5"),
        ("train.ema=1", "must be below 1", "it is 1"),
        ("train.clip=inf", "must be a finite number", ""),
        ("train.learning_rate=fast", "must be a number or 'auto'", 'it is "fast"'),
        ("train.learning_rate=-1", "must be above 0 or 'auto'", "it is -1"),
        ("report.baselines=7", "must be true or false", "it is 7"),
        ("data.bad=skpi", "must be one of 'stop', 'skip'", "did you mean 'skip'?"),
        ("strategy.name=lpft", "'lp-ft'", "did you mean 'lp-ft'?"),
        ("metrics.names=accuracy", "must be a list", 'write names = ["accuracy"]'),
        ("metrics.names=a, b", "must be a list", 'write names = ["a", "b"]'),
        ("strategy.lora.rnk=3", "unknown key", "did you mean 'strategy.lora.rank'?"),
        ("train.epochs=[3]", "must be a number", "it is [3]"),
        ("head.name=", "no head ''", "toy/classifier"),
        ("head.name=[1]", "names no head", "headstart list heads"),
        ("expect.metrics={accuracy=[1]}", "too few values", "accuracy"),
        ("expect.metrics={accuracy=[0, 1, 2]}", "a list of at most 2", "accuracy"),
        ("expect.metrics={accuracy=[1, 0]}", "upside down", "[0.0, 1.0]"),
        ("expect.metrics={acuracy=[0, 1]}", "no such metric", "'accuracy'?"),
        ("expect.metrics=0.9", "must be a table", "it is 0.9"),
    ],
)
def test_wrong_value(toys: Any, pair: str, what: str, more: str) -> None:
    with pytest.raises(UserError) as error:
        toys(pair)
    text = told(error)
    assert what in text
    assert more in text
    assert f"override {pair.partition('=')[0]}" in text
    for jargon in ("Input should", "input should", "literal", "tuple", "dict", "union"):
        assert jargon not in text


@pytest.mark.parametrize(
    ("pair", "why", "fix"),
    [
        (
            "train.batch_size=0",
            "it is 0; batch_size: Samples per optimizer step.",
            "give a whole number of 1 or more",
        ),
        ("train.epochs=many", "epochs: Passes", "give a number above 0"),
        ("train.warmup=1.5", "warmup: Share", "give a number from 0 to 1"),
        ("train.ema=1", "ema: Decay", "give a number of 0 or more and below 1"),
        ("train.learning_rate=-1", "it is -1;", "give a number above 0 or 'auto'"),
        ("strategy.lora.rank=0", "rank: Rank", "give a whole number of 1 or more"),
        ("expect.metrics={accuracy=[1]}", "metrics: Range", "give 2 of them"),
        # All that is allowed stands in what is wrong.
        ("report.baselines=7", "it is 7; baselines: Set", ""),
        ("data.bad=zzz", "bad: What to do", ""),
    ],
)
def test_a_fix_says_what_is_allowed(toys: Any, pair: str, why: str, fix: str) -> None:
    with pytest.raises(UserError) as error:
        toys(pair)
    [fault] = error.value.faults
    assert why in fault.why
    assert fault.fix == fix


def test_a_missing_setting_says_what_it_takes() -> None:
    class Model(BaseModel):
        path: str = Field(description="A folder with ``WAV`` files.")
        steps: int | None = Field(ge=0)

    with pytest.raises(ValidationError) as error:
        Model.model_validate({})
    faults = setting_faults(error.value, Model, {}, lambda key: f"data.{key}", str)
    assert faults == [
        Fault(
            "is missing", "data.path", "path: A folder with WAV files.", "give a text"
        ),
        Fault("is missing", "data.steps", "", "give a whole number"),
    ]


def test_the_deeper_branch_of_a_union_is_meant(others: Any) -> None:
    with pytest.raises(UserError) as error:
        others("data.bins={low = [0, x], high = 3}")
    assert "must be a table" in told(error)  # not TOML, so a text
    with pytest.raises(UserError) as error:
        others('data.bins={low = [0, "x"], high = 3}')
    text = str(error.value)
    assert "override data.bins.low.1: must be a number" in text
    assert "override data.bins.high: must be a list" in text
    with pytest.raises(UserError) as error:
        others('data.weights={good = "x", bad = 2}')
    assert told(error).startswith("override data.weights.good: must be a number")
    with pytest.raises(UserError) as error:
        others("data.weights=balancd")
    assert "must be a table or one of 'none', 'balanced'" in told(error)


# Everything at once


def test_all_faults_of_a_recipe_in_one_error(known: Registry, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        """
        [backbone]
        name = "toy/netwrok"
        [head]
        name = "other/masks"
        [data]
        name = "toy/ring"
        cuont = 7
        [train]
        epochs = "many"
        [metrics]
        best = "f1"
        """
    )
    with pytest.raises(UserError) as error:
        load_recipe(path, {"train.bach_size": 3}, registry=known)
    faults = {fault.where: fault for fault in error.value.faults}
    assert faults[f"{path}: backbone.name"].fix == "did you mean 'toy/network'?"
    assert faults[f"{path}: data.cuont"].fix == "did you mean 'data.count'?"
    assert faults[f"{path}: train.epochs"].what == "must be a number"
    assert faults[f"{path}: metrics.best"].what == "'f1' is not measured"
    assert faults["override train.bach_size"].fix == "did you mean 'train.batch_size'?"
    misfits = [f for f in error.value.faults if "does not" in f.what]
    assert [f.where for f in misfits] == [f"{path}: data.name", f"{path}: head.name"]
    assert len(error.value.faults) == 7


def test_missing_pieces_are_named(known: Registry) -> None:
    with pytest.raises(UserError) as error:
        build_recipe({}, {}, origin="empty.toml", registry=known)
    assert [fault.where for fault in error.value.faults] == [
        f"empty.toml: {piece}.name" for piece in ("backbone", "head", "data")
    ]


def test_name_and_summary_are_texts(known: Registry) -> None:
    with pytest.raises(UserError) as error:
        build_recipe({**OTHER, "name": 3}, {}, origin="x.toml", registry=known)
    assert "x.toml: name: must be a text" in told(error)


# Fit


@pytest.mark.parametrize(
    ("overrides", "what", "why", "fix"),
    [
        (
            {"head.name": "other/masks", "data.name": "other/folder"},
            "the head 'other/masks' does not fit the backbone 'toy/network'",
            "the head reads map, the backbone gives vector",
            "head that fits: toy/classifier",
        ),
        (
            {"backbone.name": "other/images", "head.name": "other/masks"},
            "the data 'toy/ring' does not fit the backbone 'other/images'",
            "the backbone reads pixels, the data yields points, labels",
            "data that fits: other/folder",
        ),
        (
            {"backbone.name": "other/images", "head.name": "other/masks"},
            "the data 'toy/ring' does not fit the head 'other/masks'",
            "the head learns from masks, which the data lacks",
            "data that fits: other/folder",
        ),
        (
            {"backbone.name": "other/images", "head.name": "other/masks"},
            "the head 'other/masks' does not serve 'single-label' data",
            "it serves masks; data.kind is 'single-label'",
            "head that fits: toy/classifier",
        ),
    ],
)
def test_misfit_says_what_would_fit(
    known: Registry, overrides: dict[str, str], what: str, why: str, fix: str
) -> None:
    with pytest.raises(UserError) as error:
        load_recipe("toy/ring", overrides, registry=known)
    (fault,) = (fault for fault in error.value.faults if fault.what == what)
    assert (fault.why, fault.fix) == (why, fix)
    assert fault.where.endswith(".name")


def test_a_head_of_another_domain_is_the_only_fault_told(known: Registry) -> None:
    overrides = {"head.name": "other/masks", "metrics.names": ["accuracy", "loss5"]}
    with pytest.raises(UserError) as error:
        load_recipe("toy/ring", overrides, registry=known)
    # Not: no metric 'other/accuracy', no metric 'other/loss5'.
    assert {f.where for f in error.value.faults} <= {
        "override head.name",
        "toy/ring: data.name",
    }


def test_a_head_may_read_a_feature_by_name(known: Registry) -> None:
    spec = known.heads["toy/classifier"]
    (feature,) = known.backbones["toy/network"].features
    known.heads["toy/classifier"] = replace(spec, needs=(feature.name,))
    load_recipe("toy/ring", registry=known)
    known.heads["toy/classifier"] = replace(spec, needs=("another",))
    with pytest.raises(UserError, match="does not fit the backbone"):
        load_recipe("toy/ring", registry=known)


def test_misfit_without_any_that_fits(known: Registry) -> None:
    del known.heads["other/masks"]
    with pytest.raises(UserError) as error:
        build_recipe(
            {**OTHER, "head": {"name": "toy/classifier"}},
            {},
            origin="x",
            registry=known,
        )
    assert "no installed head fits" in str(error.value)


# Strategy


@pytest.mark.parametrize(
    ("overrides", "fix"),
    [
        ({"strategy.freeze_until": "first"}, "layer-retraining or gradual or lp-ft"),
        ({"strategy.lora.rank": 4, "strategy.name": "global"}, "strategy.name=lora"),
        ({"strategy.name": "gradual", "strategy.head_share": 0.5}, "lp-ft"),
    ],
)
def test_a_key_that_the_strategy_does_not_read(
    known: Registry, overrides: dict[str, Any], fix: str
) -> None:
    with pytest.raises(UserError, match="does not read it") as error:
        load_recipe("toy/ring", overrides, registry=known)
    (fault,) = error.value.faults
    assert fix in fault.fix and "strategy." in fault.where


def test_a_recipe_may_bring_what_another_strategy_reads(known: Registry) -> None:
    pieces = {"backbone": "toy/network", "head": "toy/classifier", "data": "toy/ring"}
    tables: dict[str, Any] = {key: {"name": name} for key, name in pieces.items()}
    tables["strategy"] = {"name": "gradual", "freeze_until": "first"}
    for name in ("gradual", "global"):
        recipe = build_recipe(
            tables, {"strategy.name": name}, origin="x.toml", registry=known
        )
        assert recipe.strategy.freeze_until == "first"


# Metrics


def test_a_metric_that_is_only_watched_cannot_decide(known: Registry) -> None:
    spec = MetricSpec("toy/silence", "", "", (), KINDS, "none", "", {})
    known.metrics[spec.name] = spec
    names = {"metrics.names": ["accuracy", "silence"]}
    assert load_recipe("toy/ring", names, registry=known).best == "accuracy"
    for changes in (
        {"metrics.names": ["silence", "accuracy"]},
        {**names, "metrics.best": "silence"},
        {**names, "early_stopping.metric": "silence"},
    ):
        with pytest.raises(UserError, match="cannot decide") as error:
            load_recipe("toy/ring", changes, registry=known)
        (fault,) = error.value.faults
        assert fault.fix == "choose one of accuracy, loss"


def test_a_metric_of_other_data_names_those_that_fit(known: Registry) -> None:
    spec = MetricSpec("toy/dice", "", "", (), ("masks", "boxes"), "max", "", {})
    known.metrics[spec.name] = spec
    with pytest.raises(UserError) as error:
        load_recipe("toy/ring", {"metrics.names": ["accuracy", "dice"]}, registry=known)
    (fault,) = error.value.faults
    assert fault.what == "the metric 'toy/dice' does not measure 'single-label' data"
    assert fault.where.endswith("metrics.names")
    assert fault.why == "it measures masks, boxes; data.kind is 'single-label'"
    assert fault.fix == "metric that fits: accuracy"


def test_metric_that_exists_and_is_not_measured(known: Registry) -> None:
    spec = MetricSpec("toy/mcc", "", "", (), KINDS, "max", "", {})
    known.metrics[spec.name] = spec
    with pytest.raises(UserError) as error:
        load_recipe("toy/ring", {"metrics.best": "mcc"}, registry=known)
    assert "add it to metrics.names" in told(error)
    overrides = {"metrics.names": ["accuracy", "mcc"], "metrics.best": "mcc"}
    recipe = load_recipe("toy/ring", overrides, registry=known)
    assert recipe.best == "mcc"
    assert recipe.metric_specs == (known.metrics["toy/accuracy"], spec)


def test_metric_that_stops_must_be_measured(toys: Any) -> None:
    with pytest.raises(UserError) as error:
        toys("early_stopping.metric=acuracy", "metrics.names=[]")
    assert "override early_stopping.metric: 'acuracy' is not measured" in told(error)
    assert "'accuracy'" in told(error)


def test_unknown_metric(toys: Any) -> None:
    with pytest.raises(UserError) as error:
        toys('metrics.names=["acuracy"]')
    assert "did you mean 'toy/accuracy'?" in told(error)


def test_the_heads_metrics_are_the_default(toys: Any) -> None:
    recipe = toys()
    assert [spec.name for spec in recipe.metric_specs] == ["toy/accuracy"]
    assert recipe.best == "accuracy"


# Plugins that are not there


def test_recipe_of_a_broken_plugin(known: Registry) -> None:
    with pytest.raises(PluginError) as error:
        load_recipe("ill/recipe", registry=known)
    assert told(error) == (
        "recipe 'ill/recipe' needs the plugin 'ill', which failed to load: "
        "ImportError: libill.so.7\n  fix: see `headstart plugins -v`"
    )


def test_recipe_of_a_plugin_that_is_not_installed(known: Registry) -> None:
    with pytest.raises(PluginError, match="pip install headstart-nlp"):
        load_recipe("nlp/sentiment", registry=known)


def test_missing_plugin_is_told_once_and_with_the_rest(known: Registry) -> None:
    pieces = ("backbone", "head", "data")
    tables = {piece: {"name": f"ill/{piece}"} for piece in pieces}
    with pytest.raises(PluginError) as error:
        build_recipe(
            {**tables, "train": {"epohcs": 3}}, {}, origin="x.toml", registry=known
        )
    plugin, key = error.value.faults
    assert plugin.where == "x.toml: backbone.name"
    assert "libill.so.7" in plugin.what
    assert key.where == "x.toml: train.epohcs"


# Files


def test_recipe_file_that_is_not_there(known: Registry, tmp_path: Path) -> None:
    (tmp_path / "reviews.toml").write_text("")
    with pytest.raises(UserError) as error:
        load_recipe(tmp_path / "review.toml", registry=known)
    assert str(tmp_path / "reviews.toml") in told(error)
    with pytest.raises(UserError, match="headstart list recipes"):
        load_recipe(tmp_path / "zzzzzzzz.toml", registry=known)


def test_packaged_recipe_misspelt(known: Registry) -> None:
    with pytest.raises(UserError, match=r"did you mean 'toy/ring'\?"):
        load_recipe("toy/rnig", registry=known)


@pytest.mark.parametrize(
    ("text", "line", "written"),
    [
        ('name = "x"\n[train]\nepochs = three\n', 3, "epochs = three"),
        ('name = "x"\n[train\n', 2, "[train"),
        ("[train]\nepochs = 1\nepochs = 2\n", 3, "epochs = 2"),
    ],
)
def test_toml_error_names_the_line(
    known: Registry, tmp_path: Path, text: str, line: int, written: str
) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        load_recipe(path, registry=known)
    assert told(error).startswith(f"{path}, line {line}: this is not valid TOML")
    assert f"`{written}`" in told(error)


def test_toml_error_at_the_end(known: Registry, tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text('name = """x')
    with pytest.raises(UserError, match="this is not valid TOML"):
        load_recipe(path, registry=known)


def test_file_that_is_not_utf8(known: Registry, tmp_path: Path) -> None:
    path = tmp_path / "latin.toml"
    path.write_bytes('name = "x"\nsummary = "caf\xe9"\n'.encode("latin-1"))
    with pytest.raises(UserError) as error:
        load_recipe(path, registry=known)
    assert f"{path}, line 2: this is not UTF-8 text" in told(error)
    assert "0xe9" in told(error)


def test_byte_order_mark_is_no_fault(known: Registry, tmp_path: Path) -> None:
    path = tmp_path / "windows.toml"
    path.write_bytes(b'\xef\xbb\xbfname = "x"\r\nsummary = "y"\r\n')
    assert read_recipe(path, known)[0] == {"name": "x", "summary": "y"}


@pytest.mark.parametrize("name", ["runs", "runs.toml"])
def test_folder_is_no_recipe(known: Registry, tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    with pytest.raises(UserError, match="this is a folder, not a recipe"):
        load_recipe(folder, registry=known)
    (folder / "recipe.toml").touch()
    with pytest.raises(UserError, match=r"to repeat this run: .*recipe\.toml"):
        load_recipe(folder, registry=known)


def test_packaged_recipe_wins_over_a_folder_of_its_name(
    known: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "toy" / "ring").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert load_recipe("toy/ring", registry=known).backbone.name == "toy/network"


def test_file_without_a_suffix_and_without_a_name(
    known: Registry, tmp_path: Path
) -> None:
    path = tmp_path / "mine"
    path.write_text(tomli_w.dumps(OTHER))
    assert load_recipe(path, registry=known).name == "mine"


# The resolved recipe


def test_resolved_recipe_is_a_fixed_point(known: Registry, tmp_path: Path) -> None:
    overrides = {
        "backbone.config": {"hidden_size": 32, "rope": {"base": 1e6}, "tie": False},
        "backbone.allow": ["pooler.*"],
        "data.path": 'a "quoted" path\n\u00fc',
        "data.bins": {"low": [0, 1], "high": [1, 2.5]},
        "train.learning_rate": "auto",
        "train.max_steps": 7,
        "expect.metrics": {"dice": [0.8, 0.9]},
        "expect.on": "2024-01-31",
    }
    first = build_recipe(OTHER, overrides, origin="other.toml", registry=known)
    path = tmp_path / "recipe.toml"
    path.write_text(first.to_toml(), encoding="utf-8")
    second = load_recipe(path, registry=known)
    assert second == first
    assert second.to_toml() == first.to_toml()


def test_resolved_recipe_spells_every_section_out(toys: Any) -> None:
    tables = toys("train.epochs=2").to_dict()
    assert set(tables) == {"name", "summary", *SECTIONS}
    assert tables["train"]["epochs"] == 2.0
    assert tables["train"]["clip"] == 1.0
    assert tables["backbone"]["width"] == 8


def test_expect_is_read_from_the_recipe(toys: Any) -> None:
    recipe = toys("expect.metrics={accuracy = [0.86, 0.90]}", "expect.takes=a minute")
    assert recipe.expect.metrics == {"accuracy": (0.86, 0.90)}
    assert recipe.expect.takes == "a minute"


def test_an_expectation_ends_where_the_recipe_is_changed(registry: Registry) -> None:
    tables, origin = read_recipe("toy/ring", registry)
    tables["expect"] = {"metrics": {"accuracy": [0.5, 1.0]}}

    def expected(**overrides: Any) -> Any:
        given = {key.replace("_", ".", 1): value for key, value in overrides.items()}
        recipe = build_recipe(tables, given, origin=origin, registry=registry)
        return recipe.expect.metrics

    assert expected() == {"accuracy": (0.5, 1.0)}
    assert expected(train_seed=3, report_samples=2) == {"accuracy": (0.5, 1.0)}
    assert expected(data_count=60) == {}
    assert expected(train_epochs=1) == {}
