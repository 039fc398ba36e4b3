"""Clipping by a fixed norm."""

from __future__ import annotations

from lightning_gradwatch import arguments
from lightning_gradwatch.clip.policy import ArgumentsMixin, Decision, StatelessMixin, StepReading, bounded, usable


class Norm(ArgumentsMixin, StatelessMixin):
    """Scale the gradient to norm c where it exceeds c: g ← g·c/N if N > c.

    Pascanu, Mikolov and Bengio (2013), "On the difficulty of training recurrent neural networks",
    algorithm 1. It needs no hardening but one: a norm that is not finite leaves the gradient as it
    is.

    Args:
        max_norm: c, in the norm's unit.
    """

    _arguments = ("max_norm",)

    def __init__(self, max_norm: float = 1.0) -> None:
        remedy = "Use the norm of an ordinary step, as `gradwatch/grad_norm` shows it."
        self.max_norm = arguments.positive("max_norm", max_norm, remedy, owner=self)

    def decide(self, reading: StepReading) -> Decision:
        """Bound the norm by ``max_norm``."""
        return bounded(reading.norm, self.max_norm) if usable(reading.norm) else Decision(self.max_norm, 1.0)
