"""A regulariser against vanishing: it pulls the recurrent weights to where the gradient
keeps its norm from step to step.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_gradwatch.recurrent import axes
from lightning_gradwatch.recurrent.limit import Limit


class Omega:
    """Ω of Pascanu, Mikolov and Bengio (2013), "On the difficulty of training
    recurrent neural networks", §3.3.

    Ω_k = (‖(∂L/∂a_{k+1}) ∂a_{k+1}/∂a_k‖ / ‖∂L/∂a_{k+1}‖ − 1)² (eq. 9), a_k being what φ is applied
    to. What training gets is its *immediate* derivative for W_hh (eq. 10): states and gradients
    count as constants, and no other parameter is touched. Averaged over the timesteps and sequences
    where ∂L/∂a_{k+1} is not zero, as in the authors' own code, which takes the norms of ∂L/∂h and
    squares them.

    Args:
        weight: what the derivative is multiplied by.
        limit: its ``factor`` tells by how much the loss is scaled; Ω itself knows no scale.
    """

    def __init__(self, weight: float, limit: Limit) -> None:
        self.weight = weight
        self._limit = limit

    def gradient(
        self,
        slope: axes.Float[Tensor, "time sequence hidden"],
        delta: axes.Float[Tensor, "time sequence hidden"],
        w_hh: axes.Float[Tensor, "hidden hidden"],
    ) -> axes.Float[Tensor, "hidden hidden"]:
        """``weight``·∂⁺Ω/∂W_hh.

        Args:
            slope: φ′ at each step in the direction's own order, ``(time, sequence, hidden)``.
            delta: ∂L/∂a, as large; zero past a sequence's end.
        """
        later, slope = delta[1:], slope[:-1]
        size = torch.linalg.vector_norm(later, dim=-1, keepdim=True)
        reached = (size > 0) & size.isfinite()
        direction = torch.where(reached, later / torch.where(reached, size, 1.0), 0.0)
        arriving = direction.matmul(w_hh) * slope
        ratio = torch.linalg.vector_norm(arriving, dim=-1, keepdim=True)
        # d(ratio − 1)²/d(arriving); where nothing arrives there is no direction to pull in.
        pull = 2 * (ratio - 1) * torch.where(ratio > 0, arriving / torch.where(ratio > 0, ratio, 1.0), 0.0)
        gradient = direction.flatten(0, 1).T.matmul((pull * slope).flatten(0, 1))
        return gradient * (self.weight * self._limit.factor / reached.sum().clamp_min(1).to(gradient))
