"""The axes of curves by lag, chosen so that what matters can be read."""

# matplotlib's own annotations are partial
# pyright: reportUnknownMemberType=false
from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from lightning_gradwatch.thresholds import HORIZON_RATIO

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_FLOOR = 1e-8
"""What lies lower is not drawn: it is nothing, however far it falls."""

EXPLODED = 1e3
"""A curve that rises over this is shown in full if it is the last one, else up to here."""

Curve = tuple[Sequence[int], Sequence[float]]
"""Lags, and the gradient at each relative to lag 0."""


def largest(values: Iterable[float]) -> float:
    """The largest finite value; 1 where there is none above."""
    return max((value for value in values if 1 < value < math.inf), default=1.0)


def fit_axes(ax: Axes, curves: Sequence[Curve], *, horizon: float = 0) -> str:
    """A log scale from under 1 % to over 1, and as many lags as a curve is above its floor.

    Args:
        curves: the last of them is the one that matters most.
        horizon: a lag that must be within, timesteps.

    Returns:
        in words, what is left out; empty where nothing is.
    """
    last = largest(curves[-1][1]) if curves else 1.0
    top = max([largest(values) for _, values in curves], default=1.0)
    if last <= EXPLODED < top:
        top = EXPLODED
    seen = [value for _, values in curves for value in values if _FLOOR <= value <= top]
    lags = [lag for at, values in curves for lag, value in zip(at, values, strict=True) if value >= _FLOOR]
    bottom = min([HORIZON_RATIO, *seen])
    ax.set_yscale("log", nonpositive="mask")
    # A twentieth of the height is left above and below, as matplotlib does.
    edge = (top / bottom) ** 0.05
    ax.set_ylim(max(bottom / edge, _FLOOR), top * max(edge, 2.0))
    longest = max([lag for at, _ in curves for lag in at], default=1)
    near = max(1.1 * max(lags, default=0) + 1, 1.5 * horizon)
    if near >= longest / 2:
        return ""
    ax.set_xlim(-0.05 * near, near)
    return f"; all is lower further back, up to {longest:,}"
