"""k-fold cross-validation: a run for each fold, and what they give together."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from headstart import fine_tuning
from headstart.errors import UserError
from headstart.plugins import load_plugins
from headstart.recipe import load_recipe
from headstart.run_folder import new_folder, read_json, write_json
from headstart.runs import Run

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from headstart.callbacks import Callback
    from headstart.fetch.http import Progress
    from headstart.recipe import Recipe

RESULT = "folds.json"


@dataclass(frozen=True)
class CrossValidation:
    """The runs of all folds, each tested on its own part of the data.

    Attributes:
        folder: Holds ``fold-0``, ``fold-1`` … and ``folds.json``.
        runs: In the order of the folds; fewer where one was interrupted.
        count: How many folds there are.
    """

    folder: Path
    runs: tuple[Run, ...]
    count: int

    @property
    def complete(self) -> bool:
        """Whether every fold was trained and tested."""
        return len(self.runs) == self.count

    def results(self) -> dict[str, dict[str, list[float]]]:
        """Metrics of the test splits: by whose they are, by name, one value a fold.

        ``this run`` comes first, then the baselines and the control that every fold
        has.
        """
        found: dict[str, dict[str, list[float]]] = {}
        for run in self.runs:
            for who, metrics in _rows(run.summary):
                for name, value in metrics.items():
                    found.setdefault(who, {}).setdefault(name, []).append(value)
        whole = {
            who: {n: v for n, v in metrics.items() if len(v) == len(self.runs)}
            for who, metrics in found.items()
        }
        return {who: metrics for who, metrics in whole.items() if metrics}

    def summary(self) -> dict[str, Any]:
        """Mean and spread over the folds of every metric, JSON-ready.

        The spread is the standard deviation of single folds. Folds share training
        data, so it is no standard error of the mean, of which no unbiased estimate
        exists (Bengio and Grandvalet 2004).
        """
        results = {
            who: {name: _spread(values) for name, values in metrics.items()}
            for who, metrics in self.results().items()
        }
        return {
            "folds": self.count,
            "complete": self.complete,
            "goals": self.runs[0].summary["goals"] if self.runs else {},
            "results": results,
        }


def cross_validate(
    recipe: str | Path,
    overrides: Mapping[str, Any] | None = None,
    *,
    folder: str | Path | None = None,
    callbacks: Callable[[int], Sequence[Callback]] = lambda fold: (),
    progress: Progress | None = None,
) -> CrossValidation:
    """Train and test on every fold of the data, one after another.

    Called again with the same folder it goes on where it was stopped.

    Args:
        recipe: As for :func:`headstart.run`; its data has ``folds`` and ``fold``.
        overrides: As there; ``data.folds`` says how many.
        folder: Where the runs go; by default a new one under ``runs/``.
        callbacks: Makes the watchers of a fold.
        progress: Told about transfers.

    Raises:
        HeadstartError: What is wrong with recipe or data, or the folder is that of
            another cross-validation.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            "folds are trained one after another by one process",
            where="torchrun",
            fix="start a run for each fold: data.folds=5 data.fold=0, and so on",
        )
    given = dict(overrides or {})
    checked = load_recipe(recipe, given, registry=load_plugins())
    count = _folds(checked, given)
    place = Path(folder) if folder else new_folder(f"{checked.name}-folds")
    _claim(place, {"recipe": str(recipe), "overrides": given})
    runs: list[Run] = []
    for fold in range(count):
        target = place / f"fold-{fold}"
        watchers = callbacks(fold)
        if not (target / "recipe.toml").is_file():
            changes = {**given, "data.folds": count, "data.fold": fold}
            done = fine_tuning.run(
                recipe, changes, folder=target, callbacks=watchers, progress=progress
            )
        elif Run(target).finished:
            done = Run(target)
        else:
            done = fine_tuning.resume(target, callbacks=watchers, progress=progress)
        if not done.finished:
            break
        runs.append(done)
    result = CrossValidation(place, tuple(runs), count)
    about = read_json(place / RESULT)
    write_json(place / RESULT, {**about, **result.summary()})
    return result


def _folds(recipe: Recipe, overrides: Mapping[str, Any]) -> int:
    """How many folds the data is cut into."""
    name = recipe.data.name
    if "folds" not in type(recipe.data).model_fields:
        raise UserError(
            f"the data {name!r} knows no folds",
            where="data.name",
            fix="choose one with data.folds: `headstart show DATA` names its settings",
        )
    if "data.fold" in overrides:
        what, fix = "every fold has its turn", "leave data.fold out"
        raise UserError(what, where="data.fold", fix=fix)
    count: int | None = recipe.data.folds  # type: ignore[attr-defined]
    if count is None:
        what, fix = f"how many folds is not said for {name!r}", "e.g. data.folds=5"
        raise UserError(what, where="data.folds", fix=fix)
    return count


def _claim(folder: Path, about: dict[str, Any]) -> None:
    """Make the folder, or go on in it if it is this cross-validation's."""
    file = folder / RESULT
    if file.is_file():
        before = read_json(file)
        if {key: before.get(key) for key in about} != about:
            raise UserError(
                "these are the folds of another recipe",
                where=str(folder),
                why=f"it was started with {before.get('recipe')} "
                f"{before.get('overrides')}",
                fix="name another folder, or give the same recipe and settings",
            )
        return
    if folder.is_dir() and any(folder.iterdir()):
        fix = "name a new folder, or leave --folder away"
        raise UserError("the folder is not empty", where=str(folder), fix=fix)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(file, about)


def _spread(values: Sequence[float]) -> dict[str, Any]:
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "spread": spread, "folds": list(values)}


def _rows(summary: Mapping[str, Any]) -> list[tuple[str, Mapping[str, float]]]:
    """Whose metrics a summary has."""
    rows = [("this run", summary["metrics"])]
    rows += [(row["name"], row["metrics"]) for row in summary.get("baselines", ())]
    if summary.get("scratch"):
        rows.append(("from scratch", summary["scratch"]["metrics"]))
    return rows
