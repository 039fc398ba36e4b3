"""One gradient's curves: by timestep, by lag, and its horizon over training."""

# matplotlib's own annotations are partial
# pyright: reportUnknownMemberType=false
from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lightning_gradwatch.plain import count_of
from lightning_gradwatch.report import series
from lightning_gradwatch.report.figures._common import axes_or_new, colour, profiles_of, titled, whole
from lightning_gradwatch.report.figures.lag_axes import EXPLODED, fit_axes, largest
from lightning_gradwatch.runlog.reader import Run
from lightning_gradwatch.thresholds import HORIZON_RATIO

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LAG = "lag (timesteps back)"

_FAR = 20
"""Sequences of so many horizons need a log scale."""


def plot_profile(
    run: Run | Sequence[series.Record],
    *,
    module: str | None = None,
    layer: int | None = None,
    direction: str | None = None,
    state: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Direct beside total gradient by timestep, of the last sample. Arguments as for
    :func:`plot_heatmap`."""
    key, records = series.select(profiles_of(run), module=module, layer=layer, direction=direction, state=state)
    ax = axes_or_new(ax)
    last = series.one_per_step(records)[-1]
    at = series.timesteps(last)
    _line(ax, at, last["total"], label="total (median over sequences)")
    if last.get("total_max") is not None:
        _line(ax, at, last["total_max"], linewidth=0.8, linestyle=":", label="total (maximum)")
    if last.get("direct") is not None:
        ax.plot(at, last["direct"], "o", color=colour(0.75), markersize=3, label="direct (not through time)")
    ax.set_yscale("log", nonpositive="mask")
    whole(ax.xaxis)
    ax.set_xlabel("timestep")
    ax.set_ylabel("gradient norm")
    finite = any(map(math.isfinite, last["total"]))
    ax.set_title(f"{titled(key.label)}, step {last['step']}{'' if finite else ': not finite'}")
    ax.legend(fontsize="small")
    return ax


def _line(ax: Axes, at: Sequence[float], values: Sequence[float], **how: Any) -> None:
    """A curve; a value alone, which no line would show, as a ring, with a decade on either side."""
    seen = [value for value in values if 0 < value < math.inf]
    if len(seen) != 1:
        ax.plot(at, values, color=colour(0.3), **how)
        return
    ax.plot(at, values, "o", color=colour(0.3), markersize=8, markerfacecolor="none", **how)
    ax.set_ylim(seen[0] / 10, seen[0] * 10)


def plot_lag(
    run: Run | Sequence[series.Record],
    *,
    module: str | None = None,
    layer: int | None = None,
    direction: str | None = None,
    state: str | None = None,
    ax: Axes | None = None,
    curves: int = 5,
) -> Axes:
    """The lagged gradient of a few samples over training, with the 1 % line and the last horizon.

    Args:
        curves: how many samples at most, the first and the last among them.

    The other arguments are those of :func:`plot_heatmap`.
    """
    key, records = series.select(profiles_of(run), module=module, layer=layer, direction=direction, state=state)
    ax = axes_or_new(ax)
    samples = [r for r in series.one_per_step(records) if any(map(math.isfinite, r.get("lagged") or []))]
    chosen = [samples[index] for index in series.spread(len(samples), curves)]
    for place, record in enumerate(chosen):
        last = place == len(chosen) - 1
        shade = colour(0.85 - 0.75 * place / max(1, len(chosen) - 1) if len(chosen) > 1 else 0.1)
        ax.plot(
            series.lags(record),
            record["lagged"],
            marker="o" if len(record["lagged"]) == 1 else None,
            color=shade,
            linewidth=2.2 if last else 1.2,
            label=_of_step(record, last),
        )
    ax.axhline(HORIZON_RATIO, color="0.35", linewidth=1, linestyle="--")
    ax.annotate(
        "1 %",
        (1, HORIZON_RATIO),
        xycoords=("axes fraction", "data"),
        xytext=(-3, 3),
        textcoords="offset points",
        ha="right",
        fontsize="small",
        color="0.35",
    )
    if chosen and chosen[-1].get("horizon") is not None:
        horizon, at = chosen[-1]["horizon"], f" at step {chosen[-1]['step']}"
        if len(chosen[-1]["lagged"]) == 1:
            ax.set_title(f"one lag only, no horizon{at}")
        elif chosen[-1]["horizon_censored"]:
            ax.set_title(f"horizon beyond {count_of(horizon, 'timestep')}{at}")
        else:
            ax.axvline(horizon, color="crimson", linewidth=1, linestyle=":")
            ax.plot([horizon], [HORIZON_RATIO], "o", color="crimson", markersize=6)
            ax.set_title(f"horizon {count_of(horizon, 'timestep')}{at}")
    else:
        ax.set_title(titled(key.label) if chosen else f"{titled(key.label)}: no lagged gradient recorded")
    horizon = 0 if not chosen or chosen[-1].get("horizon_censored") else chosen[-1].get("horizon") or 0
    rest = fit_axes(ax, [(series.lags(record), record["lagged"]) for record in chosen], horizon=horizon)
    whole(ax.xaxis)
    ax.set_xlabel(f"{LAG}{rest}")
    ax.set_ylabel("gradient relative to lag 0")
    if chosen:
        ax.legend(fontsize="small", loc="best")  # out of the curves' way
    return ax


def _of_step(record: series.Record, last: bool) -> str:
    """What a curve is called; of one that the axes cut off, up to where it rises."""
    most = largest(record["lagged"])
    return f"step {record['step']}" + (f", up to {most:.1e}" if most > EXPLODED and not last else "")


def plot_channels(
    run: Run | Sequence[series.Record],
    *,
    module: str | None = None,
    layer: int | None = None,
    direction: str | None = None,
    state: str | None = None,
    ax: Axes | None = None,
    curves: int = 5,
) -> Axes:
    """Of a scan, the share of its channels by how far each holds a gradient. Arguments as for
    :func:`plot_lag`.

    Raises:
        ValueError: the gradient is not that of a scan.
    """
    key, records = series.select(profiles_of(run), module=module, layer=layer, direction=direction, state=state)
    samples = [record for record in series.one_per_step(records) if record.get("channel_horizons")]
    if not samples:
        raise ValueError(
            f"`module` must be a scan, marked by tap_scan; {key.label} has no channels of its own. Name another one."
        )
    ax = axes_or_new(ax)
    chosen = [samples[index] for index in series.spread(len(samples), curves)]
    for place, record in enumerate(chosen):
        at, shares = series.channel_reach(record)
        shade = colour(0.85 - 0.75 * place / max(1, len(chosen) - 1) if len(chosen) > 1 else 0.1)
        width = 2.2 if record is chosen[-1] else 1.2
        percent = [100 * share for share in shares]
        ax.step(at, percent, where="pre", color=shade, linewidth=width, label=f"step {record['step']}")
        if record.get("channels_censored"):
            ax.plot(at[-1:], percent[-1:], ">", color=shade, markerfacecolor="none", clip_on=False)
    ax.set_xscale("log")
    ax.set_ylim(0, 103)
    ax.set_xlabel("timesteps")
    ax.set_ylabel("channels that reach so far, %")
    ax.set_title(f"{titled(key.label)}: {chosen[-1]['channels']} channels")
    ax.legend(fontsize="small")
    return ax


def plot_horizon(
    run: Run | Sequence[series.Record],
    *,
    module: str | None = None,
    layer: int | None = None,
    direction: str | None = None,
    state: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Horizon over training beside the sequence length. Arguments as for :func:`plot_heatmap`.

    A censored horizon, which the sequence cut off, is drawn as an open upward triangle: the true
    one lies higher.
    """
    key, records = series.select(profiles_of(run), module=module, layer=layer, direction=direction, state=state)
    ax = axes_or_new(ax)
    samples = [record for record in series.one_per_step(records) if record.get("horizon") is not None]
    steps = [record["step"] for record in samples]
    ax.plot(steps, [record["horizon"] for record in samples], color=colour(0.3), linewidth=1.2)
    for censored, marker, label in ((False, "o", "horizon"), (True, "^", "at least (censored)")):
        some = [record for record in samples if bool(record["horizon_censored"]) is censored]
        if some:
            ax.plot(
                [record["step"] for record in some],
                [record["horizon"] for record in some],
                marker,
                color=colour(0.3),
                markerfacecolor="none" if censored else colour(0.3),
                markersize=4,
                label=label,
            )
    lengths = [record["timesteps"] for record in samples]
    ax.plot(steps, lengths, "--" if len(steps) > 1 else "_", color="0.4", label="sequence length")
    horizons = [record["horizon"] for record in samples]
    if samples and max(lengths) > _FAR * max(horizons) and min(horizons) > 0:
        ax.set_yscale("log")  # else it would lie on the floor
    else:
        ax.set_ylim(bottom=0)
    whole(ax.xaxis)
    ax.set_xlabel("training step")
    ax.set_ylabel("timesteps")
    ax.set_title(titled(key.label) if samples else f"{titled(key.label)}: no horizon recorded")
    ax.legend(fontsize="small")
    return ax
