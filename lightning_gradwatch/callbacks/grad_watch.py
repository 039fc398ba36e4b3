"""The callback that only looks."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Concatenate, Literal, ParamSpec

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_gradwatch import arguments
from lightning_gradwatch.callbacks.anomaly.bundle import target_of
from lightning_gradwatch.callbacks.anomaly.handling import Options, Reactions
from lightning_gradwatch.callbacks.anomaly.responses import AnomalyError, Response
from lightning_gradwatch.callbacks.output.announcer import Announcer
from lightning_gradwatch.callbacks.output.figures import Figures
from lightning_gradwatch.callbacks.output.run_folder import close_run_log, identity, open_run_log, run_id_of
from lightning_gradwatch.callbacks.output.watch_recorder import Findings
from lightning_gradwatch.events import Event, EventKind, Moment
from lightning_gradwatch.metrics import LaggedGradient, TotalGradient
from lightning_gradwatch.plain import warn
from lightning_gradwatch.recurrent.capture.fit_over import FitIsOver
from lightning_gradwatch.recurrent.capture.modules import describe, discover
from lightning_gradwatch.report.extra import commands
from lightning_gradwatch.runlog.notebook import verdict_table
from lightning_gradwatch.runlog.verdict import LayerSummary
from lightning_gradwatch.trainer.compat import (
    Callback,
    LightningModule,
    Trainer,
    accumulation,
    logged_step,
    rank_zero_warn,
    say,
    show_in_progress_bar,
    was_stopped,
)
from lightning_gradwatch.trainer.mixed_precision import active_scaler, loss_scale
from lightning_gradwatch.trainer.optimizer_steps import OptimizerSteps
from lightning_gradwatch.trainer.sharding import out_of_reach
from lightning_gradwatch.watch.engine import Call, Step, Watch
from lightning_gradwatch.watch.sampling import Sampling

P = ParamSpec("P")

__all__ = ["AnomalyError", "GradWatch"]


def _harmless(hook: Callable[Concatenate[GradWatch, P], None]) -> Callable[Concatenate[GradWatch, P], None]:
    """An error of our own in ``hook`` ends the watching with one warning; the training goes on."""

    @functools.wraps(hook)
    def guarded(self: GradWatch, *args: P.args, **kwargs: P.kwargs) -> None:
        try:
            hook(self, *args, **kwargs)
        except Exception as error:  # whatever it is, it is ours and must not reach the training
            if self.raise_own_errors:
                raise
            self._close()  # pyright: ignore[reportPrivateUsage]  # a decorator of this class
            warn(
                f"GradWatch failed ({type(error).__name__}: {error}) and watches no more; the training is not affected. "
                "Please report it.",
                stacklevel=2,
            )

    return guarded


class GradWatch(Callback):
    """Measures how the gradient flows through time in every recurrent module of a model, and reports what goes wrong.

    It only observes: with it and without it, training is the same to the bit, until ``on_anomaly`` has it act. The first step
    and then every ``every_n_steps``-th is measured in full; in between, one small reduction a step notices what is out of the ordinary.

    Logged, on sampled steps, under ``gradwatch/<module>/l<layer>[r]/`` (``r``: reverse direction), all of the hidden state h:

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
        every_n_steps: optimizer steps from one sampled step to the next, ≥ 1. Where a model makes several steps in a batch by hand, batches
            count, and each part of a sampled batch is measured.
        max_sequences: of a batch that a sampled step measures, evenly spread, ≥ 1; None measures all.
        anchors: timesteps of each sequence whose loss is followed back through time, ≥ 1.
        keep_sequences: have the run log keep the total gradient of every measured sequence.
        dirpath: the run log's folder; None is ``gradwatch`` in the Trainer's log folder.
        on_event: called with each event; an error in it is a warning.
        summary: say what was found: in a line at once, at the first critical event of each kind and when training goes back to an earlier
            state; in a few lines when fit ends, however it ends. They are warnings of Lightning's logger where something critical happened.
        progress_bar: show the shortest horizon of the last sampled step, beside the sequence length, in the progress bar.
        figures: at the end of each epoch, hand figures to the loggers that take them. Needs the extra ``report``.
        on_anomaly: what to do at a critical event, or a gradient that is not finite, on any rank; None only observes.
            ``warn``; ``skip`` the optimizer step; ``stop`` skips and ends training; ``raise`` an :class:`AnomalyError`;
            ``rollback`` skips and puts weights, carried states, optimizers, schedules, gradient scaler and AdaptiveClip's policies
            back to the last good state kept in memory, and training goes on with the next batch. Until an anomaly happens, none of them
            changes the training. At a probe of LBFGS's line search, which copes with an inf or NaN, nothing is done.
        max_responses: after so many in succession (steps skipped; ways back to one state) training is stopped, ≥ 1.
        snapshot_every_n_steps: with ``rollback``, optimizer steps from one copy of the state to the next, ≥ 1. Two copies are kept
            in the CPU's memory.
        bundles: how many critical events of a run get a bundle, from which ``gradwatch replay`` repeats the step; 0 is none. They lie
            in ``bundles`` in the run log's folder.
        bundle_mib: a bundle larger than this many MiB is not written, ≥ 1.
        enabled: False switches everything off.

    Attributes:
        run_dir: where the run log of the last fit lies; None before a fit and where none could be written.

    Raises:
        ValueError: an argument breaks its rule; at the start of fit, a pattern that matches nothing, or a ``dirpath`` that
            cannot be written.
    """

    raise_own_errors = False
    """Let errors of our own through instead of warning: for the package's tests."""

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
    ) -> None:
        super().__init__()
        switch = "Use GradWatch(enabled=False) to switch it off."
        self.every_n_steps = arguments.whole("every_n_steps", every_n_steps, switch)
        self.anchors = arguments.whole("anchors", anchors, "One anchor follows the loss of the last timestep alone.")
        if max_sequences is not None:
            remedy = "None measures every sequence of a batch."
            max_sequences = arguments.whole("max_sequences", max_sequences, remedy)
        if isinstance(modules, str) and modules != "auto":
            raise ValueError(
                f'`modules` must be "auto" or a list of name patterns; found {modules!r}. Use modules=[{modules!r}].'
            )
        if not modules:
            raise ValueError(
                f'`modules` must name at least one pattern; found {modules!r}. Use modules="auto" to watch every recurrent module, '
                "or GradWatch(enabled=False) to watch none."
            )
        self.modules, self.max_sequences, self.keep_sequences = modules, max_sequences, keep_sequences
        self.dirpath, self.on_event, self.summary, self.enabled = dirpath, on_event, summary, enabled
        self.progress_bar, self.figures = progress_bar, figures
        self.on_anomaly: Response | None = on_anomaly
        self.max_responses, self.snapshot_every_n_steps = max_responses, snapshot_every_n_steps
        self.bundles, self.bundle_mib = bundles, bundle_mib
        self._resumed: dict[str, Any] = {}  # identity of the run that the next fit continues
        self._reset()

    def _options(self) -> Options:
        return Options(self.on_anomaly, self.max_responses, self.snapshot_every_n_steps, self.bundles, self.bundle_mib)

    def _reset(self) -> None:
        self.run_dir: Path | None = None
        self._run_id: str | None = None
        # on_anomaly="warn" has a warning of its own.
        silent = not self.summary or self.on_anomaly == "warn"
        self._found = Findings(self.keep_sequences, self.on_event, Announcer(silent))
        self._found.figures = Figures() if self.figures else None
        self._watch: Watch | None = None
        self._loss: Tensor | None = None
        self._batch: Any = None
        self._moment, self._steps = Moment(0), OptimizerSteps()
        self._hidden = self._nothing_said = False
        self._sampling = Sampling(self.every_n_steps)
        self._reactions = Reactions(self._options())

    @property
    def events(self) -> list[Event]:
        """The events of the present fit, or of the last one."""
        self._is_over()
        return self._found.events

    @property
    def lagged(self) -> dict[tuple[str, int, str], LaggedGradient]:
        """The lagged gradients accumulated over the fit, by module, layer and direction."""
        return self._found.lagged

    @property
    def verdicts(self) -> list[LayerSummary]:
        """What is to be thought of each module, layer and direction, from what was measured so far in the present fit, or in the last."""
        return self._found.verdicts()

    @property
    def totals(self) -> dict[tuple[str, int, str], TotalGradient]:
        """The total gradients accumulated over the fit, by module, layer and direction."""
        return self._found.totals

    # ------------------------------------------------------------------ the fit begins and ends

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the modules, put the hooks on, open the run log."""
        if not self.enabled:
            return
        self._close()
        self._reset()
        modules = discover(pl_module, None if self.modules == "auto" else self.modules)
        resumed, self._resumed = self._resumed, {}
        log = open_run_log(trainer, self.dirpath, owner=self, run_id=resumed.get("run_id"), last=resumed.get("run_dir"))
        self._found.trainer, self._found.sink.log = trainer, log
        self._steps = OptimizerSteps(int(resumed.get("bare_steps") or 0))
        self._run_id = run_id_of(trainer, self.dirpath)
        self.run_dir = log.folder if log else None
        self._reactions.respond(trainer, modules, self._found.take_event)
        self._begin(trainer, pl_module, modules)

    @_harmless
    def _begin(self, trainer: Trainer, pl_module: LightningModule, modules: Mapping[str, torch.nn.Module]) -> None:
        hidden = {name: reason for name, m in modules.items() if (reason := out_of_reach(trainer, m)) is not None}
        self._say_hidden(trainer, hidden)
        self._steps.listen(trainer)
        by_hand = not pl_module.automatic_optimization
        self._watch = Watch(
            pl_module,
            {name: module for name, module in modules.items() if name not in hidden},
            find_cells=self.modules == "auto" and not hidden,
            max_sequences=self.max_sequences,
            anchors=self.anchors,
            on_profiles=self._found.take_profiles,
            on_event=self._found.take_event,
            out_of_reach=lambda module: out_of_reach(trainer, module),
            on_hidden=lambda hidden: self._say_hidden(trainer, hidden),
            patterns=None if self.modules == "auto" else self.modules,
            strict=self.raise_own_errors,
            clock=lambda: self._steps.done(trainer) if by_hand else self._moment.step,
            is_over=FitIsOver(self._is_over),
        )
        if self._found.log is not None:
            names = ("every_n_steps", "max_sequences", "anchors", "keep_sequences", "modules")
            config = {name: getattr(self, name) for name in names}
            acting = {name: getattr(self, name) for name in ("on_anomaly", "bundles") if getattr(self, name)}
            self._found.log.meta({"config": {"GradWatch": config | acting}, "modules": describe(modules)})
            self._found.log.meta({"model": target_of(pl_module)})
            self._reactions.keep_bundles(self._found.log.folder, trainer.global_rank, config)

    def _say_hidden(self, trainer: Trainer, hidden: Mapping[str, str]) -> None:
        self._hidden = bool(hidden)
        if not hidden or not trainer.is_global_zero:
            return
        rank_zero_warn(f"GradWatch does not observe {', '.join(hidden)}: {next(iter(hidden.values()))}.")
        now = Moment(trainer.global_step, trainer.current_epoch)
        for name, reason in hidden.items():
            detail = f"{reason[0].upper()}{reason[1:]}."
            self._found.take_event(now.event(EventKind.NOT_OBSERVED, module=name, detail=detail))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what was found; take the hooks off."""
        self._conclude(trainer)
        self._leave()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Say what was found until then; take the hooks off."""
        self._conclude(trainer, broken_off=True)
        self._leave()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the hooks off if nothing before did."""
        self._leave()

    def _is_over(self) -> bool:
        """Whether the fit was broken off without a word to us, as where the ``on_exception`` of a callback before us raised.

        Then there is nothing to be done but to leave, which whoever asks has us do.
        """
        if self._found.trainer is None or not was_stopped(self._found.trainer):
            return self._watch is None
        self._leave()
        return True

    def _leave(self) -> None:
        self._close()
        # Not before the fit ends: an error of our own on one rank must not leave the others waiting for its decision.
        self._reactions = Reactions(self._options())

    def _close(self) -> None:
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.close()
            self._steps.close()
            if self._found.log is not None:
                self._found.log.meta({"modules": describe(watch.capture.modules, watch.observed)})
        if self._found.trainer is not None:
            close_run_log(self._found.trainer, owner=self)
        self._found.sink.log = self._found.trainer = self._loss = self._batch = None
        self._reactions.end_watching()

    @_harmless
    def _conclude(self, trainer: Trainer, *, broken_off: bool = False) -> None:
        watch = self._watch
        if watch is None:
            return
        # What broke the training off may keep us from looking once more: a device without memory, or one that has failed.
        with contextlib.suppress(Exception) if broken_off else contextlib.nullcontext():
            watch.finish(self._moment)
        if watch.steps or not broken_off:
            for event in watch.unobserved(self._moment):
                self._found.take_event(event)
        nothing = watch.has_nothing() and not self._hidden
        if self.summary and (self.events or not nothing) and (watch.steps or self.events or not broken_off):
            self._say_findings(trainer)

    def _say_findings(self, trainer: Trainer) -> None:
        lines = self._found.summary(self._told_by_others(trainer))
        if self.run_dir is not None:
            lines += [f"  {line}" for line in commands(self.run_dir)]
        say("\n".join([*lines, *self._reactions.hint()]), urgent=self._found.is_critical())

    def _told_by_others(self, trainer: Trainer) -> list[Event]:
        """What AdaptiveClip wrote into the same run log: a verdict rests on all that is in it."""
        callbacks: list[object] = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]  # set by a connector
        others = [one for one in callbacks if one is not self and getattr(one, "run_dir", None) == self.run_dir]
        return [event for one in others for event in getattr(one, "events", ()) if isinstance(event, Event)]

    # ------------------------------------------------------------------ one step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Begin to keep the calls of this step."""
        self._reactions.begin_batch(trainer, pl_module)
        self._begin_batch(trainer, pl_module, batch, batch_idx)
        done = self._steps.done(trainer)
        self._moment = Moment(done, trainer.current_epoch, batch_idx, trainer.global_rank)

    @_harmless
    def _begin_batch(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._watch is None:
            return
        self._watch.poll()
        self._watch.capture.begin()
        self._batch = batch
        self._reactions.keep_start(trainer, pl_module, batch, batch_idx)

    @_harmless
    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Keep a reference to the loss until its gradients have arrived; follow it through loops on a sampled step."""
        if self._watch is not None:
            if pl_module.automatic_optimization:
                self._watch.capture.forget_gradients()  # what ``autograd.grad`` sent in the forward is none of this loss's
            else:
                self._look(trainer, pl_module)  # what a raw ``loss.backward()`` before this one left
            self._loss = loss
            self._watch.before_backward(loss, self._step(trainer, pl_module, self._watch.capture.calls))

    @_harmless
    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the calls whose gradients have arrived."""
        self._look(trainer, pl_module)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Look at what a raw ``loss.backward()`` left, while the weights are still those of its forward; respond."""
        if not pl_module.automatic_optimization:
            self._look_again(trainer, pl_module)
        self._steps.announce(optimizer)
        self._reactions.before_step(trainer, pl_module, optimizer, self._moment)

    @_harmless
    def _look_again(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._look(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at what backward passes outside Lightning's left, and let go of the step."""
        self._end_batch(trainer, pl_module)
        self._reactions.end_batch(trainer, pl_module, self._moment)

    @_harmless
    def _end_batch(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._watch is None:
            return
        self._look(trainer, pl_module)
        self._batch = None
        self._watch.end_step(self._moment)
        shortest = self._found.shortest
        if self.progress_bar and shortest is not None:
            cut = "≥" if shortest["horizon_censored"] else ""
            show_in_progress_bar(trainer, {"horizon": f"{cut}{shortest['horizon']}/{shortest['timesteps']}"})
        if self._watch.has_nothing() and not self._hidden and not self._nothing_said:
            self._nothing_said = True
            rank_zero_warn(
                "GradWatch found no recurrent module (nn.RNN, nn.LSTM, nn.GRU, their cells, one of your own, or a tap) in the "
                "model: it only looks for NaN and inf from now on. Take it out, or mark the hidden states with tap().",
            )

    @_harmless
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hand the figures to the loggers."""
        if self._found.figures is not None and trainer.is_global_zero:
            self._found.figures.draw(trainer)

    def _look(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._watch is None:
            return
        loss, self._loss = self._loss, None
        arrived = [call for call in self._watch.capture.calls if call.has_gradient()]
        step = replace(self._step(trainer, pl_module, arrived, raw=loss is None), loss=loss)
        if step.sampled:
            self._sampling.note((call.module for call in arrived), self._now(trainer))
        self._watch.after_backward(loss, step)
        if self._watch.suspicious:
            self._watch.suspicious = False
            self._sampling.look_closer(self._now(trainer))
        if self._reactions.wanted:
            self._watch.poll(wait=True)  # on a GPU the norm is on its way: only who acts has to wait for it
            self._reactions.see(self.events, trainer, pl_module)

    def _step(self, trainer: Trainer, pl_module: LightningModule, calls: Sequence[Call], *, raw: bool = False) -> Step:
        """What is known of a backward pass through ``calls``; a ``raw`` one went past Lightning, which scaled nothing."""
        automatic = pl_module.automatic_optimization
        windows = accumulation(trainer) if automatic else 1
        modules = [call.module for call in calls]
        due = self._sampling.due(modules, self._now(trainer), again=not automatic)
        closer = not due and self._sampling.is_closer(modules, self._now(trainer))
        if calls:  # a batch may make several steps
            self._moment = replace(self._moment, step=max(call.step for call in calls))
        return Step(
            moment=self._moment,
            micro_batch=(self._moment.batch_idx or 0) % windows,
            sampled=due or closer,
            windows=windows,
            scale=1.0 if raw else loss_scale(trainer),
            complete=not (automatic and trainer.fit_loop._should_accumulate()),  # pyright: ignore[reportPrivateUsage]
            scaled=not raw and active_scaler(trainer) is not None,
            closer=closer,
            batch=self._batch,
        )

    def _now(self, trainer: Trainer) -> tuple[int, int | None]:
        return logged_step(trainer), self._moment.batch_idx

    # ------------------------------------------------------------------ state

    def state_dict(self) -> dict[str, Any]:
        """The identity of the run log, so that a resumed run continues its own."""
        self._is_over()
        bare = {"bare_steps": self._steps.bare} if self._steps.bare else {}
        return {**identity(self._run_id, self.run_dir), **bare}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The run log that this run continues."""
        self._resumed = state_dict

    @property
    def state_key(self) -> str:
        """Distinct for instances that watch different modules or write to different folders."""
        return self._generate_state_key(
            modules=self.modules, dirpath=None if self.dirpath is None else str(self.dirpath)
        )

    def __repr__(self) -> str:
        where = "no run log" if self.run_dir is None else f"run log in {str(self.run_dir)!r}"
        events = f"{len(self.events):,} event{'' if len(self.events) == 1 else 's'}"
        return f"<GradWatch, every {self.every_n_steps:,} steps: {len(self.verdicts)} verdicts, {events}, {where}>"

    def _repr_html_(self) -> str:
        return verdict_table("GradWatch", self.verdicts, [event.severity for event in self.events])

    def __getstate__(self) -> dict[str, Any]:
        """Without what belongs to a running fit, so that a copy holds no model and no trainer."""
        self._is_over()
        state = self.__dict__.copy()
        state.update(_watch=None, _loss=None, _batch=None)
        for bound in ("log", "log_dict"):  # Lightning binds the module's own to its callbacks
            state.pop(bound, None)
        return state
