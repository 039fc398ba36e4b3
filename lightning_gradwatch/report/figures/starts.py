"""The lagged gradient that each start would give."""

# matplotlib's own annotations are partial
# pyright: reportUnknownMemberType=false
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from lightning_gradwatch.report.figures._common import axes_or_new, colour
from lightning_gradwatch.report.figures.lag_axes import fit_axes
from lightning_gradwatch.thresholds import HORIZON_RATIO

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)), (0, (8, 2)))


def plot_curves(curves: Mapping[str, Sequence[float]], title: str, *, ax: Axes | None = None) -> Axes:
    """One line a start, told apart without colour, too.

    Args:
        curves: name → lagged gradient ``(lag,)``.
    """
    ax = axes_or_new(ax)
    for index, (name, lagged) in enumerate(curves.items()):
        shade = colour(0.1 + 0.8 * index / max(len(curves) - 1, 1))
        ax.plot(range(len(lagged)), lagged, color=shade, linestyle=_DASHES[index % len(_DASHES)], label=name)
    ax.axhline(HORIZON_RATIO, color="0.35", linewidth=1, linestyle="--")
    rest = fit_axes(ax, [(range(len(lagged)), lagged) for lagged in curves.values()])
    ax.set_xlabel(f"lag (timesteps back from the loss){rest}")
    ax.set_ylabel("lagged gradient")
    ax.set_title(title)
    ax.legend(fontsize="small")
    return ax
