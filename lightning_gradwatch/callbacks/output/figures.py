"""Figures for the Trainer's loggers, from a few of a fit's samples
that are spread over all of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_gradwatch.runlog.schema import is_primary
from lightning_gradwatch.trainer.compat import Trainer, logged_step

_MOST = 16
"""Samples kept of each gradient: more curves than a figure shows."""

Record = Mapping[str, Any]


class Figures:
    """Keeps samples and hands figures of them to the loggers."""

    def __init__(self) -> None:
        self._kept: dict[tuple[Any, ...], _Spread] = {}
        self._drawn = True

    def take(self, records: Sequence[Record]) -> None:
        """The records of a sampled step."""
        for record in records:
            if is_primary(record) and not record["call"]:
                key = record["module"], record["layer"], record["direction"]
                self._kept.setdefault(key, _Spread()).take(record)
                self._drawn = False

    def draw(self, trainer: Trainer) -> None:
        """Hand a figure of each gradient to every logger that takes one, if there
        is a sample that none shows yet.
        """
        if self._drawn or not trainer.loggers:
            return
        from lightning_gradwatch.report.logger_figures import log_figures

        self._drawn = True
        records = [record for spread in self._kept.values() for record in spread.records]
        log_figures(trainer.loggers, records, logged_step(trainer))


class _Spread:
    """At most a few records, evenly spread over all that came, and the last."""

    def __init__(self) -> None:
        self._kept: list[Record] = []
        self._last: Record | None = None
        self._seen, self._stride = 0, 1

    def take(self, record: Record) -> None:
        if self._seen % self._stride == 0:
            self._kept.append(record)
            if len(self._kept) > _MOST:
                self._kept, self._stride = self._kept[::2], 2 * self._stride
        self._seen += 1
        self._last = record

    @property
    def records(self) -> list[Record]:
        """In the order in which they came."""
        if self._last is None or self._kept[-1] is self._last:
            return self._kept
        return [*self._kept, self._last]
