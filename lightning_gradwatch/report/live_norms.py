"""Loss and gradient norm of the last optimizer steps in a terminal, above the threshold that the norm was held against."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lightning_gradwatch.report import series, sparks
from lightning_gradwatch.report.extra import require
from lightning_gradwatch.runlog.reader import Run

_LABEL = 26  # characters in front of the bars


def norms(run: Run, optimizer: int, width: int) -> list[Any]:
    """Two rows of bars on one scale, a line on what was clipped, and a gap.

    Args:
        run: its last optimizer steps.
        optimizer: index.
        width: characters there are.
    """
    text = require("rich.text").Text
    every = [record for record in run.step_records if (record.get("optimizer") or 0) == optimizer]
    records = every[-max(1, width - _LABEL - 1) :]
    norm = [_shown(record.get("grad_norm")) for record in records]
    threshold = [record.get("clip_threshold") for record in records]
    among = sparks.scale([*norm, *threshold])
    several = any(record.get("optimizer") for record in run.step_records)
    of = f" ({optimizer})" if several else ""
    now = _number(records[-1].get("grad_norm")), _number(threshold[-1])
    lines = [
        text.assemble((f"{f'gradient norm{of} {now[0]}':<{_LABEL}}", "bold"), sparks.spark(norm, among)),
        text.assemble((f"{f'threshold{of} {now[1]}':<{_LABEL}}", "bold"), sparks.spark(threshold, among)),
        text(
            f"{sum(map(_clipped, every))} clipped, {sum(bool(record.get('skipped')) for record in every)} skipped "
            f"of the last {len(every)} steps; {among.label}",
            style="dim",
        ),
        text(" "),
    ]
    for line in lines:
        line.no_wrap, line.overflow = True, "crop"
    return lines


def loss(run: Run, width: int) -> list[Any]:
    """The last losses: of every optimizer step where AdaptiveClip recorded them, else of the sampled steps. None, no line."""
    text = require("rich.text").Text
    every = [record["loss"] for record in run.step_records if record.get("loss") is not None]
    of = "loss"
    if not every:
        every = [r["loss"] for r in series.one_per_step(run.profile_records) if r.get("loss") is not None]
        of = "loss, sampled"
    values = [_shown(value) for value in every[-max(1, width - _LABEL - 1) :]]
    if not values:
        return []
    label = f"{f'{of} {_number(every[-1])}':<{_LABEL}}"
    line = text.assemble((label, "bold"), sparks.spark(values, sparks.scale(values)))
    line.no_wrap, line.overflow = True, "crop"
    return [line]


def _clipped(record: Mapping[str, Any]) -> bool:
    coefficient = record.get("clip_coefficient")
    return not record.get("skipped") and coefficient is not None and coefficient < 1


def _shown(norm: float | None) -> float | None:
    """A NaN is drawn as what it is, not finite, where a gap would hide it."""
    return math.inf if norm is not None and math.isnan(norm) else norm


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"
