"""Loss and gradient norm of the last optimizer steps in a terminal, above the threshold that the
norm was held against, on one scale with it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lightning_gradwatch.report import series, sparks
from lightning_gradwatch.report.extra import require
from lightning_gradwatch.runlog.reader import Run

_LABEL = 26  # characters in front of the bars
_SCALE = 22  # behind them: the values that the lowest and the highest bar stand for
_NARROW = _LABEL + _SCALE + 8
"""Terminals of fewer characters have no room for that."""


def norms(run: Run, optimizer: int, width: int) -> list[Any]:
    """Two rows of bars on one scale, so that one sees how near the norm comes to the threshold, a
    line on what was clipped, and a gap.

    Args:
        run: its last optimizer steps.
        optimizer: index.
        width: characters there are.
    """
    text = require("rich.text").Text
    every = [record for record in run.step_records if (record.get("optimizer") or 0) == optimizer]
    records = every[-_room(width) :]
    norm = [_shown(record.get("grad_norm")) for record in records]
    threshold = [record.get("clip_threshold") for record in records]
    among = sparks.scale([*norm, *threshold])
    several = any(record.get("optimizer") for record in run.step_records)
    of = f" ({optimizer})" if several else ""
    lines = [
        _row(f"gradient norm{of}", norm, records[-1].get("grad_norm"), among, width),
        _row(f"threshold{of}", threshold, threshold[-1], among, width),
        text(
            f"{sum(map(_clipped, every))} clipped, {sum(bool(record.get('skipped')) for record in every)} skipped "
            f"of the last {len(every)} steps",
            style="dim",
        ),
        text(" "),
    ]
    for line in lines:
        line.no_wrap, line.overflow = True, "crop"
    return lines


def loss(run: Run, width: int) -> list[Any]:
    """The last losses: of every optimizer step where AdaptiveClip recorded them, else of the
    sampled steps. None, no line."""
    every = [record["loss"] for record in run.step_records if record.get("loss") is not None]
    of = "loss"
    if not every:
        every = [r["loss"] for r in series.one_per_step(run.profile_records) if r.get("loss") is not None]
        of = "loss, sampled"
    values = [_shown(value) for value in every[-_room(width) :]]
    return [_row(of, values, every[-1], sparks.scale(values), width)] if values else []


def _room(width: int) -> int:
    """Bars that have room between label and scale."""
    return max(1, width - _LABEL - _SCALE)


def _row(of: str, values: Sequence[float | None], now: float | None, among: sparks.Scale, width: int) -> Any:
    """What it is and its last value, the bars, and what their ends stand for."""
    text = require("rich.text").Text
    drawn = sparks.spark(values, among)
    scale = f"  {among.label}" if width >= _NARROW else ""
    line = text.assemble((f"{f'{of} {_number(now)}':<{_LABEL}}", "bold"), drawn, (scale, "dim"))
    line.no_wrap, line.overflow = True, "crop"
    return line


def _clipped(record: Mapping[str, Any]) -> bool:
    coefficient = record.get("clip_coefficient")
    return not record.get("skipped") and coefficient is not None and coefficient < 1


def _shown(norm: float | None) -> float | None:
    """A NaN is drawn as what it is, not finite, where a gap would hide it."""
    return math.inf if norm is not None and math.isnan(norm) else norm


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"
