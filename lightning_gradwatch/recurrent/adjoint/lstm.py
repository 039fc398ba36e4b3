"""The adjoint of nn.LSTM, gates i, f, g, o: c_t = f c_{t−1} + i g, m_t = o tanh c_t, h_t = m_t,
or W_hr m_t with ``proj_size``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from lightning_gradwatch.recurrent import axes
from lightning_gradwatch.recurrent.adjoint.base import Adjoint, Carry, Ends
from lightning_gradwatch.recurrent.limit import Limit


@dataclass(slots=True)
class LSTMFactors:
    """What ∂L/∂c_t and ∂L/∂m_t are multiplied with.

    ``m``, ``c``, ``forget``, ``output_to_cell`` = o(1−tanh²c), ``output_gate`` = tanh c·o(1−o):
    ``(time, sequence, hidden)``; ``cell_gates``: ``(time, sequence, 3, hidden)``, the gates i, f,
    g.
    """

    m: axes.Float[Tensor, "time sequence hidden"]
    c: axes.Float[Tensor, "time sequence hidden"]
    forget: axes.Float[Tensor, "time sequence hidden"]
    output_to_cell: axes.Float[Tensor, "time sequence hidden"]
    cell_gates: axes.Float[Tensor, "time sequence 3 hidden"]
    output_gate: axes.Float[Tensor, "time sequence hidden"]


class LSTMAdjoint(Adjoint[LSTMFactors]):
    """∂m = W_hrᵀg (or g); ∂c = q + ∂m·o(1−tanh²c); δ_i = ∂c·g·i(1−i), δ_f = ∂c·c_{t−1}·f(1−f), δ_g
    = ∂c·i(1−g²), δ_o = ∂m·tanh c·o(1−o); g_{t−1} = d_{t−1} + W_hhᵀδ, q_{t−1} = ∂c·f.
    """

    def prepare(
        self,
        x: axes.Float[Tensor, "time sequence input"],
        h_previous: axes.Float[Tensor, "time sequence state"],
        c_start: axes.Float[Tensor, "sequence hidden"] | None,
    ) -> LSTMFactors:
        assert c_start is not None
        w = self.weights
        a = functional.linear(x, w.w_ih, w.b_ih) + functional.linear(h_previous, w.w_hh, w.b_hh)
        i, f, g, o = a.chunk(4, -1)
        i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
        c = torch.empty_like(f)
        written, last = i * g, c_start
        for t in range(len(x)):
            last = torch.addcmul(written[t], f[t], last, out=c[t])
        c_previous = torch.cat([c_start[None], c[:-1]])
        tanh_c = c.tanh()
        return LSTMFactors(
            m=o * tanh_c,
            c=c,
            forget=f,
            output_to_cell=o * (1 - tanh_c * tanh_c),
            cell_gates=torch.stack([written * (1 - i), c_previous * f * (1 - f), i * (1 - g * g)], 2),
            output_gate=tanh_c * o * (1 - o),
        )

    def recomputed(
        self, factors: LSTMFactors
    ) -> tuple[axes.Float[Tensor, "time sequence state"], axes.Float[Tensor, "time sequence hidden"] | None]:
        w_hr = self.weights.w_hr
        return factors.m if w_hr is None else functional.linear(factors.m, w_hr), factors.c

    def _to_m(self, hidden: axes.Float[Tensor, "... state"]) -> axes.Float[Tensor, "... hidden"]:
        w_hr = self.weights.w_hr
        return hidden if w_hr is None else hidden.matmul(w_hr)

    def sweep(
        self,
        factors: LSTMFactors,
        direct: axes.Float[Tensor, "time stream sequence state"],
        carry: Carry,
        ends: Ends,
        limit: Limit | None = None,
    ) -> tuple[
        axes.Float[Tensor, "time stream sequence state"], axes.Float[Tensor, "time stream sequence hidden"] | None
    ]:
        assert carry.cell is not None
        total_h = torch.empty_like(direct)
        time, streams, sequences, _ = direct.shape
        width = self.shape.hidden_size
        total_c = direct.new_empty(time, streams, sequences, width)
        delta = direct.new_empty(streams, sequences, 4, width)
        cell_part, output_part = delta[:, :, :3], delta[:, :, 3]
        flat = delta.view(streams * sequences, 4 * width)
        w_hh = self.weights.w_hh
        for t in range(time - 1, -1, -1):
            ends.begin(t, carry)
            g = torch.add(direct[t], carry.hidden, out=total_h[t])
            if limit is not None:
                limit.clip_(g[0])
            dm = self._to_m(g)
            dc = torch.addcmul(carry.cell, dm, factors.output_to_cell[t], out=total_c[t])
            if limit is not None:
                limit.clip_(dc[0])
            torch.mul(dc[:, :, None], factors.cell_gates[t], out=cell_part)
            torch.mul(dm, factors.output_gate[t], out=output_part)
            carry.hidden = flat.matmul(w_hh).view(streams, sequences, -1)
            carry.cell = dc * factors.forget[t]
        return total_h, total_c

    def input_delta(
        self,
        factors: LSTMFactors,
        hidden: axes.Float[Tensor, "time stream sequence state"],
        cell: axes.Float[Tensor, "time stream sequence hidden"] | None,
    ) -> axes.Float[Tensor, "time stream sequence gated"]:
        assert cell is not None
        delta = cell.new_empty(*cell.shape[:-1], 4, cell.shape[-1])
        torch.mul(cell[..., None, :], factors.cell_gates[:, None], out=delta[..., :3, :])
        torch.mul(self._to_m(hidden), factors.output_gate[:, None], out=delta[..., 3, :])
        return delta.flatten(-2)

    def projection_gradient(
        self, factors: LSTMFactors, hidden: axes.Float[Tensor, "time stream sequence state"]
    ) -> list[axes.Float[Tensor, "state hidden"]]:
        if self.weights.w_hr is None:
            return []
        return [hidden.flatten(0, -2).T.matmul(factors.m.flatten(0, -2))]
