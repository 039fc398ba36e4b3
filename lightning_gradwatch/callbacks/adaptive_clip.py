"""The callback that acts: it clips by an adaptive policy and skips a step whose gradients are not finite."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_gradwatch.callbacks._amp import active_scaler, scaler_will_skip, unscale_once
from lightning_gradwatch.callbacks._clip_state import ClipState
from lightning_gradwatch.callbacks._compat import (
    Callback,
    LightningModule,
    MisconfigurationException,
    Trainer,
    logged_step,
    rank_zero_warn,
)
from lightning_gradwatch.callbacks._conflict import other_clipping, unsupported_strategy
from lightning_gradwatch.callbacks.run_folder import close_run_log, open_run_log, run_id_of
from lightning_gradwatch.clip import ClipPolicy, Decision, make_policy
from lightning_gradwatch.clip.norms import global_norm, scale_, true_norm
from lightning_gradwatch.clip.policy import copy_of, describe
from lightning_gradwatch.events import Event, EventKind, Severity
from lightning_gradwatch.runlog.schema import StepRecord
from lightning_gradwatch.runlog.writer import RunLogWriter

_MOST_CLIP_EVENTS = 100  # an optimizer's; a policy that clips by habit would flood the log


class NonFiniteGradientError(FloatingPointError):
    """Raised by ``AdaptiveClip(on_nonfinite="raise")``."""


class AdaptiveClip(Callback):
    """Measure the gradient norm of each optimizer step, clip by an adaptive policy, skip what is not finite.

    ``trainer = L.Trainer(callbacks=[AdaptiveClip()])`` leaves a healthy run alone and holds one that explodes. Each
    optimizer has its own copy of the policy, and only its own parameters count. The norm is the L2 norm before
    clipping, of unscaled gradients under mixed precision, with at most one host sync a step.

    Logged, at the Trainer's ``log_every_n_steps``, under the step that LearningRateMonitor uses too. With several
    optimizers the index follows the prefix: ``gradwatch/1/grad_norm``.

    ============================  =========================================================  =======================
    key                           meaning                                                    unit
    ============================  =========================================================  =======================
    ``gradwatch/grad_norm``       norm before clipping                                       the loss's per parameter
    ``gradwatch/clip_threshold``  bound that the norm was held against; left out while none  as ``grad_norm``
    ``gradwatch/clip_coefficient``  what the gradients were multiplied by; 1 is untouched    ratio
    ``gradwatch/clipped_norm``    norm after clipping                                        as ``grad_norm``
    ``gradwatch/clip_rate``       share of all steps so far that were clipped                ratio
    ``gradwatch/skipped_steps``   steps skipped so far; the gradient scaler's own not counted  steps
    ============================  =========================================================  =======================

    All are written in ``on_train_batch_end``, from what ``on_before_optimizer_step`` saw. The run log holds every step.

    Events: ``GRADIENT_CLIPPED`` at the first step of each episode of successive clipped steps, for the first 100
    episodes; ``STEP_SKIPPED`` at each skip; ``AMP_OVERFLOW`` where the gradient scaler skips.

    A skipped step leaves the weights and the optimizer's state as they were, weight decay and momentum included. The
    Trainer's ``global_step`` and the learning-rate schedule go on all the same.

    Args:
        policy: ``"spike"``, ``"norm"``, ``"autoclip"``, ``"zclip"``, or a :class:`ClipPolicy`.
        on_nonfinite: what to do when the norm is inf or NaN. ``skip`` the step; ``raise`` an error; ``stop`` skips and
            ends training; ``ignore`` leaves the gradients. Under a gradient scaler the scaler skips.
        on_conflict: when the Trainer's ``gradient_clip_val`` or the module's ``configure_gradient_clipping`` clips too:
            ``both`` act, said once; ``defer`` measures, logs and skips but leaves clipping to the other; ``raise`` an
            error before training.
        max_successive_skips: after so many skips in a row training is stopped, with a critical event; None for never.
        dirpath: the run log's folder; None is ``gradwatch`` in the Trainer's log folder.
        on_event: called with each event. An exception in it is said once and harms nothing.
        log: whether to write to the Trainer's loggers.

    Attributes:
        events: the events of the last fit.
        run_dir: where its run log lies; None where none was written.
    """

    def __init__(
        self,
        policy: str | ClipPolicy = "spike",
        on_nonfinite: Literal["skip", "raise", "stop", "ignore"] = "skip",
        on_conflict: Literal["both", "defer", "raise"] = "both",
        max_successive_skips: int | None = 25,
        dirpath: str | Path | None = None,
        on_event: Callable[[Event], None] | None = None,
        log: bool = True,
    ) -> None:
        self._prototype = make_policy(policy)
        _require_one_of("on_nonfinite", on_nonfinite, ("skip", "raise", "stop", "ignore"))
        _require_one_of("on_conflict", on_conflict, ("both", "defer", "raise"))
        if max_successive_skips is not None and max_successive_skips < 1:
            raise ValueError(
                f"`max_successive_skips` must be ≥ 1; found {max_successive_skips}. Use None for no bound, or "
                '`on_nonfinite="stop"` to stop at the first.'
            )
        self.on_nonfinite = on_nonfinite
        self.on_conflict = on_conflict
        self.max_successive_skips = max_successive_skips
        self.dirpath = dirpath
        self.on_event = on_event
        self.events: list[Event] = []
        self.run_dir: Path | None = None
        self._logging = log  # Lightning overwrites a callback's attribute `log`
        self._states: dict[int, ClipState] = {}
        self._restored: list[dict[str, Any]] | None = None
        self._run_id: str | None = None
        self._run_log: RunLogWriter | None = None
        self._acting = True
        self._deferring = False
        self._warned: set[str] = set()
        self._batch_idx: int | None = None
        self._pending: dict[str, float] = {}
        self._pending_step = 0

    @property
    def state_key(self) -> str:
        """Tells the states of two instances with different arguments apart."""
        return self._generate_state_key(
            policy=describe(self._prototype), on_nonfinite=self.on_nonfinite, on_conflict=self.on_conflict
        )

    # -- the fit ---------------------------------------------------------------------------------------------------

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look for others that clip."""
        self._acting, self._deferring = True, False
        self._warned = set()
        reason = unsupported_strategy(trainer)
        if reason is not None:
            self._acting = False
            rank_zero_warn(f"AdaptiveClip does nothing in this fit: {reason}.")
            return
        other = other_clipping(trainer, pl_module)
        if other is None:
            return
        remedy = 'Remove one of them, or choose with AdaptiveClip(on_conflict="both" | "defer" | "raise").'
        if self.on_conflict == "raise":
            raise MisconfigurationException(f"AdaptiveClip and {other} both clip the gradients. {remedy}")
        self._deferring = self.on_conflict == "defer"
        what = f"leaves clipping to {other}" if self._deferring else f"clips first, then {other} does"
        rank_zero_warn(f"AdaptiveClip {what}. {remedy}")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start afresh, or from the checkpoint; open the run log."""
        close_run_log(trainer, owner=self)
        restored, self._restored = self._restored, None
        if restored is None:
            self._run_id = None
        self.events, self._pending, self._batch_idx = [], {}, None
        self._states = {}
        for index in range(len(trainer.optimizers)):
            state = self._state_of(index)
            if restored is not None and index < len(restored):
                state.load_state_dict(restored[index])
        self._run_log = open_run_log(trainer, self.dirpath, owner=self, run_id=self._run_id)
        self._run_id = run_id_of(trainer, self.dirpath)
        self.run_dir = None if self._run_log is None else self._run_log.folder

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Remember the batch for events."""
        self._batch_idx = batch_idx

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Measure, decide, act."""
        if not self._acting:
            return
        try:
            with torch.no_grad():
                self._step(trainer, optimizer)
        except NonFiniteGradientError:
            raise
        except Exception as error:
            self._acting = False
            self._warn_once(
                "broken", f"AdaptiveClip failed and is off for this fit; training goes on unclipped: {error!r}"
            )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write to the loggers what the batch's steps left."""
        pending, self._pending = self._pending, {}
        if pending:
            for logger in trainer.loggers:
                logger.log_metrics(pending, step=self._pending_step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the run log."""
        self._close(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Close the run log."""
        self._close(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Close the run log, if an earlier callback's exception has kept us from it."""
        self._close(trainer)

    # -- one step --------------------------------------------------------------------------------------------------

    def _step(self, trainer: Trainer, optimizer: Optimizer) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if not parameters:  # training_step returned None
            return
        index = _index_of(optimizer, trainer)
        state = self._state_of(index)
        scaler = active_scaler(trainer)
        if scaler is not None:
            unscale_once(scaler, optimizer)
        gradients: list[Tensor] = [p.grad for p in parameters]
        norm, parameter_norm = _norms(gradients, parameters if _wants_parameter_norm(state.policy) else [])
        if not math.isfinite(norm):
            self._not_finite(trainer, optimizer, index, norm, parameters, scaler)
            return
        decision = state.policy.decide(norm, parameter_norm=parameter_norm) if norm > 0.0 else Decision(None, 1.0)
        if self._deferring:
            decision = Decision(decision.threshold, 1.0)
        if decision.coefficient != 1.0:
            scale_(gradients, decision.coefficient)
        if state.count(decision) and state.episodes <= _MOST_CLIP_EVENTS:
            self._emit(trainer, self._clip_event(trainer, norm, decision, state, index))
        self._record(trainer, index, norm, decision, skipped=False)

    def _not_finite(
        self, trainer: Trainer, optimizer: Optimizer, index: int, norm: float, parameters: list[Tensor], scaler: Any
    ) -> None:
        state = self._state_of(index)
        untouched = Decision(None, 1.0)
        if scaler is not None and scaler_will_skip(scaler, optimizer):
            scale = float(scaler.get_scale())
            self._emit(
                trainer, self._event(trainer, EventKind.AMP_OVERFLOW, value=scale, action="skipped by the scaler")
            )
            self._record(trainer, index, norm, untouched, skipped=True)
            return
        if self.on_nonfinite == "raise":
            raise NonFiniteGradientError(
                f"The gradient norm is {norm} at optimizer step {trainer.global_step} (epoch {trainer.current_epoch}, "
                f'batch {self._batch_idx}). Use AdaptiveClip(on_nonfinite="skip") to pass over such steps, or '
                "GradWatch() to see where it begins."
            )
        if self.on_nonfinite == "ignore":
            state.count(untouched)
            self._record(trainer, index, norm, untouched, skipped=False)
            return
        for parameter in parameters:
            parameter.grad = None  # zeros would still move weights by momentum and weight decay
        state.count_skip()
        alarm = state.successive_skips == self.max_successive_skips
        if alarm or self.on_nonfinite == "stop":
            trainer.should_stop = True
        detail = f"It is the {state.successive_skips}th in succession: training is stopped." if alarm else ""
        self._emit(
            trainer,
            self._event(
                trainer,
                EventKind.STEP_SKIPPED,
                value=norm,
                action="stopped" if trainer.should_stop else "skipped",
                detail=detail + _which(index, trainer),
                **({"severity": Severity.CRITICAL} if alarm else {}),
            ),
        )
        if alarm:
            self._warn_once(
                "alarm",
                f"AdaptiveClip skipped {state.successive_skips} steps in succession, since their gradients were not "
                "finite; training is stopped. Look at the events for where it began, or raise `max_successive_skips`.",
            )
        self._record(trainer, index, norm, untouched, skipped=True)

    def _record(self, trainer: Trainer, index: int, norm: float, decision: Decision, *, skipped: bool) -> None:
        clipped_norm = norm * decision.coefficient
        state = self._state_of(index)
        if self._run_log is not None:
            self._run_log.step(
                StepRecord(
                    step=trainer.global_step,
                    optimizer=index,
                    grad_norm=norm,
                    clip_threshold=decision.threshold,
                    clip_coefficient=decision.coefficient,
                    clipped_norm=clipped_norm,
                    skipped=skipped,
                )
            )
        if not (self._logging and trainer.loggers and trainer._logger_connector.should_update_logs):  # pyright: ignore[reportPrivateUsage]
            return
        prefix = f"gradwatch/{index}/" if len(trainer.optimizers) > 1 else "gradwatch/"
        values = {
            "grad_norm": norm,
            "clip_threshold": decision.threshold,
            "clip_coefficient": decision.coefficient,
            "clipped_norm": clipped_norm,
            "clip_rate": state.clip_rate,
            "skipped_steps": float(state.skipped),
        }
        self._pending.update({prefix + name: value for name, value in values.items() if value is not None})
        self._pending_step = logged_step(trainer)

    # -- events ----------------------------------------------------------------------------------------------------

    def _clip_event(self, trainer: Trainer, norm: float, decision: Decision, state: ClipState, index: int) -> Event:
        target = norm * decision.coefficient
        details: list[str] = []
        if decision.threshold is not None and not math.isclose(decision.threshold, target, rel_tol=1e-3):
            details.append(f"An ordinary step stays under {decision.threshold:.4g}.")
        if state.episodes == _MOST_CLIP_EVENTS:
            details.append("Further ones are counted in gradwatch/clip_rate only.")
        return self._event(
            trainer,
            EventKind.GRADIENT_CLIPPED,
            value=norm,
            threshold=target,
            action="clipped",
            detail=" ".join(details) + _which(index, trainer),
        )

    def _event(self, trainer: Trainer, kind: EventKind, **fields: Any) -> Event:
        return Event(
            kind,
            step=trainer.global_step,
            epoch=trainer.current_epoch,
            batch_idx=self._batch_idx,
            rank=trainer.global_rank,
            **fields,
        )

    def _emit(self, trainer: Trainer, event: Event) -> None:
        self.events.append(event)
        if self._run_log is not None:
            self._run_log.event(event)
        if self.on_event is None:
            return
        try:
            self.on_event(event)
        except Exception as error:
            self._warn_once("on_event", f"`on_event` raised {error!r}; the event is kept, and training goes on.")

    def _warn_once(self, key: str, message: str) -> None:
        if key not in self._warned:
            self._warned.add(key)
            rank_zero_warn(message)

    # -- state -----------------------------------------------------------------------------------------------------

    def _state_of(self, index: int) -> ClipState:
        if index not in self._states:
            self._states[index] = ClipState(copy_of(self._prototype))
        return self._states[index]

    def state_dict(self) -> dict[str, Any]:
        """Each optimizer's policy and counts, and the run log's identity; loads under ``weights_only=True``."""
        states = [self._states[index].state_dict() for index in sorted(self._states)]
        return {"optimizers": states, "run_id": self._run_id}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state for the fit that follows."""
        self._restored, self._run_id = state_dict["optimizers"], state_dict["run_id"]

    def __getstate__(self) -> dict[str, Any]:
        # Lightning binds `log` to the module, which would come along; a copy writes to no run log.
        return {**{key: value for key, value in self.__dict__.items() if key != "log"}, "_run_log": None}

    def _close(self, trainer: Trainer) -> None:
        self._run_log = None
        close_run_log(trainer, owner=self)


def _require_one_of(argument: str, found: object, allowed: tuple[str, ...]) -> None:
    if found not in allowed:
        names = ", ".join(f'"{name}"' for name in allowed)
        raise ValueError(f'`{argument}` must be one of {names}; found {found!r}. Leave it out for "{allowed[0]}".')


def _wants_parameter_norm(policy: ClipPolicy) -> bool:
    return bool(getattr(policy, "wants_parameter_norm", False))


def _norms(gradients: list[Tensor], parameters: list[Tensor]) -> tuple[float, float | None]:
    """Both norms in one host sync; more only where float32 overflowed or an entry is not finite."""
    norm = global_norm(gradients)
    if not parameters:
        value, size = norm.item(), None
    else:
        value, size = torch.stack([norm, global_norm(parameters).to(norm)]).tolist()
    return (true_norm(gradients) if math.isinf(value) else float(value)), size


def _index_of(optimizer: Optimizer, trainer: Trainer) -> int:
    """Which of the Trainer's optimizers; one that it does not know counts after them."""
    return next((i for i, known in enumerate(trainer.optimizers) if known is optimizer), len(trainer.optimizers))


def _which(index: int, trainer: Trainer) -> str:
    return f" Optimizer {index}." if len(trainer.optimizers) > 1 else ""
