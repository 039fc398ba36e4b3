"""What the colours of heatmaps stand for: chosen so that one step that explodes does not leave all
others dark."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import median_low
from typing import NamedTuple

DECADES = 12.0
"""Colours span at most so many powers of ten."""

_ABOVE = 2.0  # powers of ten from the largest value of an ordinary step to the brightest colour
_APART = 6.0  # so far do ordinary steps of two runs lie apart that cannot share a scale
_LEAST, _MOST = -323.0, 308.0  # of a float

Rows = Sequence[Sequence[float | None]]


class Scale(NamedTuple):
    """Powers of ten of the darkest and the brightest colour; ``alone``: of this run alone, where
    several share one."""

    low: float
    high: float
    alone: bool = False

    @property
    def limits(self) -> tuple[float, float]:
        """The gradients of the darkest and the brightest colour."""
        return 10**self.low, 10**self.high

    def notes(self, rows: Rows) -> list[str]:
        """In words, what of the rows lies outside of the colours."""
        logs, said = _logs(value for row in rows for value in row), ["this run has a scale of its own"] * self.alone
        if logs and max(logs) > self.high + 1e-6:
            end, most = (f"{10**place:.2g}" for place in (self.high, max(logs)))
            said.append(f"the colours end at {end}: what lies higher, up to {most}, is as bright")
        if logs and min(logs) < self.low - 1e-6:
            said.append(f"the colours span {DECADES:.0f} decades: what lies lower is as dark as a zero")
        return said


def scales(grids: Sequence[Rows]) -> list[Scale]:
    """The scale of each run's heatmap: one for all, so that they compare.

    It ends a hundredfold above the largest value of an ordinary step, the median of the columns, or
    at the largest of all. A run whose ordinary steps lie a million times over those of another has
    its own.

    Args:
        grids: rows of timesteps, columns of training steps; None and what is not finite or not
            positive counts for nothing.
    """
    usual = [_usual(rows) for rows in grids]
    known = [place for place in usual if place is not None]
    apart = [place is not None and place > min(known) + _APART for place in usual]
    shared = _scale([grid for grid, far in zip(grids, apart, strict=True) if not far])
    return [_scale([grid])._replace(alone=True) if far else shared for grid, far in zip(grids, apart, strict=True)]


def _scale(grids: Sequence[Rows]) -> Scale:
    usual = [place for rows in grids if (place := _usual(rows)) is not None]
    logs = _logs(value for rows in grids for row in rows for value in row)
    if not usual:
        return Scale(0.0, 1.0)
    high = min(max(logs), max(usual) + _ABOVE)
    low = max(min(logs), high - DECADES)
    if high - low < 1:  # less than a decade would blow noise up into a pattern
        middle = (low + high) / 2
        low, high = middle - 0.5, middle + 0.5
    return Scale(max(low, _LEAST), min(high, _MOST))


def _usual(rows: Rows) -> float | None:
    """The power of ten of an ordinary step's largest value."""
    tops = [max(logs) for column in zip(*rows, strict=True) if (logs := _logs(column))]
    return median_low(tops) if tops else None


def _logs(values: Iterable[float | None]) -> list[float]:
    return [math.log10(value) for value in values if value is not None and 0 < value < math.inf]
