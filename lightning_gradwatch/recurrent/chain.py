"""Several calls of a fused module that are one sequence."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

from lightning_gradwatch.recurrent.call import RecurrentCall


@dataclass(slots=True)
class Chain:
    """Calls of which each begins with what the one before ended with, itself or
    changed by operations in the graph.

    Args:
        plain: nothing lies between them, and nothing of one is an input of a later one:
            they are as one call would be.
        unfollowed: why there is no trail.
    """

    calls: list[RecurrentCall]
    plain: bool = True
    unfollowed: str | None = None

    @property
    def module(self) -> str:
        """The module's qualified name."""
        return self.calls[0].module

    @property
    def index(self) -> int:
        """Which sequence of the module within the step."""
        return self.calls[0].index

    @index.setter
    def index(self, value: int) -> None:
        self.calls[0].index = value

    @property
    def step(self) -> int:
        """Optimizer steps done when the first call ran."""
        return self.calls[0].step

    def starts(self) -> list[tuple[RecurrentCall, int]]:
        """Each call with the timestep at which it begins."""
        return list(zip(self.calls, accumulate(self.lengths(), initial=0), strict=False))

    def lengths(self) -> list[int]:
        """Timesteps of each call."""
        return [call.timesteps() for call in self.calls]
