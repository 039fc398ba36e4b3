"""The first number that is not finite in a call of a fused module."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node

from lightning_gradwatch.detect.nonfinite import bad_parameter, bad_value, gate_name, other_places
from lightning_gradwatch.detect.way_back import WayBack, hidden_gradient, largest_number, on_the_way
from lightning_gradwatch.events import Event, EventKind, Moment
from lightning_gradwatch.recurrent.call import RecurrentCall
from lightning_gradwatch.recurrent.layout import DIRECTIONS, FORWARD, Layout
from lightning_gradwatch.recurrent.measure.direction import DirectionSweep
from lightning_gradwatch.recurrent.measure.sweep import Sweep


@dataclass(frozen=True, slots=True)
class CallSource:
    """A recurrent call with its sweep over all sequences and the names of its weights.

    Args:
        start: the timestep at which it begins, where it goes on from an earlier call.
    """

    call: RecurrentCall
    sweep: Sweep
    names: Sequence[str]
    start: int = 0

    def in_forward(self, moment: Moment) -> Event | None:
        """Its input and initial state, then gates and states in the
        order in which they are computed.
        """
        kind, place = EventKind.NONFINITE_INPUT, _first_bad_input(self.call, self.sweep.layout)
        if place is None:
            kind, place = EventKind.NONFINITE_STATE, _first_bad_state(self.sweep, self.call.shape.mode)
        if place is None:
            return None
        if self.start and "timestep" not in place:  # an initial state of which the call before made a finite one
            kind = EventKind.NONFINITE_STATE
            place |= {"timestep": 0, "detail": "The call was given it so; the call before had made a finite one."}
        return moment.event(kind, module=self.call.module, **{**self._in_time(place), **self._cause()})

    def in_backward(self, moment: Moment, way: WayBack) -> Event | None:
        """The place nearest to the loss where a hidden state's gradient is not finite: top
        layer first, last own step first.
        """
        best: tuple[tuple[int, ...], dict[str, Any]] | None = None
        for layer, pair in enumerate(self.sweep.directions):
            for direction, sweep in enumerate(pair):
                latest = _latest_bad_gradient(sweep, self.sweep.layout, layer, direction)
                if latest is None:
                    continue
                step, place = latest
                order = (-layer, -step) if len(pair) > 1 else (-step, -layer)
                if best is None or order < best[0]:
                    best = order, place
        if best is None:
            way.passed(self._outputs(), self._inputs())
            return None
        fields = self._in_time(self._worded(best[1], way))
        return hidden_gradient(moment, {"module": self.call.module, **fields}, self._cause())

    def _worded(self, fields: dict[str, Any], way: WayBack) -> dict[str, Any]:
        """The fields with what is known of how it came to be."""
        arrived, entered, before, step = (fields.pop(name) for name in ("arrived", "entered", "before", "step"))
        if arrived and fields["layer"] == self.call.shape.num_layers - 1:
            targets = self._bad_outputs()
            return fields | (way.outside(targets) if way.is_outside(targets) else way.from_later(targets))
        words = (
            None if step is None else on_the_way(entered, before, largest_number(self.call.output), step + self.start)
        )
        return fields | (words or {})

    def _bad_outputs(self) -> list[Node]:
        """Where a gradient that is not finite arrived."""
        call = self.call
        pairs = (
            (call.output, call.output_gradient),
            (call.h_n, call.h_n_gradient),
            (call.c_n, call.c_n_gradient),
        )
        arrived = [(tensor, slot.value()) for tensor, slot in pairs if tensor is not None]
        return [
            tensor.grad_fn
            for tensor, gradient in arrived
            if tensor.grad_fn is not None and gradient is not None and not bool(gradient.isfinite().all())
        ]

    def _outputs(self) -> list[Node | None]:
        return [tensor.grad_fn for tensor in (self.call.output, self.call.h_n, self.call.c_n) if tensor is not None]

    def _inputs(self) -> list[Node | None]:
        return [tensor.grad_fn for tensor in (self.call.input, self.call.h0, self.call.c0) if tensor is not None]

    def nodes(self) -> list[Node]:
        """Where its outputs stand in the graph."""
        return [node for node in self._outputs() if node is not None]

    def sequences(self) -> int:
        """How many it was given."""
        return self.sweep.layout.batch_size

    def _in_time(self, place: dict[str, Any]) -> dict[str, Any]:
        """With the timestep counted from the begin of the whole sequence."""
        return place if place.get("timestep") is None else {**place, "timestep": place["timestep"] + self.start}

    def changed(self) -> bool:
        """Whether the module's weights are no longer those of the forward."""
        return self.call.weights_changed()

    def _cause(self) -> dict[str, Any]:
        return {} if self.changed() else bad_parameter(zip(self.names, self.call.weights, strict=True))


