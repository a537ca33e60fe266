"""A run opened again: its result, its report, evaluation and prediction."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from headstart.errors import Fault, UserError
from headstart.explain import shown
from headstart.plugins import load_plugins
from headstart.predict_options import check_options
from headstart.recipe import build_recipe, read_recipe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from headstart.data import DataModule, Sample, Split
    from headstart.model import Model
    from headstart.recipe import Recipe

    Counting: TypeAlias = Callable[[int, int], None]

MEASURED = (
    "data.",
    "head.",
    "metrics.names",
    "train.batch_size",
    "train.batch_total",
    "train.channels_last",
    "train.device",
    "train.eval_batch_size",
    "train.precision",
)
"""Overrides that mean something where nothing is trained any more."""


class Run:
    """A run folder: what came out, and the trained model, opened on use.

    Args:
        folder: The run folder.

    Attributes:
        skipped: Faults of the inputs that the last prediction left out.

    Raises:
        UserError: It is not a run folder.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not (self.folder / "recipe.toml").is_file():
            raise UserError(
                "this is not a run folder",
                where=str(folder),
                why="it has no recipe.toml",
                fix="give the folder that `headstart run` named, e.g. runs/…",
            )
        self.skipped: list[Fault] = []
        self._model: Model | None = None

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    @property
    def summary(self) -> dict[str, Any]:
        """What ``summary.json`` holds: status, metrics, baselines, time."""
        from headstart.run_folder import read_json

        summary: dict[str, Any] = read_json(self.folder / "summary.json")
        return summary

    @property
    def finished(self) -> bool:
        """Whether its training came to its end, and the test with it."""
        return self.summary.get("status") in ("done", "stopped early")

    @property
    def metrics(self) -> dict[str, float]:
        """The test metrics; empty when the run did not get so far."""
        metrics: dict[str, float] = self.summary.get("metrics", {})
        return metrics

    @property
    def report(self) -> Path:
        """The report, written anew from the folder's files."""
        from headstart.report.page import write_report

        return write_report(self.folder)

    def recipe(self, overrides: Mapping[str, Any] | None = None) -> Recipe:
        """The resolved recipe, with changes if some are given."""
        registry = load_plugins()
        tables, origin = read_recipe(self.folder / "recipe.toml", registry)
        return build_recipe(tables, overrides or {}, origin=origin, registry=registry)

    def evaluate(
        self,
        split: Split = "test",
        overrides: Mapping[str, Any] | None = None,
        tell: Callable[[str], None] | None = None,
    ) -> dict[str, float]:
        """Metrics of the kept model on a split, e.g. of another ``data.test_path``.

        A split with a file of its own is read alone, where the data module can: then
        the training data need not be there.

        Args:
            split: Which.
            overrides: Of the data, the head, or how it is computed.
            tell: Called with what was not checked.

        Raises:
            UserError: The data has other labels than the run was trained on, or an
                override means nothing here.
        """
        from headstart.assembly import build_data
        from headstart.evaluate import MetricSet, evaluate
        from headstart.execution import choose_execution
        from headstart.run_folder import read_json

        recipe = self.recipe(overrides)
        _refuse_training_keys(overrides or {})
        execution = choose_execution(recipe.train)
        model = self._open(recipe)
        data = build_data(recipe)
        data.task = read_json(self.folder / "task.json")
        if not data.load_split(split):
            data.task = {}
            data.load()
        elif tell and f"data.{split}_path" in (overrides or {}):
            tell(
                f"data.{split}_path was read alone: whether it has samples that were "
                "also trained on is not checked"
            )
        data.prepare(model.backbone.preprocessing)
        task = read_json(self.folder / "task.json")
        for key in data.identity:
            if data.task.get(key) != task.get(key):
                raise UserError(
                    f"the data has other {key} than this run was trained on",
                    where=str(self.folder),
                    why=_difference(task.get(key), data.task.get(key)),
                    fix=f"evaluate on data with the same {key}",
                )
        return evaluate(
            model,
            data,
            data.samples(split),
            sizes=data.sizes(split),
            batch_size=recipe.eval_batch_size,
            batch_total=recipe.eval_batch_total,
            execution=execution,
            metrics=MetricSet(recipe.metric_specs, task, execution.device),
        ).metrics

    def predict(
        self, inputs: Sequence[Any] = (), *, skip_bad: bool = False, **options: Any
    ) -> list[dict[str, Any]]:
        """Predictions for new inputs (texts, files, folders …), in their order.

        Args:
            inputs: As the run's data has them.
            skip_bad: Leave out inputs that cannot be used; ``skipped`` then has their
                faults, and the predictions name the inputs that are left.
            options: What its head takes beside them (``k=10``, ``temperature=0.8``).

        Raises:
            UserError: Inputs or options that mean nothing here.
        """
        return list(self.predict_each(inputs, options=options, skip_bad=skip_bad))

    def predict_each(
        self,
        inputs: Sequence[Any],
        progress: Counting | None = None,
        options: Mapping[str, Any] | None = None,
        emit: Callable[[str], None] | None = None,
        skip_bad: bool = False,
    ) -> Iterator[dict[str, Any]]:
        """As :meth:`predict`, as soon as each batch is done.

        Args:
            inputs: As for :meth:`predict`.
            progress: Told how many of how many are done.
            options: As for :meth:`predict`.
            emit: Takes pieces of a prediction as they come, from heads that make it
                piece by piece (text, token by token).
            skip_bad: As for :meth:`predict`.
        """
        data, samples, predictions = self._predictions(
            inputs, progress, options, emit, skip_bad
        )
        yield from data.join(samples, predictions)

    def predict_into(
        self,
        folder: str | Path,
        inputs: Sequence[Any],
        progress: Counting | None = None,
        options: Mapping[str, Any] | None = None,
        skip_bad: bool = False,
    ) -> list[Path]:
        """Write predictions as the domain has them (drawn on images, as volumes …).

        Args:
            folder: Made by this; there whole, or not at all.
            inputs: As for :meth:`predict`.
            progress: Told how many of how many are done.
            options: As for :meth:`predict`.
            skip_bad: As for :meth:`predict`.

        Returns:
            The files to open first.

        Raises:
            UserError: The folder is not empty, or cannot be written.
        """
        from headstart.files import new_folder

        target = Path(folder)
        fix = "name a new folder, or a file that ends in .jsonl"
        with new_folder(target, "predictions", fix) as partial:
            data, samples, predictions = self._predictions(
                inputs, progress, options, skip_bad=skip_bad
            )
            written = data.write_predictions(partial, samples, predictions)
            names = [path.relative_to(partial) for path in written]
        return [target / name for name in names]

    def export(self, folder: str | Path, merge: bool = False) -> Path:
        """Write the kept model as the upstream library has it, to be used without us.

        Args:
            folder: Made by this; there whole, or not at all.
            merge: Fold adapters into the weights; else they alone are written, as peft
                writes them. Without adapters it is the same either way.

        Returns:
            The folder.

        Raises:
            UserError: The folder is not empty, or cannot be written.
        """
        from headstart.export import export_model

        recipe = self.recipe()
        # A model of its own: merging changes it.
        model, self._model = self._open(recipe), None
        return export_model(model, recipe, self, Path(folder), merge)

    def _predictions(
        self,
        inputs: Sequence[Any],
        progress: Counting | None,
        options: Mapping[str, Any] | None,
        emit: Callable[[str], None] | None = None,
        skip_bad: bool = False,
    ) -> tuple[DataModule, Sequence[Sample], Iterator[dict[str, Any]]]:
        """The data module, samples of the inputs, and a prediction for each."""
        import torch

        from headstart.assembly import build_data
        from headstart.batch_order import prediction_batches
        from headstart.evaluate import forward_batches
        from headstart.execution import choose_execution
        from headstart.run_folder import read_json

        recipe = self.recipe()
        checked = check_options(recipe.head_spec, options)
        if checked:
            inputs = [*inputs, *checked.inputs()]
        execution = choose_execution(recipe.train)
        model = self._open(recipe)
        model.head.options, model.head.emit = checked, emit
        data = build_data(recipe)
        data.task = read_json(self.folder / "task.json")
        data.prepare(model.backbone.preprocessing)
        self.skipped = []
        data.skipped = self.skipped if skip_bad else None
        samples = data.from_inputs(inputs)
        batches = prediction_batches(
            len(samples),
            recipe.eval_batch_size,
            data.input_sizes(samples),
            data.in_steps(recipe.eval_batch_total),
        )

        def each() -> Iterator[dict[str, Any]]:
            states = forward_batches(model, data, samples, batches, execution)
            for batch, state in zip(batches, states, strict=True):
                with torch.inference_mode():
                    decoded = model.head.decode(model.head.outputs(state))
                yield from decoded
                if progress is not None:
                    progress(int(batch[-1]) + 1, len(samples))

        return data, samples, each()

    def _open(self, recipe: Recipe) -> Model:
        """The kept model on its device, strictly loaded, head included."""
        from headstart.assembly import adapt, build_backbone, build_head
        from headstart.checkpoint import open_checkpoint
        from headstart.execution import choose_execution
        from headstart.model import Model
        from headstart.run_folder import ARCHITECTURE, CALIBRATION, read_json

        if self._model is None:
            task = read_json(self.folder / "task.json")
            backbone = build_backbone(recipe, self.folder / ARCHITECTURE, task)
            model = Model(backbone, build_head(recipe, backbone, task))
            adapt(recipe, backbone)
            checkpoint, _ = open_checkpoint(self.folder / "checkpoints")
            model.load_state_dict(checkpoint.kept_model())
            if (fitted := self.folder / CALIBRATION).exists():
                model.head.calibration = read_json(fitted)
            # As in training, memory layout included: the same numbers come out.
            self._model = choose_execution(recipe.train).place(model)
        return self._model


def _refuse_training_keys(overrides: Mapping[str, Any]) -> None:
    """Name all overrides of what lies behind a trained model."""
    faults = [
        Fault(
            "it means nothing for an evaluation",
            where=f"override {key}",
            why="the model is trained; what it is measured on and how may change",
            fix="leave it out, or start a run with it; an evaluation reads "
            + ", ".join(
                f"{name}…" if name.endswith(".") else name for name in MEASURED
            ),
        )
        for key in overrides
        if not key.startswith(MEASURED)
    ]
    if faults:
        raise UserError(*faults)


def _difference(before: Any, now: Any) -> str:
    """What changed between two values of a task, long lists by their differences."""
    lists = isinstance(before, list) and isinstance(now, list)
    if not lists or len(before) + len(now) < 20:
        return f"trained on {shown(before)}, now {shown(now)}"
    known, found = set(before), set(now)
    gone = [value for value in before if value not in found]
    new = [value for value in now if value not in known]
    parts = [f"trained on {len(before):,}, now {len(now):,}"]
    parts += [
        f"{len(some):,} {what}, e.g. {shown(some[0])}"
        for some, what in ((gone, "are gone"), (new, "are new"))
        if some
    ]
    return "; ".join(parts)
