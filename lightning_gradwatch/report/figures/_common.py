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
    from matplotlib.axis import Axis

_LONGEST = 48  # characters


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


def whole(*axes: Axis) -> None:
    """Ticks at whole numbers alone, as steps and timesteps are."""
    for axis in axes:
        axis.set_major_locator(
            require("matplotlib.ticker").MaxNLocator("auto", steps=[1, 2, 2.5, 5, 10], integer=True, min_n_ticks=1)
        )


def titled(label: str) -> str:
    """A label that fits over a picture: of a long one the ends."""
    return label if len(label) <= _LONGEST else f"{label[: _LONGEST // 2 - 4]}…{label[-_LONGEST // 2 - 3 :]}"
