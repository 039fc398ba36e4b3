"""One picture of one or more runs, to keep beside them."""

# matplotlib's own annotations are partial
# pyright: reportUnknownMemberType=false
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_gradwatch.report import series
from lightning_gradwatch.report.extra import require
from lightning_gradwatch.report.figures._common import titled
from lightning_gradwatch.report.figures.curves import plot_lag
from lightning_gradwatch.report.figures.heatmap import plot_heatmap
from lightning_gradwatch.report.figures.lag_axes import EXPLODED
from lightning_gradwatch.report.scales import Scale, scales
from lightning_gradwatch.runlog.reader import Run
from lightning_gradwatch.runlog.summary import summarise

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def profile_picture(
    runs: Run | Sequence[Run],
    path: str | Path,
    *,
    names: Sequence[str] | None = None,
    titles: Sequence[str] | None = None,
) -> Path:
    """Draw the heatmap of total gradients over the lag curves, one column per run, and save it as a
    PNG.

    Each run shows the first layer of its first module; all heatmaps share one colour scale,
    and all curves one axis, but for runs that explode, which have their own.

    Args:
        runs: one or more.
        path: where the PNG goes.
        names: what to call the runs; their folders' names by default.
        titles: what stands over the columns; by default the runs' names with their verdicts.

    Returns:
        ``path``.

    Raises:
        ValueError: a run has no profile, or there is no run.
    """
    runs = [runs] if isinstance(runs, Run) else list(runs)
    if not runs:
        raise ValueError("`runs` must hold at least one run; found none. Load one with load_run(path).")
    names = list(names) if names is not None else [run.name for run in runs]
    colours = _scales(runs)
    # A figure of its own, outside pyplot: no window, no global state, safe in a training process.
    figure = require("matplotlib.figure").Figure(
        figsize=(1.2 + max(5.6, 4.2 * len(runs)), 7.6), layout="constrained", dpi=130
    )
    axes = figure.subplots(2, len(runs), squeeze=False)
    for column, (run, name) in enumerate(zip(runs, names, strict=True)):
        top, bottom = axes[0][column], axes[1][column]
        scale, last = colours[column], column == len(runs) - 1
        plot_heatmap(run, ax=top, limits=scale.limits, colorbar=last or scale.alone)
        plot_lag(run, ax=bottom)
        verdict = next(iter(summarise(run.profile_records, run.event_records)))
        top.set_title(titles[column] if titles is not None else f"{name}: {verdict.verdict}", fontweight="bold")
        if column:
            top.set_ylabel("")
            bottom.set_ylabel("")
    _share(axes[1])
    key, _ = series.select(runs[0].profile_records)
    figure.suptitle(f"{titled(key.label)}: total gradient by training step, and by lag", fontsize="medium")
    path = Path(path)
    figure.savefig(path)
    return path


def _share(axes: Sequence[Axes]) -> None:
    """One scale for the curves by lag, but for those that explode: theirs would press the others to
    the floor."""
    alike = [ax for ax in axes if ax.get_ylim()[1] < 10 * EXPLODED]
    ends = [ax.get_ylim() for ax in alike]
    for ax in alike:
        ax.set_ylim(min(low for low, _ in ends), max(high for _, high in ends))


def _scales(runs: Sequence[Run]) -> list[Scale]:
    return scales([series.grid(series.select(run.profile_records)[1]).rows for run in runs])
