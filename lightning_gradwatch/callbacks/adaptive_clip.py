"""The callback that acts: it clips by an adaptive policy and skips a step
whose gradients are not finite.
"""

# Over 300 lines: the docstring of what users add says every argument and logged key.
from __future__ import annotations

from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_gradwatch import arguments
from lightning_gradwatch.callbacks.anomaly.trainer_step import TrainerStep
from lightning_gradwatch.callbacks.clip_facts import ClipFacts
from lightning_gradwatch.callbacks.output.clip_recorder import ClipRecorder
from lightning_gradwatch.callbacks.output.run_folder import identity
from lightning_gradwatch.clip import ClipPolicy, TensorPolicy
from lightning_gradwatch.clip.step.groups import PolicyGroups
from lightning_gradwatch.clip.step.nonfinite_step import NonFiniteGradientError
from lightning_gradwatch.clip.step.state import OptimizerState
from lightning_gradwatch.events import Event
from lightning_gradwatch.findings.clip_events import ClipEvents, closing_line
from lightning_gradwatch.findings.clip_nonfinite import Action, NonFinite
from lightning_gradwatch.findings.clip_step import ClipStep
from lightning_gradwatch.findings.harmless import unclipped_at_worst
from lightning_gradwatch.runlog.format import check_state
from lightning_gradwatch.trainer.compat import (
    Callback,
    LightningModule,
    Trainer,
    rank_zero_info,
    rank_zero_warn,
    without_module,
)
from lightning_gradwatch.trainer.conflict import defers, unsupported_strategy
from lightning_gradwatch.trainer.growth_reading import GrowthReading
from lightning_gradwatch.trainer.line_search import LineSearch
from lightning_gradwatch.trainer.loss import as_returned, common_loss
from lightning_gradwatch.trainer.mixed_precision import active_scaler, scale_if_skipping, unscale_once
from lightning_gradwatch.trainer.optimizer_steps import index_of
from lightning_gradwatch.trainer.through_time import HeldThroughTime

__all__ = ["AdaptiveClip", "NonFiniteGradientError"]

_MOST_PASSES = 64
"""Backward passes whose losses are kept for one step: where none is taken, they are not to pile up
without end.
"""


