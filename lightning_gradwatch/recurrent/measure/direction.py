"""One layer in one direction during a sweep: its states from chunk to chunk, and
the norms found on the way back.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_gradwatch.recurrent import axes
from lightning_gradwatch.recurrent.adjoint import Adjoint, Carry, Ends
from lightning_gradwatch.recurrent.layout import Layout
from lightning_gradwatch.recurrent.limit import Limit
from lightning_gradwatch.recurrent.measure.anchors import Anchors, last_timestep, norm
from lightning_gradwatch.recurrent.measure.gates import GateCount


@dataclass(frozen=True, slots=True)
class Boundary:
    """The chosen sequences' states at both ends, ``(sequence, width)``; None where absent. ``h_n``
    and ``c_n`` are those recorded.
    """

    h0: axes.Float[Tensor, "sequence state"] | None
    c0: axes.Float[Tensor, "sequence hidden"] | None
    h_n_gradient: axes.Float[Tensor, "sequence state"] | None
    c_n_gradient: axes.Float[Tensor, "sequence hidden"] | None
    h_n: axes.Float[Tensor, "sequence state"] | None = None
    c_n: axes.Float[Tensor, "sequence hidden"] | None = None


class DirectionSweep:
    """Climbs forwards through the chunks, then goes back through them;
    both in the direction's own order.

    Attributes:
        total: ‖∂L/∂h_t‖ ``(time, stream, sequence)``, float64.
        total_cell: ‖∂L/∂c_t‖, LSTM only.
        direct: ‖d_t‖ ``(time, sequence)``.
        direct_cell: ‖∂L/∂c_n‖ at each sequence's last step, LSTM only.
        first_bad_state: own-order step of each sequence's first state
            that is not finite, or its length.
        first_bad_value: that number, of the earliest of them.
        first_bad_gate: own-order step, row of ``layout.sequences``, gate and value of the first
            pre-activation that is not finite, if there is one and it was asked for; of several at
            the same step the first sequence's, and of these the first gate's.
        gate_gradient: Σ|δ|, what of the whole loss's gradient reaches the gates' pre-activations;
            ``sent``: Σ|d|, what the loss sends.
        gate_count: what was counted at the gates, if it was asked for.
        replay_error: largest difference of recomputed and recorded outputs, relative to the
            largest output; 0 below the top.
        final_error: the same of recomputed and recorded final states.
    """

    def __init__(
        self,
        adjoint: Adjoint[Any],
        layout: Layout,
        direction: int,
        anchors: Anchors,
        boundary: Boundary,
        keep: bool,
        limit: Limit | None = None,
        gates: bool = False,
        saturation: bool = False,
    ) -> None:
        self.adjoint, self.layout, self.direction, self._limit = adjoint, layout, direction, limit
        shape, like = adjoint.shape, adjoint.weights.w_hh
        sequences, streams = len(layout.sequences), 1 + len(anchors)
        lstm = shape.mode == "LSTM"
        self._starts = [adjoint.initial_states(boundary.h0, boundary.c0, sequences)]
        self._keep, self._gates = keep, gates
        self._climbed: dict[int, tuple[Tensor, Any]] = {}
        self._carry: Carry = adjoint.new_carry(streams, sequences)
        ends = last_timestep(layout, direction)
        # Which streams a final state belongs to: all of the loss, and the anchors
        # that stand at its own timestep.
        injected = torch.where(anchors.timestep == ends, anchors.scale, 0.0)
        self._lift = anchors.lift
        share = torch.cat([torch.full((1, sequences), anchors.lift, dtype=torch.float64), injected]).to(like)[..., None]
        self._h_n = _shared(boundary.h_n_gradient, share)
        self._c_n = _shared(boundary.c_n_gradient, share)

        def norms(*size: int) -> Tensor:
            return torch.zeros(size, dtype=torch.float64, device="cpu")

        self.total = norms(layout.timesteps, streams, sequences)
        self.total_cell = norms(layout.timesteps, streams, sequences) if lstm else None
        self.direct = norms(layout.timesteps, sequences)
        self.direct_cell = norms(layout.timesteps, sequences) if lstm else None
        if self.direct_cell is not None and boundary.c_n_gradient is not None:
            self.direct_cell[layout.lengths - 1, torch.arange(sequences)] = norm(boundary.c_n_gradient).cpu().double()
        self.first_bad_state = layout.lengths.clone()
        self.first_bad_value = 0.0
        self.first_bad_gate: tuple[int, int, int, float] | None = None
        self.gate_gradient = 0.0
        self.sent = 0.0 if self._c_n is None else float(self._c_n[0].abs().sum())
        self.gate_count = GateCount(adjoint) if saturation else None
        self.replay_error = self.final_error = 0.0
        self._recorded_ends = boundary.h_n, boundary.c_n

    def climb(
        self,
        chunk: int,
        start: int,
        stop: int,
        x: axes.Float[Tensor, "time sequence input"],
        recorded: axes.Float[Tensor, "time sequence state"] | None,
    ) -> axes.Float[Tensor, "time sequence state"]:
        """Go through a chunk forwards and make it ready for :meth:`back`. Returns its
        states ``(time, sequence, state)``.

        Args:
            recorded: the states as the forward recorded them (top layer); None has them
                computed again from the chunk's start.
        """
        if chunk in self._climbed:
            return self._climbed[chunk][0]
        if not self._keep:
            self._climbed.clear()
        h_start, c_start = self._starts[chunk]
        if recorded is None:
            states, _, _ = self.adjoint.run(x, h_start, c_start)
        else:
            states = recorded
        h_previous = torch.cat([h_start[None], states[:-1]])
        if self._gates and self.first_bad_gate is None and len(self._starts) == chunk + 1:
            self._note_gates(start, stop, self.adjoint.pre_activations(x, h_previous))
        factors = self.adjoint.prepare(x, h_previous, c_start)
        again, cell = self.adjoint.recomputed(factors)
        if len(self._starts) == chunk + 1:
            self._starts.append((states[-1], None if cell is None else cell[-1]))
            self._note_states(start, stop, states)
            if self.gate_count is not None:
                self.gate_count.add(x, h_previous, cell, self.layout.valid(start, stop))
            self._compare_ends(start, stop, again, cell)
            if recorded is not None:
                self._compare(start, stop, again, recorded)
        self._climbed[chunk] = states, factors
        return states

    def back(
        self,
        chunk: int,
        start: int,
        stop: int,
        direct: axes.Float[Tensor, "time stream sequence state"],
        *,
        with_input: bool,
    ) -> axes.Float[Tensor, "time stream sequence input"] | None:
        """Go back through a chunk that was climbed. Returns ∂L/∂x
        ``(time, stream, sequence, input)`` if asked.

        Args:
            direct: ``(time, stream, sequence, state)``, what comes from above, of the streams that
                have begun; final states are added here.
        """
        streams = direct.shape[1]
        h_n, c_n = (None if final is None else final[:streams] for final in (self._h_n, self._c_n))
        ends = Ends.within(self.layout, start, stop, direct, h_n, c_n)
        _, factors = self._climbed.pop(chunk)
        carry = self._carry.first(streams)
        hidden, cell = self.adjoint.sweep(factors, direct, carry, ends, self._limit)
        self._carry.replace(carry)
        self.direct[start:stop] = norm(direct[:, 0]).cpu().double() / self._lift
        self._note_norms(self.total[start:stop, :streams], hidden)
        if self.total_cell is not None and cell is not None:
            self._note_norms(self.total_cell[start:stop, :streams], cell)
        self.sent += float(direct[:, 0].abs().sum())
        if not with_input:  # the whole loss's stream alone
            hidden, cell = hidden[:, :1], None if cell is None else cell[:, :1]
        delta = self.adjoint.input_delta(factors, hidden, cell)
        self.gate_gradient += float(delta[:, 0].abs().sum())
        return delta.matmul(self.adjoint.weights.w_ih) if with_input else None

    def gate_share(self) -> float | None:
        """What share of the gradient that the loss sends to the states reaches the
        gates; None where it sends none.
        """
        share = self.gate_gradient / self.sent if self.sent else math.nan
        return share if math.isfinite(share) else None

    def _note_norms(
        self,
        into: axes.Float[Tensor, "time stream sequence"],
        gradients: axes.Float[Tensor, "time stream sequence width"],
    ) -> None:
        into.copy_(norm(gradients))
        into[:, 0] /= self._lift

    def _note_states(self, start: int, stop: int, states: axes.Float[Tensor, "time sequence state"]) -> None:
        bad = ~states.isfinite().all(-1).cpu() & self.layout.valid(start, stop)
        if bool(bad.any()):
            step, sequence = torch.nonzero(bad)[0].tolist()
            state = states[step, sequence]
            if bool((self.first_bad_state == self.layout.lengths).all()):
                self.first_bad_value = float(state[~state.isfinite()][0])
            first = torch.where(bad.any(0), start + bad.int().argmax(0), self.layout.lengths)
            self.first_bad_state = torch.minimum(self.first_bad_state, first)

    def _note_gates(self, start: int, stop: int, gates: axes.Float[Tensor, "time sequence gate hidden"]) -> None:
        bad = ~gates.isfinite().all(-1).cpu() & self.layout.valid(start, stop)[..., None]
        if bool(bad.any()):
            step, sequence, gate = torch.nonzero(bad)[0].tolist()
            values = gates[step, sequence, gate]
            self.first_bad_gate = start + step, sequence, gate, float(values[~values.isfinite()][0])

    def _compare(
        self,
        start: int,
        stop: int,
        again: axes.Float[Tensor, "time sequence state"],
        recorded: axes.Float[Tensor, "time sequence state"],
    ) -> None:
        self.replay_error = _larger(
            self.replay_error, _difference(again, recorded, self.layout.valid(start, stop)[..., None])
        )

    def _compare_ends(
        self,
        start: int,
        stop: int,
        again: axes.Float[Tensor, "time sequence state"],
        cell: axes.Float[Tensor, "time sequence hidden"] | None,
    ) -> None:
        """The states at the ends of the sequences that end in this chunk."""
        ending = torch.nonzero((self.layout.lengths > start) & (self.layout.lengths <= stop)).flatten()
        if not len(ending):
            return
        step, there = self.layout.lengths[ending] - 1 - start, torch.ones(1, dtype=torch.bool)
        for made, recorded in zip((again, cell), self._recorded_ends, strict=True):
            if made is not None and recorded is not None:
                here = ending.to(made.device)
                error = _difference(made[step.to(made.device), here], recorded[here], there)
                self.final_error = _larger(self.final_error, error)


def _difference(
    again: axes.Float[Tensor, "... width"], recorded: axes.Float[Tensor, "... width"], valid: axes.Bool[Tensor, "... 1"]
) -> float:
    """The largest where ``valid``, relative to the largest recorded number."""
    valid = valid.to(again.device) & recorded.isfinite()
    difference = torch.where(valid, again - recorded, 0.0).abs().amax()
    largest = torch.where(valid, recorded, 0.0).abs().amax().clamp_min(1e-30)
    return float(difference / largest)


def _larger(error: float, other: float) -> float:
    return error if other <= error else other  # a NaN counts as larger than anything


def _shared(
    gradient: axes.Float[Tensor, "sequence width"] | None, share: axes.Float[Tensor, "stream sequence 1"]
) -> axes.Float[Tensor, "stream sequence width"] | None:
    """``(stream, sequence, width)``: what each stream gets of a final state's gradient."""
    if gradient is None:
        return None
    # A share of 0 is no gradient at all, also where the gradient itself is not finite.
    return torch.where(share != 0, gradient[None] * share, 0.0)
