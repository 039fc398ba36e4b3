"""What is known of a loop's backward passes: when each is, if it is sampled, how it is scaled."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from torch import Tensor

from lightning_gradwatch.engine.backward_pass import Step
from lightning_gradwatch.engine.sampling import Now, Sampling
from lightning_gradwatch.events import Moment
from lightning_gradwatch.recurrent.capture.taken import Call
from lightning_gradwatch.scaler import scale_of


class LoopPasses:
    """Of one watch.

    Args:
        every: optimizer steps from one sampled step to the next.
        divided: by how much the loop divides each loss for gradient accumulation.
        rank: of this process.

    Attributes:
        steps: optimizer steps done.
        nth: backward passes since the last of them.
        batches: how many batches have begun; a step may have several.
        moment: the present one.
    """

    def __init__(self, every: int, divided: int, rank: int) -> None:
        self._sampling, self._divided, self._rank = Sampling(every), divided, rank
        self.steps = self.nth = self.batches = 0
        self._epoch: int | None = None
        self._batch_of_epoch = 0
        self.moment = Moment(0, rank=rank, in_loop=True)

    @property
    def epoch(self) -> int | None:
        """As the loop has it; None until it says so."""
        return self._epoch

    @epoch.setter
    def epoch(self, epoch: int | None) -> None:
        self._epoch, self._batch_of_epoch = epoch, 1
        self._place()

    def begin_batch(self) -> None:
        """Another batch."""
        self.batches += 1
        self._batch_of_epoch += 1
        self._place()

    def stepped(self) -> None:
        """An optimizer has made a step."""
        self.steps += 1
        self._place()

    def end_round(self) -> None:
        """What comes belongs to the next step."""
        self.nth = 0

    def describe(self, calls: Iterable[Call], loss: Tensor | None = None, scaler: Any | None = None) -> Step:
        """What is known of a backward pass through ``calls``.

        Which pass of an accumulation is the last one is not known before the optimizer steps; so
        each is held against those of earlier steps that had the same number.

        Args:
            loss: with its graph, where it is known.
            scaler: the gradient scaler, where one is at work.
        """
        calls = list(calls)
        modules = [call.module for call in calls]
        due = self._sampling.due(modules, self._now(), again=True)
        follow_up = not due and self._sampling.is_closer(modules, self._now())
        moment = replace(self.moment, follow_up=follow_up)
        if calls:
            moment = replace(moment, step=max(call.step for call in calls))
        return Step(
            moment=moment,
            micro_batch=self.nth,
            sampled=due or follow_up,
            accumulation=self._divided,
            scale=1.0 if scaler is None else scale_of(scaler),
            complete=True,
            scaled=scaler is not None,
            loss=loss,
            is_eve=self._sampling.is_eve(modules, self._now()),
        )

    def sampled(self, calls: Iterable[Call]) -> None:
        """These are measured now."""
        self._sampling.note((call.module for call in calls), self._now())

    def follow_up(self) -> None:
        """Something is out of the ordinary: measure the next steps more densely."""
        self._sampling.look_closer(self._now())

    def _place(self) -> None:
        in_epoch = None if self._epoch is None else self._batch_of_epoch - 1
        self.moment = Moment(self.steps, self._epoch, in_epoch, self._rank, in_loop=True)

    def _now(self) -> Now:
        return self.steps, self.batches
