"""Compares, on sampled steps, the gradient after the backward pass with that which the optimizer
gets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lightning_gradwatch.audit import ClipEvidence, Clippers
from lightning_gradwatch.audit.words import NO_BACKWARD
from lightning_gradwatch.step_hooks import keep_step_hooks
from lightning_gradwatch.trainer.clip_audit.backward_end import at_its_end
from lightning_gradwatch.trainer.clip_audit.gradients import Gradients
from lightning_gradwatch.trainer.clip_audit.one_optimizer import AuditedOptimizer, touched
from lightning_gradwatch.trainer.clip_audit.tally import Tally
from lightning_gradwatch.trainer.clip_audit.who import callbacks_of, who_clips
from lightning_gradwatch.trainer.compat import LightningModule, Trainer, accumulates_further, was_stopped
from lightning_gradwatch.trainer.conflict import unsupported_strategy
from lightning_gradwatch.trainer.mixed_precision import active_scaler, is_unscaled, loss_scale

Guard = Callable[[], AbstractContextManager[None]]


class ClipAudit:
    """Of one fit. Ordinary steps cost no operation on a tensor: of each optimizer the first step is
    looked at, and then every ``every``-th. Sharded gradients are reduced by collectives, which all
    ranks reach, since all count the same steps.

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
        self._optimizers = [AuditedOptimizer(index, one, every) for index, one in able]
        self._handles: list[RemovableHandle] = []
        self._loss_handle: RemovableHandle | None = None
        self._backwards = 0
        self._suspicions: list[tuple[AuditedOptimizer, AuditedOptimizer, int, Gradients]] = []
        self._others_first = _others_come_first(trainer)
        self._tally = Tally(trainer, module)
        self._clippers: list[Clippers] | None = None

    def listen(self) -> None:
        """Hear of the optimizers' steps."""
        keep_step_hooks()
        for one in self._optimizers:
            self._handles += [
                one.optimizer.register_step_pre_hook(partial(self._before_step, one)),
                one.optimizer.register_step_post_hook(partial(self._after_step, one)),
            ]

    def begin_batch(self) -> None:
        """Another batch begins."""
        for one in self._optimizers:
            one.begin_batch()

    def before_zero_grad(self, optimizer: Optimizer) -> None:
        """What the step before left is thrown away."""
        for one in self._optimizers:
            if one.optimizer is optimizer:
                one.before_zero_grad()

    def before_backward(self, loss: Tensor) -> None:
        """On a sampled step, have the end of this backward pass heard."""
        automatic = self._module.automatic_optimization
        if any(one.due for one in self._optimizers) and not (automatic and accumulates_further(self._trainer)):
            scale = loss_scale(self._trainer)
            self._loss_handle = at_its_end(loss, partial(self._arrived, scale))

    def before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Where a gradient scaler is at work, it has been asked to take its factor out by now."""
        if self._clippers is None:
            self._clippers = [who_clips(self._trainer, self._module, one.optimizer) for one in self._optimizers]
            self._tally.begin()
        scaler = active_scaler(self._trainer)
        if scaler is None or self._others_first:
            return
        for one in self._optimizers:
            if one.optimizer is optimizer and one.backward is not None and is_unscaled(scaler, optimizer):
                one.unscaled()

    def end_batch(self) -> None:
        """Of the gradients that were written to and not used, nothing more will be made."""
        for one, _, _, gradients in self._suspicions:
            if any(norm > 0 for norm in gradients.norms().values()):  # not only set to zero
                one.elsewhere.add(one.steps - 1)
        self._suspicions.clear()
        for one in self._optimizers:
            one.read(wait=False)

    def count(self, norms: Iterable[float]) -> None:
        """The gradient norms of all parameters, in each step, whether or not it is looked at."""
        for norm in norms:
            self._tally.count(norm)

    def findings(self) -> list[ClipEvidence]:
        """What is known of each optimizer."""
        for one in self._optimizers:
            one.read(wait=True)
        clippers = self._clippers or [Clippers() for _ in self._optimizers]
        acted = {one.index for one in self._optimizers if any(sample.touched for sample in one.samples)}
        return [
            ClipEvidence(
                optimizer=one.index,
                clippers=who,
                samples=one.samples,
                steps=one.steps,
                first_step=self._first_step,
                counted=self._tally.of(one, who),
                stale=one.stale,
                elsewhere=sum(sample.step in one.elsewhere for sample in one.samples),
                unseen=NO_BACKWARD if one.steps and not self._backwards else "",
                for_others=bool(acted - {one.index}),
            )
            for one, who in zip(self._optimizers, clippers, strict=True)
        ]

    def close(self) -> None:
        """Take the hooks off. Calling it again does nothing."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._suspicions.clear()
        self._unhook_loss()

    def _arrived(self, scale: Tensor | float) -> None:
        """A backward pass of a sampled step is over."""
        self._unhook_loss()
        with self._guard():
            self._backwards += 1
            for one in self._optimizers:
                one.arrived(scale)

    def _unhook_loss(self) -> None:
        handle, self._loss_handle = self._loss_handle, None
        if handle is not None:
            handle.remove()

    def _before_step(self, one: AuditedOptimizer, _: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Without a closure the gradients are at hand; with one, when it has run."""
        if was_stopped(self._trainer):
            self.close()
            return None
        self._suspicions = [held for held in self._suspicions if held[1] is not one or held[2] != self._backwards]
        if not one.due:
            return None
        closure = kwargs.get("closure") or (args[1] if len(args) > 1 else None)
        if closure is None:
            self._gets(one)
            return None
        wrapped = partial(self._after_closure, one, closure)
        return ((args[0], wrapped, *args[2:]), kwargs) if len(args) > 1 else (args, {**kwargs, "closure": wrapped})

    def _after_closure(self, one: AuditedOptimizer, closure: Callable[[], Any]) -> Any:
        """Of a line search only the first evaluation is looked at: the others are probes."""
        result = closure()
        self._gets(one)
        return result

    def _gets(self, one: AuditedOptimizer) -> None:
        """The optimizer is about to use its gradients."""
        with self._guard():
            if one.is_untouched():
                rest = [other for other in self._optimizers if other is not one]
                for other in touched(rest, self._backwards)[:1]:
                    self._suspicions.append((one, other, self._backwards, Gradients(other.parameters)))
            scaler = active_scaler(self._trainer)
            one.gets(inside=scaler is not None and not is_unscaled(scaler, one.optimizer))

    def _after_step(self, one: AuditedOptimizer, *_: Any) -> None:
        one.steps += 1
        one.at_backward = self._backwards


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
