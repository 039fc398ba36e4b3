"""What GradWatch does during one fit: take the calls of a step, judge them, and hand out what was found."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_gradwatch.detect import (
    ExplodingDetector,
    NormJumpDetector,
    SweptCall,
    VanishingDetector,
    locate_nonfinite,
)
from lightning_gradwatch.events import Event, EventKind, Moment
from lightning_gradwatch.profile import Profile
from lightning_gradwatch.recurrent import Capture, RecurrentCall, profiles, sweep
from lightning_gradwatch.recurrent.discover import plain_name
from lightning_gradwatch.recurrent.monitor import PendingNorm, gradient_norm, recurrent_weights


@dataclass(frozen=True, slots=True)
class Step:
    """What is known of a step besides its tensors.

    ``unscale``: by what hidden-state gradients are multiplied to undo loss scale and gradient accumulation.
    ``complete``: whether the parameters' gradients are those of the whole optimizer step. ``scaled``: whether a gradient
    scaler is at work.
    """

    moment: Moment
    micro_batch: int
    sampled: bool
    unscale: Callable[[], float]
    complete: bool
    scaled: bool


@dataclass(slots=True)
class _Pending:
    """A step whose norm is still on its way from the device."""

    norm: PendingNorm
    calls: list[RecurrentCall]
    loss: Tensor | None
    step: Step


class Watch:
    """Watches the recurrent modules of one model during one fit.

    Args:
        model: its names are those of the events.
        modules: qualified name → module.
        max_sequences: swept on a sampled step; None takes all.
        anchors: of each lagged profile.
        on_profiles: told the profiles of a sampled step.
        on_event: told each event.
    """

    def __init__(
        self,
        model: nn.Module,
        modules: dict[str, nn.RNNBase],
        *,
        max_sequences: int | None,
        anchors: int,
        on_profiles: Callable[[list[Profile], Step], None],
        on_event: Callable[[Event], None],
    ) -> None:
        self.capture = Capture(modules)
        self.observed: set[str] = set()
        self._model, self._max_sequences, self._anchors = model, max_sequences, anchors
        self._on_profiles, self._on_event = on_profiles, on_event
        self._weights = [weight for module in modules.values() for weight in recurrent_weights(module)]
        self._jump = NormJumpDetector()
        self._exploding, self._vanishing = ExplodingDetector(), VanishingDetector()
        self._nonfinite = self._overflowing = False
        self._pending: list[_Pending] = []
        self.capture.attach()

    def after_backward(self, loss: Tensor | None, step: Step) -> None:
        """Take the calls whose gradients have arrived; sweep them if the step is sampled or its norm is out of the ordinary."""
        if self.capture.failure is not None:
            raise self.capture.failure
        calls = [call for call in self.capture.calls if call.has_gradient()]
        if not calls:
            return
        self.capture.calls = [call for call in self.capture.calls if not call.has_gradient()]
        self.observed.update(call.module for call in calls)
        norm = gradient_norm(self._weights)
        if norm is not None:
            self._pending.append(_Pending(norm, calls, loss, step))
        if step.sampled:
            self._sample(calls, step)
        if norm is None:
            release(calls)
        self.poll()

    def poll(self, *, wait: bool = False) -> None:
        """Judge the norms that have arrived; with ``wait``, all of them."""
        while self._pending and (wait or self._pending[0].norm.ready()):
            pending = self._pending.pop(0)
            self._judge(pending.norm.value(), pending)
            release(pending.calls)

    def close(self) -> None:
        """Take the hooks off and let go of everything."""
        for pending in self._pending:
            release(pending.calls)
        self._pending.clear()
        self.capture.detach()

    def _sample(self, calls: list[RecurrentCall], step: Step) -> None:
        unscale = step.unscale()
        found: list[Profile] = []
        for call in calls:
            swept = sweep(call, max_sequences=self._max_sequences, anchors=self._anchors)
            found += [profile.scaled(unscale) for profile in profiles(call, swept)]
        self._on_profiles(found, step)
        for profile in found:
            for event in (self._exploding(profile, step.moment), self._vanishing(profile, step.moment)):
                if event is not None:
                    self._on_event(event)

    def _judge(self, norm: float, pending: _Pending) -> None:
        step = pending.step
        if not math.isfinite(norm):
            self._find_nonfinite(norm, pending)
            return
        self._nonfinite = self._overflowing = False
        bound = self._jump(norm) if step.complete else None
        if bound is not None:
            self._on_event(self._jump.event(norm, bound, step.moment))
            if not step.sampled:
                self._sample(pending.calls, step)

    def _find_nonfinite(self, norm: float, pending: _Pending) -> None:
        """Look for where it began; once an episode, which a finite step ends."""
        if self._nonfinite:
            return
        step = pending.step
        loss = None if pending.loss is None else float(pending.loss.detach())
        whole = [
            SweptCall(call, sweep(call, anchors=0, max_sequences=None), self._weight_names(call))
            for call in pending.calls
        ]
        event = locate_nonfinite(whole, loss, self._named_parameters(), step.moment)
        if event is not None and step.scaled and event.kind in _SCALER_MAY_CAUSE:
            if not self._overflowing:
                self._overflowing = True
                self._on_event(step.moment.event(EventKind.AMP_OVERFLOW, value=1 / step.unscale(), action="skipped"))
            return
        if event is None:
            event = self._overflowed(step.moment)
        self._nonfinite = True
        self._on_event(event)
        if not step.sampled:
            self._sample(pending.calls, step)

    def _overflowed(self, moment: Moment) -> Event:
        """Every entry is finite: only the sum of their squares left float32."""
        norms = [weight.grad.double().norm() for weight in self._weights if weight.grad is not None]
        bound = self._jump.bound()
        return moment.event(
            EventKind.EXPLODING_GRADIENT,
            value=float(torch.stack(norms).norm()),
            threshold=bound if bound is not None else math.sqrt(torch.finfo(torch.float32).max),
            detail="It is that of the recurrent weights' gradient; the sum of its squares overflows float32.",
        )

    def _named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        watched = [
            (f"{name}.{own}", parameter)
            for name, module in self.capture.modules.items()
            for own, parameter in module.named_parameters()
        ]
        return watched + [(plain_name(name), parameter) for name, parameter in self._model.named_parameters()]

    def _weight_names(self, call: RecurrentCall) -> list[str]:
        names = self.capture.modules[call.module]._all_weights  # pyright: ignore[reportPrivateUsage]
        return [f"{call.module}.{name}" for layer in names for name in layer]


_SCALER_MAY_CAUSE = (EventKind.NONFINITE_HIDDEN_GRADIENT, EventKind.NONFINITE_GRADIENT)
"""Under a loss scale, gradients that overflow behind a finite loss and finite states are the scaler's search."""


def release(calls: list[RecurrentCall]) -> None:
    """Let go of the gradients that the tensors' hooks of these calls still hold."""
    for call in calls:
        call.release()
