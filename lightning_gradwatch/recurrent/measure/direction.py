"""One layer in one direction during a sweep: its states from chunk to chunk, and
the norms found on the way back.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_gradwatch.recurrent import axes
from lightning_gradwatch.recurrent.adjoint import Carry, Ends
from lightning_gradwatch.recurrent.layout import Layout
from lightning_gradwatch.recurrent.measure.anchors import Anchors, last_timestep, norm
from lightning_gradwatch.recurrent.measure.boundary import Boundary, share_of_ends, shared
from lightning_gradwatch.recurrent.measure.gates import GateCount
from lightning_gradwatch.recurrent.measure.replay import Arriving, Chunk, Climbed, Replay


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
        replay: Replay,
        layout: Layout,
        direction: int,
        anchors: Anchors,
        boundary: Boundary,
        keep: bool,
        gates: bool = False,
        saturation: bool = False,
    ) -> None:
        self._replay, self.layout = replay, layout
        adjoint = self.adjoint = replay.adjoint
        shape, like = adjoint.shape, adjoint.weights.w_hh
        sequences, streams = len(layout.sequences), 1 + len(anchors)
        lstm = shape.mode == "LSTM"
        self._starts = [adjoint.initial_states(boundary.h0, boundary.c0, sequences)]
        self._keep, self._gates = keep, gates
        self._climbed: dict[int, Climbed] = {}
        self._carry: Carry = adjoint.new_carry(streams, sequences)
        self._lift = anchors.lift
        share = share_of_ends(anchors, last_timestep(layout, direction)).to(like)[..., None]
        self._h_n = shared(boundary.h_n_gradient, share)
        self._c_n = shared(boundary.c_n_gradient, share)
        self.total = _norms(layout.timesteps, streams, sequences)
        self.total_cell = _norms(layout.timesteps, streams, sequences) if lstm else None
        self.direct = _norms(layout.timesteps, sequences)
        self.direct_cell = _sent_to_ends(boundary.c_n_gradient, layout) if lstm else None
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
            return self._climbed[chunk].states
        if not self._keep:
            self._climbed.clear()
        first_time = len(self._starts) == chunk + 1
        lengths = (self.layout.lengths - start).clamp(0, stop - start)
        entered = Chunk(x, *self._starts[chunk], lengths)
        climbed = self._climbed[chunk] = self._replay.climb(entered, recorded)
        if first_time:
            self._starts.append((climbed.states[-1].clone(), climbed.last_cell))  # a view would keep the chunk
            self._look_closely(start, stop, entered, climbed)
            self._note_states(start, stop, climbed.states)
            self._compare_ends(start, stop, climbed)
            if recorded is not None:
                self._compare(start, stop, climbed.again, recorded)
        return climbed.states

    def is_climbed(self, chunk: int) -> bool:
        """Whether a chunk is ready for :meth:`back`."""
        return chunk in self._climbed

    def _look_closely(self, start: int, stop: int, entered: Chunk, climbed: Climbed) -> None:
        """At the gates, if that was asked for."""
        if not self._gates and self.gate_count is None:
            return
        h_previous = entered.h_previous(climbed.states)
        if self._gates and self.first_bad_gate is None:
            self._note_gates(start, stop, self.adjoint.pre_activations(entered.x, h_previous))
        if self.gate_count is not None:
            self.gate_count.add(entered.x, h_previous, climbed.cell, self.layout.valid(start, stop))

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
                have begun; final states are added here, and its memory is used again.
        """
        streams = direct.shape[1]
        h_n, c_n = (None if final is None else final[:streams] for final in (self._h_n, self._c_n))
        ends = Ends.within(self.layout, start, stop, direct, h_n, c_n)
        carry = self._carry.first(streams)
        self.direct[start:stop] = norm(direct[:, 0]).cpu().double() / self._lift
        self.sent += _size(direct[:, 0])
        arriving = Arriving(direct, carry, ends, with_input)
        found = self._replay.back(self._climbed.pop(chunk), arriving)
        self._carry.replace(carry)
        self._note_norms(self.total[start:stop, :streams], found.hidden)
        if self.total_cell is not None and found.cell is not None:
            self._note_norms(self.total_cell[start:stop, :streams], found.cell)
        self.gate_gradient += _size(found.delta[:, 0])
        return found.delta.matmul(self.adjoint.weights.w_ih) if with_input else None

    def is_finite(self) -> bool:
        """Whether all states and all gradients are."""
        found = [self.total, *([] if self.total_cell is None else [self.total_cell])]
        return bool((self.first_bad_state == self.layout.lengths).all()) and all(
            bool(norms.isfinite().all()) for norms in found
        )

    def at_beginning(self, sequences: list[int]) -> tuple[Tensor, Tensor | None]:
        """What has arrived at the initial h and c, ``(sequence, width)``, of the whole loss, times
        the anchors' ``lift``, once all of it was gone back through.
        """
        hidden, cell = self._carry.hidden[0], self._carry.cell
        return hidden[sequences], None if cell is None else cell[0][sequences]

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
        self.replay_error = _larger(self.replay_error, _difference(again, recorded, self._within(start, stop)))

    def _within(self, start: int, stop: int) -> axes.Bool[Tensor, "time sequence 1"] | None:
        """Which timesteps are there; None where all are."""
        return None if self.layout.uniform else self.layout.valid(start, stop)[..., None]

    def _compare_ends(self, start: int, stop: int, climbed: Climbed) -> None:
        """The states at the ends of the sequences that end in this chunk."""
        ending = torch.nonzero((self.layout.lengths > start) & (self.layout.lengths <= stop)).flatten()
        if not len(ending):
            return
        here = ending.to(climbed.again.device)
        h_last = climbed.again[(self.layout.lengths[ending] - 1 - start).to(here.device), here]
        c_last = None if climbed.last_cell is None else climbed.last_cell[here]
        for made, recorded in zip((h_last, c_last), self._recorded_ends, strict=True):
            if made is not None and recorded is not None:
                self.final_error = _larger(self.final_error, _difference(made, recorded[here], None))