def _first_bad_input(call: RecurrentCall, layout: Layout) -> dict[str, Any] | None:
    """The earliest timestep of the input, or an initial state, that is not finite."""
    for state, tensor in (("h", call.h0), ("c", call.c0)):
        for index in range(0 if tensor is None else len(tensor)):
            rows = layout.read_state(tensor, index)
            assert rows is not None
            bad = torch.nonzero(~rows.isfinite().all(-1)).flatten()
            if len(bad):
                layer, direction = divmod(index, call.shape.num_directions)
                return {
                    "layer": layer,
                    "direction": DIRECTIONS[direction],
                    "state": state,
                    "sequence": layout.sequences[int(bad[0])],
                    "value": bad_value(rows[bad[0]]),
                    "detail": "It is the initial state that the call was given.",
                }
    x = layout.read(call.input.detach(), FORWARD, 0, layout.timesteps)
    earliest = _earliest(~x.isfinite().all(-1))
    if earliest is None:
        return None
    timestep, sequence, count = earliest
    return {
        "timestep": timestep,
        "sequence": layout.sequences[sequence],
        "value": bad_value(x[timestep, sequence]),
        "detail": other_places(count),
    }


def _first_bad_state(swept: Sweep, mode: str) -> dict[str, Any] | None:
    """The first gate or state that is not finite in the order in which the module computes: a
    stack's layers step by step, or, in a bidirectional one, layer after layer; a step's gates
    before its state.
    """
    layout = swept.layout
    best: tuple[tuple[int, ...], dict[str, Any]] | None = None
    for layer, pair in enumerate(swept.directions):
        for direction, sweep in enumerate(pair):
            if sweep.first_bad_gate is None:
                continue
            at, sequence, gate, value = sweep.first_bad_gate
            order = (layer, at, 0) if len(pair) > 1 else (at, layer, 0)
            place = {
                "layer": layer,
                "direction": DIRECTIONS[direction],
                "state": gate_name(mode, gate),
                "timestep": _caller_time(layout, direction, at, sequence),
                "sequence": layout.sequences[sequence],
                "value": value,
            }
            if best is None or order < best[0]:
                best = order, place
    for layer, pair in enumerate(swept.directions):
        for direction, sweep in enumerate(pair):
            bad = torch.nonzero(sweep.first_bad_state < layout.lengths).flatten()
            if not len(bad):
                continue
            at = int(sweep.first_bad_state[bad].min())
            sequence = int(torch.nonzero(sweep.first_bad_state == at).flatten()[0])
            order = (layer, at, 1) if len(pair) > 1 else (at, layer, 1)
            place = {
                "layer": layer,
                "direction": DIRECTIONS[direction],
                "state": "h",
                "timestep": _caller_time(layout, direction, at, sequence),
                "sequence": layout.sequences[sequence],
                "value": sweep.first_bad_value,
            }
            if best is None or order < best[0]:
                best = order, place
    return None if best is None else best[1]


def _latest_bad_gradient(
    sweep: DirectionSweep, layout: Layout, layer: int, direction: int
) -> tuple[int, dict[str, Any]] | None:
    """The last own step at which the gradient of h, or of an LSTM's c, is not
    finite, and the fields of its event.
    """
    states = [("h", sweep.total, sweep.direct)]
    if sweep.total_cell is not None and sweep.direct_cell is not None:
        states.append(("c", sweep.total_cell, sweep.direct_cell))
    valid = layout.valid(0, layout.timesteps)
    best: tuple[int, dict[str, Any]] | None = None
    for state, total, direct in states:
        bad = ~total[:, 0].isfinite() & valid
        at = int(torch.nonzero(bad.any(1)).max()) if bool(bad.any()) else -1
        if at <= (-1 if best is None else best[0]):
            continue
        sequence = int(torch.nonzero(bad[at]).flatten()[0])
        later = total[at + 1 :, 0, sequence]
        later = later[later > 0].tolist()  # 0 behind a sequence's end, and where nothing came in yet
        best = (
            at,
            {
                "layer": layer,
                "direction": DIRECTIONS[direction],
                "state": state,
                "timestep": _caller_time(layout, direction, at, sequence),
                "sequence": layout.sequences[sequence],
                "value": float(total[at, 0, sequence]),
                "arrived": not math.isfinite(float(direct[at, sequence])),
                "entered": later[-1] if later else 0.0,
                "before": later[0] if later else 0.0,
                "step": _caller_time(layout, direction, at + 1, sequence) if later else None,
            },
        )
    return best


def _caller_time(layout: Layout, direction: int, at: int, sequence: int) -> int:
    return int(layout.times(direction, at, at + 1)[0, sequence])


def _earliest(bad: Tensor) -> tuple[int, int, int] | None:
    """``(time, sequence, how many)`` of the first true entry of ``(time, sequence)``, in time."""
    places = torch.nonzero(bad)
    if not len(places):
        return None
    return int(places[0, 0]), int(places[0, 1]), len(places)
