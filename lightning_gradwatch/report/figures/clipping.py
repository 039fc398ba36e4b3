"""Gradient norms as AdaptiveClip saw them."""

# matplotlib's own annotations are partial
# pyright: reportUnknownMemberType=false
from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lightning_gradwatch.report import series
from lightning_gradwatch.report.figures._common import axes_or_new, colour, or_nan, whole
from lightning_gradwatch.runlog.reader import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_FAR = 100
"""A threshold so many times over all norms is not shown in full: an early one that nothing can
reach yet."""


def plot_clipping(run: Run | Sequence[series.Record], *, optimizer: int = 0, ax: Axes | None = None) -> Axes:
    """Gradient norm of every optimizer step beside the threshold; clipped and skipped steps are
    marked.

    Args:
        run: a run, or step records.
        optimizer: index of the optimizer.
        ax: where to draw; None makes new axes.

    Raises:
        ValueError: the run has no steps of this optimizer.
    """
    every = run.step_records if isinstance(run, Run) else list(run)
    records = [record for record in every if (record.get("optimizer") or 0) == optimizer]
    if not records:
        raise ValueError(
            f"`optimizer` must be one whose steps AdaptiveClip recorded; found no step of optimizer {optimizer}. "
            "Train with AdaptiveClip() to have them."
        )
    ax = axes_or_new(ax)
    norms = [or_nan(record.get("grad_norm")) for record in records]
    steps = [record["step"] for record in records]
    thresholds = [or_nan(record.get("clip_threshold")) for record in records]
    top = _FAR * max((norm for norm in norms if 0 < norm < math.inf), default=math.inf)
    over = [value for value in thresholds if value > top]
    label = f"threshold (up to {max(over):.2g})" if over else "threshold"
    ax.plot(steps, norms, "-" if len(steps) > 1 else ".", color=colour(0.3), linewidth=0.9, label="gradient norm")
    ax.plot(steps, thresholds, "--" if len(steps) > 1 else "_", color="0.4", linewidth=1, label=label)
    clipped = [
        (step, norm)
        for step, norm, record in zip(steps, norms, records, strict=True)
        if not record.get("skipped") and (record.get("clip_coefficient") or 1.0) < 1.0
    ]
    if clipped:
        ax.plot(
            *zip(*clipped, strict=True),
            "v",
            color=colour(0.75),
            markeredgecolor="0.2",
            markersize=5,
            label=f"clipped ({len(clipped)})",
        )
    skipped = [step for step, record in zip(steps, records, strict=True) if record.get("skipped")]
    if skipped:
        # Such a step has no norm that could be drawn: its mark stands at the foot of the axes.
        place = ax.get_xaxis_transform()
        ax.plot(
            skipped,
            [0.04] * len(skipped),
            "x",
            color="crimson",
            markersize=6,
            transform=place,
            label=f"skipped ({len(skipped)})",
        )
    ax.set_yscale("log", nonpositive="mask")
    if over:  # it would press the norms to the floor
        shown = [value for value in (*norms, *thresholds) if 0 < value <= top]
        ax.set_ylim(min(shown) / 1.5, max(shown) * 1.5)
    whole(ax.xaxis)
    ax.set_xlabel("training step")
    ax.set_ylabel("gradient norm")
    ax.legend(fontsize="small")
    return ax
