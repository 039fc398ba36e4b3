"""The last profiles of each gradient, in bounded memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning_gradwatch.runlog.records import Record
from lightning_gradwatch.runlog.summary import reach
from lightning_gradwatch.thresholds import LAST_SAMPLES

_SAMPLES = 200
"""Sampled steps kept of each gradient: more columns than a terminal shows."""

_CALLS = 16
"""Calls kept of one sampled step."""

_POINTS = 64
"""Timesteps kept of a profile that no verdict rests on any more."""

_SERIES = 500
"""Gradients kept; a run log with more of them is not a model's."""

_Key = tuple[str, int, str, str]


class RecentProfiles:
    """The profiles of the last sampled steps, and of each gradient the one before the last ten that
    reached furthest, for the verdict.
    """

    def __init__(self) -> None:
        self._steps: dict[_Key, dict[int, list[Record]]] = {}
        self._furthest: dict[_Key, Record] = {}

    def add(self, record: Record) -> None:
        """Take in a profile."""
        key = (record["module"], record["layer"], record["direction"], record["state"] or "h")
        if key not in self._steps and len(self._steps) >= _SERIES:
            return
        steps = self._steps.setdefault(key, {})
        if record["step"] not in steps:
            steps[record["step"]] = []
            self._let_go(key, steps)
        if len(steps[record["step"]]) < _CALLS:
            steps[record["step"]].append(record)

    def forget(self, step: int) -> None:
        """Drop what was recorded from ``step`` on."""
        for key, steps in self._steps.items():
            self._steps[key] = {at: calls for at, calls in steps.items() if at < step}
            if key in self._furthest and self._furthest[key]["step"] >= step:
                del self._furthest[key]

    def records(self) -> list[Record]:
        """What is kept, in the order in which it came."""
        records: list[Record] = []
        for key, steps in self._steps.items():
            far = self._furthest.get(key)
            if far is not None and far["step"] not in steps:
                records.append(far)
            records += [record for calls in steps.values() for record in calls]
        return records

    def _let_go(self, key: _Key, steps: dict[int, list[Record]]) -> None:
        if len(steps) > _SAMPLES:
            del steps[next(iter(steps))]
        if len(steps) > LAST_SAMPLES:
            aged = list(steps)[-LAST_SAMPLES - 1]
            for record in steps[aged]:
                if reach(record) > reach(self._furthest.get(key)):
                    self._furthest[key] = _thin(record)
            steps[aged] = [_thin(record) for record in steps[aged][:1]]


def _thin(record: Record) -> Record:
    """A copy that holds a heatmap's column and nothing else that is long; no horizon
    where it does not count as a reach.
    """
    total: Sequence[float] = record["total"]
    at: Sequence[int] = record["at"] if record["at"] is not None else range(len(total))
    kept = sorted({place * (len(total) - 1) // (_POINTS - 1) for place in range(_POINTS)}) if total else []
    thin: dict[str, Any] = {"total": [total[place] for place in kept], "at": [at[place] for place in kept]}
    dropped = dict.fromkeys(("total_max", "direct", "lagged", "lag_at", "total_by_sequence"))
    horizon = record["horizon"] if reach(record) else None  # what tells that it exploded is dropped
    return {**record, **dropped, **thin, "horizon": horizon}
