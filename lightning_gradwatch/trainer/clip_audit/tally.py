"""How many of all steps were clipped, where that follows from what is known of every step."""

from __future__ import annotations

import math
from typing import Any

from torch.optim import LBFGS

from lightning_gradwatch.audit import Clippers, ClipSample, Counted
from lightning_gradwatch.clip.between.one_optimizer import AuditedOptimizer
from lightning_gradwatch.clip.between.parameters import parameters_of
from lightning_gradwatch.clip.step.state import ClipCounts
from lightning_gradwatch.trainer.clip_audit.who import callbacks_of
from lightning_gradwatch.trainer.compat import LightningModule, Trainer


class Tally:
    """Of one fit: norms of all steps against the Trainer's bound, and AdaptiveClip's own counts.

    Args:
        trainer, module: whose fit it is.
    """

    def __init__(self, trainer: Trainer, module: LightningModule) -> None:
        self._trainer, self._module = trainer, module
        self._bound = float(trainer.gradient_clip_val or 0.0)
        self._steps = self._over = 0
        self._largest = 0.0
        self._one_norm: bool | None = None
        self._before: dict[int, ClipCounts] = {}

    def begin(self) -> None:
        """The first step is about to be taken."""
        self._one_norm = self._has_one_norm()
        self._before = self._adaptive()

    def count(self, norm: float) -> None:
        """The norm after the backward pass, of all parameters, in one more step."""
        if math.isfinite(norm):
            self._steps += 1
            self._over += norm > self._bound
            self._largest = max(self._largest, norm)

    def of(self, one: AuditedOptimizer, who: Clippers) -> Counted | None:
        """What is known of every step of an optimizer; None where its samples contradict it."""
        if who.alone and self._one_norm:
            return (
                None if _contradict(one.samples, who.bound or 0.0) else Counted(self._over, self._steps, self._largest)
            )
        if who.adaptive and who.bound is None and not (who.override or who.named):
            nothing = ClipCounts()
            seen = self._adaptive().get(one.index, nothing).since(self._before.get(one.index, nothing))
            if seen.steps:
                largest = self._largest if self._one_norm else None
                return Counted(seen.clipped, seen.steps, largest, seen.skipped, seen.each)
        return None

    def _adaptive(self) -> dict[int, ClipCounts]:
        """Of each optimizer how many steps AdaptiveClip has clipped and skipped, of how many."""
        clippers: list[Any] = [one for one in callbacks_of(self._trainer) if getattr(one, "clips_by", "")]
        return clippers[0].clip_counts() if len(clippers) == 1 else {}

    def _has_one_norm(self) -> bool:
        """Whether the norm of all parameters is that which clipping sees, once a step."""
        optimizers = self._trainer.optimizers
        if len(optimizers) != 1 or not self._module.automatic_optimization or isinstance(optimizers[0], LBFGS):
            return False
        stepped = set(map(id, parameters_of(optimizers[0])))
        weights = list(self._module.parameters())
        whole = stepped >= {id(weight) for weight in weights if weight.requires_grad}
        return whole and not any(hasattr(weight, "full_tensor") for weight in weights)


def _contradict(samples: list[ClipSample], bound: float) -> bool:
    """Whether the gradient was made smaller where the bound does not ask for it, or the reverse."""
    return any(sample.clipped != (sample.before > bound) for sample in samples if abs(sample.before / bound - 1) > 1e-3)
