"""A chunk replayed, and its adjoint taken, by the fused operator itself: no loop over time.

a_t = W_ih x_t + b_ih enters the operator as its input, with the identity for its input weights, so
that the gradient of the loss with respect to a is δ_t, of all timesteps at once. For an RNN and an
LSTM then g_{t−1} = d_{t−1} + W_hhᵀ δ_t, one matrix product. What is left are diagonal recurrences:
g_{t−1} = d_{t−1} + W_hhᵀ(δ_r, δ_z, r⊙δ_n) + z_t ⊙ g_t of a GRU, and of an LSTM's cell
∂c_{t−1} = ∂m_{t−1} ⊙ o(1−tanh²c) + f_t ⊙ ∂c_t.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from lightning_gradwatch.recurrent import axes
from lightning_gradwatch.recurrent.adjoint import Adjoint, Carry
from lightning_gradwatch.recurrent.measure.diagonal import by_doubling
from lightning_gradwatch.recurrent.measure.packed_rows import PackedRows
from lightning_gradwatch.recurrent.measure.replay import Arriving, Chunk, Climbed, Gradients, Replay


class AtOnce(Replay):
    """The operator's rows are the sequences of all streams."""

    def __init__(self, adjoint: Adjoint[Any]) -> None:
        super().__init__(adjoint)
        w = adjoint.weights
        inert = torch.eye(len(w.w_hh), dtype=w.w_hh.dtype, device=w.w_hh.device)
        bias = [] if w.b_ih is None or w.b_hh is None else [torch.zeros_like(w.b_ih), w.b_hh]
        self._of_a = [inert, w.w_hh, *bias, *([] if w.w_hr is None else [w.w_hr])]

    def climb(self, chunk: Chunk, recorded: axes.Float[Tensor, "time sequence state"] | None) -> Climbed:
        rows, last = PackedRows(chunk.lengths, len(chunk.x), chunk.x.device), chunk.c_start
        if rows.is_empty():
            again = chunk.x.new_zeros(*chunk.x.shape[:2], chunk.h_start.shape[-1])
        else:
            starts = [rows.pack_state(start) for start in chunk.starts()]
            weights = self.adjoint.weights.flat()
            made, *finals = self.adjoint.operate(rows.pack(chunk.x), starts, weights, rows.batch_sizes)
            again = rows.unpack(made)
            last = None if last is None else rows.unpack_state(finals[1], last)
        return Climbed(again if recorded is None else recorded, again, None, last, chunk)

    def back(self, climbed: Climbed, arriving: Arriving) -> Gradients:
        chunk: Chunk = climbed.kept
        direct, carry = arriving.direct, arriving.carry
        into_cell = carry.cell
        for step in arriving.ends.at:  # nothing comes back from beyond the chunk to those that end in it
            arriving.ends.begin(step, carry)
        a = functional.linear(chunk.x, self.adjoint.weights.w_ih, self.adjoint.weights.b_ih)
        direct[-1].add_(carry.hidden)
        states, delta = self._differentiate(chunk, a, direct, carry)
        if self.adjoint.shape.mode == "GRU":
            return Gradients(self._of_gru(chunk, a, states, direct, delta), None, delta)
        hidden = self._add_recurrent(direct, delta)
        if into_cell is None:
            return Gradients(hidden, None, delta)
        return Gradients(hidden, self._of_cell(chunk, a, states, hidden, into_cell), delta)

    def _differentiate(
        self,
        chunk: Chunk,
        a: axes.Float[Tensor, "time sequence gated"],
        direct: axes.Float[Tensor, "time stream sequence state"],
        carry: Carry,
    ) -> tuple[axes.Float[Tensor, "time sequence state"], axes.Float[Tensor, "time stream sequence gated"]]:
        """The states, and δ; ``carry`` is brought to the chunk's first timestep."""
        time, streams, sequences, width = direct.shape
        rows = PackedRows(chunk.lengths.repeat(streams), time, a.device)
        if rows.is_empty():
            return a.new_zeros(time, sequences, width), a.new_zeros(time, streams, sequences, a.shape[-1])
        given = [rows.pack(_for_all(a, streams)), *(rows.pack_state(_for_all(s, streams)) for s in chunk.starts())]
        given = [tensor.detach().requires_grad_() for tensor in given]
        with torch.enable_grad():
            made, *finals = self.adjoint.operate(given[0], given[1:], self._of_a, rows.batch_sizes, train=True)
        results, sent = [made], [rows.pack(direct.flatten(1, 2))]
        if carry.cell is not None:
            results.append(finals[1])
            sent.append(rows.pack_state(carry.cell.flatten(0, 1)))
        delta, *starts = self.adjoint.differentiate(results, given, sent)
        carry.hidden = _back_at_start(rows, starts[0], carry.hidden)
        if carry.cell is not None:
            carry.cell = _back_at_start(rows, starts[1], carry.cell)
        return rows.unpack(made.detach())[:, :sequences], rows.unpack(delta).unflatten(1, (streams, sequences))

    def _add_recurrent(
        self,
        direct: axes.Float[Tensor, "time stream sequence state"],
        delta: axes.Float[Tensor, "time stream sequence gated"],
    ) -> axes.Float[Tensor, "time stream sequence state"]:
        """d_{t−1} + W_hhᵀ δ_t, in place."""
        direct[:-1].add_(delta[1:].matmul(self.adjoint.weights.w_hh))
        return direct

    def _of_gru(
        self,
        chunk: Chunk,
        a: axes.Float[Tensor, "time sequence gated"],
        states: axes.Float[Tensor, "time sequence state"],
        direct: axes.Float[Tensor, "time stream sequence state"],
        delta: axes.Float[Tensor, "time stream sequence gated"],
    ) -> axes.Float[Tensor, "time stream sequence state"]:
        """δ_n reaches W_hn through r, and g_t goes on to g_{t−1} through z besides."""
        r, z = self._gates(chunk, a, states, slice(0, 2)).unbind(-2)
        recurrent = delta.unflatten(-1, (3, -1)).clone()
        recurrent[..., 2, :].mul_(r[:, None])
        direct = self._add_recurrent(direct, recurrent.flatten(-2))
        return by_doubling(z[:, None], direct, backwards=True, contracting=True)

    def _of_cell(
        self,
        chunk: Chunk,
        a: axes.Float[Tensor, "time sequence gated"],
        states: axes.Float[Tensor, "time sequence state"],
        hidden: axes.Float[Tensor, "time stream sequence state"],
        into_cell: axes.Float[Tensor, "stream sequence hidden"],
    ) -> axes.Float[Tensor, "time stream sequence hidden"]:
        """∂L/∂c. ``into_cell``: what comes to it at each sequence's last timestep in the chunk."""
        i, f, g, o = self._gates(chunk, a, states, slice(0, 4)).unbind(-2)
        w_hr = self.adjoint.weights.w_hr
        if w_hr is None:
            to_m, m = hidden, states
            tanh_c = m / o.clamp_min(torch.finfo(o.dtype).tiny)
        else:
            to_m, written = hidden.matmul(w_hr), i * g
            assert chunk.c_start is not None
            written[0].add_(f[0] * chunk.c_start)
            tanh_c = by_doubling(f, written, contracting=True).tanh()
            m = o * tanh_c
        from_m = to_m * torch.addcmul(o, m, tanh_c, value=-1)[:, None]  # o(1 − tanh²c)
        if chunk.is_full():
            from_m[-1].add_(into_cell)
        else:
            step, sequence = chunk.last()
            from_m[step, :, sequence] += into_cell.transpose(0, 1)
        return by_doubling(f[:, None], from_m, backwards=True, contracting=True)

    def _gates(
        self,
        chunk: Chunk,
        a: axes.Float[Tensor, "time sequence gated"],
        states: axes.Float[Tensor, "time sequence state"],
        gates: slice,
    ) -> axes.Float[Tensor, "time sequence some hidden"]:
        """Some gates, the cell input of an LSTM among them."""
        w, hidden = self.adjoint.weights, self.adjoint.shape.hidden_size
        rows = slice(gates.start * hidden, gates.stop * hidden)
        bias = None if w.b_hh is None else w.b_hh[rows]
        pre = a[..., rows] + functional.linear(chunk.h_previous(states), w.w_hh[rows], bias)
        pre = pre.unflatten(-1, (-1, hidden))
        if self.adjoint.shape.mode == "LSTM" and w.w_hr is not None:
            return torch.cat([pre[..., :2, :].sigmoid(), pre[..., 2:3, :].tanh(), pre[..., 3:, :].sigmoid()], -2)
        return pre.sigmoid()


def _for_all(tensor: axes.Float[Tensor, "... sequence width"], streams: int) -> axes.Float[Tensor, "... row width"]:
    """The same for each stream: rows are the sequences of the first, then those of the next."""
    shape = tensor.shape
    return tensor.unsqueeze(-3).expand(*shape[:-2], streams, *shape[-2:]).flatten(-3, -2)


def _back_at_start(
    rows: PackedRows, gradient: axes.Float[Tensor, "1 some width"], carry: axes.Float[Tensor, "stream sequence width"]
) -> axes.Float[Tensor, "stream sequence width"]:
    return rows.unpack_state(gradient, carry.flatten(0, 1)).unflatten(0, carry.shape[:2])
