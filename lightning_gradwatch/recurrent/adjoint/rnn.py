"""The adjoint of nn.RNN: h_t = φ(W_ih x_t + b_ih + W_hh h_{t−1} + b_hh), φ tanh or relu."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lightning_gradwatch.recurrent import axes
from lightning_gradwatch.recurrent.adjoint.base import Adjoint, Carry, Ends
from lightning_gradwatch.recurrent.limit import Limit


@dataclass(slots=True)
class RNNFactors:
    """``h`` and φ′, both ``(time, sequence, hidden)``."""

    h: axes.Float[Tensor, "time sequence hidden"]
    slope: axes.Float[Tensor, "time sequence hidden"]


class RNNAdjoint(Adjoint[RNNFactors]):
    """δ_t = φ′⊙g_t; g_{t−1} = d_{t−1} + W_hhᵀδ_t (Pascanu et al. 2013, eq. 5, transposed)."""

    def prepare(
        self,
        x: axes.Float[Tensor, "time sequence input"],
        h_previous: axes.Float[Tensor, "time sequence state"],
        c_start: axes.Float[Tensor, "sequence hidden"] | None,
    ) -> RNNFactors:
        a = self.summed(x, h_previous)
        return self.of_states(a.relu_() if self.shape.mode == "RNN_RELU" else a.tanh_())

    def of_states(self, h: axes.Float[Tensor, "time sequence hidden"]) -> RNNFactors:
        """The factors from recorded states ``(time, sequence, hidden)``."""
        return RNNFactors(h, (h > 0).to(h.dtype) if self.shape.mode == "RNN_RELU" else 1 - h * h)

    def recomputed(
        self, factors: RNNFactors
    ) -> tuple[axes.Float[Tensor, "time sequence state"], axes.Float[Tensor, "time sequence hidden"] | None]:
        return factors.h, None

    def sweep(
        self,
        factors: RNNFactors,
        direct: axes.Float[Tensor, "time stream sequence state"],
        carry: Carry,
        ends: Ends,
        limit: Limit | None = None,
    ) -> tuple[
        axes.Float[Tensor, "time stream sequence state"], axes.Float[Tensor, "time stream sequence hidden"] | None
    ]:
        w_hh, slope = self.weights.w_hh, factors.slope.unbind(0)
        for t, g in reversed(list(enumerate(direct.unbind(0)))):
            ends.begin(t, carry)
            g.add_(carry.hidden)
            if limit is not None:
                limit.clip_(g[0])
            carry.hidden = (g * slope[t]).matmul(w_hh)
        return direct, None

    def input_delta(
        self,
        factors: RNNFactors,
        hidden: axes.Float[Tensor, "time stream sequence state"],
        cell: axes.Float[Tensor, "time stream sequence hidden"] | None,
    ) -> axes.Float[Tensor, "time stream sequence gated"]:
        return hidden * factors.slope[:, None]
