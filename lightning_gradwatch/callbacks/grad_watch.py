"""The callback that only looks."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Concatenate, Literal, ParamSpec, cast

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_gradwatch.callbacks._amp import active_scaler, loss_scale
from lightning_gradwatch.callbacks._compat import (
    Callback,
    LightningModule,
    Trainer,
    accumulation,
    logged_step,
    rank_zero_info,
    rank_zero_warn,
)
from lightning_gradwatch.callbacks._sampling import Sampling
from lightning_gradwatch.callbacks._sharding import gradients_are_common, out_of_reach
from lightning_gradwatch.callbacks._watch import Call, Step, Watch
from lightning_gradwatch.callbacks.run_folder import close_run_log, open_run_log, run_id_of
from lightning_gradwatch.events import Event, EventKind, Moment
from lightning_gradwatch.metrics import LaggedGradient, TotalGradient
from lightning_gradwatch.profile import Profile
from lightning_gradwatch.recurrent.discover import describe, discover
from lightning_gradwatch.runlog.summary import LAST_SAMPLES, summarise
from lightning_gradwatch.runlog.writer import RunLogWriter

P = ParamSpec("P")

_COMMON = (EventKind.NONFINITE_GRADIENT, EventKind.EXPLODING_GRADIENT, EventKind.AMP_OVERFLOW)
"""What follows from the gradients of the parameters: where all ranks see the same ones, rank 0 writes it."""


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
            warnings.warn(
                f"GradWatch failed ({type(error).__name__}: {error}) and watches no more; the training is not affected. "
                "Please report it.",
                stacklevel=2,
            )

    return guarded


class GradWatch(Callback):
    """Measures how the gradient flows through time in every recurrent module of a model, and reports what goes wrong.

    It only observes: with it and without it, training is the same to the bit. The first step and then every
    ``every_n_steps``-th is measured in full; in between, one small reduction a step notices what is out of the ordinary.

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
        every_n_steps: optimizer steps from one sampled step to the next, ≥ 1.
        max_sequences: of a batch that a sampled step measures, evenly spread, ≥ 1; None measures all.
        anchors: timesteps of each sequence whose loss is followed back through time, ≥ 1.
        keep_sequences: have the run log keep the total gradient of every measured sequence.
        dirpath: the run log's folder; None is ``gradwatch`` in the Trainer's log folder.
        on_event: called with each event; an error in it is a warning.
        summary: say at the end of fit, in a few lines, what was found.
        enabled: False switches everything off.

    Attributes:
        events: those of the last fit.
        run_dir: where its run log lies; None before a fit and where none could be written.
        lagged, totals: its accumulated profiles by ``(module, layer, direction)``.

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
        enabled: bool = True,
    ) -> None:
        super().__init__()
        _at_least_one("every_n_steps", every_n_steps, "Use GradWatch(enabled=False) to switch it off.")
        _at_least_one("anchors", anchors, "One anchor follows the loss of the last timestep alone.")
        if max_sequences is not None:
            _at_least_one("max_sequences", max_sequences, "None measures every sequence of a batch.")
        if isinstance(modules, str) and modules != "auto":
            raise ValueError(
                f'`modules` must be "auto" or a list of name patterns; found {modules!r}. Use modules=[{modules!r}].'
            )
        self.modules, self.every_n_steps = modules, every_n_steps
        self.max_sequences, self.anchors, self.keep_sequences = max_sequences, anchors, keep_sequences
        self.dirpath, self.on_event, self.summary, self.enabled = dirpath, on_event, summary, enabled
        self._resumed: str | None = None  # the run that the next fit continues
        self._reset()

    def _reset(self) -> None:
        self.events: list[Event] = []
        self.run_dir: Path | None = None
        self._run_id: str | None = None
        self.lagged: dict[tuple[str, int, str], LaggedGradient] = {}
        self.totals: dict[tuple[str, int, str], TotalGradient] = {}
        self._watch: Watch | None = None
        self._log: RunLogWriter | None = None
        self._trainer: Trainer | None = None
        self._records: dict[tuple[str, int, str, str, int], deque[dict[str, Any]]] = {}
        self._furthest: dict[
            tuple[str, int, str, str, int], dict[str, Any]
        ] = {}  # of all samples, not the last ones only
        self._loss: Tensor | None = None
        self._moment = Moment(0)
        self._hidden = False
        self._sampling = Sampling(self.every_n_steps)
        self._warned_callable = False

    # ------------------------------------------------------------------ the fit begins and ends

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the modules, put the hooks on, open the run log."""
        if not self.enabled:
            return
        self._close()
        self._reset()
        modules = discover(pl_module, None if self.modules == "auto" else self.modules)
        self._trainer = trainer
        self._log = open_run_log(trainer, self.dirpath, owner=self, run_id=self._resumed)
        self._resumed, self._run_id = None, run_id_of(trainer, self.dirpath)
        self.run_dir = self._log.folder if self._log else None
        self._begin(trainer, pl_module, modules)

    @_harmless
    def _begin(self, trainer: Trainer, pl_module: LightningModule, modules: Mapping[str, torch.nn.Module]) -> None:
        hidden = {name: reason for name, m in modules.items() if (reason := out_of_reach(trainer, m)) is not None}
        self._say_hidden(trainer, hidden)
        self._watch = Watch(
            pl_module,
            {name: module for name, module in modules.items() if name not in hidden},
            find_cells=self.modules == "auto" and not hidden,
            max_sequences=self.max_sequences,
            anchors=self.anchors,
            on_profiles=self._take_profiles,
            on_event=self._take_event,
        )
        if self._log is not None:
            names = ("every_n_steps", "max_sequences", "anchors", "keep_sequences", "modules")
            self._log.meta(
                {"config": {"GradWatch": {n: getattr(self, n) for n in names}}, "modules": describe(modules)}
            )

    def _say_hidden(self, trainer: Trainer, hidden: Mapping[str, str]) -> None:
        self._hidden = bool(hidden)
        if not hidden or not trainer.is_global_zero:
            return
        rank_zero_warn(f"GradWatch does not observe {', '.join(hidden)}: {next(iter(hidden.values()))}.")
        now = Moment(trainer.global_step, trainer.current_epoch)
        for name, reason in hidden.items():
            detail = f"{reason[0].upper()}{reason[1:]}."
            self._take_event(now.event(EventKind.NOT_OBSERVED, module=name, detail=detail))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what was found; take the hooks off."""
        self._conclude()
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Take the hooks off whatever ended the fit."""
        self._close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the hooks off if nothing before did."""
        self._close()

    def _close(self) -> None:
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.close()
            if self._log is not None:
                self._log.meta({"modules": describe(watch.capture.modules, watch.observed)})
        if self._trainer is not None:
            close_run_log(self._trainer, owner=self)
        self._log = self._trainer = self._loss = None

    @_harmless
    def _conclude(self) -> None:
        watch = self._watch
        if watch is None:
            return
        watch.poll(wait=True)
        for name, reason in watch.unobserved():
            self._take_event(self._moment.event(EventKind.NOT_OBSERVED, module=name, detail=reason))
        if self.summary:
            rank_zero_info("\n".join(self._summary_lines()))

    def _summary_lines(self) -> list[str]:
        kept = [*self._furthest.values(), *(record for recent in self._records.values() for record in recent)]
        records = list({id(record): record for record in kept}.values())
        lines = ["GradWatch: how far the gradient reaches back through time"]
        for layer in summarise(records, [event.to_record() for event in self.events]):
            lines.append(f"  {layer.line}")
        lines.append(f"  {len(self.events)} event(s)." + (f" Run log: {self.run_dir}" if self.run_dir else ""))
        return lines

    # ------------------------------------------------------------------ one step

    @_harmless
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Begin to keep the calls of this step."""
        if self._watch is None:
            return
        self._watch.poll()
        self._watch.capture.begin()
        self._moment = Moment(trainer.global_step, trainer.current_epoch, batch_idx, trainer.global_rank)

    @_harmless
    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Keep a reference to the loss until its gradients have arrived; follow it through loops on a sampled step."""
        if self._watch is not None:
            self._look(trainer, pl_module)  # what a raw ``loss.backward()`` before this one left
            self._loss = loss
            self._watch.before_backward(loss, self._step(trainer, pl_module, self._watch.capture.calls))

    @_harmless
    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the calls whose gradients have arrived."""
        self._look(trainer, pl_module)

    @_harmless
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Look at what a raw ``loss.backward()`` left, while the weights are still those of its forward."""
        if not pl_module.automatic_optimization:
            self._look(trainer, pl_module)

    @_harmless
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at what backward passes outside Lightning's left, and let go of the step."""
        if self._watch is None:
            return
        self._look(trainer, pl_module)
        self._watch.end_step()
        if self._watch.has_nothing() and not self._hidden:
            self._close()
            rank_zero_warn(
                "GradWatch found no recurrent module (nn.RNN, nn.LSTM, nn.GRU, their cells, one of your own, or a tap) in the "
                "model and watches nothing. Take it out, or mark the hidden states with tap().",
            )

    def _look(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._watch is None:
            return
        loss, self._loss = self._loss, None
        arrived = [call for call in self._watch.capture.calls if call.has_gradient()]
        step = self._step(trainer, pl_module, arrived, raw=loss is None)
        if step.sampled:
            self._sampling.note((call.module for call in arrived), self._now(trainer))
        self._watch.after_backward(loss, step)

    def _step(self, trainer: Trainer, pl_module: LightningModule, calls: Sequence[Call], *, raw: bool = False) -> Step:
        """What is known of a backward pass through ``calls``; a ``raw`` one went past Lightning, which scaled nothing."""
        automatic = pl_module.automatic_optimization
        windows = accumulation(trainer) if automatic else 1
        return Step(
            moment=self._moment,
            micro_batch=(self._moment.batch_idx or 0) % windows,
            sampled=self._sampling.due((c.module for c in calls), self._now(trainer), again=not automatic),
            windows=windows,
            scale=1.0 if raw else loss_scale(trainer),
            complete=not (automatic and trainer.fit_loop._should_accumulate()),  # pyright: ignore[reportPrivateUsage]
            scaled=not raw and active_scaler(trainer) is not None,
        )

    def _now(self, trainer: Trainer) -> tuple[int, int | None]:
        return logged_step(trainer), self._moment.batch_idx

    # ------------------------------------------------------------------ what was found

    def _take_profiles(self, found: list[Profile], step: Step) -> None:
        when = self._when(step)
        scalars: dict[str, float] = {}
        for profile in found:
            record = {**when, **profile.to_record(keep_sequences=self.keep_sequences)}
            if self._log is not None:
                self._log.profile(cast("Any", record))
            key = (profile.module, profile.layer, profile.direction, profile.state, profile.call)
            self._records.setdefault(key, deque(maxlen=LAST_SAMPLES)).append(record)
            if _reach(record) > _reach(self._furthest.get(key)):
                self._furthest[key] = record
            if profile.state == "h":
                self._accumulate(profile)
                scalars |= _scalars(profile, record)
        self._log_scalars(scalars)

    def _when(self, step: Step) -> dict[str, Any]:
        moment = step.moment
        return {
            "step": moment.step,
            "epoch": moment.epoch,
            "batch_idx": moment.batch_idx,
            "micro_batch": step.micro_batch,
        }

    def _accumulate(self, profile: Profile) -> None:
        key = (profile.module, profile.layer, profile.direction)
        if key not in self.lagged:
            self.lagged[key], self.totals[key] = LaggedGradient(), TotalGradient()
        self.lagged[key].update(torch.from_numpy(profile.lagged()))
        self.totals[key].update(
            torch.from_numpy(profile.total_median().copy()), torch.from_numpy(profile.total_max().copy())
        )

    def _log_scalars(self, scalars: Mapping[str, float]) -> None:
        if self._trainer is None or not scalars:
            return
        for logger in self._trainer.loggers:
            logger.log_metrics(dict(scalars), step=logged_step(self._trainer))

    def _take_event(self, event: Event) -> None:
        common = self._trainer is not None and gradients_are_common(self._trainer)
        if common and event.kind == EventKind.NONFINITE_GRADIENT:
            note = "Gradients are averaged over the processes: it may have begun on another one, which says so in its own events."
            event = dataclasses.replace(event, message=f"{event.message} {note}", detail="")
        self.events.append(event)
        if self._log is not None and not (common and event.rank and event.kind in _COMMON):
            self._log.event(event)
        if self.on_event is None:
            return
        try:
            self.on_event(event)
        except Exception as error:  # the user's own callable: its failure must not harm the run
            if not self._warned_callable:
                self._warned_callable = True
                warnings.warn(
                    f"`on_event` failed ({type(error).__name__}: {error}); the training goes on.", stacklevel=2
                )

    # ------------------------------------------------------------------ state

    def state_dict(self) -> dict[str, Any]:
        """The identity of the run log, so that a resumed run continues its own."""
        return {"run_id": self._run_id}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The run log that this run continues."""
        self._resumed = state_dict.get("run_id")

    @property
    def state_key(self) -> str:
        """Distinct for instances that watch different modules or write to different folders."""
        return self._generate_state_key(
            modules=self.modules, dirpath=None if self.dirpath is None else str(self.dirpath)
        )

    def __getstate__(self) -> dict[str, Any]:
        """Without what belongs to a running fit, so that a copy holds no model and no trainer."""
        state = self.__dict__.copy()
        state.update(_watch=None, _log=None, _trainer=None, _loss=None)
        for bound in ("log", "log_dict"):  # Lightning binds the module's own to its callbacks
            state.pop(bound, None)
        return state


def _reach(record: Mapping[str, Any] | None) -> float:
    """How much of its sequence a record's gradient reaches back over; more than all of it if it was cut off."""
    if record is None or record["horizon"] is None:
        return 0.0
    return record["horizon"] / record["timesteps"] + record["horizon_censored"]


def _scalars(profile: Profile, record: Mapping[str, Any]) -> dict[str, float]:
    prefix = f"gradwatch/{profile.module}/l{profile.layer}" + ("r" if profile.direction == "reverse" else "")
    total: Sequence[float] = record["total"]
    values: Iterable[tuple[str, float | None]] = (
        ("horizon", record["horizon"]),
        ("growth_rate", record["growth_rate"]),
        ("total_first", total[0] if total else None),
        ("total_last", total[-1] if total else None),
        ("total_max", float(profile.total_max().max(initial=0.0))),
    )
    return {f"{prefix}/{name}": float(value) for name, value in values if value is not None}


def _at_least_one(name: str, value: int, remedy: str) -> None:
    if value < 1:
        raise ValueError(f"`{name}` must be ≥ 1; found {value}. {remedy}")
