"""What GradWatch does about an anomaly, where it was asked to do anything: warn,
skip, stop, raise, or go back.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Generator
from typing import Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_gradwatch.callbacks.anomaly.rollback import GoodStates, State
from lightning_gradwatch.callbacks.anomaly.step_control import is_skipped, skip_step, stop_training
from lightning_gradwatch.detect import locate_nonfinite
from lightning_gradwatch.events import Event, EventKind, Moment, Severity
from lightning_gradwatch.findings.announcer import ROLLED_BACK
from lightning_gradwatch.plain import plain, warn
from lightning_gradwatch.recurrent.capture.modules import plain_name
from lightning_gradwatch.recurrent.measure.gradient_norm import gradient_norms
from lightning_gradwatch.trainer.compat import LightningModule, Trainer, rank_zero_warn
from lightning_gradwatch.trainer.line_search import LineSearch
from lightning_gradwatch.trainer.mixed_precision import active_scaler

Response = Literal["warn", "skip", "stop", "raise", "rollback"]
RESPONSES: tuple[Response, ...] = ("warn", "skip", "stop", "raise", "rollback")


_AFTER_ROLLBACK = (
    "What the optimizer did since the last good state is undone, and the batches of those steps are not seen again. A single time is "
    "harmless; if it goes on, the events before it name the place where it began."
)
"""What is to be said of a skipped step where the weights are not as they were before it."""


class AnomalyError(FloatingPointError):
    """Raised by ``GradWatch(on_anomaly="raise")``, on every rank.

    Attributes:
        event: the anomaly; under DDP it may be another rank's.
    """

    def __init__(self, event: Event) -> None:
        super().__init__(event)
        self.event = event

    def __str__(self) -> str:
        return plain(f"{_told(self.event)} {self.event.remedy}")


class Responder:
    """Acts on the critical events of one fit, on all ranks alike.

    An optimizer step is anomalous if a critical event came up on any rank since the step before, or
    if a gradient that it would use is not finite. The latter holds on while an episode lasts, of
    which there is one event only. A gradient scaler's own search for its scale is none, and no
    probe of LBFGS's line search is.

    Args:
        response: what to do.
        most: after so many in succession training is stopped; steps
            skipped, or ways back to one state.
        every: optimizer steps from one copy of the state to the next, for ``rollback``.
        report: takes the event that says what was done.
    """

    def __init__(self, response: Response, most: int, every: int, report: Callable[[Event], None]) -> None:
        self._response, self._most, self._every, self._report = response, most, every, report
        self._event: Event | None = None
        self._anomalous = self._stepped = False
        self._successive = 0
        self._states: GoodStates | None = None
        self._back: Event | None = None
        self._attributes: State | None = None  # whose attributes are to be put back
        self._able = True  # to keep copies of the state
        self._search = LineSearch()

    def begin_batch(self, trainer: Trainer, module: LightningModule) -> None:
        """Before anything of the batch ran."""
        self._stepped = False
        if self._attributes is not None:
            self._attributes.restore_attributes(module)
            self._attributes = None
        if self._response == "rollback" and self._states is None and self._able:
            with self._keeping():
                self._states = GoodStates(self._every, lambda: State.of(trainer, module))

    def note(self, event: Event) -> None:
        """A critical event of this rank."""
        if self._event is None:
            self._event = event

    def before_step(self, trainer: Trainer, module: LightningModule, optimizer: Optimizer, moment: Moment) -> None:
        """Decide, with all ranks, about the optimizer step that comes.

        Raises:
            AnomalyError: the response is ``raise``.
        """
        self._stepped = True
        if self._search.is_probe(trainer, optimizer):
            self._event = None
            return
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        event, self._event = self._event or _in_gradients(trainer, module, parameters, moment), None
        self._decide(trainer, self._common(trainer, event), optimizer, parameters, moment)

    def end_batch(self, trainer: Trainer, module: LightningModule, moment: Moment) -> None:
        """After the optimizer step: go back if it was due, else count the step as good."""
        automatic = module.automatic_optimization
        if not automatic and not self._stepped and self._response != "skip":
            # Raw optimizers call no hook. What is done about a batch of theirs is done afterwards.
            event, self._event = self._event, None
            self._decide(trainer, self._common(trainer, event), None, [], moment)
            self._stepped = True
        event, self._back = self._back, None
        states = self._states
        if states is None or not self._stepped:
            return
        if event is not None:
            states.good.restore(trainer, module)
            self._attributes = states.good
            states.forget()
            return
        with self._keeping():
            self._successive = 0 if states.count() else self._successive

    @contextlib.contextmanager
    def _keeping(self) -> Generator[None]:
        """No copy of the state must harm a healthy training: without one, the training is
        stopped where it would go back.
        """
        try:
            yield
        except Exception as error:  # of an optimizer whose state cannot be copied, say
            self._able, self._states = False, None
            warn(
                f'GradWatch(on_anomaly="rollback") cannot keep copies of the state ({type(error).__name__}: {error}); training goes '
                "on, and is stopped at an anomaly.",
                stacklevel=2,
            )

    def _common(self, trainer: Trainer, event: Event | None) -> Event | None:
        """The event on which all ranks agree: any rank's own; of several, one that says more than
        that a gradient is not finite.

        One flag is reduced at each optimizer step; the events are exchanged at an anomaly only, and
        with them whether each rank has a state to go back to.
        """
        if not trainer.strategy.reduce_boolean_decision(event is not None, all=False):
            return None
        gathered: list[tuple[Event | None, bool]] = [(event, self._able)]
        if trainer.world_size > 1:
            gathered *= trainer.world_size
            torch.distributed.all_gather_object(gathered, (event, self._able))
        if self._response == "rollback" and not all(able for _, able in gathered):
            self._response, self._states = "stop", None
        events = [one for one, _ in gathered if one is not None]
        return min(events, key=lambda one: (one.kind == EventKind.NONFINITE_GRADIENT, one.rank))

    def _decide(
        self,
        trainer: Trainer,
        event: Event | None,
        optimizer: Optimizer | None,
        parameters: list[Tensor],
        moment: Moment,
    ) -> None:
        began, self._anomalous = not self._anomalous, event is not None
        if event is None:
            if self._response != "rollback":
                self._successive = 0
            return
        if self._response == "raise":
            raise AnomalyError(event)
        if self._response == "warn":
            if began:
                rank_zero_warn(f"GradWatch: {_told(event)} {event.remedy}")
            return
        self._successive += 1
        self._skip(trainer, event, optimizer, parameters, moment)

    def _skip(
        self,
        trainer: Trainer,
        event: Event,
        optimizer: Optimizer | None,
        parameters: list[Tensor],
        moment: Moment,
    ) -> None:
        exhausted = self._response != "stop" and self._successive == self._most
        stops = self._response == "stop" or self._successive >= self._most
        norm = math.nan
        if parameters and optimizer is not None:
            norm = _norm(parameters)
            skip_step(trainer, optimizer, parameters)
        elif optimizer is not None and self._response == "skip" and not stops and is_skipped(trainer, optimizer):
            return
        detail, action = f"Because of {event.kind} at {event.place}.", "stopped" if stops else "skipped"
        if self._response == "rollback" and self._states is not None:
            self._back = event
            action = "stopped" if stops else ROLLED_BACK
            detail += f" Weights, optimizer and schedule go back to those after step {self._states.good.step}."
        if exhausted:
            detail += f" That is {self._successive} times in succession: training is stopped."
            rank_zero_warn(
                f'GradWatch(on_anomaly="{self._response}") acted {self._successive} times in succession without getting past the '
                f"anomaly, and stops the training. The last: {_told(event)} {event.remedy} Or raise `max_responses`."
            )
        if stops:
            stop_training(trainer)
        severity = Severity.CRITICAL if exhausted else Severity.WARNING
        fields = {"value": norm, "action": action, "detail": detail, "severity": severity}
        remedy = "" if self._back is None else _AFTER_ROLLBACK
        self._report(moment.event(EventKind.STEP_SKIPPED, remedy=remedy, **fields))


def _told(event: Event) -> str:
    where = "" if event.batch_idx is None else f" (epoch {event.epoch}, batch {event.batch_idx}, rank {event.rank})"
    return f"{event.kind} at optimizer step {event.step}{where}: {event.message}"


@torch.no_grad()
def _in_gradients(trainer: Trainer, module: LightningModule, parameters: list[Tensor], moment: Moment) -> Event | None:
    if active_scaler(trainer) is not None:
        return None  # it looks at every gradient itself, and skips
    norms = gradient_norms(parameters)
    if norms is None or math.isfinite(norms.read().whole):
        return None
    stepping = set(map(id, parameters))
    named = ((plain_name(name), weight) for name, weight in module.named_parameters() if id(weight) in stepping)
    return locate_nonfinite([], None, named, moment)  # None where only the sum of the squares overflowed


@torch.no_grad()
def _norm(parameters: list[Tensor]) -> float:
    norms = gradient_norms(parameters)
    return math.nan if norms is None else norms.read().whole
