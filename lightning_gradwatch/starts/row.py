"""What one start would give, for one layer."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_gradwatch.plain import count_of, plain
from lightning_gradwatch.profile import Floats

AS_IT_IS = "as it is"
"""The name of the rows of the model's own weights."""


@dataclass(frozen=True, slots=True)
class StartRow:
    """One layer and direction of one module under one start, on one batch.

    Args:
        start: name of the initialisation, or ``as it is``.
        module, kind, layer, direction: of which module.
        timesteps: of the longest sequence.
        horizon: first lag at which the lagged gradient is under 1 %; None where no gradient
            arrived or it was not finite.
        censored: it never is, and ``horizon`` is the longest lag seen.
        growth_rate: nats per timestep; None where it is not known.
        predicted: horizon by the gates' biases alone; None without such a gate.
        weight_gradient: L2 norm of ∂L/∂W_hh of this layer and direction, on this batch.
        loss: on this batch.
        lagged: the lagged gradient ``(lag,)``, ``lagged[0] = 1``.
        inexact_reason: None if the figures are exact.
    """

    start: str
    module: str
    kind: str
    layer: int
    direction: str
    timesteps: int
    horizon: int | None
    censored: bool
    growth_rate: float | None
    predicted: int | None
    weight_gradient: float | None
    loss: float
    lagged: Floats
    inexact_reason: str | None = None

    @property
    def place(self) -> str:
        """Module, layer and direction, in words."""
        reverse = ", reverse" if self.direction == "reverse" else ""
        return (
            f"{plain(self.module)}, layer {self.layer}{reverse} ({self.kind}, {count_of(self.timesteps, 'timestep')})"
        )
