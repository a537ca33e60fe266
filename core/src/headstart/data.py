"""The data contract: splits, collation, augmentation, checks.

Also the rule that every domain shares: what happens to bad samples.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, runtime_checkable

from headstart.errors import DataError, Fault

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    import numpy as np
    import torch

    from headstart.settings import DataSettings
    from headstart.stages import State

Split = Literal["train", "validation", "test"]
Sample = dict[str, Any]


@runtime_checkable
class Columns(Protocol):
    """Samples that are held in columns, for data of many small ones.

    A batch is then taken at once, in the training process: nothing is done sample by
    sample. ``take(indices)`` equals collating ``self[i]`` for each index.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...

    def take(self, indices: np.ndarray) -> State:
        """The batch of these samples, as :meth:`DataModule.collate` gives it."""


@dataclass
class Findings:
    """What a check found: faults of samples, faults of the whole, and warnings.

    A data module fills it while it reads; :meth:`settle` then stops or says which
    samples to leave out.
    """

    fatal: list[Fault] = field(default_factory=list)
    """Nothing can be done without mending these (missing file, wrong column)."""
    samples: dict[tuple[str, int], list[Fault]] = field(default_factory=dict)
    """Faults of single samples by (file, row)."""
    warnings: list[Fault] = field(default_factory=list)
    left_out: list[Fault] = field(default_factory=list)
    """Faults of the samples that were skipped, for the report."""

    def sample(self, file: str, row: int, fault: Fault) -> None:
        self.samples.setdefault((file, row), []).append(fault)

    def settle(self, settings: DataSettings, total: int) -> set[tuple[str, int]]:
        """Apply the recipe's policy for bad samples.

        Args:
            settings: ``bad`` and ``bad_cap`` decide.
            total: Samples read, good and bad.

        Returns:
            (file, row) of the samples to leave out.

        Raises:
            DataError: Anything fatal, any bad sample under ``stop``, or too many
                under ``skip``; names all faults together.
        """
        bad = [fault for faults in self.samples.values() for fault in faults]
        if self.fatal:
            raise DataError(*self.fatal, *_shortened(bad))
        if not bad:
            return set()
        if settings.bad == "stop":
            raise DataError(*_shortened(bad))
        share = len(self.samples) / max(total, 1)
        if share > settings.bad_cap:
            summary = Fault(
                f"{len(self.samples)} of {total} samples are bad ({share:.1%})",
                where="data.bad_cap",
                why=f'`data.bad = "skip"` leaves out at most {settings.bad_cap:.1%}',
                fix="mend the data, or raise data.bad_cap if you know why",
            )
            raise DataError(summary, *_shortened(bad))
        self.left_out = bad
        return set(self.samples)


def _shortened(faults: Sequence[Fault], limit: int = 50) -> list[Fault]:
    """The first faults of a long list and a count of the rest, by kind."""
    if len(faults) <= limit:
        return list(faults)
    rest = Counter(f.what.split(":")[0] for f in faults[limit:])
    kinds = "; ".join(f"{count} x {what}" for what, count in rest.most_common(8))
    more = Fault(f"and {len(faults) - limit} more: {kinds}")
    return [*faults[:limit], more]


@dataclass(frozen=True)
class Baseline:
    """What a simple method without transfer reaches on the same test split.

    Attributes:
        name: What it is, e.g. ``majority class``.
        outputs: As :meth:`headstart.heads.Head.outputs`, for the whole test split in
            order, so that the same metrics measure it.
    """

    name: str
    outputs: dict[str, Any]


