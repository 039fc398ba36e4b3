"""Total gradients over timesteps and training steps."""

# matplotlib's own annotations are partial
# pyright: reportUnknownMemberType=false
from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from lightning_gradwatch.report import series
from lightning_gradwatch.report.extra import require
from lightning_gradwatch.report.figures._common import axes_or_new, profiles_of, titled, whole
from lightning_gradwatch.report.scales import scales
from lightning_gradwatch.runlog.reader import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ENDS = {(False, False): "neither", (True, False): "min", (False, True): "max", (True, True): "both"}
"""Of a colour scale that something lies below, above."""


def plot_heatmap(
    run: Run | Sequence[series.Record],
    *,
    module: str | None = None,
    layer: int | None = None,
    direction: str | None = None,
    state: str | None = None,
    ax: Axes | None = None,
    limits: tuple[float, float] | None = None,
    colorbar: bool = True,
) -> Axes:
    """Total gradients, timestep × training step, colours on a log scale; what is infinite or NaN
    bears a cross.

    Args:
        run: a run, or profile records.
        module, layer, direction, state: which gradient; the first of the run where nothing is
            given.
        ax: where to draw; None makes new axes.
        limits: smallest and largest gradient of the colour scale, to compare runs; None takes the
            run's own, which a step that explodes does not stretch. What lies beyond has the
            colour of the end, and the scale a pointed one.
        colorbar: whether to draw the scale beside it.

    Raises:
        ValueError: the run has no such profile.
    """
    key, records = series.select(profiles_of(run), module=module, layer=layer, direction=direction, state=state)
    ax = axes_or_new(ax)
    grid = series.grid(records)
    values = [[math.nan if value is None else value for value in row] for row in grid.rows]
    bottom, top = limits or scales([grid.rows])[0].limits
    norm = require("matplotlib.colors").LogNorm(bottom, top)
    positive = [value for row in values for value in row if 0 < value < math.inf]
    beyond = bool(positive) and min(positive) < bottom * (1 - 1e-6), bool(positive) and max(positive) > top * (1 + 1e-6)
    # Zeros and what lies below the scale get its darkest colour; gaps and non-finite values keep
    # the background.
    shown = [[max(value, bottom) if math.isfinite(value) else math.nan for value in row] for row in values]
    edges = _edges(grid.steps), _edges(grid.timesteps)
    mesh = ax.pcolormesh(*edges, shown, norm=norm, cmap="viridis", rasterized=True)
    broken = [
        (step, timestep)
        for timestep, row in zip(grid.timesteps, grid.rows, strict=True)
        for step, value in zip(grid.steps, row, strict=True)
        if value is not None and math.isinf(value)  # NaN: no sequence reached this timestep
    ]
    if broken:
        xs, ys = zip(*broken, strict=True)
        ax.plot(xs, ys, "x", color="crimson", markersize=4, label="not finite")
        ax.legend(loc="upper left", fontsize="small")
    if colorbar:
        ax.figure.colorbar(mesh, ax=ax, label="total gradient ‖∂L/∂" + key.state + "‖", pad=0.02, extend=_ENDS[beyond])
    whole(ax.xaxis, ax.yaxis)
    ax.set_xlabel("training step")
    ax.set_ylabel("timestep")
    ax.set_title(titled(key.label))
    return ax


def _edges(centres: Sequence[int]) -> list[float]:
    """Cell borders half-way between centres; a lone cell is one wide."""
    if len(centres) == 1:
        return [centres[0] - 0.5, centres[0] + 0.5]
    middle = [(left + right) / 2 for left, right in pairwise(centres)]
    return [1.5 * centres[0] - 0.5 * centres[1], *middle, 1.5 * centres[-1] - 0.5 * centres[-2]]
