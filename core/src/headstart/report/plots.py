"""Figures of a report as inline SVG: one style, text as text, same bytes each time.

matplotlib is imported on use and through figure objects alone; nothing global changes
but for the time of one drawing.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from matplotlib.axes import Axes

# Okabe and Ito (2008), then Tol: told apart by colour-blind readers.
COLOURS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555",
    "#882255", "#999933",
)  # fmt: skip
INK = "#333333"
QUIET = "#DDDDDD"
FEW = 25
"""Up to so many points a line shows each of them with a marker."""

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "headstart",
    # Class names and texts are shown as they are, `$` included.
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
}


@dataclass(frozen=True)
class Series:
    """One line of a plot.

    Attributes:
        name: Written at the line's end; empty writes nothing.
        x: Positions, (points,).
        y: Values, (points,); what is not finite leaves a gap.
        colour: Index into :data:`COLOURS`.
        faint: Drawn pale and thin, behind the others.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int = 0
    faint: bool = False


def render(
    paint: Callable[[Axes], None], *, width: float = 5.6, height: float = 3.3
) -> str:
    """Draw on one pair of axes in the report's style.

    Args:
        paint: Draws; a plugin's own figures come about through this as well.
        width: Inches at which the text has its nominal size.
        height: Inches.

    Returns:
        An ``<svg>`` element to put into a page: no identifiers that could clash, no
        date, the same bytes for the same drawing.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    buffer = io.StringIO()
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        paint(figure.add_subplot())
        figure.savefig(buffer, format="svg", transparent=True)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    limit = rf'\1 style="max-width: {100 * width:.0f}px"'
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', limit, text, count=1)
    return re.sub(r"\n\s*\n+", "\n", text).strip()


def smooth(values: Sequence[float]) -> np.ndarray:
    """Centred moving average over a fifteenth of the points, shorter at both ends."""
    y = np.asarray(values, dtype=float)
    half = len(y) // 30
    known = np.isfinite(y)
    window = np.ones(2 * half + 1)
    total = np.convolve(np.where(known, y, 0.0), window, mode="same")
    count = np.convolve(known.astype(float), window, mode="same")
    return np.where(known, total / np.maximum(count, 1.0), np.nan)


def curves(
    series: Sequence[Series],
    *,
    xlabel: str,
    ylabel: str,
    log_x: bool = False,
    log_y: bool = False,
    stop: float | None = None,
    mark: tuple[float, str] | None = None,
) -> str:
    """Lines with their names at their ends.

    Args:
        series: What to draw, in order.
        xlabel: Quantity and unit.
        ylabel: Quantity and unit.
        log_x: Logarithmic positions.
        log_y: Logarithmic values.
        stop: Positions go from 0 to here, so that plots compare.
        mark: Position of a thin vertical line, and what to write on it.
    """

    def paint(axes: Axes) -> None:
        for line in series:
            few = int(np.isfinite(np.asarray(line.y, dtype=float)).sum()) <= FEW
            axes.plot(
                line.x,
                line.y,
                color=COLOURS[line.colour],
                linewidth=0.8 if line.faint else None,
                alpha=0.35 if line.faint else 1.0,
                marker="o" if few else None,
            )
        axes.margins(x=0.02)
        if stop is not None:
            axes.set_xlim(0, 1.02 * stop)
        if log_x:
            _logarithmic(axes, "x")
        if log_y:
            _logarithmic(axes, "y")
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        if mark is not None:
            axes.axvline(mark[0], color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
            axes.annotate(
                mark[1],
                (mark[0], 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(0, 3),
                textcoords="offset points",
                ha="center",
                va="bottom",
                fontsize=8.5,
            )
        _name_ends(axes, series)

    return render(paint)


def _logarithmic(axes: Axes, which: str) -> None:
    """A log axis whose labels need no math font: 1e-4 and, if narrow, 2e-4, 5e-4."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    axes.autoscale_view()
    axis = axes.xaxis if which == "x" else axes.yaxis
    low, high = axis.get_view_interval()
    subs = (1.0,) if high > 50 * low else (1.0, 2.0, 5.0)
    axis.set_major_locator(LogLocator(subs=subs, numticks=9))
    axis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value:.0e}".replace("e-0", "e-"))
    )
    axis.set_minor_formatter(NullFormatter())


def _name_ends(axes: Axes, series: Sequence[Series]) -> None:
    """Write each line's name at its last point, pushed apart where they would touch."""
    ends = []
    axes.autoscale_view()
    for line in series:
        x, y = np.asarray(line.x, dtype=float), np.asarray(line.y, dtype=float)
        known = np.isfinite(y) & ((y > 0) | (axes.get_yscale() != "log"))
        if line.name and known.any():
            at = axes.transData.transform((x[known][-1], y[known][-1]))
            right, high = axes.transAxes.inverted().transform(at)
            ends.append((float(high), float(right), line))
    floor = -1.0
    for high, right, line in sorted(ends, key=lambda end: end[0]):
        floor = max(high, floor + 0.075)
        axes.annotate(
            line.name,
            (max(right, 0.9), floor),
            xycoords="axes fraction",
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            color=COLOURS[line.colour],
            annotation_clip=False,
        )


