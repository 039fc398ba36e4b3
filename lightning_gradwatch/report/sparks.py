"""Numbers as one character each, on a log scale: height and colour say the same, so that either
alone is enough."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from lightning_gradwatch.report.extra import require
from lightning_gradwatch.report.scales import DECADES

_BARS = "▁▂▃▄▅▆▇█"
_COLOURS = ("#414487", "#355f8d", "#2a788e", "#21918c", "#22a884", "#44bf70", "#7ad151", "#bddf26")
"""Viridis between its darkest and its brightest, which a dark and a white terminal would
swallow."""


class Scale(NamedTuple):
    """What the lowest and the highest bar stand for: powers of ten."""

    low: float
    high: float

    @property
    def label(self) -> str:
        """In words: ``▁ 1e-05 … █ 0.3``."""
        return f"{_BARS[0]} {10**self.low:.1g} … {_BARS[-1]} {10**self.high:.1g}"


def scale(values: Iterable[float | None]) -> Scale:
    """From the smallest to the largest positive finite value: at least a decade, at most twelve."""
    logs = [math.log10(value) for value in values if value is not None and 0 < value < math.inf]
    low, high = min(logs, default=0.0), max(logs, default=0.0)
    low = max(low, high - DECADES)
    if high - low < 1:  # less would blow noise up into a pattern
        # The middle of the values is that of a bar, so that they do not flicker between two.
        low = (low + high) / 2 - (len(_BARS) // 2 + 0.5) / len(_BARS)
        high = low + 1
    return Scale(low, high)


def spark(values: Sequence[float | None], among: Scale) -> Any:
    """A ``rich.text.Text`` with a character for each value: a bar; ``×`` for infinity, ``·`` for 0,
    a gap for None and NaN."""
    text = require("rich.text").Text(no_wrap=True, overflow="crop")
    for value in values:
        text.append(*_mark(value, among))
    return text


def _mark(value: float | None, among: Scale) -> tuple[str, str]:
    if value is None or math.isnan(value):
        return " ", ""
    if math.isinf(value):
        return "×", "bold red"
    if value <= 0:
        return "·", "dim"
    share = (math.log10(value) - among.low) / (among.high - among.low)
    place = min(len(_BARS) - 1, max(0, int(share * len(_BARS))))
    return _BARS[place], _COLOURS[place]
