"""States through which no gradient flows back in time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lightning_gradwatch.engine.observation import Collector
from lightning_gradwatch.engine.step import Call
from lightning_gradwatch.events import EventKind, Moment
from lightning_gradwatch.recurrent.capture.duplicates import without_duplicates
from lightning_gradwatch.recurrent.capture.severed import severed


class SeveredStates:
    """Tells each once, by the module or tap."""

    def __init__(self, found: Collector) -> None:
        self._found = found
        self._told: set[str] = set()

    def __bool__(self) -> bool:
        return bool(self._told)

    def look(self, calls: Sequence[Call], moment: Moment) -> None:
        """Tell those among the calls of a step, before they are released."""
        self.tell(severed(without_duplicates(calls)), moment)

    def tell(self, how: Mapping[str, str], moment: Moment) -> None:
        """Tell those that are new.

        Args:
            how: module or tap → how its state is severed.
        """
        for name, words in how.items():
            if name not in self._told:
                self._told.add(name)
                self._found.add(moment.event(EventKind.NO_GRADIENT_THROUGH_TIME, module=name, detail=words))
