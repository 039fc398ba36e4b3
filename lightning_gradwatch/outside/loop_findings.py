"""What a watch in a loop found."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from lightning_gradwatch.engine.backward_pass import Step
from lightning_gradwatch.events import Event
from lightning_gradwatch.findings.announcer import Announcer
from lightning_gradwatch.findings.findings import Findings
from lightning_gradwatch.plain import warn
from lightning_gradwatch.runlog.measures import Record

Scalars = Callable[[Mapping[str, float], int], None]
"""Takes values by a logger's keys, and the step."""


class LoopFindings(Findings):
    """Of one watch.

    Args:
        keep_sequences: have records keep the total gradient of every measured sequence.
        on_event: the user's callable; an error in it is one warning.
        announcer: says at once what must not wait.
        scalars: the user's callable for a sampled step's values; an error in it is one warning.
        averaged: whether the gradients of the parameters are averaged over the processes.
    """

    def __init__(
        self,
        keep_sequences: bool,
        on_event: Callable[[Event], None] | None,
        announcer: Announcer,
        scalars: Scalars | None,
        averaged: bool,
    ) -> None:
        super().__init__(keep_sequences, on_event, announcer)
        self._log_scalars, self._averaged = GuardedLog(scalars), averaged

    def gradients_are_common(self) -> bool:
        """Whether every rank sees the same gradients of the parameters."""
        return self._averaged

    def hand_on(self, records: list[Record], scalars: dict[str, float], step: Step) -> None:
        """A sampled step, for the user's callable."""
        self._log_scalars(scalars, step.moment.step)


class GuardedLog:
    """The user's callable for values, if there is one; an error in it is one warning."""

    def __init__(self, log: Scalars | None) -> None:
        self._log = log
        self._warned = False

    def __call__(self, values: Mapping[str, float], step: int) -> None:
        """Hand it the values."""
        if self._log is None or not values:
            return
        try:
            self._log(values, step)
        except Exception as error:  # the user's own callable: its failure must not harm the run
            if not self._warned:
                self._warned = True
                warn(f"`log` failed ({type(error).__name__}: {error}); the training goes on.", stacklevel=2)
