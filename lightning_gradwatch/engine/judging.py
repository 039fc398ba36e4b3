"""What a backward pass's norms, loss and weights tell: jumps, numbers
that are not finite, divergence.
"""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import median

from torch import Tensor, nn

from lightning_gradwatch.detect import (
    Context,
    DivergenceDetector,
    Multiplied,
    NormJumps,
    ScaleSearch,
    WeightWatch,
    ZeroGradient,
    bad_loss,
    multiplied,
)
from lightning_gradwatch.detect.weights import AFTER_THE_LAST_STEP, SATURATED
from lightning_gradwatch.engine.backward_pass import Step
from lightning_gradwatch.engine.first_step_search import FirstStepSearch
from lightning_gradwatch.engine.locator import OVERFLOWS, Locator, Read, wide_norm
from lightning_gradwatch.engine.observation import Collector
from lightning_gradwatch.events import Event, EventKind, Moment, Severity
from lightning_gradwatch.recurrent.capture.taken import Taken
from lightning_gradwatch.recurrent.graph.between import leads_to_weights
from lightning_gradwatch.recurrent.measure.gradient_norm import Norms, PendingNorms, local, matrix_norms, usual_norms

_SCALER_MAY_CAUSE = (EventKind.NONFINITE_HIDDEN_GRADIENT, EventKind.NONFINITE_GRADIENT)
"""Under a loss scale, gradients that overflow behind a finite loss and finite
states are the scaler's search.
"""


MOVED = 2.0
"""Times its norm at the start, to which a weight matrix has grown that has left it."""

FEW = 8
"""Steps before one, of which its gradients are those of a multiplied loss, if they are."""


@dataclass(slots=True)
class Pending:
    """A backward pass whose norms are still on their way from the device.
    ``nth``: which one of its batch it is.
    """

    norms: PendingNorms
    taken: Taken
    loss: Tensor | None
    step: Step
    nth: int