def bands(rows: Mapping[str, Sequence[tuple[float, float]]], *, stop: float) -> str:
    """Which stages train when: a bar per stage, coloured from step to step.

    Args:
        rows: Steps (from, to) in which a stage trains, by stage, input first.
        stop: The last step.
    """

    def paint(axes: Axes) -> None:
        for row, spans in enumerate(rows.values()):
            axes.broken_barh([(0, stop)], (row - 0.36, 0.72), color=QUIET)
            lengths = [(begin, end - begin) for begin, end in spans]
            axes.broken_barh(lengths, (row - 0.36, 0.72), color=COLOURS[0])
        axes.set_yticks(range(len(rows)), labels=list(rows))
        axes.tick_params(axis="y", length=0, labelsize=9.5 if len(rows) <= 16 else 7)
        axes.set_ylim(-0.6, len(rows) - 0.4)
        axes.set_xlim(0, stop)
        axes.set_xlabel("step")
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)

    return render(paint, height=min(max(1.0 + 0.24 * len(rows), 1.6), 6.5))


def stacked_bar(parts: Mapping[str, float], *, unit: str) -> str:
    """Parts of a whole as one horizontal bar; parts take :data:`COLOURS` in turn."""
    total = sum(parts.values())

    def paint(axes: Axes) -> None:
        left = 0.0
        for index, (name, value) in enumerate(parts.items()):
            axes.barh(
                0,
                value,
                left=left,
                color=COLOURS[index % len(COLOURS)],
                edgecolor="white",
                linewidth=1.2,
            )
            if value > 0.2 * total:
                axes.text(
                    left + value / 2,
                    0,
                    f"{name}\n{value / total:.0%}",
                    ha="center",
                    va="center",
                    color="white",
                    fontweight="bold",
                )
            left += value
        axes.set_xlim(0, total)
        axes.set_yticks([])
        axes.set_xlabel(unit)
        axes.grid(visible=False)
        axes.spines["left"].set_visible(False)

    return render(paint, height=1.35)


def matrix(counts: np.ndarray, labels: Sequence[str]) -> str:
    """A confusion matrix: counts written, shaded by share of the true class.

    Args:
        counts: (classes, classes), rows are true classes.
        labels: Class names.
    """
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = len(labels)
    names = [name if len(name) <= 18 else name[:17] + "…" for name in labels]

    def paint(axes: Axes) -> None:
        # Rectangles, not a picture: they stay sharp in print at every size.
        axes.pcolormesh(
            share, cmap="Blues", vmin=0.0, vmax=1.0, edgecolors="white", linewidth=1.0
        )
        for row in range(size):
            for column in range(size):
                axes.text(
                    column + 0.5,
                    row + 0.5,
                    f"{counts[row, column]:,}"
                    if counts[row, column] or size <= 6
                    else "·",
                    ha="center",
                    va="center",
                    fontsize=10 if size <= 6 else 8 if size <= 12 else 7,
                    color="white" if share[row, column] > 0.6 else INK,
                )
        places = np.arange(size) + 0.5
        turn = 0 if max(map(len, names)) * size <= 40 else 45
        axes.set_xticks(
            places, labels=names, rotation=turn, ha="right" if turn else "center"
        )
        axes.set_yticks(places, labels=names)
        axes.tick_params(length=0)
        axes.invert_yaxis()
        axes.set_aspect("equal")
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")
        axes.grid(visible=False)
        for spine in axes.spines.values():
            spine.set_visible(False)

    side = min(2.2 + 0.42 * size, 9.0)
    return render(paint, width=max(side + 0.6, 4.2), height=side)


def scatter(target: np.ndarray, prediction: np.ndarray) -> str:
    """Predicted against true values with the line where both agree; both (samples,)."""

    def paint(axes: Axes) -> None:
        low = float(min(target.min(), prediction.min()))
        high = float(max(target.max(), prediction.max()))
        axes.plot([low, high], [low, high], color=INK, linewidth=0.8)
        axes.annotate(
            "equal",
            (high, high),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            annotation_clip=False,
        )
        axes.scatter(
            target,
            prediction,
            s=9,
            color=COLOURS[0],
            alpha=0.9 if len(target) <= 100 else 0.35,
            linewidths=0,
        )
        axes.set_aspect("equal", adjustable="datalim")
        axes.set_xlabel("true")
        axes.set_ylabel("predicted")

    return render(paint, width=4.6, height=4.0)


def reliability(confidence: np.ndarray, accuracy: np.ndarray, share: np.ndarray) -> str:
    """Accuracy against confidence by bin, and how many samples a bin has.

    Args:
        confidence: Mean probability of the predicted class, (bins,).
        accuracy: Share that is right, (bins,).
        share: Share of all samples, (bins,); shown by a dot's area.
    """

    def paint(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=INK, linewidth=0.8)
        axes.plot(confidence, accuracy, color=COLOURS[0], linewidth=1.0)
        axes.scatter(confidence, accuracy, s=12 + 300 * share, color=COLOURS[0])
        axes.set_xlim(0, 1.02)
        axes.set_ylim(0, 1.04)
        axes.set_aspect("equal")
        axes.set_xlabel("confidence (probability of the predicted class)")
        axes.set_ylabel("accuracy")

    return render(paint, width=4.6, height=4.0)
