"""States through which no gradient flows back in time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lightning_gradwatch.engine.observation import Collector
from lightning_gradwatch.events import Event, EventKind, Moment, Severity
from lightning_gradwatch.recurrent.capture.duplicates import without_duplicates
from lightning_gradwatch.recurrent.capture.severed import How, severed
from lightning_gradwatch.recurrent.capture.severed_passes import BetweenPasses
from lightning_gradwatch.recurrent.capture.taken import Call

REMEDY = (
    "If a state was meant to be carried on, give each call what the call before returned, and begin with this one. "
    "Otherwise there is nothing to do."
)
"""Where it may well be meant so."""


class SeveredStates:
    """Tells each once, by the module or tap.

    Attributes:
        told: of which modules and taps it was told.
    """

    def __init__(self, collector: Collector) -> None:
        self._collector, self._between = collector, BetweenPasses()
        self.told: set[str] = set()

    def __bool__(self) -> bool:
        return bool(self.told)

    def look(self, calls: Sequence[Call], moment: Moment) -> None:
        """Tell those among the calls of a sampled step, before they are released."""
        alone = without_duplicates(calls)
        self.tell({**self._between.severed(alone), **severed(alone)}, moment)

    def keep(self, calls: Sequence[Call]) -> None:
        """Keep what a backward pass ended with, which the next sampled one may begin with; without
        calls let go of it.
        """
        self._between.keep(calls)

    def tell(self, how: Mapping[str, How], moment: Moment) -> None:
        """Tell those that are new.

        Args:
            how: module or tap → how its state is severed.
        """
        for name, one in how.items():
            if name not in self.told:
                self.told.add(name)
                self._collector.add(_event(name, one, moment))


def _event(name: str, how: How, moment: Moment) -> Event:
    if not how.is_note:
        return moment.event(EventKind.NO_GRADIENT_THROUGH_TIME, module=name, detail=how.words, remedy=how.remedy)
    kind = EventKind.NOT_OBSERVED
    return moment.event(kind, module=name, detail=how.words, severity=Severity.INFO, remedy=REMEDY)