class AdaptiveClip(ClipFacts, Callback):
    """Measure the gradient norm of each optimizer step, clip by an adaptive
    policy, skip what is not finite.

    ``trainer = L.Trainer(callbacks=[AdaptiveClip()])`` leaves a healthy run alone and holds one
    that explodes. Each optimizer has its own copy of the policy, and only its own parameters count.
    The norm is the L2 norm before clipping, of unscaled gradients under mixed precision, with at
    most one host sync a step.

    Logged, at the Trainer's ``log_every_n_steps``, under the step that LearningRateMonitor uses
    too. With several optimizers the index follows the prefix: ``gradwatch/1/grad_norm``.

    ==============================  ===========================================================  ========================
    key                             meaning                                                      unit
    ==============================  ===========================================================  ========================
    ``gradwatch/grad_norm``         norm before clipping                                         the loss's per parameter
    ``gradwatch/clip_threshold``    bound that the norm was held against; left out while none    as ``grad_norm``
    ``gradwatch/clip_coefficient``  what the gradients were multiplied by; 1 is untouched        ratio
    ``gradwatch/clipped_norm``      norm after clipping                                          as ``grad_norm``
    ``gradwatch/clipped_share``     share of units or tensors that were clipped, by policies     ratio
                                    that judge each; then ``clip_coefficient`` is norm after
                                    clipping by norm before
    ``gradwatch/clip_rate``         share of all steps so far that were clipped                  ratio
    ``gradwatch/skipped_steps``     steps skipped so far; the gradient scaler's own not counted  steps
    ``gradwatch/through_time``      share of the batch's hidden states whose gradient            ratio
                                    ``clip_through_time`` bounded
    ==============================  ===========================================================  ========================

    They are those of the parameters under ``policy``; of all that are clipped, where every one has
    a policy of its own. ``policies={"encoder.*": …}`` adds all but the last two again as
    ``gradwatch/encoder/grad_norm`` and so on, with what is not a letter, digit, dash or dot made
    ``_``; ``exclude`` adds ``gradwatch/excluded/grad_norm``. An inf or NaN anywhere concerns the
    whole step.

    All are written in ``on_train_batch_end``, from what ``on_before_optimizer_step``
    saw. The run log holds every step.

    Events: ``GRADIENT_CLIPPED`` at the first step of each episode of successive clipped steps, for
    a policy's first 100 episodes, and once as a warning where ``Spike`` clips nearly every step;
    ``STEP_SKIPPED`` at each skip; ``AMP_OVERFLOW`` where the gradient scaler skips.

    A skipped step leaves the weights and the optimizer's state as they were, weight decay and
    momentum included. The Trainer's ``global_step`` and the learning-rate schedule go on all the
    same. Of an LBFGS with ``line_search_fn`` only a step's first gradients are judged, clipped and
    logged: those of its probes tell the search how far to go.

    Args:
        policy: ``"spike"``, ``"norm"``, ``"value"``, ``"autoclip"``, ``"zclip"``, ``"agc"``,
            ``"adagc"``, ``"aggc"``, or a :class:`ClipPolicy` or :class:`TensorPolicy`.
        exclude: patterns of parameter names that are not clipped and don't count in
            the norm, such as ``["head.*"]``.
        policies: patterns of those with a policy of their own, such as ``{"encoder.*": "norm"}``.
            The first that matches counts, after ``exclude``. A pattern may also name a parameter
            group: ``group:0``, ``group:<its name>``.
        on_nonfinite: what to do when the norm is inf or NaN. ``skip`` the step; ``raise`` an error;
            ``stop`` skips and ends training; ``ignore`` leaves the gradients. ``shrink_recurrent``,
            as in Pascanu's own code, also at a norm over 1e10: the gradient of each ``weight_hh``
            becomes 0.02 of it, all others zero. Under a gradient scaler the scaler skips.
        on_conflict: when the Trainer's ``gradient_clip_val`` or the module's
            ``configure_gradient_clipping`` clips too: ``both`` act, said once; ``defer`` measures,
            logs and skips but leaves clipping to the other; ``raise`` an error before training.
        max_successive_skips: after so many skips (or shrinks) in a row training is stopped, with a
            critical event; None for never.
        clip_through_time: bound of each hidden state's gradient while it flows back, over all
            parameters' clipping: the L2 norm of ∂L/∂h_t (and of ∂L/∂c_t) of each sequence, in the
            unit of GradWatch's ``total_max``. After Graves (2013), who clamps entries. For
            ``nn.RNN``, ``nn.LSTM``, ``nn.GRU``, their cells and taps.
        omega: weight of the regulariser Ω of Pascanu et al. (2013, §3.3) against vanishing, added
            to the gradient of each ``nn.RNN``'s recurrent weights; the authors use 2.
        dirpath: the run log's folder; None is the one that another callback of this package names,
            else ``gradwatch`` in the Trainer's log folder.
        on_event: called with each event. An exception in it is said once and harms nothing.
        log: whether to write to the Trainer's loggers.
        progress_bar: show the last step's clip coefficient in the progress bar; 1 is untouched.
        figures: at the end of each epoch, hand a figure of norms and thresholds to the loggers that
            take one. Needs the extra ``report``.
    """  # noqa: W505  # a table keeps its width

    def __init__(
        self,
        policy: str | ClipPolicy | TensorPolicy = "spike",
        exclude: list[str] | None = None,
        policies: dict[str, str | ClipPolicy | TensorPolicy] | None = None,
        on_nonfinite: Literal["skip", "raise", "stop", "shrink_recurrent", "ignore"] = "skip",
        on_conflict: Literal["both", "defer", "raise"] = "both",
        max_successive_skips: int | None = 25,
        clip_through_time: float | None = None,
        omega: float | None = None,
        dirpath: str | Path | None = None,
        on_event: Callable[[Event], None] | None = None,
        log: bool = True,
        progress_bar: bool = False,
        figures: bool = False,
    ) -> None:
        self._groups = PolicyGroups(policy, exclude, policies)
        arguments.one_of("on_conflict", on_conflict, ("both", "defer", "raise"), 'Leave it out for "both".')
        nonfinite = NonFinite.checked(on_nonfinite, max_successive_skips, can_stop=True)
        self.on_nonfinite: Action = on_nonfinite
        self.max_successive_skips = nonfinite.max_successive
        self.on_conflict, self.dirpath = on_conflict, dirpath
        self._recorder = ClipRecorder(on_event, log, progress_bar, figures)
        self._clip_events = ClipEvents()
        self._through_time, self._growth = HeldThroughTime(clip_through_time, omega), GrowthReading()
        self._states: dict[int, OptimizerState] = {}
        self._restored: list[dict[str, Any]] | None = None
        self._losses: deque[Tensor] = deque(maxlen=_MOST_PASSES)  # of the passes since the last step
        self._stepped = False  # since the last pass
        self._search = LineSearch()
        self._acting = True
        self._deferring = False

    @property
    def events(self) -> list[Event]:
        """The events of the present fit, or of the last one."""
        return self._recorder.sink.events

    @property
    def run_dir(self) -> Path | None:
        """Where the run log lies; None where none was written."""
        return self._recorder.run_dir

    @property
    def state_key(self) -> str:
        """Tells the states of two instances with different arguments apart."""
        return self._generate_state_key(
            **self._groups.describe(), on_nonfinite=self.on_nonfinite, on_conflict=self.on_conflict
        )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hold the patterns against the module's names; look for others that clip."""
        self._acting, self._deferring = True, False
        reason = unsupported_strategy(trainer)
        if reason is not None:
            self._acting = False
            rank_zero_warn(f"AdaptiveClip does nothing in this fit: {reason}.")
            return
        self._groups.begin(pl_module, trainer.optimizers)
        self._nonfinite.check(pl_module)
        self._deferring = defers(trainer, pl_module, self.on_conflict)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start afresh, or from the checkpoint; open the run log."""
        self._close(trainer)
        restored, self._restored = self._restored, None
        if restored is None:
            self._recorder.run_id = None
        self._search, self._clip_events = LineSearch(), ClipEvents()
        saved = dict(enumerate(restored or ()))
        self._states = {index: self._groups.new_state(saved.get(index)) for index in range(len(trainer.optimizers))}
        self._through_time.begin(trainer, pl_module)
        if self._acting:
            policies = [policy for own in self.policies_in_use() for policy in own]
            self._growth.begin(trainer, pl_module, policies)
        self._recorder.open(trainer, self.dirpath, owner=self)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Remember the batch for events."""
        self._recorder.batch_idx = batch_idx
        self._through_time.begin_batch()

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Keep the loss, without the scale and the division for accumulation, to be read together
        with the norm; note the scale for what bounds its gradient through time.
        """
        self._through_time.before_backward(trainer, pl_module)
        self._growth.before_backward(trainer)
        self._begin_pass()
        if self._acting and loss.numel() == 1:
            self._losses.append(as_returned(loss, trainer, pl_module))

    def _begin_pass(self) -> None:
        """Forget the losses of what was stepped with: all optimizers that step before the next
        backward pass have them in common.
        """
        if self._stepped:
            self._losses.clear()
            self._stepped = False

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Measure, decide, act."""
        if not self._acting or self._search.is_probe(trainer, optimizer):
            return
        with torch.no_grad(), unclipped_at_worst("AdaptiveClip", self._switch_off):
            self._step(trainer, pl_module, optimizer)

    def _switch_off(self, why: str) -> None:
        self._acting = False
        self._recorder.warn_once("broken", why)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write to the loggers what the batch's steps left."""
        self._recorder.flush(trainer, self._through_time.share)
        self._through_time.end_batch()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hand the figure to the loggers."""
        self._recorder.draw(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what was done, if anything was; take hooks off, close the run log."""
        self._leave(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Say what was done until then; take hooks off, close the run log."""
        self._leave(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Do so where an earlier callback's exception kept us from it."""
        self._close(trainer)

    def _leave(self, trainer: Trainer) -> None:
        said = closing_line("AdaptiveClip", self.clip_counts().values(), self._recorder.run_dir)
        if said is not None:
            rank_zero_info(said)
        self._close(trainer)

    def _close(self, trainer: Trainer) -> None:
        self._through_time.end()
        self._growth.end()
        self._recorder.close(trainer, owner=self)

    def state_dict(self) -> dict[str, Any]:
        """Each optimizer's policy and counts, and the run log's identity;
        loads under ``weights_only=True``.
        """
        states = [self._states[index].state_dict() for index in sorted(self._states)]
        return {"optimizers": states, **identity(self._recorder.run_id, self._recorder.run_dir)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state for the fit that follows. One of a newer version is a ValueError: to begin
        without the histories would clip otherwise than the run that is resumed.
        """
        check_state(state_dict, "AdaptiveClip")
        self._restored = state_dict["optimizers"]
        self._recorder.resume(state_dict)

    def __getstate__(self) -> dict[str, Any]:
        return {**without_module(self), "_losses": deque[Tensor](maxlen=_MOST_PASSES)}

    @property
    def _nonfinite(self) -> NonFinite:
        return NonFinite(self.on_nonfinite, self.max_successive_skips)

    def _state_of(self, index: int) -> OptimizerState:
        if index not in self._states:
            self._states[index] = self._groups.new_state()
        return self._states[index]

    def _step(self, trainer: Trainer, module: LightningModule, optimizer: Optimizer) -> None:
        if not any(p.grad is not None for group in optimizer.param_groups for p in group["params"]):
            return  # training_step returned None; the scaler would find nothing to unscale either
        scaler = active_scaler(trainer)
        if scaler is not None:
            unscale_once(scaler, optimizer)
        index, record = index_of(optimizer, trainer), TrainerStep(self._recorder, trainer)
        state = self._state_of(index)
        groups = self._groups.of(module, optimizer, state)
        if not groups:
            return
        self._stepped = True
        step = ClipStep(
            self._clip_events,
            self._nonfinite,
            skipped_by_scaler=lambda: scale_if_skipping(scaler, optimizer),
            deferring=self._deferring,
            agreed=lambda losses: common_loss(trainer, losses),
            direct=self._growth.norms,
            loss_scale=self._growth.scale,
        )
        step.take(record, optimizer, index, groups, state, list(self._losses))
