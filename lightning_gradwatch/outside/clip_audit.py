"""Compares, on sampled steps of a loop, the gradient after the backward pass with that which the
optimizer gets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from torch.optim import SGD, Optimizer

from lightning_gradwatch.audit import ClipEvidence, Clippers, Counted
from lightning_gradwatch.clip.between.looks import Looks
from lightning_gradwatch.clip.between.loop_source import Naming
from lightning_gradwatch.clip.between.one_optimizer import AuditedOptimizer
from lightning_gradwatch.clip.between.parameters import hooked
from lightning_gradwatch.clip.step.state import ClipCounts
from lightning_gradwatch.outside.clip_adaptively import clip_adaptively, clipper_of
from lightning_gradwatch.scaler import scale_of

_UNHEARD = "its gradients came from no backward pass that was heard"


class LoopClipAudit:
    """Of one watch. Ordinary steps cost no operation on a tensor: of each optimizer the first step
    is looked at, and then every ``every``-th.

    Args:
        optimizers: that are known when the watch begins; others are found when they step.
        every: optimizer steps from one that is looked at to the next.
        guard: in which an error of ours does no harm.
        run: that of the run log; None without one.
    """

    def __init__(
        self,
        optimizers: Sequence[Optimizer],
        every: int,
        guard: Callable[[], AbstractContextManager[None]],
        run: str | None,
    ) -> None:
        self._every = every
        self._scaler: Any | None = None
        audited = [AuditedOptimizer(index, one, every) for index, one in enumerate(optimizers)]
        self._looks = Looks(audited, guard, self._is_scaled)
        self._named: dict[int, Naming] = {}
        self._adaptive: dict[int, tuple[clip_adaptively, ClipCounts]] = {}
        self._looks.listen(run)

    def before_step(self, optimizer: Optimizer) -> None:
        """A step is about to be made. One of an optimizer that was not known is looked at when it
        makes its second: the backward pass of its first is over.
        """
        one = next((known for known in self._looks.optimizers if known.optimizer is optimizer), None)
        if one is None:
            one = AuditedOptimizer(len(self._looks.optimizers), optimizer, self._every, since=1)
            self._looks.add(one)
        if one.due:
            self._named.setdefault(one.index, Naming()).look(one.parameters)

    def after_backward(self, scaler: Any | None) -> None:
        """A backward pass is over, and its gradients are in place."""
        self._scaler = scaler
        if not any(one.due for one in self._looks.optimizers):
            return
        self._looks.listen_last()
        for one in self._looks.optimizers:
            clipper = clipper_of(one.optimizer)
            if clipper is not None and one.index not in self._adaptive:
                self._adaptive[one.index] = clipper, clipper.clip_counts(one.optimizer)
        self._looks.arrived(1.0 if scaler is None else scale_of(scaler))

    def before_unscale(self, optimizer: Optimizer) -> None:
        """The gradient scaler is about to take its factor out: what has changed by now was changed
        with that in it.
        """
        for one in self._looks.optimizers:
            if one.optimizer is optimizer and one.backward is not None:
                one.unscales()

    def end_round(self) -> None:
        """A step is over."""
        self._looks.end_batch()

    @property
    def samples(self) -> int:
        """How many steps have been looked at so far."""
        return self._looks.samples

    def findings(self, *, wait: bool = True) -> list[ClipEvidence]:
        """What is known of each optimizer.

        Args:
            wait: for what is still on its way from the device.
        """
        clippers = [self._who(one) for one in self._looks.optimizers]
        return self._looks.findings(clippers, self._counted, wait=wait, unseen=_UNHEARD)

    def close(self) -> None:
        """Take the hooks off. Calling it again does nothing."""
        self._looks.close()

    def _who(self, one: AuditedOptimizer) -> Clippers:
        naming, adaptive = self._named.get(one.index), self._adaptive.get(one.index)
        named = {} if naming is None else naming.functions
        return Clippers(
            adaptive="" if adaptive is None else adaptive[0].clips_by,
            named=tuple(named),
            surely=tuple(name for name, surely in named.items() if surely),
            early=() if naming is None else tuple(naming.early),
            hooked=hooked(one.optimizer),
            goes_along=isinstance(one.optimizer, SGD),
            in_loop=True,
        )

    def _counted(self, one: AuditedOptimizer, who: Clippers) -> Counted | None:
        """By ``clip_adaptively``'s own counts, where it saw every step and nobody else clips."""
        adaptive = self._adaptive.get(one.index)
        if adaptive is None or who.named:
            return None
        clipper, before = adaptive
        seen = clipper.clip_counts(one.optimizer).since(before)
        known = Counted(seen.clipped, seen.steps, skipped=seen.skipped)
        return known if seen.steps and seen.steps == one.steps else None

    def _is_scaled(self, optimizer: Optimizer) -> bool:
        """Whether the optimizer takes the scaler's factor out in its own step."""
        return self._scaler is not None and getattr(optimizer, "grad_scale", None) is not None
