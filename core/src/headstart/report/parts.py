"""What a report is made of: sections of text, tables and figures; and an evaluation."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from headstart.specs import MetricSpec

Cell = str | int | float | bool | None


@dataclass(frozen=True)
class Table:
    """Rows under named columns; columns of numbers are set to the right."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: str = ""


@dataclass(frozen=True)
class Figure:
    """A picture as inline SVG (see :func:`headstart.report.plots.render`).

    Attributes:
        svg: The ``<svg>`` element.
        caption: What to see in it.
        alt: What it is, for who cannot see it.
        wide: Whether it wants the whole width of a page.
    """

    svg: str
    caption: str = ""
    alt: str = ""
    wide: bool = False


@dataclass(frozen=True)
class Section:
    """A titled part of the report; text is plain, never markup."""

    title: str
    text: str = ""
    tables: tuple[Table, ...] = ()
    figures: tuple[Figure, ...] = ()

    @property
    def wide(self) -> bool:
        """Whether it wants the whole width of a page."""
        cells = [cell for t in self.tables for row in t.rows for cell in row]
        long = any(isinstance(cell, str) and len(cell) > 30 for cell in cells)
        many = any(len(t.columns) > 5 for t in self.tables)
        return long or many or any(figure.wide for figure in self.figures)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, for ``sections.json``."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Section:
        """The section that :meth:`to_dict` described.

        Raises:
            KeyError, TypeError: These are not a section's values.
        """
        tables = (
            Table(tuple(t["columns"]), tuple(map(tuple, t["rows"])), t["caption"])
            for t in values["tables"]
        )
        figures = (Figure(**figure) for figure in values["figures"])
        return cls(values["title"], values["text"], tuple(tables), tuple(figures))


@dataclass(frozen=True)
class Evaluation:
    """What a model gave on a split, for metrics, intervals and sections.

    Attributes:
        split: ``test`` or ``validation``.
        metrics: Results by short name.
        outputs: A head's outputs over the whole split, NumPy arrays or lists, one row
            per sample.
        task: What the data module found out (labels and the like).
        samples: Samples as people see them (``DataModule.show``), by index.
        rows: Rows in tables of samples; the recipe's ``report.samples``.
        scores: What the metrics' ``scores`` gave, by name: each sample's part.
        specs: The metrics' specs by name; they say how scores make a metric.
        groups: Whose each sample is (``DataModule.groups``); ``None``: each by itself.
        before: What ``Head.probe`` gave before the first step, tensors as arrays; and
            ``metrics``, those of the untouched model, where it was tested.
        after: The same after the last one.
    """

    split: str
    metrics: Mapping[str, float]
    outputs: Mapping[str, Any]
    task: Mapping[str, Any]
    samples: Callable[[int], Mapping[str, Any]] | Sequence[Mapping[str, Any]]
    rows: int = 12
    scores: Mapping[str, Any] = field(default_factory=dict)
    specs: Mapping[str, MetricSpec] = field(default_factory=dict)
    groups: Sequence[str] | None = None
    before: Mapping[str, Any] = field(default_factory=dict)
    after: Mapping[str, Any] = field(default_factory=dict)

    def shown(self, index: int) -> dict[str, Any]:
        """The sample at an index as people see it."""
        found = self.samples(index) if callable(self.samples) else self.samples[index]
        return dict(found)
