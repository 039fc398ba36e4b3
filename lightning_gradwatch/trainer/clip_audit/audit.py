"""Compares, on sampled steps, the gradient after the backward pass with that which the optimizer
gets.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lightning_gradwatch.audit import ClipEvidence, Clippers
from lightning_gradwatch.audit.words import NO_BACKWARD
from lightning_gradwatch.clip.between.looks import Guard, Looks
from lightning_gradwatch.clip.between.one_optimizer import AuditedOptimizer
from lightning_gradwatch.step_hooks import keep_step_hooks
from lightning_gradwatch.trainer.clip_audit.backward_end import at_its_end
from lightning_gradwatch.trainer.clip_audit.tally import Tally
from lightning_gradwatch.trainer.clip_audit.who import callbacks_of, who_clips
from lightning_gradwatch.trainer.compat import LightningModule, Trainer, accumulates_further, was_stopped
from lightning_gradwatch.trainer.conflict import unsupported_strategy
from lightning_gradwatch.trainer.mixed_precision import active_scaler, is_unscaled, loss_scale


class ClipAudit:
    """Of one fit. Ordinary steps cost no operation on a tensor: of each optimizer the first step is
    looked at, and then every ``every``-th.

    Args:
        trainer, module: whose fit it is.
        every: optimizer steps from one that is looked at to the next.
        guard: in which an error of ours does no harm.
    """

    def __init__(self, trainer: Trainer, module: LightningModule, every: int, guard: Guard) -> None:
        self._trainer, self._module, self._guard = trainer, module, guard
        self._first_step = trainer.global_step
        known = [] if unsupported_strategy(trainer) else trainer.optimizers
        able = [(i, one) for i, one in enumerate(known) if isinstance(one, Optimizer)]  # pyright: ignore[reportUnnecessaryIsInstance]
        audited = [AuditedOptimizer(index, one, every) for index, one in able]
        self._looks = Looks(audited, guard, self._is_scaled, partial(was_stopped, trainer))
        self._loss_handle: RemovableHandle | None = None
        self._others_first = _others_come_first(trainer)
        self._tally = Tally(trainer, module)
        self._clippers: list[Clippers] | None = None

    def listen(self, run: str | None) -> None:
        """Hear of the optimizers' steps.

        Args:
            run: that of the run log; None without one.
        """
        keep_step_hooks(one.optimizer for one in self._looks.optimizers)
        self._looks.listen(run)

    def begin_batch(self) -> None:
        """Another batch begins."""
        for one in self._looks.optimizers:
            one.begin_batch()

    def before_zero_grad(self, optimizer: Optimizer) -> None:
        """What the step before left is thrown away."""
        for one in self._looks.optimizers:
            if one.optimizer is optimizer:
                one.before_zero_grad()

    def before_backward(self, loss: Tensor) -> None:
        """On a sampled step, have the end of this backward pass heard."""
        automatic = self._module.automatic_optimization
        if any(one.due for one in self._looks.optimizers) and not (automatic and accumulates_further(self._trainer)):
            scale = loss_scale(self._trainer)
            self._loss_handle = at_its_end(loss, partial(self._arrived, scale))

    def before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Where a gradient scaler is at work, it has been asked to take its factor out by now."""
        if self._clippers is None:
            self._clippers = [who_clips(self._trainer, self._module, one.optimizer) for one in self._looks.optimizers]
            self._tally.begin()
        scaler = active_scaler(self._trainer)
        if scaler is None or self._others_first:
            return
        for one in self._looks.optimizers:
            if one.optimizer is optimizer and one.backward is not None and is_unscaled(scaler, optimizer):
                one.unscaled()

    def end_batch(self) -> None:
        """Of the gradients that were written to and not used, nothing more will be made."""
        self._looks.end_batch()

    def count(self, norms: Iterable[float]) -> None:
        """The gradient norms of all parameters, in each step, whether or not it is looked at."""
        for norm in norms:
            self._tally.count(norm)

    @property
    def samples(self) -> int:
        """How many steps have been looked at so far."""
        return self._looks.samples

    def findings(self, *, wait: bool = True) -> list[ClipEvidence]:
        """What is known of each optimizer.

        Args:
            wait: for what is still on its way from the device.
        """
        clippers = self._clippers or [Clippers() for _ in self._looks.optimizers]
        return self._looks.findings(
            clippers, self._tally.of, wait=wait, first_step=self._first_step, unseen=NO_BACKWARD
        )

    def close(self) -> None:
        """Take the hooks off. Calling it again does nothing."""
        self._looks.close()
        self._unhook_loss()

    def _arrived(self, scale: Tensor | float) -> None:
        """A backward pass of a sampled step is over."""
        self._unhook_loss()
        with self._guard():
            self._looks.arrived(scale)

    def _unhook_loss(self) -> None:
        handle, self._loss_handle = self._loss_handle, None
        if handle is not None:
            handle.remove()

    def _is_scaled(self, optimizer: Optimizer) -> bool:
        scaler = active_scaler(self._trainer)
        return scaler is not None and not is_unscaled(scaler, optimizer)


def _others_come_first(trainer: Trainer) -> bool:
    """Whether another callback is told ``on_before_optimizer_step`` before the one that watches,
    and may have clipped by then what is unscaled.
    """
    hook = "on_before_optimizer_step"
    for one in callbacks_of(trainer):
        if hasattr(type(one), "fit_watch"):
            return False
        module = getattr(getattr(one, hook, None), "__module__", "")
        if not module.endswith("pytorch.callbacks.callback") and not module.startswith(
            "pytorch_lightning.callbacks.callback"
        ):
            return True
    return True
