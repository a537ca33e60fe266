"""The conformance suite: what headstart promises, tested on a plugin's tiny variants.

Nothing is downloaded. A test that cannot hold for a plugin is switched off by
overriding it with ``pytest.mark.xfail(reason=…)``, so that the reason is seen.
"""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pytest
import tomli_w

from headstart.assets import load_manifest
from headstart.fine_tuning import run
from headstart.recipe import load_recipe, read_recipe
from headstart.specs import resolve
from headstart.testing.backbone_tests import BackboneTests
from headstart.testing.data_tests import DataTests
from headstart.testing.head_tests import HeadTests

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType


class PluginSuite(BackboneTests, HeadTests, DataTests):
    """Subclass it, set ``plugin`` and ``name``, and run pytest.

    Attributes:
        plugin: The plugin's entry module.
        name: Its entry point's name; all that it registers starts with it.
    """

    plugin: ClassVar[ModuleType]
    name: ClassVar[str]

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        cls = type(self)
        singular = {
            "backbone_spec": "backbones",
            "data_spec": "data",
            "metric_spec": "metrics",
        }
        for argument, kind in singular.items():
            if argument in metafunc.fixturenames:
                specs = cls._own(kind)
                metafunc.parametrize(argument, specs, ids=[s.name for s in specs])
        if "pair" in metafunc.fixturenames:
            pairs = cls._pairs()
            ids = [f"{head.name}+{backbone.name}" for backbone, head in pairs]
            metafunc.parametrize("pair", pairs, ids=ids)
        if "recipe_name" in metafunc.fixturenames:
            metafunc.parametrize("recipe_name", [r.name for r in cls._own("recipes")])

    def test_plugin_loads(self) -> None:
        self.registry()

    def test_entry_module_imports_no_torch(self) -> None:
        code = f"import {self.plugin.__name__}, sys; sys.exit('torch' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

    def test_manifest_of_assets_is_valid(self) -> None:
        for asset in load_manifest(self.plugin.__name__).values():
            assert asset.licence, f"{asset.name} states no licence"

    def test_every_head_fits_a_backbone(self) -> None:
        fitting = {head.name for _, head in self._pairs()}
        assert fitting == {head.name for head in self._own("heads")}

    def test_recipe_is_valid(self, recipe_name: str) -> None:
        recipe = load_recipe(recipe_name, registry=self.registry())
        assert recipe.name == recipe_name
        assert recipe.summary

    def test_recipe_runs_on_tiny_parts(self, recipe_name: str, tmp_path: Path) -> None:
        """Train two steps, test, report, predict, and read the run back."""
        registry = self.registry()
        tables, _ = read_recipe(recipe_name, registry)
        backbone = registry.backbone(tables["backbone"]["name"])
        data = registry.data_module(tables["data"]["name"])
        tables["backbone"] = {"name": backbone.name, **backbone.tiny}
        (tmp_path / "data").mkdir()
        kind = {k: v for k, v in tables["data"].items() if k == "kind"}
        tables["data"] = {**resolve(data.tiny)(tmp_path / "data"), **kind}
        head = registry.head(tables["head"]["name"])
        tables["head"] = {"name": head.name, **head.tiny}
        tables["train"] = {"max_steps": 2, "batch_size": 4}
        tables["expect"] = {}
        file = tmp_path / "tiny.toml"
        file.write_text(tomli_w.dumps(tables))
        done = run(file, folder=tmp_path / "run")
        assert done.summary["status"] == "done"
        assert all(np.isfinite(v) for v in done.metrics.values())
        assert (tmp_path / "run" / "report.html").stat().st_size > 1000
        again = type(done)(tmp_path / "run").evaluate()
        assert again == pytest.approx(done.metrics, rel=1e-5)
