"""Where AdaptiveClip says what it did: the Trainer's loggers, the run log, and events."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lightning_gradwatch.callbacks.output.loggers import Scalars
from lightning_gradwatch.callbacks.output.run_folder import close_run_log, open_run_log, run_id_of
from lightning_gradwatch.clip.step.measure_and_clip import Outcome
from lightning_gradwatch.clip.step.state import ClipState
from lightning_gradwatch.events import Event, EventKind
from lightning_gradwatch.findings.clip_record import step_record, values_of
from lightning_gradwatch.findings.event_sink import EventSink
from lightning_gradwatch.runlog.schema import StepRecord
from lightning_gradwatch.trainer.compat import Trainer, logged_step, rank_zero_warn, show_in_progress_bar

_MOST_STEPS = 5_000
"""Of the last steps, in a figure."""


class ClipRecorder:
    """The output of one callback; a copy of it writes to no run log.

    Args:
        on_event: called with each event; an exception in it is said once.
        logging: whether to write to the Trainer's loggers.
        progress_bar: whether to show the last step's coefficient there.
        figures: whether to hand figures to the loggers.
    """

    def __init__(
        self,
        on_event: Callable[[Event], None] | None,
        logging: bool,
        progress_bar: bool = False,
        figures: bool = False,
    ) -> None:
        self.on_event = on_event
        self.sink = EventSink(on_event)
        self._steps: deque[StepRecord] | None = deque(maxlen=_MOST_STEPS) if figures else None
        self.logging, self.progress_bar = logging, progress_bar
        self._last = ""
        self.batch_idx: int | None = None
        self.loss: float | None = None  # of the step at hand
        self.run_dir: Path | None = None
        self.run_id: str | None = None
        self._warned: set[str] = set()
        self._scalars = Scalars("AdaptiveClip")
        self._pending: dict[str, float] = {}
        self._pending_step = 0

    def resume(self, state: Mapping[str, Any]) -> None:
        """The run log that the next fit continues, as a checkpoint has it."""
        last = state.get("run_dir")
        self.run_id, self.run_dir = state["run_id"], None if last is None else Path(last)

    def open(self, trainer: Trainer, dirpath: str | Path | None, owner: object) -> None:
        """Begin a fit. A collective."""
        self.sink, self.batch_idx, self._pending = EventSink(self.on_event), None, {}
        self._warned, self._last, self._scalars = set(), "", Scalars("AdaptiveClip")
        if self._steps is not None:
            self._steps.clear()
        log = open_run_log(trainer, dirpath, owner=owner, run_id=self.run_id, last=self.run_dir)
        self.sink.log = log
        self.run_id = run_id_of(trainer, dirpath)
        self.run_dir = None if log is None else log.folder

    def close(self, trainer: Trainer, owner: object) -> None:
        """End the fit. Calling it again does nothing."""
        self.sink.log = None
        close_run_log(trainer, owner=owner)

    def step(self, trainer: Trainer, index: int, outcome: Outcome, state: ClipState, *, skipped: bool = False) -> None:
        """Write one optimizer step to the run log, and keep it for the
        loggers where it is their turn.
        """
        self._last = "skipped" if skipped else f"{outcome.decision.coefficient:.3g}"
        record = step_record(trainer.global_step, index, outcome, self.loss, skipped=skipped)
        if self.sink.log is not None:
            self.sink.log.step(record)
        if self._steps is not None:
            self._steps.append(record)
        self._keep(trainer, index, "", {**values_of(outcome, state), "skipped_steps": float(state.skipped)})

    def draw(self, trainer: Trainer) -> None:
        """Hand a figure of the steps so far to every logger that takes one."""
        if self._steps and trainer.loggers and trainer.is_global_zero:
            from lightning_gradwatch.report.logger_figures import log_clipping

            log_clipping(trainer.loggers, list(self._steps), logged_step(trainer))

    def group(self, trainer: Trainer, index: int, key: str, outcome: Outcome, state: ClipState) -> None:
        """Keep for the loggers what became of the parameters that a pattern names."""
        values = values_of(outcome, state)
        self._keep(trainer, index, f"{key}/", {"grad_norm": values["grad_norm"]} if state.policy is None else values)

    def _keep(self, trainer: Trainer, index: int, key: str, values: Mapping[str, float | None]) -> None:
        connector = trainer._logger_connector  # pyright: ignore[reportPrivateUsage]  # LearningRateMonitor's own cadence
        if not (self.logging and trainer.loggers and connector.should_update_logs):
            return
        prefix = (f"gradwatch/{index}/" if len(trainer.optimizers) > 1 else "gradwatch/") + key
        self._pending.update({prefix + name: value for name, value in values.items() if value is not None})
        self._pending_step = logged_step(trainer)

    def flush(self, trainer: Trainer, through_time: Callable[[], float | None] = lambda: None) -> None:
        """Write the batch's steps to the loggers: one row a batch,
        whatever the number of optimizers.

        Args:
            through_time: asked only when its turn has come, since it waits for the device.
        """
        if self.progress_bar and self._last:
            show_in_progress_bar(trainer, {"clip": self._last})
        pending, self._pending = self._pending, {}
        if pending:
            share = through_time()
            if share is not None:
                pending["gradwatch/through_time"] = share
            self._scalars.write(trainer, pending, self._pending_step)

    def event(self, trainer: Trainer, kind: EventKind, index: int, *, detail: str = "", **fields: Any) -> None:
        """Make an event and hand it to whoever wants it."""
        which = f"Optimizer {index}." if len(trainer.optimizers) > 1 else ""
        event = Event(
            kind,
            step=trainer.global_step,
            epoch=trainer.current_epoch,
            batch_idx=self.batch_idx,
            rank=trainer.global_rank,
            detail=" ".join(filter(None, (detail, which))),
            **fields,
        )
        self.sink.take(event, write=trainer.is_global_zero)  # the decision is that of all ranks: one record of it

    def warn_once(self, key: str, message: str) -> None:
        """Warn, once a fit for each key."""
        if key not in self._warned:
            self._warned.add(key)
            rank_zero_warn(message)
