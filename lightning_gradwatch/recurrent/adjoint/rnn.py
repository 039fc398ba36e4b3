"""The adjoint of nn.RNN: h_t = φ(W_ih x_t + b_ih + W_hh h_{t−1} + b_hh), φ tanh or relu."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from lightning_gradwatch.recurrent.adjoint.base import Adjoint, Carry, Ends


@dataclass(slots=True)
class RNNFactors:
    """``h`` and φ′, both ``(time, sequence, hidden)``."""

    h: Tensor
    slope: Tensor


class RNNAdjoint(Adjoint[RNNFactors]):
    """δ_t = φ′⊙g_t; g_{t−1} = d_{t−1} + W_hhᵀδ_t (Pascanu et al. 2013, eq. 5, transposed)."""

    def prepare(self, x: Tensor, h_previous: Tensor, c_start: Tensor | None) -> RNNFactors:
        w = self.weights
        a = functional.linear(x, w.w_ih, w.b_ih) + functional.linear(h_previous, w.w_hh, w.b_hh)
        if self.shape.mode == "RNN_RELU":
            return RNNFactors(a.relu(), (a > 0).to(a.dtype))
        h = a.tanh()
        return RNNFactors(h, 1 - h * h)

    def recomputed(self, factors: RNNFactors) -> tuple[Tensor, Tensor | None]:
        return factors.h, None

    def sweep(self, factors: RNNFactors, direct: Tensor, carry: Carry, ends: Ends) -> tuple[Tensor, Tensor | None]:
        total = torch.empty_like(direct)
        w_hh = self.weights.w_hh
        for t in range(len(direct) - 1, -1, -1):
            ends.begin(t, carry)
            g = torch.add(direct[t], carry.hidden, out=total[t])
            carry.hidden = (g * factors.slope[t]).matmul(w_hh)
        return total, None

    def input_gradient(self, factors: RNNFactors, hidden: Tensor, cell: Tensor | None) -> Tensor:
        return (hidden * factors.slope[:, None]).matmul(self.weights.w_ih)
