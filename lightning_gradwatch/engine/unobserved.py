"""Which recurrent modules a fit does not observe, and why."""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import replace

from torch import nn

from lightning_gradwatch.engine.observation import Collector
from lightning_gradwatch.engine.unmarked_recurrences import SCAN_REMEDY
from lightning_gradwatch.events import Event, EventKind, Moment, Severity
from lightning_gradwatch.plain import warn
from lightning_gradwatch.recurrent import Capture
from lightning_gradwatch.recurrent.capture.discovery import is_outside
from lightning_gradwatch.recurrent.capture.hooks import FROZEN
from lightning_gradwatch.recurrent.capture.modules import added, discover
from lightning_gradwatch.recurrent.capture.own_recurrence import OWN_RECURRENCE
from lightning_gradwatch.recurrent.capture.scan_names import named_like_scans
from lightning_gradwatch.recurrent.capture.scans import DETACHED

_ADDED = "It was added to the model after training had begun."
_ADDED_REMEDY = (
    "Make it in __init__ or configure_model, or train on in a fit of its own: each fit looks for the modules anew."
)
_ADDED_REMEDY_IN_LOOP = "Make it before the watch begins, or enter a watch of its own: each looks for the modules anew."

TOO_SHORT = "it was found in the first step, to be measured from the next on, and training ended before that"

UNUSED = "no loss reached its output"

WITHOUT_GRAD = "it was called only where gradients are switched off, by no_grad() or inference_mode()"

CALLED_AROUND = (
    "its weights have gradients but no hook fired: other code computed with them, .forward was called around it, "
    "or it was compiled before"
)

_SCRIPTED_REMEDY = "Leave it unscripted while it trains, and script it afterwards: the weights are the same."

_FROZEN_REMEDY = (
    "If it is frozen on purpose, there is nothing to do. Otherwise let it train: "
    "module.requires_grad_(True), outside of no_grad()."
)

_WITHOUT_GRAD_REMEDY = "If it should be trained, call it outside of no_grad(); if not, there is nothing to do."

_UNUSED_REMEDY = "If it should be trained, let what it returns reach the loss; if not, there is nothing to do."

_DETACHED_REMEDY = (
    "Mark the states themselves, before detach() and outside of no_grad(). "
    "If they are not to be trained, there is nothing to do."
)

_OWN_REMEDY = (
    "Mark its hidden states with tap() in its forward, or train with PyTorch's own class: torchrl's LSTMModule and GRUModule "
    "do by default, and leave it out with python_based=True."
)

_AROUND_REMEDY = (
    'Call the module itself rather than its .forward, as torchrl does with recurrent_backend="pad", its default, '
    "or mark the hidden states with tap()."
)

_TOO_SHORT_REMEDY = (
    "Train for two steps or more, or mark its state with tap(), which is measured from the first step on."
)

_REMEDIES = {
    TOO_SHORT: _TOO_SHORT_REMEDY,
    FROZEN: _FROZEN_REMEDY,
    UNUSED: _UNUSED_REMEDY,
    WITHOUT_GRAD: _WITHOUT_GRAD_REMEDY,
    DETACHED: _DETACHED_REMEDY,
    OWN_RECURRENCE: _OWN_REMEDY,
    CALLED_AROUND: _AROUND_REMEDY,
}
"""Where the reason is known, what helps against that one."""


