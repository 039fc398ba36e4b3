"""All that GradWatch has for one fit, from its start to its end."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_gradwatch.callbacks.anomaly.bundle import target_of
from lightning_gradwatch.callbacks.anomaly.handling import AnomalyHandling
from lightning_gradwatch.callbacks.fit.options import FitOptions
from lightning_gradwatch.callbacks.fit.passes import BackwardPasses
from lightning_gradwatch.callbacks.output.run_folder import close_run_log, open_run_log
from lightning_gradwatch.callbacks.output.watch_recorder import WatchRecorder
from lightning_gradwatch.engine.observation import Observation
from lightning_gradwatch.engine.watch import Watch
from lightning_gradwatch.events import Moment
from lightning_gradwatch.findings.harmless import harmless
from lightning_gradwatch.findings.watching import Watching
from lightning_gradwatch.recurrent.capture.fit_over import FitIsOver
from lightning_gradwatch.recurrent.capture.modules import describe
from lightning_gradwatch.trainer.clip_audit import ClipAudit
from lightning_gradwatch.trainer.compat import LightningModule, Trainer, rank_zero_warn, say, show_in_progress_bar
from lightning_gradwatch.trainer.loader import batch_size_of
from lightning_gradwatch.trainer.optimizer_steps import OptimizerSteps
from lightning_gradwatch.trainer.sharding import out_of_reach

_NOTHING = (
    "GradWatch found no recurrent module (nn.RNN, nn.LSTM, nn.GRU, their cells, one of your own, or a tap) in the model: it only "
    "looks for NaN and inf from now on."
)
_PERHAPS = (
    "Take it out if the model has no recurrence. If it has one of its own, its state is not passed on from call to call, or "
    "tap() or tap_scan() has to mark it."
)


class FitWatch:
    """What GradWatch watches, when it samples, where it writes and what it
    does about an anomaly, in one fit.

    An error of our own ends the watching with one warning. The training goes on, and so does the
    acting on anomalies: what one rank does all must do.

    Args:
        trainer, module: whose fit it is.
        options: GradWatch's.
        recorder: takes what is found, and outlives the fit.
        steps: counts optimizer steps.

    Attributes:
        watch: the engine; None where nothing is watched any more.
        run_dir: the run log's folder; None where there is none.
    """

    def __init__(
        self,
        trainer: Trainer,
        module: LightningModule,
        options: FitOptions,
        recorder: WatchRecorder,
        steps: OptimizerSteps,
    ) -> None:
        self.trainer, self.module = trainer, module
        self._options, self._recorder, self._steps = options, recorder, steps
        self.handling = AnomalyHandling(options.handling)
        self.passes = BackwardPasses(trainer, module, options.every_n_steps)
        self.audit = ClipAudit(trainer, module, options.every_n_steps, self.harmless)
        self._watching = Watching(recorder, lambda module: out_of_reach(trainer, module))
        self.run_dir: Path | None = None
        self._loss: Tensor | None = None

    @property
    def watch(self) -> Watch | None:
        """The engine."""
        return self._watching.watch

    def harmless(self) -> AbstractContextManager[None]:
        """An error of our own in here ends the watching with one warning."""
        return harmless("GradWatch", self.end_watching, strict=self._options.watch.strict)

    # ------------------------------------------------------------------ begin and end

    def open_log(self, dirpath: str | Path | None, resumed: Mapping[str, Any]) -> None:
        """Open the run log, that of the run which this one continues
        if there is one. A collective.
        """
        last = resumed.get("run_dir")
        log = open_run_log(self.trainer, dirpath, owner=self, run_id=resumed.get("run_id"), last=last)
        self._recorder.open(self.trainer, log)
        self.run_dir = log.folder if log else None

    def begin(self, modules: Mapping[str, nn.Module], is_over: FitIsOver) -> None:
        """Put the hooks on."""
        self.handling.respond(self.trainer, modules, self._recorder.take_event)
        with self.harmless():
            unreachable = self._watching.unreachable(modules)
            self._report_unreachable(unreachable)
            self._steps.listen(self.trainer)
            self.audit.listen(self._recorder.run_id)
            reachable = {name: module for name, module in modules.items() if name not in unreachable}
            options = self._options.watch
            options = replace(options, find_cells=options.find_cells and not unreachable)
            self._watching.watch = Watch(
                self.module, reachable, options, self._clock, is_over, lambda: self.trainer.optimizers
            )
            self._describe(modules)

    def conclude(self, *, broken_off: bool) -> bool:
        """Gather what is left to be found. Returns whether there is anything to be said at the end.

        Args:
            broken_off: by an error, which may keep us from looking once more: a device
                without memory, or one that failed.
        """
        return self._watching.conclude(
            self.passes.moment, self.audit.findings, write=self.trainer.is_global_zero, broken_off=broken_off
        )

    def end_watching(self) -> None:
        """Take the hooks off and close the run log. Calling it again does nothing."""
        self._steps.close()
        self.audit.close()
        self._watching.end()
        close_run_log(self.trainer, owner=self)
        self._recorder.close()
        self._loss = None
        self.passes.hold(None)
        self.handling.end_watching()

    def _clock(self) -> int:
        automatic = self.module.automatic_optimization
        return self.passes.moment.step if automatic else self._steps.done(self.trainer)

    def _describe(self, modules: Mapping[str, nn.Module]) -> None:
        log, options = self._recorder.log, self._options
        if log is not None:
            acting = {name: value for name in ("on_anomaly", "bundles") if (value := getattr(options.handling, name))}
            log.meta({"config": {"GradWatch": {**options.config, **acting}}, "modules": describe(modules)})
            log.meta({"model": target_of(self.module)})
            self.handling.keep_bundles(log.folder, self.trainer.global_rank, options.config)

    # ------------------------------------------------------------------ what cannot be measured

    def _report_unreachable(self, reasons: Mapping[str, str]) -> None:
        if not reasons or not self.trainer.is_global_zero:
            return
        rank_zero_warn(f"GradWatch does not observe {', '.join(reasons)}: {next(iter(reasons.values()))}.")
        now = Moment(self.trainer.global_step, self.trainer.current_epoch)
        self._watching.report_unreachable(reasons, now)

    # ------------------------------------------------------------------ one step

    def begin_batch(self, batch: Any, batch_idx: int) -> None:
        """Begin to keep the calls of this step."""
        self.handling.begin_batch(self.trainer, self.module)
        with self.harmless():
            if self.watch is not None:
                self._take(self.watch.poll())
                self.watch.capture.begin(announced=self.module.automatic_optimization)
                self.audit.begin_batch()
                self.passes.hold(batch)
                self.handling.keep_start(self.trainer, self.module, batch, batch_idx)
        self.passes.begin_batch(self._steps.done(self.trainer), batch_idx)

    def before_zero_grad(self, optimizer: Optimizer) -> None:
        """The gradients of the step before are about to be thrown away."""
        with self.harmless():
            self.audit.before_zero_grad(optimizer)

    def before_backward(self, loss: Tensor) -> None:
        """Keep a reference to the loss until its gradients have arrived; follow it
        through loops on a sampled step.
        """
        with self.harmless():
            if self.watch is None:
                return
            if self.module.automatic_optimization:
                self.watch.capture.forget_gradients()  # what ``autograd.grad`` sent in the forward is none of this loss's
            else:
                self.look()  # what a raw ``loss.backward()`` before this one left
            self._loss = loss
            self.audit.before_backward(loss)
            self._take(self.watch.before_backward(loss, self.passes.describe(self.watch.capture.heard())))

    def after_backward(self) -> None:
        """Look at the calls whose gradients have arrived."""
        with self.harmless():
            self.look()

    def before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Look at what a raw ``loss.backward()`` left, while the weights are
        still those of its forward; act.
        """
        if not self.module.automatic_optimization:
            self.after_backward()
        with self.harmless():
            self.audit.before_optimizer_step(optimizer)
        self._steps.announce(optimizer)
        self.handling.before_step(self.trainer, self.module, optimizer, self.passes.moment)

    def end_batch(self) -> None:
        """Look at what backward passes outside Lightning's left, and let go of the step."""
        with self.harmless():
            if self.watch is not None:
                self._end_step(self.watch)
        self.handling.end_batch(self.trainer, self.module, self.passes.moment)

    def draw(self) -> None:
        """Hand the figures to the loggers."""
        with self.harmless():
            self._recorder.draw(self.trainer)

    def look(self) -> None:
        """Take the calls whose gradients have arrived, record what
        they tell, and have it acted on.
        """
        watch = self.watch
        if watch is None:
            return
        loss, self._loss = self._loss, None
        arrived = watch.capture.arrived()
        step = self.passes.describe(arrived, loss, raw=loss is None)
        if step.sampled:
            self.passes.sampled(arrived)
        seen = self._take(watch.after_backward(loss, step))
        if self._watching.is_suspicious():
            self.passes.follow_up()
        if self.handling.wanted:
            self._act_on(seen)
            # On a GPU the norm is on its way: only who acts has to wait for it.
            self._act_on(self._take(watch.poll(wait=True)))

    def _act_on(self, seen: Observation) -> None:
        self.handling.see(seen.events, self.trainer, self.module)

    def _take(self, seen: Observation) -> Observation:
        self.audit.count(seen.norms)
        return self._watching.take(seen)

    def _end_step(self, watch: Watch) -> None:
        self.look()
        self.passes.hold(None)
        seen = self._take(watch.end_step(self.passes.moment))
        self.audit.end_batch()
        self._watching.keep_clipping(self.audit.samples, lambda: self.audit.findings(wait=False))
        if self._options.first_word:
            self._recorder.say_first_words(say, partial(batch_size_of, self.trainer))
        if seen.cells:
            self._report_unreachable(self._watching.adopt(watch, seen.cells))
        horizon = self._recorder.horizon_text()
        if self._options.progress_bar and horizon is not None:
            show_in_progress_bar(self.trainer, {"horizon": horizon})
        advice = self._watching.advice_on_nothing(watch)
        if advice is not None:
            rank_zero_warn(f"{_NOTHING} {advice or _PERHAPS}")
