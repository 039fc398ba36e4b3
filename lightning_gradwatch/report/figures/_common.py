"""What the figures share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lightning_gradwatch.report import series
from lightning_gradwatch.report.extra import require
from lightning_gradwatch.runlog.reader import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def profiles_of(run: Run | Sequence[series.Record]) -> Sequence[series.Record]:
    return run.profile_records if isinstance(run, Run) else run


def axes_or_new(ax: Axes | None) -> Axes:
    if ax is not None:
        return ax
    return require("matplotlib.pyplot").subplots(layout="constrained")[1]


def colour(place: float) -> Any:
    """A place on viridis, whose lightness alone tells colours apart in black and white."""
    return require("matplotlib").colormaps["viridis"](place)


def or_nan(value: float | None) -> float:
    return math.nan if value is None else value
