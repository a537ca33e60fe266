"""Data modules, and the metrics over what heads make of them."""

from __future__ import annotations

import copy
import itertools
import json
import math
import pickle
import random
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from headstart.evaluate import MetricSet
from headstart.report.intervals import shares
from headstart.specs import resolve
from headstart.testing.parts import OwnParts, same, tiny_backbone

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from headstart.specs import DataSpec, MetricSpec


class DataTests(OwnParts):
    """Each test runs on every data module, or on every metric, of the plugin."""

    def test_data_yields_what_it_declares(
        self, data_spec: DataSpec, tmp_path: Path
    ) -> None:
        data = self._data(data_spec, tmp_path)
        for split in ("train", "validation", "test"):
            samples = data.samples(split)
            assert len(samples) > 0
            batch = data.collate([samples[0], samples[-1]])
            assert set(batch) <= set(data_spec.yields), "more than it declares"
            sizes = data.sizes(split)
            assert sizes is None or len(sizes) == len(samples)
            groups = data.groups(split)
            assert groups is None or len(groups) == len(samples)
            json.dumps(data.show(samples[0]))
            assert "id" in samples[0]
        json.dumps([data.task, data.describe()])
        # Heads and metrics are chosen by the setting.
        assert data.task["kind"] == data.settings.kind

    def test_data_is_a_function_of_settings_and_seed(
        self, data_spec: DataSpec, tmp_path: Path
    ) -> None:
        loaded = []
        for index in range(2):
            # Global generators are not its seed.
            torch.manual_seed(index)
            np.random.seed(index)
            random.seed(index)
            loaded.append(self._data(data_spec, tmp_path / str(index)))
        once, again = loaded
        assert once.fingerprint() == again.fingerprint()
        for split in ("train", "validation", "test"):
            first = [data.samples(split)[0] for data in (once, again)]
            assert same(
                *(
                    data.collate([s])
                    for data, s in zip((once, again), first, strict=True)
                )
            )

    def test_splits_share_no_sample(self, data_spec: DataSpec, tmp_path: Path) -> None:
        data = self._data(data_spec, tmp_path)
        ids = [
            s["id"] for n in ("train", "validation", "test") for s in data.samples(n)
        ]
        assert len(set(ids)) == len(ids)

    def test_augmentation_follows_its_generator(
        self, data_spec: DataSpec, tmp_path: Path
    ) -> None:
        data = self._data(data_spec, tmp_path)
        batch = data.collate(list(data.samples("train"))[:4])
        untouched = copy.deepcopy(batch)
        results = [
            data.augment(batch, torch.Generator().manual_seed(3)) for _ in range(2)
        ]
        assert same(*results)
        assert same(batch, untouched), "augment changed the batch that it was given"
        if not data.augments:
            assert same(results[0], untouched)

    def test_data_reaches_worker_processes(
        self, data_spec: DataSpec, tmp_path: Path
    ) -> None:
        data = self._data(data_spec, tmp_path)
        samples = data.samples("train")
        collate = pickle.loads(pickle.dumps(data.collate))
        assert same(collate([samples[0]]), data.collate([samples[0]]))

    def test_metric_is_tried_on_what_it_measures(self, metric_spec: MetricSpec) -> None:
        assert metric_spec.sample_task["kind"] in metric_spec.kinds

    def test_metric_in_parts_equals_one_pass(self, metric_spec: MetricSpec) -> None:
        outputs = resolve(metric_spec.sample)(metric_spec.sample_task, 12)
        values = []
        for cuts in ([0, 12], [0, 2, 9, 12]):
            metrics = MetricSet(
                [metric_spec], metric_spec.sample_task, torch.device("cpu")
            )
            for start, stop in itertools.pairwise(cuts):
                metrics.update({k: v[start:stop] for k, v in outputs.items()})
            values.append(metrics.compute())
        (name,) = values[0]
        assert math.isclose(values[0][name], values[1][name], rel_tol=1e-6)
        assert isinstance(values[0][name], float)

    def test_scores_make_the_metric(self, metric_spec: MetricSpec) -> None:
        if not metric_spec.scores:
            return
        task = metric_spec.sample_task
        drawn = resolve(metric_spec.sample)(task, 12)
        metrics = MetricSet([metric_spec], task, torch.device("cpu"))
        metrics.update(drawn)
        (value,) = metrics.compute().values()
        scores = resolve(metric_spec.scores)(task, drawn)
        assert len(scores) == 12, "a row of scores for every sample"
        made = np.nanmean(shares(scores, metric_spec.link == "exp"))
        assert math.isclose(made, value, rel_tol=1e-5, abs_tol=1e-7)

    def test_metric_starts_afresh_after_compute(self, metric_spec: MetricSpec) -> None:
        outputs = resolve(metric_spec.sample)(metric_spec.sample_task, 12)
        metrics = MetricSet([metric_spec], metric_spec.sample_task, torch.device("cpu"))
        values = []
        for _ in range(2):
            metrics.update(outputs)
            values.append(metrics.compute())
        assert values[0] == values[1]

    def _data(self, spec: DataSpec, folder: Path) -> Any:
        folder.mkdir(exist_ok=True)
        values = resolve(spec.tiny)(folder)
        settings = resolve(spec.settings)(**values)
        data = resolve(spec.factory)(settings, 0)
        data.load()
        data.prepare(self._preprocessing(spec))
        return data

    def _preprocessing(self, spec: DataSpec) -> Mapping[str, Any]:
        """Of the first backbone that reads what this data yields."""
        for backbone in self._own("backbones"):
            if set(backbone.inputs) <= set(spec.yields):
                return tiny_backbone(backbone).preprocessing
        return {}
