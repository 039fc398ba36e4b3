"""The first number that is not finite in a loop over a cell, or among the states of a tap."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_gradwatch.detect.nonfinite import bad_parameter, bad_value
from lightning_gradwatch.events import Event, EventKind, Moment
from lightning_gradwatch.recurrent.loop import Loop, LoopState


@dataclass(frozen=True, slots=True)
class LoopPlaces:
    """A loop, asked timestep by timestep."""

    loop: Loop

    def in_forward(self, moment: Moment) -> Event | None:
        """The first timestep whose input or state is not finite."""
        for t, state in enumerate(self.loop.h):
            x = self.loop.inputs[t]
            if x is not None:
                place = self._place(x)
                if place is not None:
                    return self._event(EventKind.NONFINITE_INPUT, moment, timestep=t, **place)
            place = self._place(state.tensor)
            if place is not None:
                return self._event(EventKind.NONFINITE_STATE, moment, timestep=t, state="h", **place)
        return None

    def in_backward(self, moment: Moment) -> Event | None:
        """The last timestep whose gradient is not finite."""
        for t in range(len(self.loop.h) - 1, -1, -1):
            for name, states in (("h", self.loop.h), ("c", self.loop.c)):
                place = self._gradient(states, t)
                if place is not None:
                    return self._event(EventKind.NONFINITE_HIDDEN_GRADIENT, moment, timestep=t, state=name, **place)
        return None

    def _gradient(self, states: list[LoopState], t: int) -> dict[str, Any] | None:
        gradient = states[t].slot.value() if t < len(states) else None
        return None if gradient is None else self._place(gradient)

    def _place(self, tensor: Tensor) -> dict[str, Any] | None:
        rows = self.loop.rows(tensor)
        bad = torch.nonzero(~rows.isfinite().all(-1)).flatten()
        return {"sequence": int(bad[0]), "value": bad_value(rows[bad[0]])} if len(bad) else None

    def _event(self, kind: EventKind, moment: Moment, **fields: Any) -> Event:
        place = {"layer": 0, "direction": "forward", **fields, **bad_parameter(self.loop.weights)}
        return moment.event(kind, module=self.loop.module, **place)
