"""Charts of the report that only medical tasks have."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from headstart.report.plots import COLOURS, INK, QUIET, Series, curves, render
from headstart_medical.metrics import SPECIFICITY, area_under_curve

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes

FEWEST = 5
"""Of fewer cases a box would say more than is known."""


def boxes(groups: Mapping[str, np.ndarray], xlabel: str) -> str:
    """A box and dots for each group.

    Args:
        groups: Values by name; what is not a number is left out.
        xlabel: Quantity and unit.
    """
    known = {name: values[~np.isnan(values)] for name, values in groups.items()}

    def paint(axes: Axes) -> None:
        for row, values in enumerate(known.values()):
            if len(values) >= FEWEST:
                axes.boxplot(
                    [values],
                    positions=[row],
                    orientation="horizontal",
                    widths=0.5,
                    showfliers=False,
                    patch_artist=True,
                    boxprops={"facecolor": QUIET, "edgecolor": INK},
                    medianprops={"color": INK, "linewidth": 2},
                    zorder=1,
                )
            # Spread so that equal values stay apart, the same way each time.
            around = np.random.default_rng(0).uniform(-0.16, 0.16, len(values))
            axes.scatter(
                values, row + around, s=14, color=COLOURS[0], alpha=0.8, zorder=3
            )
        axes.set_yticks(range(len(known)), labels=list(known))
        axes.set_ylim(len(known) - 0.5, -0.5)
        axes.set_xlabel(xlabel)
        axes.set_xlim(left=0)
        axes.grid(visible=False, axis="y")

    return render(paint, height=min(1.0 + 0.5 * len(known), 6.0))


def roc_curves(
    probabilities: np.ndarray, target: np.ndarray, labels: Sequence[str]
) -> str:
    """Sensitivity against 1 - specificity of each label; of two the second's alone.

    Args:
        probabilities: (samples, classes).
        target: Class indices, (samples,).
        labels: Names of the classes.
    """
    first = 1 if len(labels) == 2 else 0
    lines = []
    for k in range(first, len(labels)):
        positive = target == k
        area = area_under_curve(probabilities[:, k], positive)
        if not np.isnan(area):
            x, y = _roc(probabilities[:, k], positive)
            # Colours repeat where there are more labels than colours.
            colour = (k - first) % len(COLOURS)
            lines.append(Series(f"{labels[k]} {area:.2f}", x, y, colour))
    lines.append(Series("", [1 - SPECIFICITY] * 2, [0.0, 1.0], 6, faint=True))
    return curves(lines, xlabel="1 − specificity", ylabel="sensitivity", stop=1.0)


def _roc(
    scores: np.ndarray, positive: np.ndarray
) -> tuple[Sequence[float], Sequence[float]]:
    order = np.argsort(-scores, kind="stable")
    hits, misses = np.cumsum(positive[order]), np.cumsum(~positive[order])
    # Equal scores are one step of the threshold.
    last = np.append(np.diff(scores[order]) != 0, True)
    x, y = (np.append(0.0, part[last] / part[-1]) for part in (misses, hits))
    return x.tolist(), y.tolist()