class Judge:
    """Of one fit.

    Args:
        model: whose training it is.
        locator: finds where numbers that are not finite began.
        search: for cells, which knows them on the first step.
        collector: takes the events.
    """

    def __init__(self, model: nn.Module, locator: Locator, search: FirstStepSearch, collector: Collector) -> None:
        self._model, self._locator, self._search, self._collector = model, locator, search, collector
        self._start = usual_norms(model)
        self._norm_jumps, self._scale_search = NormJumps(), ScaleSearch()
        self._divergence, self._weights = DivergenceDetector(matrix_norms(model), self._start), WeightWatch()
        self._before: defaultdict[int, deque[Read]] = defaultdict(lambda: deque(maxlen=FEW))  # by the pass's number
        self._zero = ZeroGradient()
        self._last_jump: Event | None = None
        self._bad_loss = False
        self._nonfinite = False  # an episode goes on
        self._bad_states = False  # so too, of gradients that reach no weight

    def __call__(self, norms: Norms, pending: Pending, confirmed: Callable[[], Iterable[Event]]) -> bool:
        """Take in a pass's norms. Returns whether an anomaly begins with them.

        Args:
            confirmed: what is beyond doubt once numbers stopped being finite; asked only then.
        """
        return self._jumps(norms, pending) if math.isfinite(norms.whole) else self._begins_nonfinite(pending, confirmed)

    def _jumps(self, norms: Norms, pending: Pending) -> bool:
        """Take in finite norms. Returns whether a jump begins with them."""
        step, before = pending.step, self._before[pending.nth]
        if not step.complete:  # the micro-batches to come may still spoil it
            return False
        self._nonfinite = False
        self._scale_search.ended()
        self._tell(
            self._zero(
                norms.whole,
                norms.loss,
                step.moment,
                partial(_are_zero, pending.norms.parameters),
                partial(_reaches_states, pending.taken),
            )
        )
        read = Read(pending.norms.parameters, norms)
        event = self._norm_jumps(
            norms.of_recurrent,
            norms.whole,
            pending.nth,
            step.moment,
            partial(self._told_of, read, before),
            loss=norms.loss,
            multiplied=partial(_multiplied, read, before),
            moved=self._moved,
        )
        before.append(read)
        self._tell(event)
        if event is None or event.action is not None:
            return False
        self._last_jump = event
        return True

    def _begins_nonfinite(self, pending: Pending, confirmed: Callable[[], Iterable[Event]]) -> bool:
        """Look for where it began; once an episode, which a finite step
        ends. Returns whether one begins.
        """
        if self._nonfinite:
            return False
        step, event = pending.step, self._locate(pending)
        if event is not None and step.scaled and event.kind in _SCALER_MAY_CAUSE:
            self._tell(self._scale_search.overflowed(event, float(step.scale), step.moment, complete=step.complete))
            return False
        if event is None:
            event = self._overflowed(pending)
        else:
            self._nonfinite = True
            if event.kind != EventKind.NONFINITE_INPUT:
                for before in confirmed():
                    self._tell(before)
        self._tell(event)
        return event is not None

    def _locate(self, pending: Pending) -> Event | None:
        return self._locator(
            pending.taken.calls,
            pending.step.moment,
            loss=pending.loss,
            batch=pending.step.batch,
            first=self._search.first,
            cells=self._search.cells(),
        )

    def look_at_states(self, pending: Pending, *, finite: bool) -> None:
        """Tell hidden-state gradients that are not finite though those of all weights are, as where
        a relu that is off lets nothing through; once, until a sample is finite again.
        """
        known = finite or self._bad_states or pending.step.scaled  # a scaler looks for its scale
        event = None if known else self._locate(pending)
        if event is not None and event.kind == EventKind.NONFINITE_HIDDEN_GRADIENT:
            message = f"{event.message} The gradients of the weights are finite all the same, so it spoils none."
            self._tell(replace(event, message=message))
        self._bad_states = not finite

    def look_at_loss(self, norms: Norms, pending: Pending) -> None:
        """Tell a loss that is not finite though its gradient is, once, until it is finite
        again; and one that runs away.
        """
        step, loss = pending.step, norms.loss
        if loss is None and step.sampled:
            loss = step.loss_value()
        if loss is None:
            return
        if step.complete and pending.nth == 0:
            self._tell(self._divergence.see(loss, norms.whole, step.moment))
        if step.sampled:
            self._look_for_divergence(step.moment)
        bad = not math.isfinite(loss)
        if bad and not self._bad_loss:
            event = bad_loss(loss, step.moment, Context(pending.loss, step.batch), sizes=(), states=())
            message = f"{event.message} Its gradients are finite all the same, so it spoils no weight."
            self._tell(replace(event, severity=Severity.WARNING, message=message))
        self._bad_loss = bad

    def without_gradient(self, step: Step) -> None:
        """Take in the backward pass of a loss from which no parameter got a gradient."""
        loss = step.loss
        if step.complete and loss is not None:
            self._tell(self._zero.none_at_all(step.moment, step.loss_value, lambda: not leads_to_weights(loss)))

    def look_at_weights(self, watched: Iterable[Tensor], moment: Moment, message: str = SATURATED) -> None:
        """Tell a recurrent module's weight that is not finite."""
        trained = {id(weight) for weight in watched if weight.requires_grad}
        weights = ((name, local(weight)) for name, weight in self._locator.named() if id(weight) in trained)
        self._tell(self._weights(weights, message, moment))

    def finish(self, watched: Iterable[Tensor], moment: Moment) -> None:
        """Training is over: look at what the last step left, and end the episode of a jump."""
        if not self._nonfinite:
            self.look_at_weights(watched, moment, AFTER_THE_LAST_STEP)
            self._look_for_divergence(moment)
        for event in self._norm_jumps.finish(moment):
            self._collector.add(event)

    def close(self) -> None:
        """Let go of the steps before, whose parameters it holds."""
        self._before.clear()

    def _overflowed(self, pending: Pending) -> Event | None:
        """Every entry is finite: only the sum of their squares left float32."""
        step, norm = pending.step, wide_norm(pending.norms.parameters, pending.step.scale)
        detail = "It is that of all parameters of the model."
        return self._norm_jumps.overflowed(norm, OVERFLOWS, pending.nth, step.moment, detail)

    def _look_for_divergence(self, moment: Moment) -> None:
        if self._divergence.is_suspicious():
            self._tell(self._divergence(matrix_norms(self._model), moment, self._last_jump))

    def _moved(self) -> bool:
        """Whether the weights have left where they began: then a loss that is high is their own."""
        now = matrix_norms(self._model)
        return any(now[weight] >= MOVED * norm for weight, norm in self._start.items() if weight in now)

    def _told_of(self, read: Read, before: Sequence[Read], recurrent: bool) -> str:
        """Whose norm it is, and which parameter's grew most, or that all grew as the loss did."""
        whose = "all parameters of the recurrent modules" if recurrent else "all parameters of the model"
        if _multiplied(read, before) is not None:
            grown = "The gradients grew as the loss did: it seems to be the loss itself that is larger."
        else:
            grown = self._locator.grown_most(read, before, recurrent=recurrent)
        share = any(local(weight) is not weight for weight in read.parameters)
        return f"It is that of {whose}{', of this process alone' if share else ''}. {grown}".rstrip()

    def _tell(self, event: Event | None) -> None:
        """Take an event, with what is known of its cause."""
        self._collector.add(
            None if event is None else self._divergence.explain(event, partial(matrix_norms, self._model))
        )


def _reaches_states(taken: Taken) -> bool:
    """Whether the loss sends a gradient to the states of a recurrent call."""
    gradients = (slot.value() for call in taken.calls for slot in call.slots())
    return any(gradient is not None and bool(gradient.any()) for gradient in gradients)


def _are_zero(parameters: Iterable[Tensor]) -> bool:
    """Whether gradients are there, whole ones, and every entry is 0."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if any(local(gradient) is not gradient for gradient in gradients):
        return False  # another process may have those that are not
    return bool(gradients) and not any(bool(gradient.any()) for gradient in gradients)


def _multiplied(read: Read, before: Sequence[Read]) -> Multiplied | None:
    """Whether the loss itself was multiplied since the few steps before."""
    losses = [one.norms.loss for one in before if one.norms.loss is not None]
    then: defaultdict[int, list[float]] = defaultdict(list)
    for one in before:
        for parameter, norm in zip(one.parameters, one.norms.by_parameter, strict=True):
            then[id(parameter)].append(norm)
    now = {id(p): norm for p, norm in zip(read.parameters, read.norms.by_parameter, strict=True) if norm > 0}
    usual = {
        weight: size for weight, norms in then.items() if 2 * len(norms) > len(before) and (size := median(norms)) > 0
    }
    grown = [norm / usual[weight] for weight, norm in now.items() if weight in usual]
    others = len(before) > 1 and len(grown) < len(now)
    return multiplied(read.norms.loss, median(losses) if losses else None, grown, others=others)
