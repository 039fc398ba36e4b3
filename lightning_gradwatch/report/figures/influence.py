"""Influence: which inputs the loss at a timestep listens to, by lag and word by word."""

# matplotlib's own annotations are partial
# pyright: reportUnknownMemberType=false
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from lightning_gradwatch.profile import INPUT
from lightning_gradwatch.report import series
from lightning_gradwatch.report.extra import require
from lightning_gradwatch.report.figures._common import axes_or_new, profiles_of
from lightning_gradwatch.report.figures.curves import LAG, plot_lag
from lightning_gradwatch.report.inputs import ONLY_OF, asked_for, without_influence
from lightning_gradwatch.runlog.reader import Run
from lightning_gradwatch.thresholds import HORIZON_RATIO

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_DARK = 0.55
"""From this shade on, a word is written in white."""


def plot_influence(
    run: Run | Sequence[series.Record],
    *,
    module: str | None = None,
    direction: str = "forward",
    ax: Axes | None = None,
    curves: int = 5,
) -> Axes:
    """How strongly the loss at a timestep depends on each earlier input: ‖∂L_τ/∂x_{τ−k}‖ over that
    at lag 0, of a few samples over training. Needs ``GradWatch(influence=True)``, and an
    ``nn.RNN``, ``nn.LSTM`` or ``nn.GRU``: of cells in a loop it is not measured.

    Args:
        module: qualified name; the first one by default.
        direction: ``reverse``: on later inputs, of a bidirectional module.
        ax: draw there; a new figure by default.
        curves: how many samples at most, the first and the last among them.

    Raises:
        ValueError: the run log holds no influence, or none of ``module``.
    """
    every = profiles_of(run)
    records = [record for record in every if record.get("state") == INPUT]
    if not records and isinstance(run, Run) and asked_for(run):
        raise ValueError(f"`run` must hold influences; found none, though it was to measure them. {ONLY_OF}")
    if not records:
        raise ValueError(f"`run` must hold influences; found none. Train with GradWatch(influence=True). {ONLY_OF}")
    if module in without_influence(every):
        raise ValueError(f"`module` must be one whose influence was measured; found {module!r}. {ONLY_OF}")
    ax = plot_lag(records, module=module, direction=direction, ax=ax, curves=curves)
    later = direction == "reverse"
    ax.set_xlabel(ax.get_xlabel().replace(LAG, "inputs after the loss" if later else "inputs before the loss"))
    ax.set_ylabel("influence, relative to the input at the loss")
    return ax


def plot_words(
    words: Sequence[str], rows: Mapping[str, Sequence[float | None]], *, title: str = "", ax: Axes | None = None
) -> Axes:
    """A sentence a row, each word shaded by its influence: black is the strongest of the row, white
    1 % of it or less, on a scale of logarithms.

    Args:
        words: of the sentence.
        rows: what stands before a row → the influence of each word, ≥ 0; None leaves it bare.
    """
    ax = axes_or_new(ax)
    patches = require("matplotlib.patches")
    edges = [0.0]
    for word in words:
        edges.append(edges[-1] + max(len(word), 1) + 1.4)
    for line, (name, values) in enumerate(rows.items()):
        largest = max((value for value in values if value is not None), default=0.0)
        ax.text(-1.2, line + 0.5, name, ha="right", va="center", fontsize=11)
        for place, (word, value) in enumerate(zip(words, values, strict=True)):
            left, width = edges[place], edges[place + 1] - edges[place]
            shade = None if value is None else shade_of(value, largest)
            if shade is not None:
                box = patches.Rectangle(
                    (left, line + 0.06), width, 0.88, facecolor=str(1 - 0.93 * shade), edgecolor="0.8", linewidth=0.6
                )
                ax.add_patch(box)
            dark = shade is not None and shade > _DARK
            weight = "bold" if shade is None else "normal"
            centre = left + width / 2
            ax.text(
                centre,
                line + 0.5,
                word,
                ha="center",
                va="center",
                fontsize=11,
                color="w" if dark else "k",
                weight=weight,
            )
    ax.set_xlim(-1, edges[-1])
    ax.set_ylim(len(rows), 0)
    ax.set_axis_off()
    ax.set_title(title, fontsize=11, loc="left")
    return ax


def shade_of(value: float, largest: float) -> float:
    """0 at 1 % of the largest and under it, 1 at the largest, in between by the logarithm."""
    if not value > 0 or not largest > 0:
        return 0.0
    return min(max(1 - math.log(value / largest) / math.log(HORIZON_RATIO), 0.0), 1.0)