def _difference(
    again: axes.Float[Tensor, "... width"],
    recorded: axes.Float[Tensor, "... width"],
    valid: axes.Bool[Tensor, "... 1"] | None,
) -> float:
    """The largest where ``valid`` (everywhere, if None), relative to the largest recorded number.
    What was not recorded as a finite number is left out.
    """
    if valid is None:
        sizes = torch.stack([_largest(again - recorded), _largest(recorded)]).tolist()
        if math.isfinite(sum(sizes)):
            return sizes[0] / max(sizes[1], 1e-30)
    valid = recorded.isfinite() & (torch.ones((), dtype=torch.bool) if valid is None else valid).to(again.device)
    difference = torch.where(valid, again - recorded, 0.0).abs().amax()
    largest = torch.where(valid, recorded, 0.0).abs().amax().clamp_min(1e-30)
    return float(difference / largest)


def _largest(tensor: axes.Float[Tensor, "... width"]) -> axes.Float[Tensor, ""]:
    return torch.linalg.vector_norm(tensor, math.inf)


def _size(tensor: axes.Float[Tensor, "time sequence width"]) -> float:
    """The sum of magnitudes."""
    return float(torch.linalg.vector_norm(tensor, 1, dim=-1).sum())


def _larger(error: float, other: float) -> float:
    return error if other <= error else other  # a NaN counts as larger than anything


def _norms(*size: int) -> Tensor:
    return torch.zeros(size, dtype=torch.float64, device="cpu")


def _sent_to_ends(
    gradient: axes.Float[Tensor, "sequence hidden"] | None, layout: Layout
) -> axes.Float[Tensor, "time sequence"]:
    """The norm of what the loss sends to the last cell states, at each sequence's last step."""
    sent = _norms(layout.timesteps, len(layout.sequences))
    if gradient is not None:
        sent[layout.lengths - 1, torch.arange(len(layout.sequences))] = norm(gradient).cpu().double()
    return sent
