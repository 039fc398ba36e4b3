"""The callback that only looks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from torch import Tensor
from torch.optim import Optimizer

from lightning_gradwatch.callbacks.anomaly.handling import HandlingOptions
from lightning_gradwatch.callbacks.anomaly.responses import AnomalyError, Response
from lightning_gradwatch.callbacks.fit.fit_watch import FitWatch
from lightning_gradwatch.callbacks.fit.options import FitOptions
from lightning_gradwatch.callbacks.output.run_folder import continued, identity, run_id_of, told_by_others
from lightning_gradwatch.callbacks.output.watch_recorder import WatchRecorder
from lightning_gradwatch.detect import Detector
from lightning_gradwatch.engine.options import WatchArguments
from lightning_gradwatch.events import Event
from lightning_gradwatch.findings.announcer import Announcer
from lightning_gradwatch.findings.closing import say_findings
from lightning_gradwatch.findings.results import WatchResults
from lightning_gradwatch.recurrent.capture.fit_over import FitIsOver
from lightning_gradwatch.recurrent.capture.modules import discover
from lightning_gradwatch.trainer.compat import Callback, LightningModule, Trainer, say, was_stopped, without_module
from lightning_gradwatch.trainer.optimizer_steps import OptimizerSteps

__all__ = ["AnomalyError", "GradWatch"]


class GradWatch(WatchArguments, WatchResults, Callback):
    """Measures how the gradient flows through time in every recurrent module of a
    model, and reports what goes wrong.

    It only observes: with it and without it, training is the same to the bit, until ``on_anomaly``
    has it act. The first step and then every ``every_n_steps``-th is measured in full; in between,
    one small reduction a step notices what is out of the ordinary.

    Logged, on sampled steps, under ``gradwatch/<module>/l<layer>[r]/`` (``r``: reverse
    direction), all of the hidden state h:

    ================  =========================================================  ==================
    key               meaning                                                    unit
    ================  =========================================================  ==================
    ``horizon``       first lag at which the lagged gradient falls under 1 %     timesteps
    ``growth_rate``   slope of the log lagged gradient over lag                  nats per timestep
    ``total_first``   ‖∂L/∂h‖ at the first timestep, median over sequences       of the gradient
    ``total_last``    ‖∂L/∂h‖ at the last timestep, median over sequences        of the gradient
    ``total_max``     largest ‖∂L/∂h‖ over timesteps and sequences               of the gradient
    ================  =========================================================  ==================

    Args:
        modules: ``"auto"``, or shell-style patterns of qualified names.
        every_n_steps: optimizer steps from one sampled step to the next, ≥ 1. Where a model makes
            several steps in a batch by hand, batches count, and each part of a sampled batch is
            measured.
        max_sequences: of a batch that a sampled step measures, evenly
            spread, ≥ 1; None measures all.
        anchors: timesteps, spread over the sequence, whose loss is followed back through time,
            ≥ 1. Every sequence takes the last one, and by turns one of the others.
        keep_sequences: have the run log keep the total gradient of every measured sequence.
        dirpath: the run log's folder; None is the one that another callback of this package names,
            else ``gradwatch`` in the Trainer's log folder.
        on_event: called with each event; an error in it is a warning.
        summary: say what was found: in a line at once, at the first critical event of each kind,
            when training has diverged and when it goes back to an earlier state; in a few lines
            when fit ends, however it ends. They are warnings of Lightning's logger where something
            critical happened, or training diverged.
        first_word: say, once a module has first been measured, how far the gradient reaches in it
            beside the sequence length, and whether it seems to have taken the batch for time: a
            line, which ``summary=False`` silences too.
        progress_bar: show the shortest horizon of the last sampled step, beside the
            sequence length, in the progress bar.
        figures: at the end of each epoch, hand figures to the loggers that take
            them. Needs the extra ``report``.
        on_anomaly: what to do at a critical event, or a gradient that is not finite, on any rank;
            None only observes. ``warn``; ``skip`` the optimizer step; ``stop`` skips and ends
            training; ``raise`` an :class:`AnomalyError`; ``rollback`` skips and puts weights,
            carried states, optimizers, schedules, gradient scaler and AdaptiveClip's policies back
            to the last good state kept in memory, and training goes on with the next batch. Until
            an anomaly happens, none of them changes the training. At a probe of LBFGS's line
            search, which copes with an inf or NaN, nothing is done.
        max_responses: after so many in succession (steps skipped; ways back to one
            state) training is stopped, ≥ 1.
        snapshot_every_n_steps: with ``rollback``, optimizer steps from one copy of the state to the
            next, ≥ 1. Two copies are kept in the CPU's memory.
        bundles: how many critical events of a run get a bundle, from which ``gradwatch replay``
            repeats the step; 0 is none. They lie in ``bundles`` in the run log's folder.
        bundle_mib: a bundle larger than this many MiB is not written, ≥ 1.
        detectors: your own, which judge the profiles of sampled steps beside the built-in ones; see
            :class:`Detector`. Each fit begins with a copy of them. An error in one is a warning.
        influence: measure on sampled steps also what reaches the *inputs* of each fused module,
            ∂L/∂x_t and ∂L_τ/∂x_t by lag: profiles of the ``state`` ``x``. A sample costs a tenth
            more. Of cells in a loop, modules fed piece by piece, taps and scans it is not measured.
        enabled: False switches everything off.

    Attributes:
        run_dir: where the run log of the last fit lies; None before a fit
            and where none could be written.

    Raises:
        ValueError: an argument breaks its rule; at the start of fit, a pattern that matches
            nothing, or a ``dirpath`` that cannot be written.
    """

    called = "GradWatch"

    fit_watch = FitWatch
    """What a fit is watched by: for the replay and the package's tests."""

    def __init__(
        self,
        modules: Literal["auto"] | list[str] = "auto",
        every_n_steps: int = 50,
        max_sequences: int | None = 8,
        anchors: int = 4,
        keep_sequences: bool = False,
        dirpath: str | Path | None = None,
        on_event: Callable[[Event], None] | None = None,
        summary: bool = True,
        progress_bar: bool = False,
        figures: bool = False,
        enabled: bool = True,
        on_anomaly: Response | None = None,
        max_responses: int = 10,
        snapshot_every_n_steps: int = 50,
        bundles: int = 0,
        bundle_mib: int = 1024,
        detectors: list[Detector] | None = None,
        influence: bool = False,
        first_word: bool = True,
    ) -> None:
        super().__init__()
        self._take_arguments(
            modules=modules,
            every_n_steps=every_n_steps,
            max_sequences=max_sequences,
            anchors=anchors,
            keep_sequences=keep_sequences,
            dirpath=dirpath,
            on_event=on_event,
            summary=summary,
            first_word=first_word,
            detectors=detectors,
            influence=influence,
            switch="Use GradWatch(enabled=False) to switch it off.",
            none="GradWatch(enabled=False) to watch none",
        )
        self.progress_bar, self.figures, self.enabled = progress_bar, figures, enabled
        self.on_anomaly: Response | None = on_anomaly
        self.max_responses, self.snapshot_every_n_steps = max_responses, snapshot_every_n_steps
        self.bundles, self.bundle_mib = bundles, bundle_mib
        self._resumed: dict[str, Any] = {}  # identity of the run that the next fit continues
        self._handling_options()  # to have the values checked
        self._reset()

    def _reset(self) -> WatchRecorder:
        self.run_dir: Path | None = None
        self._run_id: str | None = None
        # on_anomaly="warn" has a warning of its own.
        announcer = Announcer(None if not self.summary or self.on_anomaly == "warn" else say)
        self._found = recorder = WatchRecorder(self.keep_sequences, self.on_event, announcer, self.figures)
        self._steps = OptimizerSteps()
        self._fit: FitWatch | None = None
        return recorder

    def _handling_options(self) -> HandlingOptions:
        return HandlingOptions(
            self.on_anomaly, self.max_responses, self.snapshot_every_n_steps, self.bundles, self.bundle_mib
        )

    def _fit_options(self) -> FitOptions:
        return FitOptions(
            self.every_n_steps,
            self.progress_bar,
            self._watch_options(),
            self._handling_options(),
            self._config(),
            self._says_first_words,
        )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the modules, put the hooks on, open the run log."""
        if not self.enabled:
            return
        self._leave()
        recorder = self._reset()
        modules = discover(pl_module, self._patterns)
        resumed, self._resumed = self._resumed, {}
        self._steps = OptimizerSteps(int(resumed.get("bare_steps") or 0))
        fit = self.fit_watch(trainer, pl_module, self._fit_options(), recorder, self._steps)
        fit.open_log(self.dirpath, resumed)
        self._run_id, self.run_dir = run_id_of(trainer, self.dirpath), fit.run_dir
        self._fit = fit
        fit.begin(modules, FitIsOver(self._is_over))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what was found; take the hooks off."""
        self._conclude(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Say what was found until then; take the hooks off."""
        self._conclude(trainer, broken_off=True)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the hooks off if nothing before did."""
        self._leave()

    def _is_over(self) -> bool:
        """Whether the fit was broken off without a word to us, as where the ``on_exception`` of a
        callback before us raised; then we leave.
        """
        fit = self._fit
        if fit is None or fit.watch is None:
            return True
        if not was_stopped(fit.trainer):
            return False
        self._leave()
        return True

    def _leave(self) -> None:
        """Let go of the fit. An error of our own must not: on one rank it would leave the
        others waiting for its decision.
        """
        fit, self._fit = self._fit, None
        if fit is not None:
            fit.end_watching()

    def _conclude(self, trainer: Trainer, *, broken_off: bool = False) -> None:
        fit = self._fit
        if fit is not None:
            with fit.harmless():
                if fit.conclude(broken_off=broken_off) and self.summary:
                    others = told_by_others(trainer, self, self.run_dir)
                    say_findings(say, self._found, others, self.run_dir, fit.handling.hint())
        self._leave()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Begin to keep the calls of this step."""
        if self._fit is not None:
            self._fit.begin_batch(batch, batch_idx)

    def on_before_zero_grad(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """See whether somebody wrote to gradients that are about to be thrown away."""
        if self._fit is not None:
            self._fit.before_zero_grad(optimizer)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Follow the loss back through loops on a sampled step."""
        if self._fit is not None:
            self._fit.before_backward(loss)

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the calls whose gradients have arrived."""
        if self._fit is not None:
            self._fit.after_backward()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Look at what a raw ``loss.backward()`` left; do what ``on_anomaly`` asks for."""
        if self._fit is not None:
            self._fit.before_optimizer_step(optimizer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at what backward passes outside Lightning's left, and let go of the step."""
        if self._fit is not None:
            self._fit.end_batch()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hand the figures to the loggers."""
        if self._fit is not None:
            self._fit.draw()

    def state_dict(self) -> dict[str, Any]:
        """The identity of the run log, so that a resumed run continues its own."""
        self._is_over()
        bare = {"bare_steps": self._steps.bare} if self._steps.bare else {}
        return {**identity(self._run_id, self.run_dir), **bare}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The run log that this run continues."""
        self._resumed = continued(state_dict, "GradWatch")

    @property
    def state_key(self) -> str:
        """Distinct for instances that watch different modules or write to different folders."""
        return self._generate_state_key(
            modules=self.modules, dirpath=None if self.dirpath is None else str(self.dirpath)
        )

    def __getstate__(self) -> dict[str, Any]:
        """Without what belongs to a running fit, so that a copy holds no model and no trainer."""
        self._is_over()
        return {**without_module(self), "_fit": None}
