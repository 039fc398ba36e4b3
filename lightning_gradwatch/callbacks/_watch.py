"""What GradWatch does during one fit: take the calls of a step, judge them, and hand out what was found."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_gradwatch.detect import (
    ExplodingDetector,
    LoopPlaces,
    NormJumpDetector,
    Place,
    SweptCall,
    VanishingDetector,
    locate_nonfinite,
)
from lightning_gradwatch.events import Event, EventKind, Moment
from lightning_gradwatch.profile import Profile
from lightning_gradwatch.recurrent import (
    Capture,
    Loop,
    RecurrentCall,
    loop_profiles,
    measure_lags,
    profiles,
    stitch,
    sweep,
)
from lightning_gradwatch.recurrent.discover import Discovery, plain_name, scripted
from lightning_gradwatch.recurrent.monitor import PendingNorm, gradient_norm, local

Call = RecurrentCall | Loop


@dataclass(frozen=True, slots=True)
class Step:
    """What is known of a step besides its tensors.

    ``windows``: by how much the loss was divided for gradient accumulation; ``scale``: by how much a gradient scaler multiplied it.
    ``complete``: whether the parameters' gradients are those of the whole optimizer step. ``scaled``: whether a gradient
    scaler is at work.
    """

    moment: Moment
    micro_batch: int
    sampled: bool
    windows: int
    scale: Tensor | float
    complete: bool
    scaled: bool
    loss: Tensor | None = None

    def unscale(self) -> float:
        """By what hidden-state gradients are multiplied to undo both. A host sync where a scaler is at work."""
        return self.windows / float(self.scale)

    def loss_value(self) -> float | None:
        """The loss as the training step returned it. A host sync: for sampled steps."""
        if self.loss is None or self.loss.numel() != 1:
            return None
        return float(self.loss.detach()) * self.unscale()


@dataclass(slots=True)
class _Pending:
    """A step whose norm is still on its way from the device."""

    norm: PendingNorm
    calls: list[Call]
    loss: Tensor | None
    step: Step


class Watch:
    """Watches the recurrent modules of one model during one fit.

    Args:
        model: its names are those of the events.
        modules: qualified name → module.
        find_cells: look for cells of the model's own on the first step.
        max_sequences: swept on a sampled step; None takes all.
        anchors: of each lagged profile.
        on_profiles: told the profiles of a sampled step.
        on_event: told each event.
    """

    def __init__(
        self,
        model: nn.Module,
        modules: dict[str, nn.Module],
        *,
        find_cells: bool,
        max_sequences: int | None,
        anchors: int,
        on_profiles: Callable[[list[Profile], Step], None],
        on_event: Callable[[Event], None],
    ) -> None:
        self.capture = Capture(modules)
        self.observed: set[str] = set()
        self.called_around: set[str] = set()
        self._model, self._max_sequences, self._anchors = model, max_sequences, anchors
        self._on_profiles, self._on_event = on_profiles, on_event
        self._jump = NormJumpDetector()
        self._exploding, self._vanishing = ExplodingDetector(), VanishingDetector()
        self._nonfinite = self._overflowing = False
        self._severed: set[str] = set()
        self._pending: list[_Pending] = []
        self._scripted = scripted(model) if find_cells else {}
        self.capture.attach()
        self._weights = list(self.capture.parameters())
        self._discovery = Discovery(model, modules.values()) if find_cells else None

    def before_backward(self, loss: Tensor, step: Step) -> None:
        """On a sampled step, follow the loss back through the loops, while their graph is still there."""
        if not step.sampled or not loss.requires_grad:
            return
        for call in self.capture.calls:
            if isinstance(call, Loop) and len(call.h) > 1 and call.curves is None:
                measure_lags(call, loss)

    def after_backward(self, loss: Tensor | None, step: Step) -> None:
        """Take the calls whose gradients have arrived; sweep them if the step is sampled or its norm is out of the ordinary."""
        if self.capture.failure is not None:
            raise self.capture.failure
        severed = self.capture.loops.severed()
        calls = self.capture.take()
        if not calls:
            return
        self.observed.update(call.module for call in calls)
        self._report_severed(severed, step.moment)
        norm = gradient_norm(self._weights, step.scale)
        if norm is not None:
            self._pending.append(_Pending(norm, calls, loss, step))
        if step.sampled:
            self._sample(calls, step)
        if norm is None:
            _release(calls)
        self.poll()

    def end_step(self) -> bool:
        """Let go of the step. Returns whether cells were found that the next step should sample."""
        capture = self.capture
        for call in capture.calls:
            capture.unseen.setdefault(call.module, "no loss reached its output")
        for name, module in capture.modules.items():
            if name not in self.observed and any(p.grad is not None for p in module.parameters()):
                self.called_around.add(name)
        capture.end()
        capture.clear()
        return self._end_discovery()

    def has_nothing(self) -> bool:
        """Whether a whole step has passed in which there was nothing to watch."""
        return not (self.capture.modules or self.observed or self._discovery or self._scripted)

    def unobserved(self) -> list[tuple[str, str]]:
        """Each module that was never observed, with the reason."""
        found = [
            (name, f"TorchScript holds it ({kind}), which takes no hooks.") for name, kind in self._scripted.items()
        ]
        for name in self.capture.modules:
            if name in self.observed:
                continue
            if name in self.capture.unseen:
                reason = self.capture.unseen[name]
            elif name in self.called_around:
                reason = "its weights have gradients but no hook fired: .forward was called around it, or it was compiled before"
            else:
                reason = "its forward was not called in a training step, or no loss reached its output"
            found.append((name, f"{reason[0].upper()}{reason[1:]}."))
        return found

    def poll(self, *, wait: bool = False) -> None:
        """Judge the norms that have arrived; with ``wait``, all of them."""
        while self._pending and (wait or self._pending[0].norm.ready()):
            pending = self._pending.pop(0)
            self._judge(pending.norm.value(), pending)
            _release(pending.calls)

    def close(self) -> None:
        """Take the hooks off and let go of everything."""
        for pending in self._pending:
            _release(pending.calls)
        self._pending.clear()
        self.capture.detach()
        if self._discovery is not None:
            self._discovery.close()

    def _end_discovery(self) -> bool:
        discovery, self._discovery = self._discovery, None
        if discovery is None:
            return False
        discovery.close()
        for name, (module, position) in discovery.found.items():
            self.capture.add(name, module, position)
        self._weights = list(self.capture.parameters())
        return bool(discovery.found)

    def _report_severed(self, severed: list[str], moment: Moment) -> None:
        for name in severed:
            if name not in self._severed:
                self._severed.add(name)
                self._on_event(moment.event(EventKind.NO_GRADIENT_THROUGH_TIME, module=name))

    def _sample(self, calls: list[Call], step: Step) -> None:
        unscale = step.unscale()
        found: list[Profile] = []
        for call in stitch(calls):
            if isinstance(call, Loop):
                found += loop_profiles(call, self._max_sequences)
            else:
                found += profiles(call, sweep(call, max_sequences=self._max_sequences, anchors=self._anchors))
        found = [profile.scaled(unscale) for profile in found]
        self._on_profiles(found, step)
        for profile in found:
            for event in (self._exploding(profile, step.moment), self._vanishing(profile, step.moment)):
                if event is not None:
                    self._on_event(event)

    def _judge(self, norm: float, pending: _Pending) -> None:
        step = pending.step
        if not math.isfinite(norm):
            self._find_nonfinite(pending)
            return
        self._nonfinite = self._overflowing = False
        bound = self._jump(norm) if step.complete else None
        if bound is not None:
            self._on_event(self._jump.event(norm, bound, step.moment))
            if not step.sampled:
                self._sample(pending.calls, step)

    def _find_nonfinite(self, pending: _Pending) -> None:
        """Look for where it began; once an episode, which a finite step ends."""
        if self._nonfinite:
            return
        step = pending.step
        loss = None if pending.loss is None else float(pending.loss.detach())
        places = [self._place(call) for call in pending.calls]
        event = locate_nonfinite(places, loss, self._named_parameters(), step.moment)
        if event is not None and step.scaled and event.kind in _SCALER_MAY_CAUSE:
            if not self._overflowing:
                self._overflowing = True
                self._on_event(step.moment.event(EventKind.AMP_OVERFLOW, value=float(step.scale), action="skipped"))
            return
        if event is None:
            event = self._overflowed(step)
        self._nonfinite = True
        self._on_event(event)
        if not step.sampled:
            self._sample(pending.calls, step)

    def _place(self, call: Call) -> Place:
        if isinstance(call, Loop):
            return LoopPlaces(call)
        module = self.capture.modules[call.module]
        names = [f"{call.module}.{own}" for layer in module._all_weights for own in layer]  # pyright: ignore
        return SweptCall(call, sweep(call, anchors=0, max_sequences=None), names)

    def _overflowed(self, step: Step) -> Event:
        """Every entry is finite: only the sum of their squares left float32."""
        norms = [local(weight.grad).double().norm() for weight in self._weights if weight.grad is not None]
        bound = self._jump.bound()
        return step.moment.event(
            EventKind.EXPLODING_GRADIENT,
            value=float(torch.stack(norms).norm() / step.scale),
            threshold=bound if bound is not None else math.sqrt(torch.finfo(torch.float32).max),
            detail="It is that of the recurrent modules' gradients; the sum of its squares overflows float32.",
        )

    def _named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        watched = [
            (f"{name}.{own}", parameter)
            for name, module in self.capture.modules.items()
            for own, parameter in module.named_parameters()
        ]
        return watched + [(plain_name(name), parameter) for name, parameter in self._model.named_parameters()]


_SCALER_MAY_CAUSE = (EventKind.NONFINITE_HIDDEN_GRADIENT, EventKind.NONFINITE_GRADIENT)
"""Under a loss scale, gradients that overflow behind a finite loss and finite states are the scaler's search."""


def _release(calls: list[Call]) -> None:
    for call in calls:
        call.release()
