"""What GradWatch does during one fit: take the calls of a step, judge
them, and hand out what was found.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_gradwatch.detect import UnchangedWeights, held_by
from lightning_gradwatch.engine.backward_pass import Step
from lightning_gradwatch.engine.first_step_search import FirstStepSearch
from lightning_gradwatch.engine.judging import Judge, Pending
from lightning_gradwatch.engine.locator import Locator, unscaled
from lightning_gradwatch.engine.measuring import Measuring
from lightning_gradwatch.engine.observation import Cells, Collector, Observation
from lightning_gradwatch.engine.options import WatchOptions
from lightning_gradwatch.engine.parameters import Parameters
from lightning_gradwatch.engine.severed_states import SeveredStates
from lightning_gradwatch.engine.unmarked_recurrences import UnmarkedRecurrences
from lightning_gradwatch.engine.unobserved import Unobserved
from lightning_gradwatch.events import Event, Moment
from lightning_gradwatch.recurrent import Capture
from lightning_gradwatch.recurrent.capture.fit_over import FitIsOver
from lightning_gradwatch.recurrent.capture.scripted import scripted_recurrences
from lightning_gradwatch.recurrent.capture.taken import Taken

__all__ = ["Watch"]


class Watch:
    """Watches the recurrent modules of one model during one fit.

    A step goes: ``capture.begin``, the forward, :meth:`before_backward`, the backward pass,
    :meth:`after_backward`, :meth:`end_step`; :meth:`poll` whenever there is time, :meth:`finish`
    and :meth:`close` at the end. What was found before an error is handed out by :meth:`take`.

    Args:
        model: its names are those of the events.
        modules: qualified name → module.
        options: what to look at.
        clock: optimizer steps done so far.
        is_over: asked by the hooks, for where nobody said that the fit is over.
        optimizers: those that are known; asked on sampled steps.

    Attributes:
        capture: holds the hooks and the calls.
        observed: names of the modules of which a gradient has arrived.
        steps: batches that were watched to their end.
    """

    def __init__(
        self,
        model: nn.Module,
        modules: dict[str, nn.Module],
        options: WatchOptions | None = None,
        clock: Callable[[], int] = lambda: 0,
        is_over: FitIsOver | None = None,
        optimizers: Callable[[], Iterable[Optimizer]] = tuple,
    ) -> None:
        options = options or WatchOptions()
        self.capture = Capture(modules, clock, is_over)
        self.observed: set[str] = set()
        self.steps = 0
        self._nth = 0  # backward pass of the batch
        self._pending: list[Pending] = []
        self._collector = Collector()
        self._severed = SeveredStates(self._collector)
        self._unmarked = UnmarkedRecurrences(model, self._collector)
        self._unobserved = Unobserved(
            model, patterns=options.patterns, collector=self._collector, strict=options.strict
        )
        if options.find_cells:
            for name, kind in scripted_recurrences(model).items():
                self._unobserved.reasons[name] = f"TorchScript holds it ({kind}), and takes no hooks"
        self.capture.attach()
        self._search = FirstStepSearch(
            model,
            modules,
            self.capture,
            is_over,
            everywhere=options.find_cells and options.patterns is None,
            severed=options.find_cells,
        )
        self._parameters = Parameters(model, self.capture)
        self._measuring = Measuring(model, self.capture, self._unobserved, options, self._collector)
        self._model, self._optimizers, self._unchanged = model, optimizers, UnchangedWeights()
        self._judge = Judge(model, Locator(model, self.capture), self._search, self._collector)

    def take(self) -> Observation:
        """What was found and not handed out yet."""
        return self._collector.take()

    def before_backward(self, loss: Tensor, step: Step) -> Observation:
        """On a sampled step, have the backward pass follow the loss back through the loops."""
        if loss.requires_grad and self._search.is_everywhere:
            with self._unobserved.isolated("recurrences in tensor operations"):
                known = (*self.capture.modules, *self._unobserved.reasons)
                scans = self._unobserved.like_scans
                self._unmarked.look(loss, self.capture, self._search.states(), known, scans, step.moment)
        if step.sampled and loss.requires_grad:
            self._severed.look(self.capture.read_calls(), step.moment)
            self.capture.loops.split_taps()
            self._measuring.follow(loss)
        self.capture.listen()
        return self.take()

    def after_backward(self, loss: Tensor | None, step: Step) -> Observation:
        """Take the calls whose gradients have arrived; measure them if the step is sampled or
        its norm is out of the ordinary.
        """
        if self.capture.failure is not None:
            raise self.capture.failure
        if step.sampled:
            self._unobserved.report_added(step.moment)
        if step.sampled and loss is None:  # nothing was said before this backward pass
            self._severed.look(self.capture.read_calls(), step.moment)
        taken = self.capture.take_heard()
        self._unobserved.note_unreached(self.capture, taken.unreached)
        if taken.modules or loss is not None:
            self._arrived(taken, loss, step)
        else:
            taken.release()
        return self.take()

    def poll(self, *, wait: bool = False) -> Observation:
        """Judge the norms that have arrived; with ``wait``, all of them."""
        self._read(wait=wait)
        return self.take()

    def end_step(self, moment: Moment) -> Observation:
        """Let go of the step. The cells that the first one showed are for :meth:`adopt`."""
        capture = self.capture
        self._severed.tell(capture.loops.taps_without_gradient(), moment)
        self._unobserved.end_step(capture, self.observed)
        capture.end()
        capture.clear()
        self._nth = 0
        self._severed.tell(self._search.end_severed(self._severed.told), moment)
        self._severed.tell(self._unmarked.end_severed(self._severed.told), moment)
        self.steps += 1
        if not self._search.is_on:
            return self.take()
        cells = self._search.end()
        self._parameters.update()
        return self._collector.take(cells)

    @property
    def unmarked(self) -> list[Event]:
        """The recurrences in tensor operations that were told."""
        return list(self._unmarked.told.values())

    def adopt(self, cells: Cells) -> None:
        """Watch these cells from now on."""
        self._unobserved.found_at.update(dict.fromkeys(cells, self.steps))
        for name, (module, slots) in cells.items():
            self.capture.add(name, module, slots)
        self._parameters.update()

    def has_nothing(self) -> bool:
        """Whether a whole step has passed in which there was nothing to watch."""
        watched = self.capture.modules or self.capture.marked or self.observed or self._search.is_on
        return not (watched or self._severed or self._unobserved.reasons or self._unobserved.like_scans)

    def unobserved(self, moment: Moment) -> list[Event]:
        """Each module that was never observed, with the reason."""
        return self._unobserved.events(self.capture, self.observed, moment, self.steps)

    def finish(self, moment: Moment) -> Observation:
        """Training is over: judge what is still on its way, look at the weights that the last
        step left, close the episodes.
        """
        self._unobserved.report_added(moment)
        self._read(wait=True)
        self._judge.finish(self._parameters.watched, moment)
        self._measuring.finish(moment)
        return self.take()

    def close(self) -> None:
        """Take the hooks off and let go of everything."""
        for pending in self._pending:
            pending.taken.release()
        self._pending.clear()
        self.capture.detach()
        self._judge.close()
        self._search.close()

    def _arrived(self, taken: Taken, loss: Tensor | None, step: Step) -> None:
        self.observed |= taken.modules
        calls = taken.calls if step.sampled or step.is_eve else []  # others nobody looks back into
        if step.sampled:
            self._parameters.update()
        norms = self._parameters.norms(loss, step)
        if norms is not None:
            self._pending.append(Pending(norms, taken, loss, step, self._nth))
            self._nth += 1
        # To sample is to wait for the device anyhow; what the first look
        # saw is gone when the step ends.
        self._read(wait=step.sampled or self._search.first is not None)
        if norms is None:
            if loss is not None:
                self._judge.without_gradient(step)
            if step.sampled:
                self._measuring.sample(taken.calls, step)
            taken.release()
        self._measuring.keep_windows(calls, step)
        self._severed.keep(calls)

    def _read(self, *, wait: bool) -> None:
        while self._pending and (wait or self._pending[0].norms.ready()):
            pending = self._pending.pop(0)
            self._judge_one(pending)
            pending.taken.release()

    def _judge_one(self, pending: Pending) -> None:
        """Judge a step by its norms. One that begins an anomaly is measured in full; a sampled
        one as far as it was asked for.
        """
        step, norms = pending.step, pending.norms.read()
        if step.scaled and not math.isfinite(norms.whole):
            norms = unscaled(norms, pending.norms.parameters, float(step.scale))
        finite = math.isfinite(norms.whole)
        if step.complete:
            self._collector.add_norm(norms.whole)
        begins = self._judge(norms, pending, self._measuring.confirmed)
        self._collector.suspicious |= begins
        if step.sampled or begins:
            measured = self._measuring.sample(pending.taken.calls, step, everything=begins)
            if finite:
                self._judge.look_at_states(pending, finite=measured)
        if finite:
            if step.sampled:
                self._judge.look_at_weights(self._parameters.watched, step.moment)
                self._look_for_unchanged(step)
            self._judge.look_at_loss(norms, pending)

    def _look_for_unchanged(self, step: Step) -> None:
        """Tell each module whose weights nothing changes."""
        if not step.complete:
            return
        held, own = held_by(self._optimizers()), set(self._model.modules())
        for name, module in self.capture.modules.items():
            weights = [weight for weight in module.parameters() if weight.requires_grad]
            outside = module not in own
            self._collector.add(self._unchanged(name, weights, held, step.moment, outside=outside))
