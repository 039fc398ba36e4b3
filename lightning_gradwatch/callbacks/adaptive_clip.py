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
from lightning_gradwatch.callbacks._clip_report import ClipReport
from lightning_gradwatch.callbacks._clip_state import ClipState
from lightning_gradwatch.callbacks._compat import (
    Callback,
    LightningModule,
    MisconfigurationException,
    Trainer,
    rank_zero_warn,
)
from lightning_gradwatch.callbacks._conflict import other_clipping, unsupported_strategy
from lightning_gradwatch.clip import ClipPolicy, Decision, make_policy
from lightning_gradwatch.clip.norms import norms_of, scale_
from lightning_gradwatch.clip.policy import copy_of, describe
from lightning_gradwatch.events import Event, EventKind, Severity

_MOST_CLIP_EVENTS = 100  # an optimizer's; a policy that clips by habit would flood the log
_UNTOUCHED = Decision(None, 1.0)


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
        self._report = ClipReport(on_event, log)
        self._states: dict[int, ClipState] = {}
        self._restored: list[dict[str, Any]] | None = None
        self._acting = True
        self._deferring = False

    @property
    def events(self) -> list[Event]:
        """The events of the present fit, or of the last one."""
        return self._report.events

    @property
    def run_dir(self) -> Path | None:
        """Where the run log lies; None where none was written."""
        return self._report.run_dir

    @property
    def state_key(self) -> str:
        """Tells the states of two instances with different arguments apart."""
        return self._generate_state_key(
            policy=describe(self._prototype), on_nonfinite=self.on_nonfinite, on_conflict=self.on_conflict
        )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look for others that clip."""
        self._acting, self._deferring = True, False
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
        self._report.close(trainer, owner=self)
        restored, self._restored = self._restored, None
        if restored is None:
            self._report.run_id = None
        self._states = {}
        for index in range(len(trainer.optimizers)):
            state = self._state_of(index)
            if restored is not None and index < len(restored):
                state.load_state_dict(restored[index])
        self._report.open(trainer, self.dirpath, owner=self)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Remember the batch for events."""
        self._report.batch_idx = batch_idx

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
            self._report.warn_once(
                "broken", f"AdaptiveClip failed and is off for this fit; training goes on unclipped: {error!r}"
            )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write to the loggers what the batch's steps left."""
        self._report.flush(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the run log."""
        self._report.close(trainer, owner=self)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Close the run log."""
        self._report.close(trainer, owner=self)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Close the run log where an earlier callback's exception kept us from it."""
        self._report.close(trainer, owner=self)

    def state_dict(self) -> dict[str, Any]:
        """Each optimizer's policy and counts, and the run log's identity; loads under ``weights_only=True``."""
        states = [self._states[index].state_dict() for index in sorted(self._states)]
        return {"optimizers": states, "run_id": self._report.run_id}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state for the fit that follows."""
        self._restored, self._report.run_id = state_dict["optimizers"], state_dict["run_id"]

    def __getstate__(self) -> dict[str, Any]:
        # Lightning binds the module's `log` and `log_dict` to each callback; the module would come along.
        return {key: value for key, value in self.__dict__.items() if key not in ("log", "log_dict")}

    def _state_of(self, index: int) -> ClipState:
        if index not in self._states:
            self._states[index] = ClipState(copy_of(self._prototype))
        return self._states[index]

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
        norm, parameter_norm = norms_of(gradients, parameters if _wants_parameter_norm(state.policy) else [])
        if not math.isfinite(norm):
            if scaler is not None and scaler_will_skip(scaler, optimizer):
                self._note_overflow(trainer, index, norm, float(scaler.get_scale()))
            else:
                self._not_finite(trainer, index, norm, parameters)
            return
        decision = state.policy.decide(norm, parameter_norm=parameter_norm) if norm > 0.0 else _UNTOUCHED
        if self._deferring:
            decision = Decision(decision.threshold, 1.0)
        if decision.coefficient != 1.0:
            scale_(gradients, decision.coefficient)
        if state.count(decision) and state.episodes <= _MOST_CLIP_EVENTS:
            self._say_clipped(trainer, index, norm, decision)
        self._report.step(trainer, index, norm, decision, state)

    def _say_clipped(self, trainer: Trainer, index: int, norm: float, decision: Decision) -> None:
        target = norm * decision.coefficient
        details: list[str] = []
        if decision.threshold is not None and not math.isclose(decision.threshold, target, rel_tol=1e-3):
            details.append(f"An ordinary step stays under {decision.threshold:.4g}.")
        if self._state_of(index).episodes == _MOST_CLIP_EVENTS:
            details.append("Further ones are counted in gradwatch/clip_rate only.")
        self._report.event(
            trainer,
            EventKind.GRADIENT_CLIPPED,
            index,
            value=norm,
            threshold=target,
            action="clipped",
            detail=" ".join(details),
        )

    def _note_overflow(self, trainer: Trainer, index: int, norm: float, scale: float) -> None:
        self._report.event(trainer, EventKind.AMP_OVERFLOW, index, value=scale, action="skipped by the scaler")
        self._report.step(trainer, index, norm, _UNTOUCHED, self._state_of(index), skipped=True)

    def _not_finite(self, trainer: Trainer, index: int, norm: float, parameters: list[Tensor]) -> None:
        state = self._state_of(index)
        if self.on_nonfinite == "raise":
            raise NonFiniteGradientError(
                f"The gradient norm is {norm} at optimizer step {trainer.global_step} (epoch {trainer.current_epoch}, "
                f'batch {self._report.batch_idx}). Use AdaptiveClip(on_nonfinite="skip") to pass over such steps, or '
                "GradWatch() to see where it begins."
            )
        if self.on_nonfinite == "ignore":
            state.count(_UNTOUCHED)
        else:
            for parameter in parameters:
                parameter.grad = None  # zeros would still move weights by momentum and weight decay
            state.count_skip()
            self._say_skipped(trainer, index, norm, state.successive_skips)
        self._report.step(trainer, index, norm, _UNTOUCHED, state, skipped=self.on_nonfinite != "ignore")

    def _say_skipped(self, trainer: Trainer, index: int, norm: float, successive: int) -> None:
        alarm = successive == self.max_successive_skips
        stops = alarm or self.on_nonfinite == "stop"
        if stops:
            trainer.should_stop = True
        if alarm:
            self._report.warn_once(
                "alarm",
                f"AdaptiveClip skipped {successive} steps in succession, since their gradients were not finite; training "
                "is stopped. Look at the events for where it began, or raise `max_successive_skips`.",
            )
        self._report.event(
            trainer,
            EventKind.STEP_SKIPPED,
            index,
            value=norm,
            action="stopped" if stops else "skipped",
            detail=f"So were the {successive - 1} before it: training is stopped." if alarm else "",
            severity=Severity.CRITICAL if alarm else EventKind.STEP_SKIPPED.severity,
        )


def _require_one_of(argument: str, found: object, allowed: tuple[str, ...]) -> None:
    if found not in allowed:
        names = ", ".join(f'"{name}"' for name in allowed)
        raise ValueError(f'`{argument}` must be one of {names}; found {found!r}. Leave it out for "{allowed[0]}".')


def _wants_parameter_norm(policy: ClipPolicy) -> bool:
    return bool(getattr(policy, "wants_parameter_norm", False))


def _index_of(optimizer: Optimizer, trainer: Trainer) -> int:
    """Which of the Trainer's optimizers; one that it does not know counts after them."""
    return next((i for i, known in enumerate(trainer.optimizers) if known is optimizer), len(trainer.optimizers))
