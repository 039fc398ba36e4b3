"""What is known of the backward passes of a fit: when each is, whether it is
sampled, how its loss was scaled.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from torch import Tensor

from lightning_gradwatch.engine.backward_pass import Step
from lightning_gradwatch.engine.sampling import Now, Sampling
from lightning_gradwatch.events import Moment
from lightning_gradwatch.recurrent.capture.unread import Heard
from lightning_gradwatch.trainer.compat import LightningModule, Trainer, accumulates_further, accumulation, logged_step
from lightning_gradwatch.trainer.mixed_precision import active_scaler, loss_scale


class BackwardPasses:
    """Of one fit.

    Args:
        trainer, module: whose they are.
        every: optimizer steps from one sampled step to the next.

    Attributes:
        moment: the present one.
    """

    def __init__(self, trainer: Trainer, module: LightningModule, every: int) -> None:
        self._trainer, self._module = trainer, module
        self._sampling = Sampling(every)
        self._batch: Any = None
        self.moment = Moment(0)

    def begin_batch(self, step: int, batch_idx: int) -> None:
        """Another batch, after ``step`` optimizer steps."""
        self.moment = Moment(step, self._trainer.current_epoch, batch_idx, self._trainer.global_rank)

    def hold(self, batch: Any) -> None:
        """What the training step is given; None lets go of it."""
        self._batch = batch

    def describe(self, calls: Iterable[Heard], loss: Tensor | None = None, *, raw: bool = False) -> Step:
        """What is known of a backward pass through ``calls``.

        Args:
            loss: with its graph, where it is known.
            raw: whether it went past Lightning, which then scaled nothing.
        """
        trainer, automatic = self._trainer, self._module.automatic_optimization
        divided = accumulation(trainer) if automatic else 1
        calls = list(calls)
        modules = [call.module for call in calls]
        due = self._sampling.due(modules, self._now(), again=not automatic)
        follow_up = not due and self._sampling.is_closer(modules, self._now())
        if calls:  # a batch may make several steps
            self.moment = replace(self.moment, step=max(call.step for call in calls))
        return Step(
            moment=replace(self.moment, follow_up=follow_up),
            micro_batch=(self.moment.batch_idx or 0) % divided,
            sampled=due or follow_up,
            accumulation=divided,
            scale=1.0 if raw else loss_scale(trainer),
            complete=not (automatic and accumulates_further(trainer)),
            scaled=not raw and active_scaler(trainer) is not None,
            loss=loss,
            is_eve=self._sampling.is_eve(modules, self._now()),
            batch=self._batch,
        )

    def sampled(self, calls: Iterable[Heard]) -> None:
        """These are measured now."""
        self._sampling.note((call.module for call in calls), self._now())

    def follow_up(self) -> None:
        """Something is out of the ordinary: measure the next steps more densely."""
        self._sampling.look_closer(self._now())

    def _now(self) -> Now:
        return logged_step(self._trainer), self.moment.batch_idx
