"""A chunk of one layer in one direction, gone through forwards and back again: what is common to
both ways of doing it, and the way timestep by timestep.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_gradwatch.recurrent import axes
from lightning_gradwatch.recurrent.adjoint import Adjoint, Carry, Ends
from lightning_gradwatch.recurrent.limit import Limit


@dataclass(frozen=True, slots=True)
class Chunk:
    """What enters a chunk: the layer's input, the states before its first timestep, and of each
    sequence how many timesteps lie within ``(sequence,)``, on the CPU.
    """

    x: axes.Float[Tensor, "time sequence input"]
    h_start: axes.Float[Tensor, "sequence state"]
    c_start: axes.Float[Tensor, "sequence hidden"] | None
    lengths: axes.Int[Tensor, " sequence"]

    def starts(self) -> list[Tensor]:
        """The states before the first timestep that there are."""
        return [self.h_start] if self.c_start is None else [self.h_start, self.c_start]

    def is_full(self) -> bool:
        """Whether no sequence ends before the chunk does."""
        return bool((self.lengths == len(self.x)).all())

    def last(self) -> tuple[axes.Int[Tensor, " sequence"], axes.Int[Tensor, " sequence"]]:
        """Where each sequence's last timestep lies, as an index; the first where it has none."""
        step = (self.lengths - 1).clamp_min(0).to(self.x.device)
        return step, torch.arange(len(step), device=self.x.device)

    def h_previous(
        self, states: axes.Float[Tensor, "time sequence state"]
    ) -> axes.Float[Tensor, "time sequence state"]:
        """The state that entered each timestep."""
        return torch.cat([self.h_start[None], states[:-1]])


@dataclass(frozen=True, slots=True)
class Climbed:
    """A chunk that was gone through forwards.

    ``states``: the recorded ones where there are any; ``again``: as they were computed once more;
    ``cell``: c of every timestep, if it was needed; ``last_cell``: of each sequence's last timestep
    within the chunk; ``kept``: whatever the way back needs.
    """

    states: axes.Float[Tensor, "time sequence state"]
    again: axes.Float[Tensor, "time sequence state"]
    cell: axes.Float[Tensor, "time sequence hidden"] | None
    last_cell: axes.Float[Tensor, "sequence hidden"] | None
    kept: Any


@dataclass(frozen=True, slots=True)
class Arriving:
    """What comes to a chunk on the way back.

    ``direct``: from outside the recurrence, final states included; it may become ∂L/∂h, in place.
    ``carry``: from the chunk behind it; it is brought to the first timestep, in place. ``ends``:
    which sequences end within. ``with_input``: δ of all streams is wanted.
    """

    direct: axes.Float[Tensor, "time stream sequence state"]
    carry: Carry
    ends: Ends
    with_input: bool


@dataclass(frozen=True, slots=True)
class Gradients:
    """∂L/∂h and ∂L/∂c of every timestep, both total, and δ: of the first stream at least."""

    hidden: axes.Float[Tensor, "time stream sequence state"]
    cell: axes.Float[Tensor, "time stream sequence hidden"] | None
    delta: axes.Float[Tensor, "time some sequence gated"]


class Replay(ABC):
    """A way to go through chunks and back."""

    def __init__(self, adjoint: Adjoint[Any]) -> None:
        self.adjoint = adjoint

    @abstractmethod
    def climb(self, chunk: Chunk, recorded: axes.Float[Tensor, "time sequence state"] | None) -> Climbed:
        """Go through a chunk forwards.

        Args:
            recorded: the states as the forward recorded them; None has them computed again.
        """

    @abstractmethod
    def back(self, climbed: Climbed, arriving: Arriving) -> Gradients:
        """Go back through a climbed chunk."""


class ByTimestep(Replay):
    """The closed forms: all gates at once, then one matrix product a timestep."""

    def __init__(self, adjoint: Adjoint[Any], limit: Limit | None = None) -> None:
        super().__init__(adjoint)
        self._limit = limit

    def climb(self, chunk: Chunk, recorded: axes.Float[Tensor, "time sequence state"] | None) -> Climbed:
        states = self.adjoint.run(chunk.x, chunk.h_start, chunk.c_start)[0] if recorded is None else recorded
        factors = self.adjoint.prepare(chunk.x, chunk.h_previous(states), chunk.c_start)
        again, cell = self.adjoint.recomputed(factors)
        last = None if cell is None else cell[chunk.last()]
        return Climbed(states, again, cell, last, factors)

    def back(self, climbed: Climbed, arriving: Arriving) -> Gradients:
        hidden, cell = self.adjoint.sweep(climbed.kept, arriving.direct, arriving.carry, arriving.ends, self._limit)
        some = slice(None) if arriving.with_input else slice(1)
        delta = self.adjoint.input_delta(climbed.kept, hidden[:, some], None if cell is None else cell[:, some])
        return Gradients(hidden, cell, delta)
