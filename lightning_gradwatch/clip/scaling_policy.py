"""What policies have in common that multiply each tensor by a number which they judge from the
tensors' norms.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_gradwatch.clip.norms import norm_of, tensor_norms
from lightning_gradwatch.clip.policy import ArgumentsMixin
from lightning_gradwatch.clip.tensor_policy import Clipped, multiply_all_, share_of


class ScalingPolicy(ArgumentsMixin, ABC):
    """Measures each tensor once: what is judged gives the norm of the whole besides."""

    @torch.no_grad()
    def clip_(
        self, gradients: Sequence[Tensor], parameters: Sequence[Tensor], names: Sequence[str], norm: Tensor
    ) -> Tensor:
        """Scale in place, and remember; the share of what the policy judges that became shorter."""
        return self._scale_(gradients, names, tensor_norms(gradients), norm)[1] if gradients else share_of([])

    @torch.no_grad()
    def measure_and_clip_(
        self, gradients: Sequence[Tensor], parameters: Sequence[Tensor], names: Sequence[str]
    ) -> Clipped:
        """The tensors' norms give those of the whole gradient, before and after."""
        norms = tensor_norms(gradients)
        norm = norm_of(norms)
        coefficients, share = self._scale_(gradients, names, norms, norm)
        return Clipped(norm, norm_of(norms * coefficients), share)

    @abstractmethod
    def _judge(self, names: Sequence[str], norms: Tensor, norm: Tensor) -> tuple[Tensor, Tensor]:
        """What each tensor is to be multiplied by, and the share of what is judged that becomes
        shorter; the policy's state moves.

        Args:
            norms: one a tensor.
            norm: of all of them, on the same device.
        """

    def _scale_(
        self, gradients: Sequence[Tensor], names: Sequence[str], norms: Tensor, norm: Tensor
    ) -> tuple[Tensor, Tensor]:
        coefficients, share = self._judge(names, norms, norm.to(norms.device))
        multiply_all_(gradients, coefficients.unbind())
        return coefficients, share
