"""Total gradients in a terminal: a row of bars for each of a few timesteps, a column for each
sampled step."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

from lightning_gradwatch.report import series, sparks
from lightning_gradwatch.report.extra import require
from lightning_gradwatch.report.scales import scales

_LABEL = 7  # characters of a row's label


def heatmap(records: Sequence[series.Record], *, width: int, rows: int) -> list[Any]:
    """The last timestep on top, the first at the bottom; the last sampled steps that fit, then the
    scale.

    Nothing is averaged: each row is one timestep (of a thinned profile, the recorded one next to
    it).

    Args:
        records: profiles of one gradient.
        width: characters there are; ``rows``: timesteps shown at most, ≥ 2.

    Returns:
        ``rows + 1`` lines of ``rich.text.Text``, or fewer for a short sequence.
    """
    text = require("rich.text").Text
    columns = series.one_per_step(records)[-max(1, width - _LABEL - 1) :]
    longest = max(record["timesteps"] for record in columns)
    shown = series.spread(longest, rows)
    values = [[_at(record, timestep) for record in columns] for timestep in shown]
    among = sparks.Scale(*scales([values])[0][:2])
    most = max((value for row in values for value in row if value is not None and value < math.inf), default=0.0)
    beyond = f" and more, up to {most:.1g}" if most > 10**among.high * (1 + 1e-6) else ""
    lines = [
        text.assemble((f"{timestep:>{_LABEL - 1}} ", "dim"), sparks.spark(row, among))
        for timestep, row in reversed(list(zip(shown, values, strict=True)))
    ]
    first, last = columns[0]["step"], columns[-1]["step"]
    lines.append(
        text(f"{'t ↑':>{_LABEL - 1}} steps {first:,} to {last:,}, total gradient {among.label}{beyond}", style="dim")
    )
    for line in lines:
        line.no_wrap, line.overflow = True, "crop"
    return lines


def _at(record: series.Record, timestep: int) -> float | None:
    """The total gradient at ``timestep``; None past the sequence's end."""
    recorded = series.timesteps(record)
    if timestep >= record["timesteps"] or not recorded:
        return None
    place = min(bisect_left(recorded, timestep), len(recorded) - 1)
    if place and timestep - recorded[place - 1] < recorded[place] - timestep:
        place -= 1
    return record["total"][place]
