"""All that one watch of a loop has, from when it is entered until it is left."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lightning_gradwatch.engine.options import WatchOptions
from lightning_gradwatch.engine.watch import Watch
from lightning_gradwatch.findings.harmless import harmless
from lightning_gradwatch.findings.watching import Watching
from lightning_gradwatch.outside.backward import is_under_way, listen
from lightning_gradwatch.outside.boundaries import MOST_FORWARDS, ForwardHook, Forwards, gradients, hear_steps
from lightning_gradwatch.outside.clip_audit import LoopClipAudit
from lightning_gradwatch.outside.loop_findings import LoopFindings
from lightning_gradwatch.outside.loop_passes import LoopPasses
from lightning_gradwatch.outside.model import inner_model, out_of_reach, steps_are_heard
from lightning_gradwatch.outside.terminal import say
from lightning_gradwatch.plain import warn
from lightning_gradwatch.recurrent.capture.fit_over import FitIsOver
from lightning_gradwatch.recurrent.capture.modules import describe

_TOO_MANY = f"more than {MOST_FORWARDS} forward passes of the model went by without a backward pass"

_NOTHING = (
    "watch() found no recurrent module (nn.RNN, nn.LSTM, nn.GRU, their cells, one of your own, or a tap) in the model: "
    "it only looks for NaN and inf from now on."
)

_PERHAPS = "If the model has a recurrence of its own, its state is not passed on from call to call, or tap() or tap_scan() has to mark it."


@dataclass(frozen=True)
class SessionOptions:
    """The arguments of :func:`watch`, as one session needs them.

    Args:
        every_n_steps: from one sampled step to the next.
        divided: by how much the loop divides each loss.
        watch: what is looked at.
        config: for the run log.
        first_word: say at once how far the gradient reaches in each module.
    """

    every_n_steps: int
    divided: int
    watch: WatchOptions
    config: Mapping[str, Any]
    first_word: bool


class Session:
    """Watches one model in a loop. An error of our own ends the watching with one warning, and the
    training goes on.

    Args:
        model: as the loop calls it.
        optimizers: whose steps are the loop's; none are those that hold a parameter of the model.
        findings: takes what is found, and outlives the session.
        rank: of this process.

    Attributes:
        watch: the engine; None where nothing is watched any more.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[Optimizer],
        options: SessionOptions,
        findings: LoopFindings,
        rank: int,
    ) -> None:
        self._model, self._root = model, inner_model(model)
        self._optimizers, self._options, self._findings = optimizers, options, findings
        self.passes = LoopPasses(options.every_n_steps, options.divided, rank)
        self._watching = Watching(findings, lambda module: out_of_reach(model, module))
        self._forwards = Forwards()
        self._handles: list[RemovableHandle] = []
        self._endings: list[Callable[[], None]] = []
        self._stepped: set[int] | None = set()  # optimizers, in the first round
        self._loss: Tensor | None = None
        self._scaler: Any | None = None
        self._before: list[tuple[int, int] | None] | None = None
        self._audit: LoopClipAudit | None = None
        self._looked = False

    @property
    def watch(self) -> Watch | None:
        """The engine."""
        return self._watching.watch

    def harmless(self) -> AbstractContextManager[None]:
        """An error of our own in here ends the watching with one warning."""
        return harmless("watch()", self.end, strict=self._options.watch.strict)

    # ------------------------------------------------------------------ begin and end

    def begin(self, modules: Mapping[str, nn.Module]) -> None:
        """Put the hooks on."""
        with self.harmless():
            unreachable = self._watching.unreachable(modules)
            self._watching.report_unreachable(unreachable, self.passes.moment)
            reachable = {name: module for name, module in modules.items() if name not in unreachable}
            options = replace(self._options.watch, find_cells=False) if unreachable else self._options.watch
            is_over = FitIsOver(self._on_call)
            watch = self._watching.watch = Watch(
                self._root, reachable, options, lambda: self.passes.steps, is_over, lambda: self._optimizers
            )
            self._describe(modules)
            self._handles = hear_steps(self._optimizers, self._root, self._before_step, self._after_step)
            if steps_are_heard(self._model):
                every, run = self._options.every_n_steps, self._findings.run_id
                self._audit = LoopClipAudit(self._optimizers, every, self.harmless, run)
            hook = ForwardHook(self._before_forward)
            self._handles.append(self._model.register_forward_pre_hook(hook, with_kwargs=True))
            self._endings.append(listen(self))
            self._begin_batch(watch)

    def conclude(self, *, broken_off: bool) -> bool:
        """Gather what is left to be found. Returns whether there is anything to be said at the end.

        Args:
            broken_off: by an error, which may keep us from looking once more.
        """
        moment = self.passes.moment
        write = moment.rank == 0 or not self._findings.gradients_are_common()
        clipping = None if self._audit is None else self._audit.findings
        return self._watching.conclude(moment, clipping, write=write, broken_off=broken_off)

    def end(self) -> None:
        """Take the hooks off. Calling it again does nothing."""
        for handle in self._handles:
            handle.remove()
        for ending in self._endings:
            ending()
        self._handles.clear()
        self._endings.clear()
        if self._audit is not None:
            self._audit.close()
        self._loss = self._scaler = self._before = None
        self._watching.end()

    def _describe(self, modules: Mapping[str, nn.Module]) -> None:
        if self._findings.log is not None:
            config = {"config": {"watch": self._options.config}, "modules": describe(modules)}
            self._findings.log.meta(config)

    # ------------------------------------------------------------------ one step

    def _begin_batch(self, watch: Watch) -> None:
        self._looked = False
        self._forwards.clear()
        self._watching.take(watch.poll())
        watch.capture.begin()
        self.passes.begin_batch()

    def begin_epoch(self, epoch: int) -> None:
        """The loop says so, between two batches."""
        if self._looked and self.watch is not None:
            self._begin_batch(self.watch)
        self.passes.epoch = epoch

    def _on_call(self) -> bool:
        """Asked by every hook of the engine. A call after a backward pass is of the next batch, be
        it of the model or of a part.
        """
        if self._looked and self.watch is not None and not is_under_way():
            with self.harmless():
                self._begin_batch(self.watch)
        return self.watch is None

    def _before_forward(self, training: bool, fresh: bool) -> None:
        """The model is called: after a backward pass it is the next batch."""
        watch = self.watch
        if watch is None:
            return
        with self.harmless():
            if self._looked:
                self._begin_batch(watch)
            if self._forwards.add(training, fresh):
                watch.capture.begin()
            if self._forwards.are_too_many():
                self._rest(watch)

    def _rest(self, watch: Watch) -> None:
        """Keep nothing until the next backward pass."""
        capture = watch.capture
        capture.end()
        capture.clear()
        capture.unseen.update(dict.fromkeys(capture.modules, _TOO_MANY))

    def before_backward(self, loss: Tensor | None, scaler: Any | None) -> None:
        """Follow the loss back through loops on a sampled step."""
        watch = self.watch
        if watch is None:
            return
        with self.harmless():
            capture = watch.capture
            capture.forget_gradients()  # what ``autograd.grad`` sent in the forward is none of this loss's
            self._loss, self._scaler = loss, scaler
            self._before = None if capture.read_calls() else gradients(self._root)
            if loss is not None:
                self._watching.take(
                    watch.before_backward(loss, self.passes.describe(capture.read_calls(), loss, scaler))
                )

    def after_backward(self, *, failed: bool) -> None:
        """Look at the calls whose gradients have arrived. A pass that reached nothing of the model
        is somebody else's.
        """
        watch, loss, scaler, before = self.watch, self._loss, self._scaler, self._before
        self._loss = self._scaler = self._before = None
        if watch is None:
            return
        with self.harmless():
            if failed:
                watch.capture.clear()
                return
            ours = any(call.has_gradient() for call in watch.capture.read_calls())
            if ours or (before is not None and gradients(self._root) != before):
                if self._audit is not None:
                    self._audit.after_backward(scaler)
                self._look(watch, loss, scaler)
                self._looked = True

    def before_unscale(self, optimizer: Optimizer) -> None:
        """A gradient scaler is about to take its factor out."""
        if self._audit is not None and self.watch is not None:
            with self.harmless():
                self._audit.before_unscale(optimizer)

    def _look(self, watch: Watch, loss: Tensor | None = None, scaler: Any | None = None) -> None:
        """Record what the gradients tell that have arrived."""
        arrived = [call for call in watch.capture.read_calls() if call.has_gradient()]
        step = self.passes.describe(arrived, loss, scaler)
        if step.sampled:
            self.passes.sampled(arrived)
        self._watching.take(watch.after_backward(loss, step))
        self.passes.nth += 1
        if self._watching.is_suspicious():
            self.passes.follow_up()

    def _before_step(self, optimizer: Optimizer) -> None:
        """Look at what came by ``autograd.grad``, while the weights are still its forward's."""
        watch = self.watch
        if watch is None:
            return
        with self.harmless():
            if any(call.has_gradient() for call in watch.capture.read_calls()):
                self._look(watch)
            if self._audit is not None:
                self._audit.before_step(optimizer)

    def _after_step(self, optimizer: Optimizer) -> None:
        watch = self.watch
        if watch is None:
            return
        with self.harmless():
            if self._is_round_over(optimizer) and (self.passes.nth or watch.capture.read_calls()):
                self._end_round(watch)
            self.passes.stepped()

    def _is_round_over(self, optimizer: Optimizer) -> bool:
        """What is looked for on the first step alone is looked for until each optimizer has made
        one, or one makes its second.
        """
        if self._stepped is None:
            return True
        again = id(optimizer) in self._stepped
        self._stepped.add(id(optimizer))
        if again or len(self._stepped) >= len(self._optimizers):
            self._stepped = None
        return self._stepped is None

    def _look_at_clipping(self, audit: LoopClipAudit) -> None:
        audit.end_round()
        self._watching.keep_clipping(audit.samples, lambda: audit.findings(wait=False))

    def _end_round(self, watch: Watch) -> None:
        if self._audit is not None:
            self._look_at_clipping(self._audit)
        seen = self._watching.take(watch.end_step(self.passes.moment))
        if seen.cells:
            self._watching.report_unreachable(self._watching.adopt(watch, seen.cells), self.passes.moment)
        if self._options.first_word:
            self._findings.say_first_words(say)
        self.passes.end_round()
        self._begin_batch(watch)
        advice = self._watching.advice_on_nothing(watch)
        if advice is not None:
            warn(f"{_NOTHING} {advice or _PERHAPS}", stacklevel=4)
