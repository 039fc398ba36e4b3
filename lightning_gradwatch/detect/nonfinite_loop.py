"""The first number that is not finite in a loop over a cell, or among the states of a tap."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node
from torch.nn import functional

from lightning_gradwatch.detect.nonfinite import bad_parameter, bad_value, gate_name
from lightning_gradwatch.detect.way_back import (
    WayBack,
    hidden_gradient,
    in_arithmetic,
    largest_number,
    made_in_arithmetic,
    on_the_way,
)
from lightning_gradwatch.events import Event, EventKind, Moment
from lightning_gradwatch.recurrent.graph.between import nodes_between, nodes_until
from lightning_gradwatch.recurrent.loop import Loop, LoopState
from lightning_gradwatch.recurrent.measure.anchors import norm

_GATES = {"RNN": 1, "LSTM": 4, "GRU": 3}
"""How many there are in a cell of PyTorch's own."""


@dataclass(frozen=True, slots=True)
class LoopSource:
    """A loop, asked timestep by timestep."""

    loop: Loop

    def in_forward(self, moment: Moment) -> Event | None:
        """The first timestep where the state that it is given, its input or the
        state that it makes is not finite.
        """
        for t in range(len(self.loop.steps)):
            event = self._in_given(t, moment)
            if event is not None:
                return event
            x = self.loop.steps[t].x
            if x is not None:
                place = self._place(x)
                if place is not None:
                    return self._event(EventKind.NONFINITE_INPUT, moment, timestep=t, **place)
            gate = self._bad_gate(t)
            if gate is not None:
                return self._event(EventKind.NONFINITE_STATE, moment, timestep=t, **gate)
            # An infinite c may hide behind tanh: then its h is finite.
            for name, states in self.loop.series:
                place = self._place(states[t].tensor)
                if place is not None:
                    place |= self._made(t)
                    return self._event(EventKind.NONFINITE_STATE, moment, timestep=t, state=name, **place)
        return None

    def _in_given(self, t: int, moment: Moment) -> Event | None:
        for name, state in self.loop.steps[t].given:
            place = self._place(state)
            if place is not None and t == 0:
                place["detail"] = "It is the initial state that the first step was given."
                return self._event(EventKind.NONFINITE_INPUT, moment, state=name, **place)
            if place is not None:
                place["detail"] = "The step was given it so; the step before had made a finite one."
                return self._event(EventKind.NONFINITE_STATE, moment, timestep=t, state=name, **place)
        return None

    def _bad_gate(self, t: int) -> dict[str, Any] | None:
        """The first pre-activation that is not finite, of one of PyTorch's own cells; what another
        one computes inside is not known.
        """
        x, state = self.loop.steps[t].x, self._h_before(t)
        weights = {name.rpartition(".")[2]: weight.detach() for name, weight in self.loop.weights}
        count, w_ih, w_hh = _GATES.get(self.loop.kind), weights.get("weight_ih"), weights.get("weight_hh")
        if x is None or count is None or w_ih is None or w_hh is None or self.changed():
            return None
        rows = self.loop.rows(x).to(w_ih)
        if (len(w_hh), rows.shape[-1]) != (count * w_hh.shape[1], w_ih.shape[1]):
            return None  # a cell of one's own that bears the name of another
        a = functional.linear(rows, w_ih, weights.get("bias_ih"))
        h = rows.new_zeros(len(rows), w_hh.shape[1]) if state is None else self.loop.rows(state).to(w_hh)
        b = functional.linear(h, w_hh, weights.get("bias_hh"))
        gates = (a + b).unflatten(-1, (count, -1))
        if self.loop.kind == "GRU":  # n sees the state through r
            size = gates.shape[-1]
            gates[:, 2] = a[:, -size:] + gates[:, 0].sigmoid() * b[:, -size:]
        bad = torch.nonzero(~gates.isfinite().all(-1))
        if not len(bad):
            return None
        sequence, gate = bad[0].tolist()
        return {
            "state": gate_name(self.loop.kind, gate),
            "sequence": sequence,
            "value": bad_value(gates[sequence, gate]),
        }

    def _made(self, t: int) -> dict[str, str]:
        """What is known of how step ``t`` made a state that is not finite of finite ones:
        PyTorch's cells can only overflow.
        """
        node, before = self.loop.h[t].edge.node, self._h_before(t)
        huge = before is not None and float(before.abs().max()) > math.sqrt(largest_number(before))
        if huge or self.loop.kind in (*_GATES, "tap"):
            return {}
        step = self.loop.steps[t]
        given = [x for x in (step.x, *(state for _, state in step.given)) if x is not None]
        stops = {x.grad_fn for x in given if x.grad_fn is not None}
        stops |= {state.edge.node for before in self.loop.steps[:t] for state in before.states}
        return made_in_arithmetic(nodes_until([node], stops))

    def _h_before(self, t: int) -> Tensor | None:
        """The hidden state that went into a step; None if none was given, which
        PyTorch's cells take for zeros.
        """
        given = dict(self.loop.steps[t].given)
        if "h" in given:
            return given["h"].detach()
        return self.loop.steps[t - 1].states[0].tensor.detach() if t else None

    def in_backward(self, moment: Moment, way: WayBack) -> Event | None:
        """The last timestep whose gradient is not finite."""
        for t in range(len(self.loop.steps) - 1, -1, -1):
            for name, states in self.loop.series:
                place = self._gradient(states, t)
                if place is not None:
                    place |= {"timestep": t, "state": name, **self._worded(states, t, place["sequence"], way)}
                    return hidden_gradient(moment, {**self._where(), **place}, self._cause())
        given = [state.grad_fn for step in self.loop.steps for _, state in step.given]
        inputs = [x.grad_fn for x in self.loop.inputs if x is not None]
        way.passed(self.nodes(), [*given, *inputs])
        return None

    def _worded(self, states: list[LoopState], t: int, sequence: int, way: WayBack) -> dict[str, str]:
        """What is known of how the gradient of step ``t`` came to be not finite, where that
        of the steps after it is finite.
        """
        node = states[t].edge.node
        sizes = [self._size(later, sequence) for later in states[t + 1 :]]
        if not sizes or not sizes[0]:
            return way.outside([node])
        words = on_the_way(next(filter(None, reversed(sizes))), sizes[0], largest_number(states[t].tensor), t + 1)
        if words is not None:
            return words
        past = [later.edge.node for step in self.loop.steps[t + 1 :] for later in step.states]
        starts = [later.edge.node for later in self.loop.steps[t + 1].states]
        only = not way.is_direct(node, past)
        return in_arithmetic(sizes[0], t + 1, nodes_between(starts, [node]), only=only)

    def _size(self, state: LoopState, sequence: int) -> float:
        """The norm of a state's gradient in one sequence; 0 where there is none."""
        gradient = state.slot.value()
        rows = None if gradient is None else self.loop.rows(gradient)
        return 0.0 if rows is None or sequence >= len(rows) else float(norm(rows[sequence : sequence + 1]))

    def nodes(self) -> list[Node]:
        """Where its states stand in the graph."""
        return [state.edge.node for state in self.loop.states]

    def sequences(self) -> int:
        """How many it was given."""
        return len(self.loop.rows(self.loop.h[0].tensor))

    def changed(self) -> bool:
        """Whether the cell's weights are no longer those of the forward."""
        return self.loop.weights_changed()

    def _gradient(self, states: list[LoopState], t: int) -> dict[str, Any] | None:
        gradient = states[t].slot.value()
        return None if gradient is None else self._place(gradient)

    def _place(self, tensor: Tensor) -> dict[str, Any] | None:
        rows = self.loop.rows(tensor)
        bad = torch.nonzero(~rows.isfinite().all(-1)).flatten()
        return {"sequence": int(bad[0]), "value": bad_value(rows[bad[0]])} if len(bad) else None

    def _event(self, kind: EventKind, moment: Moment, **fields: Any) -> Event:
        return moment.event(kind, **self._where(), **{**fields, **self._cause()})

    def _where(self) -> dict[str, Any]:
        return {"module": self.loop.module, "layer": 0, "direction": "forward"}

    def _cause(self) -> dict[str, Any]:
        return {} if self.changed() else bad_parameter(self.loop.weights)
