"""What GradWatch found in a fit: kept, written to the run log, and told to loggers and the user."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning_gradwatch.callbacks.output.figures import Figures
from lightning_gradwatch.callbacks.output.loggers import Scalars
from lightning_gradwatch.engine.backward_pass import Step
from lightning_gradwatch.events import Event
from lightning_gradwatch.findings.announcer import Announcer
from lightning_gradwatch.findings.findings import Findings
from lightning_gradwatch.runlog.measures import Record
from lightning_gradwatch.runlog.writer import RunLogWriter
from lightning_gradwatch.trainer.compat import Trainer, logged_step
from lightning_gradwatch.trainer.sharding import gradients_are_common


class WatchRecorder(Findings):
    """Of one fit. What belongs to the running fit (``trainer``, ``log``) is let go of when it ends.

    Args:
        keep_sequences: have records keep the total gradient of every measured sequence.
        on_event: the user's callable; an error in it is one warning.
        announcer: says at once what must not wait.
        figures: hand figures to the loggers.
    """

    def __init__(
        self,
        keep_sequences: bool = False,
        on_event: Callable[[Event], None] | None = None,
        announcer: Announcer | None = None,
        figures: bool = False,
    ) -> None:
        super().__init__(keep_sequences, on_event, announcer)
        self.trainer: Trainer | None = None
        self._scalars = Scalars("GradWatch")
        self._figures = Figures() if figures else None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "trainer": None}

    def open(self, trainer: Trainer, log: RunLogWriter | None) -> None:
        """The fit begins."""
        self.trainer, self.sink.log = trainer, log

    def close(self) -> None:
        """The watching ends. Calling it again does nothing."""
        self.trainer = self.sink.log = None

    def hand_on(self, records: list[Record], scalars: dict[str, float], step: Step) -> None:
        """A sampled step, for the loggers and the figures."""
        if self._figures is not None:
            self._figures.take(records)
        if self.trainer is not None and scalars:
            self._scalars.write(self.trainer, scalars, logged_step(self.trainer))

    def gradients_are_common(self) -> bool:
        """Whether every rank sees the same gradients of the parameters."""
        return self.trainer is not None and gradients_are_common(self.trainer)

    def draw(self, trainer: Trainer) -> None:
        """Hand the figures to the loggers, if they are wanted."""
        if self._figures is not None and trainer.is_global_zero:
            self._figures.draw(trainer)
