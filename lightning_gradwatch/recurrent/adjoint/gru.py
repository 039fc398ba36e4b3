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

    ``h``, ``z``, ``new``: ``(time, sequence, hidden)``; ``recurrent``:
    ``(time, sequence, 3, hidden)``, the gates r, z, n as W_hh sees them. ``new`` is n as W_in sees
    it: W_hn is reached through r.
    """

    h: axes.Float[Tensor, "time sequence hidden"]
    z: axes.Float[Tensor, "time sequence hidden"]
    recurrent: axes.Float[Tensor, "time sequence 3 hidden"]
    new: axes.Float[Tensor, "time sequence hidden"]


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
        from_state = functional.linear(h_previous, w.w_hh, w.b_hh).unflatten(-1, (3, -1))
        gates = functional.linear(x, w.w_ih, w.b_ih).unflatten(-1, (3, -1))
        s_n, i_n = from_state[..., 2, :], gates[..., 2, :]
        r, z = gates[..., :2, :].add_(from_state[..., :2, :]).sigmoid_().unbind(-2)
        z, n = z.clone(), torch.addcmul(i_n, r, s_n).tanh_()
        slope = (n * n).neg_().add_(1)
        k_n = torch.addcmul(slope, z, slope, value=-1, out=slope)
        fresh = h_previous - n
        h = torch.addcmul(n, z, fresh)
        torch.mul(k_n, s_n, out=s_n).mul_(torch.addcmul(r, r, r, value=-1))
        recurrent = gates  # its memory, from here on
        torch.mul(r, k_n, out=recurrent[..., 2, :])
        recurrent[..., 0, :] = s_n
        torch.mul(fresh, torch.addcmul(z, z, z, value=-1), out=recurrent[..., 1, :])
        return GRUFactors(h, z, recurrent, k_n)

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
        _, streams, sequences, width = direct.shape
        delta = direct.new_empty(streams, sequences, 3, width)
        flat = delta.view(streams * sequences, 3 * width)
        w_hh = self.weights.w_hh
        z, recurrent = factors.z.unbind(0), factors.recurrent.unbind(0)
        for t, g in reversed(list(enumerate(direct.unbind(0)))):
            ends.begin(t, carry)
            g.add_(carry.hidden)
            if limit is not None:
                limit.clip_(g[0])
            torch.mul(g[:, :, None], recurrent[t], out=delta)
            kept = (g * z[t]).view(streams * sequences, width)
            carry.hidden = torch.addmm(kept, flat, w_hh).view(streams, sequences, width)
        return direct, None

    def input_delta(
        self,
        factors: GRUFactors,
        hidden: axes.Float[Tensor, "time stream sequence state"],
        cell: axes.Float[Tensor, "time stream sequence hidden"] | None,
    ) -> axes.Float[Tensor, "time stream sequence gated"]:
        delta = hidden.new_empty(*hidden.shape[:-1], 3, hidden.shape[-1])
        torch.mul(hidden[..., None, :], factors.recurrent[:, None, :, :2], out=delta[..., :2, :])
        torch.mul(hidden, factors.new[:, None], out=delta[..., 2, :])
        return delta.flatten(-2)

    def recurrent_delta(
        self,
        factors: GRUFactors,
        hidden: axes.Float[Tensor, "time stream sequence state"],
        input_delta: axes.Float[Tensor, "time stream sequence gated"],
    ) -> axes.Float[Tensor, "time stream sequence gated"]:
        return (hidden[..., None, :] * factors.recurrent[:, None]).flatten(-2)
