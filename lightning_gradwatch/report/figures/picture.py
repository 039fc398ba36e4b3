"""One picture of one or more runs, to keep beside them."""

# matplotlib's own annotations are partial
# pyright: reportUnknownMemberType=false
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lightning_gradwatch.report import series
from lightning_gradwatch.report.extra import require
from lightning_gradwatch.report.figures.curves import plot_lag
from lightning_gradwatch.report.figures.heatmap import plot_heatmap
from lightning_gradwatch.runlog.reader import Run
from lightning_gradwatch.runlog.summary import summarise


def profile_picture(
    runs: Run | Sequence[Run],
    path: str | Path,
    *,
    names: Sequence[str] | None = None,
    titles: Sequence[str] | None = None,
) -> Path:
    """Draw the heatmap of total gradients over the lag curves, one column per run, and save it as a
    PNG.

    Each run shows the first layer of its first module; all heatmaps share one colour scale.

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
    limits = _limits(runs)
    # A figure of its own, outside pyplot: no window, no global state, safe in a training process.
    figure = require("matplotlib.figure").Figure(
        figsize=(1.2 + max(5.6, 4.2 * len(runs)), 7.6), layout="constrained", dpi=130
    )
    axes = figure.subplots(2, len(runs), squeeze=False, sharey="row")
    for column, (run, name) in enumerate(zip(runs, names, strict=True)):
        top, bottom = axes[0][column], axes[1][column]
        plot_heatmap(run, ax=top, limits=limits, colorbar=column == len(runs) - 1)
        plot_lag(run, ax=bottom)
        verdict = next(iter(summarise(run.profile_records, run.event_records)))
        top.set_title(titles[column] if titles is not None else f"{name}: {verdict.verdict}", fontweight="bold")
        if column:
            top.set_ylabel("")
            bottom.set_ylabel("")
    key, _ = series.select(runs[0].profile_records)
    figure.suptitle(f"{key.label}: total gradient by training step, and by lag", fontsize="medium")
    path = Path(path)
    figure.savefig(path)
    return path


def _limits(runs: Sequence[Run]) -> tuple[float, float]:
    """The smallest and largest positive gradient that any of the heatmaps shows."""
    values: list[float] = []
    for run in runs:
        _, records = series.select(run.profile_records)
        values += series.positive(series.grid(records))
    return min(values, default=1.0), max(values, default=1.0)
