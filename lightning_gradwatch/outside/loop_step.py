"""The step at hand, in a loop: where clipping says what it did, and acts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from lightning_gradwatch.clip.step.measure_and_clip import Outcome
from lightning_gradwatch.clip.step.nonfinite_step import NonFiniteGradientError
from lightning_gradwatch.clip.step.state import ClipState
from lightning_gradwatch.events import Event, EventKind, Moment
from lightning_gradwatch.findings.clip_record import step_record, values_of
from lightning_gradwatch.findings.event_sink import EventSink
from lightning_gradwatch.outside.loop_findings import GuardedLog, Scalars
from lightning_gradwatch.outside.processes import rank
from lightning_gradwatch.outside.terminal import say
from lightning_gradwatch.plain import warn
from lightning_gradwatch.tools import Tools, tools_at_hand


class LoopStep:
    """A ``ClipRecord``: of all steps of a loop, one after the other.

    Args:
        on_event: the user's callable; ``log``: for the values of each step.
        several: whether there are several optimizers.

    Attributes:
        steps: optimizer steps done.
        loss: of the step at hand.
    """

    def __init__(self, on_event: Callable[[Event], None] | None, log: Scalars | None, several: bool) -> None:
        self.sink = EventSink(on_event)
        self.steps = 0
        self.loss: float | None = None
        self._log, self._several = GuardedLog(log), several
        self._warned: set[str] = set()
        self._values: dict[str, float] = {}

    def take_loss(self, loss: float | None) -> None:
        """That of the step at hand."""
        self.loss = loss

    def step(self, index: int, outcome: Outcome, state: ClipState, *, skipped: bool = False) -> None:
        """What became of it."""
        record = step_record(self.steps, index, outcome, self.loss, skipped=skipped)
        if self.sink.log is not None:
            self.sink.log.step(record)
        self._keep(index, "", {**values_of(outcome, state), "skipped_steps": float(state.skipped)})
        values, self._values = self._values, {}
        self._log(values, self.steps)

    def group(self, index: int, key: str, outcome: Outcome, state: ClipState) -> None:
        """What became of the parameters that a pattern names."""
        values = values_of(outcome, state)
        self._keep(index, f"{key}/", {"grad_norm": values["grad_norm"]} if state.policy is None else values)

    def event(self, kind: EventKind, index: int, *, detail: str = "", **fields: Any) -> None:
        """Make an event, and hand it to whoever wants it."""
        which = f"Optimizer {index}." if self._several else ""
        moment = Moment(self.steps, rank=rank(), in_loop=True)
        event = moment.event(kind, detail=" ".join(filter(None, (detail, which))), **fields)
        self.sink.take(event, write=rank() == 0)  # the decision is that of all ranks: one record of it

    def warn_once(self, key: str, message: str) -> None:
        """Warn, once for each key."""
        if key not in self._warned:
            self._warned.add(key)
            warn(message, stacklevel=2)

    def say(self, text: str) -> None:
        """Say at once what must not wait."""
        say(text, urgent=True)

    def where(self) -> str:
        """When it is, in words."""
        return f"optimizer step {self.steps}"

    @property
    def number(self) -> int:
        """Optimizer steps done before it."""
        return self.steps

    @property
    def tools(self) -> Tools:
        """The functions."""
        return tools_at_hand(in_loop=True)

    def skip(self, optimizer: Optimizer, parameters: Iterable[Tensor]) -> None:
        """Have the step change nothing."""
        for parameter in parameters:
            parameter.grad = None  # zeros would still move weights by momentum and weight decay

    def stop(self, reason: str) -> None:
        """End the training: a loop ends by an error alone."""
        raise NonFiniteGradientError(reason)

    def _keep(self, index: int, key: str, values: dict[str, float | None]) -> None:
        prefix = (f"gradwatch/{index}/" if self._several else "gradwatch/") + key
        self._values.update({prefix + name: value for name, value in values.items() if value is not None})
