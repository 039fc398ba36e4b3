"""What GradWatch does during one fit: take the calls of a step, judge them, and hand out what was found."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_gradwatch.detect import (
    Context,
    DivergenceDetector,
    ExplodingDetector,
    NormJumps,
    RecurrentWeights,
    SaturationDetector,
    ScaleSearch,
    ShortReachDetector,
    VanishingDetector,
    WeightWatch,
    bad_loss,
)
from lightning_gradwatch.detect.weights import AFTER_THE_LAST_STEP, SATURATED
from lightning_gradwatch.events import Event, EventKind, Moment, Severity
from lightning_gradwatch.profile import Profile
from lightning_gradwatch.recurrent import (
    Capture,
    Chain,
    Loop,
    RecurrentCall,
    follow,
    measure_calls,
    measure_lags,
    stitch,
)
from lightning_gradwatch.recurrent.capture.discovery import Discovery
from lightning_gradwatch.recurrent.capture.duplicates import without_duplicates
from lightning_gradwatch.recurrent.capture.first_look import FirstLook
from lightning_gradwatch.recurrent.capture.fit_over import FitIsOver
from lightning_gradwatch.recurrent.capture.scripted import scripted_recurrences
from lightning_gradwatch.recurrent.capture.severed import severed
from lightning_gradwatch.recurrent.capture.severed_cells import SeveredCells
from lightning_gradwatch.recurrent.capture.slots import Slots
from lightning_gradwatch.recurrent.measure.gradient_norm import Norms, PendingNorms, gradient_norms, local, matrix_norms
from lightning_gradwatch.watch.locator import Call, Locator, Read, wide_norm
from lightning_gradwatch.watch.unobserved import Unobserved

__all__ = ["Call", "Step", "Watch"]

UNANNOUNCED = "its backward pass went past Lightning (use self.manual_backward(loss)); no lags were measured"


@dataclass(frozen=True, slots=True)
class Step:
    """What is known of a step besides its tensors.

    ``windows``: by how much the loss was divided for gradient accumulation; ``scale``: by how much a gradient scaler multiplied it.
    ``complete``: whether the parameters' gradients are those of the whole optimizer step. ``scaled``: whether a gradient
    scaler is at work. ``closer``: whether it is sampled only to look closer after an anomaly. ``batch``: what the training step was given.
    """

    moment: Moment
    micro_batch: int
    sampled: bool
    windows: int
    scale: Tensor | float
    complete: bool
    scaled: bool
    loss: Tensor | None = None
    closer: bool = False
    batch: Any = None

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
    """A step whose norms are still on their way from the device. ``nth``: which backward pass of its batch it is."""

    norms: PendingNorms
    calls: list[Call]
    loss: Tensor | None
    step: Step
    nth: int


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
        out_of_reach: why a cell that was found cannot be measured; None where it can.
        on_hidden: told the cells that cannot be, with the reasons.
        patterns: of the names of the modules to watch; None are all.
        clock: optimizer steps done so far.
        strict: let an error of our own about one loop through, instead of a warning.
        is_over: asked by the hooks, for where nobody said that the fit is over.

    Attributes:
        suspicious: whether something out of the ordinary was seen, so that the next steps are worth a closer look; whoever samples
            them clears it.
        steps: batches that were watched to their end.
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
        out_of_reach: Callable[[nn.Module], str | None] = lambda module: None,
        on_hidden: Callable[[dict[str, str]], None] = lambda hidden: None,
        patterns: Sequence[str] | None = None,
        strict: bool = True,
        clock: Callable[[], int] = lambda: 0,
        is_over: FitIsOver | None = None,
    ) -> None:
        self.capture = Capture(modules, clock, is_over)
        self.observed: set[str] = set()
        self.steps = 0
        self._unobserved = Unobserved(model, patterns=patterns, on_event=on_event, strict=strict)
        self._model, self._max_sequences, self._anchors = model, max_sequences, anchors
        self._on_profiles, self._on_event = on_profiles, on_event
        self._out_of_reach, self._on_hidden = out_of_reach, on_hidden
        self._jump = NormJumps()
        self._exploding, self._vanishing = ExplodingDetector(), VanishingDetector()
        self._saturation = SaturationDetector()
        self._short_reach = ShortReachDetector()
        self._search = ScaleSearch()
        self.suspicious = self._nonfinite = self._bad_loss = False
        self._before: Read | None = None
        self._last_jump: Event | None = None
        self._nth = 0
        self._spoilt, self._recurrent_weights = WeightWatch(), RecurrentWeights()
        self._severed: dict[str, str] = {}
        self._pending: list[_Pending] = []
        if find_cells:
            for name, kind in scripted_recurrences(model).items():
                self._unobserved.reasons[name] = f"TorchScript holds it ({kind}), and takes no hooks"
        self.capture.attach()
        self._locator = Locator(model, self.capture)
        self._first: FirstLook | None = None
        self._discovery = self._start_search(model, modules, is_over, everywhere=find_cells and patterns is None)
        self._severed_cells = SeveredCells(model, modules.values(), is_over) if find_cells else None
        self._list_parameters()
        self._diverged = DivergenceDetector(matrix_norms(model))

    def before_backward(self, loss: Tensor, step: Step) -> None:
        """On a sampled step, have the backward pass follow the loss back through the loops."""
        if not step.sampled or not loss.requires_grad:
            return
        self._report_severed(severed(without_duplicates(self.capture.calls)), step.moment)
        self.capture.loops.split_taps()
        calls = without_duplicates(self.capture.calls)
        for call in calls:
            if isinstance(call, Loop) and len(call.h) > 1:
                with self._unobserved.apart(call.module):
                    measure_lags(call, loss)
        for call in stitch(calls):
            if isinstance(call, Chain) and not call.plain:
                with self._unobserved.apart(call.module):
                    follow(call.calls, loss)

    def after_backward(self, loss: Tensor | None, step: Step) -> None:
        """Take the calls whose gradients have arrived; sweep them if the step is sampled or its norm is out of the ordinary."""
        if self.capture.failure is not None:
            raise self.capture.failure
        if step.sampled:
            self._unobserved.report_added(step.moment)
        if step.sampled and loss is None:  # nothing was said before this backward pass
            self._report_severed(severed(without_duplicates(self.capture.calls)), step.moment)
        calls = self.capture.take()
        if not calls and loss is None:
            return
        self.observed.update(call.module for call in calls)
        if step.sampled:
            self._list_parameters()
        norms = gradient_norms(self._weights, self._others, loss=loss, scale=step.scale, windows=step.windows)
        if norms is not None:
            self._pending.append(_Pending(norms, calls, loss, step, self._nth))
            self._nth += 1
        # To sample is to wait for the device anyhow; what the first look saw is gone when the step ends.
        self.poll(wait=step.sampled or self._first is not None)
        if norms is None:
            if step.sampled:
                self._sample(calls, step)
            _release(calls)

    def end_step(self, moment: Moment) -> bool:
        """Let go of the step. Returns whether cells were found that the next step should sample."""
        capture = self.capture
        self._report_severed(capture.loops.taps_without_gradient(), moment)
        self._unobserved.end_step(capture, self.observed)
        capture.end()
        capture.clear()
        self._nth = 0
        self._end_search_for_severed(moment)
        self.steps += 1
        return self._end_discovery()

    def has_nothing(self) -> bool:
        """Whether a whole step has passed in which there was nothing to watch."""
        watched = self.capture.modules or self.observed or self._discovery
        return not (watched or self._severed or self._unobserved.reasons)

    def unobserved(self, moment: Moment) -> list[Event]:
        """Each module that was never observed, with the reason."""
        return self._unobserved.found(self.capture, self.observed, moment)

    def poll(self, *, wait: bool = False) -> None:
        """Judge the norms that have arrived; with ``wait``, all of them."""
        while self._pending and (wait or self._pending[0].norms.ready()):
            pending = self._pending.pop(0)
            self._judge(pending.norms.read(), pending)
            _release(pending.calls)

    def finish(self, moment: Moment) -> None:
        """Training is over: judge what is still on its way, look at the weights that the last step left, close the episodes."""
        self._unobserved.report_added(moment)
        self.poll(wait=True)
        if not self._nonfinite:
            self._look_at_weights(AFTER_THE_LAST_STEP, moment)
            self._look_for_divergence(moment)
        for detector in (self._jump, self._exploding, self._saturation, self._vanishing, self._short_reach):
            for event in detector.finish(moment):
                self._on_event(event)

    def close(self) -> None:
        """Take the hooks off and let go of everything."""
        for pending in self._pending:
            _release(pending.calls)
        self._pending.clear()
        self.capture.detach()
        self._before = None
        for search in (self._discovery, self._first, self._severed_cells):
            if search is not None:
                search.close()

    def _start_search(
        self, model: nn.Module, modules: dict[str, nn.Module], is_over: FitIsOver | None, *, everywhere: bool
    ) -> Discovery | None:
        """Look for cells, and for the states of those that are watched but are not PyTorch's own."""
        own = {n for n, m in modules.items() if not isinstance(m, nn.RNNBase) and Slots.of(m) is None}
        if not (everywhere or own):
            return None
        self.capture.loops.undecided = set(own)
        known = [module for name, module in modules.items() if name not in own]
        self._first = FirstLook(model, known, is_over)
        return Discovery(model, known, None if everywhere else own, is_over)

    def _end_discovery(self) -> bool:
        discovery, self._discovery = self._discovery, None
        first, self._first = self._first, None
        if discovery is None or first is None:
            return False
        discovery.close()
        first.close()
        failure = discovery.failure or first.failure
        if failure is not None:
            raise failure
        hidden: dict[str, str] = {}
        self.capture.loops.undecided.clear()
        found = discovery.found()
        for name, (module, slots) in found.items():
            reason = self._out_of_reach(module)
            if reason is None:
                self.capture.add(name, module, slots)
            else:
                hidden[name] = reason
        if hidden:
            self._on_hidden(hidden)
        self._list_parameters()
        return bool(found)

    def _list_parameters(self) -> None:
        """Those of the watched modules, and those of the rest of the model: some come while training."""
        self._weights: list[Tensor] = list(self.capture.parameters())
        own = set(map(id, self._weights))
        self._others: list[Tensor] = [weight for weight in self._model.parameters() if id(weight) not in own]

    def _end_search_for_severed(self, moment: Moment) -> None:
        search, self._severed_cells = self._severed_cells, None
        if search is None:
            return
        search.close()
        if search.failure is not None:
            raise search.failure
        cells = self._discovery.found() if self._discovery is not None else {}
        self._report_severed({n: how for n, how in search.found().items() if n not in cells}, moment)

    def _report_severed(self, found: Mapping[str, str], moment: Moment) -> None:
        """Each once: module or tap → how its state is severed."""
        for name, how in found.items():
            if name not in self._severed:
                self._severed[name] = how
                self._on_event(moment.event(EventKind.NO_GRADIENT_THROUGH_TIME, module=name, detail=how))

    def _measure(self, calls: Sequence[Call | Chain], max_sequences: int | None) -> list[Profile]:
        """The profiles of all that can be measured. A loop is somebody's own, and may be beyond what was thought of."""
        found: list[Profile] = []
        for call in calls:
            with self._unobserved.apart(call.module) if isinstance(call, Loop | Chain) else nullcontext():
                profiles = measure_calls([call], max_sequences, self._anchors)
                found += [replace(profile, step=call.step) for profile in profiles]
        self._unobserved.measured.update(profile.module for profile in found)
        return found

    def _sample(self, calls: list[Call], step: Step, *, everything: bool = False) -> None:
        """Measure the calls, in ``everything`` all sequences; so too where the growth through time turns out to be suspicious."""
        unscale, stitched = step.unscale(), stitch(without_duplicates(calls))
        for chain in stitched if step.sampled else ():
            if isinstance(chain, Chain):
                chain.unfollowed = UNANNOUNCED
        found = self._measure(stitched, None if everything else self._max_sequences)
        if any(self._exploding.suspects(profile) for profile in found):
            self.suspicious = True
            found = found if everything else self._measure(stitched, None)
        found = [profile.scaled(unscale) for profile in found]
        self._on_profiles(found, step)
        self._look_at_recurrent_weights(calls, step.moment)
        loss = step.loss_value()
        for profile in found:
            moment = step.moment if profile.step is None else replace(step.moment, step=profile.step)
            self._tell(self._exploding(profile, moment))
            self._tell(self._saturation(profile, moment, loss))
            if not step.closer:  # a vanishing gradient is judged over time, and these samples lie side by side
                self._tell(self._vanishing(profile, moment, loss))
                self._tell(self._short_reach(profile, moment))

    def _look_at_recurrent_weights(self, calls: Sequence[Call], moment: Moment) -> None:
        trained = {id(parameter) for parameter in self._model.parameters()}
        for call in calls:
            module = self.capture.modules.get(call.module)
            if isinstance(call, RecurrentCall) and isinstance(module, nn.RNNBase):
                for event in self._recurrent_weights(call, module, trained, moment):
                    self._on_event(event)

    def _judge(self, norms: Norms, pending: _Pending) -> None:
        """Judge a step by its norms. One that begins an anomaly is swept in full; a sampled one as far as it was asked for."""
        step, read = pending.step, Read(pending.norms.parameters, norms)
        finite = math.isfinite(norms.whole)
        begins = self._is_jump(read, pending) if finite else self._find_nonfinite(pending)
        self.suspicious |= begins
        if step.sampled or begins:
            self._sample(pending.calls, step, everything=begins)
        if step.sampled and finite:
            self._look_at_weights(SATURATED, step.moment)
        if finite:
            self._look_at_loss(norms, pending)

    def _look_at_loss(self, norms: Norms, pending: _Pending) -> None:
        """Tell a loss that is not finite though its gradient is, once, until it is finite again; and one that runs away."""
        step, loss = pending.step, norms.loss
        if loss is None and step.sampled:
            loss = step.loss_value()
        if loss is None:
            return
        if step.complete and pending.nth == 0:
            self._tell(self._diverged.see(loss, norms.whole, step.moment))
        if step.sampled:
            self._look_for_divergence(step.moment)
        bad = not math.isfinite(loss)
        if bad and not self._bad_loss:
            event = bad_loss(loss, step.moment, Context(pending.loss, step.batch), sizes=(), states=())
            message = f"{event.message} Its gradients are finite all the same, so it spoils no weight."
            self._tell(replace(event, severity=Severity.WARNING, message=message))
        self._bad_loss = bad

    def _look_for_divergence(self, moment: Moment) -> None:
        if self._diverged.is_suspicious():
            self._tell(self._diverged(matrix_norms(self._model), moment, self._last_jump))

    def _is_jump(self, read: Read, pending: _Pending) -> bool:
        """Take in finite norms. Returns whether a jump begins with them."""
        step, before = pending.step, self._before
        if not step.complete:  # the micro-batches to come may still spoil it
            return False
        self._nonfinite = False
        self._search.ended()
        self._before = read
        detail = partial(self._told_of, read, before)
        event = self._jump(read.norms.of_recurrent, read.norms.whole, pending.nth, step.moment, detail)
        self._tell(event)
        if event is None or event.action is not None:
            return False
        self._last_jump = event
        return True

    def _told_of(self, read: Read, before: Read | None, recurrent: bool) -> str:
        """Whose norm it is, and which parameter's grew most."""
        whose = "all parameters of the recurrent modules" if recurrent else "all parameters of the model"
        grown = self._locator.grown_most(read, before, recurrent=recurrent)
        share = any(local(weight) is not weight for weight in read.parameters)
        return f"It is that of {whose}{', of this process alone' if share else ''}. {grown}".rstrip()

    def _find_nonfinite(self, pending: _Pending) -> bool:
        """Look for where it began; once an episode, which a finite step ends. Returns whether one begins."""
        if self._nonfinite:
            return False
        step = pending.step
        cells = () if self._discovery is None else self._discovery.found()
        event = self._locator(
            pending.calls, step.moment, loss=pending.loss, batch=step.batch, first=self._first, cells=cells
        )
        if event is not None and step.scaled and event.kind in _SCALER_MAY_CAUSE:
            self._tell(self._search.overflowed(event, float(step.scale), step.moment, complete=step.complete))
            return False
        if event is None:  # every entry is finite: only the sum of their squares left float32
            limit = math.sqrt(torch.finfo(torch.float32).max) / float(step.scale)
            norm = wide_norm(pending.norms.parameters, step.scale)
            detail = "It is that of all parameters of the model."
            event = self._jump.overflowed(norm, limit, pending.nth, step.moment, detail)
        else:
            self._nonfinite = True
            if event.kind != EventKind.NONFINITE_INPUT:
                for before in self._exploding.confirmed():
                    self._tell(before)
        self._tell(event)
        return event is not None

    def _look_at_weights(self, message: str, moment: Moment) -> None:
        """Tell a recurrent module's weight that is not finite."""
        own = {id(weight) for weight in self._weights if weight.requires_grad}
        weights = ((name, local(weight)) for name, weight in self._locator.named() if id(weight) in own)
        self._tell(self._spoilt(weights, message, moment))

    def _tell(self, event: Event | None) -> None:
        if event is not None:
            self._on_event(self._diverged.explain(event))


_SCALER_MAY_CAUSE = (EventKind.NONFINITE_HIDDEN_GRADIENT, EventKind.NONFINITE_GRADIENT)
"""Under a loss scale, gradients that overflow behind a finite loss and finite states are the scaler's search."""


def _release(calls: list[Call]) -> None:
    for call in calls:
        call.release()
