"""AdaptiveClip's hand on the gradient while it flows back through time:
clipping, and the regulariser Ω.
"""

from __future__ import annotations

import math
from typing import Any

from lightning_gradwatch import arguments
from lightning_gradwatch.recurrent.capture.fit_over import FitIsOver
from lightning_gradwatch.recurrent.control.bounded_backward import Rule
from lightning_gradwatch.recurrent.control.omega import Omega
from lightning_gradwatch.recurrent.control.through_time import ThroughTime
from lightning_gradwatch.recurrent.limit import Limit
from lightning_gradwatch.trainer.compat import LightningModule, Trainer, accumulation, rank_zero_warn, was_stopped
from lightning_gradwatch.trainer.mixed_precision import loss_scale
from lightning_gradwatch.trainer.sharding import out_of_reach


class HeldThroughTime:
    """For one fit, the hooks on the model; nothing at all where neither argument is given.

    Args:
        bound: of each hidden state's gradient.
        omega: Ω's weight.

    Raises:
        ValueError: an argument breaks its rule.
    """

    def __init__(self, bound: float | None, omega: float | None) -> None:
        for name, value, remedy in (
            ("clip_through_time", bound, "Use a few times `total_max` of a healthy run, as GradWatch logs it"),
            ("omega", omega, "The paper's authors use 2"),
        ):
            if value is not None:
                arguments.positive(name, value, f"{remedy}, or None for none.")
        self.bound, self.omega = bound, omega
        self._limit = Limit(math.inf if bound is None else bound)
        self._hooks: ThroughTime | None = None

    def begin(self, trainer: Trainer, module: LightningModule) -> None:
        """Put the hooks on.

        Raises:
            ValueError: a recurrent module whose gradient cannot be held.
        """
        self.end()
        if self.bound is None and self.omega is None:
            return
        for name, part in module.named_modules():
            reason = (
                out_of_reach(trainer, part) if hasattr(part, "weight_hh_l0") or hasattr(part, "weight_hh") else None
            )
            if reason is not None:
                raise ValueError(f"`clip_through_time` and `omega` cannot hold the gradient of {name!r}: {reason}.")
        omega = None if self.omega is None else Omega(self.omega, self._limit)
        rule = Rule(None if self.bound is None else self._limit, omega)
        self._hooks = ThroughTime(rule, FitIsOver(lambda: self._is_over(trainer)))
        self._hooks.attach(module)

    def _is_over(self, trainer: Trainer) -> bool:
        """Whether the fit was broken off without a word to us; then the hooks come off."""
        if was_stopped(trainer):
            self.end()
        return self._hooks is None

    def begin_batch(self) -> None:
        """Until Lightning says what it did to the loss, nothing was done to it."""
        self._limit.factor = 1.0
        self._limit.forget()

    def before_backward(self, trainer: Trainer, module: LightningModule) -> None:
        """Note by how much the loss of this backward pass is scaled."""
        if self._hooks is not None:
            divisor = accumulation(trainer) if module.automatic_optimization else 1
            self._limit.factor = loss_scale(trainer) / divisor

    def end_batch(self) -> None:
        """Say so where there was nothing to hold."""
        if self._hooks is not None and not self._hooks.seen:
            self._hooks.seen = True
            rank_zero_warn(
                "AdaptiveClip(clip_through_time=…) found no hidden state in the first batch: no nn.RNN, nn.LSTM, nn.GRU or cell of "
                "them was called with a gradient. Mark the states of a recurrence of your own with tap()."
            )

    def share(self) -> float | None:
        """The share of this batch's hidden states whose gradient was clipped;
        None without a bound. A host sync.
        """
        return None if self._hooks is None or self.bound is None else self._limit.share()

    def end(self) -> None:
        """Take the hooks off. Calling it again does nothing."""
        hooks, self._hooks = self._hooks, None
        if hooks is not None:
            hooks.detach()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_hooks": None, "_limit": Limit(self._limit.bound)}
