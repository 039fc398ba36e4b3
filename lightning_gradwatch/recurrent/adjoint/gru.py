"""The adjoint of nn.GRU, gates r, z, n: n = tanh(W_in x + b_in + r⊙(W_hn h +
b_hn)), h_t = (1−z)n + z h_{t−1}.
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
class GRUFactors:
    """What g_t is multiplied with to give each δ.

    ``h``, ``z``: ``(time, sequence, hidden)``. ``recurrent``, ``input``:
    ``(time, sequence, 3, hidden)``, the gates r, z, n as W_hh and W_ih see them; they differ in n,
    which reaches W_hn through r.
    """

    h: axes.Float[Tensor, "time sequence hidden"]
    z: axes.Float[Tensor, "time sequence hidden"]
    recurrent: axes.Float[Tensor, "time sequence 3 hidden"]
    input: axes.Float[Tensor, "time sequence 3 hidden"]


class GRUAdjoint(Adjoint[GRUFactors]):
    """δ_n = g(1−z)(1−n²), δ_z = g(h_{t−1}−n)z(1−z), δ_r = δ_n(W_hn h + b_hn)r(1−r);
    g_{t−1} = d_{t−1} + z g + W_hrᵀδ_r + W_hzᵀδ_z + W_hnᵀ(r δ_n).
    """

    def pre_activations(
        self, x: axes.Float[Tensor, "time sequence input"], h_previous: axes.Float[Tensor, "time sequence state"]
    ) -> axes.Float[Tensor, "time sequence gate hidden"]:
        w = self.weights
        i_r, i_z, i_n = functional.linear(x, w.w_ih, w.b_ih).chunk(3, -1)
        s_r, s_z, s_n = functional.linear(h_previous, w.w_hh, w.b_hh).chunk(3, -1)
        reset = i_r + s_r
        return torch.stack([reset, i_z + s_z, i_n + reset.sigmoid() * s_n], -2)

    def prepare(
        self,
        x: axes.Float[Tensor, "time sequence input"],
        h_previous: axes.Float[Tensor, "time sequence state"],
        c_start: axes.Float[Tensor, "sequence hidden"] | None,
    ) -> GRUFactors:
        w = self.weights
        from_input = functional.linear(x, w.w_ih, w.b_ih)
        from_state = functional.linear(h_previous, w.w_hh, w.b_hh)
        i_r, i_z, i_n = from_input.chunk(3, -1)
        s_r, s_z, s_n = from_state.chunk(3, -1)
        r = (i_r + s_r).sigmoid()
        z = (i_z + s_z).sigmoid()
        n = (i_n + r * s_n).tanh()
        k_n = (1 - z) * (1 - n * n)
        k_z = (h_previous - n) * z * (1 - z)
        k_r = k_n * s_n * r * (1 - r)
        h = n + z * (h_previous - n)
        return GRUFactors(h, z, torch.stack([k_r, k_z, r * k_n], 2), torch.stack([k_r, k_z, k_n], 2))

    def recomputed(
        self, factors: GRUFactors
    ) -> tuple[axes.Float[Tensor, "time sequence state"], axes.Float[Tensor, "time sequence hidden"] | None]:
        return factors.h, None

    def sweep(
        self,
        factors: GRUFactors,
        direct: axes.Float[Tensor, "time stream sequence state"],
        carry: Carry,
        ends: Ends,
        limit: Limit | None = None,
    ) -> tuple[
        axes.Float[Tensor, "time stream sequence state"], axes.Float[Tensor, "time stream sequence hidden"] | None
    ]:
        total = torch.empty_like(direct)
        _, streams, sequences, width = direct.shape
        delta = direct.new_empty(streams, sequences, 3, width)
        flat = delta.view(streams * sequences, 3 * width)
        w_hh = self.weights.w_hh
        for t in range(len(direct) - 1, -1, -1):
            ends.begin(t, carry)
            g = torch.add(direct[t], carry.hidden, out=total[t])
            if limit is not None:
                limit.clip_(g[0])
            torch.mul(g[:, :, None], factors.recurrent[t], out=delta)
            kept = (g * factors.z[t]).view(streams * sequences, width)
            carry.hidden = torch.addmm(kept, flat, w_hh).view(streams, sequences, width)
        return total, None

    def input_delta(
        self,
        factors: GRUFactors,
        hidden: axes.Float[Tensor, "time stream sequence state"],
        cell: axes.Float[Tensor, "time stream sequence hidden"] | None,
    ) -> axes.Float[Tensor, "time stream sequence gated"]:
        return (hidden[..., None, :] * factors.input[:, None]).flatten(-2)

    def recurrent_delta(
        self,
        factors: GRUFactors,
        hidden: axes.Float[Tensor, "time stream sequence state"],
        input_delta: axes.Float[Tensor, "time stream sequence gated"],
    ) -> axes.Float[Tensor, "time stream sequence gated"]:
        return (hidden[..., None, :] * factors.recurrent[:, None]).flatten(-2)