class Unobserved:
    """Gathers reasons during one fit.

    Args:
        model: whose modules they are.
        patterns: of the names of the modules to watch; None are all.
        collector: takes the event of a module that came too late.
        strict: let an error of our own through instead of making it a reason.

    Attributes:
        reasons: qualified name of what TorchScript holds → why it cannot
            be observed, whatever happens.
        measured: the modules that were.
        found_at: a cell of one's own → batches watched when the search found it.
        like_scans: qualified name → class of the modules that look like a scan by its name; none
            any more once the user has marked something.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        patterns: Sequence[str] | None,
        collector: Collector,
        strict: bool,
    ) -> None:
        self.reasons: dict[str, str] = {}
        self.measured: set[str] = set()
        self._model, self._patterns, self._collector, self._strict = model, patterns, collector, strict
        self._known = set(discover(model).values())
        self.like_scans = named_like_scans(model) if patterns is None else {}
        self.found_at: dict[str, int] = {}
        self._failed: dict[str, str] = {}
        self._called_around: set[str] = set()

    def report_added(self, moment: Moment) -> None:
        """Tell the recurrent modules that the model did not have when training began, each once."""
        modules = discover(self._model)
        for name in added(modules, self._known, self._patterns):
            remedy = _ADDED_REMEDY_IN_LOOP if moment.in_loop else _ADDED_REMEDY
            self._collector.add(moment.event(EventKind.NOT_OBSERVED, module=name, detail=_ADDED, remedy=remedy))
        self._known.update(modules.values())

    @contextmanager
    def isolated(self, module: str) -> Generator[None]:
        """An error of our own about one loop leaves that one out; the others are watched on."""
        try:
            yield
        except Exception as error:  # whatever it is, it is ours
            if self._strict:
                raise
            reason = f"({type(error).__name__}: {error})"
            if module not in self._failed:
                warn(
                    f"GradWatch could not measure {module} {reason} and goes on watching; the training is not affected. "
                    "Please report it.",
                    stacklevel=2,
                )
            self._failed[module] = f"measuring it failed {reason}"

    def note_unreached(self, capture: Capture, names: Iterable[str]) -> None:
        """Note modules that were called, and that no loss of the step reached."""
        for name in names:
            if capture.unseen.get(name, FROZEN) == FROZEN:  # of another of its calls: this one was kept
                capture.unseen[name] = UNUSED

    def end_step(self, capture: Capture, observed: Collection[str]) -> None:
        """Note why calls of this step were not observed, while the gradients are there."""
        if capture.marked:
            self.like_scans.clear()
        self.note_unreached(capture, (call.module for call in capture.read_calls()))
        for name, module in capture.modules.items():
            if name not in observed and any(p.grad is not None for p in module.parameters()):
                self._called_around.add(name)

    def events(self, capture: Capture, observed: Collection[str], moment: Moment, steps: int) -> list[Event]:
        """Each module that was never observed, with the reason.

        Args:
            steps: batches that were watched to their end.
        """
        reasons = self.reasons | {name: why for name, why in self._failed.items() if name not in self.measured}
        for name in capture.modules:
            if name in observed or is_outside(name):
                continue  # what the model's loss never reached is no recurrence of the model
            if self.found_at.get(name) == steps:
                reasons[name] = TOO_SHORT
            elif name in capture.unseen:
                reasons[name] = capture.unseen[name]
            elif name in self._called_around:
                reasons[name] = CALLED_AROUND
            elif name in capture.without_grad:
                reasons[name] = WITHOUT_GRAD
            else:
                reasons[name] = "its forward was not called in a training step, or no loss reached its output"
        missed = (name for name in capture.marked if name in capture.unseen and name not in observed)
        reasons |= {name: capture.unseen[name] for name in missed}
        events = [self._event(moment, name, reason) for name, reason in reasons.items()]
        return events + self._hint({*capture.modules, *observed}, moment)

    def _hint(self, known: Collection[str], moment: Moment) -> list[Event]:
        """One note about all modules that look like a scan by their names and were neither
        observed nor looked into.
        """
        left = [name for name in self.like_scans if not any(_belong_together(name, other) for other in known)]
        if not left:
            return []
        more = f" and {len(left) - 1} more like it" if len(left) > 1 else ""
        looks = f"{left[0]} ({self.like_scans[left[0]]}){more} {'look' if more else 'looks'} like a scan by the name of the class"
        message = f"{looks}, and no states were marked: how far the gradient reaches there was not observed."
        note = moment.event(EventKind.NOT_OBSERVED, module=left[0], severity=Severity.INFO, remedy=SCAN_REMEDY)
        return [replace(note, message=message)]

    def _event(self, moment: Moment, name: str, reason: str) -> Event:
        fields = {"module": name, "detail": f"{reason[0].upper()}{reason[1:]}."}
        if name in self.reasons:
            fields["remedy"] = _SCRIPTED_REMEDY
        elif reason in _REMEDIES:
            fields["remedy"] = _REMEDIES[reason]
        return moment.event(EventKind.NOT_OBSERVED, **fields)


def _belong_together(name: str, other: str) -> bool:
    """Whether one module is the other, or lies within it."""
    return f"{name}.".startswith(f"{other}.") or f"{other}.".startswith(f"{name}.")
