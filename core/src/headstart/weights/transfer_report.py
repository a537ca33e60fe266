"""What became of pretrained tensors, for terminals, files and reports."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from headstart.weights.rows import RowTransfer


@dataclass(frozen=True)
class StageTransfer:
    """What becomes of one stage (or the head) in training.

    Attributes:
        name: The stage, or ``head``.
        parameters: How many numbers it has.
        trainable_at_start: Whether it trains from the first step on.
        learning_rate_factor: Its learning rate as a part of the recipe's.
        fixed: Those of the numbers that never train, below adapters.
    """

    name: str
    parameters: int
    trainable_at_start: bool
    learning_rate_factor: float
    fixed: int = 0


@dataclass(frozen=True)
class TransferReport:
    """What of the pretrained weights is in the model, and what is not.

    Attributes:
        reference: Of the weights.
        revision: The commit that a hub resolved the reference to.
        sha256: Hash of the weights.
        licence: Of the weights.
        loaded: Tensors that were copied.
        loaded_parameters: Numbers in those of them that are parameters.
        skipped: Tensors of the source that are not in the model, and why.
        reinitialised: Tensors of the model that keep random values, and why.
        fitted: Tensors that were of another shape, and how they were made to fit.
        new: The head's parameters that no weights had.
        head_loaded: The head's parameters that came with the weights.
        classes_kept: Classes whose rows of a pretrained head were kept.
        classes_new: The other classes, when the weights held a head of this kind.
        rows: What became of the rows of tables, by id.
        adapters: The low-rank adapters in words, if there are any.
        stages: Filled in by the trainer, the head last.
        resumed: Whether all parameters come from a checkpoint of the run instead.
    """

    reference: str
    revision: str = ""
    sha256: str = ""
    licence: str = ""
    loaded: int = 0
    loaded_parameters: int = 0
    skipped: tuple[tuple[str, str], ...] = ()
    reinitialised: tuple[tuple[str, str], ...] = ()
    fitted: tuple[tuple[str, str], ...] = ()
    new: tuple[str, ...] = ()
    head_loaded: tuple[str, ...] = ()
    classes_kept: tuple[str, ...] = ()
    classes_new: tuple[str, ...] = ()
    rows: tuple[RowTransfer, ...] = ()
    adapters: str = ""
    stages: tuple[StageTransfer, ...] = ()
    resumed: bool = False

    @property
    def parameters(self) -> dict[str, int]:
        """Numbers in total, frozen and trainable at the start, from ``stages``."""
        total = sum(s.parameters for s in self.stages)
        trainable = sum(
            s.parameters - s.fixed for s in self.stages if s.trainable_at_start
        )
        return {"total": total, "frozen": total - trainable, "trainable": trainable}

    def brings_all(self, neutral: Collection[str] = ()) -> bool:
        """Whether the weights make a whole model, with nothing left to chance.

        Args:
            neutral: Parameters of the head that do without; see ``Head.neutral``.
        """
        chance = [
            name
            for name, _ in self.reinitialised
            # Nothing is computed from it.
            if not name.endswith("num_batches_tracked")
        ]
        new = {name.removeprefix("head.") for name in self.new} - {*neutral}
        return self.loaded > 0 and not (chance or new or self.classes_new)

    def to_dict(self) -> dict[str, Any]:
        """What ``transfer.json`` holds."""
        return {
            "reference": self.reference,
            "revision": self.revision,
            "sha256": self.sha256,
            "licence": self.licence,
            "loaded": self.loaded,
            "loaded_parameters": self.loaded_parameters,
            "skipped": [{"name": n, "why": w} for n, w in self.skipped],
            "reinitialised": [{"name": n, "why": w} for n, w in self.reinitialised],
            "fitted": [{"name": n, "why": w} for n, w in self.fitted],
            "parameters": self.parameters,
            "stages": [asdict(stage) for stage in self.stages],
            "new": list(self.new),
            "head_loaded": list(self.head_loaded),
            "classes_kept": list(self.classes_kept),
            "classes_new": list(self.classes_new),
            "rows": [asdict(table) for table in self.rows],
            "adapters": self.adapters,
        }

    def lines(self) -> list[str]:
        """The report for a terminal, tensors grouped by what became of them."""
        if self.resumed:
            return [f"{self.reference}: the parameters come from the checkpoint"]
        about = [self.licence, f"sha256 {self.sha256[:12]}" if self.sha256 else ""]
        lines = [", ".join(filter(None, (self.reference, *about)))]
        if self.revision and self.revision not in self.reference:
            pinned = f"{self.reference.partition('@')[0]}@{self.revision}"
            lines.append(f"  commit         {self.revision}; pin it with {pinned}")
        lines.append(
            f"  loaded         {_tensors(self.loaded)}, "
            f"{_short(self.loaded_parameters)} parameters"
        )
        for label, pairs in (
            ("skipped", self.skipped),
            ("reinitialised", self.reinitialised),
            ("fitted", self.fitted),
        ):
            lines += [
                f"  {label:14s} {_tensors(count)}: {why}"
                for why, count in Counter(why for _, why in pairs).items()
            ]
        for table in self.rows:
            started = f" ({table.started})" if table.started else ""
            lines.append(
                f"  rows           {table.table}: {table.matched:,} matched by id, "
                f"{table.new:,} new{started}, {table.dropped:,} dropped"
            )
        if self.head_loaded:
            lines.append(f"  head           {_tensors(len(self.head_loaded))} loaded")
        if self.classes_kept or self.classes_new:
            kept, new = few(self.classes_kept), few(self.classes_new)
            lines.append(
                f"  classes        kept: {kept or 'none'}; new: {new or 'none'}"
            )
        if self.new:
            names = ", ".join(self.new[:3]) + (" …" if len(self.new) > 3 else "")
            lines.append(f"  new            {_tensors(len(self.new))}: {names}")
        if self.adapters:
            lines.append(f"  adapters       {self.adapters}")
        if self.stages:
            number = self.parameters
            count = {k: _short(v) for k, v in number.items()}
            share = number["trainable"] / max(number["total"], 1)
            lines.append(
                f"  trainable      {count['trainable']} of {count['total']} parameters "
                f"({100 * share:.3g} %) at the start, {count['frozen']} frozen"
            )
        return lines


def few(names: Iterable[str]) -> str:
    """The first names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _tensors(count: int) -> str:
    return f"{count} tensor" if count == 1 else f"{count} tensors"


def _short(count: int) -> str:
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if count >= size:
            return f"{count / size:.1f}{unit}"
    return str(count)
