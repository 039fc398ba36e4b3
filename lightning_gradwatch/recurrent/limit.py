"""The bound on a hidden state's gradient as it flows back through time."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_gradwatch.recurrent.pause import is_paused


class Limit:
    """Scales ∂L/∂h_t of each sequence to at most ``bound``, before it
    flows on to the timestep before.

    After Graves (2013), "Generating sequences with recurrent neural networks", §2.1, who clamps
    each entry of the gradient at every step. Here the L2 norm over the hidden dimension is bounded
    instead, so that a sequence's gradient keeps its direction, and a sequence that explodes leaves
    the others of its batch alone.

    Args:
        bound: of the norm, in the unit of the loss per hidden state, as GradWatch measures it.

    Attributes:
        factor: what the gradients of the present backward pass are multiplied by: the loss scale,
            divided by the number of micro-batches that an optimizer step accumulates.
    """

    def __init__(self, bound: float) -> None:
        self.bound = bound
        self.factor: Tensor | float = 1.0
        self._coefficients: list[Tensor] = []

    def clip_(self, gradient: Tensor) -> None:
        """In place, over the last dimension. A gradient within the
        bound is left as it is, to the bit.
        """
        gradient.mul_(self._coefficient(gradient))

    def hook(self, gradient: Tensor) -> Tensor | None:
        """For a tensor in the graph. It rests while GradWatch follows a gradient
        that is none of the training's.
        """
        if is_paused():
            return None
        return gradient * self._coefficient(gradient)

    def share(self) -> float | None:
        """The share of gradients that were clipped since :meth:`forget`; None
        if there were none. A host sync.
        """
        if not self._coefficients:
            return None
        return float((torch.cat([c.flatten().float() for c in self._coefficients]) < 1).float().mean())

    def forget(self) -> None:
        """Begin to count anew."""
        self._coefficients.clear()

    def _coefficient(self, gradient: Tensor) -> Tensor:
        # In float64, since squares of what explodes overflow float32; Apple's GPUs have none.
        wide = torch.float32 if gradient.device.type == "mps" else torch.float64
        norm = torch.linalg.vector_norm(gradient, dim=-1, keepdim=True, dtype=wide)
        coefficient = (self.factor * self.bound / norm).clamp_(max=1.0)
        if not is_paused():
            self._coefficients.append(coefficient)
        return coefficient.to(gradient.dtype)
