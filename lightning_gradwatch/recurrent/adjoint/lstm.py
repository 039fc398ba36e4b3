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

    ``m``, ``c``, ``forget``, ``output_to_cell`` = o(1−tanh²c): ``(time, sequence, hidden)``;
    ``gates``: ``(time, sequence, 4, hidden)``, i, f, g as ∂L/∂c reaches them, and o, which ∂L/∂m
    reaches.
    """

    m: axes.Float[Tensor, "time sequence hidden"]
    c: axes.Float[Tensor, "time sequence hidden"]
    forget: axes.Float[Tensor, "time sequence hidden"]
    output_to_cell: axes.Float[Tensor, "time sequence hidden"]
    gates: axes.Float[Tensor, "time sequence gate hidden"]


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
        gates = self.summed(x, h_previous).unflatten(-1, (4, -1))
        gates[..., :2, :].sigmoid_()
        i, f, g, o = gates.unbind(-2)
        g.tanh_()
        o.sigmoid_()
        c, forget = i * g, f.clone()
        last = c_start
        for written, kept in zip(c.unbind(0), forget.unbind(0), strict=True):
            last = written.addcmul_(kept, last)
        tanh_c = c.tanh()
        m = o * tanh_c
        output_to_cell = torch.addcmul(o, m, tanh_c, value=-1)
        # The gates' memory takes what they are multiplied with, each in the place of its own gate.
        torch.addcmul(m, m, o, value=-1, out=o)
        written = torch.mul(i, g, out=tanh_c)
        torch.addcmul(i, written, g, value=-1, out=g)
        torch.addcmul(written, written, i, value=-1, out=i)
        torch.addcmul(forget, forget, forget, value=-1, out=f)
        f[:1].mul_(c_start)
        f[1:].mul_(c[:-1])
        return LSTMFactors(m, c, forget, output_to_cell, gates)

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
        time, streams, sequences, _ = direct.shape
        width = self.shape.hidden_size
        total = direct.new_empty(time, streams, sequences, width)
        delta = direct.new_empty(streams, sequences, 4, width)
        cell_part, output_part = delta[:, :, :3], delta[:, :, 3]
        flat = delta.view(streams * sequences, 4 * width)
        w_hh, of_cell, of_output = (
            self.weights.w_hh,
            factors.gates[:, :, :3].unbind(0),
            factors.gates[:, :, 3].unbind(0),
        )
        forget, output_to_cell = factors.forget.unbind(0), factors.output_to_cell.unbind(0)
        for t, (g, into) in reversed(list(enumerate(zip(direct.unbind(0), total.unbind(0), strict=True)))):
            ends.begin(t, carry)
            g.add_(carry.hidden)
            if limit is not None:
                limit.clip_(g[0])
            dm = self._to_m(g)
            dc = torch.addcmul(carry.cell, dm, output_to_cell[t], out=into)
            if limit is not None:
                limit.clip_(dc[0])
            torch.mul(dc[:, :, None], of_cell[t], out=cell_part)
            torch.mul(dm, of_output[t], out=output_part)
            carry.hidden = flat.matmul(w_hh).view(streams, sequences, -1)
            carry.cell = dc * forget[t]
        return direct, total

    def input_delta(
        self,
        factors: LSTMFactors,
        hidden: axes.Float[Tensor, "time stream sequence state"],
        cell: axes.Float[Tensor, "time stream sequence hidden"] | None,
    ) -> axes.Float[Tensor, "time stream sequence gated"]:
        assert cell is not None
        delta = cell.new_empty(*cell.shape[:-1], 4, cell.shape[-1])
        torch.mul(cell[..., None, :], factors.gates[:, None, :, :3], out=delta[..., :3, :])
        torch.mul(self._to_m(hidden), factors.gates[:, None, :, 3], out=delta[..., 3, :])
        return delta.flatten(-2)

    def projection_gradient(
        self, factors: LSTMFactors, hidden: axes.Float[Tensor, "time stream sequence state"]
    ) -> list[axes.Float[Tensor, "state hidden"]]:
        if self.weights.w_hr is None:
            return []
        return [hidden.flatten(0, -2).T.matmul(factors.m.flatten(0, -2))]