class DataModule(ABC):
    """Samples of a task, their splits, and how they become batches.

    :meth:`load` reads and checks, before any weights are fetched; :meth:`prepare`
    then makes of it what the backbone takes. Predictions need only the latter.

    Args:
        settings: The recipe's ``[data]``.
        seed: Seed of splits and sub-sampling.

    Attributes:
        asked: What the head asks of the data (``HeadSettings.asks``), set before
            :meth:`load`.
        preprocessing: What the backbone says about its inputs, since :meth:`prepare`.
        skipped: Faults of the inputs that :meth:`from_inputs` left out, where bad ones
            are to be left out; ``None``: they are told together, as an error.
    """

    def __init__(self, settings: DataSettings, seed: int) -> None:
        self.settings = settings
        self.asked: Mapping[str, Any] = {}
        self.preprocessing: Mapping[str, Any] = {}
        self.skipped: list[Fault] | None = None
        self.seed = seed
        self.findings = Findings()
        self.task: dict[str, Any] = {}
        """What the head must know, JSON-ready; filled by :meth:`load`."""

    padding: ClassVar[Mapping[str, float]] = {}
    """What fills up shorter rows of an entry of the batch, where that is not 0."""
    identity: ClassVar[tuple[str, ...]] = ("labels",)
    """Entries of ``task`` that a trained model cannot do without."""
    size_unit: str = "units"
    """What sizes are told in, e.g. ``tokens`` or ``seconds``."""
    size_steps: int = 1
    """How many of what :meth:`sizes` counts are one of it: 16,000 a second."""
    group_unit: str = "group"
    """What :meth:`groups` tells apart, e.g. ``patient``."""

    @abstractmethod
    def load(self) -> None:
        """Read, check and split; fills ``task`` and ``findings``.

        May complete ``settings``, e.g. with how an asset wants to be read; the run
        folder's recipe then has them in full.

        Raises:
            DataError: All faults together.
        """

    def load_split(self, split: Split) -> bool:
        """Read and check one split alone, to evaluate a trained model on it.

        Called in place of :meth:`load`; ``task`` is the run's already: classes and the
        like come from there, and a sample that does not fit them is a fault. Nothing
        of the other splits is read, so they need not be there.

        Returns:
            Whether it is done: :meth:`samples` and :meth:`sizes` hold for this split.
            ``False`` where the split has no file of its own, and by default.

        Raises:
            DataError: All faults together.
        """
        return False

    def prepare(self, preprocessing: Mapping[str, Any]) -> None:
        """Make the samples what the backbone takes (tokens, size, sampling rate).

        Args:
            preprocessing: What the backbone says about its inputs.

        Raises:
            DataError: They cannot be made so.
        """
        self.preprocessing = preprocessing

    @abstractmethod
    def samples(self, split: Split) -> Sequence[Sample]:
        """The samples of a split, indexable; each has its ``id``.

        They may be :class:`Columns`.
        """

    def sizes(self, split: Split) -> np.ndarray | None:
        """Size of each sample (tokens, frames, pixels), int64; ``None``: all equal."""
        return None

    def groups(self, split: Split) -> Sequence[str] | None:
        """Whose each sample is, where some belong together: those of one patient.

        Results are alike within a group, so that intervals are taken over groups.

        Returns:
            A name for each sample, in their order; ``None``: each is by itself.
        """
        return None

    def in_steps(self, total: float | None) -> int | None:
        """An amount in ``size_unit`` as :meth:`sizes` counts, at least 1."""
        return None if total is None else max(int(total * self.size_steps), 1)

    @abstractmethod
    def collate(self, samples: Sequence[Sample]) -> State:
        """Samples to a batch of CPU tensors, targets included where they are known."""

    def augment(self, batch: State, generator: torch.Generator) -> State:
        """Random changes to a training batch, on its device; none by default."""
        return batch

    @property
    def augments(self) -> bool:
        """Whether :meth:`augment` changes anything."""
        return False

    def batch(self, samples: Sequence[Sample], indices: np.ndarray) -> State:
        """The batch of some samples, made in this process."""
        if isinstance(samples, Columns):
            return samples.take(indices)
        return self.collate([samples[i] for i in indices.tolist()])

    @abstractmethod
    def from_inputs(self, inputs: Sequence[Any]) -> Sequence[Sample]:
        """Samples from what a user passes to ``predict``; no targets, no split.

        Raises:
            DataError: Inputs that cannot be used, by :meth:`leave_out`.
        """

    def leave_out(self, faults: Sequence[Fault], left: int) -> None:
        """What :meth:`from_inputs` does about inputs that cannot be used.

        Args:
            faults: All of them, each with the input as ``where``; maybe none.
            left: How many samples there are without those.

        Raises:
            DataError: The faults together, unless ``skipped`` is a list, which then
                takes them, and something is left to predict for.
        """
        if faults and (self.skipped is None or not left):
            raise DataError(*faults)
        if self.skipped is not None:
            self.skipped += faults

    def input_sizes(self, samples: Sequence[Sample]) -> np.ndarray | None:
        """Size of each sample of :meth:`from_inputs`, as :meth:`sizes`, where they are
        known before they are read; by default they are not."""
        return None

    def input_name(self, sample: Sample) -> str:
        """What a prediction's input is called: its ``id`` unless that says nothing."""
        return str(sample["id"])

    def join(
        self, samples: Sequence[Sample], predictions: Iterable[dict[str, Any]]
    ) -> Iterator[dict[str, Any]]:
        """Predictions for people, one an input, as they are computed.

        By default every sample is one. Where inputs were taken apart (an hour of sound
        into pieces) their predictions are put together again.

        Args:
            samples: What :meth:`from_inputs` gave.
            predictions: What ``Head.decode`` made of each, computed as it is asked for.

        Yields:
            JSON-ready; ``input`` is what the input is called.
        """
        for sample, found in zip(samples, predictions, strict=True):
            yield {"input": self.input_name(sample), **found}

    def write_predictions(
        self,
        folder: Path,
        samples: Sequence[Sample],
        predictions: Iterable[dict[str, Any]],
    ) -> list[Path]:
        """Predictions as this domain's users want them; by default as JSON lines.

        Args:
            folder: An empty one.
            samples: What :meth:`from_inputs` gave.
            predictions: What ``Head.decode`` made of each, computed as it is asked for.

        Returns:
            The files that a user would open first.
        """
        path = folder / "predictions.jsonl"
        with path.open("w", encoding="utf-8") as file:
            for row in self.join(samples, predictions):
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        return [path]

    def export(self, folder: Path) -> list[Path]:
        """Write what an exported model needs beside it to take inputs (a tokenizer).

        Called after :meth:`prepare`.

        Returns:
            The files; none by default.
        """
        return []

    @abstractmethod
    def show(self, sample: Sample) -> dict[str, Any]:
        """A sample for people: short values by column name."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Hash over the data and every setting that changes a collated sample."""

    def baselines(self) -> Iterator[Baseline]:
        """Simple methods without transfer on this task; none by default."""
        yield from ()

    def describe(self) -> dict[str, Any]:
        """Counts for the console and the report."""
        return {}
