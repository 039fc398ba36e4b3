"""Looks, on sampled steps, at the gradients of each optimizer after the backward pass and when it
gets them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lightning_gradwatch.audit import ClipEvidence, Clippers, Counted
from lightning_gradwatch.audit.words import ELSEWHERE, NO_GRADIENT, NOT_ALL, SCATTERED
from lightning_gradwatch.clip.between.gradients import Gradients
from lightning_gradwatch.clip.between.one_optimizer import AuditedOptimizer, touched
from lightning_gradwatch.clip.between.parts import audit_name
from lightning_gradwatch.step_hooks import once_a_step

Guard = Callable[[], AbstractContextManager[None]]


class Looks:
    """Of one training. Ordinary steps cost no operation on a tensor. Nobody's function is patched.

    Args:
        optimizers: whose steps are heard.
        guard: in which an error of ours does no harm.
        inside: whether a gradient scaler's factor is in the gradients when the optimizer gets them.
        is_over: asked before each step, for where nobody said that the training is over.

    Attributes:
        backwards: how many backward passes have been heard.
    """

    def __init__(
        self,
        optimizers: Sequence[AuditedOptimizer],
        guard: Guard,
        inside: Callable[[Optimizer], bool],
        is_over: Callable[[], bool] = lambda: False,
    ) -> None:
        self.optimizers = list(optimizers)
        self._guard, self._inside, self._is_over = guard, inside, is_over
        self.backwards = 0
        self._name = ""
        self._handles: dict[int, RemovableHandle] = {}
        self._after: list[RemovableHandle] = []
        self._suspicions: list[tuple[AuditedOptimizer, AuditedOptimizer, int, Gradients]] = []

    def listen(self, run: str | None) -> None:
        """Hear of the optimizers' steps.

        Args:
            run: that of the run log, which is the same on every process; None without one.
        """
        self._name = audit_name(run)
        for one in self.optimizers:
            self._hear(one)

    def add(self, one: AuditedOptimizer) -> None:
        """Hear of another one's as well."""
        self.optimizers.append(one)
        self._hear(one)

    def _hear(self, one: AuditedOptimizer) -> None:
        optimizer, one.name = one.optimizer, f"{self._name}/{one.index}"
        self._handles[id(one)] = optimizer.register_step_pre_hook(once_a_step(partial(self._before_step, one)))
        self._after.append(optimizer.register_step_post_hook(once_a_step(partial(self._after_step, one))))

    def listen_last(self) -> None:
        """See to it that hooks which clip, and came after ours, are called before it."""
        for one in self.optimizers:
            hooks: Any = one.optimizer._optimizer_step_pre_hooks  # pyright: ignore[reportPrivateUsage]
            ours = self._handles[id(one)].id
            if one.due and next(reversed(hooks)) != ours:
                hooks.move_to_end(ours)

    def arrived(self, scale: Tensor | float) -> None:
        """A backward pass is over."""
        self.backwards += 1
        for one in self.optimizers:
            one.arrived(scale)

    def end_batch(self) -> None:
        """Of the gradients that were written to and not used, nothing more will be made."""
        for one, _, _, gradients in self._suspicions:
            if any(norm > 0 for norm in gradients.norms().values()):  # not only set to zero
                one.elsewhere.add(one.steps - 1)
        self._suspicions.clear()
        for one in self.optimizers:
            one.read(wait=False)

    @property
    def samples(self) -> int:
        """How many have been read."""
        return sum(len(one.samples) for one in self.optimizers)

    def findings(
        self,
        clippers: Sequence[Clippers],
        counted: Callable[[AuditedOptimizer, Clippers], Counted | None],
        *,
        wait: bool,
        first_step: int = 0,
        unseen: str = "",
    ) -> list[ClipEvidence]:
        """What is known of each optimizer.

        Args:
            clippers: who clips the gradients of each.
            counted: what is known of every step of one.
            wait: for what is still on its way from the device.
            first_step: optimizer steps before this training.
            unseen: why there is no sample where no backward pass was heard.
        """
        for one in self.optimizers:
            one.read(wait=wait)
        acted = {one.index for one in self.optimizers if any(s.touched or s.clipped for s in one.samples)}
        meant = {one.index for one in self.optimizers if one.elsewhere}  # it was clipped at the wrong one's turn
        return [
            ClipEvidence(
                optimizer=one.index,
                clippers=who,
                samples=one.samples,
                steps=one.steps,
                first_step=first_step,
                counted=counted(one, who),
                stale=one.stale,
                elsewhere=sum(sample.step in one.elsewhere for sample in one.samples),
                unseen=unseen if one.steps and not self.backwards else _why_unseen(one),
                for_others=bool((acted | meant) - {one.index}),
                probes=one.probes,
            )
            for one, who in zip(self.optimizers, clippers, strict=True)
        ]

    def close(self) -> None:
        """Take the hooks off. Calling it again does nothing."""
        for handle in (*self._handles.values(), *self._after):
            handle.remove()
        self._handles.clear()
        self._after.clear()
        self._suspicions.clear()
        for one in self.optimizers:
            if one.parts is not None:
                one.parts.leave()

    def _before_step(self, one: AuditedOptimizer, _: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Without a closure the gradients are at hand; with one, when it has run."""
        if self._is_over():
            self.close()
            return None
        self._suspicions = [held for held in self._suspicions if held[1] is not one or held[2] != self.backwards]
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
        one.probes += one.is_looked_at
        self._gets(one)
        return result

    def _gets(self, one: AuditedOptimizer) -> None:
        """The optimizer is about to use its gradients."""
        with self._guard():
            if one.is_untouched():
                rest = [other for other in self.optimizers if other is not one]
                for other in touched(rest, self.backwards)[:1]:
                    self._suspicions.append((one, other, self.backwards, Gradients(other.parameters)))
            one.gets(inside=self._inside(one.optimizer))

    def _after_step(self, one: AuditedOptimizer, *_: Any) -> None:
        one.steps += 1
        one.at_backward = self.backwards


def _why_unseen(one: AuditedOptimizer) -> str:
    """Why there is no sample of it, should there be none."""
    if one.parts is not None and (one.parts.missing or not one.parts.collects):
        return NOT_ALL if one.parts.collects else ELSEWHERE
    return SCATTERED if one.scattered else NO_GRADIENT * (0 < one.looked == one.bare)
